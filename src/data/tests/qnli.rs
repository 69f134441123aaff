//! QNLI as ranking: pairs of rows of v1, and what is said of files without pairs.

use std::path::Path;

use crate::data::custom::TaskEntry;
use crate::data::dataset::{Label, Text};
use crate::data::error::DataError;
use crate::data::reader::{self, Skipped};
use crate::data::task::{MetricKind, Split, TaskKind, TaskSpec};
use crate::data::{Example, glue, qnli};

const HEADER: &str = "index\tquestion\tsentence\tlabel\n";

fn spec(name: &str, kind: Option<TaskKind>, folder: &Path) -> Result<TaskSpec, DataError> {
    let data = Some(folder.to_path_buf());
    TaskEntry { name: name.to_string(), kind, data, ..TaskEntry::default() }.resolve()
}

/// Reads a train file of these rows.
fn train(rows: &str) -> Result<(Vec<Example>, Skipped), DataError> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("train.tsv"), format!("{HEADER}{rows}")).unwrap();
    let spec = spec("qnli", Some(TaskKind::Ranking), folder.path())?;
    reader::read(&spec.files[0], &spec)
}

fn refusal(rows: &str) -> String {
    train(rows).unwrap_err().to_string()
}

fn right_one(example: &Example) -> (&str, &str) {
    let (Text::Candidates { query, candidates }, Label::Positive(right)) = (&example.text, example.label)
    else {
        panic!("{example:?} is no labelled query")
    };
    assert_eq!(candidates.len(), 2);
    (query, &candidates[right as usize])
}

#[test]
fn two_rows_are_a_query() {
    let rows = "0\twho\tshe\tentailment\n1\twho\tblue\tnot_entailment\n\
                2\twhy\tred\tnot_entailment\n3\twhy\tso\tentailment\n";
    let (examples, skipped) = train(rows).unwrap();
    assert_eq!(examples.iter().map(right_one).collect::<Vec<_>>(), [("who", "she"), ("why", "so")]);
    assert_eq!(skipped.count, 0);
}

#[test]
fn the_answer_stands_anywhere_and_in_the_same_place_each_time() {
    let row = |n: usize| format!("0\tq{n}\tyes {n}\tentailment\n1\tq{n}\tno {n}\tnot_entailment\n");
    let rows: String = (0..200).map(row).collect();
    let (examples, _) = train(&rows).unwrap();
    let first = examples.iter().filter(|example| example.label == Label::Positive(0)).count();
    assert!((60..140).contains(&first), "{first} of 200 first");
    for (n, example) in examples.iter().enumerate() {
        assert_eq!(right_one(example), (format!("q{n}").as_str(), format!("yes {n}").as_str()));
    }
    assert_eq!(train(&rows).unwrap().0, examples);
}

#[test]
fn pairs_with_one_label_or_no_text_are_left_out_and_counted() {
    let rows = "0\twho\tshe\tentailment\n1\twho\tblue\tentailment\n\
                2\twhy\tred\tnot_entailment\n3\twhy\tso\tentailment\n\
                4\twhat\t\tnot_entailment\n5\twhat\tso\tentailment\n";
    let (examples, skipped) = train(rows).unwrap();
    assert_eq!(examples.len(), 1);
    assert_eq!(skipped.count, 4);
    let said = skipped.to_string();
    assert!(said.contains("train.tsv:2: both rows of the pair have the same label"), "{said}");
}

#[test]
fn v2_is_refused_and_explained() {
    let row = |n: usize| format!("{n}\tquestion {n}\tsentence\tentailment\n");
    let message = refusal(&(0..6).map(row).collect::<String>());
    for said in [
        "train.tsv:3: the question \"question 1\" follows \"question 0\"",
        "only 0 of 3 pairs",
        "v2",
        "leave kind out",
    ] {
        assert!(message.contains(said), "{said}: {message}");
    }
}

#[test]
fn a_row_that_is_missing_is_said_where_it_is() {
    let pair = |n: usize| format!("0\tq{n}\tyes\tentailment\n1\tq{n}\tno\tnot_entailment\n");
    let pairs: String = (0..5).map(pair).collect();
    let message = refusal(&format!("{pairs}2\tq5\tyes\tentailment\n"));
    assert!(message.contains("train.tsv:12: the question \"q5\" has one row; 5 of 5 pairs"), "{message}");
    let message = refusal(&format!("{pairs}2\tq5\tyes\tentailment\n{}", pair(6)));
    assert!(message.contains("train.tsv:13: the question \"q6\" follows \"q5\""), "{message}");
    assert!(message.contains("a row is missing or too many here"), "{message}");
    let message = refusal("0\twho\tshe\tyes\n1\twho\the\tno\n");
    assert!(message.contains("train.tsv:2: field \"label\" is \"yes\", neither entailment"), "{message}");
}

#[test]
fn a_test_file_keeps_its_order_so_that_answers_find_their_rows() {
    let folder = tempfile::tempdir().unwrap();
    let row = |n: usize| format!("{n}\tq{}\tsentence {n}\n", n / 2);
    let rows: String = (0..40).map(row).collect();
    std::fs::write(folder.path().join("test.tsv"), format!("index\tquestion\tsentence\n{rows}")).unwrap();
    let spec = spec("qnnli", None, folder.path()).unwrap();
    let test = spec.files_of(Split::Test).next().unwrap();
    let (examples, _) = reader::read(test, &spec).unwrap();
    assert_eq!(examples.len(), 20);
    for (n, example) in examples.iter().enumerate() {
        assert_eq!(example.label, Label::None);
        let candidates = [2 * n, 2 * n + 1].map(|n| format!("sentence {n}")).to_vec();
        assert_eq!(example.text, Text::Candidates { query: format!("q{n}"), candidates });
    }
    let (yes, no) = (qnli::ANSWER, qnli::NO_ANSWER);
    assert_eq!(qnli::row_labels(&[0.1, 0.2, -1.0, -3.0, 5.0, 5.0]), [no, yes, yes, no, yes, no]);
}

#[test]
fn it_goes_by_two_names_and_is_trained_only_when_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("QNLI");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("train.tsv"), HEADER).unwrap();
    for (name, kind, resolved) in [
        ("qnli", Some(TaskKind::Ranking), TaskKind::Ranking),
        ("qnnli", None, TaskKind::Ranking),
        ("qnli", None, TaskKind::Classification),
    ] {
        let spec = spec(name, kind, root.path()).unwrap();
        assert_eq!((spec.name.as_str(), spec.kind), (name, resolved));
    }
    let named = spec("mine", Some(TaskKind::Ranking), &folder).unwrap();
    assert_eq!((named.name.as_str(), named.kind, named.outputs()), ("mine", TaskKind::Ranking, 1));
    assert_eq!(named.metrics, [MetricKind::AccuracyAt1, MetricKind::Mrr, MetricKind::Map]);
    assert_eq!(glue::trainable_in(root.path()), ["qnli"]);
}
