//! The embedding and its gradients against the CPU's.

use mtdnn_raw::backend::cpu::SinkMut;
use mtdnn_raw::backend::cpu::bounds::Bounds;
use mtdnn_raw::backend::cpu::embedding as cpu;
use mtdnn_raw::backend::cpu::isa::Isa;
use mtdnn_raw::backend::cuda::embedding::{self, Tables, Tokens};
use mtdnn_raw::backend::cuda::launch::Operand;
use mtdnn_raw::random::Random;
use mtdnn_raw::tensor::{DType, Extents, Rows};

use super::emulation::Emulation;
use super::support::{Bench, FLOATS, assert_near, numbers};

const VOCABULARY: usize = 40;
const POSITIONS: usize = 30;
const TYPES: usize = 3;

/// Sequences of up to 25 tokens, not in the order of their rows, with dead rows between them.
pub struct Batch {
    ids: Vec<u32>,
    types: Vec<u32>,
    pub places: Vec<u32>,
    order: Vec<u32>,
    starts: Vec<u32>,
    ends: Vec<u32>,
}

impl Batch {
    pub fn new(tokens: usize) -> Self {
        let mut random = Random::new(8, [tokens as u32, 0]);
        let mut spans = Vec::new();
        let mut row = 0;
        while row < tokens as u32 {
            let end = (row + 1 + random.below(25)).min(tokens as u32);
            spans.push((row, end));
            row = end + random.below(9);
        }
        random.shuffle(&mut spans);
        let [mut ids, mut types, mut places] = [0; 3].map(|_| vec![0; tokens]);
        for (sequence, &(start, end)) in spans.iter().enumerate() {
            for row in start..end {
                // Frequent ids, one that fills chunks and more, and rare ones.
                let id = [0, 7, 7, 7, 7, 7, 21, random.below(VOCABULARY as u32)];
                ids[row as usize] = random.choose(&id);
                types[row as usize] = random.below(2);
                places[row as usize] = (sequence as u32) << 16 | (row - start);
            }
        }
        let mut order: Vec<u32> = (0..tokens as u32).collect();
        order.sort_by_key(|&row| (ids[row as usize], row));
        let (starts, ends) = spans.into_iter().unzip();
        Self { ids, types, places, order, starts, ends }
    }

    pub fn extents(&self) -> Extents {
        Extents {
            tokens: self.ids.len(),
            sequences: self.starts.len(),
            groups: 0,
            predictions: 0,
            in_lines: false,
        }
    }

    fn tokens(&self) -> cpu::Tokens<'_> {
        cpu::Tokens {
            ids: &self.ids,
            types: &self.types,
            places: &self.places,
            order: &self.order,
            bounds: Bounds { starts: &self.starts, ends: &self.ends },
        }
    }

    /// The words, positions and types.
    pub fn tables(&self, dtype: DType, cols: usize) -> [Vec<f32>; 3] {
        [VOCABULARY, POSITIONS, TYPES].map(|rows| numbers(rows as u32, dtype, rows * cols))
    }

    pub fn embed(&self, tables: &[Vec<f32>; 3], cols: usize) -> Vec<f32> {
        let mut out = vec![0.0; self.ids.len() * cols];
        let [word, position, kind] = tables;
        cpu::embed(Isa::detect(), &self.tokens(), cols, word, position, kind, (&mut out).into());
        out
    }

    pub fn write(&self, bench: &mut Bench) -> Tokens {
        Tokens {
            ids: bench.memory.words("ids", &self.ids),
            types: bench.memory.words("types", &self.types),
            places: bench.memory.words("places", &self.places),
            order: bench.memory.words("order", &self.order),
            starts: bench.memory.words("starts", &self.starts),
            ends: bench.memory.words("ends", &self.ends),
        }
    }

    pub fn write_tables(
        &self,
        bench: &mut Bench,
        dtype: DType,
        cols: usize,
        tables: &[Vec<f32>; 3],
    ) -> [Operand; 3] {
        let [word, position, token_type] = tables;
        [("word", word), ("position", position), ("token_type", token_type)]
            .map(|(name, values)| bench.value(name, dtype, Rows::Fixed(values.len() / cols), cols, values))
    }
}

