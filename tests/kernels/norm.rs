//! Layer normalization against the CPU's.

use mtdnn_raw::backend::cpu::SinkMut;
use mtdnn_raw::backend::cpu::dropout::{RowDropout, drop_rows};
use mtdnn_raw::backend::cpu::elements::ElementsSink;
use mtdnn_raw::backend::cpu::isa::Isa;
use mtdnn_raw::backend::cpu::norm as cpu;
use mtdnn_raw::backend::cpu::scratch::Workspace;
use mtdnn_raw::backend::cuda::embedding::Tables;
use mtdnn_raw::backend::cuda::launch::{DropoutSite, Operand, Target};
use mtdnn_raw::backend::cuda::norm::{self, AddNorm, AddNormGrad, EmbeddingNorm, KeptNorm};
use mtdnn_raw::tensor::{DType, Dropout, Rows};

use super::embedding::Batch;
use super::emulation::Emulation;
use super::support::{Bench, FLOATS, STREAM, assert_near, numbers};

const EPSILON: f32 = 1e-5;

#[derive(Clone, Copy, Debug)]
struct Case {
    rows: usize,
    cols: usize,
    dtype: DType,
    residual: bool,
    dropout: Dropout,
    /// Whether gradients are added to something.
    add: bool,
    /// Whether gamma, beta and their gradients lie at no multiple of 16.
    odd_parameters: bool,
}

/// Every variant of the kernels, with rows more and fewer than blocks have at a time.
fn cases() -> Vec<Case> {
    let shapes = [
        (1, 8),
        (9, 3),
        (5, 1),
        (7, 24),
        (63, 136),
        (65, 384),
        (20, 512),
        (129, 768),
        (127, 1024),
        (3, 1032),
        (2, 4096),
        (2, 4091),
        (300, 24),
        (1700, 8),
        (450, 3),
        (450, 1032),
    ];
    let mut cases = Vec::new();
    for (i, (rows, cols)) in shapes.into_iter().enumerate() {
        for dtype in FLOATS {
            // What needs many rows needs them once.
            for variant in if rows * cols > 50_000 { i..i + 1 } else { 0..4 } {
                let (residual, add) = (variant % 2 == 1, variant % 4 >= 2);
                let dropout = Dropout::new(if variant % 4 == 1 || variant % 4 == 2 { 0.3 } else { 0.0 }, 3);
                cases.push(Case { rows, cols, dtype, residual, dropout, add, odd_parameters: variant == 3 });
            }
        }
    }
    cases
}

impl Case {
    fn keys(&self) -> Vec<u32> {
        (0..self.rows as u32).map(|row| row << 16 | (3 * row + 1)).collect()
    }

    fn parameter(&self, bench: &mut Bench, name: &str, values: &[f32]) -> Operand {
        match self.odd_parameters {
            true => bench.parameter(name, DType::F32, self.cols, values),
            false => bench.value(name, DType::F32, Rows::Fixed(1), self.cols, values),
        }
    }
}

fn workspace() -> Workspace {
    Workspace::new(rayon::current_num_threads())
}

