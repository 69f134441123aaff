//! The tables of a run file that say how an experiment is made of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::train::config::ConfigValueError;

/// The seeds that a run is repeated with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number of seeds, or a list of seeds")]
pub enum Seeds {
    /// So many, from the run's own seed on: 7, 8, 9, ...
    Count(u32),
    /// These.
    List(Vec<u64>),
}

impl Seeds {
    /// The seeds themselves; `first` is the run's.
    pub fn from(&self, first: u64) -> Vec<u64> {
        match self {
            Seeds::Count(count) => (0..u64::from(*count)).map(|number| first.wrapping_add(number)).collect(),
            Seeds::List(seeds) => seeds.clone(),
        }
    }
}

impl FromStr for Seeds {
    type Err = String;

    /// `5` is a number of seeds, `5,` and `0,1,2` are lists.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is neither a number of seeds (5) nor a list (0,1,2)");
        if !text.contains(',') {
            return text.parse().map(Seeds::Count).map_err(|_| wrong());
        }
        let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        let seeds: Result<Vec<u64>, _> = words.map(str::parse).collect();
        seeds.map(Seeds::List).map_err(|_| wrong())
    }
}

/// Which models of finished runs stay on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// None but those that later runs start from.
    None,
    /// The best model of each run.
    #[default]
    Best,
    /// All that a run leaves.
    All,
}

/// `[experiment]`: what all experiments have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExperimentConfig {
    /// The experiment's directory; the run's own with the command's name behind it if not said.
    pub output: Option<PathBuf>,
    /// The seeds that it is repeated with; five if not said, one for `finetune`.
    pub seeds: Option<Seeds>,
    /// Which models of finished runs stay.
    pub keep: Keep,
    /// Resamples of a bootstrap.
    pub resamples: u32,
    /// The share of resamples that an interval holds, in (0, 1).
    pub level: f64,
}

impl Default for ExperimentConfig {
    fn default() -> Self {
        Self { output: None, seeds: None, keep: Keep::default(), resamples: 1000, level: 0.95 }
    }
}

impl ExperimentConfig {
    /// Checks that there is something to run and to draw.
    ///
    /// # Errors
    /// No seed or one twice, no resamples, a level that is no share.
    pub fn validate(&self) -> Result<(), ConfigValueError> {
        let fail = |field, problem: String| Err(ConfigValueError::new("experiment", field, problem));
        match &self.seeds {
            Some(seeds) if seeds.from(0).is_empty() => {
                return fail("seeds", "no seed, so there is nothing to run; give 1 or more".into());
            }
            Some(Seeds::List(seeds)) => {
                if let Some(twice) = (1..seeds.len()).find(|&at| seeds[..at].contains(&seeds[at])) {
                    return fail("seeds", format!("{} is named twice", seeds[twice]));
                }
            }
            _ => {}
        }
        if self.resamples == 0 {
            return fail("resamples", "0 resamples make no interval; 1000 are usual".into());
        }
        if !(self.level > 0.0 && self.level < 1.0) {
            return fail("level", format!("{} is not a share in (0, 1); 0.95 is usual", self.level));
        }
        Ok(())
    }
}

/// `[finetune]`: a run for each task from the encoder of an MT-DNN model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FinetuneConfig {
    /// The model directory; `ablate` takes the one that it trains.
    pub model: Option<PathBuf>,
    /// Epochs, in place of `[train]`'s.
    pub epochs: Option<u32>,
    /// The peak of the learning rate, in place of `[train]`'s.
    pub learning_rate: Option<f64>,
    /// The same for single tasks: `[finetune.tasks.rte]`.
    pub tasks: BTreeMap<String, TaskRecipe>,
}

/// `[ablate]`: BERT, ST-DNN and MT-DNN without and with fine-tuning (Liu et al. 2019, tables 2 and 3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AblateConfig {
    /// The rows of the table.
    pub variants: Vec<Variant>,
    /// The tasks of the table; the others are trained in the multi-task runs alone. All if not said.
    pub targets: Option<Vec<String>>,
}

