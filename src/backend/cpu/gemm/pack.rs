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

/// Lines are columns: `WIDTH` neighbours lie side by side in every row.
#[inline(always)]
pub(super) fn pack_columns<const WIDTH: usize>(
    operand: &Operand,
    lines: Range<usize>,
    depth: Range<usize>,
    packed: &mut [f32],
) {
    let (full, panel_length) = (lines.len() / WIDTH, WIDTH * depth.len());
    for (p, row) in depth.enumerate() {
        let row = &operand.data[row * operand.stride..][lines.clone()];
        let (chunks, rest) = row.as_chunks::<WIDTH>();
        for (panel, chunk) in chunks.iter().enumerate() {
            packed[panel * panel_length + p * WIDTH..][..WIDTH].copy_from_slice(chunk);
        }
        if !rest.is_empty() {
            let places = &mut packed[full * panel_length + p * WIDTH..][..WIDTH];
            places[..rest.len()].copy_from_slice(rest);
            places[rest.len()..].fill(0.0);
        }
    }
}
