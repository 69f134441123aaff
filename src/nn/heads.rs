//! The task heads (Liu et al. 2019, section 3): dropout, then a linear map, of the pooled vector or of marked tokens; or a
//! stochastic answer network on all tokens, or BERT's own head for masked words.

use super::bert::{Linear, Picked};
use super::config::BertConfig;
use super::masked::Masked;
use super::parameters::ParameterTable;
use super::san::{Memory, San};
use crate::data::{Relevance, TaskKind, TaskSpec};
use crate::tensor::{Activation, DType, Rows, Tape, Var};

/// One task's head: classification (eq. 1), similarity (eq. 2) or relevance (eq. 5) of the pooled vector; a word's label,
/// or how well a token begins and ends an answer, of its own vector.
#[derive(Clone, Debug)]
pub struct Head {
    kind: TaskKind,
    dropout: f32,
    gamma: f32,
    form: Form,
}

/// How the answer is read off the encoder.
#[derive(Clone, Debug)]
enum Form {
    /// A linear map, and the function on its outputs.
    Linear(Linear, Activation),
    San(Box<San>),
    /// It has losses of its own, and no answers that are kept.
    Masked(Box<Masked>),
}

/// What the heads of a program read; what none of them reads is not recorded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    /// `[sequences, hidden]`
    pub pooled: Option<Var>,
    /// Every token's vector.
    pub memory: Option<Memory>,
    /// The vectors of marked tokens, `[predictions, hidden]`.
    pub marked: Option<Var>,
    /// Which tokens are marked.
    pub marks: Picked,
}

/// What a head reads of the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// The pooled vector.
    Pooled,
    /// Every token's vector.
    Tokens,
    /// The vectors of marked tokens.
    Marks,
}

/// What a head answers.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// `[sequences, outputs]`, or `[predictions, outputs]` of marked tokens.
    pub logits: Var,
    /// The logits of each step of a stochastic answer network, `[sequences, outputs]` each; else empty.
    pub steps: Vec<Var>,
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
    /// The class of each marked token, u32 `[predictions, 1]`.
    pub classes: Var,
    /// The first marked token of each group and the end of the last, u32 `[groups+1, 1]`.
    pub token_groups: Var,
    /// The numbers of the answer's first and last token in each group, u32 `[groups, 2]`.
    pub spans: Var,
    /// Soft labels, `[sequences, outputs]`; no step reads them where the task has none.
    pub soft: Var,
}

impl Answers {
    /// Declares the inputs for a head of so many outputs.
    pub fn record(tape: &mut Tape, outputs: usize) -> Self {
        Self {
            labels: tape.input("labels", DType::U32, Rows::Sequences, 1),
            targets: tape.input("targets", DType::F32, Rows::Sequences, 1),
            groups: tape.input("groups", DType::U32, Rows::GroupStarts, 1),
            positives: tape.input("positives", DType::U32, Rows::Groups, 1),
            classes: tape.input("classes", DType::U32, Rows::Predictions, 1),
            token_groups: tape.input("token_groups", DType::U32, Rows::GroupStarts, 1),
            spans: tape.input("spans", DType::U32, Rows::Groups, 2),
            soft: tape.input("soft", DType::F32, Rows::Sequences, outputs),
        }
    }
}

impl Head {
    /// Enters the head's parameters into the table: `heads.<task>.weight` and `heads.<task>.bias`, or those of a
    /// stochastic answer network; those of masked words are BERT's, `cls.`.
    pub fn new(table: &mut ParameterTable, task: &TaskSpec, config: &BertConfig) -> Self {
        let (hidden, deviation) = (config.hidden_size, config.initializer_range as f32);
        let name = format!("heads.{}", task.name);
        let outputs = task.outputs();
        let form = match (&task.san, &task.masked) {
            (None, Some(options)) => Form::Masked(Box::new(Masked::new(table, options, config))),
            (None, None) => {
                let activation = match task.relevance {
                    Relevance::Identity => Activation::Identity,
                    Relevance::Sigmoid => Activation::Sigmoid,
                };
                Form::Linear(Linear::new(table, &name, hidden, outputs, deviation), activation)
            }
            (Some(options), _) => {
                Form::San(Box::new(San::new(table, &name, options, hidden, outputs, deviation)))
            }
        };
        Self { kind: task.kind, dropout: task.dropout, gamma: task.gamma, form }
    }

    /// Whether it reads this of the encoder.
    pub fn reads(&self, what: Reads) -> bool {
        match (&self.form, what) {
            (Form::Masked(masked), Reads::Pooled) => masked.pools(),
            (Form::San(_), what) => what == Reads::Tokens,
            (Form::Linear(..), Reads::Pooled) => !self.kind.reads_tokens(),
            (Form::Linear(..) | Form::Masked(_), what) => what == Reads::Marks && self.kind.reads_tokens(),
        }
    }

    /// The head of masked words, if it is one.
    pub(super) fn masked(&self) -> Option<&Masked> {
        match &self.form {
            Form::Masked(masked) => Some(masked),
            Form::Linear(..) | Form::San(_) => None,
        }
    }

    /// Records the head; relevances with `g` applied.
    ///
    /// # Panics
    /// If it is that of masked words, whose logits are too many to be kept: [`Masked::record`].
    pub(super) fn answer(&self, tape: &mut Tape, reading: &Reading) -> Answer {
        match &self.form {
            Form::Linear(linear, activation) => {
                let (vectors, keys) = match self.kind.reads_tokens() {
                    true => (reading.marked, Some(reading.marks.places)),
                    false => (reading.pooled, None),
                };
                let site = tape.dropout_site(self.dropout);
                let dropped = tape.drop(vectors.expect("what the head reads was recorded"), keys, site);
                let logits = linear.record(tape, dropped, *activation);
                Answer { logits, steps: Vec::new() }
            }
            Form::San(san) => {
                let memory = reading.memory.expect("the tokens' vectors were recorded");
                let (logits, steps) = san.record(tape, memory, self.dropout);
                Answer { logits, steps }
            }
            Form::Masked(_) => panic!("masked words are measured, not answered"),
        }
    }

    /// Records the task's loss (eq. 6, 7, or 8 and 9), `[1, 1]`; of spans the mean of two of the last kind, one for the
    /// answer's first token and one for its last.
    pub fn loss(&self, tape: &mut Tape, logits: Var, answers: &Answers) -> Var {
        match self.kind {
            TaskKind::Classification => tape.cross_entropy(logits, answers.labels),
            TaskKind::Regression => tape.squared_error(logits, answers.targets),
            TaskKind::Ranking => tape.ranking(logits, answers.groups, answers.positives, self.gamma),
            TaskKind::Labelling => tape.cross_entropy(logits, answers.classes),
            TaskKind::Span => tape.ranking(logits, answers.token_groups, answers.spans, 1.0),
            TaskKind::Masked => panic!("masked words have losses of their own"),
        }
    }
}
