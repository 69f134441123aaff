//! The options of a stochastic answer network, the head for pairs of MT-DNN (Liu et al. 2019, section 3.1).

use serde::{Deserialize, Serialize};

/// The most steps.
pub const MOST_STEPS: usize = 16;

/// `[task.san]` of a run file, and what a model's `mtdnn.json` says of such a head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SanSpec {
    /// How many times the premise is attended to, K of equation 4: 1 to 16.
    pub steps: usize,
    /// How a token of the premise is weighed.
    pub attention: SanAttention,
    /// What is made of the steps' answers.
    pub memory: SanMemory,
    /// The probability that a step is left out of an example's average in training; 0.1 if not said, and of no meaning
    /// where there is no average of several steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction_dropout: Option<f32>,
    /// Whether dropout on tokens drops the same elements of every token of a sequence (Gal and Ghahramani 2016).
    pub variational: bool,
}

impl Default for SanSpec {
    fn default() -> Self {
        Self {
            steps: 5,
            attention: SanAttention::Bilinear,
            memory: SanMemory::Average,
            prediction_dropout: None,
            variational: true,
        }
    }
}

/// How a token `x` of the premise is weighed, given the state `s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SanAttention {
    /// `x · (W s + b)`: by what the state asks for.
    Bilinear,
    /// `w · x`: a linear map of `[x; s]`, whose part in `s` is the same for all tokens and so falls out of the softmax.
    Simple,
}

/// What is made of the steps' answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SanMemory {
    /// The mean of their probabilities (equation 4).
    Average,
    /// The last step's alone.
    Last,
}

impl SanSpec {
    /// The probability that a step is left out of an average: 0 where there is no average of several.
    pub fn step_dropout(&self) -> f32 {
        const USUAL: f32 = 0.1;
        if self.averages() { self.prediction_dropout.unwrap_or(USUAL) } else { 0.0 }
    }

    /// Whether the answer is the mean of several.
    pub fn averages(&self) -> bool {
        self.memory == SanMemory::Average && self.steps > 1
    }

    /// Whether a head with these options has the parameters of one with those.
    pub fn has_parameters_of(&self, other: &SanSpec) -> bool {
        (self.attention, self.steps > 1) == (other.attention, other.steps > 1)
    }

    /// What a person may have got wrong, and what to do about it.
    pub(super) fn problem(&self) -> Option<String> {
        if !(1..=MOST_STEPS).contains(&self.steps) {
            return Some(format!("san.steps is {}; give 1 to {MOST_STEPS} (5 is usual)", self.steps));
        }
        let dropout = self.prediction_dropout?;
        if !(0.0..1.0).contains(&dropout) {
            return Some(format!("san.prediction_dropout is {dropout}, which is not in [0, 1)"));
        }
        (dropout > 0.0 && !self.averages()).then(|| {
            let why = if self.steps == 1 { "steps = 1" } else { "memory = \"last\"" };
            format!("san.prediction_dropout drops steps from an average, and with {why} there is none; leave it out")
        })
    }
}
