//! The tape: what is to be computed, as plain data.

mod op;

pub use op::Dropout;
