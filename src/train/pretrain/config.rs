//! The run file's `[pretrain]`: everything that pre-training is made of, each key with a default.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::backend::Rule;
use crate::data::batch::MAX_SEQUENCE;
use crate::data::text::Layout;
use crate::train::config::{ConfigValueError, ModelConfig, Recipe, check_recipe};
use crate::train::schedule::ScheduleKind;

/// What is pre-trained, on what text, and how. The defaults are BERT's (Devlin et al. 2018, appendix A.2), at the batch
/// of its first published script.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainConfig {
    /// The run directory.
    pub output: PathBuf,
    /// Text files, and folders of them.
    pub text: Vec<PathBuf>,
    /// Held-out text to measure on.
    pub dev_text: Vec<PathBuf>,
    /// Whether the text is plain paragraphs, to be cut into sentences; else it has a sentence a line.
    pub split: bool,
    /// Where the corpus files lie that are made from the text; in the run directory if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corpus: Option<PathBuf>,
    /// Where the encoder comes from.
    pub model: ModelConfig,
    /// One after another.
    pub phases: Vec<Phase>,
    /// Batches whose gradients are summed before an update.
    pub accumulation: u32,
    /// The schedule's peak.
    pub learning_rate: f64,
    /// The update rule.
    pub optimizer: Rule,
    /// Decay of matrices, not of biases and norms.
    pub weight_decay: f32,
    /// The course of the learning rate over all phases.
    pub schedule: ScheduleKind,
    /// The share of all updates in which the learning rate rises.
    pub warmup: f64,
    /// The global gradient norm above which gradients are scaled down; 0 for no limit.
    pub clip: f32,
    /// The encoder's dropout, in place of its configuration's two values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// The share of tokens that are to be predicted.
    pub mask_share: f64,
    /// The most predictions a sequence; 0 for no limit.
    pub max_predictions: usize,
    /// Whether words are masked whole.
    pub whole_words: bool,
    /// The share of documents whose sequences are shorter than they could be.
    pub short_sequences: f64,
    /// Updates between two evaluations, beside those at the beginning and the end of each phase; 0 for those alone.
    pub eval_every: u64,
    /// Sentence pairs of the held-out text that are measured; 0 for all.
    pub eval_pairs: usize,
    /// Updates between two checkpoints; 0 for one at the end of each phase.
    pub checkpoint_every: u64,
}

/// A part of pre-training with sequences of one length: BERT's first nine tenths have 128 tokens, the rest 512.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// Tokens of the longest sequence.
    pub max_length: usize,
    /// Sentence pairs a batch.
    pub batch_size: usize,
    /// Updates.
    pub steps: u64,
}

impl Default for PretrainConfig {
    fn default() -> Self {
        Self {
            output: PathBuf::from("runs/pretrain"),
            text: Vec::new(),
            dev_text: Vec::new(),
            split: false,
            corpus: None,
            model: ModelConfig::default(),
            phases: vec![Phase { max_length: 128, batch_size: 32, steps: 100_000 }],
            accumulation: 1,
            learning_rate: 1e-4,
            optimizer: Rule::AdamBert,
            weight_decay: 0.01,
            schedule: ScheduleKind::Linear,
            warmup: 0.1,
            clip: 1.0,
            dropout: None,
            mask_share: 0.15,
            max_predictions: 0,
            whole_words: false,
            short_sequences: 0.1,
            eval_every: 1000,
            eval_pairs: 1000,
            checkpoint_every: 1000,
        }
    }
}

impl PretrainConfig {
    /// What a line and a blank line of the text mean.
    pub fn layout(&self) -> Layout {
        Layout::of(self.split)
    }

    /// Updates of all phases.
    pub fn total_updates(&self) -> u64 {
        self.phases.iter().map(|phase| phase.steps).sum()
    }

