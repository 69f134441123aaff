//! [`CudaBackend`]: programs as captured graphs over one slab of device memory.
//!
//! A program is lowered and captured once for each size of batch, rounded up, when that size is met first, and room for
//! its kernels is made when the program is; all that changes from step to step lies in
//! device memory: the batch, its size, the seed, the groups of an update. A step is then a few small copies from pinned
//! memory and two replays, nothing more is allocated, and the host waits for nothing but room in the staging memory.

use std::collections::HashMap;
use std::ops::Range;

use cudarc::driver::CudaEvent;

use super::device::{Device, Graph, Memory, Pinned};
use super::elementwise::round_to_bf16;
use super::launch::{Address, Kernels, Launch, Launches, Step};
use super::lower::{Places, lower, lower_one};
use super::update::{self, Buffers, Clip, UpdateGroup};
use crate::backend::{Backend, BackendError, Group, KEPT, Optimizer, Sizes, StepScalars, Ticket};
use crate::tensor::{Extents, LINE, Op, Origin, Precision, Program, Space, Span, Var};

/// Sequences and groups are rounded up to a multiple of this, so that few graphs serve all batches.
const FEW: usize = 32;
/// Parts of the slab start at multiples of this.
const ALIGNMENT: usize = 256;
/// Bytes of batches under way to the device: half of it fills while the other half is copied.
const STAGING: usize = 8 << 20;
/// The most groups of an update.
const GROUPS: usize = 4096;

/// Runs programs on one NVIDIA GPU.
pub struct CudaBackend {
    precision: Precision,
    /// Whether launches are replayed as graphs; without, they are queued one by one, to the same bits.
    graphs: bool,
    sizes: Sizes,
    slab: Memory,
    layout: Layout,
    scratch: Memory,
    staging: Staging,
    /// Numbers on their way to the host, and when each is there.
    numbers: Pinned,
    arrivals: Vec<CudaEvent>,
    tickets: u64,
    /// Whether the parameters were written since their bf16 copy was made.
    copy_is_old: bool,
    programs: HashMap<(u64, Extents), Work>,
    updates: HashMap<UpdateKey, Work>,
    /// The last to go: what stands above was made with it.
    device: Device,
}

/// What an update's launches depend on: the rule, the bits of its constants and of the clip, and the groups' room.
type UpdateKey = (crate::backend::Rule, [u32; 4], u32);

/// What is replayed.
enum Work {
    Graph(Graph),
    Launches(Vec<Launch>),
}

/// Where each buffer starts in the slab.
#[derive(Clone, Copy, Debug, Default)]
struct Layout {
    arena: Address,
    parameters: Address,
    copy: Address,
    gradients: Address,
    first: Address,
    second: Address,
    step: Address,
    groups: Address,
    clip: Address,
}

impl Layout {
    /// Offsets of the buffers, and the bytes of all.
    fn new(sizes: &Sizes, precision: Precision) -> (Self, usize) {
        let Sizes { parameters, arena, training } = *sizes;
        let trained = if training { parameters } else { 0 };
        let copied = if precision == Precision::Bf16 { parameters } else { 0 };
        let mut end = 0;
        let mut take = |bytes: usize| {
            let start = end;
            end += bytes.next_multiple_of(ALIGNMENT);
            start as Address
        };
        let layout = Self {
            arena: take(4 * arena),
            parameters: take(4 * parameters),
            copy: take(2 * copied),
            gradients: take(4 * trained),
            first: take(4 * trained),
            second: take(4 * trained),
            step: take(size_of::<Step>()),
            groups: take(GROUPS * size_of::<UpdateGroup>()),
            clip: take(size_of::<Clip>()),
        };
        (layout, end)
    }

    fn from(self, base: Address) -> Self {
        let Self { arena, parameters, copy, gradients, first, second, step, groups, clip } = self;
        Self {
            arena: base + arena,
            parameters: base + parameters,
            copy: base + copy,
            gradients: base + gradients,
            first: base + first,
            second: base + second,
            step: base + step,
            groups: base + groups,
            clip: base + clip,
        }
    }

    fn of(&self, space: Space) -> Address {
        match space {
            Space::Arena => self.arena,
            Space::Parameters => self.parameters,
            Space::Gradients => self.gradients,
            Space::FirstMoment => self.first,
            Space::SecondMoment => self.second,
        }
    }
}

