//! The tape: a model writes its computation here, shape-checked, and nothing is computed.
//!
//! The order of recording is the topological order, so nothing is ever sorted.

use super::op::{Activation, Dropout, KeptNorm, MOST_STEPS, Op, TokenIndex, Var};
use super::precision::Precision;
use super::shape::{DType, Extents, Rows, Shape};

/// What a recorded computation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Dropout is on and what the backward pass needs is kept.
    Training,
    /// Dropout is off and nothing is kept.
    Inference,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The batch: written before each run.
    Input,
    /// The flat parameter buffer, from this element on.
    Parameter(usize),
    /// The flat gradient buffer, from this element on: the gradient of the parameter that starts there.
    Gradient(usize),
    /// An operation of the tape.
    Computed,
}

/// A value: a name, a shape and an origin, and no numbers.
#[derive(Clone, Debug)]
pub struct Value {
    /// Shown in prints and errors.
    pub name: String,
    /// Rows and columns.
    pub shape: Shape,
    /// The kind of element.
    pub dtype: DType,
    /// Where it comes from.
    pub origin: Origin,
}

impl Value {
    /// The four-byte words that it takes in a batch of `extents`.
    pub fn words(&self, extents: &Extents) -> usize {
        self.dtype.words(self.shape.len(extents))
    }
}

/// A recorded computation: operations in order over numbered values.
#[derive(Clone, Debug)]
pub struct Tape {
    pub(super) mode: Mode,
    pub(super) values: Vec<Value>,
    pub(super) ops: Vec<Op>,
    sites: u32,
    pub(super) precision: Precision,
}

impl Tape {
    /// An empty tape.
    pub fn new(mode: Mode) -> Self {
        Self { mode, values: Vec::new(), ops: Vec::new(), sites: 0, precision: Precision::F32 }
    }

    /// The same tape for programs that compute in `precision`; a tape is in f32 if nothing is said.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The shape of a value.
    pub fn shape(&self, var: Var) -> Shape {
        self.value(var).shape
    }

    /// A value that each batch brings.
    pub fn input(&mut self, name: &str, dtype: DType, rows: Rows, cols: usize) -> Var {
        self.push(name.to_string(), Shape::new(rows, cols), dtype, Origin::Input)
    }

    /// The matrix that lies in the flat parameter buffer from element `offset` on: the same value each time that it is
    /// asked for, so that all its uses add to one gradient.
    pub fn parameter(&mut self, name: &str, offset: usize, rows: usize, cols: usize) -> Var {
        let shape = Shape::new(Rows::Fixed(rows), cols);
        let same = |value: &Value| value.origin == Origin::Parameter(offset);
        if let Some(index) = self.values.iter().position(same) {
            let before = &self.values[index];
            assert_eq!(before.shape, shape, "{name} and {} lie at {offset}", before.name);
            return Var(index as u32);
        }
        self.push(name.to_string(), shape, DType::F32, Origin::Parameter(offset))
    }

    /// A dropout site with the next number; off in [`Mode::Inference`].
    pub fn dropout_site(&mut self, probability: f32) -> Dropout {
        let site = self.sites;
        self.sites += 1;
        Dropout::new(if self.mode == Mode::Training { probability } else { 0.0 }, site)
    }

    /// [`Op::Embedding`]: `[tokens, hidden]`.
    pub fn embedding(&mut self, index: TokenIndex, word: Var, position: Var, token_type: Var) -> Var {
        let hidden = self.shape(word).cols;
        for table in [position, token_type] {
            let cols = self.shape(table).cols;
            assert_eq!(cols, hidden, "{} has {cols} columns, {} {hidden}", self.name(table), self.name(word));
        }
        for var in [index.ids, index.types, index.places, index.order] {
            self.expect(var, DType::U32, Shape::new(Rows::Tokens, 1));
        }
        for var in [index.starts, index.ends, index.first_places] {
            self.expect(var, DType::U32, Shape::new(Rows::Sequences, 1));
        }
        let out = self.computed("embedding", Shape::new(Rows::Tokens, hidden));
        self.ops.push(Op::Embedding { index, word, position, token_type, out });
        out
    }

