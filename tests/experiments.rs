//! The binary in a directory of its own: experiments of several runs, and what of a run they are made of.

#[path = "common/place.rs"]
mod place;

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use place::*;
use safetensors::SafeTensors;
use serde_json::Value;

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

// Experiments.

fn json(place: &Place, file: &str) -> Value {
    serde_json::from_slice(&fs::read(place.path(file)).unwrap()).unwrap()
}

/// The settings that a run was done with.
fn settings(place: &Place, run: &str) -> toml::Table {
    fs::read_to_string(place.path(run).join("config.toml")).unwrap().parse().unwrap()
}

/// The main dev figure of a task at its run's best evaluation, as the run's own log has it.
fn best(place: &Place, run: &str, task: &str) -> f64 {
    let lines = json_lines(place.path(run).join("metrics.jsonl"));
    let metric = if task == "mood" { "accuracy" } else { "pearson" };
    let values = lines.iter().filter(|line| line["event"] == "evaluation" && line["task"] == task);
    values.map(|line| line["metrics"][metric].as_f64().unwrap()).fold(f64::MIN, f64::max)
}

/// A place whose run file starts from the model of the fixtures.
fn from_model() -> Place {
    let place = with_model();
    let (before, rest) = RUN.split_once("[model]").unwrap();
    let train = rest.split_once("[train]").unwrap().1;
    place.write("run.toml", format!("{before}[model]\ninit = \"model\"\n[train]{train}"));
    place
}

fn exists(place: &Place, names: &[&str]) -> Vec<bool> {
    names.iter().map(|name| place.path(name).exists()).collect()
}

const SEEDS: [&str; 8] = ["seeds", "run.toml", "--tasks", "mood", "--epochs", "1", "--seeds", "2"];

#[test]
fn seeds_has_the_figures_of_the_runs_it_is_made_of() {
    let place = Place::new();
    let ended = place.ok(&SEEDS);
    assert!(ended.stderr.contains("run 1 of 2: the run, seed 7\n"), "{}", ended.stderr);
    assert!(ended.stderr.contains("run 2 of 2: the run, seed 8; about "), "{}", ended.stderr);
    let results = json(&place, "run-seeds/results.json");
    let mut values = Vec::new();
    for seed in ["7", "8"] {
        let output = format!("single-{seed}");
        place.ok(&[
            "train", "run.toml", "--tasks", "mood", "--epochs", "1", "--seed", seed, "--output", &output,
        ]);
        values.push(best(&place, &output, "mood"));
    }
    let figure = &results["figures"][0];
    assert_eq!((figure["task"].as_str(), figure["metric"].as_str()), (Some("mood"), Some("accuracy")));
    assert_eq!(figure["values"], serde_json::json!(values));
    let mean = (values[0] + values[1]) / 2.0;
    assert_eq!(figure["mean"], mean);
    let deviation = figure["deviation"].as_f64().unwrap();
    assert!((deviation - (values[0] - values[1]).abs() / 2f64.sqrt()).abs() < 1e-12);
    let [low, high] = ["low", "high"].map(|bound| figure["over_examples"][bound].as_f64().unwrap());
    assert!(low <= mean && mean <= high && low < high, "{figure}");
    let markdown = fs::read_to_string(place.path("run-seeds/results.md")).unwrap();
    let row = format!("| mood | dev | accuracy | {:.1} |", 100.0 * mean);
    assert!(markdown.contains(&row), "{row} is not in {markdown}");
    assert!(ended.stdout.contains(&format!("{:.1}", 100.0 * mean)), "{}", ended.stdout);
    assert!(fs::read_to_string(place.path("run-seeds/results.svg")).unwrap().starts_with("<svg"));

    // Finished runs are not done again, and nothing but their best models is left of them.
    let bytes = fs::read(place.path("run-seeds/results.json")).unwrap();
    let again = place.ok(&SEEDS);
    assert!(again.stderr.contains("2 of 2 runs are done") && !again.stderr.contains("run 1 of 2"));
    assert_eq!(
        (fs::read(place.path("run-seeds/results.json")).unwrap(), again.stdout),
        (bytes, ended.stdout)
    );
    let left = ["best", "last", "state"].map(|name| format!("run-seeds/seed-7/{name}"));
    assert_eq!(exists(&place, &left.each_ref().map(String::as_str)), [true, false, false]);
    // Nor are they taken for those of other settings.
    let ended = place.run(&[&SEEDS[..], &["--learning-rate", "0.5"]].concat());
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stderr.contains("run seed-7") && ended.stderr.contains("train.learning_rate"),
        "{}",
        ended.stderr
    );
    let more =
        ["seeds", "run.toml", "--tasks", "mood", "--epochs", "1", "--seeds", "3", "--precision", "bf16"];
    let ended = place.run(&more);
    assert_eq!(ended.code, Some(2));
    let said = "--precision bf16: what is there was computed in f32";
    assert!(ended.stderr.contains(said), "{}", ended.stderr);
}

