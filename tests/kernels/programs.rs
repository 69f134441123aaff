//! Whole programs through the emulation: every operation of models with each head, one by one and fused, and whole
//! training steps, against the CPU backend.

use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::backend::cuda::launch::Launches;
use mtdnn_raw::backend::cuda::lower::{Places, lower};
use mtdnn_raw::backend::{Backend, Group, Optimizer, Rule, Sizes, StepScalars};
use mtdnn_raw::data::{Batch, Dataset, Label, MetricKind, TaskKind, TaskSpec};
use mtdnn_raw::nn::{BertConfig, HiddenAct, Model, Recorded, extents};
use mtdnn_raw::tensor::{Precision, Program, Space, Span, Var};
use mtdnn_raw::train::check::{Side, check, check_programs};

use super::cases::{Case, cases};
use super::emulation::EmulatedBackend;

/// A two-layer encoder whose heads are of a size that the tensor-core kernels take.
fn config(hidden_act: HiddenAct, heads: usize) -> BertConfig {
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
        name: name.to_string(),
        kind,
        labels: labels.iter().map(|label| label.to_string()).collect(),
        metrics: vec![metric],
        dropout: 0.25,
        head: None,
        texts: None,
        files: Vec::new(),
    }
}

fn tasks() -> [TaskSpec; 3] {
    [
        task("classes", TaskKind::Classification, &["a", "b", "c"], MetricKind::Accuracy),
        task("score", TaskKind::Regression, &[], MetricKind::Pearson),
        task("rank", TaskKind::Ranking, &[], MetricKind::Mrr),
    ]
}

/// Examples of a task: sequences of one token, of a line and a bit, and between.
fn dataset(kind: TaskKind) -> Dataset {
    let lengths = [5u32, 1, 17, 130, 60, 9];
    let mut dataset = Dataset { offsets: vec![0], groups: vec![0], ..Dataset::new() };
    for (number, &length) in (0u32..).zip(&lengths) {
        dataset.ids.extend((0..length).map(|i| (7 * i + 3 * number + i * i) % 40));
        dataset.offsets.push(dataset.ids.len() as u64);
        dataset.second.push(length / 2);
        // Three candidates make a question.
        let label = match kind {
            TaskKind::Classification => Label::Class(number % 3),
            TaskKind::Regression => Label::Score(number as f32 / 2.0 - 1.0),
            TaskKind::Ranking if number % 3 == 2 => Label::Positive(number % 2),
            TaskKind::Ranking => continue,
        };
        dataset.labels.push(label);
        dataset.groups.push(number + 1);
    }
    dataset
}

struct Fixture {
    model: Model,
    parameters: Vec<f32>,
    batch: Batch,
}

impl Fixture {
    fn new(hidden_act: HiddenAct, heads: usize, task: usize, line: usize) -> Self {
        let tasks = tasks();
        let model = Model::new(&config(hidden_act, heads), &tasks);
        let mut parameters = vec![0.0; model.parameters().len()];
        for (number, parameter) in model.parameters().parameters().iter().enumerate() {
            let values = &mut parameters[parameter.range()];
            model.parameters().initialise(parameter, 5, values);
            // Biases and norms off their zeros and ones.
            values.iter_mut().enumerate().for_each(|(i, v)| *v += 0.1 * ((i * 7 + number) as f32).sin());
        }
        let mut batch = Batch::new(line);
        let dataset = dataset(tasks[task].kind);
        batch.fill(&dataset, &(0..dataset.len() as u32).collect::<Vec<_>>());
        Self { model, parameters, batch }
    }

    fn recorded(&self, task: usize, precision: Precision) -> Recorded {
        self.model.clone().with_precision(precision).training(task, extents(&self.batch), 1.0, false)
    }

    fn ready(&self, backend: &mut dyn Backend, recorded: &Recorded) {
        let (parameters, arena) = (self.parameters.len(), recorded.program.arena_len());
        backend.reserve(&Sizes { parameters, arena, training: true }).unwrap();
        let whole = Span { space: Space::Parameters, offset: 0, len: parameters };
        backend.write(whole, bytemuck::cast_slice(&self.parameters)).unwrap();
    }

    /// Losses of some steps, and the parameters after them.
    fn train(&self, task: usize, backend: &mut dyn Backend, rule: Rule) -> (Vec<f32>, Vec<f32>) {
        let recorded = self.recorded(task, backend.precision());
        self.ready(backend, &recorded);
        let extents = extents(&self.batch);
        let groups = |update| {
            let group = |range, weight_decay| Group {
                range,
                learning_rate: 0.01,
                weight_decay,
                update,
                zero_gradient: false,
            };
            let encoder = self.model.encoder_range();
            vec![group(encoder, 0.01), group(self.model.head_range(task).unwrap(), 0.0)]
        };
        let mut losses = Vec::new();
        for step in 0..3 {
            recorded.write(backend, &self.batch).unwrap();
            backend.run(&recorded.program, &StepScalars { extents, seed: 9, step }).unwrap();
            let loss = backend.keep(recorded.program.span(recorded.outputs[0], &extents)).unwrap();
            let norm = backend.update(&Optimizer::new(rule), 1.0, &groups(u64::from(step) + 1)).unwrap();
            assert!(backend.number(norm).unwrap() > 0.0);
            losses.push(backend.number(loss).unwrap());
        }
        let mut parameters = vec![0.0f32; self.parameters.len()];
        let whole = Span { space: Space::Parameters, offset: 0, len: parameters.len() };
        backend.read(whole, bytemuck::cast_slice_mut(&mut parameters)).unwrap();
        (losses, parameters)
    }
}

