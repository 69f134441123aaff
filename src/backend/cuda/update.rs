//! Launches of the optimizer's step over the flat buffers.
//!
//! The kernels find the groups in device memory, and the norm of the gradient never leaves it: a captured step serves
//! every learning rate.

use bytemuck::{Pod, Zeroable};

use super::launch::{Address, Launches};
use crate::backend::{Group, Optimizer, Rule, Scalars};

/// Elements that a block takes at a time, and its threads.
const CHUNK: u64 = 4096;
const THREADS: u32 = 256;
/// The most blocks of the norm, each of which leaves a part of the sum; the threads of the block that adds them up.
const PARTS: u32 = 1024;

/// A range of the flat buffers that is updated alike: the twin of `UpdateGroup` in `kernels/update.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct UpdateGroup {
    first: u64,
    count: u64,
    rate: f32,
    kept: f32,
    weight_decay: f32,
    first_correction: f32,
    second_correction: f32,
    zero_gradient: u32,
}

impl UpdateGroup {
    /// A group as the kernels read it.
    pub fn new(optimizer: &Optimizer, group: &Group) -> Self {
        let Scalars { rate, kept, first_correction, second_correction } = Scalars::new(optimizer, group);
        Self {
            first: group.range.start as u64,
            count: group.range.len() as u64,
            rate,
            kept,
            weight_decay: group.weight_decay,
            first_correction,
            second_correction,
            zero_gradient: group.zero_gradient.into(),
        }
    }

    /// What fills up an array of groups at its end.
    pub fn unused() -> Self {
        Self { first: u64::MAX, ..Self::zeroed() }
    }

    /// An array of `slots` groups for the kernels, which want them in the order of the buffers.
    pub fn array(optimizer: &Optimizer, groups: &[Group], slots: usize) -> Vec<Self> {
        assert!(groups.len() <= slots, "{} groups for {slots} slots", groups.len());
        let mut array: Vec<Self> = groups.iter().map(|group| Self::new(optimizer, group)).collect();
        array.sort_by_key(|group| (group.first, group.count));
        assert!(array.is_sorted_by(|left, right| left.first + left.count <= right.first), "groups overlap");
        array.resize(slots, Self::unused());
        array
    }
}

/// What a step leaves in device memory for the host: the twin of `Clip` in `kernels/update.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Clip {
    /// The norm of all gradients.
    pub norm: f32,
    /// What gradients were multiplied by; NaN where the norm was not finite, and nothing was updated.
    pub scale: f32,
}

/// The flat buffers, each at a multiple of 16.
#[derive(Clone, Copy, Debug)]
pub struct Buffers {
    /// Elements of each.
    pub len: usize,
    /// f32
    pub parameters: Address,
    /// f32
    pub gradients: Address,
    /// f32; the first moment, or [`Rule::Sgd`]'s momentum
    pub first: Address,
    /// f32; the second moment or the infinity norm; not touched by [`Rule::Sgd`]
    pub second: Address,
    /// bf16; the parameters as products read them, 0 for none
    pub copy: Address,
    /// An [`UpdateGroup::array`].
    pub groups: Address,
    /// Entries of that array, unused ones included.
    pub slots: u32,
    /// A [`Clip`], written by the step.
    pub clip: Address,
}

/// The twin of `SquaredNorm` in `kernels/update.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SquaredNorm {
    groups: Address,
    gradients: Address,
    partials: Address,
    group_count: u32,
    chunks: u32,
}

/// The twin of `ClipScale` in `kernels/update.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ClipScale {
    partials: Address,
    clip: Address,
    parts: u32,
    most: f32,
}

/// The twin of `Update` in `kernels/update.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Update {
    groups: Address,
    clip: Address,
    parameters: Address,
    gradients: Address,
    first: Address,
    second: Address,
    copy: Address,
    group_count: u32,
    beta1: f32,
    beta2: f32,
    epsilon: f32,
}

/// The twin of `Lamb` in `kernels/update.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Lamb {
    update: Update,
    partials: Address,
    rates: Address,
}

/// Clips the groups' gradients to a global norm of `clip`, where that is not 0, and updates parameters, moments and
/// the copy. Where the norm is not finite, nothing is updated.
pub fn update(launches: &mut Launches, optimizer: &Optimizer, clip: f32, buffers: &Buffers) {
    let all = [buffers.parameters, buffers.gradients, buffers.first, buffers.second, buffers.copy];
    assert!(all.iter().all(|address| address.is_multiple_of(16)), "flat buffers at {all:x?}");
    let chunks = u32::try_from((buffers.len as u64).div_ceil(CHUNK)).expect("a grid").max(1);
    let parts = chunks.min(PARTS);
    let partials = launches.scratch(parts as usize * size_of::<f64>());
    let Buffers { groups, slots: group_count, gradients, .. } = *buffers;
    let norm = SquaredNorm { groups, gradients, partials, group_count, chunks };
    launches.push("squared_norm", [parts, 1, 1], THREADS, THREADS as usize / 32 * size_of::<f64>(), &norm);
    let scale = ClipScale { partials, clip: buffers.clip, parts, most: clip };
    launches.push("clip_scale", [1, 1, 1], PARTS, PARTS as usize / 32 * size_of::<f64>(), &scale);
    let Optimizer { rule, beta1, beta2, epsilon } = *optimizer;
    let update = Update {
        groups,
        clip: buffers.clip,
        parameters: buffers.parameters,
        gradients,
        first: buffers.first,
        second: buffers.second,
        copy: buffers.copy,
        group_count,
        beta1,
        beta2,
        epsilon,
    };
    let kernel = match rule {
        Rule::AdamaxMtdnn => "update_adamax_mtdnn",
        Rule::AdamaxW => "update_adamax_w",
        Rule::Adamax => "update_adamax",
        Rule::AdamW => "update_adam_w",
        Rule::AdamBert => "update_adam_bert",
        Rule::Sgd => "update_sgd",
        Rule::Lamb => return lamb(launches, update, chunks),
    };
    launches.push(kernel, [chunks, 1, 1], THREADS, 0, &update);
}

/// The passes of [`Rule::Lamb`]: the moments and the parts of each group's norms, the groups' rates, the parameters.
fn lamb(launches: &mut Launches, update: Update, chunks: u32) {
    let groups = update.group_count;
    let sums = (chunks + groups) as usize * size_of::<[f64; 2]>();
    // Over the parts of the gradient's norm, which have been added up by then.
    let partials = launches.scratch(sums + groups as usize * size_of::<f32>());
    let arguments = Lamb { update, partials, rates: partials + sums as Address };
    let shared = THREADS as usize / 32 * size_of::<f64>();
    launches.push("lamb_moments", [chunks, 1, 1], THREADS, shared, &arguments);
    launches.push("lamb_rates", [groups, 1, 1], THREADS, shared, &arguments);
    launches.push("lamb_parameters", [chunks, 1, 1], THREADS, 0, &arguments);
}
