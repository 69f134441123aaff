//! Labels of words and spans of texts through the binary: files in, a trained model, its figures and its answers out.

#[path = "common/place.rs"]
mod place;

use std::fs;

use place::Place;
use serde_json::{Value, json};

/// A very small model and its recipe; the tasks come behind it.
const HEAD: &str = r#"
output = "run"
seed = 3
[model]
vocabulary = "vocabulary"
[model.config]
vocab_size = 64
hidden_size = 48
num_hidden_layers = 2
num_attention_heads = 4
intermediate_size = 96
max_position_embeddings = 48
initializer_range = 0.1
[train]
epochs = 12
batch_size = 8
learning_rate = 3e-3
optimizer = "adam-w"
max_length = 40
dropout = 0.0
"#;

const LABELLING: &str = r#"
[[task]]
name = "names"
kind = "labelling"
train = "names.conll"
dev = "names.conll"
dropout = 0.0
"#;

const SPAN: &str = r#"
[[task]]
name = "answers"
kind = "span"
train = "answers.json"
dev = "answers.json"
max_query_length = 8
stride = 8
max_answer_length = 3
dropout = 0.0
"#;

const FIRST: [&str; 4] = ["ada", "emma", "tom", "jim"];
const LAST: [&str; 4] = ["smith", "jones", "hill", "wood"];
const CITIES: [&str; 4] = ["paris", "rome", "oslo", "delhi"];
const VERBS: [&str; 3] = ["saw", "left", "liked"];

/// A place whose vocabulary has the words above, some in pieces, and whose files have sentences of them.
fn place() -> Place {
    let place = Place::new();
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    // "smith", "jones" and "delhi" fall in two pieces.
    let words = [
        "ada", "emma", "tom", "jim", "smi", "##th", "jon", "##es", "hill", "wood", "paris", "rome", "oslo",
        "del", "##hi", "saw", "left", "liked", "who", "what", "?", ".", "the", "a", "old", "city", "of",
        "then",
    ];
    let tokens: Vec<&str> = special.iter().chain(&words).copied().collect();
    place.write("vocabulary/vocab.txt", tokens.join("\n") + "\n");
    let mut names = "-DOCSTART- -X- O\n\n".to_string();
    let mut paragraphs = Vec::new();
    for number in 0..48 {
        let (first, last) = (FIRST[number % 4], LAST[number / 4 % 4]);
        let (city, verb) = (CITIES[number * 7 % 4], VERBS[number % 3]);
        names += &format!(
            "{first} NN B-PER\n{last} NN I-PER\n{verb} VB O\nthe DT O\ncity NN O\n{city} NN B-LOC\n\n"
        );
        // Some texts are longer than a sequence, with the answer at their beginning or their end.
        let filler = "then the old city of the old city . ".repeat([0, 2, 5][number % 3]);
        let sentence = format!("{first} {last} {verb} {city} . ");
        let context = if number % 2 == 0 { filler + &sentence } else { sentence + &filler };
        let at = |text: &str| context.find(text).unwrap();
        let answer = |text: &str| json!([{"text": text, "answer_start": at(text)}]);
        let name = format!("{first} {last}");
        paragraphs.push(json!({"context": context, "qas": [
            {"id": format!("{number}-who"), "question": "who ?", "answers": answer(&name)},
            {"id": format!("{number}-what"), "question": "what city ?", "answers": answer(city)},
        ]}));
    }
    place.write("names.conll", names);
    place.write("answers.json", json!({"version": "1.1", "data": [{"paragraphs": paragraphs}]}).to_string());
    place
}

/// The figures of one task in what `eval --json` writes.
fn figures(place: &Place, name: &str) -> Value {
    let text = fs::read_to_string(place.path(name)).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    all["sets"][0].clone()
}

