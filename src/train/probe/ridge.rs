//! Ridge regression: squared error and a penalty on the squares of the weights, solved exactly.

use super::scatter::Scatter;
use super::{Matrix, add_scaled, dot};

/// The weights of the features and what is added to their sum.
#[derive(Clone, Debug, PartialEq)]
pub struct Ridge {
    /// One a feature.
    pub weights: Vec<f64>,
    /// Not penalised.
    pub intercept: f64,
}

impl Ridge {
    /// The answer to one row of features.
    pub fn answer(&self, row: &[f64]) -> f64 {
        self.intercept + dot(&self.weights, row)
    }
}

/// The sums over examples that their regressions follow from, for features `x` and a score `y`.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    scatter: Scatter,
    y: f64,
    /// `[columns]`
    xy: Vec<f64>,
}

impl Moments {
    /// Of no examples.
    pub fn zero(columns: usize) -> Self {
        Self { scatter: Scatter::zero(columns), y: 0.0, xy: vec![0.0; columns] }
    }

    /// Of the examples `rows` of `features`, whose scores are `scores[row]`. The same bits at any number of threads.
    pub fn of(features: &Matrix, rows: &[usize], scores: &[f64]) -> Self {
        let mut xy = vec![0.0; features.columns()];
        rows.iter().for_each(|&row| add_scaled(&mut xy, scores[row], features.row(row)));
        Self { scatter: Scatter::of(features, rows), y: rows.iter().map(|&row| scores[row]).sum(), xy }
    }

    /// Adds `sign` times the sums over other examples: 1, or -1 for examples that are among these.
    pub fn add(&mut self, sign: f64, other: &Moments) {
        self.scatter.add(sign, &other.scatter);
        self.y += sign * other.y;
        add_scaled(&mut self.xy, sign, &other.xy);
    }

    /// The least of `sum (y - w x - b)^2 + penalty |w|^2`: with features and scores less their means, `w` solves
    /// `(x'x + penalty) w = x'y`.
    ///
    /// # Panics
    /// If `penalty` is not above 0 or there are no examples.
    pub fn solve(&self, penalty: f64) -> Ridge {
        let mean = self.scatter.mean();
        let mean_y = self.y / self.scatter.count;
        let centred = self.xy.iter().zip(&self.scatter.x).map(|(xy, x)| xy - x * mean_y);
        let mut weights: Vec<f64> = centred.collect();
        self.scatter.factor(1.0, penalty).solve(&mut weights);
        Ridge { intercept: mean_y - dot(&weights, &mean), weights }
    }
}
