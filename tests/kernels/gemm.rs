//! Matrix products and column sums against plain sums in f64.

use std::collections::BTreeSet;

use half::bf16;
use mtdnn_raw::backend::cuda::gemm::{Epilogue, Form, column_sums, product};
use mtdnn_raw::backend::cuda::launch::{Address, DropoutSite, Kernels, Launches, Operand, RowCount, Step};
use mtdnn_raw::random::{Random, philox4x32_10};
use mtdnn_raw::tensor::{Activation, DType, Dropout, Extents, Rows};

use super::emulation::{Emulation, Memory, Order};

const SEED: [u32; 2] = [0x89ab_cdef, 0x0123_4567];
const STEP: u32 = 77;

/// What a case does with its product; [`Epilogue`] without addresses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Finish {
    Store,
    Add,
    Bias,
    Activation { activation: Activation, keep: bool },
    DropoutResidual { keys: bool },
    Gradient { activation: Activation, add: bool },
}

const ACTIVATIONS: [Activation; 6] = [
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::Tanh,
    Activation::Sigmoid,
    Activation::Identity,
];

/// Every kind of epilogue, one after another.
pub(super) fn finish(number: usize) -> Finish {
    let activation = ACTIVATIONS[number / 6 % ACTIVATIONS.len()];
    let odd = number / 6 % 2 == 1;
    match number % 6 {
        0 => Finish::Store,
        1 => Finish::Add,
        2 => Finish::Bias,
        3 => Finish::Activation { activation, keep: !odd },
        4 => Finish::DropoutResidual { keys: !odd },
        _ => Finish::Gradient { activation, add: odd },
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub form: Form,
    pub kernels: Kernels,
    /// The rows of the batch: those of A and C, or of A and B.
    pub rows: usize,
    /// What the launch is made for.
    pub capacity: usize,
    /// The other two sizes: columns of C and depth, or rows and columns of C.
    pub sizes: [usize; 2],
    /// Of A, B and C.
    pub dtypes: [DType; 3],
    pub finish: Finish,
    /// Whether B and C lie as parameters and their gradients do, at no multiple of 16 bytes.
    pub as_parameters: bool,
    pub processors: u32,
}

/// Numbers spread over [-1, 1) as the element type has them.
fn numbers(random: &mut Random, dtype: DType, len: usize) -> Vec<f32> {
    let number = |_| random.below(1 << 16) as f32 / (1 << 15) as f32 - 1.0;
    (0..len).map(number).map(|x| if dtype == DType::Bf16 { bf16::from_f32(x).to_f32() } else { x }).collect()
}

/// The standard normal distribution's integral, by Simpson's rule, and its density.
fn normal(x: f64) -> (f64, f64) {
    let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let step = x / 100.0;
    let part = |i: i32| {
        let left = f64::from(i) * step;
        density(left) + 4.0 * density(left + 0.5 * step) + density(left + step)
    };
    (0.5 + (0..100).map(part).sum::<f64>() * step / 6.0, density(x))
}

/// An activation and its derivative.
fn activate(activation: Activation, x: f64) -> (f64, f64) {
    match activation {
        Activation::Identity => (x, 1.0),
        Activation::Gelu => {
            let (integral, density) = normal(x);
            (x * integral, integral + x * density)
        }
        Activation::GeluTanh => {
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let tanh = (root * (x + 0.044715 * x.powi(3))).tanh();
            let inner = root * (1.0 + 3.0 * 0.044715 * x * x);
            (0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * inner)
        }
        Activation::Relu => (x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 }),
        Activation::Tanh => (x.tanh(), 1.0 - x.tanh().powi(2)),
        Activation::Sigmoid => {
            let y = 1.0 / (1.0 + (-x).exp());
            (y, y * (1.0 - y))
        }
    }
}

