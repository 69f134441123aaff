//! The tests' own arithmetic: every forward operation in f64, as plainly as its equation.

use std::collections::HashMap;

use mtdnn_raw::random::philox4x32_10;
use mtdnn_raw::tensor::{Activation, Dropout, Extents, KeptNorm, Op, Program, Space, Var};

/// The numbers that a program runs on.
pub struct Numbers {
    /// The flat parameter buffer.
    pub parameters: Vec<f64>,
    /// Inputs that are numbers.
    pub floats: HashMap<Var, Vec<f64>>,
    /// Inputs that are indices.
    pub indices: HashMap<Var, Vec<u32>>,
    /// The batch.
    pub extents: Extents,
    /// The key of the dropout draws.
    pub seed: u64,
    /// Part of the draws' counter.
    pub step: u32,
}

/// Runs a program's forward operations in f64 and returns every value they write.
pub fn forward(program: &Program, numbers: &Numbers) -> HashMap<Var, Vec<f64>> {
    let mut run = Run { program, numbers, values: HashMap::new() };
    for op in program.ops() {
        if !run.step(op) {
            break;
        }
    }
    run.values
}

struct Run<'a> {
    program: &'a Program,
    numbers: &'a Numbers,
    values: HashMap<Var, Vec<f64>>,
}

