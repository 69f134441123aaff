//! Launches of what goes element by element: constants, sums, dropout and roundings.

use bytemuck::{Pod, Zeroable};

use super::launch::{Address, DropoutSite, Launches, Operand, RowCount, Target, blocks};
use crate::tensor::DType;

/// Threads of a block; a thread has eight elements, or 16 bytes.
const THREADS: u32 = 256;

/// The twin of `Fill` in `kernels/elementwise.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Fill {
    step: Address,
    out: Address,
    rows: RowCount,
    cols: u32,
    value: f32,
    aligned: u32,
    unused: u32,
}

/// Every element of `out` becomes `value`.
pub fn fill(launches: &mut Launches, out: Operand, value: f32) {
    let arguments = Fill {
        step: launches.step,
        out: out.address,
        rows: out.rows,
        cols: out.cols,
        value,
        aligned: out.address.is_multiple_of(16).into(),
        unused: 0,
    };
    let elements_of_a_pack = 16 / out.dtype.words(4) as u32;
    let grid = [blocks(out.most_elements(), elements_of_a_pack * THREADS), 1, 1];
    launches.push(out.pick("fill_bf16", "fill_f32"), grid, THREADS, 0, &arguments);
}

/// The twin of `Accumulate` in `kernels/elementwise.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Accumulate {
    step: Address,
    from: Address,
    into: Address,
    rows: RowCount,
    cols: u32,
    aligned: u32,
    add: u32,
    unused: u32,
}

/// `into += from`, or `into = from`: both of one kind of element, or f32 into bf16.
pub fn accumulate(launches: &mut Launches, from: Operand, Target { operand: into, add }: Target) {
    assert_eq!(from.cols, into.cols, "a sum of two shapes");
    let kernel = match (from.dtype, into.dtype) {
        (DType::F32, DType::F32) => "accumulate_f32",
        (DType::Bf16, DType::Bf16) => "accumulate_bf16",
        (DType::F32, DType::Bf16) => "accumulate_rounded",
        (from, into) => panic!("{from} into {into}"),
    };
    let arguments = Accumulate {
        step: launches.step,
        from: from.address,
        into: into.address,
        rows: into.rows,
        cols: into.cols,
        aligned: (from.address | into.address).is_multiple_of(16).into(),
        add: add.into(),
        unused: 0,
    };
    let grid = [blocks(into.most_elements(), 8 * THREADS), 1, 1];
    launches.push(kernel, grid, THREADS, 0, &arguments);
}

/// The twin of `Drop` in `kernels/elementwise.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Drop {
    step: Address,
    x: Address,
    keys: Address,
    out: Address,
    rows: RowCount,
    dropout: DropoutSite,
    cols: u32,
    whole: u32,
    unused: u32,
}

/// `out = x * keep`; its own backward pass, applied to the gradient. `keys` is u32 `[rows]`, or 0 where a row's key is
/// its number.
pub fn drop_rows(launches: &mut Launches, x: Operand, keys: Address, dropout: DropoutSite, out: Operand) {
    assert_eq!((x.dtype, x.cols), (out.dtype, out.cols), "dropout of two shapes");
    let arguments = Drop {
        step: launches.step,
        x: x.address,
        keys,
        out: out.address,
        rows: out.rows,
        dropout,
        cols: out.cols,
        whole: (x.has_whole_rows() && out.has_whole_rows()).into(),
        unused: 0,
    };
    let grid = [blocks(out.most_rows * out.cols.div_ceil(8), THREADS), 1, 1];
    launches.push(out.pick("drop_bf16", "drop_f32"), grid, THREADS, 0, &arguments);
}

/// The twin of `Round` in `kernels/elementwise.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Round {
    from: Address,
    to: Address,
    count: u32,
    unused: u32,
}

/// Rounds `count` f32 at `from` to bf16 at `to`, both multiples of 16.
pub fn round_to_bf16(launches: &mut Launches, from: Address, to: Address, count: u32) {
    assert!((from | to).is_multiple_of(16), "buffers at {from:#x} and {to:#x}");
    let arguments = Round { from, to, count, unused: 0 };
    launches.push("round_to_bf16", [blocks(count, 8 * THREADS), 1, 1], THREADS, 0, &arguments);
}
