//! Sums in a fixed order, and the largest element: along rows in lanes, down columns in blocks.

use rayon::prelude::*;

use super::blocks::SinkMut;
use super::isa::Isa;
use super::math::multiply_add;
use super::simd::multiversion;

/// Partial sums that a sum along a row is split into: four AVX2 registers, so that additions overlap.
const LANES: usize = 32;

/// The sum of `term` over the elements.
#[inline(always)]
pub(super) fn sum(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let (whole, rest) = values.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for values in whole {
        for i in 0..LANES {
            sums[i] += term(values[i]);
        }
    }
    // The rest has a sum of its own: indexed by anything but constants, the lanes would not stay in registers.
    let rest: f32 = rest.iter().map(|value| term(*value)).sum();
    total(&sums) + rest
}

/// The largest element; NaN is passed over here and shows in the sum.
#[inline(always)]
pub(super) fn largest(values: &[f32]) -> f32 {
    let larger = |left: f32, right: f32| if right > left { right } else { left };
    let (whole, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for values in whole {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane = larger(*lane, *value);
        }
    }
    rest.iter().chain(&lanes).fold(f32::NEG_INFINITY, |left, right| larger(left, *right))
}

/// The sum of the products of corresponding elements.
#[inline(always)]
pub(super) fn dot<const FMA: bool>(left: &[f32], right: &[f32]) -> f32 {
    let (left, left_rest) = left.as_chunks::<LANES>();
    let (right, right_rest) = right.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (left, right) in left.iter().zip(right) {
        for i in 0..LANES {
            sums[i] = multiply_add::<FMA>(left[i], right[i], sums[i]);
        }
    }
    let rest: f32 = left_rest.iter().zip(right_rest).map(|(left, right)| left * right).sum();
    total(&sums) + rest
}

/// The sum of the lanes, pairwise. Out of line: where the compiler sees the lanes come together it finds no vectors
/// wider than two (a row's dot product then takes four times as long).
#[inline(never)]
fn total(sums: &[f32; LANES]) -> f32 {
    let mut sums = *sums;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

/// Columns that one task sums: as many as eight AVX2 registers hold.
pub(super) const COLUMNS: usize = 64;
/// Rows whose sum is taken in f32 before it is added to the f64 total.
const ROWS: usize = 64;

/// `out[c] = sum over rows of x[row][c]`, for `x` `[rows, out.len()]`: the gradient of a bias.
pub fn column_sums(isa: Isa, x: &[f32], out: SinkMut) {
    let cols = out.values.len();
    assert!(cols > 0 && x.len().is_multiple_of(cols), "{} elements in rows of {cols}", x.len());
    out.values.par_chunks_mut(COLUMNS).enumerate().for_each(|(i, values)| {
        column_sums_block(isa, x, cols, i * COLUMNS, SinkMut { values, add: out.add })
    });
}

multiversion! {
    fn column_sums_block<FMA>(x: &[f32], cols: usize, first: usize, out: SinkMut) {
        sum_rows(x, cols, first, 0..x.len() / cols, out);
    }
}

/// `out[c] = sum over the rows named of x[row][first + c]`, for up to 64 columns.
#[inline(always)]
pub(super) fn sum_rows(
    x: &[f32],
    cols: usize,
    first: usize,
    rows: impl Iterator<Item = usize>,
    out: SinkMut,
) {
    let width = out.values.len();
    sum_blocks(rows, out, |row, sums| match x[row * cols + first..][..width].first_chunk::<COLUMNS>() {
        Some(values) => {
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += value;
            }
        }
        None => {
            for (sum, value) in sums.iter_mut().zip(&x[row * cols + first..][..width]) {
                *sum += value;
            }
        }
    });
}

/// `out[c] = sum over rows of x[row][first + c] y[row][first + c]`, for up to 64 columns.
#[inline(always)]
pub(super) fn sum_row_products<const FMA: bool>(
    x: &[f32],
    y: &[f32],
    cols: usize,
    first: usize,
    out: SinkMut,
) {
    let width = out.values.len();
    sum_blocks(0..x.len() / cols, out, |row, sums| {
        let (x, y) = (&x[row * cols + first..][..width], &y[row * cols + first..][..width]);
        match (x.first_chunk::<COLUMNS>(), y.first_chunk::<COLUMNS>()) {
            (Some(x), Some(y)) => {
                for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
                    *sum = multiply_add::<FMA>(*x, *y, *sum);
                }
            }
            _ => {
                for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
                    *sum = multiply_add::<FMA>(*x, *y, *sum);
                }
            }
        }
    });
}

/// Sums what `add_row` adds for each row: in f32 over 64 rows, in f64 over such blocks.
#[inline(always)]
pub(super) fn sum_blocks(
    mut rows: impl Iterator<Item = usize>,
    out: SinkMut,
    add_row: impl Fn(usize, &mut [f32; COLUMNS]),
) {
    let mut totals = [0f64; COLUMNS];
    loop {
        let mut sums = [0f32; COLUMNS];
        let mut count = 0;
        for row in rows.by_ref().take(ROWS) {
            add_row(row, &mut sums);
            count += 1;
        }
        for (total, sum) in totals.iter_mut().zip(sums) {
            *total += f64::from(sum);
        }
        if count < ROWS {
            break;
        }
    }
    let add = out.add;
    for (out, total) in out.values.iter_mut().zip(totals) {
        *out = total as f32 + if add { *out } else { 0.0 };
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, numbers, same_on_any_threads};
    use super::*;

    #[test]
    fn sums_along_a_row() {
        for length in [0, 1, 31, 32, 33, 100, 384] {
            let (x, y) = (numbers(1, length), numbers(2, length));
            let exact: f64 = x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
            assert_close(&[sum(&x, |x| x * x)], [exact], 1e-6);
            let exact: f64 = x.iter().zip(&y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            assert_close(&[dot::<true>(&x, &y), dot::<false>(&x, &y)], [exact, exact], 1e-6);
        }
    }

    #[test]
    fn sums_of_columns() {
        for (rows, cols) in [(0, 3), (1, 1), (63, 64), (64, 65), (65, 130), (1000, 17)] {
            let x = numbers(3, rows * cols);
            for add in [false, true] {
                same_on_any_threads(
                    |isa| {
                        let mut out = vec![2.0; cols];
                        column_sums(isa, &x, SinkMut { values: &mut out, add });
                        out
                    },
                    |out| {
                        let before = if add { 2.0 } else { 0.0 };
                        let column = |c: usize| (0..rows).map(|r| f64::from(x[r * cols + c])).sum::<f64>();
                        assert_close(out, (0..cols).map(|c| before + column(c)), 5e-6);
                    },
                );
            }
        }
    }

    #[test]
    fn a_long_sum_stays_accurate() {
        // Added one by one in f32, a tenth a million times is off by a hundredth.
        let x = vec![0.1; 1_000_000];
        let mut out = [0.0];
        column_sums(Isa::detect(), &x, SinkMut { values: &mut out, add: false });
        assert_close(&out, [1e6 * f64::from(0.1f32)], 1e-6);
    }
}
