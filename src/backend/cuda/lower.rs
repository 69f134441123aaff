//! From a program's operations to launches: the one `match` that the CUDA backend makes over [`Op`].
//!
//! Neighbouring operations that one kernel can do are launched as one, where the places that it would write before their
//! time are not still read: the plan decides, and `fused` asks it.

use super::launch::{Address, DropoutSite, Launches, Operand, RowCount, Target};
use super::{
    activation, attend, attention, elementwise, embedding, gather, gemm, loss, norm, san, vocabulary,
};
use crate::tensor::{
    Access, Activation, DType, Dropout, KeptNorm, Op, Origin, Precision, Program, Rows, Shape, Sink,
    TokenIndex, Var,
};

use embedding::{Tables, Tokens};
use gemm::{Epilogue, Form};

/// Where a program's values lie in the device's memory.
pub struct Places<'a> {
    /// A value, a parameter's f32 original, or its gradient.
    pub value: &'a dyn Fn(Var) -> Address,
    /// A parameter's bf16 copy; asked for only in [`Precision::Bf16`].
    pub copy: &'a dyn Fn(Var) -> Address,
}

/// Adds the launches of every step of a program.
pub fn lower(program: &Program, places: &Places, launches: &mut Launches) {
    let lowering = Lowering { program, places, readers: readers(program) };
    let mut ops = program.ops();
    while !ops.is_empty() {
        let done = lowering.fused(launches, ops).unwrap_or_else(|| {
            lowering.single(launches, &ops[0], true);
            1
        });
        ops = &ops[done..];
    }
}

/// Adds the launches of one operation by itself: for comparing a backend with another, operation by operation.
pub fn lower_one(program: &Program, op: &Op, places: &Places, launches: &mut Launches) {
    Lowering { program, places, readers: readers(program) }.single(launches, op, true);
}

/// How many operations read each value.
fn readers(program: &Program) -> Vec<u32> {
    let operands = || program.ops().iter().flat_map(Op::operands);
    let count = operands().map(|(_, var)| var.index() + 1).max().unwrap_or(0);
    let mut readers = vec![0; count];
    for (access, var) in operands() {
        readers[var.index()] += u32::from(matches!(access, Access::Read | Access::Add));
    }
    readers
}

struct Lowering<'a> {
    program: &'a Program,
    places: &'a Places<'a>,
    readers: Vec<u32>,
}

