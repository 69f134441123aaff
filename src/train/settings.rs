//! A run directory and the settings that it was begun with.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::keeper::LOG;
use super::store::{BEST, LAST, STATE};
use crate::tensor::Program;

/// The settings of a run in its directory.
pub const CONFIG: &str = "config.toml";
/// The planned programs of a run in its directory.
pub const PLAN: &str = "plan.txt";

/// Keys that a resumed run may have otherwise: they change when is looked, not what is computed, and the directory may
/// have been moved.
const FREE_KEYS: [&str; 8] = [
    "output",
    "train.eval",
    "train.patience",
    "train.checkpoint_every",
    "pretrain.output",
    "pretrain.corpus",
    "pretrain.eval_every",
    "pretrain.checkpoint_every",
];

/// Refuses a directory with another run's results, and one whose settings are not these.
pub(super) fn check_output(
    run: &Path,
    config: &(impl Serialize + DeserializeOwned),
    resume: bool,
) -> anyhow::Result<()> {
    let path = run.join(CONFIG);
    let saved = match fs::read_to_string(&path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let holds_a_run = [STATE, LAST, BEST, LOG].iter().any(|name| run.join(name).exists());
    if holds_a_run && !resume {
        bail!(
            "{} already holds a run: go on with it with --resume, or choose another --output; nothing was changed",
            run.display()
        );
    }
    let Some(saved) = saved else { return Ok(()) };
    let Ok(saved) = read(&saved, config) else {
        bail!("{} is not the settings of a run; choose another --output, so that it is kept", path.display());
    };
    match first_difference(&saved, config, &FREE_KEYS)? {
        Some((key, before, now)) if resume => bail!(
            "--resume: {key} was {before} and is now {now}; a run goes on only as it began. Take {} back, or start \
             another run with another --output",
            key.rsplit('.').next().unwrap_or(&key)
        ),
        _ => Ok(()),
    }
}

/// A saved configuration of the kind of `_like`.
fn read<Config: DeserializeOwned>(text: &str, _like: &Config) -> Result<Config, toml::de::Error> {
    toml::from_str(text)
}

/// The first key that two configurations have otherwise, and both values; those of `free` may differ. The directory's own
/// name does not count: it may have been moved.
pub(super) fn first_difference<Config: Serialize>(
    saved: &Config,
    now: &Config,
    free: &[&str],
) -> anyhow::Result<Option<(String, String, String)>> {
    let flat = |config: &Config| {
        let mut keys = Vec::new();
        flatten(String::new(), &toml::Value::try_from(config)?, &mut keys);
        anyhow::Ok(keys.into_iter().filter(|(key, _)| key != "output").collect::<Vec<_>>())
    };
    let (saved, now) = (flat(saved)?, flat(now)?);
    let value = |keys: &[(String, String)], key: &str| {
        keys.iter().find(|(other, _)| other == key).map_or("not set".to_string(), |(_, value)| value.clone())
    };
    let all = saved.iter().chain(&now).map(|(key, _)| key).filter(|key| !free.contains(&key.as_str()));
    Ok(all
        .map(|key| (key.clone(), value(&saved, key), value(&now, key)))
        .find(|(_, before, now)| before != now))
}

fn flatten(key: String, value: &toml::Value, keys: &mut Vec<(String, String)>) {
    let below = |name: &str| if key.is_empty() { name.to_string() } else { format!("{key}.{name}") };
    match value {
        toml::Value::Table(table) => table.iter().for_each(|(name, value)| flatten(below(name), value, keys)),
        toml::Value::Array(values) if values.iter().any(toml::Value::is_table) => {
            for (index, value) in values.iter().enumerate() {
                let name = value.get("name").and_then(toml::Value::as_str);
                flatten(below(name.unwrap_or(&index.to_string())), value, keys);
            }
        }
        value => keys.push((key, value.to_string())),
    }
}

/// Writes the settings into the run directory, whole or not at all.
pub(super) fn save_config(run: &Path, config: &impl Serialize) -> anyhow::Result<()> {
    let text = format!("# The settings of this run, as they were resolved.\n\n{}", toml::to_string(config)?);
    replace_file(&run.join(CONFIG), &text)
}

/// Saves the planned training step of each task or phase as text, a line an operation: what is computed, in what
/// shapes, and where it lies.
pub(super) fn save_plan<'a>(
    run: &Path,
    programs: impl Iterator<Item = (String, &'a Program)>,
) -> anyhow::Result<()> {
    let text: Vec<String> =
        programs.map(|(title, program)| format!("training step of {title}: {program}")).collect();
    replace_file(&run.join(PLAN), &text.join("\n"))
}

/// Writes a file beside its place and moves it there, so that a full disk leaves the one before.
pub fn replace_file(path: &Path, text: &str) -> anyhow::Result<()> {
    let beside = path.with_extension("new");
    fs::write(&beside, text)
        .and_then(|()| fs::rename(&beside, path))
        .inspect_err(|_| drop(fs::remove_file(&beside)))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::TaskEntry;
    use crate::train::config::RunConfig;

    #[test]
    fn the_first_key_that_differs_is_named() {
        let entry = |name: &str| TaskEntry { name: name.into(), ..TaskEntry::default() };
        let saved = RunConfig { tasks: vec![entry("rte"), entry("cola")], ..RunConfig::default() };
        assert!(first_difference(&saved, &saved, &FREE_KEYS).unwrap().is_none());

        let mut free = saved.clone();
        free.output = "elsewhere".into();
        free.train.checkpoint_every = 10;
        free.train.patience = 3;
        assert!(first_difference(&saved, &free, &FREE_KEYS).unwrap().is_none());
        let (key, ..) = first_difference(&saved, &free, &[]).unwrap().unwrap();
        assert_eq!(key, "train.checkpoint_every");

        let mut other = saved.clone();
        other.train.batch_size = 16;
        let (key, before, now) = first_difference(&saved, &other, &FREE_KEYS).unwrap().unwrap();
        assert_eq!((key.as_str(), before.as_str(), now.as_str()), ("train.batch_size", "32", "16"));

        let mut other = saved.clone();
        other.tasks[1].dropout = Some(0.5);
        let (key, before, _) = first_difference(&saved, &other, &FREE_KEYS).unwrap().unwrap();
        assert_eq!((key.as_str(), before.as_str()), ("task.cola.dropout", "not set"));
    }
}
