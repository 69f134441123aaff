//! The list of operations that tests go through, each in every shape of interest.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::HashMap;

use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::backend::{Backend, Sizes, StepScalars};
use mtdnn_raw::tensor::{
    Activation, DType, Extents, Mode, Program, Rows, Space, Span, Tape, TokenIndex, Var,
};
use mtdnn_raw::train::check::check_programs;

/// A small computation to be checked: a tape, and numbers for its parameters and inputs.
pub struct Case {
    pub tape: Tape,
    pub parameters: Vec<f32>,
    pub floats: HashMap<Var, Vec<f32>>,
    pub indices: HashMap<Var, Vec<u32>>,
    pub extents: Extents,
    draws: u32,
}

impl Case {
    /// Three sequences of 5, 1 and 9 tokens in two groups; four tokens are masked.
    pub fn new() -> Self {
        let extents = Extents { tokens: 15, sequences: 3, groups: 2, predictions: 4, in_lines: false };
        Self {
            tape: Tape::new(Mode::Training),
            parameters: Vec::new(),
            floats: HashMap::new(),
            indices: HashMap::new(),
            extents,
            draws: 0,
        }
    }

    /// Makes room for a program of the tape, and writes its parameters and inputs.
    fn write(&self, backend: &mut dyn Backend, program: &Program) {
        let (parameters, arena) = (self.parameters.len(), program.arena_len());
        backend.reserve(&Sizes { parameters, arena, training: true }).unwrap();
        let whole = Span { space: Space::Parameters, offset: 0, len: parameters };
        backend.write(whole, bytemuck::cast_slice(&self.parameters)).unwrap();
        let words = self.indices.iter().map(|(&var, values)| (var, bytemuck::cast_slice(values)));
        let floats = self.floats.iter().map(|(&var, values)| (var, bytemuck::cast_slice(values)));
        for (var, bytes) in words.chain(floats).filter(|(var, _)| program.uses(*var)) {
            backend.write(program.span(var, &self.extents), bytes).unwrap();
        }
    }

    /// A number in [-1, 1], another at each call.
    fn draw(&mut self) -> f32 {
        self.draws += 1;
        let word = mtdnn_raw::random::philox4x32_10([self.draws, 0, 0, 0], [7, 7])[0];
        (f64::from(word) / f64::from(u32::MAX) * 2.0 - 1.0) as f32
    }

    fn parameter(&mut self, name: &str, rows: usize, cols: usize) -> Var {
        let offset = self.parameters.len();
        for _ in 0..rows * cols {
            let value = self.draw();
            self.parameters.push(value);
        }
        self.tape.parameter(name, offset, rows, cols)
    }

    fn indices(&mut self, name: &str, rows: Rows, values: &[u32]) -> Var {
        let var = self.tape.input(name, DType::U32, rows, 1);
        self.indices.insert(var, values.to_vec());
        var
    }

    fn index(&mut self) -> TokenIndex {
        let ids = [3, 1, 4, 1, 5, 2, 6, 5, 3, 5, 1, 4, 1, 5, 0];
        let mut order: Vec<u32> = (0..15).collect();
        order.sort_by_key(|&row| ids[row as usize]);
        let lengths = [5u32, 1, 9];
        let places: Vec<u32> = (0u32..3)
            .flat_map(|s| (0..lengths[s as usize]).map(move |position| s << 16 | position))
            .collect();
        TokenIndex {
            ids: self.indices("ids", Rows::Tokens, &ids),
            types: self.indices("types", Rows::Tokens, &[0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]),
            places: self.indices("places", Rows::Tokens, &places),
            order: self.indices("order", Rows::Tokens, &order),
            starts: self.indices("starts", Rows::Sequences, &[0, 5, 6]),
            ends: self.indices("ends", Rows::Sequences, &[5, 6, 15]),
            first_places: self.indices("first_places", Rows::Sequences, &[0, 1 << 16, 2 << 16]),
        }
    }

    /// Token vectors that depend on parameters.
    fn tokens(&mut self, index: TokenIndex, hidden: usize) -> Var {
        let word = self.parameter("word", 7, hidden);
        let position = self.parameter("position", 9, hidden);
        let token_type = self.parameter("type", 2, hidden);
        self.tape.embedding(index, word, position, token_type)
    }