impl Lowering<'_> {
    /// Launches the first operations of `ops` by one kernel, if there is one for them, and says how many.
    fn fused(&self, launches: &mut Launches, ops: &[Op]) -> Option<usize> {
        match *ops {
            [
                Op::Linear { x, weight, bias, activation: Activation::Identity, before: None, out },
                Op::AddNorm {
                    x: summand,
                    residual: Some(residual),
                    gamma,
                    beta,
                    epsilon,
                    dropout,
                    keys,
                    y,
                    kept,
                },
                ..,
            ] if summand == out && self.only_reader(out) => {
                let dropout_residual = Epilogue::BiasDropoutResidual {
                    bias: self.address(bias),
                    dropout: DropoutSite::new(dropout),
                    keys: self.address(keys),
                    residual: self.address(residual),
                };
                let (a, b, c) =
                    (self.get(launches, x), self.weight(launches, weight), self.get(launches, out));
                gemm::product(launches, Form::NT, a, b, c, dropout_residual);
                let op = Op::AddNorm {
                    x: out,
                    residual: None,
                    gamma,
                    beta,
                    epsilon,
                    dropout: Dropout { threshold: 0, ..dropout },
                    keys,
                    y,
                    kept,
                };
                self.single(launches, &op, true);
                Some(2)
            }
            [
                Op::LinearInputGrad { d_out, weight, d_x: Sink { var: d_after, add: false } },
                Op::ActivationGrad { activation, before, d_after: read, d_before },
                ref weight_gradient @ Op::LinearWeightGrad {
                    d_out: same,
                    x,
                    activation: _,
                    d_weight: _,
                    d_bias,
                },
                ..,
            ] if read == d_after
                && same == d_before
                && self.only_reader(d_after)
                && self.apart(&[d_before], &[d_out, before, x]) =>
            {
                let epilogue = Epilogue::ActivationGradient {
                    activation,
                    before: self.address(before),
                    d_bias: self.address(d_bias.var),
                    add: d_bias.add,
                };
                let (a, b) = (self.get(launches, d_out), self.weight(launches, weight));
                let c = self.get(launches, d_before);
                gemm::product(launches, Form::NN, a, b, c, epilogue);
                self.single(launches, weight_gradient, false);
                Some(3)
            }
            [
                Op::Embedding { index, word, position, token_type, out },
                Op::AddNorm {
                    x,
                    residual: None,
                    gamma,
                    beta,
                    epsilon,
                    dropout: Dropout { threshold: 0, .. },
                    keys: _,
                    y,
                    kept: Some(KeptNorm { normalized, inverse_std }),
                },
                Op::Drop { x: dropped, keys: Some(keys), dropout, out: masked },
                ..,
            ] if x == out
                && dropped == y
                && self.only_reader(out)
                && self.only_reader(y)
                && self.apart(&[normalized, inverse_std, masked], &self.indices(&index)) =>
            {
                let op = norm::EmbeddingNorm {
                    tokens: self.tokens(&index),
                    tables: self.tables(launches, [word, position, token_type]),
                    gamma: self.get(launches, gamma),
                    beta: self.get(launches, beta),
                    epsilon,
                    dropout: DropoutSite::new(dropout),
                    keys: self.address(keys),
                    out: self.get(launches, masked),
                    normalized: self.get(launches, normalized),
                    inverse_std: self.get(launches, inverse_std),
                };
                norm::forward_embedding(launches, &op);
                Some(3)
            }
            _ => None,
        }
    }

    /// Launches one operation; without `bias_sums` the bias gradient of a linear map has been computed already.
    fn single(&self, launches: &mut Launches, op: &Op, bias_sums: bool) {
        match *op {
            Op::Embedding { index, word, position, token_type, out } => {
                let tables = self.tables(launches, [word, position, token_type]);
                embedding::forward(launches, &self.tokens(&index), &tables, self.get(launches, out));
            }
            Op::Linear { x, weight, bias, activation, before, out } => {
                let bias = self.address(bias);
                let epilogue = match activation {
                    Activation::Identity => Epilogue::Bias(bias),
                    Activation::Gelu
                    | Activation::GeluTanh
                    | Activation::Relu
                    | Activation::Tanh
                    | Activation::Sigmoid => {
                        let before = before.map_or(0, |before| self.address(before));
                        Epilogue::BiasActivation { bias, activation, before }
                    }
                };
                let (a, b) = (self.get(launches, x), self.weight(launches, weight));
                gemm::product(launches, Form::NT, a, b, self.get(launches, out), epilogue);
            }
            Op::Attention { qkv, index, heads, dropout, context, log_sum_exp } => attention::forward(
                launches,
                self.get(launches, qkv),
                self.address(index.places),
                self.address(index.starts),
                self.address(index.ends),
                heads,
                DropoutSite::new(dropout),
                self.get(launches, context),
                log_sum_exp.map_or(0, |var| self.address(var)),
            ),
            Op::AddNorm { x, residual, gamma, beta, epsilon, dropout, keys, y, kept } => {
                let op = norm::AddNorm {
                    x: self.get(launches, x),
                    residual: residual.map(|residual| self.get(launches, residual)),
                    gamma: self.get(launches, gamma),
                    beta: self.get(launches, beta),
                    epsilon,
                    dropout: DropoutSite::new(dropout),
                    keys: self.address(keys),
                    y: self.get(launches, y),
                    kept: kept.map(|kept| norm::KeptNorm {
                        normalized: self.get(launches, kept.normalized),
                        inverse_std: self.get(launches, kept.inverse_std),
                    }),
                };
                norm::forward(launches, &op);
            }
            Op::Drop { x, keys, dropout, out } => {
                let keys = keys.map_or(0, |keys| self.address(keys));
                let (x, out) = (self.get(launches, x), self.get(launches, out));
                elementwise::drop_rows(launches, x, keys, DropoutSite::new(dropout), out);
            }
            Op::Gather { x, rows, out } => {
                let (x, out) = (self.get(launches, x), self.get(launches, out));
                gather::forward(launches, x, self.address(rows), out);
            }
            Op::Attend { keys, values, query, index, segment, weights, out } => {
                let attended = self.attended(launches, [keys, values, query], index, weights);
                let (types, out) = (self.address(index.types), self.get(launches, out));
                attend::forward(launches, &attended, types, segment, out);
            }
            Op::Gru { of_input, of_state, state, out } => {
                let gates = [of_input, of_state, state].map(|v| self.get(launches, v));
                san::gru(launches, gates, self.get(launches, out));
            }
            Op::Merge { a, b, out } => {
                let [a, b, out] = [a, b, out].map(|v| self.get(launches, v));
                san::merge(launches, a, b, out);
            }
            Op::StepAverage { ref logits, dropout, out } => {
                let (logits, out) = (self.all(launches, logits), self.get(launches, out));
                san::step_average(launches, &logits, DropoutSite::new(dropout), out);
            }
            Op::CrossEntropy { logits, labels, loss } => {
                let (logits, loss) = (self.get(launches, logits), self.get(launches, loss));
                loss::cross_entropy(launches, logits, self.address(labels), loss);
            }
            Op::VocabularyLoss { x, weight, bias, labels, logits, softmax, loss, accuracy } => {
                let map = self.vocabulary(launches, [x, weight, bias], labels, logits, softmax);
                let (loss, accuracy) = (self.get(launches, loss), self.get(launches, accuracy));
                vocabulary::forward(launches, &map, loss, accuracy);
            }
            Op::SquaredError { predictions, targets, loss } => {
                let [predictions, targets, loss] =
                    [predictions, targets, loss].map(|v| self.get(launches, v));
                loss::squared_error(launches, predictions, targets, loss);
            }
            Op::Ranking { scores, groups, positives, gamma, loss } => {
                let candidates = self.candidates(launches, scores, groups, positives, gamma);
                loss::ranking(launches, &candidates, self.get(launches, loss));
            }
            Op::SoftCrossEntropy { logits, targets, groups, factor, loss } => {
                let choices = self.choices(launches, [logits, targets], groups, factor);
                loss::soft_cross_entropy(launches, &choices, self.get(launches, loss));
            }
            Op::WeightedSum { terms, weights, out } => {
                let [first, second, out] = [terms[0], terms[1], out].map(|v| self.get(launches, v));
                loss::weighted_sum(launches, (first, Some(second)), weights, out);
            }
            Op::Fill { out, value } => elementwise::fill(launches, self.get(launches, out), value),
            Op::Accumulate { from, into } => {
                let (from, operand) = (self.get(launches, from), self.get(launches, into));
                elementwise::accumulate(launches, from, Target { operand, add: true });
            }
            Op::EmbeddingGrad { index, d_out, d_word, d_position, d_token_type } => {
                let [d_word, d_position, d_token_type] =
                    [d_word, d_position, d_token_type].map(|sink| self.target(launches, sink));
                let d_out = self.get(launches, d_out);
                embedding::backward(launches, &self.tokens(&index), d_out, d_word, d_position, d_token_type);
            }
            Op::ActivationGrad { activation, before, d_after, d_before } => {
                let [before, d_after, d_before] = [before, d_after, d_before].map(|v| self.get(launches, v));
                activation::backward(launches, activation, before, d_after, d_before);
            }
            Op::LinearInputGrad { d_out, weight, d_x } => {
                let (a, b) = (self.get(launches, d_out), self.weight(launches, weight));
                gemm::product(launches, Form::NN, a, b, self.get(launches, d_x.var), store_or_add(d_x));
            }
            Op::LinearWeightGrad { d_out, x, activation, d_weight, d_bias } => {
                let (a, x, c) =
                    (self.get(launches, d_out), self.get(launches, x), self.get(launches, d_weight.var));
                let write_back = store_or_add(d_weight);
                if activation == Activation::Identity {
                    gemm::product(launches, Form::TN, a, x, c, write_back);
                } else {
                    launches.keeping(4 * x.dtype.words(x.most_elements() as usize), |launches, address| {
                        let value = Operand { address, ..x };
                        activation::forward(launches, activation, x, value);
                        gemm::product(launches, Form::TN, a, value, c, write_back);
                    });
                }
                if bias_sums {
                    gemm::column_sums(launches, a, self.address(d_bias.var), d_bias.add);
                }
            }
            Op::AttentionGrad { qkv, index, heads, dropout, log_sum_exp, d_context, d_qkv } => {
                attention::backward(
                    launches,
                    self.get(launches, qkv),
                    self.address(index.places),
                    self.address(index.starts),
                    self.address(index.ends),
                    heads,
                    DropoutSite::new(dropout),
                    self.address(log_sum_exp),
                    self.get(launches, d_context),
                    self.get(launches, d_qkv),
                );
            }
            Op::AddNormGrad {
                d_y,
                normalized,
                inverse_std,
                gamma,
                dropout,
                keys,
                d_x,
                d_residual,
                d_gamma,
                d_beta,
            } => {
                let op = norm::AddNormGrad {
                    d_y: self.get(launches, d_y),
                    normalized: self.get(launches, normalized),
                    inverse_std: self.get(launches, inverse_std),
                    gamma: self.get(launches, gamma),
                    dropout: DropoutSite::new(dropout),
                    keys: self.address(keys),
                    d_x: self.get(launches, d_x),
                    d_residual: d_residual.map(|sink| self.target(launches, sink)),
                    d_gamma: self.target(launches, d_gamma),
                    d_beta: self.target(launches, d_beta),
                };
                norm::backward(launches, &op);
            }
            Op::GatherGrad { d_out, rows, d_x } => {
                let (d_out, d_x) = (self.get(launches, d_out), self.target(launches, d_x));
                gather::backward(launches, d_out, self.address(rows), d_x);
            }
            Op::AttendGrad {
                keys,
                values,
                query,
                index,
                weights,
                d_out,
                d_scores,
                d_keys,
                d_values,
                d_query,
            } => {
                let attended = self.attended(launches, [keys, values, query], index, weights);
                let gradients = attend::Gradients {
                    d_scores: self.get(launches, d_scores),
                    d_keys: self.target(launches, d_keys),
                    d_values: d_values.map(|sink| self.target(launches, sink)),
                    d_query: self.target(launches, d_query),
                };
                attend::backward(launches, &attended, self.get(launches, d_out), &gradients);
            }
            Op::GruGrad { of_input, of_state, state, d_out, d_of_input, d_of_state, d_state } => {
                let gates = [of_input, of_state, state].map(|v| self.get(launches, v));
                let maps = [d_of_input, d_of_state].map(|v| self.get(launches, v));
                let (d_out, d_state) = (self.get(launches, d_out), self.target(launches, d_state));
                san::gru_gradient(launches, gates, d_out, maps, d_state);
            }
            Op::MergeGrad { a, b, d_out, d_a, d_b } => {
                let [a, b, d_out] = [a, b, d_out].map(|v| self.get(launches, v));
                let [d_a, d_b] = [d_a, d_b].map(|sink| self.target(launches, sink));
                san::merge_gradient(launches, a, b, d_out, d_a, d_b);
            }
            Op::StepAverageGrad { ref logits, dropout, out, d_out, ref d_logits } => {
                let [logits, d_logits] = [logits, d_logits].map(|steps| self.all(launches, steps));
                let [out, d_out] = [out, d_out].map(|v| self.get(launches, v));
                let dropout = DropoutSite::new(dropout);
                san::step_average_gradient(launches, &logits, dropout, out, d_out, &d_logits);
            }
            Op::CrossEntropyGrad { logits, labels, d_loss, d_logits } => {
                let [logits, d_loss, d_logits] = [logits, d_loss, d_logits].map(|v| self.get(launches, v));
                loss::cross_entropy_gradient(launches, logits, self.address(labels), d_loss, d_logits);
            }
            Op::VocabularyLossGrad {
                x,
                weight,
                bias,
                labels,
                softmax,
                d_loss,
                logits,
                d_logits,
                d_x,
                d_weight,
                d_bias,
            } => {
                let map = self.vocabulary(launches, [x, weight, bias], labels, logits, softmax);
                let gradients = vocabulary::Gradients {
                    d_logits: d_logits.map(|d_logits| self.get(launches, d_logits)),
                    d_x: self.target(launches, d_x),
                    d_weight: self.target(launches, d_weight),
                    d_bias: self.target(launches, d_bias),
                };
                vocabulary::backward(launches, &map, self.get(launches, d_loss), &gradients);
            }
            Op::SquaredErrorGrad { predictions, targets, d_loss, d_predictions } => {
                let [predictions, targets] = [predictions, targets].map(|v| self.get(launches, v));
                let (d_loss, d_predictions) = (self.get(launches, d_loss), self.get(launches, d_predictions));
                loss::squared_error_gradient(launches, predictions, targets, d_loss, d_predictions);
            }
            Op::RankingGrad { scores, groups, positives, gamma, d_loss, d_scores } => {
                let candidates = self.candidates(launches, scores, groups, positives, gamma);
                let (d_loss, d_scores) = (self.get(launches, d_loss), self.get(launches, d_scores));
                loss::ranking_gradient(launches, &candidates, d_loss, d_scores);
            }
            Op::SoftCrossEntropyGrad { logits, targets, groups, factor, d_loss, d_logits } => {
                let choices = self.choices(launches, [logits, targets], groups, factor);
                let (d_loss, d_logits) = (self.get(launches, d_loss), self.get(launches, d_logits));
                loss::soft_cross_entropy_gradient(launches, &choices, d_loss, d_logits);
            }
            Op::WeightedSumGrad { d_out, weight, d_term } => {
                let (d_out, d_term) = (self.get(launches, d_out), self.get(launches, d_term));
                loss::weighted_sum(launches, (d_out, None), [weight, 0.0], d_term);
            }
        }
    }

    fn address(&self, var: Var) -> Address {
        (self.places.value)(var)
    }

    fn get(&self, launches: &Launches, var: Var) -> Operand {
        let Shape { rows, cols } = self.program.shape(var);
        Operand {
            address: self.address(var),
            dtype: self.program.dtype(var),
            rows: RowCount::new(rows),
            most_rows: rows.count(&launches.extents) as u32,
            cols: cols as u32,
        }
    }

    /// A matrix of parameters as products and gathers read it: its bf16 copy in mixed precision.
    fn weight(&self, launches: &Launches, var: Var) -> Operand {
        let original = self.get(launches, var);
        let is_parameter = matches!(self.program.origin(var), Origin::Parameter(_));
        if self.program.precision() == Precision::F32 || !is_parameter {
            return original;
        }
        Operand { address: (self.places.copy)(var), dtype: DType::Bf16, ..original }
    }

    fn target(&self, launches: &Launches, sink: Sink) -> Target {
        Target { operand: self.get(launches, sink.var), add: sink.add }
    }

    fn tables(&self, launches: &Launches, tables: [Var; 3]) -> Tables {
        let [word, position, token_type] = tables.map(|table| self.weight(launches, table));
        Tables { word, position, token_type }
    }

    fn tokens(&self, index: &TokenIndex) -> Tokens {
        let TokenIndex { ids, types, places, order, starts, ends, first_places: _ } = *index;
        // A model without an embedding has no use for some of them, and then they have no place.
        let address = |var: Var| if self.program.uses(var) { self.address(var) } else { 0 };
        Tokens {
            ids: address(ids),
            types: address(types),
            places: address(places),
            order: address(order),
            starts: address(starts),
            ends: address(ends),
        }
    }

    fn all(&self, launches: &Launches, vars: &[Var]) -> Vec<Operand> {
        vars.iter().map(|&var| self.get(launches, var)).collect()
    }

    fn attended(
        &self,
        launches: &Launches,
        [keys, values, query]: [Var; 3],
        index: TokenIndex,
        weights: Var,
    ) -> attend::Attended {
        attend::Attended {
            keys: self.get(launches, keys),
            values: self.get(launches, values),
            query: self.weight(launches, query),
            shared_query: self.program.shape(query).rows != Rows::Sequences,
            starts: self.address(index.starts),
            ends: self.address(index.ends),
            weights: self.get(launches, weights),
        }
    }

    fn candidates(
        &self,
        launches: &Launches,
        scores: Var,
        groups: Var,
        positives: Var,
        gamma: f32,
    ) -> loss::Candidates {
        let scores = self.get(launches, scores);
        loss::Candidates { scores, groups: self.address(groups), positives: self.address(positives), gamma }
    }

    fn choices(
        &self,
        launches: &Launches,
        [logits, targets]: [Var; 2],
        groups: Option<Var>,
        factor: f32,
    ) -> loss::SoftChoices {
        let (logits, targets) = (self.get(launches, logits), self.get(launches, targets));
        loss::SoftChoices { logits, targets, groups: groups.map(|groups| self.address(groups)), factor }
    }

    fn vocabulary(
        &self,
        launches: &Launches,
        [x, weight, bias]: [Var; 3],
        labels: Var,
        logits: Var,
        softmax: Var,
    ) -> vocabulary::Vocabulary {
        vocabulary::Vocabulary {
            x: self.get(launches, x),
            weight: self.weight(launches, weight),
            bias: self.get(launches, bias),
            labels: self.address(labels),
            logits: self.get(launches, logits),
            softmax: self.get(launches, softmax),
        }
    }

    fn indices(&self, index: &TokenIndex) -> Vec<Var> {
        vec![index.ids, index.types, index.places, index.starts, index.ends]
    }

    /// Whether one operation alone reads a value, which no one else sees then if its kernel never writes it.
    fn only_reader(&self, var: Var) -> bool {
        self.readers[var.index()] == 1 && !self.program.is_output(var)
    }

    /// Whether the places of `written` share nothing with those of `read`, in the largest batch.
    fn apart(&self, written: &[Var], read: &[Var]) -> bool {
        let span = |var: Var| self.program.span(var, self.program.capacity());
        written.iter().all(|&written| {
            let written = span(written);
            read.iter().filter(|&&read| self.program.uses(read)).all(|&read| {
                let read = span(read);
                read.space != written.space
                    || read.range().end <= written.offset
                    || written.range().end <= read.offset
            })
        })
    }
}

fn store_or_add(sink: Sink) -> Epilogue {
    if sink.add { Epilogue::Add } else { Epilogue::Store }
}
