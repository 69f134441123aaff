//! The training loop: that it learns, repeats itself to the bit, and does to each parameter what is promised.

#[path = "common/runs.rs"]
mod runs;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use mtdnn_raw::backend::Rule;
use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::data::{Label, TaskKind, TaskSpec};
use mtdnn_raw::nn::{BertConfig, Model};
use mtdnn_raw::tensor::Space;
use mtdnn_raw::train::checkpoint::{self, Snapshot, State};
use mtdnn_raw::train::config::{EvalEvery, OtherHeads, TrainConfig};
use mtdnn_raw::train::error::TrainError;
use mtdnn_raw::train::evaluate::Evaluation;
use mtdnn_raw::train::mix::MixConfig;
use mtdnn_raw::train::schedule::{Schedule, ScheduleKind};
use mtdnn_raw::train::store;
use mtdnn_raw::train::trainer::{Ending, Observer, Progress, StepReport, TaskData, Trainer};
use runs::{LONGEST, bits, lesson, new_parameters, read, small_config, task, three_tasks, write};

const SEED: u64 = 11;

/// A model and what it is to learn.
struct Setup {
    model: Model,
    data: Vec<TaskData>,
}

impl Setup {
    fn new(config: &BertConfig, (tasks, data): (Vec<TaskSpec>, Vec<TaskData>)) -> Self {
        Self { model: Model::new(config, &tasks), data }
    }

    /// Three small tasks, with dropout.
    fn small() -> Self {
        Self::new(&small_config(16, 0.1), three_tasks(0.1, [20, 13, 9]))
    }

    /// Three small tasks, without dropout.
    fn small_without_dropout() -> Self {
        Self::new(&small_config(16, 0.0), three_tasks(0.0, [20, 13, 9]))
    }

    /// The parameters that every run starts from: nothing is 0 or 1, so that whatever changes shows.
    fn start(&self, seed: u64) -> Vec<f32> {
        let mut values = new_parameters(&self.model, seed);
        for parameter in self.model.parameters().parameters() {
            values[parameter.range()].iter_mut().zip(0..).for_each(|(v, i)| *v += 0.05 * (i as f32).sin());
        }
        values
    }

    fn trainer<'a>(&'a self, config: &TrainConfig, seed: u64, backend: &'a mut CpuBackend) -> Trainer<'a> {
        let mut trainer = Trainer::new(config, seed, &self.model, &self.data, backend).unwrap();
        write(trainer.backend(), Space::Parameters, &self.start(seed));
        trainer
    }

    /// Trains to the end and returns what was told and the parameters.
    fn train(&self, config: &TrainConfig, seed: u64) -> (Recorder, Vec<f32>) {
        let mut backend = CpuBackend::new();
        let mut trainer = self.trainer(config, seed, &mut backend);
        let mut recorder = Recorder::default();
        recorder.ending = Some(trainer.run(&mut recorder).unwrap());
        (recorder, buffer(&mut trainer, Space::Parameters))
    }
}

fn buffer(trainer: &mut Trainer, space: Space) -> Vec<f32> {
    let len = trainer.model().parameters().len();
    read(trainer.backend(), space, len)
}

/// Few and large updates, without warm-up.
fn config() -> TrainConfig {
    TrainConfig {
        epochs: 2,
        batch_size: 4,
        learning_rate: 1e-3,
        schedule: ScheduleKind::Constant,
        warmup: 0.0,
        eval: EvalEvery::Never,
        ..TrainConfig::default()
    }
}

/// Keeps what a run tells.
#[derive(Default)]
struct Recorder {
    steps: Vec<StepReport>,
    evaluations: Vec<(u64, Vec<Evaluation>, f64)>,
    best: Vec<u64>,
    checkpoints: Vec<u64>,
    ending: Option<Ending>,
    /// How often the run asked whether to stop, and which question is answered with yes.
    questions: Cell<usize>,
    stop_at: Option<usize>,
    /// Where checkpoints are saved, if anywhere.
    run: Option<PathBuf>,
}

impl Observer for Recorder {
    fn step(&mut self, _: &Progress, report: &StepReport) -> anyhow::Result<()> {
        self.steps.push(*report);
        Ok(())
    }

    fn evaluated(&mut self, progress: &Progress, found: &[Evaluation], mean: f64) -> anyhow::Result<()> {
        self.evaluations.push((progress.updates, found.to_vec(), mean));
        Ok(())
    }

    fn best(&mut self, trainer: &mut Trainer<'_>) -> anyhow::Result<()> {
        self.best.push(trainer.progress().updates);
        Ok(())
    }

