//! A file of soft labels: JSONL, a header and then a line for each example of a train file, in its order.
//!
//! ```text
//! {"format":"mtdnn-soft","version":1,"task":"rte","kind":"classification","labels":["not_entailment","entailment"],
//!  "models":["runs/a/best"],"examples":2490,"texts":"9f86d081884c7d65"}           (one line)
//! {"soft":[0.12,0.88]}            probabilities in the order of the header's labels, at temperature 1
//! {"soft":[0.7,0.2,0.1]}          ranking: a probability for each candidate
//! {"soft":3.25}                   regression: a score
//! ```

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::data::dataset::{Example, Text};
use crate::data::error::{DataError, list};
use crate::data::task::{TaskKind, TaskSpec};

/// What says that a file holds soft labels.
const FORMAT: &str = "mtdnn-soft";
/// Raised whenever the lines below mean something else.
const VERSION: u32 = 1;
/// How far from one the sum of probabilities may be: what a few digits lose.
const SUM: f64 = 1e-3;

/// The first line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    format: String,
    version: u32,
    /// The task's name in the models that made the labels.
    pub task: String,
    /// What its head answers.
    pub kind: TaskKind,
    /// The classes in the order of the probabilities; empty but for classification.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// The model directories whose answers were averaged.
    #[serde(default)]
    pub models: Vec<String>,
    /// The lines that follow.
    pub examples: usize,
    /// [`hash_of_texts`] of the train file.
    pub texts: String,
}

/// The soft label of one example.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    soft: Soft,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number or a list of numbers")]
enum Soft {
    Score(f32),
    Probabilities(Vec<f32>),
}

impl Header {
    /// The header for the answers of `models` to a task's examples.
    pub fn new(spec: &TaskSpec, models: Vec<String>, examples: &[Example]) -> Self {
        Self {
            format: FORMAT.into(),
            version: VERSION,
            task: spec.name.clone(),
            kind: spec.kind,
            labels: spec.labels.clone(),
            models,
            examples: examples.len(),
            texts: hash_of_texts(examples),
        }
    }
}

/// What a train file's soft labels are tied to: its texts in their order. Sixteen hexadecimal digits.
pub fn hash_of_texts(examples: &[Example]) -> String {
    let mut hasher = Sha256::new();
    let mut add = |text: &str| {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    };
    for example in examples {
        match &example.text {
            Text::Single(text) => add(text),
            Text::Pair(a, b) => [a, b].into_iter().for_each(|text| add(text)),
            Text::Candidates { query, candidates } => {
                add(query);
                add(&candidates.len().to_string());
                candidates.iter().for_each(|text| add(text));
            }
            Text::Words { .. } | Text::Question { .. } => panic!("soft labels are for texts and candidates"),
        }
    }
    hasher.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The numbers of an example's soft label: one a label, one a candidate, or a score.
fn width(spec: &TaskSpec, example: &Example) -> usize {
    match (spec.kind, &example.text) {
        (TaskKind::Classification, _) => spec.labels.len(),
        (_, Text::Candidates { candidates, .. }) => candidates.len(),
        _ => 1,
    }
}

/// Writes soft labels, whole or not at all. `targets` has each example's numbers one after another, classes in the order
/// of the header's labels.
///
/// # Errors
/// If the file cannot be written.
pub fn write(
    path: &Path,
    header: &Header,
    spec: &TaskSpec,
    examples: &[Example],
    targets: &[f32],
) -> Result<(), DataError> {
    let beside = path.with_extension("new");
    let written = File::create(&beside).and_then(|file| {
        let mut out = BufWriter::new(file);
        writeln!(out, "{}", serde_json::to_string(header)?)?;
        let mut rest = targets;
        for example in examples {
            let (own, others) = rest.split_at(width(spec, example));
            rest = others;
            let soft = match spec.kind {
                TaskKind::Regression => Soft::Score(own[0]),
                _ => Soft::Probabilities(own.to_vec()),
            };
            writeln!(out, "{}", serde_json::to_string(&Line { soft })?)?;
        }
        assert!(rest.is_empty(), "{} numbers for {} examples", targets.len(), examples.len());
        out.flush()?;
        fs::rename(&beside, path)
    });
    written.inspect_err(|_| drop(fs::remove_file(&beside))).map_err(DataError::write(path))
}

/// Reads the soft labels of a task's train examples: each example's numbers one after another, classes in the order of
/// `spec.labels`.
///
/// # Errors
/// Lines that are missing or wrong, and labels that were made for another task or other examples.
pub fn read(path: &Path, spec: &TaskSpec, examples: &[Example]) -> Result<Vec<f32>, DataError> {
    let wrong = |line: usize, reason: String| DataError::Soft { path: path.to_path_buf(), line, reason };
    let input = BufReader::new(File::open(path).map_err(DataError::read(path))?);
    let mut lines = input.lines().zip(1..).map(|(text, line)| match text {
        Ok(text) => Ok((line, text)),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            Err(DataError::NotUtf8 { path: path.to_path_buf(), line: line as u64 })
        }
        Err(error) => Err(DataError::Read { path: path.to_path_buf(), source: error }),
    });
    let first = lines.next().transpose()?.map(|(_, text)| text).unwrap_or_default();
    let columns = check_header(&first, spec, examples).map_err(|reason| wrong(1, reason))?;
    let mut targets = Vec::new();
    let mut count = 0;
    for line in lines {
        let (number, text) = line?;
        let Some(example) = examples.get(count) else {
            return Err(wrong(number, format!("a line too many: the train file has {count} examples")));
        };
        let line: Line = serde_json::from_str(&text)
            .map_err(|error| wrong(number, format!("not {{\"soft\": …}}: {error}")))?;
        let own =
            check_line(line.soft, spec, width(spec, example)).map_err(|reason| wrong(number, reason))?;
        match &columns {
            Some(columns) => targets.extend(columns.iter().map(|&column| own[column])),
            None => targets.extend(own),
        }
        count += 1;
    }
    if count < examples.len() {
        let reason = format!(
            "the file ends after {count} of {} examples; make it again with predict --soft",
            examples.len()
        );
        return Err(wrong(count + 2, reason)); // The line that is missing, after the header and these.
    }
    Ok(targets)
}

