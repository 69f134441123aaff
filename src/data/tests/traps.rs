//! What official files are known to contain, in small.

use std::path::Path;

use crate::data::dataset::{Example, Label, Text};
use crate::data::error::DataError;
use crate::data::glue;
use crate::data::reader::{self, Skipped};
use crate::data::task::{Split, TaskSpec};

/// The folder of a known task with these files in it.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, contents) in files {
        std::fs::write(directory.path().join(name), contents).unwrap();
    }
    directory
}

fn read_known(
    name: &str,
    split: Split,
    files: &[(&str, &str)],
) -> Result<(Vec<Example>, Skipped), DataError> {
    let directory = folder(files);
    let spec = glue::task(name, directory.path()).unwrap();
    read_first(&spec, split)
}

fn read_first(spec: &TaskSpec, split: Split) -> Result<(Vec<Example>, Skipped), DataError> {
    reader::read(spec.files_of(split).next().expect("a file of this split"), spec)
}

fn single(text: &str, class: u32) -> Example {
    Example { text: Text::Single(text.to_string()), label: Label::Class(class) }
}

fn pair(a: &str, b: &str, label: Label) -> Example {
    Example { text: Text::Pair(a.to_string(), b.to_string()), label }
}

#[test]
fn quotes_odd_line_ends_and_missing_final_newline() {
    let text = "gj04\t1\t\tAn \"odd quote.\ngj04\t0\t*\tA \r return,\u{85} a \u{2028} separator.\r\nx\t1\t\t\"last\"";
    let (examples, skipped) = read_known("cola", Split::Train, &[("train.tsv", text)]).unwrap();
    let expected = [
        single("An \"odd quote.", 1),
        single("A \r return,\u{85} a \u{2028} separator.", 0),
        single("\"last\"", 1),
    ];
    assert_eq!(examples, expected);
    assert_eq!(skipped, Skipped::default());
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_first_column() {
    let header = "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n";
    let text = format!("{header}1\t5\t6\tA \" b\tC\n0\t5\t6\tD\tE\n");
    let (examples, _) = read_known("mrpc", Split::Train, &[("train.tsv", &text)]).unwrap();
    assert_eq!(examples, [pair("A \" b", "C", Label::Class(1)), pair("D", "E", Label::Class(0))]);
}

#[test]
fn the_gold_label_is_the_last_whatever_the_header_says() {
    let header = "index\tcaptionID\tpairID\tb1\tb2\tp1\tp2\tsentence1\tsentence2\tlabel1\tgold_label\n";
    let row = |n: usize, labels: &str| format!("{n}\tc\tp\t(\t(\t(\t(\ta {n}\tb {n}\t{labels}\n");
    let text = [
        header.to_string(),
        row(0, "neutral\tneutral"),
        row(1, "neutral\tneutral\tneutral\tentailment\tneutral\tcontradiction"),
        row(2, "neutral\t-"),
        row(3, "entailment\tentailment"),
    ]
    .concat();
    let (examples, skipped) = read_known("snli", Split::Train, &[("train.tsv", &text)]).unwrap();
    let expected = [
        pair("a 0", "b 0", Label::Class(1)),
        pair("a 1", "b 1", Label::Class(0)),
        pair("a 3", "b 3", Label::Class(2)),
    ];
    assert_eq!(examples, expected);
    assert_eq!(skipped.count, 1);
    let first = skipped.first.as_deref().unwrap();
    assert!(first.contains("train.tsv:4: gold label \"-\""), "{first}");
    assert!(skipped.to_string().starts_with("skipped 1 row: "));
}

#[test]
fn snli_is_read_from_jsonl_too() {
    let text = r#"{"gold_label": "entailment", "sentence1": "A \"b\"", "sentence2": "c\td", "annotator_labels": []}
{"gold_label": "-", "sentence1": "x", "sentence2": "y"}

{"gold_label": "neutral", "sentence1": "e", "sentence2": "f"}
"#;
    let (examples, skipped) = read_known("snli", Split::Dev, &[("snli_1.0_dev.jsonl", text)]).unwrap();
    assert_eq!(examples, [pair("A \"b\"", "c\td", Label::Class(2)), pair("e", "f", Label::Class(1))]);
    assert_eq!(skipped.count, 2, "the disputed row and the blank line");
}

#[test]
fn short_and_empty_rows_of_qqp_are_skipped_and_counted() {
    let header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n";
    let text = format!("{header}0\t1\t2\ta\tb\t1\n1\t1\t2\tcut\n2\t1\t2\t \tb\t0\n3\t1\t2\tc\td\t0\n");
    let (examples, skipped) = read_known("qqp", Split::Train, &[("train.tsv", &text)]).unwrap();
    assert_eq!(examples, [pair("a", "b", Label::Class(1)), pair("c", "d", Label::Class(0))]);
    assert_eq!(skipped.count, 2);
    assert!(skipped.to_string().contains("train.tsv:3: fields are missing"), "{skipped}");
}

#[test]
fn a_test_file_skips_nothing() {
    let header = "id\tquestion1\tquestion2\n";
    let kept = read_known("qqp", Split::Test, &[("test.tsv", &format!("{header}0\t\tb\n"))]).unwrap();
    assert_eq!(kept.0, [pair("", "b", Label::None)]);
    let error = read_known("qqp", Split::Test, &[("test.tsv", &format!("{header}0\ta\tb\n\n1\tc\td\n"))]);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("test.tsv:3: a blank line; a test file needs an answer to every row"), "{error}");
}

