//! The binary in a directory of its own: what it refuses, in which words, and what only looks wrong.

#[path = "common/place.rs"]
mod place;

use std::fs;
use std::path::Path;
use std::process::Command;

use place::*;
use serde_json::Value;

// The command line and the run file.

#[test]
fn unknown_flags_and_commands_get_the_nearest_name() {
    let place = Place::new();
    place.refused(&["train", "--lerning-rate", "1"], &["--learning-rate"]);
    place.refused(&["trian"], &["train"]);
    for arguments in [&["train", "--no-such-flag"][..], &["predict"], &["train", "--epochs", "many"]] {
        assert_eq!(place.run(arguments).code, Some(2), "{arguments:?}");
    }
}

/// A name that a flag gives is wrong usage wherever it is wrong; what it names but is not there is a failure.
#[test]
fn wrong_task_names_are_wrong_usage() {
    let place = with_model();
    place.write("in.txt", "the film\n");
    place.write("one.toml", RUN.split("[[task]]\nname = \"likeness\"").next().unwrap());
    fs::create_dir_all(place.path("glue/RTE")).unwrap();
    let eval = |data, tasks| ["eval", "--model", "model", "--data", data, "--tasks", tasks];
    let predict = |task| ["predict", "--model", "model", "--task", task, "in.txt"];
    for (arguments, word) in [
        (
            &["train", "run.toml", "--tasks", "moood"][..],
            "--tasks moood: not a task of the run file; did you mean \"mood\"",
        ),
        (&["train", "run.toml", "--tasks", "xyz"], "the names are mood, likeness, answer"),
        (&["train", "run.toml", "--tasks", "mood,mood"], "--tasks mood: named twice"),
        (
            &["train", "--data", "glue", "--tasks", "rtee"],
            "--tasks rtee: not a known task (your own go into a run file); did you mean \"rte\"",
        ),
        (&["train", "--data", "glue", "--tasks", "rte,RTE"], "--tasks RTE: named twice"),
        (&eval("run.toml", "moood"), "--tasks moood: not a task of the model; did you mean \"mood\""),
        (&eval("one.toml", "likeness"), "--tasks likeness: not a task of the run file"),
        (&eval("glue", "mood"), "--tasks mood: not a known task"),
        (&predict("moood"), "--task moood: not a task of the model; did you mean \"mood\""),
        (&predict("xyz"), "the names are mood, likeness, answer"),
        (&predict("mood,mood"), "--task mood: named twice"),
        (&predict("mood,answer"), "one after another"),
    ] {
        let ended = place.run(arguments);
        assert_eq!(ended.code, Some(2), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(word), "{arguments:?}: {word:?} is not in: {}", ended.stderr);
    }
    let ended = place.run(&["train", "--data", "glue", "--tasks", "rte"]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("looked for train.tsv"), "{}", ended.stderr);
}

#[test]
fn devices_and_precisions_that_are_not_there() {
    let place = Place::new();
    // No machine has so many.
    place.refused(
        &["train", "run.toml", "--device", "cuda:99"],
        &["--device cuda:99", "--device cpu", "doctor"],
    );
    place.refused(&["train", "run.toml", "--device", "cuda:x"], &["\"x\" is not the number of a GPU"]);
    place.refused(&["train", "run.toml", "--device", "cuda1"], &["auto, cpu or cuda"]);
    place.refused(&["train", "run.toml", "--device", "gpu"], &["auto, cpu or cuda"]);
    place.refused(&["train", "run.toml", "--precision", "f16"], &["auto, f32 or bf16"]);
}

