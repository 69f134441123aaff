//! What a run leaves behind: the state to go on from, and the model directories to use.

use std::fs;
use std::path::Path;

use anyhow::Context;
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
use crate::tensor::{Space, Span};

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

const PROGRESS: &str = "progress.json";
const TENSORS: &str = "state.safetensors";
const SPACES: [(Space, &str); 3] = [
    (Space::Parameters, "parameters"),
    (Space::FirstMoment, "first_moment"),
    (Space::SecondMoment, "second_moment"),
];

/// Saves parameters, moments and `state` as `state/` of the run directory, as it is after so many `updates`.
pub fn save_state(
    run: &Path,
    updates: u64,
    state: &impl Serialize,
    parameters: usize,
    backend: &mut dyn Backend,
) -> anyhow::Result<()> {
    let buffers: Vec<Vec<f32>> = SPACES
        .iter()
        .map(|&(space, _)| read_buffer(backend, space, parameters))
        .collect::<anyhow::Result<_>>()?;
    let bytes = parameters as u64 * 12 + (1 << 16);
    store::save(run, store::STATE, updates, bytes, |directory| {
        let text = serde_json::to_string_pretty(state)?;
        fs::write(directory.join(PROGRESS), text + "\n")?;
        let tensors: Vec<_> = SPACES
            .iter()
            .zip(&buffers)
            .map(|(&(_, name), buffer)| (name.to_string(), vec![parameters], buffer.as_slice()))
            .collect();
        Ok(weights::save(&directory.join(TENSORS), &tensors, &[])?)
    })?;
    Ok(())
}

/// Reads a state directory back into the backend.
pub fn load_state<State: DeserializeOwned>(
    directory: &Path,
    parameters: usize,
    backend: &mut dyn Backend,
) -> anyhow::Result<State> {
    let path = directory.join(PROGRESS);
    let text = fs::read_to_string(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let state =
        serde_json::from_str(&text).with_context(|| format!("{}: not a run's state", path.display()))?;
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

/// Saves the parameters as the model directory `name` of the run directory; `write` puts its files into a directory.
pub fn save_model(
    run: &Path,
    name: &str,
    updates: u64,
    parameters: &ParameterTable,
    tokenizer: &Tokenizer,
    backend: &mut dyn Backend,
    write: impl FnOnce(&Path, &[f32]) -> Result<(), DirectoryError>,
) -> anyhow::Result<()> {
    let values = read_buffer(backend, Space::Parameters, parameters.len())?;
    let bytes = directory::bytes_of(parameters, tokenizer);
    store::save(run, name, updates, bytes, |path| Ok(write(path, &values)?))?;
    Ok(())
}

fn read_buffer(backend: &mut dyn Backend, space: Space, len: usize) -> anyhow::Result<Vec<f32>> {
    let mut values = vec![0.0f32; len];
    backend.read(Span { space, offset: 0, len }, bytemuck::cast_slice_mut(&mut values))?;
    // A checkpoint that cannot be gone on from must not replace one that can.
    if let Some(value) = values.iter().find(|value| !value.is_finite()) {
        anyhow::bail!(
            "a number of the {space:?} is {value}: training has diverged. Try a lower learning rate"
        );
    }
    Ok(values)
}
