//! Labels of words and spans of texts: files in, examples and marked token ids out.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;

use crate::data::batch::{Batch, Capacity, NO_LABEL};
use crate::data::batching::Batching;
use crate::data::cache::{self, prepare};
use crate::data::custom::TaskEntry;
use crate::data::dataset::{Answer, Dataset, Example, Label, Passage, Text};
use crate::data::error::DataError;
use crate::data::reader::{self, Skipped};
use crate::data::span::SpanOptions;
use crate::data::task::{Column, Columns, Format, Quirks, SourceFile, Split, TaskKind, TaskSpec};
use crate::data::tokenizer::{Normalization, Tokenizer};

/// Of a task in a run file, with `train` holding `contents`: what it is, its examples, and what was skipped.
fn read(entry: &str, name: &str, contents: &str) -> Result<(TaskSpec, Vec<Example>, Skipped), DataError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    fs::write(&path, contents).unwrap();
    let mut entry: TaskEntry = toml::from_str(&format!("name = \"own\"\n{entry}")).unwrap();
    entry.train = Some(path);
    let mut spec = entry.resolve()?;
    reader::learn_labels(&mut spec)?;
    let (examples, skipped) = reader::read(&spec.files[0], &spec)?;
    Ok((spec, examples, skipped))
}

fn error(entry: &str, name: &str, contents: &str) -> String {
    read(entry, name, contents).unwrap_err().to_string()
}

fn words(words: &[&str], tags: &[u32]) -> Example {
    let words = words.iter().map(|word| word.to_string()).collect();
    Example { text: Text::Words { words, tags: tags.to_vec() }, label: Label::Tags }
}

const LABELLING: &str = "kind = \"labelling\"";
const SPAN: &str = "kind = \"span\"";

#[test]
fn conll_is_a_word_a_line() {
    let text = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n \t\nGerman JJ B-NP B-MISC\r\n\n\n-DOCSTART- -X- -X- O\n\
                New\tNNP\tB-NP\tB-LOC\nYork NNP  I-NP I-LOC";
    let (spec, examples, skipped) = read(LABELLING, "train.conll", text).unwrap();
    assert_eq!(spec.labels, ["O", "B-LOC", "B-MISC", "B-ORG", "I-LOC"]);
    let expected =
        [words(&["EU", "rejects"], &[3, 0]), words(&["German"], &[2]), words(&["New", "York"], &[1, 4])];
    assert_eq!(examples, expected);
    assert_eq!(skipped.count, 2);
    assert!(skipped.first.unwrap().contains("train.conll:1: -DOCSTART-"));
    // Other columns by number; a .txt is read alike.
    let entry = format!("{LABELLING}\ntags = 1\nmetrics = [\"token-accuracy\"]");
    let (spec, examples, _) = read(&entry, "train.txt", text).unwrap();
    assert_eq!(spec.labels, ["JJ", "NNP", "VBZ"]);
    assert_eq!(examples[0], words(&["EU", "rejects"], &[1, 2]));
}

#[test]
fn lists_in_json_and_in_fields() {
    let expected = [words(&["New", "York's"], &[1, 2]), words(&["x"], &[0])];
    let json = "{\"tokens\": [\"New\", \"York's\"], \"tags\": [\"B-LOC\", \"I-LOC\"]}\n\n{\"tags\": [\"O\"], \"tokens\": [\"x\"]}";
    let (_, examples, skipped) = read(LABELLING, "train.jsonl", json).unwrap();
    assert_eq!((&examples[..], skipped.count), (&expected[..], 1));
    let keys = format!(
        "{LABELLING}\ntokens = \"words\"\ntags = \"ner\"\nlabels = [\"0\", \"5\", \"6\"]\nmetrics = [\"token-accuracy\"]"
    );
    let json = "{\"words\": [\"New\", \"York's\"], \"ner\": [5, 6]}\n{\"words\": [\"x\"], \"ner\": [0]}";
    assert_eq!(read(&keys, "train.jsonl", json).unwrap().1, expected);
    // The reference's files: an id, the labels and the words as Python prints them, or as JSON.
    let numbers = format!("{LABELLING}\ntokens = 2\ntags = 1");
    let tsv = "0\t['B-LOC', 'I-LOC']\t['New', \"York's\"]\n1\t[\"O\"]\t[\"x\"]\n";
    assert_eq!(read(&numbers, "train.tsv", tsv).unwrap().1, expected);
}

