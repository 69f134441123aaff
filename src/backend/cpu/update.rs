//! The optimizer's step over the flat buffers: one pass for the gradient's norm, one for everything else; LAMB takes one
//! more, because the length of a tensor's update has to be known before it is made.

use rayon::prelude::*;

use super::blocks::BLOCK;
use super::isa::Isa;
use super::math::multiply_add;
use super::simd::multiversion;
use crate::backend::{Group, Optimizer, Rule, Scalars};

/// The most tasks that a sum over a buffer is cut into: their sums lie on the stack.
const TASKS: usize = 1024;

/// The sum of the squares, in f64.
pub fn squared_norm(isa: Isa, values: &[f32]) -> f64 {
    let mut sums = [0f64; TASKS];
    let block = summed_block(values.len());
    (values.par_chunks(block).zip(&mut sums))
        .for_each(|(values, sum)| *sum = squared_norm_block(isa, values));
    sums.iter().sum()
}

/// Elements of a task that leaves a sum.
fn summed_block(len: usize) -> usize {
    len.div_ceil(TASKS).max(BLOCK)
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
    let mut buffers = buffers;
    assert_eq!(
        [buffers.gradients.len(), buffers.first.len(), buffers.second.len()],
        [buffers.parameters.len(); 3],
        "gradients and moments beside parameters"
    );
    let mut step = Step {
        optimizer: *optimizer,
        scalars: Scalars::new(optimizer, group),
        weight_decay: group.weight_decay,
        clip_scale,
        zero_gradient: group.zero_gradient,
    };
    if optimizer.rule == Rule::Lamb {
        let ratio = trust_ratio(isa, step, &mut buffers);
        step.scalars.rate = (f64::from(step.scalars.rate) * ratio) as f32;
    }
    let Buffers { parameters, gradients, first, second } = buffers;
    parameters
        .par_chunks_mut(BLOCK)
        .zip(gradients.par_chunks(BLOCK))
        .zip(first.par_chunks_mut(BLOCK))
        .zip(second.par_chunks_mut(BLOCK))
        .for_each(|(((parameters, gradients), first), second)| {
            update_block(isa, step, Buffers { parameters, gradients, first, second })
        });
}

/// The first pass of [`Rule::Lamb`]: updates the moments and returns the factor of the learning rate, the norm of the
/// parameters divided by that of their direction, 1 where either is 0.
fn trust_ratio(isa: Isa, step: Step, buffers: &mut Buffers) -> f64 {
    let mut sums = [[0f64; 2]; TASKS];
    let block = summed_block(buffers.parameters.len());
    (buffers.parameters.par_chunks(block))
        .zip(buffers.gradients.par_chunks(block))
        .zip(buffers.first.par_chunks_mut(block))
        .zip(buffers.second.par_chunks_mut(block))
        .zip(&mut sums)
        .for_each(|((((parameters, gradients), first), second), sums)| {
            *sums = lamb_moments_block(isa, step, parameters, gradients, first, second);
        });
    let [parameters, directions] = [0, 1].map(|i| sums.iter().map(|sums| sums[i]).sum::<f64>().sqrt());
    if parameters > 0.0 && directions > 0.0 { parameters / directions } else { 1.0 }
}

/// One update of a group.
#[derive(Clone, Copy)]
struct Step {
    optimizer: Optimizer,
    scalars: Scalars,
    weight_decay: f32,
    clip_scale: f32,
    zero_gradient: bool,
}

impl Step {
    /// What the rule gets of an element of the gradient.
    #[inline(always)]
    fn gradient(&self, g: f32) -> f32 {
        if self.zero_gradient { 0.0 } else { self.clip_scale * g }
    }
}

multiversion! {
    fn squared_norm_block<FMA>(values: &[f32]) -> f64 {
        squares(values)
    }
}

