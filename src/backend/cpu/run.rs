//! Walks a program: one arm an operation, each a call of its kernel on slices of the arena.

use super::attention;
use super::embedding::{self, Tokens};
use super::gemm::{Form, Matrix, MatrixMut, WriteBack, gemm};
use super::isa::Isa;
use super::philox::Stream;
use super::scratch::Workspace;
use super::shared::SharedMut;
use super::{activation, dropout, elementwise, gather, loss, norm};
use crate::tensor::{Activation, DType, Extents, Op, Program, Shape, Sink, Space, TokenIndex, Var};

/// The flat buffers as a program sees them: values, not offsets.
pub(super) struct Values<'a> {
    pub(super) program: &'a Program,
    pub(super) extents: Extents,
    pub(super) arena: SharedMut<'a>,
    pub(super) parameters: SharedMut<'a>,
    pub(super) gradients: SharedMut<'a>,
}

impl<'a> Values<'a> {
    /// A value that the operation at hand reads.
    fn get(&self, var: Var) -> &'a [f32] {
        self.slice(var)
    }

    /// Indices that the operation at hand reads.
    fn indices(&self, var: Var) -> &'a [u32] {
        bytemuck::cast_slice(self.slice(var))
    }

    /// A value that the operation at hand writes.
    fn get_mut(&self, var: Var) -> &'a mut [f32] {
        self.slice(var)
    }

    fn slice(&self, var: Var) -> &'a mut [f32] {
        let span = self.program.span(var, &self.extents);
        let buffer = match span.space {
            Space::Arena => &self.arena,
            Space::Parameters => &self.parameters,
            Space::Gradients => &self.gradients,
            Space::FirstMoment | Space::SecondMoment => unreachable!("programs have no moments"),
        };
        // SAFETY: operations run one after another, and the operands of one operation lie apart: the planner
        // gives values that live at the same time disjoint places (a property test holds it to that).
        unsafe { buffer.slice(span.range()) }
    }

    fn shape(&self, var: Var) -> (usize, usize) {
        let Shape { rows, cols } = self.program.shape(var);
        (rows.count(&self.extents), cols)
    }

    fn matrix(&self, var: Var) -> Matrix<'a> {
        let (rows, cols) = self.shape(var);
        Matrix::new(self.get(var), rows, cols)
    }

    fn matrix_mut(&self, var: Var) -> MatrixMut<'a> {
        let (rows, cols) = self.shape(var);
        MatrixMut::new(self.get_mut(var), rows, cols)
    }

    fn tokens(&self, index: &TokenIndex) -> Tokens<'a> {
        Tokens {
            ids: self.indices(index.ids),
            types: self.indices(index.types),
            places: self.indices(index.places),
            order: self.indices(index.order),
            starts: self.indices(index.starts),
        }
    }
}
