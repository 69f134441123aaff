//! The kernel for AVX-512 with BF16, which multiplies pairs: `sum += a0 b0 + a1 b1` in each of 16 f32.
//!
//! It has the tile and the blocks of the kernel for f32. A word holds two elements, so that panels of the same bytes are
//! twice as deep. The instruction takes denormal numbers as 0 and rounds to the nearest even after each product.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx2::gather;
use super::avx512::{self, AHEAD, COLUMNS, ROWS};
use super::kernel::{Kernel, TILE};
use super::pack::{self, Operand};

/// For products of bf16.
pub(super) const NARROW: Kernel = Kernel {
    elements: 2,
    multiply,
    pack_rows: pack_pairs::<ROWS>,
    pack_columns: pack_pairs::<COLUMNS>,
    ..avx512::KERNEL
};

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn multiply(depth: usize, a: *const f32, b: *const f32, ahead: *const f32, tile: &mut [f32; TILE]) {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    for p in 0..depth {
        // SAFETY: the caller's panels hold `depth` steps.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(p * AHEAD).cast());
            let (a, b) = (a.add(p * ROWS), b.add(p * COLUMNS));
            let b = [as_pairs(_mm512_loadu_ps(b)), as_pairs(_mm512_loadu_ps(b.add(16)))];
            for (i, sums) in sums.iter_mut().enumerate() {
                let a = as_pairs(_mm512_set1_ps(*a.add(i)));
                sums[0] = _mm512_dpbf16_ps(sums[0], a, b[0]);
                sums[1] = _mm512_dpbf16_ps(sums[1], a, b[1]);
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

/// Words as pairs of bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn as_pairs(words: __m512) -> __m512bh {
    // SAFETY: any 64 bytes are 32 numbers of bf16.
    unsafe { std::mem::transmute::<__m512, __m512bh>(words) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
unsafe fn pack_pairs<const WIDTH: usize>(
    operand: &Operand,
    lines: Range<usize>,
    depth: Range<usize>,
    packed: &mut [f32],
) {
    // SAFETY: AVX-512 includes AVX2.
    let gather = |rows: &[f32], stride, panel: &mut [f32]| unsafe { gather::<WIDTH>(rows, stride, panel) };
    pack::pack_narrow::<WIDTH, true>(operand, lines, depth, packed, gather);
}
