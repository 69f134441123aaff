//! The arrays that a step reads: a batch of one task's examples, packed without padding.

use super::batching::Batching;
use super::dataset::{Dataset, Label};
use super::masking::{Masking, Predictions};
use super::packing::Packing;
use crate::random::Random;

/// The longest sequence and the largest number of sequences in a batch: a place has 16 bits for each.
pub const MAX_SEQUENCE: usize = 1 << 16;

/// Stands for the label of an example that has none. No class has this number, so a loss that reads it fails.
pub const NO_LABEL: u32 = u32::MAX;

/// Examples of one task. Where a backend aligns sequences, the rows between them are dead: id, type, place and key 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// The task's number in the run.
    pub task: usize,
    /// How sequences are laid into rows.
    pub packing: Packing,
    /// Token ids. [tokens]
    pub ids: Vec<u32>,
    /// 0 in the first text, 1 in the second. [tokens]
    pub types: Vec<u32>,
    /// `sequence << 16 | position`. [tokens]
    pub places: Vec<u32>,
    /// The first row of each sequence. [sequences]
    pub starts: Vec<u32>,
    /// The row after the last of each sequence. [sequences]
    pub ends: Vec<u32>,
    /// The place of each sequence's first token. [sequences]
    pub first_places: Vec<u32>,
    /// The same for each row: the key of what is dropped alike from all tokens of a sequence. [tokens]
    pub sequence_keys: Vec<u32>,
    /// The token rows sorted by id, then by row: the embedding gradient sums the rows of an id in this order. [tokens]
    pub order: Vec<u32>,
    /// Where each example's sequences start. [examples + 1]
    pub groups: Vec<u32>,
    /// The class, or the index of the right candidate within its group; else [`NO_LABEL`]. [examples]
    pub labels: Vec<u32>,
    /// The score; else NaN. [examples]
    pub targets: Vec<f32>,
    /// Soft labels, where the task has them. [sequences, outputs]
    pub soft: Vec<f32>,
    /// The tokens that a head reads, where it reads tokens.
    pub marked: Marked,
}

/// Marked tokens of a batch, sequence by sequence in the order of its examples; words that were cut off are not there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Marked {
    /// Their rows. [predictions]
    pub rows: Vec<u32>,
    /// `sequence << 16 | position`. [predictions]
    pub places: Vec<u32>,
    /// The class of each word, the id of a hidden one; [`NO_LABEL`] where it is not known or tokens have none.
    /// [predictions]
    pub classes: Vec<u32>,
    /// Where each example's tokens start, and the end of the last. [examples + 1]
    pub groups: Vec<u32>,
    /// The numbers of a span's first and last token among its example's; else [`NO_LABEL`]. [examples, 2]
    pub spans: Vec<u32>,
}

impl Batch {
    /// An empty batch whose sequences are aligned to lines of `line` rows; 1 packs them tightly.
    pub fn new(line: usize) -> Self {
        Self { packing: Packing::new(line), ..Self::default() }
    }

    /// A batch that can be filled up to `capacity`, which is for the same `line`, without allocating.
    pub fn with_capacity(capacity: Capacity, line: usize) -> Self {
        Self {
            task: 0,
            packing: Packing::new(line),
            ids: Vec::with_capacity(capacity.tokens),
            types: Vec::with_capacity(capacity.tokens),
            places: Vec::with_capacity(capacity.tokens),
            starts: Vec::with_capacity(capacity.sequences),
            ends: Vec::with_capacity(capacity.sequences),
            first_places: Vec::with_capacity(capacity.sequences),
            sequence_keys: Vec::with_capacity(capacity.tokens),
            order: Vec::with_capacity(capacity.tokens),
            groups: Vec::with_capacity(capacity.groups + 1),
            labels: Vec::with_capacity(capacity.groups),
            targets: Vec::with_capacity(capacity.groups),
            marked: Marked {
                rows: Vec::with_capacity(capacity.predictions),
                places: Vec::with_capacity(capacity.predictions),
                classes: Vec::with_capacity(capacity.predictions),
                groups: Vec::with_capacity(capacity.groups + 1),
                spans: Vec::with_capacity(2 * capacity.groups),
            },
            soft: Vec::with_capacity(capacity.soft),
        }
    }

    /// The number of token rows, dead ones included.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// The number of tokens: the rows that are not dead.
    pub fn live_tokens(&self) -> usize {
        self.starts.iter().zip(&self.ends).map(|(start, end)| (end - start) as usize).sum()
    }

    /// The number of sequences.
    pub fn sequences(&self) -> usize {
        self.starts.len()
    }

