//! What can be wrong with a weights file, and what to do about it.

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{SHOWN, listed};

/// A weights file that cannot be read or written, or does not fit the model.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// The file could not be opened.
    #[error("{}: cannot be opened: {source}; {remedy}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// Reading failed midway.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Writing failed.
    #[error("{}: cannot be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The bytes are not a safetensors file, or not all of one.
    #[error("{}: not a whole safetensors file: {problem}; copy or download it again", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor has elements of a type that is not read.
    #[error(
        "{}: tensor {tensor} is of type {found}, expected F32, F16 or BF16; save the model in one of these",
        path.display()
    )]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// Its type.
        found: String,
    },
    /// A tensor has another shape than the model's.
    #[error("{}: tensor {tensor} has shape {found:?}, expected {expected:?}; {remedy}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// The model's shape.
        expected: Vec<usize>,
        /// The file's shape.
        found: Vec<usize>,
        /// What to do.
        remedy: &'static str,
    },
    /// Two tensors of the file are one of the model.
    #[error("{}: {first} and {second} both are {tensor}; remove one of them", path.display())]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// The model's name.
        tensor: String,
        /// The file's first name for it.
        first: String,
        /// The file's second name for it.
        second: String,
    },
    /// The model needs tensors that the file has not.
    #[error(
        "{}: {} of {of} tensors are missing: {}; is this file a BERT of the size that its config.json says?",
        path.display(), missing.len(), listed(missing, SHOWN)
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// The names, without `bert.`.
        missing: Vec<String>,
        /// How many tensors were asked for.
        of: usize,
    },
    /// A weight is NaN or infinite.
    #[error(
        "{}: tensor {tensor} holds {value} at element {element}; the training that wrote it diverged: take an earlier checkpoint",
        path.display()
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// The first such element, counted along the rows.
        element: usize,
        /// Its value.
        value: f32,
    },
}

/// What to do about a weights file that does not open, by what lies beside it.
pub(super) fn open_remedy(path: &Path) -> &'static str {
    if path.with_file_name("model.safetensors.index.json").exists() {
        "the model is in several files (shards): save it again as one"
    } else if path.with_file_name("pytorch_model.bin").exists() {
        "beside it is a pytorch_model.bin: have transformers save the model again, it writes safetensors"
    } else {
        "a model directory in Hugging Face layout holds a model.safetensors"
    }
}

/// Where a wrong shape of the tensor `name` comes from.
pub(super) fn shape_remedy(name: &str) -> &'static str {
    match name {
        "embeddings.word_embeddings.weight" => {
            "the vocabulary and the weights are of different models: compare vocab_size and hidden_size in config.json"
        }
        "embeddings.position_embeddings.weight" => {
            "compare max_position_embeddings and hidden_size in config.json"
        }
        "embeddings.token_type_embeddings.weight" => "compare type_vocab_size and hidden_size in config.json",
        name if name.starts_with("encoder.")
            || name.starts_with("embeddings.")
            || name.starts_with("pooler.") =>
        {
            "compare hidden_size and intermediate_size in config.json"
        }
        _ => "the file was made for another task or another encoder",
    }
}
