//! The stochastic answer network: its numbers against PyTorch's, what each option does, what it refuses, and a whole run
//! with it.

#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "common/place.rs"]
mod place;
#[path = "common/runs.rs"]
mod runs;

use std::collections::HashMap;
use std::fs;

use fixtures::{distance, fixtures, largest, tensors};
use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::backend::{Backend, Rule, Sizes, StepScalars};
use mtdnn_raw::data::san::{SanAttention, SanMemory};
use mtdnn_raw::data::{Batch, Dataset, Label, SanSpec, TaskEntry, TaskKind, TaskSpec, Tokenizer};
use mtdnn_raw::nn::{BertConfig, Model, Recorded, directory, extents};
use mtdnn_raw::tensor::{Dropout, Extents, Op, Rows, Space, Var};
use mtdnn_raw::train::config::{EvalEvery, OtherHeads, TrainConfig};
use mtdnn_raw::train::evaluate::Evaluation;
use mtdnn_raw::train::schedule::ScheduleKind;
use mtdnn_raw::train::trainer::{Observer, Progress, StepReport, TaskData, Trainer};
use place::Place;
use runs::{bits, dataset, lesson, new_parameters, read, read_span, small_config, task, write};
use serde_json::{Value, json};

/// PyTorch's f32 is up to 5.4e-6 from the truth (`fixtures/san.py` prints it).
const LOGITS: f32 = 1.5e-5;
/// Relative to the largest entry of the tensor. PyTorch's f32: up to 1.2e-5.
const GRADIENT: f32 = 3e-5;

const CAPACITY: Extents = Extents { tokens: 100, sequences: 8, groups: 8, predictions: 0, in_lines: false };

