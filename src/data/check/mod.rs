//! The data doctor: what is odd about a task's files, said before a model learns it.
//!
//! Everything that [`reader`](super::reader) refuses at the first row is counted here over all of them, and what it takes
//! in silence is said: `raw` looks at the bytes, `columns` at fields and labels, `examples` at texts that come again,
//! `lengths` at what would be cut.

mod columns;
mod examples;
mod lengths;
mod raw;

use std::fmt;
use std::path::PathBuf;

pub use lengths::Lengths;

use super::error::DataError;
use super::official;
use super::reader;
use super::task::{Columns, SourceFile, Split, TaskSpec};
use super::tokenizer::Tokenizer;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; readers that follow the format are not bothered.
    Note,
    /// Rows are lost, or figures will not mean what they seem to.
    Warning,
    /// The file cannot be read, or not as what it is.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Severity::Ok => "ok",
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

/// One thing that was found in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was looked for: `rows`, `bom`, `duplicate` and so on.
    pub check: &'static str,
    /// The file.
    pub path: PathBuf,
    /// The first line that it occurs on, from 1, if it has one.
    pub line: Option<u64>,
    /// What there is, and how often.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.line.map_or(String::new(), |line| format!(":{line}"));
        write!(f, "{:7}  {:10}  {}{line}: {}", self.severity, self.check, self.path.display(), self.text)
    }
}

/// What was found in a task's files.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The task's name.
    pub task: String,
    /// File by file; then what concerns several.
    pub findings: Vec<Finding>,
    /// The lengths of each file's examples.
    pub lengths: Vec<(PathBuf, Lengths)>,
}

/// One row as it was read.
#[derive(Clone, Debug, PartialEq)]
struct Read {
    line: u64,
    a: String,
    b: Option<String>,
    label: Option<String>,
}

/// A file with the rows that could be read.
struct Table<'a> {
    file: &'a SourceFile,
    rows: Vec<Read>,
}

/// Findings of one file, in the order in which they are made.
struct Found<'a> {
    file: &'a SourceFile,
    findings: Vec<Finding>,
}

impl Found<'_> {
    fn add(&mut self, severity: Severity, check: &'static str, line: Option<u64>, text: impl Into<String>) {
        let path = self.file.path.clone();
        self.findings.push(Finding { severity, check, path, line, text: text.into() });
    }

    /// A finding for what occurs on some lines, if it occurs at all.
    fn lines(&mut self, severity: Severity, check: &'static str, lines: &Lines, text: &str) {
        if let Some(first) = lines.first {
            let count = lines.count;
            let lines = if count == 1 { "line" } else { "lines" };
            self.add(severity, check, Some(first), format!("{count} {lines}: {text}"));
        }
    }
}

/// Lines on which something occurs.
#[derive(Clone, Debug, Default)]
struct Lines {
    count: u64,
    first: Option<u64>,
}

impl Lines {
    fn add(&mut self, line: u64) {
        self.count += 1;
        self.first.get_or_insert(line);
    }
}

/// Looks at all files of a task.
///
/// Lengths are counted in tokens with a `tokenizer`, else in words; `max_length` is what would be cut to.
pub fn check(spec: &TaskSpec, tokenizer: Option<&Tokenizer>, max_length: usize) -> Report {
    let mut findings = Vec::new();
    let mut lengths = Vec::new();
    let mut tables: Vec<Table> = Vec::new();
    let mut spec = spec.clone();
    let learned = reader::learn_labels(&mut spec);
    let files = spec.files.clone();
    for (number, file) in files.iter().enumerate() {
        let mut found = Found { file, findings: Vec::new() };
        if number == 0
            && let Err(error) = &learned
        {
            found.add(Severity::Error, "label", None, error.to_string());
        }
        raw::look(&mut found);
        let rows = match &file.columns {
            Columns::Row { text_a, text_b, label } => {
                columns::look(&mut found, &spec, text_a, text_b.as_ref(), label.as_ref())
            }
            _ => {
                whole(&mut found, &spec);
                None
            }
        };
        if let Some(rows) = rows {
            count(&mut found, &spec.name, rows.len());
            let table = Table { file, rows };
            examples::within(&mut found, &table);
            if spec.name == "qnli" {
                examples::qnli_edition(&mut found, &table);
            }
            if !table.rows.is_empty() {
                let of_file = Lengths::of(&table.rows, tokenizer, max_length);
                of_file.say(&mut found);
                lengths.push((file.path.clone(), of_file));
            }
            tables.push(table);
        }
        findings.append(&mut found.findings);
    }
    let (train, others): (Vec<&Table>, Vec<&Table>) =
        tables.iter().partition(|table| table.file.split == Split::Train);
    for other in others {
        let mut found = Found { file: other.file, findings: Vec::new() };
        examples::between(&mut found, &train, other);
        if spec.name == "wnli" && other.file.split == Split::Dev {
            examples::adversarial(&mut found, &train, other);
        }
        findings.append(&mut found.findings);
    }
    Report { task: spec.name, findings, lengths }
}

/// What has other columns than a text or two is read as training reads it.
fn whole(found: &mut Found, spec: &TaskSpec) {
    match reader::read(found.file, spec) {
        Ok((examples, skipped)) => {
            if skipped.count > 0 {
                found.add(Severity::Warning, "columns", None, skipped.to_string());
            }
            let text =
                format!("{} examples are read; texts that come again are not looked for", examples.len());
            found.add(Severity::Ok, "rows", None, text);
        }
        Err(error) => found.error("columns", &error),
    }
}

impl Found<'_> {
    /// An error of the readers, whose text begins with the file and the line.
    fn error(&mut self, check: &'static str, error: &DataError) {
        let text = error.to_string();
        let place = format!("{}:", self.file.path.display());
        let rest = text.strip_prefix(&place).unwrap_or(&text);
        let (line, rest) = match rest.split_once(':') {
            Some((line, rest)) if line.parse::<u64>().is_ok() => (line.parse().ok(), rest),
            _ => (None, rest),
        };
        self.add(Severity::Error, check, line, rest.trim());
    }
}

/// The number of rows against the official file's.
fn count(found: &mut Found, task: &str, rows: usize) {
    let known = official::rows(task, &found.file.name);
    let edition = |edition: &str| if edition.is_empty() { String::new() } else { format!(" ({edition})") };
    match (known.iter().find(|(count, _)| *count == rows), known.iter().map(|(count, _)| *count).max()) {
        (Some((_, name)), _) => {
            found.add(
                Severity::Ok,
                "rows",
                None,
                format!("{rows}, as in the official file{}", edition(name)),
            );
        }
        (None, None) => found.add(Severity::Ok, "rows", None, format!("{rows}")),
        (None, Some(most)) => {
            let counts: Vec<String> =
                known.iter().map(|(count, name)| format!("{count}{}", edition(name))).collect();
            let counts = counts.join(" or ");
            match rows < most {
                true => {
                    let share = 100.0 * rows as f64 / most as f64;
                    let text = format!(
                        "{rows}, and the official file has {counts}: a part of it ({share:.1} %), whose scores do not \
                         compare with published ones"
                    );
                    found.add(Severity::Note, "rows", None, text);
                }
                false => {
                    let text = format!("{rows}, and the official file has {counts}: not that file");
                    found.add(Severity::Warning, "rows", None, text);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
