//! Raw text for pre-training: files of sentences, read one at a time.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::error::DataError;
use super::sentences::sentences;

/// Longer lines, and longer sentences of a paragraph, are taken for a mistake, in bytes.
const LONGEST: usize = 1 << 20;
/// Longer lines that hold a document are taken for a mistake, in bytes.
const LONGEST_DOCUMENT: usize = 1 << 26;
/// A paragraph with more bytes than this is cut before its end is known, so that memory holds no more.
const LONG_PARAGRAPH: usize = 1 << 16;

/// How a file's lines make sentences and documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// A line is a sentence; a blank line or the end of the file ends a document.
    #[default]
    Sentences,
    /// Lines up to a blank one are a paragraph, which is cut into sentences; two or more blank lines or the end of the
    /// file end a document. A word that a hyphen cuts at a line's end stays cut.
    Paragraphs,
    /// A line is a JSON object whose `text` is a document: blank lines in it, as many as there are, stand between
    /// paragraphs, which are cut into sentences.
    Documents,
}

impl Layout {
    /// That of plain paragraphs which are to be `split` into sentences, else that of a sentence a line.
    pub fn of(split: bool) -> Self {
        if split { Layout::Paragraphs } else { Layout::Sentences }
    }

    fn longest_line(self) -> usize {
        if self == Layout::Documents { LONGEST_DOCUMENT } else { LONGEST }
    }
}

/// What [`read`] finds, in the order of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A sentence without blanks around it; never empty.
    Sentence(&'a str),
    /// The document of the sentences before is complete; never without a sentence.
    DocumentEnd,
}

/// What a file held; whoever reads it has to say it if there were NULs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sentences.
    pub sentences: u64,
    /// Documents, none of them empty.
    pub documents: u64,
    /// NUL characters, which are dropped, as BERT's cleaning does.
    pub nuls: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// The files that these paths mean: a file itself, for a directory all regular files below it, sorted by their paths.
/// Left out there: what is hidden (a name that begins with a dot) and links to directories.
pub fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    for path in paths {
        let wrong = |reason: &str| DataError::RawText { path: path.clone(), reason: reason.to_string() };
        if !path.exists() {
            return Err(wrong("no such file or folder; name text files, or folders of them"));
        }
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let before = files.len();
        add_below(path, &mut files)?;
        if files.len() == before {
            return Err(wrong("no files in this folder (hidden ones are left out); put text files into it"));
        }
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = files.iter().find(|path| !seen.insert(path.as_path())) {
        let reason = "is named twice, and its text would count twice; name it once".to_string();
        return Err(DataError::RawText { path: twice.clone(), reason });
    }
    Ok(files)
}

fn add_below(directory: &Path, files: &mut Vec<PathBuf>) -> Result<(), DataError> {
    let failed = || DataError::read(directory);
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    paths.sort();
    for path in paths {
        if path.is_file() {
            files.push(path);
        } else if path.is_dir() && !path.is_symlink() {
            add_below(&path, files)?;
        }
    }
    Ok(())
}

