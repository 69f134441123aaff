//! What the steps of a stochastic answer network compute beside products and attention (Liu et al. 2019, section 3.1):
//! a gated recurrent unit, the merge of state and input, and the average of the steps' answers.

use rayon::prelude::*;

use super::blocks::{SinkMut, rows_per_block};
use super::isa::Isa;
use super::math::{exp, tanh};
use super::philox::Stream;
use super::simd::multiversion;
use crate::random::philox4x32_10;
use crate::tensor::{Dropout, MOST_STEPS};

/// What a gated recurrent unit reads.
#[derive(Clone, Copy, Debug)]
pub struct Gru<'a> {
    /// The linear map of the input, `[rows, 3 * cols]`: r, z, n side by side.
    pub of_input: &'a [f32],
    /// The linear map of the state, `[rows, 3 * cols]`.
    pub of_state: &'a [f32],
    /// `[rows, cols]`
    pub state: &'a [f32],
}

impl Gru<'_> {
    fn assert_shapes(&self, elements: usize) {
        assert_eq!(self.state.len(), elements, "a state beside the next");
        assert_eq!([self.of_input.len(), self.of_state.len()], [3 * elements; 2], "maps of {elements}");
    }
}

/// `out = (1 - z) n + z state` (Cho et al. 2014; see [`Op::Gru`](crate::tensor::Op::Gru)), `[rows, cols]`.
pub fn gru(isa: Isa, gru: &Gru, cols: usize, out: &mut [f32]) {
    gru.assert_shapes(out.len());
    let block = rows_per_block(4 * cols) * cols;
    (out.par_chunks_mut(block))
        .zip(gru.of_input.par_chunks(3 * block))
        .zip(gru.of_state.par_chunks(3 * block))
        .zip(gru.state.par_chunks(block))
        .for_each(|(((out, of_input), of_state), state)| {
            gru_block(isa, &Gru { of_input, of_state, state }, cols, out);
        });
}

/// The gradients of [`gru`]: those of the two maps are stored.
pub fn gru_gradient(
    isa: Isa,
    gru: &Gru,
    cols: usize,
    d_out: &[f32],
    d_of_input: &mut [f32],
    d_of_state: &mut [f32],
    d_state: SinkMut,
) {
    gru.assert_shapes(d_out.len());
    assert_eq!([d_of_input.len(), d_of_state.len()], [3 * d_out.len(); 2], "gradients of the maps");
    let block = rows_per_block(8 * cols) * cols;
    (d_state.values.par_chunks_mut(block))
        .zip(d_of_input.par_chunks_mut(3 * block))
        .zip(d_of_state.par_chunks_mut(3 * block))
        .enumerate()
        .for_each(|(i, ((values, d_of_input), d_of_state))| {
            let own = i * block..i * block + values.len();
            let maps = 3 * own.start..3 * own.end;
            let gru = Gru {
                of_input: &gru.of_input[maps.clone()],
                of_state: &gru.of_state[maps],
                state: &gru.state[own.clone()],
            };
            let d_state = SinkMut { values, add: d_state.add };
            gru_gradient_block(isa, &gru, cols, &d_out[own], d_of_input, d_of_state, d_state);
        });
}

#[inline(always)]
fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

multiversion! {
    fn gru_block<FMA>(gru: &Gru, cols: usize, out: &mut [f32]) {
        let maps = gru.of_input.chunks_exact(3 * cols).zip(gru.of_state.chunks_exact(3 * cols));
        let rows = gru.state.chunks_exact(cols).zip(out.chunks_exact_mut(cols));
        for ((i, s), (state, out)) in maps.zip(rows) {
            for c in 0..cols {
                let r = sigmoid::<FMA>(i[c] + s[c]);
                let z = sigmoid::<FMA>(i[cols + c] + s[cols + c]);
                let n = tanh::<FMA>(i[2 * cols + c] + r * s[2 * cols + c]);
                out[c] = n + z * (state[c] - n);
            }
        }
    }
}

