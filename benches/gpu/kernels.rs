//! The rows of kernels, at the shapes of BERT-base and MiniLM-L6 and at those that other libraries are measured at.

use mtdnn_raw::backend::BackendError;
use mtdnn_raw::backend::cuda::embedding::{Tables, Tokens};
use mtdnn_raw::backend::cuda::gemm::{Epilogue, Form, column_sums, product};
use mtdnn_raw::backend::cuda::launch::{Address, DropoutSite, Target};
use mtdnn_raw::backend::cuda::norm::{AddNorm, AddNormGrad, EmbeddingNorm, KeptNorm};
use mtdnn_raw::backend::cuda::update::{Buffers, Clip, UpdateGroup};
use mtdnn_raw::backend::cuda::vocabulary::{Gradients, Vocabulary};
use mtdnn_raw::backend::cuda::{
    activation, attention, elementwise, embedding, loss, norm, update, vocabulary,
};
use mtdnn_raw::backend::{Group, Optimizer, Rule};
use mtdnn_raw::random::Random;
use mtdnn_raw::tensor::{Activation, Dropout, LINE};

use super::table::{Bench, Set, Work, large_flops, large_product};

const VOCABULARY: usize = 30522;

fn site(probability: f32) -> DropoutSite {
    DropoutSite::new(Dropout::new(probability, 0))
}

/// The keys of rows for dropout.
fn keys(set: &mut Set, rows: usize) -> Address {
    set.words(&(0..rows as u32).collect::<Vec<_>>())
}

/// Each form with what a layer does as it is written.
pub fn products(bench: &mut Bench) -> Result<(), BackendError> {
    bench.row("product bf16 8192^3, our limit", Work::Flops(large_flops()), large_product)?;
    for rows in [4096, 32768] {
        for (k, n) in [(768, 2304), (768, 768), (768, 3072), (3072, 768), (384, 1536)] {
            let flops = Work::Flops(2.0 * (rows * k * n) as f64);
            bench.row(&format!("product NT, bias, {rows} x {k} -> {n}"), flops, |set, launches| {
                let (a, b, c) = (set.bf16(rows, k), set.bf16(n, k), set.bf16(rows, n));
                let bias = set.f32(1, n).address;
                product(launches, Form::NT, a, b, c, Epilogue::Bias(bias));
            })?;
            bench.row(&format!("product NN, {rows} x {n} -> {k}"), flops, |set, launches| {
                let (a, b, c) = (set.bf16(rows, n), set.bf16(n, k), set.bf16(rows, k));
                product(launches, Form::NN, a, b, c, Epilogue::Store);
            })?;
            bench.row(&format!("product TN, weight {n} x {k} of {rows} rows"), flops, |set, launches| {
                let (a, b, c) = (set.bf16(rows, n), set.bf16(rows, k), set.f32(n, k));
                product(launches, Form::TN, a, b, c, Epilogue::Store);
            })?;
        }
        let flops = Work::Flops(2.0 * (rows * 768 * 3072) as f64);
        let gelu = Activation::Gelu;
        bench.row(&format!("product NT, bias and GELU, {rows} x 768 -> 3072"), flops, |set, launches| {
            let (a, b, c) = (set.bf16(rows, 768), set.bf16(3072, 768), set.bf16(rows, 3072));
            let (bias, before) = (set.f32(1, 3072).address, set.bf16(rows, 3072).address);
            let epilogue = Epilogue::BiasActivation { bias, activation: gelu, before };
            product(launches, Form::NT, a, b, c, epilogue);
        })?;
        let name = format!("product NT, bias, dropout, residual, {rows} x 3072 -> 768");
        bench.row(&name, flops, |set, launches| {
            let (a, b, c) = (set.bf16(rows, 3072), set.bf16(768, 3072), set.bf16(rows, 768));
            let (bias, residual) = (set.f32(1, 768).address, set.bf16(rows, 768).address);
            let keys = keys(set, rows);
            let epilogue = Epilogue::BiasDropoutResidual { bias, dropout: site(0.1), keys, residual };
            product(launches, Form::NT, a, b, c, epilogue);
        })?;
        let name = format!("product NN, GELU's gradient, bias gradient, {rows} x 768 -> 3072");
        bench.row(&name, flops, |set, launches| {
            let (a, b, c) = (set.bf16(rows, 768), set.bf16(768, 3072), set.bf16(rows, 3072));
            let (before, d_bias) = (set.bf16(rows, 3072).address, set.f32(1, 3072).address);
            let epilogue = Epilogue::ActivationGradient { activation: gelu, before, d_bias, add: false };
            product(launches, Form::NN, a, b, c, epilogue);
        })?;
        bench.row(&format!("column sums, {rows} x 3072"), Work::Operands, |set, launches| {
            let (x, out) = (set.bf16(rows, 3072), set.f32(1, 3072));
            column_sums(launches, x, out.address, false);
        })?;
    }
    Ok(())
}

