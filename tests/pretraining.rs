//! Against PyTorch and transformers: losses, logits, every gradient and ten updates of a tiny BERT with both heads of
//! pre-training.
//!
//! `fixtures/pretraining.py` computed the truth in f64, and measured how far PyTorch's own f32 is from it; the tolerances
//! here are two to three times that, as in `parity.rs`.

#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "common/runs.rs"]
mod runs;

use std::collections::HashMap;
use std::fs;

use fixtures::{distance, fixtures, largest, tensors};
use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::backend::{Backend, Group, Optimizer, Rule, Sizes, StepScalars};
use mtdnn_raw::data::{Label, MaskedBatch, Tokenizer};
use mtdnn_raw::nn::{
    Bert, BertConfig, Init, Parameter, ParameterTable, Picked, PretrainingModel, RecordedPretraining,
    directory, extents, masked_extents,
};
use mtdnn_raw::tensor::{Access, DType, Extents, Mode, Program, Rows, Space, Tape, TokenIndex, Var};
use runs::{Sequence, bits, dataset, read, read_span, write};
use serde::Deserialize;

/// PyTorch's f32 is 2.2e-7 from the truth.
const LOSS: f64 = 6e-7;
/// PyTorch's f32: 8.2e-6.
const PREDICTION: f32 = 2e-5;
/// PyTorch's f32: 7.3e-7.
const NEXT: f32 = 2e-6;
/// Relative to the largest entry of the tensor. PyTorch's f32: 2.7e-6.
const GRADIENT: f32 = 8e-6;
/// Where the truth is 0. PyTorch's f32: 1.3e-7.
const ZERO_GRADIENT: f32 = 4e-7;
/// Key biases have no gradient but noise, which Adam makes steps of: PyTorch's end 4.7e-6 off after ten.
const KEY_BIASES_AFTER_TEN: f32 = 1.2e-5;

/// How far ten updates by a rule may end from the truth.
struct Bounds {
    rule: Rule,
    /// The rule's name in the fixtures.
    name: &'static str,
    rate: f32,
    loss: f64,
    norm: f64,
    parameters: f32,
}

/// PyTorch's f32, of losses, norms and parameters: 8.5e-6, 6.5e-5 and 1.7e-6 by BERT's Adam, 9.7e-6, 1.6e-4 and 1.2e-5
/// by LAMB.
const RULES: [Bounds; 2] = [
    Bounds { rule: Rule::AdamBert, name: "adamw", rate: 1e-3, loss: 2e-5, norm: 2e-4, parameters: 5e-6 },
    Bounds { rule: Rule::Lamb, name: "lamb", rate: 1e-2, loss: 2e-5, norm: 4e-4, parameters: 3e-5 },
];

#[derive(Deserialize)]
struct Reference {
    batches: HashMap<String, ReferenceBatch>,
    results: serde_json::Value,
}

#[derive(Deserialize)]
struct ReferenceBatch {
    text: Vec<[String; 2]>,
    ids: Vec<u32>,
    types: Vec<u32>,
    starts: Vec<usize>,
    masked: Vec<u32>,
    words: Vec<u32>,
    next: Vec<u32>,
}

impl ReferenceBatch {
    fn sequences(&self) -> impl Iterator<Item = Sequence> {
        self.starts.windows(2).map(|bounds| {
            let second = self.types[bounds[0]..bounds[1]].iter().filter(|&&of| of == 0).count() as u32;
            (self.ids[bounds[0]..bounds[1]].to_vec(), second)
        })
    }

