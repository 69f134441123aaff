//! What a run will draw, before anything is trained: a function of its settings and its examples.

use super::config::TrainConfig;
use super::mix::total_updates;
use crate::data::Sampler;

/// What is drawn of one task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drawn {
    /// Batches.
    pub batches: usize,
    /// Examples, as often as each is drawn.
    pub examples: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Tokens of the largest batch.
    pub largest: usize,
}

impl Drawn {
    fn add(&mut self, other: Drawn) {
        self.batches += other.batches;
        self.examples += other.examples;
        self.tokens += other.tokens;
        self.largest = self.largest.max(other.largest);
    }

    /// The sum over several tasks or epochs.
    pub fn sum(parts: impl IntoIterator<Item = Drawn>) -> Drawn {
        let mut sum = Drawn::default();
        parts.into_iter().for_each(|part| sum.add(part));
        sum
    }
}

/// What each epoch draws of each task of the sampler, up to the run's last update; patience may end it before.
pub fn forecast(config: &TrainConfig, sampler: &Sampler) -> Vec<Vec<Drawn>> {
    let sets: Vec<_> = sampler.sets().map(|(set, _)| set).collect();
    let mut updates_left = total_updates(config, sampler);
    let mut epochs = Vec::new();
    for number in 0..config.epochs {
        if updates_left == 0 {
            break;
        }
        let epoch = sampler.epoch(number);
        let batches = updates_left.saturating_mul(u64::from(config.accumulation));
        let mut tasks = vec![Drawn::default(); sets.len()];
        for (task, examples) in epoch.from(0).take(usize::try_from(batches).unwrap_or(usize::MAX)) {
            let tokens = examples.iter().map(|&example| sets[task].tokens_of(example as usize)).sum();
            tasks[task].add(Drawn { batches: 1, examples: examples.len(), tokens, largest: tokens });
        }
        updates_left = updates_left.saturating_sub(epoch.len().div_ceil(config.accumulation as usize) as u64);
        epochs.push(tasks);
    }
    epochs
}

/// What may surprise in a mix: tasks that are never drawn, and examples larger than a batch is to be.
pub fn remarks(sampler: &Sampler, names: &[&str]) -> Vec<String> {
    let mut remarks = Vec::new();
    for (task, (set, batching)) in sampler.sets().enumerate() {
        let name = names[task];
        if sampler.leaves_out(task) {
            remarks.push(format!("task {name}: the mix never draws it, so its head is not trained"));
        }
        let larger = (0..set.len()).filter(|&example| set.tokens_of(example) > batching.tokens).count();
        if batching.tokens > 0 && larger > 0 {
            let limit = batching.tokens;
            remarks.push(format!(
                "task {name}: {larger} of {} examples have more than {limit} tokens (--batch-tokens); each is a batch \
                 by itself",
                set.len()
            ));
        }
    }
    remarks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::Label;
    use crate::data::{Batching, Dataset, Mix};

    fn set(lengths: &[usize]) -> Dataset {
        let mut set = Dataset::new();
        for &length in lengths {
            set.push_sequence(&vec![1; length], length as u32);
            set.finish_example(Label::None);
        }
        set
    }

    #[test]
    fn a_forecast_counts_what_is_drawn_up_to_the_last_update() {
        let (one, two) = (set(&[5, 2, 3]), set(&[4, 4, 4, 4, 4]));
        let sets = vec![(&one, Batching::of(2)), (&two, Batching::of(2))];
        let sampler = Sampler::new(1, Mix::MainLast { main: 1 }, 3, None, sets);
        let config = TrainConfig { epochs: 3, accumulation: 2, ..TrainConfig::default() };
        let whole = forecast(&config, &sampler);
        assert_eq!(whole.len(), 3);
        for epoch in &whole {
            let [first, second] = epoch[..] else { panic!("{epoch:?}") };
            assert_eq!((first.batches, first.examples, first.tokens), (2, 3, 10));
            assert_eq!(second, Drawn { batches: 3, examples: 5, tokens: 20, largest: 8 });
            assert_eq!(Drawn::sum(epoch.iter().copied()).tokens, 30);
        }
        // Five batches make three updates an epoch; the fourth is of two batches of the second epoch.
        let cut = forecast(&TrainConfig { max_steps: 4, ..config }, &sampler);
        assert_eq!(cut.len(), 2);
        assert_eq!(cut[0], whole[0]);
        assert_eq!((cut[1][0].batches, cut[1][1].batches), (2, 0));
    }

    #[test]
    fn what_is_left_out_and_what_is_too_large_is_said() {
        let (one, two) = (set(&[5, 2, 9]), set(&[4, 4]));
        let said = |mix: Mix, tokens: usize| {
            let batching = Batching { examples: 2, tokens, bucket: 0 };
            let sampler = Sampler::new(1, mix, 1, None, vec![(&one, batching), (&two, batching)]);
            remarks(&sampler, &["rte", "cola"])
        };
        assert!(said(Mix::Algorithm1, 0).is_empty() && said(Mix::Algorithm1, 9).is_empty());
        let found = said(Mix::Algorithm1, 4);
        assert!(
            found.len() == 1 && found[0].starts_with("task rte: 2 of 3 examples have more than 4"),
            "{found:?}"
        );
        for mix in [Mix::Weights(vec![1.0, 0.0]), Mix::Ratio { main: 0, ratio: 0.2 }] {
            let found = said(mix, 0);
            assert!(
                found.len() == 1 && found[0].starts_with("task cola: the mix never draws it"),
                "{found:?}"
            );
        }
        assert!(said(Mix::Ratio { main: 0, ratio: 0.5 }, 0).is_empty());
    }
}
