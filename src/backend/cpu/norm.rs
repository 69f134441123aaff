//! Layer normalization (Ba, Kiros and Hinton 2016) of a sum, with the dropout before it.

use rayon::prelude::*;

use super::blocks::{SinkMut, optional_chunks_mut, rows_per_block};
use super::dropout::RowDropout;
use super::elementwise::add;
use super::isa::Isa;
use super::math::multiply_add;
use super::simd::multiversion;
use super::sums::{COLUMNS, dot, sum, sum_row_products, sum_rows};

/// What [`add_norm`] reads; `rows` and `cols` are those of `x`.
#[derive(Clone, Copy, Debug)]
pub struct AddNorm<'a> {
    /// `[rows, cols]`
    pub x: &'a [f32],
    /// `[rows, cols]`, added to `x` after the dropout.
    pub residual: Option<&'a [f32]>,
    /// On `x`.
    pub drop: RowDropout<'a>,
    /// `[cols]`
    pub gamma: &'a [f32],
    /// `[cols]`
    pub beta: &'a [f32],
    /// Added to the variance, inside the root.
    pub epsilon: f32,
}

/// `y = gamma * normalized + beta`, where `normalized = (s - mean(s)) * inverse_std` of each row of
/// `s = dropout(x) + residual`, and `inverse_std = 1 / sqrt(variance + epsilon)` with the biased variance.
///
/// `y` and `normalized` are `[rows, cols]`, `inverse_std` is `[rows]`; the last two are what the backward pass needs.
pub fn add_norm(isa: Isa, input: &AddNorm, y: &mut [f32], normalized: &mut [f32], inverse_std: &mut [f32]) {
    let (rows, cols) = (inverse_std.len(), input.gamma.len());
    let size = rows * cols;
    assert_eq!(
        [input.x.len(), input.residual.map_or(size, <[f32]>::len), y.len(), normalized.len()],
        [size; 4],
        "x, residual, y and normalized of [{rows}, {cols}]"
    );
    assert_eq!(input.beta.len(), cols, "beta beside gamma");
    input.drop.assert_rows(rows);
    let block = rows_per_block(cols);
    y.par_chunks_mut(block * cols)
        .zip(normalized.par_chunks_mut(block * cols))
        .zip(inverse_std.par_chunks_mut(block))
        .enumerate()
        .for_each(|(i, ((y, normalized), inverse_std))| {
            add_norm_block(isa, input, i * block, y, normalized, inverse_std)
        });
}

/// What [`add_norm_gradient`] reads.
#[derive(Clone, Copy, Debug)]
pub struct AddNormGradient<'a> {
    /// `[rows, cols]`
    pub d_y: &'a [f32],
    /// `[rows, cols]`
    pub normalized: &'a [f32],
    /// `[rows]`
    pub inverse_std: &'a [f32],
    /// `[cols]`
    pub gamma: &'a [f32],
    /// As in the forward pass.
    pub drop: RowDropout<'a>,
}

/// The backward pass of [`add_norm`]: `d_residual` gets the gradient of the sum, `d_x` the same through the dropout.
///
/// `d_x` and `d_residual` are `[rows, cols]`, `d_gamma` and `d_beta` `[cols]`.
pub fn add_norm_gradient(
    isa: Isa,
    input: &AddNormGradient,
    d_x: &mut [f32],
    d_residual: Option<SinkMut>,
    d_gamma: SinkMut,
    d_beta: SinkMut,
) {
    let (rows, cols) = (input.inverse_std.len(), input.gamma.len());
    let size = rows * cols;
    let (d_residual, add) = d_residual.map_or((None, false), |sink| (Some(sink.values), sink.add));
    assert_eq!(
        [input.d_y.len(), input.normalized.len(), d_x.len(), d_residual.as_ref().map_or(size, |d| d.len())],
        [size; 4],
        "d_y, normalized, d_x and d_residual of [{rows}, {cols}]"
    );
    assert_eq!([d_gamma.values.len(), d_beta.values.len()], [cols; 2], "d_gamma and d_beta beside gamma");
    input.drop.assert_rows(rows);
    let block = rows_per_block(cols);
    d_x.par_chunks_mut(block * cols)
        .zip(optional_chunks_mut(d_residual, block * cols, rows.div_ceil(block)))
        .enumerate()
        .for_each(|(i, (d_x, d_residual))| {
            let d_residual = d_residual.map(|values| SinkMut { values, add });
            add_norm_gradient_block(isa, input, i * block, d_x, d_residual)
        });
    (d_gamma.values.par_chunks_mut(COLUMNS)).zip(d_beta.values.par_chunks_mut(COLUMNS)).enumerate().for_each(
        |(i, (gamma, beta))| {
            let d_gamma = SinkMut { values: gamma, add: d_gamma.add };
            let d_beta = SinkMut { values: beta, add: d_beta.add };
            parameter_gradient_block(isa, input, i * COLUMNS, d_gamma, d_beta)
        },
    );
}

