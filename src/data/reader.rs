//! Rows into examples.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};

use super::dataset::{Example, Label, Text};
use super::error::{DataError, list, nearest_name};
use super::qnli::{self, Half, Pairs};
use super::reference::hypotheses;
use super::rows::{Place, Row, Rows};
use super::soft::columns::Columns as SoftColumns;
use super::soft::{SoftLabels, SoftSource};
use super::span::SpanOptions;
use super::task::{Column, Columns, SourceFile, Split, TaskKind, TaskSpec};
use super::{squad, words};

/// Rows that were left out; whoever reads a file has to say so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// How many.
    pub count: u64,
    /// The first: `file:line: reason`.
    pub first: Option<String>,
}

impl Skipped {
    pub(super) fn add(&mut self, file: &SourceFile, line: u64, reason: &str) {
        self.count += 1;
        self.first.get_or_insert_with(|| format!("{}:{line}: {reason}", file.path.display()));
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.first {
            None => f.write_str("skipped no rows"),
            Some(first) if self.count == 1 => write!(f, "skipped 1 row: {first}"),
            Some(first) => write!(f, "skipped {} rows, the first: {first}", self.count),
        }
    }
}

/// Reads all examples of a task's file, in its order.
///
/// Known faults of official files ([`Quirks`](super::task::Quirks)) and blank lines are skipped and counted, except in
/// test files, where each row needs its answer. Anything else that is wrong is an error with file and line.
pub fn read(file: &SourceFile, spec: &TaskSpec) -> Result<(Vec<Example>, Skipped), DataError> {
    parse(open(file)?, file, spec)
}

/// The soft labels of all examples that [`read`] reads, `[examples, labels]`, where the task's data files hold them.
pub fn read_soft(file: &SourceFile, spec: &TaskSpec) -> Result<Vec<f32>, DataError> {
    Ok(parse_all(open(file)?, file, spec)?.2)
}

/// [`read`] from text that is not in a file of its own, such as standard input; `file` says how it is cut, and its
/// path is what errors name.
pub fn parse(
    input: impl BufRead,
    file: &SourceFile,
    spec: &TaskSpec,
) -> Result<(Vec<Example>, Skipped), DataError> {
    let (examples, skipped, _) = parse_all(input, file, spec)?;
    Ok((examples, skipped))
}

fn parse_all(
    input: impl BufRead,
    file: &SourceFile,
    spec: &TaskSpec,
) -> Result<(Vec<Example>, Skipped, Vec<f32>), DataError> {
    if file.split != Split::Test && !file.columns.labelled() && spec.soft_columns().is_none() {
        let reason = format!("no column of {} is named as its label", file.path.display());
        return Err(DataError::Task { task: spec.name.clone(), reason });
    }
    let mut reader = Reader { file, spec, skipped: Skipped::default(), soft: Vec::new() };
    if let (Columns::Questions { answers }, TaskKind::Span) = (&file.columns, spec.kind) {
        let examples = squad::read(input, file, spec, *answers)?;
        return match examples.is_empty() {
            true => {
                Err(DataError::Empty { path: file.path.clone(), skipped: Some("it has no question".into()) })
            }
            false => Ok((examples, reader.skipped, Vec::new())),
        };
    }
    let rows = Rows::new(file, input)?;
    let examples = match (&file.columns, spec.kind) {
        (Columns::Row { text_a, text_b, label }, TaskKind::Classification | TaskKind::Regression) => {
            reader.rows(rows, text_a, text_b.as_ref(), label.as_ref())?
        }
        (Columns::List { query, candidates, positive }, TaskKind::Ranking) => {
            reader.lists(rows, query, candidates, positive.as_ref())?
        }
        (Columns::Grouped { group, query, candidate, label }, TaskKind::Ranking) => {
            reader.groups(rows, group, query, candidate, label.as_ref())?
        }
        (Columns::Paired { query, candidate, label }, TaskKind::Ranking) => {
            reader.pairs(rows, query, candidate, label.as_ref())?
        }
        (Columns::Words { tokens, tags }, TaskKind::Labelling) => {
            let mut examples = Vec::new();
            words::read(rows, file, (tokens, tags.as_ref()), &mut reader.skipped, |sentence| {
                examples.push(sentence.example(file, spec)?);
                Ok(())
            })?;
            examples
        }
        (Columns::Hypotheses { ranks, labelled }, TaskKind::Ranking) => {
            reader.hypotheses(rows, ranks, *labelled)?
        }
        (Columns::Row { .. }, TaskKind::Ranking) => {
            let reason = "ranking needs the columns query, candidates and positive, or group, text_a, text_b and label";
            return Err(DataError::Task { task: spec.name.clone(), reason: reason.to_string() });
        }
        (columns, kind) => {
            let of = match columns {
                Columns::Row { .. } => "a text or two are for classification and regression",
                Columns::List { .. }
                | Columns::Grouped { .. }
                | Columns::Paired { .. }
                | Columns::Hypotheses { .. } => "candidates are for ranking",
                Columns::Tokens { .. } => "token ids are read with a vocabulary, not as text",
                Columns::Words { .. } => "words and their labels are for labelling",
                Columns::Questions { .. } => "questions are for span",
            };
            let reason = format!("columns with {of}, this is {kind}");
            return Err(DataError::Task { task: spec.name.clone(), reason });
        }
    };
    if examples.is_empty() {
        let skipped = (reader.skipped.count > 0).then(|| reader.skipped.to_string());
        return Err(DataError::Empty { path: file.path.clone(), skipped });
    }
    Ok((examples, reader.skipped, reader.soft))
}

