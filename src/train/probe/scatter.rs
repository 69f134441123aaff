//! Sums of products of features over examples: what a ridge regression is solved with, and what bounds the curvature of a
//! logistic regression.

use rayon::prelude::*;

use super::{Matrix, add_scaled, dot};

/// The sums over examples with features `x` that do not depend on their answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Scatter {
    pub(super) count: f64,
    /// `[columns]`
    pub(super) x: Vec<f64>,
    /// The upper triangle of `[columns, columns]`, the rest of it zeros.
    xx: Vec<f64>,
}

/// Rows of `xx` that one task makes, and examples that it reads at a time, so that both stay in its cache.
const BLOCK: usize = 32;
const EXAMPLES: usize = 64;

impl Scatter {
    /// Of no examples.
    pub fn zero(columns: usize) -> Self {
        Self { count: 0.0, x: vec![0.0; columns], xx: vec![0.0; columns * columns] }
    }

    /// Of the examples `rows` of `features`. The same bits at any number of threads.
    pub fn of(features: &Matrix, rows: &[usize]) -> Self {
        let columns = features.columns();
        let mut scatter = Self::zero(columns);
        scatter.count = rows.len() as f64;
        rows.iter().for_each(|&row| add_scaled(&mut scatter.x, 1.0, features.row(row)));
        scatter.xx.par_chunks_mut(BLOCK * columns).enumerate().for_each(|(block, sums)| {
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
        scatter
    }

    /// Adds `sign` times the sums over other examples: 1, or -1 for examples that are among these.
    pub fn add(&mut self, sign: f64, other: &Scatter) {
        self.count += sign * other.count;
        add_scaled(&mut self.x, sign, &other.x);
        add_scaled(&mut self.xx, sign, &other.xx);
    }

    /// The means of the features. `[columns]`
    ///
    /// # Panics
    /// If there are no examples.
    pub fn mean(&self) -> Vec<f64> {
        assert!(self.count > 0.0, "{} examples", self.count);
        self.x.iter().map(|sum| sum / self.count).collect()
    }

    /// The factor of `scale * x'x + penalty`, with features less their means.
    ///
    /// # Panics
    /// If `penalty` is not above 0.
    pub fn factor(&self, scale: f64, penalty: f64) -> Factor {
        assert!(penalty > 0.0, "penalty {penalty}");
        let (size, mean) = (self.x.len(), self.mean());
        // The lower triangle, because Cholesky's method goes along rows.
        let mut matrix = vec![0.0; size * size];
        for row in 0..size {
            for column in 0..=row {
                let centred = self.xx[column * size + row] - self.x[row] * mean[column];
                matrix[row * size + column] = scale * centred;
            }
            matrix[row * size + row] += penalty;
        }
        Factor::of(matrix, size)
    }
}

/// `L` of `L L' = A` for a symmetric positive matrix `A` (Cholesky).
pub struct Factor {
    /// The lower triangle of `[size, size]`.
    lower: Vec<f64>,
    size: usize,
}

impl Factor {
    /// From the lower triangle of `[size, size]`.
    fn of(mut matrix: Vec<f64>, size: usize) -> Self {
        for row in 0..size {
            let (above, below) = matrix.split_at_mut(row * size);
            let current = &mut below[..size];
            for column in 0..row {
                let other = &above[column * size..][..=column];
                current[column] =
                    (current[column] - dot(&current[..column], &other[..column])) / other[column];
            }
            let square = current[row] - dot(&current[..row], &current[..row]);
            // Rounding alone can take a penalised sum of squares below its penalty.
            current[row] = square.max(f64::MIN_POSITIVE).sqrt();
        }
        Self { lower: matrix, size }
    }

    /// Solves `A x = b` in the place of `b`.
    pub fn solve(&self, b: &mut [f64]) {
        assert_eq!(b.len(), self.size, "elements of the right side and rows of the matrix");
        let row_of = |row: usize| &self.lower[row * self.size..][..=row];
        for row in 0..self.size {
            let lower = row_of(row);
            b[row] = (b[row] - dot(&lower[..row], &b[..row])) / lower[row];
        }
        for row in (0..self.size).rev() {
            let lower = row_of(row);
            b[row] /= lower[row];
            let (before, value) = b.split_at_mut(row);
            add_scaled(before, -value[0], &lower[..row]);
        }
    }
}
