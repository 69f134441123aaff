//! The heads of BERT's pre-training (Devlin et al. 2018, section 3.1): masked words and next sentence. They have the names
//! of BERT's own, `cls.`, wherever they are trained.

use super::bert::{Bert, Linear, Norm};
use super::config::BertConfig;
use super::heads::{Answers, Reading};
use super::parameters::{Init, ParameterTable};
use crate::data::MaskedOptions;
use crate::tensor::{Activation, Dropout, Tape, Var};

/// Columns of logits that exist at a time. The loss of BERT-base's 614 masked words, both ways, took 274, 279 and 271 ms
/// with blocks of 1024, 2048 and 4096 on two cores with AVX-512: nothing but memory depends on it.
const VOCABULARY_BLOCK: usize = 2048;

/// Which word was hidden: a layer as wide as the encoder's, and a map to the vocabulary that is the word embedding itself.
#[derive(Clone, Debug)]
pub(super) struct Words {
    transform: Linear,
    norm: Norm,
    /// The offset of the output bias, `[vocabulary]`.
    bias: usize,
}

impl Words {
    pub(super) fn new(table: &mut ParameterTable, config: &BertConfig) -> Self {
        let (hidden, deviation) = (config.hidden_size, config.initializer_range as f32);
        let transform = Linear::new(table, "cls.predictions.transform.dense", hidden, hidden, deviation);
        let norm = Norm::new(table, "cls.predictions.transform.LayerNorm", hidden);
        let bias = table.add("cls.predictions.bias", &[config.vocab_size], Init::Zeros);
        Self { transform, norm, bias }
    }

    /// Records the logits of tokens, `[predictions, vocabulary]`, from their vectors and places.
    pub(super) fn logits(&self, tape: &mut Tape, bert: &Bert, masked: Var, places: Var) -> Var {
        let transformed = self.transform(tape, bert, masked, places);
        let (words, bias) = self.decoder(tape, bert);
        tape.linear(transformed, words, bias, Activation::Identity)
    }

    /// Records the mean loss of tokens and the share that is right, both `[1, 1]`; `labels` is what stood there, u32
    /// `[predictions, 1]`.
    pub(super) fn loss(
        &self,
        tape: &mut Tape,
        bert: &Bert,
        masked: Var,
        places: Var,
        labels: Var,
    ) -> [Var; 2] {
        let transformed = self.transform(tape, bert, masked, places);
        let (words, bias) = self.decoder(tape, bert);
        tape.vocabulary_loss(transformed, words, bias, labels, VOCABULARY_BLOCK)
    }

    /// What stands between the encoder and the decoder: `[predictions, hidden]`.
    fn transform(&self, tape: &mut Tape, bert: &Bert, masked: Var, places: Var) -> Var {
        let config = bert.config();
        let hidden = self.transform.record(tape, masked, config.hidden_act.activation());
        self.norm.record(tape, hidden, None, Dropout::new(0.0, 0), places, config)
    }

    /// The map to the vocabulary: the word embedding itself, and a bias of its own.
    fn decoder(&self, tape: &mut Tape, bert: &Bert) -> (Var, Var) {
        let bias = tape.parameter("cls.predictions.bias", self.bias, 1, bert.config().vocab_size);
        (bert.word_table(tape), bias)
    }
}

/// Whether the second text follows the first.
#[derive(Clone, Debug)]
pub(super) struct NextSentence(Linear);

impl NextSentence {
    pub(super) fn new(table: &mut ParameterTable, config: &BertConfig) -> Self {
        let (hidden, deviation) = (config.hidden_size, config.initializer_range as f32);
        Self(Linear::new(table, "cls.seq_relationship", hidden, 2, deviation))
    }

    /// Records the mean loss, `[1, 1]`, and the logits of yes and no, `[sequences, 2]`; `next` is 0 for yes, u32
    /// `[sequences, 1]`.
    pub(super) fn loss(&self, tape: &mut Tape, pooled: Var, next: Var) -> [Var; 2] {
        let logits = self.0.record(tape, pooled, Activation::Identity);
        [tape.cross_entropy(logits, next), logits]
    }
}

/// The head of a task of masked words.
#[derive(Clone, Debug)]
pub(super) struct Masked {
    words: Words,
    next: Option<NextSentence>,
}

/// What is recorded of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct MaskedAnswer {
    /// The sum of both losses, `[1, 1]`.
    pub total: Var,
    /// The mean loss of masked words, `[1, 1]`.
    pub loss: Var,
    /// The share of masked words that is right, `[1, 1]`.
    pub accuracy: Var,
    /// Logits of yes and no, `[sequences, 2]`, where next sentences are told.
    pub next: Option<Var>,
}

impl Masked {
    pub(super) fn new(table: &mut ParameterTable, options: &MaskedOptions, config: &BertConfig) -> Self {
        let words = Words::new(table, config);
        Self { words, next: options.next_sentence.then(|| NextSentence::new(table, config)) }
    }

    /// Whether next sentences are told, from the pooled vector.
    pub(super) fn pools(&self) -> bool {
        self.next.is_some()
    }

    pub(super) fn record(
        &self,
        tape: &mut Tape,
        bert: &Bert,
        reading: &Reading,
        answers: &Answers,
    ) -> MaskedAnswer {
        let marked = reading.marked.expect("the marked tokens' vectors were recorded");
        let [loss, accuracy] = self.words.loss(tape, bert, marked, reading.marks.places, answers.classes);
        let Some(next) = &self.next else { return MaskedAnswer { total: loss, loss, accuracy, next: None } };
        let pooled = reading.pooled.expect("the pooled vector was recorded");
        let [next_loss, logits] = next.loss(tape, pooled, answers.labels);
        let total = tape.weighted_sum([loss, next_loss], [1.0, 1.0]);
        MaskedAnswer { total, loss, accuracy, next: Some(logits) }
    }
}
