//! A model small enough for any test and of every kind of operation, and what its steps on a backend are held against.

#![allow(dead_code, reason = "each test program uses a part of it")]

use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::backend::{Backend, Group, Optimizer, Rule, Sizes, StepScalars};
use mtdnn_raw::data::{Batch, Dataset, Label, MaskedBatch, MetricKind, SanSpec, TaskKind, TaskSpec};
use mtdnn_raw::nn::{
    BertConfig, HiddenAct, Model, ParameterTable, PretrainingModel, Recorded, RecordedPretraining, extents,
    masked_extents,
};
use mtdnn_raw::tensor::{Precision, Program, Space, Span};
use mtdnn_raw::train::check::{Side, check, check_programs};

/// A two-layer encoder whose heads are of a size that the tensor-core kernels take.
pub fn config(hidden_act: HiddenAct, heads: usize) -> BertConfig {
    BertConfig {
        vocab_size: 40,
        hidden_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: heads,
        intermediate_size: 72,
        hidden_act,
        hidden_dropout_prob: 0.2,
        attention_probs_dropout_prob: 0.3,
        max_position_embeddings: 140,
        initializer_range: 0.2,
        ..BertConfig::default()
    }
}

fn task(name: &str, kind: TaskKind, labels: &[&str], metric: MetricKind) -> TaskSpec {
    TaskSpec {
        labels: labels.iter().map(|label| label.to_string()).collect(),
        metrics: vec![metric],
        dropout: 0.25,
        ..TaskSpec::new(name, kind)
    }
}

/// The number of tasks that a [`Fixture`] may be of.
pub const TASKS: usize = 6;

fn tasks() -> [TaskSpec; TASKS] {
    let pair = task("pair", TaskKind::Classification, &["a", "b", "c"], MetricKind::Accuracy);
    [
        task("classes", TaskKind::Classification, &["a", "b", "c"], MetricKind::Accuracy),
        task("score", TaskKind::Regression, &[], MetricKind::Pearson),
        task("rank", TaskKind::Ranking, &[], MetricKind::Mrr),
        TaskSpec {
            san: Some(SanSpec { steps: 3, prediction_dropout: Some(0.4), ..SanSpec::default() }),
            ..pair
        },
        task("words", TaskKind::Labelling, &["a", "b", "c"], MetricKind::TokenAccuracy),
        task("spans", TaskKind::Span, &[], MetricKind::SpanF1),
    ]
}

/// Sequences of one token, of a line and a bit, and between.
const LENGTHS: [u32; 6] = [5, 1, 17, 130, 60, 9];

/// Examples of a task with sequences of these lengths.
fn dataset(kind: TaskKind, lengths: &[u32], vocabulary: u32) -> Dataset {
    let mut dataset = Dataset { offsets: vec![0], groups: vec![0], ..Dataset::new() };
    for (number, &length) in (0u32..).zip(lengths) {
        dataset.ids.extend((0..length).map(|i| (7 * i + 3 * number + i * i) % vocabulary));
        dataset.offsets.push(dataset.ids.len() as u64);
        dataset.second.push(length / 2);
        // Three candidates make a question.
        let label = match kind {
            TaskKind::Classification => Label::Class(number % 3),
            TaskKind::Regression => Label::Score(number as f32 / 2.0 - 1.0),
            TaskKind::Ranking if number % 3 == 2 => Label::Positive(number % 2),
            TaskKind::Ranking => continue,
            TaskKind::Labelling => {
                // Every other token is a word's first.
                let firsts: Vec<u32> = (0..length).step_by(2).collect();
                let tags: Vec<u32> = firsts.iter().map(|first| (first + number) % 3).collect();
                dataset.marks.push_words(&firsts, length, &tags);
                Label::Tags
            }
            TaskKind::Span => {
                dataset.marks.push_candidates((0..length).map(|position| (position, None)));
                Label::Span { first: length / 3, last: length / 2 }
            }
            TaskKind::Masked => panic!("the heads of masked words are those of PretrainingFixture"),
        };
        dataset.labels.push(label);
        dataset.groups.push(number + 1);
    }
    dataset
}

