//! The CUDA backend.
//!
//! What each operation launches is plain data ([`launch`]), made without a device.

pub mod activation;
pub mod attention;
pub mod elementwise;
pub mod embedding;
pub mod gather;
pub mod launch;
pub mod loss;
pub mod norm;
mod sums;
pub mod update;
