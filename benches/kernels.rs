//! `cargo bench --bench kernels`: each CPU kernel at the shapes of BERT-base and MiniLM-L6, as GFLOP/s or GB/s and
//! as a share of what the machine was probed to do in the same run.
//!
//! Arguments pick rows by parts of their names, all of which must be there: `cargo bench --bench kernels -- attention
//! gradient`. `--json` prints a line of JSON a row.
//! Bytes are those that a kernel has to move: each operand once.

mod common;

use common::{Arguments, Limits, median};
use half::bf16;
use mtdnn_raw::backend::cpu::SinkMut;
use mtdnn_raw::backend::cpu::activation::{activate, activate_gradient};
use mtdnn_raw::backend::cpu::attention;
use mtdnn_raw::backend::cpu::bounds::Bounds;
use mtdnn_raw::backend::cpu::dropout::{RowDropout, drop_rows};
use mtdnn_raw::backend::cpu::elements::{Elements, ElementsMut, ElementsSink};
use mtdnn_raw::backend::cpu::embedding::{Tokens, embed, embed_gradient};
use mtdnn_raw::backend::cpu::gemm::{Form, Matrix, MatrixMut, WriteBack, gemm, weight_gradient};
use mtdnn_raw::backend::cpu::isa::Isa;
use mtdnn_raw::backend::cpu::loss::{cross_entropy, cross_entropy_gradient};
use mtdnn_raw::backend::cpu::norm::{AddNorm, AddNormGradient, KeptNorm, add_norm, add_norm_gradient};
use mtdnn_raw::backend::cpu::philox::Stream;
use mtdnn_raw::backend::cpu::scratch::Workspace;
use mtdnn_raw::backend::cpu::update::{Buffers, squared_norm, update};
use mtdnn_raw::backend::cpu::vocabulary::{self, STATISTICS, Vocabulary};
use mtdnn_raw::backend::{Group, Optimizer, Rule};
use mtdnn_raw::random::Random;
use mtdnn_raw::tensor::{Activation, Dropout};
use serde_json::json;

/// What a kernel's time is divided into.
#[derive(Clone, Copy)]
enum Work {
    Flops(f64),
    /// Of products of bf16.
    NarrowFlops(f64),
    Floats(usize),
    Bytes(usize),
}

impl Work {
    fn elements(count: usize, narrow: bool) -> Self {
        Self::Bytes(element_bytes(narrow) * count)
    }
}

struct Table {
    isa: Isa,
    limits: Limits,
    arguments: Arguments,
}

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    pool.install(|| {
        let table = Table { isa: Isa::detect(), limits: Limits::probe(), arguments: Arguments::new() };
        if !table.arguments.json {
            println!("{threads} threads, {:?}, {}", table.isa, table.limits);
            println!("{:<60} {:>9} {:>16} {:>7}", "kernel", "ms", "rate", "share");
        }
        products(&table);
        attentions(&table);
        rows(&table);
        tables(&table);
        vocabularies(&table);
        updates(&table);
    });
}

impl Table {
    fn product(&self, flops: f64, narrow: bool) -> Work {
        if narrow { Work::NarrowFlops(flops) } else { Work::Flops(flops) }
    }

    fn row(&self, name: &str, work: Work, kernel: impl FnMut()) {
        if !self.arguments.ask_for(name) {
            return;
        }
        let seconds = median(kernel).as_secs_f64();
        let (rate, unit, limit) = match work {
            Work::Flops(flops) => (flops / seconds, "GFLOP/s", self.limits.flops),
            Work::NarrowFlops(flops) => (flops / seconds, "GFLOP/s", self.limits.narrow_flops),
            Work::Floats(floats) => (4.0 * floats as f64 / seconds, "GB/s", self.limits.bytes),
            Work::Bytes(bytes) => (bytes as f64 / seconds, "GB/s", self.limits.bytes),
        };
        let (ms, rate, share) = (seconds * 1e3, rate / 1e9, rate / limit);
        if self.arguments.json {
            println!("{}", json!({"name": name, "ms": ms, "rate": rate, "unit": unit, "share": share}));
        } else {
            println!("{name:<60} {ms:>9.3} {rate:>8.1} {unit:<7} {:>6.0}%", 100.0 * share);
        }
    }
}

/// A value kept in either width.
struct Value {
    wide: Vec<f32>,
    narrow: Vec<bf16>,
}

