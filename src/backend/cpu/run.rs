//! Walks a program: one arm an operation, each a call of its kernel on slices of the arena.

use std::ops::Range;

use super::activation::{activate, activate_gradient, activate_in_place};
use super::attend::{Attend, AttendGradient, attend, attend_gradient};
use super::attention;
use super::blocks::SinkMut;
use super::bounds::Bounds;
use super::dropout::{RowDropout, drop_rows};
use super::elements::{Elements, ElementsMut, ElementsSink};
use super::elementwise::{accumulate, fill};
use super::embedding::{Tokens, embed, embed_gradient};
use super::gather::{gather, gather_gradient};
use super::gemm::{self, Form, Matrix, MatrixMut, WriteBack, gemm};
use super::isa::Isa;
use super::loss::{self, Choices};
use super::norm::{self, AddNorm, AddNormGradient, KeptNorm, add_norm, add_norm_gradient};
use super::philox::Stream;
use super::san::{self, Gru, Steps};
use super::scratch::Workspace;
use super::shared::SharedMut;
use super::vocabulary::{self, Vocabulary};
use super::widened::Widened;
use crate::tensor::{Activation, DType, Extents, Op, Program, Shape, Sink, Space, TokenIndex, Var};

/// Runs one operation.
pub(super) fn run(isa: Isa, workspace: &mut Workspace, stream: Stream, values: &Values, op: &Op) {
    let get = |var: Var| values.get(var);
    let sink = |sink: Sink| SinkMut { values: values.get_mut(sink.var), add: sink.add };
    let (elements, elements_mut) = (|var: Var| values.elements(var), |var: Var| values.elements_mut(var));
    let elements_sink = |sink: Sink| ElementsSink { values: values.elements_mut(sink.var), add: sink.add };
    match *op {
        Op::Embedding { index, word, position, token_type, out } => {
            let (_, cols) = values.shape(out);
            let tokens = values.tokens(&index);
            embed(isa, &tokens, cols, get(word), get(position), get(token_type), elements_mut(out));
        }
        Op::Linear { x, weight, bias, activation, before, out } => {
            let (a, b, bias) = (values.matrix(x), values.matrix(weight), get(bias));
            match activation {
                Activation::Identity => {
                    let c = values.matrix_mut(out);
                    gemm(isa, workspace, Form::NT, a, b, c, WriteBack::Bias(bias));
                }
                Activation::Gelu => {
                    let before =
                        before.map_or(ElementsMut::F32(&mut []), |before| values.elements_mut(before));
                    let c = values.matrix_mut(out);
                    gemm(isa, workspace, Form::NT, a, b, c, WriteBack::BiasGelu { bias, before });
                }
                Activation::GeluTanh | Activation::Relu | Activation::Tanh | Activation::Sigmoid => {
                    // Without a backward pass the activation's argument and its value share a place.
                    let c = values.matrix_mut(before.unwrap_or(out));
                    gemm(isa, workspace, Form::NT, a, b, c, WriteBack::Bias(bias));
                    match before {
                        Some(before) => activate(isa, activation, elements(before), elements_mut(out)),
                        None => activate_in_place(isa, activation, elements_mut(out)),
                    }
                }
            }
        }
        Op::Attention { qkv, index, heads, dropout, context, log_sum_exp } => attention::forward(
            isa,
            workspace.scratch(),
            stream,
            dropout,
            heads,
            values.matrix(qkv),
            values.bounds(&index),
            values.elements_mut(context),
            log_sum_exp.map(|var| values.get_mut(var)),
        ),
        Op::AddNorm { x, residual, gamma, beta, epsilon, dropout, keys, y, kept } => {
            let drop = RowDropout { stream, dropout, keys: Some(values.indices(keys)) };
            let (residual, gamma, beta) = (residual.map(elements), get(gamma), get(beta));
            let input = AddNorm { x: elements(x), residual, drop, gamma, beta, epsilon };
            let kept = kept.map(|kept| KeptNorm {
                normalized: elements_mut(kept.normalized),
                inverse_std: values.get_mut(kept.inverse_std),
            });
            add_norm(isa, workspace.scratch(), &input, elements_mut(y), kept);
        }
        Op::Drop { x, keys, dropout, out } => {
            let drop = RowDropout { stream, dropout, keys: keys.map(|keys| values.indices(keys)) };
            drop_rows(isa, drop, elements(x), values.shape(x).1, elements_mut(out));
        }
        Op::Gather { x, rows, out } => {
            let (count, cols) = values.shape(out);
            gather(isa, elements(x), &values.indices(rows)[..count], cols, elements_mut(out));
        }
        Op::Attend { keys, values: attended, query, index, segment, weights, out } => {
            let input = Attend { keys: get(keys), values: get(attended), query: get(query) };
            let (bounds, types) = (values.bounds(&index), values.indices(index.types));
            let (weights, out) = (values.get_mut(weights), values.get_mut(out));
            attend(isa, &input, bounds, types, segment, weights, out);
        }
        Op::Gru { of_input, of_state, state, out } => {
            let gru = Gru { of_input: get(of_input), of_state: get(of_state), state: get(state) };
            san::gru(isa, &gru, values.shape(state).1, values.get_mut(out));
        }
        Op::Merge { a, b, out } => {
            san::merge(get(a), get(b), values.shape(a).1, values.get_mut(out));
        }
        Op::StepAverage { ref logits, dropout, out } => {
            let steps =
                Steps::new(stream, dropout, values.shape(out).1, logits.iter().map(|&of_step| get(of_step)));
            san::step_average(&steps, values.get_mut(out));
        }
        Op::CrossEntropy { logits, labels, loss } => {
            let (_, classes) = values.shape(logits);
            values.get_mut(loss)[0] = loss::cross_entropy(isa, get(logits), values.indices(labels), classes);
        }
        Op::VocabularyLoss { x, weight, bias, labels, logits, softmax, loss, accuracy } => {
            let vocabulary = values.vocabulary(x, weight, bias, labels);
            let (logits, softmax) = (values.get_mut(logits), values.get_mut(softmax));
            (values.get_mut(loss)[0], values.get_mut(accuracy)[0]) =
                vocabulary::forward(isa, workspace, &vocabulary, logits, softmax);
        }
        Op::SquaredError { predictions, targets, loss } => {
            values.get_mut(loss)[0] = loss::squared_error(get(predictions), get(targets));
        }
        Op::Ranking { scores, groups, positives, gamma, loss } => {
            let (groups, positives) = (values.indices(groups), values.indices(positives));
            values.get_mut(loss)[0] = loss::ranking(get(scores), groups, positives, gamma);
        }
        Op::SoftCrossEntropy { logits, targets, groups, factor, loss } => {
            let choices = values.choices(logits, groups);
            values.get_mut(loss)[0] = loss::soft_cross_entropy(get(logits), get(targets), choices, factor);
        }
        Op::WeightedSum { terms: [first, second], weights, out } => {
            values.get_mut(out)[0] = loss::weighted_sum([get(first)[0], get(second)[0]], weights);
        }
        Op::Fill { out, value } => fill(elements_mut(out), value),
        Op::Accumulate { from, into } => accumulate(isa, elements(from), elements_mut(into)),
        Op::EmbeddingGrad { index, d_out, d_word, d_position, d_token_type } => {
            let (_, cols) = values.shape(d_out);
            let tokens = values.tokens(&index);
            let sinks = (sink(d_word), sink(d_position), sink(d_token_type));
            embed_gradient(isa, &tokens, cols, elements(d_out), sinks.0, sinks.1, sinks.2);
        }
        Op::ActivationGrad { activation, before, d_after, d_before } => {
            activate_gradient(isa, activation, elements(before), elements(d_after), elements_mut(d_before));
        }
        Op::LinearInputGrad { d_out, weight, d_x } => {
            let (a, b, c) = (values.matrix(d_out), values.matrix(weight), values.matrix_mut(d_x.var));
            gemm(isa, workspace, Form::NN, a, b, c, store_or_add(d_x));
        }
        Op::LinearWeightGrad { d_out, x, activation, d_weight, d_bias } => {
            let (d_out, x, c) = (values.matrix(d_out), values.matrix(x), values.matrix_mut(d_weight.var));
            gemm::weight_gradient(isa, workspace, d_out, x, activation, c, d_weight.add, sink(d_bias));
        }
        Op::AttentionGrad { qkv, index, heads, dropout, log_sum_exp, d_context, d_qkv } => {
            attention::backward(
                isa,
                workspace.scratch(),
                stream,
                dropout,
                heads,
                values.matrix(qkv),
                values.bounds(&index),
                get(log_sum_exp),
                values.elements(d_context),
                values.elements_mut(d_qkv),
            );
        }
        Op::AddNormGrad {
            d_y,
            normalized,
            inverse_std,
            gamma,
            dropout,
            keys,
            d_x,
            d_residual,
            d_gamma,
            d_beta,
        } => {
            let drop = RowDropout { stream, dropout, keys: Some(values.indices(keys)) };
            let (normalized, inverse_std) = (elements(normalized), get(inverse_std));
            let input =
                AddNormGradient { d_y: elements(d_y), normalized, inverse_std, gamma: get(gamma), drop };
            let (d_x, d_residual) = (elements_mut(d_x), d_residual.map(elements_sink));
            add_norm_gradient(isa, workspace, &input, d_x, d_residual, sink(d_gamma), sink(d_beta));
        }
        Op::GatherGrad { d_out, rows, d_x } => {
            let (count, cols) = values.shape(d_out);
            let (rows, d_x) = (&values.indices(rows)[..count], elements_sink(d_x));
            gather_gradient(isa, elements(d_out), rows, cols, d_x);
        }
        Op::AttendGrad {
            keys,
            values: attended,
            query,
            index,
            weights,
            d_out,
            d_scores,
            d_keys,
            d_values,
            d_query,
        } => {
            let input = Attend { keys: get(keys), values: get(attended), query: get(query) };
            let bounds = values.bounds(&index);
            let d_scores = values.get_mut(d_scores);
            let (d_keys, d_values, d_query) = (sink(d_keys), d_values.map(sink), sink(d_query));
            let gradients = AttendGradient { d_scores, d_keys, d_values, d_query };
            attend_gradient(isa, &input, bounds, get(weights), get(d_out), gradients);
        }
        Op::GruGrad { of_input, of_state, state, d_out, d_of_input, d_of_state, d_state } => {
            let gru = Gru { of_input: get(of_input), of_state: get(of_state), state: get(state) };
            let [d_of_input, d_of_state] = [d_of_input, d_of_state].map(|var| values.get_mut(var));
            let cols = values.shape(state).1;
            san::gru_gradient(isa, &gru, cols, get(d_out), d_of_input, d_of_state, sink(d_state));
        }
        Op::MergeGrad { a, b, d_out, d_a, d_b } => {
            san::merge_gradient(get(a), get(b), values.shape(a).1, get(d_out), sink(d_a), sink(d_b));
        }
        Op::StepAverageGrad { ref logits, dropout, out, d_out, ref d_logits } => {
            let steps =
                Steps::new(stream, dropout, values.shape(out).1, logits.iter().map(|&of_step| get(of_step)));
            let d_logits = d_logits.iter().map(|&of_step| values.get_mut(of_step));
            san::step_average_gradient(&steps, get(out), get(d_out), d_logits);
        }
        Op::CrossEntropyGrad { logits, labels, d_loss, d_logits } => {
            let (_, classes) = values.shape(logits);
            let (labels, d_loss) = (values.indices(labels), get(d_loss)[0]);
            let d_logits = values.get_mut(d_logits);
            loss::cross_entropy_gradient(isa, get(logits), labels, classes, d_loss, d_logits);
        }
        Op::VocabularyLossGrad {
            x,
            weight,
            bias,
            labels,
            softmax,
            d_loss,
            logits,
            d_logits,
            d_x,
            d_weight,
            d_bias,
        } => {
            let vocabulary = values.vocabulary(x, weight, bias, labels);
            let (d_loss, logits) = (get(d_loss)[0], values.get_mut(logits));
            let (d_x, d_weight, d_bias) = (sink(d_x), sink(d_weight), sink(d_bias));
            vocabulary::backward(
                isa,
                workspace,
                &vocabulary,
                get(softmax),
                d_loss,
                logits,
                d_logits.map(|var| values.elements_mut(var)),
                d_x,
                d_weight,
                d_bias,
            );
        }
        Op::SquaredErrorGrad { predictions, targets, d_loss, d_predictions } => {
            let d_predictions = values.get_mut(d_predictions);
            loss::squared_error_gradient(get(predictions), get(targets), get(d_loss)[0], d_predictions);
        }
        Op::RankingGrad { scores, groups, positives, gamma, d_loss, d_scores } => {
            let (groups, positives) = (values.indices(groups), values.indices(positives));
            let d_scores = values.get_mut(d_scores);
            loss::ranking_gradient(get(scores), groups, positives, gamma, get(d_loss)[0], d_scores);
        }
        Op::SoftCrossEntropyGrad { logits, targets, groups, factor, d_loss, d_logits } => {
            let choices = values.choices(logits, groups);
            let (d_loss, d_logits) = (get(d_loss)[0], values.get_mut(d_logits));
            loss::soft_cross_entropy_gradient(get(logits), get(targets), choices, factor, d_loss, d_logits);
        }
        Op::WeightedSumGrad { d_out, weight, d_term } => values.get_mut(d_term)[0] = weight * get(d_out)[0],
    }
}

