//! What the tests of kernels by their launches share: operands in guarded memory, and comparisons with the CPU.

use half::bf16;
use mtdnn_raw::backend::StepScalars;
use mtdnn_raw::backend::cpu::philox::Stream;
use mtdnn_raw::backend::cuda::launch::{Address, Kernels, Launches, Operand, RowCount, Step, Target};
use mtdnn_raw::random::Random;
use mtdnn_raw::tensor::{DType, Extents, Rows, Shape};

use super::emulation::{Emulation, Memory};

/// The draws of every test.
pub const STREAM: Stream = Stream { seed: 0x0123_4567_89ab_cdef, step: 77 };
pub const FLOATS: [DType; 2] = [DType::F32, DType::Bf16];

/// Memory of a batch. Buffers have its rows and no more, while launches are made for more of them.
pub struct Bench {
    pub memory: Memory,
    pub extents: Extents,
    capacity: Extents,
    kernels: Kernels,
}

impl Bench {
    pub fn new(extents: Extents) -> Self {
        let Extents { tokens, sequences, groups, predictions, in_lines } = extents;
        let capacity = Extents {
            tokens: tokens + 37,
            sequences: sequences + 5,
            groups: groups + 3,
            predictions: predictions + 21,
            in_lines,
        };
        Self { memory: Memory::new(), extents, capacity, kernels: Kernels::Portable }
    }

    /// The same for Hopper's kernels, whose boxes reach beyond the batch: buffers have rows for the capacity, those
    /// beyond the batch NaN.
    pub fn hopper(extents: Extents) -> Self {
        Self { kernels: Kernels::Hopper, ..Self::new(extents) }
    }

    /// The rows that buffers have.
    fn room(&self) -> &Extents {
        if self.kernels == Kernels::Hopper { &self.capacity } else { &self.extents }
    }

    /// A batch of so many tokens.
    pub fn of_tokens(tokens: usize) -> Self {
        Self::new(Extents { tokens, sequences: 0, groups: 0, predictions: 0, in_lines: false })
    }

    fn operand(&self, address: Address, dtype: DType, rows: Rows, cols: usize) -> Operand {
        let most_rows = rows.count(&self.capacity) as u32;
        Operand { address, dtype, rows: RowCount::new(rows), most_rows, cols: cols as u32 }
    }

    /// A value that lies as the planner places it.
    pub fn value(&mut self, name: &str, dtype: DType, rows: Rows, cols: usize, values: &[f32]) -> Operand {
        assert_eq!(values.len(), Shape::new(rows, cols).len(&self.extents), "{name}");
        let mut padded = values.to_vec();
        padded.resize(Shape::new(rows, cols).len(self.room()), f32::NAN);
        let address = self.memory.floats(name, dtype, &padded);
        self.operand(address, dtype, rows, cols)
    }

    /// A value that lies as a parameter or its gradient may, at a multiple of its elements' size.
    pub fn parameter(&mut self, name: &str, dtype: DType, cols: usize, values: &[f32]) -> Operand {
        let address = self.memory.parameter(name, dtype, values);
        self.operand(address, dtype, Rows::Fixed(values.len() / cols), cols)
    }

    /// A value that is to be stored.
    pub fn output(&mut self, name: &str, dtype: DType, rows: Rows, cols: usize) -> Operand {
        let address = self.memory.poison(name, dtype, Shape::new(rows, cols).len(self.room()));
        self.operand(address, dtype, rows, cols)
    }

    /// A target that is stored to or, where there is something to add to, added to.
    pub fn target(
        &mut self,
        name: &str,
        dtype: DType,
        rows: Rows,
        cols: usize,
        before: Option<&[f32]>,
    ) -> Target {
        let operand = match before {
            Some(values) => self.value(name, dtype, rows, cols, values),
            None => self.output(name, dtype, rows, cols),
        };
        Target { operand, add: before.is_some() }
    }

    /// Makes the launches and runs them in every order of threads.
    pub fn run(&mut self, emulation: &Emulation, build: impl Fn(&mut Launches)) {
        let Stream { seed, step } = STREAM;
        let step = Step::new(&StepScalars { extents: self.extents, seed, step });
        let step = self.memory.words("step", bytemuck::cast_slice(&[step]));
        let make = |scratch| {
            let mut launches = Launches::new(step, self.capacity, scratch);
            launches.kernels = self.kernels;
            build(&mut launches);
            launches
        };
        let launches = make(0);
        let scratch = self.memory.poison("scratch", DType::F32, launches.scratch_bytes().div_ceil(4).max(1));
        let launches = make(scratch);
        emulation.run(&self.memory, &launches.list).unwrap();
    }

    pub fn read(&self, operand: Operand) -> Vec<f32> {
        self.memory.read_floats(operand.address)
    }
}

/// Numbers spread over [-1, 1) as the element type has them.
pub fn numbers(seed: u32, dtype: DType, len: usize) -> Vec<f32> {
    let mut random = Random::new(seed.into(), [len as u32, 0]);
    (0..len).map(|_| rounded(dtype, random.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0)).collect()
}

/// The number that an element of this type is.
pub fn rounded(dtype: DType, x: f32) -> f32 {
    if dtype == DType::Bf16 { bf16::from_f32(x).to_f32() } else { x }
}

/// Fails where an element is further from what is expected than `tolerance`, relative to the larger of 1 and it, and
/// the rounding of its type.
#[track_caller]
pub fn assert_near(what: &dyn std::fmt::Debug, dtype: DType, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{what:?}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let rounding = if dtype == DType::Bf16 { expected.abs() / 256.0 } else { 0.0 };
        let allowed = tolerance * expected.abs().max(1.0) + rounding;
        assert!((got - expected).abs() <= allowed, "{what:?}: element {i} is {got}, not {expected}");
    }
}
