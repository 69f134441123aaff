//! JSON lines of SQuAD's windows, as MT-DNN's preprocessing leaves them: `uid`, `token_id`, `mask` and `type_id`, and `label`,
//! the positions of the answer's first and last token and whether there is none. Lines to measure on have `context`,
//! `offset_mapping` and `answer` as well, and those of a `uid` are the windows of one question.

use std::collections::HashSet;
use std::io::BufRead;
use std::ops::Range;

use serde_json::Value;

use super::tokens::{Line, each_line};
use crate::data::cache::Prepared;
use crate::data::dataset::{Dataset, Label, Passage};
use crate::data::error::DataError;
use crate::data::task::{SourceFile, Split, TaskSpec};
use crate::data::tokenizer::Tokenizer;

/// A file of windows as a set of examples: to train on, a window each; to measure on, a question each.
pub(super) fn parse(
    input: impl BufRead,
    file: &SourceFile,
    spec: &TaskSpec,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Prepared, DataError> {
    let mut set = Questions { dataset: Dataset::new(), asked: None, uids: HashSet::new() };
    let mut not_read = 0_u64;
    let skipped = each_line(input, file, |row| {
        let line = Line { file, spec, tokenizer, max_length, row };
        let window = Window::read(&line)?;
        match file.split {
            Split::Train => set.train(&line, &window)?,
            _ => set.measure(&line, &window)?,
        }
        not_read += u64::from(line.find("token_is_max_context").is_some());
        Ok(())
    })?;
    set.finish_question(file);
    let Questions { dataset, .. } = set;
    if dataset.is_empty() {
        let skipped = match dataset.dropped {
            0 => (skipped.count > 0).then(|| skipped.to_string()),
            dropped => Some(format!("none of {dropped} windows holds the answer to its question")),
        };
        return Err(DataError::Empty { path: file.path.clone(), skipped });
    }
    let mut notes = Vec::new();
    if not_read > 0 && file.split != Split::Train {
        notes.push(format!(
            "{}: token_is_max_context is not read: an answer may be taken from any window of its text",
            file.path.display()
        ));
    }
    Ok(Prepared { dataset, skipped, notes })
}

/// What is being made of a file.
struct Questions {
    dataset: Dataset,
    /// The question whose windows are being read, to be measured.
    asked: Option<(String, Passage)>,
    uids: HashSet<String>,
}

impl Questions {
    /// Appends a window as an example of its own, unless it has no answer where each question has one.
    fn train(&mut self, line: &Line<'_>, window: &Window) -> Result<(), DataError> {
        let no_answer = may_have_none(line.spec);
        let label = match window.answer(line)? {
            Some([first, last]) => {
                let mark = |position: usize| (position - window.text.start) as u32 + u32::from(no_answer);
                Label::Span { first: mark(first), last: mark(last) }
            }
            None if no_answer => Label::Span { first: 0, last: 0 },
            None => {
                self.dataset.dropped += 1;
                return Ok(());
            }
        };
        self.push(window, no_answer, None);
        self.dataset.finish_example(label);
        Ok(())
    }

    /// Appends a window to its question's example.
    fn measure(&mut self, line: &Line<'_>, window: &Window) -> Result<(), DataError> {
        let uid = match line.get("uid")? {
            Value::String(uid) => uid.clone(),
            Value::Number(uid) => uid.to_string(),
            other => return Err(line.wrong("uid", format!("is {other}, neither a text nor a number"))),
        };
        let passage = passage(line)?;
        let places = window.places(line, &passage.context)?;
        if self.asked.as_ref().is_none_or(|(asked, _)| *asked != uid) {
            self.finish_question(line.file);
            if !self.uids.insert(uid.clone()) {
                let reason = format!("is {uid:?} again; the windows of a question follow one another");
                return Err(line.wrong("uid", reason));
            }
            self.asked = Some((uid, passage));
        } else if let Some((uid, before)) = &self.asked
            && *before != passage
        {
            let key = if before.context == passage.context { "answer" } else { "context" };
            let reason = format!("is another than in the line before, which is of uid {uid:?} as well");
            return Err(line.wrong(key, reason));
        }
        self.push(window, may_have_none(line.spec), Some(&places));
        Ok(())
    }

    /// Appends a window and marks its text's tokens, with their places in the text where they are given.
    fn push(&mut self, window: &Window, no_answer: bool, places: Option<&[[u32; 2]]>) {
        let Window { ids, text, .. } = window;
        self.dataset.push_sequence(ids, text.start as u32);
        let cls = no_answer.then_some((0, places.map(|_| [0, 0])));
        let of_text = text
            .clone()
            .enumerate()
            .map(|(number, position)| (position as u32, places.map(|places| places[number])));
        self.dataset.marks.push_candidates(cls.into_iter().chain(of_text));
    }

    /// Ends the question whose windows have been read, if there is one.
    fn finish_question(&mut self, file: &SourceFile) {
        if let Some((_, passage)) = self.asked.take() {
            self.dataset.finish_example(if file.columns.labelled() { Label::Answers } else { Label::None });
            self.dataset.passages.push(passage);
        }
    }
}

fn may_have_none(spec: &TaskSpec) -> bool {
    spec.span.is_some_and(|span| span.no_answer == Some(true))
}

/// `[CLS] question [SEP] part of the text [SEP]`.
struct Window {
    ids: Vec<u32>,
    /// The positions of the text's tokens; at least one.
    text: Range<usize>,
    /// The length with padding.
    padded: usize,
}

impl Window {
    fn read(line: &Line<'_>) -> Result<Self, DataError> {
        let (ids, types) = (line.get("token_id")?, line.get("type_id")?);
        let padded = ids.as_array().map_or(0, Vec::len);
        let mask = ["mask", "attention_mask"].iter().find_map(|key| Some((*key, line.find(key)?)));
        let (ids, second) = line.checked(ids, types, mask)?;
        let (length, most) = (ids.len(), line.max_length);
        if length > most {
            let reason = format!(
                "has {length} tokens, and sequences have {most} (--max-length): a window is not cut, as its answer might \
                 be; give {length} or more"
            );
            return Err(line.wrong("token_id", reason));
        }
        let text = second..length - 1;
        if text.is_empty() {
            let reason = "has no ones for a token of the text before the last [SEP]".to_string();
            return Err(line.wrong("type_id", reason));
        }
        Ok(Self { ids, text, padded })
    }

    /// The positions of the answer's first and last token; `None` where the window has none.
    fn answer(&self, line: &Line<'_>) -> Result<Option<[usize; 2]>, DataError> {
        let value = line.get("label")?;
        let position = |value: &Value| value.as_u64().and_then(|number| usize::try_from(number).ok());
        let impossible = |value: &Value| {
            value.as_bool().or_else(|| match value.as_u64()? {
                0 => Some(false),
                1 => Some(true),
                _ => None,
            })
        };
        let parts = match value.as_array().map(Vec::as_slice) {
            Some([first, last, none]) => position(first).zip(position(last)).zip(impossible(none)),
            _ => None,
        };
        let Some(((first, last), impossible)) = parts else {
            let reason = format!(
                "is {value}, not the positions of the answer's first and last token and whether there is none: [0, 0, true]"
            );
            return Err(line.wrong("label", reason));
        };
        if (first, last) == (0, 0) {
            return Ok(None);
        }
        if impossible {
            let reason = format!("is {value}: without an answer both positions are those of [CLS], 0");
            return Err(line.wrong("label", reason));
        }
        if first > last || !self.text.contains(&first) || !self.text.contains(&last) {
            let Range { start, end } = self.text;
            let reason = format!("is {value}, and the text's tokens are {start} to {}", end - 1);
            return Err(line.wrong("label", reason));
        }
        Ok(Some([first, last]))
    }

    /// The bytes of the context that each of the text's tokens stands for.
    fn places(&self, line: &Line<'_>, context: &str) -> Result<Vec<[u32; 2]>, DataError> {
        let value = line.get("offset_mapping")?;
        let wrong = |reason: String| line.wrong("offset_mapping", reason);
        let offsets = value.as_array().ok_or_else(|| wrong("is no list".to_string()))?;
        if offsets.len() != self.padded {
            return Err(wrong(format!("has {} places, token_id {} tokens", offsets.len(), self.padded)));
        }
        // Where each character starts, and the end.
        let starts: Vec<u32> = context
            .char_indices()
            .map(|(byte, _)| byte)
            .chain([context.len()])
            .map(|byte| byte as u32)
            .collect();
        let mut places: Vec<[u32; 2]> = Vec::with_capacity(self.text.len());
        for position in self.text.clone() {
            let byte = |value: &Value| starts.get(usize::try_from(value.as_u64()?).ok()?).copied();
            let place = match offsets[position].as_array().map(Vec::as_slice) {
                Some([from, to]) => byte(from).zip(byte(to)),
                _ => None,
            };
            let before = places.last().map_or(0, |place| place[0]);
            match place.filter(|&(from, to)| before <= from && from <= to) {
                Some((from, to)) => places.push([from, to]),
                None => {
                    return Err(wrong(format!(
                        "is {} for token {position}, not its first character in the context and the one after its last, \
                         not before those of the token before",
                        offsets[position]
                    )));
                }
            }
        }
        Ok(places)
    }
}

/// The text that the answer is cut from, and the gold answers.
fn passage(line: &Line<'_>) -> Result<Passage, DataError> {
    let context = match line.get("context")? {
        Value::String(context) if !context.trim().is_empty() => context.clone(),
        other => return Err(line.wrong("context", format!("is {other}, not a text"))),
    };
    if !line.file.columns.labelled() {
        return Ok(Passage { context, answers: Vec::new() });
    }
    let value = line.get("answer")?;
    let texts: Option<Vec<&str>> = match value {
        Value::Null => Some(Vec::new()),
        Value::String(answer) => Some(vec![answer]),
        Value::Array(answers) => answers.iter().map(Value::as_str).collect(),
        _ => None,
    };
    let texts = texts
        .ok_or_else(|| line.wrong("answer", format!("is {value}, neither a text nor a list of texts")))?;
    let answers: Vec<String> =
        texts.into_iter().filter(|text| !text.trim().is_empty()).map(str::to_string).collect();
    if answers.is_empty() && !may_have_none(line.spec) {
        let reason = "is empty, and every question of SpanClassification has one; questions without are those of \
                      SpanClassificationYN";
        return Err(line.wrong("answer", reason.to_string()));
    }
    Ok(Passage { context, answers })
}
