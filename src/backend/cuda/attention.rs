//! Attention's launches: `kernels/attention.cu` on tensor cores where it has the head size, else
//! `kernels/attention_f32.cu`; `hopper_attention` has those that come before both where they can.

use bytemuck::{Pod, Zeroable};

use super::hopper_attention;
use super::launch::{Address, DropoutSite, Launches, Operand, RowCount, blocks};
use crate::tensor::DType;

/// The largest head of the general kernels.
const LARGEST_HEAD: usize = 256;

/// The twin of `Input` in `kernels/attention.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Input {
    step: Address,
    places: Address,
    starts: Address,
    ends: Address,
    qkv: Address,
    rows: RowCount,
    heads: u32,
    hidden: u32,
    dropout: DropoutSite,
    scale: f32,
}

/// The twin of `Forward`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Forward {
    input: Input,
    context: Address,
    log_sum_exp: Address,
}

/// The twin of `Backward`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Backward {
    input: Input,
    log_sum_exp: Address,
    d_context: Address,
    d_qkv: Address,
    statistics: Address,
    stride: u32,
    unused: u32,
}

/// The kernels for one kind of element and head size, and how they are launched.
struct Kernels {
    /// Forward, the gradient of the queries, and those of keys and values.
    names: [&'static str; 3],
    /// Bytes of shared memory of each.
    shared: [usize; 3],
    threads: u32,
    /// Rows that a block owns.
    block_rows: u32,
}

impl Kernels {
    fn new(dtype: DType, head_size: usize) -> Self {
        match (dtype, head_size) {
            (DType::Bf16, 32) => Self::tensor_cores(
                ["attention_32", "attention_grad_queries_32", "attention_grad_keys_32"],
                32,
            ),
            (DType::Bf16, 64) => Self::tensor_cores(
                ["attention_64", "attention_grad_queries_64", "attention_grad_keys_64"],
                64,
            ),
            (DType::Bf16, 128) => Self::tensor_cores(
                ["attention_128", "attention_grad_queries_128", "attention_grad_keys_128"],
                128,
            ),
            (DType::Bf16, size) => Self::general(
                ["attention_bf16", "attention_grad_queries_bf16", "attention_grad_keys_bf16"],
                size,
            ),
            (DType::F32, size) => Self::general(
                ["attention_f32", "attention_grad_queries_f32", "attention_grad_keys_f32"],
                size,
            ),
            (DType::U32, _) => panic!("attention over words"),
        }
    }

