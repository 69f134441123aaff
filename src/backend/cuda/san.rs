//! Launches of what the steps of a stochastic answer network compute beside products and attention: `kernels/san.cu`.

use bytemuck::{Pod, Zeroable};

use super::launch::{Address, DropoutSite, Launches, Operand, RowCount, Target, blocks};
use crate::tensor::{DType, MOST_STEPS};

const THREADS: u32 = 256;

/// Blocks where a thread has an element.
fn grid(operand: Operand) -> [u32; 3] {
    [blocks(operand.most_elements(), THREADS), 1, 1]
}

/// The twin of `Gru` in `kernels/san.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Gru {
    step: Address,
    of_input: Address,
    of_state: Address,
    state: Address,
    out: Address,
    rows: RowCount,
    cols: u32,
    unused: u32,
}

/// The two linear maps `[rows, 3 * cols]` and the state `[rows, cols]`, all of one kind of element.
pub type Gates = [Operand; 3];

fn assert_gates([of_input, of_state, state]: Gates) {
    let kinds = [of_input, of_state].map(|map| (map.dtype, map.cols));
    assert_eq!(kinds, [(state.dtype, 3 * state.cols); 2], "maps of input and state beside {state:?}");
}

/// `out = (1 - z) n + z state`; see [`Op::Gru`](crate::tensor::Op::Gru).
pub fn gru(launches: &mut Launches, gates: Gates, out: Operand) {
    assert_gates(gates);
    let [of_input, of_state, state] = gates.map(|operand| operand.address);
    let arguments = Gru {
        step: launches.step,
        of_input,
        of_state,
        state,
        out: out.address,
        rows: out.rows,
        cols: out.cols,
        unused: 0,
    };
    launches.push(out.pick("gru_bf16", "gru_f32"), grid(out), THREADS, 0, &arguments);
}

/// The twin of `GruGrad` in `kernels/san.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GruGrad {
    step: Address,
    of_input: Address,
    of_state: Address,
    state: Address,
    d_out: Address,
    d_of_input: Address,
    d_of_state: Address,
    d_state: Address,
    rows: RowCount,
    cols: u32,
    add: u32,
}

/// The gradients of [`gru`]: those of the two maps, and the state's.
pub fn gru_gradient(
    launches: &mut Launches,
    gates: Gates,
    d_out: Operand,
    [d_of_input, d_of_state]: [Operand; 2],
    d_state: Target,
) {
    assert_gates(gates);
    assert_gates([d_of_input, d_of_state, d_state.operand]);
    let [of_input, of_state, state] = gates.map(|operand| operand.address);
    let arguments = GruGrad {
        step: launches.step,
        of_input,
        of_state,
        state,
        d_out: d_out.address,
        d_of_input: d_of_input.address,
        d_of_state: d_of_state.address,
        d_state: d_state.operand.address,
        rows: d_out.rows,
        cols: d_out.cols,
        add: d_state.add.into(),
    };
    launches.push(d_out.pick("gru_grad_bf16", "gru_grad_f32"), grid(d_out), THREADS, 0, &arguments);
}

/// The twin of `Merge` in `kernels/san.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Merge {
    step: Address,
    a: Address,
    b: Address,
    merged: Address,
    d_a: Address,
    d_b: Address,
    rows: RowCount,
    cols: u32,
    add_to_a: u32,
    add_to_b: u32,
    unused: u32,
}

impl Merge {
    fn new(launches: &Launches, a: Operand, b: Operand, merged: Operand) -> Self {
        let kinds = [a, b].map(|operand| (operand.dtype, 4 * operand.cols));
        assert_eq!(kinds, [(merged.dtype, merged.cols); 2], "a merge of two shapes");
        Self {
            step: launches.step,
            a: a.address,
            b: b.address,
            merged: merged.address,
            d_a: 0,
            d_b: 0,
            rows: a.rows,
            cols: a.cols,
            add_to_a: 0,
            add_to_b: 0,
            unused: 0,
        }
    }
}

/// `out = [a; b; |a - b|; a b]`
pub fn merge(launches: &mut Launches, a: Operand, b: Operand, out: Operand) {
    let arguments = Merge::new(launches, a, b, out);
    launches.push(a.pick("merge_bf16", "merge_f32"), grid(a), THREADS, 0, &arguments);
}

/// The gradients of [`merge`].
pub fn merge_gradient(
    launches: &mut Launches,
    a: Operand,
    b: Operand,
    d_out: Operand,
    d_a: Target,
    d_b: Target,
) {
    let arguments = Merge {
        d_a: d_a.operand.address,
        d_b: d_b.operand.address,
        add_to_a: d_a.add.into(),
        add_to_b: d_b.add.into(),
        ..Merge::new(launches, a, b, d_out)
    };
    launches.push(a.pick("merge_grad_bf16", "merge_grad_f32"), grid(a), THREADS, 0, &arguments);
}

/// The twin of `StepAverage` in `kernels/san.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct StepAverage {
    step: Address,
    logits: [Address; MOST_STEPS],
    out: Address,
    d_out: Address,
    d_logits: [Address; MOST_STEPS],
    rows: RowCount,
    dropout: DropoutSite,
    steps: u32,
    classes: u32,
    unused: u32,
}

impl StepAverage {
    fn new(launches: &Launches, logits: &[Operand], dropout: DropoutSite, out: Operand) -> Self {
        assert!(logits.iter().chain([&out]).all(|operand| operand.dtype == DType::F32), "steps' answers");
        Self {
            step: launches.step,
            logits: addresses(logits),
            out: out.address,
            d_out: 0,
            d_logits: [0; MOST_STEPS],
            rows: out.rows,
            dropout,
            steps: logits.len() as u32,
            classes: out.cols,
            unused: 0,
        }
    }
}

fn addresses(operands: &[Operand]) -> [Address; MOST_STEPS] {
    let mut addresses = [0; MOST_STEPS];
    for (address, operand) in addresses.iter_mut().zip(operands) {
        *address = operand.address;
    }
    addresses
}

/// `out = log(mean over the steps kept of softmax(logits))`; all f32 `[rows, classes]`.
pub fn step_average(launches: &mut Launches, logits: &[Operand], dropout: DropoutSite, out: Operand) {
    let arguments = StepAverage::new(launches, logits, dropout, out);
    launches.push("step_average", [blocks(out.most_rows, THREADS), 1, 1], THREADS, 0, &arguments);
}

/// The gradients of [`step_average`], one value a step.
pub fn step_average_gradient(
    launches: &mut Launches,
    logits: &[Operand],
    dropout: DropoutSite,
    out: Operand,
    d_out: Operand,
    d_logits: &[Operand],
) {
    let arguments = StepAverage {
        d_out: d_out.address,
        d_logits: addresses(d_logits),
        ..StepAverage::new(launches, logits, dropout, out)
    };
    launches.push("step_average_grad", [blocks(out.most_rows, THREADS), 1, 1], THREADS, 0, &arguments);
}
