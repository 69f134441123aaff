//! The rows of whole training steps: batch written, forward, backward, clipping, Adamax, as the trainer queues them.

use std::collections::VecDeque;
use std::time::Instant;

use mtdnn_raw::backend::cuda::backend::CudaBackend;
use mtdnn_raw::backend::{Backend, BackendError, Group, Optimizer, Rule, Sizes, StepScalars, Ticket};
use mtdnn_raw::data::Batch;
use mtdnn_raw::nn::{BertConfig, Model, Recorded, extents};
use mtdnn_raw::tensor::{Extents, Precision, Space, Span};

use super::models::{configs, forward_flops, glue_like, model, random_batch};
use super::table::{Bench, Limits};

/// Steps that are counted; before them, each batch is seen twice.
const STEPS: usize = 64;
/// Different batches in turn.
const BATCHES: u64 = 8;

pub fn steps(bench: Bench) -> Result<(), BackendError> {
    println!(
        "\n| steps, bf16 | on the device, ms | by the clock, ms | sequences/s | tokens/s | products | of the limit |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut named = Vec::new();
    for (name, config) in configs() {
        for shape in ["32 x 128", "32 GLUE-like", "256 x 128"] {
            let row = format!("training step, {name}, {shape}");
            if bench.is_asked(&row) {
                named.push((row, config.clone(), shape));
            }
        }
    }
    let limits = bench.limits;
    let mut backend = CudaBackend::new(bench.device, Precision::Bf16)?;
    for (row, config, shape) in named {
        let batches: Vec<Batch> = (1..=BATCHES)
            .map(|seed| {
                let lengths = match shape {
                    "32 x 128" => vec![128; 32],
                    "256 x 128" => vec![128; 256],
                    _ => glue_like(seed),
                };
                random_batch(&lengths, backend.line())
            })
            .collect();
        measure(&mut backend, &row, &config, &batches, &limits)?;
    }
    Ok(())
}

/// One model's steps.
struct Run<'a> {
    backend: &'a mut CudaBackend,
    recorded: Recorded,
    parameters: usize,
    batches: &'a [Batch],
    step: u32,
    queued: VecDeque<[Ticket; 2]>,
}

impl Run<'_> {
    fn step(&mut self) -> Result<(), BackendError> {
        let batch = &self.batches[self.step as usize % self.batches.len()];
        let extents = extents(batch);
        self.recorded.write(self.backend, batch)?;
        self.step += 1;
        let program = &self.recorded.program;
        self.backend.run(program, &StepScalars { extents, seed: 1, step: self.step })?;
        let loss = self.backend.keep(program.span(self.recorded.outputs[0], &extents))?;
        let group = Group {
            range: 0..self.parameters,
            learning_rate: 5e-5,
            weight_decay: 0.0,
            update: u64::from(self.step),
            zero_gradient: false,
        };
        let norm = self.backend.update(&Optimizer::new(Rule::Adamax), 1.0, &[group])?;
        self.queued.push_back([loss, norm]);
        if self.queued.len() > self.backend.steps_ahead() {
            for ticket in self.queued.pop_front().into_iter().flatten() {
                assert!(self.backend.number(ticket)?.is_finite(), "step {} diverges", self.step);
            }
        }
        Ok(())
    }
}

fn measure(
    backend: &mut CudaBackend,
    row: &str,
    config: &BertConfig,
    batches: &[Batch],
    limits: &Limits,
) -> Result<(), BackendError> {
    let (model, parameters): (Model, Vec<f32>) = model(config);
    let capacity = batches.iter().map(extents).fold(Extents::default(), |most, one| most.max(&one));
    let recorded = model.with_precision(backend.precision()).training(0, capacity, 1.0, false);
    let len = parameters.len();
    backend.reserve(&Sizes { parameters: len, arena: recorded.program.arena_len(), training: true })?;
    let spaces = [Space::Gradients, Space::FirstMoment, Space::SecondMoment];
    spaces.into_iter().try_for_each(|space| backend.clear(Span { space, offset: 0, len }))?;
    backend.write(Span { space: Space::Parameters, offset: 0, len }, bytemuck::cast_slice(&parameters))?;

    let mut run = Run { backend, recorded, parameters: len, batches, step: 0, queued: VecDeque::new() };
    (0..2 * batches.len()).try_for_each(|_| run.step())?;
    run.backend.device().synchronize()?;
    let begin = Instant::now();
    let mut marks = vec![run.backend.device().mark()?];
    for _ in 0..STEPS {
        run.step()?;
        marks.push(run.backend.device().mark()?);
    }
    run.backend.device().synchronize()?;
    let by_the_clock = begin.elapsed().as_secs_f64() / STEPS as f64;
    let times = marks.windows(2).map(|pair| pair[1].milliseconds_since(&pair[0]));
    let mut times = times.collect::<Result<Vec<f32>, _>>()?;
    times.sort_by(f32::total_cmp);

    let mean = |of: &dyn Fn(&Batch) -> f64| batches.iter().map(of).sum::<f64>() / batches.len() as f64;
    let flops = 3.0 * mean(&|batch| forward_flops(config, batch)) / by_the_clock;
    println!(
        "| {row} | {:.2} | {:.2} | {:.0} | {:.0} | {:.0} TFLOP/s | {:.0} % |",
        times[times.len() / 2],
        1e3 * by_the_clock,
        mean(&|batch| batch.sequences() as f64) / by_the_clock,
        mean(&|batch| batch.live_tokens() as f64) / by_the_clock,
        flops / 1e12,
        100.0 * flops / limits.flops
    );
    Ok(())
}
