//! Text and numbers, nothing of tensors: from files of sentences to packed batches of token ids.
//!
//! The way of an example, file by file:
//!
//! | file | what it makes |
//! |---|---|
//! | [`task`], [`glue`], [`custom`] | what a task is: its kind, labels, metrics, and where its files lie |
//! | [`reference`](mod@reference) | the task definitions and files of MT-DNN's own code |
//! | [`reader`] | lines of TSV, CSV or JSONL into [`Example`]s |
//! | [`qnli`] | two rows of QNLI v1 into a query with two candidates |
//! | [`soft`] | distributions over the answers, to train on beside the labels |
//! | [`sample`] | examples without any file: the built-in sample tasks |
//! | [`text`] | files of raw text into sentences and documents |
//! | [`vocabulary`] | such text into a vocabulary |
//! | [`tokenizer`] | text into token ids, BERT's way |
//! | [`dataset`], [`cache`] | a split, tokenised once and kept |
//! | [`marks`] | the tokens that are labelled, or may begin or end an answer |
//! | [`batching`] | how a task's examples are cut into batches |
//! | [`sampler`] | which task comes when, with which of its batches |
//! | [`batch`] | the packed arrays that a step reads |
//! | [`check`] | what is odd about a task's files |
//! | [`official`], [`submission`], [`zip`] | how many rows GLUE's files have, and what its leaderboard takes |
//!
//! And the way of raw text, for pre-training:
//!
//! | file | what it makes |
//! |---|---|
//! | [`corpus`] | all sentences as token ids, in a file that is mapped into memory |
//! | [`instances`] | an epoch of sentence pairs, half of them with a random second |
//! | [`masking`] | which tokens of a pair are to be guessed, and what stands in their place |
//! | [`masked_batch`] | the packed arrays of a pre-training step |
//! | [`masked`] | the sets of a task of masked words, which is trained beside others |

pub mod batch;
pub mod batching;
pub mod cache;
pub mod check;
pub mod corpus;
pub mod custom;
pub mod dataset;
mod error;
pub mod glue;
pub mod instances;
mod mapped;
pub mod marks;
pub mod masked;
pub mod masked_batch;
pub mod masking;
mod metric_kind;
pub mod official;
pub mod packing;
pub mod qnli;
pub mod reader;
pub mod reference;
mod rows;
pub mod sample;
pub mod sampler;
pub mod san;
mod sentences;
pub mod soft;
pub mod span;
mod squad;
pub mod submission;
pub mod task;
pub mod text;
pub mod tokenizer;
pub mod vocabulary;
mod windows;
mod words;
pub mod zip;

pub use batch::{Batch, Capacity};
pub use batching::Batching;
pub use corpus::Corpus;
pub use custom::{HeadKind, TaskEntry};
pub use dataset::{Answer, Dataset, Example, Label, Passage, Text};
pub use error::DataError;
pub use instances::{Instance, Pass};
pub use masked::{MaskedOptions, MaskedText};
pub use masked_batch::MaskedBatch;
pub use masking::Masking;
pub use packing::Packing;
pub use reader::Skipped;
pub use sampler::{Mix, Sampler};
pub use san::SanSpec;
pub use span::SpanOptions;
pub use task::{MetricKind, Relevance, SourceFile, Split, TaskKind, TaskSpec, Texts};
pub use tokenizer::Tokenizer;
pub use vocabulary::VocabularyConfig;

#[cfg(test)]
mod tests;
