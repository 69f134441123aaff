//! The options of tasks whose answer is a part of a text.

use serde::{Deserialize, Serialize};

/// How the texts of a task of kind [`Span`](super::task::TaskKind::Span) are cut and its answers chosen; the defaults are
/// BERT's for SQuAD.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SpanOptions {
    /// Tokens of a question; what is longer is cut.
    pub max_query_length: usize,
    /// A text that does not fit beside its question is read in windows, each this many tokens after the last.
    pub stride: usize,
    /// Tokens of an answer.
    pub max_answer_length: usize,
    /// Whether a question may have no answer (SQuAD 2.0): then `[CLS]` stands for that. `None` until
    /// [`learn_labels`](super::reader::learn_labels) for a task that does not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_answer: Option<bool>,
    /// No answer is given where its score exceeds the best answer's by more than this.
    pub null_threshold: f32,
}

impl Default for SpanOptions {
    fn default() -> Self {
        Self {
            max_query_length: 64,
            stride: 128,
            max_answer_length: 30,
            no_answer: None,
            null_threshold: 0.0,
        }
    }
}

impl SpanOptions {
    /// Why a number is no number of tokens, or no threshold.
    pub(super) fn validate(&self) -> Result<(), String> {
        let Self { max_query_length, stride, max_answer_length, no_answer: _, null_threshold } = *self;
        for (key, value) in [
            ("max_query_length", max_query_length),
            ("stride", stride),
            ("max_answer_length", max_answer_length),
        ] {
            if value == 0 {
                return Err(format!("{key} is 0; give 1 or more tokens"));
            }
        }
        if !null_threshold.is_finite() {
            return Err(format!("null_threshold is {null_threshold}, not a number"));
        }
        Ok(())
    }
}