/// Gives a task without labels those of its train files: sorted, as numbers if all of them are, `O` first. A task of
/// spans that does not say whether a question may have no answer learns it there, too.
pub fn learn_labels(spec: &mut TaskSpec) -> Result<(), DataError> {
    if let Some(span) = spec.span.filter(|span| span.no_answer.is_none()) {
        let mut impossible = false;
        for file in spec.files_of(Split::Train) {
            impossible |= squad::has_impossible(open(file)?, file)?;
        }
        spec.span = Some(SpanOptions { no_answer: Some(impossible), ..span });
    }
    if !spec.kind.has_labels() || !spec.labels.is_empty() {
        return Ok(());
    }
    let mut labels = BTreeSet::new();
    for file in spec.files_of(Split::Train) {
        if let Columns::Words { tokens, tags } = &file.columns {
            let rows = Rows::new(file, open(file)?)?;
            let mut skipped = Skipped::default(); // Said when the examples are read.
            words::read(rows, file, (tokens, tags.as_ref()), &mut skipped, |sentence| {
                for tag in sentence.tags().iter().filter(|tag| !labels.contains(*tag)).collect::<Vec<_>>() {
                    labels.insert(tag.clone());
                }
                check_few(&labels, file, spec, tags.as_ref())
            })?;
            continue;
        }
        let (columns, votes) = match (&file.columns, &spec.soft) {
            (Columns::Row { label: Some(column), .. }, _) => (std::slice::from_ref(column), false),
            (_, Some(SoftLabels { source: SoftSource::Votes(columns), .. })) => (&columns[..], true),
            _ => continue,
        };
        let mut rows = Rows::new(file, open(file)?)?;
        let places: Vec<_> = columns.iter().map(|column| rows.place(column)).collect::<Result<_, _>>()?;
        let mut row = Row::default();
        while rows.next(&mut row)? {
            for (column, place) in columns.iter().zip(&places).filter(|_| !row.is_blank()) {
                let label = row.text(place).map_err(|reason| field(file, &row, column, reason))?;
                match label.trim() {
                    "" | "-" if votes => {}
                    "" => {
                        let (path, line) = (file.path.clone(), row.line);
                        let what = format!("label (column {column})");
                        return Err(DataError::EmptyText { path, line, what });
                    }
                    label if labels.contains(label) => {}
                    label => drop(labels.insert(label.to_string())),
                }
                check_few(&labels, file, spec, Some(column))?;
            }
        }
    }
    spec.labels = labels.into_iter().collect();
    if spec.labels.iter().all(|label| label.parse::<i64>().is_ok()) {
        spec.labels.sort_by_key(|label| label.parse::<i64>().unwrap_or_default());
    }
    if spec.kind == TaskKind::Labelling {
        spec.labels.sort_by_key(|label| label != "O");
    }
    if spec.labels.len() < 2 {
        let reason =
            format!("its train file has {} different labels; two or more are needed", spec.labels.len());
        return Err(DataError::Task { task: spec.name.clone(), reason });
    }
    spec.validate()
}

/// Refuses what has more values than labels have.
fn check_few(
    labels: &BTreeSet<String>,
    file: &SourceFile,
    spec: &TaskSpec,
    column: Option<&Column>,
) -> Result<(), DataError> {
    if labels.len() <= 1000 {
        return Ok(());
    }
    let column = column.map(Column::to_string).unwrap_or_default();
    let reason = format!("column {column} of {} holds more than 1000 labels", file.path.display());
    Err(DataError::Task { task: spec.name.clone(), reason })
}

