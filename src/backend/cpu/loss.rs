//! The losses of MT-DNN (Liu et al. 2019, equations 6 to 9), each a mean, and their gradients.

use std::iter::StepBy;
use std::ops::Range;

use rayon::prelude::*;

use super::blocks::rows_per_block;
use super::isa::Isa;
use super::math::exp;
use super::simd::multiversion;
use super::sums::{largest, sum};

/// The most tasks that the rows of [`cross_entropy`] are cut into: their sums lie on the stack.
const TASKS: usize = 256;

/// The mean over rows of `-log softmax(logits)[label]` (equation 6): logits `[rows, classes]`, labels `[rows]`.
pub fn cross_entropy(isa: Isa, logits: &[f32], labels: &[u32], classes: usize) -> f32 {
    let rows = labels.len();
    assert!(rows > 0, "the mean loss of no rows");
    assert_eq!(logits.len(), rows * classes, "logits of [{rows}, {classes}]");
    let block = rows_per_block(classes).max(rows.div_ceil(TASKS));
    let mut sums = [0f64; TASKS];
    (logits.par_chunks(block * classes))
        .zip(labels.par_chunks(block))
        .zip(sums.par_iter_mut())
        .for_each(|((logits, labels), sum)| *sum = cross_entropy_block(isa, logits, labels, classes));
    (sums.iter().sum::<f64>() / rows as f64) as f32
}

/// `d_logits = (softmax(logits) - one_hot(label)) d_loss / rows`, `[rows, classes]`.
pub fn cross_entropy_gradient(
    isa: Isa,
    logits: &[f32],
    labels: &[u32],
    classes: usize,
    d_loss: f32,
    d_logits: &mut [f32],
) {
    let rows = labels.len();
    assert_eq!([logits.len(), d_logits.len()], [rows * classes; 2], "logits of [{rows}, {classes}]");
    let block = rows_per_block(classes);
    let share = d_loss / rows as f32;
    (d_logits.par_chunks_mut(block * classes))
        .zip(logits.par_chunks(block * classes))
        .zip(labels.par_chunks(block))
        .for_each(|((d_logits, logits), labels)| {
            cross_entropy_gradient_block(isa, logits, labels, classes, share, d_logits)
        });
}

/// The mean of `(target - prediction)^2` (equation 7).
pub fn squared_error(predictions: &[f32], targets: &[f32]) -> f32 {
    assert_eq!(predictions.len(), targets.len(), "predictions beside targets");
    assert!(!targets.is_empty(), "the mean loss of no rows");
    let square = |(prediction, target): (&f32, &f32)| f64::from(target - prediction).powi(2);
    (predictions.iter().zip(targets).map(square).sum::<f64>() / targets.len() as f64) as f32
}

/// `d_predictions = 2 (prediction - target) d_loss / rows`.
pub fn squared_error_gradient(predictions: &[f32], targets: &[f32], d_loss: f32, d_predictions: &mut [f32]) {
    assert_eq!([predictions.len(), d_predictions.len()], [targets.len(); 2], "predictions beside targets");
    let share = 2.0 * d_loss / targets.len() as f32;
    for ((d, prediction), target) in d_predictions.iter_mut().zip(predictions).zip(targets) {
        *d = (prediction - target) * share;
    }
}

/// The mean over groups and columns of `-log softmax(gamma * scores)[positive]` within the group (equations 8 and 9).
///
/// `scores` is `[candidates, columns]`; `groups` `[groups + 1]` holds the first candidate of each group and the end of
/// the last, `positives` `[groups, columns]` the number of the right candidate within its group.
pub fn ranking(scores: &[f32], groups: &[u32], positives: &[u32], gamma: f32) -> f32 {
    let loss = |query: Query| {
        let softmax = Softmax::new(scores, query.candidates, gamma);
        softmax.log_sum - softmax.exponent(query.positive)
    };
    (queries(scores, groups, positives).map(loss).sum::<f64>() / positives.len() as f64) as f32
}

