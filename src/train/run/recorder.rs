//! What a run writes down: its log, its checkpoints, its models.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::{Event, LOG, Monitor};
use crate::data::{Dataset, TaskSpec, Tokenizer};
use crate::train::checkpoint::{self, State};
use crate::train::evaluate::Evaluation;
use crate::train::log::Log;
use crate::train::store::{BEST, LAST, STATE};
use crate::train::trainer::{Observer, Progress, StepReport, Trainer};

/// Writes down and saves what the trainer does.
pub(super) struct Recorder<'a> {
    pub(super) run: &'a Path,
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) max_length: usize,
    pub(super) tasks: &'a [TaskSpec],
    pub(super) fingerprints: Vec<String>,
    pub(super) log: Log,
    pub(super) monitor: &'a mut dyn Monitor,
    /// The figures of the best evaluation, or of the last one measured before there is a best.
    pub(super) best: Vec<Evaluation>,
    pub(super) seconds_before: f64,
    /// Directories whose last save failed, and why.
    pub(super) unsaved: BTreeMap<&'static str, anyhow::Error>,
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
    /// Seconds of the whole run.
    pub(super) fn seconds(&self) -> f64 {
        self.seconds_before + self.monitor.seconds()
    }

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

    /// Keeps training when a save fails: the earlier directory is as it was, and the next save may succeed.
    fn saved(&mut self, name: &'static str, result: anyhow::Result<()>) {
        match result {
            Ok(()) => {
                self.unsaved.remove(name);
            }
            Err(error) => self.failed(name, error),
        }
    }

    /// Appends a line to the log; one that is lost does not stop training either.
    fn append(&mut self, line: &impl Serialize) {
        if let Err(error) = self.log.append(line)
            && !self.unsaved.contains_key(LOG)
        {
            self.failed(LOG, error.into());
        }
    }

    fn failed(&mut self, name: &'static str, error: anyhow::Error) {
        self.monitor.tell(Event::Warning(&format!("NOT SAVED: {error:#}. Training goes on")));
        self.unsaved.insert(name, error);
    }

    /// Whether all that was to be kept is kept.
    pub(super) fn finish(&mut self) -> anyhow::Result<()> {
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
            step: report.step,
            epoch: report.epoch,
            task: &self.tasks[report.task].name,
            loss: report.loss,
            update: report.update.map(|update| update.number),
            gradient_norm: report.update.map(|update| update.gradient_norm),
            learning_rate: report.update.map(|update| update.learning_rate),
            tokens: report.tokens,
            examples: report.examples,
            seconds: self.seconds(),
        };
        self.append(&line);
        self.monitor.tell(Event::Step { progress, report });
        Ok(())
    }

    fn measuring(&mut self, task: usize, set: &str, examples: &Dataset) {
        let task = &self.tasks[task].name;
        self.monitor.tell(Event::Measuring {
            task,
            set,
            examples: examples.len(),
            tokens: examples.ids.len(),
        });
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
            self.append(&line);
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
        if let Err(error) = self.log.sync() {
            self.failed(LOG, error.into());
        }
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
