//! Launches of the losses and of their gradients. All operands are f32, or u32 where they are addresses.

use bytemuck::{Pod, Zeroable};

use super::launch::{Address, Launches, Operand, RowCount, blocks};
use crate::tensor::{DType, Rows};

/// Up to as many classes a warp has a row.
pub(super) const FEW_CLASSES: u32 = 1024;
/// Threads of blocks whose warps have a row each, and of those that have a row together.
pub(super) const FEW: u32 = 128;
pub(super) const MANY: u32 = 512;
/// Threads of the block that takes a mean, and its bytes of shared memory.
pub(super) const MEAN: u32 = 512;
pub(super) const MEAN_SHARED: usize = 128;

/// The twin of `Mean` in `kernels/loss.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Mean {
    step: Address,
    values: Address,
    out: Address,
    rows: RowCount,
}

/// The twin of `CrossEntropy` in `kernels/loss.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct CrossEntropy {
    step: Address,
    logits: Address,
    labels: Address,
    d_loss: Address,
    out: Address,
    rows: RowCount,
    classes: u32,
    unused: u32,
}

impl CrossEntropy {
    /// Pushes the kernel of the two that is made for so many classes.
    fn push(self, launches: &mut Launches, most_rows: u32, few: &'static str, many: &'static str) {
        if self.classes <= FEW_CLASSES {
            launches.push(few, [blocks(most_rows, FEW / 32), 1, 1], FEW, 0, &self);
        } else {
            launches.push(many, [most_rows.max(1), 1, 1], MANY, MEAN_SHARED, &self);
        }
    }
}

/// The mean over rows of `-log softmax(logits)[label]`; NaN where a label is no class. `labels` is u32 `[rows]`.
pub fn cross_entropy(launches: &mut Launches, logits: Operand, labels: Address, loss: Operand) {
    assert_eq!([logits.dtype, loss.dtype], [DType::F32; 2], "logits and loss");
    let losses = launches.scratch(logits.most_rows as usize * size_of::<f32>());
    let arguments = CrossEntropy {
        step: launches.step,
        logits: logits.address,
        labels,
        d_loss: 0,
        out: losses,
        rows: logits.rows,
        classes: logits.cols,
        unused: 0,
    };
    arguments.push(launches, logits.most_rows, "cross_entropy_few", "cross_entropy_many");
    mean(launches, losses, logits.rows, loss);
}

/// `d_logits = (softmax(logits) - one_hot(label)) d_loss / rows`; NaN in a row whose label is no class.
pub fn cross_entropy_gradient(
    launches: &mut Launches,
    logits: Operand,
    labels: Address,
    d_loss: Operand,
    d_logits: Operand,
) {
    assert_eq!([logits.dtype, d_loss.dtype, d_logits.dtype], [DType::F32; 3], "logits and their gradient");
    let arguments = CrossEntropy {
        step: launches.step,
        logits: logits.address,
        labels,
        d_loss: d_loss.address,
        out: d_logits.address,
        rows: logits.rows,
        classes: logits.cols,
        unused: 0,
    };
    arguments.push(launches, logits.most_rows, "cross_entropy_grad_few", "cross_entropy_grad_many");
}

/// The twin of `SquaredError` in `kernels/loss.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SquaredError {
    step: Address,
    predictions: Address,
    targets: Address,
    d_loss: Address,
    out: Address,
    rows: RowCount,
}

/// The mean of `(target - prediction)^2`.
pub fn squared_error(launches: &mut Launches, predictions: Operand, targets: Operand, loss: Operand) {
    assert_eq!([predictions.dtype, targets.dtype, loss.dtype], [DType::F32; 3], "predictions and loss");
    let arguments = SquaredError {
        step: launches.step,
        predictions: predictions.address,
        targets: targets.address,
        d_loss: 0,
        out: loss.address,
        rows: predictions.rows,
    };
    launches.push("squared_error", [1, 1, 1], MEAN, MEAN_SHARED, &arguments);
}

/// `d_predictions = 2 (prediction - target) d_loss / rows`.
pub fn squared_error_gradient(
    launches: &mut Launches,
    predictions: Operand,
    targets: Operand,
    d_loss: Operand,
    d_predictions: Operand,
) {
    let dtypes = [predictions.dtype, targets.dtype, d_loss.dtype, d_predictions.dtype];
    assert_eq!(dtypes, [DType::F32; 4], "predictions and their gradient");
    let arguments = SquaredError {
        step: launches.step,
        predictions: predictions.address,
        targets: targets.address,
        d_loss: d_loss.address,
        out: d_predictions.address,
        rows: predictions.rows,
    };
    launches.push("squared_error_grad", [blocks(predictions.most_rows, FEW), 1, 1], FEW, 0, &arguments);
}

/// The twin of `Ranking` in `kernels/loss.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Ranking {
    step: Address,
    scores: Address,
    groups: Address,
    positives: Address,
    d_loss: Address,
    out: Address,
    gamma: f32,
    columns: u32,
}

/// Groups of candidates, of which one each is right in each column of their scores.
#[derive(Clone, Copy, Debug)]
pub struct Candidates {
    /// f32 `[candidates, columns]`
    pub scores: Operand,
    /// First candidate of each group and the end of the last, u32 `[groups + 1]`
    pub groups: Address,
    /// The number of the right candidate within its group, u32 `[groups, columns]`
    pub positives: Address,
    /// What scores are multiplied by.
    pub gamma: f32,
}