/// Where each of the task's classes stands in a line, unless lines have no classes.
fn check_header(text: &str, spec: &TaskSpec, examples: &[Example]) -> Result<Option<Vec<usize>>, String> {
    let remedy = "make it with predict --soft";
    let header: Header = serde_json::from_str(text)
        .map_err(|error| format!("not the header of soft labels: {error}; {remedy}"))?;
    if (header.format.as_str(), header.version) != (FORMAT, VERSION) {
        return Err(format!(
            "format {:?} of version {}, and this program reads {FORMAT:?} of version {VERSION}; {remedy}",
            header.format, header.version
        ));
    }
    if header.kind != spec.kind {
        return Err(format!("they are for {}, and task {} is {}", header.kind, spec.name, spec.kind));
    }
    if header.examples != examples.len() || header.texts != hash_of_texts(examples) {
        return Err(format!(
            "they were made for {} other examples than the {} of the train file; {remedy} --data of this train file",
            header.examples,
            examples.len()
        ));
    }
    if spec.kind != TaskKind::Classification {
        return Ok(None);
    }
    let place = |label: &String| header.labels.iter().position(|other| other == label);
    let columns: Option<Vec<usize>> = spec.labels.iter().map(place).collect();
    columns.filter(|columns| columns.len() == header.labels.len()).map(Some).ok_or_else(|| {
        let names = |labels: &[String]| list(labels.iter().map(String::as_str));
        format!(
            "the labels are {}, and those of task {} {}",
            names(&header.labels),
            spec.name,
            names(&spec.labels)
        )
    })
}

fn check_line(soft: Soft, spec: &TaskSpec, width: usize) -> Result<Vec<f32>, String> {
    let numbers = match (soft, spec.kind) {
        (Soft::Score(score), TaskKind::Regression) if score.is_finite() => return Ok(vec![score]),
        (Soft::Score(score), TaskKind::Regression) => return Err(format!("{score} is not a finite score")),
        (Soft::Probabilities(_), TaskKind::Regression) => return Err("a list where a score is due".into()),
        (Soft::Score(_), _) => return Err("a number where a list of probabilities is due".into()),
        (Soft::Probabilities(numbers), _) => numbers,
    };
    check_probabilities(&numbers, spec.kind, width)?;
    Ok(numbers)
}