    fn checkpoint(&mut self, trainer: &mut Trainer<'_>) -> anyhow::Result<()> {
        self.checkpoints.push(trainer.progress().updates);
        if let Some(run) = &self.run {
            let progress = trainer.progress().clone();
            let state =
                State { progress, log_offset: 0, data: Vec::new(), evaluations: Vec::new(), seconds: 0.0 };
            let len = trainer.model().parameters().len();
            let parameters = Arc::new(checkpoint::read(Space::Parameters, len, trainer.backend())?);
            let updates = state.progress.updates;
            Snapshot::take(updates, &state, parameters, trainer.backend())?.save(run)?;
        }
        Ok(())
    }

    fn stop(&self) -> bool {
        self.questions.set(self.questions.get() + 1);
        self.stop_at == Some(self.questions.get())
    }
}

// --- That it learns.

/// Trains on three tasks until each is known.
fn assert_learns_by_heart(optimizer: Rule, learning_rate: f64) {
    let setup = Setup::new(&small_config(32, 0.0), three_tasks(0.0, [32, 32, 32]));
    let config = TrainConfig {
        epochs: 60,
        batch_size: 8,
        optimizer,
        learning_rate,
        schedule: ScheduleKind::Linear,
        warmup: 0.1,
        eval: EvalEvery::Epoch,
        ..config()
    };
    let (recorder, _) = setup.train(&config, SEED);
    let (_, evaluations, _) = recorder.evaluations.last().unwrap();
    for (evaluation, name) in evaluations.iter().zip(["accuracy", "pearson", "accuracy@1"]) {
        let (metric, value) = evaluation.metrics[0];
        assert_eq!((evaluation.examples, metric.name()), (32, name));
        assert!(value > 0.999, "{name} of what was learnt by heart is {value}");
    }
    for task in 0..3 {
        let losses = |steps: &[StepReport]| -> f32 {
            let losses = steps.iter().filter(|step| step.task == task).map(|step| step.loss);
            losses.sum::<f32>() / 4.0
        };
        let (first, last) = (losses(&recorder.steps[..12]), losses(&recorder.steps[59 * 12..]));
        assert!(first > 0.5 && last < 0.02, "the loss of task {task} went from {first} to {last}");
    }
}

#[test]
fn learns_a_task_of_each_kind_by_heart() {
    assert_learns_by_heart(Rule::AdamW, 3e-3);
}

#[test]
fn learns_them_by_the_rules_for_pre_training() {
    assert_learns_by_heart(Rule::AdamBert, 3e-3);
    assert_learns_by_heart(Rule::Lamb, 1.5e-2);
}

#[test]
fn every_parameter_is_trained() {
    let setup = Setup::small();
    let before = setup.start(SEED);
    let (_, after) = setup.train(&config(), SEED);
    for parameter in setup.model.parameters().parameters() {
        // A softmax subtracts these out: their gradient is 0 and what they do has no effect.
        if parameter.name.ends_with("key.bias") || parameter.name == "heads.ranks.bias" {
            continue;
        }
        let (before, after) = (&before[parameter.range()], &after[parameter.range()]);
        let moved = before.iter().zip(after).filter(|(before, after)| before != after).count();
        // Of the tables only the rows in use: all positions and types, and nearly all words.
        assert!(moved * 10 >= 9 * before.len(), "{}: {moved} of {}", parameter.name, before.len());
    }
}

// --- That it repeats itself.

#[test]
fn the_same_seed_gives_the_same_bits_at_any_thread_count() {
    // Wide enough that every kernel cuts its work into several parts.
    let setup = Setup::new(&small_config(128, 0.1), three_tasks(0.1, [64, 64, 64]));
    let config = TrainConfig { epochs: 1, batch_size: 32, ..config() };
    let train = |threads: usize, seed: u64| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (recorder, parameters) = pool.install(|| setup.train(&config, seed));
        (recorder.steps, parameters)
    };
    let (steps, parameters) = train(1, SEED);
    assert_eq!(steps.len(), 6);
    for threads in [2, 4] {
        let (others, found) = train(threads, SEED);
        assert_eq!(others, steps, "{threads} threads");
        assert!(bits(&found) == bits(&parameters), "parameters at {threads} threads");
    }
    let (_, others) = train(1, SEED + 1);
    assert!(bits(&others) != bits(&parameters), "the seed has no effect");
}