multiversion! {
    fn gru_gradient_block<FMA>(
        gru: &Gru,
        cols: usize,
        d_out: &[f32],
        d_of_input: &mut [f32],
        d_of_state: &mut [f32],
        d_state: SinkMut,
    ) {
        let add = d_state.add;
        let maps = gru.of_input.chunks_exact(3 * cols).zip(gru.of_state.chunks_exact(3 * cols));
        let d_maps = d_of_input.chunks_exact_mut(3 * cols).zip(d_of_state.chunks_exact_mut(3 * cols));
        let rows = gru.state.chunks_exact(cols).zip(d_out.chunks_exact(cols));
        let rows = rows.zip(d_state.values.chunks_exact_mut(cols));
        for (((i, s), (d_i, d_s)), ((state, d_out), d_state)) in maps.zip(d_maps).zip(rows) {
            for c in 0..cols {
                let r = sigmoid::<FMA>(i[c] + s[c]);
                let z = sigmoid::<FMA>(i[cols + c] + s[cols + c]);
                let n = tanh::<FMA>(i[2 * cols + c] + r * s[2 * cols + c]);
                let d_n = d_out[c] * (1.0 - z) * (1.0 - n * n);
                let d_r = d_n * s[2 * cols + c] * r * (1.0 - r);
                let d_z = d_out[c] * (state[c] - n) * z * (1.0 - z);
                (d_i[c], d_i[cols + c], d_i[2 * cols + c]) = (d_r, d_z, d_n);
                (d_s[c], d_s[cols + c], d_s[2 * cols + c]) = (d_r, d_z, d_n * r);
                d_state[c] = d_out[c] * z + if add { d_state[c] } else { 0.0 };
            }
        }
    }
}

/// `out = [a; b; |a - b|; a b]` row by row: `[rows, cols]` twice to `[rows, 4 * cols]`.
pub fn merge(a: &[f32], b: &[f32], cols: usize, out: &mut [f32]) {
    assert_eq!((a.len(), 4 * a.len()), (b.len(), out.len()), "merging {} and {} elements", a.len(), b.len());
    let block = rows_per_block(4 * cols) * cols;
    let blocks = out.par_chunks_mut(4 * block).zip(a.par_chunks(block)).zip(b.par_chunks(block));
    blocks.for_each(|((out, a), b)| {
        let rows = a.chunks_exact(cols).zip(b.chunks_exact(cols)).zip(out.chunks_exact_mut(4 * cols));
        for ((a, b), out) in rows {
            out[..cols].copy_from_slice(a);
            out[cols..2 * cols].copy_from_slice(b);
            for c in 0..cols {
                out[2 * cols + c] = (a[c] - b[c]).abs();
                out[3 * cols + c] = a[c] * b[c];
            }
        }
    });
}

/// The gradients of [`merge`]; where `a` and `b` are equal, that of `|a - b|` is zero.
pub fn merge_gradient(a: &[f32], b: &[f32], cols: usize, d_out: &[f32], d_a: SinkMut, d_b: SinkMut) {
    assert_eq!((a.len(), 4 * a.len()), (b.len(), d_out.len()), "merged {} and {} elements", a.len(), b.len());
    let block = rows_per_block(4 * cols) * cols;
    (d_a.values.par_chunks_mut(block))
        .zip(d_b.values.par_chunks_mut(block))
        .zip(a.par_chunks(block))
        .zip(b.par_chunks(block))
        .zip(d_out.par_chunks(4 * block))
        .for_each(|((((d_a_block, d_b_block), a), b), d_out)| {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                let d = |part: usize| d_out[(i / cols * 4 + part) * cols + i % cols];
                let difference = a - b;
                let sign = if difference == 0.0 { 0.0 } else { difference.signum() };
                let before = |add: bool, value: f32| if add { value } else { 0.0 };
                d_a_block[i] = before(d_a.add, d_a_block[i]) + d(0) + sign * d(2) + b * d(3);
                d_b_block[i] = before(d_b.add, d_b_block[i]) + d(1) - sign * d(2) + a * d(3);
            }
        });
}

