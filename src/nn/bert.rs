//! BERT's encoder (Devlin et al. 2018): embeddings, post-norm transformer layers, pooler.

use std::ops::Range;

use super::config::BertConfig;
use super::parameters::{Init, ParameterTable};
use crate::tensor::{Activation, Dropout, Tape, TokenIndex, Var};

/// The encoder's layers, as offsets into the flat parameter buffer.
#[derive(Clone, Debug)]
pub struct Bert {
    config: BertConfig,
    word: Table,
    position: Table,
    token_type: Table,
    norm: Norm,
    layers: Vec<Layer>,
    pooler: Linear,
}

impl Bert {
    /// Enters the encoder's parameters into the table under their Hugging Face names.
    pub fn new(config: &BertConfig, table: &mut ParameterTable) -> Self {
        let hidden = config.hidden_size;
        let deviation = config.initializer_range as f32;
        let weight = Init::TruncatedNormal(deviation);
        let mut embedding = |name: &str, rows: usize| {
            let name = format!("embeddings.{name}_embeddings.weight");
            Table { offset: table.add(&name, &[rows, hidden], weight), name, rows }
        };
        let word = embedding("word", config.vocab_size);
        let position = embedding("position", config.max_position_embeddings);
        let token_type = embedding("token_type", config.type_vocab_size);
        let norm = Norm::new(table, "embeddings.LayerNorm", hidden);
        let layers = (0..config.num_hidden_layers).map(|i| Layer::new(table, i, config)).collect();
        let pooler = Linear::new(table, "pooler.dense", hidden, hidden, deviation);
        Self { config: config.clone(), word, position, token_type, norm, layers, pooler }
    }

    /// The sizes the encoder was made for.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// Records the embeddings and all layers: the embeddings' output, then each layer's, `[tokens, hidden]`.
    pub fn encode(&self, tape: &mut Tape, index: TokenIndex) -> Vec<Var> {
        let mut hidden_states = vec![self.embed(tape, index)];
        for layer in &self.layers {
            let x = hidden_states[hidden_states.len() - 1];
            hidden_states.push(layer.record(tape, x, index, &self.config));
        }
        hidden_states
    }

    /// Records what [`Bert::pool`] needs: the last layer's output at each sequence's first token alone,
    /// `[sequences, hidden]`.
    pub fn encode_first(&self, tape: &mut Tape, index: TokenIndex) -> Var {
        let [first] = self.encode_picked(tape, index, [Picked::first(index)]);
        first
    }

    /// Records the last layer's output at some token rows alone: for each pick `[picked, hidden]`.
    ///
    /// The numbers are those of [`Bert::encode`], bit for bit, but three quarters of the last layer's products are
    /// not computed for rows that nobody reads: an eighth of a six-layer model's step.
    pub fn encode_picked<const N: usize>(
        &self,
        tape: &mut Tape,
        index: TokenIndex,
        picks: [Picked; N],
    ) -> [Var; N] {
        let mut x = self.embed(tape, index);
        let Some((last, layers)) = self.layers.split_last() else {
            return picks.map(|picked| tape.gather(x, picked.rows));
        };
        for layer in layers {
            x = layer.record(tape, x, index, &self.config);
        }
        last.record_picked(tape, x, index, picks, &self.config)
    }

    /// Records the pooler: `tanh` of a linear map of each sequence's first token, `[sequences, hidden]`.
    pub fn pool(&self, tape: &mut Tape, first: Var) -> Var {
        self.pooler.record(tape, first, Activation::Tanh)
    }

    /// The pooler's elements of the flat buffers.
    pub(super) fn pooler_range(&self) -> Range<usize> {
        self.pooler.weight..self.pooler.bias + self.pooler.outputs
    }

    /// The word embedding, `[vocabulary, hidden]`: the value that [`Bert::encode`] reads, for a map tied to it.
    pub(super) fn word_table(&self, tape: &mut Tape) -> Var {
        tape.parameter(&self.word.name, self.word.offset, self.word.rows, self.config.hidden_size)
    }