/// `MTDNN_KERNELS` chooses among kernels of a GPU: what it does not know it refuses, and where it does nothing it says so.
#[test]
fn kernels_that_there_are_none_of() {
    let place = Place::new();
    let run = |kernels: &str, rest: &[&str]| {
        let mut command =
            place.command(&[&["train", "run.toml", "--max-steps", "1", "--eval", "never"], rest].concat());
        Ended::from(command.env("MTDNN_KERNELS", kernels).output().unwrap())
    };
    for kernels in ["ampere", "Hopper", ""] {
        let ended = run(kernels, &["--device", "cpu"]);
        assert_eq!(ended.code, Some(2), "{kernels:?}: {}", ended.stderr);
        let words = format!("MTDNN_KERNELS={kernels}: no such kernels; take portable or hopper");
        assert!(ended.stderr.contains(&words), "{}", ended.stderr);
        assert!(!place.path("run").exists(), "a refusal has left a run directory");
    }
    let ended = run("hopper", &["--device", "cuda:99"]);
    assert!(ended.code == Some(1) && ended.stderr.contains("--device cuda:99"), "{}", ended.stderr);
    let warned = |kernels: &str, output: &str| {
        let ended = run(kernels, &["--device", "cpu", "--output", output]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.stderr.contains(
            "warning: MTDNN_KERNELS=hopper chooses among kernels of a GPU and does nothing on the CPU",
        )
    };
    assert!(warned("hopper", "warned"));
    assert!(!warned("portable", "silent"));
}

#[test]
fn more_threads_than_any_machine_has_are_a_slip() {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("mtdnn-raw"));
    let ended = Ended::from(command.args(["doctor", "--threads", "9999999"]).output().unwrap());
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("--threads 9999999: 1024 are the most"), "{}", ended.stderr);
}

#[test]
fn values_that_cannot_be_trained_with() {
    let place = Place::new();
    for (flag, value, word) in [
        ("--learning-rate", "nan", "learning_rate"),
        ("--learning-rate", "-1", "learning_rate"),
        ("--epochs", "0", "epochs"),
        ("--batch-size", "0", "batch_size"),
        ("--warmup", "1.5", "warmup"),
        ("--dropout", "1", "dropout"),
        ("--max-length", "3", "max_length"),
        ("--max-length", "70000", "max_length"),
        ("--optimizer", "adam", "adam-w"),
        ("--eval", "sometimes", "epoch, never"),
    ] {
        place.refused(&["train", "run.toml", flag, value], &[word]);
    }
}

#[test]
fn a_run_file_that_is_wrong() {
    let place = Place::new();
    place.refused(&["train", "absent.toml"], &["absent.toml"]);
    for (from, to, words) in [
        ("batch_size = 8", "batch_sise = 8", &["run.toml:15", "batch_sise", "batch_size"][..]),
        ("batch_size = 8", "batch_size = \"8\"", &["run.toml:15", "batch_size", "invalid type"]),
        ("[train]", "[train", &["run.toml:1"]),
        ("label = \"mood\"", "lable = \"mood\"", &["run.toml:23", "label"]),
        ("name = \"likeness\"", "name = \"mood\"", &["\"mood\" is named twice"]),
        ("hidden_size = 32", "hidden_size = 33", &["hidden_size", "num_attention_heads"]),
        ("vocab_size = 64", "vocab_size = 16", &["vocab_size", "17 tokens"]),
        ("vocabulary = \"vocabulary\"", "", &["model.vocabulary"]),
        ("vocabulary = \"vocabulary\"", "vocabulary = \"absent\"", &["absent"]),
        ("text_a = \"text\"", "text_a = \"txet\"", &["mood-train.tsv", "txet", "text"]),
        ("dev = \"mood-dev.tsv\"", "dev = \"absent.tsv\"", &["absent.tsv"]),
    ] {
        place.run_file(from, to);
        place.refused(&["train", "run.toml"], words);
    }
}

#[test]
fn a_run_file_without_tasks_is_not_the_sample_run() {
    let place = Place::new();
    place.write("empty.toml", "output = \"run\"\n[train]\nmax_steps = 1\n");
    let arguments = ["train", "empty.toml"];
    place.refused(&arguments, &["empty.toml: no [[task]]", "--data", "without a run file"]);
    assert_eq!(place.run(&arguments).code, Some(2));
    place.refused(&["train", "empty.toml", "--tasks", "mood"], &["empty.toml: no [[task]]"]);
    // With --data it holds the settings alone.
    fs::create_dir(place.path("glue")).unwrap();
    place.refused(&["train", "empty.toml", "--data", "glue"], &["no training file of a known task"]);
}

// Text.

