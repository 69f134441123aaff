//! The CPU backend.

pub mod isa;
pub mod math;
pub mod philox;
mod simd;
