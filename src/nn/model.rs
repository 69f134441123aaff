//! MT-DNN: one encoder, one head a task, and the programs that train and run them.

use std::ops::Range;

use super::bert::{Bert, Picked};
use super::config::BertConfig;
use super::heads::{Answer, Answers, Head, Reading, Reads};
use super::inputs::{Inputs, marks, token_index};
use super::masked::MaskedAnswer;
use super::parameters::ParameterTable;
use super::san::Memory;
use super::soft;
use crate::backend::{Backend, BackendError};
use crate::data::{Batch, TaskSpec};
use crate::tensor::{DType, Extents, LINE, Mode, Precision, Program, Rows, Tape, TokenIndex, Var};

/// The shape of a multi-task model; its numbers lie in a backend's parameter buffer.
#[derive(Clone, Debug)]
pub struct Model {
    bert: Bert,
    tasks: Vec<TaskSpec>,
    /// Each task's head and its elements of the flat buffers; none where another task's head answers.
    heads: Vec<Option<(Head, Range<usize>)>>,
    parameters: ParameterTable,
    encoder: Range<usize>,
    precision: Precision,
}

/// A program with the places of what a batch brings and what comes out.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The planned computation.
    pub program: Program,
    /// The loss `[1, 1]` in training, else each asked task's logits `[sequences, outputs]`, or `[predictions, outputs]`
    /// where its head reads marked tokens; of masked words what [`Model::evaluation`] says.
    pub outputs: Vec<Var>,
    /// For each asked task the logits of each step of its stochastic answer network, `[sequences, outputs]`; of other
    /// heads, and in training, none.
    pub steps: Vec<Vec<Var>>,
    /// Hidden states where they were asked for: the embeddings' and each layer's, `[tokens, hidden]`.
    pub hidden_states: Vec<Var>,
    /// `[sequences, hidden]`, where it was asked for.
    pub pooled: Option<Var>,
    index: TokenIndex,
    /// What the tokens of a sequence have in common, u32 `[tokens, 1]`, where a head may read it.
    sequence_keys: Option<Var>,
    /// The marked tokens' rows and places, where a head reads them.
    marks: Option<Picked>,
    answers: Option<Answers>,
}

impl Model {
    /// Lays out the encoder and a head for each task.
    pub fn new(config: &BertConfig, tasks: &[TaskSpec]) -> Self {
        let mut parameters = ParameterTable::default();
        let bert = Bert::new(config, &mut parameters);
        parameters.align();
        let encoder = 0..parameters.len();
        let mut heads = Vec::new();
        for task in tasks {
            heads.push(task.shares.is_none().then(|| {
                let start = parameters.len();
                let head = Head::new(&mut parameters, task, config);
                parameters.align();
                (head, start..parameters.len())
            }));
        }
        let precision = Precision::F32;
        Self { bert, tasks: tasks.to_vec(), heads, parameters, encoder, precision }
    }

    /// The same model, whose programs compute in `precision`.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The encoder's sizes.
    pub fn config(&self) -> &BertConfig {
        self.bert.config()
    }

    /// The tasks in the order of their heads.
    pub fn tasks(&self) -> &[TaskSpec] {
        &self.tasks
    }

    /// Every parameter's name, shape and place.
    pub fn parameters(&self) -> &ParameterTable {
        &self.parameters
    }

    /// The encoder's elements of the flat buffers.
    pub fn encoder_range(&self) -> Range<usize> {
        self.encoder.clone()
    }

    /// The pooler's elements of the flat buffers, the last of the encoder's.
    pub fn pooler_range(&self) -> Range<usize> {
        self.bert.pooler_range()
    }

    /// Whether a task's answer goes by the pooler. A stochastic answer network's does not, nor that of words or spans; that
    /// of masked words does if next sentences are told.
    pub fn pools(&self, task: usize) -> bool {
        self.head(task).reads(Reads::Pooled)
    }

    /// The elements of the flat buffers that belong to a task's own head, if it has one.
    pub fn head_range(&self, task: usize) -> Option<Range<usize>> {
        self.heads[task].as_ref().map(|(_, range)| range.clone())
    }

    /// The training step of one task: encoder, head, loss and the backward pass.
    ///
    /// The loss is scaled by `scale`; with `accumulate` gradients add to those of earlier runs.
    pub fn training(&self, task: usize, capacity: Extents, scale: f32, accumulate: bool) -> Recorded {
        let mut tape = Tape::new(Mode::Training).with_precision(self.precision);
        let index = token_index(&mut tape);
        let answers = Answers::record(&mut tape, self.tasks[task].outputs());
        let sequence_keys = sequence_keys(&mut tape);
        let reading = self.read(&mut tape, index, sequence_keys, &[task]);
        let head = self.head(task);
        let loss = match head.masked() {
            Some(masked) => masked.record(&mut tape, &self.bert, &reading, &answers).total,
            None => {
                let Answer { logits, .. } = head.answer(&mut tape, &reading);
                let hard = head.loss(&mut tape, logits, &answers);
                soft::with_soft_labels(&mut tape, &self.tasks[task], logits, hard, &answers)
            }
        };
        let program = Program::training(tape, &[loss], scale, accumulate, capacity);
        Recorded {
            sequence_keys: Some(sequence_keys),
            marks: Some(reading.marks),
            answers: Some(answers),
            ..Recorded::new(program, vec![loss], index)
        }
    }