/// New parameters, biases and norms off their zeros and ones. Those that a stochastic answer network scores tokens by
/// are small: it does not divide by the root of the size, and the rounding of scores of tens would be all that is compared.
fn numbers_for(table: &ParameterTable) -> Vec<f32> {
    let mut parameters = vec![0.0; table.len()];
    for (number, parameter) in table.parameters().iter().enumerate() {
        let values = &mut parameters[parameter.range()];
        table.initialise(parameter, 5, values);
        values.iter_mut().enumerate().for_each(|(i, v)| *v += 0.1 * ((i * 7 + number) as f32).sin());
        if parameter.name.contains(".summary.") || parameter.name.contains(".pair.attention.") {
            values.iter_mut().for_each(|v| *v *= 0.1);
        }
    }
    parameters
}

/// Gives a backend its memory and the parameters of a training program.
fn ready(backend: &mut dyn Backend, program: &Program, parameters: &[f32]) {
    let sizes = Sizes { parameters: parameters.len(), arena: program.arena_len(), training: true };
    backend.reserve(&sizes).unwrap();
    let whole = Span { space: Space::Parameters, offset: 0, len: parameters.len() };
    backend.write(whole, bytemuck::cast_slice(parameters)).unwrap();
}

/// A small model with numbers, and a batch of one of its tasks.
pub struct Fixture {
    /// Two layers and a head of each kind.
    pub model: Model,
    /// Its numbers.
    pub parameters: Vec<f32>,
    /// Every example of the task.
    pub batch: Batch,
    task: usize,
    dataset: Dataset,
}

impl Fixture {
    /// A model of so many heads, and a batch of the task in lines of so many rows.
    pub fn new(hidden_act: HiddenAct, heads: usize, task: usize, line: usize) -> Self {
        Self::of(&config(hidden_act, heads), task, line, &LENGTHS)
    }

    /// A model, and a batch of the first task with sequences of these lengths in lines of 128.
    pub fn of_lengths(config: &BertConfig, lengths: &[u32]) -> Self {
        Self::of(config, 0, 128, lengths)
    }

    fn of(config: &BertConfig, task: usize, line: usize, lengths: &[u32]) -> Self {
        let tasks = tasks();
        let model = Model::new(config, &tasks);
        let parameters = numbers_for(model.parameters());
        let mut batch = Batch::new(line);
        let dataset = dataset(tasks[task].kind, lengths, config.vocab_size as u32);
        batch.fill(&dataset, &(0..dataset.len() as u32).collect::<Vec<_>>());
        Self { model, parameters, batch, task, dataset }
    }

    /// A smaller batch in lines of 128: the examples of these numbers.
    pub fn part(&self, examples: &[u32]) -> Batch {
        let mut batch = Batch::new(128);
        batch.fill(&self.dataset, examples);
        batch
    }

    /// The task's training step, for batches up to that of all examples.
    pub fn recorded(&self, precision: Precision) -> Recorded {
        self.model.clone().with_precision(precision).training(self.task, extents(&self.batch), 1.0, false)
    }

    /// Gives a backend its memory and the parameters.
    pub fn ready(&self, backend: &mut dyn Backend, recorded: &Recorded) {
        ready(backend, &recorded.program, &self.parameters);
    }

    /// All parameters.
    pub fn whole(&self) -> Span {
        Span { space: Space::Parameters, offset: 0, len: self.parameters.len() }
    }

