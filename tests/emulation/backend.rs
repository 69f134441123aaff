//! A backend that runs the CUDA kernels on the host: programs are lowered as for a GPU, and launches emulated.

use mtdnn_raw::backend::cuda::elementwise::round_to_bf16;
use mtdnn_raw::backend::cuda::launch::{Address, Kernels, Launch, Launches, Step};
use mtdnn_raw::backend::cuda::lower::{Places, lower, lower_one};
use mtdnn_raw::backend::cuda::update::{Buffers, Clip, UpdateGroup, update};
use mtdnn_raw::backend::{Backend, BackendError, Group, Optimizer, Sizes, StepScalars, Ticket};
use mtdnn_raw::tensor::{DType, Extents, Op, Origin, Precision, Program, Space, Span, Var};

use super::{Emulation, Memory, Order};

/// Groups of an update.
const SLOTS: usize = 64;

/// The CUDA backend without a device.
pub struct EmulatedBackend {
    emulation: &'static Emulation,
    precision: Precision,
    line: usize,
    kernels: Kernels,
    memory: Memory,
    sizes: Sizes,
    spaces: [Address; 5],
    copy: Address,
    step: Address,
    groups: Address,
    clip: Address,
    kept: Vec<f32>,
}

impl EmulatedBackend {
    /// A backend that aligns sequences to lines of `line` rows; nothing where there is no compiler for the emulation.
    pub fn new(precision: Precision, line: usize) -> Option<Self> {
        let memory = Memory::new();
        let (sizes, spaces) = (Sizes::default(), [0; 5]);
        let emulation = Emulation::get()?;
        let (copy, step, groups, clip, kept) = (0, 0, 0, 0, Vec::new());
        let kernels = Kernels::default();
        Some(Self {
            emulation,
            precision,
            line,
            kernels,
            memory,
            sizes,
            spaces,
            copy,
            step,
            groups,
            clip,
            kept,
        })
    }

    /// The same with other kernels.
    #[allow(dead_code, reason = "not every test chooses them")]
    pub fn with_kernels(self, kernels: Kernels) -> Self {
        Self { kernels, ..self }
    }

    fn address(&self, span: Span) -> Address {
        self.spaces[space_number(span.space)] + 4 * span.offset as Address
    }

    /// Makes launches twice, for the scratch memory that the first making asks for, and runs them.
    fn launch(&mut self, extents: Extents, make: &dyn Fn(&Self, &mut Launches)) {
        let launches = |scratch: Address| {
            let mut launches = Launches::new(self.step, extents, scratch);
            launches.kernels = self.kernels;
            make(self, &mut launches);
            launches
        };
        let bytes = launches(0).scratch_bytes();
        // Scratch memory is aligned to 256 bytes, as a multiple of that many bytes is here.
        let mut own = Memory::new();
        let scratch = own.poison("scratch", DType::F32, bytes.next_multiple_of(256) / 4);
        let list: Vec<Launch> = launches(scratch).list;
        for launch in &list {
            let run = self.emulation.run_in(Order::Ascending, &self.memory, std::slice::from_ref(launch));
            run.unwrap_or_else(|fault| panic!("{fault}"));
        }
    }

    fn run_lowered(&mut self, program: &Program, step: &StepScalars, lower: &dyn Fn(&Places, &mut Launches)) {
        let extents = step.extents;
        self.memory.write(self.step, &[Step::new(step)]);
        if self.precision == Precision::Bf16 {
            self.launch(extents, &|this, launches| {
                let count = this.sizes.parameters as u32;
                round_to_bf16(launches, this.spaces[space_number(Space::Parameters)], this.copy, count);
            });
        }
        self.launch(extents, &|this, launches| {
            let value = |var: Var| this.address(program.span(var, program.capacity()));
            let copy = |var: Var| match program.origin(var) {
                Origin::Parameter(offset) => this.copy + 2 * offset as Address,
                _ => panic!("{} has no copy", program.name(var)),
            };
            lower(&Places { value: &value, copy: &copy }, launches);
        });
    }

