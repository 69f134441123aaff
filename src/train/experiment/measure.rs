//! Measuring a model directory on the dev sets of a run's tasks, example by example.

use std::path::Path;

use anyhow::{Context, bail};

use super::answers::Answers;
use super::subrun::SetResult;
use crate::backend::{Backend, Sizes};
use crate::data::{Dataset, Split, TaskSpec, cache};
use crate::nn::{Model, directory};
use crate::tensor::{Space, Span};
use crate::train::config::RunConfig;
use crate::train::evaluate::{Predictor, evaluation_capacity, measure as metrics_of};
use crate::train::monitor::{Event, Monitor};
use crate::train::prepare;

/// Measures the model on the dev sets of all of `config`'s tasks that it knows, in their order there. `None` if the
/// monitor stops it.
///
/// # Errors
/// A directory that is no model with tasks, dev sets that cannot be read, a task of another kind in the model.
pub fn measure(
    config: &RunConfig,
    directory: &Path,
    cache: Option<&Path>,
    backend: &mut dyn Backend,
    monitor: &mut dyn Monitor,
) -> anyhow::Result<Option<Vec<SetResult>>> {
    let description = directory::require_description(directory)?;
    let (sizes, tokenizer) = directory::read_encoder(directory)?;
    let model = Model::new(&sizes, &description.tasks).with_precision(backend.precision());
    let mut values = vec![0.0f32; model.parameters().len()];
    directory::load_parameters(directory, &model, 0, true, &mut values)?;
    let max_length = description.max_length.min(sizes.max_position_embeddings);

    let mut results = Vec::new();
    for found in prepare::tasks(config)? {
        let Some(task) = description.tasks.iter().position(|task| task.name == found.name) else { continue };
        let known = &description.tasks[task];
        if known.kind != found.kind {
            bail!(
                "task {}: it is {} in {} and {} in the run file",
                found.name,
                known.kind,
                directory.display(),
                found.kind
            );
        }
        // Labels are numbered as the model numbers them.
        let spec = TaskSpec { files: found.files, ..known.clone() };
        let sets = match config.tasks.is_empty() {
            true => {
                let examples = prepare::sample_dev(&spec.name).context("not a built-in sample task")?;
                vec![("dev".to_string(), cache::tokenize(&examples, &tokenizer, max_length))]
            }
            false => {
                let read = |file| cache::prepare(file, &spec, &tokenizer, max_length, cache);
                let sets = spec.files_of(Split::Dev).map(|file| Ok((file.name.clone(), read(file)?.dataset)));
                sets.collect::<anyhow::Result<_>>()?
            }
        };
        let recorded =
            model.inference(&[task], evaluation_capacity(sets.iter().map(|(_, set)| set), backend.line()));
        let arena = recorded.program.arena_len();
        backend.reserve(&Sizes { parameters: values.len(), arena, training: false })?;
        let span = Span { space: Space::Parameters, offset: 0, len: values.len() };
        backend.write(span, bytemuck::cast_slice(&values))?;
        for (split, set) in &sets {
            let (examples, tokens) = (set.len(), set.ids.len());
            monitor.tell(Event::Measuring { task: &spec.name, set: split, examples, tokens });
            let mut predictor = Predictor::new(&model, &[task], &recorded, backend);
            let Some(logits) = predictor.logits(set, &|| monitor.stop())? else { return Ok(None) };
            results.push(set_result(&spec, split, set, &logits[0]));
        }
    }
    Ok(Some(results))
}

fn set_result(task: &TaskSpec, split: &str, set: &Dataset, logits: &[f32]) -> SetResult {
    SetResult {
        task: task.name.clone(),
        set: split.to_string(),
        examples: set.len(),
        metrics: metrics_of(task, set, logits),
        answers: Answers::of(task, set, logits),
    }
}