    /// [`Op::Linear`]: `[rows, inputs]` to `[rows, outputs]`.
    pub fn linear(&mut self, x: Var, weight: Var, bias: Var, activation: Activation) -> Var {
        let (input, map) = (self.shape(x), self.shape(weight));
        assert_eq!(input.cols, map.cols, "linear: input {input} does not fit weight {map}");
        let Rows::Fixed(outputs) = map.rows else { panic!("linear: weight {map} is not a parameter") };
        self.expect(bias, DType::F32, Shape::new(Rows::Fixed(1), outputs));
        let shape = Shape::new(input.rows, outputs);
        let keep = self.mode == Mode::Training && activation != Activation::Identity;
        let before = keep.then(|| self.computed("before", shape));
        let out = self.computed("linear", shape);
        self.ops.push(Op::Linear { x, weight, bias, activation, before, out });
        out
    }

    /// [`Op::Attention`]: `[tokens, 3 * hidden]` to `[tokens, hidden]`.
    pub fn attention(&mut self, qkv: Var, index: TokenIndex, heads: usize, dropout: Dropout) -> Var {
        let shape = self.shape(qkv);
        assert!(
            heads > 0 && shape.cols.is_multiple_of(3 * heads),
            "attention: {shape} does not split into q, k, v of {heads} heads"
        );
        self.expect(index.places, DType::U32, Shape::new(Rows::Tokens, 1));
        for var in [index.starts, index.ends] {
            self.expect(var, DType::U32, Shape::new(Rows::Sequences, 1));
        }
        let context = self.computed("context", Shape::new(Rows::Tokens, shape.cols / 3));
        let keep = self.mode == Mode::Training;
        let log_sum_exp = keep.then(|| self.computed("log_sum_exp", Shape::new(Rows::Tokens, heads)));
        self.ops.push(Op::Attention { qkv, index, heads, dropout, context, log_sum_exp });
        context
    }

    /// [`Op::AddNorm`]: the norm's output, of the shape of `x`.
    #[expect(clippy::too_many_arguments, reason = "the operands of one fused operation")]
    pub fn add_norm(
        &mut self,
        x: Var,
        residual: Option<Var>,
        gamma: Var,
        beta: Var,
        epsilon: f32,
        dropout: Dropout,
        keys: Var,
    ) -> Var {
        let shape = self.shape(x);
        if let Some(residual) = residual {
            self.expect(residual, DType::F32, shape);
        }
        for var in [gamma, beta] {
            self.expect(var, DType::F32, Shape::new(Rows::Fixed(1), shape.cols));
        }
        self.expect(keys, DType::U32, Shape::new(shape.rows, 1));
        let y = self.computed("norm", shape);
        let kept = (self.mode == Mode::Training).then(|| KeptNorm {
            normalized: self.computed("normalized", shape),
            inverse_std: self.computed("inverse_std", Shape::new(shape.rows, 1)),
        });
        self.ops.push(Op::AddNorm { x, residual, gamma, beta, epsilon, dropout, keys, y, kept });
        y
    }

    /// [`Op::Drop`]; records nothing where the site is off.
    pub fn drop(&mut self, x: Var, keys: Option<Var>, dropout: Dropout) -> Var {
        if !dropout.is_on() {
            return x;
        }
        if let Some(keys) = keys {
            self.expect(keys, DType::U32, Shape::new(self.shape(x).rows, 1));
        }
        let out = self.computed("dropped", self.shape(x));
        self.ops.push(Op::Drop { x, keys, dropout, out });
        out
    }

    /// [`Op::Gather`] of some token rows, such as each sequence's first: `[tokens, cols]` to as many rows as `rows` has.
    pub fn gather(&mut self, x: Var, rows: Var) -> Var {
        let shape = self.shape(x);
        assert_eq!(shape.rows, Rows::Tokens, "gather: {shape} has no token rows");
        let count = self.shape(rows).rows;
        self.expect(rows, DType::U32, Shape::new(count, 1));
        let out = self.computed("gathered", Shape::new(count, shape.cols));
        self.ops.push(Op::Gather { x, rows, out });
        out
    }

