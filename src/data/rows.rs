//! Files cut into rows, and rows into fields: TSV without quoting, CSV with, JSONL.

use std::borrow::Cow;
use std::io::BufRead;

use serde_json::{Map, Value};

use super::error::{DataError, list, nearest_name};
use super::task::{Column, Format, SourceFile};
use super::words::{list_in, word};

/// A row of a file; its buffers are used again for the next.
#[derive(Default)]
pub(crate) struct Row {
    /// The line that it starts on, from 1.
    pub(crate) line: u64,
    cells: Cells,
}

enum Cells {
    /// All fields one after another, and where each ends.
    Fields {
        text: String,
        ends: Vec<usize>,
    },
    Object(Map<String, Value>),
}

impl Default for Cells {
    fn default() -> Self {
        Cells::Fields { text: String::new(), ends: Vec::new() }
    }
}

/// Where a column is found in a row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Place {
    Index(usize),
    Last,
    Key(String),
}

/// The rows of a file.
pub(crate) struct Rows<'a, Input> {
    file: &'a SourceFile,
    input: Input,
    buffer: Vec<u8>,
    line: u64,
    header: Option<Vec<String>>,
}

impl<'a, Input: BufRead> Rows<'a, Input> {
    /// The rows of `input`, which is what `file` describes; reads the header if there is one.
    pub(crate) fn new(file: &'a SourceFile, input: Input) -> Result<Self, DataError> {
        let mut rows = Self { file, input, buffer: Vec::new(), line: 0, header: None };
        if let Format::Tsv { header: true } | Format::Csv { header: true } = file.format {
            let mut row = Row::default();
            if !rows.next(&mut row)? {
                return Err(DataError::Empty { path: file.path.clone(), skipped: None });
            }
            rows.header = Some((0..row.len()).map(|index| row.field(index).trim().to_string()).collect());
        }
        Ok(rows)
    }

    /// The names of the columns, where the file has a header.
    pub(crate) fn header(&self) -> Option<&[String]> {
        self.header.as_deref()
    }

    /// The number of columns that the header names.
    pub(crate) fn header_columns(&self) -> Option<usize> {
        self.header.as_ref().map(Vec::len)
    }

    /// Where `column` is found in every row.
    pub(crate) fn place(&self, column: &Column) -> Result<Place, DataError> {
        let path = || self.file.path.clone();
        match (column, self.file.format) {
            (Column::Name(name), Format::Jsonl) => Ok(Place::Key(name.clone())),
            (Column::Number(_) | Column::Last, Format::Jsonl) => Err(DataError::Task {
                task: self.file.path.display().to_string(),
                reason: format!("column {column} is a number; in JSONL columns are named by their keys"),
            }),
            (Column::Number(number), _) => Ok(Place::Index(*number)),
            (Column::Last, _) => Ok(Place::Last),
            (Column::Name(name), _) => {
                let Some(header) = &self.header else {
                    return Err(DataError::NoHeader { path: path(), column: name.clone() });
                };
                let names = || header.iter().map(String::as_str);
                names().position(|known| known == name).map(Place::Index).ok_or_else(|| {
                    DataError::UnknownColumn {
                        path: path(),
                        column: name.clone(),
                        known: list(names()),
                        nearest_name: nearest_name(name, names()),
                    }
                })
            }
        }
    }

    /// Reads the next row into `row`; false at the end of the file.
    pub(crate) fn next(&mut self, row: &mut Row) -> Result<bool, DataError> {
        if !self.next_line()? {
            return Ok(false);
        }
        row.line = self.line;
        match self.file.format {
            Format::Tsv { .. } => row.cut(self.text()?, cut_tsv),
            Format::Conll => row.cut(self.text()?, cut_conll),
            Format::Squad => unreachable!("questions have no rows"),
            Format::Csv { .. } => {
                // A record goes on over line ends while a quote is open.
                while quote_is_open(&self.buffer) {
                    self.buffer.push(b'\n');
                    if !self.append_line()? {
                        return Err(DataError::OpenQuote { path: self.file.path.clone(), line: row.line });
                    }
                }
                row.cut(self.text()?, cut_csv);
            }
            Format::Jsonl => {
                let text = self.text()?;
                row.cells = if text.trim().is_empty() {
                    Cells::default()
                } else {
                    Cells::Object(serde_json::from_str(text).map_err(|error| DataError::Json {
                        path: self.file.path.clone(),
                        line: self.line,
                        reason: error.to_string(),
                    })?)
                };
            }
        }
        Ok(true)
    }

    /// Reads a line into the emptied buffer, without its end.
    fn next_line(&mut self) -> Result<bool, DataError> {
        self.buffer.clear();
        let found = self.append_line()?;
        if self.line == 1 && self.buffer.starts_with("\u{feff}".as_bytes()) {
            self.buffer.drain(..3);
        }
        Ok(found)
    }

    /// Appends a line to the buffer. Lines end at `\n` alone; one `\r` before it is dropped.
    fn append_line(&mut self) -> Result<bool, DataError> {
        let read =
            self.input.read_until(b'\n', &mut self.buffer).map_err(DataError::read(&self.file.path))?;
        if read > 0 {
            self.line += 1;
            if self.buffer.last() == Some(&b'\n') {
                self.buffer.pop();
            }
            if self.buffer.last() == Some(&b'\r') {
                self.buffer.pop();
            }
        }
        Ok(read > 0)
    }

