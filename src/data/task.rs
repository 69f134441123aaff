//! What a task is: its kind, its labels, how it is measured, and where its examples lie.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::{DataError, list};
use super::masked::MaskedOptions;
pub use super::metric_kind::MetricKind;
use super::san::SanSpec;
use super::soft::SoftLabels;
use super::span::SpanOptions;

/// What a task's head answers, and so which of MT-DNN's losses it trains with
/// (Liu et al. 2019, arXiv 1901.11504, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskKind {
    /// One of the task's labels for a sentence or a pair: cross-entropy (equation 6).
    Classification,
    /// A number for a pair: mean squared error (equation 7).
    Regression,
    /// The right one among a query's candidates: softmax over the candidates (equation 8).
    Ranking,
    /// One of the task's labels for each word of a sentence: cross-entropy over the words' first tokens.
    Labelling,
    /// Where in a text the answer to a question stands: the mean of two softmaxes over the text's tokens, one for the
    /// answer's first token and one for its last (Devlin et al. 2018, section 4.2).
    Span,
    /// The words that stand behind the masks of raw text, and whether its second part follows the first: cross-entropy
    /// over the vocabulary and over yes and no (Devlin et al. 2018, section 3.1).
    Masked,
}

impl TaskKind {
    /// The metrics of a task that names none; the first is the main one.
    pub fn default_metrics(self) -> Vec<MetricKind> {
        match self {
            TaskKind::Classification => vec![MetricKind::Accuracy],
            TaskKind::Regression => vec![MetricKind::Pearson, MetricKind::Spearman],
            TaskKind::Ranking => vec![MetricKind::AccuracyAt1, MetricKind::Mrr, MetricKind::Map],
            TaskKind::Labelling => {
                use MetricKind::{EntityF1, Precision, Recall, TokenAccuracy};
                vec![EntityF1, Precision, Recall, TokenAccuracy]
            }
            TaskKind::Span => vec![MetricKind::SpanF1, MetricKind::ExactMatch],
            TaskKind::Masked => {
                vec![MetricKind::MaskedAccuracy, MetricKind::NextAccuracy, MetricKind::Perplexity]
            }
        }
    }

    /// Whether the answer is one of named classes.
    pub fn has_labels(self) -> bool {
        matches!(self, TaskKind::Classification | TaskKind::Labelling)
    }

    /// Whether the head reads marked tokens instead of the pooled vector, or beside it.
    pub fn reads_tokens(self) -> bool {
        matches!(self, TaskKind::Labelling | TaskKind::Span | TaskKind::Masked)
    }
}

impl fmt::Display for TaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TaskKind::Classification => "classification",
            TaskKind::Regression => "regression",
            TaskKind::Ranking => "ranking",
            TaskKind::Labelling => "labelling",
            TaskKind::Span => "span",
            TaskKind::Masked => "masked",
        })
    }
}

/// How many texts an example of a task has, where its kind leaves that open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Texts {
    /// One.
    Single,
    /// Two.
    Pair,
}

/// One task, as a model's `mtdnn.json` keeps it; `files` belongs to the run, not to the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// The name of its head and of its lines in reports.
    pub name: String,
    /// What its head answers.
    pub kind: TaskKind,
    /// How many texts it was trained on; `None` for kinds that leave nothing open, and where a model's `mtdnn.json` does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub texts: Option<Texts>,
    /// The classes in order: class `i` is called `labels[i]`. Empty where the kind has none, and until
    /// [`learn_labels`](super::reader::learn_labels) for a task that names none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// What to report; the first is the main one.
    pub metrics: Vec<MetricKind>,
    /// Dropout probability of the head.
    pub dropout: f32,
    /// What the relevances of candidates are multiplied by before the softmax: gamma of equation 9. For ranking.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub gamma: f32,
    /// The function on a candidate's relevance: g of equation 5. For ranking.
    #[serde(default, skip_serializing_if = "Relevance::is_identity")]
    pub relevance: Relevance,
    /// The task whose head answers this one, where it has none of its own (GLUE's diagnostic set).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<String>,
    /// The options of a stochastic answer network, where that is its head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub san: Option<SanSpec>,
    /// How texts are cut and answers are chosen; `None` unless the kind is [`TaskKind::Span`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span: Option<SpanOptions>,
    /// What is hidden of its text; `None` unless the kind is [`TaskKind::Masked`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masked: Option<MaskedOptions>,
    /// Examples of its training batches at most, in place of the run's number.
    #[serde(skip)]
    pub batch_size: Option<usize>,
    /// The distributions that it is trained on beside its labels; of the run, not of the model.
    #[serde(skip)]
    pub soft: Option<SoftLabels>,
    /// Where its examples are; several to a split are possible (MNLI's two dev files).
    #[serde(skip)]
    pub files: Vec<SourceFile>,
    /// What has to be said of it before it is trained.
    #[serde(skip)]
    pub notes: Vec<String>,
}

