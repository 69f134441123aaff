//! Soft labels of the data file itself: annotators' votes, or a weight for each label.

use serde_json::Value;

use super::{SoftLabels, SoftSource, most_probable};
use crate::data::dataset::Label;
use crate::data::error::{DataError, list};
use crate::data::rows::{Place, Row, Rows};
use crate::data::task::{Column, Format, SourceFile, TaskSpec};

/// Where a file's columns of soft labels are.
pub(crate) struct Columns<'a> {
    source: &'a SoftSource,
    places: Vec<(&'a Column, Place)>,
    labels: &'a [String],
}

impl<'a> Columns<'a> {
    /// The columns that the task names, if it names any.
    ///
    /// # Errors
    /// Columns that the file does not have, or fewer or more than there are labels.
    pub(crate) fn find<Input: std::io::BufRead>(
        spec: &'a TaskSpec,
        file: &SourceFile,
        rows: &Rows<'_, Input>,
    ) -> Result<Option<Self>, DataError> {
        let Some(SoftLabels { source, .. }) = &spec.soft else { return Ok(None) };
        let Some(columns) = source.columns() else { return Ok(None) };
        let whole = file.format == Format::Jsonl && columns.len() == 1;
        if matches!(source, SoftSource::Weights(_)) && !whole && columns.len() != spec.labels.len() {
            let reason = format!(
                "soft names {} columns, and the task has {} labels: {}",
                columns.len(),
                spec.labels.len(),
                list(spec.labels.iter().map(String::as_str))
            );
            return Err(DataError::Task { task: spec.name.clone(), reason });
        }
        let places =
            columns.iter().map(|column| Ok((column, rows.place(column)?))).collect::<Result<_, _>>()?;
        Ok(Some(Self { source, places, labels: &spec.labels }))
    }

    /// The distribution over the labels that a row holds, and the most probable of them.
    ///
    /// # Errors
    /// The column and what is wrong with it.
    pub(crate) fn distribution(&self, row: &Row) -> Result<(Vec<f32>, Label), (&'a Column, String)> {
        let mut weights = vec![0.0f64; self.labels.len()];
        let first = self.places[0].0;
        match self.source {
            SoftSource::Votes(_) => {
                for (column, place) in &self.places {
                    let vote = row.text(place).map_err(|reason| (*column, reason))?;
                    match vote.trim() {
                        // Fewer annotators were asked, or this one could not tell.
                        "" | "-" => {}
                        vote => weights[self.class(vote).map_err(|reason| (*column, reason))?] += 1.0,
                    }
                }
            }
            _ => match &self.places[..] {
                [(column, place @ Place::Key(_))] => {
                    weights =
                        row.value(place).and_then(|value| self.whole(value)).map_err(|r| (*column, r))?;
                }
                places => {
                    for ((column, place), weight) in places.iter().zip(&mut weights) {
                        let text = row.text(place).map_err(|reason| (*column, reason))?;
                        let number = text.trim().parse().ok().filter(is_weight);
                        let wrong = || (*column, format!("is {text:?}, not a number of at least 0"));
                        *weight = number.ok_or_else(wrong)?;
                    }
                }
            },
        }
        let sum: f64 = weights.iter().sum();
        if sum <= 0.0 {
            return Err((first, "and its like hold nothing: no label has a vote or a weight".into()));
        }
        let distribution: Vec<f32> = weights.iter().map(|weight| (weight / sum) as f32).collect();
        let label = most_probable(&distribution);
        Ok((distribution, label))
    }

    fn class(&self, label: &str) -> Result<usize, String> {
        let known = || list(self.labels.iter().map(String::as_str));
        let class = self.labels.iter().position(|known| known == label);
        class.ok_or_else(|| format!("is {label:?}; the labels are {}", known()))
    }

    /// A list of numbers in the order of the labels, or an object with a number for each label that has one.
    fn whole(&self, value: &Value) -> Result<Vec<f64>, String> {
        let number = |value: &Value| {
            let number = value.as_f64().filter(is_weight);
            number.ok_or_else(|| format!("holds {value}, not a number of at least 0"))
        };
        match value {
            Value::Array(numbers) if numbers.len() == self.labels.len() => {
                numbers.iter().map(number).collect()
            }
            Value::Array(numbers) => {
                Err(format!("has {} numbers, and the task {} labels", numbers.len(), self.labels.len()))
            }
            Value::Object(named) => {
                let mut weights = vec![0.0; self.labels.len()];
                for (label, value) in named {
                    weights[self.class(label)?] = number(value)?;
                }
                Ok(weights)
            }
            other => Err(format!("is {other}, neither a list of numbers nor an object of them")),
        }
    }
}

fn is_weight(number: &f64) -> bool {
    number.is_finite() && *number >= 0.0
}
