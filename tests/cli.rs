//! The binary in a directory of its own: what it prints and writes, and what it survives.

#[path = "common/place.rs"]
mod place;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use place::*;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

// A whole run and what can be done with its model.

#[test]
fn a_run_leaves_models_state_and_log() {
    let place = trained();
    for file in ["config.toml", "metrics.jsonl", "state/progress.json", "last/model.safetensors"] {
        assert!(place.path("run").join(file).is_file(), "no {file}");
    }
    for file in ["config.json", "model.safetensors", "vocab.txt", "mtdnn.json"] {
        assert!(place.path("run/best").join(file).is_file(), "no best/{file}");
    }
    let lines = json_lines(place.path("run/metrics.jsonl"));
    let steps: Vec<&Value> = lines.iter().filter(|line| line["event"] == "step").collect();
    // 48 examples of each task in batches of 8, two epochs.
    assert_eq!(steps.len(), 36);
    assert_eq!(steps[35]["update"], 36);
    assert!(steps.iter().all(|line| line["loss"].is_f64() && line["gradient_norm"].is_f64()));
    assert_eq!(lines.iter().filter(|line| line["event"] == "evaluation").count(), 6);
}

#[test]
fn eval_finds_the_figures_of_the_best_evaluation() {
    let place = trained();
    let ended =
        place.ok(&["eval", "--model", "run/best", "--data", "run/config.toml", "--json", "eval.json"]);
    let figures: Value = serde_json::from_slice(&fs::read(place.path("eval.json")).unwrap()).unwrap();
    let state: Value =
        serde_json::from_slice(&fs::read(place.path("run/state/progress.json")).unwrap()).unwrap();
    assert_eq!(figures["mean"], state["progress"]["best"]["mean"]);
    for task in ["mood", "likeness", "answer"] {
        assert!(ended.stdout.contains(task), "{}", ended.stdout);
    }
    let only = place.ok(&["eval", "--model", "run/best", "--data", "run.toml", "--tasks", "mood"]);
    assert!(only.stdout.contains("mood") && !only.stdout.contains("answer"), "{}", only.stdout);
    let above = place.run(&["predict", "--model", "run", "--task", "mood"]);
    assert!(above.stderr.contains("did you mean run/best?"), "{}", above.stderr);
}

/// A task without a dev set does not cost the others their figures, unless it is asked for.
#[test]
fn eval_leaves_out_what_has_no_dev_set() {
    let place = trained();
    let text = fs::read_to_string(place.path("run.toml")).unwrap();
    let dev = text.lines().find(|line| line.starts_with("dev = ")).unwrap();
    place.write("other.toml", text.replacen(dev, "", 1));
    let some = place.ok(&["eval", "--model", "run/best", "--data", "other.toml"]);
    assert!(some.stderr.contains("not measured: task mood has no dev set"), "{}", some.stderr);
    assert!(some.stdout.contains("answer") && !some.stdout.contains("mood"), "{}", some.stdout);
    let asked = place.run(&["eval", "--model", "run/best", "--data", "other.toml", "--tasks", "mood"]);
    assert_eq!(asked.code, Some(1), "{}", asked.stderr);
}

/// Where the figures cannot be written is said before they are computed, and what is there stays until they are.
#[test]
fn the_file_for_the_figures_is_tried_first() {
    let place = with_model();
    let eval = |data, json| ["eval", "--model", "model", "--data", data, "--json", json];
    for json in ["absent/eval.json", "model"] {
        let ended = place.run(&eval("run.toml", json));
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        assert!(ended.stderr.contains(&format!("--json {json}: cannot be written")), "{}", ended.stderr);
        assert!(!ended.stderr.contains("measuring"), "it was measured first: {}", ended.stderr);
    }
    place.write("earlier.json", "the figures before");
    for json in ["earlier.json", "new.json"] {
        assert_eq!(place.run(&eval("absent", json)).code, Some(1));
    }
    assert_eq!(fs::read_to_string(place.path("earlier.json")).unwrap(), "the figures before");
    assert!(!place.path("new.json").exists(), "a failed evaluation has left a file");
    place.ok(&eval("run.toml", "earlier.json"));
    serde_json::from_slice::<Value>(&fs::read(place.path("earlier.json")).unwrap()).unwrap();
}

