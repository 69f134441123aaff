//! Sums in a fixed order, and the largest element: along rows in lanes, down columns in blocks.

use rayon::prelude::*;

use super::blocks::SinkMut;
use super::elements::Elements;
use super::isa::Isa;
use super::math::multiply_add;
use super::scratch::Workspace;
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
pub(super) const ROWS: usize = 64;

/// `out[c] = sum over rows of x[row][c]`, for `x` `[rows, out.len()]`: the gradient of a bias.
///
/// A task reads a block of whole rows, one address after another: columns of all rows would be a walk over pages.
pub fn column_sums(isa: Isa, workspace: &mut Workspace, x: Elements, out: SinkMut) {
    let cols = out.values.len();
    assert!(cols > 0 && x.len().is_multiple_of(cols), "{} elements in rows of {cols}", x.len());
    let (sums, _) = workspace.parts(partial_sums(x.len() / cols, cols));
    sums.par_chunks_mut(cols).zip(x.par_chunks(ROWS * cols)).for_each(|(sums, x)| sum_block(isa, x, sums));
    add_blocks(isa, sums, cols, 0, out);
}

/// Makes room for what the column sums of `[rows, cols]` need.
pub fn reserve(workspace: &mut Workspace, rows: usize, cols: usize) {
    workspace.reserve(partial_sums(rows, cols), 0);
}

/// Sums of each column in each block.
fn partial_sums(rows: usize, cols: usize) -> usize {
    rows.div_ceil(ROWS) * cols
}

/// `out[c] = sum over blocks of sums[block][first + c]`, for `sums` `[blocks, stride]`: in f64, in the order of the
/// blocks.
pub(super) fn add_blocks(isa: Isa, sums: &[f32], stride: usize, first: usize, out: SinkMut) {
    out.values.par_chunks_mut(COLUMNS).enumerate().for_each(|(i, values)| {
        add_block_columns(isa, sums, stride, first + i * COLUMNS, SinkMut { values, add: out.add })
    });
}

multiversion! {
    fn sum_block<FMA>(x: Elements, sums: &mut [f32]) {
        let cols = sums.len();
        sums.fill(0.0);
        for row in 0..x.len() / cols {
            x.add_to(row * cols..(row + 1) * cols, sums);
        }
    }
}

multiversion! {
    fn add_block_columns<FMA>(sums: &[f32], stride: usize, first: usize, out: SinkMut) {
        let width = out.values.len();
        let mut totals = [0f64; COLUMNS];
        for sums in sums.chunks_exact(stride) {
            for (total, sum) in totals.iter_mut().zip(&sums[first..][..width]) {
                *total += f64::from(*sum);
            }
        }
        write_totals(&totals, out);
    }
}

#[inline(always)]
fn write_totals(totals: &[f64; COLUMNS], out: SinkMut) {
    let add = out.add;
    for (out, total) in out.values.iter_mut().zip(totals) {
        *out = *total as f32 + if add { *out } else { 0.0 };
    }
}

/// `out[c] = sum over the rows named of x[row][first + c]`, for up to 64 columns.
#[inline(always)]
pub(super) fn sum_rows(
    x: Elements,
    cols: usize,
    first: usize,
    rows: impl Iterator<Item = usize>,
    out: SinkMut,
) {
    let width = out.values.len();
    sum_blocks(rows, out, |row, sums| {
        let start = row * cols + first;
        // A length that the compiler knows keeps the sums in registers.
        match width {
            COLUMNS => x.add_to(start..start + COLUMNS, sums),
            _ => x.add_to(start..start + width, &mut sums[..width]),
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
    write_totals(&totals, out);
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        FLOATS, Kept, assert_close, numbers, rounded, same_on_any_threads, workspace,
    };
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
        let shapes = [(0, 3), (1, 1), (63, 64), (64, 65), (65, 130), (1000, 17)];
        for ((rows, cols), dtype) in shapes.into_iter().flat_map(|shape| FLOATS.map(|dtype| (shape, dtype))) {
            let x = rounded(dtype, &numbers(3, rows * cols));
            for add in [false, true] {
                same_on_any_threads(
                    |isa| {
                        let mut out = vec![2.0; cols];
                        let sink = SinkMut { values: &mut out, add };
                        column_sums(isa, &mut workspace(), Kept::new(dtype, &x).elements(), sink);
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
        let sink = SinkMut { values: &mut out, add: false };
        column_sums(Isa::detect(), &mut workspace(), (&x).into(), sink);
        assert_close(&out, [1e6 * f64::from(0.1f32)], 1e-6);
    }
}
