//! `encode --pool` and `probe` in a directory of their own.

#[path = "common/glue.rs"]
mod glue;
#[path = "common/place.rs"]
mod place;

use std::fs;

use place::Place;
use safetensors::SafeTensors;
use serde_json::Value;

/// A tensor of a safetensors file as numbers.
fn tensor(place: &Place, file: &str, name: &str) -> Vec<f32> {
    let bytes = fs::read(place.path(file)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors.tensor(name).unwrap().data().to_vec();
    data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn encode(place: &Place, more: &[&str]) {
    let arguments = ["encode", "--model", "model", "in.txt", "--output"];
    place.ok(&[&arguments, more].concat());
}

/// Each way of pooling against the vectors of all tokens, `[CLS]` and `[SEP]` included.
#[test]
fn pooled_vectors_are_made_of_the_tokens_vectors() {
    let place = Place::new();
    glue::model(&place.path("model"), &[], 1);
    place.write("in.txt", "the film was good\ngood\nthe film\tthe song\n");
    encode(&place, &["all.safetensors"]);
    let hidden = 16;
    let tokens = tensor(&place, "all.safetensors", "last_hidden_state");
    let starts: [usize; 4] = [0, 6, 9, 16]; // [CLS] and one or two [SEP] a line
    assert_eq!(tokens.len(), starts[3] * hidden);
    for pool in ["cls", "mean", "pooled"] {
        encode(&place, &["one.safetensors", "--pool", pool]);
        let vectors = tensor(&place, "one.safetensors", "vectors");
        assert_eq!(vectors.len(), 3 * hidden, "{pool}");
        match pool {
            "pooled" => assert_eq!(vectors, tensor(&place, "all.safetensors", "pooled")),
            "cls" => {
                let first = |&start: &usize| tokens[start * hidden..][..hidden].to_vec();
                assert_eq!(vectors, starts[..3].iter().flat_map(first).collect::<Vec<_>>());
            }
            _ => {
                for (line, vector) in vectors.chunks(hidden).enumerate() {
                    let rows = tokens[starts[line] * hidden..starts[line + 1] * hidden].chunks(hidden);
                    let count = rows.len() as f32;
                    for (column, value) in vector.iter().enumerate() {
                        let mean = rows.clone().map(|row| row[column]).sum::<f32>() / count;
                        assert!((mean - value).abs() < 1e-6, "line {line}: {mean} {value}");
                    }
                }
            }
        }
    }
    let ended = place.run(&["encode", "--model", "model", "in.txt", "--output", "x", "--pool", "max"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
}

#[test]
fn a_model_without_a_pooler_gives_no_pooled_vector() {
    let place = Place::new();
    glue::model(&place.path("model"), &[], 1);
    // Its name is another one, so that the pooler is missing.
    place::replace(&place.path("model"), "model.safetensors", "pooler.dense", "poolex.dense");
    place.write("in.txt", "the film\n");
    let encode =
        |pool| ["encode", "--model", "model", "in.txt", "--output", "out.safetensors", "--pool", pool];
    place.refused(&encode("pooled"), &["--pool pooled: the model has no pooler; take cls or mean"]);
    place.ok(&encode("mean"));
}

/// Folders with SICK and MRPC whose answers follow from the words: the same adjective or another.
fn with_tasks() -> Place {
    let place = Place::new();
    glue::model(&place.path("model"), &[], 1);
    for folder in ["extra/SICK", "glue/MRPC"] {
        fs::create_dir_all(place.path(folder)).unwrap();
    }
    let sick = |rows: std::ops::Range<usize>| {
        let mut text =
            "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n".to_string();
        for row in rows {
            let (a, b) = (glue::WORDS[row % 4], glue::WORDS[row / 4 % 4]);
            let (score, judgment) = if a == b { ("4.5", "ENTAILMENT") } else { ("1.5", "CONTRADICTION") };
            text += &format!("{row}\tthe film was {a}\ta song is {b}\t{score}\t{judgment}\n");
        }
        text
    };
    place.write("extra/SICK/SICK_train.txt", sick(0..240));
    place.write("extra/SICK/SICK_trial.txt", sick(240..320));
    let mrpc = |rows: std::ops::Range<usize>| {
        let mut text = "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n".to_string();
        for row in rows {
            let (a, b) = (glue::WORDS[row % 4], glue::WORDS[row / 4 % 4]);
            text += &format!("{}\t{row}\t{row}\tthe film was {a}\ta song is {b}\n", u8::from(a == b));
        }
        text
    };
    place.write("glue/MRPC/train.tsv", mrpc(0..240));
    place.write("glue/MRPC/dev.tsv", mrpc(240..320));
    place
}

fn probe<'a>(tasks: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["probe", "--model", "model", "--data", "glue,extra", "--tasks", tasks];
    arguments.extend(more);
    arguments
}

#[test]
fn probe_beats_the_baselines_and_shows_the_published_row() {
    let place = with_tasks();
    let ended = place.ok(&probe("mrpc,sick-r,sick-e", &["--json"]));
    let found: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&found["pool"], &found["folds"]), (&Value::from("mean"), &Value::from(5)));
    for (task, (name, metric, gensen)) in found["tasks"].as_array().unwrap().iter().zip([
        ("mrpc", "f1", 0.844),
        ("sick-r", "pearson", 0.888),
        ("sick-e", "accuracy", 0.878),
    ]) {
        assert_eq!(task["task"], name);
        let set = &task["sets"][0];
        assert_eq!((&set["examples"], &set["gensen"][metric]), (&Value::from(80), &Value::from(gensen)));
        let of = |what: &str| set[what][metric].as_f64().unwrap();
        assert!(of("metrics") > of("baseline") + 0.05, "{set}");
        assert_eq!(task["grid"].as_array().unwrap().len(), 8);
    }
    let table = place.ok(&probe("mrpc", &[])).stdout;
    assert!(
        table.contains("GenSen") && table.contains("0.786") && table.contains("not comparable"),
        "{table}"
    );
    let own = place.ok(&probe("sick-e", &["--folds", "3"])).stdout;
    assert!(own.contains("sick-e") && own.contains("C = "), "{own}");
}

/// Each option changes what comes out.
#[test]
fn pooling_seed_and_folds_matter() {
    let place = with_tasks();
    let result = |more: &[&str]| {
        let ended = place.ok(&probe("sick-r", &[&["--json"], more].concat()));
        serde_json::from_str::<Value>(&ended.stdout).unwrap()["tasks"][0]["grid"].to_string()
    };
    let usual = result(&[]);
    for more in [["--pool", "cls"], ["--pool", "pooled"], ["--seed", "1"], ["--folds", "7"]] {
        assert_ne!(usual, result(&more), "{more:?}");
    }
}

#[test]
fn what_cannot_be_probed_is_said() {
    let place = with_tasks();
    for (tasks, more, word) in [
        ("mrcp", &[][..], "--tasks mrcp: not a known task"),
        ("mrpc,MRPC", &[], "--tasks MRPC: named twice"),
        ("mrpc", &["--folds", "1"], "--folds 1: cross-validation takes 2 or more"),
        ("mrpc", &["--folds", "999"], "--folds 999: task mrpc has 240 examples to fit to"),
    ] {
        let ended = place.run(&probe(tasks, more));
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains(word), "{word}: {}", ended.stderr);
    }
    place.refused(&probe("stsb", &[]), &["\"stsb\"", "no file of it in glue"]);
    fs::remove_file(place.path("glue/MRPC/dev.tsv")).unwrap();
    place.refused(&probe("mrpc", &[]), &["task mrpc: there is no dev set to measure"]);
    fs::rename(place.path("glue/MRPC/train.tsv"), place.path("glue/MRPC/dev.tsv")).unwrap();
    place.refused(&probe("mrpc", &[]), &["task mrpc: there is no train set to fit to"]);
}

/// The two tasks of SICK train like any other.
#[test]
fn sick_is_trained_on_by_name() {
    let place = with_tasks();
    let ended = place.ok(&[
        "train",
        "--data",
        "extra",
        "--tasks",
        "sick-r,sick-e",
        "--init",
        "model",
        "--epochs",
        "1",
        "--output",
        "out",
    ]);
    assert!(ended.stdout.contains("sick-r") && ended.stdout.contains("sick-e"), "{}", ended.stdout);
}