impl Default for AblateConfig {
    fn default() -> Self {
        Self { variants: Variant::ALL.to_vec(), targets: None }
    }
}

/// `[adapt]`: BERT and MT-DNN on a part of a new task's examples (Liu et al. 2019, table 4 and figure 2).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdaptConfig {
    /// The new tasks; the others make the MT-DNN encoder.
    pub targets: Vec<String>,
    /// The shares of their training examples.
    pub shares: Vec<f64>,
    /// The MT-DNN model directory; trained on the other tasks if not said.
    pub mt_dnn: Option<PathBuf>,
    /// Seeds of share 1, the first of all: every draw of it is the whole set. All seeds if not said.
    pub whole_seeds: Option<usize>,
    /// Shares up to this one are small.
    pub small: f64,
    /// Examples a batch on small shares.
    pub small_batch_size: usize,
    /// Epochs on small shares; `[train]`'s if not said.
    pub small_epochs: Option<u32>,
}

impl Default for AdaptConfig {
    fn default() -> Self {
        Self {
            targets: ["snli", "scitail"].map(String::from).to_vec(),
            shares: vec![0.001, 0.01, 0.1, 1.0],
            mt_dnn: None,
            whole_seeds: None,
            small: 0.01,
            small_batch_size: 8,
            small_epochs: None,
        }
    }
}

/// What a single task's fine-tuning has otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TaskRecipe {
    /// Epochs.
    pub epochs: Option<u32>,
    /// The peak of the learning rate.
    pub learning_rate: Option<f64>,
}

/// A row of the ablation's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// Linear heads on the pooled vector, one task at a time.
    Bert,
    /// The run file's own heads, one task at a time.
    StDnn,
    /// One run of all tasks, measured as it is.
    MtDnnNoFt,
    /// Its encoder fine-tuned on each task.
    MtDnn,
}

impl Variant {
    /// All of them, in the table's order.
    pub const ALL: [Variant; 4] = [Variant::Bert, Variant::StDnn, Variant::MtDnnNoFt, Variant::MtDnn];

    /// The paper's name.
    pub fn title(self) -> &'static str {
        match self {
            Variant::Bert => "BERT",
            Variant::StDnn => "ST-DNN",
            Variant::MtDnnNoFt => "MT-DNN no fine-tuning",
            Variant::MtDnn => "MT-DNN",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_a_number_or_a_list() {
        let seeds = |text: &str| text.parse::<Seeds>().map(|seeds| seeds.from(7));
        assert_eq!(seeds("3"), Ok(vec![7, 8, 9]));
        assert_eq!(seeds("3,"), Ok(vec![3]));
        assert_eq!(seeds("5, 0,9"), Ok(vec![5, 0, 9]));
        assert!(seeds("x").unwrap_err().contains("neither a number of seeds"));
        assert!(seeds("1,-2").is_err());
        let file = |text: &str| toml::from_str::<ExperimentConfig>(text).map(|table| table.seeds);
        assert_eq!(file("seeds = 4").unwrap(), Some(Seeds::Count(4)));
        assert_eq!(file("seeds = [4]").unwrap(), Some(Seeds::List(vec![4])));
        assert!(file("seeds = -1").unwrap_err().message().contains("expected a number of seeds"));
    }

    #[test]
    fn what_cannot_be_repeated_is_refused() {
        let error = |table: ExperimentConfig| table.validate().unwrap_err().to_string();
        let base = ExperimentConfig::default;
        let seeds = |seeds| ExperimentConfig { seeds: Some(seeds), ..base() };
        assert!(error(seeds(Seeds::Count(0))).contains("no seed"));
        assert!(error(seeds(Seeds::List(Vec::new()))).contains("no seed"));
        assert!(error(seeds(Seeds::List(vec![1, 2, 1]))).contains("1 is named twice"));
        assert!(error(ExperimentConfig { resamples: 0, ..base() }).contains("resamples"));
        for level in [0.0, 1.0, f64::NAN] {
            assert!(error(ExperimentConfig { level, ..base() }).contains("level"));
        }
        base().validate().unwrap();
    }
}
