//! A whole training run: from a configuration to a run directory with the model in it.
//!
//! The run directory holds `config.toml` (the settings as they were resolved), `metrics.jsonl` (a line for each batch
//! and each measuring), `plan.txt` (every step of each task's program), `best/` and `last/` (model directories), `state/` (all that going on exactly needs) and `lock`.
//! Nothing in here reads a clock or writes to a terminal: that is the [`Monitor`]'s.

mod compare;
mod recorder;
mod settings;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use anyhow::bail;

use super::baseline::baseline;
use super::checkpoint::{self, State};
use super::config::RunConfig;
use super::evaluate::Evaluation;
use super::lock::Lock;
use super::log::Log;
use super::prepare::{self, Prepared};
use super::store::{self, BEST, LAST, STATE};
use super::trainer::{Best, Ending, Progress, StepReport, Trainer};
use crate::backend::{Backend, Sizes};
use crate::data::{TaskSpec, Tokenizer};
use crate::nn::{Model, directory};
use crate::tensor::{Space, Span};
pub use compare::compare;
use recorder::Recorder;
use settings::{check_output, save_config, save_plan};

/// The settings of a run in its directory.
pub const CONFIG: &str = "config.toml";
/// The log of a run in its directory.
pub const LOG: &str = "metrics.jsonl";
/// The planned programs of a run in its directory.
pub const PLAN: &str = "plan.txt";