impl CudaBackend {
    /// A backend without buffers yet.
    ///
    /// # Errors
    /// If the device gives no memory at all.
    pub fn new(device: Device, precision: Precision) -> Result<Self, BackendError> {
        let arrivals = (0..KEPT).map(|_| device.event(false)).collect::<Result<_, _>>()?;
        Ok(Self {
            precision,
            graphs: true,
            sizes: Sizes::default(),
            slab: device.allocate(0)?,
            layout: Layout::default(),
            scratch: device.allocate(0)?,
            staging: Staging::new(&device)?,
            numbers: device.pinned(KEPT * size_of::<f32>())?,
            arrivals,
            tickets: 0,
            copy_is_old: false,
            programs: HashMap::new(),
            updates: HashMap::new(),
            device,
        })
    }

    /// The same, but kernels are launched one by one: what graphs are checked against.
    pub fn without_graphs(self) -> Self {
        Self { graphs: false, ..self }
    }

    /// The device.
    pub fn device(&mut self) -> &mut Device {
        &mut self.device
    }

    /// The launches of a program for batches of up to `extents`, made for the scratch memory that they need.
    fn lowered(
        &mut self,
        extents: Extents,
        lower: &dyn Fn(&Places, &mut Launches),
        program: &Program,
    ) -> Result<Vec<Launch>, BackendError> {
        let layout = self.layout;
        let value = |var: Var| {
            let span = program.span(var, program.capacity());
            layout.of(span.space) + 4 * span.offset as Address
        };
        let copy = |var: Var| match program.origin(var) {
            Origin::Parameter(offset) => layout.copy + 2 * offset as Address,
            _ => unreachable!("only parameters have a copy"),
        };
        let places = Places { value: &value, copy: &copy };
        let (processors, kernels) = (self.device.processors(), self.device.kernels());
        let make = |scratch: Address| {
            let mut launches = Launches::new(layout.step, extents, scratch);
            (launches.processors, launches.kernels) = (processors, kernels);
            lower(&places, &mut launches);
            launches
        };
        let bytes = make(0).scratch_bytes();
        self.make_room(bytes)?;
        Ok(make(self.scratch.start).list)
    }

    /// Makes room for a program's kernels at any size of batch, when it is met first: what they need does not always
    /// grow with the batch.
    fn make_room_for_any_batch(&mut self, program: &Program, batch: Extents) -> Result<(), BackendError> {
        let capacity = *program.capacity();
        let Extents { sequences, groups, predictions, .. } = capacity;
        let few = |count: usize, own: usize| count.next_multiple_of(FEW).max(own);
        let mut bytes = 0;
        for tokens in (LINE..=capacity.tokens.next_multiple_of(LINE)).step_by(LINE) {
            let extents = Extents {
                tokens,
                sequences: few(sequences, batch.sequences),
                groups: few(groups, batch.groups),
                predictions: predictions.next_multiple_of(LINE).min(tokens),
                in_lines: false,
            };
            let nowhere = |_: Var| ALIGNMENT as Address;
            let mut launches = Launches::new(0, extents, 0);
            (launches.processors, launches.kernels) = (self.device.processors(), self.device.kernels());
            lower(program, &Places { value: &nowhere, copy: &nowhere }, &mut launches);
            bytes = bytes.max(launches.scratch_bytes());
        }
        self.make_room(bytes)
    }

    /// Makes the scratch memory at least so large; what was captured with a smaller one is forgotten.
    fn make_room(&mut self, bytes: usize) -> Result<(), BackendError> {
        if bytes > self.scratch.bytes {
            self.device.synchronize()?;
            self.programs.clear();
            self.updates.clear();
            self.scratch = self.device.allocate(0)?; // Before there are two.
            self.scratch = self.device.allocate(bytes)?;
        }
        Ok(())
    }

    /// Sends what a step's kernels read beside the batch.
    fn begin(&mut self, step: &StepScalars) -> Result<(), BackendError> {
        let extents = step.extents;
        self.staging.send(&self.device, self.layout.step, bytemuck::bytes_of(&Step::new(step)))?;
        if self.copy_is_old && self.precision == Precision::Bf16 {
            let mut launches = Launches::new(self.layout.step, extents, 0);
            let count = self.sizes.parameters as u32;
            round_to_bf16(&mut launches, self.layout.parameters, self.layout.copy, count);
            launches.list.iter().try_for_each(|launch| self.device.launch(launch))?;
        }
        self.copy_is_old = false;
        Ok(())
    }

