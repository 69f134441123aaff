//! Against PyTorch and transformers: every activation, loss, gradient and ten updates of a tiny BERT.
//!
//! `fixtures/bert.py` computed the truth in f64. It also measured how far PyTorch's own f32 is from it; the
//! tolerances here are two to three times that, since sums in another order round differently. They hold for every
//! instruction set (MTDNN_ISA); what this program measures is the worst of them.

#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "common/runs.rs"]
mod runs;

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;

use fixtures::{distance, fixtures, largest, tensors};
use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::backend::{Backend, Group, Optimizer, Rule, Sizes, StepScalars};
use mtdnn_raw::data::{Batch, Dataset, Label, TaskKind, Tokenizer};
use mtdnn_raw::nn::{BertConfig, HiddenAct, Model, Recorded, directory, extents};
use mtdnn_raw::tensor::{Extents, Space, Var};
use runs::{Sequence, bits, dataset, new_parameters, read, read_span, task, write};
use serde::Deserialize;

/// PyTorch's f32 is 2.5e-6 from the truth, this program 2.7e-6.
const HIDDEN: f32 = 6e-6;
/// PyTorch's f32: 1.9e-6; this program: 1.9e-6.
const LOSS: f64 = 4e-6;
/// Relative to the norm. PyTorch's f32: up to about 3e-6; this program: 3.2e-6.
const NORM: f64 = 8e-6;
/// Relative to the largest entry of the tensor. PyTorch's f32: 3.0e-6; this program: 3.3e-6.
const GRADIENT: f32 = 8e-6;
/// After ten updates. PyTorch's f32: 8.3e-6; this program: 6.5e-6.
const FINAL: f32 = 2e-5;
/// Where the truth is 0. PyTorch's f32: 9.4e-8; this program: 3.4e-7.
const ZERO_GRADIENT: f32 = 1e-6;

const KINDS: [(&str, TaskKind); 3] = [
    ("classification", TaskKind::Classification),
    ("regression", TaskKind::Regression),
    ("ranking", TaskKind::Ranking),
];

#[derive(Deserialize)]
struct Reference {
    batches: HashMap<String, ReferenceBatch>,
    results: HashMap<String, HashMap<String, serde_json::Value>>,
}

#[derive(Deserialize)]
struct ReferenceBatch {
    text: Vec<Vec<String>>,
    ids: Vec<u32>,
    types: Vec<u32>,
    starts: Vec<usize>,
    labels: Labels,
}

#[derive(Deserialize)]
struct Labels {
    classification: Vec<u32>,
    regression: Vec<f32>,
    ranking: Queries,
}

#[derive(Deserialize)]
struct Queries {
    sizes: Vec<usize>,
    positive: Vec<u32>,
}

impl ReferenceBatch {
    fn sequences(&self) -> Vec<Sequence> {
        let sequence = |bounds: &[usize]| {
            let types = &self.types[bounds[0]..bounds[1]];
            let second = types.iter().filter(|&&of| of == 0).count() as u32;
            (self.ids[bounds[0]..bounds[1]].to_vec(), second)
        };
        self.starts.windows(2).map(sequence).collect()
    }

    /// The batch as the data set of one task.
    fn dataset(&self, kind: TaskKind) -> Dataset {
        let mut sequences = self.sequences().into_iter();
        let Labels { classification, regression, ranking } = &self.labels;
        match kind {
            TaskKind::Classification => {
                dataset(sequences.zip(classification).map(|(s, &class)| (vec![s], Label::Class(class))))
            }
            TaskKind::Regression => {
                dataset(sequences.zip(regression).map(|(s, &score)| (vec![s], Label::Score(score))))
            }
            TaskKind::Ranking => {
                dataset(ranking.sizes.iter().zip(&ranking.positive).map(|(&size, &positive)| {
                    (sequences.by_ref().take(size).collect(), Label::Positive(positive))
                }))
            }
            TaskKind::Labelling | TaskKind::Span | TaskKind::Masked => panic!("the reference has no {kind}"),
        }
    }

    fn batch(&self, kind: TaskKind) -> Batch {
        let set = self.dataset(kind);
        batch_of(&set, &(0..set.len() as u32).collect::<Vec<_>>())
    }
}

fn batch_of(set: &Dataset, examples: &[u32]) -> Batch {
    let mut batch = Batch::default();
    batch.fill(set, examples);
    batch
}

fn reference() -> Reference {
    serde_json::from_str(&fs::read_to_string(fixtures().join("reference.json")).unwrap()).unwrap()
}

/// The tiny BERT with a head of each kind, as the fixtures have it.
struct Tiny {
    model: Model,
    backend: CpuBackend,
}

