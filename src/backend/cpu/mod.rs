//! The CPU backend: kernels on slices, parallel over the rayon pool that the caller runs in.

pub mod gemm;
pub mod isa;
pub mod math;
pub mod philox;
pub mod scratch;
mod shared;
mod simd;
