use half::bf16;

use super::super::philox::keep_row;
use super::super::testing::{assert_close, difference_quotients, doubles, numbers, same_on_any_threads};
use super::*;

const STREAM: Stream = Stream { seed: 7, step: 3 };
const OFF: Dropout = Dropout { threshold: 0, site: 2 };

/// Attention spelt out: the context and the logarithms of the denominators.
fn exact(qkv: &[f64], bounds: Bounds, heads: usize, hidden: usize, dropout: Dropout) -> (Vec<f64>, Vec<f64>) {
    let (tokens, size) = (qkv.len() / (3 * hidden), hidden / heads);
    let (mut context, mut log_sum_exp) = (vec![0.0; tokens * hidden], vec![0.0; tokens * heads]);
    for (sequence, rows) in bounds.iter().enumerate() {
        let Range { start, end } = rows;
        for head in 0..heads {
            let part = |token: usize, third: usize| {
                &qkv[token * 3 * hidden + third * hidden + head * size..][..size]
            };
            for query in start..end {
                let mut keep = vec![1.0; end - start];
                let place = (sequence << 16 | (query - start)) as u32;
                keep_row(Isa::Portable, STREAM, dropout, head as u32, place, 0, &mut keep);
                let score = |key: usize| {
                    let terms = part(query, 0).iter().zip(part(key, 1)).map(|(q, k)| q * k);
                    terms.sum::<f64>() / (size as f64).sqrt()
                };
                let scores: Vec<f64> = (start..end).map(score).collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let denominator: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
                log_sum_exp[query * heads + head] = largest + denominator.ln();
                for (key, (score, keep)) in (start..end).zip(scores.iter().zip(keep)) {
                    let probability = (score - largest).exp() / denominator * f64::from(keep);
                    for (i, value) in part(key, 2).iter().enumerate() {
                        context[query * hidden + head * size + i] += probability * value;
                    }
                }
            }
        }
    }
    (context, log_sum_exp)
}

/// Starts and ends of sequences that follow one another.
struct Packed {
    starts: Vec<u32>,
    ends: Vec<u32>,
}

impl Packed {
    fn new(lengths: &[u32]) -> Self {
        let ends = lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        let ends: Vec<u32> = ends.collect();
        Self { starts: ends.iter().zip(lengths).map(|(end, length)| end - length).collect(), ends }
    }

    fn bounds(&self) -> Bounds<'_> {
        Bounds { starts: &self.starts, ends: &self.ends }
    }

    fn tokens(&self) -> usize {
        self.ends.last().map_or(0, |&end| end as usize)
    }
}

/// Numbers large enough that the softmax is neither flat nor a single key.
fn inputs(seed: u32, count: usize) -> Vec<f32> {
    numbers(seed, count).iter().map(|x| 2.0 * x).collect()
}

/// What [`forward`] writes, the context first.
fn forward_values(
    isa: Isa,
    qkv: &[f32],
    tokens: usize,
    bounds: Bounds,
    heads: usize,
    dropout: Dropout,
) -> Vec<f32> {
    let (mut context, mut log_sum_exp) = (vec![f32::NAN; qkv.len() / 3], vec![f32::NAN; tokens * heads]);
    let scratch = Scratch::new(rayon::current_num_threads());
    let (qkv, mut alone) = (Matrix::new(qkv, tokens, qkv.len() / tokens), context.clone());
    let out = (&mut context).into();
    forward(isa, &scratch, STREAM, dropout, heads, qkv, bounds, out, Some(&mut log_sum_exp));
    forward(isa, &scratch, STREAM, dropout, heads, qkv, bounds, (&mut alone).into(), None);
    assert_eq!(alone, context, "nothing is kept");
    context.extend(log_sum_exp);
    context
}