#[test]
fn every_option_of_an_experiment_counts() {
    let place = Place::new();
    let results = |output: &str, more: &[&str]| {
        place.ok(&[&SEEDS[..], &["--output", output], more].concat());
        json(&place, &format!("{output}/results.json"))
    };
    let usual = results("usual", &[]);
    // The same runs, so that only the figures are made anew.
    let few = results("usual", &["--resamples", "7"]);
    let narrow = results("usual", &["--level", "0.5"]);
    for other in [&few, &narrow] {
        assert_eq!(usual["figures"][0]["values"], other["figures"][0]["values"]);
        assert_ne!(usual["figures"][0]["over_examples"], other["figures"][0]["over_examples"]);
    }
    results("all", &["--keep", "all"]);
    results("none", &["--keep", "none"]);
    let left = ["all/seed-7/state", "all/seed-7/best", "none/seed-7/state", "none/seed-7/best"];
    assert_eq!(exists(&place, &left), [true, true, false, false]);
    let list = &SEEDS[..6];
    place.ok(&[list, &["--seeds", "3,11", "--output", "list"]].concat());
    assert_eq!(exists(&place, &["list/seed-3", "list/seed-11", "list/seed-7"]), [true, true, false]);
    // The run file says the same things.
    let text = fs::read_to_string(place.path("run.toml")).unwrap();
    let table =
        "[experiment]\nseeds = [4]\nkeep = \"none\"\nresamples = 3\nlevel = 0.5\noutput = \"said\"\n[train]";
    place.write("run.toml", text.replacen("[train]", table, 1));
    place.ok(list);
    let said = json(&place, "said/results.json");
    assert_eq!((&said["resamples"], &said["level"]), (&serde_json::json!(3), &serde_json::json!(0.5)));
    assert_eq!(exists(&place, &["said/seed-4/result.json", "said/seed-4/best"]), [true, false]);

    for (more, words) in [
        (&["--seeds", "1,1"][..], "1 is named twice"),
        (&["--seeds", "0"], "experiment.seeds"),
        (&["--seeds", "many"], "neither a number of seeds"),
        (&["--seeds", "1,2", "--seed", "3"], "--seed"),
        (&["--level", "1"], "experiment.level"),
        (&["--resamples", "0"], "experiment.resamples"),
        (&["--keep", "some"], "expected one of"),
        (&["--resume"], "--resume"),
    ] {
        let ended = place.run(&[list, more].concat());
        assert_eq!(ended.code, Some(2), "{more:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(words), "{words:?} is not in: {}", ended.stderr);
    }
}

#[test]
fn seeds_against_another_side() {
    let place = Place::new();
    place.ok(&SEEDS);
    let against = |other: &'static str| [&SEEDS[..], &["--against", other]].concat();
    // Against itself nothing differs, whatever is drawn.
    let ended = place.ok(&against("run-seeds"));
    let nothing = serde_json::json!({ "low": 0.0, "high": 0.0 });
    let difference = &json(&place, "run-seeds/results.json")["differences"][0];
    assert_eq!(difference["difference"], 0.0);
    assert_eq!((&difference["over_examples"], &difference["over_seeds"]), (&nothing, &nothing));
    assert!(ended.stdout.contains("does not beat run-seeds"), "{}", ended.stdout);
    // Against a run that has learned nothing: its model is measured on the same dev set.
    place.ok(&["train", "run.toml", "--tasks", "mood", "--epochs", "1", "--learning-rate", "0"]);
    place.ok(&against("run"));
    let results = json(&place, "run-seeds/results.json");
    let expected = results["figures"][0]["mean"].as_f64().unwrap() - best(&place, "run", "mood");
    let found = results["differences"][0]["difference"].as_f64().unwrap();
    assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    // Seeds that are not the same are not paired, and other examples are not compared.
    place.ok(&[
        "seeds", "run.toml", "--tasks", "mood", "--epochs", "1", "--seeds", "1,2", "--output", "other",
    ]);
    place.ok(&against("other"));
    let text = fs::read_to_string(place.path("mood-dev.tsv")).unwrap();
    place.write("mood-dev.tsv", text.lines().take(20).map(|line| format!("{line}\n")).collect::<String>());
    let fewer =
        ["seeds", "run.toml", "--tasks", "mood", "--epochs", "1", "--seeds", "1", "--output", "fewer"];
    place.ok(&fewer);
    let ended = place.run(&[&fewer[..], &["--against", "other"]].concat());
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("task mood: the two sides were not measured on the same examples"));
    let ended = place.run(&against("absent"));
    assert!(ended.stderr.contains("--against absent: no such directory"), "{}", ended.stderr);
    place.ok(&["train", "run.toml", "--tasks", "likeness", "--epochs", "1", "--output", "likeness"]);
    let ended = place.run(&[&fewer[..], &["--against", "likeness"]].concat());
    assert!(ended.stderr.contains("none of this run's dev sets"), "{}", ended.stderr);
}

