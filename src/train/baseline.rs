//! What is reached without reading: the figures that a model has to beat.

use std::collections::HashMap;

use super::{entities, masked, metrics};
use crate::data::MetricKind::{
    Accuracy, AccuracyAt1, Auc, F1, F1Macro, F1Micro, Map, Mcc, Mrr, Pearson, Spearman,
};
use crate::data::{Dataset, Label, TaskKind, TaskSpec};

/// What a predictor reaches that has not read the text: for each metric of the task, on one set.
///
/// Classes: the most frequent one of the training set (of the measured set where there is none). Scores: their mean,
/// which correlates with nothing. Ranking: an order drawn at random, in expectation. Labels of words: the most frequent
/// one for each. Spans: no answer to any question, which is right where there is none. Masked
/// words: how often each is hidden in the measured set.
pub fn baseline(task: &TaskSpec, train: &Dataset, set: &Dataset) -> Vec<f64> {
    match task.kind {
        TaskKind::Labelling => {
            let classes = if train.is_empty() { &set.marks.classes } else { &train.marks.classes };
            let constant = vec![most_frequent(classes.iter().copied()); set.marks.len()];
            let figures = entities::measure(task, set, &constant);
            return figures.into_iter().map(|(_, value)| value).collect();
        }
        TaskKind::Span => {
            let without = set.passages.iter().filter(|passage| passage.answers.is_empty()).count();
            let share = without as f64 / set.passages.len().max(1) as f64;
            return vec![share; task.metrics.len()];
        }
        TaskKind::Masked => return masked::baseline(task, set),
        TaskKind::Classification | TaskKind::Regression | TaskKind::Ranking => {}
    }
    let known = if train.is_empty() { set } else { train };
    let majority = most_frequent(known.labels.iter().filter_map(class_of));
    let gold: Vec<u32> = set.labels.iter().filter_map(class_of).collect();
    let constant = vec![majority; gold.len()];
    let sizes: Vec<f64> = set.groups.windows(2).map(|group| f64::from(group[1] - group[0])).collect();
    let mean = |value: &dyn Fn(f64) -> f64| {
        sizes.iter().map(|&size| value(size)).sum::<f64>() / sizes.len().max(1) as f64
    };
    task.metrics
        .iter()
        .map(|metric| match metric {
            Accuracy => metrics::accuracy(&constant, &gold),
            F1 => metrics::f1_among(task.outputs(), &constant, &gold),
            F1Macro => metrics::macro_f1(&constant, &gold),
            F1Micro => metrics::micro_f1(&constant, &gold),
            // It orders nothing.
            Auc => 0.5,
            Mcc | Pearson | Spearman => 0.0,
            AccuracyAt1 => mean(&|size| 1.0 / size),
            // The mean of 1 / place over all places.
            Mrr | Map => {
                mean(&|size| (1..=size as u32).map(|place| 1.0 / f64::from(place)).sum::<f64>() / size)
            }
            other => panic!("{other} does not measure {}", task.kind),
        })
        .collect()
}

fn class_of(label: &Label) -> Option<u32> {
    match label {
        Label::Class(class) => Some(*class),
        _ => None,
    }
}

/// The most frequent class; of equally frequent ones the first.
fn most_frequent(classes: impl Iterator<Item = u32>) -> u32 {
    let mut counts: HashMap<u32, usize> = HashMap::new();
    for class in classes {
        *counts.entry(class).or_default() += 1;
    }
    counts
        .into_iter()
        .max_by_key(|&(class, count)| (count, std::cmp::Reverse(class)))
        .map_or(0, |(class, _)| class)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{MetricKind, sample};

    fn task(kind: TaskKind, metrics: &[MetricKind]) -> TaskSpec {
        let mut spec = sample::tasks(1).remove(0).spec;
        (spec.kind, spec.metrics) = (kind, metrics.to_vec());
        spec
    }

    fn set(labels: &[Label], candidates: usize) -> Dataset {
        let mut set = Dataset::new();
        for &label in labels {
            (0..candidates).for_each(|_| set.push_sequence(&[2, 3], 2));
            set.finish_example(label);
        }
        set
    }

    #[test]
    fn the_majority_is_that_of_the_training_set() {
        use Label::Class;
        let train = set(&[Class(1), Class(1), Class(0)], 1);
        let dev = set(&[Class(0), Class(0), Class(0), Class(1)], 1);
        let task = task(TaskKind::Classification, &[MetricKind::Accuracy, MetricKind::F1, MetricKind::Mcc]);
        assert_eq!(baseline(&task, &train, &dev), [0.25, 0.4, 0.0]);
        assert_eq!(baseline(&task, &Dataset::new(), &dev), [0.75, 0.0, 0.0]);
    }

    #[test]
    fn of_three_classes_f1_is_the_mean_as_the_model_is_measured() {
        use Label::Class;
        let dev = set(&[Class(0), Class(0), Class(1), Class(2)], 1);
        let mut task = task(TaskKind::Classification, &[MetricKind::F1]);
        task.labels = ["a", "b", "c"].map(String::from).to_vec();
        // Two thirds for the majority, nothing for the others.
        assert!((baseline(&task, &Dataset::new(), &dev)[0] - 2.0 / 9.0).abs() < 1e-15);
    }

    #[test]
    fn ranking_by_chance() {
        let dev = set(&[Label::Positive(0), Label::Positive(2)], 4);
        let task = task(TaskKind::Ranking, &[MetricKind::AccuracyAt1, MetricKind::Mrr]);
        let figures = baseline(&task, &Dataset::new(), &dev);
        assert_eq!(figures[0], 0.25);
        // (1 + 1/2 + 1/3 + 1/4) / 4, to the rounding of its sum.
        assert!((figures[1] - 25.0 / 48.0).abs() < 1e-15, "{}", figures[1]);
    }
}
