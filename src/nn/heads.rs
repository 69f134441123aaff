//! The task heads on the pooled vector (Liu et al. 2019, section 3): dropout, then a linear map.

use super::bert::Linear;
use super::parameters::ParameterTable;
use crate::data::{Relevance, TaskKind, TaskSpec};
use crate::tensor::{Activation, DType, Rows, Tape, Var};

/// One task's head: classification (eq. 1), similarity (eq. 2) or relevance (eq. 5).
#[derive(Clone, Debug)]
pub struct Head {
    kind: TaskKind,
    dropout: f32,
    gamma: f32,
    activation: Activation,
    linear: Linear,
}

/// What a batch brings for the loss.
#[derive(Clone, Copy, Debug)]
pub struct Answers {
    /// The class of each sequence, u32 `[sequences, 1]`.
    pub labels: Var,
    /// The score of each sequence, `[sequences, 1]`.
    pub targets: Var,
    /// The first sequence of each group and the end of the last, u32 `[groups+1, 1]`.
    pub groups: Var,
    /// The number of the right candidate of each group, u32 `[groups, 1]`.
    pub positives: Var,
}

impl Answers {
    /// Declares the inputs.
    pub fn record(tape: &mut Tape) -> Self {
        Self {
            labels: tape.input("labels", DType::U32, Rows::Sequences, 1),
            targets: tape.input("targets", DType::F32, Rows::Sequences, 1),
            groups: tape.input("groups", DType::U32, Rows::GroupStarts, 1),
            positives: tape.input("positives", DType::U32, Rows::Groups, 1),
        }
    }
}

impl Head {
    /// Enters the head's parameters into the table as `heads.<task>.weight` and `heads.<task>.bias`.
    pub fn new(table: &mut ParameterTable, task: &TaskSpec, hidden: usize, deviation: f32) -> Self {
        let name = format!("heads.{}", task.name);
        let linear = Linear::new(table, &name, hidden, task.outputs(), deviation);
        let activation = match task.relevance {
            Relevance::Identity => Activation::Identity,
            Relevance::Sigmoid => Activation::Sigmoid,
        };
        Self { kind: task.kind, dropout: task.dropout, gamma: task.gamma, activation, linear }
    }

    /// Records the head: `[sequences, hidden]` to `[sequences, outputs]`; relevances with `g` applied.
    pub fn logits(&self, tape: &mut Tape, pooled: Var) -> Var {
        let site = tape.dropout_site(self.dropout);
        let dropped = tape.drop(pooled, None, site);
        self.linear.record(tape, dropped, self.activation)
    }

    /// Records the task's loss (eq. 6, 7, or 8 and 9), `[1, 1]`.
    pub fn loss(&self, tape: &mut Tape, logits: Var, answers: &Answers) -> Var {
        match self.kind {
            TaskKind::Classification => tape.cross_entropy(logits, answers.labels),
            TaskKind::Regression => tape.squared_error(logits, answers.targets),
            TaskKind::Ranking => tape.ranking(logits, answers.groups, answers.positives, self.gamma),
        }
    }
}
