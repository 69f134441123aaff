//! Attention against its definition in double precision.

use mtdnn_raw::backend::cuda::attention;
use mtdnn_raw::backend::cuda::launch::{DropoutSite, Kernels, Launches, Operand, RowCount};
use mtdnn_raw::random::philox4x32_10;
use mtdnn_raw::tensor::{DType, Dropout, Extents, Rows};

use super::emulation::Emulation;
use super::support::{Bench, STREAM, numbers};

/// Which rows each sequence has.
#[derive(Clone, Debug)]
struct Packed {
    rows: usize,
    starts: Vec<u32>,
    ends: Vec<u32>,
}

impl Packed {
    /// Sequences of the `(start, length)` given, in so many rows.
    fn new(rows: usize, sequences: &[(u32, u32)]) -> Self {
        let starts = sequences.iter().map(|(start, _)| *start).collect();
        let ends = sequences.iter().map(|(start, length)| start + length).collect();
        Self { rows, starts, ends }
    }

    fn extents(&self, in_lines: bool) -> Extents {
        Extents { tokens: self.rows, sequences: self.starts.len(), groups: 0, predictions: 0, in_lines }
    }

    fn sequences(&self) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> + '_ {
        let bounds = self.starts.iter().zip(&self.ends);
        bounds.map(|(&start, &end)| start as usize..end as usize).enumerate()
    }

    fn places(&self) -> Vec<u32> {
        let mut places = vec![0; self.rows];
        for (sequence, rows) in self.sequences() {
            for (position, row) in rows.enumerate() {
                places[row] = (sequence << 16 | position) as u32;
            }
        }
        places
    }
}

/// What both directions give.
struct Values {
    context: Vec<f64>,
    log_sum_exp: Vec<f64>,
    d_qkv: Vec<f64>,
}

/// Attention spelt out.
fn exact(
    qkv: &[f32],
    d_context: &[f32],
    packed: &Packed,
    [heads, size]: [usize; 2],
    dropout: Dropout,
) -> Values {
    let hidden = heads * size;
    let scale = 1.0 / (size as f64).sqrt();
    let mut values = Values {
        context: vec![0.0; packed.rows * hidden],
        log_sum_exp: vec![0.0; packed.rows * heads],
        d_qkv: vec![0.0; packed.rows * 3 * hidden],
    };
    for (sequence, rows) in packed.sequences() {
        for head in 0..heads {
            let at = |row: usize, third: usize| row * 3 * hidden + third * hidden + head * size;
            let dot = |a: &[f32], b: &[f32]| -> f64 {
                a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
            };
            let part = |row: usize, third: usize| &qkv[at(row, third)..][..size];
            for query in rows.clone() {
                let d_row = &d_context[query * hidden + head * size..][..size];
                let place = (sequence << 16 | (query - rows.start)) as u32;
                let scores = rows.clone().map(|key| dot(part(query, 0), part(key, 1)) * scale);
                let scores: Vec<f64> = scores.collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let denominator: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
                let log_sum_exp = largest + denominator.ln();
                values.log_sum_exp[query * heads + head] = log_sum_exp;

                let probabilities: Vec<f64> =
                    scores.iter().map(|score| (score - log_sum_exp).exp()).collect();
                let factors: Vec<f64> =
                    (0..rows.len()).map(|key| factor(dropout, head, place, key)).collect();
                let gradients =
                    rows.clone().zip(&factors).map(|(key, factor)| dot(d_row, part(key, 2)) * factor);
                let gradients: Vec<f64> = gradients.collect();
                let delta: f64 = probabilities.iter().zip(&gradients).map(|(p, g)| p * g).sum();
                for (i, key) in rows.clone().enumerate() {
                    let kept = probabilities[i] * factors[i];
                    let d_product = probabilities[i] * (gradients[i] - delta) * scale;
                    for (column, d) in d_row.iter().enumerate() {
                        let of = |third, row| f64::from(part(row, third)[column]);
                        values.context[query * hidden + head * size + column] += kept * of(2, key);
                        values.d_qkv[at(query, 0) + column] += d_product * of(1, key);
                        values.d_qkv[at(key, 1) + column] += d_product * of(0, query);
                        values.d_qkv[at(key, 2) + column] += kept * f64::from(*d);
                    }
                }
            }
        }
    }
    values
}

/// What dropout multiplies the probability of the query at `place` for a key by.
fn factor(dropout: Dropout, head: usize, place: u32, key: usize) -> f64 {
    let counter = [(key / 8) as u32, place, dropout.site << 8 | head as u32, STREAM.step];
    let seed = [STREAM.seed as u32, (STREAM.seed >> 32) as u32];
    let word = philox4x32_10(counter, seed)[key % 8 / 2];
    let draw = if key.is_multiple_of(2) { word & 0xffff } else { word >> 16 };
    if draw >= dropout.threshold { f64::from(dropout.scale()) } else { 0.0 }
}

