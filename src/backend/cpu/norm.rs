//! Layer normalization (Ba, Kiros and Hinton 2016) of a sum, with the dropout before it.

use rayon::prelude::*;

use super::blocks::{SinkMut, optional_chunks_mut, rows_per_block};
use super::dropout::RowDropout;
use super::elements::{Elements, ElementsMut, ElementsSink, add};
use super::isa::Isa;
use super::math::multiply_add;
use super::scratch::{Scratch, Workspace};
use super::simd::multiversion;
use super::sums::{ROWS, add_blocks, dot, sum};

/// What [`add_norm`] reads; `rows` and `cols` are those of `x`.
#[derive(Clone, Copy, Debug)]
pub struct AddNorm<'a> {
    /// `[rows, cols]`
    pub x: Elements<'a>,
    /// `[rows, cols]`, added to `x` after the dropout.
    pub residual: Option<Elements<'a>>,
    /// On `x`.
    pub drop: RowDropout<'a>,
    /// `[cols]`
    pub gamma: &'a [f32],
    /// `[cols]`
    pub beta: &'a [f32],
    /// Added to the variance, inside the root.
    pub epsilon: f32,
}

/// What [`add_norm`] keeps for the backward pass.
#[derive(Debug)]
pub struct KeptNorm<'a> {
    /// `[rows, cols]`
    pub normalized: ElementsMut<'a>,
    /// `[rows]`
    pub inverse_std: &'a mut [f32],
}

/// `y = gamma * normalized + beta`, where `normalized = (s - mean(s)) * inverse_std` of each row of
/// `s = dropout(x) + residual`, and `inverse_std = 1 / sqrt(variance + epsilon)` with the biased variance.
///
/// `y` is `[rows, cols]`; what the backward pass needs is kept where there is one.
pub fn add_norm(isa: Isa, scratch: &Scratch, input: &AddNorm, y: ElementsMut, kept: Option<KeptNorm>) {
    let cols = input.gamma.len();
    let (size, rows) = (input.x.len(), input.x.len() / cols);
    assert_eq!(
        [rows * cols, input.residual.map_or(size, |residual| residual.len()), y.len()],
        [size; 3],
        "x, residual and y of [{rows}, {cols}]"
    );
    assert_eq!(input.beta.len(), cols, "beta beside gamma");
    input.drop.assert_rows(rows);
    let block = rows_per_block(cols);
    let run = |i: usize, y: ElementsMut, kept: Option<KeptNorm>| {
        scratch.with(FORWARD_BUFFERS * cols, |buffers| {
            add_norm_block(isa, input, i * block, buffers, y, kept);
        });
    };
    let y = y.par_chunks_mut(block * cols).enumerate();
    let Some(KeptNorm { normalized, inverse_std }) = kept else {
        return y.for_each(|(i, y)| run(i, y, None));
    };
    assert_eq!(
        [normalized.len(), inverse_std.len()],
        [size, rows],
        "normalized and inverse_std of [{rows}, {cols}]"
    );
    y.zip(normalized.par_chunks_mut(block * cols)).zip(inverse_std.par_chunks_mut(block)).for_each(
        |(((i, y), normalized), inverse_std)| run(i, y, Some(KeptNorm { normalized, inverse_std })),
    );
}

/// What [`add_norm_gradient`] reads.
#[derive(Clone, Copy, Debug)]
pub struct AddNormGradient<'a> {
    /// `[rows, cols]`
    pub d_y: Elements<'a>,
    /// `[rows, cols]`
    pub normalized: Elements<'a>,
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
    workspace: &mut Workspace,
    input: &AddNormGradient,
    d_x: ElementsMut,
    d_residual: Option<ElementsSink>,
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
    // The sums for `gamma` and `beta` are taken while a block's rows are in cache: `[blocks, 2, cols]`.
    let blocks = rows.div_ceil(ROWS);
    let (sums, scratch) = workspace.parts(blocks * 2 * cols);
    d_x.par_chunks_mut(ROWS * cols)
        .zip(optional_chunks_mut(d_residual, ROWS * cols, blocks))
        .zip(sums.par_chunks_mut(2 * cols))
        .enumerate()
        .for_each(|(i, ((d_x, d_residual), sums))| {
            let d_residual = d_residual.map(|values| ElementsSink { values, add });
            scratch.with(BACKWARD_BUFFERS * cols, |buffers| {
                add_norm_gradient_block(isa, input, i * ROWS, buffers, sums, d_x, d_residual)
            });
        });
    add_blocks(isa, sums, 2 * cols, 0, d_gamma);
    add_blocks(isa, sums, 2 * cols, cols, d_beta);
}

