//! Launches of the embedding and of its gradients. [`norm::forward_embedding`](super::norm::forward_embedding) has the
//! embedding together with what follows it.

use bytemuck::{Pod, Zeroable};

use super::elementwise::fill;
use super::launch::{Address, Launches, Operand, RowCount, Target, blocks};
use super::sums;
use crate::tensor::DType;

/// Where the indices of a batch lie.
#[derive(Clone, Copy, Debug)]
pub struct Tokens {
    /// u32 `[tokens]`
    pub ids: Address,
    /// u32 `[tokens]`
    pub types: Address,
    /// `sequence << 16 | position`, u32 `[tokens]`
    pub places: Address,
    /// Rows sorted by id, then by row, u32 `[tokens]`
    pub order: Address,
    /// First row of each sequence, u32 `[sequences]`
    pub starts: Address,
    /// The row after the last of each, u32 `[sequences]`
    pub ends: Address,
}

/// The tables whose rows are added up, of the kind of element that comes out.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// `[vocabulary, cols]`
    pub word: Operand,
    /// `[positions, cols]`
    pub position: Operand,
    /// `[types, cols]`
    pub token_type: Operand,
}

/// The twin of `Embedding` in `kernels/embedding.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Embedding {
    step: Address,
    ids: Address,
    types: Address,
    places: Address,
    word: Address,
    position: Address,
    token_type: Address,
    out: Address,
    rows: RowCount,
    cols: u32,
    vocabulary: u32,
    positions: u32,
    token_types: u32,
    whole: u32,
    unused: u32,
}

/// `out[t] = word[id] + position[place] + token_type[type]`; NaN where a table has no such row.
pub fn forward(launches: &mut Launches, tokens: &Tokens, tables: &Tables, out: Operand) {
    let Tables { word, position, token_type } = *tables;
    for table in [word, position, token_type] {
        assert_eq!((table.dtype, table.cols), (out.dtype, out.cols), "a table beside the embedding");
    }
    let whole = [word, position, token_type, out].iter().all(Operand::has_whole_rows);
    let arguments = Embedding {
        step: launches.step,
        ids: tokens.ids,
        types: tokens.types,
        places: tokens.places,
        word: word.address,
        position: position.address,
        token_type: token_type.address,
        out: out.address,
        rows: out.rows,
        cols: out.cols,
        vocabulary: word.most_rows,
        positions: position.most_rows,
        token_types: token_type.most_rows,
        whole: whole.into(),
        unused: 0,
    };
    launches.push(out.pick("embed_bf16", "embed_f32"), [blocks(out.most_rows, 8), 1, 1], 256, 0, &arguments);
}

/// The twin of `WordGrad` in `kernels/embedding.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct WordGrad {
    step: Address,
    ids: Address,
    order: Address,
    d_out: Address,
    d_word: Address,
    partials: Address,
    rows: RowCount,
    cols: u32,
    vocabulary: u32,
    whole: u32,
    unused: u32,
}

/// The twin of `TableGrad` in `kernels/embedding.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TableGrad {
    step: Address,
    starts: Address,
    ends: Address,
    types: Address,
    d_out: Address,
    out: Address,
    rows: RowCount,
    cols: u32,
    token_types: u32,
    add: u32,
    whole: u32,
}

/// Rows of the order that a block of the word gradient has.
const CHUNK: u32 = 32;
/// Rows that a block of the type gradient has.
const PART: u32 = 128;
/// Columns that a block of the other gradients has, and its bytes of shared memory: an f32 of each for eight warps.
const TILE: u32 = 256;
const SHARED: usize = 8 * TILE as usize * size_of::<f32>();

/// The backward pass of [`forward`]: each row of a table gets the sum of the gradients of the tokens that use it. The
/// targets are f32; of the word table a row that no token uses gets zeros, or nothing where its target adds.
pub fn backward(
    launches: &mut Launches,
    tokens: &Tokens,
    d_out: Operand,
    d_word: Target,
    d_position: Target,
    d_token_type: Target,
) {
    for target in [d_word, d_position, d_token_type] {
        let Operand { dtype, cols, .. } = target.operand;
        assert_eq!((dtype, cols), (DType::F32, d_out.cols), "a table's gradient");
    }
    word_gradient(launches, tokens, d_out, d_word);
    position_gradient(launches, tokens, d_out, d_position);
    type_gradient(launches, tokens, d_out, d_token_type);
}

fn word_gradient(launches: &mut Launches, tokens: &Tokens, d_out: Operand, target: Target) {
    if !target.add {
        fill(launches, target.operand, 0.0);
    }
    let chunks = blocks(d_out.most_rows, CHUNK);
    let partials = launches.scratch(chunks as usize * 2 * d_out.cols as usize * size_of::<f32>());
    let whole = d_out.has_whole_rows() && target.operand.has_whole_rows();
    let arguments = WordGrad {
        step: launches.step,
        ids: tokens.ids,
        order: tokens.order,
        d_out: d_out.address,
        d_word: target.operand.address,
        partials,
        rows: d_out.rows,
        cols: d_out.cols,
        vocabulary: target.operand.most_rows,
        whole: whole.into(),
        unused: 0,
    };
    launches.push(d_out.pick("sum_words_bf16", "sum_words_f32"), [chunks, 1, 1], 128, 0, &arguments);
    launches.push("join_words", [chunks, 1, 1], 128, 0, &arguments);
}

fn position_gradient(launches: &mut Launches, tokens: &Tokens, d_out: Operand, target: Target) {
    let arguments = TableGrad {
        step: launches.step,
        starts: tokens.starts,
        ends: tokens.ends,
        types: 0,
        d_out: d_out.address,
        out: target.operand.address,
        rows: d_out.rows,
        cols: d_out.cols,
        token_types: 1,
        add: target.add.into(),
        whole: d_out.has_whole_rows().into(),
    };
    let grid = [target.operand.most_rows, blocks(d_out.cols, TILE), 1];
    launches.push(d_out.pick("sum_positions_bf16", "sum_positions_f32"), grid, 256, SHARED, &arguments);
}

fn type_gradient(launches: &mut Launches, tokens: &Tokens, d_out: Operand, target: Target) {
    let (parts, token_types) = (blocks(d_out.most_rows, PART), target.operand.most_rows);
    let partials =
        launches.scratch(parts as usize * target.operand.most_elements() as usize * size_of::<f32>());
    let arguments = TableGrad {
        step: launches.step,
        starts: 0,
        ends: 0,
        types: tokens.types,
        d_out: d_out.address,
        out: partials,
        rows: d_out.rows,
        cols: d_out.cols,
        token_types,
        add: 0,
        whole: d_out.has_whole_rows().into(),
    };
    let grid = [parts, blocks(d_out.cols, TILE), token_types];
    launches.push(d_out.pick("sum_types_bf16", "sum_types_f32"), grid, 256, SHARED, &arguments);
    sums::finish(launches, partials, parts, &[target]);
}