multiversion! {
    fn add_norm_block<FMA>(
        input: &AddNorm, first_row: usize, y: &mut [f32], normalized: &mut [f32], inverse_std: &mut [f32],
    ) {
        let cols = input.gamma.len();
        let rows = y.chunks_exact_mut(cols).zip(normalized.chunks_exact_mut(cols)).zip(inverse_std);
        for (i, ((y, normalized), inverse_std)) in rows.enumerate() {
            let row = first_row + i;
            // The sum is built in `normalized`, in cache, and normalized there.
            input.drop.apply(row, &input.x[row * cols..][..cols], normalized);
            if let Some(residual) = input.residual {
                add(&residual[row * cols..][..cols], normalized);
            }
            let mean = sum(normalized, |s| s) / cols as f32;
            // The mean first: the mean of squares less the square of the mean would cancel.
            let variance = sum(normalized, |s| (s - mean) * (s - mean)) / cols as f32;
            let scale = 1.0 / (variance + input.epsilon).sqrt();
            for (((y, normalized), gamma), beta) in y.iter_mut().zip(normalized).zip(input.gamma).zip(input.beta) {
                *normalized = (*normalized - mean) * scale;
                *y = multiply_add::<FMA>(*gamma, *normalized, *beta);
            }
            *inverse_std = scale;
        }
    }
}

multiversion! {
    fn add_norm_gradient_block<FMA>(
        input: &AddNormGradient, first_row: usize, d_x: &mut [f32], d_residual: Option<SinkMut>,
    ) {
        let cols = input.gamma.len();
        let (mut d_residual, add_residual) = d_residual.map_or((None, false), |sink| (Some(sink.values), sink.add));
        for (i, d_x) in d_x.chunks_exact_mut(cols).enumerate() {
            let row = first_row + i;
            let d_y = &input.d_y[row * cols..][..cols];
            let normalized = &input.normalized[row * cols..][..cols];
            // With d_n = d_y gamma: d_s = inverse_std (d_n - mean(d_n) - normalized mean(d_n normalized)).
            for ((d_n, d_y), gamma) in d_x.iter_mut().zip(d_y).zip(input.gamma) {
                *d_n = d_y * gamma;
            }
            let mean = sum(d_x, |d_n| d_n) / cols as f32;
            let slope = dot::<FMA>(d_x, normalized) / cols as f32;
            let scale = input.inverse_std[row];
            for (d_s, normalized) in d_x.iter_mut().zip(normalized) {
                *d_s = scale * multiply_add::<FMA>(-slope, *normalized, *d_s - mean);
            }
            if let Some(d_residual) = &mut d_residual {
                let d_residual = &mut d_residual[i * cols..][..cols];
                if add_residual {
                    add(d_x, d_residual);
                } else {
                    d_residual.copy_from_slice(d_x);
                }
            }
            input.drop.apply_in_place(row, d_x);
        }
    }
}

multiversion! {
    fn parameter_gradient_block<FMA>(input: &AddNormGradient, first: usize, d_gamma: SinkMut, d_beta: SinkMut) {
        let (rows, cols) = (input.inverse_std.len(), input.gamma.len());
        sum_row_products::<FMA>(input.d_y, input.normalized, cols, first, d_gamma);
        sum_rows(input.d_y, cols, first, 0..rows, d_beta);
    }
}