    /// Checks every number's range.
    pub fn validate(&self) -> Result<(), ConfigValueError> {
        let fail = |field, problem: String| Err(ConfigValueError::new("pretrain", field, problem));
        if self.text.is_empty() {
            return fail(
                "text",
                "there is nothing to train on; give --text FILE or a folder of files".into(),
            );
        }
        if self.phases.is_empty() {
            return fail("phases", "no phase trains nothing; give 128:32:10000, for example".into());
        }
        if self.phases.len() > 1 << 16 {
            return fail("phases", format!("{} phases; 65536 are the most", self.phases.len()));
        }
        for phase in &self.phases {
            let Phase { max_length, batch_size, steps } = *phase;
            if !(5..=MAX_SEQUENCE).contains(&max_length) {
                let problem = format!(
                    "{phase}: a length of {max_length} tokens; [CLS], a, [SEP], b and [SEP] need 5, and \
                     {MAX_SEQUENCE} are the most"
                );
                return fail("phases", problem);
            }
            if !(1..=MAX_SEQUENCE).contains(&batch_size) {
                let problem = format!("{phase}: a batch of {batch_size} pairs; give 1 to {MAX_SEQUENCE}");
                return fail("phases", problem);
            }
            if steps == 0 {
                return fail("phases", format!("{phase}: 0 steps train nothing; leave the phase out"));
            }
        }
        let steps = self.phases.iter().try_fold(0u64, |sum, phase| sum.checked_add(phase.steps));
        let batches = steps.and_then(|steps| steps.checked_mul(u64::from(self.accumulation)));
        if batches.is_none_or(|batches| batches > u64::from(u32::MAX)) {
            return fail("phases", format!("more than {} batches in all", u32::MAX));
        }
        let Self { learning_rate, accumulation, warmup, clip, weight_decay, dropout, .. } = *self;
        check_recipe(
            "pretrain",
            &Recipe { learning_rate, accumulation, warmup, clip, weight_decay, dropout },
        )?;
        if !(self.mask_share > 0.0 && self.mask_share < 1.0) {
            return fail(
                "mask_share",
                format!("{} is not a share in (0, 1); 0.15 is usual", self.mask_share),
            );
        }
        if !(0.0..=1.0).contains(&self.short_sequences) {
            return fail("short_sequences", format!("{} is not a share in [0, 1]", self.short_sequences));
        }
        Ok(())
    }
}

/// `128:32:10000`: tokens a sequence, pairs a batch, updates.
impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.max_length, self.batch_size, self.steps)
    }
}

impl FromStr for Phase {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not LENGTH:BATCH:STEPS, as in 128:32:10000");
        let numbers: Vec<u64> =
            text.trim().split(':').map(|part| part.parse().map_err(|_| wrong())).collect::<Result<_, _>>()?;
        let &[max_length, batch_size, steps] = &numbers[..] else { return Err(wrong()) };
        let small = |number: u64| usize::try_from(number).map_err(|_| wrong());
        Ok(Self { max_length: small(max_length)?, batch_size: small(batch_size)?, steps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_is_three_numbers() {
        let phase = Phase { max_length: 128, batch_size: 32, steps: 9000 };
        assert_eq!("128:32:9000".parse(), Ok(phase));
        assert_eq!(phase.to_string().parse(), Ok(phase));
        for wrong in ["", "128", "128:32", "128:32:1:1", "128:-3:1", "a:b:c"] {
            assert!(wrong.parse::<Phase>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_cannot_be_trained_with_is_named() {
        let good = PretrainConfig { text: vec!["text".into()], ..PretrainConfig::default() };
        good.validate().unwrap();
        let phase = |max_length, batch_size, steps| vec![Phase { max_length, batch_size, steps }];
        type Change = fn(&mut PretrainConfig);
        let changes: [(&str, Change); 9] = [
            ("text", |config| config.text.clear()),
            ("phases", |config| config.phases.clear()),
            ("learning_rate", |config| config.learning_rate = f64::NAN),
            ("accumulation", |config| config.accumulation = 0),
            ("warmup", |config| config.warmup = 1.5),
            ("clip", |config| config.clip = -1.0),
            ("dropout", |config| config.dropout = Some(1.0)),
            ("mask_share", |config| config.mask_share = 0.0),
            ("short_sequences", |config| config.short_sequences = -0.1),
        ];
        for (key, change) in changes {
            let mut config = good.clone();
            change(&mut config);
            let error = config.validate().unwrap_err().to_string();
            assert!(error.starts_with(&format!("pretrain.{key}: ")), "{error}");
        }
        let endless = [phase(32, 4, u64::MAX), phase(32, 4, 5)].concat();
        for phases in [phase(4, 8, 1), phase(1 << 20, 8, 1), phase(64, 0, 1), phase(64, 8, 0), endless] {
            let error = PretrainConfig { phases, ..good.clone() }.validate().unwrap_err().to_string();
            assert!(error.starts_with("pretrain.phases: "), "{error}");
        }
    }
}
