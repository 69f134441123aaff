//! Where the files of a task are, and how they are read.

use std::fs;
use std::path::{Path, PathBuf};

use super::definition::Definition;
use super::names::Layout;
use crate::data::error::{DataError, list};
use crate::data::task::{Column, Columns, Format, Quirks, SourceFile, Split, TaskKind};

/// What a split is for, by its name: `train`, or `dev` or `test` at its end.
pub(super) fn split_of(name: &str) -> Option<Split> {
    match name {
        _ if name.ends_with("train") => Some(Split::Train),
        _ if name.ends_with("dev") => Some(Split::Dev),
        _ if name.ends_with("test") => Some(Split::Test),
        _ => None,
    }
}

/// A file of a task.
pub(super) struct Found {
    pub(super) split: Split,
    /// The split's own name.
    name: String,
    pub(super) path: PathBuf,
    /// Whether it is JSON lines, of token ids or documents, and no canonical text.
    json: bool,
}

/// The files of a task in a folder: `<task>_<split>.tsv`, text; else `<task>_<split>.json`, token ids, there or in the
/// one folder `<model>_lower` or `<model>_cased` that preprocessing has made in it. Of masked words and of spans there is
/// the second alone.
pub(super) fn find(definition: &Definition, data: &Path) -> Result<Vec<Found>, DataError> {
    let has_text = !matches!(definition.kind, TaskKind::Masked | TaskKind::Span);
    let folders = token_folders(data)?;
    let mut files = Vec::new();
    for name in &definition.splits {
        let Some(split) = split_of(name) else { continue };
        let file = format!("{}_{name}", definition.name);
        let text = data.join(format!("{file}.tsv"));
        let found = |path, json| Found { split, name: name.clone(), path, json };
        if has_text && text.is_file() {
            files.push(found(text, false));
            continue;
        }
        let json = format!("{file}.json");
        let mut paths = folders.iter().map(|folder| folder.join(&json)).filter(|path| path.is_file());
        match (paths.next(), paths.next()) {
            (Some(path), None) => files.push(found(path, true)),
            (Some(one), Some(other)) => {
                let reason = format!(
                    "{json} is both {} and {}, token ids of two vocabularies; give the folder of one as data",
                    one.display(),
                    other.display()
                );
                return Err(DataError::Task { task: definition.name.clone(), reason });
            }
            (None, _) => {}
        }
    }
    if files.is_empty() {
        let endings = if has_text { ".tsv or .json" } else { ".json" };
        let of = |split: &String| format!("{}_{split}{endings}", definition.name);
        let tried: Vec<String> = definition.splits.iter().map(of).collect();
        let tried = list(tried.iter().map(String::as_str));
        let (task, directory) = (definition.name.clone(), data.to_path_buf());
        return Err(DataError::NoFile { task, directory, tried });
    }
    Ok(files)
}

/// The folder itself, and those in it that are called as those of token ids are.
fn token_folders(data: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut folders = vec![data.to_path_buf()];
    for entry in fs::read_dir(data).map_err(DataError::read(data))? {
        let path = entry.map_err(DataError::read(data))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && (name.ends_with("_lower") || name.ends_with("_cased")) {
            folders.push(path);
        }
    }
    folders[1..].sort();
    Ok(folders)
}

/// How a file of examples is read.
pub(super) fn source(definition: &Definition, found: Found) -> SourceFile {
    let Found { split, name, path, json } = found;
    let label = |number| Some(Column::Number(number));
    let row = |text_b| Columns::Row { text_a: Column::Number(2), text_b, label: label(1) };
    let mut columns = match definition.layout {
        _ if json => Columns::Tokens { labelled: true },
        Layout::Mlm => unreachable!("masked words are in no table"),
        Layout::PremiseOnly => row(None),
        Layout::PremiseAndOneHypothesis => row(Some(Column::Number(3))),
        Layout::PremiseAndMultiHypothesis => {
            Columns::Hypotheses { ranks: definition.labels.clone(), labelled: true }
        }
        Layout::Sequence => Columns::Words { tokens: Column::Number(2), tags: label(1) },
        Layout::ClozeChoice => Columns::Grouped {
            group: Column::Number(0),
            query: Column::Number(4),
            candidate: Column::Number(5),
            label: label(3),
        },
    };
    // Labels of test files are made up.
    if split == Split::Test {
        columns.forget_label();
    }
    let format = if json { Format::Jsonl } else { Format::Tsv { header: false } };
    let uneven_rows = matches!(columns, Columns::Hypotheses { .. });
    let quirks = Quirks { uneven_rows, ..Quirks::default() };
    SourceFile { split, name, path, format, columns, quirks }
}
