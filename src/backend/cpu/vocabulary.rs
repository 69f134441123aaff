//! The loss of masked words: a linear map to a whole vocabulary and the softmax cross-entropy over it, as one kernel.
//!
//! The logits of a batch would be its largest value by far. They are computed a block of columns at a time, for all
//! rows at once, so that each weight is packed and read once a pass: forward, for the softmax's statistics, and again
//! backward, where they become their own gradient. Blocks of rows would pack and read the whole table once for each.

use rayon::prelude::*;

use super::blocks::{SinkMut, rows_per_block};
use super::elements::{Elements, ElementsMut, store_all};
use super::gemm::{self, Form, Matrix, MatrixMut, WriteBack, gemm};
use super::isa::Isa;
use super::math::exp;
use super::scratch::Workspace;
use super::simd::multiversion;
use super::sums::{largest, sum};
use crate::tensor::Activation;

/// A row's entries in the softmax statistics: the largest logit, the sum of `exp(logit - largest)`, the label's logit.
pub const STATISTICS: usize = 3;

/// The map `x * weight^T + bias` whose softmax is measured.
#[derive(Clone, Copy)]
pub struct Vocabulary<'a> {
    /// `[rows, inputs]`
    pub x: Elements<'a>,
    /// `[classes, inputs]`
    pub weight: &'a [f32],
    /// `[classes]`
    pub bias: &'a [f32],
    /// `[rows]`
    pub labels: &'a [u32],
}

impl<'a> Vocabulary<'a> {
    fn inputs(&self) -> usize {
        let (rows, classes) = (self.labels.len(), self.bias.len());
        let inputs = self.weight.len() / classes;
        assert_eq!(self.weight.len(), classes * inputs, "weights of [{classes}, inputs]");
        assert_eq!(self.x.len(), rows * inputs, "[{rows}, {inputs}] beside weights of [{classes}, {inputs}]");
        inputs
    }

    /// The columns in blocks of at most `block`: the first of each, and its weights and biases.
    fn blocks(&self, block: usize) -> impl Iterator<Item = (usize, &'a [f32], &'a [f32])> {
        let parts = self.weight.chunks(block * self.inputs()).zip(self.bias.chunks(block));
        parts.enumerate().map(move |(number, (weight, bias))| (number * block, weight, bias))
    }

    /// The logits of a block: `[rows, columns]`, dense, at the beginning of `logits`.
    fn logits<'b>(
        &self,
        isa: Isa,
        workspace: &mut Workspace,
        weight: &[f32],
        bias: &[f32],
        logits: &'b mut [f32],
    ) -> &'b mut [f32] {
        let (rows, inputs, columns) = (self.labels.len(), self.inputs(), bias.len());
        let logits = &mut logits[..rows * columns];
        let (a, b) = (Matrix::new(self.x, rows, inputs), Matrix::new(weight, columns, inputs));
        let c = MatrixMut::new(&mut *logits, rows, columns);
        gemm(isa, workspace, Form::NT, a, b, c, WriteBack::Bias(bias));
        logits
    }
}

/// Makes room for what the products of a map of `[rows, inputs]` to blocks of `block` columns need.
pub fn reserve(isa: Isa, workspace: &mut Workspace, narrow: bool, rows: usize, inputs: usize, block: usize) {
    gemm::reserve(isa, workspace, narrow, rows, block, inputs);
    gemm::reserve(isa, workspace, narrow, rows, inputs, block);
    gemm::reserve_weight_gradient(isa, workspace, narrow, [rows, block, inputs]);
}

