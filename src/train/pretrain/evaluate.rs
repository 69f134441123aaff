//! What the model makes of text that it is not trained on.

use serde::{Deserialize, Serialize};

use crate::backend::{Backend, BackendError, StepScalars};
use crate::data::corpus::Corpus;
use crate::data::instances::{Instance, Pass};
use crate::data::{MaskedBatch, Masking, Packing};
use crate::nn::{PretrainingModel, RecordedPretraining, masked_extents};
use crate::tensor::{Extents, Var};
use crate::train::evaluate::EVALUATION_TOKENS;

/// Every evaluation of every run hides the same tokens of the same pairs, so that figures compare.
const SEED: u64 = 2018;

/// The figures of held-out text. Losses are means in nats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Updates made before.
    pub updates: u64,
    /// Tokens that a pair has at most.
    pub max_length: usize,
    /// Sentence pairs measured.
    pub pairs: usize,
    /// Masked words measured.
    pub predictions: usize,
    /// The loss of masked words.
    pub masked_loss: f64,
    /// The share of masked words whose logit is the largest.
    pub masked_accuracy: f64,
    /// The loss of next sentences.
    pub next_loss: f64,
    /// The share of pairs that are rightly told to follow one another or not.
    pub next_accuracy: f64,
    /// The share of the more frequent of the two answers.
    pub next_baseline: f64,
    /// The entropy of a token of that text: the loss of masked words of the best model that reads nothing around them.
    pub unigram_entropy: f64,
}

impl Evaluation {
    /// The perplexity over masked words: the exponential of their loss.
    pub fn perplexity(&self) -> f64 {
        self.masked_loss.exp()
    }
}

/// The held-out pairs of a phase, and the program that measures them.
#[derive(Debug)]
pub(super) struct HeldOut<'a> {
    corpus: &'a Corpus,
    masking: &'a Masking,
    pass: Pass,
    instances: Vec<Instance>,
    /// Pairs a batch.
    size: usize,
    max_length: usize,
    unigram_entropy: f64,
    recorded: RecordedPretraining,
}

impl<'a> HeldOut<'a> {
    /// At most `pairs` pairs of at most `max_length` tokens, all if 0, for a backend with lines of `line` rows.
    pub(super) fn new(
        model: &PretrainingModel,
        corpus: &'a Corpus,
        masking: &'a Masking,
        max_length: usize,
        pairs: usize,
        line: usize,
    ) -> Self {
        let pass = Pass { seed: SEED, phase: 0, epoch: 0 };
        let mut instances = Instance::draw(corpus, pass, max_length, 0.0);
        instances.truncate(if pairs == 0 { instances.len() } else { pairs });
        let size = (EVALUATION_TOKENS / max_length).clamp(1, instances.len());
        let recorded = model.evaluation(capacity(size, max_length, masking, line));
        let unigram_entropy = corpus.unigram_entropy();
        Self { corpus, masking, pass, instances, size, max_length, unigram_entropy, recorded }
    }

    /// Words of the arena that the program needs.
    pub(super) fn arena_len(&self) -> usize {
        self.recorded.program.arena_len()
    }

    /// Pairs to be measured.
    pub(super) fn pairs(&self) -> usize {
        self.instances.len()
    }

    /// Their tokens, at most.
    pub(super) fn tokens(&self) -> usize {
        self.instances.len() * self.max_length
    }

    /// Measures the model as it is after so many `updates`. Ends early with `None` where `stop` says so between two
    /// batches.
    pub(super) fn measure(
        &self,
        updates: u64,
        backend: &mut dyn Backend,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Evaluation>, BackendError> {
        let mut batch = MaskedBatch::with_capacity(self.size, self.max_length, backend.line());
        let mut sums = Sums::default();
        for (number, instances) in self.instances.chunks(self.size).enumerate() {
            if stop() {
                return Ok(None);
            }
            let first = (number * self.size) as u32;
            batch.fill(self.corpus, instances, self.masking, self.pass, first);
            let extents = masked_extents(&batch);
            self.recorded.write(backend, &batch)?;
            let program = &self.recorded.program;
            backend.run(program, &StepScalars { extents, seed: 0, step: 0 })?;
            let mut read = |var: Var| {
                let mut values = vec![0.0f32; program.shape(var).len(&extents)];
                backend.read(program.span(var, &extents), bytemuck::cast_slice_mut(&mut values))?;
                Ok::<_, BackendError>(values)
            };
            let recorded = &self.recorded;
            let (words, pairs) = (extents.predictions as f64, extents.sequences as f64);
            sums.words += words;
            sums.pairs += pairs;
            sums.masked_loss += words * f64::from(read(recorded.masked_loss)?[0]);
            sums.masked_right += words * f64::from(read(recorded.masked_accuracy)?[0]);
            sums.next_loss += pairs * f64::from(read(recorded.next_loss)?[0]);
            for (logits, &label) in read(recorded.next_logits)?.chunks_exact(2).zip(&batch.batch.labels) {
                sums.next_right += f64::from(u8::from((logits[1] > logits[0]) == (label == 1)));
                sums.random += f64::from(label);
            }
        }
        let random = sums.random / sums.pairs;
        Ok(Some(Evaluation {
            updates,
            max_length: self.max_length,
            pairs: self.instances.len(),
            predictions: sums.words as usize,
            masked_loss: sums.masked_loss / sums.words,
            masked_accuracy: sums.masked_right / sums.words,
            next_loss: sums.next_loss / sums.pairs,
            next_accuracy: sums.next_right / sums.pairs,
            next_baseline: random.max(1.0 - random),
            unigram_entropy: self.unigram_entropy,
        }))
    }
}

#[derive(Default)]
struct Sums {
    words: f64,
    pairs: f64,
    masked_loss: f64,
    masked_right: f64,
    next_loss: f64,
    next_right: f64,
    random: f64,
}

/// The room that a batch of `size` pairs of at most `max_length` tokens needs, in lines of `line` rows.
pub(super) fn capacity(size: usize, max_length: usize, masking: &Masking, line: usize) -> Extents {
    Extents {
        tokens: Packing::new(line).most_rows(size * max_length, size, max_length),
        sequences: size,
        groups: size,
        predictions: size * masking.most_of(max_length),
        in_lines: false,
    }
}