fn open(file: &SourceFile) -> Result<BufReader<File>, DataError> {
    Ok(BufReader::with_capacity(1 << 16, File::open(&file.path).map_err(DataError::read(&file.path))?))
}

fn field(file: &SourceFile, row: &Row, column: &Column, reason: String) -> DataError {
    DataError::Field { path: file.path.clone(), line: row.line, field: column.to_string(), reason }
}

struct Reader<'a> {
    file: &'a SourceFile,
    spec: &'a TaskSpec,
    skipped: Skipped,
    /// The soft labels that its columns hold, `[examples, labels]`.
    soft: Vec<f32>,
}

impl Reader<'_> {
    /// Calls `take` for every row that has its columns, and skips those that it says to skip.
    fn each<Input: BufRead>(
        &mut self,
        mut rows: Rows<'_, Input>,
        mut take: impl FnMut(&Self, &Row) -> Result<Outcome, DataError>,
    ) -> Result<(), DataError> {
        let mut expected = rows.header_columns();
        let mut row = Row::default();
        while rows.next(&mut row)? {
            let outcome = if row.is_blank() {
                Outcome::Skip("a blank line")
            } else {
                match self.check_count(&row, *expected.get_or_insert(row.len()))? {
                    Outcome::Taken => take(self, &row)?,
                    skip => skip,
                }
            };
            if let Outcome::Skip(reason) = outcome {
                if self.file.split == Split::Test {
                    let (path, line) = (self.file.path.clone(), row.line);
                    return Err(DataError::Unanswerable { path, line, reason });
                }
                self.skipped.add(self.file, row.line, reason);
            }
        }
        Ok(())
    }

    fn check_count(&self, row: &Row, expected: usize) -> Result<Outcome, DataError> {
        let found = row.len();
        if found == expected || self.file.quirks.uneven_rows {
            Ok(Outcome::Taken)
        } else if found < expected && self.file.quirks.short_rows {
            Ok(Outcome::Skip("fields are missing"))
        } else {
            let remedy = if found < expected {
                "a column is missing, or the file is not cut at the character that it is read with"
            } else {
                "a text holds the character that separates columns"
            };
            Err(DataError::ColumnCount {
                path: self.file.path.clone(),
                line: row.line,
                found,
                expected,
                remedy,
            })
        }
    }

    fn rows<Input: BufRead>(
        &mut self,
        rows: Rows<'_, Input>,
        text_a: &Column,
        text_b: Option<&Column>,
        label: Option<&Column>,
    ) -> Result<Vec<Example>, DataError> {
        let place_a = rows.place(text_a)?;
        let place_b = text_b.map(|column| Ok((column, rows.place(column)?))).transpose()?;
        let place_label = label.map(|column| Ok((column, rows.place(column)?))).transpose()?;
        // In test files nothing is asked of them.
        let soft_columns = match self.file.split {
            Split::Test => None,
            _ => SoftColumns::find(self.spec, self.file, &rows)?,
        };
        let mut examples = Vec::new();
        let mut soft = Vec::new();
        self.each(rows, |reader, row| {
            let distribution = soft_columns.as_ref().map(|columns| columns.distribution(row)).transpose();
            let distribution =
                distribution.map_err(|(column, reason)| field(reader.file, row, column, reason))?;
            let label = match &place_label {
                None => distribution.as_ref().map_or(Label::None, |(_, label)| *label),
                Some((column, place)) => {
                    let label = reader.text(row, column, place)?;
                    let label = label.trim();
                    if reader.file.quirks.no_consensus && label == "-" {
                        return Ok(Outcome::Skip("gold label \"-\": the annotators did not agree"));
                    }
                    reader.label(row, column, label)?
                }
            };
            let a = reader.text(row, text_a, &place_a)?;
            let b = place_b.as_ref().map(|(column, place)| reader.text(row, column, place)).transpose()?;
            if a.trim().is_empty() || b.as_ref().is_some_and(|b| b.trim().is_empty()) {
                if !reader.file.quirks.empty_texts {
                    let column = if a.trim().is_empty() { text_a } else { text_b.unwrap_or(text_a) };
                    return Err(reader.empty(row, format!("column {column}")));
                }
                if reader.file.split != Split::Test {
                    return Ok(Outcome::Skip("a text is empty"));
                }
            }
            let text = match b {
                None => Text::Single(a.into_owned()),
                Some(b) => Text::Pair(a.into_owned(), b.into_owned()),
            };
            examples.push(Example { text, label });
            soft.extend(distribution.into_iter().flat_map(|(distribution, _)| distribution));
            Ok(Outcome::Taken)
        })?;
        self.soft = soft;
        Ok(examples)
    }

    fn lists<Input: BufRead>(
        &mut self,
        rows: Rows<'_, Input>,
        query: &Column,
        candidates: &Column,
        positive: Option<&Column>,
    ) -> Result<Vec<Example>, DataError> {
        let place_query = rows.place(query)?;
        let place_candidates = rows.place(candidates)?;
        let place_positive = positive.map(|column| Ok((column, rows.place(column)?))).transpose()?;
        let mut examples = Vec::new();
        self.each(rows, |reader, row| {
            let wrong = |column: &Column, reason: String| field(reader.file, row, column, reason);
            let query = reader.text(row, query, &place_query)?.into_owned();
            let texts = row.texts(&place_candidates).map_err(|reason| wrong(candidates, reason))?;
            if texts.len() < 2 {
                return Err(wrong(candidates, format!("has {} texts; two or more are needed", texts.len())));
            }
            if query.trim().is_empty() || texts.iter().any(|text| text.trim().is_empty()) {
                return Err(reader.empty(row, "the query or a candidate".to_string()));
            }
            let label = match &place_positive {
                None => Label::None,
                Some((column, place)) => {
                    let index = reader.text(row, column, place)?;
                    let index =
                        index.trim().parse::<u32>().ok().filter(|&index| (index as usize) < texts.len());
                    let reason = || format!("is not the number of a candidate, 0 to {}", texts.len() - 1);
                    Label::Positive(index.ok_or_else(|| wrong(column, reason()))?)
                }
            };
            examples.push(Example { text: Text::Candidates { query, candidates: texts }, label });
            Ok(Outcome::Taken)
        })?;
        Ok(examples)
    }

    fn groups<Input: BufRead>(
        &mut self,
        rows: Rows<'_, Input>,
        group: &Column,
        query: &Column,
        candidate: &Column,
        label: Option<&Column>,
    ) -> Result<Vec<Example>, DataError> {
        let place_group = rows.place(group)?;
        let place_query = rows.place(query)?;
        let place_candidate = rows.place(candidate)?;
        let place_label = label.map(|column| Ok((column, rows.place(column)?))).transpose()?;
        let mut examples = Vec::new();
        let mut names = HashSet::new();
        let mut current: Option<Group> = None;
        self.each(rows, |reader, row| {
            let name = reader.text(row, group, &place_group)?;
            let query = reader.text(row, query, &place_query)?;
            let text = reader.text(row, candidate, &place_candidate)?;
            if query.trim().is_empty() || text.trim().is_empty() {
                return Err(reader.empty(row, "the query or the candidate".to_string()));
            }
            let positive = match &place_label {
                None => None,
                Some((column, place)) => match reader.text(row, column, place)?.trim() {
                    "0" => Some(false),
                    "1" => Some(true),
                    other => {
                        let reason = format!("is {other:?}, neither 0 nor 1");
                        return Err(field(reader.file, row, column, reason));
                    }
                },
            };
            if current.as_ref().is_none_or(|group| group.name != name) {
                if let Some(finished) = current.take() {
                    examples.push(finished.finish(reader.file)?);
                }
                if !names.insert(name.to_string()) {
                    let (group, reason) = (
                        name.into_owned(),
                        "comes again after other groups (sort the file by it)".to_string(),
                    );
                    let (path, line) = (reader.file.path.clone(), row.line);
                    return Err(DataError::Group { path, line, group, reason });
                }
                current = Some(Group::new(name.into_owned(), row.line, query.to_string()));
            }
            if let Some(group) = &mut current {
                group.add(reader.file, row, &query, text.into_owned(), positive)?;
            }
            Ok(Outcome::Taken)
        })?;
        if let Some(last) = current {
            examples.push(last.finish(self.file)?);
        }
        Ok(examples)
    }

    fn pairs<Input: BufRead>(
        &mut self,
        rows: Rows<'_, Input>,
        query: &Column,
        candidate: &Column,
        label: Option<&Column>,
    ) -> Result<Vec<Example>, DataError> {
        let place_query = rows.place(query)?;
        let place_candidate = rows.place(candidate)?;
        let place_label = label.map(|column| Ok((column, rows.place(column)?))).transpose()?;
        let mut pairs = Pairs::default();
        self.each(rows, |reader, row| {
            let answer = match &place_label {
                None => None,
                Some((column, place)) => match reader.text(row, column, place)?.trim() {
                    qnli::ANSWER => Some(true),
                    qnli::NO_ANSWER => Some(false),
                    other => {
                        let reason =
                            format!("is {other:?}, neither {} nor {}", qnli::ANSWER, qnli::NO_ANSWER);
                        return Err(field(reader.file, row, column, reason));
                    }
                },
            };
            let question = reader.text(row, query, &place_query)?.into_owned();
            let sentence = reader.text(row, candidate, &place_candidate)?.into_owned();
            pairs.add(Half { line: row.line, question, sentence, answer });
            Ok(Outcome::Taken)
        })?;
        pairs.finish(self.file, |line, reason| self.skipped.add(self.file, line, reason))
    }

    fn hypotheses<Input: BufRead>(
        &mut self,
        rows: Rows<'_, Input>,
        ranks: &[String],
        labelled: bool,
    ) -> Result<Vec<Example>, DataError> {
        let mut examples = Vec::new();
        self.each(rows, |reader, row| {
            let (query, candidates, positive) = hypotheses::cut(row, ranks, labelled)
                .map_err(|(column, reason)| field(reader.file, row, &Column::Name(column.into()), reason))?;
            if query.trim().is_empty() || candidates.iter().any(|text| text.trim().is_empty()) {
                return Err(reader.empty(row, "the premise or a hypothesis".to_string()));
            }
            let label = positive.map_or(Label::None, Label::Positive);
            examples.push(Example { text: Text::Candidates { query, candidates }, label });
            Ok(Outcome::Taken)
        })?;
        Ok(examples)
    }

    fn label(&self, row: &Row, column: &Column, text: &str) -> Result<Label, DataError> {
        let labels = &self.spec.labels;
        if self.spec.kind == TaskKind::Regression {
            let score = text.parse::<f32>().ok().filter(|score| score.is_finite());
            let reason = || field(self.file, row, column, format!("is {text:?}, not a number"));
            return score.map(Label::Score).ok_or_else(reason);
        }
        let class = labels.iter().position(|label| label == text).map(|class| Label::Class(class as u32));
        class.ok_or_else(|| {
            let names = || labels.iter().map(String::as_str);
            DataError::UnknownLabel {
                path: self.file.path.clone(),
                line: row.line,
                label: text.to_string(),
                known: list(names()),
                nearest_name: nearest_name(text, names()),
            }
        })
    }

    fn text<'r>(&self, row: &'r Row, column: &Column, place: &Place) -> Result<Cow<'r, str>, DataError> {
        row.text(place).map_err(|reason| field(self.file, row, column, reason))
    }

    fn empty(&self, row: &Row, what: String) -> DataError {
        DataError::EmptyText { path: self.file.path.clone(), line: row.line, what }
    }
}

