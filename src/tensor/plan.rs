//! The planner: a tape and a capacity become a [`Program`] in which every value has a fixed place.
//!
//! A value lives from its first write to its last read; two values share memory when they never live at
//! the same time. Places are dealt out largest first, each at the lowest offset that is free for the whole
//! of the value's life (Pisarchyk and Lee 2020, "greedy by size").

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::grad::differentiate;
use super::op::{Op, Var};
use super::operands::Access;
use super::precision::{Precision, narrow};
use super::shape::{DType, Extents, Shape};
use super::tape::{Mode, Origin, Tape, Value};

/// One of a backend's flat buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Inputs and computed values; shared by all programs.
    Arena,
    /// The master copy of every parameter.
    Parameters,
    /// The gradient of every parameter, at the parameter's offset.
    Gradients,
    /// The optimizer's first moment (momentum) of every parameter.
    FirstMoment,
    /// The optimizer's second moment (scale) of every parameter.
    SecondMoment,
}

/// A range of four-byte words of a buffer: that many elements, or twice as many where they are bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Which buffer.
    pub space: Space,
    /// First word.
    pub offset: usize,
    /// The number of words.
    pub len: usize,
}

impl Span {
    /// The words as a range of the buffer.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len
    }
}

/// How many programs have been planned.
static PROGRAMS: AtomicU64 = AtomicU64::new(0);

/// Places start at multiples of this many words: one cache line.
const ALIGNMENT: usize = 16;

/// A planned computation: steps in order, a place for every value, and its bytes known before it runs.
#[derive(Clone, Debug)]
pub struct Program {
    ops: Vec<Op>,
    values: Vec<Value>,
    /// Each value's place with the capacity's rows; `None` for a value that no step touches.
    spans: Vec<Option<Span>>,
    capacity: Extents,
    arena_len: usize,
    precision: Precision,
    outputs: Vec<Var>,
    number: u64,
}

impl Program {
    /// The forward and backward pass of the sum of `losses`, scaled by `scale`, for batches up to `capacity`.
    ///
    /// Parameter gradients are stored, or with `accumulate` added to the gradient buffer.
    pub fn training(
        mut tape: Tape,
        losses: &[Var],
        scale: f32,
        accumulate: bool,
        capacity: Extents,
    ) -> Program {
        differentiate(&mut tape, losses, scale, accumulate);
        Program::plan(tape, losses, capacity)
    }

    /// The forward pass alone; `outputs` keep their places to the end.
    pub fn inference(tape: Tape, outputs: &[Var], capacity: Extents) -> Program {
        assert_eq!(
            tape.mode,
            Mode::Inference,
            "record with Mode::Inference, so that nothing is kept or dropped"
        );
        Program::plan(tape, outputs, capacity)
    }

    /// The steps, in the order they run.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// The shape of a value.
    pub fn shape(&self, var: Var) -> Shape {
        self.values[var.index()].shape
    }

    /// The kind of element of a value.
    pub fn dtype(&self, var: Var) -> DType {
        self.values[var.index()].dtype
    }

    /// What a value is called.
    pub fn name(&self, var: Var) -> &str {
        &self.values[var.index()].name
    }

    /// Where a value comes from.
    pub fn origin(&self, var: Var) -> Origin {
        self.values[var.index()].origin
    }

    /// What the program computes in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Whether a value is what the program is run for, and so keeps its place to the end.
    pub fn is_output(&self, var: Var) -> bool {
        self.outputs.contains(&var)
    }

    /// A number that no other program of this process has: by it a backend knows what it has prepared.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The largest batch that the program has room for.
    pub fn capacity(&self) -> &Extents {
        &self.capacity
    }

    /// The number of words of the arena; four bytes each.
    pub fn arena_len(&self) -> usize {
        self.arena_len
    }

    /// Where a value lies in a batch of `extents`.
    pub fn span(&self, var: Var, extents: &Extents) -> Span {
        let value = &self.values[var.index()];
        let place = self.spans[var.index()].unwrap_or_else(|| panic!("no step touches {}", value.name));
        let span = Span { len: value.words(extents), ..place };
        assert!(
            span.len <= place.len,
            "{} {} of {extents:?} exceeds the plan's {} words",
            value.name,
            value.shape,
            place.len
        );
        span
    }

    /// Whether any step touches a value: an input that none reads need not be written.
    pub fn uses(&self, var: Var) -> bool {
        self.spans[var.index()].is_some()
    }

    /// The element ranges of the gradient buffer that the program stores or adds to, in offset order.
    pub fn gradient_ranges(&self) -> Vec<Range<usize>> {
        let mut ranges: Vec<_> = self
            .values
            .iter()
            .zip(&self.spans)
            .filter(|(value, _)| matches!(value.origin, Origin::Gradient(_)))
            .filter_map(|(_, span)| span.map(|span| span.range()))
            .collect();
        ranges.sort_by_key(|range| range.start);
        ranges
    }