/// Stopped by a signal, killed, or robbed of a result: the same command ends with the same bytes.
#[test]
fn an_interrupted_experiment_ends_with_the_same_bytes() {
    let place = Place::new();
    let experiment = |output: &'static str| {
        let words = ["seeds", "run.toml", "--tasks", "mood", "--epochs", "60", "--checkpoint-every", "20"];
        [&words[..], &["--eval", "50", "--seeds", "2", "--output", output]].concat()
    };
    place.ok(&experiment("whole"));
    for signal in ["INT", "KILL"] {
        let child = place.command(&experiment("cut")).stderr(Stdio::null()).stdout(Stdio::null()).spawn();
        let mut child = child.unwrap();
        // In the second run, after a checkpoint.
        let deadline = Instant::now() + Duration::from_secs(300);
        while !place.path("cut/seed-8/state/progress.json").exists() && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the second run has not begun");
            std::thread::sleep(Duration::from_millis(2));
        }
        let sent = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
        assert!(sent.unwrap().success(), "it had ended before the signal");
        let code = child.wait().unwrap().code();
        assert_eq!(code, if signal == "INT" { Some(75) } else { None });
        assert_eq!(exists(&place, &["cut/seed-7/result.json", "cut/results.json"]), [true, false]);
        let ended = place.ok(&experiment("cut"));
        assert!(ended.stderr.contains("1 of 2 runs are done"), "{}", ended.stderr);
        assert!(ended.stderr.contains("going on after update"), "{}", ended.stderr);
        assert_eq!(
            fs::read(place.path("cut/results.json")).unwrap(),
            fs::read(place.path("whole/results.json")).unwrap()
        );
        fs::remove_dir_all(place.path("cut")).unwrap();
    }
    let whole = fs::read(place.path("whole/results.json")).unwrap();
    fs::remove_file(place.path("whole/seed-7/result.json")).unwrap();
    fs::write(place.path("whole/seed-8/result.json"), "{").unwrap();
    let ended = place.run(&experiment("whole"));
    assert!(
        ended.stderr.contains("seed-8/result.json: not the result of a run; remove it"),
        "{}",
        ended.stderr
    );
    fs::remove_file(place.path("whole/seed-8/result.json")).unwrap();
    place.ok(&experiment("whole"));
    assert_eq!(fs::read(place.path("whole/results.json")).unwrap(), whole);
}

