//! Task definitions: a YAML mapping from a task's name to what it is.

use std::fs;
use std::path::Path;

use yaml_serde::{Mapping, Value};

use super::names::{self, Layout};
use super::wrong;
use crate::data::error::{DataError, list, nearest_name};
use crate::data::san::SanSpec;
use crate::data::task::{MetricKind, TaskKind, TaskSpec, Texts, may_be_counted};
use crate::data::text;

const KEYS: [&str; 13] = [
    "data_format",
    "task_type",
    "n_class",
    "metric_meta",
    "loss",
    "kd_loss",
    "adv_loss",
    "enable_san",
    "labels",
    "dropout_p",
    "split_names",
    "actf",
    "encoder_type",
];

/// What a file says of one task, every name in it understood.
#[derive(Debug)]
pub(super) struct Definition {
    pub(super) name: String,
    pub(super) layout: Layout,
    pub(super) kind: TaskKind,
    /// Class `i` is called `labels[i]`; of a ranking task, the larger is the better.
    pub(super) labels: Vec<String>,
    pub(super) splits: Vec<String>,
    metrics: Option<Vec<MetricKind>>,
    dropout: Option<f32>,
    san: bool,
    /// Of spans: whether a question may have no answer.
    no_answer: bool,
    notes: Vec<String>,
}

/// The tasks of a file, in its order.
pub(super) fn read(path: &Path) -> Result<Vec<Definition>, DataError> {
    let yaml = fs::read_to_string(path).map_err(DataError::read(path))?;
    let value: Value =
        yaml_serde::from_str(&yaml).map_err(|error| wrong(path, format!("not YAML: {error}")))?;
    let Value::Mapping(tasks) = value else {
        return Err(wrong(path, "it is no mapping from tasks' names to their definitions".to_string()));
    };
    let definitions = tasks.iter().map(|(name, value)| {
        let name = name.as_str().ok_or_else(|| wrong(path, "a task's name is no text".to_string()))?;
        let fields = value.as_mapping().ok_or_else(|| format!("it is no mapping from {}", list(KEYS)));
        let definition = fields.and_then(|fields| Fields(fields).definition(name));
        definition.map_err(|reason| wrong(path, format!("task {name:?}: {reason}")))
    });
    let definitions: Vec<Definition> = definitions.collect::<Result<_, _>>()?;
    match definitions.is_empty() {
        true => Err(wrong(path, "it defines no task".to_string())),
        false => Ok(definitions),
    }
}

impl Definition {
    /// The task, without its files.
    pub(super) fn spec(&self, path: &Path) -> Result<TaskSpec, DataError> {
        let mut spec = TaskSpec::new(self.name.clone(), self.kind);
        spec.texts = match self.layout {
            Layout::PremiseOnly => Some(Texts::Single),
            Layout::PremiseAndOneHypothesis if self.kind == TaskKind::Span => None,
            Layout::PremiseAndOneHypothesis => Some(Texts::Pair),
            Layout::PremiseAndMultiHypothesis | Layout::Sequence | Layout::ClozeChoice | Layout::Mlm => None,
        };
        if self.kind.has_labels() {
            spec.labels.clone_from(&self.labels);
        }
        if let Some(masked) = &mut spec.masked {
            (masked.layout, masked.whole_words) = (text::Layout::Documents, true);
        } else {
            spec.dropout = self.dropout.unwrap_or(spec.dropout);
        }
        if let Some(span) = &mut spec.span {
            span.no_answer = Some(self.no_answer);
        }
        if let Some(metrics) = &self.metrics {
            spec.metrics.clone_from(metrics);
        }
        spec.san = self.san.then(SanSpec::default);
        spec.notes.clone_from(&self.notes);
        spec.validate().map_err(|error| wrong(path, error.to_string()))?;
        Ok(spec)
    }
}

/// The keys of one task.
struct Fields<'a>(&'a Mapping);

