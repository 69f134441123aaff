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
pub mod dataset;
mod error;
pub mod task;

pub use batch::{Batch, Capacity};
pub use dataset::{Dataset, Example, Label, Text};
pub use error::DataError;
pub use task::{MetricKind, TaskKind, TaskSpec};