/// The factor of dropout, one element at a time.
fn keep(dropout: Dropout, key: u32, column: usize) -> f64 {
    let words = philox4x32_10([(column / 8) as u32, key, dropout.site << 8, STEP], SEED);
    let word = words[column % 8 / 2];
    let draw = if column.is_multiple_of(2) { word & 0xffff } else { word >> 16 };
    if draw >= dropout.threshold { f64::from(dropout.scale()) } else { 0.0 }
}

/// Fails where `got` is further from what is expected than sums and rounding explain. `sizes` are the sums of the
/// absolute values of all terms.
fn assert_near(case: &dyn std::fmt::Debug, dtype: DType, got: &[f32], expected: &[f64], sizes: &[f64]) {
    assert_eq!(got.len(), expected.len());
    for (i, ((got, expected), size)) in got.iter().zip(expected).zip(sizes).enumerate() {
        let rounding = if dtype == DType::Bf16 { expected.abs() / 256.0 } else { 0.0 };
        let error = (f64::from(*got) - expected).abs();
        assert!(error <= 2e-6 * (1.0 + size) + rounding, "{case:?}: element {i} is {got}, not {expected}");
    }
}

/// Runs a case in the orders given, compares, and returns the kernels that were launched.
pub(super) fn check(emulation: &Emulation, case: Case, orders: &[Order]) -> Vec<&'static str> {
    let Case { form, rows, capacity, sizes, dtypes, finish, .. } = case;
    let (m, n, k) = match form {
        Form::NT | Form::NN => (rows, sizes[0], sizes[1]),
        Form::TN => (sizes[0], sizes[1], rows),
    };
    let mut random = Random::new(5, [m as u32, n as u32]);
    let a = numbers(&mut random, dtypes[0], m * k);
    let b = numbers(&mut random, dtypes[1], k * n);
    let beside = numbers(&mut random, dtypes[2], m * n).iter().map(|x| 3.0 * x).collect::<Vec<_>>();
    let beside: Vec<f32> = match dtypes[2] {
        DType::Bf16 => beside.iter().map(|x| bf16::from_f32(*x).to_f32()).collect(),
        _ => beside,
    };
    let bias = numbers(&mut random, DType::F32, n);
    let keys: Vec<u32> = (0..m as u32).map(|row| row << 16 | (3 * row + 1)).collect();
    let d_bias = numbers(&mut random, DType::F32, n);
    let dropout = Dropout::new(0.3, 9);

    // The buffers hold the real rows alone: kernels must not touch what they are not told of. Only what Hopper's read
    // has all rows that the launch is made for, with NaN beyond the real ones.
    let mut memory = Memory::new();
    let with_garbage = |values: &[f32], cols: usize| {
        let beyond = if case.kernels == Kernels::Hopper { (capacity - rows) * cols } else { 0 };
        [values, &vec![f32::NAN; beyond]].concat()
    };
    let a_at = memory.floats("a", dtypes[0], &with_garbage(&a, if form == Form::TN { m } else { k }));
    let place = |memory: &mut Memory, name, dtype, values: &[f32]| match case.as_parameters {
        true => memory.parameter(name, dtype, values),
        false => memory.floats(name, dtype, values),
    };
    let b_rows = if form == Form::TN { with_garbage(&b, n) } else { b.clone() };
    let b_at = place(&mut memory, "b", dtypes[1], &b_rows);
    let before_c = if finish == Finish::Add { beside.clone() } else { vec![f32::NAN; m * n] };
    let c_at = place(&mut memory, "c", dtypes[2], &before_c);
    let beside_at = memory.floats("beside", dtypes[2], &beside);
    let bias_at = memory.parameter("bias", DType::F32, &bias);
    let keys_at = memory.words("keys", &keys);
    let kept_at = memory.poison("before", dtypes[2], m * n);
    let d_bias_at = memory.parameter("d_bias", DType::F32, &d_bias);
    let scratch = memory.poison("scratch", DType::F32, 32 * (sizes[0] * sizes[1]).max(n));
    let step = Step { tokens: rows as u32, step: STEP, seed: SEED, ..Step::default() };
    let step_at = memory.words("step", bytemuck::cast_slice(&[step]));

    let operand = |address: Address, dtype, fixed: Option<usize>, cols: usize| Operand {
        address,
        dtype,
        rows: RowCount::new(fixed.map_or(Rows::Tokens, Rows::Fixed)),
        most_rows: fixed.unwrap_or(capacity) as u32,
        cols: cols as u32,
    };
    let (a_operand, b_operand, c_operand) = match form {
        Form::NT => ((None, k), (Some(n), k), (None, n)),
        Form::NN => ((None, k), (Some(k), n), (None, n)),
        Form::TN => ((None, m), (None, n), (Some(m), n)),
    };
    let epilogue = match finish {
        Finish::Store => Epilogue::Store,
        Finish::Add => Epilogue::Add,
        Finish::Bias => Epilogue::Bias(bias_at),
        Finish::Activation { activation, keep } => {
            Epilogue::BiasActivation { bias: bias_at, activation, before: if keep { kept_at } else { 0 } }
        }
        Finish::DropoutResidual { keys } => Epilogue::BiasDropoutResidual {
            bias: bias_at,
            dropout: DropoutSite::new(dropout),
            keys: if keys { keys_at } else { 0 },
            residual: beside_at,
        },
        Finish::Gradient { activation, add } => {
            Epilogue::ActivationGradient { activation, before: beside_at, d_bias: d_bias_at, add }
        }
    };
    let extents = Extents { tokens: capacity, sequences: 1, groups: 1, predictions: 0, in_lines: false };
    let mut launches = Launches::new(step_at, extents, scratch);
    (launches.processors, launches.kernels) = (case.processors, case.kernels);
    product(
        &mut launches,
        form,
        operand(a_at, dtypes[0], a_operand.0, a_operand.1),
        operand(b_at, dtypes[1], b_operand.0, b_operand.1),
        operand(c_at, dtypes[2], c_operand.0, c_operand.1),
        epilogue,
    );
    assert!(launches.scratch_bytes() <= 4 * 32 * (sizes[0] * sizes[1]).max(n));
    let run = match orders {
        [order] => emulation.run_in(*order, &memory, &launches.list),
        _ => emulation.run(&memory, &launches.list),
    };
    run.unwrap_or_else(|message| panic!("{case:?}: {message}"));

    let (mut c, mut kept) = (vec![0.0; m * n], vec![0.0; m * n]);
    let mut sizes_of_sums = vec![0.0; m * n];
    let (mut sums, mut sizes_of_columns) = (vec![0.0; n], vec![1.0; n]);
    for i in 0..m {
        for j in 0..n {
            let term = |l: usize| {
                let a = a[if form == Form::TN { l * m + i } else { i * k + l }];
                let b = b[if form == Form::NT { j * k + l } else { l * n + j }];
                f64::from(a) * f64::from(b)
            };
            let at = i * n + j;
            let sum: f64 = (0..k).map(term).sum();
            let (bias, beside) = (f64::from(bias[j]), f64::from(beside[at]));
            sizes_of_sums[at] = (0..k).map(|l| term(l).abs()).sum();
            kept[at] = sum + bias;
            c[at] = match finish {
                Finish::Store => sum,
                Finish::Add => sum + beside,
                Finish::Bias => sum + bias,
                Finish::Activation { activation, .. } => activate(activation, sum + bias).0,
                Finish::DropoutResidual { keys: with } => {
                    let key = if with { keys[i] } else { i as u32 };
                    (sum + bias) * keep(dropout, key, j) + beside
                }
                Finish::Gradient { activation, .. } => sum * activate(activation, beside).1,
            };
            sums[j] += c[at];
            sizes_of_columns[j] += sizes_of_sums[at];
        }
    }
    assert_near(&case, dtypes[2], &memory.read_floats(c_at), &c, &sizes_of_sums);
    match finish {
        Finish::Activation { keep: true, .. } => {
            assert_near(&case, dtypes[2], &memory.read_floats(kept_at), &kept, &sizes_of_sums);
        }
        Finish::Gradient { add, .. } => {
            let before = d_bias.iter().map(|x| if add { f64::from(*x) } else { 0.0 });
            let sums: Vec<f64> = sums.iter().zip(before).map(|(sum, before)| sum + before).collect();
            assert_near(&case, DType::F32, &memory.read_floats(d_bias_at), &sums, &sizes_of_columns);
        }
        _ => {}
    }
    launches.list.iter().map(|launch| launch.kernel).collect()
}