/// The variants of the fixture.
fn variants() -> [(&'static str, SanSpec); 3] {
    let usual = || SanSpec { prediction_dropout: None, ..SanSpec::default() };
    [
        ("bilinear", SanSpec { steps: 4, prediction_dropout: Some(0.0), ..usual() }),
        ("simple", SanSpec { steps: 2, attention: SanAttention::Simple, memory: SanMemory::Last, ..usual() }),
        ("single", SanSpec { steps: 1, ..usual() }),
    ]
}

fn pair_task(san: SanSpec) -> TaskSpec {
    TaskSpec { san: Some(san), ..task("pair", TaskKind::Classification, 3) }
}

/// A model with numbers, in a backend with room for its programs.
struct Ready {
    model: Model,
    backend: CpuBackend,
}

impl Ready {
    fn new(model: Model, values: &[f32]) -> Self {
        let mut backend = CpuBackend::new();
        let programs = [
            model.training(0, CAPACITY, 1.0, false),
            model.inference(&[0], CAPACITY),
            model.encoding(false, CAPACITY),
        ];
        let arena = programs.iter().map(|recorded| recorded.program.arena_len());
        let sizes = Sizes { parameters: values.len(), arena: arena.max().unwrap(), training: true };
        backend.reserve(&sizes).unwrap();
        write(&mut backend, Space::Parameters, values);
        Self { model, backend }
    }

    /// The fixture's encoder with the head of one of its variants.
    fn of_fixture(variant: &str, san: SanSpec) -> Self {
        let path = fixtures().join("tiny-bert");
        let (config, _) = directory::read_encoder(&path).unwrap();
        let model = Model::new(&config, &[pair_task(san)]);
        let mut values = vec![0.0; model.parameters().len()];
        directory::load_parameters(&path, &model, 0, false, &mut values).unwrap();
        let truth = tensors("san.safetensors");
        for parameter in model.parameters().parameters() {
            if let Some(name) = parameter.name.strip_prefix("heads.pair.") {
                values[parameter.range()].copy_from_slice(&truth[&format!("{variant}.head.{name}")]);
            }
        }
        Self::new(model, &values)
    }

    fn run(&mut self, recorded: &Recorded, batch: &Batch, vars: &[Var]) -> Vec<Vec<f32>> {
        let extents = extents(batch);
        recorded.write(&mut self.backend, batch).unwrap();
        self.backend.run(&recorded.program, &StepScalars { extents, seed: 5, step: 3 }).unwrap();
        vars.iter().map(|&v| read_span(&mut self.backend, recorded.program.span(v, &extents))).collect()
    }

    /// The loss of a training step.
    fn loss(&mut self, batch: &Batch) -> f32 {
        let recorded = self.model.training(0, CAPACITY, 1.0, false);
        self.run(&recorded, batch, &recorded.outputs)[0][0]
    }

    /// The answer, and each step's logits.
    fn answers(&mut self, batch: &Batch) -> (Vec<f32>, Vec<Vec<f32>>) {
        let recorded = self.model.inference(&[0], CAPACITY);
        let mut vars = recorded.outputs.clone();
        vars.extend(&recorded.steps[0]);
        let mut found = self.run(&recorded, batch, &vars);
        (found.remove(0), found)
    }
}

/// The fixture's pairs.
fn pairs() -> Dataset {
    let truth = tensors("san.safetensors");
    let whole = |name: &str| truth[name].iter().map(|&x| x as u32).collect::<Vec<u32>>();
    let [ids, types, starts, labels] = ["ids", "types", "starts", "labels"].map(whole);
    dataset(starts.windows(2).zip(labels).map(|(ends, label)| {
        let rows = ends[0] as usize..ends[1] as usize;
        let second = types[rows.clone()].iter().filter(|&&text| text == 0).count() as u32;
        (vec![(ids[rows].to_vec(), second)], Label::Class(label))
    }))
}

fn batch_of(set: &Dataset, examples: &[u32]) -> Batch {
    let mut batch = Batch::default();
    batch.fill(set, examples);
    batch
}

fn all_pairs() -> Batch {
    batch_of(&pairs(), &[0, 1, 2])
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    logits.iter().map(|&x| f64::from(x).exp() / sum).collect()
}

// --- Its numbers.

#[test]
fn answers_and_gradients_are_those_of_pytorch() {
    let truth = tensors("san.safetensors");
    for (variant, san) in variants() {
        let of = |name: &str| &truth[&format!("{variant}.{name}")];
        let mut ready = Ready::of_fixture(variant, san);
        let (answer, steps) = ready.answers(&all_pairs());
        assert_eq!(steps.len() * answer.len(), of("steps").len(), "{variant}: steps");
        let error = distance(&steps.concat(), of("steps"));
        assert!(error <= LOGITS, "{variant}: the steps' logits are {error:e} off");
        let error = distance(&answer, of("answer"));
        assert!(error <= LOGITS, "{variant}: the answer is {error:e} off");
        let loss = ready.loss(&all_pairs());
        let error = (loss - of("loss")[0]).abs();
        assert!(error <= LOGITS, "{variant}: the loss is {error:e} off");
        let gradients = read(&mut ready.backend, Space::Gradients, ready.model.parameters().len());
        for parameter in ready.model.parameters().parameters() {
            // The head does without the pooler, and a softmax subtracts key biases out: their true gradient is 0.
            if parameter.name.starts_with("pooler.") || parameter.name.ends_with("key.bias") {
                continue;
            }
            let truth = of(&format!("gradient.{}", parameter.name.replace("heads.pair.", "head.")));
            let error = distance(&gradients[parameter.range()], truth);
            let most = GRADIENT * largest(truth);
            assert!(error <= most, "{variant}: {} is {error:e} off, not within {most:e}", parameter.name);
        }
    }
}

/// With one step and no dropout it is a plain classifier on the summary `s` of one text and what `x` of the other it finds.
#[test]
fn one_step_is_a_plain_classifier() {
    let mut ready = Ready::of_fixture("single", variants()[2].1.clone());
    let batch = all_pairs();
    let (answer, steps) = ready.answers(&batch);
    assert_eq!(steps, std::slice::from_ref(&answer));
    let recorded = ready.model.encoding(false, CAPACITY);
    let hidden = ready.run(&recorded, &batch, &recorded.hidden_states).remove(0);
    let weights = tensors("san.safetensors");
    let weight = |name: &str| -> Vec<f64> {
        weights[&format!("single.head.{name}")].iter().map(|&x| f64::from(x)).collect()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let affine = |x: &[f64], name: &str| -> Vec<f64> {
        let (weight, bias) = (weight(&format!("{name}.weight")), weight(&format!("{name}.bias")));
        weight.chunks(x.len()).zip(bias).map(|(row, bias)| dot(row, x) + bias).collect()
    };
    for sequence in 0..3 {
        let rows = batch.starts[sequence] as usize..batch.ends[sequence] as usize;
        let text = |text: u32| -> Vec<Vec<f64>> {
            let rows = rows.clone().filter(|&row| batch.types[row] == text);
            rows.map(|row| hidden[row * 32..][..32].iter().map(|&x| f64::from(x)).collect()).collect()
        };
        let attend = |memory: &[Vec<f64>], query: &[f64]| -> Vec<f64> {
            let weights: Vec<f64> = memory.iter().map(|x| dot(x, query).exp()).collect();
            let sum: f64 = weights.iter().sum();
            (0..32).map(|c| memory.iter().zip(&weights).map(|(x, w)| w / sum * x[c]).sum()).collect()
        };
        let s = attend(&text(1), &weight("summary.weight"));
        let x = attend(&text(0), &affine(&s, "attention"));
        let both = || x.iter().zip(&s);
        let differences: Vec<f64> = both().map(|(x, s)| (x - s).abs()).collect();
        let products: Vec<f64> = both().map(|(x, s)| x * s).collect();
        let logits = affine(&[x.clone(), s.clone(), differences, products].concat(), "classifier");
        for (found, expected) in answer[sequence * 3..][..3].iter().zip(logits) {
            assert!((f64::from(*found) - expected).abs() < 2e-5, "{found}, not {expected}");
        }
    }
    // The loss in training is that of these logits.
    let losses = (0..3).map(|i| -softmax(&answer[3 * i..][..3])[batch.labels[i] as usize].ln());
    let loss = f64::from(ready.loss(&batch));
    assert!((loss - losses.sum::<f64>() / 3.0).abs() < 1e-5);
}

#[test]
fn the_answer_is_the_mean_of_the_steps_and_sums_to_one() {
    let mut ready = Ready::of_fixture("bilinear", variants()[0].1.clone());
    let (answer, steps) = ready.answers(&all_pairs());
    assert_eq!(steps.len(), 4);
    for sequence in 0..3 {
        let own = 3 * sequence..3 * sequence + 3;
        let of_steps: Vec<Vec<f64>> = steps.iter().map(|step| softmax(&step[own.clone()])).collect();
        let sum: f64 = answer[own.clone()].iter().map(|&x| f64::from(x).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "probabilities sum to {sum}");
        for (class, &found) in answer[own].iter().enumerate() {
            let mean = of_steps.iter().map(|step| step[class]).sum::<f64>() / 4.0;
            assert!((f64::from(found).exp() - mean).abs() < 1e-6);
        }
        assert!(of_steps.windows(2).all(|pair| pair[0] != pair[1]), "two steps answer the same");
    }
}

#[test]
fn a_pair_is_answered_with_the_same_bits_in_any_batch_and_at_any_number_of_threads() {
    let answers = |threads: usize, examples: &[u32]| -> Vec<u32> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut ready = Ready::of_fixture("bilinear", variants()[0].1.clone());
            bits(&ready.answers(&batch_of(&pairs(), examples)).0).to_vec()
        })
    };
    let together = answers(1, &[0, 1, 2]);
    assert_eq!(answers(3, &[0, 1, 2]), together);
    for example in 0..3 {
        assert_eq!(answers(2, &[example]), together[3 * example as usize..][..3]);
    }
}

