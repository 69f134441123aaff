//! What frozen sentence vectors are worth: a linear model on them, its regularisation chosen by cross-validation.
//!
//! The protocol is SentEval's (Conneau and Kiela 2018, arXiv 1803.05449): a pair of sentences with the vectors `u` and
//! `v` has the features `[|u - v|; u * v]`, a single sentence its vector. Classes are answered by a logistic regression
//! ([`logistic`]). Scores are answered by a ridge regression ([`ridge`]) of the raw score, where SentEval fits a
//! distribution over whole scores (Tai et al. 2015). The strength of the penalty is that of the best mean over the folds
//! of the training set; the set that is reported has no part in it.

pub mod logistic;
pub mod ridge;

use rayon::prelude::*;

use super::evaluate::{argmax, measure};
use super::metrics;
use crate::data::{Dataset, Label, MetricKind, TaskKind, TaskSpec};
use crate::random::Random;
use logistic::Logistic;
use ridge::Moments;

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
/// The same bits at any number of threads. Folds are drawn by `seed`, with the shares of the classes in each.
///
/// # Panics
/// If the task is neither classification nor regression, or a fold would be empty.
pub fn probe(spec: &TaskSpec, train: &Set, sets: &[Set], folds: usize, seed: u64) -> Probed {
    assert!(folds >= 2 && folds <= train.labels.len(), "{folds} folds of {} examples", train.labels.len());
    match spec.kind {
        TaskKind::Classification => {
            by_logistic(spec, train, sets, &deal(&train.classes(), folds, seed), folds)
        }
        TaskKind::Regression => {
            by_ridge(spec, train, sets, &deal(&vec![0; train.labels.len()], folds, seed), folds)
        }
        kind => panic!("{kind} is not probed"),
    }
}

fn by_logistic(spec: &TaskSpec, train: &Set, sets: &[Set], fold_of: &[usize], folds: usize) -> Probed {
    let classes = train.classes();
    let mut sums = vec![0.0; LOGISTIC_GRID.len()];
    let mut unfinished = 0;
    for fold in 0..folds {
        let (held, rest): (Vec<usize>, Vec<usize>) =
            (0..classes.len()).partition(|&row| fold_of[row] == fold);
        let gold: Vec<u32> = held.iter().map(|&row| classes[row]).collect();
        // Each fit starts from the one before, whose penalty was stronger.
        let mut model = Logistic::zero(spec.outputs(), train.features.columns());
        for (&c, sum) in LOGISTIC_GRID.iter().zip(&mut sums) {
            unfinished += usize::from(!model.fit(&train.features, &rest, &classes, c));
            let predicted: Vec<u32> =
                held.iter().map(|&row| argmax(&model.logits(train.features.row(row)))).collect();
            *sum += metrics::accuracy(&predicted, &gold);
        }
    }
    let (best, validation) = best_of(&sums, folds);
    let all: Vec<usize> = (0..classes.len()).collect();
    let mut model = Logistic::zero(spec.outputs(), train.features.columns());
    unfinished += usize::from(!model.fit(&train.features, &all, &classes, LOGISTIC_GRID[best]));
    let metrics = sets.iter().map(|set| {
        let rows = 0..set.features.rows();
        let logits: Vec<f32> = rows.flat_map(|row| model.logits(set.features.row(row))).collect();
        measure(spec, &set.answers(), &logits)
    });
    Probed { strength: LOGISTIC_GRID[best], validation, metrics: metrics.collect(), unfinished }
}

fn by_ridge(spec: &TaskSpec, train: &Set, sets: &[Set], fold_of: &[usize], folds: usize) -> Probed {
    let scores = train.scores();
    let held: Vec<Vec<usize>> =
        (0..folds).map(|fold| (0..scores.len()).filter(|&row| fold_of[row] == fold).collect()).collect();
    // The sums of all but one fold are those of all less those of the fold.
    let parts: Vec<Moments> = held.iter().map(|rows| Moments::of(&train.features, rows, &scores)).collect();
    let mut all = Moments::zero(train.features.columns());
    parts.iter().for_each(|part| all.add(part));
    let mut sums = vec![0.0; RIDGE_GRID.len()];
    for (part, held) in parts.iter().zip(&held) {
        let rest = all.without(part);
        let gold: Vec<f32> = held.iter().map(|&row| scores[row] as f32).collect();
        let correlations: Vec<f64> = RIDGE_GRID
            .par_iter()
            .map(|&penalty| {
                let model = rest.solve(penalty);
                let answer = |&row: &usize| model.answer(train.features.row(row)) as f32;
                metrics::pearson(&held.iter().map(answer).collect::<Vec<_>>(), &gold)
            })
            .collect();
        sums.iter_mut().zip(correlations).for_each(|(sum, correlation)| *sum += correlation);
    }
    let (best, validation) = best_of(&sums, folds);
    let model = all.solve(RIDGE_GRID[best]);
    let metrics = sets.iter().map(|set| {
        let answer = |row| model.answer(set.features.row(row)) as f32;
        let answers: Vec<f32> = (0..set.features.rows()).map(answer).collect();
        measure(spec, &set.answers(), &answers)
    });
    Probed { strength: RIDGE_GRID[best], validation, metrics: metrics.collect(), unfinished: 0 }
}

/// The place of the largest sum, the first of equal ones (the stronger penalty), and the means.
fn best_of(sums: &[f64], folds: usize) -> (usize, Vec<f64>) {
    let best = (0..sums.len()).rev().max_by(|&a, &b| sums[a].total_cmp(&sums[b])).expect("a grid has values");
    (best, sums.iter().map(|sum| sum / folds as f64).collect())
}

/// The fold of each example: shuffled, then dealt out class by class.
fn deal(classes: &[u32], folds: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..classes.len()).collect();
    Random::new(seed, FOLDS).shuffle(&mut order);
    order.sort_by_key(|&row| classes[row]);
    let mut fold_of = vec![0; classes.len()];
    order.iter().enumerate().for_each(|(place, &row)| fold_of[row] = place % folds);
    fold_of
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
