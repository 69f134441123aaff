//! SQuAD as MT-DNN's preprocessing leaves it: windows of token ids.

use serde_json::{Value, json};

use super::reference::{Folder, tokenizer};
use crate::data::cache::{self, Prepared};
use crate::data::custom::TaskEntry;
use crate::data::dataset::{Answer, Dataset, Example, Label, Text};
use crate::data::span::SpanOptions;
use crate::data::task::{MetricKind, Split, TaskKind};

const V1: &str = "t: {data_format: PremiseAndOneHypothesis, task_type: SpanClassification, n_class: 2, \
                  metric_meta: [EmF1], loss: SpanCeCriterion}";

fn v2() -> String {
    V1.replace("SpanClassification,", "SpanClassificationYN,").replace("EmF1", "EmF12")
}

/// The file of a split as a set.
fn prepared(definition: &str, split: Split, lines: &[Value], max_length: usize) -> Result<Prepared, String> {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let folder = Folder::new(definition, &[(&format!("tiny_lower/t_{split}.json"), &text)]);
    let spec = folder.task("t").unwrap();
    cache::prepare(&spec.files[0], &spec, &tokenizer(), max_length, None).map_err(|error| error.to_string())
}

/// The question `c` on a text of five words in two windows, of tokens 0 to 2 and 2 to 4.
const CONTEXT: &str = "ä b c a b";

fn windows(labels: [Value; 2]) -> [Value; 2] {
    let [one, two] = labels;
    [
        json!({
            "uid": "q", "token_id": [2, 7, 3, 5, 6, 7, 3, 0], "type_id": [0, 0, 0, 1, 1, 1, 1, 0],
            "mask": [1, 1, 1, 1, 1, 1, 1, 0], "label": one, "context": CONTEXT, "answer": "c a",
            "offset_mapping": [null, null, null, [0, 1], [2, 3], [4, 5], null, null],
        }),
        json!({
            "uid": "q", "token_id": [2, 7, 3, 7, 5, 6, 3], "type_id": [0, 0, 0, 1, 1, 1, 1],
            "attention_mask": [1, 1, 1, 1, 1, 1, 1], "label": two, "context": CONTEXT, "answer": ["c a"],
            "offset_mapping": [null, null, null, [4, 5], [6, 7], [8, 9], null],
        }),
    ]
}

/// The same question read from SQuAD's own format.
fn from_squad(no_answer: bool, answer: Option<&str>, training: bool) -> Dataset {
    let answers = answer
        .map(|text| Answer { start: CONTEXT.find(text).unwrap(), text: text.to_string() })
        .into_iter()
        .collect();
    let text = Text::Question { question: "c".into(), context: CONTEXT.into(), answers };
    let options =
        SpanOptions { stride: 2, max_query_length: 2, no_answer: Some(no_answer), ..SpanOptions::default() };
    cache::spans(&[Example { text, label: Label::Answers }], &tokenizer(), 7, options, training).unwrap()
}

#[test]
fn windows_to_train_on_are_those_of_squads_own_format() {
    // The answer `b c` is in the first window alone.
    let lines = windows([json!([4, 5, false]), json!([0, 0, true])]);
    let Prepared { dataset, notes, .. } = prepared(V1, Split::Train, &lines, 7).unwrap();
    assert_eq!(dataset, from_squad(false, Some("b c"), true));
    assert_eq!((dataset.len(), dataset.dropped, notes.len()), (1, 1, 0));
    let with_none = prepared(&v2(), Split::Train, &lines, 7).unwrap().dataset;
    assert_eq!(with_none, from_squad(true, Some("b c"), true));
    assert_eq!(with_none.labels, [Label::Span { first: 2, last: 3 }, Label::Span { first: 0, last: 0 }]);
    // As numbers, too, and a window that lacks the answer of a question that has one.
    let lines = windows([json!([0, 0, 0]), json!([4, 4, 0])]);
    let second = prepared(V1, Split::Train, &lines, 7).unwrap().dataset;
    assert_eq!((&second.labels[..], second.dropped), (&[Label::Span { first: 1, last: 1 }][..], 1));
}

#[test]
fn windows_to_measure_on_are_one_example_a_question() {
    let [one, two] = windows([json!([0, 0, 1]), json!([0, 0, 1])]);
    let mut other = two.clone();
    other["uid"] = json!(8);
    let lines = [one.clone(), two.clone(), other];
    for (definition, no_answer) in [(V1.to_string(), false), (v2(), true)] {
        let dataset = prepared(&definition, Split::Dev, &lines, 7).unwrap().dataset;
        assert_eq!(dataset.select(&[0]), from_squad(no_answer, Some("c a"), false));
        assert_eq!((&dataset.groups[..], dataset.passages.len()), (&[0, 2, 3][..], 2));
    }
    let none = [one, two].map(|mut line| {
        line["answer"] = json!("");
        line["token_is_max_context"] = json!({"3": true});
        line
    });
    let Prepared { dataset, notes, .. } = prepared(&v2(), Split::Dev, &none, 7).unwrap();
    assert_eq!(dataset, from_squad(true, None, false));
    assert!(notes[0].contains("token_is_max_context is not read"), "{notes:?}");
}

