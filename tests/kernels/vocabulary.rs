//! The loss over a vocabulary and its gradients against plain sums in f64.

use mtdnn_raw::backend::cuda::launch::Target;
use mtdnn_raw::backend::cuda::vocabulary::{self, Gradients, Vocabulary};
use mtdnn_raw::tensor::{DType, Extents, Rows};

use super::emulation::Emulation;
use super::support::{Bench, FLOATS, numbers};

#[derive(Clone, Copy, Debug)]
struct Case {
    rows: usize,
    inputs: usize,
    classes: usize,
    /// Columns of logits at a time.
    block: usize,
    /// Of x, of the weights, and of what belongs to them.
    dtype: DType,
    /// Whether the weights lie as parameters may, at no multiple of 16 bytes.
    as_parameters: bool,
    /// Whether gradients are added to what is there.
    add: bool,
}

/// What comes out: the loss, the accuracy, and the gradients of x, the weights and the biases.
#[derive(Debug)]
struct Outcome<T> {
    loss: T,
    accuracy: T,
    d_x: Vec<T>,
    d_weight: Vec<T>,
    d_bias: Vec<T>,
}

struct Numbers {
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    labels: Vec<u32>,
    /// What gradients are added to.
    before: Outcome<f32>,
}

impl Numbers {
    fn new(case: &Case) -> Self {
        let Case { rows, inputs, classes, dtype, .. } = *case;
        let doubled = |seed, dtype, len| numbers(seed, dtype, len).iter().map(|x| 2.0 * x).collect();
        Self {
            x: doubled(1, dtype, rows * inputs),
            weight: doubled(2, dtype, classes * inputs),
            bias: doubled(3, DType::F32, classes),
            // The last class and the first are among them.
            labels: (0..rows).map(|row| ((row + 1) * (classes - 1) % classes) as u32).collect(),
            before: Outcome {
                loss: 0.0,
                accuracy: 0.0,
                d_x: numbers(4, dtype, rows * inputs),
                d_weight: numbers(5, DType::F32, classes * inputs),
                d_bias: numbers(6, DType::F32, classes),
            },
        }
    }

    /// The outcome where the loss's gradient is the number of rows, and for each of its numbers how large its terms are,
    /// taken together.
    fn expected(&self, case: &Case) -> [Outcome<f64>; 2] {
        let Case { rows, inputs, add, .. } = *case;
        let doubles = |values: &[f32]| values.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
        let before = &self.before;
        let [mut sums, mut sizes] = [|term: f64| term, f64::abs].map(|size| {
            let start = |before: &[f32]| {
                before.iter().map(|x| if add { size(f64::from(*x)) } else { 0.0 }).collect::<Vec<f64>>()
            };
            Outcome {
                loss: 0.0,
                accuracy: 0.0,
                d_x: start(&before.d_x),
                d_weight: start(&before.d_weight),
                d_bias: start(&before.d_bias),
            }
        });
        let (x, weight, bias) = (doubles(&self.x), doubles(&self.weight), doubles(&self.bias));
        for (row, (x, label)) in x.chunks(inputs).zip(&self.labels).enumerate() {
            let dot = |w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
            let logits: Vec<f64> =
                weight.chunks(inputs).zip(&bias).map(|(weight, bias)| dot(weight) + bias).collect();
            let label = *label as usize;
            let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
            sums.loss += (sum.ln() - logits[label]) / rows as f64;
            sums.accuracy +=
                f64::from(u8::from(logits.iter().all(|logit| *logit <= logits[label]))) / rows as f64;
            for (class, logit) in logits.iter().enumerate() {
                let d = logit.exp() / sum - f64::from(u8::from(class == label));
                let take = |outcome: &mut Outcome<f64>, size: fn(f64) -> f64| {
                    outcome.d_bias[class] += size(d);
                    for i in 0..inputs {
                        outcome.d_x[row * inputs + i] += size(d * weight[class * inputs + i]);
                        outcome.d_weight[class * inputs + i] += size(d * x[i]);
                    }
                };
                take(&mut sums, |term| term);
                take(&mut sizes, f64::abs);
            }
        }
        [sums, sizes]
    }

