//! The files of MT-DNN's own code: task definitions, canonical TSV, token ids.

use std::path::{Path, PathBuf};

use crate::data::cache::{self, Prepared};
use crate::data::custom::{HeadKind, TaskEntry};
use crate::data::dataset::{Example, Label, Text};
use crate::data::error::DataError;
use crate::data::san::SanSpec;
use crate::data::soft::SoftSource;
use crate::data::task::{MetricKind, Split, TaskKind, TaskSpec, Texts};
use crate::data::text::Layout;
use crate::data::tokenizer::{Normalization, Tokenizer};
use crate::data::{reader, reference};

const GLUE: &str = include_str!("../../../tests/fixtures/glue_task_def.yml");

/// A folder with a task definition and files.
pub(super) struct Folder(tempfile::TempDir);

impl Folder {
    pub(super) fn new(definition: &str, files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        std::fs::write(folder.definition(), definition).unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn definition(&self) -> PathBuf {
        self.path().join("task_def.yml")
    }

    pub(super) fn task(&self, name: &str) -> Result<TaskSpec, DataError> {
        reference::task(&self.definition(), name, self.path())
    }
}

/// The examples of a task's file of training text.
fn read(definition: &str, text: &str) -> Result<Vec<Example>, DataError> {
    let folder = Folder::new(definition, &[("t_train.tsv", text)]);
    let spec = folder.task("t")?;
    Ok(reader::read(&spec.files[0], &spec)?.0)
}

fn refusal(definition: &str) -> String {
    read(definition, "0\t0\ta\tb\n").unwrap_err().to_string()
}

/// `[PAD] [UNK] [CLS] [SEP] [MASK]` are 0 to 4, then a, b and c.
pub(super) fn tokenizer() -> Tokenizer {
    Tokenizer::from_words(["a", "b", "c"], Normalization::default()).unwrap()
}

/// A task's file of token ids as a set.
fn tokens(definition: &str, lines: &str, max_length: usize) -> Result<Prepared, DataError> {
    let folder = Folder::new(definition, &[("t_train.json", lines)]);
    let spec = folder.task("t")?;
    cache::prepare(&spec.files[0], &spec, &tokenizer(), max_length, None)
}

const PAIRS: &str = "t: {data_format: PremiseAndOneHypothesis, task_type: Classification, n_class: 3}";
const RANKS: &str = "t: {data_format: PremiseAndMultiHypothesis, task_type: Ranking, n_class: 1}";
const SCORES: &str = "t: {data_format: PremiseAndOneHypothesis, task_type: Regression, n_class: 1}";

#[test]
fn every_task_of_glue_is_what_the_definition_says() {
    use MetricKind::{Accuracy, AccuracyAt1, F1, Mcc, Pearson, Spearman};
    use TaskKind::{Classification, Ranking, Regression};
    let (two, integers) = (["not_entailment", "entailment"].as_slice(), ["0", "1"].as_slice());
    let three = ["contradiction", "neutral", "entailment"].as_slice();
    let (single, pair) = (Some(Texts::Single), Some(Texts::Pair));
    type Expected =
        (&'static str, TaskKind, Option<Texts>, &'static [&'static str], &'static [MetricKind], f32);
    let expected: [Expected; 12] = [
        ("mnli", Classification, pair, three, &[Accuracy], 0.1),
        ("rte", Classification, pair, two, &[Accuracy], 0.1),
        ("qqp", Classification, pair, integers, &[Accuracy, F1], 0.1),
        ("qnli", Classification, pair, two, &[Accuracy], 0.1),
        ("qnnli", Ranking, None, &[], &[AccuracyAt1], 0.1),
        ("mrpc", Classification, pair, integers, &[Accuracy, F1], 0.1),
        ("sst", Classification, single, integers, &[Accuracy], 0.1),
        ("cola", Classification, single, integers, &[Accuracy, Mcc], 0.05),
        ("stsb", Regression, pair, &[], &[Pearson, Spearman], 0.1),
        ("wnli", Classification, pair, integers, &[Accuracy], 0.1),
        ("snli", Classification, pair, three, &[Accuracy], 0.1),
        ("scitail", Classification, pair, &["neutral", "entails"], &[Accuracy], 0.1),
    ];
    let files: Vec<String> = expected.iter().map(|task| format!("{}_train.tsv", task.0)).collect();
    let files: Vec<(&str, &str)> = files.iter().map(|name| (name.as_str(), "")).collect();
    let folder = Folder::new(GLUE, &files);
    let known = reference::tasks(&folder.definition(), folder.path()).unwrap();
    assert_eq!(known, expected.map(|task| (task.0.to_string(), true)));
    for (name, kind, texts, labels, metrics, dropout) in expected {
        let spec = folder.task(name).unwrap();
        assert_eq!((spec.kind, spec.texts, spec.dropout), (kind, texts, dropout), "{name}");
        assert_eq!((&spec.labels[..], &spec.metrics[..]), (&labels.map_strings()[..], metrics), "{name}");
    }
    // What has no effect is said.
    assert_eq!(folder.task("stsb").unwrap().notes.len(), 2);
    assert_eq!(folder.task("rte").unwrap().notes, Vec::<String>::new());
}

trait Strings {
    fn map_strings(&self) -> Vec<String>;
}

impl Strings for [&str] {
    fn map_strings(&self) -> Vec<String> {
        self.iter().map(|text| text.to_string()).collect()
    }
}

#[test]
fn splits_are_found_by_their_names() {
    let files = [
        "mnli_train.tsv",
        "mnli_matched_dev.tsv",
        "bert_base_uncased_lower/mnli_mismatched_dev.json",
        "mnli_matched_test.tsv",
    ];
    let folder = Folder::new(GLUE, &files.map(|name| (name, "")));
    let spec = folder.task("mnli").unwrap();
    let found: Vec<(Split, &str)> = spec.files.iter().map(|file| (file.split, file.name.as_str())).collect();
    let expected = [
        (Split::Train, "train"),
        (Split::Dev, "matched_dev"),
        (Split::Dev, "mismatched_dev"),
        (Split::Test, "matched_test"),
    ];
    assert_eq!(found, expected);
    assert!(!spec.files[3].columns.labelled(), "labels of test files are made up");
    let message = folder.task("rte").unwrap_err().to_string();
    assert!(message.contains("looked for rte_train.tsv or .json, rte_dev.tsv"), "{message}");
    let known = reference::tasks(&folder.definition(), folder.path()).unwrap();
    assert_eq!(known.iter().filter(|(_, trainable)| *trainable).count(), 1);
    let message = folder.task("mnly").unwrap_err().to_string();
    assert!(message.contains("no task \"mnly\"") && message.contains("did you mean \"mnli\"?"), "{message}");
    std::fs::create_dir(folder.path().join("b_cased")).unwrap();
    std::fs::write(folder.path().join("b_cased/mnli_mismatched_dev.json"), "").unwrap();
    let message = folder.task("mnli").unwrap_err().to_string();
    assert!(message.contains("token ids of two vocabularies"), "{message}");
    assert_eq!(reference::task_of("mnli_matched"), "mnli");
}

#[test]
fn canonical_rows_are_examples() {
    let pair = |a: &str, b: &str, label| Example { text: Text::Pair(a.into(), b.into()), label };
    let expected = [pair("x \"y", "z", Label::Class(2)), pair("u", "v", Label::Class(0))];
    assert_eq!(read(PAIRS, "7\t2\tx \"y\tz\n8\t0\tu\tv\n").unwrap(), expected);
    let named = "t: {data_format: PremiseAndOneHypothesis, task_type: Classification, labels: [v, u]}";
    assert_eq!(read(named, "7\tu\tx\tz\n").unwrap(), [pair("x", "z", Label::Class(1))]);
    let single = "t: {data_format: PremiseOnly, task_type: Classification, n_class: 2}";
    let text = Text::Single("x".into());
    assert_eq!(read(single, "7\t1\tx\n").unwrap(), [Example { text, label: Label::Class(1) }]);
    assert_eq!(read(SCORES, "7\t2.5\tx\tz\n").unwrap(), [pair("x", "z", Label::Score(2.5))]);
    for (definition, row, said) in [
        (PAIRS, "7\t3\tx\tz\n", "t_train.tsv:1: unknown label \"3\"; the labels are 0, 1, 2"),
        (PAIRS, "7\t0\tx\n", "field \"3\" is missing"),
        (PAIRS, "7\t0\tx\tz\n7\t0\tx\tz\tmore\n", "t_train.tsv:2: found 5 columns, expected 4"),
        (SCORES, "7\thigh\tx\tz\n", "is \"high\", not a number"),
    ] {
        let message = read(definition, row).unwrap_err().to_string();
        assert!(message.contains(said), "{said}: {message}");
    }
}

#[test]
fn hypotheses_are_candidates_in_lists_of_any_size() {
    let ranked = |candidates: &[&str], right| {
        let candidates = candidates.map_strings();
        Example { text: Text::Candidates { query: "q".into(), candidates }, label: Label::Positive(right) }
    };
    let named =
        "t: {data_format: PremiseAndMultiHypothesis, task_type: Ranking, n_class: 1, labels: [no, yes]}";
    let rows = "0\t4,5\tno,yes\tq\tx\ty\n1\t6,7,8\tyes,no,no\tq\tu\tv\tw\n";
    assert_eq!(read(named, rows).unwrap(), [ranked(&["x", "y"], 1), ranked(&["u", "v", "w"], 0)]);
    assert_eq!(read(RANKS, "0\t4,5\t0,1\tq\tx\ty\n").unwrap(), [ranked(&["x", "y"], 1)]);
    assert_eq!(read(RANKS, "0\t4,5,6\t2\tq\tx\ty\tz\n").unwrap(), [ranked(&["x", "y", "z"], 2)]);
    for (definition, row, said) in [
        (RANKS, "0\t4\t0\tq\tx\n", "t_train.tsv:1: field \"hypotheses\" has 1 texts"),
        (RANKS, "0\t4,5\t2\tq\tx\ty\n", "is \"2\", not the number of a hypothesis, 0 to 1"),
        (RANKS, "0\t4,5\t1,1\tq\tx\ty\n", "names no single best hypothesis"),
        (RANKS, "0\t4,5\t1,0,0\tq\tx\ty\n", "has 3 labels for 2 hypotheses"),
        (RANKS, "0\t4,5,6\t1\tq\tx\ty\n", "has 3 ids for 2 hypotheses"),
        (named, "0\t4,5\tno,maybe\tq\tx\ty\n", "is \"maybe\", none of no, yes"),
        (RANKS, "0\t4,5\t1\tq\tx\t\n", "has no text"),
    ] {
        let message = read(definition, row).unwrap_err().to_string();
        assert!(message.contains(said), "{said}: {message}");
    }
}

#[test]
fn lists_of_words_are_labelled() {
    let names =
        "t: {data_format: Sequence, task_type: SequenceLabeling, labels: [O, B-PER], metric_meta: [SeqEval]}";
    let folder = Folder::new(names, &[("t_train.tsv", "7\t['B-PER', 'O']\t['Ada', \"isn't\"]\n")]);
    let spec = folder.task("t").unwrap();
    let expected = [MetricKind::EntityF1, MetricKind::Precision, MetricKind::Recall];
    assert_eq!((spec.kind, &spec.metrics[..]), (TaskKind::Labelling, &expected[..]));
    let (examples, _) = reader::read(&spec.files[0], &spec).unwrap();
    let words = ["Ada", "isn't"].map_strings();
    assert_eq!(examples[0].text, Text::Words { words, tags: vec![1, 0] });
    // As the reference's own files have it: misspelt, and with labels of what is no word.
    let published = "t: {data_format: Seqence, task_type: SeqenceLabeling, n_class: 6, loss: SeqCeCriterion, \
                     labels: [O, B-PER, I-PER, X, CLS, SEP], metric_meta: [SeqEval]}";
    let spec =
        Folder::new(published, &[("t_train.tsv", "7\t['B-PER', 'X']\t['Ada', 'a']\n")]).task("t").unwrap();
    assert_eq!((spec.kind, &spec.metrics[..], spec.labels.len()), (TaskKind::Labelling, &expected[..], 6));
    let parts = published.replace("B-PER, I-PER", "NN, VB");
    let spec = Folder::new(&parts, &[("t_train.tsv", "7\t['NN', 'O']\t['Ada', 'a']\n")]).task("t").unwrap();
    assert_eq!(spec.metrics, [MetricKind::TokenAccuracy]);
    assert!(spec.notes[0].contains("token-accuracy is measured in place of SeqEval"), "{:?}", spec.notes);
    let ids = r#"{"label": [0, 1, 0], "token_id": [2, 5, 3], "type_id": [0, 0, 0]}"#;
    let message = tokens(names, ids, 16).unwrap_err().to_string();
    assert!(message.contains("of token ids is not read for labelling; give the text"), "{message}");
}

#[test]
fn choices_of_a_cloze_are_ranked() {
    let cloze = "t: {data_format: ClozeChoice, task_type: ClozeChoice, n_class: 1, metric_meta: [EmF1]}";
    let rows = "7\tParis\tParis\t1\tpassage\tin Paris\n7\tRome\tParis\t0\tpassage\tin Rome\n";
    let candidates = ["in Paris", "in Rome"].map_strings();
    let text = Text::Candidates { query: "passage".into(), candidates };
    assert_eq!(read(cloze, rows).unwrap(), [Example { text, label: Label::Positive(0) }]);
    let folder = Folder::new(cloze, &[("t_train.tsv", rows)]);
    let spec = folder.task("t").unwrap();
    assert_eq!((spec.kind, &spec.metrics[..]), (TaskKind::Ranking, &[MetricKind::AccuracyAt1][..]));
    assert!(spec.notes[0].contains("there is no F1 of words"), "{:?}", spec.notes);
}

const MLM: &str = "t: {data_format: MLM, task_type: MaskLM, n_class: 30522, loss: MlmCriterion, metric_meta: [ACC], \
                   dropout_p: 0.1}";

#[test]
fn documents_are_text_of_masked_words() {
    let files = [("bert_lower/t_train.json", ""), ("t_dev.json", ""), ("t_test.json", ""), ("t_dev.tsv", "")];
    let folder = Folder::new(MLM, &files);
    let spec = folder.task("t").unwrap();
    assert_eq!((spec.kind, spec.dropout, spec.files.len()), (TaskKind::Masked, 0.0, 0));
    assert_eq!(spec.metrics, [MetricKind::MaskedAccuracy]);
    let masked = spec.masked.unwrap();
    assert_eq!((masked.layout, masked.whole_words, masked.next_sentence), (Layout::Documents, true, true));
    assert_eq!(masked.text, [folder.path().join("bert_lower/t_train.json")]);
    assert_eq!(masked.dev_text, [folder.path().join("t_dev.json")]);
    assert!(
        spec.notes[0].contains("n_class has no effect") && spec.notes[1].contains("dropout_p has no effect")
    );
    assert!(reference::tasks(&folder.definition(), folder.path()).unwrap()[0].1);
    let entry = |more: &str| -> Result<TaskSpec, DataError> {
        let entry: TaskEntry = toml::from_str(more).unwrap();
        let (data, task_def) = (Some(folder.path().to_path_buf()), Some(folder.definition()));
        TaskEntry { name: "t".to_string(), data, task_def, ..entry }.resolve()
    };
    let said =
        entry("whole_words = false\nnext_sentence = false\nmask_share = 0.25").unwrap().masked.unwrap();
    assert_eq!((said.whole_words, said.next_sentence, said.mask_share), (false, false, 0.25));
    for key in ["text = [\"a\"]", "dev_text = [\"a\"]", "split = true"] {
        let message = entry(key).unwrap_err().to_string();
        assert!(message.contains("is said by its task definition"), "{key}: {message}");
    }
    assert!(entry("dropout = 0.2").unwrap_err().to_string().contains("dropout means nothing to masked"));
    let message = Folder::new(MLM, &[("t_train.tsv", "")]).task("t").unwrap_err().to_string();
    assert!(message.contains("looked for t_train.json, t_dev.json, t_test.json"), "{message}");
}

#[test]
fn what_a_definition_cannot_mean_is_refused_by_name() {
    let with = |more: &str| PAIRS.replace('}', &format!(", {more}}}"));
    for (definition, said) in [
        (with("labelz: [a]"), "unknown key \"labelz\""),
        (with("labelz: [a]"), "did you mean \"labels\"?"),
        (with("labels: [a, b]"), "n_class is 3, but labels names 2: a, b"),
        (with("loss: MseCriterion"), "loss: MseCriterion trains regression, this is classification"),
        (with("loss: JSCriterion"), "loss: JSCriterion is not supported: it compares two predictions"),
        (with("adv_loss: SymKl"), "adv_loss: unknown name \"SymKl\""),
        (with("kd_loss: SymKl"), "did you mean \"SymKlCriterion\"?"),
        (with("metric_meta: [ACC, CMAT]"), "CMAT is not supported"),
        (with("metric_meta: [SeqEval]"), "does not measure classification"),
        (with("metric_meta: [EmF1]"), "metric exact-match does not measure classification"),
        (
            PAIRS.replace("Classification", "SpanClassificationYN"),
            "n_class is 3; a span has a first and a last",
        ),
        (RANKS.replace("Ranking", "SpanClassification"), "does not go with task_type SpanClassification"),
        (PAIRS.replace("Classification", "SequenceLabeling"), "does not go with task_type SequenceLabeling"),
        (with("metric_meta: [acc]"), "did you mean \"ACC\"?"),
        (with("metric_meta: [Pearson]"), "metric pearson does not measure classification"),
        (with("metric_meta: ACC"), "metric_meta: ACC is no list"),
        (with("dropout_p: much"), "dropout_p: much is no number"),
        (with("dropout_p: 1.5"), "dropout is 1.5, which is not in [0, 1)"),
        (with("actf: relu"), "actf: relu is not supported"),
        (with("encoder_type: ROBERTA"), "encoder_type: ROBERTA is not supported: the encoder here is BERT"),
        (RANKS.replace('}', ", enable_san: true}"), "head = \"san\" is for classification of pairs"),
        (with("enable_san: perhaps"), "enable_san: perhaps is neither true nor false"),
        (with("split_names: [train, held_out]"), "split_names: \"held_out\""),
        (PAIRS.replace("n_class: 3", "n_class: 0"), "n_class: 0 is not from 1 to 1000"),
        (PAIRS.replace(", n_class: 3", ""), "neither n_class nor labels"),
        (PAIRS.replace("Classification", "MaskLM"), "does not go with task_type MaskLM"),
        (
            MLM.replace("MlmCriterion", "CeCriterion"),
            "loss: CeCriterion trains classification, this is masked",
        ),
        (MLM.replace("n_class: 30522", "labels: [a, b]"), "labels: a masked task has none"),
        (PAIRS.replace("Classification", "SequenceGeneration"), "an encoder generates no text"),
        (PAIRS.replace("Classification", "1"), "task_type: 1 is no name"),
        (PAIRS.replace("Classification", "Ranking"), "does not go with task_type Ranking"),
        (PAIRS.replace("Classification", "ClozeChoice"), "are both ClozeChoice, or neither"),
        (PAIRS.replace("PremiseAndOneHypothesis", "CLUE_SPAN"), "data_format: CLUE_SPAN is not supported"),
        (PAIRS.replace("PremiseAndOneHypothesis", "Premise"), "did you mean \"PremiseOnly\"?"),
        (PAIRS.replace("data_format: PremiseAndOneHypothesis, ", ""), "it does not say data_format"),
        (RANKS.replace("n_class: 1", "n_class: 2"), "n_class is 2; a ranking task has one output"),
        (SCORES.replace('}', ", labels: [a, b]}"), "labels: a regression task has none"),
        (PAIRS.replace("t:", "mnli_m:"), "task \"mnli_m\": a task's name holds no _"),
        ("t: [1]".to_string(), "task \"t\": it is no mapping"),
        ("- t".to_string(), "no mapping from tasks' names"),
        ("{}".to_string(), "it defines no task"),
        ("t: {".to_string(), "not YAML"),
    ] {
        let message = refusal(&definition);
        assert!(message.contains("task_def.yml: ") && message.contains(said), "{said}: {message}");
    }
}

#[test]
fn token_ids_are_taken_as_they_are() {
    let line = r#"{"uid": "7", "label": 2, "token_id": [2, 5, 3, 6, 3, 0, 0], "type_id": [0, 0, 0, 1, 1, 0, 0], "attention_mask": [1, 1, 1, 1, 1, 0, 0]}"#;
    let Prepared { dataset, skipped, notes } = tokens(PAIRS, &format!("{line}\n\n"), 16).unwrap();
    assert_eq!((&dataset.ids[..], &dataset.second[..]), (&[2, 5, 3, 6, 3][..], &[3][..]));
    assert_eq!((&dataset.labels[..], dataset.truncated), (&[Label::Class(2)][..], 0));
    assert_eq!((skipped.count, notes.len()), (1, 0));
    let single = r#"{"label": 0, "token_id": [2, 5, 6, 3], "type_id": [0, 0, 0, 0]}"#;
    assert_eq!(tokens(PAIRS, single, 16).unwrap().dataset.second, [4]);
    // Too long: cut as text is, the longer text first.
    let long = r#"{"label": 0, "token_id": [2, 5, 6, 7, 3, 6, 3], "type_id": [0, 0, 0, 0, 0, 1, 1]}"#;
    let cut = tokens(PAIRS, long, 5).unwrap().dataset;
    assert_eq!((&cut.ids[..], cut.second[0], cut.truncated), (&[2, 5, 3, 6, 3][..], 3, 1));
    let score = r#"{"label": 5.0, "token_id": [2, 5, 3], "type_id": [0, 0, 0]}"#;
    assert_eq!(tokens(SCORES, score, 16).unwrap().dataset.labels, [Label::Score(5.0)]);
    let ranks = r#"{"label": 1, "ruid": ["4", "5"], "olabel": [0, 1], "token_id": [[2, 5, 3, 6, 3], [2, 5, 3, 7, 3]], "type_id": [[0, 0, 0, 1, 1], [0, 0, 0, 1, 1]], "attention_mask": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]}"#;
    let ranked = tokens(RANKS, ranks, 16).unwrap().dataset;
    assert_eq!((&ranked.groups[..], &ranked.labels[..]), (&[0, 2][..], &[Label::Positive(1)][..]));
    assert_eq!(ranked.sequence(1), [2, 5, 3, 7, 3]);
}

#[test]
fn token_ids_that_cannot_be_meant_are_refused_with_their_line() {
    let good = r#"{"label": 0, "token_id": [2, 5, 3], "type_id": [0, 0, 0], "attention_mask": [1, 1, 1]}"#;
    let ranks = r#"{"label": 0, "token_id": [[2, 5, 3], [2, 6, 3]], "type_id": [[0, 0, 0], [0, 0, 0]], "ruid": [1, 2]}"#;
    for (definition, line, said) in [
        (PAIRS, good.replace("5, 3", "8, 3"), "field \"token_id\" holds 8, and the vocabulary has 8 tokens"),
        (PAIRS, good.replace("[2, 5, 3]", "[5, 5, 3]"), "does not begin with [CLS] (2)"),
        (PAIRS, good.replace("[2, 5, 3]", "[2, 5, 5]"), "end with [SEP] (3)"),
        (PAIRS, good.replace("[2, 5, 3]", "[2, 5, -3]"), "is no list of whole numbers"),
        (PAIRS, good.replace("[0, 0, 0]", "[0, 0]"), "field \"type_id\" has 2 numbers, token_id 3"),
        (PAIRS, good.replace("[0, 0, 0]", "[0, 1, 0]"), "is not zeros, then ones"),
        (PAIRS, good.replace("[1, 1, 1]", "[1, 0, 1]"), "field \"attention_mask\" is not ones, then zeros"),
        (PAIRS, good.replace("[1, 1, 1]", "[1, 1]"), "field \"attention_mask\" has 2 numbers"),
        (
            PAIRS,
            good.replace("\"label\": 0", "\"label\": 3"),
            "field \"label\" is 3, not the number of a class, 0 to 2",
        ),
        (PAIRS, good.replace("\"label\": 0, ", ""), "field \"label\" is missing"),
        (PAIRS, good.replace("\"token_id\"", "\"tokens\""), "field \"token_id\" is missing"),
        (SCORES, good.replace("\"label\": 0", "\"label\": \"x\""), "field \"label\" is \"x\", not a number"),
        (RANKS, ranks.replace("\"label\": 0", "\"label\": 2"), "not the number of a candidate, 0 to 1"),
        (RANKS, ranks.replace(", [2, 6, 3]]", "]"), "field \"type_id\" has 2 candidates, token_id 1"),
        (RANKS, ranks.replace("[1, 2]", "[1]"), "field \"ruid\" has 1 candidates, token_id 2"),
        (RANKS, good.to_string(), "field \"token_id\" is no list of lists"),
        (PAIRS, "[]".to_string(), "not a line of JSON"),
        (PAIRS, String::new(), "no examples"),
    ] {
        let message = tokens(definition, &line, 16).unwrap_err().to_string();
        assert!(message.contains("t_train.json") && message.contains(said), "{said}: {message}");
    }
}

/// A line of one sequence with a soft label, and one of two candidates.
fn soft_lines(soft_label: &str) -> [String; 2] {
    let line =
        |label: &str, one: &str| format!("{{\"label\": {label}, \"softlabel\": {soft_label}, {one}}}\n");
    let two = r#""token_id": [[2, 5, 3], [2, 6, 3]], "type_id": [[0, 0, 0], [0, 0, 0]]"#;
    [line("0", r#""token_id": [2, 5, 3], "type_id": [0, 0, 0]"#), line("0", two)]
}

#[test]
fn a_soft_label_is_a_teachers_answer_beside_the_label() {
    let soft = |definition: &str, lines: &str| {
        let folder = Folder::new(definition, &[("t_train.json", lines)]);
        let soft = folder.task("t").unwrap().soft.unwrap();
        assert_eq!((soft.source, soft.hard_weight, soft.temperature), (SoftSource::TokenLines, 0.5, 1.0));
        tokens(definition, lines, 16).unwrap().dataset.soft
    };
    let [class, _] = soft_lines("[0.25, 0.75, 0.0]");
    let [other, ranked] = soft_lines("[0.125, 0.875]");
    let of_two = PAIRS.replace('3', "2");
    assert_eq!(soft(PAIRS, &class.repeat(2)), [0.25, 0.75, 0.0, 0.25, 0.75, 0.0]);
    assert_eq!(soft(&of_two, &other), [0.125, 0.875]);
    assert_eq!(soft(RANKS, &ranked), [0.125, 0.875]);
    let [number, _] = soft_lines("2.5");
    let [list, _] = soft_lines("[-1.5]");
    assert_eq!(soft(SCORES, &format!("\n{number}{list}")), [2.5, -1.5]);
    // Elsewhere it is not read, which is said; without one a task has none.
    let folder = Folder::new(PAIRS, &[("t_dev.json", &class)]);
    let spec = folder.task("t").unwrap();
    let dev = cache::prepare(&spec.files[0], &spec, &tokenizer(), 16, None).unwrap();
    assert!(spec.soft.is_none() && dev.dataset.soft.is_empty());
    assert!(dev.notes[0].contains("1 lines have a softlabel, which is read of train files alone"));
    let [none, _] = soft_lines("null");
    assert_eq!(tokens(PAIRS, &none, 16).unwrap().dataset.soft, [0.0; 0]);
}

#[test]
fn a_soft_label_that_is_no_answer_is_refused_with_its_line() {
    let [good, _] = soft_lines("[0.25, 0.75, 0.0]");
    let of_two = PAIRS.replace('3', "2");
    let [none, _] = soft_lines("null");
    for (definition, lines, said) in [
        (
            PAIRS,
            good.clone() + &none,
            "t_train.json:2: field \"softlabel\" is missing, and the first line has one",
        ),
        (PAIRS, none + &good, "t_train.json:2: field \"softlabel\" is here, and the first line has none"),
        (
            &of_two,
            good.clone(),
            "t_train.json:1: field \"softlabel\" is no distribution: 3 probabilities for 2 labels",
        ),
        (PAIRS, soft_lines("[0.5, 0.6, 0.0]")[0].clone(), "the probabilities sum to 1.1000, not to 1"),
        (
            PAIRS,
            soft_lines("[2.5, -1.5, 0.0]")[0].clone(),
            "2.5 is not a probability (it holds what a teacher's",
        ),
        (PAIRS, soft_lines("0.5")[0].clone(), "is 0.5, not a list of probabilities"),
        (PAIRS, soft_lines("[0.5, \"x\", 0.5]")[0].clone(), "holds \"x\", not a number"),
        (PAIRS, soft_lines("[NaN, 0.5, 0.5]")[0].clone(), "t_train.json:1: not a line of JSON"),
        (SCORES, soft_lines("1e300")[0].clone(), "holds 1e+300, not a number"),
        (SCORES, soft_lines("[1.0, 2.0]")[0].clone(), "has 2 numbers, where one score is due"),
        (RANKS, soft_lines("[0.2, 0.3, 0.5]")[1].clone(), "3 probabilities for 2 candidates"),
    ] {
        let message = tokens(definition, &lines, 16).unwrap_err().to_string();
        assert!(message.contains("t_train.json") && message.contains(said), "{said}: {message}");
    }
}

#[test]
fn an_entry_says_how_soft_labels_count() {
    let [line, _] = soft_lines("[0.25, 0.75, 0.0]");
    let folder = Folder::new(PAIRS, &[("t_train.json", &line)]);
    let entry = |more: &str| -> Result<TaskSpec, String> {
        let entry: TaskEntry = toml::from_str(more).unwrap();
        let (data, task_def) = (Some(folder.path().to_path_buf()), Some(folder.definition()));
        let entry = TaskEntry { name: "t".to_string(), data, task_def, ..entry };
        entry.resolve().map_err(|error| error.to_string())
    };
    let soft = entry("hard_weight = 0.25\ntemperature = 2.0").unwrap().soft.unwrap();
    assert_eq!((soft.source, soft.hard_weight, soft.temperature), (SoftSource::TokenLines, 0.25, 2.0));
    assert_eq!(entry("").unwrap().soft.unwrap().hard_weight, 0.5);
    for key in ["soft_labels = \"s.jsonl\"", "soft = \"s\"", "votes = [\"s\"]"] {
        let message = entry(key).unwrap_err();
        let name = key.split(' ').next().unwrap();
        assert!(message.contains(&format!("has a softlabel a line; leave {name} out")), "{message}");
    }
    assert!(entry("hard_weight = 1.0").unwrap_err().contains("leave the soft"));
}

#[test]
fn an_entry_may_change_the_metrics_and_dropout_alone() {
    let folder = Folder::new(PAIRS, &[("t_train.tsv", "")]);
    let entry = |more: &str| -> Result<TaskSpec, DataError> {
        let entry: TaskEntry = toml::from_str(more).unwrap();
        let (data, task_def) = (Some(folder.path().to_path_buf()), Some(folder.definition()));
        TaskEntry { name: "t".to_string(), data, task_def, ..entry }.resolve()
    };
    let spec = entry("dropout = 0.4\nmetrics = [\"f1-macro\", \"f1-micro\"]").unwrap();
    assert_eq!((spec.dropout, &spec.metrics[..]), (0.4, &[MetricKind::F1Macro, MetricKind::F1Micro][..]));
    let san = Folder::new(&PAIRS.replace('}', ", enable_san: true}"), &[("t_train.tsv", "")]);
    assert_eq!(san.task("t").unwrap().san, Some(SanSpec::default()));
    let (data, task_def) = (Some(san.path().to_path_buf()), Some(san.definition()));
    let kept = TaskEntry { name: "t".to_string(), data, task_def, ..TaskEntry::default() };
    assert_eq!(kept.resolve().unwrap().san, Some(SanSpec::default()));
    let linear = TaskEntry { head: Some(HeadKind::Linear), ..kept };
    assert_eq!(linear.resolve().unwrap().san, None);
    for (more, key) in [
        ("kind = \"regression\"", "kind"),
        ("labels = [\"a\", \"b\"]", "labels"),
        ("text_a = 1", "text_a"),
        ("train = \"x.tsv\"", "train"),
        ("header = true", "header"),
    ] {
        let message = entry(more).unwrap_err().to_string();
        assert!(message.contains(&format!("{key} is said by its task definition")), "{message}");
    }
    let lost =
        TaskEntry { name: "t".to_string(), task_def: Some(folder.definition()), ..TaskEntry::default() };
    let message = lost.resolve().unwrap_err().to_string();
    assert!(message.contains("task_def needs data, the folder of its files"), "{message}");
}