    fn linear(&mut self, x: Var, outputs: usize, activation: Activation) -> Var {
        let inputs = self.tape.shape(x).cols;
        let weight = self.parameter("weight", outputs, inputs);
        let bias = self.parameter("bias", 1, outputs);
        self.tape.linear(x, weight, bias, activation)
    }

    fn norm(&mut self, x: Var, residual: Option<Var>, probability: f32, keys: Var) -> Var {
        let cols = self.tape.shape(x).cols;
        let gamma = self.parameter("gamma", 1, cols);
        let beta = self.parameter("beta", 1, cols);
        let dropout = self.tape.dropout_site(probability);
        self.tape.add_norm(x, residual, gamma, beta, 1e-12, dropout, keys)
    }

    /// A loss over all elements of `x`: a linear map to one number a row, then the squared error.
    fn squared(&mut self, x: Var) -> Var {
        let out = self.linear(x, 1, Activation::Identity);
        let rows = self.tape.shape(out).rows;
        let targets = self.tape.input("targets", DType::F32, rows, 1);
        let values = (0..rows.count(&self.extents)).map(|_| self.draw()).collect();
        self.floats.insert(targets, values);
        self.tape.squared_error(out, targets)
    }
}

fn embedding(case: &mut Case) -> Var {
    let index = case.index();
    let x = case.tokens(index, 11);
    case.squared(x)
}

fn linear(case: &mut Case, activation: Activation) -> Var {
    let index = case.index();
    let x = case.tokens(index, 10);
    let y = case.linear(x, 13, activation);
    let z = case.linear(y, 6, Activation::Identity);
    case.squared(z)
}

fn attention(case: &mut Case, heads: usize, size: usize, probability: f32) -> Var {
    let index = case.index();
    let x = case.tokens(index, 6);
    let qkv = case.linear(x, 3 * heads * size, Activation::Identity);
    let dropout = case.tape.dropout_site(probability);
    let context = case.tape.attention(qkv, index, heads, dropout);
    case.squared(context)
}

/// `x` is used three times: stored once, added to twice, once through a part of its own.
fn norms(case: &mut Case) -> Var {
    let index = case.index();
    let x = case.tokens(index, 9);
    let y = case.norm(x, None, 0.0, index.places);
    let z = case.norm(x, Some(y), 0.3, index.places);
    let w = case.norm(z, Some(x), 0.1, index.places);
    case.squared(w)
}

fn dropout(case: &mut Case) -> Var {
    let index = case.index();
    let x = case.tokens(index, 17);
    let site = case.tape.dropout_site(0.4);
    let y = case.tape.drop(x, Some(index.places), site);
    let first = case.tape.gather(y, index.starts);
    let site = case.tape.dropout_site(0.2);
    let z = case.tape.drop(first, None, site);
    case.squared(z)
}

/// The gathered rows' gradient adds to that of another use.
fn gather(case: &mut Case) -> Var {
    let index = case.index();
    let x = case.tokens(index, 8);
    let y = case.linear(x, 8, Activation::Identity);
    let z = case.norm(y, Some(x), 0.0, index.places);
    let first = case.tape.gather(z, index.starts);
    case.squared(first)
}

/// Some rows are gathered by two operations; dropout is keyed by the tokens that were gathered.
fn gather_twice(case: &mut Case) -> Var {
    let index = case.index();
    let x = case.tokens(index, 8);
    let [rows, others] = [("rows", [1, 4, 7, 12]), ("others", [7, 0, 1, 14])]
        .map(|(name, rows)| case.indices(name, Rows::Predictions, &rows));
    let keys = case.indices("keys", Rows::Predictions, &[1, 4, 2 << 16 | 1, 2 << 16 | 6]);
    let [masked, other] = [rows, others].map(|rows| case.tape.gather(x, rows));
    let y = case.linear(masked, 8, Activation::Identity);
    let z = case.norm(y, Some(other), 0.3, keys);
    let site = case.tape.dropout_site(0.2);
    let kept = case.tape.drop(z, Some(keys), site);
    case.squared(kept)
}

/// The keys are the values in one use, and another value in the next; the query is a parameter, then a value. Sequence 1
/// has no token of the second text.
fn attend(case: &mut Case, cols: usize) -> Var {
    let index = case.index();
    let x = case.tokens(index, cols);
    let shared = case.parameter("query", 1, cols);
    let summary = case.tape.attend(x, x, shared, index, 1);
    let query = case.linear(summary, cols, Activation::Identity);
    let site = case.tape.dropout_site(0.3);
    let keys = case.tape.drop(x, Some(index.places), site);
    let attended = case.tape.attend(keys, x, query, index, 0);
    case.squared(attended)
}

