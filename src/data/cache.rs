//! A split as token ids, made once and kept in a file.
//!
//! The file's name holds a hash of everything that the ids follow from: the text file's contents and how it is read,
//! the labels, the vocabulary and its flags, the maximal length, the version of this format. A file that is damaged is
//! made anew, and that is said.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::dataset::{Dataset, Example, Label, Text};
use super::error::DataError;
use super::marks::{self, Marks};
use super::reader::{self, Skipped};
use super::reference;
use super::span::SpanOptions;
use super::task::{Columns, SourceFile, Split, TaskKind, TaskSpec};
use super::tokenizer::Tokenizer;
use super::windows::Windows;

const MAGIC: &[u8; 8] = b"mtdnntok";
/// Raised whenever the layout below or the way from text to ids changes.
const VERSION: u64 = 2;
/// Examples that one thread tokenises at a time.
const CHUNK: usize = 256;
/// The longest message of a skipped row that is believed.
const LONGEST_MESSAGE: u64 = 1 << 16;

/// A split that is ready to make batches from, and what has to be said about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// The token ids.
    pub dataset: Dataset,
    /// The rows that were left out.
    pub skipped: Skipped,
    /// What is odd about the text, or went wrong with the cache; the data are right all the same.
    pub notes: Vec<String>,
}

