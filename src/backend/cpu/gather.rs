//! Rows picked out of a matrix: the first token of each sequence, the masked tokens of a batch.

use rayon::prelude::*;

use super::blocks::rows_per_block;
use super::elements::{Elements, ElementsMut, ElementsSink, PART, parts};
use super::isa::Isa;
use super::simd::multiversion;

/// `out[s] = x[rows[s]]`, for rows of `cols`; `out` is `[rows.len(), cols]`.
pub fn gather(isa: Isa, x: Elements, rows: &[u32], cols: usize, out: ElementsMut) {
    assert_eq!(out.len(), rows.len() * cols, "gathering {} rows of {cols}", rows.len());
    let block = rows_per_block(cols);
    out.par_chunks_mut(block * cols)
        .zip(rows.par_chunks(block))
        .for_each(|(out, rows)| gather_block(isa, x, rows, cols, out));
}

multiversion! {
    fn gather_block<FMA>(x: Elements, rows: &[u32], cols: usize, out: ElementsMut) {
        let mut out = out;
        for (i, row) in rows.iter().enumerate() {
            let row = *row as usize;
            out.copy(i * cols..(i + 1) * cols, x.part(row * cols..(row + 1) * cols));
        }
    }
}

/// The backward pass of [`gather`]: the rows gathered get their gradients, the others zeros, or nothing where `d_x`
/// adds. A row may be gathered once: a GPU writes them all at the same time.
pub fn gather_gradient(isa: Isa, d_out: Elements, rows: &[u32], cols: usize, d_x: ElementsSink) {
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
    let add = d_x.add;
    d_x.values.par_chunks_mut(block * cols).enumerate().for_each(|(i, mut values)| {
        if !add {
            values.fill(0.0);
        }
        let own = i * block..(i + 1) * block;
        for (i, row) in rows.iter().enumerate() {
            if own.contains(&(*row as usize)) {
                let start = (*row as usize - own.start) * cols;
                add_row(isa, d_out.part(i * cols..(i + 1) * cols), start, &mut values);
            }
        }
    });
}

multiversion! {
    fn add_row<FMA>(from: Elements, start: usize, into: &mut ElementsMut) {
        let mut buffer = [0.0; PART];
        for part in parts(from.len()) {
            let place = start + part.start..start + part.end;
            from.add_to(part, into.open(place.clone(), &mut buffer));
            into.settle(place, &buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{FLOATS, Kept, numbers, rounded, same_on_any_threads};
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn rows_come_and_their_gradients_go_back() {
        for dtype in FLOATS {
            rows_come_and_go(dtype);
        }
    }

    fn rows_come_and_go(dtype: DType) {
        for (count, cols, rows) in [
            (0, 3, vec![]),
            (4, 1, vec![0, 3]),
            (5, 7, vec![]),
            (700, 33, (0..140).map(|i| i * 5).collect::<Vec<u32>>()),
            (700, 33, vec![699]),
            (5, 2, vec![4, 0, 3]),
        ] {
            let x = rounded(dtype, &numbers(1, count * cols));
            let picked: Vec<f32> =
                rows.iter().flat_map(|row| &x[*row as usize * cols..][..cols]).copied().collect();
            // What is gathered may be kept in the other type.
            for of_out in FLOATS {
                same_on_any_threads(
                    |isa| {
                        let mut out = Kept::new(of_out, &vec![f32::NAN; picked.len()]);
                        gather(isa, Kept::new(dtype, &x).elements(), &rows, cols, out.elements_mut());
                        out.numbers()
                    },
                    |out| assert!(out == rounded(of_out, &picked)),
                );
            }
            for add in [false, true] {
                let before = if add { 1.0 } else { 0.0 };
                let mut expected = vec![before; count * cols];
                for (row, d_out) in rows.iter().zip(picked.chunks(cols)) {
                    for (d_x, d_out) in expected[*row as usize * cols..].iter_mut().zip(d_out) {
                        *d_x += d_out;
                    }
                }
                same_on_any_threads(
                    |isa| {
                        let d_out = Kept::new(dtype, &picked);
                        let mut d_x = Kept::new(dtype, &vec![1.0; count * cols]);
                        let sink = ElementsSink { values: d_x.elements_mut(), add };
                        gather_gradient(isa, d_out.elements(), &rows, cols, sink);
                        d_x.numbers()
                    },
                    |d_x| assert!(d_x == rounded(dtype, &expected)),
                );
            }
        }
    }

    #[test]
    #[should_panic(expected = "gathered twice")]
    fn a_row_gathered_twice_is_refused() {
        let (d_out, mut d_x) = ([1.0, 2.0], [0.0; 3]);
        let sink = ElementsSink { values: ElementsMut::F32(&mut d_x), add: false };
        gather_gradient(Isa::detect(), Elements::F32(&d_out), &[1, 1], 1, sink);
    }
}