#[test]
fn dropout_follows_the_seed_and_the_step() {
    // One example again and again, nothing learnt: only the draws can change the loss.
    let losses = |dropout: f32, seed: u64| -> Vec<f32> {
        let train = lesson(TaskKind::Classification, 1, 1);
        let tasks = vec![TaskSpec { dropout, ..task("classes", TaskKind::Classification, 3) }];
        let setup = Setup::new(
            &small_config(16, f64::from(dropout)),
            (tasks, vec![TaskData { train, dev: Vec::new() }]),
        );
        let config = TrainConfig { epochs: 4, learning_rate: 0.0, ..config() };
        let mut backend = CpuBackend::new();
        let mut trainer = setup.trainer(&config, seed, &mut backend);
        write(trainer.backend(), Space::Parameters, &setup.start(SEED));
        let mut recorder = Recorder::default();
        trainer.run(&mut recorder).unwrap();
        recorder.steps.iter().map(|step| step.loss).collect()
    };
    let (first, other) = (losses(0.1, 1), losses(0.1, 2));
    assert_eq!(losses(0.1, 1), first);
    for step in 0..4 {
        assert_ne!(first[step], other[step], "seeds at step {step}");
        assert!(!first[..step].contains(&first[step]), "step {step} drops what an earlier one did");
    }
    let steady = losses(0.0, 1);
    assert_eq!(steady, vec![steady[0]; 4]);
}

#[test]
fn a_run_interrupted_anywhere_ends_in_the_same_bits() {
    let setup = Setup::small();
    // Windows of two batches that cross tasks, the last of an epoch alone; evaluations within and between epochs.
    let config = TrainConfig {
        accumulation: 2,
        eval: EvalEvery::Steps(4),
        schedule: ScheduleKind::Linear,
        warmup: 0.2,
        max_steps: 10,
        checkpoint_every: 3,
        ..config()
    };
    let finish = |trainer: &mut Trainer, recorder: &mut Recorder| {
        let ending = trainer.run(recorder).unwrap();
        let spaces = [Space::Parameters, Space::FirstMoment, Space::SecondMoment];
        (ending, spaces.map(|space| buffer(trainer, space)), trainer.progress().clone())
    };
    let mut backend = CpuBackend::new();
    let mut whole = Recorder::default();
    let mut trainer = setup.trainer(&config, SEED, &mut backend);
    let (ending, expected, progress) = finish(&mut trainer, &mut whole);
    assert_eq!((ending, progress.updates, progress.epoch), (Ending::Complete, 10, 1));

    let questions = whole.questions.get();
    assert_eq!(questions, 10 + 4 * 3, "asked before every window and every batch of an evaluation");
    for stop_at in 1..=questions {
        let run = tempfile::tempdir().unwrap();
        let mut first =
            Recorder { stop_at: Some(stop_at), run: Some(run.path().to_path_buf()), ..Recorder::default() };
        let mut backend = CpuBackend::new();
        let ending = setup.trainer(&config, SEED, &mut backend).run(&mut first).unwrap();
        assert_eq!(ending, Ending::Stopped, "at question {stop_at}");

        let mut backend = CpuBackend::new();
        let mut trainer = Trainer::new(&config, SEED, &setup.model, &setup.data, &mut backend).unwrap();
        let (state, _) = store::newest(run.path(), &[store::STATE]).found.expect("a saved state");
        let state: State =
            checkpoint::load_state(&state, setup.model.parameters().len(), trainer.backend()).unwrap();
        trainer.resume(state.progress);
        let mut second = Recorder::default();
        let (ending, found, reached) = finish(&mut trainer, &mut second);
        assert_eq!((ending, &reached), (Ending::Complete, &progress), "stopped at question {stop_at}");
        for (found, expected) in found.iter().zip(&expected) {
            assert!(bits(found) == bits(expected), "stopped at question {stop_at}");
        }
        first.steps.extend(second.steps);
        first.evaluations.extend(second.evaluations);
        assert_eq!((&first.steps, &first.evaluations), (&whole.steps, &whole.evaluations));
    }
}

