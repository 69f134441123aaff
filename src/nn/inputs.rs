//! What a batch brings to a program: the inputs that say what each token is, and the writing of them.

use super::bert::Picked;
use crate::backend::{Backend, BackendError};
use crate::data::Batch;
use crate::tensor::{DType, Extents, Program, Rows, Tape, TokenIndex, Var};

/// Declares the inputs that say what each token is.
pub(super) fn token_index(tape: &mut Tape) -> TokenIndex {
    TokenIndex {
        ids: tape.input("ids", DType::U32, Rows::Tokens, 1),
        types: tape.input("types", DType::U32, Rows::Tokens, 1),
        places: tape.input("places", DType::U32, Rows::Tokens, 1),
        order: tape.input("order", DType::U32, Rows::Tokens, 1),
        starts: tape.input("starts", DType::U32, Rows::Sequences, 1),
        ends: tape.input("ends", DType::U32, Rows::Sequences, 1),
        first_places: tape.input("first_places", DType::U32, Rows::Sequences, 1),
    }
}

/// Declares the inputs that say which tokens are marked.
pub(super) fn marks(tape: &mut Tape) -> Picked {
    Picked {
        rows: tape.input("marked_rows", DType::U32, Rows::Predictions, 1),
        places: tape.input("marked_places", DType::U32, Rows::Predictions, 1),
    }
}

/// A program's inputs for one batch, on their way to a backend.
pub(super) struct Inputs<'a> {
    /// The program that reads them.
    pub program: &'a Program,
    /// Where it will run.
    pub backend: &'a mut dyn Backend,
    /// The batch's size.
    pub extents: Extents,
}

impl Inputs<'_> {
    /// Writes one input, unless no step reads it.
    pub fn write(&mut self, var: Var, values: &[impl bytemuck::Pod]) -> Result<(), BackendError> {
        if !self.program.uses(var) {
            return Ok(());
        }
        self.backend.write(self.program.span(var, &self.extents), bytemuck::cast_slice(values))
    }

    /// Writes what each token is.
    pub fn write_tokens(&mut self, index: &TokenIndex, batch: &Batch) -> Result<(), BackendError> {
        self.write(index.ids, &batch.ids)?;
        self.write(index.types, &batch.types)?;
        self.write(index.places, &batch.places)?;
        self.write(index.order, &batch.order)?;
        self.write(index.starts, &batch.starts)?;
        self.write(index.ends, &batch.ends)?;
        self.write(index.first_places, &batch.first_places)
    }
}