/// Whether an operation and the one after it are run as one: a product to an input, and GELU's gradient of it, which is
/// all that reads it.
pub(super) fn is_fused(ops: &[Op], number: usize) -> bool {
    let [Op::LinearInputGrad { d_x, .. }, Op::ActivationGrad { activation, d_after, .. }, ..] =
        &ops[number..]
    else {
        return false;
    };
    let elsewhere = ops[..number].iter().chain(&ops[number + 2..]);
    let touches = |op: &Op| op.operands().iter().any(|(_, var)| var == d_after);
    !d_x.add && d_x.var == *d_after && *activation == Activation::Gelu && !elsewhere.into_iter().any(touches)
}

/// Runs two such operations: the gradient is multiplied in as the product is written.
pub(super) fn run_fused(isa: Isa, workspace: &mut Workspace, values: &Values, product: &Op, gradient: &Op) {
    let (Op::LinearInputGrad { d_out, weight, .. }, Op::ActivationGrad { before, d_before, .. }) =
        (product, gradient)
    else {
        unreachable!("{} and {} are not run as one", product.name(), gradient.name())
    };
    let (a, b, c) = (values.matrix(*d_out), values.matrix(*weight), values.matrix_mut(*d_before));
    gemm(isa, workspace, Form::NN, a, b, c, WriteBack::GeluGradient { before: values.elements(*before) });
}

