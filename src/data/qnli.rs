//! QNLI as ranking (Liu et al. 2019, section 4.1): two rows of the first edition of the files make one query.
//!
//! Up to January 2019 GLUE handed QNLI out in pairs of rows: one question, with a sentence that answers it and one that
//! does not. Which of the two is the answer is then a matter of ranking. The files of today (v2) are not paired, so
//! there is nothing to rank; that is seen from their structure and said.

use super::dataset::{Example, Label, Text};
use super::error::DataError;
use super::task::{SourceFile, Split};
use crate::random::Random;

/// The label of a sentence that answers the question.
pub const ANSWER: &str = "entailment";
/// The label of one that does not.
pub const NO_ANSWER: &str = "not_entailment";

/// The draw that puts the two sentences of a pair in order: the same in every run, so that a set is one set.
const ORDER: (u64, u32) = (2018, 0x514E_4C49);

/// The answers to a paired file's rows, in their order, from the relevances of all candidates, two a pair: a test
/// file's candidates stand as its rows do. Of equal ones the first is the answer.
///
/// # Panics
/// If there is not an even number of relevances.
pub fn row_labels(relevances: &[f32]) -> Vec<&'static str> {
    assert!(relevances.len().is_multiple_of(2), "{} relevances are no pairs", relevances.len());
    let answers = relevances
        .chunks_exact(2)
        .flat_map(|pair| if pair[1] > pair[0] { [NO_ANSWER, ANSWER] } else { [ANSWER, NO_ANSWER] });
    answers.collect()
}

/// One row of a paired file.
pub(super) struct Half {
    pub(super) line: u64,
    pub(super) question: String,
    pub(super) sentence: String,
    /// Whether the sentence is the answer, where the file says it.
    pub(super) answer: Option<bool>,
}

/// Rows as they come, taken two at a time.
#[derive(Default)]
pub(super) struct Pairs {
    waiting: Option<Half>,
    pairs: Vec<[Half; 2]>,
}

impl Pairs {
    pub(super) fn add(&mut self, half: Half) {
        match self.waiting.take() {
            None => self.waiting = Some(half),
            Some(first) => self.pairs.push([first, half]),
        }
    }

    /// An example a pair; `skip` is told of each row that makes none: its line and why.
    pub(super) fn finish(
        self,
        file: &SourceFile,
        mut skip: impl FnMut(u64, &'static str),
    ) -> Result<Vec<Example>, DataError> {
        self.check(file)?;
        let mut random = Random::new(ORDER.0, [ORDER.1, 0]);
        let mut examples = Vec::with_capacity(self.pairs.len());
        for mut pair in self.pairs {
            let label = match pair.each_ref().map(|half| half.answer) {
                [Some(first), Some(second)] if first == second => {
                    pair.iter().for_each(|half| skip(half.line, "both rows of the pair have the same label"));
                    continue;
                }
                [first, _] => first.map(|first| u32::from(!first)),
            };
            if file.split != Split::Test && pair.iter().any(Half::is_empty) {
                pair.iter().for_each(|half| skip(half.line, "a text of the pair is empty"));
                continue;
            }
            // A test file's order is kept, so that the answers find their rows.
            let swap = file.split != Split::Test && random.chance(0.5);
            if swap {
                pair.swap(0, 1);
            }
            let label = label.map_or(Label::None, |index| Label::Positive(index ^ u32::from(swap)));
            let [first, second] = pair;
            let candidates = vec![first.sentence, second.sentence];
            examples.push(Example { text: Text::Candidates { query: first.question, candidates }, label });
        }
        Ok(examples)
    }

    /// Refuses a file whose rows do not pair up.
    fn check(&self, file: &SourceFile) -> Result<(), DataError> {
        let paired = |pair: &&[Half; 2]| pair[0].question.trim() == pair[1].question.trim();
        let (all, good) = (self.pairs.len(), self.pairs.iter().filter(paired).count());
        let unpaired = |line: u64, found: String| {
            // Where most rows pair up, the file is meant to and one row broke the rhythm.
            let reason = if 2 * good > all {
                format!(
                    "{found}; {good} of {all} pairs of rows hold one question each, so a row is missing or too many here"
                )
            } else {
                format!(
                    "{found}; only {good} of {all} pairs of rows hold one question each. This is not QNLI v1, whose rows \
                     come in pairs, one question with its answer and with a sentence that is none, but v2, as GLUE hands \
                     it out since January 2019: a question comes with one sentence, so that there is nothing to rank it \
                     against. Train it as classification: leave kind out, with the name qnli; or give the folder of a \
                     QNLI v1, or candidates of your own (candidates, or group)"
                )
            };
            Err(DataError::Unpaired { path: file.path.clone(), line, reason })
        };
        if let Some([first, second]) = self.pairs.iter().find(|pair| !paired(pair)) {
            let [a, b] = [first, second].map(|half| shortened(&half.question));
            return unpaired(second.line, format!("the question {b:?} follows {a:?}"));
        }
        match &self.waiting {
            Some(half) => {
                unpaired(half.line, format!("the question {:?} has one row", shortened(&half.question)))
            }
            None => Ok(()),
        }
    }
}

impl Half {
    fn is_empty(&self) -> bool {
        self.question.trim().is_empty() || self.sentence.trim().is_empty()
    }
}

/// As much of a text as a message needs.
fn shortened(text: &str) -> String {
    let cut = text.char_indices().nth(60).map(|(at, _)| at);
    cut.map_or_else(|| text.to_string(), |at| format!("{}…", &text[..at]))
}
