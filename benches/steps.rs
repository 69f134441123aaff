//! `cargo bench --bench steps`: whole training steps and inference, in milliseconds and tokens a second.
//!
//! The shapes are those of the usual comparisons: 32 sequences of 128 tokens, and a GLUE-like batch of 32
//! sequences with a log-normal length around 40 tokens. The share is that of the matrix products' arithmetic at
//! the probed rate of fused multiply-adds. An argument (`minilm`, `base`) picks a model.

mod common;

use std::time::Duration;

use common::{Limits, median};
use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::backend::{Backend, Group, Optimizer, Rule, Sizes, StepScalars};
use mtdnn_raw::data::{Batch, MetricKind, TaskKind, TaskSpec};
use mtdnn_raw::nn::{BertConfig, Model, extents};
use mtdnn_raw::random::Random;
use mtdnn_raw::tensor::{Space, Span};

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    pool.install(|| {
        let limits = Limits::probe();
        println!(
            "{threads} threads, {:.0} GFLOP/s of fused multiply-adds, {:.1} GB/s of memory",
            limits.flops / 1e9,
            limits.bytes / 1e9
        );
        println!("{:<44} {:>9} {:>10} {:>7}", "work", "ms", "tokens/s", "share");
        let minilm = BertConfig {
            hidden_size: 384,
            num_hidden_layers: 6,
            num_attention_heads: 12,
            intermediate_size: 1536,
            ..BertConfig::default()
        };
        for (name, config) in [("minilm", minilm), ("base", BertConfig::default())] {
            if asked.is_empty() || asked.iter().any(|a| a == name) {
                bench(name, &config, &limits);
            }
        }
    });
}

fn bench(name: &str, config: &BertConfig, limits: &Limits) {
    let task = TaskSpec {
        name: "bench".to_string(),
        kind: TaskKind::Classification,
        texts: None,
        labels: ["a", "b", "c"].map(str::to_string).to_vec(),
        metrics: vec![MetricKind::Accuracy],
        dropout: 0.1,
        head: None,
        files: Vec::new(),
    };
    let model = Model::new(config, &[task]);
    let mut parameters = vec![0.0f32; model.parameters().len()];
    for parameter in model.parameters().parameters() {
        model.parameters().initialise(parameter, 0, &mut parameters[parameter.range()]);
    }
    let len = parameters.len();
    let whole = Span { space: Space::Parameters, offset: 0, len };
    for (shape, lengths) in [("32 x 128", vec![128; 32]), ("32 GLUE-like", glue_like())] {
        let batch = random_batch(&lengths);
        let extents = extents(&batch);
        let training = model.training(0, extents, 1.0, false);
        let inference = model.inference(&[0], extents);
        let arena = training.program.arena_len().max(inference.program.arena_len());
        let mut backend = CpuBackend::new();
        backend.reserve(&Sizes { parameters: len, arena, training: true }).expect("memory");
        backend.write(whole, bytemuck::cast_slice(&parameters)).expect("parameters");
        let optimizer = Optimizer::new(Rule::Adamax);
        let mut step = 0;
        let train = median(|| {
            training.write(&mut backend, &batch).expect("inputs");
            step += 1;
            backend.run(&training.program, &StepScalars { extents, seed: 1, step }).expect("a step");
            let update = Group {
                range: 0..len,
                learning_rate: 5e-5,
                weight_decay: 0.0,
                update: u64::from(step),
                zero_gradient: false,
            };
            backend.update(&optimizer, 1.0, &[update]).expect("an update");
        });
        let infer = median(|| {
            inference.write(&mut backend, &batch).expect("inputs");
            backend.run(&inference.program, &StepScalars { extents, seed: 1, step: 0 }).expect("a pass");
        });
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let (attended, transformed) = (3 * hidden * hidden, hidden * hidden + 2 * hidden * wide);
        let layers = config.num_hidden_layers;
        // The last layer transforms first tokens alone.
        let rows = (layers - 1) * batch.tokens() + batch.sequences();
        let forward = 2.0 * (layers * batch.tokens() * attended + rows * transformed) as f64;
        print(&format!("training step, {name}, {shape}"), train, &batch, 3.0 * forward, limits);
        print(&format!("inference, {name}, {shape}"), infer, &batch, forward, limits);
    }
}

fn print(work: &str, time: Duration, batch: &Batch, flops: f64, limits: &Limits) {
    let seconds = time.as_secs_f64();
    println!(
        "{work:<44} {:>9.1} {:>10.0} {:>6.0}%",
        seconds * 1e3,
        batch.tokens() as f64 / seconds,
        100.0 * flops / seconds / limits.flops
    );
}

/// Lengths around 40 tokens, at most 128, as GLUE's are.
fn glue_like() -> Vec<usize> {
    let mut random = Random::new(1, [0, 0]);
    (0..32).map(|_| ((normal(&mut random) * 0.5).exp() * 40.0).round().clamp(6.0, 128.0) as usize).collect()
}

fn normal(random: &mut Random) -> f64 {
    let mut uniform = || (f64::from(random.word()) + 0.5) / 4_294_967_296.0;
    (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()
}

fn random_batch(lengths: &[usize]) -> Batch {
    let mut random = Random::new(2, [0, 0]);
    let mut batch = Batch { groups: vec![0], ..Batch::default() };
    for (sequence, &length) in lengths.iter().enumerate() {
        batch.starts.push(batch.ids.len() as u32);
        for position in 0..length {
            batch.ids.push(1000 + random.below(29_000));
            batch.types.push(u32::from(position * 2 > length));
            batch.places.push((sequence << 16 | position) as u32);
        }
        batch.ends.push(batch.ids.len() as u32);
        batch.first_places.push((sequence << 16) as u32);
        batch.groups.push(sequence as u32 + 1);
        batch.labels.push(random.below(3));
        batch.targets.push(0.0);
    }
    batch.order = (0..batch.ids.len() as u32).collect();
    batch.order.sort_by_key(|&row| batch.ids[row as usize]);
    batch
}
