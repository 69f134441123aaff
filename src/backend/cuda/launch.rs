//! Kernel launches as plain data: which kernel, how many blocks, and the bytes of its one argument.
//!
//! What an operation launches is decided here without a device, so that the tests run the same launches through the
//! host emulation of the kernels. The structs that kernels take stand beside the functions that fill them, with
//! the fields of their twins in `kernels/*.cu`, in the same order.

use bytemuck::{Pod, Zeroable};

use crate::backend::StepScalars;
use crate::tensor::{DType, Dropout, Extents, Rows};

/// One launch of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The kernel's name in its source.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// The bytes of the kernel's argument, but for the tensor maps that it starts with.
    pub arguments: Vec<u8>,
    /// Those maps, which the device's driver makes of their description.
    pub maps: Vec<TensorMap>,
}

impl Launch {
    /// A launch that gives `arguments` to the kernel.
    pub fn new<T: Pod>(
        kernel: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared: usize,
        arguments: &T,
    ) -> Self {
        let shared = u32::try_from(shared).expect("shared memory in 32 bits");
        let arguments = bytemuck::bytes_of(arguments).to_vec();
        Self { kernel, grid, threads, shared, arguments, maps: Vec::new() }
    }

    /// The same launch with an argument that starts with tensor maps.
    pub fn with_maps(self, maps: Vec<TensorMap>) -> Self {
        Self { maps, ..self }
    }

    /// The bytes of the whole argument, with the maps as `encode` has them; as many as a struct aligned like a map has.
    pub fn argument<E>(&self, encode: impl Fn(&TensorMap) -> Result<[u64; 16], E>) -> Result<Vec<u8>, E> {
        let mut bytes = Vec::new();
        for map in &self.maps {
            bytes.extend_from_slice(bytemuck::bytes_of(&encode(map)?));
        }
        bytes.extend_from_slice(&self.arguments);
        if !self.maps.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(MAP_ALIGNMENT), 0);
        }
        Ok(bytes)
    }
}

/// What the address of a tensor map is a multiple of.
const MAP_ALIGNMENT: usize = 64;

/// A matrix of bf16 that kernels copy boxes of 64 columns from and to: what `TensorMap` of `kernels/hopper.cuh` is made
/// of. Reads beyond its rows and columns give zeros, writes there are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// A multiple of 16.
    pub address: Address,
    /// Not 0.
    pub columns: u32,
    /// Not 0.
    pub rows: u32,
    /// From one row to the next, in elements; a multiple of 8.
    pub stride: u32,
    /// Rows of a box, up to 256.
    pub box_rows: u32,
}

impl TensorMap {
    /// All of an operand, whose rows are contiguous.
    pub fn of(operand: &Operand, box_rows: u32) -> Self {
        let Operand { address, dtype, most_rows, cols, .. } = *operand;
        assert!(dtype == DType::Bf16 && operand.has_whole_rows(), "no boxes of {operand:?}");
        Self { address, columns: cols, rows: most_rows.max(1), stride: cols, box_rows }
    }
}

/// Which kernels compute what more than one can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kernels {
    /// Those for every card since Ampere.
    #[default]
    Portable,
    /// Those for Hopper where there are any: `kernels/hopper_*.cu`.
    Hopper,
}

/// Where a value lies in the device's memory; 0 for none.
pub type Address = u64;

/// What kernels read of the step from device memory: the twin of `Step` in `kernels/prelude.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct Step {
    /// Token rows, dead ones included.
    pub tokens: u32,
    /// Sequences.
    pub sequences: u32,
    /// Groups.
    pub groups: u32,
    /// Masked tokens.
    pub predictions: u32,
    /// The number of the step.
    pub step: u32,
    /// The run's seed, lower half first.
    pub seed: [u32; 2],
    /// Fills the struct up to 32 bytes.
    pub unused: u32,
}

impl Step {
    /// The twin of a step's scalars.
    pub fn new(scalars: &StepScalars) -> Self {
        let StepScalars { extents, seed, step } = *scalars;
        Self {
            tokens: extents.tokens as u32,
            sequences: extents.sequences as u32,
            groups: extents.groups as u32,
            predictions: extents.predictions as u32,
            step,
            seed: [seed as u32, (seed >> 32) as u32],
            unused: 0,
        }
    }
}

/// A number of rows that a kernel looks up: the twin of `Rows` in `kernels/prelude.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct RowCount {
    kind: u32,
    fixed: u32,
}

impl RowCount {
    /// The row count of a shape.
    pub fn new(rows: Rows) -> Self {
        match rows {
            Rows::Fixed(fixed) => Self { kind: 0, fixed: fixed as u32 },
            Rows::Tokens => Self { kind: 1, fixed: 0 },
            Rows::Sequences => Self { kind: 2, fixed: 0 },
            Rows::Groups => Self { kind: 3, fixed: 0 },
            Rows::Predictions => Self { kind: 4, fixed: 0 },
            Rows::GroupStarts => panic!("no kernel runs over the starts of groups"),
        }
    }
}

