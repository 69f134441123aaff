//! The bytes of a corpus file.
//!
//! | part | type |
//! |---|---|
//! | [`Head`] | 112 bytes |
//! | token ids | u32 [tokens], then zeros up to a multiple of 8 bytes |
//! | where each sentence starts among the tokens | u64 [sentences + 1] |
//! | where each document starts among the sentences | u64 [documents + 1] |
//! | [`checksum`] of all before it | 32 bytes |
//!
//! Numbers are little-endian. On a machine of the other byte order the version is another one.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::data::mapped::Mapped;

pub(super) const MAGIC: [u8; 8] = *b"mtdnncor";
/// Raised whenever the layout or the way from text to ids changes.
pub(super) const VERSION: u64 = 1;
/// Bytes that one thread hashes at a time.
const PIECE: usize = 1 << 20;

/// The first bytes of the file: everything that its size follows from.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Head {
    pub magic: [u8; 8],
    pub version: u64,
    /// [`Tokenizer::hash`](crate::data::Tokenizer::hash).
    pub vocabulary: [u8; 16],
    /// [`fingerprint`](super::fingerprint) of the text.
    pub source: [u8; 32],
    pub files: u64,
    pub documents: u64,
    pub sentences: u64,
    pub tokens: u64,
    /// Sentences of the text that had no token.
    pub dropped: u64,
    /// NUL characters of the text, all dropped.
    pub nuls: u64,
}

/// Where the parts lie, in bytes from the start of the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parts {
    pub tokens: Range<usize>,
    pub sentences: Range<usize>,
    pub documents: Range<usize>,
    pub checksum: Range<usize>,
}

impl Parts {
    /// The parts that a head speaks of; `None` if no file can be so large.
    pub fn of(head: &Head) -> Option<Self> {
        let bytes = |count: u64, size: usize| usize::try_from(count).ok()?.checked_mul(size);
        let after = |start: usize, bytes: usize| Some(start..start.checked_add(bytes)?);
        let tokens = after(size_of::<Head>(), bytes(head.tokens, 4)?)?;
        let sentences =
            after(tokens.end.checked_next_multiple_of(8)?, bytes(head.sentences.checked_add(1)?, 8)?)?;
        let documents = after(sentences.end, bytes(head.documents.checked_add(1)?, 8)?)?;
        let checksum = after(documents.end, 32)?;
        Some(Self { tokens, sentences, documents, checksum })
    }
}

/// SHA-256 of the SHA-256 of each piece of `bytes`, so that pieces can be hashed at the same time.
pub(super) fn checksum(bytes: &[u8]) -> [u8; 32] {
    let pieces: Vec<[u8; 32]> = bytes.par_chunks(PIECE).map(|piece| Sha256::digest(piece).into()).collect();
    Sha256::digest(pieces.as_flattened()).into()
}

/// Writes a corpus beside its place and moves it there when it is whole; dropped before that, it leaves nothing.
pub(super) struct Writer {
    path: PathBuf,
    temporary: PathBuf,
    output: BufWriter<File>,
    tokens: u64,
    sentences: Vec<u64>,
    documents: Vec<u64>,
}

impl Writer {
    /// Begins a file; its directory is made if need be, and what killed processes have left of it is removed.
    pub fn new(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
            remove_abandoned(path, directory);
        }
        // A name of its own to each process: two may make the same corpus at once, and the last to rename wins.
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        let file = File::create(&temporary)?;
        // Held as long as this process lives: what nobody holds is abandoned. A file system without locks does no harm.
        let _ = file.try_lock();
        let mut output = BufWriter::with_capacity(1 << 20, file);
        // The head's place, until what it counts is known.
        output.write_all(&[0; size_of::<Head>()])?;
        let path = path.to_path_buf();
        Ok(Self { path, temporary, output, tokens: 0, sentences: vec![0], documents: vec![0] })
    }

    /// Appends a sentence to the document that is being written.
    pub fn sentence(&mut self, ids: &[u32]) -> io::Result<()> {
        self.tokens += ids.len() as u64;
        self.sentences.push(self.tokens);
        self.output.write_all(bytemuck::cast_slice(ids))
    }

    /// Ends a document; one without sentences is none.
    pub fn end_document(&mut self) {
        if self.documents[self.documents.len() - 1] < self.sentences() {
            self.documents.push(self.sentences());
        }
    }

    /// Sentences so far.
    pub fn sentences(&self) -> u64 {
        self.sentences.len() as u64 - 1
    }

    /// The bytes that the file takes as it stands.
    pub fn bytes(&self) -> u64 {
        let offsets = self.sentences.len() + self.documents.len();
        (size_of::<Head>() + offsets * 8) as u64 + self.tokens * 4 + 32
    }

    /// Writes what is left, waits until all of it is on the disk, and moves the file to its place. The counts of
    /// `head` are filled in here, but for those of the text that is not in it.
    pub fn finish(mut self, mut head: Head) -> io::Result<()> {
        self.end_document();
        (head.magic, head.version) = (MAGIC, VERSION);
        head.tokens = self.tokens;
        head.sentences = self.sentences();
        head.documents = self.documents.len() as u64 - 1;
        self.output.write_all(&[0; 8][..(self.tokens % 2) as usize * 4])?;
        self.output.write_all(bytemuck::cast_slice(&self.sentences))?;
        self.output.write_all(bytemuck::cast_slice(&self.documents))?;
        self.output.seek(SeekFrom::Start(0))?;
        self.output.write_all(bytemuck::bytes_of(&head))?;
        self.output.flush()?;
        let sum = checksum(Mapped::open(&self.temporary)?.bytes());
        self.output.seek(SeekFrom::End(0))?;
        self.output.write_all(&sum)?;
        self.output.flush()?;
        self.output.get_ref().sync_all()?;
        fs::rename(&self.temporary, &self.path)?;
        let directory = self.path.parent().filter(|directory| !directory.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }
}

/// Removes the unfinished files of a corpus that no process is writing any more.
fn remove_abandoned(path: &Path, directory: &Path) {
    let Some(stem) = path.file_stem().and_then(|stem| stem.to_str()) else { return };
    let own = std::process::id().to_string();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let middle =
            name.to_str().and_then(|name| name.strip_prefix(stem)?.strip_prefix('.')?.strip_suffix(".tmp"));
        let is_number =
            |process: &str| !process.is_empty() && process.bytes().all(|byte| byte.is_ascii_digit());
        let is_one = middle.is_some_and(|process| is_number(process) && process != own);
        if is_one && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok()) {
            // One that cannot be removed is in nobody's way but the disk's.
            let _ = fs::remove_file(entry.path());
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Nothing is there by this name once the file is in its place. What is left of a failed attempt helps
        // nobody; the first error is the one to report.
        let _ = fs::remove_file(&self.temporary);
    }
}
