//! Model directories: Hugging Face's layout, and `mtdnn.json` beside it.
//!
//! `transformers` loads the encoder of such a directory as it stands; the heads lie in the same
//! `model.safetensors` under `heads.<task>.`, and `mtdnn.json` says what they answer.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config::{BertConfig, ConfigError};
use super::model::Model;
use super::parameters::{Parameter, ParameterTable};
use super::pretraining::PretrainingModel;
use super::weights::{self, Expected, Report, WeightsError};
use crate::data::{DataError, TaskSpec, Tokenizer};

/// What `mtdnn.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// The version of this file's layout.
    pub format: u32,
    /// The program that wrote it.
    pub engine: String,
    /// The longest sequence the model was trained on, in tokens.
    pub max_length: usize,
    /// The tasks in the order of their heads.
    pub tasks: Vec<TaskSpec>,
    /// The shape of each tensor of each task's head: `heads.<task>.<tensor>` in the weights. Empty if it is not said.
    #[serde(default, skip_serializing_if = "Heads::is_empty")]
    pub heads: Heads,
}

/// Shapes by task and tensor.
pub type Heads = BTreeMap<String, BTreeMap<String, Vec<usize>>>;

/// The layout that this version reads and writes.
const FORMAT: u32 = 1;
const DESCRIPTION: &str = "mtdnn.json";
const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";

/// A model directory that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// No directory.
    #[error("{}: no such model directory; it should hold config.json, model.safetensors and vocab.txt", path.display())]
    Missing {
        /// What was asked for.
        path: PathBuf,
    },
    /// The directory of a run, which holds model directories.
    #[error("{}: this is the directory of a run, which holds models; did you mean {}?", path.display(), model.display())]
    Run {
        /// What was asked for.
        path: PathBuf,
        /// A model in it.
        model: PathBuf,
    },
    /// `config.json` is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `model.safetensors` is wrong.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The vocabulary is wrong.
    #[error(transparent)]
    Vocabulary(#[from] DataError),
    /// The vocabulary and the embedding are of two sizes.
    #[error(
        "{}: the vocabulary has {tokens} tokens, but config.json gives the word embedding {rows} rows; \
         take vocab.txt and config.json from the same model",
        path.display()
    )]
    Mismatch {
        /// The directory.
        path: PathBuf,
        /// Tokens of the vocabulary.
        tokens: usize,
        /// Rows of the embedding.
        rows: usize,
    },
    /// `mtdnn.json` is absent where tasks are needed.
    #[error(
        "{}: no mtdnn.json, {}",
        path.display(),
        match model_of_run(path, DESCRIPTION) {
            Some(model) => format!("but the directory of a run holds models; did you mean {}?", model.display()),
            None => format!(
                "so it is an encoder without task heads; train it on tasks first: mtdnn-raw train --init {}",
                path.display()
            ),
        }
    )]
    NoTasks {
        /// The directory.
        path: PathBuf,
    },
    /// `mtdnn.json` is wrong.
    #[error("{}: {problem}", path.display())]
    Description {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// `mtdnn.json` and the weights differ about a head.
    #[error(
        "{}: {tensor} should have the shape {said:?}, but {WEIGHTS} beside it {}; take both files from the same model",
        path.display(),
        found.as_ref().map_or("does not have it".to_string(), |found| format!("has {found:?}"))
    )]
    Head {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the weights.
        tensor: String,
        /// The shape that `mtdnn.json` says.
        said: Vec<usize>,
        /// The shape that it has, if it is there.
        found: Option<Vec<usize>>,
    },
    /// A file could not be written.
    #[error("{}: cannot be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A directory's encoder: its sizes and its vocabulary, checked against each other.
pub fn read_encoder(directory: &Path) -> Result<(BertConfig, Tokenizer), DirectoryError> {
    if !directory.is_dir() {
        return Err(DirectoryError::Missing { path: directory.to_path_buf() });
    }
    if !directory.join(CONFIG).exists()
        && let Some(model) = model_of_run(directory, CONFIG)
    {
        return Err(DirectoryError::Run { path: directory.to_path_buf(), model });
    }
    let config = BertConfig::from_file(&directory.join(CONFIG))?;
    let tokenizer = Tokenizer::from_directory(directory)?;
    let (tokens, rows) = (tokenizer.vocab_size(), config.vocab_size);
    if tokens > rows {
        return Err(DirectoryError::Mismatch { path: directory.to_path_buf(), tokens, rows });
    }
    Ok((config, tokenizer))
}

/// The best or last model of a run's directory that has this file.
fn model_of_run(directory: &Path, file: &str) -> Option<PathBuf> {
    ["best", "last"].map(|name| directory.join(name)).into_iter().find(|model| model.join(file).is_file())
}

/// Rows of padding that a word embedding may have without question: up to a multiple of 8, 64 or 128.
const PADDING: usize = 127;

