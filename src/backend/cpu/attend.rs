//! One query a sequence over the tokens of one of its two texts (Liu et al. 2019, section 3.1).
//!
//! A task is a sequence; backward reads the softmax that forward kept, whose weights are zero outside the text.

use rayon::prelude::*;

use super::blocks::SinkMut;
use super::bounds::Bounds;
use super::isa::Isa;
use super::math::{exp, multiply_add};
use super::shared::SharedMut;
use super::simd::multiversion;
use super::sums::{COLUMNS, dot, largest, sum, sum_blocks};

/// What is attended to, and by what.
#[derive(Clone, Copy, Debug)]
pub struct Attend<'a> {
    /// `[tokens, cols]`
    pub keys: &'a [f32],
    /// `[tokens, cols]`
    pub values: &'a [f32],
    /// `[sequences, cols]`, or `[1, cols]` where all sequences have the same.
    pub query: &'a [f32],
}

impl<'a> Attend<'a> {
    /// The columns of `out`, which has a row a sequence; panics unless all shapes fit.
    fn cols(&self, sequences: usize, tokens: usize, out: usize) -> usize {
        let cols = out / sequences.max(1);
        assert_eq!(out, sequences * cols, "{out} elements for {sequences} sequences");
        assert_eq!([self.keys.len(), self.values.len()], [tokens * cols; 2], "[{tokens}, {cols}]");
        assert!([cols, sequences * cols].contains(&self.query.len()), "a query of {}", self.query.len());
        cols
    }

    fn query_of(&self, sequence: usize, cols: usize) -> &'a [f32] {
        if self.query.len() == cols { self.query } else { &self.query[sequence * cols..][..cols] }
    }
}

/// `out = sum over j of softmax_j(keys_j · query) values_j` over the tokens of type `segment` of each sequence, `out`
/// `[sequences, cols]`; zeros where there are none. `weights` `[tokens]` is the softmax, zero for other tokens.
pub fn attend(
    isa: Isa,
    input: &Attend,
    bounds: Bounds,
    types: &[u32],
    segment: u32,
    weights: &mut [f32],
    out: &mut [f32],
) {
    let cols = input.cols(bounds.count(), weights.len(), out.len());
    weights.fill(0.0);
    let weights = SharedMut::new(weights);
    out.par_chunks_mut(cols).enumerate().with_max_len(1).for_each(|(sequence, out)| {
        let rows = bounds.rows(sequence);
        let elements = rows.start * cols..rows.end * cols;
        // SAFETY: a token belongs to one sequence.
        let weights = unsafe { weights.slice(rows.clone()) };
        let (keys, values) = (&input.keys[elements.clone()], &input.values[elements]);
        attend_sequence(
            isa,
            keys,
            values,
            input.query_of(sequence, cols),
            &types[rows],
            segment,
            weights,
            out,
        );
    });
}

/// Where the gradients of [`attend`] go.
pub struct AttendGradient<'a> {
    /// The gradient of `keys · query`, `[tokens]`; stored.
    pub d_scores: &'a mut [f32],
    /// `[tokens, cols]`
    pub d_keys: SinkMut<'a>,
    /// `[tokens, cols]`; absent where the keys are the values, and then part of `d_keys`.
    pub d_values: Option<SinkMut<'a>>,
    /// Like the query.
    pub d_query: SinkMut<'a>,
}