impl Value {
    fn new(wide: Vec<f32>) -> Self {
        Self { narrow: wide.iter().map(|x| bf16::from_f32(*x)).collect(), wide }
    }

    fn elements(&self, narrow: bool) -> Elements<'_> {
        if narrow { self.narrow[..].into() } else { (&self.wide).into() }
    }

    fn elements_mut(&mut self, narrow: bool) -> ElementsMut<'_> {
        if narrow { (&mut self.narrow[..]).into() } else { (&mut self.wide).into() }
    }
}

fn element_bytes(narrow: bool) -> usize {
    if narrow { 2 } else { 4 }
}

/// What stands behind a kernel's name where it works in bf16.
fn in_width(narrow: bool) -> &'static str {
    if narrow { ", bf16" } else { "" }
}

fn products(table: &Table) {
    let mut workspace = Workspace::new(rayon::current_num_threads());
    let rows = 1024;
    let base = [(768, 2304), (768, 768), (768, 3072), (3072, 768)];
    let minilm = [(384, 1152), (384, 384), (384, 1536), (1536, 384)];
    let usual = base.into_iter().chain(minilm).map(|(inputs, outputs)| (rows, inputs, outputs));
    for (rows, inputs, outputs) in usual.chain([8, 32].map(|few| (few, 768, 768))) {
        let x = Value::new(numbers(rows * inputs));
        let weight = numbers(outputs * inputs);
        let d_out = Value::new(numbers(rows * outputs));
        let (bias, mut d_bias) = (numbers(outputs), vec![0.0; outputs]);
        let mut out = Value::new(vec![0.0; rows * outputs]);
        let mut d_x = Value::new(vec![0.0; rows * inputs]);
        let mut d_weight = vec![0.0; outputs * inputs];
        let weight = Matrix::new(&weight, outputs, inputs);
        let shape = format!("{rows} x {inputs} -> {outputs}");
        for narrow in [false, true] {
            let work = table.product(2.0 * (rows * inputs * outputs) as f64, narrow);
            let width = in_width(narrow);
            let x = Matrix::new(x.elements(narrow), rows, inputs);
            let d_out = Matrix::new(d_out.elements(narrow), rows, outputs);
            table.row(&format!("product forward {shape}{width}"), work, || {
                let c = MatrixMut::new(out.elements_mut(narrow), rows, outputs);
                gemm(table.isa, &mut workspace, Form::NT, x, weight, c, WriteBack::Bias(&bias));
            });
            table.row(&format!("product to the input {shape}{width}"), work, || {
                let c = MatrixMut::new(d_x.elements_mut(narrow), rows, inputs);
                gemm(table.isa, &mut workspace, Form::NN, d_out, weight, c, WriteBack::Store);
            });
            table.row(&format!("products to weight and bias {shape}{width}"), work, || {
                let c = MatrixMut::new(&mut d_weight, outputs, inputs);
                let d_bias = SinkMut { values: &mut d_bias, add: false };
                let identity = Activation::Identity;
                weight_gradient(table.isa, &mut workspace, d_out, x, identity, c, false, d_bias);
            });
        }
    }
    let (x, weight, bias) = (Value::new(numbers(rows * 768)), numbers(3072 * 768), numbers(3072));
    let d_out = Value::new(numbers(rows * 768));
    let d_weight = numbers(768 * 3072);
    let [mut before, mut out] = [(); 2].map(|()| Value::new(vec![0.0; rows * 3072]));
    for narrow in [false, true] {
        let work = table.product(2.0 * (rows * 768 * 3072) as f64, narrow);
        let width = in_width(narrow);
        table.row(&format!("product with bias and GELU 1024 x 768 -> 3072{width}"), work, || {
            let (a, b) = (Matrix::new(x.elements(narrow), rows, 768), Matrix::new(&weight, 3072, 768));
            let c = MatrixMut::new(out.elements_mut(narrow), rows, 3072);
            let write_back = WriteBack::BiasGelu { bias: &bias, before: before.elements_mut(narrow) };
            gemm(table.isa, &mut workspace, Form::NT, a, b, c, write_back);
        });
        table.row(&format!("product with GELU's gradient 1024 x 3072 <- 768{width}"), work, || {
            let (a, b) = (Matrix::new(d_out.elements(narrow), rows, 768), Matrix::new(&d_weight, 768, 3072));
            let c = MatrixMut::new(out.elements_mut(narrow), rows, 3072);
            let write_back = WriteBack::GeluGradient { before: before.elements(narrow) };
            gemm(table.isa, &mut workspace, Form::NN, a, b, c, write_back);
        });
    }
    let work = table.product(2.0 * (rows * 768 * 3072) as f64, false);
    let (mut d_weight, mut d_bias) = (vec![0.0; 768 * 3072], vec![0.0; 768]);
    table.row("products to weight and bias of a GELU 1024 x 3072 -> 768", work, || {
        let d_out = Matrix::new(d_out.elements(false), rows, 768);
        let before = Matrix::new(before.elements(false), rows, 3072);
        let c = MatrixMut::new(&mut d_weight, 768, 3072);
        let d_bias = SinkMut { values: &mut d_bias, add: false };
        weight_gradient(table.isa, &mut workspace, d_out, before, Activation::Gelu, c, false, d_bias);
    });
}

