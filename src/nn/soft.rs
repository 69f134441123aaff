//! The loss of soft labels beside that of hard ones (Liu et al. 2019, arXiv 1904.09482, section 3.2).

use super::heads::Answers;
use crate::data::{TaskKind, TaskSpec};
use crate::tensor::{Tape, Var};

/// `w hard + (1 - w) T^2 soft`, `[1, 1]`, or the hard loss alone where the task has no soft labels.
///
/// For classes and candidates the soft loss is the cross-entropy between the soft labels and the model's distribution,
/// both at temperature `T` (of relevances, times gamma); the factor `T^2` keeps its gradient's size (Hinton et al. 2015, arXiv 1503.02531, section 2).
/// For scores it is the squared error towards the soft label.
pub(super) fn with_soft_labels(
    tape: &mut Tape,
    task: &TaskSpec,
    logits: Var,
    hard: Var,
    answers: &Answers,
) -> Var {
    let Some(labels) = &task.soft else { return hard };
    let (weight, temperature) = (labels.hard_weight, labels.temperature);
    let groups = (task.kind == TaskKind::Ranking).then_some(answers.groups);
    let soft = match task.kind {
        TaskKind::Regression => tape.squared_error(logits, answers.soft),
        _ => tape.soft_cross_entropy(logits, answers.soft, groups, task.gamma / temperature),
    };
    tape.weighted_sum([hard, soft], [weight, (1.0 - weight) * temperature * temperature])
}
