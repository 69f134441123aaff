//! Rows picked out of a matrix: the first token of each sequence, the masked tokens of a batch.

use rayon::prelude::*;

use super::blocks::{SinkMut, rows_per_block};
use super::elementwise::add;

/// `out[s] = x[rows[s]]`, for rows of `cols`; `out` is `[rows.len(), cols]`.
pub fn gather(x: &[f32], rows: &[u32], cols: usize, out: &mut [f32]) {
    assert_eq!(out.len(), rows.len() * cols, "gathering {} rows of {cols}", rows.len());
    let block = rows_per_block(cols);
    out.par_chunks_mut(block * cols).zip(rows.par_chunks(block)).for_each(|(out, rows)| {
        for (out, row) in out.chunks_exact_mut(cols).zip(rows) {
            out.copy_from_slice(&x[*row as usize * cols..][..cols]);
        }
    });
}

/// The backward pass of [`gather`]: the rows gathered get their gradients, the others zeros, or nothing where `d_x`
/// adds. A row may be gathered once: a GPU writes them all at the same time.
pub fn gather_gradient(d_out: &[f32], rows: &[u32], cols: usize, d_x: SinkMut) {
    assert_eq!(d_out.len(), rows.len() * cols, "gradient of {} rows of {cols}", rows.len());
    if let Some(last) = rows.iter().max() {
        assert!((*last as usize + 1) * cols <= d_x.values.len(), "row {last} of {}", d_x.values.len() / cols);
    }
    // Rows mostly ascend, and one above all before it is none of them.
    let mut highest = None;
    let twice = rows.iter().enumerate().find(|(i, row)| {
        let before = highest;
        highest = highest.max(Some(**row));
        before >= Some(**row) && rows[..*i].contains(row)
    });
    assert!(twice.is_none(), "a row is gathered twice: {rows:?}");
    let block = rows_per_block(cols);
    d_x.values.par_chunks_mut(block * cols).enumerate().for_each(|(i, values)| {
        if !d_x.add {
            values.fill(0.0);
        }
        let own = i * block..(i + 1) * block;
        for (row, d_out) in rows.iter().zip(d_out.chunks_exact(cols)) {
            if own.contains(&(*row as usize)) {
                add(d_out, &mut values[(*row as usize - own.start) * cols..][..cols]);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::testing::numbers;
    use super::*;

    #[test]
    fn rows_come_and_their_gradients_go_back() {
        for (count, cols, rows) in [
            (0, 3, vec![]),
            (4, 1, vec![0, 3]),
            (5, 7, vec![]),
            (700, 33, (0..140).map(|i| i * 5).collect::<Vec<u32>>()),
            (700, 33, vec![699]),
            (5, 2, vec![4, 0, 3]),
        ] {
            let x = numbers(1, count * cols);
            let mut out = vec![f32::NAN; rows.len() * cols];
            gather(&x, &rows, cols, &mut out);
            for (out, row) in out.chunks(cols).zip(&rows) {
                assert_eq!(out, &x[*row as usize * cols..][..cols]);
            }
            for add in [false, true] {
                let mut d_x = vec![1.0; count * cols];
                gather_gradient(&out, &rows, cols, SinkMut { values: &mut d_x, add });
                for (row, d_x) in d_x.chunks(cols).enumerate() {
                    let before = if add { 1.0 } else { 0.0 };
                    let gathered = rows.contains(&(row as u32));
                    for (c, d) in d_x.iter().enumerate() {
                        assert_eq!(*d, before + if gathered { x[row * cols + c] } else { 0.0 });
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "gathered twice")]
    fn a_row_gathered_twice_is_refused() {
        gather_gradient(&[1.0, 2.0], &[1, 1], 1, SinkMut { values: &mut [0.0; 3], add: false });
    }
}
