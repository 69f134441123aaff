//! Floor 2: backends, which run programs. The tape knows no numbers; a backend knows no names.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod optimizer;

pub use optimizer::{Group, Optimizer, Rule, Scalars};

use crate::tensor::{Extents, Op, Precision, Program, Span};

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

/// Where a number that queued work leaves can be had: [`Backend::number`]. Good for the next [`KEPT`] of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

impl Ticket {
    /// The ticket of a backend's number with this place in the order of all.
    pub fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its place in that order, from 0.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// How many numbers a backend keeps.
pub const KEPT: usize = 256;

/// A failure of a backend. Wrong shapes are bugs and panic instead.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The buffers do not fit into memory.
    #[error(
        "out of memory: the plan needs {bytes} bytes{}; smaller batches or shorter sequences need less",
        available.map_or(String::new(), |bytes| format!(" and {bytes} are free"))
    )]
    OutOfMemory {
        /// What was asked for.
        bytes: usize,
        /// What there is, where that is known.
        available: Option<usize>,
    },
    /// There is no device to run on.
    #[error("{reason}")]
    NoDevice {
        /// What is missing.
        reason: String,
    },
    /// The device or its driver failed: what was queued before may be lost.
    #[error("the GPU failed while {what}: {error}")]
    Device {
        /// What was being done, or found to have failed.
        what: String,
        /// The driver's words.
        error: String,
    },
}

/// Runs programs over flat buffers. Object-safe, and without a method per operation.
pub trait Backend {
    /// What programs for it are to be recorded in.
    fn precision(&self) -> Precision;

    /// Rows of a line that sequences are aligned to, so that its tiles are full; 1 where it does not matter.
    fn line(&self) -> usize;

    /// Allocates every buffer, zeroed, once; the contents of buffers that keep their size are kept.
    fn reserve(&mut self, sizes: &Sizes) -> Result<(), BackendError>;

    /// Copies `bytes` into a buffer.
    fn write(&mut self, span: Span, bytes: &[u8]) -> Result<(), BackendError>;

    /// Copies out of a buffer.
    fn read(&mut self, span: Span, bytes: &mut [u8]) -> Result<(), BackendError>;

    /// Zeroes a part of a buffer.
    fn clear(&mut self, span: Span) -> Result<(), BackendError>;

    /// Queues every step of a program on the batch that was written to its inputs.
    ///
    /// All that is queued happens in order, and before whatever is read later.
    fn run(&mut self, program: &Program, step: &StepScalars) -> Result<(), BackendError>;

    /// Queues one operation of a program by itself, so that two backends can be compared operation by operation.
    fn run_one(&mut self, program: &Program, op: &Op, step: &StepScalars) -> Result<(), BackendError>;

    /// Queues an update: the groups' gradients are clipped to a global norm and their parameters updated.
    ///
    /// The number is the norm before clipping. Where it is not finite, nothing is updated.
    fn update(&mut self, optimizer: &Optimizer, clip: f32, groups: &[Group]) -> Result<Ticket, BackendError>;

    /// Queues the keeping of a value of one f32, such as a loss.
    fn keep(&mut self, span: Span) -> Result<Ticket, BackendError>;

    /// A kept number; waits until the work that it comes from is done.
    fn number(&mut self, ticket: Ticket) -> Result<f32, BackendError>;

    /// How many steps may be queued before the numbers of the first are asked for, so that the device never waits for
    /// the host; 0 where work is done as it is queued.
    fn steps_ahead(&self) -> usize;
}