#[test]
fn the_context_is_that_of_the_definition() {
    let packed = Packed::new(&[1, 7, 0, 16, 17, 70, 130]);
    let (tokens, bounds) = (packed.tokens(), packed.bounds());
    for (heads, size) in [(2, 8), (3, 10), (1, 32), (2, 64)] {
        for dropout in [OFF, Dropout::new(0.3, 2)] {
            let qkv = inputs(1, 3 * tokens * heads * size);
            let (mut expected, log_sum_exp) = exact(&doubles(&qkv), bounds, heads, heads * size, dropout);
            expected.extend(log_sum_exp);
            same_on_any_threads(
                |isa| forward_values(isa, &qkv, tokens, bounds, heads, dropout),
                |values| assert_close(values, expected.iter().copied(), 5e-6),
            );
        }
    }
}

#[test]
fn the_gradient_is_that_of_the_definition() {
    for (heads, size, lengths) in [(2, 5, &[1, 9, 0, 16][..]), (1, 8, &[3, 70]), (1, 4, &[130])] {
        for dropout in [OFF, Dropout::new(0.3, 2)] {
            let packed = Packed::new(lengths);
            let (tokens, bounds, hidden) = (packed.tokens(), packed.bounds(), heads * size);
            let qkv = inputs(1, 3 * tokens * hidden);
            let d_context = numbers(2, tokens * hidden);
            let loss = |qkv: &[f64]| {
                let (context, _) = exact(qkv, bounds, heads, hidden, dropout);
                context.iter().zip(&d_context).map(|(c, d)| c * f64::from(*d)).sum()
            };
            let expected = difference_quotients(&qkv, loss);
            same_on_any_threads(
                |isa| {
                    let forward = forward_values(isa, &qkv, tokens, bounds, heads, dropout);
                    let mut d_qkv = vec![f32::NAN; qkv.len()];
                    let scratch = Scratch::new(rayon::current_num_threads());
                    let log_sum_exp = &forward[tokens * hidden..];
                    backward(
                        isa,
                        &scratch,
                        STREAM,
                        dropout,
                        heads,
                        Matrix::new(&qkv, tokens, 3 * hidden),
                        bounds,
                        log_sum_exp,
                        (&d_context).into(),
                        (&mut d_qkv).into(),
                    );
                    d_qkv
                },
                |values| assert_close(values, expected.iter().copied(), 5e-6),
            );
        }
    }
}

fn narrowed(numbers: &[f32]) -> Vec<bf16> {
    numbers.iter().map(|x| bf16::from_f32(*x)).collect()
}

fn widened(numbers: &[bf16]) -> Vec<f32> {
    numbers.iter().map(|x| x.to_f32()).collect()
}

/// The norm of the difference, as a share of the norm of what is expected.
fn error(values: &[f32], expected: &[f64]) -> f64 {
    let squares = |terms: &mut dyn Iterator<Item = f64>| terms.map(|x| x * x).sum::<f64>().sqrt();
    let difference = squares(&mut values.iter().zip(expected).map(|(x, e)| f64::from(*x) - e));
    difference / squares(&mut expected.iter().copied())
}

