//! How one task's examples are cut into batches.

use std::cmp::Reverse;
use std::ops::Range;

use super::batch::MAX_SEQUENCE;
use super::dataset::Dataset;
use crate::random::Random;

/// What the orders are for: keeps the streams of [`Random`] apart.
const EXAMPLES: u32 = 0x5341_0000;
const BUCKETED: u32 = 0x5344_0000;

/// How large a task's batches may get, and whether examples of like length share one.
///
/// With a `bucket`, the shuffled examples are taken that many at a time and sorted by their number of tokens, rising in
/// one bucket and falling in the next, so that a batch across two buckets is of like length, too; then they are cut, and
/// the batches are shuffled. Each example is in one batch of a pass, and in how many batches does not depend on the
/// bucket unless there is a limit of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// Examples at most; 0 for no such limit.
    pub examples: usize,
    /// Tokens at most, unless a single example has more; 0 for no such limit.
    pub tokens: usize,
    /// Examples that are sorted by length together; 0 to sort none.
    pub bucket: usize,
}

/// One pass over a task's examples: their order, and the part of it that each batch is.
pub(super) struct Pass {
    pub(super) order: Vec<u32>,
    pub(super) batches: Vec<Range<usize>>,
}

impl Batching {
    /// Batches of so many examples.
    pub fn of(examples: usize) -> Self {
        Self { examples, tokens: 0, bucket: 0 }
    }

    /// The parts of `order` that make batches: each as large as the limits allow, and of one example at least.
    pub fn cut(&self, dataset: &Dataset, order: &[u32]) -> Vec<Range<usize>> {
        let limit = |most: usize| if most == 0 { usize::MAX } else { most };
        let (most_examples, most_tokens) = (limit(self.examples), limit(self.tokens));
        let mut batches = Vec::new();
        let (mut start, mut tokens, mut sequences) = (0, 0, 0);
        for (index, &example) in order.iter().enumerate() {
            let more = dataset.tokens_of(example as usize);
            let more_sequences = dataset.sequences_of(example as usize).len();
            let full = index - start == most_examples
                || more > most_tokens.saturating_sub(tokens)
                || sequences + more_sequences > MAX_SEQUENCE;
            if full && index > start {
                batches.push(start..index);
                (start, tokens, sequences) = (index, 0, 0);
            }
            tokens += more;
            sequences += more_sequences;
        }
        if start < order.len() {
            batches.push(start..order.len());
        }
        batches
    }

    /// A pass over `dataset`: a function of the seed, the task and the number of the pass alone.
    pub(super) fn pass(&self, dataset: &Dataset, seed: u64, task: usize, number: u32) -> Pass {
        let mut order: Vec<u32> = (0..dataset.len() as u32).collect();
        Random::new(seed, [number, EXAMPLES | task as u32]).shuffle(&mut order);
        if self.bucket == 0 {
            let batches = self.cut(dataset, &order);
            return Pass { order, batches };
        }
        for (number, bucket) in order.chunks_mut(self.bucket).enumerate() {
            // Stable sorts: examples of one length stay shuffled.
            match number % 2 {
                0 => bucket.sort_by_key(|&example| dataset.tokens_of(example as usize)),
                _ => bucket.sort_by_key(|&example| Reverse(dataset.tokens_of(example as usize))),
            }
        }
        let mut batches = self.cut(dataset, &order);
        Random::new(seed, [number, BUCKETED | task as u32]).shuffle(&mut batches);
        Pass { order, batches }
    }

    /// The number of batches of a pass where all have the same.
    pub(super) fn batches_of_any_pass(&self, dataset: &Dataset) -> Option<usize> {
        let most = (0..dataset.len()).map(|example| dataset.sequences_of(example).len()).max().unwrap_or(0);
        let by_number = self.tokens == 0 && self.examples > 0 && self.examples * most <= MAX_SEQUENCE;
        by_number.then(|| dataset.len().div_ceil(self.examples))
    }
}

