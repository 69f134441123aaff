//! Whole runs of pre-training, from text files to a run directory: that they learn, repeat themselves to the bit, and
//! refuse what they must.

#[path = "common/texts.rs"]
mod texts;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::data::Tokenizer;
use mtdnn_raw::nn::{Model, directory};
use mtdnn_raw::train::config::ModelConfig;
use mtdnn_raw::train::monitor::{Event, Monitor};
use mtdnn_raw::train::pretrain::run::{self, Outcome, PretrainRun};
use mtdnn_raw::train::pretrain::{Evaluation, Phase, PretrainConfig, StepReport};
use mtdnn_raw::train::schedule::ScheduleKind;
use mtdnn_raw::train::trainer::Ending;
use tempfile::TempDir;
use texts::Files;

/// A folder with text and a vocabulary; runs of one name are the same run.
struct Place {
    folder: TempDir,
    files: Files,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { files: Files::new(folder.path()), folder }
    }

    /// A few updates of a very small model, over two phases, with dropout, sums of two batches and a short last phase.
    fn run(&self, name: &str) -> PretrainRun {
        let model = ModelConfig {
            vocabulary: Some(self.files.vocabulary.clone()),
            config: Some(texts::encoder(16, 1)),
            ..ModelConfig::default()
        };
        let phase = |max_length, batch_size, steps| Phase { max_length, batch_size, steps };
        let pretrain = PretrainConfig {
            output: self.folder.path().join(name),
            text: vec![self.files.train.clone()],
            dev_text: vec![self.files.dev.clone()],
            corpus: Some(self.folder.path().join("corpus")),
            model,
            phases: vec![phase(32, 4, 5), phase(64, 2, 3)],
            accumulation: 2,
            learning_rate: 1e-2,
            warmup: 0.25,
            eval_every: 3,
            eval_pairs: 8,
            checkpoint_every: 2,
            ..PretrainConfig::default()
        };
        PretrainRun { seed: 7, pretrain }
    }
}

/// Watches a run, and ends it where it is told to.
#[derive(Default)]
struct Watcher {
    said: Vec<String>,
    steps: Vec<StepReport>,
    evaluations: Vec<Evaluation>,
    /// How often the run asked whether to stop, and from which question on the answer is yes.
    questions: Cell<usize>,
    stop_at: Option<usize>,
    /// How much has happened, and what is the last that does.
    events: usize,
    die_at: Option<usize>,
    /// A directory that someone else makes where the first save of it is to come, and removes when the run complains.
    in_the_way: Option<PathBuf>,
}

impl Monitor for Watcher {
    fn seconds(&self) -> f64 {
        0.0
    }

    fn stop(&self) -> bool {
        self.questions.set(self.questions.get() + 1);
        self.stop_at.is_some_and(|at| self.questions.get() >= at)
    }

    fn tell(&mut self, event: Event<'_>) {
        self.events += 1;
        if self.die_at == Some(self.events) {
            resume_unwind(Box::new("died"));
        }
        if let Some(path) = &self.in_the_way {
            match event {
                Event::Saving { path: saved } if saved == path && !path.exists() => {
                    fs::create_dir(path).unwrap();
                }
                Event::Warning(text) if text.contains("NOT SAVED") => {
                    fs::remove_dir(path).unwrap();
                    self.in_the_way = None;
                }
                _ => {}
            }
        }
        match event {
            Event::Note(text) | Event::Warning(text) => self.said.push(text.to_string()),
            Event::Pretrained { report } => self.steps.push(*report),
            Event::TextMeasured { evaluation } => self.evaluations.push(*evaluation),
            _ => {}
        }
    }
}

impl Watcher {
    fn has_said(&self, words: &str) -> bool {
        self.said.iter().any(|text| text.contains(words))
    }
}

fn go(run: &PretrainRun, resume: bool, watcher: &mut Watcher) -> anyhow::Result<Outcome> {
    run::run(run, resume, SystemTime::UNIX_EPOCH, &mut CpuBackend::new(), watcher)
}

fn refusal(run: &PretrainRun, resume: bool) -> String {
    format!("{:#}", go(run, resume, &mut Watcher::default()).expect_err("a run that is refused"))
}

