//! Which rows make a sequence.

use std::ops::Range;

/// The rows of each sequence of a batch. Rows of none are dead: a backend that aligns sequences leaves such.
#[derive(Clone, Copy, Debug)]
pub struct Bounds<'a> {
    /// The first row of each sequence, `[sequences]`.
    pub starts: &'a [u32],
    /// The row after the last of each, `[sequences]`.
    pub ends: &'a [u32],
}

impl<'a> Bounds<'a> {
    /// How many sequences there are.
    pub fn count(&self) -> usize {
        assert_eq!(self.starts.len(), self.ends.len(), "starts and ends of sequences");
        self.starts.len()
    }

    /// The rows of a sequence.
    pub fn rows(&self, sequence: usize) -> Range<usize> {
        self.starts[sequence] as usize..self.ends[sequence] as usize
    }

    /// The rows of every sequence in turn.
    pub fn iter(self) -> impl Iterator<Item = Range<usize>> + Clone + use<'a> {
        (0..self.count()).map(move |sequence| self.rows(sequence))
    }
}
