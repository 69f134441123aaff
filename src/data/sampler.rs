//! Which task comes when, and which of its examples go into the batch.

use std::ops::Range;

use super::batching::Batching;
use super::dataset::Dataset;
use crate::random::Random;

/// What an order is for: keeps the streams of [`Random`] apart.
const BATCHES: u32 = 0x5342_0000;
const TASKS: u32 = 0x5343_0000;

/// How the batches of several tasks are mixed. Tasks are numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum Mix {
    /// MT-DNN's Algorithm 1 (Liu et al. 2019, arXiv 1901.11504): an epoch is all batches of all tasks, shuffled
    /// together, so that a task is drawn in proportion to its size.
    Algorithm1,
    /// All batches of the main task and of the other tasks' at random as many as `ratio` times that, or all if there
    /// are not so many; shuffled together (Xu et al. 2019, arXiv 1809.06963).
    Ratio {
        /// The main task.
        main: usize,
        /// Batches of others for each of the main task.
        ratio: f64,
    },
    /// All batches, those of the main task after all others, as the reference's `mix_opt` has it.
    MainLast {
        /// The main task.
        main: usize,
    },
    /// Each batch's task is drawn with a chance in proportion to a power of its number of examples.
    Power {
        /// The exponent in the first epoch.
        first: f64,
        /// The exponent in the last; between, it goes in equal steps.
        last: f64,
        /// Examples of a task that count at most; 0 for no such limit.
        cap: usize,
    },
    /// Each batch's task is drawn with a chance in proportion to a number of its own.
    Weights(Vec<f64>),
    /// Every so-many-th batch of the run is the main task's, the others are drawn from the other tasks, one as likely as
    /// the other (Subramanian et al. 2018, arXiv 1804.00079).
    Every {
        /// The main task.
        main: usize,
        /// Of how many batches one is its own.
        every: u32,
    },
}

/// Draws a run's batches, epoch by epoch, as a function of the seed alone.
///
/// A task's batches follow one another in passes: each example once, then all again in another order. Whatever draws a
/// task takes its next batch, so that no example is drawn twice before all have been drawn once, in whichever epoch.
#[derive(Clone, Debug)]
pub struct Sampler<'a> {
    seed: u64,
    mix: Mix,
    epochs: u32,
    /// Batches an epoch of the kinds that could go on for ever.
    length: usize,
    tasks: Vec<Task<'a>>,
}

#[derive(Clone, Debug)]
struct Task<'a> {
    dataset: &'a Dataset,
    batching: Batching,
    /// Batches of a pass, where all have the same.
    batches: Option<usize>,
}