    /// [`Op::Attend`]: `[sequences, cols]`, of the tokens of type `segment`.
    pub fn attend(&mut self, keys: Var, values: Var, query: Var, index: TokenIndex, segment: u32) -> Var {
        let cols = self.shape(keys).cols;
        for var in [keys, values] {
            self.expect(var, DType::F32, Shape::new(Rows::Tokens, cols));
        }
        let rows = self.shape(query).rows;
        assert!(matches!(rows, Rows::Sequences | Rows::Fixed(1)), "attend: a query of {}", self.shape(query));
        self.expect(query, DType::F32, Shape::new(rows, cols));
        self.expect(index.types, DType::U32, Shape::new(Rows::Tokens, 1));
        for var in [index.starts, index.ends] {
            self.expect(var, DType::U32, Shape::new(Rows::Sequences, 1));
        }
        let weights = self.computed("weights", Shape::new(Rows::Tokens, 1));
        let out = self.computed("attended", Shape::new(Rows::Sequences, cols));
        self.ops.push(Op::Attend { keys, values, query, index, segment, weights, out });
        out
    }

    /// [`Op::Gru`]: the next state, of the shape of `state`.
    pub fn gru(&mut self, of_input: Var, of_state: Var, state: Var) -> Var {
        let shape = self.shape(state);
        for var in [of_input, of_state] {
            self.expect(var, DType::F32, Shape::new(shape.rows, 3 * shape.cols));
        }
        let out = self.computed("state", shape);
        self.ops.push(Op::Gru { of_input, of_state, state, out });
        out
    }

    /// [`Op::Merge`]: `[rows, cols]` twice to `[rows, 4 * cols]`.
    pub fn merge(&mut self, a: Var, b: Var) -> Var {
        let shape = self.shape(a);
        assert_ne!(a, b, "merge: {} with itself", self.name(a));
        self.expect(b, DType::F32, shape);
        let out = self.computed("merged", Shape::new(shape.rows, 4 * shape.cols));
        self.ops.push(Op::Merge { a, b, out });
        out
    }

    /// [`Op::StepAverage`]: log-probabilities of the shape of each step's logits.
    pub fn step_average(&mut self, logits: &[Var], dropout: Dropout) -> Var {
        assert!((1..=MOST_STEPS).contains(&logits.len()), "an average of {} steps", logits.len());
        let shape = self.shape(logits[0]);
        for (step, &of_step) in logits.iter().enumerate() {
            assert!(!logits[..step].contains(&of_step), "{} is averaged twice", self.name(of_step));
            self.expect(of_step, DType::F32, shape);
        }
        let out = self.computed("average", shape);
        self.ops.push(Op::StepAverage { logits: logits.to_vec(), dropout, out });
        out
    }

    /// [`Op::CrossEntropy`]: the mean loss, `[1, 1]`.
    pub fn cross_entropy(&mut self, logits: Var, labels: Var) -> Var {
        self.expect(labels, DType::U32, Shape::new(self.shape(logits).rows, 1));
        let loss = self.scalar("loss");
        self.ops.push(Op::CrossEntropy { logits, labels, loss });
        loss
    }

    /// [`Op::VocabularyLoss`]: the mean loss and the accuracy, both `[1, 1]`. At most `block` columns of logits exist at
    /// a time.
    pub fn vocabulary_loss(&mut self, x: Var, weight: Var, bias: Var, labels: Var, block: usize) -> [Var; 2] {
        let (input, map) = (self.shape(x), self.shape(weight));
        assert_eq!(input.cols, map.cols, "vocabulary loss: input {input} does not fit weight {map}");
        let Rows::Fixed(classes) = map.rows else {
            panic!("vocabulary loss: weight {map} is not a parameter")
        };
        self.expect(bias, DType::F32, Shape::new(Rows::Fixed(1), classes));
        self.expect(labels, DType::U32, Shape::new(input.rows, 1));
        assert!(block > 0, "vocabulary loss: a block of no columns");
        let logits = self.computed("logits", Shape::new(input.rows, block.min(classes)));
        let softmax = self.computed("softmax", Shape::new(input.rows, 3));
        let (loss, accuracy) = (self.scalar("loss"), self.scalar("accuracy"));
        self.ops.push(Op::VocabularyLoss { x, weight, bias, labels, logits, softmax, loss, accuracy });
        [loss, accuracy]
    }