    fn computed(&self, emulation: &Emulation, case: &Case) -> Outcome<f32> {
        let Case { rows, inputs, classes, block, dtype, as_parameters, add } = *case;
        let mut bench =
            Bench::new(Extents { tokens: 0, sequences: 0, groups: 0, predictions: rows, in_lines: false });
        let count = Rows::Predictions;
        let weight = match as_parameters {
            true => bench.parameter("weight", dtype, inputs, &self.weight),
            false => bench.value("weight", dtype, Rows::Fixed(classes), inputs, &self.weight),
        };
        let map = Vocabulary {
            x: bench.value("x", dtype, count, inputs, &self.x),
            weight,
            bias: bench.parameter("bias", DType::F32, classes, &self.bias),
            labels: bench.memory.words("labels", &self.labels),
            logits: bench.output("logits", DType::F32, count, block),
            softmax: bench.output("softmax", DType::F32, count, 3),
        };
        let d_loss = bench.value("d_loss", DType::F32, Rows::Fixed(1), 1, &[rows as f32]);
        let [loss, accuracy] =
            ["loss", "accuracy"].map(|name| bench.output(name, DType::F32, Rows::Fixed(1), 1));
        let before = |values: &[f32]| if add { values.to_vec() } else { vec![f32::NAN; values.len()] };
        let d_x = before(&self.before.d_x);
        let d_x = bench.value("d_x", dtype, count, inputs, &d_x);
        let [d_weight, d_bias] =
            [("d_weight", inputs, &self.before.d_weight), ("d_bias", classes, &self.before.d_bias)]
                .map(|(name, cols, values)| bench.parameter(name, DType::F32, cols, &before(values)));
        let target = |operand| Target { operand, add };
        let gradients = Gradients {
            d_logits: (dtype == DType::Bf16).then(|| bench.output("d_logits", dtype, count, block)),
            d_x: target(d_x),
            d_weight: target(d_weight),
            d_bias: target(d_bias),
        };
        bench.run(emulation, |launches| {
            vocabulary::forward(launches, &map, loss, accuracy);
            vocabulary::backward(launches, &map, d_loss, &gradients);
        });
        Outcome {
            loss: bench.read(loss)[0],
            accuracy: bench.read(accuracy)[0],
            d_x: bench.read(d_x),
            d_weight: bench.read(d_weight),
            d_bias: bench.read(d_bias),
        }
    }
}

/// Fails where a number is further from what is expected than rounding explains: of sums, of the logits' gradient where
/// it is bf16, and of what is stored.
#[track_caller]
fn assert_near(case: &Case, what: &str, stored: DType, got: &[f32], expected: &[f64], sizes: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{case:?}: {what}");
    let half_a_place = |dtype| if dtype == DType::Bf16 { 1.0 / 256.0 } else { 0.0 };
    for (i, ((got, expected), size)) in got.iter().zip(expected).zip(sizes).enumerate() {
        let off = (f64::from(*got) - expected).abs();
        let of_terms = size * half_a_place(case.dtype);
        let allowed = 4e-6 * (1.0 + size) + of_terms + (expected.abs() + of_terms) * half_a_place(stored);
        assert!(off <= allowed, "{case:?}: {what} {i} is {got}, not {expected}");
    }
}