#[test]
fn faults_in_sentences_are_named_with_their_line() {
    let conll = |text: &str| error(LABELLING, "train.conll", text);
    assert!(
        conll("a O\nb B-X\n\nc\n")
            .contains("train.conll:4: found 1 columns, expected 2; each line is a word")
    );
    assert!(
        conll("a\nb\n")
            .contains("train.conll:1: field \"last\" is missing: the line has the word \"a\" alone")
    );
    assert!(conll("a O\nb B-X Y\n").contains("train.conll:2: found 3 columns"));
    assert!(conll("\n\n").contains("0 different labels"));
    assert!(conll("a O\n\nb NN\n").contains("label \"NN\" is neither O nor B- or I- and a type"));
    let named = format!("{LABELLING}\nlabels = [\"O\", \"B-PER\"]");
    let unknown = error(&named, "train.conll", "a O\n\nb O\nc B-PRE\n");
    assert!(
        unknown.contains("train.conll:4: unknown label \"B-PRE\"")
            && unknown.contains("did you mean \"B-PER\"")
    );
    assert!(
        error(&format!("{LABELLING}\ntags = 7"), "train.conll", "a O\n").contains("field \"7\" is missing")
    );
    assert!(error(&format!("{LABELLING}\ntags = \"x\""), "train.conll", "a O\n").contains("has no header"));
    let json = |text: &str| error(LABELLING, "train.jsonl", text);
    let uneven =
        json("{\"tokens\": [\"a\"], \"tags\": [\"O\"]}\n{\"tokens\": [\"a\", \"b\"], \"tags\": [\"O\"]}");
    assert!(uneven.contains("train.jsonl:2: field \"tags\" has 1 labels for 2 words"), "{uneven}");
    assert!(json("{\"tokens\": [\"a\"]}").contains("train.jsonl:1: field \"tags\" is missing"));
    assert!(json("{\"tokens\": [], \"tags\": []}").contains("field \"tokens\" is an empty list"));
    assert!(json("{\"tokens\": \"a b\", \"tags\": []}").contains("field \"tokens\" is \"a b\", not a list"));
    assert!(
        json("{\"tokens\": [null], \"tags\": [\"O\"]}").contains("holds null, neither a text nor a number")
    );
    let numbers = format!("{LABELLING}\ntokens = 1\ntags = 0");
    let tsv = error(&numbers, "train.tsv", "['O']\ta b\n");
    assert!(
        tsv.contains("train.tsv:1: field \"1\" is \"a b\", neither a JSON list nor one of Python's"),
        "{tsv}"
    );
    assert!(error(LABELLING, "train.tsv", "x\ty\n").contains("it does not say which column is tokens"));
}

fn squad(context: &str, qas: serde_json::Value) -> String {
    serde_json::json!({"data": [{"title": "t", "paragraphs": [{"context": context, "qas": qas}]}]})
        .to_string()
}

#[test]
fn squad_counts_characters() {
    let context = "\u{1f600} \u{c9}l\u{e8}ne saw Oslo";
    let qas = serde_json::json!([
        {"id": "q1", "question": "Who?", "answers": [{"text": "\u{c9}l\u{e8}ne", "answer_start": 2},
                                                     {"text": "Oslo", "answer_start": 12}]},
        {"id": 2, "question": "Why?", "answers": [], "is_impossible": true},
    ]);
    let (spec, examples, _) = read(SPAN, "train.json", &squad(context, qas)).unwrap();
    assert_eq!(spec.span.unwrap().no_answer, Some(true), "learnt from the file");
    let answer = |start, text: &str| Answer { start, text: text.to_string() };
    let question = |question: &str, answers| Example {
        text: Text::Question { question: question.to_string(), context: context.to_string(), answers },
        label: Label::Answers,
    };
    // The first character has four bytes, two of the name's have two.
    let first = question("Who?", vec![answer(5, "\u{c9}l\u{e8}ne"), answer(17, "Oslo")]);
    assert_eq!(examples, [first, question("Why?", vec![])]);
    let plain = serde_json::json!([{"id": "q", "question": "Who?", "answers": [{"text": "Oslo", "answer_start": 12}]}]);
    assert_eq!(
        read(SPAN, "train.json", &squad(context, plain)).unwrap().0.span.unwrap().no_answer,
        Some(false)
    );
}

