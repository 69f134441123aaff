use half::bf16;

use super::super::math;
use super::*;

/// Numbers in [-1, 1) that look random.
pub(super) fn noise(length: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..length).map(next).collect()
}

/// The nearest numbers of bf16.
fn rounded(numbers: &[f32]) -> Vec<f32> {
    numbers.iter().map(|x| bf16::from_f32(*x).to_f32()).collect()
}

pub(super) fn narrowed(numbers: &[f32]) -> Vec<bf16> {
    numbers.iter().map(|x| bf16::from_f32(*x)).collect()
}

fn widened(numbers: &[bf16]) -> Vec<f32> {
    numbers.iter().map(|x| x.to_f32()).collect()
}

/// A product's operands, dense: as they were made, and in bf16.
struct Case {
    form: Form,
    m: usize,
    n: usize,
    k: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    narrow: [Vec<bf16>; 2],
    /// Which of A and B are given in bf16. With one of them, the product is one of bf16.
    kept_narrow: [bool; 2],
}

impl Case {
    fn new(form: Form, m: usize, n: usize, k: usize) -> Self {
        Self::of(form, [m, n, k], noise(m * k, 1), noise(n * k, 2), [false; 2])
    }

    fn narrow(form: Form, m: usize, n: usize, k: usize, kept_narrow: [bool; 2]) -> Self {
        Self::of(form, [m, n, k], noise(m * k, 1), noise(n * k, 2), kept_narrow)
    }

    fn of(form: Form, [m, n, k]: [usize; 3], a: Vec<f32>, b: Vec<f32>, kept_narrow: [bool; 2]) -> Self {
        let narrow = [narrowed(&a), narrowed(&b)];
        Self { form, m, n, k, a, b, narrow, kept_narrow }
    }

    fn a(&self) -> Matrix<'_> {
        let (rows, cols) = if self.form == Form::TN { (self.k, self.m) } else { (self.m, self.k) };
        if self.kept_narrow[0] {
            return Matrix::new(&self.narrow[0][..], rows, cols);
        }
        Matrix::new(&self.a, rows, cols)
    }

    fn b(&self) -> Matrix<'_> {
        let (rows, cols) = if self.form == Form::NT { (self.n, self.k) } else { (self.k, self.n) };
        if self.kept_narrow[1] {
            return Matrix::new(&self.narrow[1][..], rows, cols);
        }
        Matrix::new(&self.b, rows, cols)
    }

    /// The sum that makes element (i, j), and the sum of its terms' sizes.
    fn exact(&self, i: usize, j: usize) -> (f64, f64) {
        let (a, b) = (self.a(), self.b());
        let element = |wide: &[f32], narrow: &[bf16], at: usize| {
            if self.kept_narrow == [false; 2] { f64::from(wide[at]) } else { f64::from(narrow[at].to_f32()) }
        };
        let terms = (0..self.k).map(|p| {
            let at_a = if self.form == Form::TN { p * a.stride + i } else { i * a.stride + p };
            let at_b = if self.form == Form::NT { j * b.stride + p } else { p * b.stride + j };
            element(&self.a, &self.narrow[0], at_a) * element(&self.b, &self.narrow[1], at_b)
        });
        terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
    }

    fn compute<'c>(&self, isa: Isa, threads: usize, write_back: WriteBack, c: impl Into<ElementsMut<'c>>) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut workspace = Workspace::new(threads);
        let c = MatrixMut::new(c, self.m, self.n);
        pool.install(|| gemm(isa, &mut workspace, self.form, self.a(), self.b(), c, write_back));
    }

    fn stored(&self, isa: Isa, threads: usize) -> Vec<f32> {
        let mut c = vec![f32::NAN; self.m * self.n];
        self.compute(isa, threads, WriteBack::Store, &mut c);
        c
    }

    /// The same in bf16, widened.
    fn stored_narrow(&self, isa: Isa, threads: usize) -> Vec<f32> {
        let mut c = vec![bf16::NAN; self.m * self.n];
        self.compute(isa, threads, WriteBack::Store, &mut c[..]);
        widened(&c)
    }

    /// Checks every element of C against `expected(i, j, product)`, an expression with the product as a term
    /// of weight 1 and `extra` terms of size at most 1; `rounding` is the relative error of C's elements.
    fn check(
        &self,
        isa: impl std::fmt::Debug,
        c: &[f32],
        extra: usize,
        rounding: f64,
        expected: impl Fn(usize, usize, f64) -> f64,
    ) {
        for (i, row) in c.chunks_exact(self.n.max(1)).enumerate() {
            for (j, &value) in row.iter().enumerate() {
                let (sum, size) = self.exact(i, j);
                let expected = expected(i, j, sum);
                // The bound of a sum in any order (Higham, 2002, equation 3.4): one rounding a term.
                let terms = (self.k + extra) as f64;
                let bound =
                    terms * f64::from(f32::EPSILON) * (size + extra as f64) + rounding * expected.abs();
                let error = (f64::from(value) - expected).abs();
                let Case { form, m, n, k, kept_narrow, .. } = self;
                assert!(
                    error <= bound,
                    "{isa:?} {form:?} {m}x{n}x{k} {kept_narrow:?}: C[{i}, {j}] = {value}, not {expected}"
                );
            }
        }
    }
}