/// Numbers large enough that the softmax is neither flat nor a single key.
fn inputs(seed: u32, dtype: DType, count: usize) -> Vec<f32> {
    numbers(seed, dtype, count).iter().map(|x| 2.0 * x).collect()
}

/// The relative error of some columns of a matrix in the L2 norm.
fn error(got: &[f32], expected: &[f64], cols: usize, columns: std::ops::Range<usize>) -> f64 {
    let (mut off, mut norm) = (0.0, 0.0);
    for (got, expected) in got.chunks_exact(cols).zip(expected.chunks_exact(cols)) {
        for (got, expected) in got[columns.clone()].iter().zip(&expected[columns.clone()]) {
            off += (f64::from(*got) - expected).powi(2);
            norm += expected.powi(2);
        }
    }
    (off / norm.max(1e-12)).sqrt()
}

/// Runs both directions for two heads and compares all values; `tolerances` are those of the context and of the gradients.
fn check(dtype: DType, size: usize, packed: &Packed, dropout: Dropout, tolerances: [f64; 2]) {
    let bench = Bench::new(packed.extents(false));
    check_on(bench, dtype, [2, size], packed, dropout, tolerances);
}

/// The same for so many heads of a size, where the kernels and the buffers are those of `bench`.
fn check_on(
    mut bench: Bench,
    dtype: DType,
    [heads, size]: [usize; 2],
    packed: &Packed,
    dropout: Dropout,
    tolerances: [f64; 2],
) {
    let Some(emulation) = Emulation::get() else { return };
    let (rows, hidden) = (packed.rows, heads * size);
    let (qkv, d_context) = (inputs(1, dtype, rows * 3 * hidden), inputs(2, dtype, rows * hidden));
    let expected = exact(&qkv, &d_context, packed, [heads, size], dropout);

    let places = bench.memory.words("places", &packed.places());
    let starts = bench.memory.words("starts", &packed.starts);
    let ends = bench.memory.words("ends", &packed.ends);
    let qkv = bench.value("qkv", dtype, Rows::Tokens, 3 * hidden, &qkv);
    let d_context = bench.value("d_context", dtype, Rows::Tokens, hidden, &d_context);
    let context = bench.output("context", dtype, Rows::Tokens, hidden);
    let statistics = bench.output("log_sum_exp", DType::F32, Rows::Tokens, heads);
    let d_qkv = bench.output("d_qkv", dtype, Rows::Tokens, 3 * hidden);
    let alone = bench.output("context alone", dtype, Rows::Tokens, hidden);
    let (site, log_sum_exp) = (DropoutSite::new(dropout), statistics.address);
    bench.run(emulation, |list| {
        attention::forward(list, qkv, places, starts, ends, heads, site, alone, 0);
        attention::forward(list, qkv, places, starts, ends, heads, site, context, log_sum_exp);
        attention::backward(list, qkv, places, starts, ends, heads, site, log_sum_exp, d_context, d_qkv);
    });

    let read = |operand: Operand| {
        let mut values = bench.read(operand);
        let beyond = values.split_off(rows * operand.cols as usize);
        assert!(beyond.iter().all(|x| x.is_nan()), "rows beyond the batch were written: {packed:?}");
        values
    };
    let (context, log_sum_exp, d_qkv) = (read(context), read(statistics), read(d_qkv));
    assert_eq!(read(alone), context, "nothing is kept: {dtype} heads of {size}, {dropout:?}, {packed:?}");
    let third =
        |third: usize| error(&d_qkv, &expected.d_qkv, 3 * hidden, third * hidden..(third + 1) * hidden);
    for (name, error, tolerance) in [
        ("context", error(&context, &expected.context, hidden, 0..hidden), tolerances[0]),
        ("log_sum_exp", error(&log_sum_exp, &expected.log_sum_exp, heads, 0..heads), 1e-5),
        ("d_queries", third(0), tolerances[1]),
        ("d_keys", third(1), tolerances[1]),
        ("d_values", third(2), tolerances[1]),
    ] {
        assert!(
            error < tolerance,
            "{name} is off by {error:e}: {dtype} heads of {size}, {dropout:?}, {packed:?}"
        );
    }
    for row in (0..rows).filter(|&row| !packed.sequences().any(|(_, rows)| rows.contains(&row))) {
        let of = |values: &[f32], cols: usize| values[row * cols..][..cols].iter().all(|&x| x == 0.0);
        let zero = of(&context, hidden) && of(&d_qkv, 3 * hidden) && of(&log_sum_exp, heads);
        assert!(zero, "dead row {row} is not 0: {dtype} heads of {size}, {packed:?}");
    }
}

