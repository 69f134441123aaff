//! The CPU backend: kernels on slices, parallel over the rayon pool that the caller runs in.

pub mod activation;
mod blocks;
pub mod dropout;
pub mod elementwise;
pub mod embedding;
pub mod gather;
pub mod gemm;
pub mod isa;
pub mod loss;
pub mod math;
pub mod norm;
pub mod philox;
pub mod scratch;
mod shared;
mod simd;
pub mod sums;
#[cfg(test)]
mod testing;
pub mod update;

pub use blocks::SinkMut;