pub(super) const B: DType = DType::Bf16;
pub(super) const F: DType = DType::F32;
/// Of A, B and C: both kernels' own, and the mixtures that occur around heads.
const DTYPES: [[DType; 3]; 6] = [[B, B, B], [B, B, F], [F, F, F], [F, B, B], [F, B, F], [B, F, F]];
pub(super) const FORMS: [Form; 3] = [Form::NT, Form::NN, Form::TN];

#[test]
fn products_of_any_size_are_right() {
    let Some(emulation) = Emulation::get() else { return };
    let mut cases = Vec::new();
    for form in FORMS {
        for rows in [1, 7, 63, 65, 127, 129, 200] {
            for columns in [8, 24, 72, 128, 136, 3, 1] {
                for depth in [8, 24, 40, 96, 200, 5] {
                    for dtypes in DTYPES {
                        cases.push((form, rows, [columns, depth], dtypes));
                    }
                }
            }
        }
    }
    // A prime step passes through all combinations evenly.
    for (number, case) in cases.into_iter().step_by(CASES_STEP).enumerate() {
        let (form, rows, sizes, dtypes) = case;
        let case = Case {
            form,
            kernels: Kernels::Portable,
            rows,
            capacity: rows + [0, 100, 3000][number % 3],
            sizes,
            dtypes,
            finish: finish(number),
            as_parameters: number % 7 == 3,
            processors: [1, 2, 132][number / 2 % 3],
        };
        let order = [Order::Ascending, Order::Descending, Order::Random(number as u32)][number % 3];
        check(emulation, case, &[order]);
    }
}

