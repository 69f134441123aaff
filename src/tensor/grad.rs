//! Reverse-mode differentiation of a tape: one `match`, in the reverse of the recording order.
//!
//! The backward steps are ordinary operations appended to the same tape. Each gradient is stored by its
//! first use and added to by later ones, so no buffer is ever cleared.

use super::op::{Activation, Op, Sink, Var};
use super::shape::DType;
use super::tape::{Mode, Origin, Tape};

/// Appends the backward pass of `loss` (`[1, 1]`), scaled by `scale`, to the tape.
///
/// Parameter gradients land in the flat gradient buffer at their parameter's offset; with `accumulate`
/// they add to what is there. A parameter that `loss` does not reach gets no gradient and no step.
pub(super) fn differentiate(tape: &mut Tape, loss: Var, scale: f32, accumulate: bool) {
    assert_eq!(tape.mode, Mode::Training, "a tape recorded for inference has no backward pass");
    assert_eq!(tape.shape(loss).cols, 1, "the loss is {}, not [1, 1]", tape.shape(loss));
    let recorded = tape.ops.clone();
    let mut gradients = Gradients { of: vec![None; tape.values.len()], accumulate };
    let d_loss = gradients.store(tape, loss);
    tape.ops.push(Op::Fill { out: d_loss, value: scale });
    for op in recorded.iter().rev() {
        backward(tape, &mut gradients, op);
    }
}

/// The gradient of each value met so far on the way back.
struct Gradients {
    of: Vec<Option<Var>>,
    accumulate: bool,
}

impl Gradients {
    /// The finished gradient of an operation's output; none if the loss does not depend on it.
    fn get(&self, var: Var) -> Option<Var> {
        self.of[var.index()]
    }

    /// Where the next contribution to the gradient of `var` goes.
    fn sink(&mut self, tape: &mut Tape, var: Var) -> Sink {
        if let Some(gradient) = self.of[var.index()] {
            return Sink { var: gradient, add: true };
        }
        let value = tape.value(var).clone();
        assert_eq!(value.dtype, DType::F32, "{} has no gradient", value.name);
        let (origin, add) = match value.origin {
            Origin::Parameter(offset) => (Origin::Gradient(offset), self.accumulate),
            Origin::Input | Origin::Computed => (Origin::Computed, false),
            Origin::Gradient(_) => panic!("{} is a gradient already", value.name),
        };
        let gradient = tape.push(format!("d_{}", value.name), value.shape, DType::F32, origin);
        self.of[var.index()] = Some(gradient);
        Sink { var: gradient, add }
    }

    /// As [`Gradients::sink`], for an operation that can only store: its `var` must have one use.
    fn store(&mut self, tape: &mut Tape, var: Var) -> Var {
        let sink = self.sink(tape, var);
        assert!(!sink.add, "{} has several uses, and its gradient can only be stored", tape.name(var));
        sink.var
    }

    /// Calls `record` with a gradient that it stores, then adds it where `var` has other uses.
    fn store_then_add(&mut self, tape: &mut Tape, var: Var, record: impl FnOnce(&mut Tape, Var)) {
        let sink = self.sink(tape, var);
        if sink.add {
            let part = tape.computed("d_part", tape.shape(var));
            record(tape, part);
            tape.ops.push(Op::Accumulate { from: part, into: sink.var });
        } else {
            record(tape, sink.var);
        }
    }
}

/// The backward steps of one operation.
fn backward(tape: &mut Tape, gradients: &mut Gradients, op: &Op) {
    match *op {
        Op::Embedding { index, word, position, token_type, out } => {
            let Some(d_out) = gradients.get(out) else { return };
            let d_word = gradients.sink(tape, word);
            let d_position = gradients.sink(tape, position);
            let d_token_type = gradients.sink(tape, token_type);
            tape.ops.push(Op::EmbeddingGrad { index, d_out, d_word, d_position, d_token_type });
        }
        Op::Linear { x, weight, bias, activation, before, out } => {
            let Some(d_after) = gradients.get(out) else { return };
            let d_out = if activation == Activation::Identity {
                d_after
            } else {
                let before = before.expect("a training tape keeps the activation's argument");
                let d_before = gradients.store(tape, before);
                tape.ops.push(Op::ActivationGrad { activation, before, d_after, d_before });
                d_before
            };
            let d_weight = gradients.sink(tape, weight);
            let d_bias = gradients.sink(tape, bias);
            tape.ops.push(Op::LinearWeightGrad { d_out, x, d_weight, d_bias });
            if tape.value(x).origin == Origin::Computed {
                let d_x = gradients.sink(tape, x);
                tape.ops.push(Op::LinearInputGrad { d_out, weight, d_x });
            }
        }
        Op::Attention { qkv, starts, heads, dropout, context, log_sum_exp } => {
            let Some(d_context) = gradients.get(context) else { return };
            gradients.store_then_add(tape, qkv, |tape, d_qkv| {
                tape.ops.push(Op::AttentionGrad {
                    qkv,
                    starts,
                    heads,
                    dropout,
                    log_sum_exp,
                    d_context,
                    d_qkv,
                });
            });
        }
        Op::AddNorm { x, residual, gamma, beta, epsilon: _, dropout, keys, y, normalized, inverse_std } => {
            let Some(d_y) = gradients.get(y) else { return };
            let d_residual = residual.map(|residual| gradients.sink(tape, residual));
            let d_gamma = gradients.sink(tape, gamma);
            let d_beta = gradients.sink(tape, beta);
            gradients.store_then_add(tape, x, |tape, d_x| {
                tape.ops.push(Op::AddNormGrad {
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
                });
            });
        }
        Op::Drop { x, keys, dropout, out } => {
            let Some(d_out) = gradients.get(out) else { return };
            gradients.store_then_add(tape, x, |tape, d_x| {
                tape.ops.push(Op::Drop { x: d_out, keys, dropout, out: d_x });
            });
        }
        Op::Gather { x, rows, out } => {
            let Some(d_out) = gradients.get(out) else { return };
            let d_x = gradients.sink(tape, x);
            tape.ops.push(Op::GatherGrad { d_out, rows, d_x });
        }
        Op::CrossEntropy { logits, labels, loss } => {
            let Some(d_loss) = gradients.get(loss) else { return };
            gradients.store_then_add(tape, logits, |tape, d_logits| {
                tape.ops.push(Op::CrossEntropyGrad { logits, labels, d_loss, d_logits });
            });
        }
        Op::SquaredError { predictions, targets, loss } => {
            let Some(d_loss) = gradients.get(loss) else { return };
            gradients.store_then_add(tape, predictions, |tape, d_predictions| {
                tape.ops.push(Op::SquaredErrorGrad { predictions, targets, d_loss, d_predictions });
            });
        }
        Op::Ranking { scores, groups, positives, gamma, loss } => {
            let Some(d_loss) = gradients.get(loss) else { return };
            gradients.store_then_add(tape, scores, |tape, d_scores| {
                tape.ops.push(Op::RankingGrad { scores, groups, positives, gamma, d_loss, d_scores });
            });
        }
        Op::Fill { .. }
        | Op::Accumulate { .. }
        | Op::EmbeddingGrad { .. }
        | Op::ActivationGrad { .. }
        | Op::LinearInputGrad { .. }
        | Op::LinearWeightGrad { .. }
        | Op::AttentionGrad { .. }
        | Op::AddNormGrad { .. }
        | Op::GatherGrad { .. }
        | Op::CrossEntropyGrad { .. }
        | Op::SquaredErrorGrad { .. }
        | Op::RankingGrad { .. } => panic!("{} is a backward step and has no backward of its own", op.name()),
    }
}
