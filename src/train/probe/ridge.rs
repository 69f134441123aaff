//! Ridge regression: squared error and a penalty on the squares of the weights, solved exactly.

use rayon::prelude::*;

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
    count: f64,
    y: f64,
    /// `[columns]`
    x: Vec<f64>,
    /// `[columns]`
    xy: Vec<f64>,
    /// The upper triangle of `[columns, columns]`, the rest of it zeros.
    xx: Vec<f64>,
}

/// Rows of `xx` that one task makes, and examples that it reads at a time, so that both stay in its cache.
const BLOCK: usize = 32;
const EXAMPLES: usize = 64;

impl Moments {
    /// Of no examples.
    pub fn zero(columns: usize) -> Self {
        let zeros = || vec![0.0; columns];
        Self { count: 0.0, y: 0.0, x: zeros(), xy: zeros(), xx: vec![0.0; columns * columns] }
    }

    /// Of the examples `rows` of `features`, whose scores are `scores[row]`. The same bits at any number of threads.
    pub fn of(features: &Matrix, rows: &[usize], scores: &[f64]) -> Self {
        let columns = features.columns();
        let mut moments = Self::zero(columns);
        for &row in rows {
            moments.count += 1.0;
            moments.y += scores[row];
            add_scaled(&mut moments.x, 1.0, features.row(row));
            add_scaled(&mut moments.xy, scores[row], features.row(row));
        }
        moments.xx.par_chunks_mut(BLOCK * columns).enumerate().for_each(|(block, sums)| {
            for examples in rows.chunks(EXAMPLES) {
                for (within, sum) in sums.chunks_mut(columns).enumerate() {
                    let column = block * BLOCK + within;
                    for &row in examples {
                        let row = features.row(row);
                        add_scaled(&mut sum[column..], row[column], &row[column..]);
                    }
                }
            }
        });
        moments
    }

    /// Adds the sums over other examples.
    pub fn add(&mut self, other: &Moments) {
        self.combine(other, 1.0);
    }

    /// The sums without those over `other`, which are among them.
    pub fn without(&self, other: &Moments) -> Moments {
        let mut rest = self.clone();
        rest.combine(other, -1.0);
        rest
    }

    fn combine(&mut self, other: &Moments, sign: f64) {
        self.count += sign * other.count;
        self.y += sign * other.y;
        add_scaled(&mut self.x, sign, &other.x);
        add_scaled(&mut self.xy, sign, &other.xy);
        add_scaled(&mut self.xx, sign, &other.xx);
    }

    /// The least of `sum (y - w x - b)^2 + penalty |w|^2`: with features and scores less their means, `w` solves
    /// `(x'x + penalty) w = x'y`.
    ///
    /// # Panics
    /// If `penalty` is not above 0 or there are no examples.
    pub fn solve(&self, penalty: f64) -> Ridge {
        assert!(penalty > 0.0 && self.count > 0.0, "penalty {penalty}, {} examples", self.count);
        let columns = self.x.len();
        let mean: Vec<f64> = self.x.iter().map(|sum| sum / self.count).collect();
        let mean_y = self.y / self.count;
        // The lower triangle, because Cholesky's method goes along rows.
        let mut matrix = vec![0.0; columns * columns];
        for row in 0..columns {
            for column in 0..=row {
                matrix[row * columns + column] = self.xx[column * columns + row] - self.x[row] * mean[column];
            }
            matrix[row * columns + row] += penalty;
        }
        let mut weights: Vec<f64> = self.xy.iter().zip(&self.x).map(|(xy, x)| xy - x * mean_y).collect();
        solve_positive(&mut matrix, &mut weights);
        Ridge { intercept: mean_y - dot(&weights, &mean), weights }
    }
}

/// Solves `matrix * x = b` in the place of `b`, for a symmetric positive matrix given by its lower triangle, which becomes
/// its factor `L` of `L L' = matrix` (Cholesky).
fn solve_positive(matrix: &mut [f64], b: &mut [f64]) {
    let size = b.len();
    for row in 0..size {
        let (above, below) = matrix.split_at_mut(row * size);
        let current = &mut below[..size];
        for column in 0..row {
            let other = &above[column * size..][..=column];
            current[column] = (current[column] - dot(&current[..column], &other[..column])) / other[column];
        }
        let square = current[row] - dot(&current[..row], &current[..row]);
        // Rounding alone can take a penalised sum of squares below its penalty.
        current[row] = square.max(f64::MIN_POSITIVE).sqrt();
        b[row] = (b[row] - dot(&current[..row], &b[..row])) / current[row];
    }
    for row in (0..size).rev() {
        b[row] /= matrix[row * size + row];
        let (before, value) = b.split_at_mut(row);
        add_scaled(before, -value[0], &matrix[row * size..row * size + row]);
    }
}
