//! Questions and their texts into sequences, a long text in windows (Devlin et al. 2018, section 4.2 and its code).

use super::dataset::{Dataset, Example, Label, Passage, Text};
use super::span::SpanOptions;
use super::tokenizer::Tokenizer;

/// How questions become sequences.
pub(super) struct Windows<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) max_length: usize,
    pub(super) options: SpanOptions,
    /// Whether each window is an example of its own, with its target; else a question's windows are one example, with
    /// the text that its answer is cut from.
    pub(super) training: bool,
}

impl Windows<'_> {
    /// Why no text fits beside a question, if none does.
    pub(super) fn check(&self) -> Result<(), String> {
        let (query, max_length) = (self.options.max_query_length, self.max_length);
        if query + 3 < max_length {
            return Ok(());
        }
        Err(format!(
            "max_query_length is {query}: with [CLS] and two [SEP] that leaves no room for a text in sequences of \
             {max_length} tokens (--max-length); give less of the one or more of the other"
        ))
    }

    /// Appends an example: `[CLS] question [SEP] window [SEP]` for each window, the window's tokens marked.
    pub(super) fn push(&self, dataset: &mut Dataset, example: &Example) {
        let Text::Question { question, context, answers } = &example.text else {
            panic!("a span is asked for in a text that is no question")
        };
        let SpanOptions { max_query_length, stride, .. } = self.options;
        let mut query = self.tokenizer.tokens(question);
        let cut = query.len() > max_query_length;
        query.truncate(max_query_length);
        let (tokens, places) = self.tokenizer.tokens_and_places(context);
        let room = self.max_length - query.len() - 3;
        let answer = answers.first().and_then(|answer| {
            let (start, end) = (answer.start as u32, (answer.start + answer.text.len()) as u32);
            let first = places.iter().position(|place| place[1] > start)?;
            let last = places.iter().rposition(|place| place[0] < end)?;
            (first <= last).then_some((first, last))
        });
        let mut start = 0;
        loop {
            let end = tokens.len().min(start + room);
            let target = self.target(answer, start, end);
            match target {
                None if self.training => dataset.dropped += 1,
                _ => {
                    self.push_window(dataset, &query, &tokens[start..end], &places[start..end]);
                    dataset.truncated += u64::from(cut);
                }
            }
            if let (Some(label), true) = (target, self.training) {
                dataset.finish_example(label);
            }
            if end == tokens.len() {
                break;
            }
            start += stride.min(room);
        }
        if !self.training {
            dataset.finish_example(example.label);
            let answers = answers.iter().map(|answer| answer.text.clone()).collect();
            dataset.passages.push(Passage { context: context.clone(), answers });
        }
    }

    /// What a window of the text's tokens `start..end` is trained towards; `None` where it holds no answer and every
    /// question has one.
    fn target(&self, answer: Option<(usize, usize)>, start: usize, end: usize) -> Option<Label> {
        let no_answer = self.options.no_answer == Some(true);
        match answer {
            Some((first, last)) if start <= first && last < end => {
                let before = u32::from(no_answer);
                let mark = |token: usize| (token - start) as u32 + before;
                Some(Label::Span { first: mark(first), last: mark(last) })
            }
            _ => no_answer.then_some(Label::Span { first: 0, last: 0 }),
        }
    }

    fn push_window(&self, dataset: &mut Dataset, query: &[u32], tokens: &[u32], places: &[[u32; 2]]) {
        let sequence = self.tokenizer.pack(query, Some(tokens), self.max_length);
        assert!(!sequence.truncated, "a window of {} tokens behind {}", tokens.len(), query.len());
        dataset.push_sequence(&sequence.ids, sequence.second);
        let of_text = (sequence.second..).zip(places.iter().copied());
        let no_answer = (self.options.no_answer == Some(true)).then_some((0, [0, 0]));
        let candidates = no_answer.into_iter().chain(of_text);
        dataset.marks.push_candidates(
            candidates.map(|(position, place)| (position, (!self.training).then_some(place))),
        );
    }
}
