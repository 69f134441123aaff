//! Attention's launches on Hopper where no sequence crosses a line of rows: `kernels/hopper_attention.cu`, one launch each
//! way.

use bytemuck::{Pod, Zeroable};

use super::attention::{Forward, Input};
use super::launch::{Address, Kernels, Launches, Operand, TensorMap, blocks};
use crate::tensor::{DType, LINE};

/// Columns of the heads that a block has.
const COLUMNS: usize = 64;
const THREADS: u32 = 256;
/// Bytes of the rows of a line in those columns.
const BOX: usize = LINE * COLUMNS * size_of::<u16>();
/// Bytes of a number for each row of a line.
const ROW_NUMBERS: usize = LINE * size_of::<u32>();

/// The twin of `LineBackward` in the kernels' source, behind its maps.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Backward {
    pub input: Input,
    pub log_sum_exp: Address,
    pub d_qkv: Address,
}

/// The kernels for one head size, forward and backward, and how they are launched.
pub(super) struct Lines {
    names: [&'static str; 2],
    /// Bytes of shared memory of each.
    shared: [usize; 2],
    grid: [u32; 3],
}

/// The kernels for this attention, if it is theirs: they were asked for, no sequence crosses a line, and they have the
/// head size.
pub(super) fn lines(launches: &Launches, qkv: Operand, heads: usize) -> Option<Lines> {
    let hidden = qkv.cols as usize / 3;
    let asked_for = launches.kernels == Kernels::Hopper && launches.extents.in_lines;
    if !asked_for || qkv.dtype != DType::Bf16 || !hidden.is_multiple_of(COLUMNS) {
        return None;
    }
    let names = match hidden / heads {
        32 => ["attention_lines_32", "attention_grad_lines_32"],
        64 => ["attention_lines_64", "attention_grad_lines_64"],
        _ => return None,
    };
    let (heads, barrier) = (COLUMNS / (hidden / heads), size_of::<u64>());
    let bits = heads * 4 * ROW_NUMBERS;
    // Beside boxes and bits the backward pass has two logarithms and deltas, and the parts of these by its 8 warps.
    let shared = [4 * BOX + bits + barrier, 7 * BOX + (heads + 1 + 8) * ROW_NUMBERS + bits + barrier];
    let grid = [(hidden / COLUMNS) as u32, blocks(qkv.most_rows, LINE as u32), 1];
    Some(Lines { names, shared, grid })
}

/// Queues the forward pass.
pub(super) fn forward(launches: &mut Launches, lines: &Lines, qkv: Operand, arguments: &Forward) {
    push(launches, lines, 0, &[qkv], arguments);
}

/// Queues the backward pass; `read` are the projections and the gradient of the context.
pub(super) fn backward(launches: &mut Launches, lines: &Lines, read: [Operand; 2], arguments: &Backward) {
    push(launches, lines, 1, &read, arguments);
}

fn push<T: Pod>(launches: &mut Launches, lines: &Lines, which: usize, read: &[Operand], arguments: &T) {
    let maps = read.iter().map(|operand| TensorMap::of(operand, LINE as u32)).collect();
    let Lines { names, shared, grid } = lines;
    launches.push_with_maps(names[which], *grid, THREADS, shared[which], maps, arguments);
}
