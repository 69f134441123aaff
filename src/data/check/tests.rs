use super::Severity::{Error, Note, Ok as Fine, Warning};
use super::columns::range;
use super::*;
use crate::data::glue;
use crate::data::task::{Column, TaskKind};
use tempfile::TempDir;

/// A folder with files of known tasks.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

fn report(task: &str, files: &[(&str, &str)], max_length: usize) -> Report {
    let folder = folder(files);
    check(&glue::task(task, folder.path()).unwrap(), None, max_length)
}

/// What is worth a word in files of a task, as `severity check line text`; that they are parts of the official ones is
/// left out.
fn found(task: &str, files: &[(&str, &str)]) -> Vec<(Severity, &'static str, Option<u64>, String)> {
    let report = report(task, files, 512);
    let findings = report.findings.into_iter();
    let odd = findings.filter(|finding| finding.severity != Fine && finding.check != "rows");
    odd.map(|finding| (finding.severity, finding.check, finding.line, finding.text)).collect()
}

/// RTE's train file with these rows below its header.
fn rte(rows: &str) -> Vec<(Severity, &'static str, Option<u64>, String)> {
    found("rte", &[("RTE/train.tsv", &format!("index\tsentence1\tsentence2\tlabel\n{rows}"))])
}

/// Two rows in which nothing is odd, so that both labels occur.
const CLEAN: &str = "0\tone\ttwo\tentailment\n1\tthree\tfour\tnot_entailment\n";

#[track_caller]
fn assert_only(
    found: &[(Severity, &'static str, Option<u64>, String)],
    severity: Severity,
    check: &str,
    line: Option<u64>,
    text: &str,
) {
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].0, found[0].1, found[0].2), (severity, check, line), "{found:?}");
    assert!(found[0].3.contains(text), "{text:?} is not in {:?}", found[0].3);
}

#[test]
fn nothing_is_odd_about_a_clean_file() {
    assert_eq!(rte(CLEAN), []);
    let report =
        report("rte", &[("RTE/train.tsv", &format!("index\tsentence1\tsentence2\tlabel\n{CLEAN}"))], 512);
    let labels = report.findings.iter().find(|finding| finding.check == "labels").unwrap();
    assert_eq!(labels.text, "not_entailment 1 (50.0 %), entailment 1 (50.0 %)");
}

/// Each of these occurs alone in a file that is clean otherwise.
#[test]
fn each_oddity_of_a_file_is_found_where_it_first_occurs() {
    let third = |row: &str| format!("{CLEAN}{row}");
    for (rows, severity, check, line, text) in [
        (third("2\tfive \"\tsix\tentailment\n"), Note, "quotes", Some(4), "1 line: an odd number"),
        (third("2\tfive\u{a0}x\tsix\tentailment\n"), Note, "nbsp", Some(4), "no-break space"),
        (third("2\tfive\u{85}x\tsix\tentailment\n"), Note, "separator", Some(4), "U+0085"),
        (third("2\tfive\u{2028}x\tsix\tentailment\n"), Note, "separator", Some(4), "U+2028"),
        (third("2\tfive\rx\tsix\tentailment\n"), Warning, "cr", Some(4), "carriage return inside"),
        (third("2\tfive\tsix\tentailment\r\n"), Warning, "crlf", Some(4), "and the others do not"),
        (third("2\tfive\0\tsix\tentailment\n"), Warning, "nul", Some(4), "NUL"),
        (third("2\tfive\tsix\tentailment"), Note, "last line", Some(4), "does not end with a line end"),
        (third("2\tfive\tsix\n"), Error, "columns", Some(4), "1 line: 3 columns, and 4 are expected"),
        (third("2\tfive\tsix\tmore\tentailment\n"), Error, "columns", Some(4), "5 columns, and 4"),
        (third("2\tfive\tsix\tentailed\n"), Error, "label", Some(4), "did you mean \"entailment\"?"),
        (third("2\t \tsix\tentailment\n"), Warning, "empty", Some(4), "empty text; skipped"),
        (third("\n"), Warning, "blank", Some(4), "1 line: blank"),
        (third("index\tsentence1\tsentence2\tlabel\n"), Warning, "header", Some(4), "the header again"),
        (
            third("2\tone\ttwo\tentailment\n"),
            Note,
            "duplicate",
            Some(4),
            "the same label; the first is that of line 2",
        ),
        (
            third("2\tone\ttwo\tnot_entailment\n"),
            Warning,
            "conflict",
            Some(4),
            "another label; the first is that of line 2",
        ),
        (
            "0\tone\ttwo\tentailment\n".into(),
            Warning,
            "label",
            None,
            "no row has the label \"not_entailment\"",
        ),
    ] {
        assert_only(&rte(&rows), severity, check, line, text);
    }
}

