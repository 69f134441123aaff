//! What frozen sentence vectors are worth: a linear model on them, its regularisation chosen by cross-validation.
//!
//! The protocol is SentEval's (Conneau and Kiela 2018, arXiv 1803.05449): a pair of sentences with the vectors `u` and
//! `v` has the features `[|u - v|; u * v]`, a single sentence its vector. Classes are answered by a logistic regression
//! ([`logistic`]). Scores are answered by a ridge regression ([`ridge`]) of the raw score, where SentEval fits a
//! distribution over whole scores (Tai et al. 2015). The strength of the penalty is that of the best mean over the folds
//! of the training set; the set that is reported has no part in it.

pub mod logistic;
pub mod ridge;
pub mod scatter;

use rayon::prelude::*;

use super::evaluate::{argmax, measure};
use super::metrics;
use crate::data::{Dataset, Label, MetricKind, TaskKind, TaskSpec};
use crate::random::Random;
use logistic::Logistic;
use ridge::Moments;
use scatter::Scatter;

/// The inverse strengths `C` of the penalty that a logistic regression chooses from, the strongest penalty first.
pub const LOGISTIC_GRID: [f64; 8] = [0.015625, 0.0625, 0.25, 1.0, 4.0, 16.0, 64.0, 256.0];
/// The strengths of the penalty that a ridge regression chooses from, the strongest first.
pub const RIDGE_GRID: [f64; 8] = [1e4, 1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2, 1e-3];

/// Names the draw of the folds.
const FOLDS: [u32; 2] = [0x0070_726f, 0];

/// Rows of numbers. `[rows, columns]`, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    values: Vec<f64>,
    columns: usize,
}

impl Matrix {
    /// From its elements, row by row.
    ///
    /// # Panics
    /// If they do not fill rows of so many columns.
    pub fn new(values: Vec<f64>, columns: usize) -> Self {
        assert!(columns > 0 && values.len().is_multiple_of(columns), "{} in {columns} columns", values.len());
        Self { values, columns }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.values.len() / self.columns
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.columns..(row + 1) * self.columns]
    }
}

/// `[|u - v|; u * v]` of a pair. `[2 * width]`
pub fn pair_features<'a>(u: &'a [f32], v: &'a [f32]) -> impl Iterator<Item = f64> + 'a {
    let wide = |(a, b): (&f32, &f32)| (f64::from(*a), f64::from(*b));
    let distances = u.iter().zip(v).map(wide).map(|(a, b)| (a - b).abs());
    distances.chain(u.iter().zip(v).map(wide).map(|(a, b)| a * b))
}

/// Examples as features with their answers.
pub struct Set {
    /// A row an example.
    pub features: Matrix,
    /// Classes or scores, an example each.
    pub labels: Vec<Label>,
}

impl Set {
    /// The same examples as the metrics take them: answers alone.
    pub fn answers(&self) -> Dataset {
        let groups = (0..=self.labels.len() as u32).collect();
        Dataset { groups, labels: self.labels.clone(), ..Dataset::new() }
    }

    fn classes(&self) -> Vec<u32> {
        let class = |label: &Label| match label {
            Label::Class(class) => *class,
            other => panic!("{other:?} is no class"),
        };
        self.labels.iter().map(class).collect()
    }

    fn scores(&self) -> Vec<f64> {
        let score = |label: &Label| match label {
            Label::Score(score) => f64::from(*score),
            other => panic!("{other:?} is no score"),
        };
        self.labels.iter().map(score).collect()
    }
}

/// What came of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Probed {
    /// The chosen value of [`LOGISTIC_GRID`] or [`RIDGE_GRID`].
    pub strength: f64,
    /// Accuracy or Pearson's correlation of each value of the grid, the mean over the folds.
    pub validation: Vec<f64>,
    /// The task's metrics on each set.
    pub metrics: Vec<Vec<(MetricKind, f64)>>,
    /// Fits that came to the end of their steps before they had converged.
    pub unfinished: usize,
}

/// Fits a linear model to `train`, with the penalty that is best over so many folds of it, and measures it on `sets`.
///
/// The same bits at any number of threads. Folds are drawn by `seed`, with the shares of the classes in each. Each fit that
/// is done is told to `done`.
///
/// # Panics
/// If the task is neither classification nor regression, or a fold would be empty.
pub fn probe(
    spec: &TaskSpec,
    train: &Set,
    sets: &[Set],
    folds: usize,
    seed: u64,
    done: &(dyn Fn() + Sync),
) -> Probed {
    assert!(folds >= 2 && folds <= train.labels.len(), "{folds} folds of {} examples", train.labels.len());
    match spec.kind {
        TaskKind::Classification => {
            by_logistic(spec, train, sets, &held_out(&train.classes(), folds, seed), done)
        }
        TaskKind::Regression => {
            by_ridge(spec, train, sets, &held_out(&vec![0; train.labels.len()], folds, seed), done)
        }
        kind => panic!("{kind} is not probed"),
    }
}

/// How many fits [`probe`] does: one a fold and value of the grid, and that of the whole train set.
pub fn fits(folds: usize) -> usize {
    folds * LOGISTIC_GRID.len() + 1
}

