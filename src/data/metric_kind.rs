//! What tasks are measured by, by name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{list, nearest_name};
use super::task::TaskKind;

/// A measure of predictions against gold labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum MetricKind {
    /// Share of right labels.
    Accuracy,
    /// F1 of label 1 of two; macro average where there are more.
    F1,
    /// The mean over the classes of each one's F1.
    F1Macro,
    /// F1 of all classes counted together: where an example has one label, its accuracy.
    F1Micro,
    /// The area under the receiver's curve: how often an example of a class gets more of it than one that is none of it.
    Auc,
    /// Matthews correlation.
    Mcc,
    /// Pearson correlation of scores.
    Pearson,
    /// Spearman correlation of scores.
    Spearman,
    /// Share of queries whose first-ranked candidate is the right one.
    AccuracyAt1,
    /// Mean reciprocal rank of the right candidate.
    Mrr,
    /// Mean average precision.
    Map,
    /// Share of the predicted entities that are right.
    Precision,
    /// Share of the entities that are found.
    Recall,
    /// The harmonic mean of both.
    EntityF1,
    /// Share of words with the right label.
    TokenAccuracy,
    /// Share of questions answered in the words of one of the gold answers.
    ExactMatch,
    /// Mean F1 of the words of the answer, against the most like of the gold answers.
    SpanF1,
    /// Share of masked words whose logit is the largest.
    MaskedAccuracy,
    /// Share of pairs that are rightly told to follow one another or not.
    NextAccuracy,
    /// The exponential of the mean loss of masked words: the better the smaller, 1 at best.
    Perplexity,
}

impl MetricKind {
    /// All of them.
    pub const ALL: [MetricKind; 20] = [
        MetricKind::Accuracy,
        MetricKind::F1,
        MetricKind::F1Macro,
        MetricKind::F1Micro,
        MetricKind::Auc,
        MetricKind::Mcc,
        MetricKind::Pearson,
        MetricKind::Spearman,
        MetricKind::AccuracyAt1,
        MetricKind::Mrr,
        MetricKind::Map,
        MetricKind::Precision,
        MetricKind::Recall,
        MetricKind::EntityF1,
        MetricKind::TokenAccuracy,
        MetricKind::ExactMatch,
        MetricKind::SpanF1,
        MetricKind::MaskedAccuracy,
        MetricKind::NextAccuracy,
        MetricKind::Perplexity,
    ];

    /// Its name in reports, run files and `mtdnn.json`.
    pub fn name(self) -> &'static str {
        match self {
            MetricKind::Accuracy => "accuracy",
            MetricKind::F1 => "f1",
            MetricKind::F1Macro => "f1-macro",
            MetricKind::F1Micro => "f1-micro",
            MetricKind::Auc => "auc",
            MetricKind::Mcc => "mcc",
            MetricKind::Pearson => "pearson",
            MetricKind::Spearman => "spearman",
            MetricKind::AccuracyAt1 => "accuracy@1",
            MetricKind::Mrr => "mrr",
            MetricKind::Map => "map",
            MetricKind::Precision => "precision",
            MetricKind::Recall => "recall",
            MetricKind::EntityF1 => "entity-f1",
            MetricKind::TokenAccuracy => "token-accuracy",
            MetricKind::ExactMatch => "exact-match",
            MetricKind::SpanF1 => "span-f1",
            MetricKind::MaskedAccuracy => "masked-accuracy",
            MetricKind::NextAccuracy => "next-accuracy",
            MetricKind::Perplexity => "perplexity",
        }
    }

    /// The kind of task that it measures.
    pub fn kind(self) -> TaskKind {
        match self {
            MetricKind::Accuracy
            | MetricKind::F1
            | MetricKind::F1Macro
            | MetricKind::F1Micro
            | MetricKind::Auc
            | MetricKind::Mcc => TaskKind::Classification,
            MetricKind::Pearson | MetricKind::Spearman => TaskKind::Regression,
            MetricKind::AccuracyAt1 | MetricKind::Mrr | MetricKind::Map => TaskKind::Ranking,
            MetricKind::Precision | MetricKind::Recall | MetricKind::EntityF1 | MetricKind::TokenAccuracy => {
                TaskKind::Labelling
            }
            MetricKind::ExactMatch | MetricKind::SpanF1 => TaskKind::Span,
            MetricKind::MaskedAccuracy | MetricKind::NextAccuracy | MetricKind::Perplexity => {
                TaskKind::Masked
            }
        }
    }
}

impl fmt::Display for MetricKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for MetricKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = || MetricKind::ALL.map(MetricKind::name);
        MetricKind::ALL.into_iter().find(|metric| metric.name() == name).ok_or_else(|| {
            let hint = nearest_name(name, names()).map(|near| format!("; did you mean {near:?}?"));
            format!("unknown metric {name:?}: one of {}{}", list(names()), hint.unwrap_or_default())
        })
    }
}

impl TryFrom<String> for MetricKind {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse()
    }
}

impl From<MetricKind> for &'static str {
    fn from(metric: MetricKind) -> Self {
        metric.name()
    }
}
