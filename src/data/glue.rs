//! The tasks that are known by name: GLUE's nine, its diagnostic set, SNLI, SciTail and SICK's two, in their official
//! layouts.
//!
//! Label names are in MT-DNN's order, which is not that of the Hugging Face hub: what matters is that names, not
//! numbers, go in and out.

use std::path::{Path, PathBuf};

use super::error::{DataError, list, nearest_name};
use super::task::{Column, Columns, Format, MetricKind, Quirks, SourceFile, Split, TaskKind, TaskSpec};

/// The names of all known tasks.
pub fn names() -> impl Iterator<Item = &'static str> + Clone {
    KNOWN.iter().map(|known| known.name)
}

/// The known task that `name` means, however it is written: `SST-2`, `sst_2` and `sst2` are one.
pub fn find(name: &str) -> Option<&'static str> {
    known(name).map(|known| known.name)
}

/// A known task with the files of it that are in `directory`: the task's own folder, or the one that holds GLUE.
///
/// # Errors
/// If the name is not known, or none of its files is there.
pub fn task(name: &str, directory: &Path) -> Result<TaskSpec, DataError> {
    let known = known(name).ok_or_else(|| DataError::UnknownTask {
        name: name.to_string(),
        known: list(names()),
        nearest_name: nearest_name(name, names()),
    })?;
    let spec = known.spec(directory);
    if spec.files.is_empty() {
        let mut tried: Vec<&str> = known.files.iter().map(|file| file.path).collect();
        tried.dedup();
        return Err(DataError::NoFile {
            task: known.name.to_string(),
            directory: directory.to_path_buf(),
            tried: format!("{}, there and in {}", list(tried), list(known.folders.iter().copied())),
        });
    }
    Ok(spec)
}

/// The known task that is `known` cast as another kind: QNLI as ranking, `qnnli`, the name that MT-DNN gives it.
pub fn cast(known: &str, kind: TaskKind) -> Option<&'static str> {
    KNOWN.iter().find(|other| other.cast_of == Some(known) && other.kind == kind).map(|other| other.name)
}

/// The known tasks that can be trained from `directory`, the one that holds GLUE; none twice as another kind.
pub fn trainable_in(directory: &Path) -> Vec<&'static str> {
    with_a_file(directory, |file| file.split == Split::Train)
}

/// The known tasks of which there is any file in `directory`: the one that holds GLUE, or one with a task's own name.
pub fn found_in(directory: &Path) -> Vec<&'static str> {
    let own = directory.canonicalize().ok().and_then(|path| find(path.file_name()?.to_str()?));
    match own.filter(|name| task(name, directory).is_ok()) {
        Some(name) => vec![name],
        None => with_a_file(directory, |_| true),
    }
}

fn with_a_file(directory: &Path, wanted: impl Fn(&KnownFile) -> bool) -> Vec<&'static str> {
    let here = |known: &&Known| {
        let folders = known.folders.iter().map(|folder| directory.join(folder));
        folders
            .filter(|folder| folder.is_dir())
            .any(|folder| known.files.iter().any(|file| wanted(file) && folder.join(file.path).is_file()))
    };
    KNOWN.iter().filter(|known| known.cast_of.is_none()).filter(here).map(|known| known.name).collect()
}

fn known(name: &str) -> Option<&'static Known> {
    let plain: String = name.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
    KNOWN.iter().find(|known| known.name == plain || known.aliases.contains(&plain.as_str()))
}

struct Known {
    name: &'static str,
    /// Other names, lower-case, letters and digits only.
    aliases: &'static [&'static str],
    folders: &'static [&'static str],
    kind: TaskKind,
    labels: &'static [&'static str],
    metrics: &'static [MetricKind],
    dropout: f32,
    shares: Option<&'static str>,
    /// The task whose files these are, read as another kind.
    cast_of: Option<&'static str>,
    /// Of those with one split and name, the first that exists is used.
    files: &'static [KnownFile],
}

#[derive(Clone, Copy)]
struct KnownFile {
    split: Split,
    name: &'static str,
    path: &'static str,
    format: Format,
    text_a: At,
    text_b: Option<At>,
    label: Option<At>,
    /// Whether two rows are one query's candidates.
    paired: bool,
    quirks: Quirks,
}

