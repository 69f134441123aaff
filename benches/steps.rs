//! `cargo bench --bench steps`: whole training steps and inference, in milliseconds and tokens a second.
//!
//! The shapes are those of the usual comparisons: 32 sequences of 128 tokens, and a GLUE-like batch of 32
//! sequences with a log-normal length around 40 tokens. The share is that of the matrix products' arithmetic at
//! the probed rate of fused multiply-adds. An argument (`minilm`, `base`) picks a model.

mod common;
#[path = "common/models.rs"]
mod models;

use std::time::Duration;

use common::{Limits, median};
use models::{configs, forward_flops, glue_like, random_batch};
use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::backend::{Backend, Group, Optimizer, Rule, Sizes, StepScalars};
use mtdnn_raw::data::Batch;
use mtdnn_raw::nn::{BertConfig, extents};
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
        for (name, config) in configs() {
            if asked.is_empty() || asked.iter().any(|a| a == name) {
                bench(name, &config, &limits);
            }
        }
    });
}

fn bench(name: &str, config: &BertConfig, limits: &Limits) {
    let (model, parameters) = models::model(config);
    let len = parameters.len();
    let whole = Span { space: Space::Parameters, offset: 0, len };
    for (shape, lengths) in [("32 x 128", vec![128; 32]), ("32 GLUE-like", glue_like(1))] {
        let batch = random_batch(&lengths, 1);
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
        let forward = forward_flops(config, &batch);
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
