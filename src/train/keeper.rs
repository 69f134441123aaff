//! What every run writes down: its log, and which of its saves failed.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread::Scope;
use std::time::Duration;

use anyhow::bail;
use serde::Serialize;

use super::checkpoint::{self, Snapshot};
use super::log::Log;
use super::monitor::{Event, Monitor};
use super::store::{self, STATE};
use super::writer::{Save, Writer};
use crate::backend::Backend;
use crate::data::Tokenizer;
use crate::nn::ParameterTable;
use crate::nn::directory::DirectoryError;
use crate::tensor::Space;

/// The log of a run in its directory.
pub const LOG: &str = "metrics.jsonl";

/// Seconds of waiting for an earlier save that are not worth a word.
const PATIENCE: f64 = 2.0;

/// Keeps a run's record. What is saved is copied here and written by the run's [`Writer`] while training goes on. A save
/// that fails does not end training: the earlier directory is as it was, and the next save may succeed.
pub(super) struct Keeper<'a> {
    pub(super) run: &'a Path,
    pub(super) monitor: &'a mut dyn Monitor,
    log: Log,
    seconds_before: f64,
    writer: Writer<'a>,
    /// The parameters after so many updates, for as long as a save of them is under way.
    parameters: (u64, Weak<Vec<f32>>),
    /// Directories whose last save failed, and why.
    unsaved: BTreeMap<&'static str, anyhow::Error>,
}

impl<'a> Keeper<'a> {
    /// Opens the log of a run: a new one, or, resuming, the one that is there from `offset` on. The writer is a thread
    /// of `scope`.
    pub(super) fn new<'scope>(
        run: &'a Path,
        resume: bool,
        offset: u64,
        seconds_before: f64,
        scope: &'scope Scope<'scope, 'a>,
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
        let (parameters, unsaved) = ((0, Weak::new()), BTreeMap::new());
        Ok(Self { run, monitor, log, seconds_before, writer: Writer::start(scope)?, parameters, unsaved })
    }

    /// Seconds of the whole run, earlier parts of a resumed one included.
    pub(super) fn seconds(&self) -> f64 {
        self.seconds_before + self.monitor.seconds()
    }

    /// Appends a line to the log; one that is lost does not stop training either. Says which saves have failed meanwhile.
    pub(super) fn append(&mut self, line: &impl Serialize) {
        while let Some((save, result)) = self.writer.result(Duration::ZERO) {
            self.ended(save, result);
        }
        if let Err(error) = self.log.append(line)
            && !self.unsaved.contains_key(LOG)
        {
            self.failed(LOG, error.into());
        }
    }

    /// Has the log made durable before what is saved next, and says how long it is: what a checkpoint records.
    pub(super) fn sync_log(&mut self, updates: u64) -> u64 {
        let sync = self.log.syncing();
        self.writer.give(Save { name: LOG, updates }, move || Ok(sync()?));
        self.log.offset()
    }

    /// Saves parameters, moments and `state` as `state/`, as they are after so many `updates`.
    pub(super) fn save_state(
        &mut self,
        updates: u64,
        state: &impl Serialize,
        parameters: usize,
        backend: &mut dyn Backend,
    ) {
        let run = self.run;
        self.save(Save { name: STATE, updates }, |keeper| {
            let read = || checkpoint::read(Space::Parameters, parameters, backend);
            let parameters = keeper.parameters(updates, read)?;
            let snapshot = Snapshot::take(updates, state, parameters, backend)?;
            Ok(move || snapshot.save(run))
        });
    }

    /// Saves the parameters as the model directory `name`; `write` puts its files into a directory.
    pub(super) fn save_model(
        &mut self,
        name: &'static str,
        updates: u64,
        table: &'a ParameterTable,
        tokenizer: &'a Tokenizer,
        backend: &mut dyn Backend,
        write: impl FnOnce(&Path, &[f32]) -> Result<(), DirectoryError> + Send + 'a,
    ) {
        let run = self.run;
        self.save(Save { name, updates }, |keeper| {
            let read = || checkpoint::read(Space::Parameters, table.len(), backend);
            let values = keeper.parameters(updates, read)?;
            Ok(move || {
                checkpoint::save_model(run, name, updates, table, tokenizer, |path| write(path, &values))
            })
        });
    }

    /// Waits for what is under way, and says whether all that was to be kept is kept.
    pub(super) fn finish(&mut self) -> anyhow::Result<()> {
        self.wait(|_| true);
        match std::mem::take(&mut self.unsaved).into_iter().next() {
            None => Ok(()),
            Some((name, error)) => Err(error.context(format!("training has ended, but {name} is not saved"))),
        }
    }

    /// Takes a snapshot, which returns what is to be done with it, and has the writer do that.
    fn save<W>(&mut self, save: Save, snapshot: impl FnOnce(&mut Self) -> anyhow::Result<W>)
    where
        W: FnOnce() -> anyhow::Result<()> + Send + 'a,
    {
        self.monitor.tell(Event::Saving { path: &self.run.join(save.name) });
        // Copies are held of one moment, and for one save of each directory.
        self.wait(|other| other.name == save.name || other.updates != save.updates);
        match snapshot(self) {
            Ok(write) => self.writer.give(save, write),
            Err(error) => self.failed(save.name, error),
        }
    }

    /// The parameters after so many updates: the copy that a save under way has, or else a new one.
    fn parameters(
        &mut self,
        updates: u64,
        read: impl FnOnce() -> anyhow::Result<Vec<f32>>,
    ) -> anyhow::Result<Arc<Vec<f32>>> {
        let (of, copy) = &self.parameters;
        if let Some(copy) = copy.upgrade().filter(|_| *of == updates) {
            return Ok(copy);
        }
        let copy = Arc::new(read()?);
        self.parameters = (updates, Arc::downgrade(&copy));
        Ok(copy)
    }

    /// Waits until none of `these` saves is under way.
    fn wait(&mut self, these: impl Fn(&Save) -> bool) {
        let (begun, mut said) = (self.monitor.seconds(), false);
        while self.writer.under_way().any(&these) {
            let left = PATIENCE - (self.monitor.seconds() - begun);
            let patience = if said { Duration::MAX } else { Duration::from_secs_f64(left.max(0.0)) };
            match self.writer.result(patience) {
                Some((save, result)) => self.ended(save, result),
                None => {
                    said = true;
                    let text = format!("waiting until what was saved in {} is written", self.run.display());
                    self.monitor.tell(Event::Note(&text));
                }
            }
        }
    }

    fn ended(&mut self, save: Save, result: anyhow::Result<()>) {
        match result {
            Err(error) => self.failed(save.name, error),
            Ok(()) if save.name == LOG => {} // A line that was lost before is lost.
            Ok(()) => drop(self.unsaved.remove(save.name)),
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