#[test]
fn faults_in_questions_are_named_with_file_and_question() {
    let of = |entry: &str, qas: serde_json::Value| error(entry, "train.json", &squad("Tom saw Oslo", qas));
    let answer = |text: &str, start: i64| {
        of(
            SPAN,
            serde_json::json!([{"id": "q7", "question": "Who?", "answers": [{"text": text, "answer_start": start}]}]),
        )
    };
    for (message, part) in [
        (
            answer("Oslo", 7),
            "question \"q7\": the answer \"Oslo\" does not stand at answer_start 7, where the context has \" Osl\"",
        ),
        (
            answer("Oslo", 99),
            "where the context has \"\"; answer_start counts characters (Unicode code points) from 0",
        ),
        (answer("Oslo", -1), "does not stand at answer_start -1"),
        (answer(" ", 3), "one of its answers has no text"),
        (of(SPAN, serde_json::json!([{"id": "q", "question": " ", "answers": []}])), "has no text"),
        (
            of(SPAN, serde_json::json!([{"id": "q", "question": "Who?"}])),
            "it has no answers; give one, or \"is_impossible\": true",
        ),
        (
            of(
                SPAN,
                serde_json::json!([{"id": "q", "question": "Who?", "is_impossible": true,
                                         "answers": [{"text": "Tom", "answer_start": 0}]}]),
            ),
            "is_impossible is true, and it has answers",
        ),
        (
            of(
                &format!("{SPAN}\nno_answer = false"),
                serde_json::json!([{"id": "q", "question": "Who?", "is_impossible": true}]),
            ),
            "train with no_answer = true, or leave the question out",
        ),
    ] {
        assert!(message.contains("train.json") && message.contains(part), "{part}: {message}");
    }
    let whole = |text: &str| error(SPAN, "train.json", text);
    assert!(
        whole("{\"data\": [\n{}]}").contains(
            "train.json:2: not a file of questions as SQuAD keeps them: missing field `paragraphs`"
        )
    );
    assert!(whole("").contains("train.json:1: not a file of questions"));
    assert!(whole("{\"data\": []}").contains("no examples: it has no question"));
}

/// `[PAD] [UNK] [CLS] [SEP] [MASK]` are 0 to 4, a to h 5 to 12, and ##x 13.
fn tokenizer() -> Tokenizer {
    let words = ["a", "b", "c", "d", "e", "f", "g", "h", "##x"];
    Tokenizer::from_words(words, Normalization::default()).unwrap()
}

