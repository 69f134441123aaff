//! What trained models answer, averaged: the soft labels of distillation (Liu et al. 2019, arXiv 1904.09482,
//! section 3.1).

use std::path::{Path, PathBuf};

use anyhow::bail;

use super::evaluate::{Predictor, evaluation_capacity};
use super::monitor::{Event, Monitor};
use crate::backend::{Backend, Sizes};
use crate::data::{Dataset, Example, TaskKind, TaskSpec, cache};
use crate::nn::{Model, directory};
use crate::tensor::{Space, Span};

/// The answers of a model, or of several together, to one task's examples.
#[derive(Clone, Debug)]
pub struct Answers {
    /// The task as the first model knows it.
    pub task: TaskSpec,
    /// The examples' token ids, of the first model.
    pub dataset: Dataset,
    /// For each sequence, in the order of the examples: the classes' probabilities, the candidate's, or the score.
    /// `[sequences, outputs]`
    pub targets: Vec<f32>,
}

/// The mean of what `models`, directories that `train` has written, answer to a task's examples: of probabilities, not of
/// logits. They may read other vocabularies; labels go by name. `None` if the monitor stops it.
///
/// # Errors
/// A model that cannot be read, that does not have the task, or whose task has other labels than the first one's.
pub fn answer(
    models: &[PathBuf],
    task: &str,
    examples: &[Example],
    backend: &mut dyn Backend,
    monitor: &mut dyn Monitor,
) -> anyhow::Result<Option<Answers>> {
    let mut average: Option<(Answers, Vec<f64>)> = None;
    for path in models {
        monitor.tell(Event::Note(&format!(
            "{} answers {} examples of {task}",
            path.display(),
            examples.len()
        )));
        let Some(one) = answer_of(path, task, examples, backend, monitor)? else { return Ok(None) };
        let Some((first, sum)) = &mut average else {
            let sum = one.targets.iter().copied().map(f64::from).collect();
            average = Some((one, sum));
            continue;
        };
        let places = places_of_labels(&first.task, &one.task).ok_or_else(|| {
            anyhow::anyhow!(
                "{}: task {task} has the labels {:?}, and in {} {:?}; models that are averaged answer the same",
                path.display(),
                one.task.labels,
                models[0].display(),
                first.task.labels
            )
        })?;
        let width = places.len();
        for (sums, row) in sum.chunks_exact_mut(width).zip(one.targets.chunks_exact(width)) {
            for (sum, &place) in sums.iter_mut().zip(&places) {
                *sum += f64::from(row[place]);
            }
        }
    }
    Ok(average.map(|(mut first, sum)| {
        first.targets = sum.into_iter().map(|sum| (sum / models.len() as f64) as f32).collect();
        first
    }))
}

/// Where each output of one task's head stands among those of another's; none if they do not answer the same.
fn places_of_labels(task: &TaskSpec, other: &TaskSpec) -> Option<Vec<usize>> {
    if task.kind != other.kind || task.labels.len() != other.labels.len() {
        return None;
    }
    match task.kind {
        TaskKind::Classification => {
            let place = |label: &String| other.labels.iter().position(|other| other == label);
            task.labels.iter().map(place).collect()
        }
        _ => Some(vec![0]),
    }
}

fn answer_of(
    path: &Path,
    name: &str,
    examples: &[Example],
    backend: &mut dyn Backend,
    monitor: &mut dyn Monitor,
) -> anyhow::Result<Option<Answers>> {
    let description = directory::require_description(path)?;
    let (config, tokenizer) = directory::read_encoder(path)?;
    let Some(number) = description.tasks.iter().position(|task| task.name == name) else {
        let names: Vec<&str> = description.tasks.iter().map(|task| task.name.as_str()).collect();
        bail!("{}: it has no task {name}; its tasks are {}", path.display(), names.join(", "));
    };
    let model = Model::new(&config, &description.tasks).with_precision(backend.precision());
    let mut values = vec![0.0f32; model.parameters().len()];
    directory::load_parameters(path, &model, 0, true, &mut values)?;
    let max_length = description.max_length.min(config.max_position_embeddings);
    let dataset = cache::tokenize(examples, &tokenizer, max_length);
    if dataset.truncated > 0 {
        monitor.tell(Event::Warning(&format!(
            "{} of {} sequences were cut to {max_length} tokens, the length of {}",
            dataset.truncated,
            dataset.sequences(),
            path.display()
        )));
    }
    let recorded = model.inference(&[number], evaluation_capacity([&dataset], backend.line()));
    let arena = recorded.program.arena_len();
    backend.reserve(&Sizes { parameters: values.len(), arena, training: false })?;
    let span = Span { space: Space::Parameters, offset: 0, len: values.len() };
    backend.write(span, bytemuck::cast_slice(&values))?;
    let mut predictor = Predictor::new(&model, &[number], &recorded, backend);
    let Some(logits) = predictor.logits(&dataset, &|| monitor.stop())? else { return Ok(None) };
    let task = description.tasks[number].clone();
    let mut targets = logits.into_iter().next().unwrap_or_default();
    if task.kind != TaskKind::Regression {
        let width = task.outputs();
        for example in 0..dataset.len() {
            let sequences = dataset.sequences_of(example);
            softmax(&mut targets[sequences.start * width..sequences.end * width], task.gamma);
        }
    }
    Ok(Some(Answers { task, dataset, targets }))
}

/// Logits into the probabilities of `gamma` times them: `exp(x - max) / sum`.
fn softmax(logits: &mut [f32], gamma: f32) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|logit| f64::from(gamma * (logit - largest)).exp()).collect();
    let sum: f64 = powers.iter().sum();
    logits.iter_mut().zip(powers).for_each(|(logit, power)| *logit = (power / sum) as f32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gamma_sharpens() {
        let mut logits = [0.0, 2f32.ln()];
        softmax(&mut logits, 2.0);
        // e^(2 ln 2) = 4 to 1.
        assert!((logits[1] - 0.8).abs() < 1e-6, "{logits:?}");
    }

    #[test]
    fn labels_go_by_name() {
        let task = |labels: &[&str]| TaskSpec {
            labels: labels.iter().map(|label| label.to_string()).collect(),
            ..TaskSpec::new("t", TaskKind::Classification)
        };
        let places = places_of_labels(&task(&["a", "b", "c"]), &task(&["c", "a", "b"]));
        assert_eq!(places, Some(vec![1, 2, 0]));
        assert_eq!(places_of_labels(&task(&["a", "b"]), &task(&["a", "x"])), None);
        assert_eq!(places_of_labels(&task(&["a", "b"]), &task(&["a", "b", "c"])), None);
        assert_eq!(places_of_labels(&task(&["a", "b"]), &TaskSpec::new("t", TaskKind::Ranking)), None);
    }
}
