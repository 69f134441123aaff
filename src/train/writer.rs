//! The thread of a run that writes what is saved, so that training waits for no disk.

use std::collections::VecDeque;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{Builder, Scope};
use std::time::Duration;

use anyhow::Context;

/// Writes a save; holds all that it is made of.
type Job<'env> = Box<dyn FnOnce() -> anyhow::Result<()> + Send + 'env>;

/// What is to be written, as it is after so many updates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Save {
    pub(super) name: &'static str,
    pub(super) updates: u64,
}

/// Writes one save after another, in the order in which they are given.
///
/// Its thread ends with the last save that was given before this was dropped. The scope waits for that, however training
/// ends, and the run's lock is held around the scope.
pub(super) struct Writer<'env> {
    jobs: Sender<Job<'env>>,
    results: Receiver<anyhow::Result<()>>,
    /// What was given and not yet taken back as a result, the oldest first.
    under_way: VecDeque<Save>,
}

impl<'env> Writer<'env> {
    /// Starts the thread.
    pub(super) fn start<'scope>(scope: &'scope Scope<'scope, 'env>) -> anyhow::Result<Self> {
        let (jobs, given) = mpsc::channel::<Job<'env>>();
        let (report, results) = mpsc::channel();
        let work = move || {
            for job in given {
                // Nobody hears it where training has panicked; what was given is written all the same.
                let _ = report.send(job());
            }
        };
        Builder::new()
            .name("writer".to_string())
            .spawn_scoped(scope, work)
            .context("could not start the thread that writes what is saved")?;
        Ok(Self { jobs, results, under_way: VecDeque::new() })
    }

    /// Has a save written after those before it.
    pub(super) fn give(&mut self, save: Save, job: impl FnOnce() -> anyhow::Result<()> + Send + 'env) {
        self.under_way.push_back(save);
        if self.jobs.send(Box::new(job)).is_err() {
            panic!("{PANICKED}");
        }
    }

    /// The saves that are not known to have ended, the oldest first.
    pub(super) fn under_way(&self) -> impl Iterator<Item = &Save> {
        self.under_way.iter()
    }

    /// What came of the oldest save under way, whose copies are gone by then; `None` if there is none, or if it takes
    /// longer than `patience`.
    pub(super) fn result(&mut self, patience: Duration) -> Option<(Save, anyhow::Result<()>)> {
        let save = *self.under_way.front()?;
        match self.results.recv_timeout(patience) {
            Ok(result) => {
                self.under_way.pop_front();
                Some((save, result))
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("{PANICKED}"),
        }
    }
}

const PANICKED: &str = "the thread that writes what is saved has panicked";