/// Ten steps, and five, a resumed trainer and five more, end in the same bytes, whatever draws the batches.
#[test]
fn every_mix_goes_on_exactly() {
    let setup = Setup::small();
    let mix = |text: &str| toml::from_str(text).unwrap();
    let drawn = MixConfig { batches_per_epoch: Some(4), ..mix("kind = \"square-root\"") };
    for (what, config) in [
        ("drawn, across epochs", TrainConfig { epochs: 3, mix: drawn.clone(), ..config() }),
        ("in buckets", TrainConfig { bucket: 12, ..config() }),
        (
            "by tokens, in buckets, drawn",
            TrainConfig { epochs: 3, batch_size: 0, batch_tokens: 90, bucket: 12, mix: drawn, ..config() },
        ),
        ("a ratio", TrainConfig { mix: mix("kind = \"ratio\"\nratio = 1\nmain = \"scores\""), ..config() }),
        ("every third", TrainConfig { mix: mix("kind = \"every\"\nevery = 3"), ..config() }),
    ] {
        let config = TrainConfig { max_steps: 10, ..config };
        let (whole, expected) = setup.train(&config, SEED);
        assert_eq!(whole.steps.len(), 10, "{what}");
        let run = tempfile::tempdir().unwrap();
        let mut first =
            Recorder { stop_at: Some(6), run: Some(run.path().to_path_buf()), ..Recorder::default() };
        let mut backend = CpuBackend::new();
        setup.trainer(&config, SEED, &mut backend).run(&mut first).unwrap();
        assert_eq!(first.steps.len(), 5, "{what}");

        let mut backend = CpuBackend::new();
        let mut trainer = Trainer::new(&config, SEED, &setup.model, &setup.data, &mut backend).unwrap();
        let (state, _) = store::newest(run.path(), &[store::STATE]).found.expect("a saved state");
        let state: State =
            checkpoint::load_state(&state, setup.model.parameters().len(), trainer.backend()).unwrap();
        trainer.resume(state.progress);
        let mut second = Recorder::default();
        trainer.run(&mut second).unwrap();
        first.steps.extend(second.steps);
        assert_eq!(first.steps, whole.steps, "{what}");
        assert!(bits(&buffer(&mut trainer, Space::Parameters)) == bits(&expected), "{what}");
    }
}

#[test]
fn measuring_changes_nothing() {
    let setup = Setup::small();
    let (_, unmeasured) = setup.train(&config(), SEED);
    let (recorder, measured) = setup.train(&TrainConfig { eval: EvalEvery::Steps(1), ..config() }, SEED);
    assert_eq!(recorder.evaluations.len(), recorder.steps.len());
    assert!(bits(&measured) == bits(&unmeasured));
}

// --- What a step does to which parameter.

/// A head's parameters and moments.
fn head(trainer: &mut Trainer, task: usize) -> [Vec<f32>; 3] {
    let range = trainer.model().head_range(task).unwrap();
    [Space::Parameters, Space::FirstMoment, Space::SecondMoment]
        .map(|space| buffer(trainer, space)[range.clone()].to_vec())
}

#[test]
fn a_step_leaves_the_heads_of_other_tasks_alone() {
    let setup = Setup::small();
    let mut backend = CpuBackend::new();
    let mut trainer = setup.trainer(&TrainConfig { weight_decay: 0.1, ..config() }, SEED, &mut backend);
    let mut counts = [0; 4];
    for _ in 0..trainer.sampler().batches(0) {
        let before: Vec<_> = (0..3).map(|task| head(&mut trainer, task)).collect();
        let report = trainer.step().unwrap();
        counts[0] += 1;
        counts[1 + report.task] += 1;
        for (task, before) in before.iter().enumerate() {
            let after = head(&mut trainer, task);
            let same = (0..3).all(|i| bits(&before[i]) == bits(&after[i]));
            assert_eq!(same, task != report.task, "head {task} in a step of task {}", report.task);
        }
        // Each head counts its own updates: its bias correction depends on them.
        assert_eq!(trainer.progress().group_updates, counts);
    }
    assert_eq!(counts, [12, 5, 4, 3]);
}

#[test]
fn with_zero_gradients_a_head_moves_from_its_first_batch_on() {
    let setup = Setup::small();
    let (rate, decay, beta1, beta2, epsilon) = (1e-3, 0.1, 0.9f32, 0.999f32, 1e-6f32);
    let config = TrainConfig {
        optimizer: Rule::AdamaxMtdnn,
        weight_decay: decay,
        other_heads: OtherHeads::ZeroGradient,
        ..config()
    };
    let mut backend = CpuBackend::new();
    let mut trainer = setup.trainer(&config, SEED, &mut backend);
    let (mut met, mut checked) = (BTreeSet::new(), 0);
    for _ in 0..trainer.sampler().batches(0) {
        let before: Vec<_> = (0..3).map(|task| head(&mut trainer, task)).collect();
        let report = trainer.step().unwrap();
        for task in (0..3).filter(|&task| task != report.task) {
            let [theta, m, u] = &before[task];
            let after = head(&mut trainer, task);
            if !met.contains(&task) {
                assert!((0..3).all(|i| bits(&before[task][i]) == bits(&after[i])), "head {task} moved");
                continue;
            }
            checked += 1;
            let hidden = setup.model.config().hidden_size;
            let outputs = setup.model.tasks()[task].outputs();
            // Past the bias lies the gap to the next cache line.
            for i in 0..(hidden + 1) * outputs {
                // MT-DNN's Adamax with g = 0.
                let m = f64::from(beta1) * f64::from(m[i]);
                let u = (f64::from(beta2) * f64::from(u[i])).max(f64::from(epsilon));
                let decay = if i < hidden * outputs { f64::from(decay) } else { 0.0 };
                let step = rate * (m / (u + f64::from(epsilon)) + decay * f64::from(theta[i]));
                let expected = [f64::from(theta[i]) - step, m, u];
                for ((before, found), expected) in before[task].iter().zip(&after).zip(expected) {
                    let error = (f64::from(found[i]) - expected).abs();
                    // Of the step and of the parameter.
                    let rounding = 2e-7 * f64::from(before[i].abs()).max(1e-3);
                    assert!(error <= rounding, "head {task}: {} is not {expected}", found[i]);
                }
            }
        }
        met.insert(report.task);
    }
    assert!(checked >= 12, "{checked} heads updated without a batch of their own");
}