/// Sequences of one length, side by side.
pub fn attentions(bench: &mut Bench) -> Result<(), BackendError> {
    for (sequences, heads, length, size) in [(32, 12, 128, 64), (64, 12, 512, 64), (32, 12, 128, 32)] {
        let (rows, hidden, in_lines) = (sequences * length, heads * size, LINE.is_multiple_of(length));
        let place = |row: usize| ((row / length) << 16) | (row % length);
        let places: Vec<u32> = (0..rows).map(|row| place(row) as u32).collect();
        let starts: Vec<u32> = (0..sequences).map(|sequence| (sequence * length) as u32).collect();
        let ends: Vec<u32> = starts.iter().map(|start| start + length as u32).collect();
        let flops = 4.0 * (rows * length * hidden) as f64;
        for probability in [0.0, 0.1] {
            let shape = format!("{sequences} x {heads} heads, {length} x {size}, dropout {probability}");
            bench.row(&format!("attention, {shape}"), Work::Flops(flops), |set, launches| {
                (set.sequences, launches.extents.in_lines) = (sequences as u32, in_lines);
                let (qkv, context) = (set.bf16(rows, 3 * hidden), set.bf16(rows, hidden));
                let [places, starts, ends] = [&places, &starts, &ends].map(|words| set.words(words));
                let sums = set.f32(rows, heads).address;
                let dropout = site(probability);
                attention::forward(launches, qkv, places, starts, ends, heads, dropout, context, sums);
            })?;
            bench.row(
                &format!("attention gradient, {shape}"),
                Work::Flops(2.5 * flops),
                |set, launches| {
                    (set.sequences, launches.extents.in_lines) = (sequences as u32, in_lines);
                    let (qkv, d_qkv) = (set.bf16(rows, 3 * hidden), set.bf16(rows, 3 * hidden));
                    let d_context = set.bf16(rows, hidden);
                    let [places, starts, ends] = [&places, &starts, &ends].map(|words| set.words(words));
                    let sums = set.f32(rows, heads).address;
                    let dropout = site(probability);
                    attention::backward(
                        launches, qkv, places, starts, ends, heads, dropout, sums, d_context, d_qkv,
                    );
                },
            )?;
        }
    }
    Ok(())
}