fn by_logistic(
    spec: &TaskSpec,
    train: &Set,
    sets: &[Set],
    folds: &[Vec<usize>],
    done: &(dyn Fn() + Sync),
) -> Probed {
    let (features, classes) = (&train.features, train.classes());
    let parts: Vec<Scatter> = folds.iter().map(|held| Scatter::of(features, held)).collect();
    let mut all = Scatter::zero(features.columns());
    parts.iter().for_each(|part| all.add(1.0, part));
    // Folds side by side. `[folds, grid]`: the accuracy, and whether the fit has converged.
    let of_folds: Vec<Vec<(f64, bool)>> = (folds.par_iter().zip(&parts))
        .map(|(held, part)| {
            let rest = others(held, classes.len());
            let mut scatter = all.clone();
            scatter.add(-1.0, part);
            let gold: Vec<u32> = held.iter().map(|&row| classes[row]).collect();
            // Each fit starts from the one before, whose penalty was stronger.
            let mut model = Logistic::zero(spec.outputs(), features.columns());
            let fit = |&c: &f64| {
                let converged = model.fit(features, &rest, &classes, &scatter, c);
                let answer = |&row: &usize| argmax(&model.logits(features.row(row)));
                let predicted: Vec<u32> = held.iter().map(answer).collect();
                done();
                (metrics::accuracy(&predicted, &gold), converged)
            };
            LOGISTIC_GRID.iter().map(fit).collect()
        })
        .collect();
    let accuracies: Vec<Vec<f64>> =
        of_folds.iter().map(|fold| fold.iter().map(|fit| fit.0).collect()).collect();
    let (best, validation) = best_of(&accuracies);
    let rows: Vec<usize> = (0..classes.len()).collect();
    let mut model = Logistic::zero(spec.outputs(), features.columns());
    let converged = model.fit(features, &rows, &classes, &all, LOGISTIC_GRID[best]);
    done();
    let metrics = sets.iter().map(|set| {
        let rows = 0..set.features.rows();
        let logits: Vec<f32> = rows.flat_map(|row| model.logits(set.features.row(row))).collect();
        measure(spec, &set.answers(), &logits)
    });
    let unfinished = of_folds.iter().flatten().filter(|fit| !fit.1).count() + usize::from(!converged);
    Probed { strength: LOGISTIC_GRID[best], validation, metrics: metrics.collect(), unfinished }
}

fn by_ridge(
    spec: &TaskSpec,
    train: &Set,
    sets: &[Set],
    folds: &[Vec<usize>],
    done: &(dyn Fn() + Sync),
) -> Probed {
    let (features, scores) = (&train.features, train.scores());
    let parts: Vec<Moments> = folds.iter().map(|held| Moments::of(features, held, &scores)).collect();
    let mut all = Moments::zero(features.columns());
    parts.iter().for_each(|part| all.add(1.0, part));
    let of_folds: Vec<Vec<f64>> = (folds.iter().zip(&parts))
        .map(|(held, part)| {
            // The sums of all but one fold are those of all less those of the fold.
            let mut rest = all.clone();
            rest.add(-1.0, part);
            let gold: Vec<f32> = held.iter().map(|&row| scores[row] as f32).collect();
            let fit = |&penalty: &f64| {
                let model = rest.solve(penalty);
                let answer = |&row: &usize| model.answer(features.row(row)) as f32;
                done();
                metrics::pearson(&held.iter().map(answer).collect::<Vec<_>>(), &gold)
            };
            RIDGE_GRID.par_iter().map(fit).collect()
        })
        .collect();
    let (best, validation) = best_of(&of_folds);
    let model = all.solve(RIDGE_GRID[best]);
    done();
    let metrics = sets.iter().map(|set| {
        let answer = |row| model.answer(set.features.row(row)) as f32;
        let answers: Vec<f32> = (0..set.features.rows()).map(answer).collect();
        measure(spec, &set.answers(), &answers)
    });
    Probed { strength: RIDGE_GRID[best], validation, metrics: metrics.collect(), unfinished: 0 }
}

/// The place in the grid with the largest mean over the folds, the first of equal ones (the stronger penalty), and the
/// means of all. From `[folds, grid]`.
fn best_of(of_folds: &[Vec<f64>]) -> (usize, Vec<f64>) {
    let mean = |place: usize| of_folds.iter().map(|fold| fold[place]).sum::<f64>() / of_folds.len() as f64;
    let means: Vec<f64> = (0..of_folds[0].len()).map(mean).collect();
    let best =
        (0..means.len()).rev().max_by(|&a, &b| means[a].total_cmp(&means[b])).expect("a grid has values");
    (best, means)
}

/// The examples of each fold: shuffled, then dealt out class by class.
fn held_out(classes: &[u32], folds: usize, seed: u64) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..classes.len()).collect();
    Random::new(seed, FOLDS).shuffle(&mut order);
    order.sort_by_key(|&row| classes[row]);
    let fold = |fold| {
        let mut rows: Vec<usize> = order.iter().copied().skip(fold).step_by(folds).collect();
        rows.sort_unstable();
        rows
    };
    (0..folds).map(fold).collect()
}

/// The examples that are not in a fold.
fn others(held: &[usize], examples: usize) -> Vec<usize> {
    (0..examples).filter(|row| held.binary_search(row).is_err()).collect()
}

/// Products of two rows, summed in eight lanes.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0; 8];
    let (a_lanes, a_rest) = a.as_chunks::<8>();
    let (b_lanes, b_rest) = b.as_chunks::<8>();
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for lane in 0..8 {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    lanes.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f64>()
}

/// `to += factor * row`
fn add_scaled(to: &mut [f64], factor: f64, row: &[f64]) {
    to.iter_mut().zip(row).for_each(|(to, value)| *to += factor * value);
}

#[cfg(test)]
mod tests;
