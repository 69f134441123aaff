//! One's own tasks: named by files and columns in a run file.

use std::path::Path;

use crate::data::custom::TaskEntry;
use crate::data::dataset::{Example, Label, Text};
use crate::data::error::DataError;
use crate::data::reader;
use crate::data::task::{MetricKind, Relevance, Split, TaskKind, TaskSpec};

/// The task of an entry in TOML, with `train` (its name ending in `extension`) holding `contents`.
fn task(entry: &str, extension: &str, contents: &str) -> (tempfile::TempDir, Result<TaskSpec, DataError>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(format!("train.{extension}"));
    std::fs::write(&path, contents).unwrap();
    let mut entry: TaskEntry = toml::from_str(&format!("name = \"own\"\n{entry}")).unwrap();
    entry.train = Some(path);
    let spec = entry.resolve();
    (directory, spec)
}

fn read(entry: &str, extension: &str, contents: &str) -> Result<Vec<Example>, DataError> {
    let (_directory, spec) = task(entry, extension, contents);
    let mut spec = spec?;
    reader::learn_labels(&mut spec)?;
    Ok(reader::read(&spec.files[0], &spec)?.0)
}

fn error(entry: &str, extension: &str, contents: &str) -> String {
    read(entry, extension, contents).unwrap_err().to_string()
}

fn single(text: &str, class: u32) -> Example {
    Example { text: Text::Single(text.to_string()), label: Label::Class(class) }
}

fn ranked(query: &str, candidates: &[&str], label: Label) -> Example {
    let candidates = candidates.iter().map(|text| text.to_string()).collect();
    Example { text: Text::Candidates { query: query.to_string(), candidates }, label }
}

const BY_NAME: &str = "text_a = \"text\"\nlabel = \"mood\"";
const BY_NUMBER: &str = "text_a = 1\nlabel = 0";

#[test]
fn columns_by_name_or_number_and_labels_learned() {
    let expected = [single("a", 1), single("b", 0)];
    assert_eq!(read(BY_NAME, "tsv", "mood\ttext\nsad\ta\nglad\tb\n").unwrap(), expected);
    assert_eq!(read(BY_NUMBER, "tsv", "sad\ta\nglad\tb\n").unwrap(), expected);
    assert_eq!(read(BY_NAME, "csv", "mood,text\nsad,a\nglad,b\n").unwrap(), expected);
    assert_eq!(
        read(BY_NAME, "jsonl", "{\"mood\": \"sad\", \"text\": \"a\"}\n{\"text\": \"b\", \"mood\": \"glad\"}")
            .unwrap(),
        expected
    );
    let with_header = format!("{BY_NUMBER}\nheader = true");
    assert_eq!(read(&with_header, "tsv", "mood\ttext\nsad\ta\nglad\tb\n").unwrap(), expected);
}

#[test]
fn learned_labels_are_sorted_as_numbers_if_they_are() {
    let learned = |contents: &str| {
        let (_directory, spec) = task(BY_NUMBER, "tsv", contents);
        let mut spec = spec.unwrap();
        reader::learn_labels(&mut spec).unwrap();
        spec.labels
    };
    assert_eq!(learned("10\ta\n9\tb\n-1\tc\n9\td\n"), ["-1", "9", "10"]);
    assert_eq!(learned("10\ta\n9\tb\nx\tc\n"), ["10", "9", "x"]);
    let named = format!("{BY_NUMBER}\nlabels = [\"sad\", \"glad\"]");
    assert_eq!(read(&named, "tsv", "glad\ta\n").unwrap(), [single("a", 1)]);
    assert!(error(BY_NUMBER, "tsv", "sad\ta\nsad\tb\n").contains("1 different labels"));
}

#[test]
fn csv_keeps_commas_quotes_and_line_ends_inside_quotes() {
    let text = "mood,text\r\nsad,\"a, \"\"b\"\"\r\nc\"\r\nglad,plain \"quotes\" inside\n";
    let texts = read(BY_NAME, "csv", text).unwrap();
    assert_eq!(texts, [single("a, \"b\"\nc", 1), single("plain \"quotes\" inside", 0)]);
    // A quote within a field is a character like any other, be it alone.
    let inches = read(BY_NAME, "csv", "mood,text\nsad,5\" pipe\nglad,6\" pipe\n").unwrap();
    assert_eq!(inches, [single("5\" pipe", 1), single("6\" pipe", 0)]);
    let message = error(BY_NAME, "csv", "mood,text\nsad,a\nglad,\"b\nsad,c\n");
    assert!(message.contains("train.csv:3: a quote opens here and is never closed"), "{message}");
}

