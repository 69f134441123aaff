//! A run at several seeds: the spread of its figures, and whether another run's are better.

use std::path::Path;

use anyhow::bail;
use serde::Serialize;

use super::statistics::{Bootstrap, Interval, deviation, mean};
use super::{RunResult, SetResult, SubRun, sub_run};
use crate::data::MetricKind;
use crate::train::config::RunConfig;

/// How the directories of the runs begin.
pub const PREFIX: &str = "seed-";

/// The same run at each seed.
pub fn plan(config: &RunConfig, output: &Path, seeds: &[u64]) -> Vec<SubRun> {
    let one = |&seed: &u64| {
        let tasks = config.tasks.clone();
        sub_run(config, output, format!("{PREFIX}{seed}"), "the run".into(), seed, tasks)
    };
    seeds.iter().map(one).collect()
}

/// One metric on one dev set over the seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The task's name.
    pub task: String,
    /// The set's name.
    pub set: String,
    /// The metric.
    pub metric: MetricKind,
    /// A value a seed.
    pub values: Vec<f64>,
    /// Their mean.
    pub mean: f64,
    /// Their sample standard deviation; none of one seed.
    pub deviation: Option<f64>,
    /// The interval of the mean when the dev examples are drawn again, the same ones for all seeds.
    pub over_examples: Option<Interval>,
    /// The interval of the mean when the seeds are drawn again.
    pub over_seeds: Option<Interval>,
}

/// Two sides of one metric on one dev set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The task's name.
    pub task: String,
    /// The set's name.
    pub set: String,
    /// The metric.
    pub metric: MetricKind,
    /// The mean over the seeds of one side less that of the other.
    pub difference: f64,
    /// Its interval when the dev examples are drawn again, the same ones for both sides and all seeds.
    pub over_examples: Option<Interval>,
    /// Its interval when the seeds are drawn again: pairs of them where both sides have the same ones, else each side's
    /// by themselves.
    pub over_seeds: Option<Interval>,
}

/// A spread for each metric of each dev set; `results` are of one run at several seeds.
pub fn spreads(results: &[RunResult], bootstrap: &Bootstrap) -> Vec<Spread> {
    let mut spreads = Vec::new();
    for first in results.first().iter().flat_map(|result| &result.sets) {
        let sets: Vec<&SetResult> = results.iter().filter_map(|result| same_set(result, first)).collect();
        for &(metric, _) in &first.metrics {
            let values: Vec<f64> = sets.iter().filter_map(|set| set.value(metric)).collect();
            spreads.push(Spread {
                task: first.task.clone(),
                set: first.set.clone(),
                metric,
                mean: mean(&values),
                deviation: deviation(&values),
                over_examples: bootstrap.interval(first.examples, |drawn| mean_metric(&sets, metric, drawn)),
                over_seeds: bootstrap.interval(values.len(), |drawn| Some(mean_of(&values, drawn))),
                values,
            });
        }
    }
    spreads
}

/// The difference in each metric of each dev set that both sides have.
///
/// # Errors
/// If both have a set of one name whose examples are not the same.
pub fn differences<'a>(
    ours: &'a [RunResult],
    others: &'a [RunResult],
    bootstrap: &Bootstrap,
) -> anyhow::Result<Vec<Difference>> {
    let mut differences = Vec::new();
    let [ours, others] = [ours, others].map(|results| {
        let mut results: Vec<&RunResult> = results.iter().collect();
        results.sort_by_key(|result| result.seed());
        results
    });
    let Some(first) = ours.first() else { return Ok(differences) };
    let seeds = |results: &[&RunResult]| results.iter().map(|result| result.seed()).collect::<Vec<_>>();
    let paired = seeds(&ours) == seeds(&others);
    for set in &first.sets {
        let of = |results: &[&'a RunResult]| -> Vec<&'a SetResult> {
            results.iter().filter_map(|result| same_set(result, set)).collect()
        };
        let (ours, others) = (of(&ours), of(&others));
        if others.is_empty() {
            continue;
        }
        if let Some(wrong) = others.iter().find(|other| !same_examples(set, other)) {
            bail!(
                "task {}: the two sides were not measured on the same examples of {} ({} and {}); measure both on the \
                 same files",
                set.task,
                set.set,
                set.examples,
                wrong.examples
            );
        }
        for &(metric, _) in &set.metrics {
            differences.extend(difference(&ours, &others, metric, paired, bootstrap));
        }
    }
    Ok(differences)
}

/// The difference of two sides in one metric; `paired` if both have the same seeds. `None` if a side lacks the metric.
fn difference(
    ours: &[&SetResult],
    others: &[&SetResult],
    metric: MetricKind,
    paired: bool,
    bootstrap: &Bootstrap,
) -> Option<Difference> {
    let values = |sets: &[&SetResult]| sets.iter().map(|set| set.value(metric)).collect::<Option<Vec<f64>>>();
    let (a, b) = (values(ours)?, values(others)?);
    let over_seeds = if paired {
        let each: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
        bootstrap.interval(each.len(), |drawn| Some(mean_of(&each, drawn)))
    } else {
        let statistic = |of_a: &[u32], of_b: &[u32]| Some(mean_of(&a, of_a) - mean_of(&b, of_b));
        bootstrap.interval_of_two([a.len(), b.len()], statistic)
    };
    Some(Difference {
        task: ours[0].task.clone(),
        set: ours[0].set.clone(),
        metric,
        difference: mean(&a) - mean(&b),
        over_examples: bootstrap.interval(ours[0].examples, |drawn| {
            Some(mean_metric(ours, metric, drawn)? - mean_metric(others, metric, drawn)?)
        }),
        over_seeds,
    })
}

/// The mean over the sets, one a seed, of a metric of the drawn examples.
fn mean_metric(sets: &[&SetResult], metric: MetricKind, drawn: &[u32]) -> Option<f64> {
    let values = sets.iter().map(|set| set.answers.as_ref()?.metric(metric, drawn));
    Some(mean(&values.collect::<Option<Vec<f64>>>()?))
}

fn mean_of(values: &[f64], drawn: &[u32]) -> f64 {
    drawn.iter().map(|&item| values[item as usize]).sum::<f64>() / drawn.len() as f64
}

fn same_set<'a>(result: &'a RunResult, as_of: &SetResult) -> Option<&'a SetResult> {
    result.sets.iter().find(|set| set.task == as_of.task && set.set == as_of.set)
}

fn same_examples(a: &SetResult, b: &SetResult) -> bool {
    a.examples == b.examples
        && match (&a.answers, &b.answers) {
            (Some(a), Some(b)) => a.same_questions(b),
            _ => true,
        }
}