#[test]
fn weight_decay_is_for_matrices_alone() {
    let setup = Setup::small();
    let first = |weight_decay: f32| {
        let mut backend = CpuBackend::new();
        let config = TrainConfig { weight_decay, optimizer: Rule::AdamW, max_steps: 1, ..config() };
        let mut trainer = setup.trainer(&config, SEED, &mut backend);
        let task = trainer.step().unwrap().task;
        (task, buffer(&mut trainer, Space::Parameters))
    };
    let ((task, plain), (_, decayed), start) = (first(0.0), first(0.5), setup.start(SEED));
    let own = format!("heads.{}.", setup.model.tasks()[task].name);
    for parameter in setup.model.parameters().parameters() {
        let skipped = parameter.name.starts_with("heads.") && !parameter.name.starts_with(&own);
        let rate = if parameter.shape.len() == 2 && !skipped { 1e-3 * 0.5 } else { 0.0 };
        for i in parameter.range() {
            let (found, expected) = (plain[i] - decayed[i], rate * start[i]);
            // Roundings of the parameter after its step; none where nothing decays.
            let rounding = if rate > 0.0 { 3e-7 * (start[i].abs() + 1e-3) } else { 0.0 };
            assert!(
                (found - expected).abs() <= rounding,
                "{} {} decays by {found}, not {expected}",
                parameter.name,
                start[i]
            );
        }
    }
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn lamb_moves_each_tensor_by_its_own_length() {
    let setup = Setup::small();
    let rate = 1e-2;
    let config = TrainConfig { optimizer: Rule::Lamb, learning_rate: rate, weight_decay: 0.01, ..config() };
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut backend = CpuBackend::new();
            let mut trainer = setup.trainer(&config, SEED, &mut backend);
            let task = trainer.step().unwrap().task;
            (task, buffer(&mut trainer, Space::Parameters))
        })
    };
    let ((task, after), start) = (run(1), setup.start(SEED));
    assert!(bits(&after) == bits(&run(4).1), "the thread count changes the result");
    let own = format!("heads.{}.", setup.model.tasks()[task].name);
    let mut lengths = Vec::new();
    for parameter in setup.model.parameters().parameters() {
        let moved = norm(parameter.range().map(|i| after[i] - start[i]));
        let length = norm(start[parameter.range()].iter().copied());
        let rate = if parameter.name.starts_with("heads.") && !parameter.name.starts_with(&own) {
            0.0
        } else {
            rate
        };
        let expected = rate * length;
        assert!(
            (moved - expected).abs() <= 1e-4 * expected,
            "{} moved by {moved}, not {expected}",
            parameter.name
        );
        if parameter.name.contains("layer.0.attention.self") && parameter.name.ends_with("weight") {
            lengths.push(length);
        }
    }
    // They lie side by side, and in one group would go the same way each: a first step is nearly the gradient's signs.
    let [query, key, value] = lengths[..] else { panic!("{lengths:?}") };
    assert!((query / key - 1.0).abs() > 1e-3 && (key / value - 1.0).abs() > 1e-3, "{lengths:?}");
}

#[test]
fn the_gradient_is_clipped_to_its_norm() {
    let setup = Setup::small_without_dropout();
    let first = |clip: f32| {
        let mut backend = CpuBackend::new();
        let mut trainer =
            setup.trainer(&TrainConfig { clip, optimizer: Rule::Sgd, ..config() }, SEED, &mut backend);
        let report = trainer.step().unwrap().update.unwrap();
        let (start, end) = (setup.start(SEED), buffer(&mut trainer, Space::Parameters));
        // A first step of SGD is the learning rate times the gradient.
        (f64::from(report.gradient_norm), norm(start.iter().zip(&end).map(|(a, b)| a - b)) / 1e-3)
    };
    let (whole, step) = first(0.0);
    assert!((step / whole - 1.0).abs() < 1e-3, "a step of {step} with a gradient of {whole}");
    for clip in [0.5 * whole, 2.0 * whole] {
        let (norm, step) = first(clip as f32);
        assert_eq!(norm, whole, "the norm that is told is the one before clipping");
        assert!((step / clip.min(whole) - 1.0).abs() < 1e-3, "a step of {step}, clipped to {clip}");
    }
}