/// The mean over rows of `-log softmax(logits)[label]`, and the share of rows in which no logit is larger than the
/// label's. `softmax` `[rows, 3]` gets what the backward pass needs; `logits` `[rows, block]` is worked in.
pub fn forward(
    isa: Isa,
    workspace: &mut Workspace,
    vocabulary: &Vocabulary,
    logits: &mut [f32],
    softmax: &mut [f32],
) -> (f32, f32) {
    let rows = vocabulary.labels.len();
    assert!(rows > 0, "the mean loss of no rows");
    assert_eq!(softmax.len(), rows * STATISTICS, "statistics of {rows} rows");
    let (most, classes) = (vocabulary.labels.iter().max(), vocabulary.bias.len());
    assert!(most.is_some_and(|label| (*label as usize) < classes), "label {most:?} of {classes} classes");
    let block = logits.len() / rows;
    for (first, weight, bias) in vocabulary.blocks(block) {
        let columns = bias.len();
        let logits = vocabulary.logits(isa, workspace, weight, bias, logits);
        let task = rows_per_block(columns);
        (logits.par_chunks(task * columns))
            .zip(softmax.par_chunks_mut(task * STATISTICS))
            .zip(vocabulary.labels.par_chunks(task))
            .for_each(|((logits, softmax), labels)| gather_statistics(isa, logits, labels, first, softmax));
    }
    let (mut loss, mut right) = (0.0, 0.0);
    for statistics in softmax.chunks_exact(STATISTICS) {
        let [largest, sum, logit] = [statistics[0], statistics[1], statistics[2]];
        // Not log-sum-exp less the logit: that would cancel where the loss is small.
        loss += f64::from(sum.ln()) - f64::from(logit - largest);
        right += f64::from(u8::from(logit >= largest));
    }
    ((loss / rows as f64) as f32, (right / rows as f64) as f32)
}

/// The gradients of the mean loss, which has the gradient `d_loss`; `softmax` is the forward pass's, `logits`
/// `[rows, block]` is worked in, and so is `d_logits`, which the products read if it is given.
#[expect(clippy::too_many_arguments, reason = "the operands of one operation")]
pub fn backward(
    isa: Isa,
    workspace: &mut Workspace,
    vocabulary: &Vocabulary,
    softmax: &[f32],
    d_loss: f32,
    logits: &mut [f32],
    mut d_logits: Option<ElementsMut>,
    d_x: SinkMut,
    d_weight: SinkMut,
    d_bias: SinkMut,
) {
    let (rows, inputs) = (vocabulary.labels.len(), vocabulary.inputs());
    let block = logits.len() / rows;
    let share = d_loss / rows as f32;
    let parts = d_weight.values.chunks_mut(block * inputs).zip(d_bias.values.chunks_mut(block));
    for ((first, weight, bias), (d_weight_part, d_bias_part)) in vocabulary.blocks(block).zip(parts) {
        let columns = bias.len();
        let of_block = vocabulary.logits(isa, workspace, weight, bias, logits);
        let task = rows_per_block(columns) * columns;
        (of_block.par_chunks_mut(task))
            .zip(softmax.par_chunks(task / columns * STATISTICS))
            .zip(vocabulary.labels.par_chunks(task / columns))
            .for_each(|((logits, softmax), labels)| {
                differentiate_block(isa, logits, labels, softmax, first, share)
            });
        let of_block = match &mut d_logits {
            None => Elements::F32(of_block),
            Some(d_logits) => {
                let mut narrow = d_logits.part_mut(0..rows * columns);
                (narrow.reborrow().par_chunks_mut(task))
                    .zip(of_block.par_chunks(task))
                    .for_each(|(to, from)| store_all(isa, from, to));
                narrow.into_view()
            }
        };
        let of_block = Matrix::new(of_block, rows, columns);
        let (x, c) =
            (Matrix::new(vocabulary.x, rows, inputs), MatrixMut::new(d_weight_part, columns, inputs));
        let d_bias = SinkMut { values: d_bias_part, add: d_bias.add };
        gemm::weight_gradient(isa, workspace, of_block, x, Activation::Identity, c, d_weight.add, d_bias);
        let store_or_add = if d_x.add || first > 0 { WriteBack::Add } else { WriteBack::Store };
        let weight = Matrix::new(weight, columns, inputs);
        let c = MatrixMut::new(&mut *d_x.values, rows, inputs);
        gemm(isa, workspace, Form::NN, of_block, weight, c, store_or_add);
    }
}