    fn keep_number(&mut self, number: f32) -> Ticket {
        self.kept.push(number);
        Ticket::new(self.kept.len() as u64 - 1)
    }
}

fn space_number(space: Space) -> usize {
    match space {
        Space::Arena => 0,
        Space::Parameters => 1,
        Space::Gradients => 2,
        Space::FirstMoment => 3,
        Space::SecondMoment => 4,
    }
}

impl Backend for EmulatedBackend {
    fn precision(&self) -> Precision {
        self.precision
    }

    fn line(&self) -> usize {
        self.line
    }

    fn reserve(&mut self, sizes: &Sizes) -> Result<(), BackendError> {
        let Sizes { parameters, arena, training } = *sizes;
        let trained = if training { parameters } else { 0 };
        self.sizes = *sizes;
        self.memory = Memory::new();
        let names = ["arena", "parameters", "gradients", "first moment", "second moment"];
        let lengths = [arena, parameters, trained, trained, trained];
        for ((space, name), len) in self.spaces.iter_mut().zip(names).zip(lengths) {
            *space = self.memory.poison(name, DType::F32, len);
        }
        // The rest is zero, as the trait says; what kernels compute is poisoned.
        for space in &self.spaces[2..] {
            self.memory.write(*space, &vec![0.0f32; trained]);
        }
        self.copy = self.memory.poison("copy", DType::Bf16, parameters);
        self.step = self.memory.poison("step", DType::U32, size_of::<Step>() / 4);
        self.groups = self.memory.poison("groups", DType::U32, SLOTS * size_of::<UpdateGroup>() / 4);
        self.clip = self.memory.poison("clip", DType::F32, size_of::<Clip>() / 4);
        Ok(())
    }

    fn write(&mut self, span: Span, bytes: &[u8]) -> Result<(), BackendError> {
        self.memory.write(self.address(span), bytes);
        Ok(())
    }

    fn read(&mut self, span: Span, bytes: &mut [u8]) -> Result<(), BackendError> {
        bytes.copy_from_slice(&self.memory.read::<u8>(self.address(span), bytes.len()));
        Ok(())
    }

    fn clear(&mut self, span: Span) -> Result<(), BackendError> {
        self.memory.write(self.address(span), &vec![0.0f32; span.len]);
        Ok(())
    }

    fn run(&mut self, program: &Program, step: &StepScalars) -> Result<(), BackendError> {
        self.run_lowered(program, step, &|places, launches| lower(program, places, launches));
        Ok(())
    }

    fn run_one(&mut self, program: &Program, op: &Op, step: &StepScalars) -> Result<(), BackendError> {
        self.run_lowered(program, step, &|places, launches| lower_one(program, op, places, launches));
        Ok(())
    }

    fn update(&mut self, optimizer: &Optimizer, clip: f32, groups: &[Group]) -> Result<Ticket, BackendError> {
        let [_, parameters, gradients, first, second] = self.spaces;
        let buffers = Buffers {
            len: self.sizes.parameters,
            parameters,
            gradients,
            first,
            second,
            copy: if self.precision == Precision::Bf16 { self.copy } else { 0 },
            groups: self.groups,
            slots: SLOTS as u32,
            clip: self.clip,
        };
        self.memory.write(self.groups, &UpdateGroup::array(optimizer, groups, SLOTS));
        self.launch(Extents::default(), &|_, launches| update(launches, optimizer, clip, &buffers));
        let norm = self.memory.read::<f32>(self.clip, 1)[0];
        Ok(self.keep_number(norm))
    }

    fn keep(&mut self, span: Span) -> Result<Ticket, BackendError> {
        let number = self.memory.read::<f32>(self.address(span), 1)[0];
        Ok(self.keep_number(number))
    }

    fn number(&mut self, ticket: Ticket) -> Result<f32, BackendError> {
        Ok(self.kept[ticket.number() as usize])
    }

    fn steps_ahead(&self) -> usize {
        1
    }
}
