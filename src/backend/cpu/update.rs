//! The optimizer's step over the flat buffers: one pass for the gradient's norm, one for everything else.

use rayon::prelude::*;

use super::blocks::BLOCK;
use super::isa::Isa;
use super::math::multiply_add;
use super::simd::multiversion;
use crate::backend::{Group, Optimizer, Rule, Scalars};

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
    let step = Step {
        optimizer: *optimizer,
        scalars: Scalars::new(optimizer, group),
        weight_decay: group.weight_decay,
        clip_scale,
        zero_gradient: group.zero_gradient,
    };
    parameters
        .par_chunks_mut(BLOCK)
        .zip(gradients.par_chunks(BLOCK))
        .zip(first.par_chunks_mut(BLOCK))
        .zip(second.par_chunks_mut(BLOCK))
        .for_each(|(((parameters, gradients), first), second)| {
            update_block(isa, step, Buffers { parameters, gradients, first, second })
        });
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
        let Optimizer { rule, beta1, beta2, epsilon } = step.optimizer;
        let Scalars { rate, kept, second_correction } = step.scalars;
        let weight_decay = step.weight_decay;
        let moment = |m: f32, g: f32| settle(multiply_add::<FMA>(beta1, m, (1.0 - beta1) * g));
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

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, doubles, numbers, same_on_any_threads};
    use super::*;

    const RULES: [Rule; 5] = [Rule::AdamaxMtdnn, Rule::AdamaxW, Rule::Adamax, Rule::AdamW, Rule::Sgd];

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

    /// From `torch.optim.Adamax`, `AdamW` and `SGD(momentum=0.9)` in f64 (PyTorch 2).
    #[test]
    fn three_steps_of_the_others_are_those_of_pytorch() {
        for &isa in Isa::available() {
            assert_close(&trajectory(isa, Rule::Adamax), [0.90000000, 0.87748006, 0.86261968], 1.2e-7);
            assert_close(&trajectory(isa, Rule::AdamW), [0.89900000, 0.87146730, 0.85000790], 1.2e-7);
            assert_close(&trajectory(isa, Rule::Sgd), [0.949, 0.927151, 0.90655975], 1.2e-7);
        }
    }

    /// The rules in f64.
    fn exact(optimizer: &Optimizer, group: &Group, g: f64, [theta, m, u]: [f64; 3]) -> [f64; 3] {
        let [beta1, beta2, epsilon] = [optimizer.beta1, optimizer.beta2, optimizer.epsilon].map(f64::from);
        let [rate, decay] = [group.learning_rate, group.weight_decay].map(f64::from);
        let t = group.update as i32;
        let corrected = rate / (1.0 - beta1.powi(t));
        let g = match optimizer.rule {
            Rule::Adamax | Rule::Sgd => g + decay * theta,
            Rule::AdamaxMtdnn | Rule::AdamaxW | Rule::AdamW => g,
        };
        let (moment, norm) = (beta1 * m + (1.0 - beta1) * g, (beta2 * u).max(g.abs() + epsilon));
        let square = beta2 * u + (1.0 - beta2) * g * g;
        match optimizer.rule {
            Rule::AdamaxMtdnn => [theta - rate * (moment / (norm + epsilon) + decay * theta), moment, norm],
            Rule::AdamaxW => [theta * (1.0 - rate * decay) - corrected * moment / norm, moment, norm],
            Rule::Adamax => [theta - corrected * moment / norm, moment, norm],
            Rule::AdamW => {
                let root = (square / (1.0 - beta2.powi(t))).sqrt();
                [theta * (1.0 - rate * decay) - corrected * moment / (root + epsilon), moment, square]
            }
            Rule::Sgd => [theta - rate * (beta1 * m + g), beta1 * m + g, u],
        }
    }

    #[test]
    fn every_element_follows_its_rule() {
        const CLIP: f32 = 0.3;
        for rule in RULES {
            let optimizer = Optimizer::new(rule);
            for length in [0, 1, 9, BLOCK + 21] {
                let theta = numbers(1, length);
                let gradients: Vec<Vec<f32>> = (2..5).map(|seed| numbers(seed, length)).collect();
                let mut expected: Vec<[f64; 3]> = doubles(&theta).iter().map(|x| [*x, 0.0, 0.0]).collect();
                for (gradients, t) in gradients.iter().zip(1..) {
                    for (values, g) in expected.iter_mut().zip(gradients) {
                        *values = exact(&optimizer, &group(1e-2, 0.1, t), f64::from(CLIP * g), *values);
                    }
                }
                same_on_any_threads(
                    |isa| {
                        let (mut theta, mut m, mut u) = (theta.clone(), vec![0.0; length], vec![0.0; length]);
                        for (gradients, t) in gradients.iter().zip(1..) {
                            let (first, second) = (&mut m[..], &mut u[..]);
                            let buffers = Buffers { parameters: &mut theta, gradients, first, second };
                            update(isa, &optimizer, &group(1e-2, 0.1, t), CLIP, buffers);
                        }
                        [theta, m, u].concat()
                    },
                    |results| {
                        let expected = [0, 1, 2].map(|i| expected.iter().map(move |values| values[i]));
                        assert_close(results, expected.into_iter().flatten(), 5e-7);
                    },
                );
            }
        }
    }

    #[test]
    fn a_gradient_taken_for_zero_is_not_looked_at() {
        for rule in RULES {
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
        for rule in RULES {
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