#[test]
fn text_that_is_wrong_is_named_by_file_and_line() {
    for (text, words) in [
        (&b"text\tmood\na film\tup\na song\n"[..], &["mood-train.tsv:3", "columns"][..]),
        (b"text\tmood\na film\tup\na song\tdonw\n", &["mood-train.tsv:3"]),
        (b"text\tmood\n", &["mood-train.tsv"]),
        (b"", &["mood-train.tsv"]),
        (b"text\tmood\na f\xfflm\tup\n", &["mood-train.tsv:2", "UTF-8"]),
    ] {
        let place = Place::new();
        place.run_file("label = \"mood\"", "label = \"mood\"\nlabels = [\"up\", \"down\"]");
        place.write("mood-train.tsv", text);
        place.refused(&["train", "run.toml"], words);
    }
}

#[test]
fn text_that_only_looks_wrong_is_read() {
    let place = Place::new();
    let text = "\u{feff}text\tmood\r\n\"the film\tup\r\nthe \"song\" was\tdown\r\na film\tup";
    place.write("mood-train.tsv", text);
    let ended = place.ok(&["train", "run.toml", "--max-steps", "2"]);
    assert!(ended.stderr.contains("task mood: 2 classes, 3 to train on"), "{}", ended.stderr);
}

#[test]
fn rows_that_are_cut_are_counted() {
    let place = Place::new();
    let ended = place.ok(&["train", "run.toml", "--max-steps", "2", "--max-length", "5"]);
    assert!(ended.stderr.contains("task mood: 96 of 96 sequences were cut to 5 tokens"), "{}", ended.stderr);
}

#[test]
fn a_sequence_longer_than_the_position_table() {
    let place = Place::new();
    let long = "film ".repeat(40);
    place.write("mood-train.tsv", format!("text\tmood\n{long}\tup\na song\tdown\n"));
    place.refused(&["train", "run.toml", "--max-length", "50"], &["mood", "42 tokens", "--max-length 32"]);
}

/// Text may begin with a brace: lines are JSON if the file's name or the whole first line says so.
#[test]
fn a_brace_does_not_make_text_json() {
    let place = with_model();
    let predict = |file| ["predict", "--model", "model", "--task", "mood", file];
    place.write("text.txt", "{hello} the film was good\n{\"a\n");
    let ended = place.ok(&predict("text.txt"));
    assert_eq!(ended.stdout.lines().count(), 2, "{}", ended.stdout);
    assert!(ended.stderr.contains("read as plain text"), "{}", ended.stderr);
    place.write("text.jsonl", "{hello} the film was good\n");
    place.refused(&predict("text.jsonl"), &["text.jsonl:1: not a line of JSON"]);
    place.write("json.txt", "\u{feff}{\"text_a\": \"the film was good\"}\r\nplain\n");
    place.refused(&predict("json.txt"), &["json.txt:2: not a line of JSON"]);
    for command in ["predict", "encode"] {
        let help = place.ok(&[command, "--help"]).stdout;
        assert!(help.contains("first line") && help.contains(".jsonl"), "{help}");
    }
}

// Model directories.

