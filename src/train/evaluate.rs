//! Measuring a model: predictions for a whole set, and the metrics of a task.

use serde::{Deserialize, Serialize};

use super::{entities, metrics, spans};
use crate::backend::{Backend, BackendError, StepScalars};
use crate::data::batch::NO_LABEL;
use crate::data::batching::evaluation_batches;
use crate::data::{Batch, Batching, Capacity, Dataset, Label, MetricKind, Packing, TaskKind, TaskSpec};
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
    /// The task's metrics, the main one first. Shares and correlations, at most 1, but for a perplexity.
    pub metrics: Vec<(MetricKind, f64)>,
    /// The accuracy of each step of a stochastic answer network by itself, where it was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<f64>,
}

/// Runs an inference program over whole sets, batches of like length together.
pub struct Predictor<'a> {
    backend: &'a mut dyn Backend,
    recorded: &'a Recorded,
    /// What is read after each batch, its columns, and whether its rows are the set's marks instead of its sequences.
    outputs: Vec<(Var, usize, bool)>,
}

impl<'a> Predictor<'a> {
    /// For the program of [`Model::inference`] of the same `tasks`.
    pub fn new(model: &Model, tasks: &[usize], recorded: &'a Recorded, backend: &'a mut dyn Backend) -> Self {
        let outputs = recorded.outputs.iter().zip(tasks);
        let outputs = outputs.map(|(&output, &task)| {
            let spec = &model.tasks()[task];
            (output, spec.outputs(), spec.kind.reads_tokens())
        });
        Self { backend, recorded, outputs: outputs.collect() }
    }

    /// The same, which then also tells the logits of each step of each task's stochastic answer network, after the answers
    /// of all tasks.
    pub fn with_steps(mut self) -> Self {
        for (task, steps) in self.recorded.steps.iter().enumerate() {
            let (_, width, of_marks) = self.outputs[task];
            self.outputs.extend(steps.iter().map(|&step| (step, width, of_marks)));
        }
        self
    }