#[test]
fn marks_headers_and_line_ends_of_windows_are_found() {
    let file = |text: &str| found("rte", &[("RTE/train.tsv", text)]);
    let header = "index\tsentence1\tsentence2\tlabel\n";
    assert_only(&file(&format!("\u{feff}{header}{CLEAN}")), Note, "bom", Some(1), "byte order mark");
    let windows = format!("{header}{CLEAN}").replace('\n', "\r\n");
    assert_only(&file(&windows), Note, "crlf", Some(1), "3 lines: all end as on Windows (CR LF)");
    let without_last = windows.strip_suffix("\r\n").unwrap();
    let checks: Vec<&str> = file(without_last).iter().map(|finding| finding.1).collect();
    assert_eq!(checks, ["crlf", "last line"]);
    let renamed = header.replace("sentence1", "premise");
    assert_only(&file(&format!("{renamed}{CLEAN}")), Error, "header", None, "no column \"sentence1\"");
    let twice = format!(
        "{}{}",
        header.replace("index", "label"),
        CLEAN.replace("0\t", "entailment\t").replace("1\t", "not_entailment\t")
    );
    assert_only(
        &file(&twice),
        Warning,
        "header",
        Some(1),
        "column \"label\" is named twice; the first is read",
    );
    let nameless = format!("{}{CLEAN}", header.replace("index", ""));
    assert_only(&file(&nameless), Warning, "header", Some(1), "column 0 has no name");
    // A header where there should be none.
    let cola = "source\tlabel\tmark\tsentence\nx\t1\t\tone\nx\t0\t*\ttwo\n";
    assert_only(&found("cola", &[("CoLA/train.tsv", cola)]), Error, "header", Some(1), "is this a header?");
    let (_, rest) = cola.split_once('\n').unwrap();
    assert_eq!(found("cola", &[("CoLA/train.tsv", rest)]), []);
}

#[test]
fn what_is_no_utf_8_is_an_error_with_its_line() {
    let folder = folder(&[]);
    std::fs::create_dir(folder.path().join("RTE")).unwrap();
    let text = b"index\tsentence1\tsentence2\tlabel\n0\tcaf\xe9\ttwo\tentailment\n1\tone\ttwo\tsideways\n";
    std::fs::write(folder.path().join("RTE/train.tsv"), text).unwrap();
    let report = check(&glue::task("rte", folder.path()).unwrap(), None, 512);
    let errors = report.findings.iter().filter(|found| found.severity == Error);
    // The other rows are looked at all the same.
    assert_eq!(
        errors.map(|found| (found.check, found.line)).collect::<Vec<_>>(),
        [("utf8", Some(2)), ("label", Some(3))]
    );
}

#[test]
fn scores_are_numbers_in_their_range() {
    let header = "index\tsentence1\tsentence2\tscore\n0\tone\ttwo\t2.5\n";
    let file = |row: &str| found("stsb", &[("STS-B/train.tsv", &format!("{header}{row}"))]);
    assert_eq!(file("1\ta\tb\t5.0\n"), []);
    assert_only(&file("1\ta\tb\t5.5\n"), Error, "label", Some(3), "outside of 0 to 5");
    assert_only(&file("1\ta\tb\tmuch\n"), Error, "label", Some(3), "no number");
    // Of a task of one's own any number may be.
    assert_eq!(range("mine"), None);
    let sick =
        "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n1\ta\tb\t0.5\tNEUTRAL\n";
    assert_only(
        &found("sick-r", &[("SICK/SICK_train.txt", sick)]),
        Error,
        "label",
        Some(2),
        "outside of 1 to 5",
    );
}

