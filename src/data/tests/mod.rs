//! Tests of the floor as a whole: files in, examples out.

mod any_bytes;
mod masked;
mod own_files;
mod pretraining;
mod qnli;
mod real_files;
mod reference;
mod reference_spans;
mod token_files;
mod traps;