/// Something that happens in a run, for a person to see.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Something to know.
    Note(&'a str),
    /// Something that may be wrong.
    Warning(&'a str),
    /// A file is being read and tokenised.
    Reading {
        /// The file.
        path: &'a Path,
    },
    /// A task's examples are ready.
    Data {
        /// The task.
        task: &'a TaskSpec,
        /// Examples to train on.
        train: usize,
        /// Examples to measure on.
        dev: usize,
        /// Tokens of both.
        tokens: usize,
    },
    /// Everything is planned and its memory reserved.
    Planned {
        /// The elements of each buffer.
        sizes: Sizes,
        /// Updates of the whole run.
        updates: u64,
        /// Batches of an epoch.
        batches: usize,
    },
    /// A batch has been trained on.
    Step {
        /// Where the run stands.
        progress: &'a Progress,
        /// What was done.
        report: &'a StepReport,
    },
    /// A dev set is being measured.
    Measuring {
        /// The task's name.
        task: &'a str,
        /// The set's name.
        set: &'a str,
        /// Its examples.
        examples: usize,
        /// Its tokens.
        tokens: usize,
    },
    /// The dev sets have been measured.
    Evaluated {
        /// Where the run stands.
        progress: &'a Progress,
        /// The figures of every set.
        evaluations: &'a [Evaluation],
        /// The mean of the tasks' main metrics.
        mean: f64,
    },
    /// A checkpoint or a model is being saved.
    Saving {
        /// The directory.
        path: &'a Path,
    },
}

/// The world outside: a clock, a person who watches, and the wish to stop.
pub trait Monitor {
    /// Seconds since the program started.
    fn seconds(&self) -> f64;
    /// Whether to save and stop now.
    fn stop(&self) -> bool;
    /// Shows what happens.
    fn tell(&mut self, event: Event<'_>);
}

/// How a run ended and what came of it.
#[derive(Debug)]
pub struct Outcome {
    /// `None` if it was stopped before anything was trained.
    pub ending: Option<Ending>,
    /// Where the run stands.
    pub progress: Progress,
    /// The figures of the best evaluation (the last, if there is no best), beside those of no reading at all.
    pub results: Vec<TaskResult>,
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
    check_output(config, resume)?;
    let tasks = prepare::tasks(config)?;
    let (sizes, tokenizer) = prepare::encoder(config)?;
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
    let (updates, batches) = (trainer.total_updates(), trainer.batches_per_epoch());
    monitor.tell(Event::Planned { sizes: trainer.sizes(), updates, batches });

    // Whatever is wrong with settings, text or weights has been said: from here on the directory is written.
    let run = &config.output;
    let _lock = Lock::acquire(run, now)?;
    check_output(config, resume)?; // Another process may have been faster.
    for sentence in store::recover(run, &[STATE, LAST, BEST])? {
        monitor.tell(Event::Warning(&sentence));
    }
    save_config(config)?;
    let programs = trainer.programs().map(|(task, program)| (tasks[task].name.as_str(), program));
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
    let log = open_log(run, resume, saved.as_ref().map_or(0, |state| state.log_offset), monitor)?;
    let (best, seconds_before) = saved.map_or((Vec::new(), 0.0), |state| (state.evaluations, state.seconds));
    let mut recorder = Recorder {
        run,
        tokenizer: &tokenizer,
        max_length: config.train.max_length,
        tasks: &tasks,
        fingerprints,
        log,
        monitor,
        best,
        seconds_before,
        unsaved: BTreeMap::new(),
    };
    let ending = trainer.run(&mut recorder)?;
    recorder.finish()?;
    let baseline_of = |evaluation: &Evaluation| {
        let sets = &data[evaluation.task];
        let set = sets.dev.iter().find(|(name, _)| *name == evaluation.split);
        set.map_or(Vec::new(), |(_, set)| baseline(&tasks[evaluation.task], &sets.train, set))
    };
    let results = recorder.best.iter().map(|evaluation| TaskResult {
        task: tasks[evaluation.task].name.clone(),
        evaluation: evaluation.clone(),
        baseline: baseline_of(evaluation),
    });
    Ok(Outcome {
        ending: Some(ending),
        results: results.collect(),
        seconds: recorder.seconds(),
        progress: trainer.progress().clone(),
    })
}

impl Outcome {
    fn nothing(seconds: f64) -> Self {
        Self { ending: None, progress: Progress::default(), results: Vec::new(), seconds }
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
    let parameters = model.parameters();
    let vocabulary = format!("{} tokens in {} rows", tokenizer.vocab_size(), model.config().vocab_size);
    let mut values = vec![0.0f32; parameters.len()];
    let Some(init) = &config.model.init else {
        for parameter in parameters.parameters() {
            parameters.initialise(parameter, config.seed, &mut values[parameter.range()]);
        }
        monitor.tell(Event::Note(&format!(
            "model: new, {} parameters, {vocabulary}, drawn from seed {}",
            parameters.count(),
            config.seed
        )));
        return Ok(values);
    };
    let loaded = directory::load_parameters(init, model, config.seed, false, &mut values)?;
    monitor.tell(Event::Note(&format!(
        "model: {} parameters, {vocabulary}, from {}: {}",
        parameters.count(),
        init.display(),
        loaded.report
    )));
    if !loaded.initialised.is_empty() {
        let names = loaded.initialised.join(", ");
        monitor.tell(Event::Note(&format!("drawn from seed {}: {names}", config.seed)));
    }
    Ok(values)
}

/// Takes the trainer to where the run was saved; `None` if it never was.
fn load(
    run: &Path,
    tasks: &[TaskSpec],
    fingerprints: &[String],
    trainer: &mut Trainer<'_>,
    monitor: &mut dyn Monitor,
) -> anyhow::Result<Option<State>> {
    let search = store::newest(run, &[STATE]);
    for error in &search.passed_over {
        monitor.tell(Event::Warning(&format!("passed over: {error}")));
    }
    let Some((path, _)) = search.found else {
        if let Some(damaged) = search.passed_over.first() {
            bail!("--resume: {damaged}; remove that directory to begin the run anew");
        }
        monitor.tell(Event::Warning(&format!(
            "--resume: nothing is saved in {} yet; training begins at the beginning",
            run.display()
        )));
        return Ok(None);
    };
    let parameters = trainer.model().parameters().len();
    let state = checkpoint::load_state(&path, parameters, trainer.backend())?;
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

fn open_log(run: &Path, resume: bool, offset: u64, monitor: &mut dyn Monitor) -> anyhow::Result<Log> {
    let path = run.join(LOG);
    if !resume {
        return Ok(Log::create(&path)?);
    }
    let (log, said) = Log::resume(&path, offset)?;
    said.iter().for_each(|sentence| monitor.tell(Event::Note(sentence)));
    Ok(log)
}