/// Inputs of bf16 are read as they are; probabilities, their gradients and results are rounded once each, to 2^-9.
#[test]
fn in_bf16_context_and_gradient_are_those_of_the_definition() {
    for (heads, size, lengths) in [(2, 5, &[1, 9, 0, 16][..]), (1, 8, &[3, 70]), (3, 4, &[130, 7])] {
        for dropout in [OFF, Dropout::new(0.3, 2)] {
            let packed = Packed::new(lengths);
            let (tokens, bounds, hidden) = (packed.tokens(), packed.bounds(), heads * size);
            let (qkv, d_context) =
                (narrowed(&inputs(1, 3 * tokens * hidden)), narrowed(&numbers(2, tokens * hidden)));
            let (context, log_sums) = exact(&doubles(&widened(&qkv)), bounds, heads, hidden, dropout);
            let loss = |qkv: &[f64]| {
                let (context, _) = exact(qkv, bounds, heads, hidden, dropout);
                context.iter().zip(&d_context).map(|(c, d)| c * d.to_f64()).sum()
            };
            let gradient = difference_quotients(&widened(&qkv), loss);
            same_on_any_threads(
                |isa| {
                    let mut out = vec![bf16::NAN; tokens * hidden];
                    let mut log_sum_exp = vec![f32::NAN; tokens * heads];
                    let mut d_qkv = vec![bf16::NAN; qkv.len()];
                    let scratch = Scratch::new(rayon::current_num_threads());
                    let x = Matrix::new(&qkv[..], tokens, 3 * hidden);
                    let (y, sums) = (ElementsMut::from(&mut out[..]), Some(&mut log_sum_exp[..]));
                    forward(isa, &scratch, STREAM, dropout, heads, x, bounds, y, sums);
                    let (d, d_x) = (d_context[..].into(), (&mut d_qkv[..]).into());
                    backward(isa, &scratch, STREAM, dropout, heads, x, bounds, &log_sum_exp, d, d_x);
                    [widened(&out), log_sum_exp, widened(&d_qkv)].concat()
                },
                |values| {
                    let (of_context, rest) = values.split_at(tokens * hidden);
                    let (of_log_sums, of_gradient) = rest.split_at(tokens * heads);
                    assert_close(of_log_sums, log_sums.iter().copied(), 5e-6);
                    let errors = [error(of_context, &context), error(of_gradient, &gradient)];
                    assert!(errors.iter().all(|error| *error < 1.0 / 256.0), "{errors:?}");
                },
            );
        }
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let packed = Packed::new(&[20]);
    let qkv: Vec<f32> = numbers(1, 3 * 20 * 8).iter().map(|x| 30.0 * x).collect();
    let (mut expected, log_sum_exp) = exact(&doubles(&qkv), packed.bounds(), 1, 8, OFF);
    expected.extend(log_sum_exp);
    for &isa in Isa::available() {
        let values = forward_values(isa, &qkv, 20, packed.bounds(), 1, OFF);
        // Scores of up to 2500 carry an absolute error of some 2e-4, which is the relative error of exp.
        assert_close(&values, expected.iter().copied(), 1e-3);
    }
}

#[test]
fn a_sequence_alone_has_the_bits_it_has_in_a_batch() {
    let hidden = 64;
    let qkv = inputs(1, 3 * (40 + 90 + 3) * hidden);
    let batch = forward_values(Isa::detect(), &qkv, 133, Packed::new(&[40, 90, 3]).bounds(), 2, OFF);
    let alone = &qkv[40 * 3 * hidden..][..90 * 3 * hidden];
    let alone = forward_values(Isa::detect(), alone, 90, Packed::new(&[90]).bounds(), 2, OFF);
    assert_eq!(alone[..90 * hidden], batch[40 * hidden..][..90 * hidden]);
}

/// Sequences in any order of rows, with rows of none before, between and after them.
#[test]
fn rows_of_no_sequence_are_zero_and_change_nothing() {
    let (isa, hidden) = (Isa::detect(), 16);
    let scratch = Scratch::new(rayon::current_num_threads());
    let qkv = inputs(1, 3 * 40 * hidden);
    let d_context = numbers(2, 40 * hidden);
    let both = Bounds { starts: &[21, 3], ends: &[33, 18] };
    let values = forward_values(isa, &qkv, 40, both, 2, OFF);
    let mut d_qkv = vec![f32::NAN; qkv.len()];
    let log_sums = &values[40 * hidden..];
    let x = Matrix::new(&qkv, 40, 3 * hidden);
    let (d, d_x) = ((&d_context).into(), (&mut d_qkv).into());
    backward(isa, &scratch, STREAM, OFF, 2, x, both, log_sums, d, d_x);
    for row in (0..40).filter(|row| !both.iter().any(|rows| rows.contains(row))) {
        assert_eq!(values[row * hidden..][..hidden], [0.0; 16], "context of row {row}");
        assert_eq!(d_qkv[row * 3 * hidden..][..3 * hidden], [0.0; 48], "gradient of row {row}");
    }
    for rows in both.iter() {
        let alone = &qkv[rows.start * 3 * hidden..rows.end * 3 * hidden];
        let packed = Packed::new(&[rows.len() as u32]);
        let alone = forward_values(isa, alone, rows.len(), packed.bounds(), 2, OFF);
        assert_eq!(alone[..rows.len() * hidden], values[rows.start * hidden..rows.end * hidden]);
    }
}
