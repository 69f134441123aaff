//! Launches of activations by themselves; most are part of a matrix product.

use bytemuck::{Pod, Zeroable};

use super::gemm::activation_number;
use super::launch::{Address, Launches, Operand, RowCount, blocks};
use crate::tensor::Activation;

/// The twin of `Activate` in `kernels/activation.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Activate {
    step: Address,
    before: Address,
    d_after: Address,
    out: Address,
    rows: RowCount,
    cols: u32,
    activation: u32,
}

/// `out = activation(before)`; the two may be the same.
pub fn forward(launches: &mut Launches, activation: Activation, before: Operand, out: Operand) {
    push(launches, activation, before, 0, out);
}

/// `d_before = d_after * activation'(before)`.
pub fn backward(
    launches: &mut Launches,
    activation: Activation,
    before: Operand,
    d_after: Operand,
    d_before: Operand,
) {
    assert_eq!((d_after.dtype, d_after.cols), (before.dtype, before.cols), "an activation's gradient");
    push(launches, activation, before, d_after.address, d_before);
}

fn push(launches: &mut Launches, activation: Activation, before: Operand, d_after: Address, out: Operand) {
    assert_eq!((before.dtype, before.cols), (out.dtype, out.cols), "an activation of two shapes");
    assert!((before.address | d_after | out.address).is_multiple_of(16), "values start at lines");
    let arguments = Activate {
        step: launches.step,
        before: before.address,
        d_after,
        out: out.address,
        rows: out.rows,
        cols: out.cols,
        activation: activation_number(activation),
    };
    let grid = [blocks(out.most_elements(), 8 * 256), 1, 1];
    launches.push(out.pick("activate_bf16", "activate_f32"), grid, 256, 0, &arguments);
}