    /// [`Op::SquaredError`]: the mean loss, `[1, 1]`.
    pub fn squared_error(&mut self, predictions: Var, targets: Var) -> Var {
        self.expect(predictions, DType::F32, Shape::new(self.shape(predictions).rows, 1));
        self.expect(targets, DType::F32, self.shape(predictions));
        let loss = self.scalar("loss");
        self.ops.push(Op::SquaredError { predictions, targets, loss });
        loss
    }

    /// [`Op::Ranking`]: the mean loss over groups and columns, `[1, 1]`.
    pub fn ranking(&mut self, scores: Var, groups: Var, positives: Var, gamma: f32) -> Var {
        let shape = self.shape(scores);
        assert!(
            matches!(shape.rows, Rows::Sequences | Rows::Predictions),
            "ranking: {shape} has a row neither a sequence nor a token"
        );
        self.expect(scores, DType::F32, shape);
        self.expect(groups, DType::U32, Shape::new(Rows::GroupStarts, 1));
        self.expect(positives, DType::U32, Shape::new(Rows::Groups, shape.cols));
        let loss = self.scalar("loss");
        self.ops.push(Op::Ranking { scores, groups, positives, gamma, loss });
        loss
    }

    /// [`Op::SoftCrossEntropy`] over rows of classes, or over the candidates of `groups`: the mean loss, `[1, 1]`.
    pub fn soft_cross_entropy(&mut self, logits: Var, targets: Var, groups: Option<Var>, factor: f32) -> Var {
        self.expect(targets, DType::F32, self.shape(logits));
        if let Some(groups) = groups {
            self.expect(logits, DType::F32, Shape::new(Rows::Sequences, 1));
            self.expect(groups, DType::U32, Shape::new(Rows::GroupStarts, 1));
        }
        let loss = self.scalar("loss");
        self.ops.push(Op::SoftCrossEntropy { logits, targets, groups, factor, loss });
        loss
    }

    /// [`Op::WeightedSum`] of two losses, `[1, 1]`.
    pub fn weighted_sum(&mut self, terms: [Var; 2], weights: [f32; 2]) -> Var {
        for term in terms {
            self.expect(term, DType::F32, Shape::new(Rows::Fixed(1), 1));
        }
        let out = self.scalar("loss");
        self.ops.push(Op::WeightedSum { terms, weights, out });
        out
    }

    pub(super) fn value(&self, var: Var) -> &Value {
        &self.values[var.index()]
    }

    pub(super) fn name(&self, var: Var) -> &str {
        &self.value(var).name
    }

    /// A new value that an operation will write.
    pub(super) fn computed(&mut self, name: &str, shape: Shape) -> Var {
        self.push(name.to_string(), shape, DType::F32, Origin::Computed)
    }

    pub(super) fn push(&mut self, name: String, shape: Shape, dtype: DType, origin: Origin) -> Var {
        let var = Var(u32::try_from(self.values.len()).expect("fewer than 2^32 values"));
        self.values.push(Value { name, shape, dtype, origin });
        var
    }

    fn scalar(&mut self, name: &str) -> Var {
        self.computed(name, Shape::new(Rows::Fixed(1), 1))
    }

    fn expect(&self, var: Var, dtype: DType, shape: Shape) {
        let value = self.value(var);
        assert!(
            value.dtype == dtype && value.shape == shape,
            "{} is {} {}, expected {dtype} {shape}",
            value.name,
            value.dtype,
            value.shape
        );
    }
}
