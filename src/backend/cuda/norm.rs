//! Launches of layer normalization: of a sum, and of the embedding.

use bytemuck::{Pod, Zeroable};

use super::embedding::{Tables, Tokens};
use super::launch::{Address, DropoutSite, Launches, Operand, RowCount, Target, blocks};
use super::sums;
use crate::tensor::DType;

/// Threads of a block: of eight warps forward, four backward.
const FORWARD: u32 = 256;
const BACKWARD: u32 = 128;
/// The most blocks of the backward pass, each of which leaves a part of the columns' sums. Not by the device, so that
/// all devices have the same bits; three times the multiprocessors of most.
const PARTS: u32 = 384;
/// The widest rows.
const MOST_COLS: u32 = 4096;

/// The name of the variant for the operand's kind of element and the width.
macro_rules! kernels {
    ($name:literal, $operand:expr, $width:expr) => {
        match $width {
            Width::To512 => $operand.pick(concat!($name, "_bf16_512"), concat!($name, "_f32_512")),
            Width::To768 => $operand.pick(concat!($name, "_bf16_768"), concat!($name, "_f32_768")),
            Width::To1024 => $operand.pick(concat!($name, "_bf16_1024"), concat!($name, "_f32_1024")),
            Width::To4096 => $operand.pick(concat!($name, "_bf16_4096"), concat!($name, "_f32_4096")),
            Width::Any => $operand.pick(concat!($name, "_bf16_any"), concat!($name, "_f32_any")),
        }
    };
}

/// What [`forward`] reads and writes; shapes as in [`Op::AddNorm`](crate::tensor::Op::AddNorm).
#[derive(Clone, Copy, Debug)]
pub struct AddNorm {
    /// `[rows, cols]`
    pub x: Operand,
    /// `[rows, cols]`
    pub residual: Option<Operand>,
    /// f32 `[1, cols]`
    pub gamma: Operand,
    /// f32 `[1, cols]`
    pub beta: Operand,
    /// Added to the variance, inside the root.
    pub epsilon: f32,
    /// On `x`.
    pub dropout: DropoutSite,
    /// u32 `[rows]`
    pub keys: Address,
    /// `[rows, cols]`
    pub y: Operand,
    /// Where there is a backward pass.
    pub kept: Option<KeptNorm>,
}

/// What [`forward`] keeps for the backward pass.
#[derive(Clone, Copy, Debug)]
pub struct KeptNorm {
    /// `[rows, cols]`
    pub normalized: Operand,
    /// f32 `[rows, 1]`
    pub inverse_std: Operand,
}

/// The twin of `AddNorm` in `kernels/norm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AddNormArguments {
    step: Address,
    x: Address,
    residual: Address,
    gamma: Address,
    beta: Address,
    keys: Address,
    y: Address,
    normalized: Address,
    inverse_std: Address,
    rows: RowCount,
    dropout: DropoutSite,
    cols: u32,
    epsilon: f32,
    unused: u32,
}

/// `y = gamma * normalized(dropout(x) + residual) + beta`, and what the backward pass needs where there is one.
pub fn forward(launches: &mut Launches, op: &AddNorm) {
    let mut beside = vec![op.y];
    beside.extend(op.residual);
    beside.extend(op.kept.map(|kept| kept.normalized));
    let width = Width::new(op.x, &beside, &[op.gamma, op.beta]);
    let arguments = AddNormArguments {
        step: launches.step,
        x: op.x.address,
        residual: op.residual.map_or(0, |residual| residual.address),
        gamma: op.gamma.address,
        beta: op.beta.address,
        keys: op.keys,
        y: op.y.address,
        normalized: op.kept.map_or(0, |kept| kept.normalized.address),
        inverse_std: op.kept.map_or(0, |kept| kept.inverse_std.address),
        rows: op.x.rows,
        dropout: op.dropout,
        cols: op.x.cols,
        epsilon: op.epsilon,
        unused: 0,
    };
    let grid = [blocks(op.x.most_rows, width.rows_at_a_time(FORWARD)), 1, 1];
    launches.push(kernels!("add_norm", op.x, width), grid, FORWARD, SHARED, &arguments);
}

/// What [`forward_embedding`] reads and writes: [`Op::Embedding`](crate::tensor::Op::Embedding), an
/// [`Op::AddNorm`](crate::tensor::Op::AddNorm) of it without residual and dropout, and the
/// [`Op::Drop`](crate::tensor::Op::Drop) of that. The values between are not written: nothing else may read them.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingNorm {
    /// What each token is.
    pub tokens: Tokens,
    /// What is added up.
    pub tables: Tables,
    /// f32 `[1, cols]`
    pub gamma: Operand,
    /// f32 `[1, cols]`
    pub beta: Operand,
    /// Added to the variance, inside the root.
    pub epsilon: f32,
    /// On what comes out.
    pub dropout: DropoutSite,
    /// The rows' keys for the dropout, u32 `[tokens]`
    pub keys: Address,
    /// `[tokens, cols]`
    pub out: Operand,
    /// `[tokens, cols]`
    pub normalized: Operand,
    /// f32 `[tokens, 1]`
    pub inverse_std: Operand,
}

/// The twin of `EmbeddingNorm` in `kernels/norm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct EmbeddingNormArguments {
    step: Address,
    ids: Address,
    types: Address,
    places: Address,
    word: Address,
    position: Address,
    token_type: Address,
    gamma: Address,
    beta: Address,
    keys: Address,
    out: Address,
    normalized: Address,
    inverse_std: Address,
    rows: RowCount,
    dropout: DropoutSite,
    cols: u32,
    vocabulary: u32,
    positions: u32,
    token_types: u32,
    epsilon: f32,
}

