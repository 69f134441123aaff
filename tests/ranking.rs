//! Relevance ranking: equations 5, 8 and 9 of Liu et al. 2019 with every gamma and g, against the formula in f64.

#[path = "common/runs.rs"]
mod runs;

use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::backend::{Backend, Sizes, StepScalars};
use mtdnn_raw::data::{Batch, Dataset, Label, Relevance, TaskKind, TaskSpec};
use mtdnn_raw::nn::{Model, Recorded, extents};
use mtdnn_raw::tensor::{Program, Space};
use runs::{lesson, new_parameters, read_span, small_config, task, write};

/// What a program of the model leaves in its first output, for all examples of the set.
fn run(model: &Model, set: &Dataset, record: impl Fn(&Model, &Batch) -> Recorded) -> Vec<f32> {
    let mut batch = Batch::new(1);
    batch.fill(set, &(0..set.len() as u32).collect::<Vec<_>>());
    let recorded = record(model, &batch);
    let program: &Program = &recorded.program;
    let parameters: Vec<f32> = new_parameters(model, 7).iter().map(|value| 3.0 * value).collect();
    let mut backend = CpuBackend::new();
    let sizes = Sizes { parameters: parameters.len(), arena: program.arena_len(), training: true };
    backend.reserve(&sizes).unwrap();
    write(&mut backend, Space::Parameters, &parameters);
    let extents = extents(&batch);
    recorded.write(&mut backend, &batch).unwrap();
    backend.run(program, &StepScalars { extents, seed: 1, step: 0 }).unwrap();
    read_span(&mut backend, program.span(recorded.outputs[0], &extents))
}

fn relevances(spec: &TaskSpec, set: &Dataset) -> Vec<f32> {
    let model = Model::new(&small_config(16, 0.0), std::slice::from_ref(spec));
    run(&model, set, |model, batch| model.inference(&[0], extents(batch)))
}

fn loss(spec: &TaskSpec, set: &Dataset) -> f64 {
    let model = Model::new(&small_config(16, 0.0), std::slice::from_ref(spec));
    f64::from(run(&model, set, |model, batch| model.training(0, extents(batch), 1.0, false))[0])
}

/// Equations 8 and 9, the mean over the queries.
fn formula(set: &Dataset, relevances: &[f64], gamma: f64) -> f64 {
    let of = |example: usize| {
        let Label::Positive(right) = set.labels[example] else { panic!("no query") };
        let group = &relevances[set.sequences_of(example)];
        let sum: f64 = group.iter().map(|relevance| (gamma * relevance).exp()).sum();
        sum.ln() - gamma * group[right as usize]
    };
    (0..set.len()).map(of).sum::<f64>() / set.len() as f64
}

#[test]
fn gamma_and_g_are_those_of_the_equations() {
    let set = lesson(TaskKind::Ranking, 9, 3);
    let plain = task("ranks", TaskKind::Ranking, 0);
    let raw = relevances(&plain, &set);
    assert!(raw.iter().any(|x| x.abs() > 0.3), "numbers too small to tell one from another: {raw:?}");
    let mut losses = Vec::new();
    for relevance in [Relevance::Identity, Relevance::Sigmoid] {
        let apply = |x: &f32| match relevance {
            Relevance::Identity => f64::from(*x),
            Relevance::Sigmoid => 1.0 / (1.0 + (-f64::from(*x)).exp()),
        };
        let expected: Vec<f64> = raw.iter().map(apply).collect();
        for gamma in [1.0, 2.5] {
            let spec = TaskSpec { gamma, relevance, ..plain.clone() };
            for (found, expected) in relevances(&spec, &set).iter().zip(&expected) {
                assert!(
                    (f64::from(*found) - expected).abs() < 1e-5,
                    "{relevance:?}: {found}, not {expected}"
                );
            }
            let (found, expected) = (loss(&spec, &set), formula(&set, &expected, f64::from(gamma)));
            assert!((found - expected).abs() < 1e-5, "{relevance:?}, {gamma}: {found}, not {expected}");
            losses.push(found);
        }
    }
    losses.sort_by(f64::total_cmp);
    assert!(losses.windows(2).all(|pair| pair[1] - pair[0] > 1e-3), "no two are one: {losses:?}");
}
