//! Launches that pick rows out of a matrix or put them back.

use bytemuck::{Pod, Zeroable};

use super::elementwise::fill;
use super::launch::{Address, Launches, Operand, RowCount, Target, blocks};

/// The twin of `Gather` in `kernels/gather.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Gather {
    step: Address,
    from: Address,
    rows: Address,
    to: Address,
    count: RowCount,
    cols: u32,
    add: u32,
    whole: u32,
    unused: u32,
}

impl Gather {
    fn new(launches: &Launches, from: Operand, rows: Address, to: Operand, listed: Operand) -> Self {
        assert_eq!((from.dtype, from.cols), (to.dtype, to.cols), "rows of two shapes");
        Self {
            step: launches.step,
            from: from.address,
            rows,
            to: to.address,
            count: listed.rows,
            cols: listed.cols,
            add: 0,
            whole: (from.has_whole_rows() && to.has_whole_rows()).into(),
            unused: 0,
        }
    }
}

/// Blocks where a thread has eight columns of a row listed.
fn grid(listed: Operand) -> [u32; 3] {
    [blocks(listed.most_rows * listed.cols.div_ceil(8), 256), 1, 1]
}

/// `out[s] = x[rows[s]]`, with u32 `rows` of as many entries as `out` has rows.
pub fn forward(launches: &mut Launches, x: Operand, rows: Address, out: Operand) {
    let arguments = Gather::new(launches, x, rows, out, out);
    launches.push(out.pick("gather_bf16", "gather_f32"), grid(out), 256, 0, &arguments);
}

/// The backward pass of [`forward`]: the rows gathered, each at most once, get their gradients; the others zeros, or
/// nothing where `d_x` adds.
pub fn backward(launches: &mut Launches, d_out: Operand, rows: Address, d_x: Target) {
    if !d_x.add {
        fill(launches, d_x.operand, 0.0);
    }
    let arguments = Gather { add: d_x.add.into(), ..Gather::new(launches, d_out, rows, d_x.operand, d_out) };
    launches.push(d_out.pick("scatter_bf16", "scatter_f32"), grid(d_out), 256, 0, &arguments);
}