/// The gradients of [`attend`], from that of `out` and the softmax that it wrote.
pub fn attend_gradient(
    isa: Isa,
    input: &Attend,
    bounds: Bounds,
    weights: &[f32],
    d_out: &[f32],
    gradients: AttendGradient,
) {
    let cols = input.cols(bounds.count(), weights.len(), d_out.len());
    let AttendGradient { d_scores, mut d_keys, mut d_values, d_query } = gradients;
    assert_eq!(d_scores.len(), weights.len(), "gradients of {} scores", weights.len());
    assert_eq!(d_query.values.len(), input.query.len(), "the gradient of a query of {}", input.query.len());
    d_scores.fill(0.0);
    for sink in [&mut d_keys].into_iter().chain(&mut d_values) {
        assert_eq!(sink.values.len(), input.keys.len(), "the gradient of {} elements", input.keys.len());
        if !sink.add {
            sink.values.fill(0.0);
        }
    }
    let shared_query = input.query.len() == cols;
    {
        let d_scores = SharedMut::new(d_scores);
        let d_keys = SharedMut::new(d_keys.values);
        let d_values = d_values.map(|sink| SharedMut::new(sink.values));
        (0..bounds.count()).into_par_iter().with_max_len(1).for_each(|sequence| {
            let rows = bounds.rows(sequence);
            let elements = rows.start * cols..rows.end * cols;
            // SAFETY: a token belongs to one sequence.
            let (d_scores, d_keys, d_values) = unsafe {
                let d_values = d_values.map(|d_values| d_values.slice(elements.clone()));
                (d_scores.slice(rows.clone()), d_keys.slice(elements.clone()), d_values)
            };
            let values = &input.values[elements];
            let d_out = &d_out[sequence * cols..][..cols];
            let query = input.query_of(sequence, cols);
            attend_sequence_gradient(isa, values, query, &weights[rows], d_out, d_scores, d_keys, d_values);
        });
    }
    let d_scores = &*d_scores;
    if shared_query {
        d_query.values.par_chunks_mut(COLUMNS).enumerate().for_each(|(i, values)| {
            let out = SinkMut { values, add: d_query.add };
            query_gradient(isa, input.keys, d_scores, cols, i * COLUMNS, out);
        });
    } else {
        d_query.values.par_chunks_mut(cols).enumerate().for_each(|(sequence, values)| {
            let rows = bounds.rows(sequence);
            let keys = &input.keys[rows.start * cols..rows.end * cols];
            for (i, values) in values.chunks_mut(COLUMNS).enumerate() {
                let out = SinkMut { values, add: d_query.add };
                query_gradient(isa, keys, &d_scores[rows.clone()], cols, i * COLUMNS, out);
            }
        });
    }
}

multiversion! {
    fn attend_sequence<FMA>(
        keys: &[f32], values: &[f32], query: &[f32], types: &[u32], segment: u32, weights: &mut [f32], out: &mut [f32],
    ) {
        let cols = out.len();
        for ((weight, keys), of_text) in weights.iter_mut().zip(keys.chunks_exact(cols)).zip(types) {
            *weight = if *of_text == segment { dot::<FMA>(keys, query) } else { f32::NEG_INFINITY };
        }
        let largest = largest(weights);
        let base = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        for weight in weights.iter_mut() {
            *weight = exp::<FMA>(*weight - base);
        }
        let sum = sum(weights, |weight| weight);
        // Without tokens all weights are zero, and stay so; a sum that is no number shows.
        let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        out.fill(0.0);
        for (weight, values) in weights.iter_mut().zip(values.chunks_exact(cols)) {
            *weight *= scale;
            for (out, value) in out.iter_mut().zip(values) {
                *out = multiply_add::<FMA>(*weight, *value, *out);
            }
        }
    }
}

multiversion! {
    /// Stores `d_scores` and adds to the others, of one sequence.
    fn attend_sequence_gradient<FMA>(
        values: &[f32],
        query: &[f32],
        weights: &[f32],
        d_out: &[f32],
        d_scores: &mut [f32],
        d_keys: &mut [f32],
        d_values: Option<&mut [f32]>,
    ) {
        let cols = query.len();
        // In f64 up to the difference: tokens of one text are alike, and it cancels.
        let d_weight = |values: &[f32]| -> f64 {
            d_out.iter().zip(values).map(|(d, value)| f64::from(*d) * f64::from(*value)).sum()
        };
        let rows = || values.chunks_exact(cols).zip(weights);
        let mean: f64 = rows().map(|(values, weight)| f64::from(*weight) * d_weight(values)).sum();
        for (d_score, (values, weight)) in d_scores.iter_mut().zip(rows()) {
            *d_score = weight * (d_weight(values) - mean) as f32;
        }
        for (d_keys, d_score) in d_keys.chunks_exact_mut(cols).zip(d_scores.iter()) {
            for (d, query) in d_keys.iter_mut().zip(query) {
                *d = multiply_add::<FMA>(*d_score, *query, *d);
            }
        }
        let d_values = d_values.unwrap_or(d_keys);
        for (d_values, weight) in d_values.chunks_exact_mut(cols).zip(weights) {
            for (d, d_out) in d_values.iter_mut().zip(d_out) {
                *d = multiply_add::<FMA>(*weight, *d_out, *d);
            }
        }
    }
}

