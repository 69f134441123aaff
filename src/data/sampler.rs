//! Which examples go into which batch, and in what order.

use std::ops::Range;

use super::batch::MAX_SEQUENCE;
use super::dataset::Dataset;
use crate::random::Random;

/// What an order is for: keeps the streams of [`Random`] apart.
const EXAMPLES: u32 = 0x5341_0000;
const BATCHES: u32 = 0x5342_0000;

/// MT-DNN's Algorithm 1 (Liu et al. 2019, arXiv 1901.11504): in every epoch each task's examples are cut into
/// batches, and the batches of all tasks are shuffled together, so that a task is drawn in proportion to its size.
/// The examples are reshuffled before they are cut, in every epoch.
#[derive(Clone, Debug)]
pub struct Sampler {
    seed: u64,
    batch_size: usize,
    sizes: Vec<usize>,
}

impl Sampler {
    /// Batches of `batch_size` examples, the last of a task possibly fewer, from tasks with `sizes` examples.
    ///
    /// # Panics
    /// If `batch_size` is 0.
    pub fn new(seed: u64, batch_size: usize, sizes: Vec<usize>) -> Self {
        assert!(batch_size > 0, "a batch of no examples");
        Self { seed, batch_size, sizes }
    }

    /// The number of batches in an epoch, the same in each.
    pub fn batches(&self) -> usize {
        self.sizes.iter().map(|size| size.div_ceil(self.batch_size)).sum()
    }

    /// The number of batches of each task in an epoch.
    pub fn batches_of(&self, task: usize) -> usize {
        self.sizes[task].div_ceil(self.batch_size)
    }

    /// The batches of an epoch: a function of the seed and the epoch alone. An interrupted run goes on exactly from
    /// `(epoch, index of the next batch)`.
    pub fn epoch(&self, epoch: u32) -> Epoch {
        let mut orders = Vec::with_capacity(self.sizes.len());
        let mut batches = Vec::with_capacity(self.batches());
        for (task, &size) in self.sizes.iter().enumerate() {
            let mut order: Vec<u32> = (0..size as u32).collect();
            Random::new(self.seed, [epoch, EXAMPLES | task as u32]).shuffle(&mut order);
            orders.push(order);
            batches.extend(
                (0..size)
                    .step_by(self.batch_size)
                    .map(|start| (task, start..size.min(start + self.batch_size))),
            );
        }
        Random::new(self.seed, [epoch, BATCHES]).shuffle(&mut batches);
        Epoch { orders, batches }
    }
}

/// The batches of one epoch in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch {
    orders: Vec<Vec<u32>>,
    batches: Vec<(usize, Range<usize>)>,
}

impl Epoch {
    /// The number of batches.
    pub fn len(&self) -> usize {
        self.batches.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// The task of the batch at `index`, and its examples.
    pub fn batch(&self, index: usize) -> (usize, &[u32]) {
        let (task, range) = &self.batches[index];
        (*task, &self.orders[*task][range.clone()])
    }

    /// All batches from the one at `index` on.
    pub fn from(&self, index: usize) -> impl Iterator<Item = (usize, &[u32])> {
        (index..self.len()).map(|index| self.batch(index))
    }
}

/// Every example of `dataset` once, for evaluation: those of like length together, the longest first, as many to a
/// batch as fit into `tokens` (a single example may exceed it). The numbers are the examples' places in the file.
pub fn evaluation_batches(dataset: &Dataset, tokens: usize) -> Vec<Vec<u32>> {
    let mut order: Vec<u32> = (0..dataset.len() as u32).collect();
    // A stable sort: examples of one length stay in the file's order.
    order.sort_by_key(|&example| std::cmp::Reverse(dataset.tokens_of(example as usize)));
    let mut batches: Vec<Vec<u32>> = Vec::new();
    let (mut used, mut sequences) = (0, 0);
    for example in order {
        let (more, more_sequences) =
            (dataset.tokens_of(example as usize), dataset.sequences_of(example as usize).len());
        if batches.is_empty() || used + more > tokens || sequences + more_sequences > MAX_SEQUENCE {
            batches.push(Vec::new());
            (used, sequences) = (0, 0);
        }
        batches.last_mut().expect("one was pushed above").push(example);
        used += more;
        sequences += more_sequences;
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::Label;

    #[test]
    fn an_epoch_holds_every_example_once() {
        let sampler = Sampler::new(2018, 4, vec![10, 3, 0, 8]);
        let epoch = sampler.epoch(0);
        assert_eq!((epoch.len(), sampler.batches()), (6, 6));
        let mut seen = vec![Vec::new(); 4];
        let mut sizes = vec![Vec::new(); 4];
        for (task, examples) in epoch.from(0) {
            seen[task].extend_from_slice(examples);
            sizes[task].push(examples.len());
        }
        for (task, size) in [10, 3, 0, 8].into_iter().enumerate() {
            seen[task].sort();
            assert_eq!(seen[task], (0..size).collect::<Vec<u32>>());
            sizes[task].sort_by(|a, b| b.cmp(a));
            assert_eq!(sizes[task].len(), sampler.batches_of(task));
        }
        assert_eq!(sizes, [vec![4, 4, 2], vec![3], vec![], vec![4, 4]]);
    }

    #[test]
    fn orders_follow_from_seed_and_epoch_alone() {
        let sampler = Sampler::new(2018, 4, vec![100, 60]);
        assert_eq!(sampler.epoch(3), sampler.epoch(3));
        assert_ne!(sampler.epoch(3), sampler.epoch(4));
        assert_ne!(sampler.epoch(3), Sampler::new(2019, 4, vec![100, 60]).epoch(3));
        let (third, fourth) = (sampler.epoch(3), sampler.epoch(4));
        assert_ne!(third.orders[0], fourth.orders[0], "examples are reshuffled");
        assert_ne!(third.orders[0][..60], third.orders[1], "tasks are shuffled apart");
        let rest: Vec<_> = third.from(7).collect();
        assert_eq!(rest, (7..third.len()).map(|index| third.batch(index)).collect::<Vec<_>>());
        assert_eq!(rest.len(), 40 - 7);
    }

    #[test]
    fn tasks_are_interleaved() {
        // 50 batches each; the expected number of changes of task along the epoch is 50, standard deviation 5.
        let epoch = Sampler::new(1, 2, vec![100, 100]).epoch(0);
        let tasks: Vec<usize> = epoch.from(0).map(|(task, _)| task).collect();
        let changes = tasks.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!((25..=75).contains(&changes), "{changes} changes of task in 100 batches");
    }

    #[test]
    fn evaluation_sorts_by_length_under_a_budget() {
        let mut dataset = Dataset::new();
        for length in [3, 9, 4, 20, 3, 5] {
            dataset.push_sequence(&vec![1; length], length as u32);
            dataset.finish_example(Label::None);
        }
        assert_eq!(evaluation_batches(&dataset, 12), [vec![3], vec![1], vec![5, 2, 0], vec![4]]);
        assert_eq!(evaluation_batches(&Dataset::new(), 12), Vec::<Vec<u32>>::new());
    }
}