    fn prepare(&mut self, launches: Vec<Launch>) -> Result<Work, BackendError> {
        Ok(match self.graphs {
            true => Work::Graph(self.device.capture(&launches)?),
            false => Work::Launches(launches),
        })
    }

    /// Where a span lies.
    fn place(&self, span: Span, bytes: usize) -> Address {
        assert!(bytes <= 4 * span.len, "{bytes} bytes for {span:?}");
        self.layout.of(span.space) + 4 * span.offset as Address
    }

    /// The next number: it is copied from the device's memory at `from`.
    fn ticket(&mut self, from: Address) -> Result<Ticket, BackendError> {
        let slot = self.tickets as usize % KEPT;
        let place = slot_range(slot);
        self.device.download(from, &mut self.numbers.bytes()[place])?;
        self.device.record(&self.arrivals[slot])?;
        self.tickets += 1;
        Ok(Ticket::new(self.tickets - 1))
    }
}

fn replay(work: &Work, device: &mut Device) -> Result<(), BackendError> {
    match work {
        Work::Graph(graph) => graph.launch(),
        Work::Launches(launches) => launches.iter().try_for_each(|launch| device.launch(launch)),
    }
}

fn slot_range(slot: usize) -> Range<usize> {
    slot * size_of::<f32>()..(slot + 1) * size_of::<f32>()
}

/// Pinned memory through which small things are sent: it is filled from its start, one half after the other.
struct Staging {
    pinned: Pinned,
    half: usize,
    used: usize,
    /// When what lies in each half has been copied.
    copied: [CudaEvent; 2],
}

impl Staging {
    fn new(device: &Device) -> Result<Self, BackendError> {
        let copied = [device.event(false)?, device.event(false)?];
        Ok(Self { pinned: device.pinned(STAGING)?, half: 0, used: 0, copied })
    }

    /// Queues a copy of `bytes`, which may change as soon as this returns.
    fn send(&mut self, device: &Device, to: Address, bytes: &[u8]) -> Result<(), BackendError> {
        const HALF: usize = STAGING / 2;
        if bytes.len() > HALF {
            device.upload(to, bytes)?;
            return device.synchronize();
        }
        if self.used + bytes.len() > HALF {
            device.record(&self.copied[self.half])?;
            self.half = 1 - self.half;
            self.used = 0;
            device.wait(&self.copied[self.half])?;
        }
        let start = self.half * HALF + self.used;
        let place = &mut self.pinned.bytes()[start..start + bytes.len()];
        place.copy_from_slice(bytes);
        device.upload(to, place)?;
        self.used += bytes.len().next_multiple_of(16);
        Ok(())
    }
}

impl Backend for CudaBackend {
    fn precision(&self) -> Precision {
        self.precision
    }

    fn line(&self) -> usize {
        LINE
    }

    fn reserve(&mut self, sizes: &Sizes) -> Result<(), BackendError> {
        if *sizes == self.sizes {
            return Ok(());
        }
        self.device.synchronize()?;
        self.programs.clear();
        self.updates.clear();
        let (offsets, bytes) = Layout::new(sizes, self.precision);
        let slab = self.device.allocate(bytes)?;
        let layout = offsets.from(slab.start);
        let trained = |sizes: &Sizes| if sizes.training { sizes.parameters } else { 0 };
        let (before, now) = (trained(&self.sizes), trained(sizes));
        for (space, before, now) in [
            (Space::Parameters, self.sizes.parameters, sizes.parameters),
            (Space::Gradients, before, now),
            (Space::FirstMoment, before, now),
            (Space::SecondMoment, before, now),
        ] {
            if before == now && now > 0 {
                self.device.copy(self.layout.of(space), layout.of(space), 4 * now)?;
            }
        }
        self.device.synchronize()?;
        (self.slab, self.layout, self.sizes) = (slab, layout, *sizes);
        self.copy_is_old = true;
        Ok(())
    }

