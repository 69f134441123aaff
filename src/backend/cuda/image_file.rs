//! A compiled kernel module as a file: kept between runs, whole or not at all.
//!
//! The file's name holds what it is of and a hash of everything that it follows from; inside stand the whole hash and
//! a checksum. A file that is damaged is made anew, and that is said.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use super::nvrtc::{Compiled, Job};

const MAGIC: &[u8; 8] = b"mtdnnimg";
/// The hash in front, and the checksum at the end.
const HASH: usize = 32;
/// Magic, hash, length of the log.
const HEAD: usize = MAGIC.len() + HASH + size_of::<u64>();

/// The place of one job's image in a directory.
pub(super) struct ImageFile {
    pub(super) path: PathBuf,
    key: [u8; HASH],
}

impl ImageFile {
    /// Where the image of a job is kept if this compiler does it.
    pub(super) fn new(directory: &Path, job: &Job<'_>, compiler: (u32, u32)) -> Self {
        let key: [u8; HASH] = Sha256::digest(job.key(compiler)).into();
        let short: String = key[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("{}-sm_{}-{short}.image", job.module, job.arch);
        Self { path: directory.join(name), key }
    }

    /// Reads it; none where there is no such file.
    ///
    /// # Errors
    /// If it cannot be read or is not what was written.
    pub(super) fn load(&self) -> io::Result<Option<Compiled>> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let wrong = |reason| io::Error::new(io::ErrorKind::InvalidData, reason);
        let (contents, checksum) =
            bytes.split_last_chunk::<HASH>().ok_or_else(|| wrong("it is too short"))?;
        if Sha256::digest(contents)[..] != checksum[..] {
            return Err(wrong("its checksum is wrong"));
        }
        // What the checksum speaks for is what was written, but perhaps for another job.
        if !contents.starts_with(MAGIC) || contents.get(MAGIC.len()..MAGIC.len() + HASH) != Some(&self.key) {
            return Err(wrong("it is the image of something else"));
        }
        let (log, cubin) = split_log(contents).ok_or_else(|| wrong("its lengths are wrong"))?;
        Ok(Some(Compiled { log: String::from_utf8_lossy(log).into_owned(), cubin: cubin.to_vec() }))
    }

    /// Writes it: to a name of its own, and all of it to the disk, before it takes its place.
    pub(super) fn store(&self, compiled: &Compiled) -> io::Result<()> {
        static STORED: AtomicU64 = AtomicU64::new(0);
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory)?;
        }
        // Another process or thread may store the same image at the same time; the last to rename wins.
        let number = STORED.fetch_add(1, Ordering::Relaxed);
        let temporary = self.path.with_extension(format!("{}-{number}.tmp", std::process::id()));
        let written = self.write(&temporary, compiled).and_then(|()| fs::rename(&temporary, &self.path));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    fn write(&self, path: &Path, Compiled { cubin, log }: &Compiled) -> io::Result<()> {
        let mut file = File::create(path)?;
        let mut hasher = Sha256::new();
        let len = (log.len() as u64).to_le_bytes();
        for part in [&MAGIC[..], &self.key, &len, log.as_bytes(), cubin] {
            hasher.update(part);
            file.write_all(part)?;
        }
        file.write_all(&hasher.finalize())?;
        file.sync_all()
    }
}

/// The log and the image behind the head.
fn split_log(contents: &[u8]) -> Option<(&[u8], &[u8])> {
    let (head, rest) = contents.split_at_checked(HEAD)?;
    let len = u64::from_le_bytes(*head.last_chunk()?);
    rest.split_at_checked(usize::try_from(len).ok()?)
}