/// `out = dropout(gamma * normalized(word[id] + position[place] + token_type[type]) + beta)`, and what the backward
/// passes need.
pub fn forward_embedding(launches: &mut Launches, op: &EmbeddingNorm) {
    let Tables { word, position, token_type } = op.tables;
    let width = Width::new(op.out, &[op.normalized, word, position, token_type], &[op.gamma, op.beta]);
    let arguments = EmbeddingNormArguments {
        step: launches.step,
        ids: op.tokens.ids,
        types: op.tokens.types,
        places: op.tokens.places,
        word: word.address,
        position: position.address,
        token_type: token_type.address,
        gamma: op.gamma.address,
        beta: op.beta.address,
        keys: op.keys,
        out: op.out.address,
        normalized: op.normalized.address,
        inverse_std: op.inverse_std.address,
        rows: op.out.rows,
        dropout: op.dropout,
        cols: op.out.cols,
        vocabulary: word.most_rows,
        positions: position.most_rows,
        token_types: token_type.most_rows,
        epsilon: op.epsilon,
    };
    let grid = [blocks(op.out.most_rows, width.rows_at_a_time(FORWARD)), 1, 1];
    launches.push(kernels!("embedding_norm", op.out, width), grid, FORWARD, SHARED, &arguments);
}

/// What [`backward`] reads and writes; shapes as in [`Op::AddNormGrad`](crate::tensor::Op::AddNormGrad).
#[derive(Clone, Copy, Debug)]
pub struct AddNormGrad {
    /// `[rows, cols]`
    pub d_y: Operand,
    /// `[rows, cols]`
    pub normalized: Operand,
    /// f32 `[rows, 1]`
    pub inverse_std: Operand,
    /// f32 `[1, cols]`
    pub gamma: Operand,
    /// As in the forward pass.
    pub dropout: DropoutSite,
    /// u32 `[rows]`
    pub keys: Address,
    /// `[rows, cols]`
    pub d_x: Operand,
    /// `[rows, cols]`
    pub d_residual: Option<Target>,
    /// f32 `[1, cols]`
    pub d_gamma: Target,
    /// f32 `[1, cols]`
    pub d_beta: Target,
}

/// The twin of `AddNormGrad` in `kernels/norm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AddNormGradArguments {
    step: Address,
    d_y: Address,
    normalized: Address,
    inverse_std: Address,
    gamma: Address,
    keys: Address,
    d_x: Address,
    d_residual: Address,
    partials: Address,
    rows: RowCount,
    dropout: DropoutSite,
    cols: u32,
    add_residual: u32,
    unused: u32,
}

/// The backward pass of [`forward`]: `d_residual` gets the gradient of the sum, `d_x` the same through the dropout.
pub fn backward(launches: &mut Launches, op: &AddNormGrad) {
    let mut beside = vec![op.normalized, op.d_x];
    beside.extend(op.d_residual.map(|target| target.operand));
    let width = Width::new(op.d_y, &beside, &[op.gamma]);
    let cols = op.d_y.cols as usize;
    let parts = blocks(op.d_y.most_rows, width.rows_at_a_time(BACKWARD)).min(PARTS);
    let partials = launches.scratch(parts as usize * 2 * cols * size_of::<f32>());
    let arguments = AddNormGradArguments {
        step: launches.step,
        d_y: op.d_y.address,
        normalized: op.normalized.address,
        inverse_std: op.inverse_std.address,
        gamma: op.gamma.address,
        keys: op.keys,
        d_x: op.d_x.address,
        d_residual: op.d_residual.map_or(0, |target| target.operand.address),
        partials,
        rows: op.d_y.rows,
        dropout: op.dropout,
        cols: op.d_y.cols,
        add_residual: op.d_residual.is_some_and(|target| target.add).into(),
        unused: 0,
    };
    // A row of f32 for each warp, where the block's rows come together.
    let shared =
        if width.fits_a_warp() { (BACKWARD / 32) as usize * cols * size_of::<f32>() } else { SHARED };
    launches.push(kernels!("add_norm_grad", op.d_y, width), [parts, 1, 1], BACKWARD, shared, &arguments);
    sums::finish(launches, partials, parts, &[op.d_gamma, op.d_beta]);
}

/// Bytes of shared memory for two sums of each of eight warps.
const SHARED: usize = 64;

/// Which of a kernel's variants takes rows of a width.
#[derive(Clone, Copy, PartialEq)]
enum Width {
    To512,
    To768,
    To1024,
    To4096,
    /// Without alignment, also up to 4096.
    Any,
}

impl Width {
    /// For matrices like `x`, and f32 rows beside them.
    fn new(x: Operand, beside: &[Operand], parameters: &[Operand]) -> Self {
        for operand in beside {
            assert_eq!((operand.dtype, operand.cols), (x.dtype, x.cols), "a matrix beside another");
        }
        for operand in parameters {
            assert_eq!((operand.dtype, operand.cols), (DType::F32, x.cols), "a row beside a matrix");
        }
        assert!(x.cols <= MOST_COLS, "layer normalization of {} columns", x.cols);
        let mut all = [beside, parameters, &[x]].concat().into_iter();
        match x.cols.div_ceil(256) {
            _ if !all.all(|operand| operand.has_whole_rows()) => Width::Any,
            0..=2 => Width::To512,
            3 => Width::To768,
            4 => Width::To1024,
            _ => Width::To4096,
        }
    }

    fn fits_a_warp(self) -> bool {
        matches!(self, Width::To512 | Width::To768 | Width::To1024)
    }

    /// Rows that a block of `threads` has at a time.
    fn rows_at_a_time(self, threads: u32) -> u32 {
        if self.fits_a_warp() { threads / 32 } else { 1 }
    }
}