#[test]
fn seeds_takes_the_sample_tasks() {
    let place = Place::new();
    place.ok(&["seeds", "--seeds", "1", "--max-steps", "2"]);
    let results = json(&place, "runs/sample-seeds/results.json");
    assert_eq!(results["figures"].as_array().unwrap().len(), 5 + 1, "{results}");
    for command in ["finetune", "ablate", "adapt"] {
        let ended = place.run(&[command, "--model", "x"]);
        assert_eq!(ended.code, Some(2), "{command}: {}", ended.stderr);
    }
    let ended = place.run(&["ablate"]);
    assert!(ended.stderr.contains("ablate: say which tasks"), "{}", ended.stderr);
}

#[test]
fn finetune_goes_on_from_a_model() {
    let place = from_model();
    let finetune = |output: &str, more: &[&str]| {
        let words = ["finetune", "run.toml", "--model", "model", "--tasks", "mood", "--output", output];
        place.ok(&[&words[..], more].concat());
        json(&place, &format!("{output}/results.json"))
    };
    // At a learning rate of 0 a head that is kept answers as before, and a new one does not.
    let kept = finetune("kept", &["--learning-rate", "0"]);
    place.ok(&["eval", "--model", "model", "--data", "run.toml", "--tasks", "mood", "--json", "eval.json"]);
    let before = &json(&place, "eval.json")["sets"][0]["metrics"]["accuracy"];
    assert_eq!(&kept["before"][0]["mean"], before);
    assert_eq!(kept["before"][0]["mean"], kept["after"][0]["mean"]);
    finetune("new", &["--learning-rate", "0", "--new-heads"]);
    let head = "heads.mood.weight";
    let of = |run: &str| tensor(&place, &format!("{run}/finetune-mood-seed7/best"), head);
    assert_eq!(of("kept"), tensor(&place, "model", head));
    assert_ne!(of("new"), tensor(&place, "model", head));
    // The run file's recipe, and the flags above it.
    let text = fs::read_to_string(place.path("run.toml")).unwrap();
    let table = "[finetune]\nmodel = \"model\"\nepochs = 3\nlearning_rate = 0.25\n[finetune.tasks.likeness]\n\
                 epochs = 1\nlearning_rate = 0.5\n[train]";
    place.write("run.toml", text.replacen("[train]", table, 1));
    place.ok(&["finetune", "run.toml", "--tasks", "mood,likeness", "--output", "said"]);
    let recipe = |run: &str| {
        let train = settings(&place, run)["train"].clone();
        (train["epochs"].as_integer().unwrap(), train["learning_rate"].as_float().unwrap())
    };
    assert_eq!(recipe("said/finetune-mood-seed7"), (3, 0.25));
    assert_eq!(recipe("said/finetune-likeness-seed7"), (1, 0.5));
    let flags = ["--epochs", "2", "--learning-rate", "0.125", "--output", "flags"];
    place.ok(&[&["finetune", "run.toml", "--tasks", "mood,likeness"][..], &flags].concat());
    assert_eq!(recipe("flags/finetune-mood-seed7"), (2, 0.125));
    assert_eq!(recipe("flags/finetune-likeness-seed7"), (2, 0.125));
    place.write(
        "run.toml",
        fs::read_to_string(place.path("run.toml")).unwrap().replace("tasks.likeness", "tasks.liken"),
    );
    let ended = place.run(&["finetune", "run.toml"]);
    assert_eq!(ended.code, Some(2));
    assert!(
        ended.stderr.contains("finetune.tasks liken") && ended.stderr.contains("likeness"),
        "{}",
        ended.stderr
    );
    place.write("run.toml", text);
    let ended = place.run(&["finetune", "run.toml", "--model", "model", "--init", "model"]);
    assert!(ended.code == Some(2) && ended.stderr.contains("--init: fine-tuning starts"), "{}", ended.stderr);
    let ended = place.run(&["finetune", "run.toml"]);
    assert!(ended.code == Some(2) && ended.stderr.contains("--model DIR"), "{}", ended.stderr);
}