#[test]
fn labels_of_words_are_learnt_measured_and_answered() {
    let place = place();
    place.write("run.toml", format!("{HEAD}{LABELLING}"));
    let trained = place.ok(&["train", "run.toml"]);
    assert!(trained.stderr.contains("names.conll:1: -DOCSTART-"), "{}", trained.stderr);
    place.ok(&["eval", "--model", "run/best", "--data", "run.toml", "--json", "eval.json"]);
    let set = figures(&place, "eval.json");
    assert_eq!(set["examples"], 48);
    for metric in ["entity-f1", "precision", "recall", "token-accuracy"] {
        assert!(set["metrics"][metric].as_f64().unwrap() > 0.99, "{metric}: {set}");
    }
    // Always O: no entity, and half of the words.
    assert_eq!(
        set["baseline"],
        json!({"entity-f1": 0.0, "precision": 0.0, "recall": 0.0, "token-accuracy": 0.5})
    );
    let description: Value =
        serde_json::from_slice(&fs::read(place.path("run/best/mtdnn.json")).unwrap()).unwrap();
    assert_eq!(description["tasks"][0]["labels"], json!(["O", "B-LOC", "B-PER", "I-PER"]));

    place.write("lines.txt", "tom smith saw the city delhi\n");
    let predict = |more: &[&str]| {
        let arguments = [&["predict", "--model", "run/best", "--task", "names", "lines.txt"], more].concat();
        place.ok(&arguments)
    };
    assert_eq!(predict(&[]).stdout, "B-PER I-PER O O O B-LOC\n");
    let answer: Value = serde_json::from_str(&predict(&["--json"]).stdout).unwrap();
    assert_eq!(
        answer["names"],
        json!({"tags": ["B-PER", "I-PER", "O", "O", "O", "B-LOC"],
               "entities": [{"start": 0, "end": 2, "type": "PER"}, {"start": 5, "end": 6, "type": "LOC"}]})
    );
    // What does not fit is cut off, said, and gets no label.
    place.write("lines.txt", "then ".repeat(45) + "\n");
    let cut = predict(&[]);
    assert!(cut.stderr.contains("1 sequences were cut to 40 tokens"), "{}", cut.stderr);
    let tags: Vec<&str> = cut.stdout.split_whitespace().collect();
    assert_eq!((tags.len(), tags[37] != "-", tags[38]), (45, true, "-"), "{tags:?}");
}

