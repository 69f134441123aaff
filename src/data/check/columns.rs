//! Fields and labels, over all rows of a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;

use super::Severity::{Error, Note, Ok as Fine, Warning};
use super::{Found, Lines, Read};
use crate::data::error::{DataError, nearest_name};
use crate::data::rows::{Place, Row, Rows};
use crate::data::task::{Column, Split, TaskKind, TaskSpec};

/// Reads what can be read, and says what cannot. None if the file as a whole cannot.
pub(super) fn look(
    found: &mut Found,
    spec: &TaskSpec,
    text_a: &Column,
    text_b: Option<&Column>,
    label: Option<&Column>,
) -> Option<Vec<Read>> {
    match read(found, spec, text_a, text_b, label) {
        Ok(rows) => Some(rows),
        Err(error) => {
            let check = match error {
                DataError::UnknownColumn { .. } | DataError::NoHeader { .. } => "header",
                DataError::NotUtf8 { .. } => "utf8",
                _ => "columns",
            };
            // The bytes have been looked at already.
            if check != "utf8" {
                found.error(check, &error);
            }
            None
        }
    }
}

fn read(
    found: &mut Found,
    spec: &TaskSpec,
    text_a: &Column,
    text_b: Option<&Column>,
    label: Option<&Column>,
) -> Result<Vec<Read>, DataError> {
    let file = found.file;
    let input = File::open(&file.path).map_err(DataError::read(&file.path))?;
    let mut rows = Rows::new(file, BufReader::with_capacity(1 << 16, input))?;
    let place_a = rows.place(text_a)?;
    let place_b = text_b.map(|column| rows.place(column)).transpose()?;
    let place_label = label.map(|column| rows.place(column)).transpose()?;
    let header = rows.header().map(<[String]>::to_vec);
    header_names(found, header.as_deref());
    let mut expected = rows.header_columns();
    let mut out = Vec::new();
    let mut labels = Labels::default();
    let (mut blank, mut empty, mut short) = (Lines::default(), Lines::default(), Lines::default());
    let (mut uneven, mut again) = (Lines::default(), Lines::default());
    let mut wrong: BTreeMap<usize, Lines> = BTreeMap::new();
    let mut row = Row::default();
    loop {
        match rows.next(&mut row) {
            Ok(true) => {}
            Ok(false) => break,
            // The bytes have been looked at already.
            Err(DataError::NotUtf8 { .. }) => continue,
            Err(error) => return Err(error),
        }
        if row.is_blank() {
            blank.add(row.line);
            continue;
        }
        let columns = *expected.get_or_insert(row.len());
        if row.len() != columns {
            match (file.quirks.uneven_rows, file.quirks.short_rows && row.len() < columns) {
                (true, _) => uneven.add(row.line),
                (_, true) => {
                    short.add(row.line);
                    continue;
                }
                _ => {
                    wrong.entry(row.len()).or_default().add(row.line);
                    continue;
                }
            }
        }
        if let Some(header) = &header
            && (0..row.len()).all(|column| {
                row.text(&Place::Index(column))
                    .is_ok_and(|text| header.get(column).is_some_and(|name| *name == text))
            })
            && row.len() > 0
        {
            again.add(row.line);
            continue;
        }
        let text = |place: &Place| row.text(place).map(|text| text.into_owned());
        let (Ok(a), Ok(b)) = (text(&place_a), place_b.as_ref().map(text).transpose()) else {
            wrong.entry(row.len()).or_default().add(row.line);
            continue;
        };
        let word = place_label.as_ref().map(|place| text(place).map(|word| word.trim().to_string()));
        let label = match word {
            None => None,
            Some(Err(_)) => {
                wrong.entry(row.len()).or_default().add(row.line);
                continue;
            }
            Some(Ok(word)) => {
                let is_first = out.is_empty() && labels.is_empty();
                labels.add(spec, file.quirks.no_consensus, &word, row.line, is_first && header.is_none());
                Some(word)
            }
        };
        if a.trim().is_empty() || b.as_ref().is_some_and(|b| b.trim().is_empty()) {
            empty.add(row.line);
        }
        out.push(Read { line: row.line, a, b, label });
    }
    if out.is_empty() {
        found.add(Error, "rows", None, "no row can be read");
    }
    for (count, lines) in &wrong {
        let expected = expected.unwrap_or_default();
        found.lines(Error, "columns", lines, &format!("{count} columns, and {expected} are expected"));
    }
    found.lines(Note, "columns", &uneven, "another number of columns than the header; the label is the last");
    found.lines(Warning, "columns", &short, "too few columns; skipped");
    found.lines(Warning, "header", &again, "the header again");
    let is_test = file.split == Split::Test;
    found.lines(if is_test { Error } else { Warning }, "blank", &blank, "blank");
    match (file.quirks.empty_texts, is_test) {
        (false, _) => found.lines(Error, "empty", &empty, "an empty text"),
        (true, true) => found.lines(Note, "empty", &empty, "an empty text; answered like others"),
        (true, false) => found.lines(Warning, "empty", &empty, "an empty text; skipped"),
    }
    if label.is_some() {
        labels.say(found, spec);
    }
    Ok(out)
}

