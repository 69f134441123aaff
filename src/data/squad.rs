//! Questions on texts, as SQuAD 1.1 and 2.0 keep them (Rajpurkar et al. 2016 and 2018).

use std::io::BufRead;

use serde::Deserialize;
use serde_json::Value;

use super::dataset::{Answer, Example, Label, Text};
use super::error::DataError;
use super::task::{SourceFile, TaskSpec};

/// A file; keys that are not named here (titles, versions, plausible answers) do not matter.
#[derive(Deserialize)]
struct Squad {
    data: Vec<Article>,
}

#[derive(Deserialize)]
struct Article {
    paragraphs: Vec<Paragraph>,
}

#[derive(Deserialize)]
struct Paragraph {
    context: String,
    qas: Vec<Question>,
}

#[derive(Deserialize)]
struct Question {
    #[serde(default)]
    id: Value,
    question: String,
    #[serde(default)]
    is_impossible: bool,
    #[serde(default)]
    answers: Vec<Gold>,
}

#[derive(Deserialize)]
struct Gold {
    text: String,
    /// In characters (code points), from 0.
    answer_start: i64,
}

/// All questions of a file, in its order; with their answers if `answers`.
pub(super) fn read(
    input: impl BufRead,
    file: &SourceFile,
    spec: &TaskSpec,
    answers: bool,
) -> Result<Vec<Example>, DataError> {
    let impossible_known = spec.span.and_then(|span| span.no_answer).unwrap_or(false);
    let mut examples = Vec::new();
    for paragraph in paragraphs(input, file)? {
        // Where each character starts, and the end.
        let starts: Vec<usize> = paragraph.context.char_indices().map(|(byte, _)| byte).collect();
        for asked in paragraph.qas {
            let id = match &asked.id {
                Value::String(id) => id.clone(),
                Value::Null => asked.question.clone(),
                other => other.to_string(),
            };
            let wrong =
                |reason: String| DataError::Question { path: file.path.clone(), id: id.clone(), reason };
            if asked.question.trim().is_empty() || paragraph.context.trim().is_empty() {
                return Err(wrong("the question or its context has no text".to_string()));
            }
            let (mut found, mut label) = (Vec::new(), Label::None);
            if answers {
                check_possible(&asked, impossible_known).map_err(wrong)?;
                label = Label::Answers;
                for gold in &asked.answers {
                    found.push(locate(gold, &paragraph.context, &starts).map_err(wrong)?);
                }
            }
            let (question, context) = (asked.question, paragraph.context.clone());
            examples.push(Example { text: Text::Question { question, context, answers: found }, label });
        }
    }
    Ok(examples)
}

/// Whether a file has questions that have no answer.
pub(super) fn has_impossible(input: impl BufRead, file: &SourceFile) -> Result<bool, DataError> {
    let paragraphs = paragraphs(input, file)?;
    Ok(paragraphs.iter().flat_map(|paragraph| &paragraph.qas).any(|asked| asked.is_impossible))
}

fn paragraphs(mut input: impl BufRead, file: &SourceFile) -> Result<Vec<Paragraph>, DataError> {
    let mut bytes = Vec::new();
    input.read_to_end(&mut bytes).map_err(DataError::read(&file.path))?;
    let text = std::str::from_utf8(&bytes).map_err(|error| DataError::NotUtf8 {
        path: file.path.clone(),
        line: 1 + bytes[..error.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count() as u64,
    })?;
    let squad: Squad =
        serde_json::from_str(text.strip_prefix('\u{feff}').unwrap_or(text)).map_err(|error| {
            DataError::Squad { path: file.path.clone(), line: error.line() as u64, reason: error.to_string() }
        })?;
    Ok(squad.data.into_iter().flat_map(|article| article.paragraphs).collect())
}

/// Whether a question has answers, or says that it has none where that may be.
fn check_possible(asked: &Question, impossible_known: bool) -> Result<(), String> {
    match (asked.is_impossible, asked.answers.is_empty()) {
        (true, false) => Err("is_impossible is true, and it has answers; take one of them away".to_string()),
        (false, true) => Err("it has no answers; give one, or \"is_impossible\": true".to_string()),
        (true, true) if !impossible_known => Err(
            "is_impossible is true, and the task is one in which every question has an answer; train with no_answer = \
             true, or leave the question out"
                .to_string(),
        ),
        _ => Ok(()),
    }
}

/// The answer's place in bytes, if it stands where the file says.
fn locate(gold: &Gold, context: &str, starts: &[usize]) -> Result<Answer, String> {
    if gold.text.trim().is_empty() {
        return Err("one of its answers has no text".to_string());
    }
    let start = usize::try_from(gold.answer_start).ok().and_then(|start| starts.get(start));
    let found = start.map(|&start| &context[start..]).unwrap_or_default();
    match start {
        Some(&start) if found.starts_with(&gold.text) => Ok(Answer { start, text: gold.text.clone() }),
        _ => {
            let shown: String = found.chars().take(gold.text.chars().count()).collect();
            Err(format!(
                "the answer {:?} does not stand at answer_start {}, where the context has {shown:?}; answer_start counts \
                 characters (Unicode code points) from 0",
                gold.text, gold.answer_start
            ))
        }
    }
}