/// Of a model whose `mtdnn.json` does not say how many texts its tasks read, one text and two are answered.
#[test]
fn predict_answers_every_line() {
    let place = with_model();
    replace(&place.path("model"), "mtdnn.json", "\"texts\": \"single\",", "");
    replace(&place.path("model"), "mtdnn.json", "\"texts\": \"pair\",", "");
    place.write("in.txt", "the film was good\nthe song was bad\r\nthe film\tthe song");
    let ended = place.ok(&["predict", "--model", "model", "--task", "mood,likeness", "in.txt"]);
    let lines: Vec<Vec<&str>> = ended.stdout.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(lines.len(), 3);
    for line in &lines {
        assert_eq!((line[0], line[3]), ("mood", "likeness"), "{line:?}");
        let probability = |column: &str| column.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
        assert!((probability(line[1]) + probability(line[2]) - 1.0).abs() < 2e-4, "{line:?}");
        assert!(probability(line[1]) >= probability(line[2]), "{line:?}");
        line[4].parse::<f64>().unwrap();
    }
}

#[test]
fn predict_reads_standard_input_and_prints_json() {
    let place = trained();
    let mut command = place.command(&["predict", "--model", "run/best", "--task", "answer", "--json", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let input = b"who was good\tgood film\tpoor song\n{\n";
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), &input[..input.len() - 2]).unwrap();
    let output = child.wait_with_output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ranking = answer["answer"]["ranking"].as_array().unwrap();
    assert_eq!(ranking.len(), 2);
    let sum: f64 = ranking.iter().map(|candidate| candidate["probability"].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-6);
}

/// Whether a task reads one text or pairs is in `mtdnn.json`, and a line of the other shape has no answer.
#[test]
fn predict_wants_the_texts_that_a_task_was_trained_on() {
    let place = with_model();
    place.write("one.txt", "the film was good\na song\n");
    place.write("two.txt", "the film\tthe song\n");
    place.write("mixed.jsonl", "{\"text_a\": \"a\", \"text_b\": \"film\"}\n{\"text_a\": \"a\"}\n");
    let predict = |task, file| ["predict", "--model", "model", "--task", task, file];
    place.ok(&predict("mood", "one.txt"));
    place.ok(&predict("likeness", "two.txt"));
    place.refused(&predict("mood", "two.txt"), &["two.txt:1: task mood reads one text", "text_a alone"]);
    place.refused(&predict("likeness", "one.txt"), &["one.txt:1: task likeness reads two texts", "a tab"]);
    place.refused(&predict("likeness", "mixed.jsonl"), &["mixed.jsonl:2: task likeness", "text_b"]);
    place.refused(
        &predict("likeness,mood", "two.txt"),
        &["mood reads one text and likeness two", "one after another"],
    );
}

