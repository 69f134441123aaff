//! The sum of word, position and segment embeddings (Devlin et al. 2018, figure 2).

use rayon::prelude::*;

use super::blocks::{SinkMut, rows_per_block};
use super::bounds::Bounds;
use super::elements::{Elements, ElementsMut, PART, parts};
use super::isa::Isa;
use super::simd::multiversion;
use super::sums::{COLUMNS, sum_rows};

/// What each packed token is.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    /// Vocabulary ids, `[tokens]`.
    pub ids: &'a [u32],
    /// Segment types, `[tokens]`.
    pub types: &'a [u32],
    /// `sequence << 16 | position`, `[tokens]`; positions count from 0 in each sequence.
    pub places: &'a [u32],
    /// Token rows sorted by id, then by row, `[tokens]`.
    pub order: &'a [u32],
    /// The rows of each sequence.
    pub bounds: Bounds<'a>,
}

impl Tokens<'_> {
    fn count(&self) -> usize {
        let count = self.ids.len();
        assert_eq!(
            [self.types.len(), self.places.len(), self.order.len()],
            [count; 3],
            "indices of {count} tokens"
        );
        count
    }
}

/// `out[t] = word[id] + position[place] + token_type[type]`: tables of `cols` columns into `[tokens, cols]`.
pub fn embed(
    isa: Isa,
    tokens: &Tokens,
    cols: usize,
    word: &[f32],
    position: &[f32],
    token_type: &[f32],
    out: ElementsMut,
) {
    assert_eq!(out.len(), tokens.count() * cols, "embedding of {} tokens in {cols} columns", tokens.count());
    let rows = rows_per_block(cols);
    out.par_chunks_mut(rows * cols).enumerate().for_each(|(block, out)| {
        embed_block(isa, tokens, block * rows, cols, word, position, token_type, out);
    });
}

multiversion! {
    fn embed_block<FMA>(
        tokens: &Tokens,
        first_token: usize,
        cols: usize,
        word: &[f32],
        position: &[f32],
        token_type: &[f32],
        out: ElementsMut,
    ) {
        let mut all = out;
        let mut buffer = [0.0; PART];
        for i in 0..all.len() / cols {
            let token = first_token + i;
            let word = table_row(word, cols, tokens.ids[token]);
            let position = table_row(position, cols, tokens.places[token] & 0xffff);
            let token_type = table_row(token_type, cols, tokens.types[token]);
            for part in parts(cols) {
                let place = i * cols + part.start..i * cols + part.end;
                let out = all.place(place.clone(), &mut buffer);
                let (word, position) = (&word[part.clone()], &position[part.clone()]);
                for (((out, word), position), token_type) in
                    out.iter_mut().zip(word).zip(position).zip(&token_type[part])
                {
                    *out = word + position + token_type;
                }
                all.settle(place, &buffer);
            }
        }
    }
}

/// The backward pass of [`embed`]: each row of a table gets the sum of the gradients of the tokens that use it, in the
/// order of the token rows; a row that no token uses gets zeros, or nothing where its sink adds.
pub fn embed_gradient(
    isa: Isa,
    tokens: &Tokens,
    cols: usize,
    d_out: Elements,
    d_word: SinkMut,
    d_position: SinkMut,
    d_token_type: SinkMut,
) {
    assert_eq!(d_out.len(), tokens.count() * cols, "gradient of {} tokens in {cols} columns", tokens.count());
    // A task has a range of the vocabulary: few enough rows that a frequent word does not hold the others up.
    const WORDS: usize = 64;
    let add = d_word.add;
    d_word
        .values
        .par_chunks_mut(WORDS * cols)
        .enumerate()
        .for_each(|(i, values)| word_block(isa, tokens, cols, d_out, i * WORDS, SinkMut { values, add }));
    let add = d_position.add;
    d_position.values.par_chunks_mut(cols).enumerate().for_each(|(position, values)| {
        position_row(isa, tokens.bounds, cols, d_out, position, SinkMut { values, add })
    });
    let add = d_token_type.add;
    for (kind, values) in d_token_type.values.chunks_exact_mut(cols).enumerate() {
        values.par_chunks_mut(COLUMNS).enumerate().for_each(|(i, values)| {
            type_columns(isa, tokens.types, kind, cols, d_out, i * COLUMNS, SinkMut { values, add })
        });
    }
}