#[test]
fn windows_that_cannot_be_meant_are_refused_with_their_line() {
    let good = || windows([json!([4, 5, false]), json!([0, 0, true])]);
    let check = |split, key: &str, value: Value, max_length, said: &str| {
        let mut lines = good();
        match value {
            Value::Null => drop(lines[1].as_object_mut().unwrap().remove(key)),
            value => lines[1][key] = value,
        }
        let message = prepared(V1, split, &lines, max_length).unwrap_err();
        let place = format!("t_{split}.json:2: field {key:?} {said}");
        assert!(message.contains(&place), "{place}: {message}");
    };
    for (key, value, said) in [
        ("label", json!([4, 5]), "is [4,5], not the positions of the answer's first and last token"),
        ("label", json!(4), "is 4, not the positions"),
        ("label", json!([4, 5, 2]), "is [4,5,2], not the positions"),
        ("label", json!([-1, 5, 0]), "is [-1,5,0], not the positions"),
        ("label", json!([4, 5, true]), "is [4,5,true]: without an answer both positions are"),
        ("label", json!([5, 4, false]), "is [5,4,false], and the text's tokens are 3 to 5"),
        ("label", json!([2, 4, false]), "is [2,4,false], and the text's tokens are 3 to 5"),
        ("label", json!([4, 6, false]), "is [4,6,false], and the text's tokens are 3 to 5"),
        ("label", Value::Null, "is missing"),
        ("token_id", json!([2, 7, 3, 7, 5, 9, 3]), "holds 9, and the vocabulary has 8 tokens"),
        ("token_id", Value::Null, "is missing"),
        ("type_id", json!([0, 0, 0, 0, 0, 0, 0]), "has no ones for a token of the text"),
        ("type_id", json!([0, 0, 0, 0, 0, 0, 1]), "has no ones for a token of the text"),
        ("mask", json!([1, 1, 1]), "has 3 numbers, token_id 7"),
        ("mask", json!([1, 1, 1, 0, 1, 1, 1]), "is not ones, then zeros"),
    ] {
        check(Split::Train, key, value, 7, said);
    }
    for (key, value, said) in [
        ("uid", json!([1]), "is [1], neither a text nor a number"),
        ("uid", Value::Null, "is missing"),
        ("context", json!(" "), "is \" \", not a text"),
        ("context", json!("ä b c a b c"), "is another than in the line before, which is of uid \"q\""),
        ("answer", json!("b"), "is another than in the line before"),
        ("answer", json!([]), "is empty, and every question of SpanClassification has one"),
        ("answer", json!([1]), "is [1], neither a text nor a list of texts"),
        ("answer", Value::Null, "is missing"),
        ("offset_mapping", json!([null]), "has 1 places, token_id 7 tokens"),
        ("offset_mapping", json!("x"), "is no list"),
        (
            "offset_mapping",
            json!([null, null, null, [4, 5], null, [8, 9], null]),
            "is null for token 4, not its first character",
        ),
        (
            "offset_mapping",
            json!([null, null, null, [4, 5], [6, 7], [8, 10], null]),
            "is [8,10] for token 5, not its first character",
        ),
        (
            "offset_mapping",
            json!([null, null, null, [6, 7], [4, 5], [8, 9], null]),
            "is [4,5] for token 4, not its first character",
        ),
        ("offset_mapping", Value::Null, "is missing"),
    ] {
        check(Split::Dev, key, value, 7, said);
    }
    let message = prepared(V1, Split::Train, &good(), 6).unwrap_err();
    assert!(
        message.contains("t_train.json:1: field \"token_id\" has 7 tokens, and sequences have 6"),
        "{message}"
    );
    let [one, two] = good();
    let mut other = one.clone();
    other["uid"] = json!("r");
    let message = prepared(V1, Split::Dev, &[one, other, two], 7).unwrap_err();
    assert!(message.contains("t_dev.json:3: field \"uid\" is \"q\" again"), "{message}");
    let none = windows([json!([0, 0, 1]), json!([0, 0, 1])]);
    let message = prepared(V1, Split::Train, &none, 7).unwrap_err();
    assert!(message.contains("none of 2 windows holds the answer"), "{message}");
}

#[test]
fn a_definition_says_what_a_span_is_and_an_entry_how_it_is_chosen() {
    let folder = Folder::new(&v2(), &[("t_train.json", ""), ("t_dev.tsv", "")]);
    let spec = folder.task("t").unwrap();
    assert_eq!((spec.kind, spec.texts, spec.files.len()), (TaskKind::Span, None, 1));
    assert_eq!(spec.metrics, [MetricKind::SpanF1, MetricKind::ExactMatch]);
    assert_eq!(spec.span, Some(SpanOptions { no_answer: Some(true), ..SpanOptions::default() }));
    let v1 = Folder::new(V1, &[("t_train.json", "")]).task("t").unwrap();
    assert_eq!(v1.span.unwrap().no_answer, Some(false));
    assert_eq!((&v1.metrics, v1.notes.len()), (&spec.metrics, 0));
    let entry = |more: &str| {
        let entry: TaskEntry = toml::from_str(more).unwrap();
        let (data, task_def) = (Some(folder.path().to_path_buf()), Some(folder.definition()));
        TaskEntry { name: "t".to_string(), data, task_def, ..entry }
            .resolve()
            .map_err(|error| error.to_string())
    };
    let span = entry("max_answer_length = 7\nnull_threshold = 0.5").unwrap().span.unwrap();
    assert_eq!((span.max_answer_length, span.null_threshold, span.no_answer), (7, 0.5, Some(true)));
    for key in ["max_query_length = 9", "stride = 9", "no_answer = false"] {
        let message = entry(key).unwrap_err();
        assert!(message.contains("is said by its task definition"), "{key}: {message}");
    }
}
