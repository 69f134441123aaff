//! A task as a run file names it: a known one by its folder, or one's own by its files and columns; [`options`] has what is
//! said of spans and masked words.

mod options;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::DataError;
use super::glue;
use super::reference;
use super::san::SanSpec;
use super::soft::{SoftLabels, SoftSource};
use super::task::{
    Column, Columns, Format, MetricKind, Quirks, Relevance, SourceFile, Split, TaskKind, TaskSpec,
};

/// One `[[task]]` of a run file. What is left out is known for a known task, and a default for one's own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TaskEntry {
    /// The task's name; a known one (`rte`) brings everything but its folder.
    pub name: String,
    /// What its head answers; classification if not said, ranking if `candidates` or `group` is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<TaskKind>,
    /// The folder of a known task, or the one that holds GLUE; or one with `train`, `dev` and `test` files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// A task-definition file of MT-DNN's own code that says what this task is; its files are in `data`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_def: Option<PathBuf>,
    /// The file to train on: `.tsv` (or `.txt`), `.csv` or `.jsonl`; for labelling `.conll` (or `.txt`), too, and for span
    /// `.json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<PathBuf>,
    /// The file to measure on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dev: Option<PathBuf>,
    /// The file to answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<PathBuf>,
    /// Whether the first row names the columns; if not said, it does where columns are named by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<bool>,
    /// The column of the text, or of the first of a pair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_a: Option<Column>,
    /// The column of the second text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_b: Option<Column>,
    /// The column of the label or score.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<Column>,
    /// Ranking: the key of the query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query: Option<Column>,
    /// Ranking: the key of the list of candidates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub candidates: Option<Column>,
    /// Ranking: the key of the right candidate's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positive: Option<Column>,
    /// Ranking, one candidate a row: the column that a query's rows have in common.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Column>,
    /// Labelling: the list of words, `tokens` in JSONL if not said; in CoNLL's columns the word, the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Column>,
    /// Labelling: the list of the words' labels, `tags` in JSONL if not said; in CoNLL's columns the label, the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Column>,
    /// Span: tokens of a question; what is longer is cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_query_length: Option<usize>,
    /// Span: tokens between the beginnings of two windows of a long text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stride: Option<usize>,
    /// Span: tokens of an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_answer_length: Option<usize>,
    /// Span: whether a question may have no answer; if not said, whether one of the train file has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_answer: Option<bool>,
    /// Span: by how much the score of no answer must exceed the best answer's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub null_threshold: Option<f32>,
    /// Masked: files and folders of raw text to train on, a sentence a line and a blank line between documents unless
    /// `split` says otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<Vec<PathBuf>>,
    /// Masked: files and folders of raw text to measure on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dev_text: Option<Vec<PathBuf>>,
    /// Masked: whether text is plain paragraphs, to be cut into sentences, with two blank lines between documents; it is not
    /// if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<bool>,
    /// Masked: whether the pieces of a word are hidden together; they are not if not said, and are if a task definition
    /// says what the task is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub whole_words: Option<bool>,
    /// Masked: whether texts are pairs of which the second may follow the first, which is learnt as well; they are if not
    /// said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_sentence: Option<bool>,
    /// Masked: the share of tokens that is to be guessed; 0.15 if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_share: Option<f64>,
    /// The classes in order; if not said, those of the train file, sorted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// Distributions over the labels in the data file: a key of JSON, or a column of numbers for each label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft: Option<OneOrMore>,
    /// Columns that each hold the label that one annotator gave; their shares are trained on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub votes: Option<Vec<Column>>,
    /// A file of soft labels that `predict --soft` wrote for the train file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft_labels: Option<PathBuf>,
    /// What the loss of the hard labels counts beside that of the soft ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hard_weight: Option<f32>,
    /// The temperature at which soft labels are learned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// What to report; the first is the main one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Vec<MetricKind>>,
    /// Dropout of the head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f32>,
    /// What reads the answer off the encoder: a linear map if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<HeadKind>,
    /// Train on this share of the training examples, at least one, drawn by the run's seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Train on so many of the training examples, drawn by the run's seed; on all if there are no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub examples: Option<usize>,
    /// Ranking: the factor of relevances in the softmax over candidates (equation 9); 1 if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gamma: Option<f32>,
    /// Ranking: the function on a candidate's relevance (equation 5); the identity if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relevance: Option<Relevance>,
    /// The options of `head = "san"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub san: Option<SanSpec>,
    /// Examples of its training batches, in place of `[train]`'s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<usize>,
}

