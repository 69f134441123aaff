//! The CPU backend.

pub mod gemm;
pub mod isa;
pub mod math;
pub mod scratch;
pub mod shared;
