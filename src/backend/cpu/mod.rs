//! The CPU backend: kernels on slices, parallel over the rayon pool that the caller runs in.
//!
//! | file | kernels |
//! |---|---|
//! | [`gemm`] | matrix products in three transposed forms, with bias, GELU or addition in the write-back |
//! | [`attention`] | variable-length multi-head attention, both ways |
//! | [`norm`], [`dropout`], [`activation`] | what stands between the products, both ways |
//! | [`embedding`], [`gather`] | rows of tables, and the sums of gradients into them |
//! | [`attend`], [`san`] | the stochastic answer network, beside its products, both ways |
//! | [`loss`], [`vocabulary`], [`update`] | the ends of a step: losses, and clip, moments and parameters in one pass |
//! | [`math`], [`philox`] | exponentials and draws as plain loops |
//! | [`isa`], `simd`, [`scratch`], `shared`, `blocks`, [`bounds`], [`sums`] | how one kernel serves each instruction set and any thread count |
//!
//! A step allocates nothing: what kernels need beyond their operands is the workspace, which the first run of a
//! program grows to what its largest batch takes. Every sum is of blocks and in an order that do not depend on the
//! number of threads, so that results are the same, bit for bit, at any thread count.

pub mod activation;
pub mod attend;
pub mod attention;
mod blocks;
pub mod bounds;
pub mod dropout;
pub mod elements;
pub mod elementwise;
pub mod embedding;
pub mod gather;
pub mod gemm;
pub mod isa;
pub mod loss;
pub mod math;
pub mod norm;
pub mod philox;
mod run;
pub mod san;
pub mod scratch;
mod shared;
mod simd;
pub mod sums;
#[cfg(test)]
mod testing;
pub mod update;
pub mod vocabulary;
mod widened;

pub use blocks::SinkMut;

use std::collections::HashMap;

use super::{Backend, BackendError, Group, KEPT, Optimizer, Sizes, StepScalars, Ticket};
use crate::tensor::{Op, Precision, Program, Space, Span};
use isa::Isa;
use philox::Stream;
use run::Values;
use scratch::{Workspace, Zeroed};
use shared::SharedMut;
use widened::{Copies, Widened};

/// Runs programs in the memory of this process, on the rayon pool of the calling thread.
pub struct CpuBackend {
    isa: Isa,
    precision: Precision,
    workspace: Workspace,
    /// What each program that has run needs beside its values, by the program's number.
    prepared: HashMap<u64, Prepared>,
    widened: Vec<f32>,
    arena: Zeroed,
    parameters: Zeroed,
    gradients: Zeroed,
    first_moment: Zeroed,
    second_moment: Zeroed,
    numbers: [f32; KEPT],
    tickets: u64,
}

/// What is found out about a program once.
struct Prepared {
    copies: Copies,
    /// Whether each operation is run as one with the next.
    fused: Vec<bool>,
}

impl Prepared {
    fn new(program: &Program, ops: &[Op]) -> Self {
        let fused = (0..ops.len()).map(|number| run::is_fused(ops, number)).collect();
        Self { copies: Copies::new(program, ops), fused }
    }
}

impl CpuBackend {
    /// A backend in f32 without memory yet, for the pool that the caller runs in.
    pub fn new() -> Self {
        Self::with_isa(Isa::detect())
    }

    /// A backend in f32 that uses this instruction set.
    ///
    /// # Panics
    /// If the machine lacks it.
    pub fn with_isa(isa: Isa) -> Self {
        isa.assert_available();
        Self {
            isa,
            precision: Precision::F32,
            workspace: Workspace::new(rayon::current_num_threads()),
            prepared: HashMap::new(),
            widened: Vec::new(),
            arena: Zeroed::default(),
            parameters: Zeroed::default(),
            gradients: Zeroed::default(),
            first_moment: Zeroed::default(),
            second_moment: Zeroed::default(),
            numbers: [0.0; KEPT],
            tickets: 0,
        }
    }

