//! The arrays that a step reads: a batch of one task's examples, packed without padding.

use super::dataset::{Dataset, Label};

/// The longest sequence and the largest number of sequences in a batch: a place has 16 bits for each.
pub const MAX_SEQUENCE: usize = 1 << 16;

/// Stands for the label of an example that has none. No class has this number, so a loss that reads it fails.
pub const NO_LABEL: u32 = u32::MAX;

/// Examples of one task, all their tokens one after another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// The task's number in the run.
    pub task: usize,
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
    /// The token rows sorted by id, then by row: the embedding gradient sums the rows of an id in this order. [tokens]
    pub order: Vec<u32>,
    /// Where each example's sequences start. [examples + 1]
    pub groups: Vec<u32>,
    /// The class, or the index of the right candidate within its group; else [`NO_LABEL`]. [examples]
    pub labels: Vec<u32>,
    /// The score; else NaN. [examples]
    pub targets: Vec<f32>,
}

impl Batch {
    /// A batch that can be filled up to `capacity` without allocating.
    pub fn with_capacity(capacity: Capacity) -> Self {
        Self {
            task: 0,
            ids: Vec::with_capacity(capacity.tokens),
            types: Vec::with_capacity(capacity.tokens),
            places: Vec::with_capacity(capacity.tokens),
            starts: Vec::with_capacity(capacity.sequences),
            ends: Vec::with_capacity(capacity.sequences),
            first_places: Vec::with_capacity(capacity.sequences),
            order: Vec::with_capacity(capacity.tokens),
            groups: Vec::with_capacity(capacity.groups + 1),
            labels: Vec::with_capacity(capacity.groups),
            targets: Vec::with_capacity(capacity.groups),
        }
    }

    /// The number of token rows.
    pub fn tokens(&self) -> usize {
        self.ids.len()
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
        for &example in examples {
            let example = example as usize;
            for sequence in dataset.sequences_of(example) {
                self.push(dataset.sequence(sequence), dataset.second[sequence]);
            }
            self.groups.push(self.starts.len() as u32);
            let (label, target) = match dataset.labels[example] {
                Label::Class(class) => (class, f32::NAN),
                Label::Score(score) => (NO_LABEL, score),
                Label::Positive(index) => (index, f32::NAN),
                Label::None => (NO_LABEL, f32::NAN),
            };
            self.labels.push(label);
            self.targets.push(target);
        }
        self.order.extend(0..self.ids.len() as u32);
        let ids = &self.ids;
        self.order.sort_unstable_by_key(|&row| (ids[row as usize], row));
    }

    fn clear(&mut self) {
        self.ids.clear();
        self.types.clear();
        self.places.clear();
        self.starts.clear();
        self.ends.clear();
        self.first_places.clear();
        self.order.clear();
        self.groups.clear();
        self.labels.clear();
        self.targets.clear();
    }

    fn push(&mut self, ids: &[u32], second: u32) {
        let sequence = self.starts.len();
        assert!(sequence < MAX_SEQUENCE, "a batch of more than {MAX_SEQUENCE} sequences");
        let length = ids.len() as u32;
        self.starts.push(self.ids.len() as u32);
        self.ids.extend_from_slice(ids);
        self.types.extend((0..length).map(|position| u32::from(position >= second)));
        self.places.extend((0..length).map(|position| (sequence as u32) << 16 | position));
        self.ends.push(self.ids.len() as u32);
        self.first_places.push((sequence as u32) << 16);
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
}

impl Capacity {
    /// The least that holds any `size` examples of `dataset`: the sum of its `size` longest ones.
    pub fn of(dataset: &Dataset, size: usize) -> Self {
        let sum_of_largest = |mut counts: Vec<usize>| {
            counts.sort_unstable_by(|a, b| b.cmp(a));
            counts.iter().take(size).sum()
        };
        Self {
            tokens: sum_of_largest((0..dataset.len()).map(|example| dataset.tokens_of(example)).collect()),
            sequences: sum_of_largest(
                (0..dataset.len()).map(|example| dataset.sequences_of(example).len()).collect(),
            ),
            groups: size.min(dataset.len()),
        }
    }

    /// The least that holds whatever `self` or `other` holds.
    pub fn max(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.max(other.tokens),
            sequences: self.sequences.max(other.sequences),
            groups: self.groups.max(other.groups),
        }
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
        assert_eq!(batch.order, [0, 3, 2, 5, 7, 1, 6, 4]);
        assert_eq!(batch.groups, [0, 1, 2]);
        assert_eq!(batch.labels, [NO_LABEL, 1]);
        assert_eq!(batch.targets[0], 2.5);
        assert!(batch.targets[1].is_nan());
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
        let capacity = Capacity::of(&dataset, 2);
        assert_eq!(capacity, Capacity { tokens: 20, sequences: 4, groups: 2 });
        let mut batch = Batch::with_capacity(capacity);
        let before = batch.ids.as_ptr();
        for pair in [[0, 1], [1, 2], [2, 0]] {
            batch.fill(&dataset, &pair);
            assert!(batch.tokens() <= capacity.tokens && batch.sequences() <= capacity.sequences);
        }
        assert_eq!(batch.ids.as_ptr(), before, "the buffer moved");
        assert_eq!(Capacity::of(&dataset, 99).groups, 3);
    }
}
