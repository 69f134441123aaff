//! The kernel for AVX2 and FMA: 16 registers of 8 floats.

use std::arch::x86_64::*;
use std::ops::Range;

use super::kernel::{Kernel, TILE};
use super::pack::{self, Operand};
use super::write::{self, Partial, Stage, Target};

/// 12 accumulators, two registers of B and a broadcast element of A: per step of the depth 12 FMAs, which
/// take 6 cycles, and 8 loads, which take 4.
const ROWS: usize = 6;
const COLUMNS: usize = 16;

/// The longest slice. A panel of B of this depth does not fit the L1 cache, but the L2 cache can feed this
/// kernel: measured on Zen 3, a block runs at 93 % of the peak with a depth of 384 and at 97 % with 768, as a
/// tile has a fixed cost of some 100 cycles.
const DEPTH: usize = 768;

/// Rows of A in the L2 cache: 147 KB of at least 256.
const ROW_BLOCK: usize = 48;

/// Floats to prefetch a step, so that the tiles of a block of rows fetch the next panel of B. It costs 1 %
/// and brings 4 % where B comes from the L3 cache.
const AHEAD: usize = COLUMNS * ROWS / ROW_BLOCK;

pub(super) const KERNEL: Kernel = Kernel {
    rows: ROWS,
    columns: COLUMNS,
    depth: DEPTH,
    elements: 1,
    row_block: ROW_BLOCK,
    column_block: 128,
    multiply,
    pack_rows,
    pack_columns,
    write,
};

/// The same for products of bf16, whose elements are widened as they are packed.
pub(super) const NARROW: Kernel =
    Kernel { pack_rows: pack_narrow::<ROWS>, pack_columns: pack_narrow::<COLUMNS>, ..KERNEL };

