//! Files that appear whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Where a file is written first, beside the one that is to be.
///
/// # Errors
/// If `output` names no file, or something that is none.
pub(super) fn partial(output: &Path) -> anyhow::Result<PathBuf> {
    if output.exists() && !output.is_file() {
        bail!("--output {}: is no regular file; name one that may be replaced", output.display());
    }
    let name = output.file_name().with_context(|| format!("--output {}: names no file", output.display()))?;
    Ok(output.with_file_name(format!(".{}.{}.partial", name.to_string_lossy(), std::process::id())))
}

/// Lets `write` fill the file at the path that it is given, and puts it in the place of `output` if it does not fail.
pub(super) fn whole(output: &Path, write: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let partial = partial(output)?;
    let written = write(&partial).and_then(|()| {
        fs::rename(&partial, output).with_context(|| format!("cannot write {}", output.display()))
    });
    if written.is_err() {
        // What is half written helps nobody; the first error is the one to report.
        let _ = fs::remove_file(&partial);
    }
    written
}