    /// The logits of every sequence of a set in the set's order, `[sequences, outputs]` for each task, or of every mark,
    /// `[marks, outputs]`, where the head reads marked tokens; zeros for those that were cut off.
    ///
    /// Ends early with `None` where `stop` says so between two batches.
    pub fn logits(
        &mut self,
        dataset: &Dataset,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<Vec<f32>>>, BackendError> {
        let mut batch = Batch::new(self.backend.line());
        let rows_of = |of_marks| if of_marks { dataset.marks.len() } else { dataset.sequences() };
        let mut all: Vec<Vec<f32>> =
            self.outputs.iter().map(|&(_, width, of_marks)| vec![0.0; rows_of(of_marks) * width]).collect();
        let mut rows: Vec<f32> = Vec::new();
        for examples in evaluation_batches(dataset, EVALUATION_TOKENS) {
            if stop() {
                return Ok(None);
            }
            batch.fill(dataset, &examples);
            let extents = extents(&batch);
            self.recorded.write(self.backend, &batch)?;
            self.backend.run(&self.recorded.program, &StepScalars { extents, seed: 0, step: 0 })?;
            for (&(output, width, of_marks), logits) in self.outputs.iter().zip(&mut all) {
                let count = if of_marks { extents.predictions } else { extents.sequences };
                rows.resize(count * width, 0.0);
                let span = self.recorded.program.span(output, &extents);
                self.backend.read(span, bytemuck::cast_slice_mut(&mut rows))?;
                let mut from = 0;
                let mut take = |row: usize| {
                    logits[row * width..][..width].copy_from_slice(&rows[from..from + width]);
                    from += width;
                };
                for sequence in examples.iter().flat_map(|&example| dataset.sequences_of(example as usize)) {
                    let marks = dataset.marks.of(sequence).filter(|&mark| dataset.marks.is_read(mark));
                    match of_marks {
                        true => marks.for_each(&mut take),
                        false => take(sequence),
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
            let predictions = sum(&|example| dataset.marked_of(example));
            capacity = capacity.max(&Extents {
                tokens,
                sequences,
                groups: examples.len(),
                predictions,
                in_lines: false,
            });
        }
    }
    capacity
}

/// The room that training on such batches of a set needs, in lines of `line` rows.
pub fn training_capacity(dataset: &Dataset, batching: &Batching, line: usize) -> Extents {
    let Capacity { tokens, sequences, groups, predictions, soft: _ } = Capacity::of(dataset, batching, line);
    Extents { tokens, sequences, groups, predictions, in_lines: false }
}

/// A task's metrics from its logits over a labelled set, `[sequences, outputs]`, or `[marks, outputs]` where its head reads
/// marked tokens.
pub fn measure(task: &TaskSpec, dataset: &Dataset, logits: &[f32]) -> Vec<(MetricKind, f64)> {
    let outputs = task.outputs();
    match task.kind {
        TaskKind::Labelling => return entities::measure(task, dataset, &labels(dataset, logits, outputs)),
        TaskKind::Span => return spans::measure(task, dataset, logits),
        TaskKind::Masked => panic!("masked words are measured without logits: masked::measure"),
        TaskKind::Classification | TaskKind::Regression | TaskKind::Ranking => {}
    }
    let mut classes = Vec::new();
    let mut scores = Vec::new();
    let mut positives = Vec::new();
    for label in &dataset.labels {
        match *label {
            Label::Class(class) => classes.push(class),
            Label::Score(score) => scores.push(score),
            Label::Positive(index) => positives.push(index),
            Label::None | Label::Tags | Label::Answers | Label::Span { .. } => {
                panic!("an example of {} without a label of its kind cannot be measured", task.name)
            }
        }
    }
    let predicted: Vec<u32> = logits.chunks_exact(outputs).map(argmax).collect();
    let metric = |kind: MetricKind| match kind {
        MetricKind::Accuracy => metrics::accuracy(&predicted, &classes),
        MetricKind::F1 => metrics::f1_among(outputs, &predicted, &classes),
        MetricKind::F1Macro => metrics::macro_f1(&predicted, &classes),
        MetricKind::F1Micro => metrics::micro_f1(&predicted, &classes),
        MetricKind::Auc => metrics::auc(logits, outputs, &classes),
        MetricKind::Mcc => metrics::mcc(&predicted, &classes),
        MetricKind::Pearson => metrics::pearson(logits, &scores),
        MetricKind::Spearman => metrics::spearman(logits, &scores),
        MetricKind::AccuracyAt1 => metrics::accuracy_at_1(logits, &dataset.groups, &positives),
        MetricKind::Mrr => metrics::mrr(logits, &dataset.groups, &positives),
        MetricKind::Map => metrics::mean_average_precision(logits, &dataset.groups, &positives),
        other => panic!("{other} does not measure {}", task.kind),
    };
    task.metrics.iter().map(|&kind| (kind, metric(kind))).collect()
}

/// The accuracy of each step of a stochastic answer network by itself, from the steps' logits over a labelled set.
pub fn measure_steps(task: &TaskSpec, dataset: &Dataset, steps: &[Vec<f32>]) -> Vec<f64> {
    let task = TaskSpec { metrics: vec![MetricKind::Accuracy], ..task.clone() };
    steps.iter().map(|logits| measure(&task, dataset, logits)[0].1).collect()
}

/// The class of each word of a set from the logits of its marks, `[marks, classes]`; [`NO_LABEL`] for a word that was cut
/// off.
pub fn labels(dataset: &Dataset, logits: &[f32], classes: usize) -> Vec<u32> {
    let rows = logits.chunks_exact(classes).enumerate();
    rows.map(|(mark, row)| if dataset.marks.is_read(mark) { argmax(row) } else { NO_LABEL }).collect()
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
