//! Launches of the second stage of sums down columns.

use bytemuck::{Pod, Zeroable};

use super::launch::{Address, Launches, Target, blocks};
use crate::tensor::DType;

/// The twin of `PartialSums` in `kernels/sums.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PartialSums {
    partials: Address,
    out: [Address; 2],
    add: [u32; 2],
    parts: u32,
    outputs: u32,
    cols: u32,
    unused: u32,
}

/// Adds up f32 `partials` `[parts, targets, elements of a target]` in a fixed order, into one target or two.
pub(super) fn finish(launches: &mut Launches, partials: Address, parts: u32, targets: &[Target]) {
    let cols = targets[0].operand.most_elements();
    let mut arguments = PartialSums {
        partials,
        out: [0; 2],
        add: [0; 2],
        parts,
        outputs: targets.len() as u32,
        cols,
        unused: 0,
    };
    for (i, target) in targets.iter().enumerate() {
        assert_eq!((target.operand.most_elements(), target.operand.dtype), (cols, DType::F32));
        arguments.out[i] = target.operand.address;
        arguments.add[i] = target.add.into();
    }
    launches.push("sum_partials", [blocks(cols, 32), targets.len() as u32, 1], 256, 1024, &arguments);
}
