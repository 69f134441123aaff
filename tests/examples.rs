//! The run files of `examples/`: each is read by the commands that it names.

#[path = "common/place.rs"]
mod place;

use std::fs;
use std::path::Path;

use place::{Place, copy};

/// A place with the project's `examples/`.
fn with_examples() -> Place {
    let place = Place::new();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples"), &place.path("examples"));
    place
}

#[test]
fn tasks_of_ones_own_of_every_kind_train_from_the_files_beside_them() {
    let place = with_examples();
    let ended = place.ok(&["train", "examples/own-tasks.toml", "--epochs", "1"]);
    for (task, metric) in [
        ("tickets", "accuracy"),
        ("similar", "pearson"),
        ("answers", "accuracy@1"),
        ("names", "entity-f1"),
        ("who", "span-f1"),
    ] {
        let found = ended.stdout.lines().any(|line| line.starts_with(task) && line.contains(metric));
        assert!(found, "no {metric} of {task} in {}", ended.stdout);
    }
}

#[test]
fn the_others_lack_nothing_but_the_data_that_they_name() {
    let place = with_examples();
    let mut seen = 0;
    for entry in fs::read_dir(place.path("examples")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.ends_with(".toml") || name == "own-tasks.toml" {
            continue;
        }
        let file = format!("examples/{name}");
        let text = fs::read_to_string(place.path(&file)).unwrap();
        let commands: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split_once("mtdnn-raw ")?.1.split_once(&format!(" {file}")))
            .map(|(command, _)| command)
            .collect();
        assert!(!commands.is_empty(), "{file} names no command that reads it");
        for command in commands {
            let ended = place.run(&[command, &file]);
            assert_eq!(ended.code, Some(1), "{command} {file}: {}", ended.stderr);
            let words =
                ["no file of it in", "no such file or folder", "no such model directory", "no vocab.txt"];
            assert!(
                words.iter().any(|word| ended.stderr.contains(word)),
                "{command} {file}: {}",
                ended.stderr
            );
            seen += 1;
        }
    }
    assert!(seen >= 6, "{seen} commands");
}