/// Which of all combinations of sizes, forms and types are run.
const CASES_STEP: usize = 13;

#[test]
fn every_kernel_gives_the_same_bits_in_every_order() {
    let Some(emulation) = Emulation::get() else { return };
    let mut launched = BTreeSet::new();
    for form in FORMS {
        // One processor wants large tiles, many want many: 64 x 128 suit two.
        for (processors, sizes, rows) in [(1, [128, 96], 127), (2, [128, 72], 127), (132, [136, 200], 129)] {
            for number in 0..6 {
                let case = Case {
                    form,
                    kernels: Kernels::Portable,
                    rows,
                    capacity: rows,
                    sizes,
                    dtypes: DTYPES[number % 3],
                    finish: finish(number),
                    as_parameters: false,
                    processors,
                };
                launched.extend(check(emulation, case, &Order::ALL));
            }
        }
    }
    for form in ["nt", "nn", "tn"] {
        for tile in ["128x128", "64x128", "64x64"] {
            assert!(
                launched.contains(format!("gemm_bf16_{form}_{tile}").as_str()),
                "{form} {tile}: {launched:?}"
            );
        }
        assert!(launched.contains(format!("gemm_any_{form}").as_str()), "{form}: {launched:?}");
    }
    assert!(launched.contains("sum_slices") && launched.contains("column_sums_f32"), "{launched:?}");
}

/// A weight gradient whose depth is cut, over batches of all sizes that the launch was made for.
#[test]
fn slices_follow_the_batch() {
    let Some(emulation) = Emulation::get() else { return };
    for dtypes in [[B, B, F], [F, F, F]] {
        for (number, rows) in [1, 63, 64, 65, 128, 300, 1000].into_iter().enumerate() {
            let case = Case {
                form: Form::TN,
                kernels: Kernels::Portable,
                rows,
                capacity: 1000,
                sizes: [72, 40],
                dtypes,
                finish: finish(number % 2),
                as_parameters: number % 3 == 0,
                processors: 132,
            };
            let launched = check(emulation, case, &[Order::Ascending]);
            assert_eq!(launched[1..], ["sum_slices"], "{case:?}");
        }
    }
}

