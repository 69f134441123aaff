//! Which values are kept in bf16: one rule over the recorded operations.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::op::{Op, Var};
use super::operands::Access;
use super::shape::DType;
use super::tape::{Origin, Value};

/// What a program computes with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 throughout: the reference.
    #[default]
    F32,
    /// Activations and their gradients are bf16, and so are the operands of products; sums are f32, and so is all that
    /// [`narrow`] leaves alone: statistics, what losses read and write, parameters, their gradients and moments.
    Bf16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        })
    }
}

/// Turns computed values into bf16, but for statistics of norms and softmaxes, whatever a loss reads or writes on the
/// way there and back, and what no operation reads or works in (what a program is run for).
pub(super) fn narrow(values: &mut [Value], ops: &[Op]) {
    let mut wide = vec![true; values.len()];
    for op in ops {
        for (access, var) in op.operands() {
            wide[var.index()] &= !matches!(access, Access::Read | Access::Work);
        }
    }
    for op in ops {
        exact(op).iter().for_each(|var| wide[var.index()] = true);
    }
    for (value, wide) in values.iter_mut().zip(wide) {
        if value.origin == Origin::Computed && !wide {
            value.dtype = DType::Bf16;
        }
    }
}

/// The operands of an operation that stay f32.
fn exact(op: &Op) -> Vec<Var> {
    match op {
        Op::Attention { log_sum_exp, .. } => log_sum_exp.iter().copied().collect(),
        Op::AddNorm { kept, .. } => kept.iter().map(|kept| kept.inverse_std).collect(),
        Op::Attend { weights, .. } => vec![*weights],
        Op::StepAverage { logits, out, .. } => logits.iter().chain([out]).copied().collect(),
        Op::CrossEntropy { logits, loss, .. } => vec![*logits, *loss],
        Op::VocabularyLoss { logits, softmax, loss, accuracy, .. } => {
            vec![*logits, *softmax, *loss, *accuracy]
        }
        Op::SquaredError { predictions, loss, .. } => vec![*predictions, *loss],
        Op::Ranking { scores, loss, .. } => vec![*scores, *loss],
        Op::AttendGrad { d_scores, .. } => vec![*d_scores],
        Op::StepAverageGrad { d_out, d_logits, .. } => d_logits.iter().chain([d_out]).copied().collect(),
        Op::CrossEntropyGrad { d_loss, d_logits, .. } => vec![*d_loss, *d_logits],
        Op::VocabularyLossGrad { d_loss, logits, .. } => vec![*d_loss, *logits],
        Op::SquaredErrorGrad { d_loss, d_predictions, .. } => vec![*d_loss, *d_predictions],
        Op::RankingGrad { d_loss, d_scores, .. } => vec![*d_loss, *d_scores],
        Op::SoftCrossEntropy { logits, loss, .. } => vec![*logits, *loss],
        Op::WeightedSum { terms: [first, second], out, .. } => vec![*first, *second, *out],
        Op::SoftCrossEntropyGrad { d_loss, d_logits, .. } => vec![*d_loss, *d_logits],
        Op::WeightedSumGrad { d_out, d_term, .. } => vec![*d_out, *d_term],
        Op::Embedding { .. }
        | Op::Linear { .. }
        | Op::Drop { .. }
        | Op::Gather { .. }
        | Op::Gru { .. }
        | Op::Merge { .. }
        | Op::Fill { .. }
        | Op::Accumulate { .. }
        | Op::EmbeddingGrad { .. }
        | Op::ActivationGrad { .. }
        | Op::LinearInputGrad { .. }
        | Op::LinearWeightGrad { .. }
        | Op::AttentionGrad { .. }
        | Op::AddNormGrad { .. }
        | Op::GatherGrad { .. }
        | Op::GruGrad { .. }
        | Op::MergeGrad { .. } => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Activation, Extents, Mode, Program, Rows, Tape};

    #[test]
    fn activations_are_narrow_and_what_losses_read_is_wide() {
        let mut tape = Tape::new(Mode::Training).with_precision(Precision::Bf16);
        let keys = tape.input("keys", DType::U32, Rows::Sequences, 1);
        let x = tape.input("x", DType::F32, Rows::Sequences, 4);
        let targets = tape.input("targets", DType::F32, Rows::Sequences, 1);
        let site = tape.dropout_site(0.5);
        let dropped = tape.drop(x, Some(keys), site);
        let weight = tape.parameter("weight", 0, 4, 4);
        let bias = tape.parameter("bias", 16, 1, 4);
        let hidden = tape.linear(dropped, weight, bias, Activation::Tanh);
        let head = tape.parameter("head", 20, 1, 4);
        let offset = tape.parameter("offset", 24, 1, 1);
        let scores = tape.linear(hidden, head, offset, Activation::Identity);
        let loss = tape.squared_error(scores, targets);
        let extents = Extents { tokens: 1, sequences: 3, groups: 3, predictions: 0, in_lines: false };
        let program = Program::training(tape, &[loss], 1.0, false, extents);
        for (var, dtype) in [
            (x, DType::F32),
            (dropped, DType::Bf16),
            (weight, DType::F32),
            (hidden, DType::Bf16),
            (scores, DType::F32),
            (loss, DType::F32),
        ] {
            assert_eq!(program.dtype(var), dtype, "value {}", var.index());
        }
        // Twelve elements in six words.
        assert_eq!(program.span(dropped, &extents).len, 6);
    }
}
