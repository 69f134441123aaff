use std::cell::Cell;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use serde_json::json;
use tempfile::tempdir;

use super::*;
use crate::train::store::{BEST, LAST};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);

/// Notes what is said, and opens a gate when it is told the first thing.
#[derive(Default)]
struct Watcher {
    said: Vec<String>,
    opens: Option<Sender<()>>,
    now: Cell<f64>,
    /// What each look at the clock takes.
    tick: f64,
}

impl Monitor for Watcher {
    fn seconds(&self) -> f64 {
        self.now.set(self.now.get() + self.tick);
        self.now.get()
    }

    fn stop(&self) -> bool {
        false
    }

    fn tell(&mut self, event: Event<'_>) {
        match event {
            Event::Note(text) | Event::Warning(text) => self.said.push(text.to_string()),
            _ => return,
        }
        if let Some(gate) = self.opens.take() {
            gate.send(()).unwrap();
        }
    }
}

/// Does `work` as the training thread of a new run in `run`.
fn train<T>(run: &Path, watcher: &mut Watcher, work: impl FnOnce(&mut Keeper) -> T) -> T {
    thread::scope(|scope| work(&mut Keeper::new(run, false, 0, 0.0, scope, watcher).unwrap()))
}

/// What is written, in order.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<(&'static str, u64)>>>);

impl Written {
    fn so_far(&self) -> Vec<(&'static str, u64)> {
        self.0.lock().unwrap().clone()
    }

    /// A save that is written once its gate is open.
    fn save(&self, keeper: &mut Keeper, name: &'static str, updates: u64, gate: Receiver<()>) {
        let written = self.clone();
        keeper.save(Save { name, updates }, |_| {
            Ok(move || {
                gate.recv_timeout(LONG)?;
                written.0.lock().unwrap().push((name, updates));
                Ok(())
            })
        });
    }
}

fn open() -> Receiver<()> {
    let (opens, gate) = channel();
    opens.send(()).unwrap();
    gate
}

#[test]
fn training_goes_on_while_saves_are_written_in_order() {
    let run = tempdir().unwrap();
    let (written, mut watcher) = (Written::default(), Watcher::default());
    train(run.path(), &mut watcher, |keeper| {
        let (opens, gate) = channel();
        written.save(keeper, BEST, 8, gate);
        written.save(keeper, STATE, 8, open());
        written.save(keeper, LAST, 8, open());
        keeper.append(&json!({"step": 9}));
        assert!(written.so_far().is_empty());
        assert_eq!(fs::read_to_string(run.path().join(LOG)).unwrap(), "{\"step\":9}\n");
        opens.send(()).unwrap();
        keeper.finish().unwrap();
    });
    assert_eq!(written.so_far(), [(BEST, 8), (STATE, 8), (LAST, 8)]);
    assert!(watcher.said.is_empty(), "{:?}", watcher.said);
}

/// The writer is held up until it is said that it is waited for.
#[test]
fn copies_are_held_of_one_moment_and_for_one_save_of_a_directory() {
    for (name, updates) in [(STATE, 9), (BEST, 9), (STATE, 8)] {
        let run = tempdir().unwrap();
        let (opens, gate) = channel();
        let mut watcher = Watcher { opens: Some(opens), tick: PATIENCE + 1.0, ..Watcher::default() };
        let written = Written::default();
        train(run.path(), &mut watcher, |keeper| {
            let held = Arc::new(());
            let copy = Arc::downgrade(&held);
            keeper.save(Save { name: STATE, updates: 8 }, |_| {
                let written = written.clone();
                Ok(move || {
                    gate.recv_timeout(LONG)?;
                    written.0.lock().unwrap().push((STATE, 8));
                    drop(held);
                    Ok(())
                })
            });
            keeper.save(Save { name, updates }, |_| {
                assert_eq!(written.so_far(), [(STATE, 8)], "{name} after {updates}");
                assert!(copy.upgrade().is_none(), "two copies");
                Ok(|| Ok(()))
            });
            keeper.finish().unwrap();
        });
        assert!(watcher.said[0].starts_with("waiting until what was saved"), "{:?}", watcher.said);
    }
}

#[test]
fn a_short_wait_is_not_worth_a_word() {
    let run = tempdir().unwrap();
    let (written, mut watcher) = (Written::default(), Watcher::default());
    train(run.path(), &mut watcher, |keeper| {
        for updates in 1..4 {
            let (opens, gate) = channel();
            written.save(keeper, STATE, updates, gate);
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(20));
                opens.send(()).unwrap();
            });
        }
        keeper.finish().unwrap();
    });
    assert_eq!(written.so_far(), [(STATE, 1), (STATE, 2), (STATE, 3)]);
    assert!(watcher.said.is_empty(), "{:?}", watcher.said);
}