    fn plan(tape: Tape, outputs: &[Var], capacity: Extents) -> Program {
        let Tape { mode: _, mut values, ops, precision, .. } = tape;
        if precision == Precision::Bf16 {
            narrow(&mut values, &ops);
        }
        let lives = lives(&values, &ops, outputs);
        let mut spans = vec![None; values.len()];
        for (index, value) in values.iter().enumerate() {
            let fixed = |space, offset| Some(Span { space, offset, len: value.words(&capacity) });
            spans[index] = match value.origin {
                _ if lives[index].is_none() => None,
                Origin::Parameter(offset) => fixed(Space::Parameters, offset),
                Origin::Gradient(offset) => fixed(Space::Gradients, offset),
                Origin::Input | Origin::Computed => None,
            };
        }
        let blocks: Vec<Block> = (0..values.len())
            .filter(|&index| matches!(values[index].origin, Origin::Input | Origin::Computed))
            .filter_map(|index| {
                let len = values[index].words(&capacity);
                lives[index].clone().map(|life| Block { index, len, life })
            })
            .collect();
        let (offsets, arena_len) = pack(&blocks);
        for (block, offset) in blocks.iter().zip(offsets) {
            spans[block.index] = Some(Span { space: Space::Arena, offset, len: block.len });
        }
        let number = PROGRAMS.fetch_add(1, Ordering::Relaxed);
        Program { ops, values, spans, capacity, arena_len, precision, outputs: outputs.to_vec(), number }
    }
}

