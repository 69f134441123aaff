//! Operations whose kernels know f32 alone, in a program that keeps values in bf16: they run on copies.
//!
//! These are the small ones: heads, losses, sums. What a step spends its time in reads and writes bf16 itself.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::blocks::BLOCK;
use super::elements::{Elements, ElementsMut, store_all, widen};
use super::isa::Isa;
use super::run::Values;
use super::shared::SharedMut;
use super::simd::multiversion;
use crate::tensor::{Access, DType, Op, Program, Var};

/// Which operands of which operations of a program are copied. Asking an operation for its operands allocates, so that
/// it is done once a program.
#[derive(Default)]
pub(super) struct Copies {
    of_step: Vec<Vec<(Access, Var)>>,
    floats: usize,
}

impl Copies {
    pub(super) fn new(program: &Program, ops: &[Op]) -> Self {
        let of_step: Vec<_> = ops.iter().map(|op| copied_operands(program, op)).collect();
        let size = |var: Var| place(program.shape(var).len(program.capacity()));
        let floats = of_step.iter().map(|copied| copied.iter().map(|(_, var)| size(*var)).sum());
        let floats = floats.max().unwrap_or(0);
        Self { of_step, floats }
    }

    /// The most that the copies of one operation take.
    pub(super) fn floats(&self) -> usize {
        self.floats
    }

    /// What is copied for the operation of this number.
    pub(super) fn of_step(&self, number: usize) -> &[(Access, Var)] {
        &self.of_step[number]
    }
}

fn copied_operands(program: &Program, op: &Op) -> Vec<(Access, Var)> {
    let copied = |var: &Var| match op {
        Op::Embedding { .. }
        | Op::Linear { .. }
        | Op::Attention { .. }
        | Op::AddNorm { .. }
        | Op::Drop { .. }
        | Op::Gather { .. }
        | Op::VocabularyLoss { .. }
        | Op::Fill { .. }
        | Op::Accumulate { .. }
        | Op::EmbeddingGrad { .. }
        | Op::ActivationGrad { .. }
        | Op::LinearInputGrad { .. }
        | Op::LinearWeightGrad { .. }
        | Op::AttentionGrad { .. }
        | Op::AddNormGrad { .. }
        | Op::GatherGrad { .. } => false,
        // It is added to for each block of the vocabulary, and would be rounded as often.
        Op::VocabularyLossGrad { d_x, .. } => *var == d_x.var,
        Op::Attend { .. }
        | Op::Gru { .. }
        | Op::Merge { .. }
        | Op::StepAverage { .. }
        | Op::CrossEntropy { .. }
        | Op::SquaredError { .. }
        | Op::Ranking { .. }
        | Op::SoftCrossEntropy { .. }
        | Op::WeightedSum { .. }
        | Op::AttendGrad { .. }
        | Op::GruGrad { .. }
        | Op::MergeGrad { .. }
        | Op::StepAverageGrad { .. }
        | Op::CrossEntropyGrad { .. }
        | Op::SquaredErrorGrad { .. }
        | Op::RankingGrad { .. }
        | Op::SoftCrossEntropyGrad { .. }
        | Op::WeightedSumGrad { .. } => true,
    };
    op.operands().into_iter().filter(|(_, var)| program.dtype(*var) == DType::Bf16 && copied(var)).collect()
}

/// Copies begin at cache lines.
fn place(len: usize) -> usize {
    len.next_multiple_of(16)
}

/// The copies of the operation at hand.
#[derive(Clone, Copy)]
pub(super) struct Widened<'a> {
    pub(super) buffer: SharedMut<'a>,
    pub(super) operands: &'a [(Access, Var)],
}

impl<'a> Values<'a> {
    /// Where in the buffer the copy of a value lies, if it has one.
    pub(super) fn copy(&self, var: Var) -> Option<Range<usize>> {
        let mut start = 0;
        for (_, copied) in self.widened.operands {
            let len = self.program.shape(*copied).len(&self.extents);
            if *copied == var {
                return Some(start..start + len);
            }
            start += place(len);
        }
        None
    }

    /// Fills the copies of what the operation at hand reads or adds to.
    pub(super) fn widen(&self, isa: Isa) {
        for (access, var) in self.widened.operands {
            if let (Access::Read | Access::Add, Elements::Bf16(from)) = (access, self.stored(*var)) {
                let to = self.get_mut(*var);
                to.par_chunks_mut(BLOCK)
                    .zip(from.par_chunks(BLOCK))
                    .for_each(|(to, from)| widen_block(isa, from, to));
            }
        }
    }

    /// Rounds the copies of what it wrote.
    pub(super) fn narrow(&self, isa: Isa) {
        for (access, var) in self.widened.operands {
            if let (Access::Write | Access::Add, ElementsMut::Bf16(to)) = (access, self.stored_mut(*var)) {
                let from = self.get(*var);
                to.par_chunks_mut(BLOCK)
                    .zip(from.par_chunks(BLOCK))
                    .for_each(|(to, from)| store_all(isa, from, ElementsMut::Bf16(to)));
            }
        }
    }
}

multiversion! {
    fn widen_block<FMA>(from: &[bf16], to: &mut [f32]) {
        widen(from, to);
    }
}
