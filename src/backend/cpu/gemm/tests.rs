use super::super::math;
use super::*;

/// Numbers in [-1, 1) that look random.
fn noise(length: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..length).map(next).collect()
}

/// A product's operands, dense.
struct Case {
    form: Form,
    m: usize,
    n: usize,
    k: usize,
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Case {
    fn new(form: Form, m: usize, n: usize, k: usize) -> Self {
        Self { form, m, n, k, a: noise(m * k, 1), b: noise(n * k, 2) }
    }

    fn a(&self) -> Matrix<'_> {
        let (rows, cols) = if self.form == Form::TN { (self.k, self.m) } else { (self.m, self.k) };
        Matrix::new(&self.a, rows, cols)
    }

    fn b(&self) -> Matrix<'_> {
        let (rows, cols) = if self.form == Form::NT { (self.n, self.k) } else { (self.k, self.n) };
        Matrix::new(&self.b, rows, cols)
    }

    /// The sum that makes element (i, j), and the sum of its terms' sizes.
    fn exact(&self, i: usize, j: usize) -> (f64, f64) {
        let (a, b) = (self.a(), self.b());
        let terms = (0..self.k).map(|p| {
            let a = if self.form == Form::TN { a.data[p * a.stride + i] } else { a.data[i * a.stride + p] };
            let b = if self.form == Form::NT { b.data[j * b.stride + p] } else { b.data[p * b.stride + j] };
            f64::from(a) * f64::from(b)
        });
        terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
    }

    fn compute(&self, isa: Isa, threads: usize, write_back: WriteBack, c: &mut [f32]) {
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

    /// Checks every element of C against `expected(i, j, product)`, an expression with the product as a term
    /// of weight 1 and `extra` terms of size at most 1.
    fn check(&self, isa: Isa, c: &[f32], extra: usize, expected: impl Fn(usize, usize, f64) -> f64) {
        for (i, row) in c.chunks_exact(self.n.max(1)).enumerate() {
            for (j, &value) in row.iter().enumerate() {
                let (sum, size) = self.exact(i, j);
                let expected = expected(i, j, sum);
                // The bound of a sum in any order (Higham, 2002, equation 3.4): one rounding a term.
                let terms = (self.k + extra) as f64;
                let bound = terms * f64::from(f32::EPSILON) * (size + extra as f64);
                let error = (f64::from(value) - expected).abs();
                let Case { form, m, n, k, .. } = self;
                assert!(
                    error <= bound,
                    "{isa:?} {form:?} {m}x{n}x{k}: C[{i}, {j}] = {value}, not {expected}"
                );
            }
        }
    }
}

const FORMS: [Form; 3] = [Form::NT, Form::NN, Form::TN];

/// Shapes (m, n, k) with every kind of edge: empty, single, ragged, several slices and blocks, both sides
/// divided, above and below the size where threads come in.
const SHAPES: [(usize, usize, usize); 16] = [
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
];

#[test]
fn products_agree_with_sums_in_double_precision() {
    for &isa in Isa::available() {
        for form in FORMS {
            for (m, n, k) in SHAPES {
                let case = Case::new(form, m, n, k);
                case.check(isa, &case.stored(isa, 2), 0, |_, _, sum| sum);
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
            case.check(isa, &c, 1, |i, j, sum| sum + f64::from(start[i * n + j]));
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
            case.check(isa, &c, 1, |_, j, sum| sum + f64::from(bias[j]));
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
            case.compute(isa, 2, WriteBack::BiasGelu { bias: &bias, before: &mut before }, &mut c);
            assert_eq!(before, with_bias);
            let expected: Vec<f32> = before.iter().map(|&x| math::gelu::<false>(x)).collect();
            for (value, expected) in c.iter().zip(&expected) {
                assert!((value - expected).abs() <= 1e-6 * (1.0 + expected.abs()), "{value} {expected}");
            }

            let mut not_kept = vec![f32::NAN; m * n];
            case.compute(isa, 2, WriteBack::BiasGelu { bias: &bias, before: &mut [] }, &mut not_kept);
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
                    let alone = Case { form, m: 1, n, k, a, b: case.b.clone() }.stored(isa, 2);
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
                let widen = |matrix: Matrix| {
                    let mut wide = vec![f32::NAN; 3 + matrix.rows * (matrix.cols + 5)];
                    for (wide, row) in
                        wide[3..].chunks_mut(matrix.cols + 5).zip(matrix.data.chunks_exact(matrix.cols))
                    {
                        wide[..matrix.cols].copy_from_slice(row);
                    }
                    wide
                };
                let (a, b) = (widen(case.a()), widen(case.b()));
                let part = |wide, matrix: Matrix| {
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
    gemm(Isa::Portable, &mut workspace, Form::NT, a, b, MatrixMut::new(&mut c, 2, 5), WriteBack::Store);
}