/// What goes row by row or element by element.
pub fn rows(bench: &mut Bench) -> Result<(), BackendError> {
    for (rows, cols, probability) in
        [(4096, 768, 0.1), (4096, 384, 0.1), (32768, 768, 0.1), (32768, 1024, 0.0)]
    {
        let adds = probability > 0.0;
        let with = if adds { ", dropout and residual" } else { "" };
        bench.row(&format!("norm, {rows} x {cols}{with}"), Work::Operands, |set, launches| {
            let op = AddNorm {
                x: set.bf16(rows, cols),
                residual: adds.then(|| set.bf16(rows, cols)),
                gamma: set.f32(1, cols),
                beta: set.f32(1, cols),
                epsilon: 1e-12,
                dropout: site(probability),
                keys: keys(set, rows),
                y: set.bf16(rows, cols),
                kept: Some(KeptNorm { normalized: set.bf16(rows, cols), inverse_std: set.f32(rows, 1) }),
            };
            norm::forward(launches, &op);
        })?;
        bench.row(&format!("norm gradient, {rows} x {cols}{with}"), Work::Operands, |set, launches| {
            let target = |operand| Target { operand, add: false };
            let op = AddNormGrad {
                d_y: set.bf16(rows, cols),
                normalized: set.bf16(rows, cols),
                inverse_std: set.f32(rows, 1),
                gamma: set.f32(1, cols),
                dropout: site(probability),
                keys: keys(set, rows),
                d_x: set.bf16(rows, cols),
                d_residual: adds.then(|| target(set.bf16(rows, cols))),
                d_gamma: target(set.f32(1, cols)),
                d_beta: target(set.f32(1, cols)),
            };
            norm::backward(launches, &op);
        })?;
    }
    bench.row("dropout, 32768 x 768", Work::Operands, |set, launches| {
        let (x, out, keys) = (set.bf16(32768, 768), set.bf16(32768, 768), keys(set, 32768));
        elementwise::drop_rows(launches, x, keys, site(0.1), out);
    })?;
    let gelu = Activation::Gelu;
    bench.row("GELU, 32768 x 4096", Work::Operands, |set, launches| {
        let (before, out) = (set.bf16(32768, 4096), set.bf16(32768, 4096));
        activation::forward(launches, gelu, before, out);
    })?;
    bench.row("GELU gradient, 32768 x 4096", Work::Operands, |set, launches| {
        let [before, d_after, d_before] = [(); 3].map(|()| set.bf16(32768, 4096));
        activation::backward(launches, gelu, before, d_after, d_before);
    })
}

/// What reads or writes rows of the vocabulary: embeddings, and the loss of a prediction over it.
pub fn tables(bench: &mut Bench) -> Result<(), BackendError> {
    let (rows, cols, length) = (4096, 768, 128);
    let mut random = Random::new(3, [0, 0]);
    let ids: Vec<u32> = (0..rows).map(|_| random.below(VOCABULARY as u32)).collect();
    let mut order: Vec<u32> = (0..rows as u32).collect();
    order.sort_by_key(|&row| (ids[row as usize], row));
    let types: Vec<u32> = (0..rows).map(|row| u32::from(row % length > length / 2)).collect();
    let places: Vec<u32> = (0..rows).map(|row| (((row / length) << 16) | (row % length)) as u32).collect();
    let starts: Vec<u32> = (0..rows as u32).step_by(length).collect();
    let ends: Vec<u32> = starts.iter().map(|start| start + length as u32).collect();
    let tokens = |set: &mut Set| {
        set.sequences = starts.len() as u32;
        Tokens {
            ids: set.words(&ids),
            types: set.words(&types),
            places: set.words(&places),
            order: set.words(&order),
            starts: set.words(&starts),
            ends: set.words(&ends),
        }
    };
    // A row of the word table, which is not in the cache, and what is written.
    let moved = |written: usize| Work::Bytes(((1 + written) * rows * cols * 2) as f64);
    bench.row(&format!("embedding, norm and dropout, {rows} x {cols}"), moved(2), |set, launches| {
        let op = EmbeddingNorm {
            tokens: tokens(set),
            tables: Tables {
                word: set.bf16(VOCABULARY, cols),
                position: set.bf16(512, cols),
                token_type: set.bf16(2, cols),
            },
            gamma: set.f32(1, cols),
            beta: set.f32(1, cols),
            epsilon: 1e-12,
            dropout: site(0.1),
            keys: keys(set, rows),
            out: set.bf16(rows, cols),
            normalized: set.bf16(rows, cols),
            inverse_std: set.f32(rows, 1),
        };
        norm::forward_embedding(launches, &op);
    })?;
    // Most of it is the zeroing of rows that no token uses.
    bench.row(&format!("embedding gradient, {rows} x {cols}"), Work::Operands, |set, launches| {
        let (tokens, d_out) = (tokens(set), set.bf16(rows, cols));
        let [d_word, d_position, d_token_type] =
            [VOCABULARY, 512, 2].map(|rows| Target { operand: set.f32(rows, cols), add: false });
        embedding::backward(launches, &tokens, d_out, d_word, d_position, d_token_type);
    })?;
    bench.row(&format!("cross-entropy, {rows} x {VOCABULARY}"), Work::Operands, |set, launches| {
        let (logits, loss) = (set.f32(rows, VOCABULARY), set.f32(1, 1));
        loss::cross_entropy(launches, logits, set.words(&ids), loss);
    })?;
    bench.row(
        &format!("cross-entropy gradient, {rows} x {VOCABULARY}"),
        Work::Operands,
        |set, launches| {
            let (logits, d_logits) = (set.f32(rows, VOCABULARY), set.f32(rows, VOCABULARY));
            let d_loss = set.f32(1, 1);
            loss::cross_entropy_gradient(launches, logits, set.words(&ids), d_loss, d_logits);
        },
    )?;
    // Of 32768 tokens 15 %; the logits are computed forward and again backward, and two products make gradients of them.
    let (rows, block) = (4915, 2048);
    let labels: Vec<u32> = (0..rows).map(|_| random.below(VOCABULARY as u32)).collect();
    let flops = Work::Flops(4.0 * 2.0 * (rows * cols * VOCABULARY) as f64);
    let name = format!("vocabulary loss, forward and backward, {rows} x {cols} x {VOCABULARY}");
    bench.row(&name, flops, |set, launches| {
        let map = Vocabulary {
            x: set.bf16(rows, cols),
            weight: set.bf16(VOCABULARY, cols),
            bias: set.f32(1, VOCABULARY),
            labels: set.words(&labels),
            logits: set.f32(rows, block),
            softmax: set.f32(rows, 3),
        };
        let [loss, accuracy, d_loss] = [(); 3].map(|()| set.f32(1, 1));
        let target = |operand| Target { operand, add: false };
        let gradients = Gradients {
            d_logits: Some(set.bf16(rows, block)),
            d_x: target(set.bf16(rows, cols)),
            d_weight: target(set.f32(VOCABULARY, cols)),
            d_bias: target(set.f32(1, VOCABULARY)),
        };
        vocabulary::forward(launches, &map, loss, accuracy);
        vocabulary::backward(launches, &map, d_loss, &gradients);
    })
}