/// What to say of a word embedding with more rows for no token than padding explains. They do no harm, but mostly mean
/// that vocabulary and embedding belong to two models, and then every token has another's vector.
pub fn doubtful_vocabulary(config: &BertConfig, tokenizer: &Tokenizer) -> Option<String> {
    let (tokens, rows) = (tokenizer.vocab_size(), config.vocab_size);
    let unused = rows.saturating_sub(tokens);
    (unused > PADDING || unused > tokens).then(|| {
        format!(
            "the vocabulary has {tokens} tokens and the word embedding {rows} rows, {unused} of them for no token; \
             check that the vocabulary is this model's (vocab_size says the rows)"
        )
    })
}

/// A directory's tasks; `None` for an encoder alone.
pub fn read_description(directory: &Path) -> Result<Option<Description>, DirectoryError> {
    let path = directory.join(DESCRIPTION);
    let problem = |problem: String| DirectoryError::Description { path: path.clone(), problem };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(problem(format!("cannot be read: {error}"))),
    };
    let description: Description = serde_json::from_str(&text)
        .map_err(|error| problem(format!("not a description of tasks: {error}")))?;
    if description.format != FORMAT {
        let found = description.format;
        return Err(problem(format!("format {found}; this version reads format {FORMAT}")));
    }
    for task in &description.tasks {
        task.validate()?;
    }
    Ok(Some(description))
}

/// As [`read_description`], for a directory that must have tasks.
pub fn require_description(directory: &Path) -> Result<Description, DirectoryError> {
    if !directory.is_dir() {
        return Err(DirectoryError::Missing { path: directory.to_path_buf() });
    }
    read_description(directory)?.ok_or_else(|| DirectoryError::NoTasks { path: directory.to_path_buf() })
}

/// What became of a model's parameters on loading.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Matched, missing and unexpected names.
    pub report: Report,
    /// Parameters that the directory has not and that were initialised.
    pub initialised: Vec<String>,
}

/// Holds the shapes that `mtdnn.json` says against those of the weights.
fn check_heads(directory: &Path, heads: &Heads) -> Result<(), DirectoryError> {
    if heads.is_empty() {
        return Ok(());
    }
    let mut shapes = weights::shapes(&directory.join(WEIGHTS))?;
    for (task, tensors) in heads {
        for (tensor, said) in tensors {
            let tensor = format!("heads.{task}.{tensor}");
            let found = shapes.remove(&tensor);
            if found.as_ref() != Some(said) {
                let (path, said) = (directory.join(DESCRIPTION), said.clone());
                return Err(DirectoryError::Head { path, tensor, said, found });
            }
        }
    }
    Ok(())
}

/// The shapes of a model's heads.
fn heads_of(model: &Model) -> Heads {
    let mut heads = Heads::new();
    for parameter in model.parameters().parameters() {
        let name = parameter.name.strip_prefix("heads.").and_then(|name| name.split_once('.'));
        if let Some((task, tensor)) = name {
            heads.entry(task.into()).or_default().insert(tensor.into(), parameter.shape.clone());
        }
    }
    heads
}

/// Reads a model's parameters into `values`, the flat parameter buffer.
///
/// Encoder tensors must be there. The pooler, the heads of masked words and next sentences, and heads of tasks that the directory's `mtdnn.json` does not
/// describe in the same way, are initialised from `seed` where they are missing; with `all` that is an error.
pub fn load_parameters(
    directory: &Path,
    model: &Model,
    seed: u64,
    all: bool,
    values: &mut [f32],
) -> Result<Loaded, DirectoryError> {
    let mut described = Vec::new();
    if let Some(description) = read_description(directory)? {
        check_heads(directory, &description.heads)?;
        described = description.tasks;
    }
    let same_head = |name: &str| {
        let task = model.tasks().iter().find(|task| name.starts_with(&format!("heads.{}.", task.name)));
        task.is_some_and(|task| {
            described.iter().any(|other| {
                let same_form = match (&other.san, &task.san) {
                    (None, None) => true,
                    (Some(other), Some(own)) => own.has_parameters_of(other),
                    _ => false,
                };
                other.name == task.name && other.kind == task.kind && other.labels == task.labels && same_form
            })
        })
    };
    let parameters = model.parameters().parameters();
    let (asked, fresh): (Vec<_>, Vec<_>) = parameters
        .iter()
        .partition(|parameter| !parameter.name.starts_with("heads.") || all || same_head(&parameter.name));
    let expected: Vec<Expected> = asked
        .iter()
        .map(|parameter| Expected {
            name: parameter.name.clone(),
            shape: parameter.shape.clone(),
            required: all || !(parameter.name.starts_with("pooler.") || is_pretraining_head(&parameter.name)),
        })
        .collect();
    load(directory, model.parameters(), &asked, &expected, &fresh, seed, values)
}

/// Reads the parameters of an encoder with pre-training heads into `values`, the flat parameter buffer.
///
/// Encoder tensors must be there. The pooler and the heads are initialised from `seed` where they are missing; with
/// `all` that is an error.
pub fn load_pretraining(
    directory: &Path,
    model: &PretrainingModel,
    seed: u64,
    all: bool,
    values: &mut [f32],
) -> Result<Loaded, DirectoryError> {
    let asked: Vec<&Parameter> = model.parameters().parameters().iter().collect();
    let optional = |name: &str| name.starts_with("pooler.") || is_pretraining_head(name);
    let expected: Vec<Expected> = asked
        .iter()
        .map(|parameter| Expected {
            name: parameter.name.clone(),
            shape: parameter.shape.clone(),
            required: all || !optional(&parameter.name),
        })
        .collect();
    load(directory, model.parameters(), &asked, &expected, &[], seed, values)
}