/// A row of a table of `cols` columns.
#[inline(always)]
fn table_row(table: &[f32], cols: usize, row: u32) -> &[f32] {
    let start = row as usize * cols;
    let Some(values) = table.get(start..start + cols) else {
        panic!("index {row} into a table of {} rows", table.len() / cols)
    };
    values
}

multiversion! {
    fn word_block<FMA>(tokens: &Tokens, cols: usize, d_out: Elements, first_word: usize, out: SinkMut) {
        let id = |row: &u32| tokens.ids[*row as usize] as usize;
        let mut rest = &tokens.order[tokens.order.partition_point(|row| id(row) < first_word)..];
        for (i, values) in out.values.chunks_exact_mut(cols).enumerate() {
            let rows;
            (rows, rest) = rest.split_at(rest.iter().take_while(|row| id(row) == first_word + i).count());
            let rows = rows.iter().map(|row| *row as usize);
            sum_whole_rows(d_out, cols, rows, SinkMut { values, add: out.add });
        }
    }
}

multiversion! {
    fn position_row<FMA>(bounds: Bounds, cols: usize, d_out: Elements, position: usize, out: SinkMut) {
        let rows = bounds.iter().filter_map(|rows| {
            let row = rows.start + position;
            (row < rows.end).then_some(row)
        });
        sum_whole_rows(d_out, cols, rows, out);
    }
}

multiversion! {
    fn type_columns<FMA>(types: &[u32], kind: usize, cols: usize, d_out: Elements, first: usize, out: SinkMut) {
        let rows = types.iter().enumerate().filter(|(_, of)| **of as usize == kind).map(|(row, _)| row);
        sum_rows(d_out, cols, first, rows, out);
    }
}

