//! Masked words as one task of several: that they are learnt beside another, go on exactly, and go from a run file to
//! figures and words.

#[path = "common/place.rs"]
mod place;
#[path = "common/runs.rs"]
mod runs;
#[path = "common/texts.rs"]
mod texts;

use std::fs;
use std::path::Path;

use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::data::{Dataset, Label, MaskedOptions, MaskedText, MetricKind, TaskKind, TaskSpec};
use mtdnn_raw::nn::{BertConfig, Model};
use mtdnn_raw::tensor::Space;
use mtdnn_raw::train::baseline::baseline;
use mtdnn_raw::train::config::{EvalEvery, TrainConfig};
use mtdnn_raw::train::evaluate::Evaluation;
use mtdnn_raw::train::schedule::ScheduleKind;
use mtdnn_raw::train::trainer::{Observer, Progress, StepReport, TaskData, Trainer};
use place::{Place, RUN, json_lines};
use runs::{bits, new_parameters, read, task, write};

/// A model with a task of masked words and one that tells a document's kind, and the sets of both.
struct Setup {
    model: Model,
    data: Vec<TaskData>,
}

impl Setup {
    fn new(dropout: f64, next_sentence: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = texts::Files::new(folder.path());
        let tokenizer = texts::tokenizer();
        let (text, dev_text) = (vec![files.train], vec![files.dev]);
        let options = MaskedOptions { next_sentence, text, dev_text, ..MaskedOptions::default() };
        let masked = MaskedText {
            task: "words",
            options: &options,
            tokenizer: &tokenizer,
            vocabulary: Path::new("vocab.txt"),
            max_length: 32,
            cache: None,
        };
        let train = masked.train(1, &mut |_, _, _| true).unwrap().unwrap().dataset;
        let dev = vec![("dev".to_string(), masked.dev(&mut |_, _, _| true).unwrap().unwrap().dataset)];
        let kinds = |lines: &str| {
            let mut set = Dataset::new();
            for line in lines.lines().filter(|line| !line.is_empty()) {
                let sequence = tokenizer.encode(line, None, 32);
                set.push_sequence(&sequence.ids, sequence.second);
                // The first of the five special tokens' successors is w0.
                set.finish_example(Label::Class((sequence.ids[1] - 5) / texts::WORDS_OF_A_KIND));
            }
            set
        };
        let of_kinds = TaskData {
            train: kinds(&texts::documents(60, 3)),
            dev: vec![("dev".to_string(), kinds(&texts::documents(20, 4)))],
        };
        let mut words = TaskSpec { masked: Some(options), ..TaskSpec::new("words", TaskKind::Masked) };
        words.metrics.retain(|&metric| next_sentence || metric != MetricKind::NextAccuracy);
        let tasks = [words, task("kinds", TaskKind::Classification, texts::KINDS as usize)];
        let config = BertConfig {
            hidden_dropout_prob: dropout,
            attention_probs_dropout_prob: dropout,
            ..texts::encoder(32, 1)
        };
        Self { model: Model::new(&config, &tasks), data: vec![TaskData { train, dev }, of_kinds] }
    }

    fn trainer<'a>(&'a self, config: &TrainConfig, backend: &'a mut CpuBackend) -> Trainer<'a> {
        let mut trainer = Trainer::new(config, 1, &self.model, &self.data, backend).unwrap();
        write(trainer.backend(), Space::Parameters, &new_parameters(&self.model, 1));
        trainer
    }
}

fn config() -> TrainConfig {
    TrainConfig {
        epochs: 100,
        batch_size: 16,
        learning_rate: 2e-3,
        schedule: ScheduleKind::Constant,
        warmup: 0.0,
        eval: EvalEvery::Never,
        max_length: 32,
        ..TrainConfig::default()
    }
}

#[derive(Default)]
struct Figures(Vec<Evaluation>, Vec<StepReport>);

impl Observer for Figures {
    fn step(&mut self, _: &Progress, report: &StepReport) -> anyhow::Result<()> {
        self.1.push(*report);
        Ok(())
    }
    fn evaluated(&mut self, _: &Progress, found: &[Evaluation], _: f64) -> anyhow::Result<()> {
        self.0 = found.to_vec();
        Ok(())
    }
    fn best(&mut self, _: &mut Trainer<'_>) -> anyhow::Result<()> {
        Ok(())
    }
    fn checkpoint(&mut self, _: &mut Trainer<'_>) -> anyhow::Result<()> {
        Ok(())
    }
    fn stop(&self) -> bool {
        false
    }
}