/// Makes room for what both passes over `[rows, cols]` need.
pub fn reserve(workspace: &mut Workspace, rows: usize, cols: usize) {
    workspace.reserve(rows.div_ceil(ROWS) * 2 * cols, BACKWARD_BUFFERS.max(FORWARD_BUFFERS) * cols);
}

/// Rows in f32 of what is kept in bf16.
const FORWARD_BUFFERS: usize = 2;
const BACKWARD_BUFFERS: usize = 3;

multiversion! {
    fn add_norm_block<FMA>(
        input: &AddNorm,
        first_row: usize,
        buffers: &mut [f32],
        y: ElementsMut,
        kept: Option<KeptNorm>,
    ) {
        let (mut all_y, mut kept) = (y, kept);
        let cols = input.gamma.len();
        let (of_normalized, of_y) = buffers.split_at_mut(cols);
        for i in 0..all_y.len() / cols {
            let (row, part) = (first_row + i, i * cols..(i + 1) * cols);
            let of_input = row * cols..(row + 1) * cols;
            // The sum is built where `normalized` goes, in cache, and normalized there; in the buffer if it goes nowhere.
            let normalized = match &mut kept {
                Some(kept) => kept.normalized.place(part.clone(), of_normalized),
                None => &mut *of_normalized,
            };
            input.x.copy_to(of_input.clone(), normalized);
            input.drop.apply(row, 0, normalized);
            if let Some(residual) = &input.residual {
                residual.add_to(of_input, normalized);
            }
            let mean = sum(normalized, |s| s) / cols as f32;
            // The mean first: the mean of squares less the square of the mean would cancel.
            let variance = sum(normalized, |s| (s - mean) * (s - mean)) / cols as f32;
            let scale = 1.0 / (variance + input.epsilon).sqrt();
            let y = all_y.place(part.clone(), of_y);
            for (((y, normalized), gamma), beta) in y.iter_mut().zip(normalized).zip(input.gamma).zip(input.beta) {
                *normalized = (*normalized - mean) * scale;
                *y = multiply_add::<FMA>(*gamma, *normalized, *beta);
            }
            all_y.settle(part.clone(), of_y);
            if let Some(kept) = &mut kept {
                kept.normalized.settle(part, of_normalized);
                kept.inverse_std[i] = scale;
            }
        }
    }
}

