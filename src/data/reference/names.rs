//! The enumerations of MT-DNN's code, by their names: what each means here, or why it means nothing.

use crate::data::error::{list, nearest_name};
use crate::data::task::{MetricKind, TaskKind};

/// The layouts of a canonical file, `DataFormat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// uid, label, premise.
    PremiseOnly,
    /// uid, label, premise, hypothesis.
    PremiseAndOneHypothesis,
    /// uid, ruids, label, premise, hypotheses.
    PremiseAndMultiHypothesis,
    /// uid, a list of labels, a list of words.
    Sequence,
    /// uid, choice, answer, label, premise, hypothesis; rows of a uid are one query's.
    ClozeChoice,
    /// A JSON object a line, whose `text` is a document.
    Mlm,
}

/// A name of an enumeration: what it means here, or why nothing.
type Meaning<T> = Result<T, &'static str>;

const LAYOUTS: [(&str, Meaning<Layout>); 10] = [
    ("PremiseOnly", Ok(Layout::PremiseOnly)),
    ("PremiseAndOneHypothesis", Ok(Layout::PremiseAndOneHypothesis)),
    ("PremiseAndMultiHypothesis", Ok(Layout::PremiseAndMultiHypothesis)),
    ("Sequence", Ok(Layout::Sequence)),
    ("MLM", Ok(Layout::Mlm)),
    ("CLUE_CLASSIFICATION", Err(CLUE)),
    ("CLUE_SPAN", Err(CLUE)),
    ("CLUE_SEQ", Err(CLUE)),
    ("CLUE_GEN", Err(CLUE)),
    ("ClozeChoice", Ok(Layout::ClozeChoice)),
];

const TASK_TYPES: [(&str, Meaning<TaskKind>); 12] = [
    ("Classification", Ok(TaskKind::Classification)),
    ("Regression", Ok(TaskKind::Regression)),
    ("Ranking", Ok(TaskKind::Ranking)),
    ("SpanClassification", Ok(TaskKind::Span)),
    ("SpanClassificationYN", Ok(TaskKind::Span)),
    ("SequenceLabeling", Ok(TaskKind::Labelling)),
    ("MaskLM", Ok(TaskKind::Masked)),
    ("SpanSequenceLabeling", Err("its head exists in no published model and its data in no published file")),
    ("SequenceGeneration", Err(GENERATION)),
    ("SequenceGenerationMRC", Err(GENERATION)),
    ("EncSequenceGeneration", Err(GENERATION)),
    ("ClozeChoice", Ok(TaskKind::Ranking)),
];

/// What a loss trains.
const LOSSES: [(&str, Meaning<TaskKind>); 12] = [
    ("CeCriterion", Ok(TaskKind::Classification)),
    ("MseCriterion", Ok(TaskKind::Regression)),
    ("RankCeCriterion", Ok(TaskKind::Ranking)),
    ("SpanCeCriterion", Ok(TaskKind::Span)),
    ("SeqCeCriterion", Ok(TaskKind::Labelling)),
    ("MlmCriterion", Ok(TaskKind::Masked)),
    ("KlCriterion", Err(BETWEEN)),
    ("SymKlCriterion", Err(BETWEEN)),
    ("NsKlCriterion", Err(BETWEEN)),
    ("NsSymKlCriterion", Err(BETWEEN)),
    ("JSCriterion", Err(BETWEEN)),
    ("HLCriterion", Err(BETWEEN)),
];

const METRICS: [(&str, Meaning<MetricKind>); 13] = [
    ("ACC", Ok(MetricKind::Accuracy)),
    ("F1", Ok(MetricKind::F1)),
    ("MCC", Ok(MetricKind::Mcc)),
    ("Pearson", Ok(MetricKind::Pearson)),
    ("Spearman", Ok(MetricKind::Spearman)),
    ("AUC", Ok(MetricKind::Auc)),
    ("SeqEval", Ok(MetricKind::EntityF1)),
    ("EmF1", Ok(MetricKind::ExactMatch)),
    ("F1MAC", Ok(MetricKind::F1Macro)),
    ("F1MIC", Ok(MetricKind::F1Micro)),
    (
        "CMAT",
        Err(
            "a confusion matrix is no number that the best checkpoint could be chosen by; name ACC and F1MAC",
        ),
    ),
    ("EmF12", Ok(MetricKind::ExactMatch)),
    ("SeqEvalList", Ok(MetricKind::EntityF1)),
];