    /// The number of examples.
    pub fn examples(&self) -> usize {
        self.labels.len()
    }

    /// Replaces the contents by `examples` of `dataset`, in this order; `task` is left as it is.
    ///
    /// # Panics
    /// If an example is not in the set or the batch would have more than [`MAX_SEQUENCE`] sequences.
    pub fn fill(&mut self, dataset: &Dataset, examples: &[u32]) {
        self.clear();
        self.groups.push(0);
        // The lengths stand where the ends will.
        let sequences = || examples.iter().flat_map(|&example| dataset.sequences_of(example as usize));
        self.ends.extend(sequences().map(|sequence| dataset.sequence(sequence).len() as u32));
        assert!(self.ends.len() <= MAX_SEQUENCE, "a batch of more than {MAX_SEQUENCE} sequences");
        let rows = self.packing.place(&self.ends, &mut self.starts);
        for row in [&mut self.ids, &mut self.types, &mut self.places, &mut self.sequence_keys] {
            row.resize(rows, 0);
        }
        for (number, sequence) in sequences().enumerate() {
            self.put(number, dataset.sequence(sequence), dataset.second[sequence]);
        }
        let width = dataset.soft_width();
        for sequence in sequences() {
            self.soft.extend_from_slice(&dataset.soft[sequence * width..(sequence + 1) * width]);
        }
        for &example in examples {
            let example = example as usize;
            let before = self.groups[self.groups.len() - 1];
            self.groups.push(before + dataset.sequences_of(example).len() as u32);
            let (label, target) = match dataset.labels[example] {
                Label::Class(class) => (class, f32::NAN),
                Label::Score(score) => (NO_LABEL, score),
                Label::Positive(index) => (index, f32::NAN),
                Label::None | Label::Tags | Label::Answers | Label::Span { .. } => (NO_LABEL, f32::NAN),
            };
            self.labels.push(label);
            self.targets.push(target);
        }
        self.mark(dataset, examples);
        self.order.extend(0..self.ids.len() as u32);
        self.sort();
    }

    /// Hides tokens of a batch without marks whose examples are one sequence each, and marks them: what stood there is
    /// their class. `predictions` is for its memory.
    ///
    /// # Panics
    /// If an example has several sequences.
    pub fn hide(&mut self, masking: &Masking, random: &mut Random, predictions: &mut Predictions) {
        assert_eq!(self.examples(), self.sequences(), "an example of several sequences");
        let Marked { rows, places, classes, groups, .. } = &mut self.marked;
        for sequence in 0..self.starts.len() {
            let (start, end) = (self.starts[sequence], self.ends[sequence]);
            let of_sequence = start as usize..end as usize;
            let second = self.types[of_sequence.clone()].partition_point(|&kind| kind == 0) as u32;
            masking.hide(random, &mut self.ids[of_sequence], second, predictions);
            for hidden in &predictions.chosen {
                rows.push(start + hidden.position);
                places.push((sequence as u32) << 16 | hidden.position);
                classes.push(hidden.id);
            }
            groups[sequence + 1] = rows.len() as u32;
        }
        self.sort();
    }

    fn sort(&mut self) {
        let ids = &self.ids;
        self.order.sort_unstable_by_key(|&row| (ids[row as usize], row));
    }

    /// Writes what is marked in `examples`, whose sequences have their rows.
    fn mark(&mut self, dataset: &Dataset, examples: &[u32]) {
        let Marked { rows, places, classes, groups, spans } = &mut self.marked;
        groups.push(0);
        for (number, &example) in examples.iter().enumerate() {
            let example = example as usize;
            let first = self.groups[number];
            for (sequence, of_set) in (first..).zip(dataset.sequences_of(example)) {
                let marks = &dataset.marks;
                for mark in marks.of(of_set).filter(|&mark| marks.is_read(mark)) {
                    rows.push(self.starts[sequence as usize] + marks.positions[mark]);
                    places.push(sequence << 16 | marks.positions[mark]);
                    classes.push(marks.classes.get(mark).copied().unwrap_or(NO_LABEL));
                }
            }
            groups.push(rows.len() as u32);
            spans.extend(match dataset.labels[example] {
                Label::Span { first, last } => [first, last],
                _ => [NO_LABEL; 2],
            });
        }
    }

    fn clear(&mut self) {
        self.ids.clear();
        self.types.clear();
        self.places.clear();
        self.starts.clear();
        self.ends.clear();
        self.first_places.clear();
        self.sequence_keys.clear();
        self.order.clear();
        self.groups.clear();
        self.labels.clear();
        self.targets.clear();
        let Marked { rows, places, classes, groups, spans } = &mut self.marked;
        [rows, places, classes, groups, spans].into_iter().for_each(Vec::clear);
        self.soft.clear();
    }