multiversion! {
    /// Updates the moments and returns the sums of the squares of the parameters and of their directions.
    fn lamb_moments_block<FMA>(
        step: Step,
        parameters: &[f32],
        gradients: &[f32],
        first: &mut [f32],
        second: &mut [f32],
    ) -> [f64; 2] {
        // The directions of a piece stay in the nearest cache until they are summed.
        const PIECE: usize = 512;
        let mut directions = [0f32; PIECE];
        let mut sums = [0f64; 2];
        let moments = first.chunks_mut(PIECE).zip(second.chunks_mut(PIECE));
        for ((parameters, gradients), (first, second)) in
            parameters.chunks(PIECE).zip(gradients.chunks(PIECE)).zip(moments)
        {
            let directions = &mut directions[..parameters.len()];
            let moments = first.iter_mut().zip(second);
            for (((theta, g), (m, v)), direction) in
                parameters.iter().zip(gradients).zip(moments).zip(directions.iter_mut())
            {
                let g = step.gradient(*g);
                *m = first_moment::<FMA>(step.optimizer.beta1, *m, g);
                *v = second_moment::<FMA>(step.optimizer.beta2, *v, g);
                *direction = lamb_direction::<FMA>(&step, *theta, *m, *v);
            }
            sums[0] += squares(parameters);
            sums[1] += squares(directions);
        }
        sums
    }
}