// --- Its options.

/// A model of one pair task whose encoder drops nothing, and a batch of pairs.
fn small(task: TaskSpec) -> (Ready, Batch) {
    let model = Model::new(&BertConfig { initializer_range: 0.5, ..small_config(16, 0.0) }, &[task]);
    let values = new_parameters(&model, 3);
    let set = lesson(TaskKind::Classification, 4, 4);
    (Ready::new(model, &values), batch_of(&set, &[0, 1, 2, 3]))
}

fn names(san: SanSpec) -> HashMap<String, Vec<usize>> {
    let (ready, _) = small(pair_task(san));
    let parameters = ready.model.parameters().parameters().iter();
    let own =
        parameters.filter_map(|p| Some((p.name.strip_prefix("heads.pair.")?.to_string(), p.shape.clone())));
    own.collect()
}

#[test]
fn steps_are_as_many_as_are_asked_for() {
    for steps in [1, 2, 5, 16] {
        let (mut ready, batch) = small(pair_task(SanSpec { steps, ..SanSpec::default() }));
        assert_eq!(ready.answers(&batch).1.len(), steps);
    }
    let gru = |name: &&String| name.starts_with("gru.");
    assert_eq!(names(SanSpec::default()).keys().filter(gru).count(), 4);
    assert_eq!(names(SanSpec { steps: 1, ..SanSpec::default() }).keys().filter(gru).count(), 0);
}

