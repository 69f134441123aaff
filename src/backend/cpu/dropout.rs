//! Dropout of the elements of a matrix (Srivastava et al. 2014), inverted: what is kept is scaled up.

use rayon::prelude::*;

use super::blocks::rows_per_block;
use super::isa::Isa;
use super::philox::{Stream, keep_row_inline};
use super::simd::multiversion;
use crate::tensor::Dropout;

/// A dropout site at one step, with the names of the rows it is applied to.
#[derive(Clone, Copy, Debug)]
pub struct RowDropout<'a> {
    /// The seed and the step.
    pub stream: Stream,
    /// The site.
    pub dropout: Dropout,
    /// The rows' keys, `[rows]`; without them a row's key is its number.
    pub keys: Option<&'a [u32]>,
}

impl RowDropout<'_> {
    /// Panics unless there is a key for each row.
    pub(super) fn assert_rows(&self, rows: usize) {
        if let Some(keys) = self.keys {
            assert_eq!(keys.len(), rows, "{} dropout keys for {rows} rows", keys.len());
        }
    }

    /// `out = x * keep` for one row.
    #[inline(always)]
    pub(super) fn apply(&self, row: usize, x: &[f32], out: &mut [f32]) {
        out.copy_from_slice(x);
        self.apply_in_place(row, out);
    }

    /// `values *= keep` for one row.
    #[inline(always)]
    pub(super) fn apply_in_place(&self, row: usize, values: &mut [f32]) {
        const COLUMNS: usize = 128;
        if self.dropout.threshold == 0 {
            return;
        }
        let key = self.keys.map_or(row as u32, |keys| keys[row]);
        let mut keep = [0.0; COLUMNS];
        for (i, values) in values.chunks_mut(COLUMNS).enumerate() {
            let keep = &mut keep[..values.len()];
            keep_row_inline(self.stream, self.dropout, 0, key, i * COLUMNS, keep);
            for (value, keep) in values.iter_mut().zip(keep) {
                *value *= *keep;
            }
        }
    }
}

/// `out = x * keep` for `[rows, cols]`; its own backward pass, applied to the gradient.
pub fn drop_rows(isa: Isa, drop: RowDropout, x: &[f32], cols: usize, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "dropout of {} into {} elements", x.len(), out.len());
    drop.assert_rows(x.len() / cols);
    let rows = rows_per_block(cols);
    out.par_chunks_mut(rows * cols)
        .zip(x.par_chunks(rows * cols))
        .enumerate()
        .for_each(|(block, (out, x))| drop_block(isa, drop, block * rows, x, cols, out));
}

multiversion! {
    fn drop_block<FMA>(drop: RowDropout, first_row: usize, x: &[f32], cols: usize, out: &mut [f32]) {
        for (i, (x, out)) in x.chunks_exact(cols).zip(out.chunks_exact_mut(cols)).enumerate() {
            drop.apply(first_row + i, x, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::philox::keep_row;
    use super::super::testing::{numbers, same_on_any_threads};
    use super::*;

    const STREAM: Stream = Stream { seed: 7, step: 3 };

    #[test]
    fn each_row_is_dropped_by_its_key() {
        let dropout = Dropout::new(0.25, 9);
        for (rows, cols) in [(0, 5), (1, 1), (3, 37), (300, 129)] {
            let x = numbers(1, rows * cols);
            let keys: Vec<u32> = (0..rows as u32).map(|row| row * 7 + 1).collect();
            for named in [true, false] {
                same_on_any_threads(
                    |isa| {
                        let drop = RowDropout { stream: STREAM, dropout, keys: named.then_some(&keys) };
                        let mut out = vec![f32::NAN; x.len()];
                        drop_rows(isa, drop, &x, cols, &mut out);
                        out
                    },
                    |out| {
                        let mut keep = vec![0.0; cols];
                        for row in 0..rows {
                            let key = if named { keys[row] } else { row as u32 };
                            keep_row(Isa::Portable, STREAM, dropout, 0, key, 0, &mut keep);
                            for (i, keep) in keep.iter().enumerate() {
                                assert_eq!(out[row * cols + i], x[row * cols + i] * keep);
                            }
                        }
                    },
                );
            }
        }
    }

    #[test]
    fn off_copies() {
        let x = numbers(2, 12);
        let mut out = vec![f32::NAN; 12];
        let drop = RowDropout { stream: STREAM, dropout: Dropout::new(0.0, 0), keys: None };
        drop_rows(Isa::detect(), drop, &x, 4, &mut out);
        assert_eq!(x, out);
    }
}