/// `d_scores = gamma (softmax(gamma * scores) - one_hot(positive)) d_loss / (groups columns)`, each group and column by
/// itself.
pub fn ranking_gradient(
    scores: &[f32],
    groups: &[u32],
    positives: &[u32],
    gamma: f32,
    d_loss: f32,
    d_scores: &mut [f32],
) {
    assert_eq!(scores.len(), d_scores.len(), "d_scores beside scores");
    let share = f64::from(gamma) * f64::from(d_loss) / positives.len() as f64;
    for Query { candidates, positive } in queries(scores, groups, positives) {
        let softmax = Softmax::new(scores, candidates.clone(), gamma);
        for (i, index) in candidates.enumerate() {
            let probability = (softmax.exponent(i) - softmax.log_sum).exp();
            d_scores[index] = (share * (probability - f64::from(u8::from(i == positive)))) as f32;
        }
    }
}

/// What softmaxes are taken over.
#[derive(Clone, Copy, Debug)]
pub enum Choices<'a> {
    /// Rows of classes.
    Rows {
        /// How many.
        rows: usize,
        /// The columns of each.
        classes: usize,
    },
    /// Groups of candidates: the first of each and the end of the last, `[groups + 1]`.
    Groups(&'a [u32]),
}

impl Choices<'_> {
    fn count(&self) -> usize {
        match self {
            Choices::Rows { rows, .. } => *rows,
            Choices::Groups(ends) => ends.len() - 1,
        }
    }

    fn ranges(&self) -> impl Iterator<Item = Range<usize>> {
        (0..self.count()).map(|i| match self {
            Choices::Rows { classes, .. } => i * classes..(i + 1) * classes,
            Choices::Groups(ends) => ends[i] as usize..ends[i + 1] as usize,
        })
    }
}

/// The mean over `choices` of `-sum_c targets_c log softmax(factor * logits)_c` (Liu et al. 2019, arXiv 1904.09482).
/// What has no probability counts nothing, however unlikely the logits make it.
pub fn soft_cross_entropy(logits: &[f32], targets: &[f32], choices: Choices, factor: f32) -> f32 {
    assert_eq!(logits.len(), targets.len(), "targets beside logits");
    assert!(choices.count() > 0, "the mean loss of no choices");
    let loss = |choice: Range<usize>| {
        let softmax = Softmax::new(logits, choice.clone().step_by(1), factor);
        let terms = targets[choice].iter().enumerate().filter(|(_, target)| **target != 0.0);
        terms.map(|(i, target)| f64::from(*target) * (softmax.log_sum - softmax.exponent(i))).sum::<f64>()
    };
    (choices.ranges().map(loss).sum::<f64>() / choices.count() as f64) as f32
}

/// `d_logits = factor (softmax(factor * logits) sum(targets) - targets) d_loss / choices`, each choice by itself.
pub fn soft_cross_entropy_gradient(
    logits: &[f32],
    targets: &[f32],
    choices: Choices,
    factor: f32,
    d_loss: f32,
    d_logits: &mut [f32],
) {
    assert_eq!([targets.len(), d_logits.len()], [logits.len(); 2], "targets beside logits");
    let share = f64::from(factor) * f64::from(d_loss) / choices.count() as f64;
    for choice in choices.ranges() {
        let softmax = Softmax::new(logits, choice.clone().step_by(1), factor);
        let whole: f64 = targets[choice.clone()].iter().copied().map(f64::from).sum();
        let targets = &targets[choice.clone()];
        for (i, (d, target)) in d_logits[choice].iter_mut().zip(targets).enumerate() {
            let probability = (softmax.exponent(i) - softmax.log_sum).exp();
            *d = (share * (probability * whole - f64::from(*target))) as f32;
        }
    }
}