#[test]
fn forward_is_the_cpus() {
    let Some(emulation) = Emulation::get() else { return };
    for case in cases() {
        let Case { rows, cols, dtype, dropout, .. } = case;
        let x: Vec<f32> = numbers(1, dtype, rows * cols);
        let residual = case.residual.then(|| numbers(2, dtype, rows * cols));
        let (gamma, beta) = (numbers(3, DType::F32, cols), numbers(4, DType::F32, cols));
        let keys = case.keys();
        let drop = RowDropout { stream: STREAM, dropout, keys: Some(&keys) };
        let input = cpu::AddNorm {
            x: (&x).into(),
            residual: residual.as_ref().map(Into::into),
            drop,
            gamma: &gamma,
            beta: &beta,
            epsilon: EPSILON,
        };
        let [mut y, mut normalized] = [0; 2].map(|_| vec![0.0; rows * cols]);
        let mut inverse_std = vec![0.0; rows];
        let (isa, workspace) = (Isa::detect(), workspace());
        let [of_y, of_normalized] = [&mut y, &mut normalized].map(Into::into);
        let kept = cpu::KeptNorm { normalized: of_normalized, inverse_std: &mut inverse_std };
        cpu::add_norm(isa, workspace.scratch(), &input, of_y, Some(kept));

        let mut bench = Bench::of_tokens(rows);
        let kept = KeptNorm {
            normalized: bench.output("normalized", dtype, Rows::Tokens, cols),
            inverse_std: bench.output("inverse_std", DType::F32, Rows::Tokens, 1),
        };
        let op = AddNorm {
            x: bench.value("x", dtype, Rows::Tokens, cols, &x),
            residual: residual.map(|values| bench.value("residual", dtype, Rows::Tokens, cols, &values)),
            gamma: case.parameter(&mut bench, "gamma", &gamma),
            beta: case.parameter(&mut bench, "beta", &beta),
            epsilon: EPSILON,
            dropout: DropoutSite::new(dropout),
            keys: bench.memory.words("keys", &keys),
            y: bench.output("y", dtype, Rows::Tokens, cols),
            kept: Some(kept),
        };
        let alone = AddNorm { y: bench.output("y alone", dtype, Rows::Tokens, cols), kept: None, ..op };
        bench.run(emulation, |launches| {
            norm::forward(launches, &op);
            norm::forward(launches, &alone);
        });
        assert_near(&case, DType::F32, &bench.read(kept.inverse_std), &inverse_std, 3e-6);
        assert_near(&case, dtype, &bench.read(kept.normalized), &normalized, 3e-6);
        assert_near(&case, dtype, &bench.read(op.y), &y, 3e-6);
        assert_eq!(bench.read(alone.y), bench.read(op.y), "{case:?}: nothing is kept");
    }
}

#[test]
fn backward_is_the_cpus() {
    let Some(emulation) = Emulation::get() else { return };
    for case in cases() {
        let Case { rows, cols, dtype, dropout, add, .. } = case;
        let (d_y, normalized) = (numbers(1, dtype, rows * cols), numbers(2, dtype, rows * cols));
        let inverse_std: Vec<f32> = numbers(3, DType::F32, rows).iter().map(|x| 1.5 + x).collect();
        let gamma = numbers(4, DType::F32, cols);
        let before = numbers(5, dtype, rows * cols);
        let [before_gamma, before_beta] = [6, 7].map(|seed| numbers(seed, DType::F32, cols));
        let keys = case.keys();
        let drop = RowDropout { stream: STREAM, dropout, keys: Some(&keys) };
        let input = cpu::AddNormGradient {
            d_y: (&d_y).into(),
            normalized: (&normalized).into(),
            inverse_std: &inverse_std,
            gamma: &gamma,
            drop,
        };
        let mut d_x = vec![0.0; rows * cols];
        let [mut d_residual, mut d_gamma, mut d_beta] =
            [&before, &before_gamma, &before_beta].map(Vec::clone);
        let sink = |values| SinkMut { values, add };
        cpu::add_norm_gradient(
            Isa::detect(),
            &mut workspace(),
            &input,
            (&mut d_x).into(),
            case.residual.then_some(ElementsSink { values: (&mut d_residual).into(), add }),
            sink(&mut d_gamma),
            sink(&mut d_beta),
        );

        let mut bench = Bench::of_tokens(rows);
        let before = add.then_some(&before[..]);
        let op = AddNormGrad {
            d_y: bench.value("d_y", dtype, Rows::Tokens, cols, &d_y),
            normalized: bench.value("normalized", dtype, Rows::Tokens, cols, &normalized),
            inverse_std: bench.value("inverse_std", DType::F32, Rows::Tokens, 1, &inverse_std),
            gamma: case.parameter(&mut bench, "gamma", &gamma),
            dropout: DropoutSite::new(dropout),
            keys: bench.memory.words("keys", &keys),
            d_x: bench.output("d_x", dtype, Rows::Tokens, cols),
            d_residual: case.residual.then(|| bench.target("d_residual", dtype, Rows::Tokens, cols, before)),
            d_gamma: Target { operand: case.parameter(&mut bench, "d_gamma", &before_gamma), add },
            d_beta: Target { operand: case.parameter(&mut bench, "d_beta", &before_beta), add },
        };
        bench.run(emulation, |launches| norm::backward(launches, &op));
        assert_near(&case, dtype, &bench.read(op.d_x), &d_x, 3e-6);
        if let Some(target) = op.d_residual {
            assert_near(&case, dtype, &bench.read(target.operand), &d_residual, 3e-6);
        }
        // Sums of up to 1700 numbers.
        assert_near(&case, DType::F32, &bench.read(op.d_gamma.operand), &d_gamma, 2e-5);
        assert_near(&case, DType::F32, &bench.read(op.d_beta.operand), &d_beta, 2e-5);
    }
}

