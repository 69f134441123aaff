//! The CPU backend on every instruction set that this machine has, in f32 and in bf16: operation by operation and in
//! whole steps it agrees with itself as it is by default, in f32.

#[path = "common/cases.rs"]
mod cases;
#[path = "common/steps.rs"]
mod steps;

use mtdnn_raw::backend::Rule;
use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::backend::cpu::isa::Isa;
use mtdnn_raw::nn::HiddenAct;
use mtdnn_raw::tensor::Precision;
use steps::{Fixture, PretrainingFixture, TASKS};

fn for_every_kind(check: impl Fn(&mut CpuBackend)) {
    for &isa in Isa::available() {
        for precision in [Precision::F32, Precision::Bf16] {
            println!("{isa:?}, {precision:?}");
            check(&mut CpuBackend::with_isa(isa).with_precision(precision));
        }
    }
}

#[test]
fn every_case_agrees() {
    for_every_kind(|backend| cases::assert_cases_agree(backend));
}

#[test]
fn every_operation_agrees() {
    for (heads, act) in [(4, HiddenAct::GeluNew), (2, HiddenAct::Gelu), (1, HiddenAct::Relu)] {
        for task in 0..TASKS {
            let fixture = Fixture::new(act, heads, task, 1);
            for_every_kind(|backend| fixture.assert_operations_agree(backend));
        }
    }
}

#[test]
fn whole_steps_agree() {
    for task in 0..TASKS {
        let fixture = Fixture::new(HiddenAct::Gelu, 2, task, 1);
        for_every_kind(|backend| fixture.assert_steps_agree(backend, &[&fixture.batch; 3]));
    }
}

#[test]
fn pretraining_agrees() {
    let fixture = PretrainingFixture::new(HiddenAct::Gelu, 2, 1);
    for_every_kind(|backend| fixture.assert_operations_agree(backend));
    for_every_kind(|backend| fixture.assert_steps_agree(backend));
}

/// On batches large enough that every kernel divides its work.
#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for task in 0..TASKS {
        let fixture = Fixture::new(HiddenAct::Gelu, 2, task, 1);
        for &isa in Isa::available() {
            for precision in [Precision::F32, Precision::Bf16] {
                let bits = |threads: usize| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let (losses, parameters) = pool.install(|| {
                        let mut backend = CpuBackend::with_isa(isa).with_precision(precision);
                        fixture.train(&mut backend, Rule::Adamax, &[&fixture.batch; 3])
                    });
                    losses.iter().chain(&parameters).map(|value| value.to_bits()).collect::<Vec<_>>()
                };
                let one = bits(1);
                assert!(one == bits(2) && one == bits(5), "{isa:?}, {precision:?}, task {task}");
            }
        }
    }
}
