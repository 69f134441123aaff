//! `cargo bench --bench pretraining`: whole pre-training steps, in milliseconds and tokens a second.
//!
//! 32 sequences of 128 random tokens, 15 % of them masked: both losses, the backward pass, clip and BERT's Adam. The
//! share is that of the matrix products' arithmetic at the probed rate of multiply-adds. Arguments (`mini`, `base`, `f32`,
//! `bf16`) pick rows by parts of their names.

mod common;
#[path = "common/models.rs"]
#[allow(dead_code, reason = "each bench uses a part of it")]
mod models;

use common::{Arguments, Limits, median};
use models::random_batch;
use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::backend::{Backend, Group, Optimizer, Rule, Sizes, StepScalars};
use mtdnn_raw::data::MaskedBatch;
use mtdnn_raw::nn::{BertConfig, PretrainingModel, masked_extents};
use mtdnn_raw::random::Random;
use mtdnn_raw::tensor::{Precision, Space, Span};
use serde_json::json;

const SEQUENCES: usize = 32;
const LENGTH: usize = 128;

fn main() {
    let arguments = Arguments::new();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    pool.install(|| {
        let limits = Limits::probe();
        if !arguments.json {
            println!("{threads} threads, {limits}");
            println!("{:<52} {:>9} {:>10} {:>7}", "work", "ms", "tokens/s", "share");
        }
        // The smaller of PyTorch's comparison has a vocabulary of 8192.
        let mini = BertConfig {
            hidden_size: 256,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            intermediate_size: 1024,
            vocab_size: 8192,
            ..BertConfig::default()
        };
        for (name, config) in [("mini", mini), ("base", BertConfig::default())] {
            for (precision, kind) in [(Precision::F32, "f32"), (Precision::Bf16, "bf16")] {
                let name = format!("pre-training step, {name}, {SEQUENCES} x {LENGTH}, {kind}");
                if arguments.ask_for(&name) {
                    bench(&arguments, &name, &config, precision, &limits);
                }
            }
        }
    });
}

fn bench(arguments: &Arguments, name: &str, config: &BertConfig, precision: Precision, limits: &Limits) {
    let model = PretrainingModel::new(config).with_precision(precision);
    let len = model.parameters().len();
    let mut parameters = vec![0.0f32; len];
    for parameter in model.parameters().parameters() {
        model.parameters().initialise(parameter, 0, &mut parameters[parameter.range()]);
    }
    let batch = masked_batch(config.vocab_size);
    let extents = masked_extents(&batch);
    let recorded = model.training(extents, 1.0, false);
    let mut backend = CpuBackend::new().with_precision(precision);
    let sizes = Sizes { parameters: len, arena: recorded.program.arena_len(), training: true };
    backend.reserve(&sizes).expect("memory");
    let whole = Span { space: Space::Parameters, offset: 0, len };
    backend.write(whole, bytemuck::cast_slice(&parameters)).expect("parameters");
    let optimizer = Optimizer::new(Rule::AdamBert);
    let mut step = 0;
    let time = median(|| {
        recorded.write(&mut backend, &batch).expect("inputs");
        step += 1;
        backend.run(&recorded.program, &StepScalars { extents, seed: 1, step }).expect("a step");
        let update = Group {
            range: 0..len,
            learning_rate: 1e-4,
            weight_decay: 0.01,
            update: u64::from(step),
            zero_gradient: false,
        };
        backend.update(&optimizer, 1.0, &[update]).expect("an update");
    });
    let (seconds, tokens) = (time.as_secs_f64(), (SEQUENCES * LENGTH) as f64);
    let limit = match precision {
        Precision::F32 => limits.flops,
        Precision::Bf16 => limits.narrow_flops,
    };
    let share = flops(config, extents.predictions) / seconds / limit;
    if arguments.json {
        println!("{}", json!({"name": name, "ms": seconds * 1e3, "share": share}));
    } else {
        println!("{name:<52} {:>9.1} {:>10.0} {:>6.0}%", seconds * 1e3, tokens / seconds, 100.0 * share);
    }
}

/// Random tokens, 15 % of them to be predicted.
fn masked_batch(words: usize) -> MaskedBatch {
    let mut random = Random::new(3, [0, 0]);
    let mut batch = MaskedBatch::with_capacity(0, 0, 1);
    batch.batch = random_batch(&[LENGTH; SEQUENCES], 1);
    batch.batch.ids.iter_mut().for_each(|id| *id %= words as u32);
    let ids = &batch.batch.ids;
    batch.batch.order.sort_unstable_by_key(|&row| (ids[row as usize], row));
    batch.batch.labels.iter_mut().for_each(|label| *label %= 2);
    // The first tokens are those of next sentences.
    let mut rows: Vec<u32> =
        (0..(SEQUENCES * LENGTH) as u32).filter(|row| row % LENGTH as u32 != 0).collect();
    random.shuffle(&mut rows);
    rows.truncate(SEQUENCES * LENGTH * 15 / 100);
    rows.sort_unstable();
    batch.places = rows.iter().map(|&row| batch.batch.places[row as usize]).collect();
    batch.labels = rows.iter().map(|_| random.below(words as u32)).collect();
    batch.rows = rows;
    batch
}

/// The arithmetic of the matrix products of a step: three times that of a forward pass, but for the logits, which are
/// computed twice.
fn flops(config: &BertConfig, predictions: usize) -> f64 {
    let (hidden, wide, layers) = (config.hidden_size, config.intermediate_size, config.num_hidden_layers);
    let (attended, transformed) = (3 * hidden * hidden, hidden * hidden + 2 * hidden * wide);
    let tokens = SEQUENCES * LENGTH;
    // The last layer transforms first and masked tokens alone.
    let rows = (layers - 1) * tokens + SEQUENCES + predictions;
    let encoder = layers * tokens * attended + rows * transformed + predictions * hidden * hidden;
    2.0 * (3 * encoder + 4 * predictions * hidden * config.vocab_size) as f64
}