#[test]
fn loss_accuracy_and_gradients_are_their_formulas() {
    let Some(emulation) = Emulation::get() else { return };
    // All in one block, blocks with a rest, without eights, of more columns than a warp looks through.
    let shapes = [
        (1, 1, 1, 1),
        (3, 5, 7, 3),
        (5, 8, 37, 16),
        (40, 24, 131, 64),
        (70, 16, 131, 131),
        (6, 16, 2305, 1104),
        (300, 8, 40, 24),
    ];
    for (number, (rows, inputs, classes, block)) in shapes.into_iter().enumerate() {
        for dtype in FLOATS {
            for as_parameters in [false, true] {
                let add = (number % 2 == 1) != as_parameters;
                let case = Case { rows, inputs, classes, block, dtype, as_parameters, add };
                let numbers = Numbers::new(&case);
                let [expected, sizes] = numbers.expected(&case);
                let got = numbers.computed(emulation, &case);
                assert!(
                    (f64::from(got.loss) - expected.loss).abs() < 4e-6 * (1.0 + expected.loss),
                    "{case:?}"
                );
                assert!((f64::from(got.accuracy) - expected.accuracy).abs() < 1e-6, "{case:?}");
                let f32 = DType::F32;
                assert_near(&case, "d_x", dtype, &got.d_x, &expected.d_x, &sizes.d_x);
                assert_near(&case, "d_weight", f32, &got.d_weight, &expected.d_weight, &sizes.d_weight);
                assert_near(&case, "d_bias", f32, &got.d_bias, &expected.d_bias, &sizes.d_bias);
            }
        }
    }
}

/// In bf16 one rounding is off by 0.1 % or so in the mean; as many as there are blocks would be by ten times that.
#[test]
fn the_gradient_of_x_is_rounded_once_and_not_by_each_block() {
    let Some(emulation) = Emulation::get() else { return };
    for add in [false, true] {
        let (rows, inputs, classes, block, dtype) = (20, 16, 800, 8, DType::Bf16);
        let case = Case { rows, inputs, classes, block, dtype, as_parameters: false, add };
        let numbers = Numbers::new(&case);
        let [expected, _] = numbers.expected(&case);
        let got = numbers.computed(emulation, &case).d_x;
        let square = |x: f64| x * x;
        let off: f64 = got.iter().zip(&expected.d_x).map(|(got, x)| square(f64::from(*got) - x)).sum();
        let all: f64 = expected.d_x.iter().map(|x| square(*x)).sum();
        assert!((off / all).sqrt() < 2.5e-3, "off by {}", (off / all).sqrt());
    }
}

#[test]
fn small_losses_keep_their_digits_and_large_logits_do_not_overflow() {
    let Some(emulation) = Emulation::get() else { return };
    let of = |rows, classes, block| Case {
        rows,
        inputs: 1,
        classes,
        block,
        dtype: DType::F32,
        as_parameters: false,
        add: false,
    };
    // Logits of 1000, 990 and 0: the largest comes first, and last.
    for (weight, label) in [([1000.0, 990.0, 0.0], 0), ([0.0, 990.0, 1000.0], 2)] {
        let case = of(1, 3, 1);
        let numbers = Numbers {
            x: vec![1.0],
            weight: weight.to_vec(),
            bias: vec![0.0; 3],
            labels: vec![label],
            ..Numbers::new(&case)
        };
        let Outcome { loss, accuracy, .. } = numbers.computed(emulation, &case);
        let expected = (-10f64).exp().ln_1p();
        assert!((f64::from(loss) - expected).abs() < 1e-7, "{loss}, not {expected}");
        assert_eq!(accuracy, 1.0);
    }
}

#[test]
fn what_is_no_number_or_no_class_shows() {
    let Some(emulation) = Emulation::get() else { return };
    let case = Case {
        rows: 2,
        inputs: 3,
        classes: 20,
        block: 8,
        dtype: DType::F32,
        as_parameters: false,
        add: false,
    };
    let numbers = Numbers { labels: vec![1, 20], ..Numbers::new(&case) };
    let got = numbers.computed(emulation, &case);
    assert!(got.loss.is_nan());
    assert!(got.d_x[..3].iter().all(|d| d.is_finite()));
    assert!(got.d_x[3..].iter().all(|d| d.is_nan()));
    for unusable in [f32::NAN, f32::INFINITY] {
        let mut numbers = Numbers { x: vec![1.0; 6], ..Numbers::new(&case) };
        numbers.weight[3 * 11] = unusable;
        assert!(numbers.computed(emulation, &case).loss.is_nan(), "{unusable}");
    }
    assert!(Numbers::new(&case).computed(emulation, &case).loss.is_finite());
}
