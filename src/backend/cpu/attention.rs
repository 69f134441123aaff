//! Multi-head self-attention over sequences of any length (Vaswani et al. 2017, equation 1), with dropout on the
//! probabilities.
//!
//! A task is one head of one sequence; its products are small and stay in the cache. Queries are taken in blocks,
//! whose scores against all keys lie in the thread's scratch: they never exist for more than one block a thread.
//! The backward pass computes the probabilities again, from the logarithm of each softmax's denominator.

use std::ops::Range;

use rayon::prelude::*;

use super::bounds::Bounds;
use super::elements::{Elements, ElementsMut, store_all};
use super::gemm::{Form, Matrix, MatrixMut, gemm_serial, serial_scratch};
use super::isa::Isa;
use super::math;
use super::philox::{Stream, keep_row_inline};
use super::scratch::Scratch;
use super::shared::{SharedElements, SharedMut};
use super::simd::multiversion;
use crate::tensor::Dropout;

/// Attends within each sequence: `context = dropout(softmax(q kᵀ / sqrt(head_size))) v`, head by head.
///
/// `qkv` is `[tokens, 3 * hidden]`, queries, keys and values side by side; `bounds` says which tokens make a sequence.
/// Writes `context` `[tokens, hidden]` and, for [`backward`], `log_sum_exp` `[tokens, heads]`, the logarithm of each
/// softmax's denominator; both are zero for tokens of no sequence. The probability of query `i` for key `j` of sequence
/// `s` is dropped by draw `j` of the row with key `s << 16 | i`.
#[allow(clippy::too_many_arguments)]
pub fn forward(
    isa: Isa,
    scratch: &Scratch,
    stream: Stream,
    dropout: Dropout,
    heads: usize,
    qkv: Matrix,
    bounds: Bounds,
    mut context: ElementsMut,
    mut log_sum_exp: Option<&mut [f32]>,
) {
    let input = Input::new(isa, stream, dropout, heads, qkv, bounds);
    input.assert_length("context", context.len(), input.hidden);
    if let Some(log_sum_exp) = &log_sum_exp {
        input.assert_length("log_sum_exp", log_sum_exp.len(), heads);
    }
    if input.has_dead_rows() {
        context.fill(0.0);
        if let Some(log_sum_exp) = &mut log_sum_exp {
            log_sum_exp.fill(0.0);
        }
    }
    let (context, log_sum_exp) = (SharedElements::new(context), log_sum_exp.map(SharedMut::new));
    input.for_each_head(|head| {
        scratch.with(head.scratch_floats(), |scratch| head.forward(scratch, context, log_sum_exp));
    });
}

/// The gradient of [`forward`] with respect to `qkv`, from the gradient of the context. Stores all of `d_qkv`
/// `[tokens, 3 * hidden]`; the other arguments are those of the forward pass and what it wrote.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    isa: Isa,
    scratch: &Scratch,
    stream: Stream,
    dropout: Dropout,
    heads: usize,
    qkv: Matrix,
    bounds: Bounds,
    log_sum_exp: &[f32],
    d_context: Elements,
    mut d_qkv: ElementsMut,
) {
    let input = Input::new(isa, stream, dropout, heads, qkv, bounds);
    input.assert_length("log_sum_exp", log_sum_exp.len(), heads);
    input.assert_length("d_context", d_context.len(), input.hidden);
    input.assert_length("d_qkv", d_qkv.len(), 3 * input.hidden);
    if input.has_dead_rows() {
        d_qkv.fill(0.0);
    }
    let d_qkv = SharedElements::new(d_qkv);
    input.for_each_head(|head| {
        scratch.with(head.scratch_floats(), |scratch| head.backward(scratch, log_sum_exp, d_context, d_qkv));
    });
}

/// The scratch that a thread needs for sequences of up to `longest` tokens, in floats.
pub fn scratch_floats(isa: Isa, longest: usize, head_size: usize) -> usize {
    // The products' scratch, the probabilities and their gradients, one row's dropout, and the gradients of a block
    // of queries and of all keys and values. The forward pass needs less.
    let stride = longest.next_multiple_of(LANES);
    serial_scratch(isa) + (2 * QUERIES + 1) * stride + (QUERIES + 2 * longest) * head_size
}