/// The function on the relevance of a candidate, `g` in equation 5 of Liu et al. 2019 (its first version has the sigmoid,
/// the second leaves it open, the authors' code has none).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Relevance {
    /// None: any number.
    #[default]
    Identity,
    /// `1 / (1 + exp(-x))`: between 0 and 1. What a candidate gains over another is then no more than gamma.
    Sigmoid,
}

impl Relevance {
    fn is_identity(&self) -> bool {
        *self == Relevance::Identity
    }
}

fn one() -> f32 {
    1.0
}

fn is_one(value: &f32) -> bool {
    *value == 1.0
}

/// The dropout of a head where nothing else is said (Liu et al. 2019, section 5.2).
const DROPOUT: f32 = 0.1;

impl TaskSpec {
    /// A task of this kind with its usual metrics and dropout, without labels and files.
    pub fn new(name: impl Into<String>, kind: TaskKind) -> Self {
        Self {
            name: name.into(),
            kind,
            texts: None,
            labels: Vec::new(),
            metrics: kind.default_metrics(),
            // The head for masked words has none (Devlin et al. 2018).
            dropout: if kind == TaskKind::Masked { 0.0 } else { DROPOUT },
            gamma: one(),
            relevance: Relevance::Identity,
            shares: None,
            san: None,
            span: (kind == TaskKind::Span).then(SpanOptions::default),
            masked: (kind == TaskKind::Masked).then(MaskedOptions::default),
            batch_size: None,
            soft: None,
            files: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// The columns of its data files that hold distributions over its labels, if there are any.
    pub fn soft_columns(&self) -> Option<&[Column]> {
        self.soft.as_ref()?.source.columns()
    }

    /// The files of `split`.
    pub fn files_of(&self, split: Split) -> impl Iterator<Item = &SourceFile> {
        self.files.iter().filter(move |file| file.split == split)
    }

    /// The number of outputs of the task's head.
    pub fn outputs(&self) -> usize {
        match self.kind {
            TaskKind::Classification | TaskKind::Labelling => self.labels.len(),
            TaskKind::Regression | TaskKind::Ranking => 1,
            // Of masked words the next sentence alone: yes and no.
            TaskKind::Span | TaskKind::Masked => 2,
        }
    }

    /// Checks what a person may have got wrong: metrics of another kind, one label or the same label twice, a
    /// dropout that is no probability, a name that cannot be part of a parameter's or a file's name.
    pub fn validate(&self) -> Result<(), DataError> {
        let wrong = |reason: String| Err(DataError::Task { task: self.name.clone(), reason });
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.name.is_empty() || !self.name.chars().all(plain) {
            return wrong("a task's name is made of letters, digits, - and _".to_string());
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return wrong(format!("dropout is {}, which is not in [0, 1)", self.dropout));
        }
        if !(self.gamma > 0.0 && self.gamma.is_finite()) {
            return wrong(format!("gamma is {}, which is no number above 0", self.gamma));
        }
        if self.kind != TaskKind::Ranking {
            let named = [("gamma", !is_one(&self.gamma)), ("relevance", !self.relevance.is_identity())];
            if let Some((key, _)) = named.into_iter().find(|(_, said)| *said) {
                return wrong(format!("{key} is for ranking, this is {}", self.kind));
            }
        }
        if self.metrics.is_empty() {
            return wrong("it names no metric".to_string());
        }
        if let Some(metric) = self.metrics.iter().find(|metric| metric.kind() != self.kind) {
            let fitting = MetricKind::ALL.into_iter().filter(|metric| metric.kind() == self.kind);
            let fitting = list(fitting.map(MetricKind::name));
            return wrong(format!("metric {metric} does not measure {}; these do: {fitting}", self.kind));
        }
        if !self.kind.has_labels() && !self.labels.is_empty() {
            return wrong(format!("labels are for classification and labelling, this is {}", self.kind));
        }
        if let Some(span) = &self.span {
            span.validate().map_err(|reason| DataError::Task { task: self.name.clone(), reason })?;
        }
        self.validate_masked().or_else(wrong)?;
        self.validate_san().or_else(wrong)?;
        if self.labels.len() == 1 {
            return wrong(format!("it has one label only, {:?}; two or more are needed", self.labels[0]));
        }
        for (index, label) in self.labels.iter().enumerate() {
            if self.labels[..index].contains(label) {
                return wrong(format!("label {label:?} is named twice"));
            }
        }
        if let Some((label, metric)) = self.unmeasurable() {
            return wrong(format!(
                "{metric} measures entities, and label {label:?} is neither O nor B- or I- and a type; for labels of \
                 words give metrics = [\"token-accuracy\"]"
            ));
        }
        Ok(())
    }

    /// A label that is no part of an entity, where a metric counts entities.
    fn unmeasurable(&self) -> Option<(&str, MetricKind)> {
        use MetricKind::{EntityF1, Precision, Recall};
        let counts = |metric: &&MetricKind| matches!(metric, EntityF1 | Precision | Recall);
        let metric = *self.metrics.iter().find(counts)?;
        let other = |label: &&String| !may_be_counted(label);
        self.labels.iter().find(other).map(|label| (label.as_str(), metric))
    }
}

/// Whether a label may stand where entities are counted: that of an entity's word, `O`, or one of those that the files of
/// MT-DNN's own code give what is no word: a piece of one, and the delimiters.
pub(super) fn may_be_counted(label: &str) -> bool {
    matches!(label, "O" | "X" | "CLS" | "SEP") || entity_tag(label).is_some()
}

/// What a label of an entity's word says: where in it the word stands (`B` begins it, `I` goes on; `E` ends it and `S`
/// is one word, in the finer schemes), and the entity's type. `None` for `O` and every other label.
pub fn entity_tag(label: &str) -> Option<(char, &str)> {
    let (place, kind) = label.split_once('-')?;
    let place = place.chars().next().filter(|_| place.len() == 1)?;
    (matches!(place, 'B' | 'I' | 'E' | 'S') && !kind.is_empty()).then_some((place, kind))
}

impl TaskSpec {
    /// Masked words are measured by what is hidden, and the main metric is a share.
    fn validate_masked(&self) -> Result<(), String> {
        let Some(masked) = &self.masked else { return Ok(()) };
        if self.metrics[0] == MetricKind::Perplexity {
            return Err("perplexity is no share, the better the larger, as the main metric has to be; name \
                        masked-accuracy first"
                .to_string());
        }
        if !masked.next_sentence && self.metrics.contains(&MetricKind::NextAccuracy) {
            return Err("next-accuracy measures next sentences, and next_sentence is false".to_string());
        }
        masked.problem().map_or(Ok(()), Err)
    }

    /// A stochastic answer network reads two texts and answers with a class.
    fn validate_san(&self) -> Result<(), String> {
        let Some(san) = &self.san else { return Ok(()) };
        if self.kind != TaskKind::Classification {
            return Err(format!("head = \"san\" is for classification of pairs, this is {}", self.kind));
        }
        if self.texts == Some(Texts::Single) {
            return Err("head = \"san\" reads a pair, and its examples are single texts".to_string());
        }
        if let Some(head) = &self.shares {
            return Err(format!("it is answered by the head of {head}; give that one head = \"san\""));
        }
        san.problem().map_or(Ok(()), Err)
    }
}

/// Which part of a task's data a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Trained on.
    Train,
    /// Measured on.
    Dev,
    /// Answered; its labels are not known.
    Test,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Split::Train => "train",
            Split::Dev => "dev",
            Split::Test => "test",
        })
    }
}

