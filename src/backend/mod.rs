//! Floor 2: backends, which run programs. The tape knows no numbers; a backend knows no names.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod optimizer;

pub use optimizer::{Group, Optimizer, Rule, Scalars};

use crate::tensor::{Extents, Program, Span};

/// How many elements each flat buffer holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Parameters, and so gradients and each moment.
    pub parameters: usize,
    /// The largest arena of the programs to be run.
    pub arena: usize,
    /// Whether gradients and moments are needed too.
    pub training: bool,
}

/// What changes from step to step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepScalars {
    /// The batch's size.
    pub extents: Extents,
    /// The run's seed, the key of every draw.
    pub seed: u64,
    /// The number of this batch in the run, part of every draw's counter.
    pub step: u32,
}

/// A failure of a backend. Wrong shapes are bugs and panic instead.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The buffers do not fit into memory.
    #[error("out of memory: the plan needs {bytes} bytes; a smaller --batch-size or --max-length needs less")]
    OutOfMemory {
        /// What was asked for.
        bytes: usize,
    },
}

/// Runs programs over flat buffers. Object-safe, and without a method per operation.
pub trait Backend {
    /// Allocates every buffer, zeroed, once; the contents of buffers that keep their size are kept.
    fn reserve(&mut self, sizes: &Sizes) -> Result<(), BackendError>;

    /// Copies `bytes` into a buffer.
    fn write(&mut self, span: Span, bytes: &[u8]) -> Result<(), BackendError>;

    /// Copies out of a buffer.
    fn read(&mut self, span: Span, bytes: &mut [u8]) -> Result<(), BackendError>;

    /// Zeroes a part of a buffer.
    fn clear(&mut self, span: Span) -> Result<(), BackendError>;

    /// Runs every step of a program on the batch that was written to its inputs.
    fn run(&mut self, program: &Program, step: &StepScalars) -> Result<(), BackendError>;

    /// Clips the groups' gradients to a global norm and updates their parameters.
    ///
    /// Returns the norm before clipping. Where it is not finite, nothing is updated.
    fn update(&mut self, optimizer: &Optimizer, clip: f32, groups: &[Group]) -> Result<f32, BackendError>;
}
