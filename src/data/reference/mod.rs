//! The files of MT-DNN's own code, read as they are: its task definitions in YAML, its canonical TSV, and the JSON lines
//! of token ids that its preprocessing makes of that.
//!
//! [`definition`] reads the YAML and checks every key; [`names`] says what each name in it means here, or why it means
//! nothing; [`files`] finds a task's files; [`hypotheses`], [`tokens`] and [`spans`] read what is laid out as no other file is.

mod definition;
mod files;
pub(super) mod hypotheses;
mod names;
mod spans;
pub(super) mod tokens;

use std::path::Path;

use super::error::{DataError, list, nearest_name};
use super::soft::{SoftLabels, SoftSource};
use super::task::{Split, TaskSpec};
use definition::Definition;

/// The task that a task-definition file calls `name`, with the files of it in `data`, or in the folder of token ids that
/// `data` holds.
///
/// # Errors
/// A file that is no task definition, a name in it that means nothing here, a task that is not in it, or no files.
pub fn task(path: &Path, name: &str, data: &Path) -> Result<TaskSpec, DataError> {
    let definitions = definition::read(path)?;
    let found = definitions.iter().find(|definition| definition.name == name);
    let definition = found.ok_or_else(|| {
        let names = || definitions.iter().map(|definition| definition.name.as_str());
        let near = nearest_name(name, names()).map(|near| format!("; did you mean {near:?}?"));
        let known = list(names());
        wrong(path, format!("no task {name:?} in it ({known}){}", near.unwrap_or_default()))
    })?;
    let mut spec = definition.spec(path)?;
    let found = files::find(definition, data)?;
    if let Some(masked) = &mut spec.masked {
        let of = |split| found.iter().filter(move |file| file.split == split).map(|file| file.path.clone());
        (masked.text, masked.dev_text) = (of(Split::Train).collect(), of(Split::Dev).collect());
        return Ok(spec);
    }
    spec.files = found.into_iter().map(|file| files::source(definition, file)).collect();
    if tokens::have_soft_labels(&spec)? {
        spec.soft = Some(SoftLabels::new(&spec.name, spec.kind, SoftSource::TokenLines, None, None)?);
    }
    Ok(spec)
}

/// The names of the tasks that a task-definition file defines, each with whether `data` holds a file to train it on.
///
/// # Errors
/// As [`task`], but for the means of tasks that are not asked for.
pub fn tasks(path: &Path, data: &Path) -> Result<Vec<(String, bool)>, DataError> {
    let definitions = definition::read(path)?;
    let trainable = |definition: &Definition| match files::find(definition, data) {
        Ok(files) => Ok(files.iter().any(|file| file.split == Split::Train)),
        Err(DataError::NoFile { .. }) => Ok(false),
        Err(error) => Err(error),
    };
    definitions.iter().map(|definition| Ok((definition.name.clone(), trainable(definition)?))).collect()
}

/// The task that a dataset's name means: what stands before the first `_` (`mnli_matched` is of `mnli`).
pub fn task_of(dataset: &str) -> &str {
    dataset.split('_').next().unwrap_or(dataset)
}

fn wrong(path: &Path, reason: String) -> DataError {
    DataError::Definition { path: path.to_path_buf(), reason }
}
