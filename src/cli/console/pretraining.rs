//! What a person sees of pre-training.

use std::path::Path;
use std::time::Instant;

use mtdnn_raw::train::pretrain::{Evaluation, StepReport};

use super::{Console, PLAIN, REWRITE};
use crate::cli::format;

/// What has a loss.
const LOSSES: [&str; 2] = ["masked", "next"];

impl Console {
    /// `tokenising runs/pretrain/corpus/train.corpus: 12.3 of 57.2 MB`
    pub(super) fn tokenising(&mut self, path: &Path, done: u64, total: u64) {
        let now = Instant::now();
        let interval = if self.line.is_some() { REWRITE } else { PLAIN };
        if now.duration_since(self.shown) >= interval {
            self.shown = now;
            let (done, total) = (format::bytes(done), format::bytes(total));
            self.status(format!("tokenising into {}: {done} of {total} of text", path.display()));
        }
    }

    /// `phase 1  pass 2  update 120/560  loss masked 6.512, next 0.691  12.3k tokens/s  3 min 20 s left`
    pub(super) fn pretrained(&mut self, report: &StepReport) {
        if self.tasks.is_empty() {
            self.tasks = LOSSES.map(String::from).to_vec();
            self.losses = vec![None; LOSSES.len()];
        }
        self.smooth(0, report.masked_loss);
        self.smooth(1, report.next_loss);
        let Some(update) = report.update else {
            self.add_tokens(report.tokens);
            return;
        };
        if self.advance(update.number, report.tokens) {
            let text = format!("phase {}  pass {}", report.phase + 1, report.epoch + 1);
            self.status(self.describe(text, update.number));
        }
    }

    pub(super) fn text_measured(&mut self, evaluation: &Evaluation) {
        let Evaluation {
            updates,
            max_length,
            masked_loss,
            masked_accuracy,
            next_accuracy,
            unigram_entropy,
            ..
        } = evaluation;
        self.print(&format!(
            "update {updates}  held-out text, {max_length} tokens: masked loss {masked_loss:.3} (unigram entropy {unigram_entropy:.3}), \
             perplexity {:.1}, accuracy {masked_accuracy:.3}; next sentence accuracy {next_accuracy:.3}",
            evaluation.perplexity()
        ));
        self.pause();
    }

    /// Counts the tokens of a batch whose gradients are summed with the next one's.
    fn add_tokens(&mut self, tokens: usize) {
        if let Some(training) = &mut self.training {
            training.tokens += tokens;
        }
    }
}