    /// The same backend, for programs of this precision.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    fn run_all(&mut self, program: &Program, ops: &[Op], prepared: &Prepared, step: &StepScalars) {
        let StepScalars { extents, seed, step } = *step;
        assert!(
            extents.fit(program.capacity()),
            "a batch of {extents:?} exceeds the plan for {:?}",
            program.capacity()
        );
        run::reserve(self.isa, &mut self.workspace, program);
        let Prepared { copies, fused } = prepared;
        if self.widened.len() < copies.floats() {
            self.widened = vec![0.0; copies.floats()];
        }
        let mut values = Values {
            program,
            extents,
            arena: SharedMut::new(&mut self.arena),
            parameters: SharedMut::new(&mut self.parameters),
            gradients: SharedMut::new(&mut self.gradients),
            widened: Widened { buffer: SharedMut::new(&mut self.widened), operands: &[] },
        };
        for (number, op) in ops.iter().enumerate() {
            if number > 0 && fused[number - 1] {
                continue;
            }
            if fused[number] {
                run::run_fused(self.isa, &mut self.workspace, &values, op, &ops[number + 1]);
                continue;
            }
            values.widened.operands = copies.of_step(number);
            values.widen(self.isa);
            run::run(self.isa, &mut self.workspace, Stream { seed, step }, &values, op);
            values.narrow(self.isa);
        }
    }

    fn ticket(&mut self, number: f32) -> Ticket {
        let ticket = Ticket::new(self.tickets);
        self.numbers[self.tickets as usize % KEPT] = number;
        self.tickets += 1;
        ticket
    }

    fn buffer(&mut self, space: Space) -> &mut Zeroed {
        match space {
            Space::Arena => &mut self.arena,
            Space::Parameters => &mut self.parameters,
            Space::Gradients => &mut self.gradients,
            Space::FirstMoment => &mut self.first_moment,
            Space::SecondMoment => &mut self.second_moment,
        }
    }
}

impl Default for CpuBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl Backend for CpuBackend {
    fn precision(&self) -> Precision {
        self.precision
    }

    fn line(&self) -> usize {
        1
    }

    fn reserve(&mut self, sizes: &Sizes) -> Result<(), BackendError> {
        let Sizes { parameters, arena, training } = *sizes;
        let trained = if training { parameters } else { 0 };
        let bytes = (parameters + arena + 3 * trained) * size_of::<f32>();
        for (space, len) in [
            (Space::Arena, arena),
            (Space::Parameters, parameters),
            (Space::Gradients, trained),
            (Space::FirstMoment, trained),
            (Space::SecondMoment, trained),
        ] {
            let buffer = self.buffer(space);
            if buffer.len() != len {
                *buffer = Zeroed::new(len).ok_or(BackendError::OutOfMemory { bytes, available: None })?;
            }
        }
        Ok(())
    }

    fn write(&mut self, span: Span, bytes: &[u8]) -> Result<(), BackendError> {
        bytemuck::cast_slice_mut::<f32, u8>(&mut self.buffer(span.space)[span.range()])
            .copy_from_slice(bytes);
        Ok(())
    }

    fn read(&mut self, span: Span, bytes: &mut [u8]) -> Result<(), BackendError> {
        bytes.copy_from_slice(bytemuck::cast_slice(&self.buffer(span.space)[span.range()]));
        Ok(())
    }

    fn clear(&mut self, span: Span) -> Result<(), BackendError> {
        self.buffer(span.space)[span.range()].fill(0.0);
        Ok(())
    }

    fn run(&mut self, program: &Program, step: &StepScalars) -> Result<(), BackendError> {
        let prepared = self.prepared.remove(&program.number());
        let prepared = prepared.unwrap_or_else(|| Prepared::new(program, program.ops()));
        self.run_all(program, program.ops(), &prepared, step);
        self.prepared.insert(program.number(), prepared);
        Ok(())
    }

    fn run_one(&mut self, program: &Program, op: &Op, step: &StepScalars) -> Result<(), BackendError> {
        let ops = std::slice::from_ref(op);
        self.run_all(program, ops, &Prepared::new(program, ops), step);
        Ok(())
    }

    fn update(&mut self, optimizer: &Optimizer, clip: f32, groups: &[Group]) -> Result<Ticket, BackendError> {
        let squares = groups
            .iter()
            .filter(|group| !group.zero_gradient)
            .map(|group| update::squared_norm(self.isa, &self.gradients[group.range.clone()]));
        let norm = squares.sum::<f64>().sqrt();
        if !norm.is_finite() {
            return Ok(self.ticket(norm as f32));
        }
        // As PyTorch's clip_grad_norm_: the small number keeps a norm of zero from dividing.
        let clip_scale = if clip > 0.0 { (f64::from(clip) / (norm + 1e-6)).min(1.0) as f32 } else { 1.0 };
        for group in groups {
            let buffers = update::Buffers {
                parameters: &mut self.parameters[group.range.clone()],
                gradients: &self.gradients[group.range.clone()],
                first: &mut self.first_moment[group.range.clone()],
                second: &mut self.second_moment[group.range.clone()],
            };
            update::update(self.isa, optimizer, group, clip_scale, buffers);
        }
        Ok(self.ticket(norm as f32))
    }

    fn keep(&mut self, span: Span) -> Result<Ticket, BackendError> {
        let number = self.buffer(span.space)[span.offset];
        Ok(self.ticket(number))
    }

    fn number(&mut self, ticket: Ticket) -> Result<f32, BackendError> {
        let age = self.tickets - ticket.number();
        assert!((1..=KEPT as u64).contains(&age), "a number of {age} tickets ago");
        Ok(self.numbers[ticket.number() as usize % KEPT])
    }

    fn steps_ahead(&self) -> usize {
        0
    }
}