    /// What a task is measured by: its answers, as [`Model::inference`] has them; of masked words their mean loss and the
    /// share that is right, both `[1, 1]`, and the logits of yes and no, `[sequences, 2]`, where next sentences are told.
    pub fn evaluation(&self, task: usize, capacity: Extents) -> Recorded {
        let Some(masked) = self.head(task).masked() else { return self.inference(&[task], capacity) };
        let mut tape = Tape::new(Mode::Inference).with_precision(self.precision);
        let index = token_index(&mut tape);
        let answers = Answers::record(&mut tape, self.tasks[task].outputs());
        let sequence_keys = sequence_keys(&mut tape);
        let reading = self.read(&mut tape, index, sequence_keys, &[task]);
        let MaskedAnswer { loss, accuracy, next, .. } =
            masked.record(&mut tape, &self.bert, &reading, &answers);
        let outputs: Vec<Var> = [loss, accuracy].into_iter().chain(next).collect();
        let program = Program::inference(tape, &outputs, capacity);
        Recorded {
            sequence_keys: Some(sequence_keys),
            marks: Some(reading.marks),
            answers: Some(answers),
            ..Recorded::new(program, outputs, index)
        }
    }

    /// The answers of several tasks from one pass of the encoder.
    ///
    /// # Panics
    /// If one of them is of masked words.
    pub fn inference(&self, tasks: &[usize], capacity: Extents) -> Recorded {
        let mut tape = Tape::new(Mode::Inference).with_precision(self.precision);
        let index = token_index(&mut tape);
        let sequence_keys = sequence_keys(&mut tape);
        let reading = self.read(&mut tape, index, sequence_keys, tasks);
        let answers = tasks.iter().map(|&task| self.head(task).answer(&mut tape, &reading));
        let (outputs, steps): (Vec<Var>, Vec<Vec<Var>>) =
            answers.map(|Answer { logits, steps }| (logits, steps)).unzip();
        let mut kept = outputs.clone();
        kept.extend(steps.iter().flatten());
        let program = Program::inference(tape, &kept, capacity);
        Recorded {
            steps,
            sequence_keys: Some(sequence_keys),
            marks: Some(reading.marks),
            ..Recorded::new(program, outputs, index)
        }
    }

    /// Records the encoder for the heads of `tasks`: the last layer for the tokens alone that one of them reads.
    fn read(&self, tape: &mut Tape, index: TokenIndex, sequence_keys: Var, tasks: &[usize]) -> Reading {
        let marks = marks(tape);
        let reads = |what| tasks.iter().any(|&task| self.head(task).reads(what));
        let (pooled, of_marks) = (reads(Reads::Pooled), reads(Reads::Marks));
        let memory = reads(Reads::Tokens).then(|| {
            let layers = self.bert.encode(tape, index);
            Memory { tokens: layers[layers.len() - 1], index, sequence_keys }
        });
        let (first, marked) = match (memory, pooled, of_marks) {
            (Some(Memory { tokens, .. }), ..) => (
                pooled.then(|| tape.gather(tokens, index.starts)),
                of_marks.then(|| tape.gather(tokens, marks.rows)),
            ),
            (None, true, true) => {
                let [first, marked] = self.bert.encode_picked(tape, index, [Picked::first(index), marks]);
                (Some(first), Some(marked))
            }
            (None, false, true) => {
                let [marked] = self.bert.encode_picked(tape, index, [marks]);
                (None, Some(marked))
            }
            (None, ..) => (Some(self.bert.encode_first(tape, index)), None),
        };
        let pooled = first.map(|first| self.bert.pool(tape, first));
        Reading { pooled, memory, marked, marks }
    }

    /// Token vectors and the pooled vector; with `all_layers` every layer's token vectors.
    pub fn encoding(&self, all_layers: bool, capacity: Extents) -> Recorded {
        let mut tape = Tape::new(Mode::Inference).with_precision(self.precision);
        let index = token_index(&mut tape);
        let mut hidden_states = self.bert.encode(&mut tape, index);
        if !all_layers {
            hidden_states.drain(..hidden_states.len() - 1);
        }
        let first = tape.gather(hidden_states[hidden_states.len() - 1], index.starts);
        let pooled = self.bert.pool(&mut tape, first);
        let mut outputs = hidden_states.clone();
        outputs.push(pooled);
        let program = Program::inference(tape, &outputs, capacity);
        Recorded { hidden_states, pooled: Some(pooled), ..Recorded::new(program, Vec::new(), index) }
    }