fn attentions(table: &Table) {
    let workspace = Workspace::new(rayon::current_num_threads());
    let stream = Stream { seed: 1, step: 0 };
    for (name, heads, size, sequences, length) in [
        ("base 32 x 128", 12, 64, 32, 128),
        ("base 16 x 128", 12, 64, 16, 128),
        ("base 8 x 512", 12, 64, 8, 512),
        ("minilm 32 x 128", 12, 32, 32, 128),
    ] {
        let (tokens, hidden) = (sequences * length, heads * size);
        let starts: Vec<u32> = (0..sequences).map(|s| (s * length) as u32).collect();
        let ends: Vec<u32> = starts.iter().map(|start| start + length as u32).collect();
        let bounds = Bounds { starts: &starts, ends: &ends };
        let [qkv, d_context] = [3, 1].map(|thirds| Value::new(numbers(tokens * thirds * hidden)));
        let [mut d_qkv, mut context] = [3, 1].map(|thirds| Value::new(vec![0.0; tokens * thirds * hidden]));
        let mut sums = vec![0.0; tokens * heads];
        let product = 2.0 * (sequences * length * length * hidden) as f64;
        let (isa, scratch) = (table.isa, workspace.scratch());
        for (with, dropout) in [("", 0.0), (", dropout", 0.1)] {
            for narrow in [false, true] {
                let (dropout, width) = (Dropout::new(dropout, 0), in_width(narrow));
                let qkv = Matrix::new(qkv.elements(narrow), tokens, 3 * hidden);
                table.row(
                    &format!("attention {name}{with}{width}"),
                    table.product(2.0 * product, narrow),
                    || {
                        let context = context.elements_mut(narrow);
                        attention::forward(
                            isa,
                            scratch,
                            stream,
                            dropout,
                            heads,
                            qkv,
                            bounds,
                            context,
                            Some(&mut sums),
                        );
                    },
                );
                let work = table.product(5.0 * product, narrow);
                table.row(&format!("attention gradient {name}{with}{width}"), work, || {
                    let (d_context, d_qkv) = (d_context.elements(narrow), d_qkv.elements_mut(narrow));
                    attention::backward(
                        isa, scratch, stream, dropout, heads, qkv, bounds, &sums, d_context, d_qkv,
                    );
                });
            }
        }
    }
}