multiversion! {
    /// The sum over rows of `d_scores[row] keys[row]`, for up to 64 columns from `first` on.
    fn query_gradient<FMA>(keys: &[f32], d_scores: &[f32], cols: usize, first: usize, out: SinkMut) {
        let width = out.values.len();
        sum_blocks(0..d_scores.len(), out, |row, sums| {
            for (sum, key) in sums.iter_mut().zip(&keys[row * cols + first..][..width]) {
                *sum = multiply_add::<FMA>(d_scores[row], *key, *sum);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, difference_quotients, doubles, numbers, same_on_any_threads};
    use super::*;

    /// Three sequences with a dead row between; the last has no token of the second text.
    const STARTS: [u32; 3] = [6, 0, 9];
    const ENDS: [u32; 3] = [9, 5, 10];
    const TYPES: [u32; 10] = [0, 1, 1, 0, 1, 1, 0, 0, 1, 0];

    /// The outputs in f64.
    fn exact(keys: &[f64], values: &[f64], query: &[f64], segment: u32) -> Vec<f64> {
        let cols = keys.len() / TYPES.len();
        let mut out = vec![0.0; 3 * cols];
        for sequence in 0..3 {
            let query = if query.len() == cols { query } else { &query[sequence * cols..][..cols] };
            let rows = STARTS[sequence] as usize..ENDS[sequence] as usize;
            let rows: Vec<usize> = rows.filter(|&row| TYPES[row] == segment).collect();
            let exponential = |row: usize| {
                keys[row * cols..][..cols].iter().zip(query).map(|(k, q)| k * q).sum::<f64>().exp()
            };
            let sum: f64 = rows.iter().map(|&row| exponential(row)).sum();
            for &row in &rows {
                for c in 0..cols {
                    out[sequence * cols + c] += exponential(row) / sum * values[row * cols + c];
                }
            }
        }
        out
    }

    #[test]
    fn attends_to_one_text_and_its_gradients_are_the_difference_quotients() {
        let bounds = Bounds { starts: &STARTS, ends: &ENDS };
        for (cols, queries) in [(1, 1), (7, 3), (70, 1), (70, 3)] {
            let (keys, values) = (numbers(1, 10 * cols), numbers(2, 10 * cols));
            let (query, d_out) = (numbers(3, queries * cols), numbers(4, 3 * cols));
            for (segment, same, add) in
                [(0, false, false), (1, false, true), (1, true, false), (0, true, true)]
            {
                let values = if same { &keys } else { &values };
                let input = Attend { keys: &keys, values, query: &query };
                let outputs = |keys: &[f64], values: &[f64], query: &[f64]| -> f64 {
                    let out = exact(keys, if same { keys } else { values }, query, segment);
                    out.iter().zip(&d_out).map(|(out, d)| out * f64::from(*d)).sum()
                };
                let (k, v, q) = (doubles(&keys), doubles(values), doubles(&query));
                let mut expected = exact(&k, &v, &q, segment);
                expected.extend(difference_quotients(&keys, |keys| outputs(keys, &v, &q)));
                if !same {
                    expected.extend(difference_quotients(values, |values| outputs(&k, values, &q)));
                }
                expected.extend(difference_quotients(&query, |query| outputs(&k, &v, query)));
                let before = if add { 0.5 } else { 0.0 };
                expected[3 * cols..].iter_mut().for_each(|d| *d += before);
                same_on_any_threads(
                    |isa| {
                        let mut out = vec![f32::NAN; 3 * cols];
                        let (mut weights, mut d_scores) = ([f32::NAN; 10], [f32::NAN; 10]);
                        attend(isa, &input, bounds, &TYPES, segment, &mut weights, &mut out);
                        let garbage = if add { 0.5 } else { f32::NAN };
                        let [mut d_keys, mut d_values] = [(); 2].map(|()| vec![garbage; 10 * cols]);
                        let mut d_query = vec![garbage; queries * cols];
                        let gradients = AttendGradient {
                            d_scores: &mut d_scores,
                            d_keys: SinkMut { values: &mut d_keys, add },
                            d_values: (!same).then_some(SinkMut { values: &mut d_values, add }),
                            d_query: SinkMut { values: &mut d_query, add },
                        };
                        attend_gradient(isa, &input, bounds, &weights, &d_out, gradients);
                        out.extend(d_keys);
                        if !same {
                            out.extend(d_values);
                        }
                        out.extend(d_query);
                        out
                    },
                    |results| assert_close(results, expected.iter().copied(), 2e-6),
                );
            }
        }
    }

    #[test]
    fn what_is_no_number_shows() {
        let bounds = Bounds { starts: &[0], ends: &[2] };
        let input = Attend { keys: &[f32::NAN, 1.0], values: &[1.0, 1.0], query: &[1.0] };
        let (mut weights, mut out) = ([0.0; 2], [0.0]);
        attend(Isa::detect(), &input, bounds, &[1, 0], 1, &mut weights, &mut out);
        assert!(out[0].is_nan());
    }
}