/// What became of a row.
enum Outcome {
    Taken,
    Skip(&'static str),
}

/// The rows of one query, while they are read.
struct Group {
    name: String,
    line: u64,
    query: String,
    candidates: Vec<String>,
    positive: Option<u32>,
    labelled: bool,
}

impl Group {
    fn new(name: String, line: u64, query: String) -> Self {
        Self { name, line, query, candidates: Vec::new(), positive: None, labelled: false }
    }

    fn add(
        &mut self,
        file: &SourceFile,
        row: &Row,
        query: &str,
        candidate: String,
        positive: Option<bool>,
    ) -> Result<(), DataError> {
        if query != self.query {
            return Err(self.wrong(file, row.line, "has rows with different queries"));
        }
        self.labelled = positive.is_some();
        if positive == Some(true) && self.positive.replace(self.candidates.len() as u32).is_some() {
            return Err(self.wrong(file, row.line, "has a second row with label 1"));
        }
        self.candidates.push(candidate);
        Ok(())
    }

    fn finish(self, file: &SourceFile) -> Result<Example, DataError> {
        if self.candidates.len() < 2 {
            return Err(self.wrong(file, self.line, "has one row only"));
        }
        let label = match self.positive {
            Some(index) => Label::Positive(index),
            None if self.labelled => return Err(self.wrong(file, self.line, "has no row with label 1")),
            None => Label::None,
        };
        Ok(Example { text: Text::Candidates { query: self.query, candidates: self.candidates }, label })
    }

    fn wrong(&self, file: &SourceFile, line: u64, reason: &str) -> DataError {
        DataError::Group {
            path: file.path.clone(),
            line,
            group: self.name.clone(),
            reason: reason.to_string(),
        }
    }
}
