//! What an entry says of spans and of masked words.

use super::TaskEntry;
use crate::data::error::DataError;
use crate::data::glue;
use crate::data::masked::MaskedOptions;
use crate::data::task::{MetricKind, TaskKind, TaskSpec};
use crate::data::text::Layout;

impl TaskEntry {
    /// Sets what is said of a task of spans; refuses it of another.
    pub(super) fn set_span(&self, spec: &mut TaskSpec) -> Result<(), DataError> {
        if let Some(span) = &mut spec.span {
            span.max_query_length = self.max_query_length.unwrap_or(span.max_query_length);
            span.stride = self.stride.unwrap_or(span.stride);
            span.max_answer_length = self.max_answer_length.unwrap_or(span.max_answer_length);
            span.no_answer = self.no_answer.or(span.no_answer);
            span.null_threshold = self.null_threshold.unwrap_or(span.null_threshold);
            return Ok(());
        }
        self.refuse(
            [
                ("max_query_length", self.max_query_length.is_some()),
                ("stride", self.stride.is_some()),
                ("max_answer_length", self.max_answer_length.is_some()),
                ("no_answer", self.no_answer.is_some()),
                ("null_threshold", self.null_threshold.is_some()),
            ],
            |key| format!("{key} is for tasks of kind span, this is {}", spec.kind),
        )
    }

    /// Sets what is said of how a task of masked words hides them; refuses it of another.
    pub(super) fn set_masked(&self, spec: &mut TaskSpec) -> Result<(), DataError> {
        if let Some(masked) = &mut spec.masked {
            masked.next_sentence = self.next_sentence.unwrap_or(masked.next_sentence);
            masked.whole_words = self.whole_words.unwrap_or(masked.whole_words);
            masked.mask_share = self.mask_share.unwrap_or(masked.mask_share);
            if !masked.next_sentence {
                spec.metrics.retain(|&metric| metric != MetricKind::NextAccuracy);
            }
            return self
                .refuse([("dropout", self.dropout.is_some()), ("head", self.head.is_some())], |key| {
                    format!("{key} means nothing to masked, whose head is BERT's own")
                });
        }
        self.refuse(
            [
                ("text", self.text.is_some()),
                ("dev_text", self.dev_text.is_some()),
                ("split", self.split.is_some()),
                ("next_sentence", self.next_sentence.is_some()),
                ("whole_words", self.whole_words.is_some()),
                ("mask_share", self.mask_share.is_some()),
            ],
            |key| format!("{key} is for tasks of kind masked, this is {}", spec.kind),
        )
    }

    /// A task of masked words, which has raw text in place of files of examples.
    pub(super) fn masked(&self) -> Result<TaskSpec, DataError> {
        let why =
            |key: &str| format!("{key} means nothing to masked; its text is named by text and dev_text");
        let named = self.named_columns();
        self.refuse(
            [
                ("data", self.data.is_some()),
                ("train", self.train.is_some()),
                ("dev", self.dev.is_some()),
                ("test", self.test.is_some()),
                ("header", self.header.is_some()),
                ("labels", self.labels.is_some()),
            ],
            why,
        )?;
        if let Some((key, _)) = named.first() {
            return Err(self.wrong(why(key)));
        }
        if let Some(known) = glue::find(&self.name) {
            return Err(self.wrong(format!("{known} is the name of a known task; give this one another")));
        }
        let text = self.text.clone().unwrap_or_default();
        if text.is_empty() {
            return Err(
                self.wrong("there is no text to train on; name text, a list of files and folders".into())
            );
        }
        let layout = Layout::of(self.split.unwrap_or(false));
        let dev_text = self.dev_text.clone().unwrap_or_default();
        let masked = Some(MaskedOptions { text, dev_text, layout, ..MaskedOptions::default() });
        Ok(TaskSpec { masked, ..TaskSpec::new(self.name.clone(), TaskKind::Masked) })
    }

    /// An error for the first of the keys that is given.
    fn refuse<const N: usize>(
        &self,
        given: [(&str, bool); N],
        why: impl Fn(&str) -> String,
    ) -> Result<(), DataError> {
        match given.into_iter().find(|(_, given)| *given) {
            Some((key, _)) => Err(self.wrong(why(key))),
            None => Ok(()),
        }
    }
}
