//! `--task-def`: tasks as MT-DNN's own code defines them.

use std::path::Path;

use anyhow::bail;
use mtdnn_raw::data::{TaskEntry, reference};

use super::{named_twice, unknown_task};

/// Entries for the tasks of a task-definition file that are named, by a dataset's name too (`mnli_matched`); for all that
/// `data` holds a training file of if none are.
pub(super) fn entries(
    definition: &Path,
    data: &Path,
    names: Option<&[String]>,
) -> anyhow::Result<Vec<TaskEntry>> {
    if !data.is_dir() {
        bail!("--data {}: no such folder; it should hold the files of --task-def's tasks", data.display());
    }
    let tasks = reference::tasks(definition, data)?;
    let entry = |name: &str| TaskEntry {
        name: name.to_string(),
        data: Some(data.to_path_buf()),
        task_def: Some(definition.to_path_buf()),
        ..TaskEntry::default()
    };
    let Some(names) = names else {
        let (here, absent): (Vec<_>, Vec<_>) = tasks.iter().partition(|(_, trainable)| *trainable);
        let listed = |tasks: &[&(String, bool)]| {
            tasks.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
        };
        if here.is_empty() {
            bail!("--data {}: no file to train on of {}", data.display(), listed(&absent));
        }
        if !absent.is_empty() {
            eprintln!(
                "left out, because {} has no file to train them on: {}",
                data.display(),
                listed(&absent)
            );
        }
        return Ok(here.iter().map(|(name, _)| entry(name)).collect());
    };
    let mut entries: Vec<TaskEntry> = Vec::new();
    for name in names.iter().map(|name| name.trim()) {
        let task = reference::task_of(name);
        let known = tasks.iter().map(|(known, _)| known.as_str());
        if !known.clone().any(|known| known == task) {
            return Err(unknown_task("--tasks", name, "a task of --task-def", known).into());
        }
        match entries.iter().any(|entry| entry.name == task) {
            // A dataset of a task that another of its datasets has named.
            true if task != name => {}
            true => return Err(named_twice("--tasks", name).into()),
            false => entries.push(entry(task)),
        }
    }
    Ok(entries)
}