    /// The batch for a model in which word `w` of the fixture is word `spread * w`.
    fn batch(&self, spread: u32) -> MaskedBatch {
        let spread_out = |ids: &[u32]| -> Vec<u32> { ids.iter().map(|id| spread * id).collect() };
        let examples = self
            .sequences()
            .zip(&self.next)
            .map(|((ids, second), &next)| (vec![(spread_out(&ids), second)], Label::Class(next)));
        let set = dataset(examples);
        let mut batch = MaskedBatch::with_capacity(0, 0, 1);
        batch.batch.fill(&set, &(0..set.len() as u32).collect::<Vec<_>>());
        assert_eq!(batch.batch.ids, spread_out(&self.ids), "a tight batch is packed in order");
        batch.rows.clone_from(&self.masked);
        batch.places = self.masked.iter().map(|&row| batch.batch.places[row as usize]).collect();
        batch.labels = spread_out(&self.words);
        batch
    }
}

fn reference() -> Reference {
    serde_json::from_str(&fs::read_to_string(fixtures().join("pretraining.json")).unwrap()).unwrap()
}

const CAPACITY: Extents = Extents { tokens: 100, sequences: 6, groups: 6, predictions: 20, in_lines: false };
const WORDS: usize = 131;
const HIDDEN: usize = 32;

/// The tiny BERT with both heads, as the fixtures have it.
struct Tiny {
    model: PretrainingModel,
    backend: CpuBackend,
}

impl Tiny {
    fn load() -> Self {
        let path = fixtures().join("tiny-pretraining");
        let (config, _) = directory::read_encoder(&path).unwrap();
        let model = PretrainingModel::new(&config);
        let mut values = vec![f32::NAN; model.parameters().len()];
        let loaded = directory::load_pretraining(&path, &model, 0, true, &mut values).unwrap();
        let counts = [&loaded.report.matched, &loaded.report.missing, &loaded.initialised].map(Vec::len);
        assert_eq!(counts, [46, 0, 0], "matched, missing and initialised tensors: {:#}", loaded.report);
        Self::new(model, &values)
    }

    /// The same with a vocabulary `spread` times as large: each word's row stands among others that no text has and
    /// whose logits are so low that their share of every softmax is 0.
    fn spread(spread: usize) -> Self {
        let mut tiny = Self::load();
        let before = tiny.values(Space::Parameters);
        let config = BertConfig { vocab_size: spread * WORDS, ..tiny.model.config().clone() };
        let model = PretrainingModel::new(&config);
        let mut values = vec![0.0; model.parameters().len()];
        let parameters = tiny.model.parameters().parameters().iter().zip(model.parameters().parameters());
        for (old, new) in parameters {
            let (from, to) = (&before[old.range()], &mut values[new.range()]);
            if from.len() == to.len() {
                to.copy_from_slice(from);
                continue;
            }
            let columns = from.len() / WORDS;
            to.iter_mut().zip(0..).for_each(|(v, i)| *v = if columns == 1 { -1e4 } else { (i as f32).sin() });
            for (word, row) in from.chunks(columns).enumerate() {
                to[spread * word * columns..][..columns].copy_from_slice(row);
            }
        }
        Self::new(model, &values)
    }

    fn new(model: PretrainingModel, values: &[f32]) -> Self {
        let mut backend = CpuBackend::new();
        let programs = [model.training(CAPACITY, 1.0, false).program, model.evaluation(CAPACITY).program];
        let filling = model.filling(CAPACITY);
        let arenas = programs.iter().chain([&filling.program]).map(|p| p.arena_len());
        let sizes = Sizes { parameters: values.len(), arena: arenas.max().unwrap(), training: true };
        backend.reserve(&sizes).unwrap();
        write(&mut backend, Space::Parameters, values);
        Self { model, backend }
    }

    fn values(&mut self, space: Space) -> Vec<f32> {
        read(&mut self.backend, space, self.model.parameters().len())
    }

    /// Runs a program on a batch and returns the values of some of its variables.
    fn run<const N: usize>(
        &mut self,
        recorded: &RecordedPretraining,
        batch: &MaskedBatch,
        vars: [Var; N],
    ) -> [Vec<f32>; N] {
        let extents = masked_extents(batch);
        recorded.write(&mut self.backend, batch).unwrap();
        self.backend.run(&recorded.program, &StepScalars { extents, seed: 0, step: 0 }).unwrap();
        vars.map(|var| read_span(&mut self.backend, recorded.program.span(var, &extents)))
    }