/// Reads and tokenises a file of a task; from `cache`, a directory, if it was done before, else to there.
///
/// # Errors
/// If the text file is missing or wrong. A cache that cannot be read or written is no error, but noted.
pub fn prepare(
    file: &SourceFile,
    spec: &TaskSpec,
    tokenizer: &Tokenizer,
    max_length: usize,
    cache: Option<&Path>,
) -> Result<Prepared, DataError> {
    if let Columns::Tokens { .. } = file.columns {
        return reference::tokens::prepare(file, spec, tokenizer, max_length);
    }
    let mut notes = Vec::new();
    let mut target = None;
    if let Some(directory) = cache {
        let key = key(file, spec, tokenizer, max_length)?;
        let short: String = key[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let path = directory.join(format!("{}-{}-{short}.tokens", spec.name, file.name));
        match load(&path, &key) {
            Ok((dataset, skipped)) => match check(&dataset, spec, tokenizer.vocab_size(), max_length) {
                Ok(()) => return Ok(Prepared { dataset, skipped, notes }),
                Err(reason) => notes.push(format!("{} is damaged ({reason}): made anew", path.display())),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => notes.push(format!("{} is damaged ({error}): made anew", path.display())),
        }
        target = Some((path, key));
    }
    let (examples, skipped) = reader::read(file, spec)?;
    let dataset = match spec.span {
        Some(options) => spans(&examples, tokenizer, max_length, options, file.split == Split::Train),
        None => Ok(tokenize(&examples, tokenizer, max_length)),
    };
    let dataset = dataset.map_err(|reason| DataError::Task { task: spec.name.clone(), reason })?;
    if dataset.is_empty() {
        let skipped = format!("none of {} windows holds the answer to its question", dataset.dropped);
        return Err(DataError::Empty { path: file.path.clone(), skipped: Some(skipped) });
    }
    if let Some((path, key)) = target
        && let Err(error) = store(&path, &key, &dataset, &skipped)
    {
        notes.push(format!("cannot keep token ids in {}: {error}", path.display()));
    }
    Ok(Prepared { dataset, skipped, notes })
}

/// The token ids of all examples, in their order; the same whatever the number of threads.
///
/// # Panics
/// If `max_length` is below 4 or above [`MAX_SEQUENCE`](super::batch::MAX_SEQUENCE).
pub fn tokenize(examples: &[Example], tokenizer: &Tokenizer, max_length: usize) -> Dataset {
    in_parts(examples, |part, example| push(part, example, tokenizer, max_length))
}

/// As [`tokenize`], for questions: texts longer than fit are read in windows. With `training` each window is an example
/// of its own, and those without the answer are left out unless there may be none; else a question's windows are one.
///
/// # Errors
/// If no text fits beside a question.
pub fn spans(
    examples: &[Example],
    tokenizer: &Tokenizer,
    max_length: usize,
    options: SpanOptions,
    training: bool,
) -> Result<Dataset, String> {
    let windows = Windows { tokenizer, max_length, options, training };
    windows.check()?;
    Ok(in_parts(examples, |part, example| windows.push(part, example)))
}

fn in_parts(examples: &[Example], push: impl Fn(&mut Dataset, &Example) + Sync) -> Dataset {
    let parts: Vec<Dataset> = examples
        .par_chunks(CHUNK)
        .map(|chunk| {
            let mut part = Dataset::new();
            for example in chunk {
                push(&mut part, example);
            }
            part
        })
        .collect();
    let mut dataset = Dataset::new();
    dataset.ids.reserve_exact(parts.iter().map(|part| part.ids.len()).sum());
    for part in &parts {
        dataset.append(part);
    }
    dataset
}

fn push(dataset: &mut Dataset, example: &Example, tokenizer: &Tokenizer, max_length: usize) {
    let mut add = |a: &[u32], b: Option<&[u32]>| {
        let sequence = tokenizer.pack(a, b, max_length);
        dataset.push_sequence(&sequence.ids, sequence.second);
        dataset.truncated += u64::from(sequence.truncated);
    };
    match &example.text {
        Text::Single(text) => add(&tokenizer.tokens(text), None),
        Text::Pair(a, b) => add(&tokenizer.tokens(a), Some(&tokenizer.tokens(b))),
        Text::Candidates { query, candidates } => {
            let query = tokenizer.tokens(query);
            candidates.iter().for_each(|candidate| add(&query, Some(&tokenizer.tokens(candidate))));
        }
        Text::Words { words, tags } => {
            let (ids, mut firsts) = tokenizer.words(words);
            add(&ids, None);
            firsts.iter_mut().for_each(|first| *first += 1); // [CLS]
            dataset.marks.push_words(&firsts, max_length as u32 - 1, tags);
        }
        Text::Question { .. } => panic!("a question is cut in windows"),
    }
    dataset.finish_example(example.label);
}

/// A hash of everything that the ids follow from.
fn key(
    file: &SourceFile,
    spec: &TaskSpec,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<[u8; 32], DataError> {
    let mut hasher = Sha256::new();
    let SourceFile { split, name: _, path, format, columns, quirks } = file;
    // Without a label column the label is the most probable one.
    let soft = spec.soft.as_ref().map(|soft| &soft.source).filter(|source| source.columns().is_some());
    let rules = format!(
        "{VERSION} {} {max_length} CLS-A-SEP-B-SEP {} {:?} {:?} {split} {format:?} {columns:?} {quirks:?} {soft:?} {}",
        tokenizer.hash(),
        spec.kind,
        spec.labels,
        spec.span,
        if cfg!(target_endian = "little") { "little-endian" } else { "big-endian" },
    );
    hasher.update((rules.len() as u64).to_le_bytes());
    hasher.update(rules);
    hasher.update(path.to_string_lossy().as_bytes()); // The name in a skipped row's message.
    let mut input = File::open(path).map_err(DataError::read(path))?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = input.read(&mut buffer).map_err(DataError::read(path))?;
        if read == 0 {
            return Ok(hasher.finalize().into());
        }
        hasher.update(&buffer[..read]);
    }
}

/// The head of the file: everything that its size follows from.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
struct Head {
    magic: [u8; 8],
    version: u64,
    key: [u8; 32],
    tokens: u64,
    sequences: u64,
    examples: u64,
    truncated: u64,
    dropped: u64,
    /// Sequences that have marks: all or none.
    marked: u64,
    marks: u64,
    classes: u64,
    places: u64,
    passages: u64,
    skipped: u64,
    message: u64,
}

impl Head {
    /// The bytes of the whole file: this, the arrays, the message, the checksum.
    fn file_size(&self) -> Option<u64> {
        let offsets = self.sequences.checked_add(1)?.checked_mul(8)?;
        let groups = self.examples.checked_add(1)?.checked_mul(4)?;
        let parts = [
            self.tokens.checked_mul(4)?,
            offsets,
            self.sequences.checked_mul(4)?,
            groups,
            self.examples.checked_mul(8)?,
            self.marked.checked_add(u64::from(self.marked > 0))?.checked_mul(4)?,
            self.marks.checked_mul(4)?,
            self.classes.checked_mul(4)?,
            self.places.checked_mul(8)?,
            self.passages,
            self.message,
            32,
        ];
        parts.into_iter().try_fold(size_of::<Head>() as u64, u64::checked_add)
    }
}

fn store(path: &Path, key: &[u8; 32], dataset: &Dataset, skipped: &Skipped) -> io::Result<()> {
    let message = skipped.first.as_deref().unwrap_or_default();
    let passages = match dataset.passages.is_empty() {
        true => Vec::new(),
        false => serde_json::to_vec(&dataset.passages)?,
    };
    let head = Head {
        magic: *MAGIC,
        version: VERSION,
        key: *key,
        tokens: dataset.ids.len() as u64,
        sequences: dataset.second.len() as u64,
        examples: dataset.labels.len() as u64,
        truncated: dataset.truncated,
        dropped: dataset.dropped,
        marked: dataset.marks.offsets.len().saturating_sub(1) as u64,
        marks: dataset.marks.len() as u64,
        classes: dataset.marks.classes.len() as u64,
        places: dataset.marks.places.len() as u64,
        passages: passages.len() as u64,
        skipped: skipped.count,
        message: message.len() as u64,
    };
    let labels: Vec<[u32; 2]> = dataset.labels.iter().map(|&label| label.to_bits()).collect();
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    // A name of its own to each process: two may prepare the same split at once, and the last to rename wins.
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = write_parts(
        &temporary,
        &[
            bytemuck::bytes_of(&head),
            bytemuck::cast_slice(&dataset.ids),
            bytemuck::cast_slice(&dataset.offsets),
            bytemuck::cast_slice(&dataset.second),
            bytemuck::cast_slice(&dataset.groups),
            bytemuck::cast_slice(&labels),
            bytemuck::cast_slice(&dataset.marks.offsets),
            bytemuck::cast_slice(&dataset.marks.positions),
            bytemuck::cast_slice(&dataset.marks.classes),
            bytemuck::cast_slice(&dataset.marks.places),
            &passages,
            message.as_bytes(),
        ],
    );
    let stored = written.and_then(|()| fs::rename(&temporary, path));
    if stored.is_err() {
        // What is left of a failed attempt helps nobody; the first error is the one to report.
        let _ = fs::remove_file(&temporary);
    }
    stored
}

/// Writes `parts` and a checksum of them, and waits until they are on the disk.
fn write_parts(path: &PathBuf, parts: &[&[u8]]) -> io::Result<()> {
    let mut output = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
        output.write_all(part)?;
    }
    output.write_all(&hasher.finalize())?;
    output.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

fn load(path: &Path, key: &[u8; 32]) -> io::Result<(Dataset, Skipped)> {
    let wrong = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason);
    let mut input = File::open(path)?;
    let size = input.metadata()?.len();
    let mut hasher = Sha256::new();
    let mut read = |bytes: &mut [u8]| -> io::Result<()> {
        input.read_exact(bytes)?;
        hasher.update(bytes);
        Ok(())
    };
    let mut head: Head = bytemuck::Zeroable::zeroed();
    read(bytemuck::bytes_of_mut(&mut head))?;
    if head.magic != *MAGIC || head.version != VERSION || head.key != *key {
        return Err(wrong("its head is another's"));
    }
    // The counts are believed, and memory taken, only if they add up to the file's size.
    if head.file_size() != Some(size) || head.message > LONGEST_MESSAGE {
        return Err(wrong("its size is not what its head says"));
    }
    let mut ids = vec![0_u32; head.tokens as usize];
    let mut offsets = vec![0_u64; head.sequences as usize + 1];
    let mut second = vec![0_u32; head.sequences as usize];
    let mut groups = vec![0_u32; head.examples as usize + 1];
    let mut labels = vec![[0_u32; 2]; head.examples as usize];
    let mut marks = Marks {
        offsets: vec![0; head.marked as usize + usize::from(head.marked > 0)],
        positions: vec![0; head.marks as usize],
        classes: vec![0; head.classes as usize],
        places: vec![[0; 2]; head.places as usize],
    };
    let mut passages = vec![0_u8; head.passages as usize];
    let mut message = vec![0_u8; head.message as usize];
    read(bytemuck::cast_slice_mut(&mut ids))?;
    read(bytemuck::cast_slice_mut(&mut offsets))?;
    read(bytemuck::cast_slice_mut(&mut second))?;
    read(bytemuck::cast_slice_mut(&mut groups))?;
    read(bytemuck::cast_slice_mut(&mut labels))?;
    for part in [&mut marks.offsets, &mut marks.positions, &mut marks.classes] {
        read(bytemuck::cast_slice_mut(part))?;
    }
    read(bytemuck::cast_slice_mut(&mut marks.places))?;
    read(&mut passages)?;
    read(&mut message)?;
    let mut checksum = [0; 32];
    input.read_exact(&mut checksum)?;
    if checksum[..] != hasher.finalize()[..] {
        return Err(wrong("its checksum does not match"));
    }
    let labels = labels.into_iter().map(Label::from_bits).collect::<Option<_>>();
    let labels = labels.ok_or_else(|| wrong("a label is of no known sort"))?;
    let message = String::from_utf8(message).map_err(|_| wrong("its message is not UTF-8"))?;
    let first = (!message.is_empty()).then_some(message);
    let passages = if passages.is_empty() { Vec::new() } else { serde_json::from_slice(&passages)? };
    let (truncated, dropped, soft) = (head.truncated, head.dropped, Vec::new());
    let dataset = Dataset {
        ids,
        offsets,
        second,
        groups,
        labels,
        soft,
        truncated,
        dropped,
        marks,
        passages,
        masking: None,
    };
    Ok((dataset, Skipped { count: head.skipped, first }))
}

/// Whether loaded arrays fit together, so that no later index can be out of range.
fn check(dataset: &Dataset, spec: &TaskSpec, vocab_size: usize, max_length: usize) -> Result<(), String> {
    let Dataset { ids, offsets, second, groups, labels, .. } = dataset;
    if labels.is_empty() || offsets[0] != 0 || offsets[second.len()] != ids.len() as u64 {
        return Err("its sequences do not cover its tokens".to_string());
    }
    if !offsets.windows(2).all(|pair| pair[0] < pair[1] && pair[1] - pair[0] <= max_length as u64) {
        return Err("a sequence is empty or too long".to_string());
    }
    if !groups.windows(2).all(|pair| pair[0] < pair[1])
        || groups[0] != 0
        || groups[labels.len()] as usize != second.len()
    {
        return Err("its examples do not cover its sequences".to_string());
    }
    if ids.iter().any(|&id| id as usize >= vocab_size) {
        return Err("a token is not in the vocabulary".to_string());
    }
    let fits = |(example, label): (usize, &Label)| match (*label, spec.kind) {
        (Label::None, _) => true,
        (Label::Class(class), TaskKind::Classification) => (class as usize) < spec.labels.len(),
        (Label::Score(score), TaskKind::Regression) => score.is_finite(),
        (Label::Positive(index), TaskKind::Ranking) => (index as usize) < dataset.sequences_of(example).len(),
        (Label::Tags, TaskKind::Labelling) | (Label::Answers, TaskKind::Span) => true,
        (Label::Span { first, last }, TaskKind::Span) => {
            first <= last && (last as usize) < dataset.marked_of(example)
        }
        _ => false,
    };
    if !labels.iter().enumerate().all(fits) {
        return Err("a label is none of the task's".to_string());
    }
    marks::check(dataset, spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::task::{Column, Format, Quirks, Split, Texts};
    use crate::data::tokenizer::Normalization;

    fn tokenizer(words: &[&str]) -> Tokenizer {
        Tokenizer::from_words(words.iter().copied(), Normalization::default()).unwrap()
    }

    fn spec(path: PathBuf) -> TaskSpec {
        let columns = Columns::Row {
            text_a: Column::Number(0),
            text_b: Some(Column::Number(1)),
            label: Some(Column::Number(2)),
        };
        let file = SourceFile {
            split: Split::Train,
            name: "train".to_string(),
            path,
            format: Format::Tsv { header: false },
            columns,
            quirks: Quirks { no_consensus: true, ..Quirks::default() },
        };
        TaskSpec {
            texts: Some(Texts::Pair),
            labels: vec!["no".to_string(), "yes".to_string()],
            files: vec![file],
            ..TaskSpec::new("pairs", TaskKind::Classification)
        }
    }

    fn only_cache(directory: &Path) -> PathBuf {
        let files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files.into_iter().next().unwrap()
    }

    #[test]
    fn a_cached_split_is_the_split() {
        let directory = tempfile::tempdir().unwrap();
        let text = directory.path().join("train.tsv");
        let lines: String = (0..700).map(|n| format!("a b c {n}\tb a\t{}\n", ["yes", "no"][n % 2])).collect();
        fs::write(&text, format!("a\tb\t-\n{lines}")).unwrap();
        let (spec, tokenizer) = (spec(text.clone()), tokenizer(&["a", "b"]));
        let cache = directory.path().join("cache");
        let make = |max_length| prepare(&spec.files[0], &spec, &tokenizer, max_length, Some(&cache)).unwrap();
        let first = make(8);
        assert_eq!(first.dataset.len(), 700);
        assert_eq!(first.dataset.truncated, 700);
        assert_eq!(first.skipped.count, 1);
        assert_eq!(first.dataset.labels[..2], [Label::Class(1), Label::Class(0)]);
        let path = only_cache(&cache);
        let stamp = fs::metadata(&path).unwrap().modified().unwrap();
        let second = make(8);
        assert_eq!(second, first);
        assert_eq!(
            fs::metadata(&path).unwrap().modified().unwrap(),
            stamp,
            "it was not read but written again"
        );
        assert_eq!(prepare(&spec.files[0], &spec, &tokenizer, 8, None).unwrap(), first);

        make(16);
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 2, "another length is another file");
        fs::write(&text, lines.replace('a', "b")).unwrap();
        assert_ne!(make(8).dataset, first.dataset, "another text is another split");
    }

    #[test]
    fn the_key_follows_everything_that_the_ids_follow_from() {
        let directory = tempfile::tempdir().unwrap();
        let text = directory.path().join("train.tsv");
        fs::write(&text, "a\tb\tyes\n").unwrap();
        let base = spec(text);
        let words = tokenizer(&["a", "b"]);
        let cased =
            Tokenizer::from_words(["a", "b"], Normalization { lowercase: false, ..Default::default() });
        let of = |spec: &TaskSpec, tokenizer: &Tokenizer, length| {
            key(&spec.files[0], spec, tokenizer, length).unwrap()
        };
        let mut swapped = base.clone();
        swapped.labels.reverse();
        let mut columns = base.clone();
        columns.files[0].columns =
            Columns::Row { text_a: Column::Number(1), text_b: None, label: Some(Column::Number(2)) };
        let keys = [
            of(&base, &words, 8),
            of(&base, &words, 9),
            of(&base, &tokenizer(&["b", "a"]), 8),
            of(&base, &cased.unwrap(), 8),
            of(&swapped, &words, 8),
            of(&columns, &words, 8),
        ];
        assert_eq!(keys[0], of(&base.clone(), &tokenizer(&["a", "b"]), 8));
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key), "key {index} is one before it");
        }
    }

    #[test]
    fn a_damaged_cache_is_made_anew_and_said() {
        let directory = tempfile::tempdir().unwrap();
        let text = directory.path().join("train.tsv");
        fs::write(&text, "a b\tb\tyes\nb\ta a\tno\n").unwrap();
        let (spec, tokenizer) = (spec(text), tokenizer(&["a", "b"]));
        let cache = directory.path().join("cache");
        let make = || prepare(&spec.files[0], &spec, &tokenizer, 8, Some(&cache)).unwrap();
        let good = make();
        assert_eq!(good.notes, Vec::<String>::new());
        let path = only_cache(&cache);
        let bytes = fs::read(&path).unwrap();
        let mut huge = bytes.clone();
        huge[48..56].copy_from_slice(&u64::MAX.to_le_bytes());
        let flipped = |at: usize| {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            bytes
        };
        for (damage, said) in [
            (Vec::new(), "fill whole buffer"),
            (bytes[..bytes.len() - 1].to_vec(), "size"),
            (huge, "size"),
            (flipped(0), "head"),
            (flipped(20), "head"),
            (flipped(size_of::<Head>() + 4), "checksum"),
            (flipped(bytes.len() - 1), "checksum"),
        ] {
            fs::write(&path, damage).unwrap();
            let again = make();
            assert_eq!(again.dataset, good.dataset);
            assert!(again.notes.len() == 1 && again.notes[0].contains(said), "{said}: {:?}", again.notes);
            assert_eq!(fs::read(&path).unwrap(), bytes, "the cache was not mended");
        }
    }

    #[test]
    fn arrays_that_do_not_fit_together_are_refused() {
        let spec = spec(PathBuf::new());
        let mut good = Dataset::new();
        good.push_sequence(&[2, 5, 3], 3);
        good.finish_example(Label::Class(0));
        assert_eq!(check(&good, &spec, 6, 8), Ok(()));
        assert!(check(&good, &spec, 5, 8).is_err());
        assert!(check(&good, &spec, 6, 2).is_err());
        let with = |change: fn(&mut Dataset)| {
            let mut bad = good.clone();
            change(&mut bad);
            check(&bad, &spec, 6, 8)
        };
        assert!(with(|set| set.offsets[1] = 2).is_err());
        assert!(with(|set| set.offsets[0] = 3).is_err());
        assert!(with(|set| set.groups[1] = 2).is_err());
        assert!(with(|set| set.labels[0] = Label::Class(2)).is_err());
        assert!(with(|set| set.labels[0] = Label::Score(1.0)).is_err());
    }

    #[test]
    fn threads_do_not_change_the_ids() {
        let tokenizer = tokenizer(&["a", "b"]);
        let text = |n: usize| Text::Candidates {
            query: "a".repeat(n % 3 + 1),
            candidates: vec!["b a".to_string(); n % 4 + 2],
        };
        let examples: Vec<Example> =
            (0..1000).map(|n| Example { text: text(n), label: Label::Positive(0) }).collect();
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| tokenize(&examples, &tokenizer, 16))
        };
        let one = with(1);
        assert_eq!(one.len(), 1000);
        assert_eq!(one.sequences_of(1).len(), 3);
        assert_eq!(one, with(3));
    }
}