/// A header's own faults.
fn header_names(found: &mut Found, header: Option<&[String]>) {
    let Some(header) = header else { return };
    for (column, name) in header.iter().enumerate() {
        if name.is_empty() {
            found.add(Warning, "header", Some(1), format!("column {column} has no name"));
        } else if header[..column].contains(name) {
            found.add(
                Warning,
                "header",
                Some(1),
                format!("column {name:?} is named twice; the first is read"),
            );
        }
    }
}

/// The labels of a file.
#[derive(Default)]
struct Labels {
    counts: BTreeMap<String, u64>,
    unknown: BTreeMap<String, Lines>,
    disputed: Lines,
    no_number: Lines,
    outside: Lines,
    header: Option<String>,
    sum: f64,
    scores: u64,
}

/// The scores that a known task has.
pub(super) fn range(task: &str) -> Option<(f64, f64)> {
    match task {
        "stsb" => Some((0.0, 5.0)),
        "sick-r" => Some((1.0, 5.0)),
        _ => None,
    }
}

impl Labels {
    fn is_empty(&self) -> bool {
        self.counts.is_empty() && self.unknown.is_empty() && self.scores == 0 && self.header.is_none()
    }

    /// Of one row; `headless` is its being the first of a file without a header.
    fn add(&mut self, spec: &TaskSpec, no_consensus: bool, word: &str, line: u64, headless: bool) {
        if no_consensus && word == "-" {
            return self.disputed.add(line);
        }
        if spec.kind == TaskKind::Regression {
            match word.parse::<f64>().ok().filter(|score| score.is_finite()) {
                None if headless => self.header = Some(word.to_string()),
                None => self.no_number.add(line),
                Some(score) => {
                    self.scores += 1;
                    self.sum += score;
                    if range(&spec.name).is_some_and(|(least, most)| !(least..=most).contains(&score)) {
                        self.outside.add(line);
                    }
                }
            }
        } else if spec.labels.iter().any(|label| label == word) {
            *self.counts.entry(word.to_string()).or_default() += 1;
        } else if headless {
            self.header = Some(word.to_string());
        } else {
            self.unknown.entry(word.to_string()).or_default().add(line);
        }
    }

    fn say(&self, found: &mut Found, spec: &TaskSpec) {
        if let Some(word) = &self.header {
            let text = format!("label {word:?}: is this a header? This file has none in its official layout");
            found.add(Error, "header", Some(1), text);
        }
        found.lines(
            Note,
            "gold",
            &self.disputed,
            "the gold label \"-\": the annotators did not agree; skipped",
        );
        for (word, lines) in self.unknown.iter().take(10) {
            let names = || spec.labels.iter().map(String::as_str);
            let near =
                nearest_name(word, names()).map_or(String::new(), |near| format!("; did you mean {near:?}?"));
            let known = names().collect::<Vec<_>>().join(", ");
            found.lines(Error, "label", lines, &format!("the label {word:?}; the labels are {known}{near}"));
        }
        if self.unknown.len() > 10 {
            found.add(Error, "label", None, format!("and {} more unknown labels", self.unknown.len() - 10));
        }
        found.lines(Error, "label", &self.no_number, "a score that is no number");
        if let Some((least, most)) = range(&spec.name) {
            found.lines(Error, "label", &self.outside, &format!("a score outside of {least} to {most}"));
        }
        if self.scores > 0 {
            let mean = self.sum / self.scores as f64;
            found.add(Fine, "labels", None, format!("{} scores, {mean:.3} on average", self.scores));
        }
        let all: u64 = self.counts.values().sum();
        if all > 0 {
            let share = |label: &String| {
                let count = self.counts.get(label).copied().unwrap_or_default();
                format!("{label} {count} ({:.1} %)", 100.0 * count as f64 / all as f64)
            };
            found.add(Fine, "labels", None, spec.labels.iter().map(share).collect::<Vec<_>>().join(", "));
            for label in spec.labels.iter().filter(|label| !self.counts.contains_key(*label)) {
                found.add(Warning, "label", None, format!("no row has the label {label:?}"));
            }
        }
    }
}
