//! `predict --soft`: soft labels for a train file, from one model or the average of several.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use mtdnn_raw::data::{Split, TaskSpec, reader, soft};
use mtdnn_raw::train::prepare::train_examples;
use mtdnn_raw::train::signals::Stop;
use mtdnn_raw::train::teachers;

use super::console::Console;
use super::device::DeviceArgs;
use super::eval::Source;
use super::{Exit, Usage};

/// Writes the soft labels of `task`'s train examples in `data` to `output`.
pub(super) fn run(
    models: &[PathBuf],
    task: &str,
    data: &PathBuf,
    output: &Path,
    device: &DeviceArgs,
) -> anyhow::Result<Exit> {
    let source = Source::open(data)?;
    source.check_name("--task", task)?;
    let mut spec = source.task(task)?;
    if spec.kind.reads_tokens() {
        let usage = format!(
            "--task {task}: soft labels are for classification, regression and ranking, this is {}",
            spec.kind
        );
        return Err(Usage(usage).into());
    }
    if spec.files_of(Split::Train).next().is_none() {
        bail!("task {task}: {} has no train file of it, and soft labels are for one", data.display());
    }
    reader::learn_labels(&mut spec)?;
    let examples = train_examples(&spec)?;
    let mut backend = device.backend()?;
    let mut console = Console::new(0, Stop::on_signals()?);
    let answers = teachers::answer(models, task, &examples, &mut *backend, &mut console);
    console.clear();
    let Some(answers) = answers? else {
        bail!("stopped; nothing was written");
    };
    check_same(&spec, &answers.task)?;
    let names = models.iter().map(|model| model.display().to_string()).collect();
    let header = soft::file::Header::new(&answers.task, names, &examples);
    soft::file::write(output, &header, &answers.task, &examples, &answers.targets)
        .with_context(|| format!("--output {}", output.display()))?;
    let count = examples.len();
    eprintln!("{count} soft labels in {}; to train on them: soft_labels in the [[task]]", output.display());
    Ok(Exit::Done)
}

/// Refuses data of another kind, or with labels that the models do not know.
fn check_same(data: &TaskSpec, model: &TaskSpec) -> Result<(), Usage> {
    let known = |label: &String| model.labels.contains(label);
    if data.kind == model.kind && data.labels.len() == model.labels.len() && data.labels.iter().all(known) {
        return Ok(());
    }
    Err(Usage(format!(
        "--data: task {} is {} with labels {:?} there, and {} with labels {:?} in the model",
        data.name, data.kind, data.labels, model.kind, model.labels
    )))
}
