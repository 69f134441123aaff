//! The binary's `pretrain` in a directory of its own: what it leaves, what it survives, and what it refuses.

#[path = "common/place.rs"]
mod place;

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use place::*;
use safetensors::SafeTensors;
use serde_json::Value;

/// A run file for a very small model, over two phases.
const PRETRAIN: &str = r#"
seed = 7
[pretrain]
output = "run"
text = ["text"]
dev_text = ["dev.txt"]
accumulation = 2
learning_rate = 1e-2
eval_every = 4
checkpoint_every = 3
[[pretrain.phases]]
max_length = 16
batch_size = 8
steps = 6
[[pretrain.phases]]
max_length = 32
batch_size = 4
steps = 4
[pretrain.model]
vocabulary = "vocabulary"
[pretrain.model.config]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 64
max_position_embeddings = 32
"#;

const ONE_SENTENCE: &str = "the film was good\n";

/// Documents of some sentences of the place's words.
fn text(documents: usize) -> String {
    let sentence = |number: usize| {
        let [a, b, c] = [3, 5, 7].map(|step| WORDS[number * step % 11]);
        format!("{a} {b}s {c} the {a}\n")
    };
    (0..documents).map(|d| (0..3 + d % 4).map(|s| sentence(5 * d + s)).collect::<String>() + "\n").collect()
}

/// A place with text in two files of a folder, text to measure on, and the run file.
fn with_text() -> Place {
    let place = Place::new();
    fs::create_dir(place.path("text")).unwrap();
    place.write("text/a.txt", text(30));
    place.write("text/b.txt", text(13));
    place.write("dev.txt", text(9));
    place.write("pretrain.toml", PRETRAIN);
    place
}

/// What a run has logged, without how long it took.
fn log(place: &Place) -> Vec<Value> {
    let mut lines = json_lines(place.path("run/metrics.jsonl"));
    for line in &mut lines {
        assert!(line.as_object_mut().unwrap().remove("seconds").unwrap().is_f64());
    }
    lines
}