impl Run<'_> {
    fn get(&self, var: Var) -> Vec<f64> {
        if let Some(value) = self.values.get(&var).or_else(|| self.numbers.floats.get(&var)) {
            return value.clone();
        }
        let span = self.program.span(var, &self.numbers.extents);
        assert_eq!(span.space, Space::Parameters, "{var:?} has no value");
        self.numbers.parameters[span.range()].to_vec()
    }

    fn indices(&self, var: Var) -> &[u32] {
        &self.numbers.indices[&var]
    }

    fn shape(&self, var: Var) -> (usize, usize) {
        let shape = self.program.shape(var);
        (shape.rows.count(&self.numbers.extents), shape.cols)
    }

    /// The 16 bits that decide on an element.
    fn draw(&self, dropout: Dropout, head: u32, row_key: u32, column: usize) -> u32 {
        let Numbers { seed, step, .. } = *self.numbers;
        let counter = [(column / 8) as u32, row_key, dropout.site << 8 | head, step];
        let words = philox4x32_10(counter, [seed as u32, (seed >> 32) as u32]);
        words[column % 8 / 2] >> (16 * (column % 2)) & 0xFFFF
    }

    /// What an element is multiplied by: 0, or the inverse of the share that is kept.
    fn keep(&self, dropout: Dropout, head: u32, row_key: u32, column: usize) -> f64 {
        let draw = self.draw(dropout, head, row_key, column);
        if draw < dropout.threshold { 0.0 } else { 65536.0 / f64::from(65536 - dropout.threshold) }
    }

    /// Computes one forward operation; `false` where the backward pass begins.
    fn step(&mut self, op: &Op) -> bool {
        match *op {
            Op::Embedding { index, word, position, token_type, out } => {
                let (tokens, hidden) = self.shape(out);
                let tables = [word, position, token_type].map(|table| self.get(table));
                let mut sum = vec![0.0; tokens * hidden];
                for token in 0..tokens {
                    let rows = [
                        self.indices(index.ids)[token],
                        self.indices(index.places)[token] & 0xFFFF,
                        self.indices(index.types)[token],
                    ];
                    for (table, row) in tables.iter().zip(rows) {
                        for column in 0..hidden {
                            sum[token * hidden + column] += table[row as usize * hidden + column];
                        }
                    }
                }
                self.values.insert(out, sum);
            }
            Op::Linear { x, weight, bias, activation, before, out } => {
                let ((rows, inputs), (_, outputs)) = (self.shape(x), self.shape(out));
                let (x, weight, bias) = (self.get(x), self.get(weight), self.get(bias));
                let mut sums = vec![0.0; rows * outputs];
                for (i, sum) in sums.iter_mut().enumerate() {
                    let (row, output) = (i / outputs, i % outputs);
                    let dot = (0..inputs).map(|k| x[row * inputs + k] * weight[output * inputs + k]);
                    *sum = bias[output] + dot.sum::<f64>();
                }
                let after = sums.iter().map(|&sum| activate(activation, sum)).collect();
                if let Some(before) = before {
                    self.values.insert(before, sums);
                }
                self.values.insert(out, after);
            }
            Op::Attention { qkv, index, heads, dropout, context, log_sum_exp } => {
                let (tokens, hidden) = self.shape(context);
                let (qkv, size) = (self.get(qkv), hidden / heads);
                let bounds = self.indices(index.starts).iter().zip(self.indices(index.ends));
                let bounds: Vec<(usize, usize)> = bounds.map(|(s, e)| (*s as usize, *e as usize)).collect();
                let (mut out, mut denominators) = (vec![0.0; tokens * hidden], vec![0.0; tokens * heads]);
                for (sequence, (start, end)) in bounds.into_iter().enumerate() {
                    let tokens = start..end;
                    for head in 0..heads {
                        let at = |part: usize, token: usize, i: usize| {
                            qkv[token * 3 * hidden + part * hidden + head * size + i]
                        };
                        for query in tokens.clone() {
                            let score = |key: usize| {
                                let dot: f64 = (0..size).map(|i| at(0, query, i) * at(1, key, i)).sum();
                                dot / (size as f64).sqrt()
                            };
                            let denominator: f64 = tokens.clone().map(|key| score(key).exp()).sum();
                            denominators[query * heads + head] = denominator.ln();
                            let place = (sequence as u32) << 16 | (query - tokens.start) as u32;
                            for key in tokens.clone() {
                                let keep = self.keep(dropout, head as u32, place, key - tokens.start);
                                let share = score(key).exp() / denominator * keep;
                                for i in 0..size {
                                    out[query * hidden + head * size + i] += share * at(2, key, i);
                                }
                            }
                        }
                    }
                }
                self.values.insert(context, out);
                if let Some(log_sum_exp) = log_sum_exp {
                    self.values.insert(log_sum_exp, denominators);
                }
            }
            Op::AddNorm { x, residual, gamma, beta, epsilon, dropout, keys, y, kept } => {
                let (rows, cols) = self.shape(x);
                let (gamma, beta) = (self.get(gamma), self.get(beta));
                let keys = self.indices(keys);
                let mut sum: Vec<f64> = self.get(x);
                for (i, value) in sum.iter_mut().enumerate() {
                    *value *= self.keep(dropout, 0, keys[i / cols], i % cols);
                }
                if let Some(residual) = residual {
                    sum.iter_mut().zip(self.get(residual)).for_each(|(sum, residual)| *sum += residual);
                }
                let mut inverse = Vec::new();
                for row in sum.chunks_exact_mut(cols) {
                    let mean = row.iter().sum::<f64>() / cols as f64;
                    let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / cols as f64;
                    inverse.push(1.0 / (variance + f64::from(epsilon)).sqrt());
                    row.iter_mut().for_each(|v| *v = (*v - mean) * inverse[inverse.len() - 1]);
                }
                assert_eq!(inverse.len(), rows);
                let out = sum.iter().enumerate().map(|(i, v)| v * gamma[i % cols] + beta[i % cols]);
                self.values.insert(y, out.collect());
                if let Some(KeptNorm { normalized, inverse_std }) = kept {
                    self.values.insert(normalized, sum);
                    self.values.insert(inverse_std, inverse);
                }
            }
            Op::Drop { x, keys, dropout, out } => {
                let (_, cols) = self.shape(x);
                let mut kept = self.get(x);
                for (i, value) in kept.iter_mut().enumerate() {
                    let row = i / cols;
                    let key = keys.map_or(row as u32, |keys| self.indices(keys)[row]);
                    *value *= self.keep(dropout, 0, key, i % cols);
                }
                self.values.insert(out, kept);
            }
            Op::Gather { x, rows, out } => {
                let (count, cols) = self.shape(out);
                let x = self.get(x);
                let rows = self.indices(rows)[..count].iter().map(|&row| row as usize * cols);
                let gathered = rows.flat_map(|at| x[at..at + cols].to_vec()).collect();
                self.values.insert(out, gathered);
            }
            Op::Attend { keys, values, query, index, segment, weights, out } => {
                let (sequences, cols) = self.shape(out);
                let (keys, values, query) = (self.get(keys), self.get(values), self.get(query));
                let types = self.indices(index.types);
                let mut softmax = vec![0.0; keys.len() / cols];
                let mut sums = vec![0.0; sequences * cols];
                for sequence in 0..sequences {
                    let query = if query.len() == cols { &query } else { &query[sequence * cols..] };
                    let rows = self.indices(index.starts)[sequence]..self.indices(index.ends)[sequence];
                    let rows = rows.map(|row| row as usize).filter(|&row| types[row] == segment);
                    for row in rows.clone() {
                        softmax[row] = (0..cols).map(|c| keys[row * cols + c] * query[c]).sum::<f64>().exp();
                    }
                    let sum: f64 = rows.clone().map(|row| softmax[row]).sum();
                    for row in rows {
                        softmax[row] /= sum;
                        for c in 0..cols {
                            sums[sequence * cols + c] += softmax[row] * values[row * cols + c];
                        }
                    }
                }
                self.values.insert(weights, softmax);
                self.values.insert(out, sums);
            }
            Op::Gru { of_input, of_state, state, out } => {
                let (_, cols) = self.shape(out);
                let (of_input, of_state) = (self.get(of_input), self.get(of_state));
                let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
                let state = self.get(state);
                let next = state.iter().enumerate().map(|(i, state)| {
                    let at = |part: usize| (i / cols * 3 + part) * cols + i % cols;
                    let r = sigmoid(of_input[at(0)] + of_state[at(0)]);
                    let z = sigmoid(of_input[at(1)] + of_state[at(1)]);
                    let n = (of_input[at(2)] + r * of_state[at(2)]).tanh();
                    (1.0 - z) * n + z * state
                });
                let next = next.collect();
                self.values.insert(out, next);
            }
            Op::Merge { a, b, out } => {
                let (_, cols) = self.shape(a);
                let mut merged = Vec::new();
                for (a, b) in self.get(a).chunks(cols).zip(self.get(b).chunks(cols)) {
                    merged.extend(a.iter().chain(b));
                    merged.extend(a.iter().zip(b).map(|(a, b)| (a - b).abs()));
                    merged.extend(a.iter().zip(b).map(|(a, b)| a * b));
                }
                self.values.insert(out, merged);
            }
            Op::StepAverage { ref logits, dropout, out } => {
                let (rows, classes) = self.shape(out);
                let steps: Vec<Vec<f64>> = logits.iter().map(|&step| self.get(step)).collect();
                let mut average = Vec::new();
                for row in 0..rows {
                    // The draw behind those of 16 steps picks the step that is kept in any case.
                    let picked = self.draw(dropout, 0, row as u32, 16) as usize * steps.len() / 65536;
                    let kept: Vec<&[f64]> = (0..steps.len())
                        .filter(|&step| step == picked || self.keep(dropout, 0, row as u32, step) > 0.0)
                        .map(|step| &steps[step][row * classes..][..classes])
                        .collect();
                    for class in 0..classes {
                        let sum: f64 =
                            kept.iter().map(|step| (-negative_log_softmax(step, class)).exp()).sum();
                        average.push((sum / kept.len() as f64).ln());
                    }
                }
                self.values.insert(out, average);
            }
            Op::CrossEntropy { logits, labels, loss } => {
                let (rows, classes) = self.shape(logits);
                let logits = self.get(logits);
                let labels = self.indices(labels);
                let losses = (0..rows).map(|row| {
                    let row_logits = &logits[row * classes..(row + 1) * classes];
                    negative_log_softmax(row_logits, labels[row] as usize)
                });
                let mean = losses.sum::<f64>() / rows as f64;
                self.values.insert(loss, vec![mean]);
            }
            Op::VocabularyLoss { x, weight, bias, labels, logits: _, softmax, loss, accuracy } => {
                let ((rows, inputs), (_, classes)) = (self.shape(x), self.shape(bias));
                let (x, weight, bias) = (self.get(x), self.get(weight), self.get(bias));
                let (mut sum, mut right, mut statistics) = (0.0, 0.0, Vec::new());
                for (x, &label) in x.chunks_exact(inputs).zip(self.indices(labels)) {
                    let dot = |class: usize| -> f64 {
                        (0..inputs).map(|k| x[k] * weight[class * inputs + k]).sum()
                    };
                    let logits: Vec<f64> = (0..classes).map(|class| bias[class] + dot(class)).collect();
                    sum += negative_log_softmax(&logits, label as usize);
                    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let logit = logits[label as usize];
                    right += f64::from(u8::from(logit >= largest));
                    statistics.extend([largest, logits.iter().map(|l| (l - largest).exp()).sum(), logit]);
                }
                self.values.insert(softmax, statistics);
                self.values.insert(loss, vec![sum / rows as f64]);
                self.values.insert(accuracy, vec![right / rows as f64]);
            }
            Op::SquaredError { predictions, targets, loss } => {
                let (predictions, targets) = (self.get(predictions), self.get(targets));
                let sum: f64 = predictions.iter().zip(&targets).map(|(p, t)| (t - p).powi(2)).sum();
                self.values.insert(loss, vec![sum / targets.len() as f64]);
            }
            Op::Ranking { scores, groups, positives, gamma, loss } => {
                let columns = self.program.shape(scores).cols;
                let scores: Vec<f64> = self.get(scores).iter().map(|s| s * f64::from(gamma)).collect();
                let positives = self.indices(positives);
                let groups = self.indices(groups);
                let losses = positives.iter().enumerate().map(|(place, &positive)| {
                    let (group, column) = (place / columns, place % columns);
                    let candidates = groups[group] as usize..groups[group + 1] as usize;
                    let row: Vec<f64> = candidates.map(|row| scores[row * columns + column]).collect();
                    negative_log_softmax(&row, positive as usize)
                });
                let mean = losses.sum::<f64>() / positives.len() as f64;
                self.values.insert(loss, vec![mean]);
            }
            Op::SoftCrossEntropy { logits, targets, groups, factor, loss } => {
                let (rows, classes) = self.shape(logits);
                let logits: Vec<f64> = self.get(logits).iter().map(|l| l * f64::from(factor)).collect();
                let targets = self.get(targets);
                let ends: Vec<usize> = match groups {
                    Some(groups) => self.indices(groups).iter().map(|&end| end as usize).collect(),
                    None => (0..=rows).map(|row| row * classes).collect(),
                };
                let losses = ends.windows(2).map(|choice| {
                    let (row, targets) = (&logits[choice[0]..choice[1]], &targets[choice[0]..choice[1]]);
                    let terms = (0..row.len()).map(|i| targets[i] * negative_log_softmax(row, i));
                    terms.sum::<f64>()
                });
                let mean = losses.sum::<f64>() / (ends.len() - 1) as f64;
                self.values.insert(loss, vec![mean]);
            }
            Op::WeightedSum { terms, weights, out } => {
                let terms = terms.iter().zip(weights).map(|(&term, w)| f64::from(w) * self.get(term)[0]);
                let sum = terms.sum();
                self.values.insert(out, vec![sum]);
            }
            Op::Fill { .. }
            | Op::Accumulate { .. }
            | Op::EmbeddingGrad { .. }
            | Op::ActivationGrad { .. }
            | Op::LinearInputGrad { .. }
            | Op::LinearWeightGrad { .. }
            | Op::AttentionGrad { .. }
            | Op::AddNormGrad { .. }
            | Op::GatherGrad { .. }
            | Op::AttendGrad { .. }
            | Op::GruGrad { .. }
            | Op::MergeGrad { .. }
            | Op::StepAverageGrad { .. }
            | Op::CrossEntropyGrad { .. }
            | Op::VocabularyLossGrad { .. }
            | Op::SquaredErrorGrad { .. }
            | Op::RankingGrad { .. }
            | Op::SoftCrossEntropyGrad { .. }
            | Op::WeightedSumGrad { .. } => return false,
        }
        true
    }
}

fn negative_log_softmax(row: &[f64], index: usize) -> f64 {
    row.iter().map(|value| value.exp()).sum::<f64>().ln() - row[index]
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Identity => x,
        Activation::Gelu => x * 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::Relu => x.max(0.0),
        Activation::Tanh => x.tanh(),
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
    }
}

/// The error function by its Taylor series, which converges for every argument met here.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}
