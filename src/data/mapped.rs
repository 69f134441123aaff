//! A file as memory.

use std::fs::File;
use std::io;
use std::path::Path;

/// The bytes of a file, read by the operating system when they are looked at and shared with every other process
/// that maps it. They start at an address that is a multiple of 8.
#[derive(Debug)]
pub(crate) struct Mapped(memmap2::Mmap);

impl Mapped {
    /// Maps a whole file for reading.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // This program writes beside a file and renames, which leaves a mapped one as it is. If another program writes
        // into it, numbers change that have been checked, and every use of them as an index is checked again by Rust;
        // if it cuts the file short, the system ends this process when it reads on.
        // SAFETY: nothing of ours changes the bytes, and no type made from them has invalid bit patterns.
        let map = unsafe { memmap2::Mmap::map(&file) }?;
        Ok(Self(map))
    }

    /// All of them.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}
