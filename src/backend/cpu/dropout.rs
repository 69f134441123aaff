//! Dropout of the elements of a matrix (Srivastava et al. 2014), inverted: what is kept is scaled up.

use rayon::prelude::*;

use super::blocks::rows_per_block;
use super::elements::{Elements, ElementsMut, PART, parts};
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

    /// `values *= keep` for a row from a column on, a multiple of 8.
    #[inline(always)]
    pub(super) fn apply(&self, row: usize, first_column: usize, values: &mut [f32]) {
        const COLUMNS: usize = 128;
        if self.dropout.threshold == 0 {
            return;
        }
        let key = self.keys.map_or(row as u32, |keys| keys[row]);
        let mut keep = [0.0; COLUMNS];
        for (i, values) in values.chunks_mut(COLUMNS).enumerate() {
            let keep = &mut keep[..values.len()];
            keep_row_inline(self.stream, self.dropout, 0, key, first_column + i * COLUMNS, keep);
            for (value, keep) in values.iter_mut().zip(keep) {
                *value *= *keep;
            }
        }
    }
}

/// `out = x * keep` for `[rows, cols]`; its own backward pass, applied to the gradient.
pub fn drop_rows(isa: Isa, drop: RowDropout, x: Elements, cols: usize, out: ElementsMut) {
    assert_eq!(x.len(), out.len(), "dropout of {} into {} elements", x.len(), out.len());
    drop.assert_rows(x.len() / cols);
    let rows = rows_per_block(cols);
    out.par_chunks_mut(rows * cols)
        .zip(x.par_chunks(rows * cols))
        .enumerate()
        .for_each(|(block, (out, x))| drop_block(isa, drop, block * rows, x, cols, out));
}

multiversion! {
    fn drop_block<FMA>(drop: RowDropout, first_row: usize, x: Elements, cols: usize, out: ElementsMut) {
        let mut out = out;
        let mut buffer = [0.0; PART];
        for row in 0..x.len() / cols {
            for columns in parts(cols) {
                let part = row * cols + columns.start..row * cols + columns.end;
                let values = out.place(part.clone(), &mut buffer);
                x.copy_to(part.clone(), values);
                drop.apply(first_row + row, columns.start, values);
                out.settle(part, &buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::philox::keep_row;
    use super::super::testing::{FLOATS, Kept, numbers, rounded, same_on_any_threads};
    use super::*;

    const STREAM: Stream = Stream { seed: 7, step: 3 };

    #[test]
    fn each_row_is_dropped_by_its_key() {
        let dropout = Dropout::new(0.25, 9);
        let shapes = [(0, 5), (1, 1), (3, 37), (300, 129), (3, PART + 13)];
        for ((rows, cols), dtype) in shapes.into_iter().flat_map(|shape| FLOATS.map(|dtype| (shape, dtype))) {
            let x = rounded(dtype, &numbers(1, rows * cols));
            let keys: Vec<u32> = (0..rows as u32).map(|row| row * 7 + 1).collect();
            for named in [true, false] {
                same_on_any_threads(
                    |isa| {
                        let drop = RowDropout { stream: STREAM, dropout, keys: named.then_some(&keys) };
                        let mut out = Kept::new(dtype, &vec![f32::NAN; x.len()]);
                        drop_rows(isa, drop, Kept::new(dtype, &x).elements(), cols, out.elements_mut());
                        out.numbers()
                    },
                    |out| {
                        let mut keep = vec![0.0; cols];
                        for row in 0..rows {
                            let key = if named { keys[row] } else { row as u32 };
                            keep_row(Isa::Portable, STREAM, dropout, 0, key, 0, &mut keep);
                            for (i, keep) in keep.iter().enumerate() {
                                let expected = x[row * cols + i] * keep;
                                assert_eq!(out[row * cols + i], rounded(dtype, &[expected])[0]);
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
        drop_rows(Isa::detect(), drop, (&x).into(), 4, (&mut out).into());
        assert_eq!(x, out);
    }
}