#[test]
fn forward_is_the_cpus() {
    let Some(emulation) = Emulation::get() else { return };
    for (tokens, cols) in [(1, 1), (7, 8), (63, 3), (129, 24), (65, 768), (20, 1024)] {
        for dtype in FLOATS {
            let batch = Batch::new(tokens);
            let values = batch.tables(dtype, cols);
            let mut bench = Bench::new(batch.extents());
            let at = batch.write(&mut bench);
            let [word, position, token_type] = batch.write_tables(&mut bench, dtype, cols, &values);
            let tables = Tables { word, position, token_type };
            let out = bench.output("out", dtype, Rows::Tokens, cols);
            bench.run(emulation, |launches| embedding::forward(launches, &at, &tables, out));
            let expected = batch.embed(&values, cols);
            assert_near(&(tokens, cols, dtype), dtype, &bench.read(out), &expected, 1e-6);
        }
    }
}

#[test]
fn an_index_beyond_its_table_shows() {
    let Some(emulation) = Emulation::get() else { return };
    let mut batch = Batch::new(5);
    let values = batch.tables(DType::F32, 8);
    batch.ids[3] = VOCABULARY as u32;
    let mut bench = Bench::new(batch.extents());
    let at = batch.write(&mut bench);
    let [word, position, token_type] = batch.write_tables(&mut bench, DType::F32, 8, &values);
    let tables = Tables { word, position, token_type };
    let out = bench.output("out", DType::F32, Rows::Tokens, 8);
    bench.run(emulation, |launches| embedding::forward(launches, &at, &tables, out));
    for (i, values) in bench.read(out).chunks(8).enumerate() {
        assert!(values.iter().all(|value| value.is_nan() == (i == 3)));
    }
}

#[test]
fn backward_is_the_cpus() {
    let Some(emulation) = Emulation::get() else { return };
    let shapes = [(1, 8), (7, 3), (31, 8), (32, 8), (33, 24), (129, 136), (300, 8), (127, 1032), (65, 768)];
    // One id goes through more than the 32 chunks that are looked for at a time.
    for (i, (tokens, cols)) in shapes.into_iter().chain([(2600, 8)]).enumerate() {
        for dtype in FLOATS {
            let add = (i + usize::from(dtype == DType::Bf16)) % 2 == 1;
            let what = (tokens, cols, dtype, add);
            let batch = Batch::new(tokens);
            let d_out = numbers(1, dtype, tokens * cols);
            let before = batch.tables(DType::F32, cols);
            let [mut word, mut position, mut token_type] = before.clone();
            let sink = |values| SinkMut { values, add };
            cpu::embed_gradient(
                Isa::detect(),
                &batch.tokens(),
                cols,
                (&d_out).into(),
                sink(&mut word),
                sink(&mut position),
                sink(&mut token_type),
            );

            let mut bench = Bench::new(batch.extents());
            let at = batch.write(&mut bench);
            let d_out = bench.value("d_out", dtype, Rows::Tokens, cols, &d_out);
            let [d_word, d_position, d_token_type] =
                [("d_word", VOCABULARY, 0), ("d_position", POSITIONS, 1), ("d_token_type", TYPES, 2)].map(
                    |(name, rows, table)| {
                        let before = add.then_some(&before[table][..]);
                        bench.target(name, DType::F32, Rows::Fixed(rows), cols, before)
                    },
                );
            bench.run(emulation, |launches| {
                embedding::backward(launches, &at, d_out, d_word, d_position, d_token_type)
            });
            for (target, expected) in [(d_word, word), (d_position, position), (d_token_type, token_type)] {
                assert_near(&what, DType::F32, &bench.read(target.operand), &expected, 2e-5);
            }
        }
    }
}