multiversion! {
    fn update_block<FMA>(step: Step, buffers: Buffers) {
        let Optimizer { rule, beta1, beta2, epsilon } = step.optimizer;
        let Scalars { rate, kept, second_correction, .. } = step.scalars;
        let weight_decay = step.weight_decay;
        let moment = |m: f32, g: f32| first_moment::<FMA>(beta1, m, g);
        let infinity_norm = |u: f32, g: f32| {
            let (decayed, fresh) = (beta2 * u, g.abs() + epsilon);
            if decayed > fresh { decayed } else { fresh }
        };
        match rule {
            Rule::AdamaxMtdnn => each(step, buffers, |theta, g, m, u| {
                let (m, u) = (moment(m, g), infinity_norm(u, g));
                let change = multiply_add::<FMA>(weight_decay, theta, m / (u + epsilon));
                (multiply_add::<FMA>(-rate, change, theta), m, u)
            }),
            Rule::AdamaxW => each(step, buffers, |theta, g, m, u| {
                let (m, u) = (moment(m, g), infinity_norm(u, g));
                (multiply_add::<FMA>(-rate, m / u, kept * theta), m, u)
            }),
            Rule::Adamax => each(step, buffers, |theta, g, m, u| {
                let g = multiply_add::<FMA>(weight_decay, theta, g);
                let (m, u) = (moment(m, g), infinity_norm(u, g));
                (multiply_add::<FMA>(-rate, m / u, theta), m, u)
            }),
            Rule::AdamW => each(step, buffers, |theta, g, m, v| {
                let (m, v) = (moment(m, g), second_moment::<FMA>(beta2, v, g));
                let change = m / multiply_add::<FMA>(v.sqrt(), second_correction, epsilon);
                (multiply_add::<FMA>(-rate, change, kept * theta), m, v)
            }),
            Rule::AdamBert => each(step, buffers, |theta, g, m, v| {
                let (m, v) = (moment(m, g), second_moment::<FMA>(beta2, v, g));
                let change = multiply_add::<FMA>(weight_decay, theta, m / (v.sqrt() + epsilon));
                (multiply_add::<FMA>(-rate, change, theta), m, v)
            }),
            Rule::Lamb => {
                // The moments have been updated by the first pass, and the rate has its ratio in it.
                let Buffers { parameters, first, second, .. } = buffers;
                for ((theta, m), v) in parameters.iter_mut().zip(first).zip(second) {
                    let direction = lamb_direction::<FMA>(&step, *theta, *m, *v);
                    *theta = multiply_add::<FMA>(-rate, direction, *theta);
                }
            }
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
        (*theta, *m, *v) = rule(*theta, step.gradient(*g), *m, *v);
    }
}

#[inline(always)]
fn first_moment<const FMA: bool>(beta1: f32, m: f32, g: f32) -> f32 {
    settle(multiply_add::<FMA>(beta1, m, (1.0 - beta1) * g))
}

#[inline(always)]
fn second_moment<const FMA: bool>(beta2: f32, v: f32, g: f32) -> f32 {
    settle(multiply_add::<FMA>(beta2, v, (1.0 - beta2) * g * g))
}

/// `r` of [`Rule::Lamb`], of the moments after their update.
#[inline(always)]
fn lamb_direction<const FMA: bool>(step: &Step, theta: f32, m: f32, v: f32) -> f32 {
    let Scalars { first_correction, second_correction, .. } = step.scalars;
    let root = multiply_add::<FMA>(v.sqrt(), second_correction, step.optimizer.epsilon);
    multiply_add::<FMA>(step.weight_decay, theta, first_correction * m / root)
}

/// The sum of the squares, in f64.
#[inline(always)]
fn squares(values: &[f32]) -> f64 {
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

/// Zero for what is about to become subnormal: the moments of a word that is never seen again decay for ever, and
/// arithmetic on subnormal numbers is many times slower on some machines.
#[inline(always)]
fn settle(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0 } else { x }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, doubles, numbers, same_on_any_threads};
    use super::*;

    fn group(learning_rate: f32, weight_decay: f32, update: u64) -> Group {
        Group { range: 0..0, learning_rate, weight_decay, update, zero_gradient: false }
    }

    /// One parameter that starts at 1 and gets the gradients 0.5, -0.25 and 0 at learning rate 0.1 and decay 0.01.
    fn trajectory(isa: Isa, rule: Rule) -> Vec<f32> {
        let optimizer = Optimizer::new(rule);
        let (mut theta, mut m, mut u) = ([1.0], [0.0], [0.0]);
        [0.5, -0.25, 0.0]
            .iter()
            .zip(1..)
            .map(|(g, t)| {
                let buffers =
                    Buffers { parameters: &mut theta, gradients: &[*g], first: &mut m, second: &mut u };
                update(isa, &optimizer, &group(0.1, 0.01, t), 1.0, buffers);
                theta[0]
            })
            .collect()
    }

    /// Worked out by hand, at each step u then theta; m is 0.05, 0.02, 0.018. The second gradient is smaller than
    /// what is left of the first, so that u decays.
    #[test]
    fn three_steps_of_both_adamaxes_of_mt_dnn_by_hand() {
        for &isa in Isa::available() {
            // theta - 0.1 (m / (u + 1e-6) + 0.01 theta):
            // 0.500001    1          - 0.1 (0.05  / 0.500002   + 0.01      ) = 0.98900004
            // 0.499500999 0.98900004 - 0.1 (0.02  / 0.499501999 + 0.00989  ) = 0.98400705
            // 0.499001498 0.98400705 - 0.1 (0.018 / 0.499002498 + 0.0098401) = 0.97941585
            assert_close(&trajectory(isa, Rule::AdamaxMtdnn), [0.98900004, 0.98400705, 0.97941585], 1.2e-7);
            // 0.999 theta - 0.1 / (1 - 0.9^t) m / u:
            // 0.5       0.999      - 0.1 / 0.1   * 0.05  / 0.5       = 0.899
            // 0.4995    0.898101   - 0.1 / 0.19  * 0.02  / 0.4995    = 0.87702730
            // 0.4990005 0.87615027 - 0.1 / 0.271 * 0.018 / 0.4990005 = 0.86283953
            assert_close(&trajectory(isa, Rule::AdamaxW), [0.899, 0.87702730, 0.86283953], 1.2e-7);
        }
    }

    /// Worked out by hand, at each step sqrt(v) then theta - 0.1 (m / (sqrt(v) + 1e-6) + 0.01 theta), with m as above
    /// and 0.99998713e-3 for 1 - beta2, as f32 has it. A tensor of one element goes a tenth of its length by LAMB.
    #[test]
    fn three_steps_of_the_rules_for_pre_training_by_hand() {
        for &isa in Isa::available() {
            // 0.015811287 1          - 0.1 (0.05  / 0.015812287 + 0.01        ) = 0.68279012
            // 0.017670483 0.68279012 - 0.1 (0.02  / 0.017671483 + 0.0068279012) = 0.56893062
            // 0.017661646 0.56893062 - 0.1 (0.018 / 0.017662646 + 0.0056893062) = 0.46645168
            assert_close(&trajectory(isa, Rule::AdamBert), [0.68279012, 0.56893062, 0.46645168], 1.2e-7);
            assert_close(&trajectory(isa, Rule::Lamb), [0.9, 0.81, 0.729], 1.2e-7);
        }
    }

    /// From `torch.optim.Adamax`, `AdamW` and `SGD(momentum=0.9)` in f64 (PyTorch 2).
    #[test]
    fn three_steps_of_the_others_are_those_of_pytorch() {
        for &isa in Isa::available() {
            assert_close(&trajectory(isa, Rule::Adamax), [0.90000000, 0.87748006, 0.86261968], 1.2e-7);
            assert_close(&trajectory(isa, Rule::AdamW), [0.89900000, 0.87146730, 0.85000790], 1.2e-7);
            assert_close(&trajectory(isa, Rule::Sgd), [0.949, 0.927151, 0.90655975], 1.2e-7);
        }
    }

    /// The rules in f64, element by element: LAMB with a ratio of 1.
    fn exact_element(optimizer: &Optimizer, group: &Group, g: f64, [theta, m, u]: [f64; 3]) -> [f64; 3] {
        let [beta1, beta2, epsilon] = [optimizer.beta1, optimizer.beta2, optimizer.epsilon].map(f64::from);
        let [rate, decay] = [group.learning_rate, group.weight_decay].map(f64::from);
        let t = group.update as i32;
        let corrected = rate / (1.0 - beta1.powi(t));
        let g = match optimizer.rule {
            Rule::Adamax | Rule::Sgd => g + decay * theta,
            Rule::AdamaxMtdnn | Rule::AdamaxW | Rule::AdamW | Rule::AdamBert | Rule::Lamb => g,
        };
        let (moment, norm) = (beta1 * m + (1.0 - beta1) * g, (beta2 * u).max(g.abs() + epsilon));
        let square = beta2 * u + (1.0 - beta2) * g * g;
        let root = (square / (1.0 - beta2.powi(t))).sqrt();
        match optimizer.rule {
            Rule::AdamaxMtdnn => [theta - rate * (moment / (norm + epsilon) + decay * theta), moment, norm],
            Rule::AdamaxW => [theta * (1.0 - rate * decay) - corrected * moment / norm, moment, norm],
            Rule::Adamax => [theta - corrected * moment / norm, moment, norm],
            Rule::AdamW | Rule::Lamb => {
                [theta * (1.0 - rate * decay) - corrected * moment / (root + epsilon), moment, square]
            }
            Rule::AdamBert => {
                [theta - rate * (moment / (square.sqrt() + epsilon) + decay * theta), moment, square]
            }
            Rule::Sgd => [theta - rate * (beta1 * m + g), beta1 * m + g, u],
        }
    }

    /// A step of a group in f64, each element as parameter and moments. LAMB goes where AdamW goes, but as far as the
    /// learning rate times the norm of the parameters.
    fn exact(optimizer: &Optimizer, group: &Group, gradients: &[f32], clip: f32, state: &mut [[f64; 3]]) {
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
        let moved =
            |(values, g): (&[f64; 3], &f32)| exact_element(optimizer, group, f64::from(clip * g), *values);
        let moved: Vec<[f64; 3]> = state.iter().zip(gradients).map(moved).collect();
        let mut ratio = 1.0;
        if optimizer.rule == Rule::Lamb {
            let length = norm(&mut state.iter().zip(&moved).map(|(before, after)| after[0] - before[0]));
            ratio = f64::from(group.learning_rate) * norm(&mut state.iter().map(|values| values[0])) / length;
        }
        for (values, [theta, m, u]) in state.iter_mut().zip(moved) {
            *values = [values[0] + ratio * (theta - values[0]), m, u];
        }
    }

    /// Updates of parameters that start as `theta`, by the rule and in f64. Each may round by half a last place.
    fn assert_follows(optimizer: &Optimizer, decay: f32, theta: &[f32], gradients: &[Vec<f32>]) {
        const CLIP: f32 = 0.3;
        let length = theta.len();
        let mut expected: Vec<[f64; 3]> = doubles(theta).iter().map(|x| [*x, 0.0, 0.0]).collect();
        for (gradients, t) in gradients.iter().zip(1..) {
            exact(optimizer, &group(1e-2, decay, t), gradients, CLIP, &mut expected);
        }
        same_on_any_threads(
            |isa| {
                let (mut theta, mut m, mut u) = (theta.to_vec(), vec![0.0; length], vec![0.0; length]);
                for (gradients, t) in gradients.iter().zip(1..) {
                    let (first, second) = (&mut m[..], &mut u[..]);
                    let buffers = Buffers { parameters: &mut theta, gradients, first, second };
                    update(isa, optimizer, &group(1e-2, decay, t), CLIP, buffers);
                }
                [theta, m, u].concat()
            },
            |results| {
                let expected = [0, 1, 2].map(|i| expected.iter().map(move |values| values[i]));
                assert_close(results, expected.into_iter().flatten(), 3e-7 + 6e-8 * gradients.len() as f64);
            },
        );
    }

    #[test]
    fn every_element_follows_its_rule() {
        for rule in Rule::ALL {
            let optimizer = Optimizer::new(rule);
            for length in [0, 1, 9, BLOCK + 21] {
                let gradients: Vec<Vec<f32>> = (2..5).map(|seed| numbers(seed, length)).collect();
                assert_follows(&optimizer, 0.1, &numbers(1, length), &gradients);
            }
        }
    }

    #[test]
    fn the_rules_for_pre_training_do_so_over_many_steps() {
        for rule in [Rule::AdamBert, Rule::Lamb] {
            for decay in [0.0, 0.01] {
                let gradients: Vec<Vec<f32>> = (2..42).map(|seed| numbers(seed, 2100)).collect();
                assert_follows(&Optimizer::new(rule), decay, &numbers(1, 2100), &gradients);
            }
        }
    }

    /// A tensor after updates by LAMB at learning rate 0.1.
    fn lamb(isa: Isa, weight_decay: f32, mut theta: [f32; 2], gradients: &[[f32; 2]]) -> [f32; 2] {
        let (mut m, mut v) = ([0.0; 2], [0.0; 2]);
        for (gradients, t) in gradients.iter().zip(1..) {
            let buffers = Buffers { parameters: &mut theta, gradients, first: &mut m, second: &mut v };
            update(isa, &Optimizer::new(Rule::Lamb), &group(0.1, weight_decay, t), 1.0, buffers);
        }
        theta
    }

    /// Worked out by hand, with |theta| = 5, 4.7007485, 4.9877517 and at each step r and |r|:
    /// 1.0299980, -0.0400000; 1.0307744    0.2913401, 0.7043288; 0.7622061    0.2290856, 0.5310682; 0.5783715
    #[test]
    fn three_steps_of_lamb_by_hand() {
        let gradients = [[0.5, 0.0], [-0.25, 0.5], [0.0, 0.0]];
        for &isa in Isa::available() {
            for (steps, expected) in
                (1..).zip([[2.50037661, -3.98059711], [2.32069860, -4.41497734], [2.12314006, -4.87295911]])
            {
                assert_close(&lamb(isa, 0.01, [3.0, -4.0], &gradients[..steps]), expected, 2e-7);
            }
        }
    }

    #[test]
    fn lamb_moves_a_tensor_by_its_own_length() {
        for scale in [1e-4, 1.0, 1e4] {
            let theta = numbers(1, 700).iter().map(|x| scale * x).collect::<Vec<f32>>();
            let (mut after, mut m, mut v) = (theta.clone(), vec![0.0; 700], vec![0.0; 700]);
            let gradients = &numbers(2, 700);
            let buffers = Buffers { parameters: &mut after, gradients, first: &mut m, second: &mut v };
            update(Isa::detect(), &Optimizer::new(Rule::Lamb), &group(0.1, 0.01, 1), 1.0, buffers);
            let moved: Vec<f32> = theta.iter().zip(&after).map(|(before, after)| after - before).collect();
            let [length, step] = [&theta, &moved].map(|x| squared_norm(Isa::detect(), x).sqrt());
            assert!((step / (0.1 * length) - 1.0).abs() < 1e-6, "{step} of a tensor of {length}");
        }
    }

    #[test]
    fn lamb_without_a_length_or_a_direction_has_a_ratio_of_one() {
        for &isa in Isa::available() {
            // 0.5 / (0.5 + 1e-6) in one element.
            assert_close(&lamb(isa, 0.01, [0.0, 0.0], &[[0.5, 0.0]]), [-0.0999998, 0.0], 1e-8);
            assert_eq!(lamb(isa, 0.0, [3.0, -4.0], &[[0.0, 0.0]]), [3.0, -4.0]);
            // By decay alone: the direction is the parameters' own.
            assert_close(&lamb(isa, 0.01, [3.0, -4.0], &[[0.0, 0.0]]), [2.7, -3.6], 1.2e-7);
        }
    }

    #[test]
    fn a_gradient_taken_for_zero_is_not_looked_at() {
        for rule in Rule::ALL {
            let results = [(0.0, false), (f32::NAN, true)].map(|(g, zero_gradient)| {
                let (mut theta, mut m, mut u) = ([1.0], [0.5], [0.25]);
                let group = Group { zero_gradient, ..group(0.1, 0.01, 7) };
                let buffers =
                    Buffers { parameters: &mut theta, gradients: &[g], first: &mut m, second: &mut u };
                update(Isa::detect(), &Optimizer::new(rule), &group, 1.0, buffers);
                [theta, m, u]
            });
            assert_eq!(results[0], results[1]);
            assert_ne!(results[0][0], [1.0], "{rule:?} moves on by its momentum");
        }
    }

    #[test]
    fn moments_fade_to_zero() {
        for rule in Rule::ALL {
            let (mut theta, mut m, mut u) = ([1.0], [1e-37], [1e-37]);
            for t in 1..40 {
                let buffers =
                    Buffers { parameters: &mut theta, gradients: &[0.0], first: &mut m, second: &mut u };
                update(Isa::detect(), &Optimizer::new(rule), &group(0.0, 0.0, t), 1.0, buffers);
            }
            assert_eq!(m, [0.0], "{rule:?}");
        }
    }

    #[test]
    fn the_norm_is_that_of_all_elements() {
        for length in [0, 1, 15, 17, BLOCK + 5, 3 * BLOCK + 1] {
            let x = numbers(6, length);
            let exact: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
            same_on_any_threads(
                |isa| {
                    let norm = squared_norm(isa, &x);
                    assert!((norm - exact).abs() <= 1e-12 * exact, "{isa:?}: {norm} instead of {exact}");
                    vec![norm as f32]
                },
                |_| (),
            );
        }
        // Squares that f32 could not hold, and what must not be lost.
        assert_eq!(squared_norm(Isa::detect(), &[1e30, 0.0]), f64::from(1e30f32).powi(2));
        assert!(squared_norm(Isa::detect(), &[1.0, f32::NAN]).is_nan());
    }
}
