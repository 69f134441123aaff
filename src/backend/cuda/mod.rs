//! The CUDA backend.
//!
//! What each operation launches is plain data ([`launch`]), made without a device.

pub mod gemm;
pub mod launch;