#[target_feature(enable = "avx2,fma")]
unsafe fn multiply(depth: usize, a: *const f32, b: *const f32, ahead: *const f32, tile: &mut [f32; TILE]) {
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    for p in 0..depth {
        // SAFETY: the caller's panels hold `depth` steps.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(p * AHEAD).cast());
            let (a, b) = (a.add(p * ROWS), b.add(p * COLUMNS));
            let b = [_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8))];
            for (i, sums) in sums.iter_mut().enumerate() {
                let a = _mm256_broadcast_ss(&*a.add(i));
                sums[0] = _mm256_fmadd_ps(a, b[0], sums[0]);
                sums[1] = _mm256_fmadd_ps(a, b[1], sums[1]);
            }
        }
    }
    const { assert!(ROWS * COLUMNS <= TILE) };
    for (i, sums) in sums.iter().enumerate() {
        // SAFETY: the tile holds `ROWS` rows of `COLUMNS`.
        unsafe {
            let row = tile.as_mut_ptr().add(i * COLUMNS);
            _mm256_storeu_ps(row, sums[0]);
            _mm256_storeu_ps(row.add(8), sums[1]);
        }
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn pack_rows(operand: &Operand, lines: Range<usize>, depth: Range<usize>, packed: &mut [f32]) {
    if operand.lines_are_rows {
        // SAFETY: AVX2 is available, by the caller's promise.
        let gather = |rows: &[f32], stride, panel: &mut [f32]| unsafe { gather::<ROWS>(rows, stride, panel) };
        pack::pack_rows::<ROWS>(operand, lines, depth, packed, gather);
    } else {
        pack::pack_columns::<ROWS>(operand, lines, depth, packed);
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn pack_columns(operand: &Operand, lines: Range<usize>, depth: Range<usize>, packed: &mut [f32]) {
    if operand.lines_are_rows {
        // SAFETY: AVX2 is available, by the caller's promise.
        let gather =
            |rows: &[f32], stride, panel: &mut [f32]| unsafe { gather::<COLUMNS>(rows, stride, panel) };
        pack::pack_rows::<COLUMNS>(operand, lines, depth, packed, gather);
    } else {
        pack::pack_columns::<COLUMNS>(operand, lines, depth, packed);
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn pack_narrow<const WIDTH: usize>(
    operand: &Operand,
    lines: Range<usize>,
    depth: Range<usize>,
    packed: &mut [f32],
) {
    // SAFETY: AVX2 is available, by the caller's promise.
    let gather = |rows: &[f32], stride, panel: &mut [f32]| unsafe { gather::<WIDTH>(rows, stride, panel) };
    pack::pack_narrow::<WIDTH, false>(operand, lines, depth, packed, gather);
}

#[target_feature(enable = "avx2,fma")]
unsafe fn write(
    target: &Target,
    partial: Option<&Partial>,
    tile: &mut [f32; TILE],
    rows: Range<usize>,
    columns: Range<usize>,
    stage: Stage,
) {
    // SAFETY: the caller's promise is the same.
    unsafe { write::write::<COLUMNS, true>(target, partial, tile, rows, columns, stage) };
}

/// `WIDTH` rows, `stride` apart, to a panel `[depth][WIDTH]`, in squares of 8 x 8.
///
/// Rows are taken eight at a time; the last eight overlap with those before if `WIDTH` is no multiple of 8,
/// so that every store is a full one. Fewer than eight are stored in halves.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn gather<const WIDTH: usize>(rows: &[f32], stride: usize, panel: &mut [f32]) {
    const { assert!(WIDTH == 6 || WIDTH >= 8) };
    let depth = panel.len() / WIDTH;
    assert!(rows.len() == (WIDTH - 1) * stride + depth);
    let squares = depth / 8 * 8;
    // Two squares side by side, which share cache lines, before the next rows: rows are often a multiple of
    // the page size apart, so that more than 8 of them would evict each other from the L1 cache.
    for pair in (0..squares).step_by(16) {
        for group in 0..WIDTH.div_ceil(8) {
            let first = (group * 8).min(WIDTH.saturating_sub(8));
            for p in (pair..squares.min(pair + 16)).step_by(8) {
                // SAFETY: rows `first..first + 8`, or 6 of them, hold elements `p..p + 8`, as asserted above,
                // and the panel has `WIDTH` places for each.
                unsafe {
                    let source = rows.as_ptr().add(first * stride + p);
                    let places = panel.as_mut_ptr().add(p * WIDTH + first);
                    transpose_square::<WIDTH>(source, stride, places);
                }
            }
        }
    }
    for p in squares..depth {
        for i in 0..WIDTH {
            panel[p * WIDTH + i] = rows[i * stride + p];
        }
    }
}

/// Eight elements of eight rows (of six, if `WIDTH` is that) to columns `WIDTH` apart.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn transpose_square<const WIDTH: usize>(source: *const f32, stride: usize, places: *mut f32) {
    let mut square = [_mm256_setzero_ps(); 8];
    for (i, row) in square.iter_mut().enumerate().take(WIDTH) {
        // SAFETY: the caller's rows are this long.
        *row = unsafe { _mm256_loadu_ps(source.add(i * stride)) };
    }
    for (i, column) in transpose(square).into_iter().enumerate() {
        // SAFETY: the caller's places are this many.
        unsafe {
            let places = places.add(i * WIDTH);
            if WIDTH >= 8 {
                _mm256_storeu_ps(places, column);
            } else {
                let rest = _mm_castps_pd(_mm256_extractf128_ps::<1>(column));
                _mm_storeu_ps(places, _mm256_castps256_ps128(column));
                _mm_storel_pd(places.add(4).cast(), rest);
            }
        }
    }
}

/// Rows to columns.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn transpose(rows: [__m256; 8]) -> [__m256; 8] {
    let [a, b, c, d, e, f, g, h] = rows;
    // Of each pair of rows, elements 0 1 4 5 and 2 3 6 7 ...
    let (ab0, ab2) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    let (cd0, cd2) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    let (ef0, ef2) = (_mm256_unpacklo_ps(e, f), _mm256_unpackhi_ps(e, f));
    let (gh0, gh2) = (_mm256_unpacklo_ps(g, h), _mm256_unpackhi_ps(g, h));
    // ... of four rows, elements 0 and 4, 1 and 5, 2 and 6, 3 and 7 ...
    let low = [
        _mm256_shuffle_ps::<0x44>(ab0, cd0),
        _mm256_shuffle_ps::<0xee>(ab0, cd0),
        _mm256_shuffle_ps::<0x44>(ab2, cd2),
        _mm256_shuffle_ps::<0xee>(ab2, cd2),
    ];
    let high = [
        _mm256_shuffle_ps::<0x44>(ef0, gh0),
        _mm256_shuffle_ps::<0xee>(ef0, gh0),
        _mm256_shuffle_ps::<0x44>(ef2, gh2),
        _mm256_shuffle_ps::<0xee>(ef2, gh2),
    ];
    // ... and of all eight.
    let mut columns = [_mm256_setzero_ps(); 8];
    for i in 0..4 {
        columns[i] = _mm256_permute2f128_ps::<0x20>(low[i], high[i]);
        columns[4 + i] = _mm256_permute2f128_ps::<0x31>(low[i], high[i]);
    }
    columns
}