    fn write(&mut self, span: Span, bytes: &[u8]) -> Result<(), BackendError> {
        let to = self.place(span, bytes.len());
        self.copy_is_old |= span.space == Space::Parameters;
        self.staging.send(&self.device, to, bytes)
    }

    fn read(&mut self, span: Span, bytes: &mut [u8]) -> Result<(), BackendError> {
        let from = self.place(span, bytes.len());
        self.device.download(from, bytes)?;
        self.device.synchronize()
    }

    fn clear(&mut self, span: Span) -> Result<(), BackendError> {
        let at = self.place(span, 4 * span.len);
        self.copy_is_old |= span.space == Space::Parameters;
        self.device.zero(at, 4 * span.len)
    }

    fn run(&mut self, program: &Program, step: &StepScalars) -> Result<(), BackendError> {
        let extents = step.extents;
        assert!(
            extents.fit(program.capacity()),
            "a batch of {extents:?} exceeds the plan for {:?}",
            program.capacity()
        );
        let rounded = Extents {
            tokens: extents.tokens.next_multiple_of(LINE),
            sequences: extents.sequences.next_multiple_of(FEW),
            groups: extents.groups.next_multiple_of(FEW),
            predictions: extents.predictions.next_multiple_of(LINE),
            in_lines: self.device.kernels() == Kernels::Hopper && extents.in_lines,
        };
        let key = (program.number(), rounded);
        if !self.programs.contains_key(&key) {
            if !self.programs.keys().any(|(number, _)| *number == program.number()) {
                self.make_room_for_any_batch(program, rounded)?;
            }
            let launches =
                self.lowered(rounded, &|places, launches| lower(program, places, launches), program)?;
            let work = self.prepare(launches)?;
            self.programs.insert(key, work);
        }
        self.begin(step)?;
        replay(&self.programs[&key], &mut self.device)
    }

    fn run_one(&mut self, program: &Program, op: &Op, step: &StepScalars) -> Result<(), BackendError> {
        self.begin(step)?;
        let one = |places: &Places, launches: &mut Launches| lower_one(program, op, places, launches);
        let launches = self.lowered(step.extents, &one, program)?;
        launches.iter().try_for_each(|launch| self.device.launch(launch))
    }

    fn update(&mut self, optimizer: &Optimizer, clip: f32, groups: &[Group]) -> Result<Ticket, BackendError> {
        let slots = groups.len().next_power_of_two().max(16);
        assert!(slots <= GROUPS, "an update of {} groups", groups.len());
        let Optimizer { rule, beta1, beta2, epsilon } = *optimizer;
        let key = (rule, [beta1, beta2, epsilon, clip].map(f32::to_bits), slots as u32);
        if !self.updates.contains_key(&key) {
            let Layout { parameters, copy, gradients, first, second, step, groups, clip: at, .. } =
                self.layout;
            let buffers = Buffers {
                len: self.sizes.parameters,
                parameters,
                gradients,
                first,
                second,
                copy: if self.precision == Precision::Bf16 { copy } else { 0 },
                groups,
                slots: slots as u32,
                clip: at,
            };
            let make = |scratch: Address| {
                let mut launches = Launches::new(step, Extents::default(), scratch);
                update::update(&mut launches, optimizer, clip, &buffers);
                launches
            };
            self.make_room(make(0).scratch_bytes())?;
            let work = self.prepare(make(self.scratch.start).list)?;
            self.updates.insert(key, work);
        }
        let array = UpdateGroup::array(optimizer, groups, slots);
        self.staging.send(&self.device, self.layout.groups, bytemuck::cast_slice(&array))?;
        replay(&self.updates[&key], &mut self.device)?;
        self.ticket(self.layout.clip)
    }

    fn keep(&mut self, span: Span) -> Result<Ticket, BackendError> {
        self.ticket(self.place(span, size_of::<f32>()))
    }

    fn number(&mut self, ticket: Ticket) -> Result<f32, BackendError> {
        let age = self.tickets - ticket.number();
        assert!((1..=KEPT as u64).contains(&age), "a number of {age} tickets ago");
        let slot = ticket.number() as usize % KEPT;
        self.device.wait(&self.arrivals[slot])?;
        Ok(bytemuck::pod_read_unaligned(&self.numbers.bytes()[slot_range(slot)]))
    }

    fn steps_ahead(&self) -> usize {
        2
    }
}
