//! The CUDA backend.
//!
//! What each operation launches is plain data ([`launch`]), made without a device. The kernels' sources in `kernels/`
//! become what a device loads in [`images`]; [`nvrtc`] is the compiler, and [`probe`] says what devices there are.

pub mod activation;
pub mod arch;
pub mod attention;
pub mod elementwise;
pub mod embedding;
pub mod figures;
pub mod gather;
mod image_file;
pub mod images;
pub mod launch;
pub mod loss;
pub mod norm;
pub mod nvrtc;
pub mod probe;
mod sums;
pub mod update;