/// Two steps of a recurrent unit; the first state is the input of a map, too.
fn gru(case: &mut Case) -> Var {
    let index = case.index();
    let x = case.tokens(index, 9);
    let state = case.linear(x, 7, Activation::Identity);
    let of_state = case.linear(state, 21, Activation::Identity);
    let of_input = case.linear(x, 21, Activation::Identity);
    let next = case.tape.gru(of_input, of_state, state);
    let [of_state, of_input] = [next, x].map(|var| case.linear(var, 21, Activation::Identity));
    let last = case.tape.gru(of_input, of_state, next);
    case.squared(last)
}

/// `x` is merged with two values: stored once, added to once.
fn merge(case: &mut Case) -> Var {
    let index = case.index();
    let x = case.tokens(index, 9);
    let y = case.linear(x, 9, Activation::Identity);
    let first = case.tape.merge(x, y);
    let z = case.linear(first, 9, Activation::Identity);
    let second = case.tape.merge(z, x);
    case.squared(second)
}

/// The mean of some steps' answers, of which dropout leaves out about half.
fn step_average(case: &mut Case, steps: usize, probability: f32) -> Var {
    let index = case.index();
    let x = case.tokens(index, 8);
    let logits: Vec<Var> = (0..steps).map(|_| case.linear(x, 3, Activation::Identity)).collect();
    let site = case.tape.dropout_site(probability);
    let average = case.tape.step_average(&logits, site);
    let labels = (0..15).map(|row| row * 5 % 3).collect::<Vec<u32>>();
    let labels = case.indices("labels", Rows::Tokens, &labels);
    case.tape.cross_entropy(average, labels)
}

fn cross_entropy(case: &mut Case) -> Var {
    let index = case.index();
    let x = case.tokens(index, 8);
    let first = case.tape.gather(x, index.starts);
    let logits = case.linear(first, 5, Activation::Identity);
    let labels = case.indices("labels", Rows::Sequences, &[4, 0, 2]);
    case.tape.cross_entropy(logits, labels)
}

/// The loss's weight is the embedding's table, too: both add to one gradient. Blocks of three words, three and one.
fn vocabulary_loss(case: &mut Case) -> Var {
    let index = case.index();
    let word = case.parameter("word", 7, 8);
    let position = case.parameter("position", 9, 8);
    let token_type = case.parameter("type", 2, 8);
    let x = case.tape.embedding(index, word, position, token_type);
    let rows = case.indices("rows", Rows::Predictions, &[1, 4, 7, 12]);
    let masked = case.tape.gather(x, rows);
    let h = case.linear(masked, 8, Activation::Gelu);
    let bias = case.parameter("bias", 1, 7);
    let labels = case.indices("words", Rows::Predictions, &[6, 0, 3, 3]);
    let [loss, _] = case.tape.vocabulary_loss(h, word, bias, labels, 3);
    loss
}

fn ranking(case: &mut Case) -> Var {
    let index = case.index();
    let x = case.tokens(index, 8);
    let first = case.tape.gather(x, index.starts);
    let scores = case.linear(first, 1, Activation::Identity);
    let groups = case.indices("groups", Rows::GroupStarts, &[0, 2, 3]);
    let positives = case.indices("positives", Rows::Groups, &[1, 0]);
    case.tape.ranking(scores, groups, positives, 1.5)
}

/// Start and end of a span among some tokens of each group.
fn ranking_in_two_columns(case: &mut Case) -> Var {
    let index = case.index();
    let x = case.tokens(index, 8);
    let rows = case.indices("marked_rows", Rows::Predictions, &[12, 1, 4, 7]);
    let marked = case.tape.gather(x, rows);
    let scores = case.linear(marked, 2, Activation::Identity);
    let groups = case.indices("groups", Rows::GroupStarts, &[0, 3, 4]);
    let positives = case.tape.input("spans", DType::U32, Rows::Groups, 2);
    case.indices.insert(positives, vec![1, 2, 0, 0]);
    case.tape.ranking(scores, groups, positives, 1.5)
}

