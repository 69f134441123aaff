//! Launches of one query a sequence over the tokens of one of its texts: `kernels/attend.cu`.

use bytemuck::{Pod, Zeroable};

use super::elementwise::fill;
use super::launch::{Address, Launches, Operand, Target, blocks};
use super::sums;
use crate::tensor::DType;

/// Threads of a block, and its bytes of shared memory: a softmax or a sum a warp.
const THREADS: u32 = 256;
const SHARED: usize = 128;
/// Rows that a block of the shared query's gradient sums.
const PART_ROWS: u32 = 64;

/// What is attended to, and by what; shapes as in [`Op::Attend`](crate::tensor::Op::Attend).
#[derive(Clone, Copy, Debug)]
pub struct Attended {
    /// `[tokens, cols]`
    pub keys: Operand,
    /// `[tokens, cols]`
    pub values: Operand,
    /// `[sequences, cols]` or `[1, cols]`, of the same kind of element.
    pub query: Operand,
    /// Whether all sequences have the same query.
    pub shared_query: bool,
    /// u32 `[sequences]`
    pub starts: Address,
    /// u32 `[sequences]`
    pub ends: Address,
    /// f32 `[tokens, 1]`
    pub weights: Operand,
}

/// The twin of `Attend` in `kernels/attend.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Attend {
    step: Address,
    keys: Address,
    values: Address,
    query: Address,
    types: Address,
    starts: Address,
    ends: Address,
    weights: Address,
    out: Address,
    cols: u32,
    segment: u32,
    shared_query: u32,
    unused: u32,
}

impl Attended {
    fn assert_fits(&self, other: Operand) {
        let kinds = [self.keys, self.values, self.query].map(|operand| (operand.dtype, operand.cols));
        assert_eq!(kinds, [(other.dtype, other.cols); 3], "keys, values and query beside {other:?}");
        assert_eq!(self.weights.dtype, DType::F32, "weights");
    }
}

/// `out = sum over j of softmax_j(keys_j · query) values_j` over each sequence's tokens whose type is `segment`; `types`
/// is u32 `[tokens]`. Writes the weights, too.
pub fn forward(launches: &mut Launches, attended: &Attended, types: Address, segment: u32, out: Operand) {
    attended.assert_fits(out);
    fill(launches, attended.weights, 0.0);
    let arguments = Attend {
        step: launches.step,
        keys: attended.keys.address,
        values: attended.values.address,
        query: attended.query.address,
        types,
        starts: attended.starts,
        ends: attended.ends,
        weights: attended.weights.address,
        out: out.address,
        cols: out.cols,
        segment,
        shared_query: attended.shared_query.into(),
        unused: 0,
    };
    let grid = [out.most_rows.max(1), 1, 1];
    launches.push(out.pick("attend_bf16", "attend_f32"), grid, THREADS, SHARED, &arguments);
}

/// Where the gradients go.
#[derive(Clone, Copy, Debug)]
pub struct Gradients {
    /// f32 `[tokens, 1]`, stored.
    pub d_scores: Operand,
    /// `[tokens, cols]`
    pub d_keys: Target,
    /// `[tokens, cols]`; absent where the keys are the values, and then part of `d_keys`.
    pub d_values: Option<Target>,
    /// `[sequences, cols]`, or f32 `[1, cols]` where all sequences have the same query.
    pub d_query: Target,
}

/// The twin of `AttendGrad` in `kernels/attend.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AttendGrad {
    step: Address,
    keys: Address,
    values: Address,
    query: Address,
    starts: Address,
    ends: Address,
    weights: Address,
    d_out: Address,
    d_scores: Address,
    d_keys: Address,
    d_values: Address,
    d_query: Address,
    cols: u32,
    add_to_keys: u32,
    add_to_values: u32,
    add_to_query: u32,
}

/// The twin of `QueryGrad` in `kernels/attend.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct QueryGrad {
    step: Address,
    keys: Address,
    d_scores: Address,
    partials: Address,
    cols: u32,
    unused: u32,
}

/// The gradients of [`forward`], from that of `out` and the weights that it wrote.
pub fn backward(launches: &mut Launches, attended: &Attended, d_out: Operand, gradients: &Gradients) {
    attended.assert_fits(d_out);
    let Gradients { d_scores, d_keys, d_values, d_query } = *gradients;
    for target in [Some(d_keys), d_values].into_iter().flatten() {
        attended.assert_fits(target.operand);
        if !target.add {
            fill(launches, target.operand, 0.0);
        }
    }
    fill(launches, d_scores, 0.0);
    let adds = |target: Target| u32::from(target.add);
    let arguments = AttendGrad {
        step: launches.step,
        keys: attended.keys.address,
        values: attended.values.address,
        query: attended.query.address,
        starts: attended.starts,
        ends: attended.ends,
        weights: attended.weights.address,
        d_out: d_out.address,
        d_scores: d_scores.address,
        d_keys: d_keys.operand.address,
        d_values: d_values.map_or(0, |target| target.operand.address),
        d_query: if attended.shared_query { 0 } else { d_query.operand.address },
        cols: d_out.cols,
        add_to_keys: adds(d_keys),
        add_to_values: d_values.map_or(0, adds),
        add_to_query: adds(d_query),
    };
    let grid = [d_out.most_rows.max(1), 1, 1];
    launches.push(d_out.pick("attend_grad_bf16", "attend_grad_f32"), grid, THREADS, SHARED, &arguments);
    if !attended.shared_query {
        attended.assert_fits(d_query.operand);
        return;
    }
    let (keys, parts) = (attended.keys, blocks(attended.keys.most_rows, PART_ROWS));
    let partials = launches.scratch(parts as usize * keys.cols as usize * size_of::<f32>());
    let arguments = QueryGrad {
        step: launches.step,
        keys: keys.address,
        d_scores: d_scores.address,
        partials,
        cols: keys.cols,
        unused: 0,
    };
    let grid = [blocks(keys.cols, THREADS), parts, 1];
    launches.push(keys.pick("query_grad_bf16", "query_grad_f32"), grid, THREADS, 0, &arguments);
    sums::finish(launches, partials, parts, &[d_query]);
}
