//! What the kernels' tests share.

use half::bf16;

use super::elements::{Elements, ElementsMut, narrowed, widened};
use super::isa::Isa;
use super::scratch::Workspace;
use crate::random::philox4x32_10;
use crate::tensor::DType;

/// The types that values are kept in.
pub(super) const FLOATS: [DType; 2] = [DType::F32, DType::Bf16];

/// Numbers of either width.
pub(super) enum Kept {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Kept {
    /// These numbers, rounded to the type.
    pub(super) fn new(dtype: DType, numbers: &[f32]) -> Self {
        match dtype {
            DType::Bf16 => Kept::Bf16(numbers.iter().map(|number| narrowed(*number)).collect()),
            _ => Kept::F32(numbers.to_vec()),
        }
    }

    pub(super) fn elements(&self) -> Elements<'_> {
        match self {
            Kept::F32(numbers) => Elements::F32(numbers),
            Kept::Bf16(numbers) => Elements::Bf16(numbers),
        }
    }

    pub(super) fn elements_mut(&mut self) -> ElementsMut<'_> {
        match self {
            Kept::F32(numbers) => ElementsMut::F32(numbers),
            Kept::Bf16(numbers) => ElementsMut::Bf16(numbers),
        }
    }

    pub(super) fn numbers(&self) -> Vec<f32> {
        match self {
            Kept::F32(numbers) => numbers.clone(),
            Kept::Bf16(numbers) => numbers.iter().map(|number| widened(*number)).collect(),
        }
    }
}

/// The same numbers, rounded to the type.
pub(super) fn rounded(dtype: DType, numbers: &[f32]) -> Vec<f32> {
    Kept::new(dtype, numbers).numbers()
}

/// `count` numbers, evenly spread over [-1, 1).
pub(super) fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let word = |i: usize| philox4x32_10([i as u32, 0, 0, 0], [seed, 0])[0];
    (0..count).map(|i| (word(i) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Runs `kernel` on every instruction set with 1, 2 and 3 threads, asserts that the thread count changes no bit, and
/// hands the result of each instruction set to `check`.
pub(super) fn same_on_any_threads(kernel: impl Fn(Isa) -> Vec<f32> + Sync, check: impl Fn(&[f32])) {
    for &isa in Isa::available() {
        let results = [1, 2, 3].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| kernel(isa))
        });
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        for more in &results[1..] {
            assert!(bits(&results[0]) == bits(more), "{isa:?}: the thread count changes the result");
        }
        check(&results[0]);
    }
}

/// For the pool that the caller runs in, with NaN where a kernel might expect zeros.
pub(super) fn workspace() -> Workspace {
    const ENOUGH: usize = 1 << 15;
    let mut workspace = Workspace::new(rayon::current_num_threads());
    let (shared, scratch) = workspace.parts(ENOUGH);
    shared.fill(f32::NAN);
    rayon::broadcast(|_| scratch.with(ENOUGH, |buffer| buffer.fill(f32::NAN)));
    workspace
}

/// Asserts that the numbers agree, relative to the larger of 1 and the expected one.
#[track_caller]
pub(super) fn assert_close(values: &[f32], expected: impl IntoIterator<Item = f64>, tolerance: f64) {
    assert_close_in(DType::F32, values, expected, tolerance);
}

/// As [`assert_close`], of numbers that may have been rounded to bf16 after all else: of its 8 bits that moves them by
/// half of the last, a 256th of the number at most.
#[track_caller]
pub(super) fn assert_close_in(
    dtype: DType,
    values: &[f32],
    expected: impl IntoIterator<Item = f64>,
    tolerance: f64,
) {
    let expected: Vec<f64> = expected.into_iter().collect();
    assert_eq!(values.len(), expected.len());
    let rounding = if dtype == DType::Bf16 { 1.0 / 256.0 } else { 0.0 };
    for (i, (value, expected)) in values.iter().zip(expected).enumerate() {
        let before = tolerance * expected.abs().max(1.0);
        let allowed = before + rounding * (expected.abs() + before);
        let error = (f64::from(*value) - expected).abs();
        assert!(error <= allowed, "element {i}: {value} instead of {expected} in {dtype:?}");
    }
}

/// The gradient of `function` at `x` by central differences.
pub(super) fn difference_quotients(x: &[f32], function: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-4;
    let mut x = doubles(x);
    (0..x.len())
        .map(|i| {
            let middle = x[i];
            x[i] = middle + STEP;
            let right = function(&x);
            x[i] = middle - STEP;
            let left = function(&x);
            x[i] = middle;
            (right - left) / (2.0 * STEP)
        })
        .collect()
}

/// The same numbers in f64.
pub(super) fn doubles(x: &[f32]) -> Vec<f64> {
    x.iter().copied().map(f64::from).collect()
}