#[test]
fn a_model_directory_that_is_wrong() {
    /// A fault's name, what makes it, and what the message must say.
    type Fault = (&'static str, fn(&Path), &'static [&'static str]);
    let faults: [Fault; 8] = [
        ("no directory", |model| fs::remove_dir_all(model).unwrap(), &["no such model directory"]),
        (
            "no weights",
            |model| fs::remove_file(model.join("model.safetensors")).unwrap(),
            &["model.safetensors"],
        ),
        (
            "truncated",
            |model| edit(model, "model.safetensors", |bytes| bytes.truncate(bytes.len() - 4)),
            &["model.safetensors", "whole"],
        ),
        (
            "a header longer than the file",
            |model| edit(model, "model.safetensors", |bytes| bytes[..8].fill(0x7f)),
            &["model.safetensors"],
        ),
        ("another dtype", |model| replace(model, "model.safetensors", "\"F32\"", "\"I32\""), &["I32"]),
        (
            "another shape",
            |model| replace(model, "config.json", "\"intermediate_size\": 64", "\"intermediate_size\": 48"),
            &["intermediate", "[64, 32]", "[48, 32]"],
        ),
        (
            "heads that do not fit",
            |model| replace(model, "config.json", "\"num_attention_heads\": 2", "\"num_attention_heads\": 5"),
            &["config.json", "num_attention_heads"],
        ),
        (
            "a longer vocabulary",
            |model| {
                edit(model, "vocab.txt", |bytes| {
                    (0..60).for_each(|n| bytes.extend(format!("w{n}\n").bytes()))
                })
            },
            &["vocabulary", "64"],
        ),
    ];
    let place = Place::new();
    place.write("in.txt", "the film\n");
    place.write(
        "run.toml",
        RUN.replace("vocabulary = \"vocabulary\"", "").replace("[model.config]", "[unused]"),
    );
    for (fault, damage, words) in faults {
        let _ = fs::remove_dir_all(place.path("model"));
        copy(&trained().path("run/best"), &place.path("model"));
        damage(&place.path("model"));
        place.run_file("vocabulary = \"vocabulary\"", "vocabulary = \"vocabulary\"");
        eprintln!("{fault}");
        place.refused(&["train", "run.toml", "--init", "model"], words);
        place.refused(&["encode", "--model", "model", "in.txt", "--output", "out.safetensors"], words);
        place.refused(&["predict", "--model", "model", "--task", "mood", "in.txt"], words);
        assert!(!place.path("out.safetensors").exists());
    }
}

/// Rows that no token has are padding up to a multiple of 128; more of them are two models' files in one directory.
#[test]
fn an_embedding_much_larger_than_the_vocabulary_is_said() {
    let said =
        "warning: the vocabulary has 17 tokens and the word embedding 64 rows, 47 of them for no token";
    let place = with_model();
    place.write("in.txt", "the film\n");
    for arguments in [
        &["train", "run.toml", "--max-steps", "1"][..],
        &["train", "run.toml", "--max-steps", "1", "--init", "model", "--output", "another"],
        &["encode", "--model", "model", "in.txt", "--output", "out.safetensors"],
        &["predict", "--model", "model", "--task", "mood", "in.txt"],
    ] {
        let ended = place.ok(arguments);
        assert!(ended.stderr.contains(said), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("17 tokens in 64 rows"), "{arguments:?}: {}", ended.stderr);
    }
    place.run_file("vocab_size = 64", "vocab_size = 34");
    let padded = place.ok(&["train", "run.toml", "--max-steps", "1", "--output", "padded"]);
    assert!(padded.stderr.contains("17 tokens in 34 rows"), "{}", padded.stderr);
    assert!(!padded.stderr.contains("warning: the vocabulary"), "{}", padded.stderr);
}

#[test]
fn the_shapes_of_the_heads_are_written_and_checked() {
    let place = with_model();
    place.write("in.txt", "the film\n");
    let predict = ["predict", "--model", "model", "--task", "mood", "in.txt"];
    let path = place.path("model/mtdnn.json");
    let mut description: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let version = format!("mtdnn-raw {}", env!("CARGO_PKG_VERSION"));
    assert_eq!(description["engine"], version.as_str());
    for (task, outputs) in [("mood", 2), ("likeness", 1), ("answer", 1)] {
        let expected = serde_json::json!({"weight": [outputs, 32], "bias": [outputs]});
        assert_eq!(description["heads"][task], expected);
    }

    let with_heads = |change: &dyn Fn(&mut Value)| {
        let mut changed = description.clone();
        change(&mut changed);
        fs::write(&path, changed.to_string()).unwrap();
    };
    with_heads(&|description| description["heads"]["mood"]["weight"] = serde_json::json!([3, 32]));
    let words = ["mtdnn.json: heads.mood.weight", "[3, 32]", "model.safetensors", "[2, 32]", "same model"];
    place.refused(&predict, &words);
    place.refused(&["train", "run.toml", "--init", "model"], &words);
    with_heads(&|description| description["heads"]["mood"]["scale"] = serde_json::json!([2]));
    place.refused(&predict, &["mtdnn.json: heads.mood.scale", "[2]", "does not have it"]);

    // Written before the shapes were.
    description.as_object_mut().unwrap().remove("heads");
    fs::write(&path, description.to_string()).unwrap();
    place.ok(&predict);
}

#[test]
fn tasks_that_the_model_has_not() {
    let place = with_model();
    place.write("in.txt", "the film\n");
    place.refused(&["predict", "--model", "model", "--task", "moood", "in.txt"], &["did you mean \"mood\""]);
    place.refused(&["predict", "--model", "model", "--task", "mood,answer", "in.txt"], &["ranking"]);
    place.refused(&["predict", "--model", "model", "--task", "mood", "absent.txt"], &["absent.txt"]);
    place.refused(&["eval", "--model", "model", "--data", "absent"], &["absent"]);
}
