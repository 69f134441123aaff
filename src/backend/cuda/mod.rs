//! The CUDA backend.
//!
//! | file | what |
//! |---|---|
//! | [`lower`] | from operations to launches: the `match` over [`Op`](crate::tensor::Op) |
//! | [`gemm`], [`attention`], `hopper_attention`, [`attend`], [`san`], [`norm`], [`embedding`], [`elementwise`], [`activation`], [`gather`], [`loss`], [`vocabulary`], [`update`] | what each group of kernels takes, and with how many blocks |
//! | `hopper_gemm` | which products Hopper's own kernels compute, and in which tiles |
//! | [`launch`] | launches as plain data, made without a device |
//! | [`images`], [`nvrtc`], [`figures`], [`arch`] | from the sources in `kernels/` to what a device loads |
//! | [`backend`], [`device`], [`probe`] | one slab, one stream, captured graphs; what devices there are |

pub mod activation;
pub mod arch;
pub mod attend;
pub mod attention;
pub mod backend;
pub mod device;
pub mod elementwise;
pub mod embedding;
pub mod figures;
pub mod gather;
pub mod gemm;
mod hopper_attention;
mod hopper_gemm;
mod image_file;
pub mod images;
pub mod launch;
pub mod loss;
pub mod lower;
pub mod norm;
pub mod nvrtc;
pub mod probe;
pub mod san;
mod sums;
pub mod update;
pub mod vocabulary;
