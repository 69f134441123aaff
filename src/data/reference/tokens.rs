//! JSON lines of token ids, as MT-DNN's preprocessing leaves them: `uid`, `label`, `token_id`, `type_id` and
//! `attention_mask`; for ranking, lists of these, one a candidate. A `softlabel` beside them is what a teacher answers.

use std::fs::File;
use std::io::{BufRead, BufReader};

use serde_json::Value;

use super::spans;
use crate::data::cache::Prepared;
use crate::data::dataset::{Dataset, Label};
use crate::data::error::DataError;
use crate::data::reader::Skipped;
use crate::data::rows::{Place, Row, Rows};
use crate::data::soft::{self, SoftLabels, SoftSource};
use crate::data::task::{Columns, SourceFile, Split, TaskKind, TaskSpec};
use crate::data::tokenizer::Tokenizer;

/// A file of token ids as a set of examples, whose ids are checked against the vocabulary and taken as they are. What is
/// longer than `max_length` is cut as text is, the longer of a pair first.
///
/// # Errors
/// A line that is wrong: its file, line and field are named.
pub(in crate::data) fn prepare(
    file: &SourceFile,
    spec: &TaskSpec,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Prepared, DataError> {
    let input =
        BufReader::with_capacity(1 << 16, File::open(&file.path).map_err(DataError::read(&file.path))?);
    match spec.kind {
        TaskKind::Span => spans::parse(input, file, spec, tokenizer, max_length),
        _ => parse(input, file, spec, tokenizer, max_length),
    }
}

fn parse(
    input: impl BufRead,
    file: &SourceFile,
    spec: &TaskSpec,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Prepared, DataError> {
    let mut dataset = Dataset::new();
    let mut not_read = 0_u64;
    let skipped = each_line(input, file, |row| {
        let line = Line { file, spec, tokenizer, max_length, row };
        let candidates = line.sequences(&mut dataset)?;
        let label = line.label(candidates)?;
        dataset.finish_example(label);
        match line.find("softlabel") {
            Some(_) if file.split != Split::Train => not_read += 1,
            soft_label => dataset.soft.extend(line.soft(soft_label, candidates)?),
        }
        Ok(())
    })?;
    if dataset.is_empty() {
        let skipped = (skipped.count > 0).then(|| skipped.to_string());
        return Err(DataError::Empty { path: file.path.clone(), skipped });
    }
    let mut notes = Vec::new();
    if not_read > 0 {
        let path = file.path.display();
        notes.push(format!("{path}: {not_read} lines have a softlabel, which is read of train files alone"));
    }
    Ok(Prepared { dataset, skipped, notes })
}

/// Gives each line that is not blank to `take`; the blank ones are what is returned.
pub(super) fn each_line(
    input: impl BufRead,
    file: &SourceFile,
    mut take: impl FnMut(&Row) -> Result<(), DataError>,
) -> Result<Skipped, DataError> {
    let mut rows = Rows::new(file, input)?;
    let mut row = Row::default();
    let mut skipped = Skipped::default();
    while rows.next(&mut row)? {
        match row.is_blank() {
            true => skipped.add(file, row.line, "a blank line"),
            false => take(&row)?,
        }
    }
    Ok(skipped)
}

/// Whether the first line that a task trains on has a soft label; then each has to have one.
pub(super) fn have_soft_labels(spec: &TaskSpec) -> Result<bool, DataError> {
    let file = spec.files_of(Split::Train).find(|file| matches!(file.columns, Columns::Tokens { .. }));
    let Some(file) = file.filter(|_| !spec.kind.reads_tokens()) else { return Ok(false) };
    let input = BufReader::new(File::open(&file.path).map_err(DataError::read(&file.path))?);
    let mut rows = Rows::new(file, input)?;
    let mut row = Row::default();
    while rows.next(&mut row)? {
        if !row.is_blank() {
            let soft_label = row.value(&Place::Key("softlabel".to_string()));
            return Ok(soft_label.is_ok_and(|value| !value.is_null()));
        }
    }
    Ok(false)
}

/// One line of a file.
pub(super) struct Line<'a> {
    pub(super) file: &'a SourceFile,
    pub(super) spec: &'a TaskSpec,
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) max_length: usize,
    pub(super) row: &'a Row,
}