const CAPACITY: Extents = Extents { tokens: 100, sequences: 8, groups: 8, predictions: 0, in_lines: false };

impl Tiny {
    fn load(act: HiddenAct) -> Self {
        let path = fixtures().join("tiny-bert");
        let (mut config, _) = directory::read_encoder(&path).unwrap();
        config.hidden_act = act;
        let tasks = KINDS.map(|(name, kind)| task(name, kind, 3));
        let model = Model::new(&config, &tasks);
        let mut values = vec![0.0; model.parameters().len()];
        let loaded = directory::load_parameters(&path, &model, 0, false, &mut values).unwrap();
        assert_eq!(loaded.report.matched.len(), 39, "{:#}", loaded.report);
        assert_eq!((loaded.report.missing.len(), loaded.report.unexpected.len()), (0, 0));
        let heads = tensors("gelu.safetensors");
        for parameter in &model.parameters().parameters()[39..] {
            let head = &heads[&parameter.name.replace("heads.", "head.")];
            values[parameter.range()].copy_from_slice(head);
        }
        let mut backend = CpuBackend::new();
        let programs = (0..KINDS.len()).map(|task| model.training(task, CAPACITY, 1.0, false));
        let arena = programs.chain([model.encoding(true, CAPACITY)]).map(|r| r.program.arena_len()).max();
        let sizes = Sizes { parameters: values.len(), arena: arena.unwrap(), training: true };
        backend.reserve(&sizes).unwrap();
        write(&mut backend, Space::Parameters, &values);
        Self { model, backend }
    }

    /// One buffer's tensors under the fixtures' names: a head is `head.weight`, whichever task it belongs to.
    fn named(&mut self, space: Space, kind: &str) -> HashMap<String, Vec<f32>> {
        let values = read(&mut self.backend, space, self.model.parameters().len());
        let parameters = self.model.parameters().parameters().iter();
        let own = format!("heads.{kind}.");
        parameters
            .filter(|parameter| !parameter.name.starts_with("heads.") || parameter.name.starts_with(&own))
            .map(|parameter| (parameter.name.replace(&own, "head."), values[parameter.range()].to_vec()))
            .collect()
    }
}

/// Runs a program on a batch and returns the values of some of its variables.
fn run(backend: &mut dyn Backend, recorded: &Recorded, batch: &Batch, vars: &[Var]) -> Vec<Vec<f32>> {
    let extents = extents(batch);
    recorded.write(backend, batch).unwrap();
    backend.run(&recorded.program, &StepScalars { extents, seed: 0, step: 0 }).unwrap();
    vars.iter().map(|&var| read_span(backend, recorded.program.span(var, &extents))).collect()
}

/// Parameters that a softmax subtracts out: their true gradient is 0, and what f32 makes of it is noise, which
/// Adamax turns into whole steps. Their values after training are arbitrary, in every implementation.
fn unseen(kind: TaskKind, name: &str) -> bool {
    name.ends_with("key.bias") || (kind == TaskKind::Ranking && name == "head.bias")
}

const ACTS: [(&str, HiddenAct); 2] = [("gelu", HiddenAct::Gelu), ("gelu_new", HiddenAct::GeluNew)];

#[test]
fn text_becomes_the_reference_ids() {
    let tokenizer = Tokenizer::from_directory(&fixtures().join("tiny-bert")).unwrap();
    for batch in reference().batches.values() {
        for (text, sequence) in batch.text.iter().zip(batch.sequences()) {
            let encoded = tokenizer.encode(&text[0], text.get(1).map(String::as_str), 64);
            assert_eq!((encoded.ids, encoded.second), sequence, "{text:?}");
        }
    }
}

#[test]
fn hidden_states_are_those_of_transformers() {
    for (name, act) in ACTS {
        let truth = tensors(&format!("{name}.safetensors"));
        let mut tiny = Tiny::load(act);
        let recorded = tiny.model.encoding(true, CAPACITY);
        let batch = reference().batches["a"].batch(TaskKind::Classification);
        let mut vars = recorded.hidden_states.clone();
        vars.extend(recorded.pooled);
        let found = run(&mut tiny.backend, &recorded, &batch, &vars);
        assert_eq!(found.len(), 4, "the embeddings, two layers and the pooler");
        for (found, name) in found.iter().zip(["hidden.0", "hidden.1", "hidden.2", "pooled"]) {
            let error = distance(found, &truth[name]);
            assert!(error <= HIDDEN, "{name} of {act:?} is {error:e} from the truth");
        }
    }
}

