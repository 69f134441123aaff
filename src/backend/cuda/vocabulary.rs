//! Launches of the loss over a vocabulary: its logits are computed a block of columns at a time, forward for the softmax's
//! statistics, and again backward, where they become their gradient.

use bytemuck::{Pod, Zeroable};

use super::elementwise;
use super::gemm::{Epilogue, Form, column_sums, product};
use super::launch::{Address, Launches, Operand, RowCount, Target, blocks};
use super::loss::{FEW, FEW_CLASSES, MANY, MEAN, MEAN_SHARED};
use crate::tensor::DType;

/// Threads of the blocks that differentiate; a thread has eight columns of a row.
const THREADS: u32 = 256;

/// The twin of `VocabularyBlock` in `kernels/vocabulary.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct VocabularyBlock {
    step: Address,
    logits: Address,
    labels: Address,
    softmax: Address,
    rows: RowCount,
    columns: u32,
    first: u32,
}

/// The twin of `VocabularyMeans` in `kernels/vocabulary.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct VocabularyMeans {
    step: Address,
    softmax: Address,
    loss: Address,
    accuracy: Address,
    rows: RowCount,
}

/// The twin of `VocabularyGradient` in `kernels/vocabulary.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct VocabularyGradient {
    step: Address,
    logits: Address,
    labels: Address,
    softmax: Address,
    d_loss: Address,
    d_logits: Address,
    rows: RowCount,
    columns: u32,
    first: u32,
    classes: u32,
    whole: u32,
}

/// The map whose softmax is measured, and what is worked in.
#[derive(Clone, Copy, Debug)]
pub struct Vocabulary {
    /// `[rows, inputs]`
    pub x: Operand,
    /// `[classes, inputs]`
    pub weight: Operand,
    /// f32 `[1, classes]`
    pub bias: Operand,
    /// u32 `[rows]`
    pub labels: Address,
    /// f32 `[rows, block]`
    pub logits: Operand,
    /// f32 `[rows, 3]`: of each row the largest logit, the sum of `exp(logit - largest)`, the label's logit.
    pub softmax: Operand,
}

/// Where the gradients go.
#[derive(Clone, Copy, Debug)]
pub struct Gradients {
    /// The block's own, bf16 `[rows, block]`; without it the logits become it.
    pub d_logits: Option<Operand>,
    /// `[rows, inputs]`
    pub d_x: Target,
    /// f32 `[classes, inputs]`
    pub d_weight: Target,
    /// f32 `[1, classes]`
    pub d_bias: Target,
}

/// Some columns of the logits: the first one's class, and how many.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Block {
    first: u32,
    columns: u32,
}

impl Vocabulary {
    /// The blocks. Where there are eight columns a block has a multiple of eight, as tensor cores ask for: the few that a
    /// vocabulary may have over are the last block.
    fn blocks(&self) -> impl Iterator<Item = Block> + use<> {
        let (classes, most) = (self.weight.most_rows, self.logits.cols);
        let mut first = 0;
        std::iter::from_fn(move || {
            let columns = most.min(classes - first);
            let columns = if columns >= 8 { columns / 8 * 8 } else { columns };
            let block = Block { first, columns };
            first += columns;
            (columns > 0).then_some(block)
        })
    }

    /// Computes the block's logits: `[rows, columns]`, dense, at the beginning of `logits`.
    fn compute(&self, launches: &mut Launches, Block { first, columns }: Block) -> Operand {
        let logits = Operand { cols: columns, ..self.logits };
        let bias = Epilogue::Bias(self.bias.address + 4 * Address::from(first));
        product(launches, Form::NT, self.x, self.weight.part(first, columns), logits, bias);
        logits
    }
}

/// The mean over rows of `-log softmax(logits)[label]`, NaN where a label is no class, and the share of rows in which no
/// logit is larger than the label's.
pub fn forward(launches: &mut Launches, vocabulary: &Vocabulary, loss: Operand, accuracy: Operand) {
    let Vocabulary { logits, softmax, labels, .. } = *vocabulary;
    let dtypes = [logits.dtype, softmax.dtype, loss.dtype, accuracy.dtype];
    assert_eq!(dtypes, [DType::F32; 4], "logits, statistics and loss");
    for block in vocabulary.blocks() {
        let logits = vocabulary.compute(launches, block);
        let arguments = VocabularyBlock {
            step: launches.step,
            logits: logits.address,
            labels,
            softmax: softmax.address,
            rows: logits.rows,
            columns: block.columns,
            first: block.first,
        };
        if block.columns <= FEW_CLASSES {
            let grid = [blocks(logits.most_rows, FEW / 32), 1, 1];
            launches.push("vocabulary_statistics_few", grid, FEW, 0, &arguments);
        } else {
            let grid = [logits.most_rows.max(1), 1, 1];
            launches.push("vocabulary_statistics_many", grid, MANY, MEAN_SHARED, &arguments);
        }
    }
    let arguments = VocabularyMeans {
        step: launches.step,
        softmax: softmax.address,
        loss: loss.address,
        accuracy: accuracy.address,
        rows: logits.rows,
    };
    launches.push("vocabulary_means", [1, 1, 1], MEAN, 2 * MEAN_SHARED, &arguments);
}

