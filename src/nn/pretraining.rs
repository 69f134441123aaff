//! BERT with its two pre-training heads (Devlin et al. 2018, section 3.1): masked words and next sentence.

use super::bert::{Bert, Picked};
use super::config::BertConfig;
use super::inputs::{Inputs, token_index};
use super::masked::{NextSentence, Words};
use super::model::extents;
use super::parameters::ParameterTable;
use crate::backend::{Backend, BackendError};
use crate::data::{Batch, MaskedBatch};
use crate::tensor::{DType, Extents, Mode, Precision, Program, Rows, Tape, TokenIndex, Var};

/// The shape of an encoder with pre-training heads; its numbers lie in a backend's parameter buffer.
#[derive(Clone, Debug)]
pub struct PretrainingModel {
    bert: Bert,
    words: Words,
    next_sentence: NextSentence,
    parameters: ParameterTable,
    precision: Precision,
}

/// A pre-training program with the places of what a batch brings and what comes out.
#[derive(Clone, Debug)]
pub struct RecordedPretraining {
    /// The planned computation.
    pub program: Program,
    /// The mean loss of masked words, `[1, 1]`.
    pub masked_loss: Var,
    /// The mean loss of next sentences, `[1, 1]`.
    pub next_loss: Var,
    /// The share of masked words predicted rightly, `[1, 1]`; kept by an evaluation.
    pub masked_accuracy: Var,
    /// Whether the second sentence follows the first: logits of yes and no, `[sequences, 2]`; kept by an evaluation.
    pub next_logits: Var,
    inputs: PretrainingInputs,
}

/// A program that predicts masked words.
#[derive(Clone, Debug)]
pub struct RecordedFilling {
    /// The planned computation.
    pub program: Program,
    /// A row of logits for each masked token, `[predictions, vocabulary]`.
    pub logits: Var,
    inputs: PretrainingInputs,
}

/// What a batch of masked sentences brings.
#[derive(Clone, Copy, Debug)]
pub struct PretrainingInputs {
    /// What each token is.
    pub index: TokenIndex,
    /// The masked tokens' rows and places, u32 `[predictions, 1]`.
    pub masked: Picked,
    /// The words that were masked, u32 `[predictions, 1]`.
    pub words: Var,
    /// 0 where the second sentence follows the first, 1 where it does not, u32 `[sequences, 1]`.
    pub next: Var,
}

impl PretrainingModel {
    /// Lays out the encoder and both heads.
    pub fn new(config: &BertConfig) -> Self {
        let mut parameters = ParameterTable::default();
        let bert = Bert::new(config, &mut parameters);
        let words = Words::new(&mut parameters, config);
        let next_sentence = NextSentence::new(&mut parameters, config);
        parameters.align();
        Self { bert, words, next_sentence, parameters, precision: Precision::F32 }
    }

    /// The same model, whose programs compute in `precision`.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The encoder's sizes.
    pub fn config(&self) -> &BertConfig {
        self.bert.config()
    }

    /// Every parameter's name, shape and place.
    pub fn parameters(&self) -> &ParameterTable {
        &self.parameters
    }

    /// The training step: encoder, both losses, whose sum is minimised, and the backward pass.
    ///
    /// The losses are scaled by `scale`; with `accumulate` gradients add to those of earlier runs.
    pub fn training(&self, capacity: Extents, scale: f32, accumulate: bool) -> RecordedPretraining {
        self.record(Mode::Training, |tape, outputs| {
            Program::training(tape, &[outputs.masked_loss, outputs.next_loss], scale, accumulate, capacity)
        })
    }

    /// Both losses and what the accuracies are counted from, without dropout.
    pub fn evaluation(&self, capacity: Extents) -> RecordedPretraining {
        self.record(Mode::Inference, |tape, outputs| {
            let Outputs { masked_loss, next_loss, masked_accuracy, next_logits } = *outputs;
            Program::inference(tape, &[masked_loss, next_loss, masked_accuracy, next_logits], capacity)
        })
    }