    /// Writes a sequence to its rows.
    fn put(&mut self, sequence: usize, ids: &[u32], second: u32) {
        let start = self.starts[sequence] as usize;
        let rows = start..start + ids.len();
        let first_place = (sequence as u32) << 16;
        self.ids[rows.clone()].copy_from_slice(ids);
        self.sequence_keys[rows.clone()].fill(first_place);
        let both = self.types[rows.clone()].iter_mut().zip(&mut self.places[rows.clone()]);
        for (position, (kind, place)) in (0u32..).zip(both) {
            *kind = u32::from(position >= second);
            *place = first_place | position;
        }
        self.ends[sequence] = rows.end as u32;
        self.first_places.push(first_place);
    }
}

/// The largest that a batch can get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Capacity {
    /// Token rows.
    pub tokens: usize,
    /// Sequences.
    pub sequences: usize,
    /// Examples.
    pub groups: usize,
    /// Marked tokens.
    pub predictions: usize,
    /// Numbers of soft labels.
    pub soft: usize,
}

impl Capacity {
    /// What holds any batch that `batching` makes of `dataset`, in lines of `line` rows.
    pub fn of(dataset: &Dataset, batching: &Batching, line: usize) -> Self {
        let size = if batching.examples == 0 { dataset.len() } else { batching.examples };
        let tokens = Counts::of((0..dataset.len()).map(|example| dataset.tokens_of(example)));
        let sequences = Counts::of((0..dataset.len()).map(|example| dataset.sequences_of(example).len()));
        let mut capacity = Self {
            tokens: tokens.of_largest(size),
            sequences: sequences.of_largest(size).min(MAX_SEQUENCE),
            groups: size.min(dataset.len()),
            predictions: Counts::of((0..dataset.len()).map(|e| dataset.marked_of(e))).of_largest(size),
            soft: 0,
        };
        if batching.tokens > 0 {
            // A batch is an example by itself, or keeps to the limit.
            let lengths = Counts::of((0..dataset.sequences()).map(|number| dataset.sequence(number).len()));
            let fitting = lengths.fitting(batching.tokens).max(sequences.of_largest(1));
            capacity.tokens = capacity.tokens.min(batching.tokens.max(tokens.of_largest(1)));
            capacity.sequences = capacity.sequences.min(fitting);
            capacity.groups = capacity.groups.min(tokens.fitting(batching.tokens).max(1));
            capacity.predictions = capacity.predictions.min(capacity.tokens);
        }
        let Self { tokens, sequences, .. } = capacity;
        let soft = sequences * dataset.soft_width();
        Self { soft, tokens: Packing::new(line).most_rows(tokens, sequences, dataset.longest()), ..capacity }
    }

    /// The least that holds whatever `self` or `other` holds.
    pub fn max(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.max(other.tokens),
            sequences: self.sequences.max(other.sequences),
            groups: self.groups.max(other.groups),
            predictions: self.predictions.max(other.predictions),
            soft: self.soft.max(other.soft),
        }
    }
}

/// Numbers, the largest first.
struct Counts(Vec<usize>);

impl Counts {
    fn of(counts: impl Iterator<Item = usize>) -> Self {
        let mut counts: Vec<usize> = counts.collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        Self(counts)
    }

    fn of_largest(&self, size: usize) -> usize {
        self.0.iter().take(size).sum()
    }