    fn embed(&self, tape: &mut Tape, index: TokenIndex) -> Var {
        let word = self.word_table(tape);
        let [position, token_type] = [&self.position, &self.token_type]
            .map(|table| tape.parameter(&table.name, table.offset, table.rows, self.config.hidden_size));
        let sum = tape.embedding(index, word, position, token_type);
        let off = tape.dropout_site(0.0);
        let normed = self.norm.record(tape, sum, None, off, index.places, &self.config);
        let dropout = tape.dropout_site(self.config.hidden_dropout_prob as f32);
        tape.drop(normed, Some(index.places), dropout)
    }
}

/// Token rows that are read of the last layer.
#[derive(Clone, Copy, Debug)]
pub struct Picked {
    /// Which, u32 `[picked, 1]`; none twice.
    pub rows: Var,
    /// Their places, u32 `[picked, 1]`: the keys of their dropout.
    pub places: Var,
}

impl Picked {
    /// The first token of each sequence.
    pub fn first(index: TokenIndex) -> Self {
        Self { rows: index.starts, places: index.first_places }
    }
}

/// An affine map `[rows, inputs] -> [rows, outputs]`.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    /// Of weight and bias.
    names: [String; 2],
    weight: usize,
    bias: usize,
    inputs: usize,
    outputs: usize,
}

impl Linear {
    pub(super) fn new(
        table: &mut ParameterTable,
        name: &str,
        inputs: usize,
        outputs: usize,
        deviation: f32,
    ) -> Self {
        let init = [Init::TruncatedNormal(deviation), Init::Zeros];
        Self::named(table, names_of(name), inputs, outputs, init)
    }

    /// A map whose weight and bias have these names and begin like this.
    pub(super) fn named(
        table: &mut ParameterTable,
        names: [String; 2],
        inputs: usize,
        outputs: usize,
        init: [Init; 2],
    ) -> Self {
        let weight = table.add(names[0].as_str(), &[outputs, inputs], init[0]);
        let bias = table.add(names[1].as_str(), &[outputs], init[1]);
        Self { names, weight, bias, inputs, outputs }
    }

    pub(super) fn record(&self, tape: &mut Tape, x: Var, activation: Activation) -> Var {
        let weight = tape.parameter(&self.names[0], self.weight, self.outputs, self.inputs);
        let bias = tape.parameter(&self.names[1], self.bias, 1, self.outputs);
        tape.linear(x, weight, bias, activation)
    }
}

fn names_of(name: &str) -> [String; 2] {
    ["weight", "bias"].map(|kind| format!("{name}.{kind}"))
}

#[derive(Clone, Debug)]
struct Table {
    name: String,
    offset: usize,
    rows: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Norm {
    name: String,
    gamma: usize,
    beta: usize,
    cols: usize,
}

impl Norm {
    pub(super) fn new(table: &mut ParameterTable, name: &str, cols: usize) -> Self {
        let gamma = table.add(format!("{name}.weight"), &[cols], Init::Ones);
        let beta = table.add(format!("{name}.bias"), &[cols], Init::Zeros);
        Self { name: name.to_string(), gamma, beta, cols }
    }

