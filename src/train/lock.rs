//! One process at a time writes a run directory.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The lock's file in the run directory.
const LOCK: &str = "lock";

/// The right to write a run directory, held until this is dropped or the process ends, however it ends.
///
/// The right is an advisory lock of the operating system on the file `lock`. The file stays when the lock is
/// gone: removing it would let two processes lock two files of that name. What it says is of use only while
/// it is locked.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Who holds a lock.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Holder {
    pid: u32,
    host: String,
    since: String,
}

/// Why a run directory cannot be locked.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another process holds it, or this one for a second time.
    #[error(
        "{} is in use by {holder}. Two runs cannot write one directory: wait for that one, stop it, or choose \
         another output directory", .path.display()
    )]
    Held {
        /// The run directory.
        path: PathBuf,
        /// Process, machine and time.
        holder: String,
    },
    /// The file system refused.
    #[error(
        "cannot lock {}: {reason}. The output directory has to be writable, on a file system with locks",
        .path.display()
    )]
    Io {
        /// The lock's file.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
}

impl Lock {
    /// Takes the lock of the directory `run`, creating the directory if need be. `now` is told to those who
    /// come later.
    ///
    /// # Errors
    ///
    /// [`LockError::Held`] at once, without waiting, if it is taken.
    pub fn acquire(run: &Path, now: SystemTime) -> Result<Lock, LockError> {
        let path = run.join(LOCK);
        let refused = |reason| LockError::Io { path: path.clone(), reason };
        fs::create_dir_all(run).map_err(refused)?;
        // Not truncated before it is locked: until then it is someone else's.
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(refused)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::Held { path: run.to_owned(), holder: holder(&file) });
            }
            Err(TryLockError::Error(error)) => return Err(refused(error)),
        }
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let holder = Holder { pid: std::process::id(), host, since: utc(now) };
        let mut line = serde_json::to_vec(&holder).expect("a holder is plain data");
        line.push(b'\n');
        file.set_len(0).and_then(|()| file.write_all(&line)).map_err(refused)?;
        Ok(Lock { _file: file })
    }
}

/// Who a locked file says holds it.
fn holder(file: &File) -> String {
    let mut text = String::new();
    let read = file.take(4096).read_to_string(&mut text).map_err(serde_json::Error::io);
    match read.and_then(|_| serde_json::from_str::<Holder>(&text)) {
        Ok(Holder { pid, host, since }) => format!("process {pid} on {host} since {since}"),
        Err(_) => "a process that has not said which it is".to_owned(), // it has locked, and not yet written
    }
}

/// A time as `2026-03-01 12:34:56 UTC`.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |duration| duration.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years are counted from the first of March: the leap day is then the last of its year. The 400 years of
    // the Gregorian cycle have 146097 days; 719468 lie between 0000-03-01 and 1970-01-01.
    let days = days + 719_468;
    let (cycle, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365; // within the cycle
    let day = day - (365 * year + year / 4 - year / 100); // within the year
    let month = (5 * day + 2) / 153; // from March: 153 days in five months
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = (400 * cycle + year, month + 3);
    let (year, month) = if month > 12 { (year + 1, month - 12) } else { (year, month) };
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_second_taker_is_told_who_holds_it() {
        let directory = tempfile::tempdir().unwrap();
        let run = directory.path().join("runs/glue");
        let first = Lock::acquire(&run, at(1_700_000_000)).unwrap();
        let error = Lock::acquire(&run, at(1_800_000_000)).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        assert!(error.contains("since 2023-11-14 22:13:20 UTC"), "{error}");
        assert!(error.contains("runs/glue"), "{error}");
        drop(first);
        Lock::acquire(&run, at(1_800_000_000)).unwrap();
    }

    #[test]
    fn what_an_ended_process_left_in_the_file_does_not_count() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LOCK);
        fs::write(&path, "x".repeat(10_000)).unwrap();
        let _lock = Lock::acquire(directory.path(), at(0)).unwrap();
        let holder: Holder = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!((holder.pid, holder.since.as_str()), (std::process::id(), "1970-01-01 00:00:00 UTC"));
    }

    #[test]
    fn a_holder_that_has_not_yet_written_still_holds() {
        let directory = tempfile::tempdir().unwrap();
        let file = File::create(directory.path().join(LOCK)).unwrap();
        file.lock().unwrap();
        let error = Lock::acquire(directory.path(), at(0)).unwrap_err();
        assert!(matches!(&error, LockError::Held { .. }), "{error}");
    }

    #[test]
    fn a_file_in_the_place_of_the_run_directory_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let run = directory.path().join("run");
        fs::write(&run, "").unwrap();
        let error = Lock::acquire(&run, at(0)).unwrap_err().to_string();
        assert!(error.contains("run/lock"), "{error}");
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        // As `date -u -d @N` prints them.
        assert_eq!(utc(at(951_782_399)), "2000-02-28 23:59:59 UTC");
        assert_eq!(utc(at(951_782_400)), "2000-02-29 00:00:00 UTC");
        assert_eq!(utc(at(951_868_800)), "2000-03-01 00:00:00 UTC");
        assert_eq!(utc(at(1_704_067_199)), "2023-12-31 23:59:59 UTC");
        assert_eq!(utc(at(1_704_067_200)), "2024-01-01 00:00:00 UTC");
        assert_eq!(utc(at(4_107_542_400)), "2100-03-01 00:00:00 UTC");
        assert_eq!(utc(at(13_574_563_200)), "2400-02-29 00:00:00 UTC");
    }
}
