//! What an operation is called, and what it reads and writes: all that the planner and prints know of it.

use super::op::{Op, Sink, TokenIndex, Var};

/// What an operation does with an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads it.
    Read,
    /// Stores every element of it.
    Write,
    /// Adds to it.
    Add,
    /// Works in it: what it holds before and after means nothing.
    Work,
}

impl Op {
    /// The operation's name in print.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Embedding { .. } => "embedding",
            Op::Linear { .. } => "linear",
            Op::Attention { .. } => "attention",
            Op::AddNorm { .. } => "add_norm",
            Op::Drop { .. } => "dropout",
            Op::Gather { .. } => "gather",
            Op::Attend { .. } => "attend",
            Op::Gru { .. } => "gru",
            Op::Merge { .. } => "merge",
            Op::StepAverage { .. } => "step_average",
            Op::CrossEntropy { .. } => "cross_entropy",
            Op::VocabularyLoss { .. } => "vocabulary_loss",
            Op::SquaredError { .. } => "squared_error",
            Op::Ranking { .. } => "ranking",
            Op::SoftCrossEntropy { .. } => "soft_cross_entropy",
            Op::WeightedSum { .. } => "weighted_sum",
            Op::Fill { .. } => "fill",
            Op::Accumulate { .. } => "accumulate",
            Op::EmbeddingGrad { .. } => "embedding_grad",
            Op::ActivationGrad { .. } => "activation_grad",
            Op::LinearInputGrad { .. } => "linear_input_grad",
            Op::LinearWeightGrad { .. } => "linear_weight_grad",
            Op::AttentionGrad { .. } => "attention_grad",
            Op::AddNormGrad { .. } => "add_norm_grad",
            Op::GatherGrad { .. } => "gather_grad",
            Op::AttendGrad { .. } => "attend_grad",
            Op::GruGrad { .. } => "gru_grad",
            Op::MergeGrad { .. } => "merge_grad",
            Op::StepAverageGrad { .. } => "step_average_grad",
            Op::CrossEntropyGrad { .. } => "cross_entropy_grad",
            Op::VocabularyLossGrad { .. } => "vocabulary_loss_grad",
            Op::SquaredErrorGrad { .. } => "squared_error_grad",
            Op::RankingGrad { .. } => "ranking_grad",
            Op::SoftCrossEntropyGrad { .. } => "soft_cross_entropy_grad",
            Op::WeightedSumGrad { .. } => "weighted_sum_grad",
        }
    }

    /// Every operand and what becomes of it, in the order of the fields. The planner lives on this list.
    pub fn operands(&self) -> Vec<(Access, Var)> {
        use Access::{Add, Read, Work, Write};
        let sink = |sink: &Sink| (if sink.add { Add } else { Write }, sink.var);
        let index = |index: &TokenIndex| {
            let TokenIndex { ids, types, places, order, starts, ends, first_places: _ } = *index;
            [ids, types, places, order, starts, ends].map(|var| (Read, var)).to_vec()
        };
        let rows = |index: &TokenIndex| [index.places, index.starts, index.ends].map(|var| (Read, var));
        match self {
            Op::Embedding { index: i, word, position, token_type, out } => {
                let mut list = index(i);
                list.extend([(Read, *word), (Read, *position), (Read, *token_type), (Write, *out)]);
                list
            }
            Op::Linear { x, weight, bias, activation: _, before, out } => {
                let mut list = vec![(Read, *x), (Read, *weight), (Read, *bias)];
                list.extend(before.map(|var| (Write, var)));
                list.push((Write, *out));
                list
            }
            Op::Attention { qkv, index, heads: _, dropout: _, context, log_sum_exp } => {
                let mut list = vec![(Read, *qkv)];
                list.extend(rows(index));
                list.push((Write, *context));
                list.extend(log_sum_exp.map(|var| (Write, var)));
                list
            }
            Op::AddNorm { x, residual, gamma, beta, epsilon: _, dropout: _, keys, y, kept } => {
                let mut list = vec![(Read, *x)];
                list.extend(residual.map(|var| (Read, var)));
                list.extend([(Read, *gamma), (Read, *beta), (Read, *keys)]);
                list.push((Write, *y));
                list.extend(
                    kept.iter().flat_map(|kept| [(Write, kept.normalized), (Write, kept.inverse_std)]),
                );
                list
            }
            Op::Drop { x, keys, dropout: _, out } => {
                let mut list = vec![(Read, *x)];
                list.extend(keys.map(|var| (Read, var)));
                list.push((Write, *out));
                list
            }
            Op::Gather { x, rows, out } => vec![(Read, *x), (Read, *rows), (Write, *out)],
            Op::Attend { keys, values, query, index, segment: _, weights, out } => {
                let reads = [*keys, *values, *query, index.types, index.starts, index.ends];
                let mut list = reads.map(|var| (Read, var)).to_vec();
                list.extend([(Write, *weights), (Write, *out)]);
                list
            }
            Op::Gru { of_input, of_state, state, out } => {
                vec![(Read, *of_input), (Read, *of_state), (Read, *state), (Write, *out)]
            }
            Op::Merge { a, b, out } => vec![(Read, *a), (Read, *b), (Write, *out)],
            Op::StepAverage { logits, dropout: _, out } => {
                let mut list: Vec<_> = logits.iter().map(|logits| (Read, *logits)).collect();
                list.push((Write, *out));
                list
            }
            Op::CrossEntropy { logits, labels, loss } => {
                vec![(Read, *logits), (Read, *labels), (Write, *loss)]
            }
            Op::VocabularyLoss { x, weight, bias, labels, logits, softmax, loss, accuracy } => {
                let mut list = [*x, *weight, *bias, *labels].map(|var| (Read, var)).to_vec();
                list.push((Work, *logits));
                list.extend([*softmax, *loss, *accuracy].map(|var| (Write, var)));
                list
            }
            Op::SquaredError { predictions, targets, loss } => {
                vec![(Read, *predictions), (Read, *targets), (Write, *loss)]
            }
            Op::Ranking { scores, groups, positives, gamma: _, loss } => {
                vec![(Read, *scores), (Read, *groups), (Read, *positives), (Write, *loss)]
            }
            Op::SoftCrossEntropy { logits, targets, groups, factor: _, loss } => {
                let mut list = vec![(Read, *logits), (Read, *targets)];
                list.extend(groups.map(|var| (Read, var)));
                list.push((Write, *loss));
                list
            }
            Op::WeightedSum { terms: [first, second], weights: _, out } => {
                vec![(Read, *first), (Read, *second), (Write, *out)]
            }
            Op::Fill { out, value: _ } => vec![(Write, *out)],
            Op::Accumulate { from, into } => vec![(Read, *from), (Add, *into)],
            Op::EmbeddingGrad { index: i, d_out, d_word, d_position, d_token_type } => {
                let mut list = index(i);
                list.extend([(Read, *d_out), sink(d_word), sink(d_position), sink(d_token_type)]);
                list
            }
            Op::ActivationGrad { activation: _, before, d_after, d_before } => {
                vec![(Read, *before), (Read, *d_after), (Write, *d_before)]
            }
            Op::LinearInputGrad { d_out, weight, d_x } => {
                vec![(Read, *d_out), (Read, *weight), sink(d_x)]
            }
            Op::LinearWeightGrad { d_out, x, activation: _, d_weight, d_bias } => {
                vec![(Read, *d_out), (Read, *x), sink(d_weight), sink(d_bias)]
            }
            Op::AttentionGrad { qkv, index, heads: _, dropout: _, log_sum_exp, d_context, d_qkv } => {
                let mut list = vec![(Read, *qkv)];
                list.extend(rows(index));
                list.extend([(Read, *log_sum_exp), (Read, *d_context), (Write, *d_qkv)]);
                list
            }
            Op::AddNormGrad {
                d_y,
                normalized,
                inverse_std,
                gamma,
                dropout: _,
                keys,
                d_x,
                d_residual,
                d_gamma,
                d_beta,
            } => {
                let mut list = [*d_y, *normalized, *inverse_std, *gamma, *keys].map(|v| (Read, v)).to_vec();
                list.push((Write, *d_x));
                list.extend(d_residual.as_ref().map(sink));
                list.extend([sink(d_gamma), sink(d_beta)]);
                list
            }
            Op::GatherGrad { d_out, rows, d_x } => vec![(Read, *d_out), (Read, *rows), sink(d_x)],
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
                let reads = [*keys, *values, *query, index.starts, index.ends, *weights, *d_out];
                let mut list = reads.map(|var| (Read, var)).to_vec();
                list.extend([(Write, *d_scores), sink(d_keys)]);
                list.extend(d_values.as_ref().map(sink));
                list.push(sink(d_query));
                list
            }
            Op::GruGrad { of_input, of_state, state, d_out, d_of_input, d_of_state, d_state } => {
                let mut list = [*of_input, *of_state, *state, *d_out].map(|var| (Read, var)).to_vec();
                list.extend([(Write, *d_of_input), (Write, *d_of_state), sink(d_state)]);
                list
            }
            Op::MergeGrad { a, b, d_out, d_a, d_b } => {
                vec![(Read, *a), (Read, *b), (Read, *d_out), sink(d_a), sink(d_b)]
            }
            Op::StepAverageGrad { logits, dropout: _, out, d_out, d_logits } => {
                let mut list: Vec<_> = logits.iter().map(|logits| (Read, *logits)).collect();
                list.extend([(Read, *out), (Read, *d_out)]);
                list.extend(d_logits.iter().map(|d_logits| (Write, *d_logits)));
                list
            }
            Op::CrossEntropyGrad { logits, labels, d_loss, d_logits } => {
                vec![(Read, *logits), (Read, *labels), (Read, *d_loss), (Write, *d_logits)]
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
                let reads = [*x, *weight, *bias, *labels, *softmax, *d_loss];
                let mut list = reads.map(|var| (Read, var)).to_vec();
                list.push((Work, *logits));
                list.extend(d_logits.map(|var| (Work, var)));
                list.extend([sink(d_x), sink(d_weight), sink(d_bias)]);
                list
            }
            Op::SquaredErrorGrad { predictions, targets, d_loss, d_predictions } => {
                vec![(Read, *predictions), (Read, *targets), (Read, *d_loss), (Write, *d_predictions)]
            }
            Op::RankingGrad { scores, groups, positives, gamma: _, d_loss, d_scores } => {
                let mut list = [*scores, *groups, *positives, *d_loss].map(|var| (Read, var)).to_vec();
                list.push((Write, *d_scores));
                list
            }
            Op::SoftCrossEntropyGrad { logits, targets, groups, factor: _, d_loss, d_logits } => {
                let mut list = [*logits, *targets, *d_loss].map(|var| (Read, var)).to_vec();
                list.extend(groups.map(|var| (Read, var)));
                list.push((Write, *d_logits));
                list
            }
            Op::WeightedSumGrad { d_out, weight: _, d_term } => vec![(Read, *d_out), (Write, *d_term)],
        }
    }
}
