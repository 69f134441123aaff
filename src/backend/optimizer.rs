//! Update rules as plain data; each backend applies them in one pass over the flat buffers.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// How a parameter `theta` follows its clipped gradient `g`; `m` and `u` or `v` are its moments, `t` the number
/// of the update from 1, `wd` the weight decay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// The textbook's and PyTorch's (Kingma and Ba 2015, algorithm 2): `m = b1 m + (1-b1) g`,
    /// `u = max(b2 u, |g| + eps)`, `theta -= lr / (1 - b1^t) m / u`; decay is added to the gradient, eps 1e-8.
    Adamax,
    /// MT-DNN's first own, of the paper's numbers: `theta -= lr (m / (u + eps) + wd theta)`; no bias correction,
    /// and an eps of 1e-6, which holds back parameters whose clipped gradients are smaller than that.
    AdamaxMtdnn,
    /// The later MT-DNN's: `theta -= lr wd theta`, then as the textbook's, eps 1e-8.
    AdamaxW,
    /// Adam with decoupled decay (Loshchilov and Hutter 2019), eps 1e-8.
    AdamW,
    /// Adam as BERT's own code has it (Devlin et al. 2018): `m = b1 m + (1-b1) g`, `v = b2 v + (1-b2) g^2`,
    /// `theta -= lr (m / (sqrt(v) + eps) + wd theta)`; no bias correction, eps 1e-6.
    AdamBert,
    /// For large batches (You et al. 2020, algorithm 2), with `m` and `v` as above:
    /// `r = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + wd theta`, `theta -= lr |theta| / |r| r`, eps 1e-6.
    ///
    /// The norms are those of a group, which is to be one parameter tensor ([`Rule::per_tensor`]); their ratio counts
    /// as 1 where either is 0. As the algorithm has it, biases and norms take part, with a decay of 0. A step's length
    /// is then `lr |theta|`: a bias that starts at 0 is at `lr |r|` after its first step and grows no faster than by
    /// `1 + lr` a step from there.
    Lamb,
    /// Momentum 0.9 and plain decay in the gradient, as PyTorch's SGD.
    Sgd,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Self; 7] =
        [Self::Adamax, Self::AdamaxMtdnn, Self::AdamaxW, Self::AdamW, Self::AdamBert, Self::Lamb, Self::Sgd];

    /// Whether each parameter tensor has to be a [`Group`] of its own: the rule measures the tensor.
    pub fn per_tensor(self) -> bool {
        self == Self::Lamb
    }
}

/// A rule and its constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Optimizer {
    /// The rule.
    pub rule: Rule,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Keeps denominators from zero.
    pub epsilon: f32,
}

impl Optimizer {
    /// A rule with its customary constants.
    pub fn new(rule: Rule) -> Self {
        let epsilon = match rule {
            Rule::AdamaxMtdnn | Rule::AdamBert | Rule::Lamb => 1e-6,
            Rule::Adamax | Rule::AdamaxW | Rule::AdamW | Rule::Sgd => 1e-8,
        };
        Self { rule, beta1: 0.9, beta2: 0.999, epsilon }
    }
}

/// A range of the flat buffers that is updated alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Elements of the flat buffers.
    pub range: Range<usize>,
    /// This update's learning rate.
    pub learning_rate: f32,
    /// Weight decay.
    pub weight_decay: f32,
    /// The number of this update of the range, from 1.
    pub update: u64,
    /// Take the gradient for zero, whatever the buffer holds.
    pub zero_gradient: bool,
}

/// The scalars of one update of a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scalars {
    /// The learning rate, with the first moment's bias correction where the rule has one and is not [`Rule::Lamb`].
    pub rate: f32,
    /// What decoupled decay leaves of a parameter.
    pub kept: f32,
    /// `1 / (1 - beta1^t)`
    pub first_correction: f32,
    /// `1 / sqrt(1 - beta2^t)`
    pub second_correction: f32,
}

impl Scalars {
    /// Worked out in f64: 1 - 0.999 has four digits fewer than 0.999.
    pub fn new(optimizer: &Optimizer, group: &Group) -> Self {
        assert!(group.update > 0, "updates are counted from 1");
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(group.update as f64);
        let rate = f64::from(group.learning_rate);
        let corrected = match optimizer.rule {
            Rule::AdamaxMtdnn | Rule::AdamBert | Rule::Lamb | Rule::Sgd => rate,
            Rule::AdamaxW | Rule::Adamax | Rule::AdamW => rate / correction(optimizer.beta1),
        };
        Self {
            rate: corrected as f32,
            kept: (1.0 - rate * f64::from(group.weight_decay)) as f32,
            first_correction: (1.0 / correction(optimizer.beta1)) as f32,
            second_correction: (1.0 / correction(optimizer.beta2).sqrt()) as f32,
        }
    }
}