/// Makes room for what the kernels of a program need beside its values on the largest batch, so that growing batches
/// make nothing grow. `tests/allocation.rs` finds what is forgotten here.
pub(super) fn reserve(isa: Isa, workspace: &mut Workspace, program: &Program) {
    let capacity = program.capacity();
    let size = |var: Var| {
        let Shape { rows, cols } = program.shape(var);
        (rows.count(capacity), cols)
    };
    let narrow = |vars: &[Var]| vars.iter().any(|var| program.dtype(*var) == DType::Bf16);
    let mut longest = capacity.tokens;
    for op in program.ops() {
        match *op {
            Op::Embedding { position, .. } => longest = longest.min(size(position).0),
            Op::Linear { x, out, .. } => {
                gemm::reserve(isa, workspace, narrow(&[x]), size(x).0, size(out).1, size(x).1);
            }
            Op::LinearInputGrad { d_out, d_x, .. } => {
                gemm::reserve(
                    isa,
                    workspace,
                    narrow(&[d_out]),
                    size(d_out).0,
                    size(d_x.var).1,
                    size(d_out).1,
                );
            }
            Op::LinearWeightGrad { d_out, x, .. } => {
                let sizes = [size(x).0, size(d_out).1, size(x).1];
                gemm::reserve_weight_gradient(isa, workspace, narrow(&[d_out, x]), sizes);
            }
            Op::VocabularyLoss { x, logits, .. } => {
                vocabulary::reserve(isa, workspace, narrow(&[x]), size(x).0, size(x).1, size(logits).1);
            }
            Op::AddNorm { x, .. } => norm::reserve(workspace, size(x).0, size(x).1),
            Op::Attention { qkv, heads, .. } => {
                let head_size = size(qkv).1 / 3 / heads;
                workspace.reserve(0, attention::scratch_floats(isa, longest, head_size));
            }
            _ => {}
        }
    }
}

