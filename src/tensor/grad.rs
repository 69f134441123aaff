//! Reverse-mode differentiation of a tape: one `match`, in the reverse of the recording order.
//!
//! The backward steps are ordinary operations appended to the same tape. Each gradient is stored by its
//! first use and added to by later ones, so no buffer is ever cleared.

use super::op::{Activation, KeptNorm, Op, Sink, Var};
use super::precision::Precision;
use super::shape::DType;
use super::tape::{Mode, Origin, Tape};

/// Appends the backward pass of the sum of `losses` (each `[1, 1]`), scaled by `scale`, to the tape.
///
/// Parameter gradients land in the flat gradient buffer at their parameter's offset; with `accumulate`
/// they add to what is there. A parameter that no loss reaches gets no gradient and no step.
pub(super) fn differentiate(tape: &mut Tape, losses: &[Var], scale: f32, accumulate: bool) {
    assert_eq!(tape.mode, Mode::Training, "a tape recorded for inference has no backward pass");
    let recorded = tape.ops.clone();
    let mut gradients = Gradients { of: vec![None; tape.values.len()], accumulate };
    for &loss in losses {
        assert_eq!(tape.shape(loss).cols, 1, "the loss is {}, not [1, 1]", tape.shape(loss));
        let d_loss = gradients.store(tape, loss);
        tape.ops.push(Op::Fill { out: d_loss, value: scale });
    }
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
            let (source, activation) = source(tape, x);
            tape.ops.push(Op::LinearWeightGrad { d_out, x: source, activation, d_weight, d_bias });
            if tape.value(x).origin == Origin::Computed {
                let d_x = gradients.sink(tape, x);
                tape.ops.push(Op::LinearInputGrad { d_out, weight, d_x });
            }
        }
        Op::Attention { qkv, index, heads, dropout, context, log_sum_exp } => {
            let Some(d_context) = gradients.get(context) else { return };
            let log_sum_exp = log_sum_exp.expect("a training tape keeps the softmaxes' denominators");
            gradients.store_then_add(tape, qkv, |tape, d_qkv| {
                tape.ops.push(Op::AttentionGrad {
                    qkv,
                    index,
                    heads,
                    dropout,
                    log_sum_exp,
                    d_context,
                    d_qkv,
                });
            });
        }
        Op::AddNorm { x, residual, gamma, beta, epsilon: _, dropout, keys, y, kept } => {
            let Some(d_y) = gradients.get(y) else { return };
            let KeptNorm { normalized, inverse_std } =
                kept.expect("a training tape keeps what is normalized");
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
        Op::Attend { keys, values, query, index, segment: _, weights, out } => {
            let Some(d_out) = gradients.get(out) else { return };
            let d_scores = tape.computed("d_scores", tape.shape(weights));
            let d_keys = gradients.sink(tape, keys);
            let d_values = (values != keys).then(|| gradients.sink(tape, values));
            let d_query = gradients.sink(tape, query);
            tape.ops.push(Op::AttendGrad {
                keys,
                values,
                query,
                index,
                weights,
                d_out,
                d_scores,
                d_keys,
                d_values,
                d_query,
            });
        }
        Op::Gru { of_input, of_state, state, out } => {
            let Some(d_out) = gradients.get(out) else { return };
            let [d_of_input, d_of_state] = [of_input, of_state].map(|var| gradients.store(tape, var));
            let d_state = gradients.sink(tape, state);
            tape.ops.push(Op::GruGrad { of_input, of_state, state, d_out, d_of_input, d_of_state, d_state });
        }
        Op::Merge { a, b, out } => {
            let Some(d_out) = gradients.get(out) else { return };
            let [d_a, d_b] = [a, b].map(|var| gradients.sink(tape, var));
            tape.ops.push(Op::MergeGrad { a, b, d_out, d_a, d_b });
        }
        Op::StepAverage { ref logits, dropout, out } => {
            let Some(d_out) = gradients.get(out) else { return };
            let d_logits = logits.iter().map(|&logits| gradients.store(tape, logits)).collect();
            tape.ops.push(Op::StepAverageGrad { logits: logits.clone(), dropout, out, d_out, d_logits });
        }
        Op::CrossEntropy { logits, labels, loss } => {
            let Some(d_loss) = gradients.get(loss) else { return };
            gradients.store_then_add(tape, logits, |tape, d_logits| {
                tape.ops.push(Op::CrossEntropyGrad { logits, labels, d_loss, d_logits });
            });
        }
        Op::VocabularyLoss { x, weight, bias, labels, logits, softmax, loss, accuracy: _ } => {
            let Some(d_loss) = gradients.get(loss) else { return };
            let block = tape.shape(logits);
            let logits = tape.computed("logits", block);
            let d_logits = (tape.precision == Precision::Bf16).then(|| tape.computed("d_logits", block));
            let d_x = gradients.sink(tape, x);
            let d_weight = gradients.sink(tape, weight);
            let d_bias = gradients.sink(tape, bias);
            tape.ops.push(Op::VocabularyLossGrad {
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
        Op::SoftCrossEntropy { logits, targets, groups, factor, loss } => {
            let Some(d_loss) = gradients.get(loss) else { return };
            gradients.store_then_add(tape, logits, |tape, d_logits| {
                let op = Op::SoftCrossEntropyGrad { logits, targets, groups, factor, d_loss, d_logits };
                tape.ops.push(op);
            });
        }
        Op::WeightedSum { terms, weights, out } => {
            let Some(d_out) = gradients.get(out) else { return };
            for (term, weight) in terms.into_iter().zip(weights) {
                gradients.store_then_add(tape, term, |tape, d_term| {
                    tape.ops.push(Op::WeightedSumGrad { d_out, weight, d_term });
                });
            }
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
        | Op::AttendGrad { .. }
        | Op::GruGrad { .. }
        | Op::MergeGrad { .. }
        | Op::StepAverageGrad { .. }
        | Op::CrossEntropyGrad { .. }
        | Op::VocabularyLossGrad { .. }
        | Op::SquaredErrorGrad { .. }
        | Op::RankingGrad { .. }
        | Op::SoftCrossEntropyGrad { .. }
        | Op::WeightedSumGrad { .. } => {
            panic!("{} is a backward step and has no backward of its own", op.name())
        }
    }
}

/// From what, and by which activation, the step of a weight's gradient has the map's input `x`.
///
/// The value of an activation is not kept for it: its argument is, for the activation's own gradient, and has the same
/// numbers in it. In bf16 it has not, since argument and value are rounded each by itself.
fn source(tape: &Tape, x: Var) -> (Var, Activation) {
    let made = tape.ops.iter().find_map(|op| match *op {
        Op::Linear { activation, before: Some(before), out, .. } if out == x => Some((before, activation)),
        _ => None,
    });
    match tape.precision {
        Precision::F32 => made.unwrap_or((x, Activation::Identity)),
        Precision::Bf16 => (x, Activation::Identity),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Access, Dropout, Extents, Program, Rows, TokenIndex};

    const OFF: Dropout = Dropout { threshold: 0, site: 0 };

    /// Token vectors `[tokens, 4]`, with tables at the beginning of the parameter buffer.
    fn tokens(tape: &mut Tape) -> (Var, TokenIndex) {
        let mut input = |name, rows| tape.input(name, DType::U32, rows, 1);
        let [ids, types, places, order] =
            ["ids", "types", "places", "order"].map(|name| input(name, Rows::Tokens));
        let [starts, ends, first_places] =
            ["starts", "ends", "first_places"].map(|name| input(name, Rows::Sequences));
        let index = TokenIndex { ids, types, places, order, starts, ends, first_places };
        let tables = [("word", 0, 9), ("position", 36, 6), ("type", 60, 2)]
            .map(|(name, offset, rows)| tape.parameter(name, offset, rows, 4));
        (tape.embedding(index, tables[0], tables[1], tables[2]), index)
    }

    fn linear(tape: &mut Tape, x: Var, offset: usize, outputs: usize) -> Var {
        let weight = tape.parameter("weight", offset, outputs, tape.shape(x).cols);
        let bias = tape.parameter("bias", offset + outputs * tape.shape(x).cols, 1, outputs);
        tape.linear(x, weight, bias, Activation::Identity)
    }

    fn loss(tape: &mut Tape, x: Var) -> Var {
        let out = linear(tape, x, 1000, 1);
        let targets = tape.input("targets", DType::F32, Rows::Tokens, 1);
        tape.squared_error(out, targets)
    }

    /// The backward steps and, for each, the names of what it stores (`=`) and adds to (`+=`).
    fn steps(tape: &Tape, from: usize) -> Vec<String> {
        let sign = |access| match access {
            Access::Read => None,
            Access::Write => Some("="),
            Access::Add => Some("+="),
            Access::Work => Some("~"),
        };
        let outputs = |op: &Op| -> Vec<String> {
            let signs = op.operands().into_iter().filter_map(|(access, var)| Some((sign(access)?, var)));
            signs.map(|(sign, var)| format!("{} {sign}", tape.name(var))).collect()
        };
        tape.ops[from..].iter().map(|op| format!("{}: {}", op.name(), outputs(op).join(", "))).collect()
    }

    #[test]
    fn the_first_use_stores_and_later_ones_add() {
        let mut tape = Tape::new(Mode::Training);
        let (x, index) = tokens(&mut tape);
        let gamma = tape.parameter("gamma", 100, 1, 4);
        let beta = tape.parameter("beta", 104, 1, 4);
        // `x` and the norm's parameters are used twice.
        let y = tape.add_norm(x, None, gamma, beta, 1e-12, OFF, index.places);
        let z = tape.add_norm(y, Some(x), gamma, beta, 1e-12, OFF, index.places);
        let loss = loss(&mut tape, z);
        let from = tape.ops.len();
        differentiate(&mut tape, &[loss], 0.5, false);
        assert_eq!(
            steps(&tape, from),
            [
                "fill: d_loss =",
                "squared_error_grad: d_linear =",
                "linear_weight_grad: d_weight =, d_bias =",
                "linear_input_grad: d_norm =",
                "add_norm_grad: d_norm =, d_embedding =, d_gamma =, d_beta =",
                // The norm's gradient with respect to its input can only be stored, so it is added afterwards.
                "add_norm_grad: d_part =, d_gamma +=, d_beta +=",
                "accumulate: d_embedding +=",
                "embedding_grad: d_word =, d_position =, d_type =",
            ]
        );
        assert!(matches!(tape.ops[from], Op::Fill { value: 0.5, .. }));
    }

    #[test]
    fn accumulation_adds_to_the_gradients_of_parameters_alone() {
        let mut tape = Tape::new(Mode::Training);
        let (x, _) = tokens(&mut tape);
        let loss = loss(&mut tape, x);
        let from = tape.ops.len();
        differentiate(&mut tape, &[loss], 1.0, true);
        assert_eq!(
            steps(&tape, from),
            [
                "fill: d_loss =",
                "squared_error_grad: d_linear =",
                "linear_weight_grad: d_weight +=, d_bias +=",
                "linear_input_grad: d_embedding =",
                "embedding_grad: d_word +=, d_position +=, d_type +=",
            ]
        );
    }

    #[test]
    fn an_activation_is_kept_for_the_next_weight_in_bf16_alone() {
        for (precision, expected) in [
            (Precision::F32, ("before", Activation::Gelu)),
            (Precision::Bf16, ("linear", Activation::Identity)),
        ] {
            let mut tape = Tape::new(Mode::Training).with_precision(precision);
            let (x, _) = tokens(&mut tape);
            let weight = tape.parameter("weight", 2000, 8, 4);
            let bias = tape.parameter("bias", 2032, 1, 8);
            let hidden = tape.linear(x, weight, bias, Activation::Gelu);
            let loss = loss(&mut tape, hidden);
            differentiate(&mut tape, &[loss], 1.0, false);
            let first = tape.ops.iter().find_map(|op| match *op {
                Op::LinearWeightGrad { x, activation, .. } => Some((tape.name(x), activation)),
                _ => None,
            });
            assert_eq!(first, Some(expected));
        }
    }

    #[test]
    fn what_the_loss_does_not_reach_has_no_gradient() {
        let mut tape = Tape::new(Mode::Training);
        let (x, _) = tokens(&mut tape);
        linear(&mut tape, x, 2000, 3); // Another task's head.
        let loss = loss(&mut tape, x);
        let extents = Extents { tokens: 5, sequences: 2, groups: 2, predictions: 0, in_lines: false };
        let program = Program::training(tape, &[loss], 1.0, false, extents);
        assert_eq!(program.gradient_ranges(), [0..36, 36..60, 60..68, 1000..1004, 1004..1005]);
        let products = program.ops().iter().filter(|op| op.name() == "linear_weight_grad");
        assert_eq!(products.count(), 1);
    }

    #[test]
    #[should_panic(expected = "recorded for inference")]
    fn a_tape_for_inference_has_no_backward_pass() {
        let mut tape = Tape::new(Mode::Inference);
        let (x, _) = tokens(&mut tape);
        let loss = loss(&mut tape, x);
        differentiate(&mut tape, &[loss], 1.0, false);
    }
}