#[test]
fn ranking_from_lists() {
    let entry = "query = \"q\"\ncandidates = \"c\"\npositive = \"p\"";
    let rows = "{\"q\": \"who\", \"c\": [\"x\", \"y\", \"z\"], \"p\": 2}\n{\"q\": \"why\", \"c\": [\"u\", \"v\"], \"p\": 0}\n";
    let (_directory, spec) = task(entry, "jsonl", rows);
    let spec = spec.unwrap();
    assert_eq!((spec.kind, spec.outputs()), (TaskKind::Ranking, 1));
    assert_eq!(spec.metrics, [MetricKind::AccuracyAt1, MetricKind::Mrr, MetricKind::Map]);
    let expected =
        [ranked("who", &["x", "y", "z"], Label::Positive(2)), ranked("why", &["u", "v"], Label::Positive(0))];
    assert_eq!(read(entry, "jsonl", rows).unwrap(), expected);
    for (row, said) in [
        ("{\"q\": \"w\", \"c\": [\"x\"], \"p\": 0}", "field \"c\" has 1 texts"),
        (
            "{\"q\": \"w\", \"c\": [\"x\", \"y\"], \"p\": 2}",
            "field \"p\" is not the number of a candidate, 0 to 1",
        ),
        ("{\"q\": \"w\", \"c\": [\"x\", 3], \"p\": 0}", "not a list of texts"),
        ("{\"q\": \"w\", \"c\": [\"x\", \"\"], \"p\": 0}", "a candidate has no text"),
        ("{\"q\": \"w\", \"p\": 0}", "field \"c\" is missing"),
        ("[1]", "not a line of JSON"),
        ("{\"q\": ", "not a line of JSON"),
    ] {
        let message = error(entry, "jsonl", row);
        assert!(message.contains(said) && message.contains("train.jsonl:1: "), "{said}: {message}");
    }
}

#[test]
fn ranking_from_groups_of_rows() {
    let entry = "group = 0\ntext_a = 1\ntext_b = 2\nlabel = 3";
    let rows = "1\twho\tx\t0\n1\twho\ty\t1\n2\twho\tu\t1\n2\twho\tv\t0\n2\twho\tw\t0\n";
    let expected =
        [ranked("who", &["x", "y"], Label::Positive(1)), ranked("who", &["u", "v", "w"], Label::Positive(0))];
    assert_eq!(read(entry, "tsv", rows).unwrap(), expected);
    for (rows, said) in [
        ("1\tw\tx\t0\n1\tw\ty\t0\n2\tw\tx\t0\n", "train.tsv:1: group \"1\" has no row with label 1"),
        ("1\tw\tx\t1\n1\tw\ty\t1\n", "train.tsv:2: group \"1\" has a second row with label 1"),
        ("1\tw\tx\t1\n2\tw\ty\t1\n", "train.tsv:1: group \"1\" has one row only"),
        ("1\tw\tx\t1\n1\tv\ty\t0\n", "train.tsv:2: group \"1\" has rows with different queries"),
        (
            "1\tw\tx\t1\n1\tw\ty\t0\n2\tw\tx\t1\n2\tw\ty\t0\n1\tw\tz\t0\n",
            "train.tsv:5: group \"1\" comes again after other groups (sort",
        ),
        ("1\tw\tx\tyes\n", "train.tsv:1: field \"3\" is \"yes\", neither 0 nor 1"),
    ] {
        let message = error(entry, "tsv", rows);
        assert!(message.contains(said), "{said}: {message}");
    }
}