/// What reads a task's answer off the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadKind {
    /// A linear map of the pooled vector.
    Linear,
    /// A stochastic answer network, for the classification of pairs.
    San,
}

/// A column, or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a column or a list of columns")]
pub enum OneOrMore {
    /// One.
    One(Column),
    /// Several.
    More(Vec<Column>),
}

impl OneOrMore {
    /// All of them.
    pub fn columns(&self) -> &[Column] {
        match self {
            OneOrMore::One(column) => std::slice::from_ref(column),
            OneOrMore::More(columns) => columns,
        }
    }
}

impl TaskEntry {
    /// The task that is meant. Relative paths are as the program finds them; labels are not learned yet.
    ///
    /// # Errors
    /// If something that is needed is not said, or what is said does not fit together.
    pub fn resolve(&self) -> Result<TaskSpec, DataError> {
        let mut spec = match (&self.task_def, self.known()?) {
            (Some(definition), _) => self.defined(definition)?,
            (None, Some(spec)) => spec,
            (None, None) if self.kind == Some(TaskKind::Masked) => self.masked()?,
            (None, None) => self.own()?,
        };
        self.set_span(&mut spec)?;
        self.set_masked(&mut spec)?;
        if let Some(metrics) = &self.metrics {
            spec.metrics.clone_from(metrics);
        }
        if let Some(dropout) = self.dropout {
            spec.dropout = dropout;
        }
        spec.san = match (self.head, &self.san) {
            (Some(HeadKind::San), options) => Some(options.clone().unwrap_or_default()),
            // A task definition may say it, too.
            (None, None) => spec.san.take(),
            (Some(_), None) => None,
            (_, Some(_)) => {
                let reason =
                    "[task.san] has the options of a stochastic answer network; say head = \"san\" as well";
                return Err(self.wrong(reason.into()));
            }
        };
        self.check_part()?;
        let of_ranking = [("gamma", self.gamma.is_some()), ("relevance", self.relevance.is_some())];
        if let Some((key, _)) =
            of_ranking.into_iter().find(|&(_, said)| said && spec.kind != TaskKind::Ranking)
        {
            return Err(self.wrong(format!("{key} is for ranking, this is {}", spec.kind)));
        }
        spec.gamma = self.gamma.unwrap_or(spec.gamma);
        spec.relevance = self.relevance.unwrap_or(spec.relevance);
        if self.batch_size == Some(0) {
            return Err(self.wrong("batch_size is 0; give 1 or more, or leave it out".to_string()));
        }
        spec.batch_size = self.batch_size;
        spec.soft = self.soft_labels(&spec)?;
        spec.validate()?;
        Ok(spec)
    }

    /// Checks what is said of the part to train on.
    fn check_part(&self) -> Result<(), DataError> {
        match (self.share, self.examples) {
            (Some(_), Some(_)) => {
                Err(self.wrong("share and examples both say how much to train on; give one of them".into()))
            }
            (Some(share), _) if !(share > 0.0 && share <= 1.0) => {
                Err(self.wrong(format!("share is {share}, which is not in (0, 1]")))
            }
            (_, Some(0)) => Err(self.wrong("0 examples train nothing; give 1 or more".into())),
            _ => Ok(()),
        }
    }

