//! A whole training run: from a configuration to a run directory with the model in it.
//!
//! The run directory holds `config.toml` (the settings as they were resolved), `metrics.jsonl` (a line for each batch
//! and each measuring), `plan.txt` (every step of each task's program), `best/` and `last/` (model directories), `state/` (all that going on exactly needs) and `lock`.
//! Nothing in here reads a clock or writes to a terminal: that is the [`Monitor`]'s.

mod compare;
mod recorder;

use std::path::Path;
use std::thread;
use std::time::SystemTime;

use anyhow::bail;

use super::baseline::baseline;
use super::checkpoint::{self, State};
use super::config::RunConfig;
use super::evaluate::Evaluation;
use super::forecast::remarks;
use super::keeper::{self, Keeper};
use super::lock::Lock;
use super::mix::MixConfig;
use super::monitor::{Event, Monitor};
use super::prepare::Start;
use super::prepare::{self, Prepared};
use super::settings::{check_output, save_config, save_plan};
use super::store::{self, BEST, LAST, STATE};
use super::trainer::{Best, Ending, Progress, Trainer};
use crate::backend::Backend;
use crate::data::{TaskSpec, Tokenizer};
use crate::nn::{Model, directory};
use crate::tensor::{Space, Span};
pub use compare::compare;
use recorder::Recorder;

/// How a run ended and what came of it.
#[derive(Debug)]
pub struct Outcome {
    /// `None` if it was stopped before anything was trained.
    pub ending: Option<Ending>,
    /// Where the run stands.
    pub progress: Progress,
    /// The figures of the best evaluation (the last, if there is no best), beside those of no reading at all.
    pub results: Vec<TaskResult>,
    /// The tasks and how many examples each was trained on.
    pub examples: Vec<(String, usize)>,
    /// Seconds of the whole run, earlier parts of a resumed one included.
    pub seconds: f64,
}

/// The figures of one dev set.
#[derive(Clone, Debug)]
pub struct TaskResult {
    /// The task's name.
    pub task: String,
    /// The metrics, on how many examples of which set.
    pub evaluation: Evaluation,
    /// For each metric what [`baseline`] reaches.
    pub baseline: Vec<f64>,
}

/// Trains as `config` says, or goes on with the run that is in `config.output`.
///
/// `cache` keeps token ids between runs, and `now` is told to who finds the directory locked.
///
/// # Errors
/// Wrong settings or text before anything is written; a directory that holds a run, unless `resume`; training that has
/// diverged; a final save that failed.
pub fn run(
    config: &RunConfig,
    resume: bool,
    cache: Option<&Path>,
    now: SystemTime,
    backend: &mut dyn Backend,
    monitor: &mut dyn Monitor,
) -> anyhow::Result<Outcome> {
    config.train.validate()?;
    let run = &config.output;
    check_output(run, config, resume)?;
    let tasks = prepare::tasks(config)?;
    let (sizes, tokenizer) = prepare::encoder(&config.model, config.train.dropout, config.tasks.is_empty())?;
    if let Some(doubt) = directory::doubtful_vocabulary(&sizes, &tokenizer) {
        monitor.tell(Event::Warning(&doubt));
    }
    let Some(Prepared { tasks, data }) = prepare::data(config, tasks, &tokenizer, cache, monitor)? else {
        return Ok(Outcome::nothing(monitor.seconds()));
    };
    let model = Model::new(&sizes, &tasks).with_precision(backend.precision());
    let initial = |monitor: &mut dyn Monitor| initial_parameters(config, &model, &tokenizer, monitor);
    let start = if resume { None } else { Some(initial(monitor)?) };
    let mut trainer = Trainer::new(&config.train, config.seed, &model, &data, backend)?;
    if trainer.leaves_pooler() {
        let note = "the pooler is left as it is: every head reads all tokens, and none the pooled vector";
        monitor.tell(Event::Note(note));
    }
    let names: Vec<&str> = trainer.programs().map(|(task, _)| tasks[task].name.as_str()).collect();
    for remark in remarks(trainer.sampler(), &names) {
        monitor.tell(Event::Warning(&remark));
    }
    let batches = trainer.sampler().batches(0);
    let extent = match (&config.train.mix, config.train.batch_tokens) {
        (mix, 0) if *mix == MixConfig::default() => format!("{batches} batches an epoch"),
        (mix, 0) => format!("{batches} batches an epoch, mix {mix}"),
        (mix, _) => format!("about {batches} batches an epoch, mix {mix}"),
    };
    monitor.tell(Event::Planned {
        sizes: trainer.sizes(),
        updates: trainer.total_updates(),
        extent: &extent,
    });

    // Whatever is wrong with settings, text or weights has been said: from here on the directory is written.
    let _lock = Lock::acquire(run, now)?;
    check_output(run, config, resume)?; // Another process may have been faster.
    for sentence in store::recover(run, &[STATE, LAST, BEST])? {
        monitor.tell(Event::Warning(&sentence));
    }
    save_config(run, config)?;
    let programs = trainer.programs().map(|(task, program)| (format!("task {}", tasks[task].name), program));
    if let Err(error) = save_plan(run, programs) {
        monitor.tell(Event::Warning(&format!("{error:#}"))); // For readers; nothing depends on it.
    }
    let fingerprints = prepare::fingerprints(&data);
    let saved = if resume { load(run, &tasks, &fingerprints, &mut trainer, monitor)? } else { None };
    if saved.is_none() {
        let start = start.map_or_else(|| initial(monitor), Ok)?;
        let span = Span { space: Space::Parameters, offset: 0, len: start.len() };
        trainer.backend().write(span, bytemuck::cast_slice(&start))?;
    }
    let (offset, best, seconds) =
        saved.map_or((0, Vec::new(), 0.0), |state| (state.log_offset, state.evaluations, state.seconds));
    let (ending, best, seconds) = thread::scope(|scope| {
        let mut recorder = Recorder {
            keeper: Keeper::new(run, resume, offset, seconds, scope, monitor)?,
            model: &model,
            tokenizer: &tokenizer,
            max_length: config.train.max_length,
            tasks: &tasks,
            fingerprints,
            best,
        };
        let ending = trainer.run(&mut recorder);
        // What was saved before a failure is waited for as well.
        let kept = recorder.keeper.finish();
        let ending = ending?;
        kept?;
        anyhow::Ok((ending, recorder.best, recorder.keeper.seconds()))
    })?;
    let baseline_of = |evaluation: &Evaluation| {
        let sets = &data[evaluation.task];
        let set = sets.dev.iter().find(|(name, _)| *name == evaluation.split);
        set.map_or(Vec::new(), |(_, set)| baseline(&tasks[evaluation.task], &sets.train, set))
    };
    let results = best.iter().map(|evaluation| TaskResult {
        task: tasks[evaluation.task].name.clone(),
        evaluation: evaluation.clone(),
        baseline: baseline_of(evaluation),
    });
    let examples = tasks.iter().zip(&data).map(|(task, sets)| (task.name.clone(), sets.train.len()));
    Ok(Outcome {
        ending: Some(ending),
        examples: examples.collect(),
        results: results.collect(),
        seconds,
        progress: trainer.progress().clone(),
    })
}

