//! Sentences whose words have labels: lists in JSONL, TSV or CSV, and CoNLL's word a line.

use std::io::BufRead;

use super::dataset::{Example, Label, Text};
use super::error::{DataError, list, nearest_name};
use super::reader::Skipped;
use super::rows::{Place, Row, Rows};
use super::task::{Column, Format, SourceFile, Split, TaskSpec};

/// What CoNLL 2003 puts between documents.
const DOCUMENT: &str = "-DOCSTART-";

/// Reads sentences; `take` is given the line, the words and the names of their labels (none where the file has none).
pub(super) fn read<Input: BufRead>(
    rows: Rows<'_, Input>,
    file: &SourceFile,
    (tokens, tags): (&Column, Option<&Column>),
    skipped: &mut Skipped,
    take: impl FnMut(Sentence) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let tokens = (tokens, rows.place(tokens)?);
    let tags = tags.map(|column| Ok((column, rows.place(column)?))).transpose()?;
    match file.format {
        Format::Conll => read_columns(rows, file, tokens, tags, skipped, take),
        _ => read_lists(rows, file, tokens, tags, skipped, take),
    }
}

/// A sentence as it was read.
pub(super) struct Sentence {
    /// Of its first word, from 1.
    line: u64,
    words: Vec<String>,
    /// As many, or none.
    tags: Vec<String>,
    /// Whether each word has a line of its own.
    word_a_line: bool,
}

impl Sentence {
    /// The names of its labels.
    pub(super) fn tags(&self) -> &[String] {
        &self.tags
    }

    /// The example that it is, by the task's labels.
    pub(super) fn example(self, file: &SourceFile, spec: &TaskSpec) -> Result<Example, DataError> {
        let mut tags = Vec::with_capacity(self.tags.len());
        for (line, tag) in (self.line..).zip(&self.tags) {
            let class = spec.labels.iter().position(|label| label == tag);
            let names = || spec.labels.iter().map(String::as_str);
            tags.push(class.ok_or_else(|| DataError::UnknownLabel {
                path: file.path.clone(),
                line: if self.word_a_line { line } else { self.line },
                label: tag.clone(),
                known: list(names()),
                nearest_name: nearest_name(tag, names()),
            })? as u32);
        }
        let label = if tags.is_empty() { Label::None } else { Label::Tags };
        Ok(Example { text: Text::Words { words: self.words, tags }, label })
    }
}

/// A row a sentence.
fn read_lists<Input: BufRead>(
    mut rows: Rows<'_, Input>,
    file: &SourceFile,
    (tokens, tokens_at): (&Column, Place),
    tags: Option<(&Column, Place)>,
    skipped: &mut Skipped,
    mut take: impl FnMut(Sentence) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut row = Row::default();
    while rows.next(&mut row)? {
        if row.is_blank() {
            if file.split == Split::Test {
                let (path, line, reason) = (file.path.clone(), row.line, "a blank line");
                return Err(DataError::Unanswerable { path, line, reason });
            }
            skipped.add(file, row.line, "a blank line");
            continue;
        }
        let wrong = |column: &Column, reason: String| DataError::Field {
            path: file.path.clone(),
            line: row.line,
            field: column.to_string(),
            reason,
        };
        let words = row.list(&tokens_at).map_err(|reason| wrong(tokens, reason))?;
        if words.is_empty() {
            return Err(wrong(tokens, "is an empty list; a sentence has one word or more".to_string()));
        }
        let mut sentence = Sentence { line: row.line, words, tags: Vec::new(), word_a_line: false };
        if let Some((column, place)) = &tags {
            sentence.tags = row.list(place).map_err(|reason| wrong(column, reason))?;
            let (labels, words) = (sentence.tags.len(), sentence.words.len());
            if labels != words {
                return Err(wrong(column, format!("has {labels} labels for {words} words")));
            }
        }
        take(sentence)?;
    }
    Ok(())
}

