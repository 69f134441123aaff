//! Whole programs through the emulation: every operation of models with each head, one by one and fused, and whole
//! training steps, against the CPU backend.

use mtdnn_raw::backend::cuda::launch::{Kernels, Launches};
use mtdnn_raw::backend::cuda::lower::{Places, lower};
use mtdnn_raw::nn::{HiddenAct, extents};
use mtdnn_raw::tensor::{Precision, Var};

use super::cases::assert_cases_agree;
use super::emulation::EmulatedBackend;
use super::steps::{Fixture, PretrainingFixture, TASKS, config};

#[test]
fn every_case_agrees_with_the_cpu() {
    for precision in [Precision::F32, Precision::Bf16] {
        let Some(mut emulated) = EmulatedBackend::new(precision, 1) else { return };
        assert_cases_agree(&mut emulated);
    }
}

#[test]
fn every_operation_agrees_with_the_cpu() {
    for (precision, heads, act) in [
        (Precision::F32, 4, HiddenAct::GeluNew),
        (Precision::Bf16, 2, HiddenAct::Gelu),
        (Precision::Bf16, 1, HiddenAct::Relu),
    ] {
        for task in 0..TASKS {
            for line in [1, 128] {
                let Some(mut emulated) = EmulatedBackend::new(precision, line) else { return };
                Fixture::new(act, heads, task, line).assert_operations_agree(&mut emulated);
            }
        }
    }
}

#[test]
fn whole_steps_agree_with_the_cpu() {
    for precision in [Precision::F32, Precision::Bf16] {
        for task in 0..TASKS {
            let Some(mut emulated) = EmulatedBackend::new(precision, 128) else { return };
            let fixture = Fixture::new(HiddenAct::Gelu, 2, task, 128);
            fixture.assert_steps_agree(&mut emulated, &[&fixture.batch; 3]);
        }
    }
}

#[test]
fn pretraining_agrees_with_the_cpu() {
    for (precision, heads, act) in
        [(Precision::F32, 4, HiddenAct::GeluNew), (Precision::Bf16, 2, HiddenAct::Gelu)]
    {
        for line in [1, 128] {
            let Some(mut emulated) = EmulatedBackend::new(precision, line) else { return };
            PretrainingFixture::new(act, heads, line).assert_operations_agree(&mut emulated);
        }
        let Some(mut emulated) = EmulatedBackend::new(precision, 128) else { return };
        PretrainingFixture::new(act, heads, 128).assert_steps_agree(&mut emulated);
    }
}

#[test]
fn steps_with_kernels_for_hopper_agree_with_the_cpu() {
    for heads in [1, 2] {
        let Some(emulated) = EmulatedBackend::new(Precision::Bf16, 128) else { return };
        let mut emulated = emulated.with_kernels(Kernels::Hopper);
        let config = config(HiddenAct::Gelu, heads);
        let within = Fixture::of_lengths(&config, &[128, 1, 70, 30, 90]);
        within.assert_operations_agree(&mut emulated);
        let across = Fixture::of_lengths(&config, &[128, 1, 70, 30, 90, 130]);
        let batches = [&within.batch, &across.batch];
        assert_eq!(batches.map(|batch| extents(batch).in_lines), [true, false]);
        across.assert_steps_agree(&mut emulated, &batches);
    }
}

#[test]
fn products_of_a_step_are_hoppers_own() {
    let launches = launches(&Fixture::new(HiddenAct::Gelu, 2, 0, 128), Kernels::Hopper);
    for form in ["nt", "nn", "tn"] {
        let products =
            launches.list.iter().filter(|launch| launch.kernel.starts_with(&format!("hopper_gemm_{form}")));
        assert!(products.count() >= 8, "{form}: the four products of each of two layers");
    }
}

/// What a step of a model in bf16 launches. Addresses are as far apart as the values' numbers: the kernels are not run.
fn launches(fixture: &Fixture, kernels: Kernels) -> Launches {
    let program = fixture.recorded(Precision::Bf16).program;
    let mut launches = Launches::new(0, extents(&fixture.batch), 0);
    launches.kernels = kernels;
    let value = |var: Var| 1 << 30 | (var.index() as u64) << 12;
    lower(&program, &Places { value: &value, copy: &value }, &mut launches);
    launches
}

/// The neighbours that one kernel computes together are found in a real model's step.
#[test]
fn neighbours_are_fused() {
    let launches = launches(&Fixture::new(HiddenAct::Gelu, 2, 0, 128), Kernels::Portable);
    let count = |part: &str| launches.list.iter().filter(|launch| launch.kernel.contains(part)).count();
    assert_eq!(count("embedding_norm"), 1, "embedding, norm and dropout");
    // Of two layers' feed-forward networks; the bias gradient is summed in the product.
    assert_eq!(count("activate"), 1, "only the pooler's tanh has a gradient of its own");
    let adds = launches.list.iter().filter(|launch| launch.kernel.starts_with("add_norm_"));
    assert!(adds.count() >= 8, "each norm has a kernel, forward and back");
    assert_eq!(count("drop_"), 3, "the head's dropout forward and back, and the way back of the embedding's");
}