impl Outcome {
    fn nothing(seconds: f64) -> Self {
        let (progress, results, examples) = (Progress::default(), Vec::new(), Vec::new());
        Self { ending: None, progress, results, examples, seconds }
    }

    /// The best evaluation, if there was one.
    pub fn best(&self) -> Option<&Best> {
        self.progress.best.as_ref()
    }
}

/// The parameters that training begins with: those of `model.init`, new ones where it has none.
fn initial_parameters(
    config: &RunConfig,
    model: &Model,
    tokenizer: &Tokenizer,
    monitor: &mut dyn Monitor,
) -> anyhow::Result<Vec<f32>> {
    let start = Start { init: config.model.init.as_deref(), seed: config.seed, table: model.parameters() };
    let rows = model.config().vocab_size;
    start.parameters(tokenizer, rows, monitor, |init, values| {
        let mut loaded = directory::load_parameters(init, model, config.seed, false, values)?;
        if config.model.new_heads {
            let table = model.parameters();
            for head in table.parameters().iter().filter(|parameter| parameter.name.starts_with("heads.")) {
                table.initialise(head, config.seed, &mut values[head.range()]);
                if !loaded.initialised.contains(&head.name) {
                    loaded.initialised.push(head.name.clone());
                }
            }
        }
        Ok(loaded)
    })
}

/// Takes the trainer to where the run was saved; `None` if it never was.
fn load(
    run: &Path,
    tasks: &[TaskSpec],
    fingerprints: &[String],
    trainer: &mut Trainer<'_>,
    monitor: &mut dyn Monitor,
) -> anyhow::Result<Option<State>> {
    let Some(path) = keeper::newest_state(run, monitor)? else { return Ok(None) };
    let parameters = trainer.model().parameters().len();
    let state: State = checkpoint::load_state(&path, parameters, trainer.backend())?;
    let changed = state.data.iter().zip(fingerprints).position(|(before, now)| before != now);
    if let Some(task) = changed {
        bail!(
            "--resume: the examples of task {:?} are not those that the run began with; put the files back, or start \
             another run with another --output",
            tasks[task].name
        );
    }
    let Progress { updates, epoch, .. } = state.progress;
    monitor.tell(Event::Note(&format!("going on after update {updates}, in epoch {}", epoch + 1)));
    trainer.resume(state.progress.clone());
    Ok(Some(state))
}
