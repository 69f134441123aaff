//! One run of an experiment: begun, gone on with, or taken from where it was done before.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::answers::Answers;
use super::config::Keep;
use super::measure::measure;
use crate::backend::Backend;
use crate::data::MetricKind;
use crate::tensor::Precision;
use crate::train::config::RunConfig;
use crate::train::monitor::Monitor;
use crate::train::run;
pub use crate::train::settings::replace_file;
use crate::train::settings::{CONFIG, first_difference};
use crate::train::store::{BEST, LAST, STATE};
use crate::train::trainer::Ending;

/// A run of an experiment.
#[derive(Clone, Debug, PartialEq)]
pub struct SubRun {
    /// Its directory within the experiment's.
    pub name: String,
    /// What it is, but for the seed: `rte, ST-DNN`. Runs of one kind take about as long.
    pub kind: String,
    /// Its settings; the output is its directory.
    pub config: RunConfig,
    /// Whether later runs start from its model, which therefore stays.
    pub needed: bool,
}

/// What is kept of a finished run: `result.json` in its directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// What it was done with.
    pub(super) settings: RunConfig,
    /// What it computed in; absent where the result was kept by a program that did not record it yet.
    pub precision: Option<Precision>,
    /// Seconds that it took. No part of any figure.
    pub seconds: f64,
    /// The tasks and how many examples each was trained on.
    pub examples: Vec<(String, usize)>,
    /// The figures of its best model on each dev set.
    pub sets: Vec<SetResult>,
}

impl RunResult {
    /// That of a model that was trained elsewhere, measured on the dev sets of `config`.
    pub fn of_model(config: &RunConfig, sets: Vec<SetResult>) -> Self {
        Self { settings: config.clone(), precision: None, seconds: 0.0, examples: Vec::new(), sets }
    }

    /// The key of the run's draws.
    pub fn seed(&self) -> u64 {
        self.settings.seed
    }
}

/// A model on one dev set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetResult {
    /// The task's name.
    pub task: String,
    /// The set's name.
    pub set: String,
    /// How many examples it has.
    pub examples: usize,
    /// The metrics, the main one first. Shares and correlations, at most 1.
    pub metrics: Vec<(MetricKind, f64)>,
    /// What was answered to each example; none for kinds whose metrics are not made of single examples' answers.
    pub answers: Option<Answers>,
}

impl SetResult {
    /// The value of a metric.
    pub fn value(&self, metric: MetricKind) -> Option<f64> {
        self.metrics.iter().find(|(other, _)| *other == metric).map(|&(_, value)| value)
    }
}

const RESULT: &str = "result.json";

/// The model that a finished run leaves: the best one.
pub fn model_of(run: &Path) -> PathBuf {
    run.join(BEST)
}

/// Does a run: from its beginning, from where it was stopped, or not at all where its result is there. `None` if it was
/// stopped; what it had done is saved.
///
/// # Errors
/// As [`run::run`]; and a directory that holds a run with other settings.
pub fn perform(
    sub_run: &SubRun,
    keep: Keep,
    cache: Option<&Path>,
    now: SystemTime,
    backend: &mut dyn Backend,
    monitor: &mut dyn Monitor,
) -> anyhow::Result<Option<RunResult>> {
    let SubRun { name, config, needed, .. } = sub_run;
    let directory = &config.output;
    let outcome = run::run(config, directory.join(CONFIG).exists(), cache, now, backend, monitor)
        .with_context(|| format!("run {name}"))?;
    if matches!(outcome.ending, None | Some(Ending::Stopped)) {
        return Ok(None);
    }
    let model = model_of(directory);
    if !model.exists() {
        bail!("run {name}: none of its tasks has a dev set, so there is nothing to compare");
    }
    let Some(sets) = measure(config, &model, cache, backend, monitor)? else { return Ok(None) };
    let (seconds, examples) = (outcome.seconds, outcome.examples);
    let result =
        RunResult { settings: config.clone(), precision: Some(backend.precision()), seconds, examples, sets };
    let text = serde_json::to_string(&result)? + "\n";
    replace_file(&directory.join(RESULT), &text)?;
    discard(directory, keep, *needed)?;
    Ok(Some(result))
}

impl SubRun {
    /// What was kept of it, if it is finished.
    ///
    /// # Errors
    /// A result that cannot be read, or that was made with other settings.
    pub fn result(&self) -> anyhow::Result<Option<RunResult>> {
        let path = self.config.output.join(RESULT);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("{}: cannot be read", path.display())),
        };
        let result = parse(&path, &text)?;
        if let Some((key, before, now)) = first_difference(&result.settings, &self.config, &[])? {
            bail!(
                "run {}: it was done with {key} = {before} and is now to have {now}; take that back, or choose another \
                 --output",
                self.name
            );
        }
        Ok(Some(result))
    }
}

/// The results of all runs in an experiment's directory whose names begin so, in the order of their seeds.
///
/// # Errors
/// A directory or a result that cannot be read.
pub fn results_below(directory: &Path, prefix: &str) -> anyhow::Result<Vec<RunResult>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut results = Vec::new();
    for entry in entries {
        let entry = entry?;
        let path = entry.path().join(RESULT);
        if entry.file_name().to_string_lossy().starts_with(prefix) && path.is_file() {
            let text =
                fs::read_to_string(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
            results.push(parse(&path, &text)?);
        }
    }
    results.sort_by_key(RunResult::seed);
    Ok(results)
}

fn parse(path: &Path, text: &str) -> anyhow::Result<RunResult> {
    serde_json::from_str(text).with_context(|| {
        format!("{}: not the result of a run; remove it, and the run is done again", path.display())
    })
}

/// Removes what a finished run is not to leave.
fn discard(directory: &Path, keep: Keep, needed: bool) -> anyhow::Result<()> {
    let unwanted: &[&str] = match keep {
        Keep::All => &[],
        Keep::None if !needed => &[STATE, LAST, BEST],
        Keep::None | Keep::Best => &[STATE, LAST],
    };
    for name in unwanted {
        let path = directory.join(name);
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("{}: cannot be removed", path.display()))?;
        }
    }
    Ok(())
}