#[test]
fn the_learning_rate_follows_the_schedule() {
    let setup = Setup::small();
    let config = TrainConfig { schedule: ScheduleKind::Cosine, warmup: 0.25, ..config() };
    let (recorder, _) = setup.train(&config, SEED);
    let schedule = Schedule { kind: ScheduleKind::Cosine, warmup: 0.25, total: 24, peak: 1e-3 };
    let rates: Vec<f32> = recorder.steps.iter().map(|s| s.update.unwrap().learning_rate).collect();
    assert_eq!(rates, (0..24).map(|step| schedule.learning_rate(step)).collect::<Vec<_>>());

    // The rate that is told is the rate that is used: the first update of a warm-up has none.
    let mut backend = CpuBackend::new();
    let mut trainer = setup.trainer(&config, SEED, &mut backend);
    trainer.step().unwrap();
    assert!(bits(&buffer(&mut trainer, Space::Parameters)) == bits(&setup.start(SEED)));
    trainer.step().unwrap();
    assert!(bits(&buffer(&mut trainer, Space::Parameters)) != bits(&setup.start(SEED)));
}

// --- Sums of gradients over several batches.

/// Trains one window on SGD and returns the losses, the gradient and the parameters.
fn window(setup: &Setup, batch_size: usize, accumulation: u32) -> (Vec<StepReport>, Vec<f32>, Vec<f32>) {
    let config = TrainConfig { batch_size, accumulation, optimizer: Rule::Sgd, clip: 0.0, ..config() };
    let mut backend = CpuBackend::new();
    let mut trainer = setup.trainer(&config, SEED, &mut backend);
    let reports: Vec<_> = (0..accumulation).map(|_| trainer.step().unwrap()).collect();
    assert!(reports.iter().rev().skip(1).all(|report| report.update.is_none()));
    assert!(reports.last().unwrap().update.is_some() && trainer.progress().updates == 1);
    (reports, buffer(&mut trainer, Space::Gradients), buffer(&mut trainer, Space::Parameters))
}

#[test]
fn two_half_batches_are_one_whole() {
    let tasks = |kind| {
        let train = lesson(kind, 32, 5);
        (vec![task("alone", kind, 3)], vec![TaskData { train, dev: Vec::new() }])
    };
    for kind in [TaskKind::Classification, TaskKind::Regression, TaskKind::Ranking] {
        let setup = Setup::new(&small_config(16, 0.0), tasks(kind));
        let (whole, gradient, parameters) = window(&setup, 32, 1);
        let (halves, sum, others) = window(&setup, 16, 2);
        assert_eq!((whole[0].examples, halves[0].examples, halves[1].examples), (32, 16, 16));
        let mean = (halves[0].loss + halves[1].loss) / 2.0;
        assert!((mean - whole[0].loss).abs() < 1e-6 * whole[0].loss, "{mean} and {}", whole[0].loss);
        let largest = gradient.iter().fold(0.0f32, |most, g| most.max(g.abs()));
        for (a, b) in gradient.iter().zip(&sum) {
            assert!((a - b).abs() <= 3e-6 * largest, "{kind}: gradients {a} and {b}, the largest {largest}");
        }
        for (a, b) in parameters.iter().zip(&others) {
            assert!((a - b).abs() <= 1e-3 * 3e-6 * largest + 1e-7 * a.abs(), "{kind}: parameters {a}, {b}");
        }
    }
}

#[test]
fn a_window_of_two_tasks_moves_both_heads() {
    // One batch of each of the three tasks; the first two make the window.
    let setup = Setup::new(&small_config(16, 0.0), three_tasks(0.0, [20, 13, 9]));
    let (reports, sum, parameters) = window(&setup, 32, 2);
    assert_ne!(reports[0].task, reports[1].task);
    let start = setup.start(SEED);
    for task in 0..3 {
        let range = setup.model.head_range(task).unwrap();
        let moved = bits(&parameters[range.clone()]) != bits(&start[range]);
        assert_eq!(moved, reports.iter().any(|report| report.task == task), "head {task}");
    }
    // The encoder's gradient is the mean of the two batches' gradients, each found alone at a rate of 0.
    let config = TrainConfig { batch_size: 32, learning_rate: 0.0, ..config() };
    let mut backend = CpuBackend::new();
    let mut trainer = setup.trainer(&config, SEED, &mut backend);
    let [first, second] = [0, 1].map(|_| {
        trainer.step().unwrap();
        buffer(&mut trainer, Space::Gradients)
    });
    let largest = sum.iter().fold(0.0f32, |most, g| most.max(g.abs()));
    for i in setup.model.encoder_range() {
        let mean = (first[i] + second[i]) / 2.0;
        assert!((sum[i] - mean).abs() <= 1e-6 * largest, "gradient {i} is {}, not {mean}", sum[i]);
    }
}