#[test]
fn words_are_marked_by_their_first_tokens() {
    let examples = [words(&["ax", "B", "\u{200b}", "c"], &[0, 1, 2, 3]), words(&["d"], &[1])];
    let set = cache::tokenize(&examples, &tokenizer(), 16);
    assert_eq!(set.sequence(0), [2, 5, 13, 6, 1, 7, 3], "a word of nothing but controls is [UNK]");
    assert_eq!(set.marks.offsets, [0, 4, 5]);
    assert_eq!(set.marks.positions, [1, 3, 4, 5, 1]);
    assert_eq!(set.marks.classes, [0, 1, 2, 3, 1]);
    assert_eq!((set.truncated, set.marked_of(0)), (0, 4));
    // Cut to five tokens three of text are left: "c" is gone, and the third word with it.
    let cut = cache::tokenize(&examples, &tokenizer(), 5);
    assert_eq!(cut.sequence(0), [2, 5, 13, 6, 3]);
    assert_eq!(
        (0..5).map(|mark| cut.marks.is_read(mark)).collect::<Vec<_>>(),
        [true, true, false, false, true]
    );
    assert_eq!(cut.marks.classes, [0, 1, 2, 3, 1], "what is cut counts all the same");
    assert_eq!((cut.truncated, cut.marked_of(0)), (1, 2));

    let mut batch = Batch::new(8);
    batch.fill(&cut, &[1, 0]);
    for (row, place) in batch.marked.rows.iter().zip(&batch.marked.places) {
        assert_eq!(batch.places[*row as usize], *place);
    }
    assert_eq!(batch.marked.places, [1, 1 << 16 | 1, 1 << 16 | 3]);
    assert_eq!(batch.marked.classes, [1, 0, 1]);
    assert_eq!((&batch.marked.groups[..], &batch.marked.spans[..]), (&[0, 1, 3][..], &[NO_LABEL; 4][..]));
    assert_eq!(Capacity::of(&cut, &Batching::of(1), 1).predictions, 2);
    assert_eq!(cut.select(&[1, 0]).marks.positions[..2], [1, 1]);
    assert_eq!(cut.select(&[1]).marks.offsets, [0, 1]);
}

fn question(context: &str, answers: &[(usize, &str)]) -> Example {
    let answers = answers.iter().map(|&(start, text)| Answer { start, text: text.to_string() }).collect();
    let text = Text::Question { question: "h h".to_string(), context: context.to_string(), answers };
    Example { text, label: Label::Answers }
}

fn options(stride: usize, no_answer: bool) -> SpanOptions {
    SpanOptions { max_query_length: 2, stride, no_answer: Some(no_answer), ..SpanOptions::default() }
}

#[test]
fn long_texts_are_read_in_windows() {
    let cut = |stride, no_answer, training| {
        let examples = [question("a b c dx e", &[(2, "b"), (6, "dx")])];
        cache::spans(&examples, &tokenizer(), 8, options(stride, no_answer), training).unwrap()
    };
    // Three tokens fit beside the question; the last window ends with the text.
    let set = cut(2, false, false);
    let windows: Vec<&[u32]> = (0..set.sequences()).map(|sequence| set.sequence(sequence)).collect();
    let expected: [&[u32]; 3] =
        [&[2, 12, 12, 3, 5, 6, 7, 3], &[2, 12, 12, 3, 7, 8, 13, 3], &[2, 12, 12, 3, 13, 9, 3]];
    assert_eq!(windows, expected);
    assert_eq!(set.second, [4, 4, 4]);
    assert_eq!((set.len(), set.groups[1], set.labels[0]), (1, 3, Label::Answers));
    assert_eq!(set.marks.positions, [4, 5, 6, 4, 5, 6, 4, 5]);
    // "dx" is two tokens, with the bytes of each.
    assert_eq!(set.marks.places, [[0, 1], [2, 3], [4, 5], [4, 5], [6, 7], [7, 8], [7, 8], [9, 10]]);
    let answers = vec!["b".to_string(), "dx".to_string()];
    assert_eq!(set.passages, [Passage { context: "a b c dx e".to_string(), answers }]);
    assert_eq!(cut(1, false, false).sequences(), 4, "another stride");
    assert_eq!(cut(3, false, false).sequences(), 2);
    assert_eq!(cut(99, false, false), cut(3, false, false), "no token is left out");
    // Where there may be no answer [CLS] is marked before the others.
    let set = cut(2, true, false);
    assert_eq!((&set.marks.positions[..4], set.marks.places[0]), (&[0, 4, 5, 6][..], [0, 0]));

    // Trained on, each window is an example; those without the first gold answer are left out, or say [CLS].
    let set = cut(2, false, true);
    assert_eq!((set.len(), set.dropped, &set.labels[..]), (1, 2, &[Label::Span { first: 1, last: 1 }][..]));
    assert!(set.marks.places.is_empty() && set.passages.is_empty());
    let set = cut(2, true, true);
    let none = Label::Span { first: 0, last: 0 };
    assert_eq!((set.dropped, &set.labels[..]), (0, &[Label::Span { first: 2, last: 2 }, none, none][..]));
    let mut batch = Batch::default();
    batch.fill(&set, &[2, 0]);
    assert_eq!((&batch.marked.groups[..], &batch.marked.spans[..]), (&[0, 3, 7][..], &[0, 0, 2, 2][..]));
}