/// Queries in a block: enough to keep the products' tiles full, few enough that the scores of 128 keys fit half of
/// the smallest L2 cache together with the keys and values.
const QUERIES: usize = 64;

/// Scores of one query are filled up to a multiple of this, so that loops over them have no remainder.
const LANES: usize = 16;

/// What all tasks read.
struct Input<'a> {
    isa: Isa,
    stream: Stream,
    dropout: Dropout,
    heads: usize,
    qkv: Elements<'a>,
    bounds: Bounds<'a>,
    tokens: usize,
    hidden: usize,
}

impl<'a> Input<'a> {
    fn new(
        isa: Isa,
        stream: Stream,
        dropout: Dropout,
        heads: usize,
        qkv: Matrix<'a>,
        bounds: Bounds<'a>,
    ) -> Self {
        let (tokens, hidden) = (qkv.rows, qkv.cols / 3);
        assert!(
            qkv.cols == 3 * hidden && hidden.is_multiple_of(heads) && qkv.stride == qkv.cols,
            "qkv of {} columns, {} apart, does not split into q, k, v of {heads} heads",
            qkv.cols,
            qkv.stride
        );
        Self { isa, stream, dropout, heads, qkv: qkv.data, bounds, tokens, hidden }
    }

    fn assert_length(&self, name: &str, length: usize, cols: usize) {
        assert_eq!(length, self.tokens * cols, "{name} [{}, {cols}]", self.tokens);
    }

    fn has_dead_rows(&self) -> bool {
        self.bounds.iter().map(|rows| rows.len()).sum::<usize>() < self.tokens
    }

    fn for_each_head(&self, work: impl Fn(Head) + Sync) {
        (0..self.bounds.count() * self.heads).into_par_iter().with_max_len(1).for_each(|task| {
            let (sequence, index) = (task / self.heads, task % self.heads);
            let tokens = self.bounds.rows(sequence);
            if !tokens.is_empty() {
                work(Head { input: self, sequence, index, tokens, size: self.hidden / self.heads });
            }
        });
    }
}

/// One head of one sequence.
struct Head<'a> {
    input: &'a Input<'a>,
    sequence: usize,
    index: usize,
    /// The sequence's rows.
    tokens: Range<usize>,
    size: usize,
}

/// Queries, keys or values: which third of a row of `qkv`.
#[derive(Clone, Copy)]
enum Third {
    Query,
    Key,
    Value,
}