/// A file of examples and how it is read.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceFile {
    /// The part of the data that it holds.
    pub split: Split,
    /// The split's name in reports: `"dev"`, or `"dev_matched"` where there are several.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// How its lines are cut into fields.
    pub format: Format,
    /// Which fields hold what.
    pub columns: Columns,
    /// Known faults of an official file, whose rows are skipped instead of refused.
    pub quirks: Quirks,
}

/// How lines are cut into fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Split at tabs, quotes mean nothing, rows end at `\n` alone.
    Tsv {
        /// Whether the first row names the columns.
        header: bool,
    },
    /// Comma-separated with quoting (RFC 4180).
    Csv {
        /// Whether the first row names the columns.
        header: bool,
    },
    /// One JSON object a line; its keys are the columns.
    Jsonl,
    /// A word a line with its columns between blanks, and a blank line between sentences (CoNLL 2003).
    Conll,
    /// One JSON object of questions on texts (SQuAD 1.1 and 2.0).
    Squad,
}

/// Which fields of a row hold what.
#[derive(Clone, Debug, PartialEq)]
pub enum Columns {
    /// A row is an example: one text or two, and a label unless the split has none.
    Row {
        /// The text, or the first of the pair.
        text_a: Column,
        /// The second of the pair.
        text_b: Option<Column>,
        /// A label's name or number, or a score.
        label: Option<Column>,
    },
    /// A row is a query with a list of candidates (JSONL only).
    List {
        /// The query's text.
        query: Column,
        /// A list of texts.
        candidates: Column,
        /// The index of the right candidate, from 0.
        positive: Option<Column>,
    },
    /// A row is one candidate; rows with the same value of `group` that follow one another are one query's.
    Grouped {
        /// What the rows of a query have in common.
        group: Column,
        /// The query's text, the same in every row of a group.
        query: Column,
        /// The candidate's text.
        candidate: Column,
        /// 1 for the right candidate, 0 for the others.
        label: Option<Column>,
    },
    /// Two rows that follow one another are one query's: QNLI v1 (see [`qnli`](super::qnli)).
    Paired {
        /// The question, the same in both rows.
        query: Column,
        /// The sentence.
        candidate: Column,
        /// Whether the sentence is the answer: `entailment` or `not_entailment`.
        label: Option<Column>,
    },
    /// A row is a sentence's words and their labels; in [`Format::Conll`] a word and its label.
    Words {
        /// A list of words: of texts in JSON, else JSON or Python in the field.
        tokens: Column,
        /// As long a list of labels.
        tags: Option<Column>,
    },
    /// [`Format::Squad`] has keys of its own.
    Questions {
        /// Whether the answers are read.
        answers: bool,
    },
    /// A row is a query with any number of hypotheses, in columns after it (see [`reference`](super::reference)).
    Hypotheses {
        /// The names of the hypotheses' labels, the better the later; none if they are numbers.
        ranks: Vec<String>,
        /// Whether the labels are to be read.
        labelled: bool,
    },
    /// A row has token ids in place of text (see [`reference`](super::reference)).
    Tokens {
        /// Whether the label is to be read.
        labelled: bool,
    },
}