#[test]
fn what_official_files_are_known_for_is_no_error() {
    let qqp =
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tone\ttwo\t0\n1\t1\t2\tthree\tfour\t1\n";
    assert_eq!(found("qqp", &[("QQP/train.tsv", qqp)]), []);
    let short = format!("{qqp}2\t1\t2\tfive\n");
    assert_only(
        &found("qqp", &[("QQP/train.tsv", &short)]),
        Warning,
        "columns",
        Some(4),
        "too few columns; skipped",
    );
    let snli = "sentence1\tsentence2\tgold_label\na\tb\tneutral\na\tc\tentailment\na\td\tcontradiction\n";
    assert_eq!(found("snli", &[("SNLI/train.tsv", snli)]), []);
    let gold = format!("{snli}a\te\t-\n");
    assert_only(&found("snli", &[("SNLI/train.tsv", &gold)]), Note, "gold", Some(5), "did not agree");
    let uneven = format!("{snli}a\te\tmore\tneutral\n");
    assert_only(
        &found("snli", &[("SNLI/train.tsv", &uneven)]),
        Note,
        "columns",
        Some(5),
        "the label is the last",
    );
}

/// In a test file every row is answered: an empty text is no loss there, and a blank line cannot be.
#[test]
fn test_files_are_judged_by_their_own_rules() {
    let header = "index\tsentence1\tsentence2\n0\tone\ttwo\n";
    let file = |row: &str| found("rte", &[("RTE/test.tsv", &format!("{header}{row}"))]);
    assert_eq!(file("1\tthree\tfour\n"), []);
    assert_only(&file("1\t\tfour\n"), Note, "empty", Some(3), "answered like others");
    assert_only(&file("\n"), Error, "blank", Some(3), "1 line: blank");
    assert_only(
        &file("1\tone\ttwo\n"),
        Note,
        "duplicate",
        Some(3),
        "of an earlier row; the first is that of line 2",
    );
}

#[test]
fn rows_are_counted_against_the_official_files() {
    let rows = |count: usize| {
        let row = |number: usize| format!("{number}\ts{number}\tx\t{}\n", number % 2);
        let text = format!("index\tsentence1\tsentence2\tlabel\n{}", (0..count).map(row).collect::<String>());
        let report = report("wnli", &[("WNLI/dev.tsv", &text)], 512);
        let found = report.findings.into_iter().find(|finding| finding.check == "rows").unwrap();
        (found.severity, found.text)
    };
    assert_eq!(rows(71), (Fine, "71, as in the official file".to_string()));
    let (severity, text) = rows(70);
    assert_eq!(severity, Note);
    assert!(text.starts_with("70, and the official file has 71: a part of it (98.6 %)"), "{text}");
    let (severity, text) = rows(72);
    assert_eq!((severity, text.as_str()), (Warning, "72, and the official file has 71: not that file"));
}

#[test]
fn training_rows_in_the_dev_set_are_found() {
    let train = format!("index\tsentence1\tsentence2\tlabel\n{CLEAN}");
    let dev = |rows: &str| {
        let dev = format!("index\tsentence1\tsentence2\tlabel\n{rows}");
        found("rte", &[("RTE/train.tsv", &train), ("RTE/dev.tsv", &dev)])
    };
    assert_eq!(dev("0\tfive\tsix\tentailment\n1\tseven\tx\tnot_entailment\n"), []);
    let overlap = dev("0\tfive\tsix\tnot_entailment\n1\tone\ttwo\tentailment\n");
    assert_only(
        &overlap,
        Warning,
        "overlap",
        Some(3),
        "1 line: 50.0 % of the rows have the texts of a training row",
    );
    assert!(overlap[0].3.ends_with("train.tsv:2"), "{overlap:?}");
}

#[test]
fn the_edition_of_qnli_is_told_by_its_pairs() {
    let file = |rows: &str| {
        let text = format!("index\tquestion\tsentence\tlabel\n{rows}");
        let found = found("qnli", &[("QNLI/train.tsv", &text)]);
        assert_eq!((found.len(), found[0].1), (1, "edition"), "{found:?}");
        found[0].3.clone()
    };
    let v1 =
        file("0\tq\ta\tentailment\n1\tq\tb\tnot_entailment\n2\tr\tc\tnot_entailment\n3\tr\td\tentailment\n");
    assert!(v1.starts_with("QNLI v1: 100.0 %"), "{v1}");
    for rows in [
        "0\tq\ta\tentailment\n1\tr\tb\tnot_entailment\n2\ts\tc\tnot_entailment\n3\tt\td\tentailment\n",
        "0\tq\ta\tentailment\n1\tq\tb\tentailment\n2\tr\tc\tnot_entailment\n3\tr\td\tnot_entailment\n",
    ] {
        let v2 = file(rows);
        assert!(v2.starts_with("QNLI v2, or a sample: 0.0 %"), "{v2}");
    }
}

