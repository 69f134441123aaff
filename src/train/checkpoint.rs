//! What a run leaves behind: the state to go on from, and the model directories to use.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use rayon::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::evaluate::Evaluation;
use super::store;
use super::trainer::Progress;
use crate::backend::Backend;
use crate::data::Tokenizer;
use crate::nn::ParameterTable;
use crate::nn::directory::{self, DirectoryError};
use crate::nn::weights::{self, Expected};
use crate::tensor::{Precision, Space, Span};

/// Everything but the numbers that going on exactly needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Where the run stands.
    pub progress: Progress,
    /// The length of `metrics.jsonl` at this point.
    pub log_offset: u64,
    /// What each task's examples hash to: a run does not go on over other data.
    pub data: Vec<String>,
    /// The figures of the best evaluation so far, for the table at the end.
    pub evaluations: Vec<Evaluation>,
    /// Seconds of the run so far.
    pub seconds: f64,
}

/// A run's state as [`PROGRESS`] has it.
#[derive(Serialize, Deserialize)]
struct Saved<State> {
    /// What the run computes in: it follows from the machine where nobody says it, and a run goes on only as it began.
    /// Absent where it was saved by a program that did not record it yet.
    precision: Option<Precision>,
    #[serde(flatten)]
    state: State,
}

/// Numbers of a buffer that one thread takes.
const PIECE: usize = 1 << 20;
const PROGRESS: &str = "progress.json";
const TENSORS: &str = "state.safetensors";
const SPACES: [(Space, &str); 3] = [
    (Space::Parameters, "parameters"),
    (Space::FirstMoment, "first_moment"),
    (Space::SecondMoment, "second_moment"),
];

/// What `state/` is made of, copied out of the backend: training can go on while it is written.
#[derive(Debug)]
pub struct Snapshot {
    updates: u64,
    /// What [`PROGRESS`] will say.
    progress: String,
    /// The buffers of [`SPACES`].
    buffers: [Arc<Vec<f32>>; 3],
}

impl Snapshot {
    /// Copies the moments beside the copy of the `parameters` as they are after so many `updates`.
    ///
    /// # Errors
    ///
    /// A failure of the backend, or a number that is not finite.
    pub fn take(
        updates: u64,
        state: &impl Serialize,
        parameters: Arc<Vec<f32>>,
        backend: &mut dyn Backend,
    ) -> anyhow::Result<Self> {
        let saved = Saved { precision: Some(backend.precision()), state };
        let progress = serde_json::to_string_pretty(&saved)? + "\n";
        let len = parameters.len();
        let mut moment = |space| Ok::<_, anyhow::Error>(Arc::new(read(space, len, backend)?));
        let buffers = [parameters, moment(Space::FirstMoment)?, moment(Space::SecondMoment)?];
        Ok(Self { updates, progress, buffers })
    }

    /// Saves it as `state/` of the run directory.
    ///
    /// # Errors
    ///
    /// Those of [`store::save`].
    pub fn save(&self, run: &Path) -> anyhow::Result<()> {
        let parameters = self.buffers[0].len();
        let bytes = parameters as u64 * 12 + (1 << 16);
        store::save(run, store::STATE, self.updates, bytes, |directory| {
            fs::write(directory.join(PROGRESS), &self.progress)?;
            let tensors: Vec<_> = SPACES
                .iter()
                .zip(&self.buffers)
                .map(|(&(_, name), buffer)| (name.to_string(), vec![parameters], buffer.as_slice()))
                .collect();
            Ok(weights::save(&directory.join(TENSORS), &tensors, &[])?)
        })?;
        Ok(())
    }
}

/// What the run that is saved in a directory computes in; `None` where that is not known.
pub fn recorded_precision(run: &Path) -> Option<Precision> {
    let text = fs::read_to_string(run.join(store::STATE).join(PROGRESS)).ok()?;
    serde_json::from_str::<Saved<serde_json::Value>>(&text).ok()?.precision
}

/// Reads a state directory back into the backend.
///
/// # Errors
///
/// Files that cannot be read or are no state; a state of a run that computes in another precision than the backend.
pub fn load_state<State: DeserializeOwned>(
    directory: &Path,
    parameters: usize,
    backend: &mut dyn Backend,
) -> anyhow::Result<State> {
    let path = directory.join(PROGRESS);
    let text = fs::read_to_string(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let Saved { precision, state } =
        serde_json::from_str(&text).with_context(|| format!("{}: not a run's state", path.display()))?;
    let now = backend.precision();
    if let Some(precision) = precision
        && precision != now
    {
        bail!(
            "--resume: the run computes in {precision}, and it would go on in {now}; a run goes on only as it began. \
             Say --precision {precision}"
        );
    }
    let expected =
        SPACES.map(|(_, name)| Expected { name: name.to_string(), shape: vec![parameters], required: true });
    let mut written = Ok(());
    weights::load(&directory.join(TENSORS), &expected, |index, values| {
        let span = Span { space: SPACES[index].0, offset: 0, len: parameters };
        if written.is_ok() {
            written = backend.write(span, bytemuck::cast_slice(values));
        }
    })?;
    written?;
    Ok(state)
}

/// Saves the model directory `name` of the run directory; `write` puts its files into a directory.
pub fn save_model(
    run: &Path,
    name: &str,
    updates: u64,
    parameters: &ParameterTable,
    tokenizer: &Tokenizer,
    write: impl FnOnce(&Path) -> Result<(), DirectoryError>,
) -> anyhow::Result<()> {
    let bytes = directory::bytes_of(parameters, tokenizer);
    store::save(run, name, updates, bytes, |path| Ok(write(path)?))?;
    Ok(())
}

/// Copies a buffer of so many numbers out of the backend.
///
/// # Errors
///
/// A failure of the backend, or a number that is not finite: a checkpoint that cannot be gone on from must not replace
/// one that can.
pub fn read(space: Space, len: usize, backend: &mut dyn Backend) -> anyhow::Result<Vec<f32>> {
    let mut values = vec![0.0f32; len];
    // That the system finds memory for it takes longer than the copying, and less on several threads.
    values.par_chunks_mut(PIECE).for_each(|piece| piece.fill(0.0));
    backend.read(Span { space, offset: 0, len }, bytemuck::cast_slice_mut(&mut values))?;
    match weights::first_not_finite(&values) {
        None => Ok(values),
        Some(element) => bail!(
            "a number of the {space:?} is {}: training has diverged. Try a lower learning rate",
            values[element]
        ),
    }
}