impl Head<'_> {
    /// This head's columns of some rows, `[rows, size]`, of a matrix of `stride` columns; `third` of which they are.
    fn columns<'m>(
        &self,
        matrix: Elements<'m>,
        rows: Range<usize>,
        stride: usize,
        third: Third,
    ) -> Matrix<'m> {
        let column = third as usize * self.input.hidden + self.index * self.size;
        let part = matrix.part(rows.start * stride + column..matrix.len());
        Matrix::with_stride(part, rows.len(), self.size, stride)
    }

    fn qkv(&self, rows: Range<usize>, third: Third) -> Matrix<'_> {
        self.columns(self.input.qkv, rows, 3 * self.input.hidden, third)
    }

    /// Copies rows `[rows, size]` to this head's columns of a matrix.
    fn write(&self, from: &[f32], matrix: SharedElements, rows: Range<usize>, stride: usize, third: Third) {
        let column = third as usize * self.input.hidden + self.index * self.size;
        for (row, from) in rows.zip(from.chunks_exact(self.size)) {
            let start = row * stride + column;
            // SAFETY: one task writes this head's columns of these rows.
            let columns = unsafe { matrix.part(start..start + self.size) };
            store_all(self.input.isa, from, columns);
        }
    }

    fn scratch_floats(&self) -> usize {
        scratch_floats(self.input.isa, self.tokens.len(), self.size)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.size as f32).sqrt()
    }

    /// The row of a query, for the dropout's draws.
    fn row(&self, query: usize) -> Row {
        let place = (self.sequence << 16 | (query - self.tokens.start)) as u32;
        let Input { stream, dropout, .. } = *self.input;
        Row {
            stream,
            dropout,
            head: self.index as u32,
            place,
            scale: self.scale(),
            length: self.tokens.len(),
        }
    }

    /// The blocks of the sequence's queries.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let end = self.tokens.end;
        self.tokens.clone().step_by(QUERIES).map(move |start| start..(start + QUERIES).min(end))
    }

    fn forward(&self, scratch: &mut [f32], context: SharedElements, log_sum_exp: Option<SharedMut>) {
        let Input { isa, heads, hidden, .. } = *self.input;
        let (length, size) = (self.tokens.len(), self.size);
        let stride = length.next_multiple_of(LANES);
        let (packing, scratch) = scratch.split_at_mut(serial_scratch(isa));
        let (scores, scratch) = scratch.split_at_mut(QUERIES * stride);
        let (factors, block) = scratch.split_at_mut(stride);

        let keys = self.qkv(self.tokens.clone(), Third::Key);
        let values = self.qkv(self.tokens.clone(), Third::Value);
        for rows in self.blocks() {
            let count = rows.len();
            let queries = self.qkv(rows.clone(), Third::Query);
            let c = MatrixMut::with_stride(&mut *scores, count, length, stride);
            gemm_serial(isa, packing, Form::NT, queries, keys, c, false);
            for (query, scores) in rows.clone().zip(scores.chunks_exact_mut(stride)) {
                let logarithm = softmax(isa, self.row(query), factors, scores);
                if let Some(log_sum_exp) = log_sum_exp {
                    let place = query * heads + self.index;
                    // SAFETY: one task writes this head's column of this row.
                    let own = unsafe { log_sum_exp.slice(place..place + 1) };
                    own[0] = logarithm;
                }
            }
            let block = &mut block[..count * size];
            let probabilities = Matrix::with_stride(&*scores, count, length, stride);
            gemm_serial(
                isa,
                packing,
                Form::NN,
                probabilities,
                values,
                MatrixMut::new(&mut *block, count, size),
                false,
            );
            self.write(block, context, rows, hidden, Third::Query);
        }
    }

    fn backward(&self, scratch: &mut [f32], log_sum_exp: &[f32], d_context: Elements, d_qkv: SharedElements) {
        let Input { isa, heads, hidden, .. } = *self.input;
        let (length, size) = (self.tokens.len(), self.size);
        let stride = length.next_multiple_of(LANES);
        let (packing, scratch) = scratch.split_at_mut(serial_scratch(isa));
        let (scores, scratch) = scratch.split_at_mut(QUERIES * stride);
        let (gradients, scratch) = scratch.split_at_mut(QUERIES * stride);
        let (factors, scratch) = scratch.split_at_mut(stride);
        let (d_keys, scratch) = scratch.split_at_mut(length * size);
        let (d_values, d_queries) = scratch.split_at_mut(length * size);

        let keys = self.qkv(self.tokens.clone(), Third::Key);
        let values = self.qkv(self.tokens.clone(), Third::Value);
        for rows in self.blocks() {
            let count = rows.len();
            let add = rows.start > self.tokens.start;
            let queries = self.qkv(rows.clone(), Third::Query);
            let d_context = self.columns(d_context, rows.clone(), hidden, Third::Query);

            let c = MatrixMut::with_stride(&mut *scores, count, length, stride);
            gemm_serial(isa, packing, Form::NT, queries, keys, c, false);
            let c = MatrixMut::with_stride(&mut *gradients, count, length, stride);
            gemm_serial(isa, packing, Form::NT, d_context, values, c, false);
            let lines = scores.chunks_exact_mut(stride).zip(gradients.chunks_exact_mut(stride));
            for (query, (scores, gradients)) in rows.clone().zip(lines) {
                let log_sum_exp = log_sum_exp[query * heads + self.index];
                softmax_gradient(isa, self.row(query), log_sum_exp, factors, scores, gradients);
            }

            let probabilities = Matrix::with_stride(&*scores, count, length, stride);
            let d_scores = Matrix::with_stride(&*gradients, count, length, stride);
            let c = MatrixMut::new(&mut *d_values, length, size);
            gemm_serial(isa, packing, Form::TN, probabilities, d_context, c, add);
            let c = MatrixMut::new(&mut *d_keys, length, size);
            gemm_serial(isa, packing, Form::TN, d_scores, queries, c, add);
            let d_queries = &mut d_queries[..count * size];
            gemm_serial(
                isa,
                packing,
                Form::NN,
                d_scores,
                keys,
                MatrixMut::new(&mut *d_queries, count, size),
                false,
            );
            self.write(d_queries, d_qkv, rows, 3 * hidden, Third::Query);
        }
        self.write(d_keys, d_qkv, self.tokens.clone(), 3 * hidden, Third::Key);
        self.write(d_values, d_qkv, self.tokens.clone(), 3 * hidden, Third::Value);
    }
}