    /// A step on each batch in turn: the losses, and the parameters at the end.
    pub fn train(&self, backend: &mut dyn Backend, rule: Rule, batches: &[&Batch]) -> (Vec<f32>, Vec<f32>) {
        let recorded = self.recorded(backend.precision());
        self.ready(backend, &recorded);
        let mut losses = Vec::new();
        for (step, batch) in (0..).zip(batches) {
            let extents = extents(batch);
            recorded.write(backend, batch).unwrap();
            backend.run(&recorded.program, &StepScalars { extents, seed: 9, step }).unwrap();
            let loss = backend.keep(recorded.program.span(recorded.outputs[0], &extents)).unwrap();
            let groups = self.groups(u64::from(step) + 1);
            let norm = backend.update(&Optimizer::new(rule), 1.0, &groups).unwrap();
            assert!(backend.number(norm).unwrap() > 0.0);
            losses.push(backend.number(loss).unwrap());
        }
        let mut parameters = vec![0.0f32; self.parameters.len()];
        backend.read(self.whole(), bytemuck::cast_slice_mut(&mut parameters)).unwrap();
        (losses, parameters)
    }

    fn groups(&self, update: u64) -> Vec<Group> {
        let group = |range, weight_decay| Group {
            range,
            learning_rate: 0.01,
            weight_decay,
            update,
            zero_gradient: false,
        };
        let head = self.model.head_range(self.task).unwrap();
        let (mut encoder, pooler) = (self.model.encoder_range(), self.model.pooler_range());
        if !self.model.pools(self.task) {
            encoder.end = pooler.start;
        }
        vec![group(encoder, 0.01), group(head, 0.0)]
    }

    /// Fails at the first operation of a step whose result is not the CPU's.
    pub fn assert_operations_agree(&self, other: &mut dyn Backend) {
        let mut cpu = CpuBackend::new();
        let (exact, narrow) = (self.recorded(Precision::F32), self.recorded(other.precision()));
        self.ready(&mut cpu, &exact);
        self.ready(other, &narrow);
        let what = format!("{:?}, task {}", other.precision(), self.task);
        let reference = Side { backend: &mut cpu, recorded: &exact };
        let report = check(reference, Side { backend: other, recorded: &narrow }, &self.batch, 77).unwrap();
        if let Some(difference) = report.difference {
            panic!("{what}, {} rows: {difference}", self.batch.tokens());
        }
        assert!(report.compared > 50, "{what}: {} results", report.compared);
    }

    /// Fails where losses or parameters after a step on each batch are not the CPU's. By plain descent, which keeps
    /// rounding errors as small as they are: Adamax makes a whole step of a gradient that is zero but for rounding, as
    /// that of the keys' biases is.
    pub fn assert_steps_agree(&self, other: &mut dyn Backend, batches: &[&Batch]) {
        let (expected, parameters) = self.train(&mut CpuBackend::new(), Rule::Sgd, batches);
        let (losses, trained) = self.train(other, Rule::Sgd, batches);
        let exact = other.precision() == Precision::F32;
        assert_near(exact, &self.parameters, (&expected, &parameters), (&losses, &trained));
    }
}

/// Fails where losses or parameters after some steps from `start` are not the expected ones.
fn assert_near(exact: bool, start: &[f32], expected: (&[f32], &[f32]), found: (&[f32], &[f32])) {
    let ((expected, parameters), (losses, trained)) = (expected, found);
    assert_eq!(losses.len(), expected.len());
    for (loss, expected) in losses.iter().zip(expected) {
        let bound = if exact { 1e-5 * expected.abs() } else { 2e-2 * expected.abs().max(1.0) };
        assert!((loss - expected).abs() < bound, "losses {losses:?}, not {expected:?}");
    }
    let change: f32 = parameters.iter().zip(start).map(|(a, b)| (a - b).abs()).sum();
    let off: f32 = trained.iter().zip(parameters).map(|(a, b)| (a - b).abs()).sum();
    let bound = if exact { 1e-4 } else { 1e-1 } * change;
    assert!(off < bound, "parameters are {off} off after {change}");
}

/// The same model with the heads of pre-training, and a batch with every seventh token masked.
pub struct PretrainingFixture {
    model: PretrainingModel,
    parameters: Vec<f32>,
    batch: MaskedBatch,
}

