//! Examples as text, and a whole split of them as token ids.

use serde::{Deserialize, Serialize};

use super::batch::MAX_SEQUENCE;
use super::marks::Marks;
use super::masking::Masking;
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
    /// The words of a sentence, each of which gets a label.
    Words {
        /// One or more.
        words: Vec<String>,
        /// The class of each word; none where they are not known.
        tags: Vec<u32>,
    },
    /// A question that a part of a text answers.
    Question {
        /// The question.
        question: String,
        /// The text.
        context: String,
        /// The gold answers: none where there is no answer, or it is not known.
        answers: Vec<Answer>,
    },
}

/// An answer as a part of its text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Answer {
    /// Its first byte in the text.
    pub start: usize,
    /// Its words, as they stand there.
    pub text: String,
}

impl Text {
    /// How many texts it is; `None` for what is more than texts.
    pub fn texts(&self) -> Option<Texts> {
        match self {
            Text::Single(_) => Some(Texts::Single),
            Text::Pair(..) => Some(Texts::Pair),
            Text::Candidates { .. } | Text::Words { .. } | Text::Question { .. } => None,
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
    /// A class for each word; they stand with the words, and in a [`Dataset`] with its marks.
    Tags,
    /// A part of a text, or none, to be measured against gold answers; they stand with the text, and in a [`Dataset`]
    /// with its passages.
    Answers,
    /// A part of a window of a text, to be trained towards: the numbers of its first and last token among the marks.
    Span {
        /// Below 2^16.
        first: u32,
        /// Not before `first`.
        last: u32,
    },
    /// Not known (test sets).
    None,
}

impl Label {
    /// As two words that tell all labels apart.
    pub fn to_bits(self) -> [u32; 2] {
        match self {
            Label::None => [0, 0],
            Label::Class(class) => [1, class],
            Label::Score(score) => [2, score.to_bits()],
            Label::Positive(index) => [3, index],
            Label::Tags => [4, 0],
            Label::Answers => [5, 0],
            Label::Span { first, last } => [6, first << 16 | last],
        }
    }

    /// The label of two words, if they are one's.
    pub(super) fn from_bits(bits: [u32; 2]) -> Option<Self> {
        match bits {
            [0, 0] => Some(Label::None),
            [1, class] => Some(Label::Class(class)),
            [2, score] => Some(Label::Score(f32::from_bits(score))),
            [3, index] => Some(Label::Positive(index)),
            [4, 0] => Some(Label::Tags),
            [5, 0] => Some(Label::Answers),
            [6, both] => Some(Label::Span { first: both >> 16, last: both & 0xffff }),
            _ => None,
        }
    }
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
    /// Soft labels: for each sequence a number for each output of the task's head, a class's probability, a
    /// candidate's, or a score. Empty where the task has none. [sequences, outputs]
    pub soft: Vec<f32>,
    /// How many sequences were cut to the maximal length.
    pub truncated: u64,
    /// How many windows of texts were left out because they do not hold the answer.
    pub dropped: u64,
    /// The tokens that a head reads, where it reads tokens.
    pub marks: Marks,
    /// The text and gold answers of each question, where spans are to be measured; else none. [examples]
    pub passages: Vec<Passage>,
    /// How tokens are hidden in each batch, where they are: see [`masked`](super::masked).
    pub masking: Option<Masking>,
}

/// What an answer is cut from and measured against.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passage {
    /// The text.
    pub context: String,
    /// The gold answers; none where there is no answer, or it is not known.
    pub answers: Vec<String>,
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
        let mut selected = Dataset { masking: self.masking.clone(), ..Dataset::new() };
        let width = self.soft_width();
        for &example in examples {
            let example = example as usize;
            for sequence in self.sequences_of(example) {
                selected.push_sequence(self.sequence(sequence), self.second[sequence]);
                selected.marks.push(&self.marks, sequence);
                selected.soft.extend_from_slice(&self.soft[sequence * width..(sequence + 1) * width]);
            }
            selected.finish_example(self.labels[example]);
            selected.passages.extend(self.passages.get(example).cloned());
        }
        selected
    }

    /// The number of marked tokens of an example, over all its sequences: the rows that a head reads. Where tokens are
    /// hidden in the batch, the most there can be.
    pub fn marked_of(&self, example: usize) -> usize {
        if let Some(masking) = &self.masking {
            let sequences = self.sequences_of(example);
            return sequences.map(|sequence| masking.most_of(self.sequence(sequence).len())).sum();
        }
        let marks = self.sequences_of(example).flat_map(|sequence| self.marks.of(sequence));
        marks.filter(|&mark| self.marks.is_read(mark)).count()
    }

    /// The numbers of a sequence's soft label; 0 where there are none.
    pub fn soft_width(&self) -> usize {
        self.soft.len() / self.sequences().max(1)
    }

    /// Takes all examples out and keeps the room that they took.
    pub(crate) fn clear(&mut self) {
        self.ids.clear();
        self.offsets.truncate(1);
        self.second.clear();
        self.groups.truncate(1);
        self.labels.clear();
        self.soft.clear();
        (self.truncated, self.dropped) = (0, 0);
        self.marks = Marks::default();
        self.passages.clear();
        self.masking = None;
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
    pub fn append(&mut self, other: &Dataset) {
        let (tokens, sequences) = (self.ids.len() as u64, self.second.len() as u32);
        self.ids.extend_from_slice(&other.ids);
        self.offsets.extend(other.offsets[1..].iter().map(|offset| tokens + offset));
        self.second.extend_from_slice(&other.second);
        self.groups.extend(other.groups[1..].iter().map(|group| sequences + group));
        self.labels.extend_from_slice(&other.labels);
        self.soft.extend_from_slice(&other.soft);
        self.truncated += other.truncated;
        self.dropped += other.dropped;
        self.marks.append(&other.marks);
        self.passages.extend_from_slice(&other.passages);
    }
}