#[test]
fn groups_of_any_size_from_each_format() {
    let entry = "group = \"g\"\ntext_a = \"q\"\ntext_b = \"c\"\nlabel = \"y\"";
    let sizes = [2, 7, 3, 100];
    let rows = |line: fn(usize, usize, bool) -> String| -> String {
        sizes
            .iter()
            .enumerate()
            .flat_map(|(g, &size)| (0..size).map(move |c| line(g, c, c + 1 == size)))
            .collect()
    };
    let tsv = rows(|g, c, right| format!("{g}\twho {g}\tcandidate {c}\t{}\n", u8::from(right)));
    let jsonl = rows(|g, c, right| {
        format!("{{\"g\": {g}, \"q\": \"who {g}\", \"c\": \"candidate {c}\", \"y\": {}}}\n", u8::from(right))
    });
    let from_tsv = read(entry, "tsv", &format!("g\tq\tc\ty\n{tsv}")).unwrap();
    assert_eq!(from_tsv, read(entry, "jsonl", &jsonl).unwrap());
    for (example, size) in from_tsv.iter().zip(sizes) {
        assert_eq!(example.label, Label::Positive(size as u32 - 1));
        assert!(matches!(&example.text, Text::Candidates { candidates, .. } if candidates.len() == size));
    }
}

#[test]
fn gamma_and_relevance_are_kept_with_the_task() {
    let entry = "query = \"q\"\ncandidates = \"c\"\npositive = \"p\"\ngamma = 2.5\nrelevance = \"sigmoid\"";
    let (_directory, spec) = task(entry, "jsonl", "");
    let mut spec = spec.unwrap();
    assert_eq!((spec.gamma, spec.relevance), (2.5, Relevance::Sigmoid));
    let json = serde_json::to_string(&spec).unwrap();
    assert!(json.ends_with(r#""gamma":2.5,"relevance":"sigmoid"}"#), "{json}");
    spec.files.clear();
    assert_eq!(serde_json::from_str::<TaskSpec>(&json).unwrap(), spec);
}

#[test]
fn test_files_need_no_label() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("train.tsv"), "mood\ttext\nsad\ta\nglad\tb\n").unwrap();
    std::fs::write(directory.path().join("test.tsv"), "text\nx\ny\n").unwrap();
    let entry = TaskEntry { data: Some(directory.path().to_path_buf()), ..toml::from_str(BY_NAME).unwrap() };
    let spec = TaskEntry { name: "own".to_string(), ..entry }.resolve().unwrap();
    assert_eq!(spec.files.len(), 2);
    let test = spec.files_of(Split::Test).next().unwrap();
    let (examples, _) = reader::read(test, &spec).unwrap();
    assert_eq!(examples[1], Example { text: Text::Single("y".to_string()), label: Label::None });
}

#[test]
fn faults_of_own_files_are_errors() {
    assert!(
        error(BY_NAME, "tsv", "mood\ttext\nsad\ta\nglad\tb\tc\n").contains("train.tsv:3: found 3 columns")
    );
    assert!(
        error(BY_NAME, "tsv", "mood\ttext\nsad\ta\nglad\t \n")
            .contains("train.tsv:3: column text has no text")
    );
    assert!(error(BY_NAME, "tsv", "").contains("train.tsv: no examples"));
    assert!(
        error(BY_NAME, "tsv", "mood\ttext\nsad\ta\n\tb\n")
            .contains("train.tsv:3: label (column mood) has no text")
    );
    let message = error("text_a = \"txt\"\nlabel = \"mood\"", "tsv", "mood\ttext\nsad\ta\nglad\tb\n");
    assert!(
        message.contains("no column \"txt\" in the header (mood, text); did you mean \"text\"?"),
        "{message}"
    );
    let message = error("text_a = 7\nlabel = 0", "tsv", "sad\ta\nglad\tb\n");
    assert!(message.contains("train.tsv:1: field \"7\" is missing"), "{message}");
    let message = error("text_a = \"text\"\nlabel = 0\nheader = false", "tsv", "sad\ta\nglad\tb\n");
    assert!(message.contains("\"text\" is a name, but the file has no header"), "{message}");
    assert!(error(BY_NUMBER, "jsonl", "{}").contains("in JSONL columns are named by their keys"));
    assert!(error("kind = \"regression\"\ntext_a = 0\nlabel = 1", "tsv", "a\tb\n").contains("not a number"));
}