#[test]
fn scores_are_numbers() {
    let header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n";
    let row = |score: &str| format!("{header}0\tg\tf\ty\t0\tn\tn\ta\tb\t{score}\n");
    let read = |score: &str| read_known("stsb", Split::Dev, &[("dev.tsv", &row(score))]);
    assert_eq!(read("3.800").unwrap().0, [pair("a", "b", Label::Score(3.8))]);
    for bad in ["", "high", "NaN", "inf"] {
        let error = read(bad).unwrap_err().to_string();
        assert!(error.contains("dev.tsv:2: field \"score\""), "{error}");
    }
}

#[test]
fn a_disagreeing_count_or_label_is_an_error_with_file_and_line() {
    let header = "index\tsentence1\tsentence2\tlabel\n";
    let read = |rows: &str| {
        let error = read_known("rte", Split::Train, &[("train.tsv", &format!("{header}{rows}"))]);
        error.unwrap_err().to_string()
    };
    let error = read("0\ta\tb\tentailment\n1\ta\tb\tc\tentailment\n");
    assert!(error.contains("train.tsv:3: found 5 columns, expected 4; a text holds"), "{error}");
    let error = read("0\ta\tentailment\n");
    assert!(error.contains("train.tsv:2: found 3 columns, expected 4; a column is missing"), "{error}");
    let error = read("0\ta\tb\tentailed\n");
    assert!(error.contains("train.tsv:2: unknown label \"entailed\"; the labels are"), "{error}");
    assert!(error.contains("did you mean \"entailment\"?"), "{error}");
    assert!(read("").contains("train.tsv: no examples"));
    let error = read_known("rte", Split::Train, &[("train.tsv", "index\tsentence\tlabel\n0\ta\tb\n")]);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("no column \"sentence1\" in the header (index, sentence, label)"), "{error}");
}

#[test]
fn what_is_not_utf8_is_an_error_with_its_line() {
    let directory = folder(&[]);
    std::fs::write(directory.path().join("train.tsv"), b"x\t1\t\tgood\nx\t1\t\tcaf\xe9\n").unwrap();
    let spec = glue::task("cola", directory.path()).unwrap();
    let error = read_first(&spec, Split::Train).unwrap_err().to_string();
    assert!(error.contains("train.tsv:2: the text is not UTF-8"), "{error}");
    let mut gone = spec.clone();
    gone.files[0].path = Path::new("/nowhere/train.tsv").to_path_buf();
    let error = read_first(&gone, Split::Train).unwrap_err().to_string();
    assert!(error.starts_with("cannot read /nowhere/train.tsv: "), "{error}");
}