#[test]
fn spans_are_learnt_measured_and_answered() {
    let place = place();
    place.write("run.toml", format!("{HEAD}{SPAN}"));
    let trained = place.ok(&["train", "run.toml"]);
    // Windows of long texts in which the answer is not.
    assert!(trained.stderr.contains("do not hold the answer to their question"), "{}", trained.stderr);
    place.ok(&["eval", "--model", "run/best", "--data", "run.toml", "--json", "eval.json"]);
    let set = figures(&place, "eval.json");
    assert_eq!(set["examples"], 96);
    for metric in ["exact-match", "span-f1"] {
        assert!(set["metrics"][metric].as_f64().unwrap() > 0.97, "{metric}: {set}");
        assert_eq!(set["baseline"][metric], 0.0);
    }
    place.write(
        "lines.tsv",
        "who ?\tthe old city . \u{1f600} Tom Hill  saw Delhi .\nwhat city ?\tada wood left rome .\n",
    );
    let predict = |more: &[&str]| {
        let arguments =
            [&["predict", "--model", "run/best", "--task", "answers", "lines.tsv"], more].concat();
        place.ok(&arguments).stdout
    };
    let lines: Vec<String> = predict(&[]).lines().map(str::to_string).collect();
    // The words as they stand in the text, and their place in characters.
    assert!(lines[0].starts_with("Tom Hill\t17\t"), "{lines:?}");
    assert!(lines[1].starts_with("rome\t14\t"), "{lines:?}");
    let answers: Vec<Value> =
        predict(&["--json"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers[0]["answers"]["answer"], "Tom Hill");
    assert_eq!(answers[0]["answers"]["start"], 17);
    assert!(answers[0]["answers"].get("no_answer_score").is_none());

    // The options in mtdnn.json are those that the model answers by: one token at most.
    place::replace(
        &place.path("run/best"),
        "mtdnn.json",
        "\"max_answer_length\": 3",
        "\"max_answer_length\": 1",
    );
    fs::remove_file(place.path("run/best/manifest.json")).ok();
    let short = predict(&[]);
    assert!(!short.starts_with("Tom Hill"), "{short}");
}

#[test]
fn a_question_without_an_answer_gets_none() {
    let place = place();
    let text = fs::read_to_string(place.path("answers.json")).unwrap();
    let mut squad: Value = serde_json::from_str(&text).unwrap();
    for paragraph in squad["data"][0]["paragraphs"].as_array_mut().unwrap() {
        // No text says what is old.
        paragraph["qas"][1] = json!({"id": paragraph["qas"][1]["id"], "question": "what old ?", "answers": [],
            "is_impossible": true, "plausible_answers": [{"text": "x", "answer_start": 0}]});
    }
    place.write("answers.json", squad.to_string());
    place.write("run.toml", format!("{HEAD}{SPAN}"));
    place.ok(&["train", "run.toml"]);
    let eval = || {
        place.ok(&["eval", "--model", "run/best", "--data", "run.toml", "--json", "eval.json"]);
        figures(&place, "eval.json")
    };
    let set = eval();
    assert!(set["metrics"]["span-f1"].as_f64().unwrap() > 0.97, "{set}");
    // Half of the questions have no answer.
    assert_eq!(set["baseline"], json!({"span-f1": 0.5, "exact-match": 0.5}));
    place.write("lines.tsv", "what old ?\tada wood left rome .\nwho ?\tada wood left rome .\n");
    let predict = ["predict", "--model", "run/best", "--task", "answers", "lines.tsv"];
    let lines = place.ok(&predict).stdout;
    assert!(lines.starts_with("\t\t") && lines.contains("\nada wood\t0\t"), "{lines}");

    // With so high a threshold there is always an answer.
    place::replace(
        &place.path("run/best"),
        "mtdnn.json",
        "\"null_threshold\": 0.0",
        "\"null_threshold\": 9e9",
    );
    let set = eval();
    let f1 = set["metrics"]["span-f1"].as_f64().unwrap();
    assert!((0.4..0.51).contains(&f1), "{set}");

    // Said to be answerable, such a file is refused by the first question that is not.
    place.write("said.toml", format!("{HEAD}{SPAN}no_answer = false\n").replace("\"run\"", "\"other\""));
    let refused = place.run(&["train", "said.toml"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("question \"0-what\": is_impossible is true"), "{}", refused.stderr);
}

/// Both kinds beside classification in one run, whose pooler one of the three trains; and a run does not go on over other
/// labels or answers of the same texts.
#[test]
fn all_kinds_in_one_run_that_goes_on_over_the_same_data_alone() {
    let place = place();
    let mood = "[[task]]\nname = \"mood\"\ntrain = \"mood-train.tsv\"\ndev = \"mood-dev.tsv\"\ntext_a = \"text\"\n\
                label = \"mood\"\n";
    let run = format!("{}{LABELLING}{SPAN}{mood}", HEAD.replace("epochs = 12", "epochs = 1"));
    place.write("run.toml", &run);
    place.write("check.toml", run.replace("\"run\"", "\"checked\""));
    place.ok(&["train", "run.toml"]);
    let checked = place.ok(&["train", "--check", "check.toml"]);
    for task in ["names", "answers", "mood"] {
        let found = checked.stdout.lines().any(|line| line.starts_with(task) && line.contains("agree"));
        assert!(found, "{task}: {}", checked.stdout);
    }
    let resume = ["train", "run.toml", "--resume"];
    place.ok(&resume);
    for (file, from, to, task) in [
        ("names.conll", "city NN O", "city NN B-LOC", "names"),
        // Another gold answer, which is only measured against.
        (
            "answers.json",
            "\"answer_start\":0,\"text\":\"ada smith\"",
            "\"answer_start\":0,\"text\":\"ada\"",
            "answers",
        ),
    ] {
        let before = fs::read_to_string(place.path(file)).unwrap();
        assert!(before.contains(from), "{from} is not in {file}");
        place.write(file, before.replacen(from, to, 1));
        let ended = place.run(&resume);
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let words = format!("the examples of task \"{task}\" are not those that the run began with");
        assert!(ended.stderr.contains(&words), "{}", ended.stderr);
        place.write(file, before);
    }
}

#[test]
fn keys_and_files_that_do_not_fit_are_refused() {
    let place = place();
    let refuse = |task: &str, words: &[&str]| {
        place.write("bad.toml", format!("{HEAD}{task}"));
        place.refused(&["train", "bad.toml"], words);
    };
    refuse(&format!("{LABELLING}stride = 3\n"), &["stride is for tasks of kind span, this is labelling"]);
    refuse(&format!("{LABELLING}text_a = 0\n"), &["text_a is not a column of labelling"]);
    refuse(&format!("{LABELLING}header = true\n"), &["header: ", "names.conll has none"]);
    refuse(&format!("{SPAN}tokens = \"x\"\n"), &["tokens is not a column of span"]);
    refuse(&format!("{SPAN}labels = [\"a\", \"b\"]\n"), &["labels are for classification and labelling"]);
    refuse(&SPAN.replace("stride = 8", "stride = 0"), &["stride is 0"]);
    refuse(
        &SPAN.replace("max_query_length = 8", "max_query_length = 37"),
        &["task \"answers\": max_query_length is 37", "40 tokens (--max-length)"],
    );
    refuse(
        &SPAN.replace("train = \"answers.json\"", "train = \"names.conll\""),
        &["names.conll is none of .json"],
    );
    refuse(
        &LABELLING.replace("train = \"names.conll\"", "train = \"answers.json\""),
        &["answers.json is none of .conll, .jsonl"],
    );
    refuse(&format!("{LABELLING}metrics = [\"span-f1\"]\n"), &["metric span-f1 does not measure labelling"]);
    // Labels that are no entities' are measured word by word.
    let tags = |metrics: &str| format!("{LABELLING}tags = 1\n{metrics}");
    refuse(&tags(""), &["label \"DT\" is neither O nor B- or I-", "metrics = [\"token-accuracy\"]"]);
}