/// Every example of `dataset` once, for evaluation: those of like length together, the longest first, as many to a
/// batch as fit into `tokens` (a single example may exceed it). The numbers are the examples' places in the file.
pub fn evaluation_batches(dataset: &Dataset, tokens: usize) -> Vec<Vec<u32>> {
    let mut order: Vec<u32> = (0..dataset.len() as u32).collect();
    // A stable sort: examples of one length stay in the file's order.
    order.sort_by_key(|&example| Reverse(dataset.tokens_of(example as usize)));
    let batches = Batching { examples: 0, tokens, bucket: 0 }.cut(dataset, &order);
    batches.into_iter().map(|batch| order[batch].to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::Label;
    use crate::data::{Batch, Capacity};
    use proptest::prelude::*;

    /// An example of each list of sequences' lengths.
    fn dataset<'a>(examples: impl IntoIterator<Item = &'a [usize]>) -> Dataset {
        let mut dataset = Dataset::new();
        for lengths in examples {
            lengths.iter().for_each(|&length| dataset.push_sequence(&vec![1; length], length as u32));
            dataset.finish_example(Label::None);
        }
        dataset
    }

    fn singles(lengths: &[usize]) -> Dataset {
        dataset(lengths.chunks(1))
    }

    #[test]
    fn evaluation_sorts_by_length_under_a_budget() {
        let dataset = singles(&[3, 9, 4, 20, 3, 5]);
        assert_eq!(evaluation_batches(&dataset, 12), [vec![3], vec![1], vec![5, 2, 0], vec![4]]);
        assert_eq!(evaluation_batches(&Dataset::new(), 12), Vec::<Vec<u32>>::new());
    }

    #[test]
    fn batches_are_as_large_as_both_limits_allow() {
        let dataset = singles(&[3, 9, 4, 20, 3, 5]);
        let cut =
            |examples, tokens| Batching { examples, tokens, bucket: 0 }.cut(&dataset, &[0, 1, 2, 3, 4, 5]);
        assert_eq!(cut(4, 0), [0..4, 4..6]);
        assert_eq!(cut(0, 12), [0..2, 2..3, 3..4, 4..6], "what exceeds the budget is a batch by itself");
        assert_eq!(cut(0, 13), [0..2, 2..3, 3..4, 4..6]);
        assert_eq!(cut(0, 16), [0..3, 3..4, 4..6]);
        assert_eq!(cut(2, 16), [0..2, 2..3, 3..4, 4..6]);
        assert_eq!(cut(0, 1000).len(), 1);
        let nothing = Batching::of(4).cut(&Dataset::new(), &[]);
        assert!(nothing.is_empty());
    }

    #[test]
    fn a_batch_has_no_more_sequences_than_places_have_bits() {
        let dataset = dataset(std::iter::repeat_n(&[1; 30_000][..], 5));
        let batching = Batching { examples: 0, tokens: 1_000_000, bucket: 0 };
        assert_eq!(batching.cut(&dataset, &[0, 1, 2, 3, 4]), [0..2, 2..4, 4..5]);
        assert_eq!(Batching::of(4).batches_of_any_pass(&dataset), None);
        assert_eq!(Batching::of(2).batches_of_any_pass(&dataset), Some(3));
    }

    /// The mean over batches of the longest sequence less the mean one.
    fn unevenness(dataset: &Dataset, pass: &Pass) -> f64 {
        let spread = |batch: &Range<usize>| {
            let lengths: Vec<f64> =
                pass.order[batch.clone()].iter().map(|&e| dataset.tokens_of(e as usize) as f64).collect();
            lengths.iter().fold(0.0, |a: f64, &b| a.max(b))
                - lengths.iter().sum::<f64>() / lengths.len() as f64
        };
        pass.batches.iter().map(spread).sum::<f64>() / pass.batches.len() as f64
    }

    #[test]
    fn buckets_hold_examples_of_like_length_in_no_order() {
        let mut random = Random::new(5, [0, 0]);
        let lengths: Vec<usize> = (0..640).map(|_| 4 + random.below(100) as usize).collect();
        let dataset = singles(&lengths);
        let plain = Batching::of(8);
        let bucketed = Batching { bucket: 160, ..plain };
        let (shuffled, sorted) = (plain.pass(&dataset, 1, 0, 0), bucketed.pass(&dataset, 1, 0, 0));
        assert_eq!((shuffled.batches.len(), sorted.batches.len()), (80, 80), "all batches are full");
        // Of 8 random lengths below 100 the longest is some 39 above the mean; of 20 batches cut from a sorted bucket,
        // each spans 5.
        let (loose, tight) = (unevenness(&dataset, &shuffled), unevenness(&dataset, &sorted));
        assert!(loose > 30.0 && tight < 5.0, "{loose} without buckets, {tight} with them");
        // Their lengths neither rise nor fall: a batch is longer than the one before as often as not.
        let mean = |batch: &Range<usize>| {
            sorted.order[batch.clone()].iter().map(|&e| dataset.tokens_of(e as usize)).sum::<usize>()
        };
        let rises = sorted.batches.windows(2).filter(|pair| mean(&pair[0]) < mean(&pair[1])).count();
        assert!((25..=54).contains(&rises), "{rises} rises in 79");
        assert_ne!(sorted.order, bucketed.pass(&dataset, 1, 0, 1).order, "passes differ");
        assert_ne!(sorted.order, bucketed.pass(&dataset, 2, 0, 0).order, "seeds differ");
    }

    proptest! {
        #[test]
        fn a_pass_draws_every_example_once_within_what_is_planned(
            examples in prop::collection::vec(prop::collection::vec(1_usize..40, 1..4), 1..60),
            size in 0_usize..12,
            budget in 0_usize..120,
            bucket in 0_usize..30,
            line in 1_usize..64,
            number in 0_u32..3,
        ) {
            prop_assume!(size > 0 || budget > 0);
            let dataset = dataset(examples.iter().map(Vec::as_slice));
            let batching = Batching { examples: size, tokens: budget, bucket };
            let pass = batching.pass(&dataset, 7, 3, number);
            let mut seen: Vec<u32> =
                pass.batches.iter().flat_map(|batch| pass.order[batch.clone()].iter().copied()).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..dataset.len() as u32).collect::<Vec<_>>());
            if let Some(batches) = batching.batches_of_any_pass(&dataset) {
                prop_assert_eq!(pass.batches.len(), batches);
            }
            let capacity = Capacity::of(&dataset, &batching, line);
            let mut batch = Batch::new(line);
            for range in &pass.batches {
                batch.fill(&dataset, &pass.order[range.clone()]);
                prop_assert!(size == 0 || batch.examples() <= size);
                prop_assert!(budget == 0 || batch.live_tokens() <= budget || batch.examples() == 1);
                prop_assert!(batch.tokens() <= capacity.tokens, "{} of {:?}", batch.tokens(), capacity);
                prop_assert!(batch.sequences() <= capacity.sequences);
                prop_assert!(batch.examples() <= capacity.groups);
            }
        }
    }
}
