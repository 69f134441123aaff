//! Corpora that are built, opened, and damaged.

use std::fs;
use std::path::{Path, PathBuf};

use super::format::{Head, Parts, Writer, checksum};
use super::{Corpus, Counts, fingerprint};
use crate::data::text::Layout;
use crate::data::tokenizer::{Normalization, Tokenizer};
use crate::random::Random;

/// A vocabulary of the five special tokens and 95 words, every second one of which goes on with the word before.
pub(crate) fn hundred_words() -> Tokenizer {
    let words: Vec<String> = (5..100).map(|id| format!("{}w{id}", ["", "##"][id % 2])).collect();
    Tokenizer::from_words(words.iter().map(String::as_str), Normalization::default()).unwrap()
}

/// A corpus of these documents of sentences of the ids of [`hundred_words`]. Its file is gone already, its pages are not.
pub(crate) fn corpus_of(documents: &[Vec<Vec<u32>>]) -> Corpus {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("corpus");
    write(documents, &path);
    Corpus::open(&path, &hundred_words()).unwrap()
}

/// Documents of 1 to 60 sentences, every seventh of a single one, of 1 to 30 tokens or, one in fifty, of 200.
pub(crate) fn some_documents(count: usize, seed: u64) -> Vec<Vec<Vec<u32>>> {
    let mut random = Random::new(seed, [0, 0]);
    let sentence = |random: &mut Random| {
        let length = if random.below(50) == 0 { 200 } else { 1 + random.below(30) };
        (0..length).map(|_| 5 + random.below(95)).collect()
    };
    let document = |number: usize| {
        let sentences = if number.is_multiple_of(7) { 1 } else { 1 + random.below(60) };
        (0..sentences).map(|_| sentence(&mut random)).collect()
    };
    (0..count).map(document).collect()
}

fn write(documents: &[Vec<Vec<u32>>], path: &Path) {
    let mut writer = Writer::new(path).unwrap();
    for document in documents {
        document.iter().for_each(|sentence| writer.sentence(sentence).unwrap());
        writer.end_document();
    }
    let vocabulary = hundred_words().hash().as_bytes().try_into().unwrap();
    writer.finish(Head { vocabulary, ..bytemuck::Zeroable::zeroed() }).unwrap();
}

fn words(words: &[&str]) -> Tokenizer {
    Tokenizer::from_words(words.iter().copied(), Normalization::default()).unwrap()
}

fn build(texts: &[PathBuf], tokenizer: &Tokenizer, path: &Path) -> Result<Corpus, String> {
    let corpus = Corpus::build(texts, Layout::Sentences, tokenizer, path, &mut |done, total| {
        assert!(done <= total);
        true
    });
    corpus.map_err(|error| error.to_string())
}

#[test]
fn text_becomes_documents_of_sentences_of_tokens() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    // A sentence of a soft hyphen alone has no token, and a document of such sentences is none.
    fs::write(place("one"), "a b\nb\n\n\u{ad}\n\n\na\u{0} \nb a a\n").unwrap();
    fs::write(place("two"), "\n\nc\n\u{ad}\na\n").unwrap();
    let (tokenizer, texts) = (words(&["a", "b"]), [place("one"), place("two")]);
    let corpus = build(&texts, &tokenizer, &place("made/here/corpus")).unwrap();
    let counts = Counts { files: 2, documents: 3, sentences: 6, tokens: 9, dropped: 2, nuls: 1 };
    assert_eq!(corpus.counts(), counts);
    assert_eq!(corpus.tokens(), [5, 6, 6, 5, 6, 5, 5, 1, 5]);
    let documents: Vec<_> = (0..corpus.documents()).map(|document| corpus.sentences_of(document)).collect();
    assert_eq!(documents, [0..2, 2..4, 4..6]);
    let sentences: Vec<_> = (0..corpus.sentences()).map(|sentence| corpus.sentence(sentence)).collect();
    assert_eq!(sentences, [&[5, 6][..], &[6], &[5], &[6, 5, 5], &[1], &[5]]);
    assert_eq!(corpus.tokens_of(1..4), [6, 5, 6, 5, 5]);
    assert_eq!(corpus.length_of(1..4), 5);
    assert_eq!(corpus.source(), fingerprint(&texts, Layout::Sentences).unwrap());
    assert_eq!(fs::read_dir(place("made/here")).unwrap().count(), 1, "something is left beside the corpus");
}

