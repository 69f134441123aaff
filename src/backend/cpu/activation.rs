//! Activations and their derivatives.

use rayon::prelude::*;

use super::blocks::BLOCK;
use super::elements::{Elements, ElementsMut, PART, parts};
use super::isa::Isa;
use super::math;
use super::simd::multiversion;
use crate::tensor::Activation;

/// `after = activation(before)`.
pub fn activate(isa: Isa, activation: Activation, before: Elements, after: ElementsMut) {
    assert_eq!(before.len(), after.len(), "activation of {} into {} elements", before.len(), after.len());
    after
        .par_chunks_mut(BLOCK)
        .zip(before.par_chunks(BLOCK))
        .for_each(|(after, before)| activate_block(isa, activation, before, after));
}

/// `values = activation(values)`, where nothing needs what was there before.
pub fn activate_in_place(isa: Isa, activation: Activation, values: ElementsMut) {
    values.par_chunks_mut(BLOCK).for_each(|values| activate_block_in_place(isa, activation, values));
}

/// `d_before = d_after * activation'(before)`.
pub fn activate_gradient(
    isa: Isa,
    activation: Activation,
    before: Elements,
    d_after: Elements,
    d_before: ElementsMut,
) {
    assert_eq!(
        (before.len(), d_after.len()),
        (d_before.len(), d_before.len()),
        "before and d_after, beside d_before twice"
    );
    d_before.par_chunks_mut(BLOCK).zip(before.par_chunks(BLOCK)).zip(d_after.par_chunks(BLOCK)).for_each(
        |((d_before, before), d_after)| activate_gradient_block(isa, activation, before, d_after, d_before),
    );
}

multiversion! {
    fn activate_block<FMA>(activation: Activation, before: Elements, after: ElementsMut) {
        let mut all = after;
        let mut buffers = [[0.0; PART]; 2];
        let [of_before, of_after] = &mut buffers;
        for part in parts(before.len()) {
            let before = before.read(part.clone(), of_before);
            let after = all.place(part.clone(), of_after);
            match activation {
                Activation::Identity => after.copy_from_slice(before),
                Activation::Gelu => map(before, after, math::gelu::<FMA>),
                Activation::GeluTanh => map(before, after, math::gelu_tanh::<FMA>),
                Activation::Relu => map(before, after, math::relu),
                Activation::Tanh => map(before, after, math::tanh::<FMA>),
                Activation::Sigmoid => map(before, after, math::sigmoid::<FMA>),
            }
            all.settle(part, of_after);
        }
    }
}

multiversion! {
    /// [`activate_in_place`] by the calling thread alone.
    pub fn activate_block_in_place<FMA>(activation: Activation, values: ElementsMut) {
        let mut all = values;
        let mut buffer = [0.0; PART];
        for part in parts(all.len()) {
            let values = all.open(part.clone(), &mut buffer);
            match activation {
                Activation::Identity => {}
                Activation::Gelu => map_in_place(values, math::gelu::<FMA>),
                Activation::GeluTanh => map_in_place(values, math::gelu_tanh::<FMA>),
                Activation::Relu => map_in_place(values, math::relu),
                Activation::Tanh => map_in_place(values, math::tanh::<FMA>),
                Activation::Sigmoid => map_in_place(values, math::sigmoid::<FMA>),
            }
            all.settle(part, &buffer);
        }
    }
}

multiversion! {
    fn activate_gradient_block<FMA>(
        activation: Activation, before: Elements, d_after: Elements, d_before: ElementsMut,
    ) {
        let mut all = d_before;
        let mut buffers = [[0.0; PART]; 3];
        let [of_before, of_d_after, of_d_before] = &mut buffers;
        for part in parts(before.len()) {
            let before = before.read(part.clone(), of_before);
            let d_after = d_after.read(part.clone(), of_d_after);
            let d_before = all.place(part.clone(), of_d_before);
            match activation {
                Activation::Identity => d_before.copy_from_slice(d_after),
                Activation::Gelu => scale(before, d_after, d_before, math::gelu_derivative::<FMA>),
                Activation::GeluTanh => scale(before, d_after, d_before, math::gelu_tanh_derivative::<FMA>),
                Activation::Relu => scale(before, d_after, d_before, relu_derivative),
                Activation::Tanh => scale(before, d_after, d_before, tanh_derivative::<FMA>),
                Activation::Sigmoid => scale(before, d_after, d_before, sigmoid_derivative::<FMA>),
            }
            all.settle(part, of_d_before);
        }
    }
}

/// `after = function(before)`.
#[inline(always)]
fn map(before: &[f32], after: &mut [f32], function: impl Fn(f32) -> f32) {
    for (after, before) in after.iter_mut().zip(before) {
        *after = function(*before);
    }
}

