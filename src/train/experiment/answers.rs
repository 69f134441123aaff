//! What a model answered to each example of a set, so that its metrics can be had of any choice of examples.

use serde::{Deserialize, Serialize};

use crate::data::{Dataset, Label, MetricKind, TaskSpec};
use crate::train::evaluate::argmax;
use crate::train::metrics;

/// Answers and what is right, an entry an example.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answers {
    /// Classes.
    Classes {
        /// The number of classes.
        classes: usize,
        /// What was answered. [examples]
        predicted: Vec<u32>,
        /// What is right. [examples]
        gold: Vec<u32>,
    },
    /// Scores.
    Scores {
        /// What was answered. [examples]
        predicted: Vec<f32>,
        /// What is right. [examples]
        gold: Vec<f32>,
    },
    /// Ranking.
    Places {
        /// The place of the right candidate, from 1. [examples]
        places: Vec<u32>,
        /// The number of candidates. [examples]
        candidates: Vec<u32>,
    },
}

impl Answers {
    /// The answers that logits give, `[sequences, outputs]`.
    ///
    /// `None` for examples of a kind that has no answer an example.
    pub fn of(task: &TaskSpec, set: &Dataset, logits: &[f32]) -> Option<Answers> {
        match set.labels.first()? {
            Label::Class(_) => {
                let gold =
                    collect(set, |label| if let Label::Class(class) = label { Some(class) } else { None })?;
                let classes = task.outputs();
                let predicted = logits.chunks_exact(classes).map(argmax).collect();
                Some(Answers::Classes { classes, predicted, gold })
            }
            Label::Score(_) => {
                let gold =
                    collect(set, |label| if let Label::Score(score) = label { Some(score) } else { None })?;
                Some(Answers::Scores { predicted: logits.to_vec(), gold })
            }
            Label::Positive(_) => {
                let positives =
                    collect(
                        set,
                        |label| if let Label::Positive(index) = label { Some(index) } else { None },
                    )?;
                let groups = set.groups.windows(2).zip(&positives);
                let place = |(group, &positive): (&[u32], &u32)| {
                    let scores = &logits[group[0] as usize..group[1] as usize];
                    // Of a group by itself, the mean reciprocal rank is 1 / place.
                    (1.0 / metrics::mrr(scores, &[0, group[1] - group[0]], &[positive])).round() as u32
                };
                let candidates = set.groups.windows(2).map(|group| group[1] - group[0]).collect();
                Some(Answers::Places { places: groups.map(place).collect(), candidates })
            }
            Label::Tags | Label::Answers | Label::Span { .. } | Label::None => None,
        }
    }

