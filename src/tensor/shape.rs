//! Shapes: every value is a row-major matrix whose row count is a number or one of a batch's extents.

use std::fmt;

/// Rows of a line: the height of the tiles of products and of attention on a GPU.
pub const LINE: usize = 128;

/// How many rows of tokens, sequences, groups and predictions a batch holds, or a program has room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Extents {
    /// Rows of packed tokens, special ones included, and dead ones where a backend aligns sequences.
    pub tokens: usize,
    /// Sequences: one for each text or pair.
    pub sequences: usize,
    /// Groups: one for each example; a ranking example groups the sequences of its candidates.
    pub groups: usize,
    /// Masked tokens whose words are to be predicted.
    pub predictions: usize,
    /// Whether it is known that no sequence crosses a multiple of [`LINE`] rows, so that rows meet in attention only
    /// within a line.
    pub in_lines: bool,
}

impl Extents {
    /// Whether a batch of this size fits a program planned for `capacity`.
    pub fn fit(&self, capacity: &Extents) -> bool {
        self.tokens <= capacity.tokens
            && self.sequences <= capacity.sequences
            && self.groups <= capacity.groups
            && self.predictions <= capacity.predictions
            && self.in_lines >= capacity.in_lines
    }

    /// The larger of each extent: what holds either batch.
    pub fn max(&self, other: &Extents) -> Extents {
        Extents {
            tokens: self.tokens.max(other.tokens),
            sequences: self.sequences.max(other.sequences),
            groups: self.groups.max(other.groups),
            predictions: self.predictions.max(other.predictions),
            in_lines: self.in_lines && other.in_lines,
        }
    }
}

/// The number of rows of a value: known when it is recorded, or bound by the batch at run time.
///
/// A program is planned once for the largest batch and run on any smaller one, so one program serves
/// every step of a task; rows beyond the batch are neither read nor written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// As many as recorded.
    Fixed(usize),
    /// One a token.
    Tokens,
    /// One a sequence.
    Sequences,
    /// One a group.
    Groups,
    /// One a group and one more: the first sequence of each group, and the end of the last.
    GroupStarts,
    /// One a masked token.
    Predictions,
}

impl Rows {
    /// The number of rows in a batch of `extents`.
    pub fn count(self, extents: &Extents) -> usize {
        match self {
            Rows::Fixed(rows) => rows,
            Rows::Tokens => extents.tokens,
            Rows::Sequences => extents.sequences,
            Rows::Groups => extents.groups,
            Rows::GroupStarts => extents.groups + 1,
            Rows::Predictions => extents.predictions,
        }
    }
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rows::Fixed(rows) => write!(f, "{rows}"),
            Rows::Tokens => f.write_str("tokens"),
            Rows::Sequences => f.write_str("sequences"),
            Rows::Groups => f.write_str("groups"),
            Rows::GroupStarts => f.write_str("groups+1"),
            Rows::Predictions => f.write_str("predictions"),
        }
    }
}

/// Rows and columns of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The number of rows.
    pub rows: Rows,
    /// The number of columns, contiguous in memory.
    pub cols: usize,
}

impl Shape {
    /// A shape of `rows` by `cols`.
    pub fn new(rows: Rows, cols: usize) -> Self {
        Self { rows, cols }
    }

    /// The number of elements in a batch of `extents`.
    pub fn len(&self, extents: &Extents) -> usize {
        self.rows.count(extents) * self.cols
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}]", self.rows, self.cols)
    }
}

/// What an element is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// A 32-bit float.
    F32,
    /// The upper half of a 32-bit float.
    Bf16,
    /// A 32-bit index, label or place.
    U32,
}

impl DType {
    /// How many four-byte words `elements` of them take.
    pub fn words(self, elements: usize) -> usize {
        match self {
            DType::F32 | DType::U32 => elements,
            DType::Bf16 => elements.div_ceil(2),
        }
    }

    /// The numbers that `elements` of this kind hold, from the words that they lie in.
    pub fn to_f32(self, words: Vec<f32>, elements: usize) -> Vec<f32> {
        match self {
            DType::F32 => {
                assert_eq!(words.len(), elements, "a word each");
                words
            }
            DType::Bf16 => {
                let halves: &[half::bf16] = bytemuck::cast_slice(&words);
                halves[..elements].iter().map(|half| half.to_f32()).collect()
            }
            DType::U32 => panic!("indices are no numbers"),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::U32 => "u32",
        })
    }
}