/// The answers of all steps, and which of them each row keeps.
pub struct Steps<'a> {
    logits: [&'a [f32]; MOST_STEPS],
    count: usize,
    classes: usize,
    stream: Stream,
    dropout: Dropout,
}

impl<'a> Steps<'a> {
    /// Of logits `[rows, classes]` a step.
    pub fn new(
        stream: Stream,
        dropout: Dropout,
        classes: usize,
        logits: impl ExactSizeIterator<Item = &'a [f32]>,
    ) -> Self {
        let count = logits.len();
        assert!((1..=MOST_STEPS).contains(&count), "{count} steps");
        let mut steps = Self { logits: [&[]; MOST_STEPS], count, classes, stream, dropout };
        for (own, of_step) in steps.logits.iter_mut().zip(logits) {
            *own = of_step;
        }
        steps
    }

    /// Which steps a row keeps, a bit each: those whose draw says so, and one that a draw of its own picks.
    fn kept(&self, row: usize) -> u32 {
        if !self.dropout.is_on() {
            return (1 << self.count) - 1;
        }
        let Stream { seed, step } = self.stream;
        let draw = |column: usize| {
            let counter = [(column / 8) as u32, row as u32, self.dropout.site << 8, step];
            let words = philox4x32_10(counter, [seed as u32, (seed >> 32) as u32]);
            words[column % 8 / 2] >> (16 * (column % 2)) & 0xFFFF
        };
        let picked = (draw(MOST_STEPS) as usize * self.count) >> 16;
        let keeps = |&step: &usize| step == picked || draw(step) >= self.dropout.threshold;
        (0..self.count).filter(keeps).fold(0, |mask, step| mask | 1 << step)
    }

    /// Fills `log_softmax` `[steps]` for each class of a row in turn.
    fn row(&self, row: usize) -> Row<'a> {
        let mut base = [0.0; MOST_STEPS];
        let mut logits: [&[f32]; MOST_STEPS] = [&[]; MOST_STEPS];
        for step in 0..self.count {
            let of_step = &self.logits[step][row * self.classes..][..self.classes];
            let largest = of_step.iter().fold(f64::NEG_INFINITY, |most, &logit| most.max(f64::from(logit)));
            let sum: f64 = of_step.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
            (logits[step], base[step]) = (of_step, largest + sum.ln());
        }
        Row { logits, base, kept: self.kept(row) }
    }
}

/// The steps' answers to one row, in f64: there are few.
struct Row<'a> {
    logits: [&'a [f32]; MOST_STEPS],
    base: [f64; MOST_STEPS],
    kept: u32,
}

impl Row<'_> {
    fn keeps(&self, step: usize) -> bool {
        self.kept >> step & 1 == 1
    }

    fn log_softmax(&self, step: usize, class: usize) -> f64 {
        f64::from(self.logits[step][class]) - self.base[step]
    }

    /// The logarithm of the number of steps kept.
    fn log_count(&self) -> f64 {
        f64::from(self.kept.count_ones()).ln()
    }
}

/// `out = log(mean over the steps kept of softmax(logits))`, `[rows, classes]`.
pub fn step_average(steps: &Steps, out: &mut [f32]) {
    assert_eq!(steps.logits[0].len(), out.len(), "an average beside its steps");
    for (number, out) in out.chunks_exact_mut(steps.classes).enumerate() {
        let row = steps.row(number);
        for (class, out) in out.iter_mut().enumerate() {
            let kept = || (0..steps.count).filter(|&step| row.keeps(step));
            let largest =
                kept().map(|step| row.log_softmax(step, class)).fold(f64::NEG_INFINITY, |most, x| {
                    // Not `max`, which would hide what is no number.
                    if most > x { most } else { x }
                });
            let sum: f64 = kept().map(|step| (row.log_softmax(step, class) - largest).exp()).sum();
            *out = (largest + sum.ln() - row.log_count()) as f32;
        }
    }
}

