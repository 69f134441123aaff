//! What goes element by element or row by row, against the CPU's.

use half::bf16;
use mtdnn_raw::backend::cpu::activation as cpu_activation;
use mtdnn_raw::backend::cpu::dropout::{RowDropout, drop_rows};
use mtdnn_raw::backend::cpu::elements::ElementsSink;
use mtdnn_raw::backend::cpu::gather as cpu_gather;
use mtdnn_raw::backend::cpu::isa::Isa;
use mtdnn_raw::backend::cuda::launch::{DropoutSite, Target};
use mtdnn_raw::backend::cuda::{activation, elementwise, gather};
use mtdnn_raw::tensor::{Activation, DType, Dropout, Extents, Rows};

use super::emulation::Emulation;
use super::support::{Bench, FLOATS, STREAM, assert_near, numbers, rounded};

const SHAPES: [(usize, usize); 8] =
    [(1, 1), (1, 8), (7, 3), (63, 24), (65, 136), (127, 8), (129, 13), (300, 384)];

#[test]
fn every_element_is_filled_and_no_other() {
    let Some(emulation) = Emulation::get() else { return };
    for (rows, cols) in SHAPES {
        for dtype in FLOATS {
            let mut bench = Bench::of_tokens(rows);
            let out = bench.output("out", dtype, Rows::Tokens, cols);
            let odd = bench.parameter("odd", dtype, cols, &vec![0.0; rows * cols]);
            bench.run(emulation, |launches| {
                elementwise::fill(launches, out, -2.5);
                elementwise::fill(launches, odd, 0.75);
            });
            assert_eq!(bench.read(out), vec![-2.5; rows * cols]);
            assert_eq!(bench.read(odd), vec![0.75; rows * cols]);
        }
    }
}

#[test]
fn sums_are_stored_or_added_to_what_is_there() {
    let Some(emulation) = Emulation::get() else { return };
    let kinds = [(DType::F32, DType::F32), (DType::Bf16, DType::Bf16), (DType::F32, DType::Bf16)];
    for (rows, cols) in SHAPES {
        for ((dtype, stored), add) in kinds.into_iter().flat_map(|kind| [(kind, false), (kind, true)]) {
            let (from, into) = (numbers(1, dtype, rows * cols), numbers(2, stored, rows * cols));
            let before: Vec<f32> = into.iter().map(|y| if add { *y } else { f32::NAN }).collect();
            let sums = from.iter().zip(&into).map(|(x, y)| rounded(stored, if add { x + y } else { *x }));
            let expected: Vec<f32> = sums.collect();
            let mut bench = Bench::of_tokens(rows);
            let from_at = bench.value("from", dtype, Rows::Tokens, cols, &from);
            let into_at = bench.value("into", stored, Rows::Tokens, cols, &before);
            let odd = bench.parameter("odd", stored, cols, &before);
            bench.run(emulation, |launches| {
                elementwise::accumulate(launches, from_at, Target { operand: into_at, add });
                elementwise::accumulate(launches, from_at, Target { operand: odd, add });
            });
            assert_eq!(bench.read(into_at), expected);
            assert_eq!(bench.read(odd), expected);
        }
    }
}

#[test]
fn dropout_is_the_cpus() {
    let Some(emulation) = Emulation::get() else { return };
    for (i, (rows, cols)) in SHAPES.into_iter().enumerate() {
        for dtype in FLOATS {
            let x = numbers(1, dtype, rows * cols);
            let keys: Vec<u32> = (0..rows as u32).map(|row| row << 16 | (row + 2)).collect();
            let keys = (i % 2 == 0).then_some(keys);
            let dropout = Dropout::new(if i == 3 { 0.0 } else { 0.4 }, 6);
            let mut expected = vec![0.0; rows * cols];
            let drop = RowDropout { stream: STREAM, dropout, keys: keys.as_deref() };
            drop_rows(Isa::detect(), drop, (&x).into(), cols, (&mut expected).into());
            let mut bench = Bench::of_tokens(rows);
            let x = bench.value("x", dtype, Rows::Tokens, cols, &x);
            let keys = keys.map_or(0, |keys| bench.memory.words("keys", &keys));
            let out = bench.output("out", dtype, Rows::Tokens, cols);
            bench.run(emulation, |launches| {
                elementwise::drop_rows(launches, x, keys, DropoutSite::new(dropout), out)
            });
            let expected: Vec<f32> = expected.into_iter().map(|value| rounded(dtype, value)).collect();
            assert_eq!(bench.read(out), expected, "{rows} rows of {cols}");
        }
    }
}