#[test]
fn threads_do_not_change_the_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    // More text than is tokenised at a time.
    let line = |n: usize| ["a b a b c a a a b b\n", "b\n", "\n"][n % 7 % 3];
    fs::write(place("text"), (0..200_000).map(line).collect::<String>()).unwrap();
    let (tokenizer, texts) = (words(&["a", "b"]), [place("text")]);
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let path = place(&format!("corpus-{threads}"));
        let corpus = pool.install(|| build(&texts, &tokenizer, &path)).unwrap();
        assert_eq!(corpus.documents(), 57_143);
        fs::read(path).unwrap()
    };
    assert!(with(1) == with(4), "the bytes differ");
}

#[test]
fn the_fingerprint_follows_the_text_and_how_it_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let texts = |contents: &[&str]| -> Vec<PathBuf> {
        let write = |(number, text): (usize, &&str)| {
            let path = directory.path().join(format!("{number}-{}", text.len()));
            fs::write(&path, text).unwrap();
            path
        };
        contents.iter().enumerate().map(write).collect()
    };
    let of = |contents: &[&str], layout| fingerprint(&texts(contents), layout).unwrap();
    let prints = [
        of(&["a\n", "bc\n"], Layout::Sentences),
        of(&["a\n", "bc\n"], Layout::Paragraphs),
        of(&["bc\n", "a\n"], Layout::Sentences),
        of(&["a\nb", "c\n"], Layout::Sentences),
        of(&["a\nbc\n"], Layout::Sentences),
        of(&["a\n", "bd\n"], Layout::Sentences),
    ];
    for (index, print) in prints.iter().enumerate() {
        assert!(!prints[..index].contains(print), "print {index} is one before it");
    }
    let moved = directory.path().join("elsewhere");
    fs::write(&moved, "a\nbc\n").unwrap();
    assert_eq!(fingerprint(&[moved], Layout::Sentences).unwrap(), prints[4]);
}

#[test]
fn entropy_is_that_of_the_shares() {
    let corpus = corpus_of(&[vec![vec![7, 7], vec![8]], vec![vec![9]]]);
    let counts = corpus.id_counts();
    assert_eq!((counts.len(), &counts[6..10]), (100, &[0, 2, 1, 1][..]));
    approx::assert_abs_diff_eq!(corpus.unigram_entropy(), 1.5 * 2_f64.ln(), epsilon = 1e-12);
    assert_eq!(corpus_of(&[vec![vec![7, 7]]]).unigram_entropy(), 0.0);
}

