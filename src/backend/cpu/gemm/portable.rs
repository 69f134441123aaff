//! The kernel that any compiler target runs.

use super::kernel::{Kernel, TILE};
use super::pack;
use super::write;

const ROWS: usize = 4;
const COLUMNS: usize = 8;

/// Multiplications and additions in the compiler's hands: 8 SSE accumulators of 4 on x86-64.
pub(super) const KERNEL: Kernel = Kernel {
    rows: ROWS,
    columns: COLUMNS,
    depth: 384,
    elements: 1,
    row_block: 96,
    column_block: 128,
    multiply,
    pack_rows: pack::pack::<ROWS>,
    pack_columns: pack::pack::<COLUMNS>,
    write: write::write::<COLUMNS, false>,
};

/// The same for products of bf16, whose elements are widened as they are packed.
pub(super) const NARROW: Kernel = Kernel {
    pack_rows: |operand, lines, depth, packed| {
        pack::pack_narrow::<ROWS, false>(operand, lines, depth, packed, pack::gather_scalar::<ROWS>);
    },
    pack_columns: |operand, lines, depth, packed| {
        pack::pack_narrow::<COLUMNS, false>(operand, lines, depth, packed, pack::gather_scalar::<COLUMNS>);
    },
    ..KERNEL
};

unsafe fn multiply(depth: usize, a: *const f32, b: *const f32, _ahead: *const f32, tile: &mut [f32; TILE]) {
    // SAFETY: the caller's panels are this long.
    let (a, b) = unsafe {
        (std::slice::from_raw_parts(a, depth * ROWS), std::slice::from_raw_parts(b, depth * COLUMNS))
    };
    let mut sums = [[0.0_f32; COLUMNS]; ROWS];
    for (a, b) in a.as_chunks::<ROWS>().0.iter().zip(b.as_chunks::<COLUMNS>().0) {
        for (sums, a) in sums.iter_mut().zip(a) {
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum += a * b;
            }
        }
    }
    tile[..ROWS * COLUMNS].copy_from_slice(sums.as_flattened());
}
