//! The binary in a directory of its own: what it prints, writes and refuses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::TempDir;

/// A directory with a vocabulary, three tasks and a run file for a very small model.
struct Place {
    directory: TempDir,
}

const RUN: &str = r#"
output = "run"
seed = 7
[model]
vocabulary = "vocabulary"
[model.config]
vocab_size = 64
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 64
max_position_embeddings = 32
[train]
epochs = 2
batch_size = 8
learning_rate = 1e-3
max_length = 32
[[task]]
name = "mood"
train = "mood-train.tsv"
dev = "mood-dev.tsv"
text_a = "text"
label = "mood"
[[task]]
name = "likeness"
kind = "regression"
train = "likeness.tsv"
dev = "likeness.tsv"
text_a = 0
text_b = 1
label = 2
[[task]]
name = "answer"
train = "answer.jsonl"
dev = "answer.jsonl"
query = "query"
candidates = "candidates"
positive = "positive"
"#;

const WORDS: [&str; 12] =
    ["good", "bad", "fine", "poor", "film", "song", "the", "a", "was", "is", "who", "##s"];

impl Place {
    fn new() -> Self {
        let place = Self { directory: tempfile::tempdir().unwrap() };
        fs::create_dir(place.path("vocabulary")).unwrap();
        let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
        let tokens: Vec<&str> = special.iter().chain(&WORDS).copied().collect();
        place.write("vocabulary/vocab.txt", tokens.join("\n") + "\n");
        let mut mood = "text\tmood\n".to_string();
        let mut likeness = String::new();
        let mut answer = String::new();
        for number in 0..48 {
            let (first, second) = (WORDS[number % 4], WORDS[number / 4 % 4]);
            let label = if number % 4 % 2 == 0 { "up" } else { "down" };
            mood += &format!("the {} was {first}\t{label}\n", WORDS[4 + number % 2]);
            let score = if first == second { 5.0 } else { number as f32 % 3.0 };
            likeness += &format!("the film was {first}\ta song is {second}\t{score}\n");
            let positive = number % 3;
            let candidates: Vec<&str> =
                (0..3).map(|index| if index == positive { "good film" } else { "poor song" }).collect();
            answer += &format!(
                "{}\n",
                serde_json::json!({"query": format!("who was {first}"), "candidates": candidates, "positive": positive})
            );
        }
        place.write("mood-train.tsv", &mood);
        place.write("mood-dev.tsv", &mood);
        place.write("likeness.tsv", likeness);
        place.write("answer.jsonl", answer);
        place.write("run.toml", RUN);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        fs::write(self.path(name), contents).unwrap();
    }

    /// A run file like [`RUN`] with one piece of it replaced.
    fn run_file(&self, from: &str, to: &str) {
        assert!(RUN.contains(from), "{from} is not in the run file");
        self.write("run.toml", RUN.replacen(from, to, 1));
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("mtdnn-raw"));
        command.args(arguments).args(["--threads", "2"]).current_dir(self.directory.path());
        command.env("XDG_CACHE_HOME", self.path("cache")).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        Ended::from(self.command(arguments).output().unwrap())
    }

    /// Trains where no file can be longer than so many kilobytes.
    #[cfg(unix)]
    fn with_file_limit(&self, kilobytes: u32) -> Ended {
        let program = assert_cmd::cargo::cargo_bin!("mtdnn-raw").display().to_string();
        let script = format!("trap '' XFSZ; ulimit -f {kilobytes}; exec '{program}' train run.toml");
        let mut command = Command::new("bash");
        command.args(["-c", &script]).current_dir(self.directory.path());
        Ended::from(command.env("XDG_CACHE_HOME", self.path("cache")).output().unwrap())
    }

    /// Runs what must succeed.
    fn ok(&self, arguments: &[&str]) -> Ended {
        let ended = self.run(arguments);
        assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.stderr);
        ended
    }

    /// Runs what must fail with these words on standard error, without a panic and without a run directory.
    #[track_caller]
    fn refused(&self, arguments: &[&str], words: &[&str]) {
        let ended = self.run(arguments);
        assert!(matches!(ended.code, Some(1 | 2)), "{arguments:?}: {:?} {}", ended.code, ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        for word in words {
            assert!(ended.stderr.contains(word), "{word:?} is not in: {}", ended.stderr);
        }
        assert!(!self.path("run").exists(), "{arguments:?} has left a run directory");
        assert!(ended.stdout.is_empty(), "a failure printed a result: {}", ended.stdout);
    }
}

struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// A place with a trained run, made once; tests only read it.
fn trained() -> &'static Place {
    static TRAINED: OnceLock<Place> = OnceLock::new();
    TRAINED.get_or_init(|| {
        let place = Place::new();
        place.ok(&["train", "run.toml"]);
        place
    })
}

/// A fresh place with a copy of the trained model as `model`.
fn with_model() -> Place {
    let place = Place::new();
    copy(&trained().path("run/best"), &place.path("model"));
    place
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

fn json_lines(path: PathBuf) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

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
    let ended = place.with_file_limit(32);
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
    let ended = place.with_file_limit(4);
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
    place.refused(&["train", "run.toml", "--device", "cpu", "--precision", "bf16"], &["f32"]);
    place.refused(&["train", "run.toml", "--precision", "f16"], &["auto, f32 or bf16"]);
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

fn edit(model: &Path, file: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(model.join(file)).unwrap();
    change(&mut bytes);
    fs::write(model.join(file), bytes).unwrap();
}

/// Replaces all of `from` by `to`, which has the same length in binary files.
fn replace(model: &Path, file: &str, from: &str, to: &str) {
    edit(model, file, |bytes| {
        let places: Vec<usize> =
            (0..=bytes.len() - from.len()).filter(|&at| bytes[at..].starts_with(from.as_bytes())).collect();
        assert!(!places.is_empty(), "{from} is not in {file}");
        for at in places.into_iter().rev() {
            bytes.splice(at..at + from.len(), to.bytes());
        }
    });
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

#[test]
fn a_trained_model_is_a_start_for_another_run() {
    let place = with_model();
    let ended =
        place.ok(&["train", "run.toml", "--init", "model", "--max-steps", "2", "--tasks", "mood,answer"]);
    assert!(ended.stderr.contains("not used"), "the head of likeness is left out silently: {}", ended.stderr);
}
