//! Experiments: several runs, what is kept of each, and the figures made of them all.
//!
//! An experiment is a list of [`SubRun`]s. Each is an ordinary run in a directory of its own, and is done once: its
//! [`RunResult`] stands in its directory, and whoever does the experiment again takes it from there, goes on with the run
//! that was cut off, and begins those that were not. Nothing but the results goes into the figures, so that an experiment
//! that was interrupted ends with the same bytes as one that was not.

pub mod ablate;
pub mod adapt;
pub mod answers;
pub mod config;
pub mod finetune;
pub mod measure;
pub mod published;
pub mod seeds;
pub mod statistics;
mod subrun;

pub use subrun::{RunResult, SetResult, SubRun, model_of, perform, replace_file, results_below};

use anyhow::bail;

use super::config::{EvalEvery, RunConfig};
use crate::data::{HeadKind, TaskEntry, TaskKind};

/// A run of `tasks` as `config` describes it, in the directory `name` below the experiment's.
fn sub_run(
    config: &RunConfig,
    output: &std::path::Path,
    name: String,
    kind: String,
    seed: u64,
    tasks: Vec<TaskEntry>,
) -> SubRun {
    let output = output.join(&name);
    let config = RunConfig { output, seed, tasks, pretrain: None, ..config.clone() };
    SubRun { name, kind, config, needed: false }
}

/// Takes the encoder of a model directory as the start.
fn start_from(sub_run: &mut SubRun, model: &std::path::Path, new_heads: bool) -> anyhow::Result<()> {
    sub_run.config.model.init = Some(std::path::absolute(model)?);
    sub_run.config.model.config = None;
    sub_run.config.model.vocabulary = None;
    sub_run.config.model.new_heads = new_heads;
    Ok(())
}

/// A task as BERT's authors would have it: a linear head on the pooled vector, and where a known task is cast as ranking,
/// a label for each pair.
fn plain(entry: &TaskEntry) -> TaskEntry {
    let head = entry.head.filter(|&head| head == HeadKind::Linear);
    let plain = TaskEntry { head, san: None, ..entry.clone() };
    let mut pairs = plain.clone();
    (pairs.gamma, pairs.relevance) = (None, None);
    (pairs.kind, pairs.metrics) = (None, None);
    let is = |entry: &TaskEntry, kind| entry.resolve().is_ok_and(|task| task.kind == kind);
    match is(&plain, TaskKind::Ranking) && is(&pairs, TaskKind::Classification) {
        true => pairs,
        false => plain,
    }
}

/// What every experiment asks of a run file.
fn check(config: &RunConfig, what: &str) -> anyhow::Result<()> {
    if config.tasks.is_empty() {
        bail!("{what} needs tasks by name: a run file with [[task]], or --data GLUE_DIR");
    }
    if config.train.eval == EvalEvery::Never {
        bail!(
            "train.eval: {what} compares by the dev sets, so they must be measured; leave eval out, or give epoch"
        );
    }
    Ok(())
}

/// The figures of several runs of one seed, each on its own tasks, as those of one.
///
/// # Panics
/// If there are none.
pub fn merge(results: &[&RunResult]) -> RunResult {
    let sets = results.iter().flat_map(|result| result.sets.iter().cloned()).collect();
    let examples = results.iter().flat_map(|result| result.examples.iter().cloned()).collect();
    let seconds = results.iter().map(|result| result.seconds).sum();
    RunResult { sets, examples, seconds, ..results[0].clone() }
}