#[test]
fn encode_writes_vectors_in_the_order_of_the_lines() {
    let place = trained();
    place.write("in.txt", "the film was good\ngood\nthe film\tthe song\n");
    place.ok(&["encode", "--model", "run/best", "in.txt", "--output", "out.safetensors"]);
    let bytes = fs::read(place.path("out.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let starts = tensors.tensor("starts").unwrap();
    assert_eq!(starts.dtype(), Dtype::I64);
    let starts: Vec<i64> =
        starts.data().chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect();
    assert_eq!(starts, [0, 6, 9, 16]);
    let hidden = tensors.tensor("last_hidden_state").unwrap();
    assert_eq!((hidden.dtype(), hidden.shape()), (Dtype::F32, &[16, 32][..]));
    assert_eq!(tensors.tensor("pooled").unwrap().shape(), [3, 32]);

    // A line's vectors do not depend on the lines beside it.
    place.write("one.txt", "good\n");
    place.ok(&["encode", "--model", "run/best", "one.txt", "--output", "one.safetensors"]);
    let alone = fs::read(place.path("one.safetensors")).unwrap();
    let alone = SafeTensors::deserialize(&alone).unwrap();
    assert_eq!(alone.tensor("last_hidden_state").unwrap().data(), &hidden.data()[6 * 32 * 4..9 * 32 * 4]);
}

#[test]
fn encode_takes_a_plain_encoder() {
    let place = with_model();
    fs::remove_file(place.path("model/mtdnn.json")).unwrap();
    place.write("in.txt", "the film was good\n");
    place.ok(&["encode", "--model", "model", "in.txt", "--output", "out.safetensors"]);
    let ended = place.run(&["predict", "--model", "model", "--task", "mood", "in.txt"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("mtdnn.json"), "{}", ended.stderr);
}

#[test]
fn doctor_finds_the_engine_right() {
    let place = Place::new();
    let text = place.run(&["doctor"]);
    assert!(
        text.stdout.lines().any(|line| line.starts_with("ok") && line.contains("known answer")),
        "{}",
        text.stdout
    );
    let json = place.run(&["doctor", "--json"]);
    for line in json.stdout.lines() {
        let finding: Value = serde_json::from_str(line).unwrap();
        assert_eq!(finding["ok"], finding["remedy"].is_null());
    }
}

/// The whole is shown by the binary itself; here only that it begins, ends, and does not write over the last one.
#[test]
fn without_arguments_the_sample_tasks_are_trained() {
    let place = Place::new();
    for name in ["sample", "sample-2"] {
        let ended = place.ok(&["train", "--max-steps", "2"]);
        assert!(place.path("runs").join(name).join("best/model.safetensors").is_file(), "no {name}");
        assert!(ended.stdout.starts_with("task"), "{}", ended.stdout);
        for task in ["sentiment", "inference", "similarity", "answers"] {
            assert!(ended.stdout.contains(task), "{}", ended.stdout);
        }
        assert!(ended.stderr.contains("what next"), "{}", ended.stderr);
    }
    let model = "runs/sample/best";
    place.ok(&["eval", "--model", model, "--data", "runs/sample/config.toml", "--tasks", "sentiment"]);
}

/// In bf16 losses are near those of f32 and none of them, and the same again.
#[test]
fn the_cpu_trains_in_bf16() {
    let place = Place::new();
    let losses = |name: &str, rest: &[&str]| {
        let run = [
            "train",
            "run.toml",
            "--device",
            "cpu",
            "--eval",
            "never",
            "--max-steps",
            "12",
            "--output",
            name,
        ];
        let ended = place.ok(&[&run[..], rest].concat());
        let lines = json_lines(place.path(name).join("metrics.jsonl"));
        let losses: Vec<f64> = lines.iter().filter_map(|line| line["loss"].as_f64()).collect();
        assert_eq!(losses.len(), 12);
        (losses, ended.stderr)
    };
    let (exact, wide) = losses("wide", &["--precision", "f32"]);
    let (narrow, said) = losses("narrow", &["--precision", "bf16"]);
    let (again, _) = losses("again", &["--precision", "bf16"]);
    assert!(said.contains("device: cpu, bf16") && !wide.contains("bf16"), "{said}\n{wide}");
    assert_eq!(narrow, again);
    assert_ne!(narrow, exact);
    for (narrow, exact) in narrow.iter().zip(&exact) {
        assert!((narrow - exact).abs() < 0.02 * exact.abs().max(1.0), "{narrow} instead of {exact}");
    }
    let go_on = ["train", "--resume", "--output", "narrow", "--device", "cpu", "--precision"];
    let other = place.run(&[&go_on[..], &["f32"]].concat());
    assert_eq!(other.code, Some(2));
    assert!(other.stderr.contains("--precision f32: what is there was computed in bf16"), "{}", other.stderr);
    for precision in ["bf16", "auto"] {
        let ended = place.ok(&[&go_on[..], &[precision]].concat());
        assert!(ended.stderr.contains("device: cpu, bf16"), "{}", ended.stderr);
    }
    assert!(said.contains(" more while saving"), "{said}");
}

#[test]
fn instructions_that_the_processor_lacks_are_refused() {
    let place = Place::new();
    for wish in ["avx9", ""] {
        let ended = Ended::from(place.command(&["doctor"]).env("MTDNN_ISA", wish).output().unwrap());
        assert_eq!(ended.code, Some(2));
        let said = format!("MTDNN_ISA={wish}: this machine offers portable");
        assert!(ended.stderr.contains(&said), "{}", ended.stderr);
    }
}

/// The fastest instructions against the plainest, operation by operation; nothing is trained.
#[test]
fn a_check_compares_and_leaves_nothing() {
    let place = Place::new();
    let ended = place.run(&["train", "run.toml", "--check", "--device", "cpu"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for task in ["mood", "likeness", "answer"] {
        let line = ended.stdout.lines().find(|line| line.starts_with(&format!("{task}: ")));
        assert!(line.is_some_and(|line| line.contains("results agree")), "{}", ended.stdout);
    }
    assert!(!place.path("run").exists(), "a check has left a run directory");
}

#[test]
fn a_trained_model_is_a_start_for_another_run() {
    let place = with_model();
    let ended =
        place.ok(&["train", "run.toml", "--init", "model", "--max-steps", "2", "--tasks", "mood,answer"]);
    assert!(ended.stderr.contains("not used"), "the head of likeness is left out silently: {}", ended.stderr);
}

// What a run does not do.

#[test]
fn earlier_results_are_kept() {
    let place = Place::new();
    copy(&trained().path("run"), &place.path("run"));
    let before = fs::read(place.path("run/best/model.safetensors")).unwrap();
    let ended = place.run(&["train", "run.toml", "--seed", "8"]);
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stderr.contains("already holds a run") && ended.stderr.contains("--resume"),
        "{}",
        ended.stderr
    );
    assert_eq!(fs::read(place.path("run/best/model.safetensors")).unwrap(), before);
    let config = fs::read_to_string(place.path("run/config.toml")).unwrap();
    assert!(config.contains("seed = 7"), "{config}");
}

#[test]
fn a_finished_run_resumes_to_its_table() {
    let place = Place::new();
    place.ok(&["train", "run.toml"]);
    let log = fs::read(place.path("run/metrics.jsonl")).unwrap();
    let ended = place.ok(&["train", "--output", "run", "--resume"]);
    assert!(ended.stdout.contains("mood") && ended.stdout.contains("best mean"), "{}", ended.stdout);
    assert_eq!(fs::read(place.path("run/metrics.jsonl")).unwrap(), log);
}

#[test]
fn resuming_otherwise_names_the_key() {
    let place = Place::new();
    place.ok(&["train", "run.toml", "--max-steps", "3"]);
    let ended = place.run(&["train", "--output", "run", "--resume", "--batch-size", "4"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("batch_size was 8 and is now 4"), "{}", ended.stderr);
    place.ok(&["train", "--output", "run", "--resume", "--patience", "3"]);

    place.write("mood-train.tsv", "text\tmood\na film\tup\na song\tdown\n");
    let ended = place.run(&["train", "--output", "run", "--resume"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("examples of task \"mood\""), "{}", ended.stderr);
}

#[test]
fn resuming_nothing_says_so() {
    let place = Place::new();
    place.refused(&["train", "--resume"], &["--output"]);
    place.refused(&["train", "--resume", "--output", "run"], &["run holds no run"]);
}

// Stopping, crashing, failing.

/// Starts a run that takes many steps, and waits for its first checkpoint.
fn long_run(place: &Place) -> Child {
    let arguments = ["train", "run.toml", "--epochs", "40", "--checkpoint-every", "20", "--eval", "50"];
    let child = place.command(&arguments).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while !place.path("run/state/progress.json").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no checkpoint came");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

/// The model of the same run when nothing stops it.
fn undisturbed() -> &'static [u8] {
    static MODEL: OnceLock<Vec<u8>> = OnceLock::new();
    MODEL.get_or_init(|| {
        let place = Place::new();
        place.ok(&["train", "run.toml", "--epochs", "40", "--checkpoint-every", "20", "--eval", "50"]);
        fs::read(place.path("run/last/model.safetensors")).unwrap()
    })
}

#[test]
fn a_killed_run_goes_on_to_the_same_bits() {
    let place = Place::new();
    let mut child = long_run(&place);
    std::thread::sleep(Duration::from_millis(20));
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert!(!status.success(), "it had ended before it was killed: the test shows nothing");
    place.ok(&["train", "--output", "run", "--resume"]);
    assert!(fs::read(place.path("run/last/model.safetensors")).unwrap() == undisturbed());
}

#[cfg(unix)]
#[test]
fn a_stopped_run_saves_and_goes_on_to_the_same_bits() {
    let place = Place::new();
    let mut child = long_run(&place);
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(75));
    place.ok(&[
        "train",
        "run.toml",
        "--epochs",
        "40",
        "--checkpoint-every",
        "20",
        "--eval",
        "50",
        "--resume",
    ]);
    assert!(fs::read(place.path("run/last/model.safetensors")).unwrap() == undisturbed());
}

#[test]
fn a_second_process_is_told_who_holds_the_directory() {
    let place = Place::new();
    let mut child = long_run(&place);
    let ended = place.run(&["train", "--output", "run", "--resume"]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains(&format!("process {}", child.id())), "{}", ended.stderr);
}

/// Without room for a model file, which is larger than the limit, while the log is smaller.
#[cfg(unix)]
#[test]
fn a_save_that_fails_is_said_and_training_goes_on() {
    let place = Place::new();
    let ended = place.with_file_limit(32, &["train", "run.toml"]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("NOT SAVED") && ended.stderr.contains("state"), "{}", ended.stderr);
    let steps = json_lines(place.path("run/metrics.jsonl"));
    assert_eq!(steps.iter().filter(|line| line["event"] == "step").count(), 36, "training did not go on");
    for name in ["state", "last", "best", ".state.new", ".last.new", ".best.new"] {
        assert!(!place.path("run").join(name).exists(), "{name} is half written");
    }
    // With room again, the run can be had.
    place.ok(&["train", "run.toml", "--resume"]);
}

/// Four kilobytes hold the settings and some of the log.
#[cfg(unix)]
#[test]
fn a_log_that_cannot_be_written_is_said_and_training_goes_on() {
    let place = Place::new();
    let ended = place.with_file_limit(4, &["train", "run.toml"]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("NOT SAVED: could not write to the log").count(), 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("update 36"), "{}", ended.stderr);
    json_lines(place.path("run/metrics.jsonl"));
}

#[test]
fn a_loss_that_diverges_stops_the_run() {
    let place = Place::new();
    let ended = place.run(&[
        "train",
        "run.toml",
        "--learning-rate",
        "1e30",
        "--warmup",
        "0",
        "--checkpoint-every",
        "1",
    ]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("of task") && ended.stderr.contains("at step"), "{}", ended.stderr);
    assert!(ended.stderr.contains("learning rate"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

/// An update to infinity is not saved over anything, though loss and gradient before it were sound.
#[test]
fn parameters_that_are_not_finite_are_never_saved() {
    let place = Place::new();
    let rate = ["--learning-rate", "3e38", "--warmup", "0", "--schedule", "constant"];
    let ended = place.run(&[&["train", "run.toml", "--max-steps", "2"][..], &rate[..]].concat());
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("diverged"), "{}", ended.stderr);
    for name in ["state", "last", "best"] {
        assert!(!place.path("run").join(name).exists(), "{name} holds what cannot be used");
    }
}

#[test]
fn eval_and_train_have_one_baseline() {
    let place = Place::new();
    let rows = |up: usize, down: usize| {
        let row = |label: &str| format!("the film was good\t{label}\n");
        format!("text\tmood\n{}{}", row("up").repeat(up), row("down").repeat(down))
    };
    place.write("mood-train.tsv", rows(10, 5));
    place.write("mood-dev.tsv", rows(1, 3));
    let baseline = |stdout: &str| {
        let line = stdout.lines().find(|line| line.starts_with("mood")).unwrap().to_string();
        line.split_whitespace().last().unwrap().to_string()
    };
    let trained = place.ok(&["train", "run.toml", "--tasks", "mood", "--epochs", "1"]);
    // The most frequent label of the train set.
    assert_eq!(baseline(&trained.stdout), "0.2500", "{}", trained.stdout);
    let measured = place.ok(&["eval", "--model", "run/best", "--data", "run.toml"]);
    assert_eq!(baseline(&measured.stdout), "0.2500", "{}", measured.stdout);
}