#[test]
fn attention_is_of_the_kind_that_is_asked_for() {
    let bilinear = names(SanSpec::default());
    assert_eq!(
        (&bilinear["attention.weight"][..], &bilinear["attention.bias"][..]),
        (&[16, 16][..], &[16][..])
    );
    let simple = names(SanSpec { attention: SanAttention::Simple, ..SanSpec::default() });
    assert_eq!((&simple["attention.weight"][..], simple.get("attention.bias")), (&[1, 16][..], None));
}

#[test]
fn the_memory_is_averaged_or_the_last_step_answers() {
    let memory = |memory| {
        let (mut ready, batch) = small(pair_task(SanSpec { memory, ..SanSpec::default() }));
        ready.answers(&batch)
    };
    let (answer, steps) = memory(SanMemory::Last);
    assert_eq!(answer, steps[4]);
    let (answer, same) = memory(SanMemory::Average);
    assert_eq!(steps, same);
    assert_ne!(answer, steps[4]);
}

/// The dropout of the average in a training program.
fn step_dropout(san: SanSpec) -> Option<Dropout> {
    let (ready, _) = small(pair_task(san));
    let recorded = ready.model.training(0, CAPACITY, 1.0, false);
    recorded.program.ops().iter().find_map(|op| match op {
        Op::StepAverage { dropout, .. } => Some(*dropout),
        _ => None,
    })
}

#[test]
fn steps_are_dropped_in_training_as_likely_as_is_asked_for() {
    let with = |prediction_dropout| SanSpec { prediction_dropout, ..SanSpec::default() };
    let threshold = |p: f32| Dropout::new(p, 0).threshold;
    assert_eq!(step_dropout(with(None)).unwrap().threshold, threshold(0.1));
    assert_eq!(step_dropout(with(Some(0.7))).unwrap().threshold, threshold(0.7));
    assert_eq!(step_dropout(SanSpec { memory: SanMemory::Last, ..with(None) }), None);
    assert_eq!(step_dropout(SanSpec { steps: 1, ..with(None) }), None);
    let loss = |prediction_dropout| {
        let (mut ready, batch) = small(pair_task(with(prediction_dropout)));
        let loss = ready.loss(&batch);
        let (answer, _) = ready.answers(&batch);
        let mean: f32 = batch.labels.iter().enumerate().map(|(i, &y)| -answer[3 * i + y as usize]).sum();
        (loss, mean / 4.0)
    };
    let (all, of_answer) = loss(Some(0.0));
    assert!((all - of_answer).abs() < 1e-5, "without dropout the loss is the answer's: {all}, {of_answer}");
    let (few, of_answer) = loss(Some(0.9));
    assert!((few - of_answer).abs() > 1e-5, "with dropout it is not: {few}, {of_answer}");
}

