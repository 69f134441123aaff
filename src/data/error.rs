//! What can be wrong with text files, said so that it can be mended.

use std::io;
use std::path::{Path, PathBuf};

/// Anything that stops a task's text from becoming examples. Every message names the file, the line where
/// there is one, and what to do.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages document the fields.
pub enum DataError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },

    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },

    #[error("{}:{line}: the text is not UTF-8; convert the file, for example: iconv -f latin1 -t utf-8", path.display())]
    NotUtf8 { path: PathBuf, line: u64 },

    #[error("{}:{line}: found {found} columns, expected {expected}; {remedy}", path.display())]
    ColumnCount { path: PathBuf, line: u64, found: usize, expected: usize, remedy: &'static str },

    #[error("{}: no column {column:?} in the header ({known}){}; name one of these or give a number, from 0",
            path.display(), nearest(nearest_name))]
    UnknownColumn { path: PathBuf, column: String, known: String, nearest_name: Option<String> },

    #[error("{}: column {column:?} is a name, but the file has no header; give its number, from 0", path.display())]
    NoHeader { path: PathBuf, column: String },

    #[error("{}:{line}: not a line of JSON: {reason}", path.display())]
    Json { path: PathBuf, line: u64, reason: String },

    #[error("{}:{line}: a quote opens here and is never closed; double it inside a field, or save the file as TSV",
            path.display())]
    OpenQuote { path: PathBuf, line: u64 },

    #[error("{}:{line}: field {field:?} {reason}", path.display())]
    Field { path: PathBuf, line: u64, field: String, reason: String },

    #[error("{}:{line}: {reason}", path.display())]
    Soft { path: PathBuf, line: usize, reason: String },

    #[error("{}:{line}: unknown label {label:?}; the labels are {known}{}", path.display(), nearest(nearest_name))]
    UnknownLabel { path: PathBuf, line: u64, label: String, known: String, nearest_name: Option<String> },

    #[error("{}:{line}: {what} has no text", path.display())]
    EmptyText { path: PathBuf, line: u64, what: String },

    #[error("{}:{line}: group {group:?} {reason}; each group needs two rows or more and exactly one with label 1",
            path.display())]
    Group { path: PathBuf, line: u64, group: String, reason: String },

    #[error("{}:{line}: {reason}", path.display())]
    Unpaired { path: PathBuf, line: u64, reason: String },

    #[error("{}:{line}: not a file of questions as SQuAD keeps them: {reason}", path.display())]
    Squad { path: PathBuf, line: u64, reason: String },

    #[error("{}: question {id:?}: {reason}", path.display())]
    Question { path: PathBuf, id: String, reason: String },

    #[error("{}:{line}: {reason}; a test file needs an answer to every row, so none can be skipped", path.display())]
    Unanswerable { path: PathBuf, line: u64, reason: &'static str },

    #[error("{}: no examples{}", path.display(), because(skipped))]
    Empty { path: PathBuf, skipped: Option<String> },

    #[error("{}: {reason}", path.display())]
    RawText { path: PathBuf, reason: String },

    #[error("vocab.{field}: {problem}")]
    Setting { field: &'static str, problem: String },

    #[error("{}: {reason}", path.display())]
    Vocabulary { path: PathBuf, reason: String },

    #[error("{}: {reason}; delete the file: it is made again from the text", path.display())]
    Corpus { path: PathBuf, reason: String },

    #[error(
        "{}: it was made with another vocabulary or other casing; give that vocabulary, or another --output or --corpus, \
         or delete the file: it is made again from the text",
        path.display()
    )]
    OtherVocabulary { path: PathBuf },

    #[error("stopped while text was being tokenised")]
    Stopped,

    #[error("cannot write the corpus {}: {source}; it takes about {needed} bytes. What was written is removed. Make \
             room, or name another place", path.display())]
    CorpusWrite { path: PathBuf, source: io::Error, needed: u64 },

    #[error(
        "{name:?} is not a known task ({known}){}; for your own data name its files and columns",
        nearest(nearest_name)
    )]
    UnknownTask { name: String, known: String, nearest_name: Option<String> },

    #[error("{}: {reason}", path.display())]
    Definition { path: PathBuf, reason: String },

    #[error("task {task:?}: {reason}")]
    Task { task: String, reason: String },

    #[error("task {task:?}: no file of it in {}: looked for {tried}", directory.display())]
    NoFile { task: String, directory: PathBuf, tried: String },
}

impl DataError {
    /// [`DataError::Read`] as the closure that `map_err` wants.
    pub(crate) fn read(path: &Path) -> impl FnOnce(io::Error) -> DataError {
        let path = path.to_path_buf();
        move |source| DataError::Read { path, source }
    }

    /// [`DataError::Write`] as the closure that `map_err` wants.
    pub(crate) fn write(path: &Path) -> impl FnOnce(io::Error) -> DataError {
        let path = path.to_path_buf();
        move |source| DataError::Write { path, source }
    }
}

/// The known name most like `name`, if any is like it at all.
pub(crate) fn nearest_name<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let name = name.to_lowercase();
    known
        .into_iter()
        .map(|known| (strsim::jaro_winkler(&name, &known.to_lowercase()), known))
        .filter(|&(likeness, _)| likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known.to_string())
}

/// Names as a list in a sentence, cut where it would drown the message.
pub(crate) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    let shown = names.len().min(20);
    let mut text = names[..shown].join(", ");
    if shown < names.len() {
        text.push_str(&format!(" and {} more", names.len() - shown));
    }
    text
}

fn nearest(name: &Option<String>) -> String {
    name.as_ref().map_or_else(String::new, |name| format!("; did you mean {name:?}?"))
}

fn because(skipped: &Option<String>) -> String {
    skipped.as_ref().map_or_else(|| ": the file is empty".to_string(), |skipped| format!(": {skipped}"))
}
