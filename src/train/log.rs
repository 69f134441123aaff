//! The log of a run: `metrics.jsonl`, one JSON object a line.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use thiserror::Error;

/// A file that only grows, by whole lines.
///
/// Every line is handed to the system at once: a killed process loses none. [`Log::syncing`] makes them durable,
/// and belongs before each checkpoint, whose offset must not lie beyond what a power failure leaves of the
/// file.
#[derive(Debug)]
pub struct Log {
    file: Arc<File>,
    path: PathBuf,
    offset: u64,
}

/// The log's file could not be used.
#[derive(Debug, Error)]
#[error(
    "could not {action} the log {}: {reason}. Make room, or choose another output directory", .path.display()
)]
pub struct LogError {
    action: &'static str,
    path: PathBuf,
    reason: io::Error,
}

impl Log {
    /// Begins the log of a new run.
    ///
    /// # Errors
    ///
    /// A file of that name is there already, or cannot be made.
    pub fn create(path: &Path) -> Result<Log, LogError> {
        let file = File::create_new(path).map_err(could_not("create", path))?;
        Ok(Log { file: Arc::new(file), path: path.to_owned(), offset: 0 })
    }

    /// Goes on with a log from the offset that a checkpoint recorded: what was written after it is cut off,
    /// since the resumed run will write it again.
    ///
    /// Returns the log and what there is to say of it. If the file ends before `offset`, or `offset` is
    /// inside a line (someone has edited it), the log goes on after the last whole line before: a run does
    /// not fail for its log.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, read or cut.
    pub fn resume(path: &Path, offset: u64) -> Result<(Log, Vec<String>), LogError> {
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(could_not("open", path))?;
        let length = file.metadata().map_err(could_not("look at", path))?.len();
        let end = end_of_line(&mut file, offset.min(length)).map_err(could_not("read", path))?;
        file.set_len(end).map_err(could_not("cut back", path))?;
        file.seek(SeekFrom::Start(end)).map_err(could_not("seek in", path))?;

        let mut said = Vec::new();
        if end < offset {
            said.push(format!(
                "{} goes on at byte {end} and not at byte {offset}, where the checkpoint was: it has \
                 been cut or edited",
                path.display()
            ));
        }
        if end < length {
            let bytes = length - end;
            said.push(format!(
                "{} was cut back by {bytes} bytes to where the checkpoint was",
                path.display()
            ));
        }
        Ok((Log { file: Arc::new(file), path: path.to_owned(), offset: end }, said))
    }

    /// Appends `record` as one line. Numbers that are not finite become `null`: JSON has none.
    ///
    /// # Errors
    ///
    /// The file cannot be written; it then still ends with the line before.
    pub fn append(&mut self, record: &impl Serialize) -> Result<(), LogError> {
        let mut line =
            serde_json::to_vec(record).map_err(|error| self.could_not("write to")(error.into()))?;
        line.push(b'\n');
        if let Err(error) = self.file.write_all(&line) {
            let _ =
                self.file.set_len(self.offset).and_then(|()| self.file.seek(SeekFrom::Start(self.offset)));
            return Err(self.could_not("write to")(error));
        }
        self.offset += line.len() as u64;
        Ok(())
    }

    /// The length of the log in bytes: what a checkpoint records, for [`Log::resume`].
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Makes every line so far durable when it is called, on whichever thread; lines can be appended meanwhile.
    ///
    /// Its error: the system cannot say that they are.
    pub fn syncing(&self) -> impl FnOnce() -> Result<(), LogError> + Send + use<> {
        let (file, path) = (Arc::clone(&self.file), self.path.clone());
        move || file.sync_all().map_err(could_not("sync", &path))
    }

    fn could_not(&self, action: &'static str) -> impl FnOnce(io::Error) -> LogError {
        could_not(action, &self.path)
    }
}

/// For `map_err`: what was tried, and on what.
fn could_not(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |reason| LogError { action, path, reason }
}

/// The largest position up to `limit` that is the file's beginning or follows a line's end.
fn end_of_line(file: &mut File, limit: u64) -> io::Result<u64> {
    let mut block = [0; 4096];
    let mut end = limit;
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let block = &mut block[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(block)?;
        if let Some(position) = block.iter().rposition(|&byte| byte == b'\n') {
            return Ok(start + position as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    fn with_text(text: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics.jsonl");
        fs::write(&path, text).unwrap();
        (directory, path)
    }

    #[test]
    fn a_resumed_log_is_the_one_of_an_uninterrupted_run() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics.jsonl");
        let mut log = Log::create(&path).unwrap();
        log.append(&json!({"step": 1, "loss": 0.5})).unwrap();
        log.syncing()().unwrap();
        let offset = log.offset();
        assert_eq!(offset, fs::metadata(&path).unwrap().len());
        log.append(&json!({"step": 2, "loss": f64::NAN})).unwrap();
        drop(log);

        let (mut log, said) = Log::resume(&path, offset).unwrap();
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("metrics.jsonl was cut back by 23 bytes"), "{said:?}");
        log.append(&json!({"step": 2, "loss": 0.25})).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "{\"loss\":0.5,\"step\":1}\n{\"loss\":0.25,\"step\":2}\n"
        );
        assert_eq!(log.offset(), fs::metadata(&path).unwrap().len());
    }

    #[test]
    fn a_log_that_ends_at_the_offset_goes_on_without_a_word() {
        let (_directory, path) = with_text("{}\n{}\n");
        let (log, said) = Log::resume(&path, 6).unwrap();
        assert_eq!((log.offset(), said.len()), (6, 0));
    }

    #[test]
    fn a_log_that_is_too_short_goes_on_after_its_last_whole_line() {
        let (_directory, path) = with_text("{\"step\":1}\n{\"st");
        let (mut log, said) = Log::resume(&path, 500).unwrap();
        assert!(said[0].contains("at byte 11 and not at byte 500"), "{said:?}");
        log.append(&json!({"step": 2})).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"step\":1}\n{\"step\":2}\n");
    }

    #[test]
    fn a_removed_log_begins_anew() {
        let directory = tempfile::tempdir().unwrap();
        let (log, said) = Log::resume(&directory.path().join("metrics.jsonl"), 7).unwrap();
        assert_eq!((log.offset(), said.len()), (0, 1));
    }

    #[test]
    fn an_offset_inside_a_line_moves_to_its_beginning() {
        let long = "x".repeat(10_000); // longer than two blocks
        let (_directory, path) = with_text(&format!("{{}}\n{long}\n"));
        let (log, said) = Log::resume(&path, 9_000).unwrap();
        assert_eq!((log.offset(), said.len()), (3, 2));
        assert_eq!(fs::read_to_string(&path).unwrap(), "{}\n");
    }

    #[test]
    fn a_new_run_does_not_write_over_a_log() {
        let (_directory, path) = with_text("{}\n");
        let error = Log::create(&path).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl") && error.contains("exists"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "{}\n");
    }
}