/// The dropouts of a training program by what their rows are, and the keys of those on tokens.
fn dropouts(task: TaskSpec) -> (usize, Vec<Var>, Recorded) {
    let (ready, _) = small(task);
    let recorded = ready.model.training(0, CAPACITY, 1.0, false);
    let forward = recorded.program.ops().iter().take_while(|op| !matches!(op, Op::Fill { .. }));
    let mut of_vectors = 0;
    let mut of_tokens = Vec::new();
    for op in forward {
        if let Op::Drop { x, keys, .. } = op {
            match recorded.program.shape(*x).rows {
                Rows::Tokens => of_tokens.push(keys.unwrap()),
                _ => of_vectors += 1,
            }
        }
    }
    (of_vectors, of_tokens, recorded)
}

#[test]
fn dropout_is_variational_unless_it_is_not_to_be() {
    let with = |variational, dropout| {
        let san = SanSpec { steps: 3, variational, ..SanSpec::default() };
        dropouts(TaskSpec { dropout, ..pair_task(san) })
    };
    // Tokens once for the summary and once a step; state and merge each step; the state before each of two updates.
    let (of_vectors, of_tokens, recorded) = with(true, 0.2);
    assert_eq!((of_vectors, of_tokens), (8, vec![recorded.sequence_keys().unwrap(); 4]));
    let (_, of_tokens, recorded) = with(false, 0.2);
    assert_eq!(of_tokens, vec![recorded.index().places; 4]);
    let (of_vectors, of_tokens, _) = with(true, 0.0);
    assert_eq!((of_vectors, of_tokens.len()), (0, 0), "the task's dropout is the head's");
}

/// What a run file's task becomes.
fn resolve(entry: Value) -> Result<TaskSpec, String> {
    let mut whole = json!({"name": "pair", "train": "pairs.tsv", "text_a": 0, "text_b": 1, "label": 2});
    for (key, value) in entry.as_object().unwrap() {
        whole[key] = value.clone();
    }
    let entry: TaskEntry = serde_json::from_value(whole).map_err(|error| error.to_string())?;
    entry.resolve().map_err(|error| error.to_string())
}

#[test]
fn a_run_file_says_the_head_and_its_options() {
    assert_eq!(resolve(json!({})).unwrap().san, None);
    assert_eq!(resolve(json!({"head": "linear"})).unwrap().san, None);
    assert_eq!(resolve(json!({"head": "san"})).unwrap().san, Some(SanSpec::default()));
    let options = json!({
        "steps": 3, "attention": "simple", "memory": "average", "prediction_dropout": 0.25, "variational": false
    });
    let expected = SanSpec {
        steps: 3,
        attention: SanAttention::Simple,
        memory: SanMemory::Average,
        prediction_dropout: Some(0.25),
        variational: false,
    };
    assert_eq!(resolve(json!({"head": "san", "san": options})).unwrap().san, Some(expected));
}

