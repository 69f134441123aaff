//! `--task-def`: a run on task definitions and files as MT-DNN's own code has them, and what is said of others.

#[path = "common/place.rs"]
mod place;

use std::fs;

use place::*;
use serde_json::json;

const DEFINITION: &str = "\
mood:
  data_format: PremiseOnly
  task_type: Classification
  n_class: 2
  metric_meta: [F1MAC, AUC]
  loss: CeCriterion
  adv_loss: SymKlCriterion
  dropout_p: 0.0
who:
  data_format: PremiseAndMultiHypothesis
  task_type: Ranking
  n_class: 1
  metric_meta: [ACC]
absent:
  data_format: PremiseOnly
  task_type: Classification
  n_class: 2
";

/// A task as canonical text and a task as token ids, in the folders that the reference keeps them in.
fn reference_place() -> Place {
    let place = Place::new();
    place.write("run.toml", RUN.split("[[task]]").next().unwrap());
    place.write("task_def.yml", DEFINITION);
    fs::create_dir_all(place.path("canonical/tiny_lower")).unwrap();
    let mood: String = (0..48)
        .map(|n| format!("{n}\t{}\tthe {} was {}\n", n % 2, WORDS[4 + n / 4 % 2], WORDS[n % 4]))
        .collect();
    let made_up: String = (0..6).map(|n| format!("{n}\t0\tthe film was {}\n", WORDS[n % 4])).collect();
    place.write("canonical/mood_train.tsv", &mood);
    place.write("canonical/mood_dev.tsv", &mood);
    place.write("canonical/mood_test.tsv", made_up);
    // [CLS] 2, [SEP] 3; the words from 5.
    let line = |n: usize| {
        let sequence = |right: bool| vec![2, 15, 3, if right { 5 } else { 6 }, 9 + n % 2, 3, 0];
        let right = n % 3;
        let candidates: Vec<Vec<usize>> = (0..3).map(|candidate| sequence(candidate == right)).collect();
        let of_each = |row: [u8; 7]| vec![row; 3];
        let line = json!({
            "uid": n, "label": right, "ruid": ["a", "b", "c"], "token_id": candidates,
            "type_id": of_each([0, 0, 0, 1, 1, 1, 0]), "attention_mask": of_each([1, 1, 1, 1, 1, 1, 0]),
        });
        format!("{line}\n")
    };
    let who: String = (0..48).map(line).collect();
    place.write("canonical/tiny_lower/who_train.json", &who);
    place.write("canonical/tiny_lower/who_dev.json", &who);
    place
}

const TRAIN: [&str; 6] = ["train", "run.toml", "--task-def", "task_def.yml", "--data", "canonical"];

#[test]
fn a_run_on_its_files_is_measured_resumed_and_answers() {
    let place = reference_place();
    let ended = place.ok(&TRAIN);
    for said in
        ["left out, because canonical has no file to train them on: absent", "adv_loss SymKlCriterion"]
    {
        assert!(ended.stderr.contains(said), "{said}: {}", ended.stderr);
    }
    for word in ["mood", "f1-macro", "auc", "who", "accuracy@1"] {
        assert!(ended.stdout.contains(word), "{word}: {}", ended.stdout);
    }
    // The settings say where the tasks come from, so that a run goes on and is measured by them.
    let settings = fs::read_to_string(place.path("run/config.toml")).unwrap();
    assert!(settings.contains("task_def = "), "{settings}");
    place.ok(&["train", "--resume", "--output", "run", "--epochs", "2"]);
    let by = |more: &[&str]| place.ok(&[&["eval", "--model", "run/last"], more].concat()).stdout;
    let by_definition = by(&["--task-def", "task_def.yml", "--data", "canonical"]);
    assert_eq!(by_definition, by(&["--data", "run/config.toml"]));
    assert!(by_definition.contains("accuracy@1"), "{by_definition}");
    place.write("in.txt", "the film was good\n");
    place.ok(&["predict", "--model", "run/last", "--task", "mood", "in.txt"]);
}