#[test]
fn gradients_are_those_of_pytorch() {
    for (act_name, act) in ACTS {
        let truth = tensors(&format!("{act_name}.safetensors"));
        for (number, (kind_name, kind)) in KINDS.into_iter().enumerate() {
            if act == HiddenAct::GeluNew && kind != TaskKind::Classification {
                continue; // The fixture has none.
            }
            let mut tiny = Tiny::load(act);
            let recorded = tiny.model.training(number, CAPACITY, 1.0, false);
            run(&mut tiny.backend, &recorded, &reference().batches["a"].batch(kind), &[]);
            let gradients = tiny.named(Space::Gradients, kind_name);
            assert_eq!(gradients.len(), 41, "the encoder's and the head's");
            for (name, found) in gradients {
                let truth = &truth[&format!("{kind_name}.gradient.{name}")];
                let error = distance(&found, truth);
                let most = if unseen(kind, &name) { ZERO_GRADIENT } else { GRADIENT * largest(truth) };
                assert!(error <= most, "{kind_name}, {act:?}: {name} is {error:e} off, not within {most:e}");
            }
        }
    }
}

#[test]
fn ten_updates_are_those_of_pytorch() {
    let reference = reference();
    for (act_name, act) in ACTS {
        let truth = tensors(&format!("{act_name}.safetensors"));
        for (number, (kind_name, kind)) in KINDS.into_iter().enumerate() {
            let mut tiny = Tiny::load(act);
            let recorded = tiny.model.training(number, CAPACITY, 1.0, false);
            let result = &reference.results[act_name][kind_name];
            let numbers = |key: &str| -> Vec<f64> { serde_json::from_value(result[key].clone()).unwrap() };
            let (losses, norms) = (numbers("training_losses"), numbers("gradient_norms"));
            assert_eq!(losses.len(), 10);
            for (step, (&loss, &norm)) in losses.iter().zip(&norms).enumerate() {
                let batch = reference.batches[["a", "b"][step % 2]].batch(kind);
                let found = run(&mut tiny.backend, &recorded, &batch, &recorded.outputs)[0][0];
                let error = (f64::from(found) - loss).abs();
                assert!(error <= LOSS, "{kind_name}, {act:?}: loss {step} is {found}, not {loss}");
                let head = tiny.model.head_range(number).unwrap();
                let groups = [tiny.model.encoder_range(), head].map(|range| Group {
                    range,
                    learning_rate: 1e-3,
                    weight_decay: 0.0,
                    update: step as u64 + 1,
                    zero_gradient: false,
                });
                let kept = tiny.backend.update(&Optimizer::new(Rule::Adamax), 1.0, &groups).unwrap();
                let found = tiny.backend.number(kept).unwrap();
                let error = (f64::from(found) - norm).abs();
                assert!(error <= NORM * norm, "{kind_name}, {act:?}: norm {step} is {found}, not {norm}");
            }
            if act == HiddenAct::GeluNew {
                continue; // The fixture has no parameters after training.
            }
            let parameters = tiny.named(Space::Parameters, kind_name);
            for (name, found) in parameters.iter().filter(|(name, _)| !unseen(kind, name)) {
                let error = distance(found, &truth[&format!("{kind_name}.final.{name}")]);
                assert!(error <= FINAL, "{kind_name}: {name} is {error:e} off after ten updates");
            }
        }
    }
}

/// Every sequence's hidden states and pooled vector, whichever place it has in which batch.
fn encode_each(
    model: &Model,
    backend: &mut dyn Backend,
    recorded: &Recorded,
    set: &Dataset,
    examples: &[u32],
) -> Vec<(u32, Vec<f32>)> {
    let hidden = model.config().hidden_size;
    let batch = batch_of(set, examples);
    let mut vars = recorded.hidden_states.clone();
    vars.extend(recorded.pooled);
    let found = run(backend, recorded, &batch, &vars);
    let (pooled, layers) = found.split_last().unwrap();
    let of = |place: usize| {
        let rows = batch.starts[place] as usize * hidden..batch.ends[place] as usize * hidden;
        let mut all: Vec<f32> = layers.iter().flat_map(|layer| layer[rows.clone()].to_vec()).collect();
        all.extend(&pooled[place * hidden..][..hidden]);
        all
    };
    examples.iter().enumerate().map(|(place, &example)| (example, of(place))).collect()
}

/// Encodes a set in one batch, in another order and one by one, and compares bits.
fn check_packing(model: &Model, backend: &mut dyn Backend, recorded: &Recorded, set: &Dataset) {
    let count = set.len() as u32;
    let together: HashMap<u32, Vec<f32>> =
        encode_each(model, backend, recorded, set, &(0..count).collect::<Vec<_>>()).into_iter().collect();
    let orders = [(0..count).rev().collect::<Vec<_>>(), (0..count).map(|i| (i * 3 + 1) % count).collect()];
    let alone = (0..count).map(|example| vec![example]);
    for examples in orders.into_iter().chain(alone) {
        for (example, found) in encode_each(model, backend, recorded, set, &examples) {
            assert!(
                bits(&found) == bits(&together[&example]),
                "sequence {example} differs in the batch {examples:?}"
            );
        }
    }
}