    fn soft_labels(&self, spec: &TaskSpec) -> Result<Option<SoftLabels>, DataError> {
        let named = [
            ("soft_labels", self.soft_labels.is_some()),
            ("soft", self.soft.is_some()),
            ("votes", self.votes.is_some()),
        ];
        let found = spec.soft.as_ref().map(|soft| &soft.source);
        if let (Some(_), Some((key, _))) = (found, named.iter().find(|(_, named)| *named)) {
            return Err(self.wrong(format!("its train file has a softlabel a line; leave {key} out")));
        }
        let source = match (&self.soft_labels, &self.soft, &self.votes) {
            (None, None, None) if found.is_some() => SoftSource::TokenLines,
            (Some(path), None, None) => SoftSource::File(path.clone()),
            (None, Some(columns), None) => SoftSource::Weights(columns.columns().to_vec()),
            (None, None, Some(columns)) if columns.is_empty() => {
                return Err(self.wrong("votes names no column".into()));
            }
            (None, None, Some(columns)) => SoftSource::Votes(columns.clone()),
            (None, None, None) => {
                let given = [("hard_weight", self.hard_weight), ("temperature", self.temperature)];
                return match given.iter().find(|(_, given)| given.is_some()) {
                    Some((key, _)) => Err(self.wrong(format!(
                        "{key} is of soft labels, and there are none; name soft_labels, soft or votes, or leave it out"
                    ))),
                    None => Ok(None),
                };
            }
            _ => {
                return Err(
                    self.wrong("soft_labels, soft and votes are three sources of one thing; name one".into())
                );
            }
        };
        if matches!(source, SoftSource::Weights(_)) && spec.labels.is_empty() && self.label.is_none() {
            return Err(
                self.wrong("soft holds a number for each label, and nothing names them; give labels".into())
            );
        }
        SoftLabels::new(&spec.name, spec.kind, source, self.hard_weight, self.temperature).map(Some)
    }

    /// The columns of soft labels in the data file.
    fn soft_columns(&self) -> &[Column] {
        let soft = self.soft.as_ref().map(OneOrMore::columns);
        soft.or(self.votes.as_deref()).unwrap_or_default()
    }

    /// The classes, where nothing says them: the names of the columns that hold a number for each.
    fn labels_of_columns(&self) -> Vec<String> {
        match &self.soft {
            Some(OneOrMore::More(columns)) if self.label.is_none() => {
                columns.iter().map(Column::to_string).collect()
            }
            _ => Vec::new(),
        }
    }

    /// A task known by its own name or by that of its folder, unless columns are named.
    fn known(&self) -> Result<Option<TaskSpec>, DataError> {
        let (None, Some(data), None) = (&self.task_def, &self.data, self.first_column()) else {
            return Ok(None);
        };
        if self.kind.is_some_and(TaskKind::reads_tokens) {
            return Ok(None);
        }
        let folder = data.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(known) = glue::find(&self.name).or_else(|| glue::find(folder)) else { return Ok(None) };
        let cast = self.kind.and_then(|kind| glue::cast(known, kind));
        let mut spec = glue::task(cast.unwrap_or(known), data)?;
        if cast.is_some() {
            spec.name = known.to_string();
        }
        if glue::find(&self.name).is_none() {
            spec.name.clone_from(&self.name);
        }
        if let Some(kind) = self.kind.filter(|&kind| kind != spec.kind) {
            return Err(self.wrong(format!("{known} is a {} task, not {kind}", spec.kind)));
        }
        for (key, given) in [
            ("labels", self.labels.is_some()),
            ("header", self.header.is_some()),
            ("train", self.train.is_some()),
            ("dev", self.dev.is_some()),
            ("test", self.test.is_some()),
        ] {
            if given {
                return Err(
                    self.wrong(format!("{key} is known of {known}; leave it out, or name all columns"))
                );
            }
        }
        Ok(Some(spec))
    }

