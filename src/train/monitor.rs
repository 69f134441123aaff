//! What a run tells the world outside, and what it asks of it.

use std::path::Path;

use super::evaluate::Evaluation;
use super::pretrain;
use super::trainer::{Progress, StepReport};
use crate::backend::Sizes;
use crate::data::TaskSpec;

/// Something that happens in a run, for a person to see.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Something to know.
    Note(&'a str),
    /// Something that may be wrong.
    Warning(&'a str),
    /// A file is being read and tokenised.
    Reading {
        /// The file.
        path: &'a Path,
    },
    /// A task's examples are ready.
    Data {
        /// The task.
        task: &'a TaskSpec,
        /// Examples to train on.
        train: usize,
        /// Examples to measure on.
        dev: usize,
        /// Tokens of both.
        tokens: usize,
    },
    /// Text is being read and tokenised into a corpus file.
    Tokenising {
        /// The file.
        path: &'a Path,
        /// Bytes of text that are done.
        done: u64,
        /// Of how many.
        total: u64,
    },
    /// Everything is planned and its memory reserved.
    Planned {
        /// The elements of each buffer.
        sizes: Sizes,
        /// Updates of the whole run.
        updates: u64,
        /// How long an epoch is, or each phase.
        extent: &'a str,
    },
    /// A batch has been pre-trained on.
    Pretrained {
        /// What was done.
        report: &'a pretrain::StepReport,
    },
    /// The held-out text is being measured.
    MeasuringText {
        /// Sentence pairs of it.
        pairs: usize,
        /// Their tokens, nearly.
        tokens: usize,
    },
    /// The held-out text has been measured.
    TextMeasured {
        /// The figures.
        evaluation: &'a pretrain::Evaluation,
    },
    /// A batch has been trained on.
    Step {
        /// Where the run stands.
        progress: &'a Progress,
        /// What was done.
        report: &'a StepReport,
    },
    /// A dev set is being measured.
    Measuring {
        /// The task's name.
        task: &'a str,
        /// The set's name.
        set: &'a str,
        /// Its examples.
        examples: usize,
        /// Its tokens.
        tokens: usize,
    },
    /// The dev sets have been measured.
    Evaluated {
        /// Where the run stands.
        progress: &'a Progress,
        /// The figures of every set.
        evaluations: &'a [Evaluation],
        /// The mean of the tasks' main metrics.
        mean: f64,
    },
    /// A checkpoint or a model is being saved.
    Saving {
        /// The directory.
        path: &'a Path,
    },
}

/// The world outside: a clock, a person who watches, and the wish to stop.
pub trait Monitor {
    /// Seconds since the program started.
    fn seconds(&self) -> f64;
    /// Whether to save and stop now.
    fn stop(&self) -> bool;
    /// Shows what happens.
    fn tell(&mut self, event: Event<'_>);
}