#[cfg(test)]
mod tests {
    use super::super::philox::{Stream, keep_row};
    use super::super::testing::{assert_close, difference_quotients, doubles, numbers, same_on_any_threads};
    use super::*;
    use crate::tensor::Dropout;

    const EPSILON: f32 = 1e-5;
    const STREAM: Stream = Stream { seed: 11, step: 2 };

    /// One case: a shape, whether there is a residual, and the dropout.
    struct Case {
        cols: usize,
        x: Vec<f32>,
        residual: Option<Vec<f32>>,
        keys: Vec<u32>,
        dropout: Dropout,
        gamma: Vec<f32>,
        beta: Vec<f32>,
        d_y: Vec<f32>,
    }

    fn cases() -> Vec<Case> {
        let mut cases = Vec::new();
        for (rows, cols) in [(0, 4), (1, 3), (5, 8), (3, 37), (70, 260)] {
            for residual in [false, true] {
                for probability in [0.0, 0.3] {
                    cases.push(Case {
                        cols,
                        x: numbers(1, rows * cols).iter().map(|x| 3.0 * x + 1.0).collect(),
                        residual: residual.then(|| numbers(2, rows * cols)),
                        keys: (0..rows as u32).map(|row| row << 16 | 5).collect(),
                        dropout: Dropout::new(probability, 3),
                        gamma: numbers(3, cols).iter().map(|x| 1.0 + x).collect(),
                        beta: numbers(4, cols),
                        d_y: numbers(5, rows * cols),
                    });
                }
            }
        }
        cases
    }

    impl Case {
        fn rows(&self) -> usize {
            self.keys.len()
        }

        fn drop(&self) -> RowDropout<'_> {
            RowDropout { stream: STREAM, dropout: self.dropout, keys: Some(&self.keys) }
        }

        fn keep(&self, row: usize) -> Vec<f64> {
            let mut keep = vec![0.0; self.cols];
            keep_row(Isa::Portable, STREAM, self.dropout, 0, self.keys[row], 0, &mut keep);
            doubles(&keep)
        }