    /// The head that answers a task: its own, or that of the task it names.
    fn head(&self, task: usize) -> &Head {
        let owner = match &self.tasks[task].shares {
            None => task,
            Some(name) => self.tasks.iter().position(|other| other.name == *name).unwrap_or(task),
        };
        let own = self.heads[owner].as_ref();
        let (head, _) = own.unwrap_or_else(|| panic!("task {} has no head", self.tasks[task].name));
        head
    }
}

impl Recorded {
    /// A program that takes token ids alone and gives `outputs`.
    fn new(program: Program, outputs: Vec<Var>, index: TokenIndex) -> Self {
        Self {
            program,
            outputs,
            steps: Vec::new(),
            hidden_states: Vec::new(),
            pooled: None,
            index,
            sequence_keys: None,
            marks: None,
            answers: None,
        }
    }

    /// What each token is.
    pub fn index(&self) -> TokenIndex {
        self.index
    }

    /// What the tokens of a sequence have in common, u32 `[tokens, 1]`, where a head may read it.
    pub fn sequence_keys(&self) -> Option<Var> {
        self.sequence_keys
    }

    /// The rows and places of marked tokens, where heads are asked.
    pub fn marks(&self) -> Option<Picked> {
        self.marks
    }

    /// What the loss is measured against, where there is one.
    pub fn answers(&self) -> Option<&Answers> {
        self.answers.as_ref()
    }

    /// Writes what the program reads of a batch to its places.
    pub fn write(&self, backend: &mut dyn Backend, batch: &Batch) -> Result<(), BackendError> {
        let extents = extents(batch);
        let mut inputs = Inputs { program: &self.program, backend, extents };
        inputs.write_tokens(&self.index, batch)?;
        if let Some(keys) = self.sequence_keys {
            inputs.write(keys, &batch.sequence_keys)?;
        }
        if let Some(answers) = &self.answers {
            inputs.write(answers.labels, &batch.labels)?;
            inputs.write(answers.targets, &batch.targets)?;
            inputs.write(answers.groups, &batch.groups)?;
            inputs.write(answers.positives, &batch.labels)?;
            inputs.write(answers.soft, &batch.soft)?;
            inputs.write(answers.classes, &batch.marked.classes)?;
            inputs.write(answers.token_groups, &batch.marked.groups)?;
            inputs.write(answers.spans, &batch.marked.spans)?;
        }
        if let Some(marks) = &self.marks {
            inputs.write(marks.rows, &batch.marked.rows)?;
            inputs.write(marks.places, &batch.marked.places)?;
        }
        Ok(())
    }
}

/// Declares the input that says what the tokens of a sequence have in common.
fn sequence_keys(tape: &mut Tape) -> Var {
    tape.input("sequence_keys", DType::U32, Rows::Tokens, 1)
}

/// The extents of a batch.
pub fn extents(batch: &Batch) -> Extents {
    let (tokens, sequences, groups) = (batch.tokens(), batch.sequences(), batch.examples());
    let mut rows = batch.starts.iter().zip(&batch.ends);
    let in_lines = rows.all(|(&start, &end)| start as usize / LINE == end.saturating_sub(1) as usize / LINE);
    Extents { tokens, sequences, groups, predictions: batch.marked.rows.len(), in_lines }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::TaskKind;
    use crate::tensor::{Access, Op};

    #[test]
    fn inference_writes_nothing_that_nobody_reads() {
        let task = TaskSpec {
            labels: vec!["no".into(), "yes".into()],
            ..TaskSpec::new("task", TaskKind::Classification)
        };
        let model = Model::new(&BertConfig::default(), &[task]);
        let capacity = Extents { tokens: 256, sequences: 4, groups: 4, predictions: 0, in_lines: false };
        for Recorded { program, .. } in [model.inference(&[0], capacity), model.encoding(true, capacity)] {
            let operands: Vec<_> = program.ops().iter().flat_map(Op::operands).collect();
            for &(access, var) in &operands {
                let is_read = access == Access::Read || operands.contains(&(Access::Read, var));
                assert!(is_read || program.is_output(var), "{}", program.name(var));
            }
        }
    }

    #[test]
    fn a_batch_lies_in_lines_where_no_sequence_crosses_one() {
        let in_lines = |rows: &[(u32, u32)]| {
            let (starts, ends) = rows.iter().copied().unzip();
            extents(&Batch { starts, ends, ..Batch::default() }).in_lines
        };
        assert!(in_lines(&[]));
        assert!(in_lines(&[(200, 256), (0, 128), (128, 200)]));
        assert!(!in_lines(&[(0, 129)]));
        assert!(!in_lines(&[(0, 100), (100, 140)]));
    }
}
