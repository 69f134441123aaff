//! Examples as text, and a whole split of them as token ids.

use super::batch::MAX_SEQUENCE;
use super::task::Texts;

/// One example as it was read: text and label.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// What the model reads.
    pub text: Text,
    /// What it should answer.
    pub label: Label,
}

/// The text of an example.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Text {
    /// One sentence.
    Single(String),
    /// Two.
    Pair(String, String),
    /// A query and its candidate answers; the model reads each candidate paired with the query.
    Candidates {
        /// The query.
        query: String,
        /// Two candidates or more.
        candidates: Vec<String>,
    },
}

impl Text {
    /// How many texts it is; `None` for a query with candidates.
    pub fn texts(&self) -> Option<Texts> {
        match self {
            Text::Single(_) => Some(Texts::Single),
            Text::Pair(..) => Some(Texts::Pair),
            Text::Candidates { .. } => None,
        }
    }
}

/// The answer to an example.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Label {
    /// A class: an index into the task's labels.
    Class(u32),
    /// A score.
    Score(f32),
    /// The index of the right candidate.
    Positive(u32),
    /// Not known (test sets).
    None,
}

/// A split as token ids, flat: sequence `s` is `ids[offsets[s]..offsets[s + 1]]`, and example `e` is the sequences
/// `groups[e]..groups[e + 1]`: one, or one a candidate for ranking.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dataset {
    /// All token ids, `[CLS]` and `[SEP]` included.
    pub ids: Vec<u32>,
    /// Where each sequence starts. [sequences + 1]
    pub offsets: Vec<u64>,
    /// Where the second text (type 1) begins within each sequence; its length where there is none. [sequences]
    pub second: Vec<u32>,
    /// Where each example's sequences start. [examples + 1]
    pub groups: Vec<u32>,
    /// [examples]
    pub labels: Vec<Label>,
    /// How many sequences were cut to the maximal length.
    pub truncated: u64,
}

impl Dataset {
    /// A set without examples.
    pub fn new() -> Self {
        Self { offsets: vec![0], groups: vec![0], ..Self::default() }
    }

    /// Room for `size` examples of one sequence each, of `tokens` together.
    pub(crate) fn with_capacity(tokens: usize, size: usize) -> Self {
        let mut dataset = Self::new();
        dataset.ids.reserve(tokens);
        dataset.offsets.reserve(size);
        dataset.second.reserve(size);
        dataset.groups.reserve(size);
        dataset.labels.reserve(size);
        dataset
    }

    /// The number of examples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no examples.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The number of sequences.
    pub fn sequences(&self) -> usize {
        self.second.len()
    }

    /// The token ids of a sequence.
    pub fn sequence(&self, sequence: usize) -> &[u32] {
        &self.ids[self.offsets[sequence] as usize..self.offsets[sequence + 1] as usize]
    }

    /// The sequences of an example.
    pub fn sequences_of(&self, example: usize) -> std::ops::Range<usize> {
        self.groups[example] as usize..self.groups[example + 1] as usize
    }

    /// The number of tokens of an example, over all its sequences.
    pub fn tokens_of(&self, example: usize) -> usize {
        let sequences = self.sequences_of(example);
        (self.offsets[sequences.end] - self.offsets[sequences.start]) as usize
    }

    /// The length of the longest sequence; 0 for an empty set.
    pub fn longest(&self) -> usize {
        self.offsets.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0)
    }

    /// Whether every example has a label.
    pub fn labelled(&self) -> bool {
        !self.labels.contains(&Label::None)
    }

    /// The set of these examples in this order. What was cut is counted no more.
    pub fn select(&self, examples: &[u32]) -> Dataset {
        let mut selected = Dataset::new();
        for &example in examples {
            for sequence in self.sequences_of(example as usize) {
                selected.push_sequence(self.sequence(sequence), self.second[sequence]);
            }
            selected.finish_example(self.labels[example as usize]);
        }
        selected
    }

    /// Takes all examples out and keeps the room that they took.
    pub(crate) fn clear(&mut self) {
        self.ids.clear();
        self.offsets.truncate(1);
        self.second.clear();
        self.groups.truncate(1);
        self.labels.clear();
        self.truncated = 0;
    }

    /// Appends a sequence to the example that is being built.
    pub fn push_sequence(&mut self, ids: &[u32], second: u32) {
        assert!(!ids.is_empty() && ids.len() <= MAX_SEQUENCE, "a sequence of {} tokens", ids.len());
        self.ids.extend_from_slice(ids);
        self.offsets.push(self.ids.len() as u64);
        self.second.push(second);
    }

    /// Ends the example whose sequences have been pushed.
    pub fn finish_example(&mut self, label: Label) {
        self.groups.push(self.second.len() as u32);
        self.labels.push(label);
    }

    /// Appends all examples of `other`.
    pub(crate) fn append(&mut self, other: &Dataset) {
        let (tokens, sequences) = (self.ids.len() as u64, self.second.len() as u32);
        self.ids.extend_from_slice(&other.ids);
        self.offsets.extend(other.offsets[1..].iter().map(|offset| tokens + offset));
        self.second.extend_from_slice(&other.second);
        self.groups.extend(other.groups[1..].iter().map(|group| sequences + group));
        self.labels.extend_from_slice(&other.labels);
        self.truncated += other.truncated;
    }
}
