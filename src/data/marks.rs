//! The tokens that a head reads, where it does not read the pooled vector.

use std::ops::Range;

use super::batch::NO_LABEL;
use super::dataset::{Dataset, Label};
use super::masking::Prediction;
use super::task::{TaskKind, TaskSpec};

/// Stands for the position of a word that was cut off: it is not read, and counts as answered wrongly.
const CUT: u32 = u32::MAX;

/// Positions within the sequences of a set, flat: sequence `s` has `of(s)`. A set of other tasks has none.
///
/// For labelling a mark is a word's first token and has a class; for spans it is a token that may begin or end an
/// answer (`[CLS]` first where there may be none) and has its place in the text, unless it is only trained on. For masked
/// words it is a hidden token, and its class the id that stood there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Marks {
    /// Where each sequence's marks start, and the end of the last; empty if there are none. [sequences + 1]
    pub offsets: Vec<u32>,
    /// The token's position in its sequence. [marks]
    pub positions: Vec<u32>,
    /// The word's class, [`NO_LABEL`] where it is not known. [marks], or none
    pub classes: Vec<u32>,
    /// The bytes of the text that the token stands for, from and to. [marks], or none
    pub places: Vec<[u32; 2]>,
}

impl Marks {
    /// The number of marks.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// The marks of a sequence; none in a set without marks.
    pub fn of(&self, sequence: usize) -> Range<usize> {
        match self.offsets.get(sequence..sequence + 2) {
            Some(ends) => ends[0] as usize..ends[1] as usize,
            None => 0..0,
        }
    }

    /// Whether the token is there, and not cut off.
    pub fn is_read(&self, mark: usize) -> bool {
        self.positions[mark] != CUT
    }

    /// Marks the words of the next sequence, each by its first token; those at `length` and behind it are cut off.
    ///
    /// # Panics
    /// If there are more tags than words.
    pub fn push_words(&mut self, firsts: &[u32], length: u32, tags: &[u32]) {
        let kept = firsts.iter().map(|&first| if first < length { first } else { CUT });
        self.positions.extend(kept);
        let unknown = firsts.len() - tags.len();
        self.classes.extend(tags.iter().copied().chain(std::iter::repeat_n(NO_LABEL, unknown)));
        self.finish();
    }

    /// Marks tokens of the next sequence by position, with their places in the text unless it is only trained on.
    pub fn push_candidates(&mut self, candidates: impl Iterator<Item = (u32, Option<[u32; 2]>)>) {
        for (position, place) in candidates {
            self.positions.push(position);
            self.places.extend(place);
        }
        self.finish();
    }

    /// Marks the hidden tokens of the next sequence.
    pub fn push_hidden(&mut self, hidden: &[Prediction]) {
        self.positions.extend(hidden.iter().map(|token| token.position));
        self.classes.extend(hidden.iter().map(|token| token.id));
        self.finish();
    }

    /// Appends the marks of a sequence of another set.
    pub(super) fn push(&mut self, other: &Marks, sequence: usize) {
        if other.offsets.is_empty() {
            return;
        }
        let marks = other.of(sequence);
        self.positions.extend_from_slice(&other.positions[marks.clone()]);
        self.classes.extend(other.classes.get(marks.clone()).into_iter().flatten());
        self.places.extend(other.places.get(marks).into_iter().flatten());
        self.finish();
    }

    fn finish(&mut self) {
        if self.offsets.is_empty() {
            self.offsets.push(0);
        }
        self.offsets.push(u32::try_from(self.positions.len()).expect("fewer than 2^32 marks"));
    }

    pub(super) fn append(&mut self, other: &Marks) {
        let before = self.positions.len() as u32;
        if self.offsets.is_empty() {
            self.offsets.extend(other.offsets.first());
        }
        self.offsets.extend(other.offsets.iter().skip(1).map(|offset| before + offset));
        self.positions.extend_from_slice(&other.positions);
        self.classes.extend_from_slice(&other.classes);
        self.places.extend_from_slice(&other.places);
    }
}

/// Whether marks and passages fit the sequences and what the task reads of them.
pub(super) fn check(dataset: &Dataset, spec: &TaskSpec) -> Result<(), String> {
    let Dataset { marks, passages, labels, .. } = dataset;
    let answered = spec.kind == TaskKind::Span && !matches!(labels[0], Label::Span { .. });
    let counts = match spec.kind {
        TaskKind::Labelling => (dataset.sequences(), marks.len(), 0, 0),
        TaskKind::Span if answered => (dataset.sequences(), 0, marks.len(), labels.len()),
        TaskKind::Span => (dataset.sequences(), 0, 0, 0),
        _ => (0, 0, 0, 0),
    };
    let found = marks.offsets.len().saturating_sub(1);
    if (found, marks.classes.len(), marks.places.len(), passages.len()) != counts {
        return Err("its marks are not those of the kind of task".to_string());
    }
    let ascend = marks.offsets.windows(2).all(|pair| pair[0] < pair[1]);
    let ends = (marks.offsets.first().copied(), marks.offsets.last().copied());
    let covers = if found == 0 { marks.is_empty() } else { ends == (Some(0), Some(marks.len() as u32)) };
    if !ascend || !covers {
        return Err("its marks do not cover its sequences".to_string());
    }
    let inside = |sequence: usize| {
        let length = dataset.sequence(sequence).len();
        let read = marks.of(sequence).filter(|&mark| marks.is_read(mark));
        let positions: Vec<usize> = read.map(|mark| marks.positions[mark] as usize).collect();
        positions.is_sorted_by(|a, b| a < b) && positions.last().is_some_and(|&last| last < length)
    };
    let known = |&class: &u32| class == NO_LABEL || (class as usize) < spec.labels.len();
    if !(0..found).all(inside) || !marks.classes.iter().all(known) {
        return Err("a mark is outside of its sequence, or its class none of the task's".to_string());
    }
    let within = |example: usize| {
        let context = &passages[example].context;
        dataset.sequences_of(example).map(|sequence| &marks.places[marks.of(sequence)]).all(|places| {
            let in_text = |place: &[u32; 2]| context.get(place[0] as usize..place[1] as usize).is_some();
            places.is_sorted() && places.iter().all(in_text)
        })
    };
    if answered && !(0..labels.len()).all(within) {
        return Err("a token is no part of its text".to_string());
    }
    Ok(())
}
