//! Directories that exist whole or not at all.
//!
//! A run writes three: [`STATE`], [`LAST`] and [`BEST`]. Each is saved by [`save`] and carries a manifest
//! with every file's length and SHA-256; one whose manifest does not verify does not exist. A process killed
//! at any instant, or a machine that loses power, leaves of each either the old directory or the new one.
//!
//! # Why three, and what belongs together
//!
//! To go on exactly, parameters and optimizer moments of the same step are needed. Two directories cannot be
//! replaced in one instant, so what must agree has to lie under one manifest: **`state/` holds all that
//! resuming needs** (parameters, moments, step, place in the data, offset in the log), and nothing else is
//! read to resume. `last/` is only its export in Hugging Face layout. It is saved after `state/`; a crash
//! between the two leaves a `last/` that is one save old, whole, and overwritten when the resumed run saves
//! next. The parameters are thus written twice, once in the form of training and once in that of publishing.
//! In return no crash can pair parameters with another step's moments, `last/` and `best/` can be copied or
//! published as they are, `state/` can be deleted when the run is done, and `last/` need not be exported as
//! often as the state is saved.
//!
//! # How a directory is replaced
//!
//! `name` is never written to. [`save`] goes through five stages, and whatever it is stopped after, one of
//! three directories verifies:
//!
//! | stage     | does                                                   | `name` | `.name.new` | `.name.old` |
//! |-----------|--------------------------------------------------------|--------|-------------|-------------|
//! | write     | the caller's files into `.name.new`                    | old    | partial     |             |
//! | seal      | syncs each of them; the manifest last; its directory   | old    | new         |             |
//! | set aside | renames `name` to `.name.old`                          |        | new         | old         |
//! | move in   | renames `.name.new` to `name`, syncs the parent        | new    |             | old         |
//! | discard   | removes `.name.old`, its manifest first                | new    |             | partial     |
//!
//! [`recover`] brings any of these rows to a lone `name`: it completes a replacement whose new directory
//! verifies and undoes any other. [`newest`] reads all three places and changes nothing. (Linux and macOS can
//! swap two directories in one call, but not on every file system; a second way that needs the first for a
//! fallback would not be simpler.)
//!
//! The hidden names are fixed, not random: one process at a time writes a run directory, and holds its
//! [`Lock`](super::lock::Lock).

mod error;
mod manifest;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

pub use error::StoreError;
use error::could_not;
pub use manifest::{FileEntry, MANIFEST, Manifest, verify};

/// The directory with all that resuming needs.
pub const STATE: &str = "state";
/// The model directory of the newest parameters.
pub const LAST: &str = "last";
/// The model directory of the best parameters so far.
pub const BEST: &str = "best";

/// Any error of the caller's own.
type BoxError = Box<dyn Error + Send + Sync>;

/// Saves the directory `name` under `parent`, replacing an earlier one only when the new one is whole.
///
/// `write` puts files (no directories, no links) into the directory that it is given; `bytes` is an estimate
/// of what they take, and `step` goes into the manifest.
///
/// # Errors
///
/// Too little free space, a failure of `write`, of a sync or of a rename. The error names the path, the bytes
/// needed and the bytes free; what was written is removed, and an earlier `name` is as it was. A directory
/// `name` that this function did not save is not replaced. If all went well but for the removal of the old
/// directory, the error says so: the new one is in place then, and the next [`save`] or [`recover`] removes
/// the old one.
pub fn save(
    parent: &Path,
    name: &str,
    step: u64,
    bytes: u64,
    write: impl FnOnce(&Path) -> Result<(), BoxError>,
) -> Result<(), StoreError> {
    save_watched(parent, name, step, bytes, write, |_| Ok(()))
}

/// What [`newest`] found.
#[derive(Debug)]
pub struct Search {
    /// The newest directory that verifies, and its manifest.
    pub found: Option<(PathBuf, Manifest)>,
    /// What was there but does not verify, each with its reason: to be said out loud.
    pub passed_over: Vec<StoreError>,
}

/// Looks for the directory of the most steps among `names` under `parent`, one that verifies.
///
/// Where a crash has cut off a save, the directory may still have a hidden name; see [`recover`]. Of two with
/// as many steps the one named first is taken. Files are hashed only until one directory verifies.
pub fn newest(parent: &Path, names: &[&str]) -> Search {
    let mut passed_over = Vec::new();
    let mut candidates = Vec::new();
    for name in names {
        let Places { name, new, old, .. } = Places::new(parent, name);
        for path in [name, new, old].into_iter().filter(|path| exists(path)) {
            match Manifest::read(&path) {
                Ok(manifest) => candidates.push((path, manifest)),
                Err(error) => passed_over.push(error),
            }
        }
    }
    candidates.sort_by_key(|(_, manifest)| std::cmp::Reverse(manifest.step)); // stable
    let found = candidates.into_iter().find(|(path, manifest)| match manifest.check_files(path) {
        Ok(()) => true,
        Err(error) => {
            passed_over.push(error);
            false
        }
    });
    Search { found, passed_over }
}