    /// How many there can be whose sum is no more than `most`.
    fn fitting(&self, most: usize) -> usize {
        let mut left = most;
        let fits = |&&count: &&usize| left.checked_sub(count).inspect(|&rest| left = rest).is_some();
        self.0.iter().rev().take_while(fits).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pairs and a query with three candidates.
    fn dataset() -> Dataset {
        let mut dataset = Dataset::new();
        dataset.push_sequence(&[2, 9, 3, 8, 3], 3);
        dataset.finish_example(Label::Class(1));
        dataset.push_sequence(&[2, 7, 3], 3);
        dataset.finish_example(Label::Score(2.5));
        for candidate in [4, 5, 6] {
            dataset.push_sequence(&[2, 9, 3, candidate, 3], 3);
        }
        dataset.finish_example(Label::Positive(2));
        dataset
    }

    #[test]
    fn packs_tokens_types_places_and_groups() {
        let mut batch = Batch::default();
        batch.fill(&dataset(), &[1, 0]);
        assert_eq!(batch.ids, [2, 7, 3, 2, 9, 3, 8, 3]);
        assert_eq!(batch.types, [0, 0, 0, 0, 0, 0, 1, 1]);
        let second = 1 << 16;
        assert_eq!(batch.places, [0, 1, 2, second, second + 1, second + 2, second + 3, second + 4]);
        assert_eq!((batch.starts, batch.ends), (vec![0, 3], vec![3, 8]));
        assert_eq!(batch.first_places, [0, second]);
        assert_eq!(batch.sequence_keys, [0, 0, 0, second, second, second, second, second]);
        assert_eq!(batch.order, [0, 3, 2, 5, 7, 1, 6, 4]);
        assert_eq!(batch.groups, [0, 1, 2]);
        assert_eq!(batch.labels, [NO_LABEL, 1]);
        assert_eq!(batch.targets[0], 2.5);
        assert!(batch.targets[1].is_nan());
    }

    #[test]
    fn soft_labels_follow_their_sequences() {
        let mut dataset = dataset();
        dataset.soft = (0..10).map(|i| i as f32).collect();
        let mut batch = Batch::default();
        batch.fill(&dataset, &[2, 0]);
        assert_eq!(batch.soft, [4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 0.0, 1.0]);
        assert_eq!(Capacity::of(&dataset, &Batching::of(2), 1).soft, 8);
        batch.fill(&dataset, &[1]);
        assert_eq!(batch.soft, [2.0, 3.0]);
    }

    #[test]
    fn aligned_sequences_leave_dead_rows_between_them() {
        let mut batch = Batch::new(8);
        batch.fill(&dataset(), &[1, 0]);
        let second = 1 << 16;
        assert_eq!((&batch.starts[..], &batch.ends[..]), (&[5, 0][..], &[8, 5][..]));
        assert_eq!(batch.ids, [2, 9, 3, 8, 3, 2, 7, 3]);
        assert_eq!(batch.places, [second, second + 1, second + 2, second + 3, second + 4, 0, 1, 2]);
        let mut batch = Batch::new(6);
        batch.fill(&dataset(), &[1, 0]);
        assert_eq!((&batch.starts[..], &batch.ends[..]), (&[6, 0][..], &[9, 5][..]));
        assert_eq!(batch.ids, [2, 9, 3, 8, 3, 0, 2, 7, 3, 0, 0, 0]);
        assert_eq!((batch.places[5], batch.types[5], batch.places[11]), (0, 0, 0));
        assert_eq!(batch.order.len(), 12);
    }

    #[test]
    fn refilling_leaves_nothing_of_the_last_batch() {
        let (mut batch, mut fresh) = (Batch::default(), Batch::default());
        batch.fill(&dataset(), &[0, 1, 2]);
        batch.fill(&dataset(), &[2]);
        fresh.fill(&dataset(), &[2]);
        assert_eq!((&batch.ids, &batch.order, &batch.groups), (&fresh.ids, &fresh.order, &fresh.groups));
        assert_eq!(batch.groups, [0, 3]);
        assert_eq!(batch.labels, [2]);
        assert_eq!(batch.sequences(), 3);
    }

    #[test]
    fn capacity_is_the_largest_that_any_examples_need() {
        let dataset = dataset();
        let capacity = Capacity::of(&dataset, &Batching::of(2), 1);
        assert_eq!(capacity, Capacity { tokens: 20, sequences: 4, groups: 2, predictions: 0, soft: 0 });
        let mut batch = Batch::with_capacity(capacity, 1);
        let before = batch.ids.as_ptr();
        for pair in [[0, 1], [1, 2], [2, 0]] {
            batch.fill(&dataset, &pair);
            assert!(batch.tokens() <= capacity.tokens && batch.sequences() <= capacity.sequences);
        }
        assert_eq!(batch.ids.as_ptr(), before, "the buffer moved");
        assert_eq!(Capacity::of(&dataset, &Batching::of(99), 1).groups, 3);
    }

    #[test]
    fn a_limit_of_tokens_bounds_the_capacity() {
        let dataset = dataset();
        // The examples have 5, 3 and 15 tokens, the last in three sequences of 5.
        for (limits, tokens, sequences, groups) in [
            ((0, 8), 15, 3, 2),
            ((0, 7), 15, 3, 1),
            ((0, 1), 15, 3, 1),
            ((0, 18), 18, 4, 2),
            ((0, 99), 23, 5, 3),
            ((1, 18), 15, 3, 1),
        ] {
            let batching = Batching { examples: limits.0, tokens: limits.1, bucket: 0 };
            let expected = Capacity { tokens, sequences, groups, predictions: 0, soft: 0 };
            assert_eq!(Capacity::of(&dataset, &batching, 1), expected, "{limits:?}");
        }
    }
}