    /// One buffer's tensors by name; of the words' rows those that the fixtures have.
    fn named(&mut self, space: Space) -> HashMap<String, Vec<f32>> {
        let values = self.values(space);
        let vocabulary = self.model.config().vocab_size;
        let parameters = self.model.parameters().parameters().iter();
        let of = |values: &[f32], rows: usize| match rows == vocabulary {
            true => {
                let columns = values.len() / rows;
                values.chunks(columns).step_by(rows / WORDS).flatten().copied().collect()
            }
            false => values.to_vec(),
        };
        parameters.map(|p| (p.name.clone(), of(&values[p.range()], p.shape[0]))).collect()
    }
}

/// Its true gradient is 0, since a softmax subtracts it out, and what f32 makes of it is noise.
fn unseen(name: &str) -> bool {
    name.ends_with("key.bias")
}

fn numbers(value: &serde_json::Value, key: &str) -> Vec<f64> {
    serde_json::from_value(value[key].clone()).unwrap()
}

#[test]
fn text_becomes_the_reference_ids_but_for_masked_words() {
    let tokenizer = Tokenizer::from_directory(&fixtures().join("tiny-pretraining")).unwrap();
    for batch in reference().batches.values() {
        let mut batch_of_text = Vec::new();
        for (text, (ids, second)) in batch.text.iter().zip(batch.sequences()) {
            let encoded = tokenizer.encode(&text[0], Some(&text[1]), 32);
            assert_eq!((encoded.ids.len(), encoded.second), (ids.len(), second), "{text:?}");
            batch_of_text.extend(encoded.ids);
        }
        let mut ids = batch.ids.clone();
        batch.masked.iter().zip(&batch.words).for_each(|(&row, &word)| ids[row as usize] = word);
        assert_eq!(ids, batch_of_text);
    }
}

#[test]
fn losses_and_logits_are_those_of_transformers() {
    let (truth, reference) = (tensors("pretraining.safetensors"), reference());
    let mut tiny = Tiny::load();
    let batch = reference.batches["a"].batch(1);
    let recorded = tiny.model.evaluation(CAPACITY);
    let vars = [recorded.masked_loss, recorded.next_loss, recorded.masked_accuracy, recorded.next_logits];
    let [masked, next, accuracy, logits] = tiny.run(&recorded, &batch, vars);
    for (found, name) in [(masked[0], "mlm_loss"), (next[0], "nsp_loss")] {
        let loss = reference.results[name].as_f64().unwrap();
        assert!((f64::from(found) - loss).abs() <= LOSS, "{name} is {found}, not {loss}");
    }
    let error = distance(&logits, &truth["seq_relationship_logits"]);
    assert!(error <= NEXT, "logits of next sentences are {error:e} off");

    let predictions = &truth["prediction_logits"];
    let right = predictions.chunks(WORDS).zip(&batch.labels).filter(|(logits, word)| {
        let own = logits[**word as usize];
        logits.iter().all(|&logit| logit <= own)
    });
    assert_eq!(accuracy[0], right.count() as f32 / batch.labels.len() as f32);

    let recorded = tiny.model.filling(CAPACITY);
    let extents = Extents { predictions: batch.rows.len(), ..extents(&batch.batch) };
    recorded.write(&mut tiny.backend, &batch.batch, &batch.rows, &batch.places).unwrap();
    tiny.backend.run(&recorded.program, &StepScalars { extents, seed: 0, step: 0 }).unwrap();
    let logits = read_span(&mut tiny.backend, recorded.program.span(recorded.logits, &extents));
    let error = distance(&logits, predictions);
    assert!(error <= PREDICTION, "logits of masked words are {error:e} off");
}