/// Half the distance of neighbours in bf16, of numbers just above a power of two.
const HALF_STEP: f64 = 1.0 / 256.0;

const NARROW: [[bool; 2]; 3] = [[true, true], [true, false], [false, true]];

const FORMS: [Form; 3] = [Form::NT, Form::NN, Form::TN];

/// Shapes (m, n, k) with every kind of edge: empty, single, ragged, several slices and blocks, both sides
/// divided, above and below the size where threads come in.
const SHAPES: [(usize, usize, usize); 20] = [
    (0, 5, 3),
    (5, 0, 3),
    (4, 3, 0),
    (1, 1, 1),
    (1, 40, 9),
    (40, 1, 9),
    (6, 16, 8),
    (7, 17, 15),
    (13, 31, 100),
    (32, 3, 768),
    (100, 130, 64),
    (350, 5, 768),
    (97, 129, 385),
    (200, 33, 1000),
    (33, 301, 777),
    (301, 290, 40),
    // Small, of more rows than a block and more depth than a slice.
    (60, 8, 800),
    (100, 8, 400),
    (120, 4, 400),
    (120, 4, 800),
];

#[test]
fn products_agree_with_sums_in_double_precision() {
    for &isa in Isa::available() {
        for form in FORMS {
            for (m, n, k) in SHAPES {
                let case = Case::new(form, m, n, k);
                case.check(isa, &case.stored(isa, 2), 0, 0.0, |_, _, sum| sum);
            }
        }
    }
}

/// Every width of a panel that a kernel has, also those of instruction sets that this machine lacks.
#[test]
fn panels_hold_the_lines_of_the_operand_and_zeros() {
    fn check<const WIDTH: usize>(lines_are_rows: bool, pack: pack::Pack) {
        for (lines, depth) in
            [(0..WIDTH, 0..5), (3..3 + 4 * WIDTH, 5..45), (1..3 * WIDTH, 2..61), (0..1, 7..8)]
        {
            let (rows, cols) = if lines_are_rows { (lines.end, 61) } else { (61, lines.end + 3) };
            let data = noise(rows * cols, 1);
            let matrix = Matrix::new(&data, rows, cols);
            let operand = if lines_are_rows { Operand::rows(matrix) } else { Operand::columns(matrix) };
            let mut packed = vec![f32::NAN; lines.len().next_multiple_of(WIDTH) * depth.len()];
            // SAFETY: the callers below give functions that this machine can run.
            unsafe { pack(&operand, lines.clone(), depth.clone(), &mut packed) };
            for (index, &value) in packed.iter().enumerate() {
                let (panel, place) = (index / (WIDTH * depth.len()), index % (WIDTH * depth.len()));
                let (line, p) = (lines.start + panel * WIDTH + place % WIDTH, depth.start + place / WIDTH);
                let (row, col) = if lines_are_rows { (line, p) } else { (p, line) };
                let expected = if line < lines.end { data[row * cols + col] } else { 0.0 };
                assert_eq!(value, expected, "width {WIDTH}, rows {lines_are_rows}, line {line}, depth {p}");
            }
        }
    }
    fn check_width<const WIDTH: usize>() {
        check::<WIDTH>(true, pack::pack::<WIDTH>);
        check::<WIDTH>(false, pack::pack::<WIDTH>);
        #[cfg(target_arch = "x86_64")]
        if Isa::available().contains(&Isa::Avx2) && WIDTH >= 6 {
            fn pack<const WIDTH: usize>(
                operand: &Operand,
                lines: Range<usize>,
                depth: Range<usize>,
                out: &mut [f32],
            ) {
                pack::pack_rows::<WIDTH>(operand, lines, depth, out, |rows, stride, panel| {
                    // SAFETY: AVX2 is available, as was asked above.
                    unsafe { avx2::gather::<WIDTH>(rows, stride, panel) }
                });
            }
            check::<WIDTH>(true, pack::<WIDTH>);
        }
    }
    check_width::<6>();
    check_width::<8>();
    check_width::<14>();
    check_width::<16>();
    check_width::<32>();
}