#[test]
fn a_run_leaves_a_model_that_stage_two_takes() {
    let place = with_text();
    let ended = place.ok(&["pretrain", "pretrain.toml"]);
    for word in ["masked words", "perplexity", "next sentence", "10 updates"] {
        assert!(ended.stdout.contains(word), "{word:?} is not in: {}", ended.stdout);
    }
    assert!(ended.stderr.contains("mtdnn-raw train --init run/last"), "{}", ended.stderr);
    for file in ["config.toml", "plan.txt", "corpus/train.corpus", "corpus/dev.corpus", "last/vocab.txt"] {
        assert!(place.path("run").join(file).is_file(), "no {file}");
    }
    let lines = log(&place);
    let of = |event: &str| lines.iter().filter(|line| line["event"] == event).count();
    // Two batches an update; measured before the first, after 4, 6, where a phase ends and another begins, 8 and 10.
    assert_eq!((of("step"), of("evaluation")), (20, 6));

    // As transformers has a BertForPreTraining.
    let config: Value =
        serde_json::from_slice(&fs::read(place.path("run/last/config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"], serde_json::json!(["BertForPreTraining"]));
    assert_eq!(config["vocab_size"], 17);
    let bytes = fs::read(place.path("run/last/model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let heads: Vec<_> = tensors.names().into_iter().filter(|name| !name.starts_with("bert.")).collect();
    let predictions =
        ["bias", "transform.LayerNorm.bias", "transform.LayerNorm.weight", "transform.dense.bias"];
    let mut expected: Vec<_> = predictions.iter().map(|name| format!("cls.predictions.{name}")).collect();
    expected.push("cls.predictions.transform.dense.weight".into());
    expected.extend(["bias", "weight"].map(|name| format!("cls.seq_relationship.{name}")));
    let mut heads: Vec<_> = heads.into_iter().map(String::from).collect();
    heads.sort();
    assert_eq!(heads, expected);
    for (name, shape) in [
        ("bert.embeddings.word_embeddings.weight", &[17, 32][..]),
        ("bert.encoder.layer.0.attention.self.query.weight", &[32, 32]),
        ("bert.pooler.dense.bias", &[32]),
        ("cls.predictions.bias", &[17]),
        ("cls.seq_relationship.weight", &[2, 32]),
    ] {
        assert_eq!(tensors.tensor(name).unwrap().shape(), shape, "{name}");
    }

    let trained = ["train", "run.toml", "--init", "run/last", "--output", "tasks", "--max-steps", "2"];
    let ended = place.ok(&trained);
    assert!(ended.stderr.contains("from") && ended.stderr.contains("cls.predictions"), "{}", ended.stderr);
    place.write("in.txt", "the film was good\n");
    place.ok(&["encode", "--model", "run/last", "in.txt", "--output", "out.safetensors"]);
    assert!(SafeTensors::deserialize(&fs::read(place.path("out.safetensors")).unwrap()).is_ok());

    let again = place.run(&["pretrain", "pretrain.toml"]);
    assert_eq!(again.code, Some(1));
    assert!(
        again.stderr.contains("already holds a run") && again.stderr.contains("--resume"),
        "{}",
        again.stderr
    );
    let before = fs::read(place.path("run/metrics.jsonl")).unwrap();
    let other = place.run(&["pretrain", "--resume", "--output", "run", "--precision", "bf16"]);
    assert_eq!(other.code, Some(2));
    assert!(other.stderr.contains("what is there was computed in f32"), "{}", other.stderr);
    let ended = place.ok(&["pretrain", "--resume", "--output", "run"]);
    assert!(ended.stdout.contains("masked words"), "{}", ended.stdout);
    assert_eq!(fs::read(place.path("run/metrics.jsonl")).unwrap(), before);
}

// Stopping and dying.

const LONG: [&str; 6] =
    ["pretrain", "pretrain.toml", "--phases", "16:8:300,32:4:300", "--checkpoint-every", "10"];

/// Starts a run of many steps, and waits for a checkpoint.
fn long_run(place: &Place, resume: bool) -> Child {
    let state = place.path("run/state/progress.json");
    let before = fs::read(&state).ok();
    let arguments = if resume { &["pretrain", "--resume", "--output", "run"][..] } else { &LONG };
    let child = place.command(arguments).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    // One is absent for an instant while another takes its place.
    while fs::read(&state).is_err() || fs::read(&state).ok() == before {
        assert!(begun.elapsed() < Duration::from_secs(60), "no checkpoint came");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

#[test]
fn a_run_killed_and_stopped_goes_on_to_the_same_bytes() {
    let undisturbed = with_text();
    undisturbed.ok(&LONG);
    let place = with_text();
    for number in 0..2u64 {
        let mut child = long_run(&place, number > 0);
        std::thread::sleep(Duration::from_millis(7 * number));
        child.kill().unwrap();
        assert!(
            !child.wait().unwrap().success(),
            "it had ended before it was killed: the test shows nothing"
        );
    }
    #[cfg(unix)]
    {
        let mut child = long_run(&place, true);
        let pid = child.id().to_string();
        std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(75));
    }
    place.ok(&["pretrain", "--resume", "--output", "run"]);
    for file in ["last/model.safetensors", "state/state.safetensors"] {
        let [found, expected] = [&place, &undisturbed].map(|p| fs::read(p.path("run").join(file)).unwrap());
        assert!(found == expected, "{file} differs");
    }
    assert_eq!(log(&place), log(&undisturbed));
}

/// Where no file can be longer than so many kilobytes: the log can, the corpus or a model cannot.
#[cfg(unix)]
#[test]
fn a_disk_that_fills_is_said() {
    let place = with_text();
    place.write("text/b.txt", text(700));
    let ended = place.with_file_limit(16, &["pretrain", "pretrain.toml"]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("cannot write the corpus"), "{}", ended.stderr);
    assert!(ended.stderr.contains("Make room, or name another place"), "{}", ended.stderr);
    let left: Vec<_> = fs::read_dir(place.path("run/corpus")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");

    place.write("text/b.txt", text(13));
    let ended = place.with_file_limit(16, &["pretrain", "pretrain.toml"]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("NOT SAVED") && ended.stderr.contains("state"), "{}", ended.stderr);
    let steps = log(&place);
    assert_eq!(steps.iter().filter(|line| line["event"] == "step").count(), 20, "training did not go on");
    for name in ["state", "last", ".state.new", ".last.new"] {
        assert!(!place.path("run").join(name).exists(), "{name} is half written");
    }
    place.ok(&["pretrain", "pretrain.toml", "--resume"]);
}

// What is wrong.

/// Runs what must fail with these words on standard error, without a panic and without a model.
#[track_caller]
fn fails(place: &Place, arguments: &[&str], code: i32, words: &[&str]) {
    let ended = place.run(arguments);
    assert_eq!(ended.code, Some(code), "{arguments:?}: {}", ended.stderr);
    assert!(
        !ended.stderr.contains("panicked") && ended.stdout.is_empty(),
        "{}{}",
        ended.stderr,
        ended.stdout
    );
    for word in words {
        assert!(ended.stderr.contains(word), "{word:?} is not in: {}", ended.stderr);
    }
    for name in ["run/last", "run/state", "run/metrics.jsonl"] {
        assert!(!place.path(name).exists(), "{arguments:?} has left {name}");
    }
}

#[test]
fn wrong_settings_are_refused_before_anything_is_written() {
    let place = with_text();
    for (arguments, words) in [
        (&["--phases", "12x:3"][..], &["12x:3", "LENGTH:BATCH:STEPS", "128:32:10000"][..]),
        (&["--phases", "4:8:10"], &["pretrain.phases", "4 tokens"]),
        (&["--phases", "16:8:0"], &["pretrain.phases", "0 steps"]),
        (&["--mask-share", "1"], &["mask_share", "0.15"]),
        (&["--learning-rate", "nan"], &["learning_rate"]),
        (&["--accumulation", "0"], &["accumulation"]),
        (&["--sizes", "huge"], &["tiny, mini, small"]),
        (&["--optimizer", "adam"], &["adam-bert", "lamb"]),
    ] {
        place.refused(&[&["pretrain", "pretrain.toml"], arguments].concat(), words);
        assert_eq!(place.run(&[&["pretrain", "pretrain.toml"], arguments].concat()).code, Some(2));
    }
    place.refused(&["pretrain"], &["text", "--text"]);
    place.refused(&["pretrain", "run.toml"], &["run.toml: no [pretrain]"]);
    place.refused(&["pretrain", "--resume"], &["--output"]);
    place.refused(&["pretrain", "--resume", "--output", "run"], &["run holds no run", "without --resume"]);
    place.refused(&["pretrain", "--text", "text"], &["--init"]);
    place.refused(&["pretrain", "pretrain.toml", "--init", "absent"], &["absent", "no such model directory"]);
    for other in [["--vocabulary", "vocabulary"], ["--sizes", "tiny"]] {
        let both = [&["pretrain", "--text", "text", "--init", "encoder"], &other[..]].concat();
        place.refused(&both, &["--init", other[0], "cannot be used with"]);
    }
    place.refused(&["pretrain", "pretrain.toml", "--phases", "33:8:10"], &["33", "32"]);
    place.write("vocabulary/vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\nfilm\n");
    place.refused(&["pretrain", "pretrain.toml"], &["vocabulary", "no [MASK]", "mtdnn-raw vocab"]);
}

#[test]
fn text_that_cannot_be_learnt_from() {
    type Fault = (&'static [u8], &'static [&'static str]);
    let faults: [Fault; 5] = [
        (b"the film was good\n\nthe s\xffng\n", &["a.txt:3", "UTF-8"]),
        (ONE_SENTENCE.as_bytes(), &["a single sentence", "--split"]),
        (b"\n\n  \n", &["no sentence", "one sentence a line"]),
        (b"", &["no sentence"]),
        (b"\x00\x00\n", &["no sentence"]),
    ];
    for (text, words) in faults {
        let place = with_text();
        fs::remove_file(place.path("text/b.txt")).unwrap();
        place.write("text/a.txt", text);
        fails(&place, &["pretrain", "pretrain.toml"], 1, words);
        // Put right, it is read anew.
        place.write("text/a.txt", self::text(30));
        place.ok(&["pretrain", "pretrain.toml", "--phases", "16:8:1"]);
    }
    let place = with_text();
    fails(&place, &["pretrain", "pretrain.toml", "--text", "absent.txt"], 1, &["absent.txt"]);
    fails(&place, &["pretrain", "pretrain.toml", "--dev-text", "absent.txt"], 1, &["absent.txt"]);
}

#[test]
fn text_that_only_looks_wrong_is_read_and_what_is_left_out_is_counted() {
    let place = with_text();
    let text = format!("\u{feff}the fi\0lm was good\r\na song\r\n\r\n{}\u{7}\n", text(30));
    place.write("text/a.txt", text);
    let one = ["pretrain", "pretrain.toml", "--phases", "16:8:1"];
    let ended = place.ok(&one);
    assert!(ended.stderr.contains("train text: 1 NUL characters were left out"), "{}", ended.stderr);
    assert!(ended.stderr.contains("train text: 1 lines were left out"), "{}", ended.stderr);

    let place = with_text();
    place.write("text/a.txt", self::text(30).replace("\n\n", "\n"));
    fs::remove_file(place.path("text/b.txt")).unwrap();
    let ended = place.ok(&one);
    assert!(ended.stderr.contains("it is one document"), "{}", ended.stderr);
    let ended =
        place.ok(&[&one[..], &["--dev-text", "text", "--output", "strange", "--text", "run.toml"]].concat());
    assert!(ended.stderr.contains("% of the tokens are [UNK]"), "{}", ended.stderr);
}

// Filling in.

/// A model with pre-training heads, as `transformers` saves it.
fn reference() -> String {
    format!("{}/tests/fixtures/tiny-pretraining", env!("CARGO_MANIFEST_DIR"))
}

/// The numbers are those that `tests/fixtures/load_pretraining.py` prints for this model and sentence.
#[test]
fn masked_words_are_those_of_transformers() {
    let place = Place::new();
    let model = reference();
    let text = "The [MASK] sat on the [MASK].";
    let ended = place.ok(&["fill", "--model", &model, "--precision", "f32", text]);
    let expected = "sat 0.5448\tyou 0.0857\tsome 0.0836\twhy 0.0521\tis 0.0473\n\
                    ##ing 0.2820\tis 0.2571\trun 0.0675\tsat 0.0582\tit 0.0538\n";
    assert_eq!(ended.stdout, expected);
    let ended = place.ok(&["fill", "--model", &model, "--precision", "f32", "--top", "2", "--json", text]);
    let answer: Value = serde_json::from_str(&ended.stdout).unwrap();
    let first = &answer["masks"][0];
    assert_eq!((answer["text"].as_str(), answer["masks"].as_array().unwrap().len()), (Some(text), 2));
    assert_eq!((first.as_array().unwrap().len(), first[0]["word"].as_str()), (2, Some("sat")));
    assert!((first[0]["probability"].as_f64().unwrap() - 0.544784).abs() < 1e-6, "{first}");
}

#[test]
fn what_cannot_be_filled_in_is_said() {
    let place = with_text();
    let model = reference();
    let long = format!("{} [MASK]", "cat ".repeat(40));
    for (text, words) in [("a cat", "there is no [MASK]"), (&long, "43 tokens, and the model reads 32")] {
        place.refused(&["fill", "--model", &model, text], &[words]);
    }
    place.refused(&["fill", "--model", &model, "--top", "0", "[MASK]"], &["--top 0"]);
    place.ok(&["pretrain", "pretrain.toml", "--output", "words", "--phases", "16:8:1"]);
    place.refused(
        &["fill", "--model", "words", "[MASK]"],
        &["directory of a run", "did you mean words/last?"],
    );
    place.ok(&["train", "run.toml", "--init", "words/last", "--output", "tasks", "--max-steps", "1"]);
    place.refused(
        &["fill", "--model", "tasks/last", "[MASK]"],
        &["no head for masked words", "cls.predictions", "mtdnn-raw pretrain --init tasks/last"],
    );
}