#[test]
fn a_sequence_has_the_same_bits_in_any_batch() {
    let set = reference().batches["a"].dataset(TaskKind::Classification);
    let mut tiny = Tiny::load(HiddenAct::Gelu);
    let recorded = tiny.model.encoding(true, CAPACITY);
    check_packing(&tiny.model, &mut tiny.backend, &recorded, &set);

    // Wide enough that the products of one token, of one sequence and of all take different ways.
    let config = BertConfig {
        vocab_size: 200,
        hidden_size: 192,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        intermediate_size: 520,
        max_position_embeddings: 150,
        ..BertConfig::default()
    };
    let model = Model::new(&config, &[]);
    let lengths = [1, 150, 2, 31, 64, 17, 128, 3, 65, 99, 8];
    let word = |i: u32| (i * 37 + i * i % 11) % 200;
    let set =
        dataset(lengths.iter().map(|&length| {
            (vec![((0..length).map(|i| word(i + length)).collect(), length / 2)], Label::None)
        }));
    let recorded = model.encoding(
        true,
        Extents { tokens: set.ids.len(), sequences: 11, groups: 11, predictions: 0, in_lines: false },
    );
    let mut backend = CpuBackend::new();
    let sizes =
        Sizes { parameters: model.parameters().len(), arena: recorded.program.arena_len(), training: false };
    backend.reserve(&sizes).unwrap();
    write(&mut backend, Space::Parameters, &new_parameters(&model, 3));
    check_packing(&model, &mut backend, &recorded, &set);
}

/// A published encoder, all-MiniLM-L6-v2, in the directory that MTDNN_MODEL names: mean token vectors are as alike
/// as those that transformers computes in f64.
#[test]
fn a_published_encoder_gives_its_published_similarities() {
    let Some(path) = std::env::var_os("MTDNN_MODEL").map(PathBuf::from) else {
        // Past the harness, which would swallow it: a check that was not made is said out loud.
        writeln!(std::io::stderr(), "skipped: MTDNN_MODEL names no directory of all-MiniLM-L6-v2").unwrap();
        return;
    };
    let (config, tokenizer) = directory::read_encoder(&path).unwrap();
    let model = Model::new(&config, &[]);
    let mut values = vec![0.0; model.parameters().len()];
    let loaded = directory::load_parameters(&path, &model, 0, true, &mut values).unwrap();
    let counts = [&loaded.report.matched, &loaded.report.missing, &loaded.report.unexpected].map(Vec::len);
    assert_eq!(counts, [103, 0, 0], "matched, missing and unexpected tensors");

    let sentences = [
        "A man is playing a guitar.",
        "Someone plays an instrument on stage.",
        "The stock market fell sharply today.",
        "Shares dropped after the announcement, and investors lost money.",
    ];
    let set = dataset(sentences.map(|sentence| {
        let encoded = tokenizer.encode(sentence, None, 128);
        (vec![(encoded.ids, encoded.second)], Label::None)
    }));
    let recorded = model.encoding(
        false,
        Extents { tokens: set.ids.len(), sequences: 4, groups: 4, predictions: 0, in_lines: false },
    );
    let mut backend = CpuBackend::new();
    let sizes = Sizes { parameters: values.len(), arena: recorded.program.arena_len(), training: false };
    backend.reserve(&sizes).unwrap();
    write(&mut backend, Space::Parameters, &values);
    let batch = batch_of(&set, &[0, 1, 2, 3]);
    let hidden = &run(&mut backend, &recorded, &batch, &recorded.hidden_states)[0];

    let sum = |(&start, &end): (&u32, &u32)| -> Vec<f64> {
        let rows = hidden.chunks(config.hidden_size).skip(start as usize).take((end - start) as usize);
        rows.fold(vec![0.0; config.hidden_size], |sum, row| {
            sum.iter().zip(row).map(|(sum, &value)| sum + f64::from(value)).collect()
        })
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let vectors: Vec<Vec<f64>> = batch.starts.iter().zip(&batch.ends).map(sum).collect();
    let truth = [
        (1, 0, 0.54306614),
        (2, 0, -0.05402724),
        (2, 1, -0.07727611),
        (3, 0, -0.08627002),
        (3, 1, -0.13729219),
        (3, 2, 0.54907208),
    ];
    for (a, b, truth) in truth {
        let (a, b) = (&vectors[a], &vectors[b]);
        let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        assert!((cosine - truth).abs() <= 1e-6, "similarity {cosine}, by transformers {truth}");
    }
}
