//! Packing: from a matrix to panels that a micro-kernel reads in order.

use std::ops::Range;

use super::Matrix;

/// Slices of the depth are a multiple of this, so that rows are turned into panels in squares of 8.
pub(super) const GROUP: usize = 8;

/// One operand of a product, as `lines` (rows of C for A, columns of C for B) of `depth` elements each.
pub(super) struct Operand<'a> {
    pub(super) data: &'a [f32],
    pub(super) lines: usize,
    pub(super) depth: usize,
    pub(super) stride: usize,
    /// Whether a line is a row of the matrix, contiguous in memory, or a column.
    pub(super) lines_are_rows: bool,
}

impl<'a> Operand<'a> {
    pub(super) fn rows(matrix: Matrix<'a>) -> Self {
        let Matrix { data, rows, cols, stride } = matrix;
        Self { data, lines: rows, depth: cols, stride, lines_are_rows: true }
    }

    pub(super) fn columns(matrix: Matrix<'a>) -> Self {
        let Matrix { data, rows, cols, stride } = matrix;
        Self { data, lines: cols, depth: rows, stride, lines_are_rows: false }
    }
}

/// Packs `lines` of an operand, `depth` of each, into panels `[lines / WIDTH][depth][WIDTH]`; lines that
/// are missing in the last panel are 0.
///
/// Unsafe to call: the instruction set must be available.
pub(super) type Pack =
    unsafe fn(operand: &Operand, lines: Range<usize>, depth: Range<usize>, packed: &mut [f32]);

pub(super) fn pack<const WIDTH: usize>(
    operand: &Operand,
    lines: Range<usize>,
    depth: Range<usize>,
    packed: &mut [f32],
) {
    if operand.lines_are_rows {
        pack_rows::<WIDTH>(operand, lines, depth, packed, gather_scalar::<WIDTH>);
    } else {
        pack_columns::<WIDTH>(operand, lines, depth, packed);
    }
}

/// Lines are rows: `gather` turns `WIDTH` rows into a panel.
#[inline(always)]
pub(super) fn pack_rows<const WIDTH: usize>(
    operand: &Operand,
    lines: Range<usize>,
    depth: Range<usize>,
    packed: &mut [f32],
    gather: impl Fn(&[f32], usize, &mut [f32]),
) {
    if depth.is_empty() {
        return;
    }
    let line = |line: usize| &operand.data[line * operand.stride..][depth.clone()];
    for (start, panel) in lines.clone().step_by(WIDTH).zip(packed.chunks_exact_mut(WIDTH * depth.len())) {
        let width = WIDTH.min(lines.end - start);
        if width == WIDTH {
            let rows = &operand.data[start * operand.stride + depth.start..];
            let rows = &rows[..(WIDTH - 1) * operand.stride + depth.len()];
            gather(rows, operand.stride, panel);
        } else {
            panel.fill(0.0);
            for i in 0..width {
                for (places, value) in panel.as_chunks_mut::<WIDTH>().0.iter_mut().zip(line(start + i)) {
                    places[i] = *value;
                }
            }
        }
    }
}

/// `WIDTH` rows, `stride` apart, to a panel `[depth][WIDTH]`.
pub(super) fn gather_scalar<const WIDTH: usize>(rows: &[f32], stride: usize, panel: &mut [f32]) {
    for (p, places) in panel.as_chunks_mut::<WIDTH>().0.iter_mut().enumerate() {
        for (i, place) in places.iter_mut().enumerate() {
            *place = rows[i * stride + p];
        }
    }
}

/// Rows of a matrix that are dealt out to all panels before the next rows' turn. Eight rows may all fall into
/// one set of the L1 cache (their distance is often a multiple of its size), and they fill whole cache lines
/// of a panel.
const RUN: usize = 8;

/// Lines are columns: `WIDTH` neighbours lie side by side in every row.
#[inline(always)]
pub(super) fn pack_columns<const WIDTH: usize>(
    operand: &Operand,
    lines: Range<usize>,
    depth: Range<usize>,
    packed: &mut [f32],
) {
    let Operand { data, stride, .. } = *operand;
    let (full, panel_length) = (lines.len() / WIDTH, WIDTH * depth.len());
    assert!(full * panel_length <= packed.len());
    assert!(depth.is_empty() || (depth.end - 1) * stride + lines.end <= data.len());
    let mut start = depth.start;
    while start < depth.end {
        let run = start..(start + RUN).min(depth.end);
        for row in run.clone() {
            for line in lines.clone().step_by(16) {
                prefetch(data.as_ptr().wrapping_add((row + 2 * RUN) * stride + line));
            }
        }
        for panel in 0..full {
            for row in run.clone() {
                // SAFETY: row `depth.end - 1` reaches to `lines.end`, and the full panels are inside `packed`,
                // as asserted. Checked slices took three times as long.
                unsafe {
                    let neighbours = data.as_ptr().add(row * stride + lines.start + panel * WIDTH);
                    let places = packed.as_mut_ptr().add(panel * panel_length + (row - depth.start) * WIDTH);
                    *places.cast::<[f32; WIDTH]>() = *neighbours.cast::<[f32; WIDTH]>();
                }
            }
        }
        start = run.end;
    }
    let rest = lines.start + full * WIDTH..lines.end;
    if !rest.is_empty() {
        for (row, places) in depth.zip(packed[full * panel_length..].as_chunks_mut::<WIDTH>().0) {
            places[..rest.len()].copy_from_slice(&data[row * stride..][rest.clone()]);
            places[rest.len()..].fill(0.0);
        }
    }
}

/// Asks for a cache line ahead of its use.
#[inline(always)]
fn prefetch(address: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint: it faults at no address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