// --- When it measures, saves and ends.

#[test]
fn measures_and_saves_when_it_is_told_to() {
    let data = TaskData {
        train: lesson(TaskKind::Regression, 20, 3),
        dev: vec![("dev".to_string(), lesson(TaskKind::Regression, 30, 4))],
    };
    let setup =
        Setup::new(&small_config(16, 0.1), (vec![task("scores", TaskKind::Regression, 0)], vec![data]));
    // Five updates an epoch.
    let config = TrainConfig { epochs: 3, eval: EvalEvery::Steps(4), checkpoint_every: 6, ..config() };
    let (recorder, _) = setup.train(&config, SEED);
    let at: Vec<u64> = recorder.evaluations.iter().map(|(updates, ..)| *updates).collect();
    assert_eq!(at, [4, 5, 8, 10, 12, 15]);
    assert_eq!(recorder.checkpoints, [5, 6, 10, 12, 15]);
    assert_eq!(recorder.ending, Some(Ending::Complete));
    // The best are those that are better than all before them.
    let mut most = f64::NEG_INFINITY;
    let better = recorder.evaluations.iter().filter(|(.., mean)| {
        let better = *mean > most;
        most = most.max(*mean);
        better
    });
    assert_eq!(recorder.best, better.map(|(updates, ..)| *updates).collect::<Vec<_>>());

    let (recorder, _) = setup.train(&TrainConfig { eval: EvalEvery::Epoch, ..config.clone() }, SEED);
    assert_eq!(recorder.evaluations.iter().map(|(updates, ..)| *updates).collect::<Vec<_>>(), [5, 10, 15]);
    let (recorder, _) = setup.train(&TrainConfig { eval: EvalEvery::Never, ..config.clone() }, SEED);
    assert!(recorder.evaluations.is_empty() && recorder.best.is_empty());
    let (recorder, _) = setup.train(&TrainConfig { eval: EvalEvery::End, ..config }, SEED);
    assert_eq!(recorder.evaluations.iter().map(|(updates, ..)| *updates).collect::<Vec<_>>(), [15]);
    assert_eq!((recorder.best, recorder.checkpoints), (vec![15], vec![6, 12, 15]));
}

#[test]
fn ends_after_max_steps_or_without_progress() {
    let setup = Setup::small();
    let (recorder, _) = setup.train(&TrainConfig { max_steps: 7, eval: EvalEvery::Epoch, ..config() }, SEED);
    assert_eq!((recorder.steps.len(), recorder.ending), (7, Some(Ending::Complete)));
    assert_eq!((recorder.evaluations.len(), recorder.checkpoints), (1, vec![7]));

    // At a rate of 0 the first evaluation is the best; two more are borne.
    let config =
        TrainConfig { epochs: 9, learning_rate: 0.0, patience: 2, eval: EvalEvery::Epoch, ..config() };
    let (recorder, _) = setup.train(&config, SEED);
    assert_eq!(recorder.ending, Some(Ending::Patience));
    assert_eq!((recorder.best.as_slice(), recorder.evaluations.len()), ([12].as_slice(), 3));
    assert_eq!(recorder.checkpoints, [12, 24, 36]);
}

#[test]
fn a_task_is_measured_with_the_head_it_names() {
    let (mut tasks, mut data) = three_tasks(0.0, [20, 13, 9]);
    tasks.push(TaskSpec { shares: Some("classes".into()), ..tasks[0].clone() });
    tasks[3].name = "diagnostic".into();
    data.push(TaskData { train: lesson(TaskKind::Classification, 0, 0), ..data[0].clone() });
    let setup = Setup::new(&small_config(16, 0.1), (tasks, data));
    assert_eq!(setup.model.head_range(3), None);
    let (recorder, _) = setup.train(&TrainConfig { eval: EvalEvery::Epoch, ..config() }, SEED);
    let (_, evaluations, mean) = recorder.evaluations.last().unwrap();
    assert_eq!(evaluations[3].metrics, evaluations[0].metrics);
    let main = [0, 1, 2, 3].map(|task: usize| evaluations[task].metrics[0].1);
    assert_eq!(*mean, main.iter().sum::<f64>() / 4.0);
}

