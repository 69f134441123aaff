//! Operations as plain data: the forward ones, and the backward ones that `grad` appends.

/// A value of a tape: only a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Var(pub(super) u32);

impl Var {
    /// The value's place in its tape's list of values.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One dropout site: which elements it drops is a function of (seed, step, site, element) alone.
///
/// An element is named by its row's key (a token's place, or the number of a sequence) and its column,
/// never by where the row lies in the batch, so that any packing drops the same elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// `round(probability * 65536)`; a 16-bit draw below it drops the element. 0 turns the site off.
    pub threshold: u32,
    /// The number of this site within its program.
    pub site: u32,
}

impl Dropout {
    /// A site that drops with `probability`, rounded to a 65536th.
    pub fn new(probability: f32, site: u32) -> Self {
        assert!((0.0..1.0).contains(&probability), "dropout probability {probability} is not in [0, 1)");
        Self { threshold: ((probability * 65536.0).round() as u32).min(65535), site }
    }

    /// Whether the site drops anything at all.
    pub fn is_on(self) -> bool {
        self.threshold > 0
    }

    /// What kept elements are multiplied by: the inverse of the share that is kept.
    pub fn scale(self) -> f32 {
        65536.0 / (65536 - self.threshold) as f32
    }
}

/// The most steps of an [`Op::StepAverage`].
pub const MOST_STEPS: usize = 16;

/// The function applied to a linear map's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// None.
    Identity,
    /// `x * Phi(x)`, by the error function (Hendrycks and Gimpel 2016): BERT's "gelu".
    Gelu,
    /// Its tanh approximation: "gelu_new" and "gelu_pytorch_tanh".
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// The pooler's hyperbolic tangent.
    Tanh,
    /// `1 / (1 + exp(-x))`: a relevance between 0 and 1.
    Sigmoid,
}

/// Where a gradient goes: the first use of a value stores its gradient, later uses add to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sink {
    /// The gradient.
    pub var: Var,
    /// Whether to add to what is there.
    pub add: bool,
}

/// The indices that say what each packed token is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenIndex {
    /// Vocabulary ids, u32 `[tokens, 1]`.
    pub ids: Var,
    /// Segment types, u32 `[tokens, 1]`.
    pub types: Var,
    /// `sequence << 16 | position`, u32 `[tokens, 1]`.
    pub places: Var,
    /// Token rows sorted by id, u32 `[tokens, 1]`: the embedding's gradient sums each id's rows in order.
    pub order: Var,
    /// First token row of each sequence, u32 `[sequences, 1]`.
    pub starts: Var,
    /// The row after the last of each sequence, u32 `[sequences, 1]`. Rows between sequences are dead.
    pub ends: Var,
    /// The place of each sequence's first token, u32 `[sequences, 1]`: the keys of rows that [`Op::Gather`] took.
    pub first_places: Var,
}

/// What the backward pass of [`Op::AddNorm`] needs of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KeptNorm {
    /// `(s - mean(s)) * inverse_std` of the sum `s`, `[rows, cols]`
    pub normalized: Var,
    /// `[rows, 1]`
    pub inverse_std: Var,
}

