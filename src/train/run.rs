//! A whole training run: from a configuration to a run directory with the model in it.
//!
//! The run directory holds `config.toml` (the settings as they were resolved), `metrics.jsonl` (a line for each batch
//! and each measuring), `best/` and `last/` (model directories), `state/` (all that going on exactly needs) and `lock`.
//! Nothing in here reads a clock or writes to a terminal: that is the [`Monitor`]'s.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};
use serde::Serialize;

use super::checkpoint::{self, State};
use super::config::RunConfig;
use super::evaluate::Evaluation;
use super::lock::Lock;
use super::log::Log;
use super::prepare::{self, Prepared};
use super::store::{self, BEST, LAST, STATE};
use super::trainer::{Best, Ending, Observer, Progress, StepReport, Trainer};
use crate::backend::{Backend, Sizes};
use crate::data::{TaskSpec, Tokenizer};
use crate::nn::{Model, directory};
use crate::tensor::{Space, Span};

/// The settings of a run in its directory.
pub const CONFIG: &str = "config.toml";
/// The log of a run in its directory.
pub const LOG: &str = "metrics.jsonl";
/// Keys that a resumed run may have otherwise: they change when is looked, not what is computed.
const FREE_KEYS: [&str; 3] = ["train.eval", "train.patience", "train.checkpoint_every"];

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
    /// For each metric what [`prepare::baseline`] reaches.
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
    let Some(Prepared { tasks, data }) = prepare::data(config, tasks, &tokenizer, cache, monitor)? else {
        return Ok(Outcome::nothing(monitor.seconds()));
    };
    let model = Model::new(&sizes, &tasks);
    let start = initial_parameters(config, &model, monitor)?;

    let run = &config.output;
    let _lock = Lock::acquire(run, now)?;
    check_output(config, resume)?; // Another process may have been faster.
    for sentence in store::recover(run, &[STATE, LAST, BEST])? {
        monitor.tell(Event::Warning(&sentence));
    }
    save_config(config)?;

    let mut trainer = Trainer::new(&config.train, config.seed, &model, &data, backend)?;
    let (updates, batches) = (trainer.total_updates(), trainer.batches_per_epoch());
    monitor.tell(Event::Planned { sizes: trainer.sizes(), updates, batches });
    let span = Span { space: Space::Parameters, offset: 0, len: start.len() };
    trainer.backend().write(span, bytemuck::cast_slice(&start))?;
    drop(start);

    let fingerprints = prepare::fingerprints(&data);
    let saved = if resume { load(run, &tasks, &fingerprints, &mut trainer, monitor)? } else { None };
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
    let baseline = |evaluation: &Evaluation| {
        let sets = &data[evaluation.task];
        let set = sets.dev.iter().find(|(name, _)| *name == evaluation.split);
        set.map_or(Vec::new(), |(_, set)| prepare::baseline(&tasks[evaluation.task], &sets.train, set))
    };
    let results = recorder.best.iter().map(|evaluation| TaskResult {
        task: tasks[evaluation.task].name.clone(),
        evaluation: evaluation.clone(),
        baseline: baseline(evaluation),
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

/// Refuses a directory with another run's results, and one whose settings are not these.
fn check_output(config: &RunConfig, resume: bool) -> anyhow::Result<()> {
    let run = &config.output;
    let path = run.join(CONFIG);
    let saved = match fs::read_to_string(&path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let holds_a_run = [STATE, LAST, BEST, LOG].iter().any(|name| run.join(name).exists());
    if holds_a_run && !resume {
        bail!(
            "{} already holds a run: go on with it with --resume, or choose another --output; nothing was changed",
            run.display()
        );
    }
    let Some(saved) = saved else { return Ok(()) };
    let Ok(saved) = toml::from_str::<RunConfig>(&saved) else {
        bail!("{} is not the settings of a run; choose another --output, so that it is kept", path.display());
    };
    match first_difference(&saved, config)? {
        Some((key, before, now)) if resume => bail!(
            "--resume: {key} was {before} and is now {now}; a run goes on only as it began. Take {} back, or start \
             another run with another --output",
            key.rsplit('.').next().unwrap_or(&key)
        ),
        _ => Ok(()),
    }
}

/// The first key that two configurations have otherwise, and both values. The directory's own name does not count: it
/// may have been moved.
fn first_difference(saved: &RunConfig, now: &RunConfig) -> anyhow::Result<Option<(String, String, String)>> {
    let flat = |config: &RunConfig| {
        let mut keys = Vec::new();
        flatten(String::new(), &toml::Value::try_from(config)?, &mut keys);
        anyhow::Ok(keys.into_iter().filter(|(key, _)| key != "output").collect::<Vec<_>>())
    };
    let (saved, now) = (flat(saved)?, flat(now)?);
    let value = |keys: &[(String, String)], key: &str| {
        keys.iter().find(|(other, _)| other == key).map_or("not set".to_string(), |(_, value)| value.clone())
    };
    let all = saved.iter().chain(&now).map(|(key, _)| key).filter(|key| !FREE_KEYS.contains(&key.as_str()));
    Ok(all
        .map(|key| (key.clone(), value(&saved, key), value(&now, key)))
        .find(|(_, before, now)| before != now))
}

fn flatten(key: String, value: &toml::Value, keys: &mut Vec<(String, String)>) {
    let below = |name: &str| if key.is_empty() { name.to_string() } else { format!("{key}.{name}") };
    match value {
        toml::Value::Table(table) => table.iter().for_each(|(name, value)| flatten(below(name), value, keys)),
        toml::Value::Array(values) if values.iter().any(toml::Value::is_table) => {
            for (index, value) in values.iter().enumerate() {
                let name = value.get("name").and_then(toml::Value::as_str);
                flatten(below(name.unwrap_or(&index.to_string())), value, keys);
            }
        }
        value => keys.push((key, value.to_string())),
    }
}

fn save_config(config: &RunConfig) -> anyhow::Result<()> {
    let path = config.output.join(CONFIG);
    let text = format!("# The settings of this run, as they were resolved.\n\n{}", toml::to_string(config)?);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The parameters that training begins with: those of `model.init`, new ones where it has none.
fn initial_parameters(
    config: &RunConfig,
    model: &Model,
    monitor: &mut dyn Monitor,
) -> anyhow::Result<Vec<f32>> {
    let parameters = model.parameters();
    let mut values = vec![0.0f32; parameters.len()];
    let Some(init) = &config.model.init else {
        for parameter in parameters.parameters() {
            parameters.initialise(parameter, config.seed, &mut values[parameter.range()]);
        }
        monitor.tell(Event::Note(&format!(
            "model: new, {} parameters drawn from seed {}",
            parameters.count(),
            config.seed
        )));
        return Ok(values);
    };
    let loaded = directory::load_parameters(init, model, config.seed, false, &mut values)?;
    monitor.tell(Event::Note(&format!(
        "model: {} parameters, from {}: {}",
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

/// Writes down and saves what the trainer does.
struct Recorder<'a> {
    run: &'a PathBuf,
    tokenizer: &'a Tokenizer,
    max_length: usize,
    tasks: &'a [TaskSpec],
    fingerprints: Vec<String>,
    log: Log,
    monitor: &'a mut dyn Monitor,
    /// The figures of the best evaluation, or of the last one measured before there is a best.
    best: Vec<Evaluation>,
    seconds_before: f64,
    /// Directories whose last save failed, and why.
    unsaved: BTreeMap<&'static str, anyhow::Error>,
}

#[derive(Serialize)]
struct StepLine<'a> {
    event: &'static str,
    step: u32,
    epoch: u32,
    task: &'a str,
    loss: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    update: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gradient_norm: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    learning_rate: Option<f32>,
    tokens: usize,
    examples: usize,
    seconds: f64,
}

#[derive(Serialize)]
struct EvaluationLine<'a> {
    event: &'static str,
    update: u64,
    task: &'a str,
    set: &'a str,
    examples: usize,
    metrics: BTreeMap<&'static str, f64>,
    seconds: f64,
}

impl Recorder<'_> {
    fn seconds(&self) -> f64 {
        self.seconds_before + self.monitor.seconds()
    }

    /// Keeps training when a save fails: the earlier directory is as it was, and the next save may succeed.
    fn saved(&mut self, name: &'static str, result: anyhow::Result<()>) {
        match result {
            Ok(()) => {
                self.unsaved.remove(name);
            }
            Err(error) => {
                self.monitor.tell(Event::Warning(&format!("NOT SAVED: {error:#}. Training goes on")));
                self.unsaved.insert(name, error);
            }
        }
    }

    /// Whether all that was to be kept is kept.
    fn finish(&mut self) -> anyhow::Result<()> {
        match std::mem::take(&mut self.unsaved).into_iter().next() {
            None => Ok(()),
            Some((name, error)) => Err(error.context(format!("training has ended, but {name} is not saved"))),
        }
    }
}

impl Observer for Recorder<'_> {
    fn step(&mut self, progress: &Progress, report: &StepReport) -> anyhow::Result<()> {
        let line = StepLine {
            event: "step",
            step: progress.step - 1,
            epoch: progress.epoch,
            task: &self.tasks[report.task].name,
            loss: report.loss,
            update: report.update.map(|_| progress.updates),
            gradient_norm: report.update.map(|update| update.gradient_norm),
            learning_rate: report.update.map(|update| update.learning_rate),
            tokens: report.tokens,
            examples: report.examples,
            seconds: self.seconds(),
        };
        self.log.append(&line)?;
        self.monitor.tell(Event::Step { progress, report });
        Ok(())
    }

    fn evaluated(
        &mut self,
        progress: &Progress,
        evaluations: &[Evaluation],
        mean: f64,
    ) -> anyhow::Result<()> {
        for evaluation in evaluations {
            let line = EvaluationLine {
                event: "evaluation",
                update: progress.updates,
                task: &self.tasks[evaluation.task].name,
                set: &evaluation.split,
                examples: evaluation.examples,
                metrics: evaluation.metrics.iter().map(|&(metric, value)| (metric.name(), value)).collect(),
                seconds: self.seconds(),
            };
            self.log.append(&line)?;
        }
        if progress.best.as_ref().is_none_or(|best| mean > best.mean) {
            self.best = evaluations.to_vec();
        }
        self.monitor.tell(Event::Evaluated { progress, evaluations, mean });
        Ok(())
    }

    fn best(&mut self, trainer: &mut Trainer<'_>) -> anyhow::Result<()> {
        self.save_model(BEST, trainer);
        Ok(())
    }

    fn checkpoint(&mut self, trainer: &mut Trainer<'_>) -> anyhow::Result<()> {
        self.monitor.tell(Event::Saving { path: &self.run.join(STATE) });
        self.log.sync()?;
        let state = State {
            progress: trainer.progress().clone(),
            log_offset: self.log.offset(),
            data: self.fingerprints.clone(),
            evaluations: self.best.clone(),
            seconds: self.seconds(),
        };
        let parameters = trainer.model().parameters().len();
        let result = checkpoint::save_state(self.run, &state, parameters, trainer.backend());
        self.saved(STATE, result);
        self.save_model(LAST, trainer);
        Ok(())
    }

    fn stop(&self) -> bool {
        self.monitor.stop()
    }
}

impl Recorder<'_> {
    fn save_model(&mut self, name: &'static str, trainer: &mut Trainer<'_>) {
        self.monitor.tell(Event::Saving { path: &self.run.join(name) });
        let (updates, model) = (trainer.progress().updates, trainer.model());
        let result = checkpoint::save_model(
            self.run,
            name,
            updates,
            model,
            self.tokenizer,
            self.max_length,
            trainer.backend(),
        );
        self.saved(name, result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::TaskEntry;

    #[test]
    fn the_first_key_that_differs_is_named() {
        let entry = |name: &str| TaskEntry { name: name.into(), ..TaskEntry::default() };
        let saved = RunConfig { tasks: vec![entry("rte"), entry("cola")], ..RunConfig::default() };
        assert!(first_difference(&saved, &saved).unwrap().is_none());

        let mut free = saved.clone();
        free.output = "elsewhere".into();
        free.train.checkpoint_every = 10;
        free.train.patience = 3;
        assert!(first_difference(&saved, &free).unwrap().is_none());

        let mut other = saved.clone();
        other.train.batch_size = 16;
        let (key, before, now) = first_difference(&saved, &other).unwrap().unwrap();
        assert_eq!((key.as_str(), before.as_str(), now.as_str()), ("train.batch_size", "32", "16"));

        let mut other = saved.clone();
        other.tasks[1].dropout = Some(0.5);
        let (key, before, _) = first_difference(&saved, &other).unwrap().unwrap();
        assert_eq!((key.as_str(), before.as_str()), ("task.cola.dropout", "not set"));
    }
}