#[test]
fn parameters_are_rounded_to_the_nearest() {
    let Some(emulation) = Emulation::get() else { return };
    for len in [1, 8, 2049, 5000] {
        let values = numbers(1, DType::F32, len);
        let mut bench = Bench::of_tokens(0);
        let from = bench.value("from", DType::F32, Rows::Fixed(len), 1, &values);
        let to = bench.output("to", DType::Bf16, Rows::Fixed(len), 1);
        bench.run(emulation, |launches| {
            elementwise::round_to_bf16(launches, from.address, to.address, len as u32)
        });
        let expected: Vec<f32> = values.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        assert_eq!(bench.read(to), expected);
    }
}

#[test]
fn activations_are_the_cpus() {
    let Some(emulation) = Emulation::get() else { return };
    let all = [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::Tanh,
        Activation::Sigmoid,
        Activation::Identity,
    ];
    for (rows, cols) in [(1, 1), (7, 3), (65, 24), (129, 13)] {
        for (dtype, kind) in FLOATS.into_iter().flat_map(|dtype| all.map(|kind| (dtype, kind))) {
            let what = (rows, cols, dtype, kind);
            let before: Vec<f32> =
                numbers(1, dtype, rows * cols).iter().map(|x| rounded(dtype, 6.0 * x)).collect();
            let d_after = numbers(2, dtype, rows * cols);
            let [mut after, mut d_before] = [0; 2].map(|_| vec![0.0; rows * cols]);
            let (isa, x) = (Isa::detect(), (&before).into());
            cpu_activation::activate(isa, kind, x, (&mut after).into());
            cpu_activation::activate_gradient(isa, kind, x, (&d_after).into(), (&mut d_before).into());
            let mut bench = Bench::of_tokens(rows);
            let before = bench.value("before", dtype, Rows::Tokens, cols, &before);
            let d_after = bench.value("d_after", dtype, Rows::Tokens, cols, &d_after);
            let after_at = bench.output("after", dtype, Rows::Tokens, cols);
            let d_before_at = bench.output("d_before", dtype, Rows::Tokens, cols);
            bench.run(emulation, |launches| {
                activation::forward(launches, kind, before, after_at);
                activation::backward(launches, kind, before, d_after, d_before_at);
            });
            assert_near(&what, dtype, &bench.read(after_at), &after, 2e-6);
            assert_near(&what, dtype, &bench.read(d_before_at), &d_before, 2e-6);
        }
    }
}

#[test]
fn rows_are_gathered_and_put_back() {
    let Some(emulation) = Emulation::get() else { return };
    for (i, (tokens, cols)) in SHAPES.into_iter().enumerate() {
        for dtype in FLOATS {
            let rows: Vec<u32> = (0..tokens as u32).filter(|row| row % 3 == 0).collect();
            let extents =
                Extents { tokens, sequences: rows.len(), groups: 0, predictions: 0, in_lines: false };
            let add = i % 2 == 1;
            let (x, d_out) = (numbers(1, dtype, tokens * cols), numbers(2, dtype, rows.len() * cols));
            let before = numbers(3, dtype, tokens * cols);
            let (mut out, mut d_x) = (vec![0.0; d_out.len()], before.clone());
            let (isa, sink) = (Isa::detect(), ElementsSink { values: (&mut d_x).into(), add });
            cpu_gather::gather(isa, (&x).into(), &rows, cols, (&mut out).into());
            cpu_gather::gather_gradient(isa, (&d_out).into(), &rows, cols, sink);
            let mut bench = Bench::new(extents);
            let x = bench.value("x", dtype, Rows::Tokens, cols, &x);
            let d_out = bench.value("d_out", dtype, Rows::Sequences, cols, &d_out);
            let rows = bench.memory.words("rows", &rows);
            let out_at = bench.output("out", dtype, Rows::Sequences, cols);
            let d_x_at = bench.target("d_x", dtype, Rows::Tokens, cols, add.then_some(&before[..]));
            bench.run(emulation, |launches| {
                gather::forward(launches, x, rows, out_at);
                gather::backward(launches, d_out, rows, d_x_at);
            });
            assert_eq!(bench.read(out_at), out);
            let d_x: Vec<f32> = d_x.into_iter().map(|value| rounded(dtype, value)).collect();
            assert_eq!(bench.read(d_x_at.operand), d_x);
        }
    }
}