/// A document's words are 4 of 24: who finds out which guesses a word rightly in a fourth of the cases, and has a
/// perplexity of 4 where who reads nothing has 24, but for full stops.
#[test]
fn masked_words_and_another_task_are_learnt_together() {
    let setup = Setup::new(0.0, true);
    let config = TrainConfig { max_steps: 1500, eval: EvalEvery::Epoch, epochs: 200, ..config() };
    let mut backend = CpuBackend::new();
    let mut trainer = setup.trainer(&config, &mut backend);
    let mut figures = Figures::default();
    // The first step of each task is at chance: ln V and ln 2 together, and ln 6.
    trainer.run(&mut figures).unwrap();
    let first = |task| figures.1.iter().find(|step| step.task == task).unwrap().loss;
    let chance = (texts::tokenizer().vocab_size() as f32).ln() + 2f32.ln();
    assert!((first(0) / chance - 1.0).abs() < 0.03, "{} and {chance}", first(0));
    let [words, kinds] = &figures.0[..] else { panic!("{:?}", figures.0) };
    let floor = baseline(&setup.model.tasks()[0], &setup.data[0].train, &setup.data[0].dev[0].1);
    let values: Vec<f64> = words.metrics.iter().map(|metric| metric.1).collect();
    assert!(values[0] > floor[0] + 0.02, "{:?} and {floor:?}", words.metrics);
    assert!(values[1] > floor[1], "{:?} and {floor:?}", words.metrics);
    assert!(values[2].ln() < 0.75 * floor[2].ln(), "{:?} and {floor:?}", words.metrics);
    assert!(kinds.metrics[0].1 > 0.9, "{:?}", kinds.metrics);
}

/// Ten steps, and five and five with another trainer, end in the same bits, dropout and hidden tokens and all.
#[test]
fn a_run_goes_on_exactly() {
    for next_sentence in [true, false] {
        let setup = Setup::new(0.1, next_sentence);
        let state = |trainer: &mut Trainer| {
            let len = trainer.model().parameters().len();
            [Space::Parameters, Space::FirstMoment, Space::SecondMoment]
                .map(|space| read(trainer.backend(), space, len))
        };
        let steps = |trainer: &mut Trainer, count: usize| -> Vec<StepReport> {
            (0..count).map(|_| trainer.step().unwrap()).collect()
        };
        let (mut one, mut two, mut three) = (CpuBackend::new(), CpuBackend::new(), CpuBackend::new());
        let mut whole = setup.trainer(&config(), &mut one);
        let expected = steps(&mut whole, 10);
        assert!((0..2).all(|task| expected.iter().any(|step| step.task == task)), "a task was not trained");
        let mut half = setup.trainer(&config(), &mut two);
        let mut found = steps(&mut half, 5);
        let (saved, progress) = (state(&mut half), half.progress().clone());
        let mut rest = setup.trainer(&config(), &mut three);
        for (space, values) in
            [Space::Parameters, Space::FirstMoment, Space::SecondMoment].into_iter().zip(&saved)
        {
            write(rest.backend(), space, values);
        }
        rest.resume(progress);
        found.extend(steps(&mut rest, 5));
        assert_eq!(found, expected);
        let (whole, rest) = (state(&mut whole), state(&mut rest));
        assert!(whole.iter().zip(&rest).all(|(whole, rest)| bits(whole) == bits(rest)));
    }
}

/// A run file with a task of masked words before its others.
fn with_text(more: &str) -> Place {
    let place = Place::new();
    let text = "the film was good\nthe song is poor\nwho is bad\n\na film is fine\nthe songs was good\n\n"
        .repeat(20);
    place.write("text.txt", &text);
    place.write("dev.txt", &text);
    place.write("empty.txt", "\n");
    let task = format!("[[task]]\nname = \"words\"\nkind = \"masked\"\n{more}\n");
    let (head, rest) = RUN.split_once("[[task]]").unwrap();
    place.write("run.toml", format!("{head}{task}[[task]]{rest}"));
    place
}