#[test]
fn text_without_a_sentence_is_refused_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let text = directory.path().join("text");
    for nothing in ["", "\n\n", "\u{ad}\n"] {
        fs::write(&text, nothing).unwrap();
        let error =
            build(std::slice::from_ref(&text), &words(&["a"]), &directory.path().join("corpus")).unwrap_err();
        assert!(error.contains("text: no sentence") && error.contains("--split"), "{error}");
    }
    fs::write(&text, b"a\n\xff\n").unwrap();
    let error =
        build(std::slice::from_ref(&text), &words(&["a"]), &directory.path().join("corpus")).unwrap_err();
    assert!(error.contains("text:2: ") && error.contains("UTF-8"), "{error}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "something is left");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_said_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    // So much that the disk is found full on the way, and so little that it is at the end.
    for lines in [2_000_000, 10] {
        fs::write(place("text"), "a\n".repeat(lines)).unwrap();
        // What is written to this device finds it full.
        let temporary = place("corpus").with_extension(format!("{}.tmp", std::process::id()));
        std::os::unix::fs::symlink("/dev/full", &temporary).unwrap();
        let error = Corpus::build(
            &[place("text")],
            Layout::Sentences,
            &words(&["a"]),
            &place("corpus"),
            &mut |_, _| true,
        );
        let error = error.unwrap_err();
        let crate::data::DataError::CorpusWrite { needed, .. } = &error else { panic!("{error}") };
        // A token and an offset a line.
        let takes = lines as u64 * 12;
        assert!(needed.abs_diff(takes) < 200 + takes / 100, "{takes}: {error}");
        assert!(error.to_string().contains("No space left on device"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "something is left");
    }
}

#[test]
fn every_cut_and_every_flip_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("corpus");
    write(&[vec![vec![7, 7, 8], vec![9]], vec![vec![10]]], &path);
    let (bytes, tokenizer) = (fs::read(&path).unwrap(), hundred_words());
    let error = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let error = Corpus::open(&path, &tokenizer).unwrap_err().to_string();
        assert!(error.contains("corpus: ") && error.contains("delete the file: it is made again"), "{error}");
        error
    };
    for length in 0..bytes.len() {
        let said = error(&bytes[..length]);
        assert!(said.contains("cut short"), "{length} bytes: {said}");
    }
    assert!(error(&[&bytes[..], &[0; 8]].concat()).contains("does not fit"));
    for at in 0..bytes.len() {
        for bit in [1, 0x80] {
            let mut flipped = bytes.clone();
            flipped[at] ^= bit;
            let said = error(&flipped);
            let expected = match at {
                0..8 => "is no corpus",
                8..16 => "version",
                16..32 => "another vocabulary",
                72..96 => "does not fit",
                _ => "checksum",
            };
            assert!(said.contains(expected), "byte {at}: {said}");
        }
    }
    fs::write(&path, &bytes).unwrap();
    Corpus::open(&path, &tokenizer).unwrap();
    let said = Corpus::open(&path, &words(&["a"])).unwrap_err().to_string();
    assert!(said.contains("another vocabulary"), "{said}");
    let said = Corpus::open(&directory.path().join("absent"), &tokenizer).unwrap_err().to_string();
    assert!(said.starts_with("cannot read ") && said.contains("absent"), "{said}");
}

#[test]
fn a_forged_checksum_does_not_make_a_corpus() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("corpus");
    write(&[vec![vec![7, 7, 8], vec![9]], vec![vec![10]]], &path);
    let bytes = fs::read(&path).unwrap();
    let parts = Parts::of(bytemuck::from_bytes(&bytes[..size_of::<Head>()])).unwrap();
    let forged = |at: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = value;
        let sum = checksum(&bytes[..parts.checksum.start]);
        bytes[parts.checksum.clone()].copy_from_slice(&sum);
        fs::write(&path, &bytes).unwrap();
        Corpus::open(&path, &hundred_words()).map(|_| ()).map_err(|error| error.to_string())
    };
    forged(parts.tokens.start, 99).unwrap();
    assert!(forged(parts.tokens.start, 100).unwrap_err().contains("not in the vocabulary"));
    for (part, what) in [(&parts.sentences, "sentences"), (&parts.documents, "documents")] {
        let said = format!("its {what} do not cover");
        assert!(forged(part.start, 1).unwrap_err().contains(&said), "a start that is not 0");
        assert!(forged(part.start + 8, 0).unwrap_err().contains(&said), "an empty one");
        assert!(forged(part.start + 8, 200).unwrap_err().contains(&said), "one that starts too late");
        assert!(forged(part.end - 8, 2).unwrap_err().contains(&said), "another end");
    }
}

#[test]
fn a_build_that_is_stopped_leaves_nothing_and_clears_away_what_a_killed_one_left() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    fs::write(place("text"), "a a\na\n").unwrap();
    let made = |go_on: bool| {
        let texts = [place("text")];
        Corpus::build(&texts, Layout::Sentences, &words(&["a"]), &place("made.corpus"), &mut |_, _| go_on)
    };
    // Nobody holds the first; somebody holds the second; the third is no such file.
    let held = fs::File::create(place("made.2.tmp")).unwrap();
    held.lock().unwrap();
    for name in ["made.1.tmp", "made.x.tmp"] {
        fs::write(place(name), "left").unwrap();
    }
    assert!(matches!(made(false), Err(crate::data::DataError::Stopped)));
    let mut names: Vec<_> =
        fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["made.2.tmp", "made.x.tmp", "text"]);
    assert_eq!(made(true).unwrap().counts().tokens, 3);
}
