//! A training step of each task on two backends, side by side.

use std::path::Path;

use super::{Prepared, initial_parameters, prepare};
use crate::backend::{Backend, Sizes};
use crate::data::masked::hiding;
use crate::data::masking::Predictions;
use crate::data::{Batch, Batching, Dataset};
use crate::nn::{Model, Recorded, extents};
use crate::tensor::{Precision, Space, Span};
use crate::train::check::{Report, Side, check};
use crate::train::config::RunConfig;
use crate::train::monitor::Monitor;

/// Runs the first examples of each task that `config` trains through a training step on both backends, operation by
/// operation, and says where they differ. Nothing is trained and no directory is written.
///
/// # Errors
/// As [`run`](super::run) before it begins.
pub fn compare(
    config: &RunConfig,
    cache: Option<&Path>,
    reference: &mut dyn Backend,
    other: &mut dyn Backend,
    monitor: &mut dyn Monitor,
) -> anyhow::Result<Vec<(String, Report)>> {
    config.train.validate()?;
    let tasks = prepare::tasks(config)?;
    let (sizes, tokenizer) = prepare::encoder(&config.model, config.train.dropout, config.tasks.is_empty())?;
    let Some(Prepared { tasks, data }) = prepare::data(config, tasks, &tokenizer, cache, monitor)? else {
        return Ok(Vec::new());
    };
    let model = Model::new(&sizes, &tasks);
    let parameters = initial_parameters(config, &model, &tokenizer, monitor)?;
    let mut reports = Vec::new();
    for (task, sets) in data.iter().enumerate().filter(|(_, sets)| !sets.train.is_empty()) {
        // Both run the batch as the other lays it out.
        let batch =
            first_examples(&sets.train, &config.train.batching(&tasks[task])?, other.line(), config.seed);
        let recorded = |precision: Precision| {
            model.clone().with_precision(precision).training(task, extents(&batch), 1.0, false)
        };
        let (exact, narrow) = (recorded(reference.precision()), recorded(other.precision()));
        make_ready(reference, &exact, &parameters)?;
        make_ready(other, &narrow, &parameters)?;
        let reference = Side { backend: &mut *reference, recorded: &exact };
        let other = Side { backend: &mut *other, recorded: &narrow };
        reports.push((tasks[task].name.clone(), check(reference, other, &batch, config.seed)?));
    }
    Ok(reports)
}

fn first_examples(dataset: &Dataset, batching: &Batching, line: usize, seed: u64) -> Batch {
    let mut batch = Batch::new(line);
    let examples: Vec<u32> = (0..dataset.len() as u32).collect();
    let first = batching.cut(dataset, &examples).swap_remove(0);
    batch.fill(dataset, &examples[first]);
    if let Some(masking) = &dataset.masking {
        batch.hide(masking, &mut hiding(seed, 0), &mut Predictions::default());
    }
    batch
}

fn make_ready(backend: &mut dyn Backend, recorded: &Recorded, parameters: &[f32]) -> anyhow::Result<()> {
    let (len, arena) = (parameters.len(), recorded.program.arena_len());
    backend.reserve(&Sizes { parameters: len, arena, training: true })?;
    let span = Span { space: Space::Parameters, offset: 0, len };
    Ok(backend.write(span, bytemuck::cast_slice(parameters))?)
}
