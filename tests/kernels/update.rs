//! The optimizer's step against the CPU's.

use half::bf16;
use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::backend::cuda::launch::Address;
use mtdnn_raw::backend::cuda::update::{self, Buffers, Clip, UpdateGroup};
use mtdnn_raw::backend::{Backend, Group, Optimizer, Rule, Sizes};
use mtdnn_raw::tensor::{DType, Precision, Rows, Space, Span};

use super::emulation::{EmulatedBackend, Emulation};
use super::support::{Bench, assert_near, numbers};

/// Not a multiple of what a block takes, nor of what a thread does.
const LEN: usize = 3 * 4096 + 77;
/// More than there are groups.
const SLOTS: usize = 9;

/// The flat buffers before a step: parameters, gradients, and the moments, which are never negative for the second.
fn state() -> [Vec<f32>; 4] {
    let [theta, g, m, u] = [1, 2, 3, 4].map(|seed| numbers(seed, DType::F32, LEN));
    [theta, g, m.iter().map(|m| 0.1 * m).collect(), u.iter().map(|u| u.abs()).collect()]
}

/// Groups out of order that begin and end anywhere, with gaps between them; one takes its gradient for zero.
fn groups() -> Vec<Group> {
    let group = |range, learning_rate, weight_decay, update, zero_gradient| Group {
        range,
        learning_rate,
        weight_decay,
        update,
        zero_gradient,
    };
    vec![
        group(4099..4102, 1e-2, 0.0, 3, false),
        group(0..2, 1e-2, 0.1, 3, false),
        group(2..3, 2e-2, 0.0, 1, false),
        group(5..4099, 1e-3, 0.01, 3, false),
        group(4200..4300, 1e-2, 0.1, 7, true),
        group(4300..4300, 1e-2, 0.1, 7, false),
        group(5000..LEN, 3e-3, 0.1, 2, false),
    ]
}

/// The CPU's state and norm after a step.
fn on_the_cpu(optimizer: &Optimizer, clip: f32, state: &[Vec<f32>; 4]) -> ([Vec<f32>; 4], f32) {
    let mut backend = CpuBackend::new();
    backend.reserve(&Sizes { parameters: LEN, arena: 0, training: true }).unwrap();
    let spaces = [Space::Parameters, Space::Gradients, Space::FirstMoment, Space::SecondMoment];
    let spans = spaces.map(|space| Span { space, offset: 0, len: LEN });
    for (span, values) in spans.iter().zip(state) {
        backend.write(*span, bytemuck::cast_slice(values)).unwrap();
    }
    let kept = backend.update(optimizer, clip, &groups()).unwrap();
    let norm = backend.number(kept).unwrap();
    let state = spans.map(|span| {
        let mut values = vec![0f32; LEN];
        backend.read(span, bytemuck::cast_slice_mut(&mut values)).unwrap();
        values
    });
    (state, norm)
}

/// The kernels' state, copy and norm after a step.
fn on_kernels(
    emulation: &Emulation,
    optimizer: &Optimizer,
    clip: f32,
    state: &[Vec<f32>; 4],
    copied: bool,
) -> ([Vec<f32>; 4], Option<Vec<f32>>, Clip) {
    let mut bench = Bench::of_tokens(0);
    let mut place = |name, values: &[f32]| bench.value(name, DType::F32, Rows::Fixed(LEN), 1, values).address;
    let names = ["parameters", "gradients", "first", "second"];
    let [parameters, gradients, first, second] =
        std::array::from_fn::<Address, 4, _>(|i| place(names[i], &state[i]));
    let copy = copied.then(|| bench.value("copy", DType::Bf16, Rows::Fixed(LEN), 1, &vec![-9.0; LEN]));
    let array = UpdateGroup::array(optimizer, &groups(), SLOTS);
    let buffers = Buffers {
        len: LEN,
        parameters,
        gradients,
        first,
        second,
        copy: copy.map_or(0, |copy| copy.address),
        groups: bench.memory.words("groups", bytemuck::cast_slice(&array)),
        slots: SLOTS as u32,
        clip: bench.memory.poison("clip", DType::F32, 2),
    };
    bench.run(emulation, |launches| update::update(launches, optimizer, clip, &buffers));
    let after = [parameters, gradients, first, second].map(|address| bench.memory.read_floats(address));
    (after, copy.map(|copy| bench.read(copy)), bench.memory.read::<Clip>(buffers.clip, 1)[0])
}

#[test]
fn every_rule_is_the_cpus() {
    let Some(emulation) = Emulation::get() else { return };
    for (rule, clip) in Rule::ALL.into_iter().flat_map(|rule| [(rule, 0.0), (rule, 0.5), (rule, 1e6)]) {
        let optimizer = Optimizer::new(rule);
        let mut before = state();
        // What is in no group, or taken for zero, is not looked at.
        before[1][4150] = f32::NAN;
        before[1][4250] = f32::NAN;
        let (expected, norm) = on_the_cpu(&optimizer, clip, &before);
        let (got, copy, clipped) = on_kernels(emulation, &optimizer, clip, &before, clip != 0.0);
        assert_near(&rule, DType::F32, &[clipped.norm], &[norm], 1e-7);
        let scale = if clip == 0.5 { 0.5 / norm } else { 1.0 };
        assert_near(&rule, DType::F32, &[clipped.scale], &[scale], 1e-6);
        for i in [0, 2, 3] {
            assert_near(&(rule, clip, i), DType::F32, &got[i], &expected[i], 1.2e-7);
        }
        let inside = |i: usize| groups().iter().any(|group| group.range.contains(&i));
        for i in (0..LEN).filter(|i| !inside(*i)) {
            assert_eq!(got[0][i], before[0][i], "{i} is in no group");
        }
        for (i, copy) in copy.into_iter().flatten().enumerate() {
            assert_eq!(copy, if inside(i) { bf16::from_f32(got[0][i]).to_f32() } else { -9.0 });
        }
    }
}

