//! The binary in a directory of its own: experiments of several runs, and what of a run they are made of.

#[path = "common/place.rs"]
mod place;

use std::fs;

use place::*;
use safetensors::SafeTensors;

/// A tensor of a run's last model.
fn tensor(place: &Place, model: &str, name: &str) -> Vec<u8> {
    let bytes = fs::read(place.path(model).join("model.safetensors")).unwrap();
    SafeTensors::deserialize(&bytes).unwrap().tensor(name).unwrap().data().to_vec()
}

// What of a run they are made of.

#[test]
fn a_part_of_a_training_set() {
    for (key, examples) in [("share = 0.25", 12), ("examples = 5", 5)] {
        let place = Place::new();
        place.run_file("text_a = \"text\"", &format!("text_a = \"text\"\n{key}"));
        let ended = place.ok(&["train", "run.toml", "--tasks", "mood", "--epochs", "1"]);
        let said = format!("task mood: trained on {examples} of its 48 examples, drawn from seed 7");
        assert!(ended.stderr.contains(&said), "{}", ended.stderr);
        let steps = json_lines(place.path("run/metrics.jsonl"));
        let steps = steps.iter().filter(|line| line["event"] == "step");
        assert_eq!(steps.map(|line| line["examples"].as_u64().unwrap()).sum::<u64>(), examples);
    }
    let place = Place::new();
    for (key, words) in [
        ("share = 0.5\nexamples = 5", "give one of them"),
        ("share = 0", "share is 0, which is not in (0, 1]"),
        ("share = 1.5", "share is 1.5, which is not in (0, 1]"),
        ("examples = 0", "give 1 or more"),
    ] {
        place.run_file("text_a = \"text\"", &format!("text_a = \"text\"\n{key}"));
        place.refused(&["train", "run.toml"], &["task \"mood\"", words]);
    }
}

#[test]
fn heads_are_kept_unless_they_are_to_be_new() {
    let place = with_model();
    let run_file = fs::read_to_string(place.path("run.toml")).unwrap();
    let (model, rest) = run_file.split_once("[model]").unwrap();
    place.write("run.toml", format!("{model}[train]{}", rest.split_once("[train]").unwrap().1));
    let train = |output, more: &[&str]| {
        let words = ["train", "run.toml", "--init", "model", "--learning-rate", "0", "--output", output];
        place.ok(&[&words[..], more].concat())
    };
    train("kept", &[]);
    let ended = train("new", &["--new-heads"]);
    assert!(ended.stderr.contains("drawn from seed 7: heads."), "{}", ended.stderr);
    let head = "heads.mood.weight";
    assert_eq!(tensor(&place, "kept/last", head), tensor(&place, "model", head));
    assert_ne!(tensor(&place, "new/last", head), tensor(&place, "model", head));
    let encoder = "embeddings.word_embeddings.weight";
    assert_eq!(tensor(&place, "new/last", encoder), tensor(&place, "model", encoder));
    place.run_file("vocabulary = \"vocabulary\"", "vocabulary = \"vocabulary\"\nnew_heads = true");
    place.refused(&["train", "run.toml"], &["model.new_heads", "give init"]);
    place.write("pretrain.toml", "[pretrain.model]\ninit = \"model\"\nnew_heads = true\n");
    place.refused(&["pretrain", "pretrain.toml"], &["pretrain.model.new_heads"]);
}