impl Columns {
    /// Whether one of them holds the answer.
    pub fn labelled(&self) -> bool {
        match self {
            Columns::Row { label, .. } | Columns::Grouped { label, .. } | Columns::Paired { label, .. } => {
                label.is_some()
            }
            Columns::List { positive, .. } => positive.is_some(),
            Columns::Words { tags, .. } => tags.is_some(),
            Columns::Questions { answers } => *answers,
            Columns::Hypotheses { labelled, .. } | Columns::Tokens { labelled } => *labelled,
        }
    }

    /// How many texts a row makes; `None` where the task's kind leaves nothing open.
    pub fn texts(&self) -> Option<Texts> {
        match self {
            Columns::Row { text_b: None, .. } => Some(Texts::Single),
            Columns::Row { text_b: Some(_), .. } => Some(Texts::Pair),
            Columns::List { .. }
            | Columns::Grouped { .. }
            | Columns::Paired { .. }
            | Columns::Words { .. }
            | Columns::Questions { .. }
            | Columns::Hypotheses { .. }
            | Columns::Tokens { .. } => None,
        }
    }

    /// The same columns for a file that has no answers.
    pub(crate) fn forget_label(&mut self) {
        match self {
            Columns::Row { label, .. } | Columns::Grouped { label, .. } | Columns::Paired { label, .. } => {
                *label = None
            }
            Columns::List { positive, .. } => *positive = None,
            Columns::Words { tags, .. } => *tags = None,
            Columns::Questions { answers } => *answers = false,
            Columns::Hypotheses { labelled, .. } | Columns::Tokens { labelled } => *labelled = false,
        }
    }
}

/// One column of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Column {
    /// By number, from 0.
    Number(usize),
    /// By its name in the header, or the key in JSON.
    Name(String),
    /// The right-most of the row, however many it has (MNLI's and SNLI's gold label).
    #[serde(skip)]
    Last,
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Column::Number(number) => write!(f, "{number}"),
            Column::Name(name) => f.write_str(name),
            Column::Last => f.write_str("last"),
        }
    }
}

/// What official files are known to get wrong. Skipped rows are counted and said; everything else is an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quirks {
    /// Rows with fewer fields than the header are skipped (QQP).
    pub short_rows: bool,
    /// Rows may have any number of fields, as long as those named exist (SNLI's 15 under a header of 11).
    pub uneven_rows: bool,
    /// Rows with an empty text are skipped; in test files they are kept, for they want an answer.
    pub empty_texts: bool,
    /// Rows labelled `-` are skipped: the annotators did not agree (MNLI, SNLI).
    pub no_consensus: bool,
}
