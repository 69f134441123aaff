//! Measuring a model: predictions for a whole set, and the metrics of a task.

use serde::{Deserialize, Serialize};

use super::metrics;
use crate::backend::{Backend, BackendError, StepScalars};
use crate::data::sampler::evaluation_batches;
use crate::data::{Batch, Capacity, Dataset, Label, MetricKind, Packing, TaskSpec};
use crate::nn::{Model, Recorded, extents};
use crate::tensor::{Extents, Var};

/// Tokens of an evaluation batch, unless a single example is longer.
pub const EVALUATION_TOKENS: usize = 4096;

/// The figures of one task on one set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The task's number in the model.
    pub task: usize,
    /// The set's name: `dev`, or `dev_matched` where there are several.
    pub split: String,
    /// The number of examples measured.
    pub examples: usize,
    /// The task's metrics, the main one first. Shares and correlations, at most 1.
    pub metrics: Vec<(MetricKind, f64)>,
    /// The accuracy of each step of a stochastic answer network by itself, where it was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<f64>,
}

/// Runs an inference program over whole sets, batches of like length together.
pub struct Predictor<'a> {
    backend: &'a mut dyn Backend,
    recorded: &'a Recorded,
    /// What is read after each batch, and its columns.
    outputs: Vec<(Var, usize)>,
}

impl<'a> Predictor<'a> {
    /// For the program of [`Model::inference`] of the same `tasks`.
    pub fn new(model: &Model, tasks: &[usize], recorded: &'a Recorded, backend: &'a mut dyn Backend) -> Self {
        let outputs = recorded.outputs.iter().zip(tasks);
        let outputs = outputs.map(|(&output, &task)| (output, model.tasks()[task].outputs())).collect();
        Self { backend, recorded, outputs }
    }

    /// The same, which then also tells the logits of each step of each task's stochastic answer network, after the answers
    /// of all tasks.
    pub fn with_steps(mut self) -> Self {
        for (task, steps) in self.recorded.steps.iter().enumerate() {
            let (_, width) = self.outputs[task];
            self.outputs.extend(steps.iter().map(|&step| (step, width)));
        }
        self
    }

    /// The logits of every sequence of a set in the set's order, `[sequences, outputs]` for each task.
    ///
    /// Ends early with `None` where `stop` says so between two batches.
    pub fn logits(
        &mut self,
        dataset: &Dataset,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<Vec<f32>>>, BackendError> {
        let mut batch = Batch::new(self.backend.line());
        let mut all: Vec<Vec<f32>> =
            self.outputs.iter().map(|(_, width)| vec![0.0; dataset.sequences() * width]).collect();
        let mut rows: Vec<f32> = Vec::new();
        for examples in evaluation_batches(dataset, EVALUATION_TOKENS) {
            if stop() {
                return Ok(None);
            }
            batch.fill(dataset, &examples);
            let extents = extents(&batch);
            self.recorded.write(self.backend, &batch)?;
            self.backend.run(&self.recorded.program, &StepScalars { extents, seed: 0, step: 0 })?;
            for (&(output, width), logits) in self.outputs.iter().zip(&mut all) {
                rows.resize(extents.sequences * width, 0.0);
                let span = self.recorded.program.span(output, &extents);
                self.backend.read(span, bytemuck::cast_slice_mut(&mut rows))?;
                let mut from = 0;
                for &example in &examples {
                    for sequence in dataset.sequences_of(example as usize) {
                        logits[sequence * width..][..width].copy_from_slice(&rows[from..from + width]);
                        from += width;
                    }
                }
            }
        }
        Ok(Some(all))
    }
}

/// The room that evaluating any of these sets needs, in lines of `line` rows.
pub fn evaluation_capacity<'a>(sets: impl IntoIterator<Item = &'a Dataset>, line: usize) -> Extents {
    let mut capacity = Extents::default();
    let packing = Packing::new(line);
    for dataset in sets {
        for examples in evaluation_batches(dataset, EVALUATION_TOKENS) {
            let sum = |count: &dyn Fn(usize) -> usize| examples.iter().map(|&e| count(e as usize)).sum();
            let tokens = sum(&|example| dataset.tokens_of(example));
            let sequences = sum(&|example| dataset.sequences_of(example).len());
            let tokens = packing.most_rows(tokens, sequences, dataset.longest());
            capacity = capacity.max(&Extents { tokens, sequences, groups: examples.len(), predictions: 0 });
        }
    }
    capacity
}

/// The room that training on batches of `batch_size` examples of a set needs, in lines of `line` rows.
pub fn training_capacity(dataset: &Dataset, batch_size: usize, line: usize) -> Extents {
    let Capacity { tokens, sequences, groups } = Capacity::of(dataset, batch_size, line);
    Extents { tokens, sequences, groups, predictions: 0 }
}

/// A task's metrics from its logits over a labelled set, `[sequences, outputs]`.
pub fn measure(task: &TaskSpec, dataset: &Dataset, logits: &[f32]) -> Vec<(MetricKind, f64)> {
    let outputs = task.outputs();
    let mut classes = Vec::new();
    let mut scores = Vec::new();
    let mut positives = Vec::new();
    for label in &dataset.labels {
        match *label {
            Label::Class(class) => classes.push(class),
            Label::Score(score) => scores.push(score),
            Label::Positive(index) => positives.push(index),
            Label::None => panic!("an example of {} without a label cannot be measured", task.name),
        }
    }
    let predicted: Vec<u32> = logits.chunks_exact(outputs).map(argmax).collect();
    let metric = |kind: MetricKind| match kind {
        MetricKind::Accuracy => metrics::accuracy(&predicted, &classes),
        MetricKind::F1 => metrics::f1_among(outputs, &predicted, &classes),
        MetricKind::Mcc => metrics::mcc(&predicted, &classes),
        MetricKind::Pearson => metrics::pearson(logits, &scores),
        MetricKind::Spearman => metrics::spearman(logits, &scores),
        MetricKind::AccuracyAt1 => metrics::accuracy_at_1(logits, &dataset.groups, &positives),
        MetricKind::Mrr => metrics::mrr(logits, &dataset.groups, &positives),
        MetricKind::Map => metrics::mean_average_precision(logits, &dataset.groups, &positives),
    };
    task.metrics.iter().map(|&kind| (kind, metric(kind))).collect()
}

/// The accuracy of each step of a stochastic answer network by itself, from the steps' logits over a labelled set.
pub fn measure_steps(task: &TaskSpec, dataset: &Dataset, steps: &[Vec<f32>]) -> Vec<f64> {
    let task = TaskSpec { metrics: vec![MetricKind::Accuracy], ..task.clone() };
    steps.iter().map(|logits| measure(&task, dataset, logits)[0].1).collect()
}

/// The first of the largest; NaN is never larger.
pub fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (index, &value) in row.iter().enumerate() {
        if value > row[best] || row[best].is_nan() {
            best = index;
        }
    }
    best as u32
}