    /// The number of examples.
    pub fn len(&self) -> usize {
        match self {
            Answers::Classes { gold, .. } => gold.len(),
            Answers::Scores { gold, .. } => gold.len(),
            Answers::Places { places, .. } => places.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether both are answers to the same questions, as far as what is right shows it.
    pub fn same_questions(&self, other: &Answers) -> bool {
        match (self, other) {
            (Answers::Classes { gold: a, .. }, Answers::Classes { gold: b, .. }) => a == b,
            (Answers::Scores { gold: a, .. }, Answers::Scores { gold: b, .. }) => a == b,
            (Answers::Places { candidates: a, .. }, Answers::Places { candidates: b, .. }) => a == b,
            _ => false,
        }
    }

    /// A metric over chosen examples, each as often as it is named; `None` for a metric of another kind.
    pub fn metric(&self, metric: MetricKind, examples: &[u32]) -> Option<f64> {
        match self {
            Answers::Classes { classes, predicted, gold } => {
                let (predicted, gold) = (choose(predicted, examples), choose(gold, examples));
                match metric {
                    MetricKind::Accuracy => Some(metrics::accuracy(&predicted, &gold)),
                    MetricKind::F1 => Some(metrics::f1_among(*classes, &predicted, &gold)),
                    MetricKind::F1Macro => Some(metrics::macro_f1(&predicted, &gold)),
                    MetricKind::F1Micro => Some(metrics::micro_f1(&predicted, &gold)),
                    MetricKind::Mcc => Some(metrics::mcc(&predicted, &gold)),
                    _ => None,
                }
            }
            Answers::Scores { predicted, gold } => {
                let (predicted, gold) = (choose(predicted, examples), choose(gold, examples));
                match metric {
                    MetricKind::Pearson => Some(metrics::pearson(&predicted, &gold)),
                    MetricKind::Spearman => Some(metrics::spearman(&predicted, &gold)),
                    _ => None,
                }
            }
            Answers::Places { places, .. } => {
                let mean = |value: &dyn Fn(u32) -> f64| {
                    choose(places, examples).into_iter().map(value).sum::<f64>()
                        / examples.len().max(1) as f64
                };
                match metric {
                    MetricKind::AccuracyAt1 => Some(mean(&|place| if place == 1 { 1.0 } else { 0.0 })),
                    MetricKind::Mrr | MetricKind::Map => Some(mean(&|place| 1.0 / f64::from(place))),
                    _ => None,
                }
            }
        }
    }
}

/// All labels as what `as_one` makes of them; `None` if one is of another kind.
fn collect<T>(set: &Dataset, as_one: impl Fn(Label) -> Option<T>) -> Option<Vec<T>> {
    set.labels.iter().map(|&label| as_one(label)).collect()
}

fn choose<T: Copy>(values: &[T], examples: &[u32]) -> Vec<T> {
    examples.iter().map(|&example| values[example as usize]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::TaskKind;
    use crate::train::evaluate::measure;

    fn set(labels: &[Label], candidates: &[usize]) -> Dataset {
        let mut set = Dataset::new();
        for (&label, &candidates) in labels.iter().zip(candidates) {
            (0..candidates).for_each(|_| set.push_sequence(&[2, 3], 2));
            set.finish_example(label);
        }
        set
    }

    /// Of all examples once, the metrics are those of an evaluation; of some, those of a set of these.
    #[test]
    fn metrics_are_those_of_an_evaluation() {
        let logits: Vec<f32> = (0..36).map(|number| ((number * 7) % 11) as f32 - 5.0).collect();
        let cases = [
            (TaskKind::Classification, (0..12).map(|n| Label::Class(n % 3)).collect::<Vec<_>>(), vec![1; 12]),
            (TaskKind::Regression, (0..12).map(|n| Label::Score(n as f32 / 3.0)).collect(), vec![1; 12]),
            (TaskKind::Ranking, (0..12).map(|n| Label::Positive(n % 2)).collect(), [2, 4].repeat(6)),
        ];
        for (kind, labels, candidates) in cases {
            // The area under the curve needs scores, and answers are classes.
            let known = |metric: &MetricKind| metric.kind() == kind && *metric != MetricKind::Auc;
            let metrics = MetricKind::ALL.into_iter().filter(known).collect();
            let classes = if kind == TaskKind::Classification { 3 } else { 0 };
            let labels_of_task = (0..classes).map(|class: usize| class.to_string()).collect();
            let task = TaskSpec { metrics, labels: labels_of_task, ..TaskSpec::new("t", kind) };
            let whole = set(&labels, &candidates);
            let outputs = task.outputs();
            let logits = &logits[..whole.sequences() * outputs];
            let answers = Answers::of(&task, &whole, logits).unwrap();
            assert_eq!(answers.len(), 12);
            let all: Vec<u32> = (0..12).collect();
            for chosen in [&all[..], &[5, 0, 0, 7, 11, 2, 4]] {
                let part = whole.select(chosen);
                let rows: Vec<f32> = chosen
                    .iter()
                    .flat_map(|&example| whole.sequences_of(example as usize))
                    .flat_map(|sequence| logits[sequence * outputs..][..outputs].to_vec())
                    .collect();
                for (metric, value) in measure(&task, &part, &rows) {
                    let found = answers.metric(metric, chosen).unwrap();
                    assert!((found - value).abs() < 1e-12, "{metric}: {found} {value}");
                }
            }
            let other = MetricKind::ALL.into_iter().find(|metric| metric.kind() != kind).unwrap();
            assert_eq!(answers.metric(other, &all), None);
            assert!(answers.same_questions(&answers));
            let fewer = Answers::of(&task, &whole.select(&[0]), &logits[..outputs * candidates[0]]).unwrap();
            assert!(!answers.same_questions(&fewer));
        }
        assert_eq!(Answers::of(&TaskSpec::new("t", TaskKind::Regression), &Dataset::new(), &[]), None);
    }
}
