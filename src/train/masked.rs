//! How a task of masked words is measured: batch by batch, so that the logits of a whole vocabulary are never kept.

use std::collections::HashMap;

use super::evaluate::EVALUATION_TOKENS;
use crate::backend::{Backend, BackendError, StepScalars};
use crate::data::batching::evaluation_batches;
use crate::data::{Batch, Dataset, Label, MetricKind, TaskSpec};
use crate::nn::{Recorded, extents};
use crate::tensor::Var;

/// The metrics of a set whose tokens are hidden, by the program of [`Model::evaluation`](crate::nn::Model::evaluation).
/// Ends early with `None` where `stop` says so between two batches.
pub fn measure(
    task: &TaskSpec,
    dataset: &Dataset,
    recorded: &Recorded,
    backend: &mut dyn Backend,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Vec<(MetricKind, f64)>>, BackendError> {
    let (mut words, mut loss, mut right, mut next_right) = (0.0, 0.0, 0.0, 0.0);
    let mut batch = Batch::new(backend.line());
    for examples in evaluation_batches(dataset, EVALUATION_TOKENS) {
        if stop() {
            return Ok(None);
        }
        batch.fill(dataset, &examples);
        let extents = extents(&batch);
        recorded.write(backend, &batch)?;
        let program = &recorded.program;
        backend.run(program, &StepScalars { extents, seed: 0, step: 0 })?;
        let mut read = |var: Var| {
            let mut values = vec![0.0f32; program.shape(var).len(&extents)];
            backend.read(program.span(var, &extents), bytemuck::cast_slice_mut(&mut values))?;
            Ok::<_, BackendError>(values)
        };
        let count = extents.predictions as f64;
        words += count;
        loss += count * f64::from(read(recorded.outputs[0])?[0]);
        right += count * f64::from(read(recorded.outputs[1])?[0]);
        if let Some(&next) = recorded.outputs.get(2) {
            for (logits, &label) in read(next)?.chunks_exact(2).zip(&batch.labels) {
                next_right += f64::from(u8::from((logits[1] > logits[0]) == (label == 1)));
            }
        }
    }
    let pairs = dataset.len().max(1) as f64;
    let words = f64::max(words, 1.0);
    let metric = |kind: MetricKind| match kind {
        MetricKind::MaskedAccuracy => right / words,
        MetricKind::NextAccuracy => next_right / pairs,
        MetricKind::Perplexity => (loss / words).exp(),
        other => panic!("{other} does not measure {}", task.kind),
    };
    Ok(Some(task.metrics.iter().map(|&kind| (kind, metric(kind))).collect()))
}

/// What is reached by who knows how often each token is hidden in the set and reads nothing: the share of the most
/// frequent one, and the exponential of the entropy; of next sentences the share of the more frequent answer.
pub(super) fn baseline(task: &TaskSpec, set: &Dataset) -> Vec<f64> {
    let mut counts: HashMap<u32, usize> = HashMap::new();
    set.marks.classes.iter().for_each(|&class| *counts.entry(class).or_default() += 1);
    // In one order, so that the sum is the same in every run.
    let mut counts: Vec<usize> = counts.into_values().collect();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    let words = set.marks.len().max(1) as f64;
    let shares = counts.iter().map(|&count| count as f64 / words);
    let random = set.labels.iter().filter(|label| **label == Label::Class(1)).count() as f64;
    let random = random / set.len().max(1) as f64;
    let metric = |kind: &MetricKind| match kind {
        MetricKind::MaskedAccuracy => shares.clone().next().unwrap_or_default(),
        MetricKind::NextAccuracy => random.max(1.0 - random),
        MetricKind::Perplexity => (-shares.clone().map(|p| p * p.ln()).sum::<f64>()).exp(),
        other => panic!("{other} does not measure {}", task.kind),
    };
    task.metrics.iter().map(metric).collect()
}