/// One operation. Shapes stand beside each operand; the outputs are operands too.
///
/// Matched without a wildcard by [`Op::operands`] (`operands.rs`), by `grad` and by every backend, so that an operation
/// which one of them does not know does not compile.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `out[t] = word[id] + position[place] + token_type[type]` (Devlin et al. 2018, figure 2).
    Embedding {
        /// What each token is.
        index: TokenIndex,
        /// `[vocabulary, hidden]`
        word: Var,
        /// `[positions, hidden]`
        position: Var,
        /// `[types, hidden]`
        token_type: Var,
        /// `[tokens, hidden]`
        out: Var,
    },
    /// `out = activation(x * weight^T + bias)`; `before` keeps the activation's argument for the backward pass.
    Linear {
        /// `[rows, inputs]`
        x: Var,
        /// `[outputs, inputs]`
        weight: Var,
        /// `[1, outputs]`
        bias: Var,
        /// What follows the sum.
        activation: Activation,
        /// `[rows, outputs]`; absent where there is no activation or no backward pass.
        before: Option<Var>,
        /// `[rows, outputs]`
        out: Var,
    },
    /// Multi-head self-attention within each sequence (Vaswani et al. 2017, eq. 1), dropout on the probabilities.
    Attention {
        /// Queries, keys and values side by side, `[tokens, 3 * hidden]`.
        qkv: Var,
        /// Which rows make a sequence. The context of dead rows is zero.
        index: TokenIndex,
        /// The number of heads; `hidden / heads` is the head size.
        heads: usize,
        /// On the attention probabilities.
        dropout: Dropout,
        /// `[tokens, hidden]`
        context: Var,
        /// Logarithm of each softmax's denominator, `[tokens, heads]`: all that backward needs of the scores. Absent
        /// where there is no backward pass.
        log_sum_exp: Option<Var>,
    },
    /// `y = gamma * normalized(dropout(x) + residual) + beta` (Ba et al. 2016), biased variance.
    AddNorm {
        /// `[rows, cols]`
        x: Var,
        /// `[rows, cols]`
        residual: Option<Var>,
        /// `[1, cols]`
        gamma: Var,
        /// `[1, cols]`
        beta: Var,
        /// Added to the variance, inside the root.
        epsilon: f32,
        /// On `x`.
        dropout: Dropout,
        /// The rows' keys for the dropout, u32 `[rows, 1]`.
        keys: Var,
        /// `[rows, cols]`
        y: Var,
        /// Absent where there is no backward pass.
        kept: Option<KeptNorm>,
    },
    /// `out = x * keep`; its own backward, applied to the gradient.
    Drop {
        /// `[rows, cols]`
        x: Var,
        /// The rows' keys, u32 `[rows, 1]`; without them a row's key is its number.
        keys: Option<Var>,
        /// Which elements.
        dropout: Dropout,
        /// `[rows, cols]`
        out: Var,
    },
    /// `out[s] = x[rows[s]]`
    Gather {
        /// `[tokens, cols]`
        x: Var,
        /// Which rows, u32; the first `out`-rows entries are read.
        rows: Var,
        /// `[sequences, cols]`
        out: Var,
    },
    /// One query a sequence over the tokens of one of its two texts: `out = sum over j of softmax_j(keys_j · query)
    /// values_j` (Liu et al. 2019, section 3.1: s^0 and x^k). Zeros where a sequence has no such token.
    Attend {
        /// `[tokens, cols]`
        keys: Var,
        /// `[tokens, cols]`; the keys themselves, or another value.
        values: Var,
        /// `[sequences, cols]`, or `[1, cols]` where all sequences have the same.
        query: Var,
        /// Which rows make a sequence, and of which text a token is.
        index: TokenIndex,
        /// The type of the tokens that are attended to.
        segment: u32,
        /// The softmax, `[tokens, 1]`; zero for other tokens.
        weights: Var,
        /// `[sequences, cols]`
        out: Var,
    },
    /// `out = (1 - z) n + z state`, a gated recurrent unit (Cho et al. 2014) as PyTorch's `GRUCell` has it: with the maps
    /// of input and state split in three, `r = sigmoid(i_r + s_r)`, `z = sigmoid(i_z + s_z)`, `n = tanh(i_n + r s_n)`.
    Gru {
        /// The linear map of the input, `[rows, 3 * cols]`: r, z, n side by side.
        of_input: Var,
        /// The linear map of the state, `[rows, 3 * cols]`.
        of_state: Var,
        /// `[rows, cols]`
        state: Var,
        /// `[rows, cols]`
        out: Var,
    },
    /// `out = [a; b; |a - b|; a b]`, the products element by element (Liu et al. 2019, eq. 3).
    Merge {
        /// `[rows, cols]`
        a: Var,
        /// `[rows, cols]`
        b: Var,
        /// `[rows, 4 * cols]`
        out: Var,
    },
    /// The logarithm of the mean over steps of `softmax(logits)` (Liu et al. 2019, eq. 4), where dropout leaves out whole
    /// steps (Liu et al. 2018, "Stochastic Answer Networks"). Each row keeps one step, drawn evenly, in any case, and its
    /// mean is over those that it keeps. A row's key is its number, a step's column its number.
    StepAverage {
        /// One value a step, `[rows, classes]` each; at most [`MOST_STEPS`].
        logits: Vec<Var>,
        /// On the steps.
        dropout: Dropout,
        /// `[rows, classes]`
        out: Var,
    },
    /// Mean of `-log softmax(logits)[label]` over rows (Liu et al. 2019, eq. 6).
    CrossEntropy {
        /// `[rows, classes]`
        logits: Var,
        /// u32 `[rows, 1]`
        labels: Var,
        /// `[1, 1]`
        loss: Var,
    },
    /// Mean of `-log softmax(x * weight^T + bias)[label]` over rows (Devlin et al. 2018, masked words).
    ///
    /// The classes are a vocabulary: the logits are computed a block of columns at a time and not kept.
    VocabularyLoss {
        /// `[rows, inputs]`
        x: Var,
        /// `[classes, inputs]`
        weight: Var,
        /// `[1, classes]`
        bias: Var,
        /// u32 `[rows, 1]`
        labels: Var,
        /// The block of logits at hand, `[rows, block]`: worked in, and of no meaning afterwards.
        logits: Var,
        /// Of each row: the largest logit, the sum of `exp(logit - largest)`, the label's logit. `[rows, 3]`
        softmax: Var,
        /// `[1, 1]`
        loss: Var,
        /// The share of rows in which no logit is larger than the label's, `[1, 1]`.
        accuracy: Var,
    },
    /// Mean of `(target - prediction)^2` over rows (Liu et al. 2019, eq. 7).
    SquaredError {
        /// `[rows, 1]`
        predictions: Var,
        /// `[rows, 1]`
        targets: Var,
        /// `[1, 1]`
        loss: Var,
    },
    /// Mean over groups and columns of `-log softmax(gamma * scores)[positive]` within the group (Liu et al. 2019,
    /// eq. 8-9). The candidates are sequences, or tokens, of which a span's start (the first column) and end are right.
    Ranking {
        /// `[candidates, columns]`
        scores: Var,
        /// First candidate of each group and the end of the last, u32 `[groups+1, 1]`.
        groups: Var,
        /// Number of the right candidate within its group, u32 `[groups, columns]`.
        positives: Var,
        /// The factor of eq. 9.
        gamma: f32,
        /// `[1, 1]`
        loss: Var,
    },
    /// Mean over choices of `-sum_c target_c log softmax(factor * logits)_c`: the soft targets of a teacher (Liu et al.
    /// 2019, arXiv 1904.09482, section 3.2). A choice is a row of classes, or the candidates of a group.
    SoftCrossEntropy {
        /// `[rows, classes]`, or with `groups` `[sequences, 1]`
        logits: Var,
        /// What each choice's probability should be, of the logits' shape.
        targets: Var,
        /// First sequence of each group and the end of the last, u32 `[groups+1, 1]`; none where a row is a choice.
        groups: Option<Var>,
        /// What logits are multiplied by: the inverse of a temperature.
        factor: f32,
        /// `[1, 1]`
        loss: Var,
    },
    /// `out = weights[0] terms[0] + weights[1] terms[1]`: two losses as one.
    WeightedSum {
        /// Each `[1, 1]`
        terms: [Var; 2],
        /// What each counts.
        weights: [f32; 2],
        /// `[1, 1]`
        out: Var,
    },
    /// Backward: every element becomes `value`.
    Fill {
        /// Any shape.
        out: Var,
        /// The number stored.
        value: f32,
    },
    /// Backward: `into += from`.
    Accumulate {
        /// Any shape.
        from: Var,
        /// The same shape.
        into: Var,
    },
    /// Backward of [`Op::Embedding`].
    EmbeddingGrad {
        /// What each token is.
        index: TokenIndex,
        /// `[tokens, hidden]`
        d_out: Var,
        /// `[vocabulary, hidden]`
        d_word: Sink,
        /// `[positions, hidden]`
        d_position: Sink,
        /// `[types, hidden]`
        d_token_type: Sink,
    },
    /// Backward of an activation: `d_before = d_after * activation'(before)`.
    ActivationGrad {
        /// Which.
        activation: Activation,
        /// `[rows, cols]`
        before: Var,
        /// `[rows, cols]`
        d_after: Var,
        /// `[rows, cols]`
        d_before: Var,
    },
    /// Backward of [`Op::Linear`] towards its input: `d_x = d_out * weight`.
    LinearInputGrad {
        /// `[rows, outputs]`, before the activation.
        d_out: Var,
        /// `[outputs, inputs]`
        weight: Var,
        /// `[rows, inputs]`
        d_x: Sink,
    },
    /// Backward of [`Op::Linear`] towards its parameters: `d_weight = d_out^T * activation(x)`, `d_bias = column sums of
    /// d_out`.
    LinearWeightGrad {
        /// `[rows, outputs]`, before the activation.
        d_out: Var,
        /// `[rows, inputs]`
        x: Var,
        /// What makes the map's input of `x`: that of the map before, whose value is then not kept for this step.
        activation: Activation,
        /// `[outputs, inputs]`
        d_weight: Sink,
        /// `[1, outputs]`
        d_bias: Sink,
    },
    /// Backward of [`Op::Attention`]; the probabilities are computed again.
    AttentionGrad {
        /// `[tokens, 3 * hidden]`
        qkv: Var,
        /// As in the forward pass.
        index: TokenIndex,
        /// As in the forward pass.
        heads: usize,
        /// As in the forward pass.
        dropout: Dropout,
        /// `[tokens, heads]`
        log_sum_exp: Var,
        /// `[tokens, hidden]`
        d_context: Var,
        /// `[tokens, 3 * hidden]`
        d_qkv: Var,
    },
    /// Backward of [`Op::AddNorm`].
    AddNormGrad {
        /// `[rows, cols]`
        d_y: Var,
        /// `[rows, cols]`
        normalized: Var,
        /// `[rows, 1]`
        inverse_std: Var,
        /// `[1, cols]`
        gamma: Var,
        /// As in the forward pass.
        dropout: Dropout,
        /// u32 `[rows, 1]`
        keys: Var,
        /// `[rows, cols]`
        d_x: Var,
        /// `[rows, cols]`
        d_residual: Option<Sink>,
        /// `[1, cols]`
        d_gamma: Sink,
        /// `[1, cols]`
        d_beta: Sink,
    },
    /// Backward of [`Op::Gather`]: rows that were not gathered get zeros, or nothing where `d_x` adds.
    GatherGrad {
        /// `[sequences, cols]`
        d_out: Var,
        /// u32
        rows: Var,
        /// `[tokens, cols]`
        d_x: Sink,
    },
    /// Backward of [`Op::Attend`].
    AttendGrad {
        /// `[tokens, cols]`
        keys: Var,
        /// `[tokens, cols]`
        values: Var,
        /// `[sequences, cols]` or `[1, cols]`
        query: Var,
        /// As in the forward pass.
        index: TokenIndex,
        /// `[tokens, 1]`
        weights: Var,
        /// `[sequences, cols]`
        d_out: Var,
        /// The gradient of `keys · query`, `[tokens, 1]`; zero for other tokens.
        d_scores: Var,
        /// `[tokens, cols]`
        d_keys: Sink,
        /// `[tokens, cols]`; absent where the keys are the values, and then part of `d_keys`.
        d_values: Option<Sink>,
        /// Like `query`.
        d_query: Sink,
    },
    /// Backward of [`Op::Gru`]; the gates are computed again.
    GruGrad {
        /// `[rows, 3 * cols]`
        of_input: Var,
        /// `[rows, 3 * cols]`
        of_state: Var,
        /// `[rows, cols]`
        state: Var,
        /// `[rows, cols]`
        d_out: Var,
        /// `[rows, 3 * cols]`
        d_of_input: Var,
        /// `[rows, 3 * cols]`
        d_of_state: Var,
        /// `[rows, cols]`
        d_state: Sink,
    },
    /// Backward of [`Op::Merge`]; where `a` and `b` are equal, `|a - b|` has the gradient zero.
    MergeGrad {
        /// `[rows, cols]`
        a: Var,
        /// `[rows, cols]`
        b: Var,
        /// `[rows, 4 * cols]`
        d_out: Var,
        /// `[rows, cols]`
        d_a: Sink,
        /// `[rows, cols]`
        d_b: Sink,
    },
    /// Backward of [`Op::StepAverage`]: zeros for a row's dropped steps.
    StepAverageGrad {
        /// `[rows, classes]` each
        logits: Vec<Var>,
        /// As in the forward pass.
        dropout: Dropout,
        /// `[rows, classes]`
        out: Var,
        /// `[rows, classes]`
        d_out: Var,
        /// `[rows, classes]` each
        d_logits: Vec<Var>,
    },
    /// Backward of [`Op::CrossEntropy`].
    CrossEntropyGrad {
        /// `[rows, classes]`
        logits: Var,
        /// u32 `[rows, 1]`
        labels: Var,
        /// `[1, 1]`
        d_loss: Var,
        /// `[rows, classes]`
        d_logits: Var,
    },
    /// Backward of [`Op::VocabularyLoss`]; the logits are computed again, block by block.
    VocabularyLossGrad {
        /// `[rows, inputs]`
        x: Var,
        /// `[classes, inputs]`
        weight: Var,
        /// `[1, classes]`
        bias: Var,
        /// u32 `[rows, 1]`
        labels: Var,
        /// `[rows, 3]`, from the forward pass.
        softmax: Var,
        /// `[1, 1]`
        d_loss: Var,
        /// The block of logits at hand, `[rows, block]`.
        logits: Var,
        /// Its gradient where products read bf16, `[rows, block]`; without it the block becomes its own gradient.
        d_logits: Option<Var>,
        /// `[rows, inputs]`
        d_x: Sink,
        /// `[classes, inputs]`
        d_weight: Sink,
        /// `[1, classes]`
        d_bias: Sink,
    },
    /// Backward of [`Op::SquaredError`].
    SquaredErrorGrad {
        /// `[rows, 1]`
        predictions: Var,
        /// `[rows, 1]`
        targets: Var,
        /// `[1, 1]`
        d_loss: Var,
        /// `[rows, 1]`
        d_predictions: Var,
    },
    /// Backward of [`Op::Ranking`].
    RankingGrad {
        /// `[candidates, columns]`
        scores: Var,
        /// u32 `[groups+1, 1]`
        groups: Var,
        /// u32 `[groups, columns]`
        positives: Var,
        /// The factor of eq. 9.
        gamma: f32,
        /// `[1, 1]`
        d_loss: Var,
        /// `[candidates, columns]`
        d_scores: Var,
    },
    /// Backward of [`Op::SoftCrossEntropy`].
    SoftCrossEntropyGrad {
        /// `[rows, classes]`, or with `groups` `[sequences, 1]`
        logits: Var,
        /// Of the logits' shape.
        targets: Var,
        /// u32 `[groups+1, 1]`, or none.
        groups: Option<Var>,
        /// As in the forward pass.
        factor: f32,
        /// `[1, 1]`
        d_loss: Var,
        /// Of the logits' shape.
        d_logits: Var,
    },
    /// Backward of [`Op::WeightedSum`] towards one of its terms: `d_term = weight * d_out`.
    WeightedSumGrad {
        /// `[1, 1]`
        d_out: Var,
        /// What the term counts.
        weight: f32,
        /// `[1, 1]`
        d_term: Var,
    },
}