fn store_or_add<'a>(sink: Sink) -> WriteBack<'a> {
    if sink.add { WriteBack::Add } else { WriteBack::Store }
}

/// The flat buffers as a program sees them: values, not offsets.
pub(super) struct Values<'a> {
    pub(super) program: &'a Program,
    pub(super) extents: Extents,
    pub(super) arena: SharedMut<'a>,
    pub(super) parameters: SharedMut<'a>,
    pub(super) gradients: SharedMut<'a>,
    pub(super) widened: Widened<'a>,
}

impl<'a> Values<'a> {
    /// An f32 value that the operation at hand reads.
    pub(super) fn get(&self, var: Var) -> &'a [f32] {
        match self.elements(var) {
            Elements::F32(values) => values,
            Elements::Bf16(_) => panic!("{} is bf16", self.program.name(var)),
        }
    }

    /// Indices that the operation at hand reads.
    fn indices(&self, var: Var) -> &'a [u32] {
        bytemuck::cast_slice(self.words(var))
    }

    /// An f32 value that the operation at hand writes.
    pub(super) fn get_mut(&self, var: Var) -> &'a mut [f32] {
        match self.elements_mut(var) {
            ElementsMut::F32(values) => values,
            ElementsMut::Bf16(_) => panic!("{} is bf16", self.program.name(var)),
        }
    }

    /// A value of either width that the operation at hand reads.
    fn elements(&self, var: Var) -> Elements<'a> {
        match self.copy(var) {
            // SAFETY: each copy has a place of its own, and operations run one after another.
            Some(place) => Elements::F32(unsafe { self.widened.buffer.read(place) }),
            None => self.stored(var),
        }
    }

    /// A value of either width that the operation at hand writes.
    fn elements_mut(&self, var: Var) -> ElementsMut<'a> {
        match self.copy(var) {
            // SAFETY: each copy has a place of its own, and an operation writes a value by one operand.
            Some(place) => ElementsMut::F32(unsafe { self.widened.buffer.slice(place) }),
            None => self.stored_mut(var),
        }
    }

    /// A value to be read where it is kept, whatever copy there is of it.
    pub(super) fn stored(&self, var: Var) -> Elements<'a> {
        let words = self.words(var);
        match self.program.dtype(var) {
            DType::Bf16 => Elements::Bf16(&bytemuck::cast_slice(words)[..self.len(var)]),
            DType::F32 | DType::U32 => Elements::F32(words),
        }
    }

    /// A value to be written where it is kept, whatever copy there is of it.
    pub(super) fn stored_mut(&self, var: Var) -> ElementsMut<'a> {
        let (buffer, place) = self.place(var);
        // SAFETY: operations run one after another, an operation writes a value by one operand and reads it by no other,
        // and values that live at the same time lie apart (a property test holds the planner to that).
        let words = unsafe { buffer.slice(place) };
        match self.program.dtype(var) {
            DType::Bf16 => ElementsMut::Bf16(&mut bytemuck::cast_slice_mut(words)[..self.len(var)]),
            DType::F32 | DType::U32 => ElementsMut::F32(words),
        }
    }

    fn words(&self, var: Var) -> &'a [f32] {
        let (buffer, place) = self.place(var);
        // SAFETY: what an operation reads it does not write, and what it writes lies apart, as above.
        unsafe { buffer.read(place) }
    }

    fn place(&self, var: Var) -> (SharedMut<'a>, Range<usize>) {
        let span = self.program.span(var, &self.extents);
        let buffer = match span.space {
            Space::Arena => self.arena,
            Space::Parameters => self.parameters,
            Space::Gradients => self.gradients,
            Space::FirstMoment | Space::SecondMoment => unreachable!("programs have no moments"),
        };
        (buffer, span.range())
    }

    fn len(&self, var: Var) -> usize {
        let (rows, cols) = self.shape(var);
        rows * cols
    }

    fn shape(&self, var: Var) -> (usize, usize) {
        let Shape { rows, cols } = self.program.shape(var);
        (rows.count(&self.extents), cols)
    }

    fn matrix(&self, var: Var) -> Matrix<'a> {
        let (rows, cols) = self.shape(var);
        Matrix::new(self.elements(var), rows, cols)
    }

    fn matrix_mut(&self, var: Var) -> MatrixMut<'a> {
        let (rows, cols) = self.shape(var);
        MatrixMut::new(self.elements_mut(var), rows, cols)
    }

    fn vocabulary(&self, x: Var, weight: Var, bias: Var, labels: Var) -> Vocabulary<'a> {
        let labels = self.indices(labels);
        Vocabulary { x: self.elements(x), weight: self.get(weight), bias: self.get(bias), labels }
    }

    fn choices(&self, logits: Var, groups: Option<Var>) -> Choices<'a> {
        let (rows, classes) = self.shape(logits);
        groups.map_or(Choices::Rows { rows, classes }, |groups| Choices::Groups(self.indices(groups)))
    }

    fn tokens(&self, index: &TokenIndex) -> Tokens<'a> {
        Tokens {
            ids: self.indices(index.ids),
            types: self.indices(index.types),
            places: self.indices(index.places),
            order: self.indices(index.order),
            bounds: self.bounds(index),
        }
    }

    fn bounds(&self, index: &TokenIndex) -> Bounds<'a> {
        Bounds { starts: self.indices(index.starts), ends: self.indices(index.ends) }
    }
}