#[test]
fn the_adversarial_dev_set_of_wnli_is_found() {
    let header = "index\tsentence1\tsentence2\tlabel\n";
    let train = format!("{header}0\tit is\ta is\t0\n1\tit was\ta was\t1\n");
    let dev = |rows: &str| {
        let dev = format!("{header}{rows}");
        found("wnli", &[("WNLI/train.tsv", &train), ("WNLI/dev.tsv", &dev)])
    };
    let opposite = dev("0\tit is\tb is\t1\n1\tit was\tb was\t1\n2\tx\ty\t0\n");
    let text = "2 lines: a first sentence of the train set, and 1 of them the opposite";
    assert_only(&opposite, Warning, "adversary", Some(2), text);
    assert_eq!(dev("0\tit is\tb is\t0\n1\tit was\tb was\t1\n"), []);
}

#[test]
fn lengths_are_counted_and_what_a_limit_cuts_is_said() {
    let rows = |words: usize| {
        format!("0\t{}\ttwo\tentailment\n1\tthree\tfour\tnot_entailment\n", "w ".repeat(words))
    };
    let of = |words: usize, most: usize| {
        let text = format!("index\tsentence1\tsentence2\tlabel\n{}", rows(words));
        report("rte", &[("RTE/train.tsv", &text)], most)
    };
    let long = of(20, 16);
    let lengths = &long.lengths[0].1;
    assert_eq!((lengths.unit, lengths.longest, lengths.cut, lengths.share()), ("words", 21, 1, 0.5));
    assert_eq!((lengths.mean, lengths.median), (11.5, 2));
    let counts: Vec<usize> = lengths.bars.iter().map(|&(_, count)| count).collect();
    assert_eq!(counts, [1, 0, 1, 0, 0, 0, 0, 0]);
    let shown = lengths.to_string();
    assert_eq!(shown.lines().count(), 3, "{shown}");
    assert!(shown.starts_with("to   8 words       1 ########################################\n"), "{shown}");
    let cut = |report: &Report| {
        let finding = report.findings.iter().find(|finding| finding.check == "cut");
        finding.map(|finding| (finding.severity, finding.text.clone()))
    };
    let (severity, text) = cut(&long).unwrap();
    assert_eq!(severity, Warning);
    assert!(text.starts_with("1 examples (50.00 %) are longer than 16 words"), "{text}");
    assert_eq!(cut(&of(20, 21)), None);
}

#[test]
fn tokens_are_counted_with_the_special_ones() {
    let tokenizer = Tokenizer::from_words(["one", "two", "##s"], Default::default()).unwrap();
    let folder =
        folder(&[("RTE/train.tsv", "index\tsentence1\tsentence2\tlabel\n0\tones\ttwo\tentailment\n")]);
    let report = check(&glue::task("rte", folder.path()).unwrap(), Some(&tokenizer), 5);
    let lengths = &report.lengths[0].1;
    // [CLS] one ##s [SEP] two [SEP]
    assert_eq!((lengths.unit, lengths.longest, lengths.cut), ("tokens", 6, 1));
}

/// Other kinds of tasks are read as training reads them.
#[test]
fn a_ranking_task_is_read_whole() {
    let folder = folder(&[("train.jsonl", "{\"q\": \"a\", \"c\": [\"b\", \"d\"], \"p\": 0}\n")]);
    let file = |positive: &str| SourceFile {
        split: Split::Train,
        name: "train".into(),
        path: folder.path().join("train.jsonl"),
        format: crate::data::task::Format::Jsonl,
        columns: Columns::List {
            query: Column::Name("q".into()),
            candidates: Column::Name("c".into()),
            positive: Some(Column::Name(positive.into())),
        },
        quirks: Default::default(),
    };
    let of = |positive| {
        let spec = TaskSpec { files: vec![file(positive)], ..TaskSpec::new("answers", TaskKind::Ranking) };
        check(&spec, None, 512).findings
    };
    let fine = of("p");
    assert_eq!((fine.len(), fine[0].severity, fine[0].check), (1, Fine, "rows"));
    let wrong = of("r");
    assert_eq!((wrong.len(), wrong[0].severity, wrong[0].line), (1, Error, Some(1)));
    assert_eq!(wrong[0].text, "field \"r\" is missing");
}