/// Batches in lines, with and without dead rows, and row counts beside the sizes of tiles.
fn batches() -> Vec<Packed> {
    vec![
        Packed::new(128, &[(0, 128)]),
        Packed::new(128, &[(0, 40), (40, 40), (80, 40)]),
        Packed::new(128, &[(8, 63), (0, 1), (71, 57), (1, 7)]),
        // The last line of a long sequence is shared; rows before it are dead, and a block of 64 is.
        Packed::new(640, &[(440, 20), (128, 300), (512, 100), (0, 50)]),
        Packed::new(1, &[(0, 1)]),
        Packed::new(7, &[(0, 7)]),
        Packed::new(63, &[(0, 61)]),
        Packed::new(65, &[(0, 65)]),
        Packed::new(127, &[(64, 63), (3, 60)]),
        Packed::new(129, &[(0, 129)]),
    ]
}

fn dropouts() -> [Dropout; 2] {
    [Dropout::new(0.0, 2), Dropout::new(0.3, 2)]
}

const BF16: [f64; 2] = [4e-3, 1e-2];
const F32: [f64; 2] = [1e-5, 1e-5];

#[test]
fn tensor_cores_attend_as_defined() {
    for packed in batches() {
        for dropout in dropouts() {
            check(DType::Bf16, 64, &packed, dropout, BF16);
        }
    }
    for size in [32, 128] {
        for packed in &batches()[2..4] {
            check(DType::Bf16, size, packed, Dropout::new(0.3, 2), BF16);
        }
    }
}

#[test]
fn tensor_cores_attend_over_the_longest_sequences() {
    check(DType::Bf16, 64, &Packed::new(512, &[(0, 512)]), Dropout::new(0.3, 2), BF16);
}

#[test]
fn plain_multipliers_attend_as_defined() {
    for packed in batches() {
        for dropout in dropouts() {
            check(DType::F32, 8, &packed, dropout, F32);
        }
    }
    for size in [5, 64, 256] {
        check(DType::F32, size, &batches()[2], Dropout::new(0.3, 2), F32);
    }
    check(DType::Bf16, 20, &batches()[2], Dropout::new(0.3, 2), BF16);
}

/// Batches none of whose sequences crosses a line: rows that are nobody's, and lines that end with the batch.
fn batches_in_lines() -> Vec<Packed> {
    vec![
        Packed::new(128, &[(0, 128)]),
        Packed::new(128, &[(8, 63), (0, 1), (71, 53), (1, 7)]),
        Packed::new(300, &[(0, 50), (50, 31), (128, 127), (259, 41)]),
        Packed::new(2, &[(0, 2)]),
        Packed::new(63, &[(0, 61)]),
        Packed::new(193, &[(128, 65), (3, 60)]),
    ]
}

#[test]
fn hopper_attends_within_lines_as_defined() {
    for packed in batches_in_lines() {
        for dropout in dropouts() {
            for size in [64, 32] {
                check_on(Bench::hopper(packed.extents(true)), DType::Bf16, [2, size], &packed, dropout, BF16);
            }
        }
    }
    // Heads of 32 go two a block: a second block of them.
    let packed = &batches_in_lines()[2];
    check_on(Bench::hopper(packed.extents(true)), DType::Bf16, [4, 32], packed, dropouts()[1], BF16);
}

/// What attention over heads of `size` launches, forward and backward.
fn launched(kernels: Kernels, dtype: DType, heads: usize, size: usize, in_lines: bool) -> Vec<&'static str> {
    let extents = Extents { tokens: 128, sequences: 1, in_lines, ..Extents::default() };
    let operand = |thirds: usize| {
        let (rows, cols) = (RowCount::new(Rows::Tokens), (thirds * heads * size) as u32);
        Operand { address: 1 << 20, dtype, rows, most_rows: 128, cols }
    };
    let mut list = Launches::new(0, extents, 0);
    list.kernels = kernels;
    let off = DropoutSite::off();
    attention::forward(&mut list, operand(3), 0, 0, 0, heads, off, operand(1), 0);
    attention::backward(&mut list, operand(3), 0, 0, 0, heads, off, 0, operand(1), operand(3));
    list.list.iter().map(|launch| launch.kernel).collect()
}

#[test]
fn hopper_attends_only_where_it_is_asked_to_and_can() {
    use Kernels::{Hopper, Portable};
    let hopper = |size| launched(Hopper, DType::Bf16, 2, size, true);
    assert_eq!(hopper(64), ["attention_lines_64", "attention_grad_lines_64"]);
    assert_eq!(hopper(32), ["attention_lines_32", "attention_grad_lines_32"]);
    let portable = ["attention_64", "attention_grad_queries_64", "attention_grad_keys_64"];
    assert_eq!(launched(Portable, DType::Bf16, 2, 64, true), portable);
    assert_eq!(launched(Hopper, DType::Bf16, 2, 64, false), portable, "a sequence crosses a line");
    assert_eq!(hopper(128)[0], "attention_128");
    assert_eq!(launched(Hopper, DType::Bf16, 3, 32, true)[0], "attention_32", "half a box is left over");
    assert_eq!(launched(Hopper, DType::F32, 2, 64, true)[0], "attention_f32");
}