    /// The logits of the masked words, for texts of a few of them.
    pub fn filling(&self, capacity: Extents) -> RecordedFilling {
        let mut tape = self.tape(Mode::Inference);
        let inputs = PretrainingInputs::record(&mut tape);
        let [masked] = self.bert.encode_picked(&mut tape, inputs.index, [inputs.masked]);
        let logits = self.words.logits(&mut tape, &self.bert, masked, inputs.masked.places);
        RecordedFilling { program: Program::inference(tape, &[logits], capacity), logits, inputs }
    }

    fn record(&self, mode: Mode, plan: impl FnOnce(Tape, &Outputs) -> Program) -> RecordedPretraining {
        let mut tape = self.tape(mode);
        let inputs = PretrainingInputs::record(&mut tape);
        let PretrainingInputs { index, masked: picked, words: labels, next } = inputs;
        let [first, masked] = self.bert.encode_picked(&mut tape, index, [Picked::first(index), picked]);
        let pooled = self.bert.pool(&mut tape, first);
        let [next_loss, next_logits] = self.next_sentence.loss(&mut tape, pooled, next);
        let [masked_loss, masked_accuracy] =
            self.words.loss(&mut tape, &self.bert, masked, picked.places, labels);
        let outputs = Outputs { masked_loss, next_loss, masked_accuracy, next_logits };
        let program = plan(tape, &outputs);
        RecordedPretraining { program, masked_loss, next_loss, masked_accuracy, next_logits, inputs }
    }

    fn tape(&self, mode: Mode) -> Tape {
        Tape::new(mode).with_precision(self.precision)
    }
}

/// What a pre-training program computes.
struct Outputs {
    masked_loss: Var,
    next_loss: Var,
    masked_accuracy: Var,
    next_logits: Var,
}

impl PretrainingInputs {
    fn record(tape: &mut Tape) -> Self {
        let index = token_index(tape);
        let mut input = |name, rows| tape.input(name, DType::U32, rows, 1);
        Self {
            index,
            masked: Picked {
                rows: input("masked_rows", Rows::Predictions),
                places: input("masked_places", Rows::Predictions),
            },
            words: input("words", Rows::Predictions),
            next: input("next", Rows::Sequences),
        }
    }
}

impl RecordedPretraining {
    /// What a batch brings.
    pub fn inputs(&self) -> &PretrainingInputs {
        &self.inputs
    }

    /// Writes what the program reads of a batch to its places.
    pub fn write(&self, backend: &mut dyn Backend, batch: &MaskedBatch) -> Result<(), BackendError> {
        let mut inputs = Inputs { program: &self.program, backend, extents: masked_extents(batch) };
        inputs.write_tokens(&self.inputs.index, &batch.batch)?;
        inputs.write(self.inputs.masked.rows, &batch.rows)?;
        inputs.write(self.inputs.masked.places, &batch.places)?;
        inputs.write(self.inputs.words, &batch.labels)?;
        inputs.write(self.inputs.next, &batch.batch.labels)
    }
}

impl RecordedFilling {
    /// Writes a batch of texts to the program's inputs, and the rows and places of its masked tokens.
    pub fn write(
        &self,
        backend: &mut dyn Backend,
        batch: &Batch,
        rows: &[u32],
        places: &[u32],
    ) -> Result<(), BackendError> {
        let extents = Extents { predictions: rows.len(), ..extents(batch) };
        let mut inputs = Inputs { program: &self.program, backend, extents };
        inputs.write_tokens(&self.inputs.index, batch)?;
        inputs.write(self.inputs.masked.rows, rows)?;
        inputs.write(self.inputs.masked.places, places)
    }
}

/// The extents of a batch of masked sentences.
pub fn masked_extents(batch: &MaskedBatch) -> Extents {
    Extents { predictions: batch.rows.len(), ..extents(&batch.batch) }
}