/// The bytes of all that a run leaves but its settings, which name its directory.
fn left_by(run: &PretrainRun) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let output = &run.pretrain.output;
    for folder in ["", "last", "state"] {
        for entry in fs::read_dir(output.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(output).unwrap().to_str().unwrap().to_string();
            if path.is_file() && !["config.toml", "lock"].contains(&name.as_str()) {
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    for name in ["metrics.jsonl", "plan.txt", "last/model.safetensors", "state/progress.json"] {
        assert!(found.contains_key(name), "no {name}");
    }
    found
}

fn assert_same(found: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>, what: &str) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    for (name, bytes) in found {
        assert!(*bytes == expected[name], "{what}: {name} differs");
    }
}

// --- That it learns.

#[test]
fn begins_at_chance_and_learns_what_is_around_a_word() {
    let place = Place::new();
    let mut run = place.run("run");
    let config = &mut run.pretrain;
    config.model.config = Some(texts::encoder(32, 1));
    config.phases = vec![Phase { max_length: 32, batch_size: 16, steps: 600 }];
    config.learning_rate = 2e-3;
    config.accumulation = 1;
    config.dropout = Some(0.0);
    config.schedule = ScheduleKind::Constant;
    (config.eval_every, config.eval_pairs, config.checkpoint_every) = (0, 0, 0);
    let mut watcher = Watcher::default();
    let outcome = go(&run, false, &mut watcher).unwrap();
    assert_eq!((outcome.ending, watcher.evaluations.len()), (Some(Ending::Complete), 2));
    let [first, last] = watcher.evaluations[..] else { panic!() };
    let chance = (texts::tokenizer().vocab_size() as f64).ln();
    assert!((first.masked_loss / chance - 1.0).abs() < 0.02, "{} and ln V {chance}", first.masked_loss);
    let chance = std::f64::consts::LN_2;
    assert!((first.next_loss / chance - 1.0).abs() < 0.02, "{} and ln 2 {chance}", first.next_loss);
    // A document's words are 4 of 24: who finds out which has a loss of ln 4 instead of ln 24, but for full stops.
    assert!(last.masked_loss < 0.75 * last.unigram_entropy, "{last:?}");
    assert!(last.next_accuracy > last.next_baseline, "{last:?}");
    assert_eq!(outcome.evaluation, Some(last));
}

// --- That it repeats itself.

/// Stopped before every window of batches and within every evaluation, and gone on with.
#[test]
fn a_run_stopped_anywhere_ends_in_the_same_bytes() {
    let place = Place::new();
    // The text is tokenised by the first run of the place, which is asked about that, too.
    go(&place.run("first"), false, &mut Watcher::default()).unwrap();
    let run = place.run("whole");
    let mut whole = Watcher::default();
    let outcome = go(&run, false, &mut whole).unwrap();
    assert_eq!(
        (outcome.ending, outcome.progress.updates, outcome.progress.phase),
        (Some(Ending::Complete), 8, 1)
    );
    let expected = left_by(&run);
    let epochs: Vec<_> = whole.steps.iter().map(|step| (step.phase, step.step)).collect();
    assert_eq!(epochs, (0..16).map(|step| (usize::from(step >= 10), step)).collect::<Vec<_>>());
    let questions = whole.questions.get();
    // Before each of eight windows, between the phases and at the end; one batch in each of six evaluations.
    assert_eq!(questions, 10 + 6);
    let measured: Vec<_> = whole.evaluations.iter().map(|e| (e.updates, e.max_length)).collect();
    assert_eq!(measured, [(0, 32), (3, 32), (5, 32), (5, 64), (6, 64), (8, 64)]);
    for stop_at in 1..=questions {
        let run = place.run(&format!("stopped-{stop_at}"));
        let mut first = Watcher { stop_at: Some(stop_at), ..Watcher::default() };
        let ending = go(&run, false, &mut first).unwrap().ending;
        assert_eq!(ending, Some(Ending::Stopped), "at question {stop_at}");
        let mut second = Watcher::default();
        let again = go(&run, true, &mut second).unwrap();
        assert_eq!(
            (again.ending, again.progress),
            (Some(Ending::Complete), outcome.progress),
            "question {stop_at}"
        );
        assert_eq!(again.evaluation, outcome.evaluation);
        assert_same(&left_by(&run), &expected, &format!("stopped at question {stop_at}"));
        first.steps.extend(second.steps);
        assert_eq!(first.steps, whole.steps);
    }
}

#[test]
fn a_run_stopped_while_it_tokenises_has_begun_nothing() {
    let place = Place::new();
    let run = place.run("run");
    let outcome = go(&run, false, &mut Watcher { stop_at: Some(1), ..Watcher::default() }).unwrap();
    assert_eq!((outcome.ending, outcome.progress.updates), (None, 0));
    assert_eq!(fs::read_dir(place.folder.path().join("corpus")).unwrap().count(), 0);
    assert_eq!(go(&run, false, &mut Watcher::default()).unwrap().ending, Some(Ending::Complete));
}

/// Ended without a word after any of the things that happen, and gone on with.
#[test]
fn a_run_that_dies_anywhere_ends_in_the_same_bytes() {
    let place = Place::new();
    // The text is tokenised by the first run of the place, which other things happen to.
    go(&place.run("first"), false, &mut Watcher::default()).unwrap();
    let run = place.run("whole");
    let mut whole = Watcher::default();
    go(&run, false, &mut whole).unwrap();
    let expected = left_by(&run);
    let mut went_on = 0;
    for die_at in 1..=whole.events {
        let run = place.run(&format!("died-{die_at}"));
        let mut first = Watcher { die_at: Some(die_at), ..Watcher::default() };
        assert!(catch_unwind(AssertUnwindSafe(|| go(&run, false, &mut first))).is_err(), "event {die_at}");
        let mut second = Watcher::default();
        assert_eq!(go(&run, true, &mut second).unwrap().ending, Some(Ending::Complete));
        assert_same(&left_by(&run), &expected, &format!("dead after event {die_at}"));
        went_on += usize::from(second.has_said("going on after update"));
        assert!(second.has_said("going on after update") != second.has_said("begins at the beginning"));
    }
    assert!(went_on > whole.events / 2, "{went_on} of {} went on from a checkpoint", whole.events);
}

/// The writer's failures come back to the run, and do not change what it does.
#[test]
fn a_save_that_fails_is_said_and_a_later_one_makes_up_for_it() {
    let place = Place::new();
    go(&place.run("undisturbed"), false, &mut Watcher::default()).unwrap();
    let expected = left_by(&place.run("undisturbed"));
    for name in ["state", "last"] {
        let run = place.run(&format!("disturbed-{name}"));
        let in_the_way = Some(run.pretrain.output.join(name));
        let mut watcher = Watcher { in_the_way, ..Watcher::default() };
        assert_eq!(go(&run, false, &mut watcher).unwrap().ending, Some(Ending::Complete));
        assert!(watcher.has_said("NOT SAVED: will not replace"), "{name}: {:?}", watcher.said);
        assert_same(&left_by(&run), &expected, name);
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_at_any_thread_count() {
    let place = Place::new();
    let with = |threads: usize, seed: u64| {
        let mut run = place.run(&format!("threads-{threads}-{seed}"));
        let config = &mut run.pretrain;
        // Wide enough that every kernel cuts its work into several parts, and the text tokenised by each.
        config.model.config = Some(texts::encoder(128, 2));
        config.phases = vec![Phase { max_length: 32, batch_size: 32, steps: 3 }];
        config.corpus = None;
        run.seed = seed;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| go(&run, false, &mut Watcher::default())).unwrap();
        let corpus = fs::read(run.pretrain.output.join("corpus/train.corpus")).unwrap();
        (left_by(&run), corpus)
    };
    let (one, corpus) = with(1, 7);
    let (three, other) = with(3, 7);
    assert!(corpus == other, "the corpus differs");
    assert_same(&three, &one, "three threads");
    assert!(
        with(1, 8).0["last/model.safetensors"] != one["last/model.safetensors"],
        "the seed has no effect"
    );
}

// --- Where it starts.

#[test]
fn an_encoder_without_heads_is_gone_on_with_and_what_is_new_is_named() {
    let place = Place::new();
    let encoder = place.folder.path().join("encoder");
    fs::create_dir(&encoder).unwrap();
    let model = Model::new(&texts::encoder(16, 1), &[]);
    let values: Vec<f32> = (0..model.parameters().len()).map(|i| 0.1 * (i as f32).sin()).collect();
    directory::save(&encoder, &model, &texts::tokenizer(), 32, &values).unwrap();
    let begin = |name: &str, init: &Path| {
        let mut run = place.run(name);
        run.pretrain.model = ModelConfig { init: Some(init.to_path_buf()), ..ModelConfig::default() };
        run.pretrain.phases.truncate(1);
        // A learning rate of 0 in the first update, and nothing decays.
        (run.pretrain.phases[0].steps, run.pretrain.warmup) = (1, 1.0);
        let mut watcher = Watcher::default();
        go(&run, false, &mut watcher).unwrap();
        (run.pretrain.output.join("last"), watcher)
    };
    let (last, watcher) = begin("adapted", &encoder);
    let new = watcher.said.iter().find(|text| text.starts_with("drawn from seed 7: ")).unwrap();
    for name in ["transform.dense.weight", "transform.LayerNorm.bias", "bias"] {
        assert!(new.contains(&format!("cls.predictions.{name}")), "{new}");
    }
    assert!(new.contains("cls.seq_relationship.weight") && !new.contains("encoder."), "{new}");
    let bytes = fs::read(last.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for parameter in model.parameters().parameters() {
        let found = tensors.tensor(&format!("bert.{}", parameter.name)).unwrap();
        assert_eq!(
            found.data(),
            bytemuck::cast_slice::<_, u8>(&values[parameter.range()]),
            "{}",
            parameter.name
        );
    }
    // With heads, nothing is new.
    let (again, watcher) = begin("again", &last);
    assert!(!watcher.has_said("drawn from seed"), "{:?}", watcher.said);
    assert!(fs::read(again.join("model.safetensors")).unwrap() == bytes);
}

// --- What it refuses.

#[test]
fn a_run_goes_on_only_as_it_began() {
    let place = Place::new();
    let mut run = place.run("run");
    run.pretrain.corpus = None;
    go(&run, false, &mut Watcher { stop_at: Some(5), ..Watcher::default() }).unwrap();
    let before = left_by(&run);
    let error = refusal(&run, false);
    assert!(error.contains("already holds a run") && error.contains("--resume"), "{error}");
    for (change, word) in [
        ((|run| run.pretrain.accumulation = 1) as fn(&mut PretrainRun), "accumulation was 2 and is now 1"),
        (|run| run.seed = 8, "seed was 7 and is now 8"),
        (|run| run.pretrain.phases[1].steps = 4, "steps was 3 and is now 4"),
        (|run| run.pretrain.mask_share = 0.2, "mask_share was 0.15 and is now 0.2"),
        (|run| run.pretrain.split = true, "split was false and is now true"),
    ] {
        let mut other = run.clone();
        change(&mut other);
        let error = refusal(&other, true);
        assert!(error.contains("--resume") && error.contains(word), "{word:?} is not in: {error}");
    }
    let text = fs::read_to_string(&place.files.train).unwrap();
    fs::write(&place.files.train, text.replacen("w1", "w2", 1)).unwrap();
    let error = refusal(&run, true);
    assert!(
        error.contains("not that which the run began with") && error.contains("put the files back"),
        "{error}"
    );
    assert_same(&left_by(&run), &before, "after refusals");

    fs::write(&place.files.train, text).unwrap();
    // As many tokens, in other places, and the corpus is made anew as its own error advises.
    let corpus = run.pretrain.output.join("corpus");
    let words = texts::words();
    let turned = words.iter().rev().map(String::as_str).chain(["."]);
    Tokenizer::from_words(turned, Default::default()).unwrap().save(&place.files.vocabulary).unwrap();
    fs::remove_dir_all(&corpus).unwrap();
    let error = refusal(&run, true);
    assert!(error.contains("the vocabulary is not that which the run began with"), "{error}");
    assert_same(&left_by(&run), &before, "after another vocabulary");

    texts::tokenizer().save(&place.files.vocabulary).unwrap();
    fs::remove_dir_all(&corpus).unwrap();
    run.pretrain.eval_every = 4;
    assert_eq!(go(&run, true, &mut Watcher::default()).unwrap().ending, Some(Ending::Complete));
}

#[test]
fn a_damaged_corpus_is_never_trained_on() {
    let place = Place::new();
    let run = place.run("run");
    go(&run, false, &mut Watcher::default()).unwrap();
    let path = place.folder.path().join("corpus/train.corpus");
    let whole = fs::read(&path).unwrap();
    let mut edited = whole.clone();
    edited[200] ^= 1;
    for (bytes, words) in [
        (&edited[..], "its checksum is not that of its contents"),
        (&whole[..whole.len() - 7], "cut short or edited"),
        (&whole[..50], "too few for a corpus"),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = refusal(&place.run("other"), false);
        assert!(error.contains("train.corpus") && error.contains(words), "{words:?} is not in: {error}");
        assert!(error.contains("delete the file: it is made again"), "{error}");
    }
    fs::remove_file(&path).unwrap();
    go(&place.run("other"), false, &mut Watcher::default()).unwrap();
    assert!(fs::read(&path).unwrap() == whole);
}

#[test]
fn a_phase_longer_than_the_position_table_is_refused() {
    let place = Place::new();
    let mut run = place.run("run");
    run.pretrain.phases[1].max_length = 65;
    let error = refusal(&run, false);
    assert!(error.contains("65") && error.contains("64"), "{error}");
}
