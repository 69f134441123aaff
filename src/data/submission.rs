//! What GLUE's leaderboard takes: eleven files of answers in one zip, with these names, rows and words.
//!
//! The same names and numbers of rows are in the example that GLUE's own FAQ offers.

use std::fs::File;
use std::io::BufReader;

use super::error::DataError;
use super::glue;
use super::official;
use super::rows::{Row, Rows};
use super::task::{Column, SourceFile, TaskKind, TaskSpec};

/// One of the eleven files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name in the zip.
    pub file: &'static str,
    /// The known task whose test file is answered.
    pub data: &'static str,
    /// The name of that test file among the task's sets.
    pub set: &'static str,
    /// The known task whose head answers.
    pub head: &'static str,
    /// The words that an answer is one of; none for a score in [0, 5].
    pub words: &'static [&'static str],
}

const NO_YES: &[&str] = &["0", "1"];
const ENTAILMENT_2: &[&str] = &["not_entailment", "entailment"];
const ENTAILMENT_3: &[&str] = &["contradiction", "neutral", "entailment"];

const fn part(file: &'static str, task: &'static str, words: &'static [&'static str]) -> Part {
    Part { file, data: task, set: "test", head: task, words }
}

/// All of them, in the order in which the leaderboard's page names them.
pub const PARTS: [Part; 11] = [
    part("CoLA.tsv", "cola", NO_YES),
    part("SST-2.tsv", "sst2", NO_YES),
    part("MRPC.tsv", "mrpc", NO_YES),
    part("STS-B.tsv", "stsb", &[]),
    part("QQP.tsv", "qqp", NO_YES),
    Part { set: "test_matched", ..part("MNLI-m.tsv", "mnli", ENTAILMENT_3) },
    Part { set: "test_mismatched", ..part("MNLI-mm.tsv", "mnli", ENTAILMENT_3) },
    part("QNLI.tsv", "qnli", ENTAILMENT_2),
    part("RTE.tsv", "rte", ENTAILMENT_2),
    part("WNLI.tsv", "wnli", NO_YES),
    Part { head: "mnli", ..part("AX.tsv", "ax", ENTAILMENT_3) },
];

impl Part {
    /// Whether a model's task can answer it, or why not. QNLI may be answered by ranking, which its first edition allows.
    pub fn check_task(&self, spec: &TaskSpec) -> Result<(), String> {
        if glue::cast(self.head, spec.kind).is_some() {
            return Ok(());
        }
        let kind = if self.words.is_empty() { TaskKind::Regression } else { TaskKind::Classification };
        if spec.kind != kind {
            return Err(format!("it is {} in the model, and the leaderboard wants {kind}", spec.kind));
        }
        let same = spec.labels.len() == self.words.len()
            && self.words.iter().all(|word| spec.labels.iter().any(|label| label == word));
        if !same {
            let (labels, words) = (spec.labels.join(", "), self.words.join(", "));
            return Err(format!("its labels in the model are {labels}, and the leaderboard wants {words}"));
        }
        Ok(())
    }

    /// Whether a test file has so many rows as the leaderboard counts, and of which edition it then is.
    pub fn check_rows(&self, rows: usize) -> Result<&'static str, String> {
        let known = official::rows(self.data, self.set);
        if let Some((_, edition)) = known.iter().find(|(count, _)| *count == rows) {
            return Ok(edition);
        }
        let counts: Vec<String> = known
            .iter()
            .map(|(count, edition)| match edition.is_empty() {
                true => count.to_string(),
                false => format!("{count} ({edition})"),
            })
            .collect();
        Err(format!("it has {rows} rows, and the leaderboard counts {}", counts.join(" or ")))
    }

    /// The file's text for answers in the order of the test file's rows.
    pub fn text(&self, answers: &[String]) -> String {
        let mut text = "index\tprediction\n".to_string();
        for (index, answer) in answers.iter().enumerate() {
            text.push_str(&format!("{index}\t{answer}\n"));
        }
        text
    }
}

/// A score as the leaderboard takes it, in [0, 5] with three decimals, and whether it had to be clipped.
pub fn score(score: f32) -> (String, bool) {
    let clipped = score.clamp(0.0, 5.0);
    // Adding 0 takes the sign from -0.
    (format!("{:.3}", clipped + 0.0), clipped != score)
}

