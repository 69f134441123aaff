//! Elementary functions for the kernels: branch-free, so that loops over them vectorise.
//!
//! All are generic over `FMA`: with it they contract `a * b + c`, without it they do not call the slow library
//! routine that `mul_add` becomes on a machine that lacks the instruction. The two builds differ in the last bits.
//! The coefficients are weighted minimax fits; the bounds stated are measured by the tests against f64.

/// `a * b + c`, rounded once if `FMA`, else twice.
#[inline(always)]
pub fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// The polynomial with these coefficients, the lowest power first.
#[inline(always)]
fn polynomial<const FMA: bool, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[N - 1];
    for i in (0..N - 1).rev() {
        sum = multiply_add::<FMA>(sum, x, coefficients[i]);
    }
    sum
}

/// `e^x` to 1 unit in the last place. Results below the smallest normal number become 0.
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    const SMALLEST: f32 = -87.336_54; // ln 2^-126
    const LARGEST: f32 = 88.722_84; // ln of the largest finite number
    let inside = exp_inside::<FMA>(x);
    let inside = if x < SMALLEST { 0.0 } else { inside };
    // Infinity for what is too large, NaN for NaN.
    if x <= LARGEST { inside } else { x + f32::INFINITY }
}

/// `e^x` where it is a normal number; elsewhere anything.
#[inline(always)]
fn exp_inside<const FMA: bool>(x: f32) -> f32 {
    // ln 2 in two parts, the first short enough that its products with exponents are exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;

    let shifted = multiply_add::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let exponent = shifted - ROUND;
    let rest = multiply_add::<FMA>(exponent, -LN2_LOW, multiply_add::<FMA>(exponent, -LN2_HIGH, x));
    let fraction = polynomial::<FMA, 5>(
        rest,
        [0.499_999_94, 0.166_665_21, 0.041_668_39, 0.008_368_717, 0.001_381_459_9],
    );
    let mantissa = multiply_add::<FMA>(fraction, rest * rest, rest) + 1.0;
    f32::from_bits(mantissa.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// `|x|`, but no more than `limit`; NaN stays.
#[inline(always)]
fn size_up_to(limit: f32, x: f32) -> f32 {
    if x.abs() > limit { limit } else { x.abs() }
}

/// The hyperbolic tangent to 1.5 units in the last place.
#[inline(always)]
pub fn tanh<const FMA: bool>(x: f32) -> f32 {
    let size = size_up_to(10.0, x);
    let square = size * size;
    let series = polynomial::<FMA, 4>(square, [-0.333_329_6, 0.133_209_42, -0.052_684_147, 0.016_458_761]);
    let near = multiply_add::<FMA>(series * square, size, size);
    let far = 1.0 - 2.0 / (exp_inside::<FMA>(2.0 * size) + 1.0);
    (if size > 0.55 { far } else { near }).copysign(x)
}

/// `1 / (1 + e^-x)` to 2.5 units in the last place, also where it is next to nothing.
#[inline(always)]
pub fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    // Of the size, so that nothing overflows; the tail by multiplication, so that nothing cancels.
    let decay = exp_inside::<FMA>(-size_up_to(87.0, x));
    let share = 1.0 / (1.0 + decay);
    if x < 0.0 { decay * share } else { share }
}

/// `max(x, 0)`; NaN stays.
#[inline(always)]
pub fn relu(x: f32) -> f32 {
    if x <= 0.0 { 0.0 } else { x }
}

/// `x Phi(x)`, the Gaussian error linear unit in its exact form (Hendrycks and Gimpel 2016), to 7e-7 relative for
/// `x > -4`. As `max(x, 0) - |x| tail(|x|)`, which does not cancel.
#[inline(always)]
pub fn gelu<const FMA: bool>(x: f32) -> f32 {
    let size = size_up_to(NORMAL_LIMIT, x);
    let (tail, _) = normal::<FMA>(size);
    multiply_add::<FMA>(-size, tail, relu(x))
}

/// `Phi(x) + x phi(x)`, the derivative of [`gelu`], to 2.5e-7 absolute.
#[inline(always)]
pub fn gelu_derivative<const FMA: bool>(x: f32) -> f32 {
    const INVERSE_ROOT_TWO_PI: f32 = 0.398_942_3;
    let size = size_up_to(NORMAL_LIMIT, x);
    let (tail, bell) = normal::<FMA>(size);
    let left = multiply_add::<FMA>(-INVERSE_ROOT_TWO_PI * size, bell, tail);
    if x < 0.0 { left } else { 1.0 - left }
}

/// Beyond this the upper tail of the normal distribution is less than 1e-35.
const NORMAL_LIMIT: f32 = 12.5;

/// The standard normal distribution at `x` from 0 to the limit: its upper tail, and `exp(-x^2 / 2)`.
///
/// The tail is `exp(-x^2 / 2) t P(t)` with `t = 1 / (1 + c x)`, the form of Abramowitz and Stegun 26.2.17 with a longer
/// polynomial: accurate relative to the tail, however small, where `1 - erf` would cancel.
#[inline(always)]
fn normal<const FMA: bool>(x: f32) -> (f32, f32) {
    let bell = exp_inside::<FMA>(-0.5 * x * x);
    let t = 1.0 / multiply_add::<FMA>(x, 0.3025, 1.0);
    let ratio = polynomial::<FMA, 8>(
        t,
        [
            0.120_626_48,
            0.121_733_44,
            0.100_898_05,
            0.127_373_87,
            -0.050_791_647,
            0.201_639_06,
            -0.158_497_47,
            0.037_018_22,
        ],
    );
    (bell * t * ratio, bell)
}

/// The tanh approximation of [`gelu`] (`gelu_new`): `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`, with the
/// logistic function in the place of tanh, and in the same form as [`gelu`].
#[inline(always)]
pub fn gelu_tanh<const FMA: bool>(x: f32) -> f32 {
    let size = size_up_to(LOGISTIC_LIMIT, x);
    let (tail, _) = logistic::<FMA>(size);
    multiply_add::<FMA>(-size, tail, relu(x))
}

/// The derivative of [`gelu_tanh`].
#[inline(always)]
pub fn gelu_tanh_derivative<const FMA: bool>(x: f32) -> f32 {
    let size = size_up_to(LOGISTIC_LIMIT, x);
    let (tail, share) = logistic::<FMA>(size);
    let slope = INNER_SLOPE * multiply_add::<FMA>(3.0 * INNER_CUBIC * size, size, 1.0);
    let left = multiply_add::<FMA>(-size * slope, tail * share, tail);
    if x < 0.0 { left } else { 1.0 - left }
}

/// Beyond this the upper tail of [`logistic`] is less than 1e-35.
const LOGISTIC_LIMIT: f32 = 9.8;
/// `2 sqrt(2 / pi)`: the factor of tanh's argument, twice, as `(1 + tanh(y)) / 2` is the logistic function at `2 y`.
const INNER_SLOPE: f32 = 1.595_769;
/// The weight of the cubic term.
const INNER_CUBIC: f32 = 0.044_715;

/// The logistic function at the inner function of [`gelu_tanh`], for `x` from 0 to the limit: its upper tail, and itself.
#[inline(always)]
fn logistic<const FMA: bool>(x: f32) -> (f32, f32) {
    let inner = INNER_SLOPE * x * multiply_add::<FMA>(INNER_CUBIC * x, x, 1.0);
    let decay = exp_inside::<FMA>(-inner);
    let share = 1.0 / (1.0 + decay);
    (decay * share, share)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `step`-th f32 between the two, and the two.
    fn floats(from: f32, to: f32, count: usize) -> impl Iterator<Item = f32> {
        (0..=count).map(move |i| from + (to - from) * (i as f32 / count as f32))
    }

    /// The distance in units of the last place of the exact value.
    fn units(value: f32, exact: f64) -> f64 {
        let size = (exact.abs() as f32).max(f32::MIN_POSITIVE);
        let unit = f64::from(f32::from_bits(size.to_bits() + 1)) - f64::from(size);
        (f64::from(value) - exact).abs() / unit
    }

    /// The cumulative normal distribution in f64: the series for small arguments, the continued fraction beyond.
    fn cumulative(x: f64) -> f64 {
        let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        if x.abs() < 3.0 {
            let (mut term, mut sum, mut n) = (x, x, 1.0);
            while term.abs() > 1e-18 {
                n += 2.0;
                term *= x * x / n;
                sum += term;
            }
            return 0.5 + density * sum;
        }
        let fraction = (1..200).rev().fold(0.0, |below, n| f64::from(n) / (x.abs() + below));
        let tail = density / (x.abs() + fraction);
        if x < 0.0 { tail } else { 1.0 - tail }
    }

    fn exp_error<const FMA: bool>() -> f64 {
        floats(-87.336, 88.7228, 2_000_000)
            .map(|x| units(exp::<FMA>(x), f64::from(x).exp()))
            .fold(0.0, f64::max)
    }

    #[test]
    fn exp_is_accurate() {
        assert!(exp_error::<true>() <= 1.0, "{}", exp_error::<true>());
        assert!(exp_error::<false>() <= 1.0, "{}", exp_error::<false>());
    }

    fn exp_ends<const FMA: bool>() {
        assert_eq!(exp::<FMA>(0.0), 1.0);
        assert_eq!(exp::<FMA>(-87.34), 0.0);
        assert_eq!(exp::<FMA>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<FMA>(-1e30), 0.0);
        assert_eq!(exp::<FMA>(88.73), f32::INFINITY);
        assert_eq!(exp::<FMA>(1e30), f32::INFINITY);
        assert_eq!(exp::<FMA>(f32::INFINITY), f32::INFINITY);
        assert!(exp::<FMA>(f32::NAN).is_nan() && exp::<FMA>(-f32::NAN).is_nan());
        assert!(exp::<FMA>(f32::from_bits(0x7f80_0001)).is_nan(), "a NaN with a payload");
    }

    #[test]
    fn exp_at_the_ends() {
        exp_ends::<true>();
        exp_ends::<false>();
    }

    fn tanh_error<const FMA: bool>() -> f64 {
        floats(-12.0, 12.0, 1_000_000)
            .chain(floats(-1e-3, 1e-3, 1000))
            .map(|x| units(tanh::<FMA>(x), f64::from(x).tanh()))
            .fold(0.0, f64::max)
    }

    #[test]
    fn tanh_is_accurate() {
        assert!(tanh_error::<true>() <= 1.5, "{}", tanh_error::<true>());
        assert!(tanh_error::<false>() <= 1.5, "{}", tanh_error::<false>());
        for (x, y) in [(1e30, 1.0), (f32::NEG_INFINITY, -1.0), (1e-30, 1e-30), (-0.0, -0.0f32)] {
            assert_eq!(tanh::<true>(x).to_bits(), f32::to_bits(y));
        }
        assert!(tanh::<true>(f32::NAN).is_nan());
    }

    fn gelu_errors<const FMA: bool>() -> (f64, f64, f64) {
        let relative = floats(-4.0, 14.0, 500_000)
            .filter(|x| *x != 0.0)
            .map(|x| {
                let exact = f64::from(x) * cumulative(f64::from(x));
                ((f64::from(gelu::<FMA>(x)) - exact) / exact).abs()
            })
            .fold(0.0, f64::max);
        let absolute = floats(-14.0, -4.0, 500_000)
            .map(|x| (f64::from(gelu::<FMA>(x)) - f64::from(x) * cumulative(f64::from(x))).abs())
            .fold(0.0, f64::max);
        let derivative = floats(-14.0, 14.0, 500_000)
            .map(|x| {
                let x64 = f64::from(x);
                let density = (-0.5 * x64 * x64).exp() / (2.0 * std::f64::consts::PI).sqrt();
                (f64::from(gelu_derivative::<FMA>(x)) - cumulative(x64) - x64 * density).abs()
            })
            .fold(0.0, f64::max);
        (relative, absolute, derivative)
    }

    #[test]
    fn gelu_and_its_derivative_are_accurate() {
        for (relative, absolute, derivative) in [gelu_errors::<true>(), gelu_errors::<false>()] {
            assert!(relative < 7e-7, "relative {relative:e}");
            assert!(absolute < 1e-10, "absolute {absolute:e}");
            assert!(derivative < 2.5e-7, "derivative {derivative:e}");
        }
    }

    #[test]
    fn sigmoid_is_accurate() {
        let error = |sigmoid: fn(f32) -> f32| {
            let of = |x: f32| units(sigmoid(x), 1.0 / (1.0 + (-f64::from(x)).exp()));
            floats(-87.0, 30.0, 1_000_000).map(of).fold(0.0, f64::max)
        };
        let (fused, plain) = (error(sigmoid::<true>), error(sigmoid::<false>));
        assert!(fused <= 2.5 && plain <= 2.5, "{fused} {plain}");
        for (x, y) in [(0.0, 0.5), (100.0, 1.0), (f32::INFINITY, 1.0)] {
            assert_eq!(sigmoid::<true>(x), y);
        }
        assert!(sigmoid::<true>(f32::NEG_INFINITY) < 1e-37);
        assert!(sigmoid::<true>(f32::NAN).is_nan());
    }

    #[test]
    fn the_tanh_form_and_its_derivative_are_accurate() {
        for x in floats(-13.0, 13.0, 200_000) {
            let x64 = f64::from(x);
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let inner = (root * (x64 + 0.044715 * x64.powi(3))).tanh();
            let slope = root * (1.0 + 3.0 * 0.044715 * x64 * x64);
            let value = 0.5 * x64 * (1.0 + inner);
            let derivative = 0.5 * (1.0 + inner) + 0.5 * x64 * (1.0 - inner * inner) * slope;
            for (ours, exact) in [
                (gelu_tanh::<true>(x), value),
                (gelu_tanh::<false>(x), value),
                (gelu_tanh_derivative::<true>(x), derivative),
                (gelu_tanh_derivative::<false>(x), derivative),
            ] {
                let error = (f64::from(ours) - exact).abs() / exact.abs().max(1.0);
                assert!(error < 5e-7, "x {x}: {ours} instead of {exact}");
            }
        }
    }

    #[test]
    fn activations_at_the_ends() {
        for x in [12.6f32, 1e10, 1e30, f32::INFINITY] {
            for function in [gelu::<true>, gelu_tanh::<true>] {
                assert_eq!(function(x), x);
                assert!(function(-x).abs() < 1e-33, "{} at {}", function(-x), -x);
            }
            for derivative in [gelu_derivative::<true>, gelu_tanh_derivative::<true>] {
                assert_eq!(derivative(x), 1.0);
                assert!(derivative(-x).abs() < 1e-30, "{} at {}", derivative(-x), -x);
            }
        }
        for nan in [f32::NAN, f32::from_bits(0xff80_0001)] {
            for function in
                [gelu::<true>, gelu_derivative::<true>, gelu_tanh::<true>, gelu_tanh_derivative::<true>]
            {
                assert!(function(nan).is_nan());
            }
        }
    }
}