/// `values = function(values)`.
#[inline(always)]
fn map_in_place(values: &mut [f32], function: impl Fn(f32) -> f32) {
    for value in values {
        *value = function(*value);
    }
}

/// `d_before = d_after * derivative(before)`.
#[inline(always)]
fn scale(before: &[f32], d_after: &[f32], d_before: &mut [f32], derivative: impl Fn(f32) -> f32) {
    for ((d_before, before), d_after) in d_before.iter_mut().zip(before).zip(d_after) {
        *d_before = d_after * derivative(*before);
    }
}

/// 0 up to and at 0, else 1.
#[inline(always)]
fn relu_derivative(x: f32) -> f32 {
    if x > 0.0 { 1.0 } else { 0.0 }
}

/// `1 - tanh(x)^2`.
#[inline(always)]
fn tanh_derivative<const FMA: bool>(x: f32) -> f32 {
    let y = math::tanh::<FMA>(x);
    math::multiply_add::<FMA>(-y, y, 1.0)
}

/// `sigmoid(x) (1 - sigmoid(x))`.
#[inline(always)]
fn sigmoid_derivative<const FMA: bool>(x: f32) -> f32 {
    let y = math::sigmoid::<FMA>(x);
    y * (1.0 - y)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{FLOATS, Kept, assert_close_in, numbers, rounded, same_on_any_threads};
    use super::*;

    const ALL: [Activation; 6] = [
        Activation::Identity,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::Tanh,
        Activation::Sigmoid,
    ];

    /// Each activation in f64; the normal distribution by Simpson's rule on its density.
    fn exact(activation: Activation, x: f64) -> f64 {
        match activation {
            Activation::Identity => x,
            Activation::Gelu => {
                let step = x / 200.0;
                let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
                let integral: f64 = (0..200)
                    .map(|i| {
                        let left = f64::from(i) * step;
                        density(left) + 4.0 * density(left + 0.5 * step) + density(left + step)
                    })
                    .sum();
                x * (0.5 + integral * step / 6.0)
            }
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
            Activation::Relu => x.max(0.0),
            Activation::Tanh => x.tanh(),
            Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        }
    }

    #[test]
    fn activations_are_their_formulas() {
        for (activation, dtype) in ALL.into_iter().flat_map(|kind| FLOATS.map(|dtype| (kind, dtype))) {
            for length in [0, 1, 7, 8, 100, BLOCK + 5] {
                let before: Vec<f32> = numbers(1, length).iter().map(|x| 5.0 * x).collect();
                let before = rounded(dtype, &before);
                let expected: Vec<f64> = before.iter().map(|x| exact(activation, f64::from(*x))).collect();
                for in_place in [false, true] {
                    same_on_any_threads(
                        |isa| {
                            let mut after = Kept::new(dtype, &before);
                            if in_place {
                                activate_in_place(isa, activation, after.elements_mut());
                            } else {
                                after = Kept::new(dtype, &vec![f32::NAN; length]);
                                let before = Kept::new(dtype, &before);
                                activate(isa, activation, before.elements(), after.elements_mut());
                            }
                            after.numbers()
                        },
                        |after| assert_close_in(dtype, after, expected.iter().copied(), 1e-6),
                    );
                }
            }
        }
    }

    #[test]
    fn gradients_are_the_difference_quotients() {
        let length = BLOCK + 21;
        // No closer to 0 than the quotient's step, where the rectifier has a kink.
        let before: Vec<f32> = numbers(2, length).iter().map(|x| 5.0 * x + 1e-3f32.copysign(*x)).collect();
        for (activation, dtype) in ALL.into_iter().flat_map(|kind| FLOATS.map(|dtype| (kind, dtype))) {
            let (before, d_after) = (rounded(dtype, &before), rounded(dtype, &numbers(3, length)));
            same_on_any_threads(
                |isa| {
                    let [x, d] = [&before, &d_after].map(|numbers| Kept::new(dtype, numbers));
                    let mut d_before = Kept::new(dtype, &vec![f32::NAN; length]);
                    let out = d_before.elements_mut();
                    activate_gradient(isa, activation, x.elements(), d.elements(), out);
                    d_before.numbers()
                },
                |d_before| {
                    let expected = before.iter().zip(&d_after).map(|(x, d)| {
                        let x = f64::from(*x);
                        let quotient = (exact(activation, x + 1e-4) - exact(activation, x - 1e-4)) / 2e-4;
                        f64::from(*d) * quotient
                    });
                    assert_close_in(dtype, d_before, expected, 1e-6);
                },
            );
        }
    }
}
