//! `mix`, and what `train` says and refuses of it.

#[path = "common/place.rs"]
mod place;

use std::fs;

use place::*;
use serde_json::Value;

const MIX: &str = "[[task]]\nname = \"mood\"";

fn mixed(keys: &str) -> Place {
    let place = Place::new();
    place.run_file(MIX, &format!("[train.mix]\n{keys}\n{MIX}"));
    place
}

fn json(place: &Place, arguments: &[&str]) -> Value {
    let arguments: Vec<&str> = ["mix", "run.toml", "--json"].iter().chain(arguments).copied().collect();
    serde_json::from_str(&place.ok(&arguments).stdout).unwrap()
}

fn of_each(value: &Value, key: &str) -> Vec<u64> {
    value["tasks"].as_array().unwrap().iter().map(|task| task[key].as_u64().unwrap()).collect()
}

#[test]
fn what_an_epoch_draws_is_printed() {
    let place = Place::new();
    let ended = place.ok(&["mix", "run.toml"]);
    assert!(ended.stdout.starts_with("mix algorithm-1; 36 updates\n"), "{}", ended.stdout);
    assert!(ended.stdout.contains("each of 1 to 2") && ended.stdout.contains("together"), "{}", ended.stdout);
    assert!(!place.path("run").exists(), "nothing is trained");

    let value = json(&place, &[]);
    assert_eq!(value["epochs"].as_array().unwrap().len(), 1);
    assert_eq!(of_each(&value["epochs"][0], "batches"), [6, 6, 6]);
    assert_eq!(of_each(&value["epochs"][0], "examples_drawn"), [48, 48, 48]);
    assert_eq!(value["together"][0]["passes"], 2.0);
    let value = json(&place, &["--mix", "ratio", "--mix-ratio", "0.5", "--mix-main", "likeness"]);
    let batches = of_each(&value["epochs"][0], "batches");
    assert_eq!((batches[1], batches[0] + batches[2]), (6, 3));
    let value = json(&place, &["--tasks", "mood", "--max-steps", "8"]);
    assert_eq!((value["updates"].as_u64(), of_each(&value["epochs"][1], "batches")), (Some(8), vec![2]));
    let value = json(&place, &["--batch-size", "0", "--batch-tokens", "40", "--bucket", "24"]);
    assert!(of_each(&value["epochs"][0], "largest_batch").iter().all(|&largest| largest <= 40), "{value}");
}

#[test]
fn a_task_may_have_batches_of_its_own_size() {
    let place = Place::new();
    place.run_file("label = \"mood\"", "label = \"mood\"\nbatch_size = 12");
    assert_eq!(of_each(&json(&place, &[])["epochs"][0], "batches"), [4, 6, 6]);
    place.run_file("label = \"mood\"", "label = \"mood\"\nbatch_size = 0");
    place.refused(&["mix", "run.toml"], &["\"mood\"", "batch_size is 0"]);
}

#[test]
fn training_draws_what_mix_has_printed() {
    let place = mixed("kind = \"square-root\"\nbatches_per_epoch = 10");
    let value = json(&place, &[]);
    let ended = place.ok(&["train", "run.toml"]);
    assert!(ended.stderr.contains("10 batches an epoch, mix square-root"), "{}", ended.stderr);
    let log = json_lines(place.path("run/metrics.jsonl"));
    for (number, name) in ["mood", "likeness", "answer"].into_iter().enumerate() {
        let steps = log.iter().filter(|line| line["task"] == name && line.get("loss").is_some()).count();
        assert_eq!(value["together"][number]["batches"].as_u64(), Some(steps as u64), "{name}");
    }
    let ended = place.run(&["train", "--output", "run", "--resume", "--mix", "uniform"]);
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stderr.contains("train.mix.batches_per_epoch was 10 and is now not set"),
        "{}",
        ended.stderr
    );
    assert!(fs::read_to_string(place.path("run/config.toml")).unwrap().contains("[train.mix]"));
}

#[test]
fn what_cannot_be_mixed_is_wrong_usage() {
    for (keys, words) in [
        (
            "kind = \"weights\"\nweights = { mood = 1, likeness = 1, answers = 1 }",
            "\"answers\" is not a task that is trained",
        ),
        ("kind = \"main-last\"\nmain = \"moood\"", "main: \"moood\" is not a task that is trained"),
        ("kind = \"uniform\"\ncap = 3", "cap: it means nothing to the mix uniform"),
        ("kind = \"ratio\"\nratio = -1", "ratio: -1 is not a number of at least 0"),
        ("kind = \"evry\"", "unknown variant"),
        ("temprature = 2", "did you mean \"temperature\"?"),
    ] {
        let place = mixed(keys);
        for command in ["mix", "train"] {
            let ended = place.run(&[command, "run.toml"]);
            assert_eq!(ended.code, Some(2), "{command} {keys}: {}", ended.stderr);
            assert!(ended.stderr.contains(words), "{command} {keys}: {}", ended.stderr);
        }
    }
    let place = Place::new();
    for (flags, words) in [
        (&["--bucket", "8"][..], "8 examples are no more than a batch of task mood"),
        (&["--batch-size", "0"], "or give batch_tokens"),
    ] {
        let arguments: Vec<&str> = ["mix", "run.toml"].iter().chain(flags).copied().collect();
        let ended = place.run(&arguments);
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains(words), "{}", ended.stderr);
    }
}

#[test]
fn what_may_surprise_is_said() {
    let place = mixed("kind = \"weights\"\nweights = { mood = 1, likeness = 0, answer = 1 }");
    for arguments in [
        &["mix", "run.toml", "--batch-tokens", "6"][..],
        &["train", "run.toml", "--batch-tokens", "6", "--max-steps", "1"],
    ] {
        let ended = place.ok(arguments);
        assert!(ended.stderr.contains("task likeness: the mix never draws it"), "{}", ended.stderr);
        assert!(ended.stderr.contains("have more than 6 tokens (--batch-tokens)"), "{}", ended.stderr);
    }
}

#[test]
fn a_task_of_which_no_batch_comes_up_is_said() {
    let place = Place::new();
    // Six batches of mood, and one of the twelve of the other two.
    let mix = ["--mix", "ratio", "--mix-main", "mood", "--mix-ratio", "0.2", "--epochs", "1"];
    let ended = place.ok(&[&["mix", "run.toml"][..], &mix].concat());
    assert_eq!(ended.stderr.matches("none of its batches comes up").count(), 1, "{}", ended.stderr);
}