/// An update of all of BERT-base, the norm of the gradient included.
pub fn updates(bench: &mut Bench) -> Result<(), BackendError> {
    let len = 110_000_000;
    for (name, rule) in [("Adamax", Rule::Adamax), ("AdamW", Rule::AdamW), ("LAMB", Rule::Lamb)] {
        let optimizer = Optimizer::new(rule);
        let group =
            Group { range: 0..len, learning_rate: 5e-5, weight_decay: 0.0, update: 9, zero_gradient: false };
        let groups = UpdateGroup::array(&optimizer, &[group], 16);
        // The gradient twice, the rest read and written, and the copy; by LAMB parameters and moments once more.
        let again = if rule == Rule::Lamb { 3 * 4 } else { 0 };
        let moved = Work::Bytes((len * (2 * 4 + 3 * 8 + 2 + again)) as f64);
        bench.row(&format!("{name} and clipping, 110 M parameters"), moved, |set, launches| {
            let [parameters, gradients, first, second] = [(); 4].map(|()| set.f32(1, len).address);
            let buffers = Buffers {
                len,
                parameters,
                gradients,
                first,
                second,
                copy: set.bf16(1, len).address,
                groups: set.words(bytemuck::cast_slice(&groups)),
                slots: groups.len() as u32,
                clip: set.words(&[0; size_of::<Clip>() / 4]),
            };
            update::update(launches, &optimizer, 1.0, &buffers);
        })?;
    }
    bench.row("copy of parameters in bf16, 110 M", Work::Operands, |set, launches| {
        let (from, to) = (set.f32(1, len), set.bf16(1, len));
        elementwise::round_to_bf16(launches, from.address, to.address, len as u32);
    })
}