/// Reads a file of UTF-8 text and gives its pieces to `each`. A byte order mark, `\r` at a line's end and NULs are
/// dropped. Memory holds a line or a part of a paragraph; of documents in lines, one of them.
///
/// # Errors
/// The file cannot be read, a line is not UTF-8, a line or a sentence is longer than a mebibyte, a document in a line longer
/// than 64, or a line that should be is no object with a `text`.
pub fn read(path: &Path, layout: Layout, each: impl FnMut(Piece<'_>)) -> Result<Counts, DataError> {
    let file = File::open(path).map_err(DataError::read(path))?;
    parse(BufReader::with_capacity(1 << 16, file), path, layout, each)
}

/// [`read`] from text that is not in a file of its own; `path` is what errors name.
pub fn parse(
    input: impl BufRead,
    path: &Path,
    layout: Layout,
    each: impl FnMut(Piece<'_>),
) -> Result<Counts, DataError> {
    let mut lines = Lines { input, path, buffer: Vec::new(), number: 0, counts: Counts::default() };
    let mut pieces = Pieces { each, sentences: 0, documents: 0, open: false };
    match layout {
        Layout::Sentences => {
            while let Some(line) = lines.next(layout)? {
                if line.is_empty() { pieces.end() } else { pieces.sentence(line) }
            }
        }
        Layout::Paragraphs => paragraphs(&mut lines, &mut pieces)?,
        Layout::Documents => documents(&mut lines, &mut pieces)?,
    }
    pieces.end();
    Ok(Counts { sentences: pieces.sentences, documents: pieces.documents, ..lines.counts })
}

fn paragraphs<Each: FnMut(Piece<'_>)>(
    lines: &mut Lines<'_, impl BufRead>,
    pieces: &mut Pieces<Each>,
) -> Result<(), DataError> {
    let mut paragraph = String::new();
    let mut cut_at = LONG_PARAGRAPH;
    let mut blank_lines = 0;
    while let Some(line) = lines.next(Layout::Paragraphs)? {
        if line.is_empty() {
            sentences(&paragraph).for_each(|sentence| pieces.sentence(sentence));
            paragraph.clear();
            cut_at = LONG_PARAGRAPH;
            blank_lines += 1;
            if blank_lines == 2 {
                pieces.end();
            }
            continue;
        }
        blank_lines = 0;
        if !paragraph.is_empty() {
            paragraph.push(' ');
        }
        paragraph.push_str(line);
        if paragraph.len() > cut_at {
            // The last sentence may go on in the next line.
            let mut last = "";
            for sentence in sentences(&paragraph) {
                if !last.is_empty() {
                    pieces.sentence(last);
                }
                last = sentence;
            }
            paragraph = last.to_string();
            if paragraph.len() > LONGEST {
                return Err(lines.too_long("no sentence ends", LONGEST, "is it text?"));
            }
            // Twice as far each time, so that a long sentence is not looked through at every line.
            cut_at = LONG_PARAGRAPH.max(2 * paragraph.len());
        }
    }
    sentences(&paragraph).for_each(|sentence| pieces.sentence(sentence));
    Ok(())
}

/// Documents as JSON objects, one a line.
fn documents<Each: FnMut(Piece<'_>)>(
    lines: &mut Lines<'_, impl BufRead>,
    pieces: &mut Pieces<Each>,
) -> Result<(), DataError> {
    while let Some(line) = lines.next(Layout::Documents)? {
        if line.is_empty() {
            continue;
        }
        let read = serde_json::from_str(line);
        let (path, line) = (lines.path.to_path_buf(), lines.number);
        let mut object: Map<String, Value> = match read {
            Ok(object) => object,
            Err(error) => return Err(DataError::Json { path, line, reason: error.to_string() }),
        };
        let wrong = |reason| DataError::Field { path, line, field: "text".to_string(), reason };
        let text = match object.remove("text") {
            Some(Value::String(text)) => text,
            Some(other) => return Err(wrong(format!("is {other}, not a text"))),
            None => return Err(wrong("is missing".to_string())),
        };
        lines.counts.nuls += text.matches('\0').count() as u64;
        let mut paragraph = String::new();
        for line in text.replace('\0', "").lines().map(str::trim).chain([""]) {
            if line.is_empty() {
                sentences(&paragraph).for_each(|sentence| pieces.sentence(sentence));
                paragraph.clear();
                continue;
            }
            if !paragraph.is_empty() {
                paragraph.push(' ');
            }
            paragraph.push_str(line);
        }
        pieces.end();
    }
    Ok(())
}

/// Gives pieces out and counts them; no document is empty.
struct Pieces<Each> {
    each: Each,
    sentences: u64,
    documents: u64,
    /// Whether the document has a sentence yet.
    open: bool,
}

impl<Each: FnMut(Piece<'_>)> Pieces<Each> {
    fn sentence(&mut self, sentence: &str) {
        (self.each)(Piece::Sentence(sentence));
        self.sentences += 1;
        self.open = true;
    }

    fn end(&mut self) {
        if self.open {
            (self.each)(Piece::DocumentEnd);
            self.documents += 1;
            self.open = false;
        }
    }
}

/// The lines of a file, one at a time.
struct Lines<'a, Input> {
    input: Input,
    path: &'a Path,
    buffer: Vec<u8>,
    number: u64,
    /// Bytes and NULs so far.
    counts: Counts,
}

impl<Input: BufRead> Lines<'_, Input> {
    /// The next line without its end and the blanks around it; none at the end of the file.
    fn next(&mut self, layout: Layout) -> Result<Option<&str>, DataError> {
        self.buffer.clear();
        let longest = layout.longest_line();
        let mut limited = (&mut self.input).take(longest as u64 + 1);
        let read = limited.read_until(b'\n', &mut self.buffer).map_err(DataError::read(self.path))?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        self.counts.bytes += read as u64;
        if read > longest {
            let remedy = match layout {
                _ if self.buffer.contains(&b'\r') => {
                    "are line ends those of old Macs? tr '\\r' '\\n' mends them"
                }
                Layout::Sentences => {
                    "a line should be a sentence; --split (split = true in a run file) cuts paragraphs"
                }
                Layout::Paragraphs => "is it text?",
                Layout::Documents => "a line should be a document",
            };
            return Err(self.too_long("no line end", longest, remedy));
        }
        if self.number == 1 && self.buffer.starts_with("\u{feff}".as_bytes()) {
            self.buffer.drain(..3);
        }
        if self.buffer.contains(&0) {
            let before = self.buffer.len();
            self.buffer.retain(|&byte| byte != 0);
            self.counts.nuls += (before - self.buffer.len()) as u64;
        }
        let text = str::from_utf8(&self.buffer)
            .map_err(|_| DataError::NotUtf8 { path: self.path.to_path_buf(), line: self.number })?;
        Ok(Some(text.trim()))
    }

    fn too_long(&self, what: &str, longest: usize, remedy: &str) -> DataError {
        let reason = format!("line {}: {what} within {longest} bytes; {remedy}", self.number);
        DataError::RawText { path: self.path.to_path_buf(), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sentences, with `|` for the end of a document, and the counts.
    fn parsed(bytes: &[u8], layout: Layout) -> Result<(Vec<String>, Counts), String> {
        let mut pieces = Vec::new();
        let take = |piece: Piece<'_>| {
            pieces.push(match piece {
                Piece::Sentence(sentence) => sentence.to_string(),
                Piece::DocumentEnd => "|".to_string(),
            });
        };
        let counts = parse(bytes, Path::new("a.txt"), layout, take).map_err(|error| error.to_string())?;
        Ok((pieces, counts))
    }

    #[track_caller]
    fn pieces(text: &str, layout: Layout, expected: &[&str]) {
        let (pieces, counts) = parsed(text.as_bytes(), layout).unwrap();
        assert_eq!(pieces, expected, "{text:?}");
        let documents = expected.iter().filter(|piece| **piece == "|").count() as u64;
        assert_eq!((counts.documents, counts.sentences), (documents, expected.len() as u64 - documents));
        assert_eq!(counts.bytes, text.len() as u64);
    }

    #[test]
    fn a_line_is_a_sentence_and_a_blank_one_ends_a_document() {
        let lines = Layout::Sentences;
        pieces("A b.\nC. D.\n\nE", lines, &["A b.", "C. D.", "|", "E", "|"]);
        pieces("\n\nA\n \n\t\n\u{a0}\nB\n\n\n", lines, &["A", "|", "B", "|"]);
        pieces("", lines, &[]);
        pieces("\n \n", lines, &[]);
        pieces("\u{feff}A\r\n\r\nB\r\n", lines, &["A", "|", "B", "|"]);
        pieces("\u{a0} A\u{a0}b \u{3000}\n", lines, &["A\u{a0}b", "|"]);
        pieces("A\u{85}b\u{2028}c", lines, &["A\u{85}b\u{2028}c", "|"]);
    }

    #[test]
    fn a_paragraph_is_cut_and_two_blank_lines_end_a_document() {
        let wrapped = Layout::Paragraphs;
        pieces(
            "One goes\non. Two\r\n  too.\n\nThree\n",
            wrapped,
            &["One goes on.", "Two too.", "Three", "|"],
        );
        pieces("A\n\nB\n\n\nC\n\n\n\n\nD", wrapped, &["A", "B", "|", "C", "|", "D", "|"]);
        pieces("\n\n\n", wrapped, &[]);
    }

    #[test]
    fn a_paragraph_without_an_end_is_cut_on_the_way() {
        let text = "So it went on and\non for ever. Mr.\nBell was tired. ".repeat(10_000);
        let (pieces, counts) = parsed(text.as_bytes(), Layout::Paragraphs).unwrap();
        assert_eq!((counts.sentences, counts.documents), (20_000, 1));
        for pair in pieces[..20_000].chunks(2) {
            assert_eq!(pair, ["So it went on and on for ever.", "Mr. Bell was tired."]);
        }
        let error = parsed("on and on\n".repeat(200_000).as_bytes(), Layout::Paragraphs).unwrap_err();
        assert!(error.contains("no sentence ends within 1048576 bytes"), "{error}");
    }

    #[test]
    fn a_line_holds_a_document_whose_paragraphs_are_cut() {
        let lines = |texts: &[&str]| {
            let line = |text: &&str| format!("{}\n", serde_json::json!({"id": 7, "text": text}));
            texts.iter().map(line).collect::<String>()
        };
        let documents = Layout::Documents;
        let text = lines(&["One goes\non. Two too.\n\nThree\r\n \n\n\nFour", " \n", "Five"]) + "\n";
        let expected = ["One goes on.", "Two too.", "Three", "Four", "|", "Five", "|"];
        pieces(&text, documents, &expected);
        let (found, counts) = parsed(lines(&["a\0b"]).as_bytes(), documents).unwrap();
        assert_eq!((&found[..], counts.nuls), (&["ab".to_string(), "|".to_string()][..], 1));
        // A document may be longer than a line of text may be.
        let long = lines(&[&"It went on. ".repeat(LONGEST / 8)]);
        assert_eq!(parsed(long.as_bytes(), documents).unwrap().1.sentences, LONGEST as u64 / 8);
        for (text, said) in [
            ("{\"text\": \"a\"}\n{\"txt\": \"a\"}", "a.txt:2: field \"text\" is missing"),
            ("{\"text\": [\"a\"]}", "a.txt:1: field \"text\" is [\"a\"], not a text"),
            ("\nplain text", "a.txt:2: not a line of JSON"),
            ("[\"a\"]", "a.txt:1: not a line of JSON"),
        ] {
            let error = parsed(text.as_bytes(), documents).unwrap_err();
            assert!(error.starts_with(said), "{said}: {error}");
        }
    }

    #[test]
    fn nuls_are_dropped_and_counted() {
        let (pieces, counts) = parsed(b"a\0b\n\0\0\nc\0\n", Layout::Sentences).unwrap();
        assert_eq!(pieces, ["ab", "|", "c", "|"]);
        assert_eq!((counts.nuls, counts.bytes), (4, 10));
    }

    #[test]
    fn what_is_no_text_is_an_error_with_line_and_remedy() {
        for layout in [Layout::Sentences, Layout::Paragraphs] {
            let error = parsed(b"a\nb\n\xe9t\xe9\n", layout).unwrap_err();
            assert!(error.starts_with("a.txt:3: ") && error.contains("iconv -f latin1 -t utf-8"), "{error}");
        }
        let long = |end: &str| format!("a\n{}{end}", "x ".repeat(LONGEST / 2)).into_bytes();
        let error = |text: &[u8], layout| parsed(text, layout).unwrap_err();
        let said = error(&long("y"), Layout::Sentences);
        assert!(said.contains("a.txt: line 2: no line end") && said.contains("--split"), "{said}");
        assert!(!error(&long("y"), Layout::Paragraphs).contains("--split"));
        assert!(error(&b"mac\r".repeat(LONGEST / 2), Layout::Sentences).contains("tr '\\r' '\\n'"));
        let mut most = long("");
        most.pop();
        most.push(b'\n');
        assert_eq!(parsed(&most, Layout::Sentences).unwrap().1.sentences, 2);
        let error = read(Path::new("absent.txt"), Layout::Sentences, |_| {}).unwrap_err().to_string();
        assert!(error.starts_with("cannot read absent.txt: "), "{error}");
    }

    #[test]
    fn a_folder_means_its_files_sorted_without_hidden_ones() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["b/d.txt", "b/a.txt", "a.txt", "c.txt", ".hidden/x.txt", "b/.y.txt"] {
            fs::create_dir_all(path(name).parent().unwrap()).unwrap();
            fs::write(path(name), "text\n").unwrap();
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink(directory.path(), path("b/loop")).unwrap();
        let all = ["a.txt", "b/a.txt", "b/d.txt", "c.txt"].map(path);
        assert_eq!(files(&[directory.path().to_path_buf()]).unwrap(), all);
        let given = [path("c.txt"), path("b"), path(".hidden/x.txt")];
        let expected = [path("c.txt"), path("b/a.txt"), path("b/d.txt"), path(".hidden/x.txt")];
        assert_eq!(files(&given).unwrap(), expected);

        fs::create_dir(path("empty")).unwrap();
        let error = |paths: &[PathBuf]| files(paths).unwrap_err().to_string();
        assert!(error(&[path("empty")]).contains("empty: no files in this folder"));
        assert!(error(&[path("a.txt"), path("absent")]).contains("absent: no such file or folder"));
        assert!(error(&[path("b"), path("b/a.txt")]).contains("b/a.txt: is named twice"));
    }
}