/// Completes or undoes what a crash has left of saving `names` under `parent`; says what it did, a sentence
/// each.
///
/// For the start of a run, before anything is loaded, with the run directory's lock held.
///
/// # Errors
///
/// What keeps a directory from being renamed or removed.
pub fn recover(parent: &Path, names: &[&str]) -> Result<Vec<String>, StoreError> {
    let mut said = Vec::new();
    for name in names {
        Places::new(parent, name).recover(&mut said)?;
    }
    Ok(said)
}

/// A step of saving after which a process may die, or which may fail.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Write,
    Seal,
    SetAside,
    MoveIn,
}

/// [`save`], calling `passed` after each stage: a test dies or fails there.
fn save_watched(
    parent: &Path,
    name: &str,
    step: u64,
    bytes: u64,
    write: impl FnOnce(&Path) -> Result<(), BoxError>,
    mut passed: impl FnMut(Stage) -> Result<(), BoxError>,
) -> Result<(), StoreError> {
    let places = Places::new(parent, name);
    if exists(&places.name) && !exists(&places.name.join(MANIFEST)) {
        return Err(StoreError::Foreign { path: places.name });
    }
    // Of leftovers from a crash the start of the run has spoken, of those from a failed save its error.
    recover(parent, &[name])?;
    let free = free_bytes(parent)?;
    if free < bytes {
        return Err(StoreError::NoSpace { path: places.name, needed: bytes, free });
    }
    fs::create_dir(&places.new).map_err(could_not("create", &places.new))?;
    let stages = || -> Result<(), BoxError> {
        write(&places.new)?;
        passed(Stage::Write)?;
        manifest::seal(&places.new, step)?;
        passed(Stage::Seal)?;
        places.set_aside()?;
        passed(Stage::SetAside)?;
        places.move_in()?;
        passed(Stage::MoveIn)
    };
    if let Err(reason) = stages() {
        places.undo();
        let free = free_bytes(parent).unwrap_or(free);
        return Err(StoreError::Save { path: places.name, needed: bytes, free, reason });
    }
    discard(&places.old)
}

/// The three places that a directory can be in.
struct Places {
    parent: PathBuf,
    name: PathBuf,
    new: PathBuf,
    old: PathBuf,
}

impl Places {
    fn new(parent: &Path, name: &str) -> Places {
        Places {
            parent: parent.to_owned(),
            name: parent.join(name),
            new: parent.join(format!(".{name}.new")),
            old: parent.join(format!(".{name}.old")),
        }
    }

    fn set_aside(&self) -> Result<(), StoreError> {
        if exists(&self.name) {
            rename(&self.name, &self.old)?;
        }
        Ok(())
    }

    fn move_in(&self) -> Result<(), StoreError> {
        rename(&self.new, &self.name)?;
        sync_directory(&self.parent)
    }

    /// Takes back whatever stages of a save have been passed. What cannot be taken back now, [`recover`]
    /// will.
    fn undo(&self) {
        let moved_in = !exists(&self.new);
        if moved_in {
            let _ = rename(&self.name, &self.new);
        }
        if exists(&self.old) {
            let _ = rename(&self.old, &self.name);
        }
        let _ = discard(&self.new);
    }

    fn recover(&self, said: &mut Vec<String>) -> Result<(), StoreError> {
        if exists(&self.new) {
            match verify(&self.new) {
                Ok(manifest) => {
                    discard(&self.old)?;
                    self.set_aside()?;
                    self.move_in()?;
                    let (name, step) = (self.name.display(), manifest.step);
                    said.push(format!("completed the save of {name} at step {step}, which had been cut off"));
                }
                Err(reason) => {
                    discard(&self.new)?;
                    said.push(format!("removed what a cut-off save had left: {reason}"));
                }
            }
        }
        if exists(&self.old) {
            if verify(&self.name).is_err() && verify(&self.old).is_ok() {
                discard(&self.name)?;
                rename(&self.old, &self.name)?;
                sync_directory(&self.parent)?;
                said.push(format!("put {} back, which a cut-off save had set aside", self.name.display()));
            } else {
                discard(&self.old)?;
                said.push(format!("removed {}, which a cut-off save had replaced", self.old.display()));
            }
        }
        Ok(())
    }
}

/// Removes a directory if it is there, its manifest first: cut off on the way, it does not count as saved.
fn discard(path: &Path) -> Result<(), StoreError> {
    if !exists(path) {
        return Ok(());
    }
    let manifest = path.join(MANIFEST);
    if exists(&manifest) {
        fs::remove_file(&manifest).map_err(could_not("remove", &manifest))?;
    }
    fs::remove_dir_all(path).map_err(could_not("remove", path))
}

fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).map_err(could_not("rename", from))
}

/// Makes the names in a directory durable.
fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(could_not("sync", path))
}

/// Whether anything has this name, be it a link into nothing.
fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// The bytes that this user can still write to the file system of `path`.
fn free_bytes(path: &Path) -> Result<u64, StoreError> {
    let status = rustix::fs::statvfs(path).map_err(|error| could_not("look at", path)(error.into()))?;
    Ok(status.f_bavail.saturating_mul(status.f_frsize))
}
