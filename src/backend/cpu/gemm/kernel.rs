//! What differs between instruction sets: the innermost loops and the sizes that suit them.

use super::super::isa::Isa;
use super::SMALL;
use super::pack::Pack;
use super::write::Write;

/// Elements of the largest tile.
pub(super) const TILE: usize = 14 * 32;

/// Computes a tile `[rows, columns]` of C from a panel of A `[depth][rows]` and one of B `[depth][columns]`, the depth
/// in words: see [`pack`](super::pack).
///
/// `ahead` is where the tile's share of what later tiles read begins; it is only prefetched.
///
/// Unsafe to call: the instruction set must be available and the panels as long as said.
pub(super) type Multiply =
    unsafe fn(depth: usize, a: *const f32, b: *const f32, ahead: *const f32, tile: &mut [f32; TILE]);

/// The innermost loops of one instruction set.
pub(super) struct Kernel {
    /// Height of a tile, width of a panel of A.
    pub(super) rows: usize,
    /// Width of a tile and of a panel of B.
    pub(super) columns: usize,
    /// The longest slice in words; a multiple of `GROUP`.
    pub(super) depth: usize,
    /// Elements of the depth in a word.
    pub(super) elements: usize,
    /// Rows of A that are packed at a time, to stay in the L2 cache; a multiple of `rows`.
    pub(super) row_block: usize,
    /// Columns of B that are packed at a time, where it is not packed whole; a multiple of `columns`.
    pub(super) column_block: usize,
    pub(super) multiply: Multiply,
    pub(super) pack_rows: Pack,
    pub(super) pack_columns: Pack,
    pub(super) write: Write,
}

impl Kernel {
    /// The kernel of an instruction set, for products of f32 or of bf16 (`narrow`); panics if this machine cannot run it.
    pub(super) fn of(isa: Isa, narrow: bool) -> &'static Kernel {
        isa.assert_available();
        match (isa, narrow) {
            (Isa::Portable, false) => &super::portable::KERNEL,
            (Isa::Portable, true) => &super::portable::NARROW,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, false) => &super::avx2::KERNEL,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, true) => &super::avx2::NARROW,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512 | Isa::Avx512Bf16, false) => &super::avx512::KERNEL,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, true) => &super::avx512::NARROW,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, true) => &super::avx512_bf16::NARROW,
            #[cfg(not(target_arch = "x86_64"))]
            (Isa::Avx2 | Isa::Avx512 | Isa::Avx512Bf16, _) => unreachable!("x86-64 only, as was asserted"),
        }
    }

    /// The words that a depth of `k` elements takes.
    pub(super) fn words(&self, k: usize) -> usize {
        k.div_ceil(self.elements)
    }

    /// Scratch of one task: a block of A and a block of B.
    pub(super) fn private_floats(&self) -> usize {
        (self.row_block + self.column_block) * self.depth
    }

    /// What a task needs at most besides where C is bf16, of up to `m` rows of `n` columns: the f32 sums of a block of it, if
    /// the depth takes several slices.
    pub(super) fn partial_floats(&self, m: usize, n: usize, k: usize) -> usize {
        if self.words(k) <= self.depth {
            return 0;
        }
        // Blocks of all columns where rows are divided. Of all rows where columns are, which is up to half as many rows as
        // columns, and where one thread computes all.
        let of_rows = self.row_block.min(m) * n;
        let of_columns = m.min(n / 2) * self.column_block.min(n);
        let of_one_thread = (SMALL / k).min(m * n);
        of_rows.max(of_columns).max(of_one_thread)
    }

    /// Whether tasks divide the rows of C `[m, n]` or its columns. Rows, if there are enough of them: the
    /// kernel prefers a shared B.
    pub(super) fn rows_are_divided(&self, m: usize, n: usize) -> bool {
        2 * m >= n
    }

    /// The packed operand of the side that is not divided, of a depth of `k` elements.
    pub(super) fn shared_floats(&self, m: usize, n: usize, k: usize) -> usize {
        let shared_rows = m.next_multiple_of(self.rows);
        let shared_columns = n.next_multiple_of(self.columns);
        self.words(k) * if self.rows_are_divided(m, n) { shared_columns } else { shared_rows }
    }
}
