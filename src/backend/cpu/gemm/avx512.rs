//! The kernel for AVX-512: 32 registers of 16 floats.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx2::gather;
use super::kernel::{Kernel, TILE};
use super::pack::{self, Operand};
use super::write::{self, Partial, Stage, Target};

/// 28 accumulators, two registers of B and a broadcast element of A: per step of the depth 28 FMAs, which
/// take 14 cycles, and 16 loads, which take 8.
pub(super) const ROWS: usize = 14;
pub(super) const COLUMNS: usize = 32;

/// The longest slice: a panel of B of this depth takes 48 KB, the L1 cache of most machines with AVX-512.
const DEPTH: usize = 384;

/// Rows of A in the L2 cache: 172 KB of at least 1 MB.
const ROW_BLOCK: usize = 112;

/// Floats to prefetch a step, so that the tiles of a block of rows fetch the next panel of B.
pub(super) const AHEAD: usize = COLUMNS * ROWS / ROW_BLOCK;

pub(super) const KERNEL: Kernel = Kernel {
    rows: ROWS,
    columns: COLUMNS,
    depth: DEPTH,
    elements: 1,
    row_block: ROW_BLOCK,
    column_block: 192,
    multiply,
    pack_rows,
    pack_columns,
    write,
};

/// The same for products of bf16, whose elements are widened as they are packed.
pub(super) const NARROW: Kernel =
    Kernel { pack_rows: pack_narrow::<ROWS>, pack_columns: pack_narrow::<COLUMNS>, ..KERNEL };

#[target_feature(enable = "avx512f")]
unsafe fn multiply(depth: usize, a: *const f32, b: *const f32, ahead: *const f32, tile: &mut [f32; TILE]) {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    for p in 0..depth {
        // SAFETY: the caller's panels hold `depth` steps.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(p * AHEAD).cast());
            let (a, b) = (a.add(p * ROWS), b.add(p * COLUMNS));
            let b = [_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16))];
            for (i, sums) in sums.iter_mut().enumerate() {
                let a = _mm512_set1_ps(*a.add(i));
                sums[0] = _mm512_fmadd_ps(a, b[0], sums[0]);
                sums[1] = _mm512_fmadd_ps(a, b[1], sums[1]);
            }
        }
    }
    const { assert!(ROWS * COLUMNS <= TILE) };
    for (i, sums) in sums.iter().enumerate() {
        // SAFETY: the tile holds `ROWS` rows of `COLUMNS`.
        unsafe {
            let row = tile.as_mut_ptr().add(i * COLUMNS);
            _mm512_storeu_ps(row, sums[0]);
            _mm512_storeu_ps(row.add(16), sums[1]);
        }
    }
}

#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn pack_rows(operand: &Operand, lines: Range<usize>, depth: Range<usize>, packed: &mut [f32]) {
    if operand.lines_are_rows {
        // SAFETY: AVX-512 includes AVX2.
        let gather = |rows: &[f32], stride, panel: &mut [f32]| unsafe { gather::<ROWS>(rows, stride, panel) };
        pack::pack_rows::<ROWS>(operand, lines, depth, packed, gather);
    } else {
        pack::pack_columns::<ROWS>(operand, lines, depth, packed);
    }
}

#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn pack_columns(operand: &Operand, lines: Range<usize>, depth: Range<usize>, packed: &mut [f32]) {
    if operand.lines_are_rows {
        // SAFETY: AVX-512 includes AVX2.
        let gather =
            |rows: &[f32], stride, panel: &mut [f32]| unsafe { gather::<COLUMNS>(rows, stride, panel) };
        pack::pack_rows::<COLUMNS>(operand, lines, depth, packed, gather);
    } else {
        pack::pack_columns::<COLUMNS>(operand, lines, depth, packed);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
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

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
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
