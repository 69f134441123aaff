//! The tokens that a head reads, where it does not read the pooled vector.

use std::ops::Range;

use super::batch::NO_LABEL;

/// Stands for the position of a word that was cut off: it is not read, and counts as answered wrongly.
const CUT: u32 = u32::MAX;

/// Positions within the sequences of a set, flat: sequence `s` has `of(s)`. A set of other tasks has none.
///
/// For labelling a mark is a word's first token and has a class; for spans it is a token that may begin or end an
/// answer (`[CLS]` first where there may be none) and has its place in the text, unless it is only trained on.
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