        fn forward(&self, isa: Isa) -> [Vec<f32>; 3] {
            let input = AddNorm {
                x: &self.x,
                residual: self.residual.as_deref(),
                drop: self.drop(),
                gamma: &self.gamma,
                beta: &self.beta,
                epsilon: EPSILON,
            };
            let [mut y, mut normalized] = [0; 2].map(|_| vec![f32::NAN; self.x.len()]);
            let mut inverse_std = vec![f32::NAN; self.rows()];
            add_norm(isa, &input, &mut y, &mut normalized, &mut inverse_std);
            [y, normalized, inverse_std]
        }
    }

    /// The definition in f64, of one row: `y`, `normalized` and `inverse_std`.
    fn exact(
        x: &[f64],
        residual: &[f64],
        keep: &[f64],
        gamma: &[f64],
        beta: &[f64],
    ) -> (Vec<f64>, Vec<f64>, f64) {
        let count = x.len() as f64;
        let s: Vec<f64> = (0..x.len()).map(|i| x[i] * keep[i] + residual[i]).collect();
        let mean = s.iter().sum::<f64>() / count;
        let variance = s.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / count;
        let inverse_std = 1.0 / (variance + f64::from(EPSILON)).sqrt();
        let normalized: Vec<f64> = s.iter().map(|s| (s - mean) * inverse_std).collect();
        let y = (0..x.len()).map(|i| gamma[i] * normalized[i] + beta[i]).collect();
        (y, normalized, inverse_std)
    }

    #[test]
    fn forward_is_the_definition() {
        for case in cases() {
            let cols = case.cols;
            let mut expected = [vec![], vec![], vec![]];
            for row in 0..case.rows() {
                let part = |values: &[f32]| doubles(&values[row * cols..][..cols]);
                let residual = case.residual.as_ref().map_or(vec![0.0; cols], |residual| part(residual));
                let (gamma, beta) = (doubles(&case.gamma), doubles(&case.beta));
                let (y, normalized, inverse_std) =
                    exact(&part(&case.x), &residual, &case.keep(row), &gamma, &beta);
                expected[0].extend(y);
                expected[1].extend(normalized);
                expected[2].push(inverse_std);
            }
            same_on_any_threads(
                |isa| case.forward(isa).concat(),
                |results| assert_close(results, expected.concat(), 3e-6),
            );
        }
    }

    #[test]
    fn the_variance_does_not_cancel() {
        let (x, ones) = ([10_000.0, 10_001.0, 10_002.0, 10_003.0], [1.0; 4]);
        let drop = RowDropout { stream: STREAM, dropout: Dropout::new(0.0, 0), keys: None };
        let input = AddNorm { x: &x, residual: None, drop, gamma: &ones, beta: &[0.0; 4], epsilon: 1e-12 };
        for &isa in Isa::available() {
            let (mut y, mut normalized, mut inverse_std) = ([0.0; 4], [0.0; 4], [0.0]);
            add_norm(isa, &input, &mut y, &mut normalized, &mut inverse_std);
            assert_close(&inverse_std, [1.0 / 1.25f64.sqrt()], 1e-6);
        }
    }

    #[test]
    fn gradients_are_the_difference_quotients() {
        for case in cases().into_iter().filter(|case| case.x.len() < 200) {
            let (rows, cols) = (case.rows(), case.cols);
            // The scalar whose gradient is taken: the sum of y * d_y, as a function of everything.
            let zeros = vec![0.0; rows * cols];
            let residual = case.residual.as_ref().unwrap_or(&zeros);
            let all = [&case.x[..], residual, &case.gamma, &case.beta].concat();
            let quotients = difference_quotients(&all, |all| {
                let (x, rest) = all.split_at(rows * cols);
                let (residual, rest) = rest.split_at(rows * cols);
                let (gamma, beta) = rest.split_at(cols);
                let row_sum = |row: usize| {
                    let part = row * cols..(row + 1) * cols;
                    let (y, _, _) =
                        exact(&x[part.clone()], &residual[part.clone()], &case.keep(row), gamma, beta);
                    y.iter().zip(&case.d_y[part]).map(|(y, d_y)| y * f64::from(*d_y)).sum::<f64>()
                };
                (0..rows).map(row_sum).sum()
            });
            for add in [false, true] {
                let before = if add { 1.0 } else { 0.0 };
                same_on_any_threads(
                    |isa| {
                        let [_, normalized, inverse_std] = case.forward(isa);
                        let input = AddNormGradient {
                            d_y: &case.d_y,
                            normalized: &normalized,
                            inverse_std: &inverse_std,
                            gamma: &case.gamma,
                            drop: case.drop(),
                        };
                        let mut d_x = vec![f32::NAN; rows * cols];
                        let mut d_residual = vec![1.0; rows * cols];
                        let [mut d_gamma, mut d_beta] = [0; 2].map(|_| vec![1.0; cols]);
                        let sink = |values| SinkMut { values, add };
                        add_norm_gradient(
                            isa,
                            &input,
                            &mut d_x,
                            case.residual.is_some().then_some(SinkMut { values: &mut d_residual, add }),
                            sink(&mut d_gamma),
                            SinkMut { values: &mut d_beta, add },
                        );
                        if case.residual.is_none() {
                            assert!(d_residual.iter().all(|d| *d == 1.0));
                        }
                        [d_x, d_residual, d_gamma, d_beta].concat()
                    },
                    |gradients| {
                        let (d_x, rest) = gradients.split_at(rows * cols);
                        let (d_residual, parameters) = rest.split_at(rows * cols);
                        let (x_quotients, rest) = quotients.split_at(rows * cols);
                        let (residual_quotients, parameter_quotients) = rest.split_at(rows * cols);
                        assert_close(d_x, x_quotients.iter().copied(), 2e-5);
                        assert_close(parameters, parameter_quotients.iter().map(|d| before + d), 2e-5);
                        if case.residual.is_some() {
                            assert_close(d_residual, residual_quotients.iter().map(|d| before + d), 2e-5);
                        }
                    },
                );
            }
        }
    }
}
