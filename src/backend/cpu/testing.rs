//! What the kernels' tests share.

use super::isa::Isa;
use crate::random::philox4x32_10;

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

/// Asserts that the numbers agree, relative to the larger of 1 and the expected one.
#[track_caller]
pub(super) fn assert_close(values: &[f32], expected: impl IntoIterator<Item = f64>, tolerance: f64) {
    let expected: Vec<f64> = expected.into_iter().collect();
    assert_eq!(values.len(), expected.len());
    for (i, (value, expected)) in values.iter().zip(expected).enumerate() {
        let error = (f64::from(*value) - expected).abs() / expected.abs().max(1.0);
        assert!(error <= tolerance, "element {i}: {value} instead of {expected}");
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