#[test]
fn answers_begin_and_end_with_tokens() {
    let label = |context: &str, start: usize, text: &str| {
        let set =
            cache::spans(&[question(context, &[(start, text)])], &tokenizer(), 20, options(9, false), true)
                .unwrap();
        set.labels.first().copied()
    };
    let span = |first, last| Some(Label::Span { first, last });
    assert_eq!(label("a b c dx e", 6, "dx e"), span(3, 5));
    assert_eq!(label("a b c dx e", 7, "x"), span(4, 4));
    // A part of a token is the token; blanks around it are nothing; what is no token is no answer.
    assert_eq!(label("a bb c", 3, "b"), span(1, 1));
    assert_eq!(label("a b c", 1, " b "), span(1, 1));
    assert_eq!(label("\u{e9} \u{1f600} b", 8, "b"), span(2, 2));
    assert_eq!(label("a \u{200b} b", 2, "\u{200b}"), None);
    // Questions are cut to two tokens, which is counted, and texts need room beside them.
    let long = Example {
        text: Text::Question { question: "h h h".into(), context: "a".into(), answers: Vec::new() },
        label: Label::None,
    };
    let set = cache::spans(&[long], &tokenizer(), 8, options(9, false), false).unwrap();
    assert_eq!((set.sequence(0), set.truncated), (&[2, 12, 12, 3, 5, 3][..], 1));
    assert!(
        cache::spans(&[], &tokenizer(), 5, options(9, false), true)
            .unwrap_err()
            .contains("max_query_length is 2")
    );
    assert!(cache::spans(&[], &tokenizer(), 6, options(9, false), true).is_ok());
}

/// What is kept is what was made, and every option that it follows from makes it anew.
#[test]
fn marks_and_passages_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let keep = directory.path().join("cache");
    let conll = directory.path().join("dev.conll");
    fs::write(&conll, "a O\nbx B-X\n\nc O\n").unwrap();
    let json = directory.path().join("dev.json");
    let qas =
        serde_json::json!([{"id": "q", "question": "h", "answers": [{"text": "b", "answer_start": 2}]}]);
    fs::write(&json, squad("a b c d e f", qas)).unwrap();
    let source = |split, path: &PathBuf, format, columns| SourceFile {
        split,
        name: format!("{split}"),
        path: path.clone(),
        format,
        columns,
        quirks: Quirks::default(),
    };
    let columns = Columns::Words { tokens: Column::Number(0), tags: Some(Column::Last) };
    let labels = ["O", "B-X"].map(String::from).to_vec();
    let labelling = TaskSpec { labels, ..TaskSpec::new("words", TaskKind::Labelling) };
    let span =
        |stride| TaskSpec { span: Some(options(stride, false)), ..TaskSpec::new("spans", TaskKind::Span) };
    let answers = Columns::Questions { answers: true };
    let cases = [
        (labelling.clone(), source(Split::Dev, &conll, Format::Conll, columns.clone())),
        (span(2), source(Split::Dev, &json, Format::Squad, answers.clone())),
        (span(1), source(Split::Dev, &json, Format::Squad, answers.clone())),
        (span(2), source(Split::Train, &json, Format::Squad, answers)),
    ];
    for (number, (spec, file)) in cases.iter().enumerate() {
        let make = |cache| prepare(file, spec, &tokenizer(), 7, cache).unwrap();
        let fresh = make(None);
        assert!(!fresh.dataset.marks.is_empty());
        assert_eq!(make(Some(&keep)), fresh);
        assert_eq!(fs::read_dir(&keep).unwrap().count(), number + 1);
        assert_eq!(make(Some(&keep)), fresh, "read again");
        assert_eq!(fs::read_dir(&keep).unwrap().count(), number + 1);
    }
    // A kept set whose checksum is right and whose marks are not is never used.
    let (spec, file) = &cases[0];
    let kept = fs::read_dir(&keep).unwrap().map(|entry| entry.unwrap().path());
    let kept = kept.into_iter().find(|path| path.to_string_lossy().contains("words-")).unwrap();
    let mut bytes = fs::read(&kept).unwrap();
    let first_class = bytes.windows(8).rposition(|window| window == [0, 0, 0, 0, 1, 0, 0, 0]).unwrap();
    bytes[first_class] = 9;
    let body = bytes.len() - 32;
    let checksum = <sha2::Sha256 as sha2::Digest>::digest(&bytes[..body]);
    bytes[body..].copy_from_slice(&checksum);
    fs::write(&kept, bytes).unwrap();
    let again = prepare(file, spec, &tokenizer(), 7, Some(&keep)).unwrap();
    assert!(again.notes[0].contains("is damaged"), "{:?}", again.notes);
}

