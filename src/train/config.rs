//! The run file: everything a run is made of, each key with a default.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::distill::DistillConfig;
use super::experiment::config::{AblateConfig, AdaptConfig, ExperimentConfig, FinetuneConfig};
use super::mix::MixConfig;
use super::pretrain::PretrainConfig;
use super::schedule::ScheduleKind;
use crate::backend::Rule;
use crate::data::VocabularyConfig;
use crate::data::batch::MAX_SEQUENCE;
use crate::nn::BertConfig;

/// What a run trains, on what, and how. Read from TOML, completed by flags, saved as it was resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// The run directory.
    pub output: PathBuf,
    /// The key of every random draw.
    pub seed: u64,
    /// Where the encoder comes from.
    pub model: ModelConfig,
    /// How it is trained.
    pub train: TrainConfig,
    /// How `pretrain` makes an encoder; no part of a run on tasks, so that its saved settings do not hold it.
    #[serde(skip_serializing)]
    pub pretrain: Option<PretrainConfig>,
    /// How `distill` teaches a student; no part of a run.
    #[serde(skip_serializing)]
    pub distill: Option<DistillConfig>,
    /// What `vocab` makes the vocabulary from; no part of a run, so that a run's saved settings do not hold it.
    #[serde(skip_serializing)]
    pub vocab: VocabularyConfig,
    /// What all experiments have in common. No part of a run, as the tables below.
    #[serde(skip_serializing)]
    pub experiment: ExperimentConfig,
    /// How `finetune` goes on from an MT-DNN model.
    #[serde(skip_serializing)]
    pub finetune: FinetuneConfig,
    /// How `ablate` makes its table.
    #[serde(skip_serializing)]
    pub ablate: AblateConfig,
    /// How `adapt` makes its table.
    #[serde(skip_serializing)]
    pub adapt: AdaptConfig,
    /// The tasks, in the order of their heads.
    #[serde(rename = "task", skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<crate::data::TaskEntry>,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            output: PathBuf::from("runs/mtdnn"),
            seed: 2018,
            model: ModelConfig::default(),
            train: TrainConfig::default(),
            pretrain: None,
            distill: None,
            vocab: VocabularyConfig::default(),
            experiment: ExperimentConfig::default(),
            finetune: FinetuneConfig::default(),
            ablate: AblateConfig::default(),
            adapt: AdaptConfig::default(),
            tasks: Vec::new(),
        }
    }
}

/// Where the encoder comes from: a directory, or sizes for a new one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// A model directory in Hugging Face layout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// Whether every task's head is drawn anew, even where `init` has one of the same task.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub new_heads: bool,
    /// The vocabulary of a new model: a directory with `vocab.txt` or `tokenizer.json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<PathBuf>,
    /// The sizes of a new model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<BertConfig>,
}

/// How a model is trained. The defaults are the paper's (Liu et al. 2019, section 5.2).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Passes over all tasks' examples.
    pub epochs: u32,
    /// Stop after this many updates, whatever the epoch; 0 for no such limit.
    pub max_steps: u64,
    /// Examples a batch at most; 0 for no limit but that of tokens.
    pub batch_size: usize,
    /// Tokens a batch at most, unless one example has more; 0 for no such limit.
    pub batch_tokens: usize,
    /// Examples of a task that are sorted by length before they are cut into batches; 0 to sort none.
    pub bucket: usize,
    /// Batches whose gradients are summed before an update.
    pub accumulation: u32,
    /// The schedule's peak.
    pub learning_rate: f64,
    /// The update rule.
    pub optimizer: Rule,
    /// Decay of matrices, not of biases and norms.
    pub weight_decay: f32,
    /// The course of the learning rate.
    pub schedule: ScheduleKind,
    /// The share of all updates in which the learning rate rises.
    pub warmup: f64,
    /// The global gradient norm above which gradients are scaled down; 0 for no limit.
    pub clip: f32,
    /// The longest sequence in tokens.
    pub max_length: usize,
    /// The encoder's dropout, in place of its configuration's two values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// What becomes of the heads of other tasks in a step.
    pub other_heads: OtherHeads,
    /// When the dev sets are measured.
    pub eval: EvalEvery,
    /// Evaluations without a better mean before training stops; 0 to train to the end.
    pub patience: u32,
    /// Updates between two checkpoints; 0 for one at the end of each epoch alone.
    pub checkpoint_every: u64,
    /// How the tasks' batches are mixed.
    pub mix: MixConfig,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 5,
            max_steps: 0,
            batch_size: 32,
            batch_tokens: 0,
            bucket: 0,
            accumulation: 1,
            learning_rate: 5e-5,
            optimizer: Rule::Adamax,
            weight_decay: 0.0,
            schedule: ScheduleKind::Linear,
            warmup: 0.1,
            clip: 1.0,
            max_length: 512,
            dropout: None,
            other_heads: OtherHeads::Skip,
            eval: EvalEvery::Epoch,
            patience: 0,
            checkpoint_every: 0,
            mix: MixConfig::default(),
        }
    }
}