    /// A task as a task-definition file of MT-DNN's code says it.
    fn defined(&self, definition: &Path) -> Result<TaskSpec, DataError> {
        let Some(data) = &self.data else {
            return Err(self.wrong("task_def needs data, the folder of its files".to_string()));
        };
        let given = [
            ("kind", self.kind.is_some()),
            ("labels", self.labels.is_some()),
            ("header", self.header.is_some()),
            ("train", self.train.is_some()),
            ("dev", self.dev.is_some()),
            ("test", self.test.is_some()),
            ("text", self.text.is_some()),
            ("dev_text", self.dev_text.is_some()),
            ("split", self.split.is_some()),
            ("max_query_length", self.max_query_length.is_some()),
            ("stride", self.stride.is_some()),
            ("no_answer", self.no_answer.is_some()),
        ];
        let given = given.into_iter().filter(|(_, given)| *given).map(|(key, _)| key);
        match given.chain(self.named_columns().into_iter().map(|(key, _)| key)).next() {
            Some(key) => Err(self.wrong(format!("{key} is said by its task definition; leave it out"))),
            None => reference::task(definition, &self.name, data),
        }
    }

    fn own(&self) -> Result<TaskSpec, DataError> {
        let kind = self.kind.unwrap_or(if self.candidates.is_some() || self.group.is_some() {
            TaskKind::Ranking
        } else {
            TaskKind::Classification
        });
        let mut files = Vec::new();
        for (split, given) in
            [(Split::Train, &self.train), (Split::Dev, &self.dev), (Split::Test, &self.test)]
        {
            if let Some(path) = given.clone().or_else(|| self.in_folder(split, kind)) {
                files.push(self.source(split, path, kind)?);
            }
        }
        if files.is_empty() {
            let reason = match &self.data {
                Some(data) => {
                    let extensions = known_extensions(kind);
                    format!("{} has no train, dev or test file ({extensions})", data.display())
                }
                None => "it has no files; name train and dev, or data, a folder".to_string(),
            };
            return Err(self.wrong(reason));
        }
        Ok(TaskSpec {
            texts: files[0].columns.texts(),
            labels: self.labels.clone().unwrap_or_else(|| self.labels_of_columns()),
            files,
            ..TaskSpec::new(self.name.clone(), kind)
        })
    }

    fn columns(&self, kind: TaskKind, format: Format) -> Result<Columns, DataError> {
        let need = |key: &str, column: &Option<Column>| {
            column.clone().ok_or_else(|| self.wrong(format!("it does not say which column is {key}")))
        };
        let columns = if kind == TaskKind::Span {
            Columns::Questions { answers: true }
        } else if kind == TaskKind::Labelling {
            let (tokens, tags) = match format {
                Format::Conll => (Some(Column::Number(0)), Some(Column::Last)),
                Format::Jsonl => (Some(Column::Name("tokens".into())), Some(Column::Name("tags".into()))),
                _ => (None, None),
            };
            Columns::Words {
                tokens: need("tokens", &self.tokens.clone().or(tokens))?,
                tags: Some(need("tags", &self.tags.clone().or(tags))?),
            }
        } else if kind != TaskKind::Ranking {
            Columns::Row {
                text_a: need("text_a", &self.text_a)?,
                text_b: self.text_b.clone(),
                // Where the file holds distributions, the most probable label will do.
                label: match self.soft_columns() {
                    [] => Some(need("label", &self.label)?),
                    _ => self.label.clone(),
                },
            }
        } else if self.group.is_some() {
            Columns::Grouped {
                group: need("group", &self.group)?,
                query: need("text_a", &self.text_a)?,
                candidate: need("text_b", &self.text_b)?,
                label: Some(need("label", &self.label)?),
            }
        } else {
            Columns::List {
                query: need("query", &self.query)?,
                candidates: need("candidates", &self.candidates)?,
                positive: Some(need("positive", &self.positive)?),
            }
        };
        let (used, shape): (&[&str], &str) = match &columns {
            Columns::Row { .. } => (&["text_a", "text_b", "label"], "this kind of task"),
            Columns::Grouped { .. } => (&["group", "text_a", "text_b", "label"], "ranking by group"),
            Columns::List { .. } => (&["query", "candidates", "positive"], "ranking by candidates"),
            Columns::Words { .. } => (&["tokens", "tags"], "labelling"),
            Columns::Questions { .. } => (&[], "span, whose files have keys of their own"),
            Columns::Paired { .. } | Columns::Hypotheses { .. } | Columns::Tokens { .. } => {
                (&[], "a task that is known")
            }
        };
        match self.named_columns().into_iter().find(|(key, _)| !used.contains(key)) {
            Some((key, _)) => Err(self.wrong(format!("{key} is not a column of {shape}"))),
            None => Ok(columns),
        }
    }