/// Two losses as one.
pub fn weighted_sum(terms: [f32; 2], weights: [f32; 2]) -> f32 {
    terms.iter().zip(weights).map(|(term, weight)| weight * term).sum()
}

/// The candidates of one group in one column.
struct Query {
    /// Where their scores are.
    candidates: StepBy<Range<usize>>,
    /// The number of the right one among them.
    positive: usize,
}

fn queries<'a>(scores: &[f32], groups: &'a [u32], positives: &'a [u32]) -> impl Iterator<Item = Query> + 'a {
    let count = groups.len() - 1;
    assert!(count > 0, "the mean loss of no groups");
    let columns = positives.len() / count;
    assert_eq!(positives.len(), count * columns, "right candidates of {count} groups");
    let ends = (groups[0] as usize, groups[count] as usize * columns);
    assert_eq!(ends, (0, scores.len()), "groups that do not cover the scores");
    groups.windows(2).zip(positives.chunks_exact(columns)).flat_map(move |(ends, positives)| {
        let (start, end) = (ends[0] as usize, ends[1] as usize);
        positives.iter().enumerate().map(move |(column, positive)| {
            assert!((*positive as usize) < end - start, "candidate {positive} of {}", end - start);
            let candidates = (start * columns + column..end * columns).step_by(columns);
            Query { candidates, positive: *positive as usize }
        })
    })
}

/// The softmax of some scores, in f64: groups are short.
struct Softmax<'a> {
    scores: &'a [f32],
    candidates: StepBy<Range<usize>>,
    gamma: f64,
    largest: f64,
    log_sum: f64,
}

impl<'a> Softmax<'a> {
    fn new(scores: &'a [f32], candidates: StepBy<Range<usize>>, gamma: f32) -> Self {
        let gamma = f64::from(gamma);
        let logits = candidates.clone().map(|index| gamma * f64::from(scores[index]));
        let largest = logits.clone().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = logits.map(|logit| (logit - largest).exp()).sum::<f64>().ln();
        Self { scores, candidates, gamma, largest, log_sum }
    }

    /// The score's logit less the largest one.
    fn exponent(&self, i: usize) -> f64 {
        let index = self.candidates.clone().nth(i).expect("a candidate");
        self.gamma * f64::from(self.scores[index]) - self.largest
    }
}

multiversion! {
    fn cross_entropy_block<FMA>(logits: &[f32], labels: &[u32], classes: usize) -> f64 {
        let mut total = 0.0;
        for (logits, label) in logits.chunks_exact(classes).zip(labels) {
            let largest = largest(logits);
            let sum = sum(logits, |logit| exp::<FMA>(logit - largest));
            // Not log-sum-exp less the logit: that would cancel where the loss is small.
            total += f64::from(sum.ln()) - f64::from(logits[*label as usize] - largest);
        }
        total
    }
}

