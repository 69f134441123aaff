//! The binary in a directory of its own.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;

/// A directory with a vocabulary, three tasks and a run file for a very small model.
pub struct Place {
    pub directory: TempDir,
}

pub const RUN: &str = r#"
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

pub const WORDS: [&str; 12] =
    ["good", "bad", "fine", "poor", "film", "song", "the", "a", "was", "is", "who", "##s"];

impl Place {
    pub fn new() -> Self {
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

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        fs::write(self.path(name), contents).unwrap();
    }

    /// A run file like [`RUN`] with one piece of it replaced.
    pub fn run_file(&self, from: &str, to: &str) {
        assert!(RUN.contains(from), "{from} is not in the run file");
        self.write("run.toml", RUN.replacen(from, to, 1));
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("mtdnn-raw"));
        command.args(arguments).args(["--threads", "2"]).current_dir(self.directory.path());
        command.env("XDG_CACHE_HOME", self.path("cache")).stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ended {
        Ended::from(self.command(arguments).output().unwrap())
    }

    /// Runs where no file can be longer than so many kilobytes.
    #[cfg(unix)]
    pub fn with_file_limit(&self, kilobytes: u32, arguments: &[&str]) -> Ended {
        let program = assert_cmd::cargo::cargo_bin!("mtdnn-raw");
        let script = format!("trap '' XFSZ; ulimit -f {kilobytes}; exec \"$0\" \"$@\"");
        let mut command = Command::new("bash");
        command.args(["-c", &script]).arg(program).args(arguments).current_dir(self.directory.path());
        Ended::from(command.env("XDG_CACHE_HOME", self.path("cache")).output().unwrap())
    }

    /// Runs what must succeed.
    pub fn ok(&self, arguments: &[&str]) -> Ended {
        let ended = self.run(arguments);
        assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.stderr);
        ended
    }

    /// Runs what must fail with these words on standard error, without a panic and without a run directory.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str], words: &[&str]) {
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

pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// A place with a trained run, made once; tests only read it.
pub fn trained() -> &'static Place {
    static TRAINED: OnceLock<Place> = OnceLock::new();
    TRAINED.get_or_init(|| {
        let place = Place::new();
        place.ok(&["train", "run.toml"]);
        place
    })
}

/// A fresh place with a copy of the trained model as `model`.
pub fn with_model() -> Place {
    let place = Place::new();
    copy(&trained().path("run/best"), &place.path("model"));
    place
}

pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

pub fn json_lines(path: PathBuf) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub fn edit(model: &Path, file: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(model.join(file)).unwrap();
    change(&mut bytes);
    fs::write(model.join(file), bytes).unwrap();
}

/// Replaces all of `from` by `to`, which has the same length in binary files.
pub fn replace(model: &Path, file: &str, from: &str, to: &str) {
    edit(model, file, |bytes| {
        let places: Vec<usize> =
            (0..=bytes.len() - from.len()).filter(|&at| bytes[at..].starts_with(from.as_bytes())).collect();
        assert!(!places.is_empty(), "{from} is not in {file}");
        for at in places.into_iter().rev() {
            bytes.splice(at..at + from.len(), to.bytes());
        }
    });
}