    pub(super) fn record(
        &self,
        tape: &mut Tape,
        x: Var,
        residual: Option<Var>,
        dropout: Dropout,
        keys: Var,
        config: &BertConfig,
    ) -> Var {
        let gamma = tape.parameter(&format!("{}.weight", self.name), self.gamma, 1, self.cols);
        let beta = tape.parameter(&format!("{}.bias", self.name), self.beta, 1, self.cols);
        tape.add_norm(x, residual, gamma, beta, config.layer_norm_eps as f32, dropout, keys)
    }
}

/// One transformer layer: attention, then a feed-forward network, each added to its input and normed.
#[derive(Clone, Debug)]
struct Layer {
    qkv: Linear,
    attention_output: Linear,
    attention_norm: Norm,
    intermediate: Linear,
    output: Linear,
    output_norm: Norm,
}

impl Layer {
    fn new(table: &mut ParameterTable, number: usize, config: &BertConfig) -> Self {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let deviation = config.initializer_range as f32;
        let prefix = format!("encoder.layer.{number}");
        // Query, key and value stand side by side in the buffer, weights and then biases, so that one
        // product of 3 * hidden outputs computes all three.
        let parts = ["query", "key", "value"].map(|part| format!("{prefix}.attention.self.{part}"));
        let weights = parts.each_ref().map(|part| {
            table.add(format!("{part}.weight"), &[hidden, hidden], Init::TruncatedNormal(deviation))
        });
        let biases = parts.each_ref().map(|part| table.add(format!("{part}.bias"), &[hidden], Init::Zeros));
        let qkv = Linear {
            names: names_of(&format!("{prefix}.attention.self.qkv")),
            weight: weights[0],
            bias: biases[0],
            inputs: hidden,
            outputs: 3 * hidden,
        };
        let mut linear = |name: &str, inputs, outputs| {
            Linear::new(table, &format!("{prefix}.{name}"), inputs, outputs, deviation)
        };
        let attention_output = linear("attention.output.dense", hidden, hidden);
        let intermediate = linear("intermediate.dense", hidden, wide);
        let output = linear("output.dense", wide, hidden);
        let attention_norm = Norm::new(table, &format!("{prefix}.attention.output.LayerNorm"), hidden);
        let output_norm = Norm::new(table, &format!("{prefix}.output.LayerNorm"), hidden);
        Self { qkv, attention_output, attention_norm, intermediate, output, output_norm }
    }

    /// `[tokens, hidden]` to `[tokens, hidden]`.
    fn record(&self, tape: &mut Tape, x: Var, index: TokenIndex, config: &BertConfig) -> Var {
        let context = self.attend(tape, x, index, config);
        let sites = self.dropout_sites(tape, config);
        self.transform(tape, context, x, index.places, sites, config)
    }

    /// As [`Layer::record`], for some tokens alone: `[tokens, hidden]` to `[picked, hidden]` for each pick.
    fn record_picked<const N: usize>(
        &self,
        tape: &mut Tape,
        x: Var,
        index: TokenIndex,
        picks: [Picked; N],
        config: &BertConfig,
    ) -> [Var; N] {
        let context = self.attend(tape, x, index, config);
        let sites = self.dropout_sites(tape, config);
        picks.map(|Picked { rows, places }| {
            let context = tape.gather(context, rows);
            let x = tape.gather(x, rows);
            self.transform(tape, context, x, places, sites, config)
        })
    }

    /// Attention among the tokens of each sequence: the only place where rows meet.
    fn attend(&self, tape: &mut Tape, x: Var, index: TokenIndex, config: &BertConfig) -> Var {
        let qkv = self.qkv.record(tape, x, Activation::Identity);
        let dropout = tape.dropout_site(config.attention_probs_dropout_prob as f32);
        tape.attention(qkv, index, config.num_attention_heads, dropout)
    }

    /// The sites of [`Layer::transform`], the same for every pick of rows: a row's key alone says what it drops.
    fn dropout_sites(&self, tape: &mut Tape, config: &BertConfig) -> [Dropout; 2] {
        [(); 2].map(|()| tape.dropout_site(config.hidden_dropout_prob as f32))
    }

    /// The rest of the layer, row by row: output map and feed-forward network, each added to its input and normed.
    fn transform(
        &self,
        tape: &mut Tape,
        context: Var,
        x: Var,
        keys: Var,
        sites: [Dropout; 2],
        config: &BertConfig,
    ) -> Var {
        let attended = self.attention_output.record(tape, context, Activation::Identity);
        let h = self.attention_norm.record(tape, attended, Some(x), sites[0], keys, config);
        let wide = self.intermediate.record(tape, h, config.hidden_act.activation());
        let narrow = self.output.record(tape, wide, Activation::Identity);
        self.output_norm.record(tape, narrow, Some(h), sites[1], keys, config)
    }
}