/// Of a vocabulary in one block of columns, and of the same words over three blocks.
#[test]
fn losses_and_gradients_are_those_of_pytorch() {
    let (truth, reference) = (tensors("pretraining.safetensors"), reference());
    for spread in [1, 47] {
        let mut tiny = if spread == 1 { Tiny::load() } else { Tiny::spread(spread) };
        let recorded = tiny.model.training(CAPACITY, 1.0, false);
        let batch = reference.batches["a"].batch(spread as u32);
        let losses = tiny.run(&recorded, &batch, [recorded.masked_loss, recorded.next_loss]);
        for (found, name) in losses.iter().zip(["mlm_loss", "nsp_loss"]) {
            let loss = reference.results[name].as_f64().unwrap();
            assert!((f64::from(found[0]) - loss).abs() <= LOSS, "{name} is {}, not {loss}", found[0]);
        }
        let gradients = tiny.named(Space::Gradients);
        assert_eq!(gradients.len(), 46);
        for (name, found) in &gradients {
            let truth = &truth[&format!("gradient.{name}")];
            let error = distance(found, truth);
            let most = if unseen(name) { ZERO_GRADIENT } else { GRADIENT * largest(truth) };
            assert!(error <= most, "{name} is {error:e} off, not within {most:e}; {spread} rows a word");
        }
        // Rows between the words get nothing.
        let (all, parameters) = (tiny.values(Space::Gradients), tiny.model.parameters().parameters());
        for parameter in parameters.iter().filter(|p| p.shape[0] == spread * WORDS) {
            let columns = parameter.shape[1..].iter().product::<usize>();
            let rows = all[parameter.range()].chunks(columns).enumerate();
            let between = rows.filter(|(row, _)| row % spread != 0);
            assert!(between.flat_map(|(_, row)| row).all(|&g| g == 0.0), "{}", parameter.name);
        }
    }
}

#[test]
fn ten_updates_are_those_of_pytorch() {
    let (truth, reference) = (tensors("pretraining.safetensors"), reference());
    for Bounds { rule, name, rate, loss, norm, parameters } in RULES {
        let mut tiny = Tiny::load();
        let recorded = tiny.model.training(CAPACITY, 1.0, false);
        let result = &reference.results[name];
        let expected =
            ["training_mlm_losses", "training_nsp_losses", "gradient_norms"].map(|k| numbers(result, k));
        assert!(expected.iter().all(|values| values.len() == 10));
        let groups = |update| -> Vec<Group> {
            let group = |parameter: &Parameter| Group {
                range: parameter.range(),
                learning_rate: rate,
                weight_decay: if parameter.decays() { 0.01 } else { 0.0 },
                update,
                zero_gradient: false,
            };
            tiny.model.parameters().parameters().iter().map(group).collect()
        };
        let groups: Vec<_> = (1..=10).map(groups).collect();
        for (step, groups) in groups.iter().enumerate() {
            let batch = reference.batches[["a", "b"][step % 2]].batch(1);
            let losses = tiny.run(&recorded, &batch, [recorded.masked_loss, recorded.next_loss]);
            let kept = tiny.backend.update(&Optimizer::new(rule), 1.0, groups).unwrap();
            let found = [losses[0][0], losses[1][0], tiny.backend.number(kept).unwrap()];
            for ((found, expected), bound) in found.into_iter().zip(&expected).zip([loss, loss, norm]) {
                let error = (f64::from(found) - expected[step]).abs();
                assert!(error <= bound, "{name}, step {step}: {found}, not {}, by {error:e}", expected[step]);
            }
        }
        for (parameter, found) in tiny.named(Space::Parameters) {
            // LAMB makes whole steps of their noise, so that where they end is arbitrary, in every implementation, and
            // without effect.
            if rule == Rule::Lamb && unseen(&parameter) {
                continue;
            }
            let error = distance(&found, &truth[&format!("{name}.final.{parameter}")]);
            let bound = if unseen(&parameter) { KEY_BIASES_AFTER_TEN } else { parameters };
            assert!(error <= bound, "{name}: {parameter} is {error:e} off after ten updates");
        }
    }
}

