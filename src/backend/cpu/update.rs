//! The optimizer's step over the flat buffers: one pass for the gradient's norm, one for everything else.

use rayon::prelude::*;

use super::blocks::BLOCK;
use super::isa::Isa;
use super::math::multiply_add;
use super::simd::multiversion;
use crate::backend::{Group, Optimizer, Rule};

/// The most tasks that the gradient is cut into: their sums lie on the stack.
const TASKS: usize = 1024;

/// The sum of the squares, in f64.
pub fn squared_norm(isa: Isa, values: &[f32]) -> f64 {
    let mut sums = [0f64; TASKS];
    let block = values.len().div_ceil(TASKS).max(BLOCK);
    (values.par_chunks(block).zip(&mut sums))
        .for_each(|(values, sum)| *sum = squared_norm_block(isa, values));
    sums.iter().sum()
}

/// The elements of one group in each flat buffer, all of one length.
pub struct Buffers<'a> {
    /// The parameters, updated in place.
    pub parameters: &'a mut [f32],
    /// Their gradient.
    pub gradients: &'a [f32],
    /// The first moment; for [`Rule::Sgd`] its momentum.
    pub first: &'a mut [f32],
    /// The second moment or the infinity norm; [`Rule::Sgd`] leaves it alone.
    pub second: &'a mut [f32],
}

/// Updates the parameters of one group and their moments; the gradient is multiplied by `clip_scale` first.
/// The group's range is not used: the buffers hold its elements alone.
pub fn update(isa: Isa, optimizer: &Optimizer, group: &Group, clip_scale: f32, buffers: Buffers) {
    let Buffers { parameters, gradients, first, second } = buffers;
    assert_eq!(
        [gradients.len(), first.len(), second.len()],
        [parameters.len(); 3],
        "gradients and moments beside parameters"
    );
    assert!(group.update > 0, "updates are counted from 1");
    let step = Step::new(optimizer, group, clip_scale);
    parameters
        .par_chunks_mut(BLOCK)
        .zip(gradients.par_chunks(BLOCK))
        .zip(first.par_chunks_mut(BLOCK))
        .zip(second.par_chunks_mut(BLOCK))
        .for_each(|(((parameters, gradients), first), second)| {
            update_block(isa, step, Buffers { parameters, gradients, first, second })
        });
}

/// The scalars of one update.
#[derive(Clone, Copy)]
struct Step {
    rule: Rule,
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    /// The learning rate, with the first moment's bias correction where the rule has one.
    rate: f32,
    /// What decoupled decay leaves of a parameter.
    kept: f32,
    weight_decay: f32,
    /// `1 / sqrt(1 - beta2^t)`
    second_correction: f32,
    clip_scale: f32,
    zero_gradient: bool,
}

impl Step {
    fn new(optimizer: &Optimizer, group: &Group, clip_scale: f32) -> Self {
        let Optimizer { rule, beta1, beta2, epsilon } = *optimizer;
        // In f64: 1 - 0.999 has four digits fewer than 0.999.
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(group.update as f64);
        let rate = f64::from(group.learning_rate);
        let rate = match rule {
            Rule::Adamax | Rule::Sgd => rate,
            Rule::AdamaxW | Rule::AdamaxTorch | Rule::AdamW => rate / correction(beta1),
        };
        Self {
            rule,
            beta1,
            beta2,
            epsilon,
            rate: rate as f32,
            kept: (1.0 - f64::from(group.learning_rate) * f64::from(group.weight_decay)) as f32,
            weight_decay: group.weight_decay,
            second_correction: (1.0 / correction(beta2).sqrt()) as f32,
            clip_scale,
            zero_gradient: group.zero_gradient,
        }
    }
}

multiversion! {
    fn squared_norm_block<FMA>(values: &[f32]) -> f64 {
        const LANES: usize = 16;
        let (whole, rest) = values.as_chunks::<LANES>();
        let mut sums = [0f64; LANES];
        for values in whole {
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += f64::from(*value) * f64::from(*value);
            }
        }
        rest.iter().map(|value| f64::from(*value) * f64::from(*value)).chain(sums).sum()
    }
}

multiversion! {
    fn update_block<FMA>(step: Step, buffers: Buffers) {
        let Step { beta1, beta2, epsilon, rate, kept, weight_decay, second_correction, .. } = step;
        let moment = |m: f32, g: f32| settle(multiply_add::<FMA>(beta1, m, (1.0 - beta1) * g));
        let infinity_norm = |u: f32, g: f32| {
            let (decayed, fresh) = (beta2 * u, g.abs() + epsilon);
            if decayed > fresh { decayed } else { fresh }
        };
        match step.rule {
            Rule::Adamax => each(step, buffers, |theta, g, m, u| {
                let (m, u) = (moment(m, g), infinity_norm(u, g));
                let change = multiply_add::<FMA>(weight_decay, theta, m / (u + epsilon));
                (multiply_add::<FMA>(-rate, change, theta), m, u)
            }),
            Rule::AdamaxW => each(step, buffers, |theta, g, m, u| {
                let (m, u) = (moment(m, g), infinity_norm(u, g));
                (multiply_add::<FMA>(-rate, m / u, kept * theta), m, u)
            }),
            Rule::AdamaxTorch => each(step, buffers, |theta, g, m, u| {
                let g = multiply_add::<FMA>(weight_decay, theta, g);
                let (m, u) = (moment(m, g), infinity_norm(u, g));
                (multiply_add::<FMA>(-rate, m / u, theta), m, u)
            }),
            Rule::AdamW => each(step, buffers, |theta, g, m, v| {
                let m = moment(m, g);
                let v = settle(multiply_add::<FMA>(beta2, v, (1.0 - beta2) * g * g));
                let change = m / multiply_add::<FMA>(v.sqrt(), second_correction, epsilon);
                (multiply_add::<FMA>(-rate, change, kept * theta), m, v)
            }),
            Rule::Sgd => each(step, buffers, |theta, g, m, v| {
                let m = settle(multiply_add::<FMA>(beta1, m, multiply_add::<FMA>(weight_decay, theta, g)));
                (multiply_add::<FMA>(-rate, m, theta), m, v)
            }),
        }
    }
}

/// Replaces parameter and moments of each element by what `rule` makes of them and the gradient.
#[inline(always)]
fn each(step: Step, buffers: Buffers, rule: impl Fn(f32, f32, f32, f32) -> (f32, f32, f32)) {
    let Buffers { parameters, gradients, first, second } = buffers;
    let moments = first.iter_mut().zip(second);
    for ((theta, g), (m, v)) in parameters.iter_mut().zip(gradients).zip(moments) {
        let g = if step.zero_gradient { 0.0 } else { step.clip_scale * g };
        (*theta, *m, *v) = rule(*theta, g, *m, *v);
    }
}

/// Zero for what is about to become subnormal: the moments of a word that is never seen again decay for ever, and
/// arithmetic on subnormal numbers is many times slower on some machines.
#[inline(always)]
fn settle(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0 } else { x }
}