/// A row a word, a blank line after each sentence.
fn read_columns<Input: BufRead>(
    mut rows: Rows<'_, Input>,
    file: &SourceFile,
    (tokens, tokens_at): (&Column, Place),
    tags: Option<(&Column, Place)>,
    skipped: &mut Skipped,
    mut take: impl FnMut(Sentence) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut row = Row::default();
    let mut expected = None;
    let mut current: Option<Sentence> = None;
    while rows.next(&mut row)? {
        if row.is_blank() {
            current.take().map(&mut take).transpose()?;
            continue;
        }
        let wrong = |column: &Column, reason: String| DataError::Field {
            path: file.path.clone(),
            line: row.line,
            field: column.to_string(),
            reason,
        };
        let word = row.text(&tokens_at).map_err(|reason| wrong(tokens, reason))?.into_owned();
        if word == DOCUMENT {
            skipped.add(file, row.line, "-DOCSTART-, the beginning of a document");
            current.take().map(&mut take).transpose()?;
            continue;
        }
        let (found, expected) = (row.len(), *expected.get_or_insert(row.len()));
        if found != expected {
            let (path, line) = (file.path.clone(), row.line);
            let remedy = "each line is a word and its columns with blanks between, the label last";
            return Err(DataError::ColumnCount { path, line, found, expected, remedy });
        }
        let mut tag = None;
        if let Some((column, place)) = &tags {
            if found < 2 {
                return Err(wrong(column, format!("is missing: the line has the word {word:?} alone")));
            }
            tag = Some(row.text(place).map_err(|reason| wrong(column, reason))?.into_owned());
        }
        let new = || Sentence { line: row.line, words: Vec::new(), tags: Vec::new(), word_a_line: true };
        let sentence = current.get_or_insert_with(new);
        sentence.words.push(word);
        sentence.tags.extend(tag);
    }
    current.map(take).transpose()?;
    Ok(())
}

/// The texts and numbers of a list that stands in a field as JSON, or as Python prints it.
pub(super) fn list_in(field: &str) -> Result<Vec<String>, String> {
    let text = field.trim();
    if let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(text) {
        return values.iter().map(word).collect();
    }
    python_list(text).ok_or_else(|| format!("is {text:?}, neither a JSON list nor one of Python's"))
}

/// A text of a list, or a number as it is written.
pub(super) fn word(value: &serde_json::Value) -> Result<String, String> {
    match value {
        serde_json::Value::String(text) => Ok(text.clone()),
        serde_json::Value::Number(number) => Ok(number.to_string()),
        other => Err(format!("holds {other}, neither a text nor a number")),
    }
}

/// `['a', "it's", 'b\'c', 7]`: quotes of either kind, backslashes before what they stand for.
fn python_list(text: &str) -> Option<Vec<String>> {
    let mut rest = text.strip_prefix('[')?.strip_suffix(']')?.trim();
    let mut words = Vec::new();
    while !rest.is_empty() {
        let (word, after) = match rest.chars().next()? {
            quote @ ('\'' | '"') => quoted(&rest[1..], quote)?,
            _ => {
                let end = rest.find(',').unwrap_or(rest.len());
                let number = rest[..end].trim();
                number.parse::<f64>().ok()?;
                (number.to_string(), &rest[end..])
            }
        };
        words.push(word);
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(after) => after.trim_start(),
            None if after.is_empty() => after,
            None => return None,
        };
    }
    Some(words)
}

/// The text up to the closing quote, and what comes after it.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut word = String::new();
    let mut chars = text.char_indices();
    while let Some((index, char)) = chars.next() {
        match char {
            '\\' => match chars.next()?.1 {
                'n' => word.push('\n'),
                't' => word.push('\t'),
                'r' => word.push('\r'),
                kind @ ('x' | 'u' | 'U') => {
                    let digits = match kind {
                        'x' => 2,
                        'u' => 4,
                        _ => 8,
                    };
                    let code: String = chars.by_ref().take(digits).map(|(_, digit)| digit).collect();
                    word.push(char::from_u32(u32::from_str_radix(&code, 16).ok()?)?);
                }
                other @ ('\\' | '\'' | '"') => word.push(other),
                other => word.extend(['\\', other]),
            },
            char if char == quote => return Some((word, &text[index + char.len_utf8()..])),
            char => word.push(char),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_json_and_of_python() {
        let words = |field: &str| list_in(field).unwrap();
        assert_eq!(words(r#"["a", "it's", 7]"#), ["a", "it's", "7"]);
        assert_eq!(words(r#" ['a', "it's", 'b\'c', 7 ,-0.5] "#), ["a", "it's", "b'c", "7", "-0.5"]);
        assert_eq!(words(r"['\xe9', '\u2019', '\\', '\q', '\U0001f600']"), ["é", "’", "\\", "\\q", "😀"]);
        assert_eq!(words("['a', 'b', ]"), ["a", "b"]);
        assert_eq!(words("[]"), [""; 0]);
        for bad in
            ["", "a b", "['a' 'b']", "['a", "[a]", "['\\x']", "['\\ud800']", "[None]", "(1, 2)", "[[1]]"]
        {
            let error = list_in(bad).unwrap_err();
            assert!(error.starts_with("is ") || error.starts_with("holds "), "{bad}: {error}");
        }
    }
}
