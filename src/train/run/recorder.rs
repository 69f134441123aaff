//! What a run writes down: its log, its checkpoints, its models.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::data::{Dataset, TaskSpec, Tokenizer};
use crate::nn::{Model, directory};
use crate::train::checkpoint::State;
use crate::train::evaluate::Evaluation;
use crate::train::keeper::Keeper;
use crate::train::monitor::Event;
use crate::train::store::{BEST, LAST};
use crate::train::trainer::{Observer, Progress, StepReport, Trainer};

/// Writes down and saves what the trainer does.
pub(super) struct Recorder<'a> {
    pub(super) keeper: Keeper<'a>,
    pub(super) model: &'a Model,
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) max_length: usize,
    pub(super) tasks: &'a [TaskSpec],
    pub(super) fingerprints: Vec<String>,
    /// The figures of the best evaluation, or of the last one measured before there is a best.
    pub(super) best: Vec<Evaluation>,
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
    fn save_model(&mut self, name: &'static str, trainer: &mut Trainer<'_>) {
        let Self { model, tokenizer, max_length, .. } = *self;
        let updates = trainer.progress().updates;
        let write =
            move |path: &Path, values: &[f32]| directory::save(path, model, tokenizer, max_length, values);
        self.keeper.save_model(name, updates, model.parameters(), tokenizer, trainer.backend(), write);
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
            seconds: self.keeper.seconds(),
        };
        self.keeper.append(&line);
        self.keeper.monitor.tell(Event::Step { progress, report });
        Ok(())
    }

    fn measuring(&mut self, task: usize, set: &str, examples: &Dataset) {
        let task = &self.tasks[task].name;
        self.keeper.monitor.tell(Event::Measuring {
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
                seconds: self.keeper.seconds(),
            };
            self.keeper.append(&line);
        }
        if progress.best.as_ref().is_none_or(|best| mean > best.mean) {
            self.best = evaluations.to_vec();
        }
        self.keeper.monitor.tell(Event::Evaluated { progress, evaluations, mean });
        Ok(())
    }

    fn best(&mut self, trainer: &mut Trainer<'_>) -> anyhow::Result<()> {
        self.save_model(BEST, trainer);
        Ok(())
    }

    fn checkpoint(&mut self, trainer: &mut Trainer<'_>) -> anyhow::Result<()> {
        let updates = trainer.progress().updates;
        let state = State {
            progress: trainer.progress().clone(),
            log_offset: self.keeper.sync_log(updates),
            data: self.fingerprints.clone(),
            evaluations: self.best.clone(),
            seconds: self.keeper.seconds(),
        };
        let parameters = self.model.parameters().len();
        self.keeper.save_state(updates, &state, parameters, trainer.backend());
        self.save_model(LAST, trainer);
        Ok(())
    }

    fn stop(&self) -> bool {
        self.keeper.monitor.stop()
    }
}