/// What a step does to the heads of tasks that are not in its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OtherHeads {
    /// Nothing: they and their moments stay as they are.
    Skip,
    /// What the reference does: from its first own batch on, a head is updated at every step, with a
    /// gradient of zero where the batch is another task's.
    ZeroGradient,
}

/// When the dev sets are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "NameOrNumber", into = "String")]
pub enum EvalEvery {
    /// After each epoch.
    Epoch,
    /// Never; the last model is the result.
    Never,
    /// Once, at the end, and the run is not saved after each epoch either: for runs so short that they are done again
    /// sooner than they are measured and saved so often.
    End,
    /// After every so many updates, and after each epoch.
    Steps(u64),
}

impl std::str::FromStr for EvalEvery {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "epoch" => Ok(Self::Epoch),
            "never" => Ok(Self::Never),
            "end" => Ok(Self::End),
            steps => match steps.parse() {
                Ok(steps) if steps > 0 => Ok(Self::Steps(steps)),
                _ => Err(format!("{text:?} is not epoch, never, end or a number of steps above 0")),
            },
        }
    }
}

/// `"epoch"`, `"200"` or `200`.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected epoch, never, end or a number of steps")]
enum NameOrNumber {
    Name(String),
    Number(i64),
}

impl TryFrom<NameOrNumber> for EvalEvery {
    type Error = String;

    fn try_from(value: NameOrNumber) -> Result<Self, String> {
        match value {
            NameOrNumber::Name(name) => name.parse(),
            NameOrNumber::Number(number) => number.to_string().parse(),
        }
    }
}

impl From<EvalEvery> for String {
    fn from(every: EvalEvery) -> String {
        match every {
            EvalEvery::Epoch => "epoch".to_string(),
            EvalEvery::Never => "never".to_string(),
            EvalEvery::End => "end".to_string(),
            EvalEvery::Steps(steps) => steps.to_string(),
        }
    }
}

/// A value of the run file that cannot be trained with.
#[derive(Debug, thiserror::Error)]
#[error("{table}.{field}: {problem}")]
pub struct ConfigValueError {
    table: &'static str,
    field: &'static str,
    problem: String,
}

impl ConfigValueError {
    pub(super) fn new(table: &'static str, field: &'static str, problem: String) -> Self {
        Self { table, field, problem }
    }
}

/// Checks the ranges of what training and pre-training have in common.
pub(super) fn check_recipe(table: &'static str, recipe: &Recipe) -> Result<(), ConfigValueError> {
    let fail = |field, problem: String| Err(ConfigValueError { table, field, problem });
    let Recipe { learning_rate, accumulation, warmup, clip, weight_decay, dropout } = *recipe;
    if !(learning_rate.is_finite() && learning_rate >= 0.0) {
        let problem = format!("{learning_rate} is not a number of at least 0; 5e-5 is usual");
        return fail("learning_rate", problem);
    }
    if accumulation == 0 {
        return fail("accumulation", "give 1 to update after every batch".into());
    }
    if !(0.0..=1.0).contains(&warmup) {
        return fail("warmup", format!("{warmup} is not a share in [0, 1]"));
    }
    if !(clip.is_finite() && clip >= 0.0) {
        return fail("clip", format!("{clip} is not a norm of at least 0; 0 clips nothing"));
    }
    if !(weight_decay.is_finite() && weight_decay >= 0.0) {
        return fail("weight_decay", format!("{weight_decay} is not a number of at least 0"));
    }
    if let Some(dropout) = dropout
        && !(0.0..1.0).contains(&dropout)
    {
        return fail("dropout", format!("{dropout} is not a probability in [0, 1)"));
    }
    Ok(())
}

/// What training and pre-training have in common.
pub(super) struct Recipe {
    pub(super) learning_rate: f64,
    pub(super) accumulation: u32,
    pub(super) warmup: f64,
    pub(super) clip: f32,
    pub(super) weight_decay: f32,
    pub(super) dropout: Option<f64>,
}

impl TrainConfig {
    /// Checks every number's range.
    pub fn validate(&self) -> Result<(), ConfigValueError> {
        let fail = |field, problem: String| Err(ConfigValueError::new("train", field, problem));
        let Self { learning_rate, accumulation, warmup, clip, weight_decay, dropout, .. } = *self;
        check_recipe("train", &Recipe { learning_rate, accumulation, warmup, clip, weight_decay, dropout })?;
        if self.epochs == 0 {
            return fail("epochs", "0 epochs train nothing; give 1 or more".into());
        }
        if self.batch_size == 0 && self.batch_tokens == 0 {
            return fail("batch_size", "0 examples are no batch; 32 is usual, or give batch_tokens".into());
        }
        if self.max_length < 4 {
            let problem =
                format!("{}: a pair needs room for [CLS] a [SEP] and [SEP]; give 4 or more", self.max_length);
            return fail("max_length", problem);
        }
        if self.max_length > MAX_SEQUENCE {
            return fail("max_length", format!("{} tokens; {MAX_SEQUENCE} is the most", self.max_length));
        }
        self.mix.validate()
    }
}