#[test]
fn from_a_run_file_to_figures_and_words() {
    let place = with_text("text = [\"text.txt\"]\ndev_text = [\"dev.txt\"]\nexamples = 40");
    let trained = place.ok(&["train", "run.toml"]);
    assert!(trained.stderr.contains("task words: trained on 40 of its"), "{}", trained.stderr);
    let evaluated = place.ok(&["eval", "--model", "run/best", "--data", "run.toml"]);
    let rows = |text: &str| -> Vec<String> {
        let wanted = |line: &&str| {
            ["masked-accuracy", "next-accuracy", "perplexity"].iter().any(|name| line.contains(name))
        };
        let row = |line: &str| line.split_whitespace().rev().take(3).collect::<Vec<_>>().join(" ");
        text.lines().filter(wanted).map(row).collect()
    };
    assert_eq!(rows(&trained.stdout).len(), 3, "{}", trained.stdout);
    assert_eq!(rows(&trained.stdout), rows(&evaluated.stdout));
    // The last checkpoint's words; BERT's names, so that others load it.
    let filled = place.ok(&["fill", "--model", "run/best", "the film was [MASK]"]);
    assert_eq!(filled.stdout.lines().count(), 1, "{}", filled.stdout);
    let weights = fs::read(place.path("run/best/model.safetensors")).unwrap();
    let head = String::from_utf8_lossy(&weights[8..20_000.min(weights.len())]).into_owned();
    for name in [
        "\"cls.predictions.transform.dense.weight\"",
        "\"cls.predictions.bias\"",
        "\"cls.seq_relationship.weight\"",
        "\"bert.embeddings.word_embeddings.weight\"",
        "\"heads.mood.weight\"",
    ] {
        assert!(head.contains(name), "{name}");
    }
    let config = fs::read_to_string(place.path("run/best/config.json")).unwrap();
    assert!(config.contains("BertForPreTraining"), "{config}");
    let refused = place.run(&["predict", "--model", "run/best", "--task", "words", "dev.txt"]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("mtdnn-raw fill"), "{}", refused.stderr);
    place.write("line.txt", "the film was good\n");
    let predicted = place.ok(&["predict", "--model", "run/best", "--task", "mood", "line.txt"]);
    assert_eq!(predicted.stdout.lines().count(), 1, "{}", predicted.stdout);
    // Another run begins with the head of this one.
    let text = fs::read_to_string(place.path("run.toml")).unwrap().replace("\"run\"", "\"again\"");
    let (before, after) = text.split_once("[model]").unwrap();
    let (_, after) = after.split_once("[train]").unwrap();
    place.write("again.toml", format!("{before}[train]{after}"));
    let begun = place.ok(&["train", "again.toml", "--init", "run/best", "--max-steps", "1"]);
    assert!(
        begun.stderr.contains("0 missing, 0 not used") && !begun.stderr.contains("cls."),
        "{}",
        begun.stderr
    );
    let steps = json_lines(place.path("run/metrics.jsonl"));
    let words = steps.iter().filter(|line| line["event"] == "step" && line["task"] == "words");
    assert!(words.count() >= 10, "40 pairs in batches of 8, twice");
}

#[test]
fn a_run_without_dev_text_and_next_sentences_is_trained() {
    let place = with_text("text = [\"text.txt\"]\nnext_sentence = false\nmask_share = 0.3");
    let trained = place.ok(&["train", "run.toml", "--max-steps", "4"]);
    assert!(trained.stderr.contains("task words: no dev set"), "{}", trained.stderr);
    let weights = fs::read(place.path("run/last/model.safetensors")).unwrap();
    let head = String::from_utf8_lossy(&weights[8..20_000.min(weights.len())]).into_owned();
    assert!(head.contains("cls.predictions.bias") && !head.contains("cls.seq_relationship"));
}

#[test]
fn what_a_run_cannot_do_is_refused() {
    for (more, words) in [
        ("dev_text = [\"dev.txt\"]", "name text, a list"),
        ("text = [\"empty.txt\"]", "empty.txt"),
        ("text = [\"none.txt\"]", "none.txt"),
        ("text = [\"text.txt\"]\ndev_text = [\"empty.txt\"]", "empty.txt"),
        ("text = [\"text.txt\"]\ntrain = \"text.txt\"", "train means nothing to masked"),
        ("text = [\"text.txt\"]\nmask_share = 1.5", "mask_share is 1.5"),
        (
            "text = [\"text.txt\"]\n[[task]]\nname = \"more\"\nkind = \"masked\"\ntext = [\"dev.txt\"]",
            "tasks \"words\" and \"more\" are both of masked words",
        ),
    ] {
        with_text(more).refused(&["train", "run.toml"], &[words]);
    }
    let place = with_text("text = [\"text.txt\"]");
    place.refused(&["train", "run.toml", "--max-length", "4"], &["--max-length", "task words"]);
    let text = fs::read_to_string(place.path("vocabulary/vocab.txt")).unwrap().replace("[MASK]", "[unused1]");
    place.write("vocabulary/vocab.txt", text);
    place.refused(&["train", "run.toml"], &["no [MASK]"]);
}
