//! What can go wrong with a saved directory.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a directory could not be saved, or does not count as saved.
#[derive(Debug, Error)]
pub enum StoreError {
    /// There is too little room even to begin.
    #[error(
        "cannot save {}: it takes about {}, and {} are free there. Nothing was touched. Make room, or choose \
         another output directory", .path.display(), megabytes(*.needed), megabytes(*.free)
    )]
    NoSpace {
        /// The directory to be saved.
        path: PathBuf,
        /// Bytes that it takes, estimated.
        needed: u64,
        /// Bytes free on its file system.
        free: u64,
    },
    /// Something failed on the way, and was undone.
    #[error(
        "cannot save {}: {reason}. It takes about {}, and {} are free there. What was written is removed, an \
         earlier one is as it was. Make room or mend the disk, or choose another output directory",
        .path.display(), megabytes(*.needed), megabytes(*.free)
    )]
    Save {
        /// The directory to be saved.
        path: PathBuf,
        /// Bytes that it takes, estimated.
        needed: u64,
        /// Bytes free on its file system after what was written had been removed.
        free: u64,
        /// What failed.
        reason: Box<dyn Error + Send + Sync>,
    },
    /// A directory of this name is there that was not saved by this program.
    #[error(
        "will not replace {}: it has no {}, so it was not saved by this program. Move it away, or choose another \
         output directory", .path.display(), super::MANIFEST
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// A directory whose manifest does not verify: it is as if it did not exist.
    #[error("{} is not whole: {reason}", .path.display())]
    NotWhole {
        /// The directory.
        path: PathBuf,
        /// What does not verify.
        reason: String,
    },
    /// The file system refused.
    #[error("could not {action} {}: {reason}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
}

/// For `map_err`: what was tried, and on what.
pub(super) fn could_not(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |reason| StoreError::Io { action, path, reason }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