/// The last layer is computed for first and masked tokens alone, to the bits that they have among all; in training what
/// they drop is the same, too.
#[test]
fn picked_rows_have_the_bits_of_the_full_encoding() {
    let (mut config, _) = directory::read_encoder(&fixtures().join("tiny-pretraining")).unwrap();
    (config.hidden_dropout_prob, config.attention_probs_dropout_prob) = (0.2, 0.3);
    let batch = reference().batches["a"].batch(1);
    let step = StepScalars { extents: masked_extents(&batch), seed: 5, step: 3 };
    let mut table = ParameterTable::default();
    let bert = Bert::new(&config, &mut table);
    let mut values = vec![0.0; table.len()];
    for parameter in table.parameters() {
        let normal = Init::TruncatedNormal(0.5);
        table.initialise(&Parameter { init: normal, ..parameter.clone() }, 1, &mut values[parameter.range()]);
    }
    let mut found = Vec::new();
    for mode in [Mode::Inference, Mode::Training] {
        let [full, picked] = [false, true].map(|pick| {
            let mut tape = Tape::new(mode);
            let mut inputs = HashMap::new();
            let mut input = |name: &str, rows: Rows, values: &[u32]| {
                let var = tape.input(name, DType::U32, rows, 1);
                inputs.insert(var, values.to_vec());
                var
            };
            let tokens = &batch.batch;
            let index = TokenIndex {
                ids: input("ids", Rows::Tokens, &tokens.ids),
                types: input("types", Rows::Tokens, &tokens.types),
                places: input("places", Rows::Tokens, &tokens.places),
                order: input("order", Rows::Tokens, &tokens.order),
                starts: input("starts", Rows::Sequences, &tokens.starts),
                ends: input("ends", Rows::Sequences, &tokens.ends),
                first_places: input("first_places", Rows::Sequences, &tokens.first_places),
            };
            let masked = Picked {
                rows: input("masked_rows", Rows::Predictions, &batch.rows),
                places: input("masked_places", Rows::Predictions, &batch.places),
            };
            let next = input("next", Rows::Sequences, &tokens.labels);
            let words = input("words", Rows::Predictions, &vec![3; batch.rows.len()]);
            let picks = [Picked::first(index), masked];
            let rows = if pick {
                bert.encode_picked(&mut tape, index, picks)
            } else {
                let last = *bert.encode(&mut tape, index).last().unwrap();
                picks.map(|picked| tape.gather(last, picked.rows))
            };
            let losses = [tape.cross_entropy(rows[0], next), tape.cross_entropy(rows[1], words)];
            let program = match mode {
                Mode::Training => Program::training(tape, &losses, 1.0, false, CAPACITY),
                Mode::Inference => Program::inference(tape, &losses, CAPACITY),
            };
            let mut backend = CpuBackend::new();
            let sizes = Sizes { parameters: values.len(), arena: program.arena_len(), training: true };
            backend.reserve(&sizes).unwrap();
            write(&mut backend, Space::Parameters, &values);
            for (var, values) in inputs.iter().filter(|(var, _)| program.uses(**var)) {
                backend.write(program.span(*var, &step.extents), bytemuck::cast_slice(values)).unwrap();
            }
            // One by one: a value is read before its place is used again.
            let mut found = Vec::new();
            for op in program.ops() {
                backend.run_one(&program, op, &step).unwrap();
                for var in rows.into_iter().filter(|var| op.operands().contains(&(Access::Write, *var))) {
                    found.push(read_span(&mut backend, program.span(var, &step.extents)));
                }
            }
            assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [4 * HIDDEN, 14 * HIDDEN]);
            found.concat()
        });
        assert!(bits(&full) == bits(&picked), "{mode:?}");
        found.push(picked);
    }
    assert!(bits(&found[0]) != bits(&found[1]), "nothing was dropped");
}