/// A dropout site: the twin of `Dropout` in `kernels/prelude.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct DropoutSite {
    threshold: u32,
    site: u32,
    scale: f32,
}

impl DropoutSite {
    /// The site's numbers.
    pub fn new(dropout: Dropout) -> Self {
        Self { threshold: dropout.threshold, site: dropout.site, scale: dropout.scale() }
    }

    /// A site that drops nothing.
    pub fn off() -> Self {
        Self { threshold: 0, site: 0, scale: 1.0 }
    }
}

/// A dense row-major matrix in the device's memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Operand {
    /// Where it starts; a multiple of 4 at least, of 64 for a value of its own.
    pub address: Address,
    /// The kind of element.
    pub dtype: DType,
    /// How a kernel finds out the number of rows.
    pub rows: RowCount,
    /// The largest number of rows of this launch, which the grid is made for.
    pub most_rows: u32,
    /// The number of columns, contiguous in memory.
    pub cols: u32,
}

impl Operand {
    /// The kernel for its kind of element.
    pub(super) fn pick(&self, bf16: &'static str, f32: &'static str) -> &'static str {
        match self.dtype {
            DType::Bf16 => bf16,
            DType::F32 => f32,
            DType::U32 => panic!("{bf16} of indices"),
        }
    }

    /// Whether kernels may move its rows by packs of 16 bytes, eight columns at a time.
    pub(super) fn has_whole_rows(&self) -> bool {
        self.cols.is_multiple_of(8) && self.address.is_multiple_of(16)
    }

    /// Some of its rows, a number that does not change.
    pub(super) fn part(&self, first: u32, rows: u32) -> Self {
        let element = self.dtype.words(4) as Address;
        let address = self.address + Address::from(first) * Address::from(self.cols) * element;
        Self { address, rows: RowCount::new(Rows::Fixed(rows as usize)), most_rows: rows, ..*self }
    }

    /// Elements of the largest launch.
    pub(super) fn most_elements(&self) -> u32 {
        self.most_rows.checked_mul(self.cols).expect("fewer than 2^32 elements")
    }
}

/// Where a gradient goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// The gradient.
    pub operand: Operand,
    /// Whether it is added to what is there.
    pub add: bool,
}

/// Blocks for `items` where one takes `each`; a grid is never empty.
pub(super) fn blocks(items: u32, each: u32) -> u32 {
    items.div_ceil(each).max(1)
}

/// The multiprocessors of an H100, what launches are made for unless the device is asked.
const PROCESSORS: u32 = 132;

/// Collects the launches of a program, and the scratch memory that they need.
pub struct Launches {
    /// The batch's size in device memory.
    pub step: Address,
    /// The size that grids are made for.
    pub extents: Extents,
    /// The device's multiprocessors, among which work is divided.
    pub processors: u32,
    /// Which kernels there are.
    pub kernels: Kernels,
    /// In order.
    pub list: Vec<Launch>,
    scratch: Address,
    scratch_bytes: usize,
}

impl Launches {
    /// Launches that read the step at `step` and use the memory at `scratch`.
    pub fn new(step: Address, extents: Extents, scratch: Address) -> Self {
        let (processors, kernels, list) = (PROCESSORS, Kernels::default(), Vec::new());
        Self { step, extents, processors, kernels, list, scratch, scratch_bytes: 0 }
    }

    /// Adds a launch.
    pub fn push<T: Pod>(
        &mut self,
        kernel: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared: usize,
        arguments: &T,
    ) {
        self.list.push(Launch::new(kernel, grid, threads, shared, arguments));
    }

    /// Adds a launch of a kernel whose argument starts with tensor maps.
    pub fn push_with_maps<T: Pod>(
        &mut self,
        kernel: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared: usize,
        maps: Vec<TensorMap>,
        arguments: &T,
    ) {
        self.list.push(Launch::new(kernel, grid, threads, shared, arguments).with_maps(maps));
    }

    /// Memory for the launches of one operation, at a multiple of 256 bytes; the next operation gets the same.
    pub fn scratch(&mut self, bytes: usize) -> Address {
        self.scratch_bytes = self.scratch_bytes.max(bytes);
        self.scratch
    }

    /// Memory for an operation whose launches, which `make` adds, have scratch memory of their own beside it.
    pub fn keeping(&mut self, bytes: usize, make: impl FnOnce(&mut Self, Address)) {
        let kept = bytes.next_multiple_of(256);
        let (start, before) = (self.scratch, std::mem::take(&mut self.scratch_bytes));
        self.scratch += kept as Address;
        make(self, start);
        self.scratch = start;
        self.scratch_bytes = before.max(kept + self.scratch_bytes);
    }

    /// The most that any operation asked for.
    pub fn scratch_bytes(&self) -> usize {
        self.scratch_bytes
    }
}