    fn text(&self) -> Result<&str, DataError> {
        std::str::from_utf8(&self.buffer)
            .map_err(|_| DataError::NotUtf8 { path: self.file.path.clone(), line: self.line })
    }
}

impl Row {
    /// The number of fields; 0 for a JSON object.
    pub(crate) fn len(&self) -> usize {
        match &self.cells {
            Cells::Fields { ends, .. } => ends.len(),
            Cells::Object(_) => 0,
        }
    }

    /// Whether the line holds nothing but blanks.
    pub(crate) fn is_blank(&self) -> bool {
        match &self.cells {
            Cells::Fields { text, ends } => ends.len() <= 1 && text.trim().is_empty(),
            Cells::Object(_) => false,
        }
    }

    /// The text at `place`, or why there is none.
    pub(crate) fn text(&self, place: &Place) -> Result<Cow<'_, str>, String> {
        match place {
            Place::Index(index) if *index < self.len() => Ok(self.field(*index).into()),
            Place::Last if self.len() > 0 => Ok(self.field(self.len() - 1).into()),
            Place::Index(_) | Place::Last => Err("is missing".to_string()),
            Place::Key(_) => match self.value(place)? {
                Value::String(text) => Ok(text.into()),
                Value::Number(number) => Ok(number.to_string().into()),
                Value::Bool(bool) => Ok(bool.to_string().into()),
                other => Err(format!("is {other}, not a text")),
            },
        }
    }

    /// The list of texts at `place`, or why there is none.
    pub(crate) fn texts(&self, place: &Place) -> Result<Vec<String>, String> {
        let value = self.value(place)?;
        let text = |value: &Value| value.as_str().map(str::to_string);
        let texts = value.as_array().and_then(|list| list.iter().map(text).collect());
        texts.ok_or_else(|| format!("is {value}, not a list of texts"))
    }

    /// The list of texts and numbers at `place`, which in a field stands as JSON or as Python prints it.
    pub(crate) fn list(&self, place: &Place) -> Result<Vec<String>, String> {
        match place {
            Place::Key(_) => {
                let value = self.value(place)?;
                let list = value.as_array().ok_or_else(|| format!("is {value}, not a list"))?;
                list.iter().map(word).collect()
            }
            Place::Index(_) | Place::Last => list_in(&self.text(place)?),
        }
    }

    /// The value at `place` of a JSON object, or why there is none.
    pub(crate) fn value(&self, place: &Place) -> Result<&Value, String> {
        match (&self.cells, place) {
            (Cells::Object(object), Place::Key(key)) => {
                object.get(key).ok_or_else(|| "is missing".to_string())
            }
            _ => Err("is not a field of a JSON object".to_string()),
        }
    }

    fn field(&self, index: usize) -> &str {
        let Cells::Fields { text, ends } = &self.cells else { return "" };
        let start = if index == 0 { 0 } else { ends[index - 1] };
        &text[start..ends[index]]
    }

    fn cut(&mut self, line: &str, cutter: impl FnOnce(&str, (&mut String, &mut Vec<usize>))) {
        if let Cells::Object(_) = self.cells {
            self.cells = Cells::default();
        }
        if let Cells::Fields { text, ends } = &mut self.cells {
            text.clear();
            ends.clear();
            cutter(line, (text, ends));
        }
    }
}

fn cut_tsv(line: &str, (text, ends): (&mut String, &mut Vec<usize>)) {
    for field in line.split('\t') {
        text.push_str(field);
        ends.push(text.len());
    }
}

/// Fields with blanks or tabs between.
fn cut_conll(line: &str, (text, ends): (&mut String, &mut Vec<usize>)) {
    for field in line.split([' ', '\t']).filter(|field| !field.is_empty()) {
        text.push_str(field);
        ends.push(text.len());
    }
}

/// Whether a field of a record begins with a quote that nothing closes, by the rules of [`cut_csv`].
fn quote_is_open(record: &[u8]) -> bool {
    let mut rest = record.iter().peekable();
    let (mut quoted, mut at_start) = (false, true);
    while let Some(byte) = rest.next() {
        match byte {
            b'"' if quoted && rest.peek() == Some(&&b'"') => drop(rest.next()),
            b'"' if quoted => quoted = false,
            b'"' if at_start => quoted = true,
            b',' if !quoted => {
                at_start = true;
                continue;
            }
            _ => {}
        }
        at_start = false;
    }
    quoted
}

/// RFC 4180: a field in quotes may hold commas, line ends and, doubled, quotes.
fn cut_csv(record: &str, (text, ends): (&mut String, &mut Vec<usize>)) {
    let mut rest = record.chars().peekable();
    let (mut quoted, mut at_start) = (false, true);
    while let Some(char) = rest.next() {
        match char {
            '"' if quoted && rest.peek() == Some(&'"') => {
                text.push('"');
                rest.next();
            }
            '"' if quoted => quoted = false,
            '"' if at_start => quoted = true,
            ',' if !quoted => {
                ends.push(text.len());
                at_start = true;
                continue;
            }
            other => text.push(other),
        }
        at_start = false;
    }
    ends.push(text.len());
}
