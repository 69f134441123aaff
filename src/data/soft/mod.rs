//! Soft labels: a distribution over a task's answers for each example, to train on beside the label.
//!
//! They come from a teacher, by a file that `predict --soft` writes ([`file`]) or beside token ids in MT-DNN's own files,
//! or from the data file itself, by annotators' votes or weights ([`columns`]).

pub mod columns;
pub mod file;

use std::path::PathBuf;

use super::dataset::Label;
use super::error::DataError;
use super::task::{Column, TaskKind};

/// Where a task's soft labels are, and how they are trained on.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftLabels {
    /// Where they are.
    pub source: SoftSource,
    /// What the loss of the hard labels counts, in [0, 1); that of the soft labels counts the rest.
    pub hard_weight: f32,
    /// The temperature of both distributions, the model's and the soft labels' (Hinton et al. 2015,
    /// arXiv 1503.02531, section 2); above 0.
    pub temperature: f32,
}

/// Where soft labels are.
#[derive(Clone, Debug, PartialEq)]
pub enum SoftSource {
    /// In a file with a line for each example of the train file.
    File(PathBuf),
    /// In the train file itself, as `softlabel` of each line of token ids (see [`reference`](super::reference)).
    TokenLines,
    /// In columns of the data file: numbers, one column for each label, or a key of JSON with all.
    Weights(Vec<Column>),
    /// In columns of the data file: each holds the label that one annotator gave, or nothing.
    Votes(Vec<Column>),
}

impl SoftSource {
    /// The columns of the data file that are named, if any are.
    pub fn columns(&self) -> Option<&[Column]> {
        match self {
            SoftSource::File(_) | SoftSource::TokenLines => None,
            SoftSource::Weights(columns) | SoftSource::Votes(columns) => Some(columns),
        }
    }
}

/// What hard labels count where nothing is said: half beside a teacher's soft labels (Liu et al. 2019,
/// arXiv 1904.09482, section 3.2), nothing beside votes, which hold them already.
fn default_hard_weight(source: &SoftSource) -> f32 {
    match source {
        SoftSource::File(_) | SoftSource::TokenLines => 0.5,
        SoftSource::Weights(_) | SoftSource::Votes(_) => 0.0,
    }
}

impl SoftLabels {
    /// From what a run file says.
    ///
    /// # Errors
    /// A number out of its range, or what is of no use to this kind of task.
    pub fn new(
        task: &str,
        kind: TaskKind,
        source: SoftSource,
        hard_weight: Option<f32>,
        temperature: Option<f32>,
    ) -> Result<Self, DataError> {
        let wrong = |reason: String| Err(DataError::Task { task: task.to_string(), reason });
        if kind.reads_tokens() {
            return wrong(format!(
                "soft labels are for classification, regression and ranking, this is {kind}"
            ));
        }
        if source.columns().is_some() && kind != TaskKind::Classification {
            return wrong(format!("soft and votes are for classification, this is {kind}"));
        }
        if temperature.is_some() && kind == TaskKind::Regression {
            return wrong(
                "temperature is for probabilities; a regression task's soft labels are scores".into(),
            );
        }
        let hard_weight = hard_weight.unwrap_or_else(|| default_hard_weight(&source));
        if !(0.0..1.0).contains(&hard_weight) {
            return wrong(format!(
                "hard_weight is {hard_weight}, not a share in [0, 1); to train on hard labels alone, leave the soft \
                 labels out"
            ));
        }
        let temperature = temperature.unwrap_or(1.0);
        if !(temperature.is_finite() && temperature > 0.0) {
            return wrong(format!("temperature is {temperature}, not a number above 0; 1 changes nothing"));
        }
        Ok(Self { source, hard_weight, temperature })
    }
}

/// The distribution that a softmax at `temperature` would have made of the logits whose softmax is `probabilities`:
/// each to the power `1 / temperature`, to a sum of one.
pub fn temper(probabilities: &mut [f32], temperature: f32) {
    if temperature == 1.0 {
        return;
    }
    let powers: Vec<f64> =
        probabilities.iter().map(|p| f64::from(*p).powf(1.0 / f64::from(temperature))).collect();
    let sum: f64 = powers.iter().sum();
    probabilities.iter_mut().zip(powers).for_each(|(p, power)| *p = (power / sum) as f32);
}

/// The most probable class; of equally probable ones the first.
fn most_probable(distribution: &[f32]) -> Label {
    let mut best = 0;
    for (class, probability) in distribution.iter().enumerate() {
        if *probability > distribution[best] {
            best = class;
        }
    }
    Label::Class(best as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tempering_is_the_softmax_of_the_logits_at_that_temperature() {
        let logits = [0.3f64, -1.1, 2.4];
        let softmax = |temperature: f64| {
            let powers = logits.map(|logit| (logit / temperature).exp());
            let sum: f64 = powers.iter().sum();
            powers.map(|power| (power / sum) as f32)
        };
        let mut probabilities = softmax(1.0);
        temper(&mut probabilities, 1.0);
        assert_eq!(probabilities, softmax(1.0));
        temper(&mut probabilities, 2.5);
        for (tempered, exact) in probabilities.iter().zip(softmax(2.5)) {
            assert!((tempered - exact).abs() < 1e-6, "{probabilities:?}");
        }
        // What is impossible stays so.
        let mut certain = [0.0, 1.0];
        temper(&mut certain, 4.0);
        assert_eq!(certain, [0.0, 1.0]);
    }

    #[test]
    fn ranges_and_kinds_are_checked() {
        use TaskKind::{Classification, Ranking, Regression};
        let file = || SoftSource::File("soft.jsonl".into());
        let new = |kind, source, hard, temperature| SoftLabels::new("rte", kind, source, hard, temperature);
        let of =
            |kind, source, hard, temperature| new(kind, source, hard, temperature).unwrap_err().to_string();
        assert!(of(Classification, file(), Some(1.0), None).contains("leave the soft labels out"));
        assert!(of(Ranking, file(), Some(-0.1), None).contains("hard_weight is -0.1"));
        assert!(of(Classification, file(), None, Some(0.0)).contains("not a number above 0"));
        assert!(of(Regression, file(), None, Some(2.0)).contains("soft labels are scores"));
        assert!(of(TaskKind::Span, file(), None, None).contains("this is span"));
        assert!(of(Ranking, SoftSource::Votes(Vec::new()), None, None).contains("are for classification"));
        assert_eq!(new(Classification, file(), None, None).unwrap().hard_weight, 0.5);
        let votes = new(Classification, SoftSource::Votes(Vec::new()), None, None).unwrap();
        assert_eq!((votes.hard_weight, votes.temperature), (0.0, 1.0));
    }
}