/// The gradients of [`step_average`], from `out` and its gradient: one value a step.
pub fn step_average_gradient<'a>(
    steps: &Steps,
    out: &[f32],
    d_out: &[f32],
    d_logits: impl Iterator<Item = &'a mut [f32]>,
) {
    let classes = steps.classes;
    for (step, d_logits) in d_logits.enumerate() {
        assert_eq!(d_logits.len(), out.len(), "gradients of {} logits", out.len());
        for (number, d_logits) in d_logits.chunks_exact_mut(classes).enumerate() {
            let row = steps.row(number);
            if !row.keeps(step) {
                d_logits.fill(0.0);
                continue;
            }
            // The step's share of a class's probability, times the gradient of its logarithm.
            let share = |class: usize| {
                let at = number * classes + class;
                let log_share = row.log_softmax(step, class) - f64::from(out[at]) - row.log_count();
                log_share.exp() * f64::from(d_out[at])
            };
            let total: f64 = (0..classes).map(share).sum();
            for (class, d) in d_logits.iter_mut().enumerate() {
                *d = (share(class) - row.log_softmax(step, class).exp() * total) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, difference_quotients, doubles, numbers, same_on_any_threads};
    use super::*;

    const STREAM: Stream = Stream { seed: 7, step: 3 };

    /// PyTorch's `GRUCell` behind its linear maps, in f64.
    fn gru_exact(of_input: &[f64], of_state: &[f64], state: &[f64], cols: usize) -> Vec<f64> {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        (0..state.len())
            .map(|i| {
                let at = |part: usize| i / cols * 3 * cols + part * cols + i % cols;
                let r = sigmoid(of_input[at(0)] + of_state[at(0)]);
                let z = sigmoid(of_input[at(1)] + of_state[at(1)]);
                let n = (of_input[at(2)] + r * of_state[at(2)]).tanh();
                (1.0 - z) * n + z * state[i]
            })
            .collect()
    }

    #[test]
    fn the_recurrent_unit_is_its_formula_and_its_gradients_the_difference_quotients() {
        for (rows, cols) in [(1, 1), (3, 7), (2, 40)] {
            let scaled = |seed, count| -> Vec<f32> { numbers(seed, count).iter().map(|x| 3.0 * x).collect() };
            let (of_input, of_state) = (scaled(1, 3 * rows * cols), scaled(2, 3 * rows * cols));
            let (state, d_out) = (numbers(3, rows * cols), numbers(4, rows * cols));
            let gates = Gru { of_input: &of_input, of_state: &of_state, state: &state };
            let (i, s, h) = (doubles(&of_input), doubles(&of_state), doubles(&state));
            let total = |out: Vec<f64>| out.iter().zip(&d_out).map(|(x, d)| x * f64::from(*d)).sum::<f64>();
            let mut expected = gru_exact(&i, &s, &h, cols);
            expected.extend(difference_quotients(&of_input, |i| total(gru_exact(i, &s, &h, cols))));
            expected.extend(difference_quotients(&of_state, |s| total(gru_exact(&i, s, &h, cols))));
            let of_the_state = difference_quotients(&state, |h| total(gru_exact(&i, &s, h, cols)));
            for add in [false, true] {
                let before = if add { 0.5 } else { 0.0 };
                same_on_any_threads(
                    |isa| {
                        let mut results = vec![f32::NAN; rows * cols];
                        gru(isa, &gates, cols, &mut results);
                        let [mut d_input, mut d_state] = [(); 2].map(|()| vec![f32::NAN; 3 * rows * cols]);
                        let mut d_before = vec![if add { 0.5 } else { f32::NAN }; rows * cols];
                        let sink = SinkMut { values: &mut d_before, add };
                        gru_gradient(isa, &gates, cols, &d_out, &mut d_input, &mut d_state, sink);
                        [results, d_input, d_state, d_before].concat()
                    },
                    |results| {
                        let states = of_the_state.iter().map(|d| d + before);
                        assert_close(results, expected.iter().copied().chain(states), 2e-6);
                    },
                );
            }
        }
    }

    #[test]
    fn gates_at_their_ends_are_open_or_shut() {
        // z = 1 keeps the state, z = 0 takes the new value.
        for (z, expected) in [(200.0, 0.25), (-200.0, 0.5f32.tanh())] {
            let gates = Gru { of_input: &[0.0, z, 0.5], of_state: &[0.0; 3], state: &[0.25] };
            let mut out = [f32::NAN];
            gru(Isa::detect(), &gates, 1, &mut out);
            assert_close(&out, [f64::from(expected)], 1e-6);
        }
    }

    #[test]
    fn a_merge_is_its_four_parts_and_its_gradients_the_difference_quotients() {
        for (rows, cols) in [(1, 1), (3, 5)] {
            let (a, b, d_out) =
                (numbers(1, rows * cols), numbers(2, rows * cols), numbers(3, 4 * rows * cols));
            let exact = |a: &[f64], b: &[f64]| -> Vec<f64> {
                let rows = a.chunks(cols).zip(b.chunks(cols));
                rows.flat_map(|(a, b)| {
                    let pairs = || a.iter().zip(b);
                    let differences = pairs().map(|(a, b)| (a - b).abs());
                    let parts = a.iter().copied().chain(b.iter().copied()).chain(differences);
                    parts.chain(pairs().map(|(a, b)| a * b)).collect::<Vec<f64>>()
                })
                .collect()
            };
            let (of_a, of_b) = (doubles(&a), doubles(&b));
            let total = |out: Vec<f64>| out.iter().zip(&d_out).map(|(x, d)| x * f64::from(*d)).sum::<f64>();
            let mut out = vec![f32::NAN; 4 * rows * cols];
            merge(&a, &b, cols, &mut out);
            assert_close(&out, exact(&of_a, &of_b), 1e-7);
            for add in [false, true] {
                let before = if add { 0.5 } else { f32::NAN };
                let [mut d_a, mut d_b] = [(); 2].map(|()| vec![before; rows * cols]);
                let sinks = [&mut d_a, &mut d_b].map(|values| SinkMut { values, add });
                let [to_a, to_b] = sinks;
                merge_gradient(&a, &b, cols, &d_out, to_a, to_b);
                let more = |d: f64| d + if add { 0.5 } else { 0.0 };
                assert_close(
                    &d_a,
                    difference_quotients(&a, |a| total(exact(a, &of_b))).into_iter().map(more),
                    2e-6,
                );
                assert_close(
                    &d_b,
                    difference_quotients(&b, |b| total(exact(&of_a, b))).into_iter().map(more),
                    2e-6,
                );
            }
        }
        let mut d = [[f32::NAN; 1]; 2];
        let [d_a, d_b] = d.each_mut().map(|values| SinkMut { values, add: false });
        merge_gradient(&[2.0], &[2.0], 1, &[1.0, 10.0, 100.0, 1000.0], d_a, d_b);
        assert_eq!(d, [[2001.0], [2010.0]], "equal ones have no sign");
    }

    fn steps<'a>(probability: f32, classes: usize, logits: &'a [Vec<f32>]) -> Steps<'a> {
        Steps::new(STREAM, Dropout::new(probability, 5), classes, logits.iter().map(Vec::as_slice))
    }

    /// The average of a row's kept steps in f64.
    fn average(steps: &[Vec<f64>], classes: usize, kept: impl Fn(usize) -> u32) -> Vec<f64> {
        (0..steps[0].len())
            .map(|i| {
                let row = i / classes;
                let own = (0..steps.len()).filter(|&step| kept(row) >> step & 1 == 1);
                let probability = |step: usize| {
                    let logits = &steps[step][row * classes..][..classes];
                    steps[step][i].exp() / logits.iter().map(|logit| logit.exp()).sum::<f64>()
                };
                (own.map(probability).sum::<f64>() / f64::from(kept(row).count_ones())).ln()
            })
            .collect()
    }

    #[test]
    fn an_average_is_its_formula_and_its_gradients_the_difference_quotients() {
        for (count, rows, classes, probability) in
            [(1, 2, 3, 0.9), (5, 40, 3, 0.0), (5, 40, 2, 0.4), (16, 9, 4, 0.7)]
        {
            let scaled =
                |seed| -> Vec<f32> { numbers(seed, rows * classes).iter().map(|x| 4.0 * x).collect() };
            let logits: Vec<Vec<f32>> = (0..count).map(|step| scaled(step + 1)).collect();
            let d_out = numbers(99, rows * classes);
            let answers = steps(probability, classes, &logits);
            let mut out = vec![f32::NAN; rows * classes];
            step_average(&answers, &mut out);
            let exact: Vec<Vec<f64>> = logits.iter().map(|logits| doubles(logits)).collect();
            let kept = |row| answers.kept(row);
            assert_close(&out, average(&exact, classes, kept), 1e-6);
            for probabilities in out.chunks(classes) {
                let sum: f64 = probabilities.iter().map(|p| f64::from(*p).exp()).sum();
                assert!((sum - 1.0).abs() < 1e-6, "probabilities sum to {sum}");
            }
            let mut d_logits = vec![vec![f32::NAN; rows * classes]; count as usize];
            step_average_gradient(&answers, &out, &d_out, d_logits.iter_mut().map(Vec::as_mut_slice));
            for (step, d_logits) in d_logits.iter().enumerate() {
                let quotients = difference_quotients(&logits[step], |of_step| {
                    let mut steps = exact.clone();
                    steps[step] = of_step.to_vec();
                    let out = average(&steps, classes, kept);
                    out.iter().zip(&d_out).map(|(x, d)| x * f64::from(*d)).sum()
                });
                assert_close(d_logits, quotients, 2e-6);
            }
        }
    }

    #[test]
    fn improbable_answers_are_no_minus_infinity() {
        let logits = [vec![0.0, -200.0], vec![0.0, -300.0]];
        let mut out = [f32::NAN; 2];
        step_average(&steps(0.0, 2, &logits), &mut out);
        assert_close(&out, [0.0, -200.0 - std::f64::consts::LN_2], 1e-6);
    }

    #[test]
    fn every_row_keeps_a_step_that_is_drawn_evenly_and_the_others_by_chance() {
        let (rows, count) = (20_000, 5);
        let logits = vec![vec![0.0; rows]; count];
        // So likely to be dropped that nearly only the picked one stays.
        let answers = steps(0.9999, 1, &logits);
        let mut picked = [0; 5];
        for row in 0..rows {
            let kept = answers.kept(row);
            assert!(kept > 0, "row {row} keeps nothing");
            if kept.count_ones() == 1 {
                picked[kept.trailing_zeros() as usize] += 1;
            }
        }
        // Binomial with 20000 draws of a fifth: deviation 57.
        assert!(picked.iter().all(|&count| (3750..4250).contains(&count)), "{picked:?}");
        let answers = steps(0.25, 1, &logits);
        let kept: u32 = (0..rows).map(|row| answers.kept(row).count_ones()).sum();
        // One picked and three quarters of the other four.
        let mean = f64::from(kept) / rows as f64;
        assert!((mean - 4.0).abs() < 0.03, "{mean} steps are kept");
    }
}