#[test]
fn what_does_not_fit_is_refused() {
    let san = |options: Value| json!({"head": "san", "san": options});
    for (entry, words) in [
        (json!({"san": {"steps": 3}}), "say head = \"san\" as well"),
        (json!({"head": "linear", "san": {}}), "say head = \"san\" as well"),
        (json!({"head": "lstm"}), "unknown variant `lstm`, expected `linear` or `san`"),
        (json!({"head": "san", "text_b": null}), "reads a pair, and its examples are single texts"),
        (json!({"head": "san", "kind": "regression"}), "for classification of pairs, this is regression"),
        (san(json!({"steps": 0})), "san.steps is 0; give 1 to 16"),
        (san(json!({"steps": 17})), "san.steps is 17; give 1 to 16"),
        (san(json!({"turns": 5})), "unknown field `turns`, expected one of `steps`"),
        (san(json!({"attention": "flatsim"})), "unknown variant `flatsim`, expected `bilinear` or `simple`"),
        (san(json!({"memory": "first"})), "unknown variant `first`, expected `average` or `last`"),
        (san(json!({"prediction_dropout": 1.0})), "san.prediction_dropout is 1, which is not in [0, 1)"),
        (san(json!({"prediction_dropout": 0.2, "steps": 1})), "with steps = 1 there is none"),
        (san(json!({"prediction_dropout": 0.2, "memory": "last"})), "with memory = \"last\" there is none"),
    ] {
        let error = resolve(entry.clone()).unwrap_err();
        assert!(error.contains(words), "{entry}: {words:?} is not in: {error}");
    }
    let shared = TaskSpec { shares: Some("other".into()), ..pair_task(SanSpec::default()) };
    assert!(shared.validate().unwrap_err().to_string().contains("answered by the head of other"));
}

// --- Its parameters.

/// Those of the reference, 4,144,132 at BERT-base's width and three classes, but for the summary's bias, which falls out.
#[test]
fn a_head_has_the_parameters_of_the_reference() {
    let count = |san| {
        let model = Model::new(&BertConfig::default(), &[pair_task(san)]);
        let own = model.parameters().parameters().iter().filter(|p| p.name.starts_with("heads."));
        own.map(|parameter| parameter.range().len()).sum::<usize>()
    };
    assert_eq!(count(SanSpec::default()), 4_144_132 - 1);
    assert_eq!(count(SanSpec { steps: 1, ..SanSpec::default() }), 4_144_131 - 3_543_552);
    let simple = SanSpec { attention: SanAttention::Simple, ..SanSpec::default() };
    assert_eq!(count(simple), 4_144_131 - 590_592 + 768);
}

#[test]
fn a_new_recurrent_unit_begins_as_pytorchs_does() {
    let (ready, _) = small(pair_task(SanSpec::default()));
    let values = new_parameters(&ready.model, 9);
    for parameter in ready.model.parameters().parameters() {
        if parameter.name.contains(".gru.") {
            let most = largest(&values[parameter.range()]);
            assert!(
                (0.22..=0.25).contains(&most),
                "{}: up to {most}, not one over the root of 16",
                parameter.name
            );
        }
    }
}

#[test]
fn a_directory_keeps_the_head_and_its_options() {
    let san = SanSpec { steps: 3, variational: false, prediction_dropout: Some(0.3), ..SanSpec::default() };
    let tokenizer = Tokenizer::from_directory(&fixtures().join("tiny-bert")).unwrap();
    let config = small_config(16, 0.0);
    let model = Model::new(&config, &[pair_task(san.clone())]);
    let values = new_parameters(&model, 3);
    let folder = tempfile::tempdir().unwrap();
    directory::save(folder.path(), &model, &tokenizer, 24, &values).unwrap();
    let tasks = directory::require_description(folder.path()).unwrap().tasks;
    assert_eq!(tasks[0].san, Some(san.clone()));
    let load = |san: Option<SanSpec>, all| {
        let model = Model::new(&config, &[TaskSpec { san, ..pair_task(SanSpec::default()) }]);
        let mut found = vec![0.0; model.parameters().len()];
        let loaded = directory::load_parameters(folder.path(), &model, 9, all, &mut found).unwrap();
        (found, loaded.initialised)
    };
    let (found, _) = load(Some(san.clone()), true);
    assert_eq!(bits(&found), bits(&values));
    // Another number of steps reads the same parameters; another attention and another head have others.
    let (found, fresh) = load(Some(SanSpec { steps: 5, ..san.clone() }), false);
    assert_eq!((bits(&found), fresh.len()), (bits(&values), 0));
    assert!(!load(Some(SanSpec { attention: SanAttention::Simple, ..san.clone() }), false).1.is_empty());
    assert!(!load(Some(SanSpec { steps: 1, ..san }), false).1.is_empty());
    assert!(!load(None, false).1.is_empty());
}