fn rows(table: &Table) {
    let (rows, cols) = (4096, 768);
    let size = rows * cols;
    let isa = table.isa;
    let mut workspace = Workspace::new(rayon::current_num_threads());
    let stream = Stream { seed: 1, step: 0 };
    let keys: Vec<u32> = (0..rows as u32).collect();
    let drop = |probability| RowDropout { stream, dropout: Dropout::new(probability, 0), keys: Some(&keys) };
    let (x, residual) = (Value::new(numbers(size)), Value::new(numbers(size)));
    let (gamma, beta) = (numbers(cols), numbers(cols));
    let [mut y, mut normalized, mut d_x, mut d_residual] = [(); 4].map(|()| Value::new(vec![0.0; size]));
    let mut inverse_std = vec![0.0; rows];
    let (mut d_gamma, mut d_beta) = (vec![0.0; cols], vec![0.0; cols]);
    for (narrow, (with, probability)) in [false, true]
        .into_iter()
        .flat_map(|narrow| [("", 0.0), (", dropout", 0.1)].map(|with| (narrow, with)))
    {
        let (drop, width) = (drop(probability), in_width(narrow));
        let work = Work::elements(4 * size, narrow);
        table.row(&format!("add and norm {rows} x {cols}{with}{width}"), work, || {
            let (x, residual) = (x.elements(narrow), Some(residual.elements(narrow)));
            let input = AddNorm { x, residual, drop, gamma: &gamma, beta: &beta, epsilon: 1e-12 };
            let (y, normalized) = (y.elements_mut(narrow), normalized.elements_mut(narrow));
            let kept = KeptNorm { normalized, inverse_std: &mut inverse_std };
            add_norm(isa, workspace.scratch(), &input, y, Some(kept));
        });
        table.row(&format!("add and norm gradient {rows} x {cols}{with}{width}"), work, || {
            let (d_y, normalized) = (x.elements(narrow), normalized.elements(narrow));
            let input = AddNormGradient { d_y, normalized, inverse_std: &inverse_std, gamma: &gamma, drop };
            let d_x = d_x.elements_mut(narrow);
            let d_residual = ElementsSink { values: d_residual.elements_mut(narrow), add: false };
            let [d_gamma, d_beta] =
                [&mut d_gamma, &mut d_beta].map(|values| SinkMut { values: &mut values[..], add: false });
            add_norm_gradient(isa, &mut workspace, &input, d_x, Some(d_residual), d_gamma, d_beta);
        });
    }
    for narrow in [false, true] {
        let (name, work) =
            (format!("dropout 4096 x 768{}", in_width(narrow)), Work::elements(2 * size, narrow));
        table.row(&name, work, || {
            drop_rows(isa, drop(0.1), x.elements(narrow), cols, y.elements_mut(narrow));
        });
    }

    let size = 4096 * 3072;
    let (before, d_after) = (Value::new(numbers(size)), Value::new(numbers(size)));
    let mut after = Value::new(vec![0.0; size]);
    for narrow in [false, true] {
        let width = in_width(narrow);
        for (name, activation) in [("gelu", Activation::Gelu), ("gelu by tanh", Activation::GeluTanh)] {
            table.row(&format!("{name} 4096 x 3072{width}"), Work::elements(2 * size, narrow), || {
                activate(isa, activation, before.elements(narrow), after.elements_mut(narrow));
            });
            table.row(
                &format!("{name} gradient 4096 x 3072{width}"),
                Work::elements(3 * size, narrow),
                || {
                    let (before, d_after) = (before.elements(narrow), d_after.elements(narrow));
                    activate_gradient(isa, activation, before, d_after, after.elements_mut(narrow));
                },
            );
        }
    }
}

fn tables(table: &Table) {
    let (tokens, cols, vocabulary) = (4096, 768, 30522);
    let mut random = Random::new(3, [0, 0]);
    let ids: Vec<u32> = (0..tokens).map(|_| random.below(vocabulary as u32)).collect();
    let types = vec![0; tokens];
    let places: Vec<u32> = (0..tokens as u32).map(|t| ((t / 128) << 16) | (t % 128)).collect();
    let mut order: Vec<u32> = (0..tokens as u32).collect();
    order.sort_by_key(|&row| ids[row as usize]);
    let starts: Vec<u32> = (0..32).map(|s| s * 128).collect();
    let ends: Vec<u32> = starts.iter().map(|start| start + 128).collect();
    let bounds = Bounds { starts: &starts, ends: &ends };
    let index = Tokens { ids: &ids, types: &types, places: &places, order: &order, bounds };
    let (word, position, kind) = (numbers(vocabulary * cols), numbers(512 * cols), numbers(2 * cols));
    let (d_out, mut out) = (Value::new(numbers(tokens * cols)), Value::new(vec![0.0; tokens * cols]));
    let (mut d_word, mut d_position, mut d_kind) =
        (vec![0.0; vocabulary * cols], vec![0.0; 512 * cols], vec![0.0; 2 * cols]);
    for narrow in [false, true] {
        let width = in_width(narrow);
        // The tables are of f32.
        let bytes = Work::Bytes(4 * tokens * cols + element_bytes(narrow) * tokens * cols);
        table.row(&format!("embedding 4096 x 768{width}"), bytes, || {
            embed(table.isa, &index, cols, &word, &position, &kind, out.elements_mut(narrow));
        });
        let bytes = Work::Bytes(element_bytes(narrow) * tokens * cols + 4 * vocabulary * cols);
        table.row(&format!("embedding gradient 4096 x 768 into 30522 rows{width}"), bytes, || {
            let sink = |values| SinkMut { values, add: false };
            let sinks = (sink(&mut d_word), sink(&mut d_position), sink(&mut d_kind));
            let d_out = d_out.elements(narrow);
            embed_gradient(table.isa, &index, cols, d_out, sinks.0, sinks.1, sinks.2);
        });
    }

    let rows = 512;
    let (logits, mut d_logits) = (numbers(rows * vocabulary), vec![0.0; rows * vocabulary]);
    let labels: Vec<u32> = (0..rows).map(|_| random.below(vocabulary as u32)).collect();
    table.row("cross-entropy 512 x 30522", Work::Floats(rows * vocabulary), || {
        cross_entropy(table.isa, &logits, &labels, vocabulary);
    });
    table.row("cross-entropy gradient 512 x 30522", Work::Floats(2 * rows * vocabulary), || {
        cross_entropy_gradient(table.isa, &logits, &labels, vocabulary, 1.0, &mut d_logits);
    });
}