#[test]
fn nothing_is_updated_where_the_norm_is_not_finite() {
    let Some(emulation) = Emulation::get() else { return };
    for (rule, bad) in Rule::ALL.into_iter().flat_map(|rule| [(rule, f32::NAN), (rule, f32::INFINITY)]) {
        let mut before = state();
        before[1][6000] = bad;
        let optimizer = Optimizer::new(rule);
        let (after, copy, clip) = on_kernels(emulation, &optimizer, 1.0, &before, true);
        assert!(!clip.norm.is_finite() && clip.scale.is_nan());
        assert!(after[0] == before[0] && after[2] == before[2] && after[3] == before[3]);
        assert!(copy.unwrap().iter().all(|value| *value == -9.0));
    }
}

#[test]
fn a_norm_of_zero_is_a_ratio_of_one() {
    let Some(emulation) = Emulation::get() else { return };
    let optimizer = Optimizer::new(Rule::Lamb);
    // Of the parameters in one group, of their directions in another that shares its chunk.
    let mut before = state();
    before[0][4099..4102].fill(0.0);
    for i in [1, 2, 3] {
        before[i][2..3].fill(0.0);
    }
    let (expected, _) = on_the_cpu(&optimizer, 0.0, &before);
    let (got, ..) = on_kernels(emulation, &optimizer, 0.0, &before, false);
    for i in [0, 2, 3] {
        assert_near(&i, DType::F32, &got[i], &expected[i], 1.2e-7);
    }
    assert!(got[0][4099..4102].iter().all(|theta| *theta != 0.0));
    assert_eq!(got[0][2], before[0][2], "nothing has a direction there");
}

#[test]
fn the_lengths_of_a_large_tensor_are_the_cpus() {
    // More chunks than there are threads that add up their sums.
    let len = 257 * 4096 + 5;
    let Some(mut emulated) = EmulatedBackend::new(Precision::F32, 1) else { return };
    let [theta, g] = [5, 6].map(|seed| numbers(seed, DType::F32, len));
    let run = |backend: &mut dyn Backend| {
        backend.reserve(&Sizes { parameters: len, arena: 0, training: true }).unwrap();
        let parameters = Span { space: Space::Parameters, offset: 0, len };
        backend.write(parameters, bytemuck::cast_slice(&theta)).unwrap();
        backend.write(Span { space: Space::Gradients, ..parameters }, bytemuck::cast_slice(&g)).unwrap();
        let group =
            Group { range: 0..len, learning_rate: 0.1, weight_decay: 0.1, update: 1, zero_gradient: false };
        backend.update(&Optimizer::new(Rule::Lamb), 1.0, &[group]).unwrap();
        let mut values = vec![0f32; len];
        backend.read(parameters, bytemuck::cast_slice_mut(&mut values)).unwrap();
        values
    };
    assert_near(&"parameters", DType::F32, &run(&mut emulated), &run(&mut CpuBackend::new()), 1.2e-7);
}

#[test]
fn the_norm_holds_squares_that_f32_does_not() {
    let Some(emulation) = Emulation::get() else { return };
    let mut before = state();
    before[1].fill(0.0);
    before[1][6000] = 3e30;
    before[1][9000] = 4e30;
    let (_, _, clip) = on_kernels(emulation, &Optimizer::new(Rule::Sgd), 1.0, &before, false);
    assert_near(&"the norm", DType::F32, &[clip.norm], &[5e30], 1e-6);
    assert_near(&"the scale", DType::F32, &[clip.scale * 1e30], &[0.2], 1e-6);
}

#[test]
fn moments_fade_to_zero() {
    let Some(emulation) = Emulation::get() else { return };
    for rule in Rule::ALL {
        let mut before = state();
        before[1].fill(0.0);
        before[2].fill(f32::MIN_POSITIVE);
        let (after, _, _) = on_kernels(emulation, &Optimizer::new(rule), 0.0, &before, false);
        // The learning rate does not touch moments, but a decay in the gradient does.
        if !matches!(rule, Rule::Adamax | Rule::Sgd) {
            assert_eq!(after[2][5000..], vec![0.0; LEN - 5000], "{rule:?}");
        }
    }
}

#[test]
fn groups_lie_apart() {
    let overlapping = [0..5, 4..6].map(|range| Group {
        range,
        learning_rate: 0.1,
        weight_decay: 0.0,
        update: 1,
        zero_gradient: false,
    });
    let array = || UpdateGroup::array(&Optimizer::new(Rule::Sgd), &overlapping, 2);
    assert!(std::panic::catch_unwind(array).is_err());
}
