//! The CUDA backend.
//!
//! What each operation launches is plain data ([`launch`]), made without a device.

pub mod attention;
pub mod launch;