/// Tiles sum in one order, so a row has the same bits alone and among others.
#[test]
fn tiles_do_not_change_a_bit() {
    let Some(emulation) = Emulation::get() else { return };
    let mut random = Random::new(6, [0, 0]);
    let (rows, columns, depth) = (130, 128, 104);
    let [x, weight] = [rows * depth, columns * depth].map(|len| numbers(&mut random, B, len));
    let results = [(rows, 1), (rows, 2), (rows, 132), (7, 132)].map(|(rows, processors)| {
        let mut memory = Memory::new();
        let operand = |address, most_rows: usize, cols: usize, dtype| Operand {
            address,
            dtype,
            rows: RowCount::new(Rows::Fixed(most_rows)),
            most_rows: most_rows as u32,
            cols: cols as u32,
        };
        let x = operand(memory.floats("x", B, &x[..rows * depth]), rows, depth, B);
        let weight = operand(memory.floats("weight", B, &weight), columns, depth, B);
        let c = operand(memory.poison("c", F, rows * columns), rows, columns, F);
        let step = memory.words("step", bytemuck::cast_slice(&[Step::default()]));
        let mut launches = Launches::new(step, Extents::default(), 0);
        launches.processors = processors;
        product(&mut launches, Form::NT, x, weight, c, Epilogue::Store);
        emulation.run_in(Order::Ascending, &memory, &launches.list).unwrap();
        (launches.list[0].kernel, memory.read::<u32>(c.address, rows * columns))
    });
    let kernels: BTreeSet<_> = results.iter().map(|(kernel, _)| kernel).collect();
    assert!(kernels.len() > 1, "{kernels:?}");
    for (kernel, bits) in &results[1..] {
        assert!(results[0].1[..bits.len()] == bits[..], "{kernel}");
    }
}

#[test]
fn column_sums_are_right() {
    let Some(emulation) = Emulation::get() else { return };
    let mut random = Random::new(7, [0, 0]);
    for dtype in [F, B] {
        for (rows, capacity) in [(1usize, 1usize), (63, 100), (129, 256), (200, 3000), (700, 700)] {
            for columns in [1, 3, 72, 136] {
                for add in [false, true] {
                    let x = numbers(&mut random, dtype, rows * columns);
                    let before = numbers(&mut random, F, columns);
                    let mut memory = Memory::new();
                    let x_at = memory.floats("x", dtype, &x);
                    let out = memory.parameter("out", F, &before);
                    let scratch = memory.poison("scratch", F, capacity.div_ceil(128) * columns);
                    let step = Step { sequences: rows as u32, ..Step::default() };
                    let step = memory.words("step", bytemuck::cast_slice(&[step]));
                    let operand = Operand {
                        address: x_at,
                        dtype,
                        rows: RowCount::new(Rows::Sequences),
                        most_rows: capacity as u32,
                        cols: columns as u32,
                    };
                    let mut launches = Launches::new(step, Extents::default(), scratch);
                    column_sums(&mut launches, operand, out, add);
                    emulation.run(&memory, &launches.list).unwrap();

                    let case = (dtype, rows, capacity, columns, add);
                    let sum = |column: usize, of: fn(f64) -> f64| {
                        let sum: f64 = (0..rows).map(|row| of(f64::from(x[row * columns + column]))).sum();
                        sum + if add { f64::from(before[column]) } else { 0.0 }
                    };
                    let expected: Vec<f64> = (0..columns).map(|column| sum(column, |x| x)).collect();
                    let sizes: Vec<f64> = (0..columns).map(|column| sum(column, f64::abs).abs()).collect();
                    assert_near(&case, F, &memory.read_floats(out), &expected, &sizes);
                }
            }
        }
    }
}