#[test]
fn ablate_makes_the_rows_of_the_paper() {
    let place = Place::new();
    let ablate = |output: &str, more: &[&str]| {
        let words = [
            "ablate",
            "run.toml",
            "--tasks",
            "mood,likeness",
            "--epochs",
            "1",
            "--seeds",
            "1",
            "--output",
            output,
        ];
        let ended = place.ok(&[&words[..], more].concat());
        (ended, json(&place, &format!("{output}/results.json")))
    };
    let (ended, results) = ablate("all", &[]);
    let rows = results["rows"].as_array().unwrap();
    let titles: Vec<&str> = rows.iter().map(|row| row["title"].as_str().unwrap()).collect();
    // The run file's heads are BERT's own.
    assert_eq!(titles, ["BERT, ST-DNN", "MT-DNN no fine-tuning", "MT-DNN"]);
    assert!(ended.stdout.contains("one and the same run"), "{}", ended.stdout);
    for (row, runs) in [
        (0, ["all/bert-mood-seed7", "all/bert-likeness-seed7"]),
        (1, ["all/mt-dnn-seed7", "all/mt-dnn-seed7"]),
        (2, ["all/finetune-mood-seed7", "all/finetune-likeness-seed7"]),
    ] {
        let of = |figure: usize| rows[row]["figures"][figure]["mean"].as_f64().unwrap();
        let (mood, likeness) = (best(&place, runs[0], "mood"), best(&place, runs[1], "likeness"));
        assert_eq!((of(0), of(1)), (mood, likeness), "{titles:?} {row}");
        assert_eq!(rows[row]["means_of_tasks"][0], (mood + likeness) / 2.0);
    }
    let start = settings(&place, "all/finetune-mood-seed7")["model"]["init"].as_str().unwrap().to_string();
    assert!(start.ends_with("all/mt-dnn-seed7/best"), "{start}");
    assert!(!settings(&place, "all/bert-mood-seed7")["model"].as_table().unwrap().contains_key("init"));
    let said =
        ended.stdout.lines().filter(|line| line.contains("beat") && line.contains("single-task training"));
    assert_eq!(said.count(), 2 * 3, "{}", ended.stdout); // accuracy, Pearson, Spearman of two rows

    let (_, results) = ablate("some", &["--variants", "st-dnn,mt-dnn-no-ft", "--targets", "mood"]);
    let rows = results["rows"].as_array().unwrap();
    assert_eq!(
        rows.iter().map(|row| row["variant"].as_str().unwrap()).collect::<Vec<_>>(),
        ["st-dnn", "mt-dnn-no-ft"]
    );
    assert_eq!(rows[1]["figures"].as_array().unwrap().len(), 1);
    let runs = [
        "some/st-dnn-mood-seed7",
        "some/mt-dnn-seed7",
        "some/st-dnn-likeness-seed7",
        "some/finetune-mood-seed7",
    ];
    assert_eq!(exists(&place, &runs), [true, true, false, false]);
    // The other task was in the mix all the same.
    assert!(best(&place, "some/mt-dnn-seed7", "likeness") > f64::MIN);
    // Without a model the later runs could not start.
    let (_, _) = ablate("bare", &["--keep", "none", "--targets", "mood"]);
    assert_eq!(exists(&place, &["bare/mt-dnn-seed7/best", "bare/bert-mood-seed7/best"]), [true, false]);

    for (more, words) in [
        (&["--variants", "bart"][..], "bert"),
        (&["--targets", "moood"], "did you mean \"mood\""),
        (&["--targets", "mood,mood"], "named twice"),
    ] {
        let ended = place.run(&[&["ablate", "run.toml"], more].concat());
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains(words), "{words:?} is not in: {}", ended.stderr);
    }
    let ended = place.run(&["ablate", "run.toml", "--eval", "never"]);
    assert!(ended.stderr.contains("train.eval"), "{}", ended.stderr);
}

/// Heads that the encoder's directory brings are no part of an ablation's baseline.
#[test]
fn an_ablation_from_an_mt_dnn_model_has_new_heads() {
    let place = from_model();
    place.ok(&[
        "ablate",
        "run.toml",
        "--targets",
        "mood",
        "--seeds",
        "1",
        "--variants",
        "bert",
        "--learning-rate",
        "0",
    ]);
    let head = "heads.mood.weight";
    assert_ne!(tensor(&place, "run-ablate/bert-mood-seed7/best", head), tensor(&place, "model", head));
}