impl PretrainingFixture {
    /// A model of so many heads, and a batch in lines of so many rows.
    pub fn new(hidden_act: HiddenAct, heads: usize, line: usize) -> Self {
        let model = PretrainingModel::new(&config(hidden_act, heads));
        let dataset = dataset(TaskKind::Classification, &LENGTHS, 40);
        let mut batch = MaskedBatch::with_capacity(0, 0, line);
        batch.batch.fill(&dataset, &[0, 1, 2, 3, 4, 5]);
        batch.batch.labels = vec![0, 1, 1, 0, 1, 0];
        let bounds = (0u32..).zip(batch.batch.starts.iter().zip(&batch.batch.ends));
        let masked = bounds.flat_map(|(sequence, (&start, &end))| (start + sequence % 2..end).step_by(7));
        batch.rows = masked.collect();
        batch.rows.sort_unstable();
        batch.places = batch.rows.iter().map(|&row| batch.batch.places[row as usize]).collect();
        batch.labels = batch.rows.iter().map(|row| row * 11 % 40).collect();
        Self { parameters: numbers_for(model.parameters()), model, batch }
    }

    fn recorded(&self, precision: Precision) -> RecordedPretraining {
        let model = self.model.clone().with_precision(precision);
        model.training(masked_extents(&self.batch), 1.0, false)
    }

    /// Fails at the first operation of a step whose result is not the CPU's.
    pub fn assert_operations_agree(&self, other: &mut dyn Backend) {
        let mut cpu = CpuBackend::new();
        let both = [self.recorded(Precision::F32), self.recorded(other.precision())];
        for (backend, recorded) in [&mut cpu as &mut dyn Backend, &mut *other].into_iter().zip(&both) {
            ready(backend, &recorded.program, &self.parameters);
            recorded.write(backend, &self.batch).unwrap();
        }
        let what = format!("{:?}, {} rows", other.precision(), self.batch.batch.tokens());
        let step = StepScalars { extents: masked_extents(&self.batch), seed: 77, step: 0 };
        let programs = both.each_ref().map(|recorded| &recorded.program);
        let report = check_programs([&mut cpu, other], programs, &step).unwrap();
        if let Some(difference) = report.difference {
            panic!("{what}: {difference}");
        }
        assert!(report.compared > 50, "{what}: {} results", report.compared);
    }

    /// Fails where losses or parameters after three steps of plain descent are not the CPU's.
    pub fn assert_steps_agree(&self, other: &mut dyn Backend) {
        let (expected, parameters) = self.train(&mut CpuBackend::new());
        let (losses, trained) = self.train(other);
        let exact = other.precision() == Precision::F32;
        assert_near(exact, &self.parameters, (&expected, &parameters), (&losses, &trained));
    }

    fn train(&self, backend: &mut dyn Backend) -> (Vec<f32>, Vec<f32>) {
        let recorded = self.recorded(backend.precision());
        ready(backend, &recorded.program, &self.parameters);
        let extents = masked_extents(&self.batch);
        let mut losses = Vec::new();
        for step in 0..3 {
            recorded.write(backend, &self.batch).unwrap();
            backend.run(&recorded.program, &StepScalars { extents, seed: 9, step }).unwrap();
            let kept = [recorded.masked_loss, recorded.next_loss]
                .map(|loss| backend.keep(recorded.program.span(loss, &extents)).unwrap());
            let group = Group {
                range: 0..self.parameters.len(),
                learning_rate: 0.01,
                weight_decay: 0.0,
                update: u64::from(step) + 1,
                zero_gradient: false,
            };
            backend.update(&Optimizer::new(Rule::Sgd), 1.0, &[group]).unwrap();
            losses.extend(kept.map(|loss| backend.number(loss).unwrap()));
        }
        let mut parameters = vec![0.0f32; self.parameters.len()];
        let whole = Span { space: Space::Parameters, offset: 0, len: parameters.len() };
        backend.read(whole, bytemuck::cast_slice_mut(&mut parameters)).unwrap();
        (losses, parameters)
    }
}