/// [`Column`] as a constant.
#[derive(Clone, Copy)]
enum At {
    Number(usize),
    Name(&'static str),
    Last,
}

impl At {
    fn column(self) -> Column {
        match self {
            At::Number(number) => Column::Number(number),
            At::Name(name) => Column::Name(name.to_string()),
            At::Last => Column::Last,
        }
    }
}

impl Known {
    fn spec(&self, directory: &Path) -> TaskSpec {
        let mut files: Vec<SourceFile> = Vec::new();
        for file in self.files {
            if files.iter().any(|found| found.split == file.split && found.name == file.name) {
                continue;
            }
            let folders = self.folders.iter().map(|folder| directory.join(folder));
            let places = folders.chain([directory.to_path_buf()]).map(|folder| folder.join(file.path));
            files.extend(places.into_iter().find(|path| path.is_file()).map(|path| file.source(path)));
        }
        TaskSpec {
            texts: files.first().and_then(|file| file.columns.texts()),
            labels: self.labels.iter().map(|label| label.to_string()).collect(),
            metrics: self.metrics.to_vec(),
            dropout: self.dropout,
            shares: self.shares.map(str::to_string),
            files,
            ..TaskSpec::new(self.name, self.kind)
        }
    }
}

impl KnownFile {
    fn source(&self, path: PathBuf) -> SourceFile {
        SourceFile {
            split: self.split,
            name: self.name.to_string(),
            path,
            format: self.format,
            columns: match (self.paired, self.text_b) {
                (true, Some(candidate)) => Columns::Paired {
                    query: self.text_a.column(),
                    candidate: candidate.column(),
                    label: self.label.map(At::column),
                },
                (_, text_b) => Columns::Row {
                    text_a: self.text_a.column(),
                    text_b: text_b.map(At::column),
                    label: self.label.map(At::column),
                },
            },
            quirks: self.quirks,
        }
    }

    const fn labelled(self, label: At) -> Self {
        Self { label: Some(label), ..self }
    }

    const fn paired(self) -> Self {
        Self { paired: true, ..self }
    }

    const fn headless(self) -> Self {
        Self { format: Format::Tsv { header: false }, ..self }
    }

    const fn jsonl(self) -> Self {
        Self { format: Format::Jsonl, ..self }
    }

    /// Disputed rows have the label `-`, and how many annotators' labels stand before it differs by row.
    const fn disputed(self) -> Self {
        let quirks = Quirks { no_consensus: true, uneven_rows: true, ..self.quirks };
        Self { quirks, ..self }
    }