impl Line<'_> {
    /// Appends the line's sequences and says how many they are.
    fn sequences(&self, dataset: &mut Dataset) -> Result<usize, DataError> {
        let ids = self.get("token_id")?;
        let types = self.get("type_id")?;
        let mask = self.find("attention_mask");
        if self.spec.kind != TaskKind::Ranking {
            self.sequence(dataset, ids, types, mask)?;
            return Ok(1);
        }
        let lists = |key: &str, value: &Value| -> Result<Vec<Value>, DataError> {
            let lists = value.as_array().filter(|lists| lists.iter().all(Value::is_array));
            lists.cloned().ok_or_else(|| self.wrong(key, "is no list of lists, one a candidate".to_string()))
        };
        let (ids, types) = (lists("token_id", ids)?, lists("type_id", types)?);
        let masks = mask.map(|mask| lists("attention_mask", mask)).transpose()?;
        let same = |key: &str, count: usize| match count == ids.len() {
            true => Ok(()),
            false => Err(self.wrong(key, format!("has {count} candidates, token_id {}", ids.len()))),
        };
        same("type_id", types.len())?;
        masks.as_ref().map_or(Ok(()), |masks| same("attention_mask", masks.len()))?;
        for key in ["ruid", "olabel"] {
            if let Some(list) = self.find(key).and_then(Value::as_array) {
                same(key, list.len())?;
            }
        }
        if ids.len() < 2 {
            return Err(
                self.wrong("token_id", format!("has {} candidates; two or more are needed", ids.len()))
            );
        }
        for (number, (ids, types)) in ids.iter().zip(&types).enumerate() {
            self.sequence(dataset, ids, types, masks.as_ref().map(|masks| &masks[number]))?;
        }
        Ok(ids.len())
    }

    fn sequence(
        &self,
        dataset: &mut Dataset,
        ids: &Value,
        types: &Value,
        mask: Option<&Value>,
    ) -> Result<(), DataError> {
        let mask = mask.map(|mask| ("attention_mask", mask));
        let (ids, second) = self.checked(ids, types, mask)?;
        if ids.len() <= self.max_length {
            dataset.push_sequence(&ids, second as u32);
            return Ok(());
        }
        // Without their [CLS] and [SEP] they are cut as any text is.
        let end = ids.len() - 1;
        let cut = match second == ids.len() {
            true => self.tokenizer.pack(&ids[1..end], None, self.max_length),
            false => {
                let first = &ids[1..(second - 1).max(1)];
                self.tokenizer.pack(first, Some(&ids[second..end]), self.max_length)
            }
        };
        dataset.push_sequence(&cut.ids, cut.second);
        dataset.truncated += 1;
        Ok(())
    }

    /// A sequence without its padding, seen to be of the vocabulary, and where its second text begins. The mask goes by the
    /// key that it has in the line.
    pub(super) fn checked(
        &self,
        ids: &Value,
        types: &Value,
        mask: Option<(&str, &Value)>,
    ) -> Result<(Vec<u32>, usize), DataError> {
        let mut ids = self.numbers("token_id", ids)?;
        let mut types = self.numbers("type_id", types)?;
        if types.len() != ids.len() {
            return Err(self.wrong("type_id", format!("has {} numbers, token_id {}", types.len(), ids.len())));
        }
        if let Some((key, mask)) = mask {
            let mask = self.numbers(key, mask)?;
            if mask.len() != ids.len() {
                let reason = format!("has {} numbers, token_id {}", mask.len(), ids.len());
                return Err(self.wrong(key, reason));
            }
            let live = mask.iter().take_while(|&&one| one == 1).count();
            if mask[live..].iter().any(|&zero| zero != 0) {
                return Err(self.wrong(key, "is not ones, then zeros for padding".to_string()));
            }
            ids.truncate(live);
            types.truncate(live);
        }
        let vocabulary = self.tokenizer.vocab_size();
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
            let reason =
                format!("holds {id}, and the vocabulary has {vocabulary} tokens: the file is of another one");
            return Err(self.wrong("token_id", reason));
        }
        let (cls, sep) = (self.tokenizer.cls(), self.tokenizer.sep());
        if ids.len() < 2 || ids[0] != cls || ids[ids.len() - 1] != sep {
            let reason = format!(
                "does not begin with [CLS] ({cls}) and end with [SEP] ({sep}) as the model's vocabulary numbers them: \
                 the file is of another one"
            );
            return Err(self.wrong("token_id", reason));
        }
        let second = types.iter().take_while(|&&kind| kind == 0).count();
        if second == 0 || types[second..].iter().any(|&kind| kind != 1) {
            return Err(self.wrong("type_id", "is not zeros, then ones for a second text".to_string()));
        }
        Ok((ids, second))
    }

    fn label(&self, candidates: usize) -> Result<Label, DataError> {
        if !self.file.columns.labelled() {
            return Ok(Label::None);
        }
        let value = self.get("label")?;
        let whole = value.as_u64().and_then(|number| u32::try_from(number).ok());
        match self.spec.kind {
            TaskKind::Regression => {
                let score = value.as_f64().map(|score| score as f32).filter(|score| score.is_finite());
                score
                    .map(Label::Score)
                    .ok_or_else(|| self.wrong("label", format!("is {value}, not a number")))
            }
            TaskKind::Labelling | TaskKind::Span | TaskKind::Masked => Err(self.wrong(
                "label",
                format!("of token ids is not read for {}; give the text, as .tsv", self.spec.kind),
            )),
            TaskKind::Ranking => {
                let index = whole.filter(|&index| (index as usize) < candidates);
                let reason = || format!("is {value}, not the number of a candidate, 0 to {}", candidates - 1);
                index.map(Label::Positive).ok_or_else(|| self.wrong("label", reason()))
            }
            TaskKind::Classification => {
                let classes = self.spec.labels.len();
                let class = whole.filter(|&class| (class as usize) < classes);
                let reason = || format!("is {value}, not the number of a class, 0 to {}", classes - 1);
                class.map(Label::Class).ok_or_else(|| self.wrong("label", reason()))
            }
        }
    }

    /// The numbers of the line's soft label: probabilities of the classes or candidates, or a score; none where the task
    /// has no soft labels.
    fn soft(&self, value: Option<&Value>, candidates: usize) -> Result<Vec<f32>, DataError> {
        let wrong = |reason: String| self.wrong("softlabel", reason);
        let source = self.spec.soft.as_ref().map(|SoftLabels { source, .. }| source);
        let wanted = self.file.split == Split::Train && source == Some(&SoftSource::TokenLines);
        let value = match (value, wanted) {
            (Some(value), true) => value,
            (None, false) => return Ok(Vec::new()),
            (None, true) => {
                return Err(wrong("is missing, and the first line has one; give one to all or none".into()));
            }
            (Some(_), false) => {
                return Err(wrong("is here, and the first line has none; give one to all or none".into()));
            }
        };
        let number = |value: &Value| {
            let number = value.as_f64().map(|number| number as f32).filter(|number| number.is_finite());
            number.ok_or_else(|| wrong(format!("holds {value}, not a number")))
        };
        let list = value.as_array();
        if self.spec.kind == TaskKind::Regression {
            return match list.map(Vec::as_slice) {
                None => Ok(vec![number(value)?]),
                Some([score]) => Ok(vec![number(score)?]),
                Some(list) => Err(wrong(format!("has {} numbers, where one score is due", list.len()))),
            };
        }
        let list = list.ok_or_else(|| wrong(format!("is {value}, not a list of probabilities")))?;
        let numbers = list.iter().map(number).collect::<Result<Vec<_>, _>>()?;
        let width = if self.spec.kind == TaskKind::Ranking { candidates } else { self.spec.labels.len() };
        soft::file::check_probabilities(&numbers, self.spec.kind, width).map_err(|reason| {
            wrong(format!(
                "is no distribution: {reason} (it holds what a teacher's softmax gives, no logits)"
            ))
        })?;
        Ok(numbers)
    }

    fn numbers(&self, key: &str, value: &Value) -> Result<Vec<u32>, DataError> {
        let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
        let numbers = value.as_array().and_then(|list| list.iter().map(number).collect());
        numbers.ok_or_else(|| self.wrong(key, "is no list of whole numbers from 0".to_string()))
    }

    pub(super) fn get(&self, key: &str) -> Result<&Value, DataError> {
        self.row.value(&Place::Key(key.to_string())).map_err(|reason| self.wrong(key, reason))
    }

    pub(super) fn find(&self, key: &str) -> Option<&Value> {
        self.row.value(&Place::Key(key.to_string())).ok().filter(|value| !value.is_null())
    }

    pub(super) fn wrong(&self, field: &str, reason: String) -> DataError {
        let (path, line) = (self.file.path.clone(), self.row.line);
        DataError::Field { path, line, field: field.to_string(), reason }
    }
}