/// Hard and soft labels together, as in distillation: both losses' gradients meet in the logits.
fn soft_cross_entropy(case: &mut Case) -> Var {
    let index = case.index();
    let x = case.tokens(index, 8);
    let first = case.tape.gather(x, index.starts);
    let logits = case.linear(first, 3, Activation::Identity);
    let labels = case.indices("labels", Rows::Sequences, &[2, 0, 2]);
    let targets = case.tape.input("soft", DType::F32, Rows::Sequences, 3);
    case.floats.insert(targets, vec![0.2, 0.3, 0.5, 1.0, 0.0, 0.0, 0.1, 0.8, 0.1]);
    let hard = case.tape.cross_entropy(logits, labels);
    let soft = case.tape.soft_cross_entropy(logits, targets, None, 0.5);
    case.tape.weighted_sum([hard, soft], [0.3, 2.8])
}

/// The same over the candidates of groups.
fn soft_ranking(case: &mut Case) -> Var {
    let index = case.index();
    let x = case.tokens(index, 8);
    let first = case.tape.gather(x, index.starts);
    let scores = case.linear(first, 1, Activation::Identity);
    let groups = case.indices("groups", Rows::GroupStarts, &[0, 2, 3]);
    let targets = case.tape.input("soft", DType::F32, Rows::Sequences, 1);
    case.floats.insert(targets, vec![0.3, 0.7, 1.0]);
    case.tape.soft_cross_entropy(scores, targets, Some(groups), 1.5)
}

/// Records a computation and returns its loss.
pub type Build = Box<dyn Fn(&mut Case) -> Var>;

/// One list of operations; each in every shape of interest.
pub fn cases() -> Vec<(&'static str, Build)> {
    vec![
        ("embedding", Box::new(embedding)),
        ("linear", Box::new(|case| linear(case, Activation::Identity))),
        ("linear gelu", Box::new(|case| linear(case, Activation::Gelu))),
        ("linear gelu tanh", Box::new(|case| linear(case, Activation::GeluTanh))),
        ("linear relu", Box::new(|case| linear(case, Activation::Relu))),
        ("linear tanh", Box::new(|case| linear(case, Activation::Tanh))),
        ("linear sigmoid", Box::new(|case| linear(case, Activation::Sigmoid))),
        ("attention of one head", Box::new(|case| attention(case, 1, 8, 0.0))),
        ("attention with dropout", Box::new(|case| attention(case, 3, 5, 0.3))),
        ("norms", Box::new(norms)),
        ("dropout", Box::new(dropout)),
        ("gather", Box::new(gather)),
        ("gather twice", Box::new(gather_twice)),
        ("attend", Box::new(|case| attend(case, 8))),
        ("attend, odd columns", Box::new(|case| attend(case, 11))),
        ("gru", Box::new(gru)),
        ("merge", Box::new(merge)),
        ("average of steps", Box::new(|case| step_average(case, 3, 0.0))),
        ("average of steps with dropout", Box::new(|case| step_average(case, 5, 0.5))),
        ("average of many steps", Box::new(|case| step_average(case, 16, 0.8))),
        ("cross entropy", Box::new(cross_entropy)),
        ("vocabulary loss", Box::new(vocabulary_loss)),
        ("ranking", Box::new(ranking)),
        ("ranking in two columns", Box::new(ranking_in_two_columns)),
        ("soft cross entropy", Box::new(soft_cross_entropy)),
        ("soft ranking", Box::new(soft_ranking)),
    ]
}

/// Fails unless a backend agrees with the CPU's in every operation of every case.
pub fn assert_cases_agree(backend: &mut dyn Backend) {
    let mut cpu = CpuBackend::new();
    for (name, build) in cases() {
        let mut case = Case::new();
        let loss = build(&mut case);
        let backends: [&mut dyn Backend; 2] = [&mut cpu, &mut *backend];
        let programs = backends.each_ref().map(|backend| {
            let tape = case.tape.clone().with_precision(backend.precision());
            Program::training(tape, &[loss], 1.0, false, case.extents)
        });
        let mut backends = backends;
        for (backend, program) in backends.iter_mut().zip(&programs) {
            case.write(*backend, program);
        }
        let step = StepScalars { extents: case.extents, seed: 0x1234_5678_9ABC, step: 3 };
        let report = check_programs(backends, programs.each_ref(), &step).unwrap();
        if let Some(difference) = report.difference {
            panic!("{name}: {difference}");
        }
        assert!(report.compared > 0, "{name}: nothing was compared");
    }
}