// --- That it learns.

fn config() -> TrainConfig {
    TrainConfig {
        epochs: 60,
        batch_size: 8,
        learning_rate: 3e-3,
        optimizer: Rule::AdamW,
        schedule: ScheduleKind::Constant,
        warmup: 0.0,
        eval: EvalEvery::Never,
        ..TrainConfig::default()
    }
}

/// A task of each form of head, and the same lesson for both.
fn two_tasks() -> (Model, Vec<TaskData>) {
    let tasks = [task("plain", TaskKind::Classification, 3), pair_task(SanSpec::default())];
    let set = lesson(TaskKind::Classification, 32, 32);
    let data = TaskData { dev: vec![("dev".to_string(), set.clone())], train: set };
    (Model::new(&small_config(32, 0.0), &tasks), vec![data.clone(), data])
}

/// Keeps the losses of the pairs.
#[derive(Default)]
struct Losses(Vec<f32>);

impl Observer for Losses {
    fn step(&mut self, _: &Progress, report: &StepReport) -> anyhow::Result<()> {
        if report.task == 1 {
            self.0.push(report.loss);
        }
        Ok(())
    }

    fn evaluated(&mut self, _: &Progress, _: &[Evaluation], _: f64) -> anyhow::Result<()> {
        Ok(())
    }

    fn best(&mut self, _: &mut Trainer<'_>) -> anyhow::Result<()> {
        Ok(())
    }

    fn checkpoint(&mut self, _: &mut Trainer<'_>) -> anyhow::Result<()> {
        Ok(())
    }

    fn stop(&self) -> bool {
        false
    }
}

#[test]
fn learns_pairs_by_heart_beside_a_plain_head() {
    let (model, data) = two_tasks();
    let mut backend = CpuBackend::new();
    let mut trainer = Trainer::new(&config(), 3, &model, &data, &mut backend).unwrap();
    write(trainer.backend(), Space::Parameters, &new_parameters(&model, 3));
    let mut losses = Losses::default();
    trainer.run(&mut losses).unwrap();
    let Losses(losses) = losses;
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    let (first, last) = (mean(&losses[..4]), mean(&losses[losses.len() - 4..]));
    assert!(first > 0.9 && last < 0.02, "the loss of pairs went from {first} to {last}");
}

/// The pooler is trained by the batches whose head reads it, and stands still in the others.
#[test]
fn the_pooler_is_updated_by_those_who_read_it() {
    let pooler = |trainer: &mut Trainer| {
        let range = trainer.model().pooler_range();
        bits(&read(trainer.backend(), Space::Parameters, range.end)[range.start..]).to_vec()
    };
    let (model, data) = two_tasks();
    for other_heads in [OtherHeads::Skip, OtherHeads::ZeroGradient] {
        let mut backend = CpuBackend::new();
        let config = TrainConfig { other_heads, ..config() };
        let mut trainer = Trainer::new(&config, 3, &model, &data, &mut backend).unwrap();
        write(trainer.backend(), Space::Parameters, &new_parameters(&model, 3));
        assert!(!trainer.leaves_pooler());
        let mut own = 0;
        let mut met = [0; 2];
        for _ in 0..8 {
            let before = pooler(&mut trainer);
            let task = trainer.step().unwrap().task;
            met[task] += 1;
            own += u64::from(task == 0);
            // By the reference's rule it coasts once it has been trained.
            let moves = task == 0 || (other_heads == OtherHeads::ZeroGradient && own > 0);
            assert_eq!(
                pooler(&mut trainer) != before,
                moves,
                "after a batch of task {task}, {other_heads:?}"
            );
        }
        assert_eq!(met, [4, 4]);
        if other_heads == OtherHeads::Skip {
            assert_eq!(trainer.progress().group_updates, [8, 4, 4, 4]);
        }
    }
    // Without a head that reads it, it is nobody's.
    let model = Model::new(&small_config(32, 0.0), &[pair_task(SanSpec::default())]);
    let mut backend = CpuBackend::new();
    let mut trainer = Trainer::new(&config(), 3, &model, &data[1..], &mut backend).unwrap();
    let start = new_parameters(&model, 3);
    write(trainer.backend(), Space::Parameters, &start);
    assert!(trainer.leaves_pooler());
    trainer.step().unwrap();
    assert_eq!(pooler(&mut trainer), bits(&start[model.pooler_range()]));
}