/// Checks that there are `width` probabilities, which sum to one.
pub(in crate::data) fn check_probabilities(
    numbers: &[f32],
    kind: TaskKind,
    width: usize,
) -> Result<(), String> {
    if numbers.len() != width {
        let what = if kind == TaskKind::Ranking { "candidates" } else { "labels" };
        return Err(format!("{} probabilities for {width} {what}", numbers.len()));
    }
    if let Some(number) = numbers.iter().find(|number| !(0.0..=1.0).contains(*number)) {
        return Err(format!("{number} is not a probability"));
    }
    let sum: f64 = numbers.iter().copied().map(f64::from).sum();
    if (sum - 1.0).abs() > SUM {
        return Err(format!("the probabilities sum to {sum:.4}, not to 1"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::Label;

    fn pairs(count: usize) -> Vec<Example> {
        let pair = |i| Text::Pair(format!("a {i}"), "b".into());
        (0..count).map(|i| Example { text: pair(i), label: Label::Class(0) }).collect()
    }

    fn rte() -> TaskSpec {
        let labels = ["no".to_string(), "yes".to_string()].to_vec();
        TaskSpec { labels, ..TaskSpec::new("rte", TaskKind::Classification) }
    }

    /// The file after `change` has been done to its text.
    fn reread(
        change: impl Fn(&str) -> String,
        spec: &TaskSpec,
        examples: &[Example],
    ) -> Result<Vec<f32>, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("soft.jsonl");
        let header = Header::new(&rte(), vec!["m".into()], &pairs(2));
        write(&path, &header, &rte(), &pairs(2), &[0.25, 0.75, 1.0, 0.0]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, change(&text)).unwrap();
        read(&path, spec, examples)
            .map_err(|error| error.to_string().split_once("soft.jsonl").unwrap().1.to_string())
    }

    #[test]
    fn what_is_written_is_read_and_labels_go_by_name() {
        let same = |text: &str| text.to_string();
        assert_eq!(reread(same, &rte(), &pairs(2)).unwrap(), [0.25, 0.75, 1.0, 0.0]);
        let mut turned = rte();
        turned.labels.reverse();
        assert_eq!(reread(same, &turned, &pairs(2)).unwrap(), [0.75, 0.25, 0.0, 1.0]);
    }

    #[test]
    fn scores_and_candidates_are_written_and_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("soft.jsonl");
        let score = TaskSpec::new("sts", TaskKind::Regression);
        let targets = [3.25, -1.0e-3];
        write(&path, &Header::new(&score, Vec::new(), &pairs(2)), &score, &pairs(2), &targets).unwrap();
        assert_eq!(read(&path, &score, &pairs(2)).unwrap(), targets);
        let rank = TaskSpec::new("rank", TaskKind::Ranking);
        let text = |count: usize| Text::Candidates { query: "q".into(), candidates: vec!["c".into(); count] };
        let groups: Vec<Example> =
            [2, 3].map(|count| Example { text: text(count), label: Label::Positive(0) }).into();
        let targets = [0.5, 0.5, 0.2, 0.3, 0.5];
        write(&path, &Header::new(&rank, Vec::new(), &groups), &rank, &groups, &targets).unwrap();
        assert_eq!(read(&path, &rank, &groups).unwrap(), targets);
        assert!(fs::read_to_string(&path).unwrap().ends_with("{\"soft\":[0.2,0.3,0.5]}\n"));
    }

    #[test]
    fn what_does_not_fit_is_said_with_its_line() {
        let error =
            |from: &str, to: &str| reread(|text| text.replace(from, to), &rte(), &pairs(2)).expect_err(to);
        for (from, to, said) in [
            ("mtdnn-soft", "other", ":1: format \"other\""),
            ("\"version\":1", "\"version\":2", ":1: format \"mtdnn-soft\" of version 2"),
            ("classification", "ranking", ":1: they are for ranking, and task rte is classification"),
            ("\"yes\"", "\"maybe\"", ":1: the labels are no, maybe, and those of task rte no, yes"),
            ("\"examples\":2", "\"examples\":3", ":1: they were made for 3 other examples than the 2"),
            ("[0.25,0.75]", "[0.25,0.25,0.5]", ":2: 3 probabilities for 2 labels"),
            ("[0.25,0.75]", "[0.25,0.76]", ":2: the probabilities sum to 1.0100"),
            ("[0.25,0.75]", "[-0.25,1.25]", ":2: -0.25 is not a probability"),
            ("[0.25,0.75]", "0.25", ":2: a number where a list"),
            ("[0.25,0.75]", "[1e99,0.0]", ":2: "),
            ("{\"soft\":[1.0,0.0]}\n", "", ":3: the file ends after 1 of 2 examples"),
            ("{\"soft\":[1.0,0.0]}\n", "{\"sift\":[1.0,0.0]}\n", ":3: not {\"soft\": …}"),
            ("{\"soft\":[1.0,0.0]}\n", "{\"soft\":[1,0]}\n{\"soft\":[1,0]}\n", ":4: a line too many"),
        ] {
            let error = error(from, to);
            assert!(error.starts_with(said), "{to}: {error}");
        }
        // Rounding to a few digits is no fault.
        assert!(reread(|text| text.replace("0.75", "0.7501"), &rte(), &pairs(2)).is_ok());
        let mut other = pairs(2);
        other.reverse();
        let error = reread(|text| text.to_string(), &rte(), &other).unwrap_err();
        assert!(error.starts_with(":1: they were made for 2 other examples"), "{error}");
        assert!(reread(|_| String::new(), &rte(), &pairs(2)).unwrap_err().starts_with(":1: not the header"));
    }
}