/// The loss of a run's first batch.
fn first_loss(place: &Place) -> f64 {
    let lines = json_lines(place.path("run/metrics.jsonl"));
    lines.iter().find_map(|line| line["loss"].as_f64()).unwrap()
}

#[test]
fn soft_labels_of_token_lines_are_trained_on() {
    let place = reference_place();
    let train = |softlabel: &str| {
        let lines = fs::read_to_string(place.path("canonical/tiny_lower/who_dev.json")).unwrap();
        place.write(
            "canonical/tiny_lower/who_train.json",
            lines.replace("\"uid\"", &format!("{softlabel}\"uid\"")),
        );
        let _ = fs::remove_dir_all(place.path("run"));
        let ended = place.ok(&[&TRAIN[..], &["--tasks", "who", "--epochs", "1"]].concat());
        (first_loss(&place), ended.stderr)
    };
    let (hard, said) = train("");
    assert!(!said.contains("softlabel"), "{said}");
    let (soft, said) = train("\"softlabel\": [0.5, 0.25, 0.25], ");
    assert!(
        said.contains("trained on the softlabel of its lines beside their labels (hard_weight = 0.5"),
        "{said}"
    );
    assert!((hard - soft).abs() > 1e-4, "{hard} with and without");
}

#[test]
fn documents_are_masked_beside_other_tasks() {
    let place = reference_place();
    let words = "words: {data_format: MLM, task_type: MaskLM, loss: MlmCriterion}\n";
    place.write("task_def.yml", format!("{DEFINITION}{words}"));
    let document = |n: usize| {
        let paragraph =
            |m: usize| format!("The {} was {}. Who is {}?", WORDS[4 + n % 2], WORDS[m % 4], WORDS[m % 3]);
        format!("{}\n", json!({"text": format!("{}\n\n{}", paragraph(n), paragraph(n + 1))}))
    };
    let documents: String = (0..24).map(document).collect();
    place.write("canonical/words_train.json", &documents);
    place.write("canonical/words_dev.json", &documents);
    let ended = place.ok(&[&TRAIN[..], &["--tasks", "words,mood"]].concat());
    assert!(!ended.stderr.contains("it is one document"), "{}", ended.stderr);
    for word in ["masked-accuracy", "next-accuracy", "perplexity", "f1-macro"] {
        assert!(ended.stdout.contains(word), "{word}: {}", ended.stdout);
    }
    let by = |more: &[&str]| place.ok(&[&["eval", "--model", "run/last"], more].concat()).stdout;
    let by_definition = by(&["--task-def", "task_def.yml", "--data", "canonical"]);
    assert_eq!(by_definition, by(&["--data", "run/config.toml"]));
    assert!(by_definition.contains("perplexity"), "{by_definition}");
    // What is hidden is kept with the model.
    let kept = fs::read_to_string(place.path("run/last/mtdnn.json")).unwrap();
    assert!(kept.replace(' ', "").contains("\"whole_words\":true"), "{kept}");
    place.write("canonical/words_train.json", documents.lines().next().unwrap());
    let one = place.ok(&[&TRAIN[..], &["--tasks", "words", "--epochs", "1"], &["--output", "one"]].concat());
    assert!(one.stderr.contains("train text of task words: it is one document"), "{}", one.stderr);
    place.write("canonical/words_train.json", documents.replacen("\"text\"", "\"txt\"", 2));
    fs::remove_dir_all(place.path("run")).unwrap();
    let refused = [&TRAIN[..], &["--tasks", "words"]].concat();
    place.refused(&refused, &["words_train.json:1: field \"text\" is missing"]);
    fs::remove_file(place.path("canonical/words_train.json")).unwrap();
    place.refused(&refused, &["task \"words\": there is no file to train on in", "canonical"]);
}