/// What one query's probabilities depend on besides its scores.
#[derive(Clone, Copy)]
struct Row {
    stream: Stream,
    dropout: Dropout,
    head: u32,
    /// The query's place.
    place: u32,
    /// From products of queries and keys to scores.
    scale: f32,
    /// Keys; what the scores hold beyond is filling.
    length: usize,
}

impl Row {
    /// The dropout's factors of all keys.
    #[inline(always)]
    fn draw(&self, factors: &mut [f32]) {
        keep_row_inline(self.stream, self.dropout, self.head, self.place, 0, factors);
    }
}

multiversion! {
    /// Products of a query with all keys to probabilities with dropout; returns the logarithm of the denominator.
    fn softmax<FMA>(row: Row, factors: &mut [f32], scores: &mut [f32]) -> f32 {
        row.draw(factors);
        scores[row.length..].fill(f32::NEG_INFINITY);
        let largest = largest(scores) * row.scale;
        let mut sums = [0.0; LANES];
        for scores in scores.as_chunks_mut::<LANES>().0 {
            for lane in 0..LANES {
                scores[lane] = math::exp::<FMA>(math::multiply_add::<FMA>(scores[lane], row.scale, -largest));
                sums[lane] += scores[lane];
            }
        }
        let sum = total(sums);
        let share = 1.0 / sum;
        for (scores, factors) in scores.as_chunks_mut::<LANES>().0.iter_mut().zip(factors.as_chunks::<LANES>().0) {
            for lane in 0..LANES {
                scores[lane] *= share * factors[lane];
            }
        }
        largest + sum.ln()
    }
}

multiversion! {
    /// Products of a query with all keys become its probabilities with dropout, and the gradients of those with
    /// respect to the context become the gradients of the products.
    ///
    /// With P the probabilities, K the dropout's factors and D the gradients: P (K D - delta) scale, where delta is
    /// the sum of P K D over the keys.
    fn softmax_gradient<FMA>(
        row: Row, log_sum_exp: f32, factors: &mut [f32], scores: &mut [f32], gradients: &mut [f32],
    ) {
        row.draw(factors);
        scores[row.length..].fill(f32::NEG_INFINITY);
        gradients[row.length..].fill(0.0);
        let factors = factors.as_chunks::<LANES>().0;
        let (scores, gradients) = (scores.as_chunks_mut::<LANES>().0, gradients.as_chunks_mut::<LANES>().0);
        let mut deltas = [0.0; LANES];
        for ((scores, gradients), factors) in scores.iter_mut().zip(gradients.iter_mut()).zip(factors) {
            for lane in 0..LANES {
                scores[lane] = math::exp::<FMA>(math::multiply_add::<FMA>(scores[lane], row.scale, -log_sum_exp));
                gradients[lane] *= factors[lane];
                deltas[lane] = math::multiply_add::<FMA>(scores[lane], gradients[lane], deltas[lane]);
            }
        }
        let delta = total(deltas);
        for ((scores, gradients), factors) in scores.iter_mut().zip(gradients).zip(factors) {
            for lane in 0..LANES {
                gradients[lane] = scores[lane] * (gradients[lane] - delta) * row.scale;
                scores[lane] *= factors[lane];
            }
        }
    }
}

#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; LANES];
    for values in values.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            largest[lane] = if values[lane] > largest[lane] { values[lane] } else { largest[lane] };
        }
    }
    largest.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
}

/// The sum of the lanes, by halves.
#[inline(always)]
fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests;
