//! Packing: from a matrix to panels that a micro-kernel reads in order.
//!
//! A panel's depth is counted in words of four bytes. For a product of f32 a word is an element. For one of bf16 it is
//! an element widened to f32, or a pair of neighbours where the micro-kernel multiplies pairs.

use std::ops::Range;

use super::super::elements::{Elements, narrow, narrowed, widen, widened};
use super::Matrix;
use half::bf16;

/// Slices of the depth are a multiple of this, so that rows are turned into panels in squares of 8.
pub(super) const GROUP: usize = 8;

/// One operand of a product, as `lines` (rows of C for A, columns of C for B) of `depth` elements each.
pub(super) struct Operand<'a> {
    pub(super) data: Elements<'a>,
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

    /// The elements of a product of f32.
    #[inline(always)]
    fn wide(&self) -> &'a [f32] {
        match self.data {
            Elements::F32(data) => data,
            Elements::Bf16(_) => panic!("an operand of bf16 in a product of f32"),
        }
    }
}

/// Packs `lines` of an operand, `depth` words of each, into panels `[lines / WIDTH][depth][WIDTH]`; lines that
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
    let data = operand.wide();
    let line = |line: usize| &data[line * operand.stride..][depth.clone()];
    for (start, panel) in lines.clone().step_by(WIDTH).zip(packed.chunks_exact_mut(WIDTH * depth.len())) {
        let width = WIDTH.min(lines.end - start);
        if width == WIDTH {
            let rows = &data[start * operand.stride + depth.start..];
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
    let (data, stride) = (operand.wide(), operand.stride);
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

/// Packs an operand of a product of bf16, whatever it is kept in, as pairs or as elements rounded to bf16 and widened.
#[inline(always)]
pub(super) fn pack_narrow<const WIDTH: usize, const PAIRS: bool>(
    operand: &Operand,
    lines: Range<usize>,
    depth: Range<usize>,
    packed: &mut [f32],
    gather: impl Fn(&[f32], usize, &mut [f32]),
) {
    if depth.is_empty() {
    } else if operand.lines_are_rows {
        pack_narrow_rows::<WIDTH, PAIRS>(operand, lines, depth, packed, gather);
    } else {
        pack_narrow_columns::<WIDTH, PAIRS>(operand, lines, depth, packed);
    }
}

/// The widest panel.
const WIDEST: usize = 32;

/// Lines are rows: pieces of `WIDTH` of them are converted to words, and gathered from there.
#[inline(always)]
fn pack_narrow_rows<const WIDTH: usize, const PAIRS: bool>(
    operand: &Operand,
    lines: Range<usize>,
    depth: Range<usize>,
    packed: &mut [f32],
    gather: impl Fn(&[f32], usize, &mut [f32]),
) {
    const { assert!(WIDTH <= WIDEST) };
    /// Words of each line that are converted at a time: 8 KB of all lines stay in the L1 cache.
    const PIECE: usize = 64;
    let mut pieces = [0.0; WIDEST * PIECE];
    for (start, panel) in lines.clone().step_by(WIDTH).zip(packed.chunks_exact_mut(WIDTH * depth.len())) {
        let width = WIDTH.min(lines.end - start);
        pieces[width * PIECE..].fill(0.0);
        for first in depth.clone().step_by(PIECE) {
            let words = first..(first + PIECE).min(depth.end);
            for (i, piece) in pieces.chunks_exact_mut(PIECE).take(width).enumerate() {
                let line = (start + i) * operand.stride;
                let piece = &mut piece[..words.len()];
                if PAIRS {
                    let elements = line + 2 * words.start..line + (2 * words.end).min(operand.depth);
                    pair_up(operand.data.part(elements), bytemuck::cast_slice_mut(piece));
                } else {
                    round(operand.data.part(line + words.start..line + words.end), piece);
                }
            }
            let places = &mut panel[(first - depth.start) * WIDTH..][..words.len() * WIDTH];
            gather(&pieces[..(WIDTH - 1) * PIECE + words.len()], PIECE, places);
        }
    }
}

/// Elements side by side as pairs; one that is missing in the last is 0.
#[inline(always)]
fn pair_up(elements: Elements, pairs: &mut [bf16]) {
    let (pairs, missing) = pairs.split_at_mut(elements.len());
    missing.fill(bf16::ZERO);
    match elements {
        Elements::F32(elements) => narrow(elements, pairs),
        Elements::Bf16(elements) => pairs.copy_from_slice(elements),
    }
}

/// Elements as f32 that are numbers of bf16.
#[inline(always)]
fn round(elements: Elements, words: &mut [f32]) {
    match elements {
        Elements::F32(elements) => {
            for (word, element) in words.iter_mut().zip(elements) {
                *word = widened(narrowed(*element));
            }
        }
        Elements::Bf16(elements) => widen(elements, words),
    }
}

/// Lines are columns: a word of `WIDTH` lines is made of what lies side by side in one row, or in two for pairs.
#[inline(always)]
fn pack_narrow_columns<const WIDTH: usize, const PAIRS: bool>(
    operand: &Operand,
    lines: Range<usize>,
    depth: Range<usize>,
    packed: &mut [f32],
) {
    let (full, panel_length) = (lines.len() / WIDTH, WIDTH * depth.len());
    let rows_of =
        |word: usize| if PAIRS { 2 * word..(2 * word + 2).min(operand.depth) } else { word..word + 1 };
    for first in depth.clone().step_by(RUN) {
        let run = first..(first + RUN).min(depth.end);
        let ahead = rows_of(run.end + RUN).start * operand.stride;
        for row in 0..rows_of(run.end).start - rows_of(run.start).start {
            for line in lines.clone().step_by(LINE) {
                prefetch(operand.data.address(ahead + row * operand.stride + line));
            }
        }
        for panel in 0..lines.len().div_ceil(WIDTH) {
            let start = lines.start + panel * WIDTH;
            let width = WIDTH.min(lines.end - start);
            for word in run.clone() {
                let rows = rows_of(word);
                let row = |row: usize| {
                    operand.data.part(row * operand.stride + start..row * operand.stride + start + width)
                };
                let place = panel * panel_length + (word - depth.start) * WIDTH;
                let places = packed[place..].first_chunk_mut::<WIDTH>().expect("a panel's words");
                let second = (rows.len() == 2).then(|| row(rows.end - 1));
                if panel < full {
                    words::<WIDTH, PAIRS>(row(rows.start), second, places);
                } else {
                    places.fill(0.0);
                    words_of_few::<PAIRS>(row(rows.start), second, &mut places[..width]);
                }
            }
        }
    }
}

/// Elements in a cache line, or more.
const LINE: usize = 16;

/// Words of as many lines as a panel is wide.
#[inline(always)]
fn words<const WIDTH: usize, const PAIRS: bool>(
    first: Elements,
    second: Option<Elements>,
    places: &mut [f32; WIDTH],
) {
    let first = bits::<WIDTH>(first);
    if PAIRS {
        let second = second.map_or([0; WIDTH], bits::<WIDTH>);
        for i in 0..WIDTH {
            places[i] = f32::from_bits(first[i] | second[i] << 16);
        }
    } else {
        for i in 0..WIDTH {
            places[i] = f32::from_bits(first[i] << 16);
        }
    }
}

/// The bits of elements in bf16.
#[inline(always)]
fn bits<const WIDTH: usize>(elements: Elements) -> [u32; WIDTH] {
    match elements {
        Elements::F32(elements) => elements
            .first_chunk::<WIDTH>()
            .expect("a panel's width")
            .map(|x| u32::from(narrowed(x).to_bits())),
        Elements::Bf16(elements) => {
            elements.first_chunk::<WIDTH>().expect("a panel's width").map(|x| u32::from(x.to_bits()))
        }
    }
}

/// [`words`] for a panel that is not full.
#[inline(always)]
fn words_of_few<const PAIRS: bool>(first: Elements, second: Option<Elements>, places: &mut [f32]) {
    let bits = |elements: Elements, i: usize| match elements {
        Elements::F32(elements) => u32::from(narrowed(elements[i]).to_bits()),
        Elements::Bf16(elements) => u32::from(elements[i].to_bits()),
    };
    for (i, place) in places.iter_mut().enumerate() {
        let second = second.map_or(0, |second| bits(second, i));
        let first = bits(first, i);
        *place = f32::from_bits(if PAIRS { first | second << 16 } else { first << 16 });
    }
}

/// Asks for a cache line ahead of its use.
#[inline(always)]
pub(super) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint: it faults at no address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Asks for a cache line that will be written.
#[inline(always)]
pub(super) fn prefetch_to_write<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint: it faults at no address, and a processor that does not know this one passes it over.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_ET0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

#[cfg(test)]
mod tests;