#[test]
fn parameters_are_copied_once_for_the_saves_of_a_moment() {
    let run = tempdir().unwrap();
    let mut watcher = Watcher::default();
    train(run.path(), &mut watcher, |keeper| {
        let (opens, gate) = channel();
        let first = keeper.parameters(8, || Ok(vec![8.0])).unwrap();
        let copy = Arc::clone(&first);
        keeper.save(Save { name: STATE, updates: 8 }, |_| {
            Ok(move || {
                gate.recv_timeout(LONG)?;
                anyhow::ensure!(*copy == [8.0]);
                Ok(())
            })
        });
        let second = keeper.parameters(8, || panic!("copied twice")).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        drop((first, second));
        assert_eq!(*keeper.parameters(8, || panic!("copied twice")).unwrap(), [8.0]);
        opens.send(()).unwrap();
        keeper.finish().unwrap();
        assert_eq!(*keeper.parameters(8, || Ok(vec![8.5])).unwrap(), [8.5], "the copy was held on to");

        let _held = keeper.parameters(8, || Ok(vec![8.0])).unwrap();
        assert_eq!(*keeper.parameters(9, || Ok(vec![9.0])).unwrap(), [9.0]);
    });
}

/// A save to where a directory of someone else's is.
fn save_last(keeper: &mut Keeper, updates: u64) {
    let run = keeper.run;
    keeper.save(Save { name: LAST, updates }, |_| {
        Ok(move || Ok(store::save(run, LAST, updates, 0, |path| Ok(fs::write(path.join("file"), "text")?))?))
    });
}

#[test]
fn a_failure_is_said_with_a_step_after_it_and_again_at_the_end() {
    let run = tempdir().unwrap();
    fs::create_dir(run.path().join(LAST)).unwrap();
    let mut watcher = Watcher::default();
    let error = train(run.path(), &mut watcher, |keeper| {
        save_last(keeper, 1);
        let mut steps = 0;
        while keeper.unsaved.is_empty() {
            assert!(steps < 20_000, "nothing is said");
            keeper.append(&json!({"step": steps}));
            thread::sleep(Duration::from_millis(1));
            steps += 1;
        }
        keeper.finish().unwrap_err().to_string()
    });
    assert_eq!(watcher.said.len(), 1);
    assert!(watcher.said[0].contains("NOT SAVED: will not replace"), "{:?}", watcher.said);
    assert!(error.contains("training has ended, but last is not saved"), "{error}");
}

#[test]
fn a_later_save_makes_up_for_a_failure_but_not_for_a_lost_line() {
    let run = tempdir().unwrap();
    let last = run.path().join(LAST);
    fs::create_dir(&last).unwrap();
    let mut watcher = Watcher::default();
    train(run.path(), &mut watcher, |keeper| {
        save_last(keeper, 1);
        keeper.wait(|_| true);
        fs::remove_dir(&last).unwrap();
        save_last(keeper, 2);
        keeper.finish().unwrap();
        assert_eq!(store::verify(&last).unwrap().step, 2);

        keeper.failed(LOG, anyhow::anyhow!("no room"));
        keeper.sync_log(2);
        let error = keeper.finish().unwrap_err().to_string();
        assert!(error.contains("but metrics.jsonl is not saved"), "{error}");
    });
}

#[test]
fn what_cannot_be_copied_is_not_written() {
    let run = tempdir().unwrap();
    let mut watcher = Watcher::default();
    train(run.path(), &mut watcher, |keeper| {
        keeper.save(Save { name: STATE, updates: 1 }, |_| -> anyhow::Result<fn() -> anyhow::Result<()>> {
            bail!("diverged")
        });
        assert_eq!(keeper.writer.under_way().count(), 0);
        assert!(keeper.finish().is_err());
    });
    assert_eq!(watcher.said, ["NOT SAVED: diverged. Training goes on"]);
}

#[test]
fn what_was_given_is_written_though_training_panics() {
    let run = tempdir().unwrap();
    let (written, mut watcher) = (Written::default(), Watcher::default());
    let died = catch_unwind(AssertUnwindSafe(|| {
        train(run.path(), &mut watcher, |keeper| {
            let (opens, gate) = channel();
            written.save(keeper, STATE, 8, gate);
            written.save(keeper, LAST, 8, open());
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(50));
                opens.send(()).unwrap();
            });
            std::panic::resume_unwind(Box::new("died"));
        })
    }));
    assert!(died.is_err());
    assert_eq!(written.so_far(), [(STATE, 8), (LAST, 8)]);
}

/// Training does not go on for hours without a save.
#[test]
fn a_panic_of_the_writer_is_one_of_training() {
    let run = tempdir().unwrap();
    let (mut watcher, mut went_on) = (Watcher::default(), false);
    let died = catch_unwind(AssertUnwindSafe(|| {
        train(run.path(), &mut watcher, |keeper| {
            keeper.save(Save { name: STATE, updates: 1 }, |_| {
                Ok(|| -> anyhow::Result<()> { std::panic::resume_unwind(Box::new("died")) })
            });
            keeper.wait(|_| true);
            went_on = true;
        })
    }));
    assert!(died.is_err() && !went_on);
}
