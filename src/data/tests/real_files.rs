//! The official files themselves, where they are: `MTDNN_DATA`, or `../shared/data/glue` from the project's root.

use std::path::{Path, PathBuf};

use crate::data::dataset::{Label, Text};
use crate::data::glue;
use crate::data::reader;
use crate::data::task::{Split, TaskKind};

fn folder() -> Option<PathBuf> {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/glue");
    let folder = std::env::var_os("MTDNN_DATA").map_or_else(default, PathBuf::from);
    if !folder.is_dir() {
        println!("skipped: no GLUE data in {}; MTDNN_DATA can name another folder", folder.display());
        return None;
    }
    Some(folder)
}

#[test]
fn every_row_of_every_folder_is_read() {
    let Some(folder) = folder() else { return };
    // QNLI, QQP, MNLI, SNLI and SciTail are samples of the official files; the others are whole but CoLA's dev set,
    // which is the in-domain part.
    let counts: &[(&str, &[(&str, usize)])] = &[
        ("cola", &[("train", 8551), ("dev", 527), ("test", 1063)]),
        ("sst2", &[("train", 67349), ("dev", 872), ("test", 1821)]),
        ("mrpc", &[("train", 3668), ("dev", 408), ("test", 1725)]),
        ("stsb", &[("train", 5749), ("dev", 1500), ("test", 1379)]),
        ("rte", &[("train", 2490), ("dev", 277), ("test", 3000)]),
        ("wnli", &[("train", 635), ("dev", 71), ("test", 146)]),
        ("qnli", &[("train", 9999), ("dev", 2717), ("test", 5463)]),
        ("qqp", &[("train", 9309), ("dev", 1000)]),
        ("mnli", &[("train", 9471), ("dev_matched", 1000), ("dev_mismatched", 2490)]),
        ("snli", &[("train", 9465), ("dev", 1000)]),
        ("scitail", &[("train", 1000), ("dev", 304)]),
        ("ax", &[("test", 1104)]),
    ];
    // All but QNLI cast as ranking, whose files are of the first edition, and SICK's two tasks, which are not GLUE's.
    assert_eq!(counts.len(), glue::names().count() - 3);
    for (name, expected) in counts {
        let spec = glue::task(name, &folder).unwrap();
        let found: Vec<(&str, usize)> = spec
            .files
            .iter()
            .map(|file| {
                let (examples, skipped) = reader::read(file, &spec).unwrap();
                let labelled = examples.iter().all(|example| example.label != Label::None);
                assert_eq!(labelled, file.split != Split::Test, "{name} {}", file.name);
                assert_eq!(skipped.count, 0, "{name} {}: {skipped}", file.name);
                (file.name.as_str(), examples.len())
            })
            .collect();
        assert_eq!(found, *expected, "{name}");
    }
    let trainable = glue::trainable_in(&folder);
    assert_eq!(trainable.len(), counts.len() - 1, "all but the diagnostic set: {trainable:?}");
}

#[test]
fn qnli_as_it_is_today_is_refused_as_ranking() {
    let Some(folder) = folder() else { return };
    let spec = glue::task("qnnli", &folder).unwrap();
    for (split, line) in [(Split::Train, 3), (Split::Dev, 3), (Split::Test, 3)] {
        let file = spec.files_of(split).next().unwrap();
        let message = reader::read(file, &spec).unwrap_err().to_string();
        let place = format!("{split}.tsv:{line}: the question");
        assert!(message.contains(&place) && message.contains("but v2"), "{message}");
    }
}

#[test]
fn labels_and_texts_are_the_right_columns() {
    let Some(folder) = folder() else { return };
    let first = |name: &str, split: Split| {
        let spec = glue::task(name, &folder).unwrap();
        let file = spec.files_of(split).next().unwrap();
        let example = reader::read(file, &spec).unwrap().0.swap_remove(0);
        let label = match (example.label, spec.kind) {
            (Label::Class(class), TaskKind::Classification) => spec.labels[class as usize].clone(),
            (Label::Score(score), TaskKind::Regression) => score.to_string(),
            other => panic!("{other:?}"),
        };
        (example.text, label)
    };
    let single = |text: &str, label: &str| (Text::Single(text.to_string()), label.to_string());
    let pair = |a: &str, b: &str, label: &str| (Text::Pair(a.to_string(), b.to_string()), label.to_string());
    assert_eq!(
        first("cola", Split::Train),
        single("Our friends won't buy this analysis, let alone the next one we propose.", "1")
    );
    assert_eq!(first("sst2", Split::Train), single("hide new secretions from the parental units ", "0"));
    assert_eq!(
        first("stsb", Split::Train),
        pair("A plane is taking off.", "An air plane is taking off.", "5")
    );
    assert_eq!(
        first("rte", Split::Train),
        pair(
            "No Weapons of Mass Destruction Found in Iraq Yet.",
            "Weapons of Mass Destruction Found in Iraq.",
            "not_entailment"
        )
    );
    assert_eq!(
        first("mnli", Split::Dev),
        pair("Salt kept the town fed.", "Salt kept the town thriving.", "entailment")
    );
    assert_eq!(
        first("scitail", Split::Dev),
        pair(
            "and , individuals with mental disorders first evident in infancy , childhood or adolescence",
            "An individual grows quickly and develops new abilities during their infancy and childhood",
            "neutral"
        )
    );
}

#[test]
fn class_shares_are_those_of_the_files() {
    let Some(folder) = folder() else { return };
    // Counted with other tools: the last column of each row.
    for (name, split, expected) in [
        ("mnli", "train", [3116, 3137, 3218]),
        ("mnli", "dev_mismatched", [830, 830, 830]),
        ("snli", "train", [3182, 3146, 3137]),
    ] {
        let spec = glue::task(name, &folder).unwrap();
        let file = spec.files.iter().find(|file| file.name == split).unwrap();
        let mut counts = [0; 3];
        for example in reader::read(file, &spec).unwrap().0 {
            let Label::Class(class) = example.label else { panic!("{:?}", example.label) };
            counts[class as usize] += 1;
        }
        assert_eq!(counts, expected, "{name} {split}");
    }
}