    /// Those of `kernels/attention.cu`.
    fn tensor_cores(names: [&'static str; 3], head_size: usize) -> Self {
        let block_rows = 64;
        let tile = |rows: usize| rows * head_size * size_of::<u16>();
        let own = tile(block_rows);
        let queries = if head_size == 128 { 16 } else { 32 };
        let statistics = 2 * queries * size_of::<f32>();
        let shared =
            [own + 8 * tile(32), 2 * own + 8 * tile(32), 2 * own + 2 * (2 * tile(queries) + statistics)];
        Self { names, shared, threads: 128, block_rows: block_rows as u32 }
    }

    /// Those of `kernels/attention_f32.cu`.
    fn general(names: [&'static str; 3], head_size: usize) -> Self {
        assert!(
            head_size <= LARGEST_HEAD,
            "attention heads of {head_size} columns: more than {LARGEST_HEAD}"
        );
        let block_rows = 8;
        let own = block_rows * head_size;
        // Rows of an odd number of floats.
        let tiles = 2 * 32 * (head_size | 1);
        let shared = [own + tiles, 2 * own + tiles, 2 * own + tiles].map(|floats| floats * size_of::<f32>());
        Self { names, shared, threads: 256, block_rows: block_rows as u32 }
    }
}

/// Attends within each sequence: `context = dropout(softmax(q kᵀ / sqrt(head_size))) v`, head by head.
///
/// `qkv` is `[tokens, 3 * hidden]`; `places` `[tokens]`, `starts` and `ends` `[sequences]` say whose the rows are.
/// Writes `context` `[tokens, hidden]` and, where it is not 0, `log_sum_exp` `[tokens, heads]` in f32, the logarithm of
/// each softmax's denominator; zeros for rows that are nobody's.
#[allow(clippy::too_many_arguments)]
pub fn forward(
    launches: &mut Launches,
    qkv: Operand,
    places: Address,
    starts: Address,
    ends: Address,
    heads: usize,
    dropout: DropoutSite,
    context: Operand,
    log_sum_exp: Address,
) {
    let input = input(launches, qkv, [places, starts, ends], heads, dropout);
    assert_matches("context", context, qkv, input.hidden);
    let arguments = Forward { input, context: context.address, log_sum_exp };
    if let Some(lines) = hopper_attention::lines(launches, qkv, heads) {
        return hopper_attention::forward(launches, &lines, qkv, &arguments);
    }
    let kernels = Kernels::new(qkv.dtype, input.hidden as usize / heads);
    push(launches, &kernels, 0, qkv, heads, &arguments);
}

/// The gradient of [`forward`] with respect to `qkv`, from the gradient of the context. Stores all of `d_qkv`
/// `[tokens, 3 * hidden]`; the other arguments are those of the forward pass and what it wrote.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    launches: &mut Launches,
    qkv: Operand,
    places: Address,
    starts: Address,
    ends: Address,
    heads: usize,
    dropout: DropoutSite,
    log_sum_exp: Address,
    d_context: Operand,
    d_qkv: Operand,
) {
    let input = input(launches, qkv, [places, starts, ends], heads, dropout);
    assert_matches("d_context", d_context, qkv, input.hidden);
    assert_matches("d_qkv", d_qkv, qkv, qkv.cols);
    if let Some(lines) = hopper_attention::lines(launches, qkv, heads) {
        let arguments = hopper_attention::Backward { input, log_sum_exp, d_qkv: d_qkv.address };
        return hopper_attention::backward(launches, &lines, [qkv, d_context], &arguments);
    }
    let kernels = Kernels::new(qkv.dtype, input.hidden as usize / heads);
    // The kernels on tensor cores write the statistics of whole blocks.
    let stride = qkv.most_rows.next_multiple_of(kernels.block_rows);
    let statistics = launches.scratch(2 * heads * stride as usize * size_of::<f32>());
    let (d_context, d_qkv) = (d_context.address, d_qkv.address);
    let arguments = Backward { input, log_sum_exp, d_context, d_qkv, statistics, stride, unused: 0 };
    push(launches, &kernels, 1, qkv, heads, &arguments);
    push(launches, &kernels, 2, qkv, heads, &arguments);
}

/// What both directions read.
fn input(
    launches: &Launches,
    qkv: Operand,
    [places, starts, ends]: [Address; 3],
    heads: usize,
    dropout: DropoutSite,
) -> Input {
    let hidden = qkv.cols / 3;
    assert!(
        qkv.cols.is_multiple_of(3) && hidden.is_multiple_of(heads as u32),
        "attention of {heads} heads over {} columns",
        qkv.cols
    );
    let scale = 1.0 / (hidden as f32 / heads as f32).sqrt();
    let (step, qkv, rows, heads) = (launches.step, qkv.address, qkv.rows, heads as u32);
    Input { step, places, starts, ends, qkv, rows, heads, hidden, dropout, scale }
}

fn assert_matches(name: &str, operand: Operand, qkv: Operand, cols: u32) {
    assert_eq!((operand.dtype, operand.cols), (qkv.dtype, cols), "{name} of attention");
}

/// Pushes one of the kernels, with a block for each head and so many rows.
fn push<T: Pod>(
    launches: &mut Launches,
    kernels: &Kernels,
    which: usize,
    qkv: Operand,
    heads: usize,
    arguments: &T,
) {
    let grid = [heads as u32, blocks(qkv.most_rows, kernels.block_rows), 1];
    launches.push(kernels.names[which], grid, kernels.threads, kernels.shared[which], arguments);
}