// --- The program.

#[test]
fn a_run_with_such_a_head_is_trained_measured_and_answers() {
    let place = Place::new();
    let mut pairs = String::new();
    for number in 0..48 {
        let (first, second) = (place::WORDS[number % 4], place::WORDS[number / 4 % 4]);
        let label = if first == second { "same" } else { "other" };
        pairs += &format!("the film was {first}\ta song is {second}\t{label}\n");
    }
    place.write("pairs.tsv", pairs);
    let mood = place::RUN.split("[[task]]\nname = \"likeness\"").next().unwrap();
    let pair = "[[task]]\nname = \"pair\"\ntrain = \"pairs.tsv\"\ndev = \"pairs.tsv\"\ntext_a = 0\ntext_b = 1\nlabel = 2\n\
                head = \"san\"\n[task.san]\nsteps = 3\n";
    place.write("run.toml", format!("{mood}{pair}"));
    place.ok(&["train", "run.toml"]);
    let saved = fs::read_to_string(place.path("run/config.toml")).unwrap();
    assert!(saved.contains("head = \"san\"") && saved.contains("steps = 3"), "{saved}");

    let ended =
        place.ok(&["eval", "--model", "run/best", "--data", "run/config.toml", "--json", "eval.json"]);
    let lines = |what: &str| ended.stdout.lines().filter(|line| line.contains(what)).count();
    assert_eq!(lines("accuracy of step"), 3, "{}", ended.stdout);
    let figures: Value = serde_json::from_slice(&fs::read(place.path("eval.json")).unwrap()).unwrap();
    let of = |task: &str| figures["sets"].as_array().unwrap().iter().find(|set| set["task"] == task).unwrap();
    assert_eq!(of("mood").get("accuracy_of_steps"), None);
    let steps: Vec<f64> = serde_json::from_value(of("pair")["accuracy_of_steps"].clone()).unwrap();
    assert_eq!(steps.len(), 3);
    assert!(steps.iter().all(|share| (0.0..=1.0).contains(share)), "{steps:?}");

    place.write("in.txt", "the film was good\ta song is good\n");
    let ended = place.ok(&["predict", "--model", "run/best", "--task", "pair", "in.txt"]);
    let columns = ended.stdout.trim_end().split('\t');
    let probabilities = columns.map(|column| column.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
    assert!((probabilities.sum::<f64>() - 1.0).abs() < 2e-4, "{}", ended.stdout);

    // A flag says the same as the run file; alone such a head leaves the pooler as it is, and that is said.
    let plain = pair.split("head = ").next().unwrap();
    place.write("plain.toml", format!("{mood}{plain}"));
    let alone = ["train", "plain.toml", "--tasks", "pair", "--output", "alone", "--san"];
    let ended = place.ok(&[&alone[..], &["pair"]].concat());
    assert!(ended.stderr.contains("the pooler is left as it is"), "{}", ended.stderr);
    let ended = place.run(&[&alone[..], &["par"]].concat());
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("--san par: not a task of this run; did you mean \"pair\"?"),
        "{}",
        ended.stderr
    );
}