/// The gradients of the mean loss, whose own is `d_loss`; the statistics are the forward pass's.
pub fn backward(launches: &mut Launches, vocabulary: &Vocabulary, d_loss: Operand, gradients: &Gradients) {
    let d_x = gradients.d_x;
    if d_x.operand.dtype == DType::F32 {
        return differentiate(launches, vocabulary, d_loss, gradients);
    }
    // Rounded once: many blocks add to it.
    let bytes = d_x.operand.most_elements() as usize * size_of::<f32>();
    launches.keeping(bytes, |launches, address| {
        let sums = Operand { address, dtype: DType::F32, ..d_x.operand };
        let gradients = Gradients { d_x: Target { operand: sums, add: false }, ..*gradients };
        differentiate(launches, vocabulary, d_loss, &gradients);
        elementwise::accumulate(launches, sums, d_x);
    });
}

/// The same, where `d_x` is f32.
fn differentiate(launches: &mut Launches, vocabulary: &Vocabulary, d_loss: Operand, gradients: &Gradients) {
    let Gradients { d_logits, d_x, d_weight, d_bias } = *gradients;
    let store_or_add = |add: bool| if add { Epilogue::Add } else { Epilogue::Store };
    for block in vocabulary.blocks() {
        let Block { first, columns } = block;
        let logits = vocabulary.compute(launches, block);
        let d_logits = d_logits.map_or(logits, |d_logits| Operand { cols: columns, ..d_logits });
        let arguments = VocabularyGradient {
            step: launches.step,
            logits: logits.address,
            labels: vocabulary.labels,
            softmax: vocabulary.softmax.address,
            d_loss: d_loss.address,
            d_logits: d_logits.address,
            rows: logits.rows,
            columns,
            first,
            classes: vocabulary.weight.most_rows,
            whole: (logits.has_whole_rows() && d_logits.has_whole_rows()).into(),
        };
        let grid = [blocks(logits.most_rows * columns.div_ceil(8), THREADS), 1, 1];
        let kernel = d_logits.pick("vocabulary_gradient_bf16", "vocabulary_gradient_f32");
        launches.push(kernel, grid, THREADS, 0, &arguments);

        let of_weight = d_weight.operand.part(first, columns);
        product(launches, Form::TN, d_logits, vocabulary.x, of_weight, store_or_add(d_weight.add));
        let of_bias = d_bias.operand.address + 4 * Address::from(first);
        column_sums(launches, d_logits, of_bias, d_bias.add);
        let weight = vocabulary.weight.part(first, columns);
        product(launches, Form::NN, d_logits, weight, d_x.operand, store_or_add(d_x.add || first > 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Extents, Rows};

    fn operand(dtype: DType, rows: usize, cols: u32) -> Operand {
        let count = RowCount::new(Rows::Fixed(rows));
        Operand { address: 1 << 20, dtype, rows: count, most_rows: rows as u32, cols }
    }

    fn vocabulary(classes: u32, block: u32) -> Vocabulary {
        Vocabulary {
            x: operand(DType::Bf16, 100, 64),
            weight: operand(DType::Bf16, classes as usize, 64),
            bias: operand(DType::F32, 1, classes),
            labels: 1 << 20,
            logits: operand(DType::F32, 100, block),
            softmax: operand(DType::F32, 100, 3),
        }
    }

    #[test]
    fn blocks_are_what_tensor_cores_can_read_but_for_the_last() {
        let blocks = |classes, block| {
            vocabulary(classes, block).blocks().map(|block| (block.first, block.columns)).collect::<Vec<_>>()
        };
        assert_eq!(blocks(7, 3), [(0, 3), (3, 3), (6, 1)]);
        assert_eq!(blocks(131, 131), [(0, 128), (128, 3)]);
        assert_eq!(blocks(131, 50), [(0, 48), (48, 48), (96, 32), (128, 3)]);
        let last = blocks(30522, 2048).split_off(14);
        assert_eq!(last, [(28672, 1848), (30520, 2)]);
    }

    #[test]
    fn the_table_is_read_by_tensor_cores_and_sums_of_blocks_are_in_f32() {
        let vocabulary = vocabulary(60, 24);
        let mut launches = Launches::new(0, Extents::default(), 1 << 30);
        let target = |operand| Target { operand, add: true };
        let gradients = Gradients {
            d_logits: Some(operand(DType::Bf16, 100, 24)),
            d_x: target(operand(DType::Bf16, 100, 64)),
            d_weight: target(operand(DType::F32, 60, 64)),
            d_bias: target(operand(DType::F32, 1, 60)),
        };
        backward(&mut launches, &vocabulary, operand(DType::F32, 1, 1), &gradients);
        let kernels: Vec<&str> = launches.list.iter().map(|launch| launch.kernel).collect();
        let count = |part| kernels.iter().filter(|kernel| kernel.starts_with(part)).count();
        // Blocks of 24, 24, 8 and 4: rows of four gradients are no packs of 16 bytes, but their logits are only written.
        assert_eq!((count("gemm_bf16"), count("gemm_any")), (10, 2), "{kernels:?}");
        assert_eq!(kernels.last(), Some(&"accumulate_rounded"));
    }
}
