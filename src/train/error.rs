//! What makes training impossible.

use super::config::ConfigValueError;
use crate::backend::{BackendError, Sizes};

/// What makes training impossible.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A setting does not go with the tasks.
    #[error("{0}")]
    Setting(#[from] ConfigValueError),
    /// The device has not the memory for the plan.
    #[error(
        "out of memory: {asked} bytes are needed, {arena} of them for the values of a batch of {batch_size}, and \
         {available} are free; {}",
        match fits {
            0 => "not one example fits: take shorter sequences or another --device".to_string(),
            fits => format!("the largest batch that fits is about {fits}"),
        }
    )]
    OutOfMemory {
        /// Bytes of everything.
        asked: usize,
        /// Bytes of the plan's arena.
        arena: usize,
        /// What was to be trained at a time.
        batch_size: usize,
        /// Bytes that are free.
        available: usize,
        /// Examples whose values would fit.
        fits: usize,
    },
    /// A parameter that no task trains.
    #[error("no task's loss reaches {names}: such a parameter would never be trained")]
    Untrained {
        /// The first few names.
        names: String,
    },
    /// A task without training examples.
    #[error("task {task}: the training set is empty")]
    Empty {
        /// Its name.
        task: String,
    },
    /// A sequence longer than the position table.
    #[error(
        "task {task}: a sequence of {length} tokens exceeds the model's {positions} positions; \
         give --max-length {positions} or less"
    )]
    TooLong {
        /// Its name.
        task: String,
        /// Tokens of the longest sequence.
        length: usize,
        /// Rows of the position table.
        positions: usize,
    },
    /// A phase of pre-training with sequences longer than the position table.
    #[error(
        "phases: sequences of {length} tokens exceed the model's {positions} positions; make the phase shorter, or \
         the model's max_position_embeddings larger"
    )]
    PhaseTooLong {
        /// Tokens of the phase's longest sequence.
        length: usize,
        /// Rows of the position table.
        positions: usize,
    },
    /// Training has diverged.
    #[error(
        "the {what} of task {task} is {value} at step {step}: training has diverged. Nothing of it is saved; \
         a checkpoint of before is intact. Try a lower learning rate, with another --output"
    )]
    NotFinite {
        /// Loss, gradient norm or answer.
        what: &'static str,
        /// The task's name.
        task: String,
        /// The step, from 0.
        step: u32,
        /// What it was.
        value: f32,
    },
}

/// Says how large a batch would fit, where the backend knows how much memory there is.
pub(super) fn with_what_fits(error: BackendError, sizes: &Sizes, batch_size: usize) -> TrainError {
    let BackendError::OutOfMemory { bytes: asked, available: Some(available) } = error else {
        return error.into();
    };
    // Values take memory in proportion to the batch; the rest does not depend on it.
    let arena = size_of::<f32>() * sizes.arena;
    let left = available.saturating_sub(asked.saturating_sub(arena));
    let fits = (batch_size as f64 * left as f64 / arena.max(1) as f64) as usize;
    TrainError::OutOfMemory { asked, arena, batch_size, available, fits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_the_share_of_the_memory_that_is_left() {
        let sizes = Sizes { parameters: 100, arena: 1000, training: true };
        let error = |available| {
            let error = BackendError::OutOfMemory { bytes: 5600, available: Some(available) };
            with_what_fits(error, &sizes, 32).to_string()
        };
        // 1600 bytes are for parameters and their like; half of the arena's 4000 are left.
        assert!(error(3600).ends_with("the largest batch that fits is about 16"), "{}", error(3600));
        assert!(error(1650).contains("not one example fits"), "{}", error(1650));
    }
}