multiversion! {
    /// `sums` `[2, cols]` gets the block's part of the gradients of `gamma` and `beta`.
    fn add_norm_gradient_block<FMA>(
        input: &AddNormGradient,
        first_row: usize,
        buffers: &mut [f32],
        sums: &mut [f32],
        d_x: ElementsMut,
        d_residual: Option<ElementsSink>,
    ) {
        let (mut all_d_x, mut d_residual) = (d_x, d_residual);
        let cols = input.gamma.len();
        let (of_d_y, buffers) = buffers.split_at_mut(cols);
        let (of_normalized, of_d_x) = buffers.split_at_mut(cols);
        sums.fill(0.0);
        let (d_gamma, d_beta) = sums.split_at_mut(cols);
        for i in 0..all_d_x.len() / cols {
            let (row, part) = (first_row + i, i * cols..(i + 1) * cols);
            let of_input = row * cols..(row + 1) * cols;
            let d_y = input.d_y.read(of_input.clone(), of_d_y);
            let normalized = input.normalized.read(of_input, of_normalized);
            let d_x = all_d_x.place(part.clone(), of_d_x);
            add(d_y, d_beta);
            for ((sum, d_y), normalized) in d_gamma.iter_mut().zip(d_y).zip(normalized) {
                *sum = multiply_add::<FMA>(*d_y, *normalized, *sum);
            }
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
                d_residual.put(part.clone(), d_x, of_d_y);
            }
            input.drop.apply(row, 0, d_x);
            all_d_x.settle(part, of_d_x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::philox::{Stream, keep_row};
    use super::super::testing::{
        FLOATS, Kept, assert_close, assert_close_in, difference_quotients, doubles, numbers, rounded,
        same_on_any_threads, workspace,
    };
    use super::*;
    use crate::tensor::{DType, Dropout};

    const EPSILON: f32 = 1e-5;
    const STREAM: Stream = Stream { seed: 11, step: 2 };

    /// One case: the type that values are kept in, a shape, whether there is a residual, and the dropout.
    struct Case {
        dtype: DType,
        cols: usize,
        x: Vec<f32>,
        residual: Option<Vec<f32>>,
        keys: Vec<u32>,
        dropout: Dropout,
        gamma: Vec<f32>,
        beta: Vec<f32>,
        d_y: Vec<f32>,
    }

    fn cases(dtype: DType) -> Vec<Case> {
        let mut cases = Vec::new();
        let values = |numbers: Vec<f32>| rounded(dtype, &numbers);
        for (rows, cols) in [(0, 4), (1, 3), (5, 8), (3, 37), (70, 260)] {
            for residual in [false, true] {
                for probability in [0.0, 0.3] {
                    cases.push(Case {
                        dtype,
                        cols,
                        x: values(numbers(1, rows * cols).iter().map(|x| 3.0 * x + 1.0).collect()),
                        residual: residual.then(|| values(numbers(2, rows * cols))),
                        keys: (0..rows as u32).map(|row| row << 16 | 5).collect(),
                        dropout: Dropout::new(probability, 3),
                        gamma: numbers(3, cols).iter().map(|x| 1.0 + x).collect(),
                        beta: numbers(4, cols),
                        d_y: values(numbers(5, rows * cols)),
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

        /// `y`, `normalized` and `inverse_std`.
        fn forward(&self, isa: Isa) -> [Vec<f32>; 3] {
            let x = Kept::new(self.dtype, &self.x);
            let residual = self.residual.as_ref().map(|residual| Kept::new(self.dtype, residual));
            let input = AddNorm {
                x: x.elements(),
                residual: residual.as_ref().map(Kept::elements),
                drop: self.drop(),
                gamma: &self.gamma,
                beta: &self.beta,
                epsilon: EPSILON,
            };
            let [mut y, mut normalized] =
                [0; 2].map(|_| Kept::new(self.dtype, &vec![f32::NAN; self.x.len()]));
            let mut inverse_std = vec![f32::NAN; self.rows()];
            let workspace = workspace();
            let kept = KeptNorm { normalized: normalized.elements_mut(), inverse_std: &mut inverse_std };
            add_norm(isa, workspace.scratch(), &input, y.elements_mut(), Some(kept));
            let mut alone = Kept::new(self.dtype, &vec![f32::NAN; self.x.len()]);
            add_norm(isa, workspace.scratch(), &input, alone.elements_mut(), None);
            assert_eq!(alone.numbers(), y.numbers(), "nothing is kept");
            [y.numbers(), normalized.numbers(), inverse_std]
        }

        /// `d_x`, `d_residual`, `d_gamma` and `d_beta`, each stored or added to ones.
        fn backward(&self, isa: Isa, normalized: &[f32], inverse_std: &[f32], add: bool) -> [Vec<f32>; 4] {
            let [d_y, normalized] = [&self.d_y[..], normalized].map(|values| Kept::new(self.dtype, values));
            let input = AddNormGradient {
                d_y: d_y.elements(),
                normalized: normalized.elements(),
                inverse_std,
                gamma: &self.gamma,
                drop: self.drop(),
            };
            let [mut d_x, mut d_residual] =
                [f32::NAN, 1.0].map(|before| Kept::new(self.dtype, &vec![before; self.x.len()]));
            let [mut d_gamma, mut d_beta] = [0; 2].map(|_| vec![1.0; self.cols]);
            let of_residual = ElementsSink { values: d_residual.elements_mut(), add };
            add_norm_gradient(
                isa,
                &mut workspace(),
                &input,
                d_x.elements_mut(),
                self.residual.is_some().then_some(of_residual),
                SinkMut { values: &mut d_gamma, add },
                SinkMut { values: &mut d_beta, add },
            );
            let d_residual = d_residual.numbers();
            if self.residual.is_none() {
                assert!(d_residual.iter().all(|d| *d == 1.0));
            }
            [d_x.numbers(), d_residual, d_gamma, d_beta]
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
        for case in FLOATS.into_iter().flat_map(cases) {
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
                |results| {
                    let (values, inverse_std) = results.split_at(2 * case.x.len());
                    assert_close_in(case.dtype, values, expected[..2].concat(), 3e-6);
                    assert_close(inverse_std, expected[2].iter().copied(), 3e-6);
                },
            );
        }
    }

    #[test]
    fn the_variance_does_not_cancel() {
        let (x, ones) = ([10_000.0, 10_001.0, 10_002.0, 10_003.0], [1.0; 4]);
        let drop = RowDropout { stream: STREAM, dropout: Dropout::new(0.0, 0), keys: None };
        let x = Elements::F32(&x);
        let input = AddNorm { x, residual: None, drop, gamma: &ones, beta: &[0.0; 4], epsilon: 1e-12 };
        for &isa in Isa::available() {
            let (mut y, mut normalized, mut inverse_std) = ([0.0; 4], [0.0; 4], [0.0]);
            let kept =
                KeptNorm { normalized: ElementsMut::F32(&mut normalized), inverse_std: &mut inverse_std };
            add_norm(isa, workspace().scratch(), &input, ElementsMut::F32(&mut y), Some(kept));
            assert_close(&inverse_std, [1.0 / 1.25f64.sqrt()], 1e-6);
        }
    }

    #[test]
    fn gradients_are_the_difference_quotients() {
        for case in cases(DType::F32).into_iter().filter(|case| case.x.len() < 200) {
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
                        case.backward(isa, &normalized, &inverse_std, add).concat()
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

    /// What the test above says of the formula at a few rows, of what is read: also where that was rounded.
    #[test]
    fn gradients_are_the_formula_of_what_is_read() {
        for case in FLOATS.into_iter().flat_map(cases) {
            let cols = case.cols;
            let [_, normalized, inverse_std] = case.forward(Isa::Portable);
            let gamma = doubles(&case.gamma);
            for add in [false, true] {
                let before = if add { 1.0 } else { 0.0 };
                let (mut d_x, mut d_residual) = (vec![], vec![]);
                let (mut d_gamma, mut d_beta) = (vec![before; cols], vec![before; cols]);
                for (row, inverse_std) in inverse_std.iter().enumerate() {
                    let part = row * cols..(row + 1) * cols;
                    let (d_y, n) = (doubles(&case.d_y[part.clone()]), doubles(&normalized[part]));
                    let mean = (0..cols).map(|c| d_y[c] * gamma[c]).sum::<f64>() / cols as f64;
                    let slope = (0..cols).map(|c| d_y[c] * gamma[c] * n[c]).sum::<f64>() / cols as f64;
                    let keep = case.keep(row);
                    for c in 0..cols {
                        let d_s = f64::from(*inverse_std) * (d_y[c] * gamma[c] - mean - n[c] * slope);
                        d_x.push(d_s * keep[c]);
                        d_residual.push(if case.residual.is_some() { before + d_s } else { 1.0 });
                        d_gamma[c] += d_y[c] * n[c];
                        d_beta[c] += d_y[c];
                    }
                }
                same_on_any_threads(
                    |isa| case.backward(isa, &normalized, &inverse_std, add).concat(),
                    |gradients| {
                        let (values, parameters) = gradients.split_at(2 * case.x.len());
                        assert_close_in(case.dtype, values, [&d_x[..], &d_residual].concat(), 5e-6);
                        assert_close(parameters, [&d_gamma[..], &d_beta].concat(), 5e-6);
                    },
                );
            }
        }
    }
}