/// Whether a tensor belongs to the heads of pre-training.
pub fn is_pretraining_head(name: &str) -> bool {
    name.starts_with("cls.")
}

/// Reads the parameters that are `asked` for, each as `expected`, and initialises those that are missing and the `fresh`.
fn load(
    directory: &Path,
    table: &ParameterTable,
    asked: &[&Parameter],
    expected: &[Expected],
    fresh: &[&Parameter],
    seed: u64,
    values: &mut [f32],
) -> Result<Loaded, DirectoryError> {
    let report = weights::load(&directory.join(WEIGHTS), expected, |index, tensor| {
        values[asked[index].range()].copy_from_slice(tensor);
    })?;
    let absent = asked.iter().filter(|parameter| report.missing.contains(&parameter.name));
    let mut initialised = Vec::new();
    for parameter in absent.chain(fresh) {
        table.initialise(parameter, seed, &mut values[parameter.range()]);
        initialised.push(parameter.name.clone());
    }
    Ok(Loaded { report, initialised })
}

/// Writes a whole model directory's files into `directory`, which exists. With a task of masked words `transformers` loads
/// it as `BertForPreTraining` as well.
pub fn save(
    directory: &Path,
    model: &Model,
    tokenizer: &Tokenizer,
    max_length: usize,
    values: &[f32],
) -> Result<(), DirectoryError> {
    let pretrains = model.parameters().parameters().iter().any(|one| is_pretraining_head(&one.name));
    let architecture = if pretrains { "BertForPreTraining" } else { "BertModel" };
    model.config().save(&directory.join(CONFIG), architecture)?;
    tokenizer.save(directory)?;
    let description = Description {
        format: FORMAT,
        engine: format!("mtdnn-raw {}", env!("CARGO_PKG_VERSION")),
        max_length,
        tasks: model.tasks().to_vec(),
        heads: heads_of(model),
    };
    let path = directory.join(DESCRIPTION);
    let text = serde_json::to_string_pretty(&description).expect("plain data") + "\n";
    fs::write(&path, text).map_err(|source| DirectoryError::Write { path, source })?;
    save_weights(directory, model.parameters(), values, |name| match pretrains {
        true if !name.starts_with("heads.") => name_beside_heads(name),
        _ => name.to_string(),
    })
}

/// Writes the files of an encoder with pre-training heads into `directory`, which exists.
///
/// `transformers` loads it as `BertForPreTraining`: beside the heads' `cls.` the encoder's names need their `bert.`,
/// and the decoder is the word embedding.
pub fn save_pretraining(
    directory: &Path,
    model: &PretrainingModel,
    tokenizer: &Tokenizer,
    values: &[f32],
) -> Result<(), DirectoryError> {
    model.config().save(&directory.join(CONFIG), "BertForPreTraining")?;
    tokenizer.save(directory)?;
    save_weights(directory, model.parameters(), values, name_beside_heads)
}

/// A tensor's name beside heads of pre-training: theirs as it is, the encoder's with `bert.`.
fn name_beside_heads(name: &str) -> String {
    if is_pretraining_head(name) { name.to_string() } else { format!("bert.{name}") }
}

fn save_weights(
    directory: &Path,
    table: &ParameterTable,
    values: &[f32],
    name: impl Fn(&str) -> String,
) -> Result<(), DirectoryError> {
    let tensors: Vec<_> = table
        .parameters()
        .iter()
        .map(|parameter| (name(&parameter.name), parameter.shape.clone(), &values[parameter.range()]))
        .collect();
    Ok(weights::save(&directory.join(WEIGHTS), &tensors, &[])?)
}

/// The bytes that saving so many parameters and a vocabulary writes, nearly.
pub fn bytes_of(parameters: &ParameterTable, tokenizer: &Tokenizer) -> u64 {
    parameters.count() as u64 * 4 + tokenizer.vocab_size() as u64 * 64 + (1 << 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::Normalization;

    #[test]
    fn padding_is_no_doubt() {
        let doubt = |words: usize, rows| {
            let words: Vec<String> = (0..words).map(|word| format!("w{word}")).collect();
            let tokenizer = Tokenizer::from_words(words.iter().map(String::as_str), Normalization::default());
            let config = BertConfig { vocab_size: rows, ..BertConfig::default() };
            doubtful_vocabulary(&config, &tokenizer.unwrap())
        };
        // Five tokens are special.
        assert_eq!(doubt(995, 1000), None);
        assert_eq!(doubt(996, 1001 + 127), None);
        assert!(doubt(995, 1000 + 128).unwrap().contains("1000 tokens and the word embedding 1128 rows"));
        assert_eq!(doubt(3, 16), None);
        assert!(doubt(3, 17).unwrap().contains("9 of them for no token"));
    }
}