#[test]
fn a_train_file_without_any_answer_in_reach_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("train.json");
    let qas = serde_json::json!([{"id": "q", "question": "h", "answers": [{"text": "\u{200b}", "answer_start": 2}]}]);
    fs::write(&path, squad("a \u{200b} b", qas)).unwrap();
    let columns = Columns::Questions { answers: true };
    let (split, name, format) = (Split::Train, "train".to_string(), Format::Squad);
    let file = SourceFile { split, name, path, format, columns, quirks: Quirks::default() };
    let spec = TaskSpec { span: Some(options(2, false)), ..TaskSpec::new("spans", TaskKind::Span) };
    let error = prepare(&file, &spec, &tokenizer(), 9, None).unwrap_err().to_string();
    assert!(error.contains("no examples: none of 1 windows holds the answer"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_sentences_or_questions_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let column = |number| Column::Number(number);
        let named = |name: &str| Column::Name(name.to_string());
        for (kind, format, columns) in [
            (TaskKind::Labelling, Format::Conll, Columns::Words { tokens: column(0), tags: Some(Column::Last) }),
            (TaskKind::Labelling, Format::Tsv { header: false }, Columns::Words { tokens: column(1), tags: Some(column(0)) }),
            (TaskKind::Labelling, Format::Jsonl, Columns::Words { tokens: named("t"), tags: None }),
            (TaskKind::Span, Format::Squad, Columns::Questions { answers: true }),
        ] {
            let (split, name, path) = (Split::Dev, "dev".to_string(), PathBuf::from("any"));
            let split = if columns.labelled() { split } else { Split::Test };
            let file = SourceFile { split, name, path, format, columns, quirks: Quirks::default() };
            if let Err(error) = reader::parse(&bytes[..], &file, &TaskSpec::new("any", kind)) {
                prop_assert!(error.to_string().starts_with("any:"), "{error}");
            }
        }
    }

    /// Whatever the text: places lie within it, do not split a character, and windows hold every token once or more.
    #[test]
    fn any_text_is_cut_in_windows(context in "\\PC{1,60}", stride in 1_usize..9, length in 6_usize..20) {
        let example = question(&context, &[]);
        let set: Dataset = cache::spans(&[example], &tokenizer(), length, options(stride, true), false).unwrap();
        let all = tokenizer().tokens_and_places(&context).1;
        for place in &all {
            prop_assert!(context.get(place[0] as usize..place[1] as usize).is_some(), "{place:?}");
        }
        let mut seen: Vec<[u32; 2]> = set.marks.places.iter().copied().filter(|place| place[1] > 0).collect();
        let mut wanted = all;
        for places in [&mut seen, &mut wanted] {
            places.sort_unstable();
            places.dedup();
        }
        prop_assert_eq!(seen, wanted);
    }
}
