//! `data check` in a directory of its own: what it looks at, what it prints, and how it exits.

#[path = "common/place.rs"]
mod place;

use place::Place;
use serde_json::Value;

fn checked(place: &Place, more: &[&str]) -> Value {
    let ended = place.ok(&[&["data", "check", "run.toml", "--json"], more].concat());
    serde_json::from_str(&ended.stdout).unwrap()
}

fn names(report: &Value) -> Vec<&str> {
    report["tasks"].as_array().unwrap().iter().map(|task| task["task"].as_str().unwrap()).collect()
}

#[test]
fn a_run_files_tasks_or_those_that_are_named() {
    let place = Place::new();
    assert_eq!(names(&checked(&place, &[])), ["mood", "likeness", "answer"]);
    assert_eq!(names(&checked(&place, &["--tasks", "answer,mood"])), ["answer", "mood"]);
    for (tasks, words) in [("moood", "did you mean \"mood\""), ("mood,mood", "named twice")] {
        let ended = place.run(&["data", "check", "run.toml", "--tasks", tasks]);
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains(words), "{}", ended.stderr);
    }
    for (path, words) in [("nowhere", "no such folder"), ("vocabulary", "no file of a known task")] {
        place.refused(&["data", "check", path], &[path, words]);
    }
}

#[test]
fn lengths_are_words_or_a_models_tokens_and_are_held_against_the_most() {
    let place = Place::new();
    let of_mood = |more: &[&str]| {
        let report = checked(&place, &[&["--tasks", "mood"], more].concat());
        report["tasks"][0]["lengths"][0].clone()
    };
    let words = of_mood(&[]);
    assert_eq!((&words["unit"], &words["longest"], &words["cut"]), (&"words".into(), &4.into(), &0.into()));
    let tokens = of_mood(&["--model", "vocabulary", "--max-length", "5"]);
    // Four words between [CLS] and [SEP].
    assert_eq!((&tokens["unit"], &tokens["longest"]), (&"tokens".into(), &6.into()));
    assert_eq!((&tokens["max_length"], &tokens["cut"]), (&5.into(), &48.into()));
    place.refused(&["data", "check", "run.toml", "--max-length", "0"], &["--max-length 0"]);
}

#[test]
fn an_error_is_the_exit_code_and_a_doubt_is_not() {
    let place = Place::new();
    let ended = place.ok(&["data", "check", "run.toml", "--tasks", "mood"]);
    // The fixture's dev set is its train set.
    assert!(ended.stdout.contains("overlap"), "{}", ended.stdout);
    assert!(ended.stdout.ends_with("1 task: 0 errors, 1 warning, 2 notes\n"), "{}", ended.stdout);
    place.write("mood-dev.tsv", "text\tmood\nthe film was good\tsideways\n");
    let ended = place.run(&["data", "check", "run.toml", "--tasks", "mood"]);
    assert_eq!(ended.code, Some(1), "{}", ended.stdout);
    let words =
        "error    label       mood-dev.tsv:2: 1 line: the label \"sideways\"; the labels are down, up";
    assert!(ended.stdout.contains(words), "{}", ended.stdout);
}