#[test]
fn add_adds_to_what_is_there() {
    for &isa in Isa::available() {
        for (m, n, k) in [(0, 3, 2), (4, 3, 0), (19, 37, 50), (97, 129, 800), (20, 200, 400)] {
            let case = Case::new(Form::TN, m, n, k);
            let start = noise(m * n, 3);
            let mut c = start.clone();
            case.compute(isa, 2, WriteBack::Add, &mut c);
            case.check(isa, &c, 1, 0.0, |i, j, sum| sum + f64::from(start[i * n + j]));
        }
    }
}

#[test]
fn bias_is_added_to_every_row() {
    for &isa in Isa::available() {
        for (m, n, k) in [(4, 3, 0), (19, 37, 50), (97, 129, 800), (20, 200, 400)] {
            let case = Case::new(Form::NT, m, n, k);
            let bias = noise(n, 3);
            let mut c = vec![f32::NAN; m * n];
            case.compute(isa, 2, WriteBack::Bias(&bias), &mut c);
            case.check(isa, &c, 1, 0.0, |_, j, sum| sum + f64::from(bias[j]));
        }
    }
}

#[test]
fn gelu_is_applied_to_the_product_with_bias_which_is_kept() {
    for &isa in Isa::available() {
        for (m, n, k) in [(4, 3, 0), (19, 37, 50), (97, 129, 800), (20, 200, 400)] {
            let case = Case::new(Form::NT, m, n, k);
            let bias = noise(n, 3);
            let mut with_bias = vec![f32::NAN; m * n];
            case.compute(isa, 2, WriteBack::Bias(&bias), &mut with_bias);

            let (mut c, mut before) = (vec![f32::NAN; m * n], vec![f32::NAN; m * n]);
            let kept = ElementsMut::from(&mut before);
            case.compute(isa, 2, WriteBack::BiasGelu { bias: &bias, before: kept }, &mut c);
            assert_eq!(before, with_bias);
            let expected: Vec<f32> = before.iter().map(|&x| math::gelu::<false>(x)).collect();
            for (value, expected) in c.iter().zip(&expected) {
                assert!((value - expected).abs() <= 1e-6 * (1.0 + expected.abs()), "{value} {expected}");
            }

            let mut not_kept = vec![f32::NAN; m * n];
            let none = ElementsMut::F32(&mut []);
            case.compute(isa, 2, WriteBack::BiasGelu { bias: &bias, before: none }, &mut not_kept);
            assert_eq!(not_kept, c);
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for &isa in Isa::available() {
        for form in FORMS {
            for (m, n, k) in [(350, 200, 800), (100, 500, 400)] {
                let case = Case::new(form, m, n, k);
                let one = case.stored(isa, 1);
                assert_eq!(case.stored(isa, 2), one);
                assert_eq!(case.stored(isa, 3), one);
            }
        }
    }
}

#[test]
fn a_row_alone_has_the_bits_it_has_in_a_batch() {
    for &isa in Isa::available() {
        for form in [Form::NT, Form::NN] {
            for (m, n, k) in [(350, 200, 800), (100, 500, 400)] {
                let case = Case::new(form, m, n, k);
                let batch = case.stored(isa, 2);
                for row in [0, 1, 5, 57, m - 1] {
                    let a = case.a[row * k..][..k].to_vec();
                    let alone = Case::of(form, [1, n, k], a, case.b.clone(), [false; 2]).stored(isa, 2);
                    assert_eq!(alone, batch[row * n..][..n], "row {row}");
                }
            }
        }
    }
}

#[test]
fn a_serial_product_of_parts_of_matrices_has_the_bits_of_a_parallel_one() {
    for &isa in Isa::available() {
        let mut scratch = vec![0.0; serial_scratch(isa)];
        for form in FORMS {
            for (m, n, k) in [(64, 128, 32), (97, 333, 64), (13, 10, 500)] {
                let case = Case::new(form, m, n, k);
                let expected = case.stored(isa, 2);

                // The same matrices as columns 3.. of wider ones.
                let widen = |data: &[f32], matrix: Matrix| {
                    let mut wide = vec![f32::NAN; 3 + matrix.rows * (matrix.cols + 5)];
                    for (wide, row) in
                        wide[3..].chunks_mut(matrix.cols + 5).zip(data.chunks_exact(matrix.cols))
                    {
                        wide[..matrix.cols].copy_from_slice(row);
                    }
                    wide
                };
                let (a, b) = (widen(&case.a, case.a()), widen(&case.b, case.b()));
                let part = |wide, matrix: Matrix| -> Matrix<'_> {
                    Matrix::with_stride(wide, matrix.rows, matrix.cols, matrix.cols + 5)
                };
                let mut c = vec![f32::NAN; m * (n + 2)];
                for accumulate in [false, true] {
                    let (a, b) = (part(&a[3..], case.a()), part(&b[3..], case.b()));
                    let c = MatrixMut::with_stride(&mut c, m, n, n + 2);
                    gemm_serial(isa, &mut scratch, form, a, b, c, accumulate);
                }
                for (row, expected) in c.chunks_exact(n + 2).zip(expected.chunks_exact(n)) {
                    assert!(row[n..].iter().all(|outside| outside.is_nan()), "written outside of C");
                    for (value, expected) in row.iter().zip(expected) {
                        let close = (value - 2.0 * expected).abs() <= 1e-5 * k as f32;
                        assert!(close, "{form:?} {m}x{n}x{k}: {value}, not twice {expected}");
                    }
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "NT product of [2, 3] and [4, 5]")]
fn depths_that_differ_panic() {
    let (a, b) = (noise(6, 1), noise(20, 2));
    let (a, b) = (Matrix::new(&a, 2, 3), Matrix::new(&b, 5, 4));
    let mut c = [0.0; 10];
    let mut workspace = Workspace::new(1);
    let c = MatrixMut::new(&mut c[..], 2, 5);
    gemm(Isa::Portable, &mut workspace, Form::NT, a, b, c, WriteBack::Store);
}

#[test]
fn products_of_bf16_agree_with_sums_in_double_precision() {
    for &isa in Isa::available() {
        for form in FORMS {
            for (m, n, k) in SHAPES {
                for kept_narrow in NARROW {
                    let case = Case::narrow(form, m, n, k, kept_narrow);
                    case.check(isa, &case.stored(isa, 2), 0, 0.0, |_, _, sum| sum);
                }
                // Rounded once, however many slices the depth takes.
                let case = Case::narrow(form, m, n, k, [true, true]);
                case.check(isa, &case.stored_narrow(isa, 2), 0, HALF_STEP, |_, _, sum| sum);
            }
        }
    }
}

#[test]
fn what_is_written_in_bf16_is_what_is_written_in_f32_but_for_one_rounding() {
    for &isa in Isa::available() {
        for (m, n, k) in [(4, 3, 0), (19, 37, 50), (97, 129, 1700), (20, 200, 400), (300, 40, 1600)] {
            let case = Case::narrow(Form::NT, m, n, k, [true, true]);
            let (bias, start) = (noise(n, 3), rounded(&noise(m * n, 4)));
            let (mut wide, mut narrow) = (start.clone(), narrowed(&start));
            case.compute(isa, 2, WriteBack::Add, &mut wide);
            case.compute(isa, 2, WriteBack::Add, &mut narrow[..]);
            assert_eq!(widened(&narrow), rounded(&wide), "added {isa:?} {m}x{n}x{k}");

            let (mut wide_before, mut narrow_before) = (vec![f32::NAN; m * n], vec![bf16::NAN; m * n]);
            let before = ElementsMut::from(&mut wide_before);
            case.compute(isa, 2, WriteBack::BiasGelu { bias: &bias, before }, &mut wide);
            let before = ElementsMut::from(&mut narrow_before[..]);
            case.compute(isa, 2, WriteBack::BiasGelu { bias: &bias, before }, &mut narrow[..]);
            assert_eq!(widened(&narrow), rounded(&wide), "gelu {isa:?} {m}x{n}x{k}");
            assert_eq!(widened(&narrow_before), rounded(&wide_before));
        }
    }
}

#[test]
fn the_gradient_of_gelu_is_multiplied_in() {
    for &isa in Isa::available() {
        for (m, n, k) in [(4, 3, 0), (19, 37, 50), (97, 129, 800), (20, 200, 400)] {
            let before = rounded(&noise(m * n, 3).iter().map(|x| 3.0 * x).collect::<Vec<_>>());
            let narrow_before = narrowed(&before);
            let case = Case::new(Form::NN, m, n, k);
            let product = case.stored(isa, 2);
            for before in [Elements::from(&before), Elements::from(&narrow_before[..])] {
                let mut c = vec![f32::NAN; m * n];
                case.compute(isa, 2, WriteBack::GeluGradient { before }, &mut c);
                let mut buffer = vec![0.0; m * n];
                for ((value, product), x) in c.iter().zip(&product).zip(before.read(0..m * n, &mut buffer)) {
                    let expected = product * math::gelu_derivative::<false>(*x);
                    assert!((value - expected).abs() <= 1e-6 * (1.0 + product.abs()), "{value} {expected}");
                }
            }
        }
    }
}

#[test]
fn a_bias_gets_the_sums_of_rows_beside_the_product_to_the_weight() {
    for &isa in Isa::available() {
        // Small, divided by rows and divided by columns, of several slices.
        for (outputs, inputs, rows) in
            [(3, 5, 0), (5, 7, 9), (150, 130, 1700), (70, 300, 1650), (1, 900, 700)]
        {
            for kept_narrow in [[false, false], [true, true], [false, true]] {
                let case = Case::narrow(Form::TN, outputs, inputs, rows, kept_narrow);
                for add in [false, true] {
                    let product = |threads: usize| {
                        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                        let mut workspace = Workspace::new(threads);
                        let start = if add { 1.0 } else { f32::NAN };
                        let (mut c, mut sums) = (vec![start; outputs * inputs], vec![start; outputs]);
                        let d_weight = MatrixMut::new(&mut c, outputs, inputs);
                        let d_bias = SinkMut { values: &mut sums, add };
                        pool.install(|| {
                            let (d_out, x) = (case.a(), case.b());
                            let identity = Activation::Identity;
                            weight_gradient(isa, &mut workspace, d_out, x, identity, d_weight, add, d_bias);
                        });
                        (c, sums)
                    };
                    let (c, sums) = product(1);
                    assert_eq!((c.clone(), sums.clone()), product(3), "threads change bits");
                    let start = f64::from(u8::from(add));
                    case.check(isa, &c, 1, 0.0, |_, _, sum| start + sum);
                    for (output, value) in sums.iter().enumerate() {
                        let terms = (0..rows).map(|row| {
                            let at = row * outputs + output;
                            let wide = f64::from(case.a[at]);
                            if kept_narrow[0] { case.narrow[0][at].to_f64() } else { wide }
                        });
                        let (sum, size) =
                            terms.fold((start, 1.0), |(sum, size), x| (sum + x, size + x.abs()));
                        assert!((f64::from(*value) - sum).abs() <= 64.0 * 6e-8 * size, "{value}, not {sum}");
                    }
                }
            }
        }
    }
}

/// The product packs what the activation makes of its operand: the same bits as of an operand that holds the values.
#[test]
fn a_weight_gets_its_gradient_of_an_activation_that_is_not_kept() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    for &isa in Isa::available() {
        // Small, divided by rows and divided by columns, of several slices.
        for (activation, outputs, inputs, rows) in [
            (Activation::Gelu, 5, 7, 9),
            (Activation::Sigmoid, 150, 130, 1700),
            (Activation::Gelu, 70, 300, 1650),
        ] {
            let case = Case::new(Form::TN, outputs, inputs, rows);
            let mut values = case.b.clone();
            activate_block_in_place(isa, activation, ElementsMut::from(&mut values));
            let gradient = |x: &[f32], activation: Activation| {
                let mut workspace = Workspace::new(2);
                let [mut d_weight, mut d_bias] = [outputs * inputs, outputs].map(|len| vec![f32::NAN; len]);
                let x = Matrix::new(x, rows, inputs);
                let c = MatrixMut::new(&mut d_weight, outputs, inputs);
                let sink = SinkMut { values: &mut d_bias, add: false };
                pool.install(|| {
                    weight_gradient(isa, &mut workspace, case.a(), x, activation, c, false, sink);
                });
                (d_weight, d_bias)
            };
            assert_eq!(gradient(&case.b, activation), gradient(&values, Activation::Identity), "{isa:?}");
        }
    }
}

/// Pairs of bf16, multiplied in plain Rust: what surrounds the kernel that multiplies them is tested on any machine.
#[test]
fn products_of_pairs_agree_with_sums_in_double_precision() {
    const ROWS: usize = 4;
    const COLUMNS: usize = 8;
    unsafe fn multiply(depth: usize, a: *const f32, b: *const f32, _: *const f32, tile: &mut [f32; TILE]) {
        tile.fill(0.0);
        for p in 0..depth {
            for i in 0..ROWS {
                for j in 0..COLUMNS {
                    // SAFETY: the caller's panels are this long.
                    let words = unsafe { [*a.add(p * ROWS + i), *b.add(p * COLUMNS + j)] };
                    let [a, b] = words
                        .map(|word| [word.to_bits() << 16, word.to_bits() & 0xffff_0000].map(f32::from_bits));
                    tile[i * COLUMNS + j] += a[0] * b[0] + a[1] * b[1];
                }
            }
        }
    }
    static KERNEL: Kernel = Kernel {
        elements: 2,
        multiply,
        pack_rows: |operand, lines, depth, packed| {
            pack::pack_narrow::<ROWS, true>(operand, lines, depth, packed, pack::gather_scalar::<ROWS>);
        },
        pack_columns: |operand, lines, depth, packed| {
            pack::pack_narrow::<COLUMNS, true>(operand, lines, depth, packed, pack::gather_scalar::<COLUMNS>);
        },
        ..portable::KERNEL
    };
    for form in FORMS {
        for (m, n, k) in SHAPES {
            let case = Case::narrow(form, m, n, k, [true, true]);
            let mut c = vec![bf16::NAN; m * n];
            let target = MatrixMut::new(&mut c[..], m, n);
            let product = Product::new(Isa::Portable, form, case.a(), case.b(), target, WriteBack::Store);
            let product = Product { kernel: &KERNEL, ..product };
            let mut shared = vec![f32::NAN; KERNEL.shared_floats(m, n, k)];
            product.run_all(&mut shared, &Scratch::new(rayon::current_num_threads()));
            case.check("pairs", &widened(&c), 0, HALF_STEP, |_, _, sum| sum);
        }
    }
}