impl Candidates {
    fn arguments(&self, launches: &Launches, d_loss: Address, out: Address) -> Ranking {
        assert_eq!(self.scores.dtype, DType::F32, "scores");
        Ranking {
            step: launches.step,
            scores: self.scores.address,
            groups: self.groups,
            positives: self.positives,
            d_loss,
            out,
            gamma: self.gamma,
            columns: self.scores.cols,
        }
    }
}

/// The mean over groups and columns of `-log softmax(gamma * scores)[positive]` within the group; NaN where a group has no such
/// candidate.
pub fn ranking(launches: &mut Launches, candidates: &Candidates, loss: Operand) {
    let groups = launches.extents.groups as u32;
    let losses = launches.scratch(groups as usize * size_of::<f32>());
    let arguments = candidates.arguments(launches, 0, losses);
    launches.push("ranking", [blocks(groups, FEW / 32), 1, 1], FEW, 0, &arguments);
    mean(launches, losses, RowCount::new(Rows::Groups), loss);
}

/// `d_scores = gamma (softmax(gamma * scores) - one_hot(positive)) d_loss / (groups columns)`, each group and column by
/// itself.
pub fn ranking_gradient(
    launches: &mut Launches,
    candidates: &Candidates,
    d_loss: Operand,
    d_scores: Operand,
) {
    assert_eq!([d_loss.dtype, d_scores.dtype], [DType::F32; 2], "the scores' gradient");
    let groups = launches.extents.groups as u32;
    let arguments = candidates.arguments(launches, d_loss.address, d_scores.address);
    launches.push("ranking_grad", [blocks(groups, FEW / 32), 1, 1], FEW, 0, &arguments);
}

/// The twin of `SoftCrossEntropy` in `kernels/loss.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SoftCrossEntropy {
    step: Address,
    logits: Address,
    targets: Address,
    groups: Address,
    d_loss: Address,
    out: Address,
    rows: RowCount,
    classes: u32,
    factor: f32,
}

/// Rows of classes or groups of candidates, and what each one's probability should be.
#[derive(Clone, Copy, Debug)]
pub struct SoftChoices {
    /// f32 `[rows, classes]`, or `[sequences, 1]`
    pub logits: Operand,
    /// f32, of the same shape
    pub targets: Operand,
    /// First sequence of each group and the end of the last, u32 `[groups + 1]`; none where a row is a choice
    pub groups: Option<Address>,
    /// What logits are multiplied by.
    pub factor: f32,
}

impl SoftChoices {
    /// How many choices there are, and the most there can be.
    fn count(&self, launches: &Launches) -> (RowCount, u32) {
        match self.groups {
            Some(_) => (RowCount::new(Rows::Groups), launches.extents.groups as u32),
            None => (self.logits.rows, self.logits.most_rows),
        }
    }

    fn push(&self, launches: &mut Launches, kernel: &'static str, d_loss: Address, out: Address) {
        assert_eq!([self.logits.dtype, self.targets.dtype], [DType::F32; 2], "logits and targets");
        let (rows, most) = self.count(launches);
        let arguments = SoftCrossEntropy {
            step: launches.step,
            logits: self.logits.address,
            targets: self.targets.address,
            groups: self.groups.unwrap_or(0),
            d_loss,
            out,
            rows,
            classes: self.logits.cols,
            factor: self.factor,
        };
        launches.push(kernel, [blocks(most, FEW / 32), 1, 1], FEW, 0, &arguments);
    }
}

/// The mean over choices of `-sum_c target_c log softmax(factor * logits)_c`.
pub fn soft_cross_entropy(launches: &mut Launches, choices: &SoftChoices, loss: Operand) {
    let (rows, most) = choices.count(launches);
    let losses = launches.scratch(most as usize * size_of::<f32>());
    choices.push(launches, "soft_cross_entropy", 0, losses);
    mean(launches, losses, rows, loss);
}

/// `d_logits = factor (softmax(factor * logits) sum(targets) - targets) d_loss / choices`.
pub fn soft_cross_entropy_gradient(
    launches: &mut Launches,
    choices: &SoftChoices,
    d_loss: Operand,
    d_logits: Operand,
) {
    assert_eq!([d_loss.dtype, d_logits.dtype], [DType::F32; 2], "the logits' gradient");
    choices.push(launches, "soft_cross_entropy_grad", d_loss.address, d_logits.address);
}

/// The twin of `WeightedSum` in `kernels/loss.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct WeightedSum {
    first: Address,
    second: Address,
    out: Address,
    first_weight: f32,
    second_weight: f32,
}

/// `out = weights[0] terms[0] + weights[1] terms[1]`, numbers all; without a second term the first alone.
pub fn weighted_sum(
    launches: &mut Launches,
    terms: (Operand, Option<Operand>),
    weights: [f32; 2],
    out: Operand,
) {
    let (first, second) = terms;
    assert_eq!([first.dtype, out.dtype], [DType::F32; 2], "losses");
    let arguments = WeightedSum {
        first: first.address,
        second: second.map_or(0, |second| second.address),
        out: out.address,
        first_weight: weights[0],
        second_weight: weights[1],
    };
    launches.push("weighted_sum", [1, 1, 1], 32, 0, &arguments);
}

/// The mean of each row's loss.
fn mean(launches: &mut Launches, values: Address, rows: RowCount, loss: Operand) {
    let arguments = Mean { step: launches.step, values, out: loss.address, rows };
    launches.push("mean_of_rows", [1, 1, 1], MEAN, MEAN_SHARED, &arguments);
}