/// The loss of the masked words of 32 x 128 tokens (15 %), with logits of so many columns at a time.
fn vocabularies(table: &Table) {
    let (rows, inputs, words) = (614, 768, 30522);
    let mut workspace = Workspace::new(rayon::current_num_threads());
    let mut random = Random::new(5, [0, 0]);
    let (x, weight, bias) = (Value::new(numbers(rows * inputs)), numbers(words * inputs), numbers(words));
    let labels: Vec<u32> = (0..rows).map(|_| random.below(words as u32)).collect();
    let product = 2.0 * (rows * inputs * words) as f64;
    for (block, narrow) in [(1024, false), (2048, false), (4096, false), (4096, true)] {
        let (x, width) = (x.elements(narrow), in_width(narrow));
        let vocabulary = Vocabulary { x, weight: &weight, bias: &bias, labels: &labels };
        let (mut logits, mut softmax) = (vec![0.0; rows * block], vec![0.0; rows * STATISTICS]);
        let mut d_logits = vec![bf16::ZERO; rows * block];
        let [mut d_x, mut d_weight, mut d_bias] =
            [x.len(), weight.len(), bias.len()].map(|len| vec![0.0f32; len]);
        let work = table.product(product, narrow);
        table.row(&format!("vocabulary loss 614 x 768 x 30522 by {block}{width}"), work, || {
            vocabulary::forward(table.isa, &mut workspace, &vocabulary, &mut logits, &mut softmax);
        });
        let work = table.product(3.0 * product, narrow);
        table.row(&format!("vocabulary loss gradient by {block}{width}"), work, || {
            let [x, weight, bias] = [&mut d_x, &mut d_weight, &mut d_bias]
                .map(|values| SinkMut { values: &mut values[..], add: false });
            vocabulary::backward(
                table.isa,
                &mut workspace,
                &vocabulary,
                &softmax,
                1.0,
                &mut logits,
                narrow.then_some((&mut d_logits[..]).into()),
                x,
                weight,
                bias,
            );
        });
    }
}

fn updates(table: &Table) {
    let len = 22_000_000;
    let (mut parameters, gradients) = (numbers(len), numbers(len));
    let (mut first, mut second) = (vec![0.0; len], vec![0.0; len]);
    table.row("squared norm of 22 M gradients", Work::Floats(len), || {
        squared_norm(table.isa, &gradients);
    });
    for rule in Rule::ALL {
        let floats = match rule {
            Rule::Sgd => 5,
            // Parameters and moments are read once more.
            Rule::Lamb => 10,
            _ => 7,
        };
        let floats = Work::Floats(floats * len);
        table.row(&format!("{rule:?} of 22 M parameters, clipped"), floats, || {
            let group = Group {
                range: 0..len,
                learning_rate: 5e-5,
                weight_decay: 0.01,
                update: 7,
                zero_gradient: false,
            };
            let (first, second) = (&mut first, &mut second);
            let buffers = Buffers { parameters: &mut parameters, gradients: &gradients, first, second };
            update(table.isa, &Optimizer::new(rule), &group, 0.5, buffers);
        });
    }
}

/// Numbers in [-1, 1].
fn numbers(len: usize) -> Vec<f32> {
    let mut random = Random::new(4, [0, 0]);
    (0..len).map(|_| (f64::from(random.word()) / f64::from(u32::MAX) * 2.0 - 1.0) as f32).collect()
}