/// The sum of the rows named.
#[inline(always)]
fn sum_whole_rows(x: Elements, cols: usize, rows: impl Iterator<Item = usize> + Clone, out: SinkMut) {
    if rows.clone().next().is_none() {
        if !out.add {
            out.values.fill(0.0);
        }
        return;
    }
    for (i, values) in out.values.chunks_mut(COLUMNS).enumerate() {
        sum_rows(x, cols, i * COLUMNS, rows.clone(), SinkMut { values, add: out.add });
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{FLOATS, Kept, assert_close, numbers, rounded, same_on_any_threads};
    use super::*;

    const WORDS: usize = 150;
    const POSITIONS: usize = 90;
    const TYPES: usize = 3;

    /// Sequences of these lengths; word 5 is in most places, type 2 in none.
    struct Batch {
        ids: Vec<u32>,
        types: Vec<u32>,
        places: Vec<u32>,
        order: Vec<u32>,
        starts: Vec<u32>,
        ends: Vec<u32>,
    }

    impl Batch {
        fn new(lengths: &[u32]) -> Self {
            let mut batch = Self {
                ids: vec![],
                types: vec![],
                places: vec![],
                order: vec![],
                starts: vec![],
                ends: vec![],
            };
            for (sequence, length) in lengths.iter().enumerate() {
                batch.starts.push(batch.ids.len() as u32);
                for position in 0..*length {
                    let n = batch.ids.len() as u32;
                    batch.ids.push(if n.is_multiple_of(3) { n * 31 % WORDS as u32 } else { 5 });
                    batch.types.push(u32::from(position > length / 2));
                    batch.places.push((sequence as u32) << 16 | position);
                }
                batch.ends.push(batch.ids.len() as u32);
            }
            batch.order = (0..batch.ids.len() as u32).collect();
            batch.order.sort_by_key(|row| batch.ids[*row as usize]);
            batch
        }

        fn tokens(&self) -> Tokens<'_> {
            Tokens {
                ids: &self.ids,
                types: &self.types,
                places: &self.places,
                order: &self.order,
                bounds: Bounds { starts: &self.starts, ends: &self.ends },
            }
        }
    }

    fn batches() -> Vec<Batch> {
        [&[][..], &[1], &[7, 3], &[90, 1, 40, 90, 77]].map(Batch::new).into()
    }

    #[test]
    fn the_three_rows_are_added() {
        for batch in batches() {
            for (cols, dtype) in
                [1, 8, 67, PART + 5].into_iter().flat_map(|cols| FLOATS.map(|dtype| (cols, dtype)))
            {
                let tables = [WORDS, POSITIONS, TYPES].map(|rows| numbers(rows as u32, rows * cols));
                let mut expected = Vec::new();
                for token in 0..batch.ids.len() {
                    let rows = [batch.ids[token], batch.places[token] & 0xffff, batch.types[token]];
                    for c in 0..cols {
                        let parts = [0, 1, 2].map(|i| tables[i][rows[i] as usize * cols + c]);
                        expected.push(parts[0] + parts[1] + parts[2]);
                    }
                }
                let expected = rounded(dtype, &expected);
                same_on_any_threads(
                    |isa| {
                        let mut out = Kept::new(dtype, &vec![f32::NAN; expected.len()]);
                        let [word, position, kind] = &tables;
                        embed(isa, &batch.tokens(), cols, word, position, kind, out.elements_mut());
                        out.numbers()
                    },
                    |out| assert!(out == expected),
                );
            }
        }
    }

    #[test]
    #[should_panic(expected = "index 150 into a table of 150 rows")]
    fn an_unknown_word_is_named() {
        let mut batch = Batch::new(&[2]);
        batch.ids[1] = 150;
        let mut out = [0.0; 2];
        let (tokens, out) = (batch.tokens(), ElementsMut::F32(&mut out));
        embed(Isa::detect(), &tokens, 1, &[0.0; WORDS], &[0.0; POSITIONS], &[0.0; TYPES], out);
    }

    #[test]
    fn each_table_row_gets_the_sum_of_its_tokens() {
        for batch in batches() {
            for (cols, dtype) in [1, 8, 67].into_iter().flat_map(|cols| FLOATS.map(|dtype| (cols, dtype))) {
                let d_out = rounded(dtype, &numbers(9, batch.ids.len() * cols));
                for add in [false, true] {
                    let before = if add { 1.0 } else { 0.0 };
                    let mut expected = vec![before; (WORDS + POSITIONS + TYPES) * cols];
                    for (token, d_out) in d_out.chunks(cols).enumerate() {
                        let position = (batch.places[token] & 0xffff) as usize;
                        let (word, kind) = (batch.ids[token] as usize, batch.types[token] as usize);
                        for row in [word, WORDS + position, WORDS + POSITIONS + kind] {
                            for (c, d_out) in d_out.iter().enumerate() {
                                expected[row * cols + c] += f64::from(*d_out);
                            }
                        }
                    }
                    same_on_any_threads(
                        |isa| {
                            let mut tables = vec![1.0; expected.len()];
                            let (word, rest) = tables.split_at_mut(WORDS * cols);
                            let (position, kind) = rest.split_at_mut(POSITIONS * cols);
                            embed_gradient(
                                isa,
                                &batch.tokens(),
                                cols,
                                Kept::new(dtype, &d_out).elements(),
                                SinkMut { values: word, add },
                                SinkMut { values: position, add },
                                SinkMut { values: kind, add },
                            );
                            tables
                        },
                        |tables| assert_close(tables, expected.iter().copied(), 5e-6),
                    );
                }
            }
        }
    }
}