#[test]
fn windows_of_questions_are_trained_on_and_measured() {
    let place = reference_place();
    let ask = "ask: {data_format: PremiseAndOneHypothesis, task_type: SpanClassification, n_class: 2, \
               metric_meta: [EmF1], loss: SpanCeCriterion}\n";
    place.write("task_def.yml", format!("{DEFINITION}{ask}"));
    // Room for a text beside a question of 64 tokens, which `predict` goes by.
    let run = fs::read_to_string(place.path("run.toml")).unwrap();
    let longer =
        run.replace("_embeddings = 32", "_embeddings = 128").replace("max_length = 32", "max_length = 128");
    place.write("run.toml", longer);
    // Who? [CLS] who [SEP] the film was good [SEP]: what the film or song was.
    let line = |n: usize| {
        let context = format!("the {} was {}", WORDS[4 + n / 4 % 2], WORDS[n % 4]);
        let line = json!({
            "uid": n, "label": [6, 6, 0], "token_id": [2, 15, 3, 11, 9 + n / 4 % 2, 13, 5 + n % 4, 3],
            "type_id": [0, 0, 0, 1, 1, 1, 1, 1], "mask": [1, 1, 1, 1, 1, 1, 1, 1], "context": context,
            "answer": WORDS[n % 4],
            "offset_mapping": [null, null, null, [0, 3], [4, 8], [9, 12], [13, 17], null],
        });
        // Two of the four words are a letter shorter.
        let end = 13 + WORDS[n % 4].len();
        format!("{}\n", line.to_string().replace("[13,17]", &format!("[13,{end}]")))
    };
    let lines: String = (0..48).map(line).collect();
    place.write("canonical/tiny_lower/ask_train.json", &lines);
    place.write("canonical/tiny_lower/ask_dev.json", &lines);
    let ended = place.ok(&[&TRAIN[..], &["--tasks", "ask", "--epochs", "10"]].concat());
    let row = ended.stdout.lines().find(|line| line.contains("exact-match")).unwrap();
    let exact: f64 = row.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert_eq!(exact, 1.0, "{}", ended.stdout);
    let by = |more: &[&str]| place.ok(&[&["eval", "--model", "run/last"], more].concat()).stdout;
    let by_definition = by(&["--task-def", "task_def.yml", "--data", "canonical"]);
    assert_eq!(by_definition, by(&["--data", "run/config.toml"]));
    assert!(by_definition.contains("span-f1"), "{by_definition}");
    place.write("in.txt", "who\tthe song was poor\n");
    let answered = place.ok(&["predict", "--model", "run/last", "--task", "ask", "in.txt"]);
    assert!(answered.stdout.starts_with("poor\t13"), "{}", answered.stdout);
    fs::remove_dir_all(place.path("run")).unwrap();
    let long = [&TRAIN[..], &["--tasks", "ask", "--max-length", "7"]].concat();
    place.refused(&long, &["ask_train.json:1: field \"token_id\" has 8 tokens", "--max-length"]);
}

#[test]
fn tasks_are_named_by_their_data_sets_too() {
    let place = reference_place();
    let ended = place.ok(&[&TRAIN[..], &["--tasks", "mood_matched,mood_other", "--epochs", "1"]].concat());
    assert!(ended.stdout.contains("mood") && !ended.stdout.contains("who"), "{}", ended.stdout);
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let place = reference_place();
    let with = |more: &[&'static str]| [&TRAIN[..], more].concat();
    place.refused(&with(&["--tasks", "moood"]), &["--tasks", "a task of --task-def", "did you mean", "mood"]);
    place.refused(&with(&["--tasks", "mood,mood"]), &["mood"]);
    place.refused(&with(&["--tasks", "absent"]), &["absent_train.tsv or .json"]);
    place.refused(&["train", "run.toml", "--task-def", "task_def.yml"], &["--data"]);
    place.refused(&["train", "run.toml", "--task-def", "task_def.yml", "--data", "nowhere"], &["nowhere"]);
    place.write("task_def.yml", DEFINITION.replace("n_class: 2", "n_klass: 2"));
    place.refused(
        &TRAIN,
        &["task_def.yml: task \"mood\": unknown key \"n_klass\"", "did you mean \"n_class\"?"],
    );
    place.write("task_def.yml", DEFINITION);
    place.write("canonical/tiny_lower/who_train.json", "{\"uid\": 1}\n");
    place.refused(&TRAIN, &["who_train.json:1: field \"token_id\" is missing"]);
}