#[test]
fn entries_that_do_not_fit_together_are_errors() {
    for (entry, extension, said) in [
        ("text_a = 0", "tsv", "does not say which column is label"),
        ("label = 0", "tsv", "does not say which column is text_a"),
        ("query = 0\ntext_a = 0\nlabel = 1", "tsv", "query is not a column of this kind of task"),
        ("kind = \"ranking\"\ntext_a = 0", "tsv", "does not say which column is query"),
        ("text_a = 0\nlabel = 1", "parquet", "is none of .tsv, .csv, .jsonl, .txt"),
        (
            "text_a = 0\nlabel = 1\nmetrics = [\"pearson\"]",
            "tsv",
            "these do: accuracy, f1, f1-macro, f1-micro, auc, mcc",
        ),
        ("text_a = 0\nlabel = 1\nmetrics = []", "tsv", "names no metric"),
        ("text_a = 0\nlabel = 1\ndropout = 1.0", "tsv", "dropout is 1, which is not in [0, 1)"),
        ("text_a = 0\nlabel = 1\nlabels = [\"x\"]", "tsv", "one label only"),
        ("text_a = 0\nlabel = 1\nlabels = [\"x\", \"x\"]", "tsv", "label \"x\" is named twice"),
        ("text_a = 0\nlabel = 1\ngamma = 1.0", "tsv", "gamma is for ranking, this is classification"),
        (
            "kind = \"regression\"\ntext_a = 0\nlabel = 1\nrelevance = \"sigmoid\"",
            "tsv",
            "relevance is for ranking, this is regression",
        ),
        (
            "query = \"q\"\ncandidates = \"c\"\npositive = \"p\"\ngamma = 0.0",
            "jsonl",
            "gamma is 0, which is no number",
        ),
        (
            "kind = \"regression\"\ntext_a = 0\nlabel = 1\nlabels = [\"x\", \"y\"]",
            "tsv",
            "labels are for class",
        ),
    ] {
        let message = error(entry, extension, "x\ty\n");
        assert!(message.starts_with("task \"own\": ") && message.contains(said), "{said}: {message}");
    }
    let unknown = toml::from_str::<TaskEntry>("name = \"own\"\ntextb = 1").unwrap_err().to_string();
    assert!(unknown.contains("unknown field `textb`"), "{unknown}");
    let unknown = toml::from_str::<TaskEntry>("metrics = [\"acuracy\"]").unwrap_err().to_string();
    assert!(unknown.contains("did you mean \"accuracy\"?"), "{unknown}");
}

#[test]
fn a_known_folder_brings_everything() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("RTE");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("train.tsv"), "").unwrap();
    let entry = |name: &str, data: &Path, more: &str| -> Result<TaskSpec, DataError> {
        let entry: TaskEntry = toml::from_str(more).unwrap();
        TaskEntry { name: name.to_string(), data: Some(data.to_path_buf()), ..entry }.resolve()
    };
    for (name, data) in [("rte", root.path()), ("RTE", folder.as_path())] {
        let spec = entry(name, data, "dropout = 0.2").unwrap();
        assert_eq!((spec.name.as_str(), spec.dropout), ("rte", 0.2));
        assert_eq!(spec.labels, ["not_entailment", "entailment"]);
    }
    assert_eq!(entry("my-rte", &folder, "").unwrap().name, "my-rte");
    let message = entry("rte", &folder, "kind = \"ranking\"").unwrap_err().to_string();
    assert!(message.contains("rte is a classification task, not ranking"), "{message}");
    let message = entry("rte", &folder, "labels = [\"a\", \"b\"]").unwrap_err().to_string();
    assert!(message.contains("labels is known of rte"), "{message}");
    let message = entry("other", root.path(), "").unwrap_err().to_string();
    assert!(message.contains("has no train, dev or test file"), "{message}");
}

#[test]
fn a_task_is_written_and_read_without_its_files() {
    let (_directory, spec) = task(BY_NUMBER, "tsv", "");
    let mut spec = spec.unwrap();
    spec.labels = vec!["x".to_string(), "y".to_string()];
    let json = serde_json::to_string(&spec).unwrap();
    assert_eq!(
        json,
        r#"{"name":"own","kind":"classification","texts":"single","labels":["x","y"],"metrics":["accuracy"],"dropout":0.1}"#
    );
    spec.files.clear();
    assert_eq!(serde_json::from_str::<TaskSpec>(&json).unwrap(), spec);
}