#[test]
fn the_embedding_is_normalized_in_one_go() {
    let Some(emulation) = Emulation::get() else { return };
    for (i, (tokens, cols)) in
        [(1, 8), (65, 3), (129, 384), (63, 768), (20, 1024), (5, 1032)].into_iter().enumerate()
    {
        for dtype in FLOATS {
            let batch = Batch::new(tokens);
            let what = (tokens, cols, dtype);
            let tables = batch.tables(dtype, cols);
            let (gamma, beta) = (numbers(3, DType::F32, cols), numbers(4, DType::F32, cols));
            let dropout = Dropout::new(if i % 2 == 0 { 0.3 } else { 0.0 }, 5);
            let embedded = batch.embed(&tables, cols);
            let off = RowDropout { stream: STREAM, dropout: Dropout::new(0.0, 0), keys: None };
            let input = cpu::AddNorm {
                x: (&embedded).into(),
                residual: None,
                drop: off,
                gamma: &gamma,
                beta: &beta,
                epsilon: EPSILON,
            };
            let [mut y, mut normalized, mut out] = [0; 3].map(|_| vec![0.0; tokens * cols]);
            let mut inverse_std = vec![0.0; tokens];
            let (isa, workspace) = (Isa::detect(), workspace());
            let [of_y, of_normalized] = [&mut y, &mut normalized].map(Into::into);
            let kept = cpu::KeptNorm { normalized: of_normalized, inverse_std: &mut inverse_std };
            cpu::add_norm(isa, workspace.scratch(), &input, of_y, Some(kept));
            let drop = RowDropout { stream: STREAM, dropout, keys: Some(&batch.places) };
            drop_rows(isa, drop, (&y).into(), cols, (&mut out).into());

            let mut bench = Bench::new(batch.extents());
            let at = batch.write(&mut bench);
            let [word, position, token_type] = batch.write_tables(&mut bench, dtype, cols, &tables);
            let op = EmbeddingNorm {
                tokens: at,
                tables: Tables { word, position, token_type },
                gamma: bench.value("gamma", DType::F32, Rows::Fixed(1), cols, &gamma),
                beta: bench.value("beta", DType::F32, Rows::Fixed(1), cols, &beta),
                epsilon: EPSILON,
                dropout: DropoutSite::new(dropout),
                keys: at.places,
                out: bench.output("out", dtype, Rows::Tokens, cols),
                normalized: bench.output("normalized", dtype, Rows::Tokens, cols),
                inverse_std: bench.output("inverse_std", DType::F32, Rows::Tokens, 1),
            };
            bench.run(emulation, |launches| norm::forward_embedding(launches, &op));
            assert_near(&what, DType::F32, &bench.read(op.inverse_std), &inverse_std, 3e-6);
            assert_near(&what, dtype, &bench.read(op.normalized), &normalized, 3e-6);
            assert_near(&what, dtype, &bench.read(op.out), &out, 3e-6);
        }
    }
}