multiversion! {
    /// Takes a block of logits, whose first column is class `first`, into the rows' statistics.
    fn gather_statistics<FMA>(logits: &[f32], labels: &[u32], first: usize, softmax: &mut [f32]) {
        let columns = logits.len() / labels.len();
        let rows = logits.chunks_exact(columns).zip(labels).zip(softmax.chunks_exact_mut(STATISTICS));
        for ((logits, label), statistics) in rows {
            if first == 0 {
                statistics.copy_from_slice(&[f32::NEG_INFINITY, 0.0, f32::NAN]);
            }
            let before = statistics[0];
            let block = largest(logits);
            let largest = if block > before { block } else { before };
            let sum = sum(logits, |logit| exp::<FMA>(logit - largest));
            statistics[0] = largest;
            statistics[1] = statistics[1] * exp::<FMA>(before - largest) + sum;
            if let Some(column) = (*label as usize).checked_sub(first).filter(|column| *column < columns) {
                statistics[2] = logits[column];
            }
        }
    }
}

multiversion! {
    /// `logits = (softmax - one_hot(label)) share`, for a block whose first column is class `first`.
    fn differentiate_block<FMA>(logits: &mut [f32], labels: &[u32], softmax: &[f32], first: usize, share: f32) {
        let columns = logits.len() / labels.len();
        let rows = logits.chunks_exact_mut(columns).zip(labels).zip(softmax.chunks_exact(STATISTICS));
        for ((logits, label), statistics) in rows {
            let (largest, scale) = (statistics[0], share / statistics[1]);
            for logit in logits.iter_mut() {
                *logit = exp::<FMA>(*logit - largest) * scale;
            }
            if let Some(column) = (*label as usize).checked_sub(first).filter(|column| *column < columns) {
                logits[column] -= share;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, doubles, numbers, same_on_any_threads};
    use super::*;

    struct Numbers {
        x: Vec<f32>,
        weight: Vec<f32>,
        bias: Vec<f32>,
        labels: Vec<u32>,
        inputs: usize,
    }

    impl Numbers {
        fn new(rows: usize, inputs: usize, classes: usize) -> Self {
            let large = |seed, count| numbers(seed, count).iter().map(|x| 2.0 * x).collect();
            Self {
                x: large(1, rows * inputs),
                weight: large(2, classes * inputs),
                bias: large(3, classes),
                labels: (0..rows).map(|row| (row * 7919 % classes) as u32).collect(),
                inputs,
            }
        }

        fn vocabulary(&self) -> Vocabulary<'_> {
            Vocabulary { x: (&self.x).into(), weight: &self.weight, bias: &self.bias, labels: &self.labels }
        }

        /// The logits of each row, in f64.
        fn logits(&self) -> Vec<Vec<f64>> {
            let (x, weight) = (doubles(&self.x), doubles(&self.weight));
            let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
            let row = |x: &[f64]| {
                let classes = weight.chunks(self.inputs).zip(&self.bias);
                classes.map(|(w, bias)| dot(x, w) + f64::from(*bias)).collect()
            };
            x.chunks(self.inputs).map(row).collect()
        }

        /// Loss, accuracy, and the gradients of `d_loss` times the loss: of x, the weight and the bias.
        fn expected(&self, d_loss: f64) -> Vec<f64> {
            let (rows, classes) = (self.labels.len(), self.bias.len());
            let (mut loss, mut right) = (0.0, 0.0);
            let mut d_x = vec![0.0; self.x.len()];
            let mut d_weight = vec![0.0; self.weight.len()];
            let mut d_bias = vec![0.0; classes];
            for (row, logits) in self.logits().iter().enumerate() {
                let label = self.labels[row] as usize;
                let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
                loss += (sum.ln() - logits[label]) / rows as f64;
                right += f64::from(u8::from(logits.iter().all(|l| *l <= logits[label]))) / rows as f64;
                for (class, logit) in logits.iter().enumerate() {
                    let d = (logit.exp() / sum - f64::from(u8::from(class == label))) * d_loss / rows as f64;
                    d_bias[class] += d;
                    for i in 0..self.inputs {
                        d_x[row * self.inputs + i] += d * f64::from(self.weight[class * self.inputs + i]);
                        d_weight[class * self.inputs + i] += d * f64::from(self.x[row * self.inputs + i]);
                    }
                }
            }
            [vec![loss, right], d_x, d_weight, d_bias].concat()
        }

        /// The same from the kernels, with logits of `block` columns; `before` is in the gradients where they add.
        fn computed(&self, isa: Isa, block: usize, d_loss: f32, before: Option<f32>) -> Vec<f32> {
            let mut workspace = Workspace::new(rayon::current_num_threads());
            let rows = self.labels.len();
            let (mut logits, mut softmax) = (vec![f32::NAN; rows * block], vec![f32::NAN; rows * STATISTICS]);
            let vocabulary = self.vocabulary();
            let (loss, accuracy) = forward(isa, &mut workspace, &vocabulary, &mut logits, &mut softmax);
            let [mut d_x, mut d_weight, mut d_bias] = [self.x.len(), self.weight.len(), self.bias.len()]
                .map(|len| vec![before.unwrap_or(f32::NAN); len]);
            let sink = |values| SinkMut { values, add: before.is_some() };
            let (x, weight, bias) = (&mut d_x[..], &mut d_weight[..], &mut d_bias[..]);
            let sinks = (sink(x), sink(weight), sink(bias));
            backward(
                isa,
                &mut workspace,
                &vocabulary,
                &softmax,
                d_loss,
                &mut logits,
                None,
                sinks.0,
                sinks.1,
                sinks.2,
            );
            [vec![loss, accuracy], d_x, d_weight, d_bias].concat()
        }
    }

    #[test]
    fn loss_accuracy_and_gradients_are_their_formulas() {
        for (rows, inputs, classes, block) in
            [(1, 1, 1, 1), (3, 5, 7, 7), (5, 8, 37, 16), (40, 24, 301, 64), (700, 16, 50, 20)]
        {
            let numbers = Numbers::new(rows, inputs, classes);
            same_on_any_threads(
                |isa| numbers.computed(isa, block, 3.0, None),
                |computed| assert_close(computed, numbers.expected(3.0), 2e-6),
            );
        }
    }

    #[test]
    fn gradients_are_added_where_there_are_others() {
        let numbers = Numbers::new(9, 6, 45);
        let stored = numbers.computed(Isa::detect(), 16, 1.0, None);
        let added = numbers.computed(Isa::detect(), 16, 1.0, Some(0.5));
        let expected = stored.iter().enumerate().map(|(i, d)| f64::from(*d) + if i < 2 { 0.0 } else { 0.5 });
        assert_close(&added, expected, 1e-6);
    }

    #[test]
    fn large_logits_do_not_overflow_and_small_losses_keep_their_digits() {
        for &isa in Isa::available() {
            // Logits 1000, 990 and 0 in blocks of one column: the largest comes first, and last.
            for (weight, label) in [([1000.0, 990.0, 0.0], 0), ([0.0, 990.0, 1000.0], 2)] {
                let (x, bias, labels) = ([1.0], [0.0; 3], [label]);
                let vocabulary =
                    Vocabulary { x: x[..].into(), weight: &weight, bias: &bias, labels: &labels };
                let (mut logits, mut softmax) = ([f32::NAN], [f32::NAN; STATISTICS]);
                let workspace = &mut Workspace::new(1);
                let (loss, accuracy) = forward(isa, workspace, &vocabulary, &mut logits, &mut softmax);
                assert_close(&[loss, accuracy], [(-10f64).exp().ln_1p(), 1.0], 1e-7);
            }
        }
    }

    #[test]
    fn what_is_not_a_number_shows_in_the_loss() {
        let vocabulary =
            Vocabulary { x: [f32::NAN][..].into(), weight: &[1.0, 2.0], bias: &[0.0; 2], labels: &[1] };
        let workspace = &mut Workspace::new(1);
        let (loss, _) = forward(Isa::detect(), workspace, &vocabulary, &mut [0.0], &mut [0.0; STATISTICS]);
        assert!(loss.is_nan());
    }

    #[test]
    #[should_panic(expected = "label Some(2) of 2 classes")]
    fn a_label_that_is_no_class_is_refused() {
        let vocabulary =
            Vocabulary { x: [1.0][..].into(), weight: &[1.0, 2.0], bias: &[0.0; 2], labels: &[2] };
        forward(Isa::detect(), &mut Workspace::new(1), &vocabulary, &mut [0.0], &mut [0.0; STATISTICS]);
    }
}
