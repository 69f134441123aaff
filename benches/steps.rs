//! `cargo bench --bench steps`: whole training steps and inference, in milliseconds and tokens a second.
//!
//! The shapes are those of the usual comparisons: 32 sequences of 128 tokens, and a GLUE-like batch of 32
//! sequences with a log-normal length around 40 tokens; each in f32 and in bf16. The share is that of the matrix products'
//! arithmetic at the probed rate of multiply-adds of that kind.
//!
//! Arguments pick rows by parts of their names, all of which must be there: `cargo bench --bench steps -- base bf16`.
//! `--json` prints a line of JSON a row, with the bytes of the step's plan and the process's largest memory so far.

mod common;
#[path = "common/models.rs"]
mod models;

use common::{Arguments, Limits, median};
use models::{configs, forward_flops, glue_like, random_batch};
use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::backend::{Backend, Group, Optimizer, Rule, Sizes, StepScalars};
use mtdnn_raw::data::Batch;
use mtdnn_raw::nn::{BertConfig, extents};
use mtdnn_raw::tensor::{Precision, Space, Span};
use serde_json::json;

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
        for (name, config) in configs() {
            for (precision, kind) in [(Precision::F32, "f32"), (Precision::Bf16, "bf16")] {
                for (shape, lengths) in [("32 x 128", vec![128; 32]), ("32 GLUE-like", glue_like(1))] {
                    let name = format!("{name}, {shape}, {kind}");
                    bench(&arguments, &name, &config, precision, &lengths, &limits);
                }
            }
        }
    });
}

fn bench(
    arguments: &Arguments,
    name: &str,
    config: &BertConfig,
    precision: Precision,
    lengths: &[usize],
    limits: &Limits,
) {
    let [training_name, inference_name] =
        ["training step", "inference"].map(|work| format!("{work}, {name}"));
    if !arguments.ask_for(&training_name) && !arguments.ask_for(&inference_name) {
        return;
    }
    let (model, parameters) = models::model(config);
    let model = model.with_precision(precision);
    let len = parameters.len();
    let whole = Span { space: Space::Parameters, offset: 0, len };
    let batch = random_batch(lengths, 1);
    let extents = extents(&batch);
    let training = model.training(0, extents, 1.0, false);
    let inference = model.inference(&[0], extents);
    let arena = training.program.arena_len().max(inference.program.arena_len());
    let mut backend = CpuBackend::new().with_precision(precision);
    backend.reserve(&Sizes { parameters: len, arena, training: true }).expect("memory");
    backend.write(whole, bytemuck::cast_slice(&parameters)).expect("parameters");
    drop(parameters);
    let plan = (4 * len + training.program.arena_len()) * size_of::<f32>();
    let optimizer = Optimizer::new(Rule::Adamax);
    let mut step = 0;
    let mut train = || {
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
    };
    let forward = forward_flops(config, &batch);
    let row = Row { arguments, precision, batch: &batch, plan, limits };
    row.print(&training_name, 3.0 * forward, &mut train);
    row.print(&inference_name, forward, &mut || {
        inference.write(&mut backend, &batch).expect("inputs");
        backend.run(&inference.program, &StepScalars { extents, seed: 1, step: 0 }).expect("a pass");
    });
}

/// What the rows of one model and batch share.
struct Row<'a> {
    arguments: &'a Arguments,
    precision: Precision,
    batch: &'a Batch,
    /// Bytes of a training step.
    plan: usize,
    limits: &'a Limits,
}

impl Row<'_> {
    fn print(&self, name: &str, flops: f64, work: &mut dyn FnMut()) {
        if !self.arguments.ask_for(name) {
            return;
        }
        let seconds = median(work).as_secs_f64();
        let tokens = self.batch.tokens() as f64 / seconds;
        let limit = match self.precision {
            Precision::F32 => self.limits.flops,
            Precision::Bf16 => self.limits.narrow_flops,
        };
        let share = flops / seconds / limit;
        if self.arguments.json {
            let (ms, peak) = (seconds * 1e3, peak_memory());
            println!(
                "{}",
                json!({"name": name, "ms": ms, "share": share, "plan_bytes": self.plan, "peak_bytes": peak})
            );
        } else {
            println!("{name:<52} {:>9.1} {tokens:>10.0} {:>6.0}%", seconds * 1e3, 100.0 * share);
        }
    }
}

/// The most memory that this process has had, in bytes; none where the system does not say.
fn peak_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(1024 * line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?)
}
