//! Text and numbers, nothing of tensors: from files of sentences to packed batches of token ids.
//!
//! The way of an example, file by file:
//!
//! | file | what it makes |
//! |---|---|
//! | [`task`], [`glue`], [`custom`] | what a task is: its kind, labels, metrics, and where its files lie |
//! | [`reader`] | lines of TSV, CSV or JSONL into [`Example`]s |
//! | [`sample`] | examples without any file: the built-in sample tasks |
//! | [`tokenizer`] | text into token ids, BERT's way |
//! | [`dataset`], [`cache`] | a split, tokenised once and kept |
//! | [`sampler`] | which examples go into which batch, in what order |
//! | [`batch`] | the packed arrays that a step reads |

pub mod batch;
pub mod cache;
pub mod custom;
pub mod dataset;
mod error;
pub mod glue;

pub mod packing;
pub mod reader;
mod rows;
pub mod sample;
pub mod sampler;
pub mod task;
pub mod tokenizer;

pub use batch::{Batch, Capacity};
pub use custom::TaskEntry;
pub use dataset::{Dataset, Example, Label, Text};
pub use error::DataError;
pub use packing::Packing;
pub use reader::Skipped;
pub use sampler::Sampler;
pub use task::{MetricKind, SourceFile, Split, TaskKind, TaskSpec, Texts};
pub use tokenizer::Tokenizer;

#[cfg(test)]
mod tests;