    const fn with_short_rows(self) -> Self {
        let quirks = Quirks { short_rows: true, ..self.quirks };
        Self { quirks, ..self }
    }
}

const fn single(split: Split, name: &'static str, path: &'static str, text: At) -> KnownFile {
    let quirks = Quirks { empty_texts: true, short_rows: false, uneven_rows: false, no_consensus: false };
    let format = Format::Tsv { header: true };
    KnownFile { split, name, path, format, text_a: text, text_b: None, label: None, paired: false, quirks }
}

const fn pair(split: Split, name: &'static str, path: &'static str, a: At, b: At) -> KnownFile {
    KnownFile { text_b: Some(b), ..single(split, name, path, a) }
}

/// A pair in the columns `sentence1` and `sentence2`.
const fn sentences(split: Split, name: &'static str, path: &'static str) -> KnownFile {
    pair(split, name, path, At::Name("sentence1"), At::Name("sentence2"))
}

const LABEL: At = At::Name("label");
const GOLD: At = At::Name("gold_label");
const SENTENCE: At = At::Name("sentence");
const ENTAILMENT_2: &[&str] = &["not_entailment", "entailment"];
const ENTAILMENT_3: &[&str] = &["contradiction", "neutral", "entailment"];
const NO_YES: &[&str] = &["0", "1"];
const ACCURACY: &[MetricKind] = &[MetricKind::Accuracy];
const ACCURACY_F1: &[MetricKind] = &[MetricKind::Accuracy, MetricKind::F1];

use Split::{Dev, Test, Train};
use TaskKind::{Classification, Regression};

const KNOWN: &[Known] = &[
    Known {
        name: "cola",
        aliases: &[],
        folders: &["CoLA", "cola"],
        kind: Classification,
        labels: NO_YES,
        metrics: &[MetricKind::Mcc, MetricKind::Accuracy],
        dropout: 0.05,
        shares: None,
        cast_of: None,
        files: &[
            single(Train, "train", "train.tsv", At::Number(3)).labelled(At::Number(1)).headless(),
            single(Dev, "dev", "dev.tsv", At::Number(3)).labelled(At::Number(1)).headless(),
            single(Test, "test", "test.tsv", SENTENCE),
        ],
    },
    Known {
        name: "sst2",
        aliases: &["sst"],
        folders: &["SST-2", "sst2"],
        kind: Classification,
        labels: NO_YES,
        metrics: ACCURACY,
        dropout: 0.1,
        shares: None,
        cast_of: None,
        files: &[
            single(Train, "train", "train.tsv", SENTENCE).labelled(LABEL),
            single(Dev, "dev", "dev.tsv", SENTENCE).labelled(LABEL),
            single(Test, "test", "test.tsv", SENTENCE),
        ],
    },
    Known {
        name: "mrpc",
        aliases: &[],
        folders: &["MRPC", "mrpc"],
        kind: Classification,
        labels: NO_YES,
        metrics: ACCURACY_F1,
        dropout: 0.1,
        shares: None,
        cast_of: None,
        files: &[
            pair(Train, "train", "train.tsv", At::Name("#1 String"), At::Name("#2 String"))
                .labelled(At::Name("Quality")),
            pair(Dev, "dev", "dev.tsv", At::Name("#1 String"), At::Name("#2 String"))
                .labelled(At::Name("Quality")),
            pair(Test, "test", "test.tsv", At::Name("#1 String"), At::Name("#2 String")),
        ],
    },
    Known {
        name: "stsb",
        aliases: &["sts", "stsbenchmark"],
        folders: &["STS-B", "stsb"],
        kind: Regression,
        labels: &[],
        metrics: &[MetricKind::Pearson, MetricKind::Spearman],
        dropout: 0.1,
        shares: None,
        cast_of: None,
        files: &[
            sentences(Train, "train", "train.tsv").labelled(At::Name("score")),
            sentences(Dev, "dev", "dev.tsv").labelled(At::Name("score")),
            sentences(Test, "test", "test.tsv"),
        ],
    },
    Known {
        name: "qqp",
        aliases: &["quora"],
        folders: &["QQP", "qqp"],
        kind: Classification,
        labels: NO_YES,
        metrics: ACCURACY_F1,
        dropout: 0.1,
        shares: None,
        cast_of: None,
        files: &[
            pair(Train, "train", "train.tsv", At::Name("question1"), At::Name("question2"))
                .labelled(At::Name("is_duplicate"))
                .with_short_rows(),
            pair(Dev, "dev", "dev.tsv", At::Name("question1"), At::Name("question2"))
                .labelled(At::Name("is_duplicate"))
                .with_short_rows(),
            pair(Test, "test", "test.tsv", At::Name("question1"), At::Name("question2")),
        ],
    },
    Known {
        name: "mnli",
        aliases: &["multinli"],
        folders: &["MNLI", "mnli"],
        kind: Classification,
        labels: ENTAILMENT_3,
        metrics: ACCURACY,
        dropout: 0.3,
        shares: None,
        cast_of: None,
        files: &[
            sentences(Train, "train", "train.tsv").labelled(At::Last).disputed(),
            sentences(Dev, "dev_matched", "dev_matched.tsv").labelled(At::Last).disputed(),
            sentences(Dev, "dev_mismatched", "dev_mismatched.tsv").labelled(At::Last).disputed(),
            sentences(Test, "test_matched", "test_matched.tsv"),
            sentences(Test, "test_mismatched", "test_mismatched.tsv"),
        ],
    },
    Known {
        name: "qnli",
        aliases: &[],
        folders: &["QNLI", "qnli"],
        kind: Classification,
        labels: ENTAILMENT_2,
        metrics: ACCURACY,
        dropout: 0.1,
        shares: None,
        cast_of: None,
        files: &[
            pair(Train, "train", "train.tsv", At::Name("question"), SENTENCE).labelled(LABEL),
            pair(Dev, "dev", "dev.tsv", At::Name("question"), SENTENCE).labelled(LABEL),
            pair(Test, "test", "test.tsv", At::Name("question"), SENTENCE),
        ],
    },
    Known {
        name: "qnnli",
        aliases: &[],
        folders: &["QNLI", "qnli", "QNNLI", "qnnli"],
        kind: TaskKind::Ranking,
        labels: &[],
        metrics: &[MetricKind::AccuracyAt1, MetricKind::Mrr, MetricKind::Map],
        dropout: 0.1,
        shares: None,
        cast_of: Some("qnli"),
        files: &[
            pair(Train, "train", "train.tsv", At::Name("question"), SENTENCE).labelled(LABEL).paired(),
            pair(Dev, "dev", "dev.tsv", At::Name("question"), SENTENCE).labelled(LABEL).paired(),
            pair(Test, "test", "test.tsv", At::Name("question"), SENTENCE).paired(),
        ],
    },
    Known {
        name: "rte",
        aliases: &[],
        folders: &["RTE", "rte"],
        kind: Classification,
        labels: ENTAILMENT_2,
        metrics: ACCURACY,
        dropout: 0.1,
        shares: None,
        cast_of: None,
        files: &[
            sentences(Train, "train", "train.tsv").labelled(LABEL),
            sentences(Dev, "dev", "dev.tsv").labelled(LABEL),
            sentences(Test, "test", "test.tsv"),
        ],
    },
    Known {
        name: "wnli",
        aliases: &[],
        folders: &["WNLI", "wnli"],
        kind: Classification,
        labels: NO_YES,
        metrics: ACCURACY,
        dropout: 0.1,
        shares: None,
        cast_of: None,
        files: &[
            sentences(Train, "train", "train.tsv").labelled(LABEL),
            sentences(Dev, "dev", "dev.tsv").labelled(LABEL),
            sentences(Test, "test", "test.tsv"),
        ],
    },
    Known {
        name: "ax",
        aliases: &["diagnostic", "diagnostics", "gluediagnostic"],
        folders: &["diagnostic", "AX", "ax"],
        kind: Classification,
        labels: ENTAILMENT_3,
        metrics: &[MetricKind::Mcc, MetricKind::Accuracy],
        dropout: 0.3,
        shares: Some("mnli"),
        cast_of: None,
        files: &[sentences(Test, "test", "diagnostic.tsv")],
    },
    Known {
        name: "snli",
        aliases: &[],
        folders: &["SNLI", "snli", "snli_1.0"],
        kind: Classification,
        labels: ENTAILMENT_3,
        metrics: ACCURACY,
        dropout: 0.1,
        shares: None,
        cast_of: None,
        files: &[
            sentences(Train, "train", "train.tsv").labelled(At::Last).disputed(),
            sentences(Train, "train", "snli_1.0_train.jsonl").labelled(GOLD).disputed().jsonl(),
            sentences(Train, "train", "train.jsonl").labelled(GOLD).disputed().jsonl(),
            sentences(Dev, "dev", "dev.tsv").labelled(At::Last).disputed(),
            sentences(Dev, "dev", "snli_1.0_dev.jsonl").labelled(GOLD).disputed().jsonl(),
            sentences(Dev, "dev", "dev.jsonl").labelled(GOLD).disputed().jsonl(),
        ],
    },
    Known {
        name: "scitail",
        aliases: &["scitailv11"],
        folders: &["SciTail", "SciTailV1.1", "scitail"],
        kind: Classification,
        labels: &["neutral", "entails"],
        metrics: ACCURACY,
        dropout: 0.1,
        shares: None,
        cast_of: None,
        files: &[
            scitail(Train, "train", "tsv_format/scitail_1.0_train.tsv"),
            scitail(Train, "train", "scitail_1.0_train.tsv"),
            scitail(Dev, "dev", "tsv_format/scitail_1.0_dev.tsv"),
            scitail(Dev, "dev", "scitail_1.0_dev.tsv"),
        ],
    },
    Known {
        name: "sick-r",
        aliases: &["sickr", "sickrelatedness"],
        folders: SICK,
        kind: Regression,
        labels: &[],
        metrics: &[MetricKind::Pearson, MetricKind::Spearman],
        dropout: 0.1,
        shares: None,
        cast_of: None,
        files: &[
            sick(Train, "train", "SICK_train.txt").labelled(RELATEDNESS),
            sick(Dev, "dev", "SICK_trial.txt").labelled(RELATEDNESS),
        ],
    },
    Known {
        name: "sick-e",
        aliases: &["sicke", "sickentailment"],
        folders: SICK,
        kind: Classification,
        labels: &["CONTRADICTION", "NEUTRAL", "ENTAILMENT"],
        metrics: ACCURACY,
        dropout: 0.1,
        shares: None,
        cast_of: None,
        files: &[
            sick(Train, "train", "SICK_train.txt").labelled(JUDGMENT),
            sick(Dev, "dev", "SICK_trial.txt").labelled(JUDGMENT),
        ],
    },
];

/// SICK (SemEval 2014, task 1) has both of its answers in one file; its trial set is what others call its dev set.
const SICK: &[&str] = &["SICK", "sick"];
const RELATEDNESS: At = At::Name("relatedness_score");
const JUDGMENT: At = At::Name("entailment_judgment");

const fn sick(split: Split, name: &'static str, path: &'static str) -> KnownFile {
    pair(split, name, path, At::Name("sentence_A"), At::Name("sentence_B"))
}

const fn scitail(split: Split, name: &'static str, path: &'static str) -> KnownFile {
    pair(split, name, path, At::Number(0), At::Number(1)).labelled(At::Number(2)).headless()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::task::Texts;

    #[test]
    fn names_are_found_however_they_are_written() {
        for (written, name) in [
            ("CoLA", "cola"),
            ("SST-2", "sst2"),
            ("sst_2", "sst2"),
            ("STS-B", "stsb"),
            ("Diagnostic", "ax"),
            ("SciTail", "scitail"),
            ("SICK-R", "sick-r"),
            ("sick_e", "sick-e"),
        ] {
            assert_eq!(find(written), Some(name), "{written}");
        }
        assert_eq!(find("squad"), None);
        let error = task("qnlu", Path::new(".")).unwrap_err().to_string();
        assert!(error.contains("did you mean \"qnli\"?"), "{error}");
    }

    #[test]
    fn every_known_task_is_sound() {
        for known in KNOWN {
            known.spec(Path::new("/nowhere")).validate().unwrap();
            assert_eq!(find(known.name), Some(known.name));
            // One text or two is said for the task, and holds for each of its files.
            let pairs = |file: &KnownFile| file.text_b.is_some();
            assert!(known.files.iter().all(|file| pairs(file) == pairs(&known.files[0])), "{}", known.name);
        }
    }

    #[test]
    fn a_folder_is_the_tasks_own_or_the_one_that_holds_it() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("RTE");
        std::fs::create_dir(&own).unwrap();
        std::fs::write(own.join("train.tsv"), "").unwrap();
        for directory in [root.path(), &own] {
            let spec = task("rte", directory).unwrap();
            assert_eq!((spec.files.len(), spec.texts), (1, Some(Texts::Pair)));
            assert_eq!(spec.files[0].path, own.join("train.tsv"));
            assert_eq!(spec.files[0].split, Train);
        }
        assert_eq!(trainable_in(root.path()), ["rte"]);
        std::fs::create_dir(root.path().join("WNLI")).unwrap();
        std::fs::write(root.path().join("WNLI/test.tsv"), "").unwrap();
        assert_eq!(trainable_in(root.path()), ["rte"]);
        assert_eq!(found_in(root.path()), ["rte", "wnli"]);
        assert_eq!(found_in(&own), ["rte"]);
        let error = task("cola", root.path()).unwrap_err().to_string();
        assert!(error.contains("train.tsv, dev.tsv, test.tsv"), "{error}");
    }
}