/// The list that `tests/ops.rs` holds the CPU to.
#[test]
fn every_case_agrees_with_the_cpu() {
    for (name, build) in cases() {
        for precision in [Precision::F32, Precision::Bf16] {
            let Some(mut emulated) = EmulatedBackend::new(precision, 1) else { return };
            let mut cpu = CpuBackend::new();
            let mut backends: [&mut dyn Backend; 2] = [&mut cpu, &mut emulated];
            let mut case = Case::new();
            let loss = build(&mut case);
            let programs = backends.each_ref().map(|backend| {
                let tape = case.tape.clone().with_precision(backend.precision());
                Program::training(tape, loss, 1.0, false, case.extents)
            });
            for (backend, program) in backends.iter_mut().zip(&programs) {
                let (parameters, arena) = (case.parameters.len(), program.arena_len());
                backend.reserve(&Sizes { parameters, arena, training: true }).unwrap();
                let whole = Span { space: Space::Parameters, offset: 0, len: parameters };
                backend.write(whole, bytemuck::cast_slice(&case.parameters)).unwrap();
                let words = case.indices.iter().map(|(&var, values)| (var, bytemuck::cast_slice(values)));
                let floats = case.floats.iter().map(|(&var, values)| (var, bytemuck::cast_slice(values)));
                for (var, bytes) in words.chain(floats).filter(|(var, _)| program.uses(*var)) {
                    backend.write(program.span(var, &case.extents), bytes).unwrap();
                }
            }
            let step = StepScalars { extents: case.extents, seed: 0x1234_5678_9ABC, step: 3 };
            let report = check_programs(backends, programs.each_ref(), &step).unwrap();
            if let Some(difference) = report.difference {
                panic!("{name}, {precision:?}: {difference}");
            }
        }
    }
}

#[test]
fn every_operation_agrees_with_the_cpu() {
    for (precision, heads, act) in [
        (Precision::F32, 4, HiddenAct::GeluNew),
        (Precision::Bf16, 2, HiddenAct::Gelu),
        (Precision::Bf16, 1, HiddenAct::Relu),
    ] {
        for task in 0..3 {
            for line in [1, 128] {
                let Some(mut emulated) = EmulatedBackend::new(precision, line) else { return };
                let fixture = Fixture::new(act, heads, task, line);
                let mut cpu = CpuBackend::new();
                let (exact, narrow) =
                    (fixture.recorded(task, Precision::F32), fixture.recorded(task, precision));
                fixture.ready(&mut cpu, &exact);
                fixture.ready(&mut emulated, &narrow);
                let reference = Side { backend: &mut cpu, recorded: &exact };
                let other = Side { backend: &mut emulated, recorded: &narrow };
                let report = check(reference, other, &fixture.batch, 77).unwrap();
                if let Some(difference) = report.difference {
                    panic!("{precision:?}, {heads} heads, task {task}, lines of {line}: {difference}");
                }
                assert!(report.compared > 50, "{} results", report.compared);
            }
        }
    }
}

/// Three steps. By plain descent, which keeps rounding errors as small as they are: Adamax makes a whole step of a
/// gradient that is zero but for rounding, as that of the keys' biases is.
#[test]
fn whole_steps_agree_with_the_cpu() {
    for task in 0..3 {
        let Some(mut emulated) = EmulatedBackend::new(Precision::F32, 128) else { return };
        let fixture = Fixture::new(HiddenAct::Gelu, 2, task, 128);
        let (expected, parameters) = fixture.train(task, &mut CpuBackend::new(), Rule::Sgd);
        let (losses, trained) = fixture.train(task, &mut emulated, Rule::Sgd);
        for (loss, expected) in losses.iter().zip(&expected) {
            assert!((loss - expected).abs() < 1e-5 * expected.abs(), "losses {losses:?}, not {expected:?}");
        }
        let change = |to: &[f32]| to.iter().zip(&fixture.parameters).map(|(a, b)| (a - b).abs()).sum::<f32>();
        let off: f32 = trained.iter().zip(&parameters).map(|(a, b)| (a - b).abs()).sum();
        assert!(off < 1e-4 * change(&parameters), "parameters are {off} off after {}", change(&parameters));

        let mut emulated = EmulatedBackend::new(Precision::Bf16, 128).expect("a compiler");
        let (losses, _) = fixture.train(task, &mut emulated, Rule::Sgd);
        for (loss, expected) in losses.iter().zip(&expected) {
            assert!((loss - expected).abs() < 2e-2 * expected.abs().max(1.0), "{losses:?}, not {expected:?}");
        }
    }
}

/// The neighbours that one kernel computes together are found in a real model's step.
#[test]
fn neighbours_are_fused() {
    let fixture = Fixture::new(HiddenAct::Gelu, 2, 0, 128);
    let program = fixture.recorded(0, Precision::Bf16).program;
    let mut launches = Launches::new(0, extents(&fixture.batch), 0);
    // Addresses as far apart as the values' numbers: the kernels are not run.
    let value = |var: Var| 1 << 30 | (var.index() as u64) << 12;
    lower(&program, &Places { value: &value, copy: &value }, &mut launches);
    let count = |part: &str| launches.list.iter().filter(|launch| launch.kernel.contains(part)).count();
    assert_eq!(count("embedding_norm"), 1, "embedding, norm and dropout");
    // Of two layers' feed-forward networks; the bias gradient is summed in the product.
    assert_eq!(count("activate"), 1, "only the pooler's tanh has a gradient of its own");
    let adds = launches.list.iter().filter(|launch| launch.kernel.starts_with("add_norm_"));
    assert!(adds.count() >= 8, "each norm has a kernel, forward and back");
    assert_eq!(count("drop_"), 3, "the head's dropout forward and back, and the way back of the embedding's");
}