const ENCODERS: [(&str, Meaning<()>); 13] = [
    ("BERT", Ok(())),
    ("ROBERTA", Err(ENCODER)),
    ("XLNET", Err(ENCODER)),
    ("SAN", Err(ENCODER)),
    ("XLM", Err(ENCODER)),
    ("DEBERTA", Err(ENCODER)),
    ("ELECTRA", Err(ENCODER)),
    ("T5", Err(ENCODER)),
    ("T5G", Err(ENCODER)),
    ("MSRT5G", Err(ENCODER)),
    ("MSRT5", Err(ENCODER)),
    ("MSRLONGT5G", Err(ENCODER)),
    ("MSRLONGT5", Err(ENCODER)),
];

const GENERATION: &str = "an encoder generates no text";
const CLUE: &str = "CLUE's files are not read; write the task in another layout";
const BETWEEN: &str =
    "it compares two predictions, not a prediction with a label, so nothing is trained with it alone";
const ENCODER: &str = "the encoder here is BERT";

/// What `data_format` means.
pub(super) fn layout(name: &str) -> Result<Layout, String> {
    meaning(&spelled(name), &LAYOUTS)
}

/// What `task_type` means.
pub(super) fn kind(name: &str) -> Result<TaskKind, String> {
    meaning(&spelled(name), &TASK_TYPES)
}

/// The reference's code and files say `Seqence` in all their names; both spellings are read.
fn spelled(name: &str) -> String {
    name.replace("Seqence", "Sequence")
}

/// What a `loss` trains.
pub(super) fn trained_by(name: &str) -> Result<TaskKind, String> {
    meaning(name, &LOSSES)
}

/// Checks that there is a loss of that name, whatever it means.
pub(super) fn loss_exists(name: &str) -> Result<(), String> {
    let known = LOSSES.iter().any(|(known, _)| *known == name);
    if known { Ok(()) } else { meaning(name, &LOSSES).map(drop) }
}

/// What a name of `metric_meta` means for a task: accuracy of a ranking is that of its first place, that of labels is
/// counted by words, that of masked words by what is hidden, and entities have precision and recall beside F1.
pub(super) fn metrics(name: &str, kind: TaskKind) -> Result<Vec<MetricKind>, String> {
    Ok(match (name, kind) {
        ("ACC" | "EmF1", TaskKind::Ranking) => vec![MetricKind::AccuracyAt1],
        ("ACC", TaskKind::Labelling) => vec![MetricKind::TokenAccuracy],
        ("ACC", TaskKind::Masked) => vec![MetricKind::MaskedAccuracy],
        ("EmF1" | "EmF12", TaskKind::Span) => vec![MetricKind::SpanF1, MetricKind::ExactMatch],
        ("SeqEval" | "SeqEvalList", _) => {
            vec![MetricKind::EntityF1, MetricKind::Precision, MetricKind::Recall]
        }
        _ => vec![meaning(name, &METRICS)?],
    })
}

/// Checks `encoder_type`.
pub(super) fn encoder(name: &str) -> Result<(), String> {
    meaning(name, &ENCODERS)
}

/// The names that mean something here are one sentence, the others another; an unknown one gets the nearest.
fn meaning<T: Copy>(name: &str, table: &[(&str, Meaning<T>)]) -> Result<T, String> {
    match table.iter().find(|(known, _)| *known == name) {
        Some((_, Ok(meaning))) => Ok(*meaning),
        Some((_, Err(reason))) => Err(format!("{name} is not supported: {reason}")),
        None => {
            let near = nearest_name(name, table.iter().map(|(known, _)| *known));
            let hint = near.map(|near| format!("; did you mean {near:?}?"));
            let supported = table.iter().filter(|(_, meaning)| meaning.is_ok()).map(|(known, _)| *known);
            Err(format!(
                "unknown name {name:?}; supported are {}{}",
                list(supported),
                hint.unwrap_or_default()
            ))
        }
    }
}