/// What heads are worth can be seen only where BERT's row has BERT's own.
#[test]
fn an_ablation_takes_the_answer_network_from_berts_row_alone() {
    let place = Place::new();
    place.run_file("kind = \"regression\"", "head = \"san\"");
    let words = ["ablate", "run.toml", "--tasks", "likeness", "--epochs", "1", "--seeds", "1"];
    let ended = place.ok(&[&words[..], &["--variants", "bert,st-dnn"]].concat());
    assert!(!ended.stdout.contains("one and the same run"), "{}", ended.stdout);
    let heads = |run: &str| {
        let bytes = fs::read(place.path(run).join("best/model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let names = tensors.names().into_iter().filter(|name| name.starts_with("heads."));
        names.map(str::to_string).collect::<std::collections::BTreeSet<_>>()
    };
    let linear = ["bias", "weight"].map(|part| format!("heads.likeness.{part}"));
    assert_eq!(heads("run-ablate/bert-likeness-seed7"), linear.into());
    assert!(heads("run-ablate/st-dnn-likeness-seed7").contains("heads.likeness.gru.weight_ih"));
}

#[test]
fn adapt_gives_both_encoders_the_same_examples() {
    let place = from_model();
    let adapt = |output: &str, more: &[&str]| {
        let words =
            ["adapt", "run.toml", "--targets", "mood", "--shares", "0.1,1", "--seeds", "2", "--keep", "all"];
        let ended = place.ok(&[&words[..], &["--output", output], more].concat());
        (ended, json(&place, &format!("{output}/results.json")))
    };
    let options = ["--small", "0.1", "--small-batch-size", "2", "--small-epochs", "3"];
    let (ended, results) = adapt("all", &options);
    let cells = results["cells"].as_array().unwrap();
    let cell = |encoder: &str, share: f64| {
        cells.iter().find(|cell| cell["encoder"] == encoder && cell["share"] == share).unwrap()
    };
    for share in [0.1, 1.0] {
        let examples = if share < 1.0 { 4 } else { 48 };
        for encoder in ["BERT", "MT-DNN"] {
            let name = format!("all/mood-{}pc-{}-seed", 100.0 * share, encoder.to_lowercase());
            let values: Vec<f64> = [7, 8].map(|seed| best(&place, &format!("{name}{seed}"), "mood")).to_vec();
            assert_eq!(cell(encoder, share)["values"], serde_json::json!(values));
            assert_eq!(cell(encoder, share)["examples"], examples);
            let train = settings(&place, &format!("{name}7"))["train"].clone();
            let recipe = (train["batch_size"].as_integer(), train["epochs"].as_integer());
            assert_eq!(recipe, if share < 1.0 { (Some(2), Some(3)) } else { (Some(8), Some(2)) });
        }
        let data = |encoder: &str, seed: u64| {
            let file = format!("all/mood-{}pc-{encoder}-seed{seed}/state/progress.json", 100.0 * share);
            json(&place, &file)["data"].clone()
        };
        assert_eq!(data("bert", 7), data("mt-dnn", 7));
        assert_eq!(share < 1.0, data("bert", 7) != data("bert", 8), "another seed, another sample");
    }
    // MT-DNN was trained on the other tasks alone, and both targets' heads are new.
    let tasks = settings(&place, "all/mt-dnn")["task"].as_array().unwrap().clone();
    let names: Vec<&str> = tasks.iter().map(|task| task["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["likeness", "answer"]);
    let init = |run: &str| {
        let model = settings(&place, &format!("all/{run}"))["model"].clone();
        assert_eq!(model["new_heads"].as_bool(), Some(true));
        model["init"].as_str().unwrap().to_string()
    };
    assert!(init("mood-10pc-bert-seed7").ends_with("/model"));
    assert!(init("mood-10pc-mt-dnn-seed7").ends_with("all/mt-dnn/best"));
    assert!(ended.stdout.contains("MT-DNN less BERT"), "{}", ended.stdout);
    let svg = fs::read_to_string(place.path("all/results.svg")).unwrap();
    assert!(svg.contains("4 (10 %)") && svg.contains("48 (100 %)"), "{svg}");
}

#[test]
fn adapt_takes_a_model_and_refuses_what_it_cannot_do() {
    let place = from_model();
    let words = ["adapt", "run.toml", "--shares", "0.2", "--seeds", "1", "--epochs", "1"];
    let given = [&words[..], &["--targets", "mood", "--mt-dnn", "model", "--output", "given"]].concat();
    let ended = place.ok(&given);
    assert!(ended.stderr.contains("model was trained on mood, which is no new task"), "{}", ended.stderr);
    copy(&place.path("model"), &place.path("other"));
    place::replace(
        &place.path("other"),
        "config.json",
        "\"intermediate_size\": 64",
        "\"intermediate_size\": 32",
    );
    let ended = place.run(&[&words[..], &["--targets", "mood", "--mt-dnn", "other"]].concat());
    assert!(ended.stderr.contains("model and 32 in other; give --mt-dnn a model"), "{}", ended.stderr);
    assert_eq!(exists(&place, &["given/mt-dnn", "given/mood-20pc-mt-dnn-seed7/result.json"]), [false, true]);
    let init = settings(&place, "given/mood-20pc-mt-dnn-seed7")["model"]["init"].clone();
    assert!(init.as_str().unwrap().ends_with("/model"), "{init}");
    // 0.2 is not small, and the default for small shares is train's own.
    assert_eq!(settings(&place, "given/mood-20pc-bert-seed7")["train"]["epochs"].as_integer(), Some(1));
    let whole =
        ["adapt", "run.toml", "--targets", "mood", "--mt-dnn", "model", "--output", "whole", "--epochs", "1"];
    place.ok(&[&whole[..], &["--shares", "0.1,1", "--seeds", "2", "--whole-seeds", "1"]].concat());
    let runs = ["whole/mood-10pc-bert-seed8", "whole/mood-100pc-bert-seed7", "whole/mood-100pc-bert-seed8"];
    assert_eq!(exists(&place, &runs), [true, true, false]);
    let markdown = fs::read_to_string(place.path("whole/results.md")).unwrap();
    assert!(markdown.contains("| 10 % (4) | 100 % (48, one seed) |"), "{markdown}");
    let text = fs::read_to_string(place.path("run.toml")).unwrap();
    let table = "[adapt]\ntargets = [\"mood\"]\nshares = [0.05]\nmt_dnn = \"model\"\nsmall = 0.05\n\
                 small_batch_size = 1\nsmall_epochs = 2\n[train]";
    place.write("run.toml", text.replacen("[train]", table, 1));
    place.ok(&["adapt", "run.toml", "--seeds", "1"]);
    let train = settings(&place, "run-adapt/mood-5pc-mt-dnn-seed7")["train"].clone();
    assert_eq!((train["batch_size"].as_integer(), train["epochs"].as_integer()), (Some(1), Some(2)));
    place.write("run.toml", text);

    fs::create_dir(place.path("done")).unwrap();
    place.write("done/results.json", "{\"experiment\": \"seeds\"}");
    for (targets, shares, more, code, said) in [
        ("snli", "0.2", &[][..], 2, "--targets snli: not a task of the run"),
        ("mood", "0", &[], 2, "--shares 0: not a share"),
        ("mood", "0.5,0.5", &[], 2, "--shares 0.5: named twice"),
        ("mood", "0.2", &["--small", "0.2", "--small-epochs", "0"], 2, "train.epochs"),
        ("mood,likeness,answer", "0.2", &[], 1, "--mt-dnn DIR"),
        ("mood", "0.2", &["--whole-seeds", "0"], 2, "--whole-seeds"),
        ("mood", "0.2", &["--small", "2"], 2, "--small 2: not a share"),
        ("mood", "0.2", &["--output", "done"], 2, "done has the results of seeds"),
    ] {
        let arguments = ["adapt", "run.toml", "--targets", targets, "--shares", shares];
        let ended = place.run(&[&arguments[..], more].concat());
        assert_eq!(ended.code, Some(code), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(said), "{said:?} is not in: {}", ended.stderr);
    }
    place.write("run.toml", RUN);
    let ended = place.run(&[&words[..], &["--targets", "mood"]].concat());
    assert!(ended.stderr.contains("--init DIR"), "{}", ended.stderr);
}