impl<'a> Sampler<'a> {
    /// Mixes `tasks`, each with its examples and how they make batches, over so many epochs. An epoch of the kinds that
    /// draw tasks has `length` batches; as many as one pass over each task if not said.
    ///
    /// # Panics
    /// If a task has no examples, or `mix` names one that is not there.
    pub fn new(
        seed: u64,
        mix: Mix,
        epochs: u32,
        length: Option<usize>,
        tasks: Vec<(&'a Dataset, Batching)>,
    ) -> Self {
        match &mix {
            Mix::Ratio { main, .. } | Mix::MainLast { main } | Mix::Every { main, .. } => {
                assert!(*main < tasks.len(), "task {main} of {}", tasks.len());
            }
            Mix::Weights(weights) => assert_eq!(weights.len(), tasks.len(), "a weight for each task"),
            Mix::Algorithm1 | Mix::Power { .. } => {}
        }
        let task = |(dataset, batching): (&'a Dataset, Batching)| {
            assert!(!dataset.is_empty(), "a task without examples");
            Task { dataset, batching, batches: batching.batches_of_any_pass(dataset) }
        };
        let mut sampler = Self { seed, mix, epochs, length: 0, tasks: tasks.into_iter().map(task).collect() };
        let one_pass = || (0..sampler.tasks.len()).map(|task| sampler.batches_of_pass(task, 0)).sum();
        sampler.length = length.unwrap_or_else(one_pass);
        sampler
    }

    /// The tasks' examples, and how they make batches.
    pub fn sets(&self) -> impl Iterator<Item = (&'a Dataset, &Batching)> {
        self.tasks.iter().map(|task| (task.dataset, &task.batching))
    }

    /// The number of batches in an epoch. Only a limit of tokens makes it another one in each.
    pub fn batches(&self, epoch: u32) -> usize {
        let of_pass = |task| self.batches_of_pass(task, epoch);
        match self.mix {
            Mix::Algorithm1 | Mix::MainLast { .. } => (0..self.tasks.len()).map(of_pass).sum(),
            Mix::Ratio { main, ratio } => of_pass(main) + self.auxiliary(main, ratio, of_pass(main)),
            Mix::Power { .. } | Mix::Weights(_) | Mix::Every { .. } => self.length,
        }
    }

    /// The number of batches of each task in an epoch.
    pub fn batches_of_each(&self, epoch: u32) -> Vec<usize> {
        let mut counts = vec![0; self.tasks.len()];
        self.order(epoch).into_iter().for_each(|(task, _)| counts[task] += 1);
        counts
    }

    /// The chance of each task to be drawn; `None` of the kinds that count batches instead.
    pub fn chances(&self, epoch: u32) -> Option<Vec<f64>> {
        let others = (self.tasks.len() - 1) as f64;
        let weights: Vec<f64> = match &self.mix {
            Mix::Algorithm1 | Mix::MainLast { .. } | Mix::Ratio { .. } => return None,
            Mix::Power { first, last, cap } => {
                let done = f64::from(epoch) / f64::from(self.epochs.saturating_sub(1).max(1));
                let exponent = first + (last - first) * done;
                let counted = |size: usize| if *cap == 0 { size } else { size.min(*cap) };
                self.tasks.iter().map(|task| (counted(task.dataset.len()) as f64).powf(exponent)).collect()
            }
            Mix::Weights(weights) => weights.clone(),
            Mix::Every { main, every } => {
                let own = 1.0 / f64::from(*every);
                let chance = |task| if task == *main { own } else { (1.0 - own) / others };
                (0..self.tasks.len()).map(chance).collect()
            }
        };
        let sum: f64 = weights.iter().sum();
        Some(weights.into_iter().map(|weight| weight / sum).collect())
    }

    /// Whether no epoch draws a batch of a task.
    pub fn leaves_out(&self, task: usize) -> bool {
        match &self.mix {
            Mix::Weights(weights) => weights[task] == 0.0,
            Mix::Ratio { main, ratio } => {
                task != *main && self.auxiliary(*main, *ratio, self.batches_of_pass(*main, 0)) == 0
            }
            Mix::Algorithm1 | Mix::MainLast { .. } | Mix::Power { .. } | Mix::Every { .. } => false,
        }
    }

    /// The batches of an epoch: a function of the seed and the epoch alone. An interrupted run goes on exactly from
    /// `(epoch, index of the next batch)`.
    pub fn epoch(&self, epoch: u32) -> Epoch {
        let order = self.order(epoch);
        let mut counts = vec![0; self.tasks.len()];
        order.iter().for_each(|&(task, _)| counts[task] += 1);
        let begun = self.begun(epoch);
        let (orders, ranges): (Vec<_>, Vec<_>) = (0..self.tasks.len())
            .map(|task| {
                let (pass, skipped) = begun[task];
                self.stretch(task, pass, skipped, counts[task])
            })
            .unzip();
        let batches =
            order.into_iter().map(|(task, number)| (task, Range::clone(&ranges[task][number]))).collect();
        Epoch { orders, batches }
    }

    /// The task of each batch of an epoch, and which of the task's batches in the epoch it is.
    fn order(&self, epoch: u32) -> Vec<(usize, usize)> {
        let all = |task| (0..self.batches_of_pass(task, epoch)).map(move |number| (task, number));
        let others = |main| (0..self.tasks.len()).filter(move |&task| task != main);
        let mut random = Random::new(self.seed, [epoch, BATCHES]);
        match self.mix {
            Mix::Algorithm1 => {
                let mut order: Vec<_> = (0..self.tasks.len()).flat_map(all).collect();
                random.shuffle(&mut order);
                order
            }
            Mix::MainLast { main } => {
                let mut order: Vec<_> = others(main).flat_map(all).collect();
                random.shuffle(&mut order);
                let mut last: Vec<_> = all(main).collect();
                random.shuffle(&mut last);
                order.extend(last);
                order
            }
            Mix::Ratio { main, ratio } => {
                let mut order: Vec<_> = all(main).collect();
                let count = self.auxiliary(main, ratio, order.len());
                let mut pool: Vec<usize> = others(main)
                    .flat_map(|task| std::iter::repeat_n(task, self.batches_of_pass(task, 0)))
                    .collect();
                random.shuffle(&mut pool);
                order.extend(pool.into_iter().take(count).map(|task| (task, 0)));
                random.shuffle(&mut order);
                // The main task's are a whole pass in any order; the others' come as they follow one another.
                let others = numbered(self.tasks.len(), order.clone().into_iter().map(|(task, _)| task));
                order.iter_mut().zip(others).filter(|((task, _), _)| *task != main).for_each(|(a, b)| *a = b);
                order
            }
            Mix::Power { .. } | Mix::Weights(_) | Mix::Every { .. } => {
                numbered(self.tasks.len(), self.draw(epoch)).collect()
            }
        }
    }

    /// The task of each batch of an epoch of a kind that draws tasks.
    fn draw(&self, epoch: u32) -> impl Iterator<Item = usize> {
        let mut random = Random::new(self.seed, [epoch, TASKS]);
        let mut chances = self.chances(epoch).expect("a kind with chances");
        let own = match self.mix {
            Mix::Every { main, every } => {
                chances[main] = 0.0;
                Some((main, u64::from(every)))
            }
            _ => None,
        };
        let sum: f64 = chances.iter().sum();
        let mut upto = 0.0;
        let bounds: Vec<f64> = chances
            .iter()
            .map(|chance| {
                upto += chance / sum;
                upto
            })
            .collect();
        // What rounding leaves above the last bound is the last task's that can be drawn.
        let last = chances.iter().rposition(|&chance| chance > 0.0).expect("a task with a chance");
        let before = u64::from(epoch) * self.length as u64;
        (0..self.length as u64).map(move |index| match own {
            Some((main, every)) if (before + index + 1).is_multiple_of(every) => main,
            _ => {
                let place = f64::from(random.word()) / 2_f64.powi(32);
                bounds.partition_point(|&bound| bound <= place).min(last)
            }
        })
    }

    /// Batches of other tasks beside `own` of the main task's in an epoch of [`Mix::Ratio`].
    fn auxiliary(&self, main: usize, ratio: f64, own: usize) -> usize {
        let others = (0..self.tasks.len()).filter(|&task| task != main);
        let all: usize = others.map(|task| self.batches_of_pass(task, 0)).sum();
        // The products of decimals fall a little short of whole numbers: 0.29 * 100.
        all.min((ratio * own as f64 + 1e-9) as usize)
    }

    /// Whether each epoch is one pass over a task's examples.
    fn in_step(&self, task: usize) -> bool {
        match self.mix {
            Mix::Algorithm1 | Mix::MainLast { .. } => true,
            Mix::Ratio { main, .. } => task == main,
            Mix::Power { .. } | Mix::Weights(_) | Mix::Every { .. } => false,
        }
    }

    /// The pass of each task in which an epoch begins, and the batches of it that earlier epochs have drawn.
    fn begun(&self, epoch: u32) -> Vec<(u32, usize)> {
        let mut drawn = vec![0; self.tasks.len()];
        if (0..self.tasks.len()).any(|task| !self.in_step(task)) {
            for earlier in 0..epoch {
                let counts = self.batches_of_each(earlier);
                drawn.iter_mut().zip(counts).for_each(|(drawn, count)| *drawn += count);
            }
        }
        let place = |(task, drawn): (usize, usize)| match self.tasks[task].batches {
            _ if self.in_step(task) => (epoch, 0),
            Some(batches) => ((drawn / batches) as u32, drawn % batches),
            None => {
                let (mut pass, mut left) = (0, drawn);
                loop {
                    let batches = self.batches_of_pass(task, pass);
                    if left < batches {
                        return (pass, left);
                    }
                    left -= batches;
                    pass += 1;
                }
            }
        };
        drawn.into_iter().enumerate().map(place).collect()
    }

    /// `count` batches of a task from one of a pass on: examples, and the part of them that each batch is.
    fn stretch(&self, task: usize, pass: u32, skipped: usize, count: usize) -> (Vec<u32>, Vec<Range<usize>>) {
        let (mut examples, mut batches): (Vec<u32>, Vec<Range<usize>>) = (Vec::new(), Vec::new());
        let Task { dataset, batching, .. } = &self.tasks[task];
        for (pass, skipped) in std::iter::once((pass, skipped)).chain((pass + 1..).map(|pass| (pass, 0))) {
            if batches.len() >= count {
                break;
            }
            let next = batching.pass(dataset, self.seed, task, pass);
            let offset = examples.len();
            let moved = |batch: &Range<usize>| batch.start + offset..batch.end + offset;
            batches.extend(next.batches[skipped..].iter().map(moved));
            examples.extend(next.order);
        }
        (examples, batches)
    }

    fn batches_of_pass(&self, task: usize, pass: u32) -> usize {
        let Task { dataset, batching, batches } = &self.tasks[task];
        batches.unwrap_or_else(|| batching.pass(dataset, self.seed, task, pass).batches.len())
    }
}

/// Each task with how often it came before.
fn numbered(tasks: usize, order: impl Iterator<Item = usize>) -> impl Iterator<Item = (usize, usize)> {
    let mut counts = vec![0; tasks];
    order.map(move |task| {
        counts[task] += 1;
        (task, counts[task] - 1)
    })
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

#[cfg(test)]
mod tests;