/// The program as text: one line a step with its outputs' names, shapes, bytes and places.
///
/// Two programs that print the same compute the same, so the print is what a refactoring is checked by.
impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Extents { tokens, sequences, groups, predictions, .. } = self.capacity;
        let steps = self.ops.len();
        write!(f, "{steps} steps for at most {tokens} tokens, {sequences} sequences, {groups} groups")?;
        if predictions > 0 {
            write!(f, ", {predictions} predictions")?;
        }
        writeln!(f, "; arena {} bytes", self.arena_len * 4)?;
        for (number, op) in self.ops.iter().enumerate() {
            write!(f, "{number:4}  {:<18}", op.name())?;
            let mut separator = "";
            for (access, var) in op.operands() {
                let sign = match access {
                    Access::Read => continue,
                    Access::Write => "=",
                    Access::Add => "+=",
                    Access::Work => "~",
                };
                let value = &self.values[var.index()];
                let span = self.span(var, &self.capacity);
                let space = match span.space {
                    Space::Arena => "arena",
                    Space::Parameters => "parameters",
                    Space::Gradients => "gradients",
                    Space::FirstMoment | Space::SecondMoment => "moments",
                };
                write!(
                    f,
                    "{separator} %{} {sign} {} {} {}{} bytes at {space}+{}",
                    var.index(),
                    value.name,
                    value.shape,
                    if value.dtype == DType::Bf16 { "bf16 " } else { "" },
                    span.len * 4,
                    span.offset * 4
                )?;
                separator = ",";
            }
            write!(f, "  <-")?;
            for (_, var) in op.operands().iter().filter(|(access, _)| *access == Access::Read) {
                write!(f, " %{}", var.index())?;
                if self.values[var.index()].origin != Origin::Computed {
                    write!(f, ":{}", self.values[var.index()].name)?;
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// A value to be placed: its number, its size in words, and the steps during which it lives.
struct Block {
    index: usize,
    len: usize,
    life: Range<usize>,
}

/// Each value's life as a range of steps, inputs from the start and `outputs` to the end.
fn lives(values: &[Value], ops: &[Op], outputs: &[Var]) -> Vec<Option<Range<usize>>> {
    let mut lives: Vec<Option<Range<usize>>> = vec![None; values.len()];
    for (step, op) in ops.iter().enumerate() {
        for (access, var) in op.operands() {
            let value = &values[var.index()];
            match &mut lives[var.index()] {
                Some(life) => life.end = step + 1,
                none => {
                    let written_here = matches!(access, Access::Write | Access::Work);
                    assert!(
                        written_here || value.origin != Origin::Computed,
                        "{} reads {} before anything writes it",
                        op.name(),
                        value.name
                    );
                    let start = match value.origin {
                        Origin::Input => 0,
                        // A backend may compute an activation's gradient as it writes the product that it is made from.
                        _ if matches!(op, Op::ActivationGrad { .. }) => step.saturating_sub(1),
                        _ => step,
                    };
                    *none = Some(start..step + 1);
                }
            }
        }
    }
    for output in outputs {
        let life = lives[output.index()].as_mut();
        life.unwrap_or_else(|| panic!("output {} is never computed", values[output.index()].name)).end =
            ops.len() + 1;
    }
    debug_assert!(values.iter().all(|v| v.dtype != DType::U32 || v.origin == Origin::Input));
    lives
}

/// An offset for each block such that blocks with overlapping lives do not overlap, and the total length.
fn pack(blocks: &[Block]) -> (Vec<usize>, usize) {
    let padded = |len: usize| len.next_multiple_of(ALIGNMENT);
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(blocks[i].len), blocks[i].index));
    let mut offsets = vec![0; blocks.len()];
    let mut placed: Vec<usize> = Vec::with_capacity(blocks.len());
    let mut total = 0;
    for i in order {
        let mut taken: Vec<Range<usize>> = placed
            .iter()
            .filter(|&&j| {
                blocks[j].life.start < blocks[i].life.end && blocks[i].life.start < blocks[j].life.end
            })
            .map(|&j| offsets[j]..offsets[j] + padded(blocks[j].len))
            .collect();
        taken.sort_by_key(|range| range.start);
        let mut offset = 0;
        for range in taken {
            if range.start >= offset + padded(blocks[i].len) {
                break;
            }
            offset = offset.max(range.end);
        }
        offsets[i] = offset;
        total = total.max(offset + padded(blocks[i].len));
        placed.push(i);
    }
    (offsets, total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Activation, Rows};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_that_live_together_never_overlap(
            raw in prop::collection::vec((1usize..200, 0usize..40, 1usize..20), 1..60)
        ) {
            let blocks: Vec<Block> = raw
                .iter()
                .enumerate()
                .map(|(index, &(len, start, steps))| Block { index, len, life: start..start + steps })
                .collect();
            let (offsets, total) = pack(&blocks);
            for (i, a) in blocks.iter().enumerate() {
                prop_assert!(offsets[i] + a.len <= total);
                prop_assert_eq!(offsets[i] % ALIGNMENT, 0);
                for (j, b) in blocks.iter().enumerate().skip(i + 1) {
                    let together = a.life.start < b.life.end && b.life.start < a.life.end;
                    let overlap = offsets[i] < offsets[j] + b.len && offsets[j] < offsets[i] + a.len;
                    prop_assert!(!(together && overlap), "{} and {} overlap", i, j);
                }
            }
        }
    }

    #[test]
    fn a_place_is_used_again_after_its_last_reader() {
        let block = |index, life| Block { index, len: 100, life };
        let (offsets, total) = pack(&[block(0, 0..2), block(1, 1..3), block(2, 2..4)]);
        assert_eq!(offsets[0], offsets[2], "the first block is dead when the third is born");
        assert_eq!(total, 2 * 112, "two blocks live at once, each padded to a cache line");
    }

    #[test]
    fn prints_every_step_with_its_places() {
        let mut tape = Tape::new(Mode::Training);
        let keys = tape.input("keys", DType::U32, Rows::Sequences, 1);
        let x = tape.input("x", DType::F32, Rows::Sequences, 3);
        let targets = tape.input("targets", DType::F32, Rows::Sequences, 1);
        let site = tape.dropout_site(0.5);
        let dropped = tape.drop(x, Some(keys), site);
        let weight = tape.parameter("weight", 0, 1, 3);
        let bias = tape.parameter("bias", 3, 1, 1);
        let scores = tape.linear(dropped, weight, bias, Activation::Tanh);
        let loss = tape.squared_error(scores, targets);
        let program = Program::training(
            tape,
            &[loss],
            1.0,
            true,
            Extents { tokens: 9, sequences: 5, groups: 5, predictions: 0, in_lines: false },
        );
        let expected = "\
9 steps for at most 9 tokens, 5 sequences, 5 groups; arena 576 bytes
   0  dropout            %3 = dropped [sequences, 3] 60 bytes at arena+64  <- %1:x %0:keys
   1  linear             %6 = before [sequences, 1] 20 bytes at arena+0, %7 = linear [sequences, 1] 20 bytes at \
arena+256  <- %3 %4:weight %5:bias
   2  squared_error      %8 = loss [1, 1] 4 bytes at arena+448  <- %7 %2:targets
   3  fill               %9 = d_loss [1, 1] 4 bytes at arena+512  <-
   4  squared_error_grad %10 = d_linear [sequences, 1] 20 bytes at arena+320  <- %7 %2:targets %9
   5  activation_grad    %11 = d_before [sequences, 1] 20 bytes at arena+384  <- %6 %10
   6  linear_weight_grad %12 += d_weight [1, 3] 12 bytes at gradients+0, %13 += d_bias [1, 1] 4 bytes at \
gradients+12  <- %11 %3
   7  linear_input_grad  %14 = d_dropped [sequences, 3] 60 bytes at arena+0  <- %11 %4:weight
   8  dropout            %15 = d_x [sequences, 3] 60 bytes at arena+64  <- %14 %0:keys
";
        assert_eq!(program.to_string(), expected);
    }
}
