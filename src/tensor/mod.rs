//! Floor 1: what is to be computed, as plain data. No device, no I/O, no numbers.
//!
//! A model records operations on a [`Tape`]; [`Program::training`] appends the backward pass and gives each
//! value a place in one arena; a backend then walks the [`Program`]. Read `op`, `tape`, `grad`, `plan`.

mod grad;
mod op;
mod operands;
mod plan;
mod precision;
mod shape;
mod tape;

pub use op::{Activation, Dropout, KeptNorm, MOST_STEPS, Op, Sink, TokenIndex, Var};
pub use operands::Access;
pub use plan::{Program, Space, Span};
pub use precision::Precision;
pub use shape::{DType, Extents, LINE, Rows, Shape};
pub use tape::{Mode, Origin, Tape, Value};
