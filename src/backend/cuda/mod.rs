//! The CUDA backend.
//!
//! | file | what |
//! |---|---|
//! | [`lower`] | from operations to launches: the `match` over [`Op`](crate::tensor::Op) |
//! | [`gemm`], [`attention`], [`norm`], [`embedding`], [`elementwise`], [`activation`], [`gather`], [`loss`], [`update`] | what each group of kernels takes, and with how many blocks |
//! | [`launch`] | launches as plain data, made without a device |
//! | [`backend`], [`device`] | one slab, one stream, captured graphs |

pub mod activation;
pub mod attention;
//pub mod backend;
//pub mod device;
pub mod elementwise;
pub mod embedding;
pub mod gather;
pub mod gemm;
pub mod launch;
pub mod loss;
pub mod lower;
pub mod norm;
mod sums;
pub mod update;