impl Fields<'_> {
    fn definition(&self, name: &str) -> Result<Definition, String> {
        if name.contains('_') {
            return Err(
                "a task's name holds no _, which divides it from its split in the names of its files \
                        (mnli_matched_dev.tsv is of the task mnli); call it otherwise"
                    .to_string(),
            );
        }
        self.check_keys()?;
        let layout = self.required("data_format", names::layout)?;
        let kind = self.required("task_type", names::kind)?;
        let cloze = self.text("task_type")? == Some("ClozeChoice");
        if cloze != (layout == Layout::ClozeChoice) {
            return Err("task_type and data_format are both ClozeChoice, or neither".to_string());
        }
        let fits = match layout {
            Layout::PremiseOnly => matches!(kind, TaskKind::Classification | TaskKind::Regression),
            Layout::PremiseAndOneHypothesis => {
                matches!(kind, TaskKind::Classification | TaskKind::Regression | TaskKind::Span)
            }
            Layout::PremiseAndMultiHypothesis | Layout::ClozeChoice => kind == TaskKind::Ranking,
            Layout::Sequence => kind == TaskKind::Labelling,
            Layout::Mlm => kind == TaskKind::Masked,
        };
        if !fits {
            return Err(format!(
                "data_format {} does not go with task_type {}",
                self.text("data_format")?.unwrap_or_default(),
                self.text("task_type")?.unwrap_or_default()
            ));
        }
        let labels = self.classes(kind)?;
        if let Some(encoder) = self.text("encoder_type")? {
            names::encoder(encoder).map_err(|reason| format!("encoder_type: {reason}"))?;
        }
        self.check_loss(kind)?;
        if let Some(actf) = self.text("actf")?
            && actf != "tanh"
        {
            return Err(format!("actf: {actf} is not supported: the pooler's activation is BERT's, tanh"));
        }
        let dropout = match self.get("dropout_p") {
            None => None,
            Some(value) => {
                let number =
                    value.as_f64().ok_or_else(|| format!("dropout_p: {} is no number", shown(value)))?;
                Some(number as f32)
            }
        };
        Ok(Definition {
            name: name.to_string(),
            layout,
            kind,
            labels,
            splits: self.splits()?,
            metrics: self.metrics(kind)?,
            dropout,
            san: self.bool("enable_san")? == Some(true),
            no_answer: self.text("task_type")? == Some("SpanClassificationYN"),
            notes: self.notes(name, kind)?,
        })
    }

    fn check_keys(&self) -> Result<(), String> {
        for key in self.0.keys() {
            let key = key.as_str().ok_or_else(|| "a key is no text".to_string())?;
            if !KEYS.contains(&key) {
                let near = nearest_name(key, KEYS).map(|near| format!("; did you mean {near:?}?"));
                return Err(format!(
                    "unknown key {key:?} (known are {}){}",
                    list(KEYS),
                    near.unwrap_or_default()
                ));
            }
        }
        Ok(())
    }

    /// The classes of a classification task, `n_class` of them; the ranks of a ranking task, if any are named.
    fn classes(&self, kind: TaskKind) -> Result<Vec<String>, String> {
        let labels = self.texts("labels")?;
        let classes = match self.get("n_class") {
            None => None,
            Some(value) => {
                // Of masked words it is the size of a vocabulary.
                let most = if kind == TaskKind::Masked { 1_000_000 } else { 1000 };
                let count = value.as_u64().filter(|count| (1..=most).contains(count));
                Some(count.ok_or_else(|| format!("n_class: {} is not from 1 to {most}", shown(value)))?
                    as usize)
            }
        };
        match (kind.has_labels(), labels, classes) {
            (true, None, None) => {
                Err("it says neither n_class nor labels, so that its classes are not known".to_string())
            }
            (true, None, Some(classes)) => Ok((0..classes).map(|class| class.to_string()).collect()),
            (true, Some(labels), Some(classes)) if labels.len() != classes => {
                Err(format!("n_class is {classes}, but labels names {}: {}", labels.len(), labels.join(", ")))
            }
            (true, Some(labels), _) => Ok(labels),
            (false, _, Some(classes)) if kind == TaskKind::Span && classes != 2 => {
                Err(format!("n_class is {classes}; a span has a first and a last token, n_class 2"))
            }
            (false, _, Some(classes)) if !kind.reads_tokens() && classes != 1 => {
                Err(format!("n_class is {classes}; a {kind} task has one output, n_class 1"))
            }
            (false, Some(_), _) if kind != TaskKind::Ranking => {
                Err(format!("labels: a {kind} task has none"))
            }
            (false, labels, _) => Ok(labels.unwrap_or_default()),
        }
    }

    fn check_loss(&self, kind: TaskKind) -> Result<(), String> {
        if let Some(loss) = self.text("loss")? {
            let trained = names::trained_by(loss).map_err(|reason| format!("loss: {reason}"))?;
            if trained != kind {
                return Err(format!("loss: {loss} trains {trained}, this is {kind}"));
            }
        }
        for key in ["kd_loss", "adv_loss"] {
            if let Some(loss) = self.text(key)? {
                names::loss_exists(loss).map_err(|reason| format!("{key}: {reason}"))?;
            }
        }
        Ok(())
    }

    fn metrics(&self, kind: TaskKind) -> Result<Option<Vec<MetricKind>>, String> {
        let Some(names) = self.texts("metric_meta")? else { return Ok(None) };
        if self.has_no_entities(kind)? {
            return Ok(Some(vec![MetricKind::TokenAccuracy]));
        }
        let mut metrics = Vec::new();
        for name in names {
            metrics.extend(names::metrics(&name, kind).map_err(|reason| format!("metric_meta: {reason}"))?);
        }
        Ok(Some(metrics))
    }

    fn splits(&self) -> Result<Vec<String>, String> {
        let usual = || ["train", "dev", "test"].map(str::to_string).to_vec();
        let splits = self.texts("split_names")?.unwrap_or_else(usual);
        match splits.iter().find(|split| super::files::split_of(split).is_none()) {
            Some(odd) => Err(format!(
                "split_names: {odd:?} ends with neither train nor dev nor test, so its use is not known"
            )),
            None => Ok(splits),
        }
    }

    /// Whether entities are to be counted among labels that are none, such as parts of speech.
    fn has_no_entities(&self, kind: TaskKind) -> Result<bool, String> {
        let counted = self.texts("metric_meta")?.unwrap_or_default();
        let counted = counted.iter().any(|name| matches!(name.as_str(), "SeqEval" | "SeqEvalList"));
        let labels = self.texts("labels")?.unwrap_or_default();
        Ok(kind == TaskKind::Labelling && counted && labels.iter().any(|label| !may_be_counted(label)))
    }

    /// What is read and has no effect.
    fn notes(&self, name: &str, kind: TaskKind) -> Result<Vec<String>, String> {
        let mut notes = Vec::new();
        if kind == TaskKind::Masked {
            for (key, why) in
                [("n_class", "the classes are the vocabulary's"), ("dropout_p", "BERT's own head has none")]
            {
                if self.get(key).is_some() {
                    notes.push(format!("task {name}: {key} has no effect: {why}"));
                }
            }
        }
        if let Some(loss) = self.text("kd_loss")? {
            notes.push(format!("task {name}: kd_loss {loss} is for soft labels and has no effect here"));
        }
        if let Some(loss) = self.text("adv_loss")? {
            notes.push(format!(
                "task {name}: adv_loss {loss} is for adversarial training and has no effect here"
            ));
        }
        if self.has_no_entities(kind)? {
            notes.push(format!(
                "task {name}: its labels are no entities', so token-accuracy is measured in place of SeqEval"
            ));
        }
        let metrics = self.texts("metric_meta")?.unwrap_or_default();
        if kind == TaskKind::Ranking && metrics.iter().any(|metric| metric == "EmF1") {
            notes.push(format!(
                "task {name}: of EmF1 the exact match is given, as accuracy@1; there is no F1 of words"
            ));
        }
        Ok(notes)
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn required<T>(&self, key: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<T, String> {
        let name = self.text(key)?.ok_or_else(|| format!("it does not say {key}"))?;
        read(name).map_err(|reason| format!("{key}: {reason}"))
    }

    fn text(&self, key: &str) -> Result<Option<&str>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| format!("{key}: {} is no name", shown(value)))
    }

    fn bool(&self, key: &str) -> Result<Option<bool>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| format!("{key}: {} is neither true nor false", shown(value)))
    }

    /// A list of names; numbers and truth values, which YAML makes of `0` and `no`, as they are written most simply.
    fn texts(&self, key: &str) -> Result<Option<Vec<String>>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let items = value.as_sequence().ok_or_else(|| format!("{key}: {} is no list", shown(value)))?;
        let text = |value: &Value| match value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            _ => Err(format!("{key}: {} is no name; put it in quotes", shown(value))),
        };
        items.iter().map(text).collect::<Result<_, _>>().map(Some)
    }
}

/// A value in a message.
fn shown(value: &Value) -> String {
    yaml_serde::to_string(value)
        .map_or_else(|_| "what it is".to_string(), |text| text.trim().replace('\n', ", "))
}