    /// The columns that are said, with their keys.
    fn named_columns(&self) -> Vec<(&'static str, &Column)> {
        let all = [
            ("text_a", &self.text_a),
            ("text_b", &self.text_b),
            ("label", &self.label),
            ("query", &self.query),
            ("candidates", &self.candidates),
            ("positive", &self.positive),
            ("group", &self.group),
            ("tokens", &self.tokens),
            ("tags", &self.tags),
        ];
        all.into_iter().filter_map(|(key, column)| Some((key, column.as_ref()?))).collect()
    }

    fn first_column(&self) -> Option<&Column> {
        self.named_columns().first().map(|(_, column)| *column)
    }

    fn source(&self, split: Split, path: PathBuf, kind: TaskKind) -> Result<SourceFile, DataError> {
        let columns_named = self.named_columns().into_iter().map(|(_, column)| column);
        let named = columns_named.chain(self.soft_columns()).any(|column| matches!(column, Column::Name(_)));
        let header = self.header.unwrap_or(named);
        let format = match (kind, path.extension().and_then(|extension| extension.to_str())) {
            (TaskKind::Span, Some("json")) => Format::Squad,
            (TaskKind::Labelling, Some("conll" | "iob" | "iob2" | "bio" | "txt")) => Format::Conll,
            (kind, Some("tsv")) if kind != TaskKind::Span => Format::Tsv { header },
            (kind, Some("txt")) if !kind.reads_tokens() => Format::Tsv { header },
            (kind, Some("csv")) if kind != TaskKind::Span => Format::Csv { header },
            (kind, Some("jsonl" | "ndjson")) if kind != TaskKind::Span => Format::Jsonl,
            _ => {
                let known = known_extensions(kind);
                return Err(self.wrong(format!("{} is none of {known}, which {kind} reads", path.display())));
            }
        };
        if self.header.is_some() && matches!(format, Format::Conll | Format::Squad) {
            return Err(self.wrong(format!("header: {} has none", path.display())));
        }
        let mut columns = self.columns(kind, format)?;
        if split == Split::Test {
            columns.forget_label();
        }
        Ok(SourceFile { split, name: split.to_string(), path, format, columns, quirks: Quirks::default() })
    }

    /// The file of `split` in the folder that is given, if there is one.
    fn in_folder(&self, split: Split, kind: TaskKind) -> Option<PathBuf> {
        let folder: &Path = self.data.as_deref()?;
        let mut paths = extensions(kind).iter().map(|extension| folder.join(format!("{split}.{extension}")));
        paths.find(|path| path.is_file())
    }

    fn wrong(&self, reason: String) -> DataError {
        DataError::Task { task: self.name.clone(), reason }
    }
}

/// How the names of the files of a kind of task end.
fn extensions(kind: TaskKind) -> &'static [&'static str] {
    match kind {
        TaskKind::Span => &["json"],
        TaskKind::Labelling => &["conll", "jsonl", "tsv", "csv", "txt"],
        TaskKind::Masked => &[],
        TaskKind::Classification | TaskKind::Regression | TaskKind::Ranking => {
            &["tsv", "csv", "jsonl", "txt"]
        }
    }
}

/// The same as a list in a sentence.
fn known_extensions(kind: TaskKind) -> String {
    extensions(kind).iter().map(|extension| format!(".{extension}")).collect::<Vec<_>>().join(", ")
}
