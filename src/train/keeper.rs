//! What every run writes down: its log, and which of its saves failed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::bail;
use serde::Serialize;

use super::log::Log;
use super::monitor::{Event, Monitor};
use super::store::{self, STATE};

/// The log of a run in its directory.
pub const LOG: &str = "metrics.jsonl";

/// Keeps a run's record. A save that fails does not end training: the earlier directory is as it was, and the next
/// save may succeed.
pub(super) struct Keeper<'a> {
    pub(super) run: &'a Path,
    pub(super) monitor: &'a mut dyn Monitor,
    log: Log,
    seconds_before: f64,
    /// Directories whose last save failed, and why.
    unsaved: BTreeMap<&'static str, anyhow::Error>,
}

impl<'a> Keeper<'a> {
    /// Opens the log of a run: a new one, or, resuming, the one that is there from `offset` on.
    pub(super) fn new(
        run: &'a Path,
        resume: bool,
        offset: u64,
        seconds_before: f64,
        monitor: &'a mut dyn Monitor,
    ) -> anyhow::Result<Self> {
        let path = run.join(LOG);
        let log = if resume {
            let (log, said) = Log::resume(&path, offset)?;
            said.iter().for_each(|sentence| monitor.tell(Event::Note(sentence)));
            log
        } else {
            Log::create(&path)?
        };
        Ok(Self { run, monitor, log, seconds_before, unsaved: BTreeMap::new() })
    }

    /// Seconds of the whole run, earlier parts of a resumed one included.
    pub(super) fn seconds(&self) -> f64 {
        self.seconds_before + self.monitor.seconds()
    }

    /// Appends a line to the log; one that is lost does not stop training either.
    pub(super) fn append(&mut self, line: &impl Serialize) {
        if let Err(error) = self.log.append(line)
            && !self.unsaved.contains_key(LOG)
        {
            self.failed(LOG, error.into());
        }
    }

    /// Makes the log durable, and says how long it is: what a checkpoint records.
    pub(super) fn sync_log(&mut self) -> u64 {
        if let Err(error) = self.log.sync() {
            self.failed(LOG, error.into());
        }
        self.log.offset()
    }

    /// Saves one of the run's directories.
    pub(super) fn save(&mut self, name: &'static str, save: impl FnOnce(&Path) -> anyhow::Result<()>) {
        self.monitor.tell(Event::Saving { path: &self.run.join(name) });
        match save(self.run) {
            Ok(()) => drop(self.unsaved.remove(name)),
            Err(error) => self.failed(name, error),
        }
    }

    /// Whether all that was to be kept is kept.
    pub(super) fn finish(&mut self) -> anyhow::Result<()> {
        match std::mem::take(&mut self.unsaved).into_iter().next() {
            None => Ok(()),
            Some((name, error)) => Err(error.context(format!("training has ended, but {name} is not saved"))),
        }
    }

    fn failed(&mut self, name: &'static str, error: anyhow::Error) {
        self.monitor.tell(Event::Warning(&format!("NOT SAVED: {error:#}. Training goes on")));
        self.unsaved.insert(name, error);
    }
}

/// The newest whole state of a run; `None` if it was never saved.
pub(super) fn newest_state(run: &Path, monitor: &mut dyn Monitor) -> anyhow::Result<Option<PathBuf>> {
    let search = store::newest(run, &[STATE]);
    for error in &search.passed_over {
        monitor.tell(Event::Warning(&format!("passed over: {error}")));
    }
    if let Some((path, _)) = search.found {
        return Ok(Some(path));
    }
    if let Some(damaged) = search.passed_over.first() {
        bail!("--resume: {damaged}; remove that directory to begin the run anew");
    }
    monitor.tell(Event::Warning(&format!(
        "--resume: nothing is saved in {} yet; training begins at the beginning",
        run.display()
    )));
    Ok(None)
}