// --- What cannot be trained.

#[test]
fn divergence_ends_training_and_spoils_nothing() {
    let setup = Setup::small();
    let mut backend = CpuBackend::new();
    let mut trainer = setup.trainer(&TrainConfig { learning_rate: 1e30, ..config() }, SEED, &mut backend);
    let mut before = buffer(&mut trainer, Space::Parameters);
    let mut steps = 0;
    let error = loop {
        match trainer.step() {
            Ok(_) => before = buffer(&mut trainer, Space::Parameters),
            Err(error) => break error,
        }
        steps += 1;
        assert!(steps < 5, "a learning rate of 1e30 goes on");
    };
    let TrainError::NotFinite { ref task, step, .. } = error else { panic!("{error}") };
    assert_eq!(step, steps);
    assert!(error.to_string().contains(task.as_str()) && error.to_string().contains("lower learning rate"));
    assert!(bits(&buffer(&mut trainer, Space::Parameters)) == bits(&before), "the error changed parameters");
    assert_eq!(trainer.progress().updates, u64::from(steps));
}

/// The square of a large error overflows where its gradient does not.
#[test]
fn a_loss_that_is_not_finite_is_not_trained_on() {
    let mut setup = Setup::small_without_dropout();
    setup.data[1].train.labels.iter_mut().for_each(|label| *label = Label::Score(1e25));
    let mut backend = CpuBackend::new();
    let mut trainer = setup.trainer(&config(), SEED, &mut backend);
    let mut before = setup.start(SEED);
    let error = (0..20).find_map(|_| {
        let error = trainer.step().err();
        if error.is_none() {
            before = buffer(&mut trainer, Space::Parameters);
        }
        error
    });
    let Some(TrainError::NotFinite { what, ref task, .. }) = error else { panic!("{error:?}") };
    assert_eq!((what, task.as_str()), ("loss", "scores"));
    assert!(bits(&buffer(&mut trainer, Space::Parameters)) == bits(&before), "the error changed parameters");
}

#[test]
fn a_gradient_that_is_not_finite_is_not_used() {
    let setup = Setup::small();
    for broken in [f32::NAN, f32::INFINITY] {
        let mut backend = CpuBackend::new();
        let mut trainer = setup.trainer(&TrainConfig { accumulation: 2, ..config() }, SEED, &mut backend);
        trainer.step().unwrap();
        // Within a window the next batch adds to what is there.
        write(trainer.backend(), Space::Gradients, &[broken]);
        let error = trainer.step().unwrap_err();
        let TrainError::NotFinite { what, step, .. } = error else { panic!("{error}") };
        assert_eq!((what, step), ("gradient norm", 1));
        assert!(bits(&buffer(&mut trainer, Space::Parameters)) == bits(&setup.start(SEED)));
        assert!(buffer(&mut trainer, Space::FirstMoment).iter().all(|&m| m == 0.0));
    }
}

#[test]
fn refuses_what_it_could_not_train() {
    let refusal = |setup: &Setup| {
        let mut backend = CpuBackend::new();
        let error = Trainer::new(&config(), SEED, &setup.model, &setup.data, &mut backend).err();
        error.expect("refused").to_string()
    };
    let short = BertConfig { max_position_embeddings: 20, ..small_config(16, 0.0) };
    let error = refusal(&Setup::new(&short, three_tasks(0.0, [60, 1, 1])));
    assert!(error.contains("task classes") && error.contains(&format!("{LONGEST} tokens")), "{error}");
    assert!(error.contains("--max-length 20"), "{error}");

    // A long sequence among those only measured counts as well.
    let (tasks, mut data) = three_tasks(0.0, [2, 2, 2]);
    data[1].dev[0].1 = lesson(TaskKind::Regression, 60, 1);
    let longest = data.iter().map(|sets| sets.train.longest()).max().unwrap();
    assert!(longest < LONGEST);
    let middle = BertConfig { max_position_embeddings: longest, ..small_config(16, 0.0) };
    let error = refusal(&Setup::new(&middle, (tasks, data)));
    assert!(error.contains("task scores"), "{error}");

    let error = refusal(&Setup::new(&small_config(16, 0.0), three_tasks(0.0, [2, 0, 2])));
    assert!(error.contains("task scores") && error.contains("empty"), "{error}");

    let (tasks, mut data) = three_tasks(0.0, [2, 2, 2]);
    data.truncate(2);
    let error = refusal(&Setup::new(&small_config(16, 0.0), (tasks, data)));
    assert!(error.contains("heads.ranks.weight, heads.ranks.bias"), "{error}");
}
