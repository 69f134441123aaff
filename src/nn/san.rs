//! The stochastic answer network that reads a pair (Liu et al. 2019, section 3.1; Liu et al. 2018, arXiv 1804.07888).
//!
//! Where the paper and its code differ this follows the code: step k answers from the state before its update, so that
//! the first has an input, and the last update is not computed.

use super::bert::Linear;
use super::parameters::{Init, ParameterTable};
use crate::data::san::{self, SanAttention, SanMemory, SanSpec};
use crate::tensor::{Activation, MOST_STEPS, Tape, TokenIndex, Var};

const _: () = assert!(san::MOST_STEPS == MOST_STEPS, "the options allow as many steps as there is room for");

/// The types of the tokens that make the premise and the hypothesis, delimiters included.
const PREMISE: u32 = 0;
const HYPOTHESIS: u32 = 1;

/// The head's parameters, as offsets into the flat buffer.
#[derive(Clone, Debug)]
pub(super) struct San {
    name: String,
    options: SanSpec,
    hidden: usize,
    summary: usize,
    attention: Attention,
    /// Absent where there is one step alone, and so no update.
    gru: Option<Gru>,
    classifier: Linear,
}

#[derive(Clone, Debug)]
enum Attention {
    Bilinear(Linear),
    /// `[1, hidden]`
    Simple(usize),
}

/// The linear maps of a gated recurrent unit.
#[derive(Clone, Debug)]
struct Gru {
    of_input: Linear,
    of_state: Linear,
}

/// What the head reads of the encoder.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    /// The last layer, `[tokens, hidden]`.
    pub tokens: Var,
    /// What each token is.
    pub index: TokenIndex,
    /// What the tokens of a sequence have in common, u32 `[tokens, 1]`.
    pub sequence_keys: Var,
}

impl San {
    /// Enters the parameters under `name`: `summary.weight`, `attention.weight` and `.bias`, `gru.weight_ih`, `.weight_hh`,
    /// `.bias_ih` and `.bias_hh` (PyTorch's `GRUCell`), `classifier.weight` and `.bias`.
    ///
    /// The reference gives the summary's scores a bias, which moves them all alike and so falls out of the softmax.
    pub fn new(
        table: &mut ParameterTable,
        name: &str,
        options: &SanSpec,
        hidden: usize,
        outputs: usize,
        deviation: f32,
    ) -> Self {
        let normal = Init::TruncatedNormal(deviation);
        let summary = table.add(format!("{name}.summary.weight"), &[1, hidden], normal);
        let attention = format!("{name}.attention");
        let attention = match options.attention {
            SanAttention::Bilinear => {
                Attention::Bilinear(Linear::new(table, &attention, hidden, hidden, deviation))
            }
            SanAttention::Simple => {
                Attention::Simple(table.add(format!("{attention}.weight"), &[1, hidden], normal))
            }
        };
        let gru = (options.steps > 1).then(|| {
            let even = Init::Uniform(1.0 / (hidden as f32).sqrt());
            let [of_input, of_state] = ["ih", "hh"].map(|part| {
                let names = ["weight", "bias"].map(|kind| format!("{name}.gru.{kind}_{part}"));
                Linear::named(table, names, hidden, 3 * hidden, [even; 2])
            });
            Gru { of_input, of_state }
        });
        let classifier = Linear::new(table, &format!("{name}.classifier"), 4 * hidden, outputs, deviation);
        Self { name: name.to_string(), options: options.clone(), hidden, summary, attention, gru, classifier }
    }

    /// Records the head: its answer `[sequences, outputs]`, and the logits of each step on the way.
    ///
    /// The answer is the last step's logits, or the average's log-probabilities.
    pub fn record(&self, tape: &mut Tape, memory: Memory, dropout: f32) -> (Var, Vec<Var>) {
        let Memory { tokens, index, .. } = memory;
        let kept = self.drop_tokens(tape, memory, dropout);
        let summary = self.vector(tape, "summary", self.summary);
        let mut state = tape.attend(kept, kept, summary, index, HYPOTHESIS);
        let mut logits = Vec::new();
        for step in 0..self.options.steps {
            let keys = self.drop_tokens(tape, memory, dropout);
            let query = match &self.attention {
                Attention::Bilinear(map) => {
                    let state = drop(tape, state, dropout);
                    map.record(tape, state, Activation::Identity)
                }
                Attention::Simple(weight) => self.vector(tape, "attention", *weight),
            };
            let input = tape.attend(keys, tokens, query, index, PREMISE);
            let merged = tape.merge(input, state);
            let merged = drop(tape, merged, dropout);
            logits.push(self.classifier.record(tape, merged, Activation::Identity));
            if let Some(gru) = self.gru.as_ref().filter(|_| step + 1 < self.options.steps) {
                let before = drop(tape, state, dropout);
                let of_input = gru.of_input.record(tape, input, Activation::Identity);
                let of_state = gru.of_state.record(tape, before, Activation::Identity);
                state = tape.gru(of_input, of_state, before);
            }
        }
        if self.options.memory == SanMemory::Last {
            // The logits of the other steps are not part of the answer; no gradient reaches them.
            return (logits[logits.len() - 1], logits);
        }
        let answer = match logits[..] {
            [only] => only,
            _ => {
                let site = tape.dropout_site(self.options.step_dropout());
                tape.step_average(&logits, site)
            }
        };
        (answer, logits)
    }

    /// Dropout of the tokens' vectors, each time another draw.
    fn drop_tokens(&self, tape: &mut Tape, memory: Memory, dropout: f32) -> Var {
        let keys = if self.options.variational { memory.sequence_keys } else { memory.index.places };
        let site = tape.dropout_site(dropout);
        tape.drop(memory.tokens, Some(keys), site)
    }

    fn vector(&self, tape: &mut Tape, part: &str, offset: usize) -> Var {
        tape.parameter(&format!("{}.{part}.weight", self.name), offset, 1, self.hidden)
    }
}

/// Dropout of one vector a sequence.
fn drop(tape: &mut Tape, x: Var, dropout: f32) -> Var {
    let site = tape.dropout_site(dropout);
    tape.drop(x, None, site)
}