multiversion! {
    fn cross_entropy_gradient_block<FMA>(
        logits: &[f32], labels: &[u32], classes: usize, share: f32, d_logits: &mut [f32],
    ) {
        let rows = logits.chunks_exact(classes).zip(labels).zip(d_logits.chunks_exact_mut(classes));
        for ((logits, label), d_logits) in rows {
            let largest = largest(logits);
            for (d, logit) in d_logits.iter_mut().zip(logits) {
                *d = exp::<FMA>(logit - largest);
            }
            let scale = share / sum(d_logits, |d| d);
            for d in d_logits.iter_mut() {
                *d *= scale;
            }
            d_logits[*label as usize] -= share;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, difference_quotients, doubles, numbers, same_on_any_threads};
    use super::*;

    /// `-log softmax(logits)[label]` in f64.
    fn negative_log_likelihood(logits: &[f64], label: usize) -> f64 {
        logits.iter().map(|logit| (logit - logits[label]).exp()).sum::<f64>().ln()
    }

    fn mean_cross_entropy(logits: &[f64], labels: &[u32], classes: usize) -> f64 {
        let rows = logits.chunks(classes).zip(labels);
        rows.map(|(logits, label)| negative_log_likelihood(logits, *label as usize)).sum::<f64>()
            / labels.len() as f64
    }

    #[test]
    fn cross_entropy_is_its_formula_and_its_gradient_the_difference_quotient() {
        for (rows, classes) in [(1, 1), (1, 2), (7, 3), (3, 37), (2, 64)] {
            let logits: Vec<f32> = numbers(1, rows * classes).iter().map(|x| 8.0 * x).collect();
            let labels: Vec<u32> = (0..rows).map(|row| (row * 5 % classes) as u32).collect();
            let loss = |logits: &[f64]| mean_cross_entropy(logits, &labels, classes);
            let quotients = difference_quotients(&logits, loss);
            same_on_any_threads(
                |isa| {
                    let mut results = vec![f32::NAN; logits.len()];
                    cross_entropy_gradient(isa, &logits, &labels, classes, 3.0, &mut results);
                    results.push(cross_entropy(isa, &logits, &labels, classes));
                    results
                },
                |results| {
                    let expected = quotients.iter().map(|d| 3.0 * d).chain([loss(&doubles(&logits))]);
                    assert_close(results, expected, 1e-6);
                },
            );
        }
    }

    #[test]
    fn cross_entropy_over_a_vocabulary() {
        let (rows, classes) = (300, 3052);
        let logits: Vec<f32> = numbers(2, rows * classes).iter().map(|x| 10.0 * x).collect();
        let labels: Vec<u32> = (0..rows).map(|row| (row * 7919 % classes) as u32).collect();
        same_on_any_threads(
            |isa| {
                let mut results = vec![f32::NAN; logits.len()];
                cross_entropy_gradient(isa, &logits, &labels, classes, 1.0, &mut results);
                // The gradient of a row sums to nothing; the mean of the rows' sums is checked with the loss.
                let sums =
                    results.chunks(classes).map(|d| d.iter().copied().map(f64::from).sum::<f64>().abs());
                vec![cross_entropy(isa, &logits, &labels, classes), sums.fold(0.0, f64::max) as f32]
            },
            |results| {
                let exact = mean_cross_entropy(&doubles(&logits), &labels, classes);
                assert_close(results, [exact, 0.0], 1e-6);
            },
        );
    }

    #[test]
    fn cross_entropy_at_the_ends() {
        for &isa in Isa::available() {
            // Large logits do not overflow, and do not cost a small loss its digits.
            assert_eq!(cross_entropy(isa, &[1e30, -1e30], &[0], 2), 0.0);
            assert_close(&[cross_entropy(isa, &[1000.0, 990.0], &[0], 2)], [(-10f64).exp().ln_1p()], 1e-7);
            assert!(cross_entropy(isa, &[1.0, f32::NAN], &[0], 2).is_nan());
            assert_eq!(cross_entropy(isa, &[3.0, f32::NEG_INFINITY], &[0], 2), 0.0);
        }
    }

    #[test]
    #[should_panic]
    fn a_label_that_is_no_class_is_refused() {
        cross_entropy(Isa::detect(), &[1.0, 2.0, 3.0, 4.0], &[0, 2], 2);
    }

    #[test]
    fn squared_error_is_its_formula_and_its_gradient_the_difference_quotient() {
        let (predictions, targets) = (numbers(3, 13), numbers(4, 13));
        let loss = |predictions: &[f64]| {
            predictions.iter().zip(&targets).map(|(p, t)| (f64::from(*t) - p).powi(2)).sum::<f64>() / 13.0
        };
        assert_close(&[squared_error(&predictions, &targets)], [loss(&doubles(&predictions))], 1e-6);
        let mut d_predictions = [f32::NAN; 13];
        squared_error_gradient(&predictions, &targets, 2.0, &mut d_predictions);
        let quotients = difference_quotients(&predictions, loss);
        assert_close(&d_predictions, quotients.iter().map(|d| 2.0 * d), 1e-6);
    }

    #[test]
    fn ranking_is_its_formula_and_its_gradient_the_difference_quotient() {
        let (groups, positives) = ([0, 2, 3, 9], [1, 0, 4]);
        let scores: Vec<f32> = numbers(5, 9).iter().map(|x| 3.0 * x).collect();
        for gamma in [1.0, 2.5] {
            let loss = |scores: &[f64]| {
                let scaled: Vec<f64> = scores.iter().map(|score| f64::from(gamma) * score).collect();
                let group = |g: usize| &scaled[groups[g] as usize..groups[g + 1] as usize];
                (0..3).map(|g| negative_log_likelihood(group(g), positives[g] as usize)).sum::<f64>() / 3.0
            };
            assert_close(&[ranking(&scores, &groups, &positives, gamma)], [loss(&doubles(&scores))], 1e-6);
            let mut d_scores = [f32::NAN; 9];
            ranking_gradient(&scores, &groups, &positives, gamma, 0.5, &mut d_scores);
            let quotients = difference_quotients(&scores, loss);
            assert_close(&d_scores, quotients.iter().map(|d| 0.5 * d), 1e-6);
        }
        // Two equal candidates are a coin's toss.
        assert_eq!(ranking(&[4.0, 4.0], &[0, 2], &[1], 1.0), std::f32::consts::LN_2);
    }

    #[test]
    fn soft_cross_entropy_is_its_formula_and_its_gradient_the_difference_quotient() {
        let logits: Vec<f32> = numbers(6, 12).iter().map(|x| 3.0 * x).collect();
        // Not all sum to one: a distribution is the caller's business.
        let targets: Vec<f32> = numbers(7, 12).iter().map(|x| x.abs()).collect();
        let ends = [0, 2, 3, 12];
        let all = [Choices::Rows { rows: 3, classes: 4 }, Choices::Rows { rows: 12, classes: 1 }];
        for choices in all.into_iter().chain([Choices::Groups(&ends)]) {
            for factor in [1.0, 0.25] {
                let loss = |logits: &[f64]| {
                    let scaled: Vec<f64> = logits.iter().map(|logit| f64::from(factor) * logit).collect();
                    let of = |choice: Range<usize>| {
                        let terms = targets[choice.clone()].iter().enumerate();
                        let scaled = &scaled[choice];
                        terms.map(|(i, t)| f64::from(*t) * negative_log_likelihood(scaled, i)).sum::<f64>()
                    };
                    choices.ranges().map(of).sum::<f64>() / choices.count() as f64
                };
                let exact = loss(&doubles(&logits));
                assert_close(&[soft_cross_entropy(&logits, &targets, choices, factor)], [exact], 1e-6);
                let mut d_logits = [f32::NAN; 12];
                soft_cross_entropy_gradient(&logits, &targets, choices, factor, 2.0, &mut d_logits);
                let quotients = difference_quotients(&logits, loss);
                assert_close(&d_logits, quotients.iter().map(|d| 2.0 * d), 1e-6);
            }
        }
    }

    #[test]
    fn a_target_that_is_a_class_is_plain_cross_entropy_and_no_probability_costs_nothing() {
        let (logits, one) = ([0.3, -1.2, 2.0], [0.0, 1.0, 0.0]);
        let row = Choices::Rows { rows: 1, classes: 3 };
        let hard = cross_entropy(Isa::detect(), &logits, &[1], 3);
        assert_close(&[soft_cross_entropy(&logits, &one, row, 1.0)], [f64::from(hard)], 1e-6);
        let ruled_out = [0.3, f32::NEG_INFINITY, 2.0];
        assert!(soft_cross_entropy(&ruled_out, &[0.5, 0.0, 0.5], row, 1.0).is_finite());
    }
}