/// Whether the rows of a test file are numbered 0, 1, 2 and so on in its column `index` or `id`, if it has one: the
/// leaderboard takes an answer's number for its row's.
///
/// # Errors
/// A file that cannot be read; the first row with another number.
pub fn check_order(file: &SourceFile) -> Result<(), DataError> {
    let input = File::open(&file.path).map_err(DataError::read(&file.path))?;
    let mut rows = Rows::new(file, BufReader::with_capacity(1 << 16, input))?;
    let names = ["index", "id"].map(|name| Column::Name(name.to_string()));
    let found = names.iter().find_map(|column| Some((column, rows.place(column).ok()?)));
    let Some((column, place)) = found else { return Ok(()) };
    let mut row = Row::default();
    let mut expected = 0;
    while rows.next(&mut row)? {
        if row.is_blank() {
            continue;
        }
        let number = row.text(&place).unwrap_or_default();
        if number.trim() != expected.to_string() {
            return Err(DataError::Field {
                path: file.path.clone(),
                line: row.line,
                field: column.to_string(),
                reason: format!(
                    "is {number:?} where {expected} follows; the leaderboard wants the official order"
                ),
            });
        }
        expected += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::task::{Columns, Format, Quirks, Split};
    use std::path::Path;

    /// Lines of each file with its header, as a folder that was handed in has them.
    const LINES: [(&str, usize); 11] = [
        ("AX.tsv", 1105),
        ("CoLA.tsv", 1064),
        ("MNLI-m.tsv", 9797),
        ("MNLI-mm.tsv", 9848),
        ("MRPC.tsv", 1726),
        ("QNLI.tsv", 5464),
        ("QQP.tsv", 390966),
        ("RTE.tsv", 3001),
        ("SST-2.tsv", 1822),
        ("STS-B.tsv", 1380),
        ("WNLI.tsv", 147),
    ];

    #[test]
    fn the_files_have_the_lines_of_one_that_was_handed_in() {
        assert_eq!(PARTS.len(), LINES.len());
        for (name, lines) in LINES {
            let part = PARTS.iter().find(|part| part.file == name).unwrap();
            let rows = official::rows(part.data, part.set)[0].0;
            let answer = part.words.last().map_or_else(|| score(2.5).0, |word| word.to_string());
            let text = part.text(&vec![answer; rows]);
            assert!(text.starts_with("index\tprediction\n0\t"), "{name}");
            assert_eq!(text.lines().count(), lines, "{name}");
            assert!(text.lines().last().unwrap().starts_with(&format!("{}\t", lines - 2)), "{name}");
        }
    }

    #[test]
    fn only_the_official_numbers_of_rows_pass_and_an_edition_is_named() {
        let qnli = PARTS.iter().find(|part| part.data == "qnli").unwrap();
        assert_eq!((qnli.check_rows(5463), qnli.check_rows(5740)), (Ok("QNLI v2"), Ok("QNLI v1")));
        let error = qnli.check_rows(5462).unwrap_err();
        assert_eq!(error, "it has 5462 rows, and the leaderboard counts 5463 (QNLI v2) or 5740 (QNLI v1)");
    }

    #[test]
    fn words_and_kinds_must_be_the_leaderboards() {
        let of = |name: &str| glue::task(name, Path::new("."));
        assert!(of("rte").is_err(), "there are no files here");
        for part in &PARTS {
            let kind = if part.words.is_empty() { TaskKind::Regression } else { TaskKind::Classification };
            let labels: Vec<String> = part.words.iter().rev().map(|word| word.to_string()).collect();
            let spec = TaskSpec { labels, ..TaskSpec::new(part.head, kind) };
            part.check_task(&spec).unwrap();
            let other = TaskSpec { labels: vec!["no".into(), "yes".into()], ..TaskSpec::new("t", kind) };
            assert!(part.check_task(&other).unwrap_err().contains("the leaderboard wants"), "{}", part.file);
            let ranking = part.check_task(&TaskSpec::new(part.head, TaskKind::Ranking));
            assert_eq!(ranking.is_ok(), part.head == "qnli", "{}", part.file);
            assert!(ranking.err().is_none_or(|error| error.contains("it is ranking")));
        }
    }

    #[test]
    fn scores_are_clipped_and_have_three_decimals() {
        let cases = [
            (-0.25, "0.000", true),
            (-0.0, "0.000", false),
            (2.71555, "2.716", false),
            (5.0, "5.000", false),
        ];
        for (value, text, clipped) in cases {
            assert_eq!(score(value), (text.to_string(), clipped), "{value}");
        }
        assert_eq!(score(5.0001), ("5.000".to_string(), true));
    }

    #[test]
    fn rows_in_another_order_are_refused_with_their_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.tsv");
        let columns = Columns::Row { text_a: Column::Name("sentence".into()), text_b: None, label: None };
        let format = Format::Tsv { header: true };
        let quirks = Quirks::default();
        let file = SourceFile { split: Split::Test, name: "test".into(), path, format, columns, quirks };
        for (text, word) in [
            ("index\tsentence\n0\ta\n1\tb\n", None),
            ("sentence\na\nb\n", None),
            ("id\tsentence\n0\ta\n2\tb\n", Some("test.tsv:3: field \"id\" is \"2\" where 1 follows")),
            ("index\tsentence\n1\ta\n", Some("test.tsv:2: field \"index\" is \"1\" where 0 follows")),
        ] {
            std::fs::write(&file.path, text).unwrap();
            let error = check_order(&file).err().map(|error| error.to_string());
            assert_eq!(error.is_some(), word.is_some(), "{text:?}: {error:?}");
            assert!(error.unwrap_or_default().contains(word.unwrap_or("")), "{text:?}");
        }
    }
}
