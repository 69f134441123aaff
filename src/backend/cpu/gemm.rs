//! Matrix products on the CPU.
//!
//! The plan is that of Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008).
//! The depth `k` is cut into slices. Within one, both operands are packed into panels as wide as the
//! micro-kernel's tile, so that it reads memory in order; a panel of B stays close to the core while the
//! panels of a block of A, which stays in the L2 cache, pass by it.
//!
//! Work is divided along one side of C only, about the longer. The other side's operand is needed by all tasks:
//! it is packed once, in parallel, into a shared buffer. The divided one is packed by each task, block by block,
//! into its thread's scratch, where it is used while still in the cache.
//!
//! A product with an operand of bf16 is one of bf16: the other operand is rounded as it is packed, and sums are f32. Where
//! C is bf16, too, sums wait for all slices in the task's scratch, so that they are rounded once.
//!
//! An element of C is the sum over its slices, in order, of sums over a slice, in order. Slices depend on `k`
//! alone, so an element has the same bits whatever the threads, the tile it falls in and the other rows.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
mod kernel;
mod pack;
mod portable;
mod write;

use std::ops::Range;

use rayon::prelude::*;

use super::activation::activate_block_in_place;
use super::blocks::SinkMut;
use super::elements::{Elements, ElementsMut};
use super::isa::Isa;
use super::scratch::{Scratch, Workspace};
use super::shared::{SharedElements, SharedMut};
use super::simd::multiversion;
use super::sums::{COLUMNS, sum_rows};
use crate::tensor::Activation;
use kernel::{Kernel, TILE};
use pack::Operand;
use write::{Finish, Partial, Target};

/// Which operand of C `[m, n]` is transposed; all matrices are row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A · Bᵀ of A `[m, k]` and B `[n, k]`.
    NT,
    /// A · B of A `[m, k]` and B `[k, n]`.
    NN,
    /// Aᵀ · B of A `[k, m]` and B `[k, n]`.
    TN,
}

/// A row-major matrix, or a part of one: row `i` starts at `i * stride`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// From the first element to at least the last.
    pub data: Elements<'a>,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// From one row to the next, in elements.
    pub stride: usize,
}

impl<'a> Matrix<'a> {
    /// A dense matrix: rows follow one another.
    pub fn new(data: impl Into<Elements<'a>>, rows: usize, cols: usize) -> Self {
        let data = data.into();
        assert_eq!(data.len(), rows * cols, "a dense [{rows}, {cols}] matrix");
        Self { data, rows, cols, stride: cols }
    }

    /// A matrix whose rows are `stride` apart.
    pub fn with_stride(data: impl Into<Elements<'a>>, rows: usize, cols: usize, stride: usize) -> Self {
        let data = data.into();
        assert_strided(data.len(), rows, cols, stride);
        Self { data, rows, cols, stride }
    }
}

/// A [`Matrix`] that is written.
pub struct MatrixMut<'a> {
    /// From the first element to at least the last.
    pub data: ElementsMut<'a>,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// From one row to the next, in elements.
    pub stride: usize,
}

impl<'a> MatrixMut<'a> {
    /// A dense matrix: rows follow one another.
    pub fn new(data: impl Into<ElementsMut<'a>>, rows: usize, cols: usize) -> Self {
        let data = data.into();
        assert_eq!(data.len(), rows * cols, "a dense [{rows}, {cols}] matrix");
        Self { data, rows, cols, stride: cols }
    }

    /// A matrix whose rows are `stride` apart.
    pub fn with_stride(data: impl Into<ElementsMut<'a>>, rows: usize, cols: usize, stride: usize) -> Self {
        let data = data.into();
        assert_strided(data.len(), rows, cols, stride);
        Self { data, rows, cols, stride }
    }
}

fn assert_strided(length: usize, rows: usize, cols: usize, stride: usize) {
    assert!(
        cols <= stride && (rows == 0 || (rows - 1) * stride + cols <= length),
        "a [{rows}, {cols}] matrix with rows {stride} apart does not fit {length} elements"
    );
}

/// What happens to a product as it is written.
pub enum WriteBack<'a> {
    /// C = AB
    Store,
    /// C += AB
    Add,
    /// C = AB + bias, the bias `[n]` added to every row
    Bias(&'a [f32]),
    /// C = gelu(AB + bias), in the erf form
    BiasGelu {
        /// `[n]`
        bias: &'a [f32],
        /// AB + bias `[m, n]`, dense, kept for the backward pass; empty if it is not needed.
        before: ElementsMut<'a>,
    },
    /// C = AB gelu'(before), element by element: the gradient of what [`WriteBack::BiasGelu`] kept
    GeluGradient {
        /// `[m, n]`, dense
        before: Elements<'a>,
    },
}

/// The product of A and B as `form` says, written to C by all threads of the current rayon pool.
///
/// The workspace grows to what the product needs, unless [`reserve`] has seen to that.
pub fn gemm(
    isa: Isa,
    workspace: &mut Workspace,
    form: Form,
    a: Matrix,
    b: Matrix,
    c: MatrixMut,
    write_back: WriteBack,
) {
    let product = Product::new(isa, form, a, b, c, write_back);
    let (shared, scratch) = workspace.parts(product.kernel.shared_floats(product.m, product.n, product.k));
    product.run_all(shared, scratch);
}

/// The gradients of a linear map: of its weight, `d_outᵀ activation(x)` of `d_out` `[rows, outputs]` and `x`
/// `[rows, inputs]`, and of its bias, the sums over rows of `d_out`. Sums are taken and the activation is applied where the
/// product packs its operands and has them in the cache. A product of bf16 has no activation.
#[expect(clippy::too_many_arguments, reason = "the operands of one fused operation")]
pub fn weight_gradient(
    isa: Isa,
    workspace: &mut Workspace,
    d_out: Matrix,
    x: Matrix,
    activation: Activation,
    d_weight: MatrixMut,
    add: bool,
    d_bias: SinkMut,
) {
    assert_eq!(d_bias.values.len(), d_out.cols, "a bias's gradient of {} outputs", d_out.cols);
    let write_back = if add { WriteBack::Add } else { WriteBack::Store };
    let mut product = Product::new(isa, Form::TN, d_out, x, d_weight, write_back);
    assert!(
        activation == Activation::Identity || !product.narrow,
        "{activation:?} of an operand that is rounded to bf16 as it is packed"
    );
    product.activation = activation;
    let packed = product.kernel.shared_floats(product.m, product.n, product.k);
    let (shared, scratch) = workspace.parts(packed + product.slices().count() * product.m);
    let (shared, sums) = shared.split_at_mut(packed);
    product.line_sums = Some(SharedMut::new(sums));
    product.run_all(shared, scratch);
    let outputs = product.m;
    for (output, d_bias_of_output) in d_bias.values.iter_mut().enumerate() {
        let of_slices = sums.iter().skip(output).step_by(outputs);
        let sum = of_slices.map(|sum| f64::from(*sum)).sum::<f64>() as f32;
        *d_bias_of_output = sum + if d_bias.add { *d_bias_of_output } else { 0.0 };
    }
}

/// The product of A and B by the calling thread alone, for small products within a parallel region.
/// `scratch` holds at least [`serial_scratch`] floats. C, of f32, is overwritten, or added to if `accumulate`.
pub fn gemm_serial(
    isa: Isa,
    scratch: &mut [f32],
    form: Form,
    a: Matrix,
    b: Matrix,
    c: MatrixMut,
    accumulate: bool,
) {
    let write_back = if accumulate { WriteBack::Add } else { WriteBack::Store };
    let product = Product::new(isa, form, a, b, c, write_back);
    assert!(matches!(product.target.c, SharedElements::F32(_)), "a product within a task is written in f32");
    product.run(0..product.m, 0..product.n, None, scratch);
}

/// How much scratch [`gemm_serial`] needs, in floats.
pub fn serial_scratch(isa: Isa) -> usize {
    Kernel::of(isa, false).private_floats()
}

/// Makes room for the product of an `[m, k]` and a `[k, n]` matrix, of bf16 if `narrow`.
pub fn reserve(isa: Isa, workspace: &mut Workspace, narrow: bool, m: usize, n: usize, k: usize) {
    let kernel = Kernel::of(isa, narrow);
    let partial = if narrow { kernel.partial_floats(m, n, k) } else { 0 };
    workspace.reserve(kernel.shared_floats(m, n, k), kernel.private_floats() + partial);
}

/// Makes room for [`weight_gradient`] of so many rows, outputs and inputs.
pub fn reserve_weight_gradient(
    isa: Isa,
    workspace: &mut Workspace,
    narrow: bool,
    [rows, outputs, inputs]: [usize; 3],
) {
    let kernel = Kernel::of(isa, narrow);
    // No slice but the last is shorter than half the longest.
    let slices = 1 + kernel.words(rows) / (kernel.depth / 2);
    let shared = kernel.shared_floats(outputs, inputs, rows) + slices * outputs;
    workspace.reserve(shared, kernel.private_floats());
}

/// Multiplications below which handing tasks to threads takes longer than the product (some 10 µs).
const SMALL: usize = 1 << 19;

/// A product whose shapes have been checked.
struct Product<'a> {
    isa: Isa,
    /// Whether it is a product of bf16.
    narrow: bool,
    kernel: &'static Kernel,
    m: usize,
    n: usize,
    k: usize,
    a: Operand<'a>,
    b: Operand<'a>,
    target: Target<'a>,
    /// Applied to B as it is packed.
    activation: Activation,
    /// Where the sums over each slice of A's lines go, `[slices, m]`.
    line_sums: Option<SharedMut<'a>>,
}

impl<'a> Product<'a> {
    fn new(
        isa: Isa,
        form: Form,
        a: Matrix<'a>,
        b: Matrix<'a>,
        c: MatrixMut<'a>,
        write_back: WriteBack<'a>,
    ) -> Self {
        let (a, b) = match form {
            Form::NT => (Operand::rows(a), Operand::rows(b)),
            Form::NN => (Operand::rows(a), Operand::columns(b)),
            Form::TN => (Operand::columns(a), Operand::columns(b)),
        };
        let (m, n, k) = (a.lines, b.lines, a.depth);
        assert_eq!(k, b.depth, "{form:?} product of [{m}, {k}] and [{}, {n}]", b.depth);
        assert_eq!((c.rows, c.cols), (m, n), "{form:?} product [{m}, {n}] written to another shape");
        let (add, finish) = match write_back {
            WriteBack::Store => (false, Finish::Plain),
            WriteBack::Add => (true, Finish::Plain),
            WriteBack::Bias(bias) => (false, Finish::Bias(bias)),
            WriteBack::BiasGelu { bias, before } => {
                assert!(before.is_empty() || before.len() == m * n, "before of [{m}, {n}]: {}", before.len());
                let before = (!before.is_empty()).then(|| SharedElements::new(before));
                (false, Finish::BiasGelu { bias, before })
            }
            WriteBack::GeluGradient { before } => {
                assert_eq!(before.len(), m * n, "before of [{m}, {n}]");
                (false, Finish::GeluGradient { before })
            }
        };
        if let Finish::Bias(bias) | Finish::BiasGelu { bias, .. } = &finish {
            assert_eq!(bias.len(), n, "bias of a [{m}, {n}] product");
        }
        let target = Target { c: SharedElements::new(c.data), stride: c.stride, columns: n, add, finish };
        let narrow = matches!((a.data, b.data), (Elements::Bf16(_), _) | (_, Elements::Bf16(_)));
        let (kernel, activation) = (Kernel::of(isa, narrow), Activation::Identity);
        Self { isa, narrow, kernel, m, n, k, a, b, target, activation, line_sums: None }
    }

    /// Computes all of C. `shared` has room for the packed operand of the side that is not divided.
    fn run_all(&self, shared: &mut [f32], scratch: &Scratch) {
        let Self { kernel, m, n, k, .. } = *self;
        let floats = kernel.private_floats() + self.partial_floats();
        if m * n * k < SMALL {
            return scratch.with(floats, |scratch| self.run(0..m, 0..n, None, scratch));
        }
        let (side, panels, block) = if self.rows_are_divided() {
            (m, kernel.rows, kernel.row_block)
        } else {
            (n, kernel.columns, kernel.column_block)
        };
        let threads = rayon::current_num_threads();
        let tasks = side.div_ceil(block).next_multiple_of(threads);
        let length = side.div_ceil(tasks).next_multiple_of(panels);
        self.pack_shared(shared);
        (0..side.div_ceil(length)).into_par_iter().with_max_len(1).for_each(|task| {
            let part = task * length..((task + 1) * length).min(side);
            let (rows, columns) = if self.rows_are_divided() { (part, 0..n) } else { (0..m, part) };
            scratch.with(floats, |scratch| self.run(rows, columns, Some(shared), scratch));
        });
    }

    /// What a task needs for sums that wait for further slices.
    fn partial_floats(&self) -> usize {
        match self.target.c {
            SharedElements::F32(_) => 0,
            SharedElements::Bf16(_) => self.kernel.partial_floats(self.m, self.n, self.k),
        }
    }

    /// Whether tasks divide the rows of C or its columns.
    fn rows_are_divided(&self) -> bool {
        self.kernel.rows_are_divided(self.m, self.n)
    }

    /// The length of all slices but the last: as few as fit the caches, of about equal length.
    fn slice_length(&self) -> usize {
        let count = self.words().div_ceil(self.kernel.depth).max(1);
        self.words().div_ceil(count).max(1).next_multiple_of(pack::GROUP)
    }

    /// The slices of the depth in words; one, if it is 0.
    fn slices(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let words = self.words();
        blocks(0..words.max(1), self.slice_length()).map(move |slice| slice.start..slice.end.min(words))
    }

    /// The depth in words.
    fn words(&self) -> usize {
        self.kernel.words(self.k)
    }

    /// Packs the operand that all tasks need: slice after slice, panel after panel.
    fn pack_shared(&self, shared: &mut [f32]) {
        let (operand, width) = if self.rows_are_divided() {
            (&self.b, self.kernel.columns)
        } else {
            (&self.a, self.kernel.rows)
        };
        let (lines, panels) = (operand.lines, operand.lines.div_ceil(width));
        let length = self.slice_length();
        let slices = self.words().div_ceil(length);
        // Neighbouring panels share cache lines and pages of an operand whose lines are columns.
        let group = (slices * panels / (4 * rayon::current_num_threads())).clamp(1, 8);
        let groups = panels.div_ceil(group);
        let shared = SharedMut::new(shared);
        (0..slices * groups).into_par_iter().with_max_len(1).for_each(|index| {
            let depth = blocks(0..self.words(), length).nth(index / groups).expect("one of the slices");
            let lines = blocks(0..lines, group * width).nth(index % groups).expect("one of the groups");
            let start = depth.start * panels * width + lines.start * depth.len();
            let floats = depth.len() * lines.len().next_multiple_of(width);
            // SAFETY: every slice of every group of panels has a place of its own.
            let packed = unsafe { shared.slice(start..start + floats) };
            if self.rows_are_divided() {
                self.pack_columns(&lines, &depth, packed);
            } else {
                self.pack_rows(&lines, &depth, packed);
            }
        });
    }

    /// Computes a block of C. `shared` is the packed operand of the side that is not divided; without it, both are
    /// packed here.
    fn run(&self, rows: Range<usize>, columns: Range<usize>, shared: Option<&[f32]>, scratch: &mut [f32]) {
        let kernel = self.kernel;
        let (a_private, scratch) = scratch.split_at_mut(kernel.row_block * kernel.depth);
        let (b_private, partial) = scratch.split_at_mut(kernel.column_block * kernel.depth);
        let waits = self.partial_floats() > 0;
        let partial = SharedMut::new(partial);
        let partial = |row, columns: &Range<usize>| {
            let (stride, first) = (columns.len(), (row, columns.start));
            waits.then_some(Partial { sums: partial, stride, first })
        };
        match shared {
            // B is packed whole: all columns are one block.
            Some(b) if self.rows_are_divided() => {
                for rows in blocks(rows, kernel.row_block) {
                    let partial = partial(rows.start, &columns);
                    for slice in self.slices() {
                        let a = self.pack_rows(&rows, &slice, a_private);
                        let b = shared_part(b, &slice, &columns, self.n, kernel.columns);
                        self.multiply_block(a, b, &rows, &columns, &slice, partial.as_ref(), false);
                    }
                }
            }
            a_shared => {
                for columns in blocks(columns, kernel.column_block) {
                    let partial = partial(rows.start, &columns);
                    for slice in self.slices() {
                        let b = self.pack_columns(&columns, &slice, b_private);
                        for rows in blocks(rows.clone(), kernel.row_block) {
                            let a = match a_shared {
                                Some(a) => shared_part(a, &slice, &rows, self.m, kernel.rows),
                                None => self.pack_rows(&rows, &slice, a_private),
                            };
                            let a_is_shared = a_shared.is_some();
                            self.multiply_block(a, b, &rows, &columns, &slice, partial.as_ref(), a_is_shared);
                        }
                    }
                }
            }
        }
    }

    /// Packs a block of B, and applies the activation to it, a few panels at a time while they are in the cache.
    fn pack_columns<'s>(&self, columns: &Range<usize>, slice: &Range<usize>, to: &'s mut [f32]) -> &'s [f32] {
        let (width, pack_lines) = (self.kernel.columns, self.kernel.pack_columns);
        if self.activation == Activation::Identity {
            return pack(pack_lines, width, &self.b, columns, slice, to);
        }
        for few in blocks(columns.clone(), 4 * width) {
            let to = &mut to[(few.start - columns.start) * slice.len()..];
            let floats = pack(pack_lines, width, &self.b, &few, slice, to).len();
            activate_block_in_place(self.isa, self.activation, ElementsMut::F32(&mut to[..floats]));
        }
        &to[..columns.len().next_multiple_of(width) * slice.len()]
    }

    /// Packs a block of A, and sums its lines if that is asked for.
    fn pack_rows<'s>(&self, rows: &Range<usize>, slice: &Range<usize>, to: &'s mut [f32]) -> &'s [f32] {
        self.sum_lines(rows, slice);
        pack(self.kernel.pack_rows, self.kernel.rows, &self.a, rows, slice, to)
    }

    /// Stores the sums of some lines of A over a slice.
    fn sum_lines(&self, lines: &Range<usize>, slice: &Range<usize>) {
        let Some(sums) = self.line_sums else { return };
        let start = slice.start / self.slice_length() * self.m;
        // SAFETY: each line of each slice is packed by one task.
        let sums = unsafe { sums.slice(start + lines.start..start + lines.end) };
        let depth = slice.start * self.kernel.elements..(slice.end * self.kernel.elements).min(self.k);
        sum_lines(self.isa, &self.a, lines.start, depth, sums);
    }

    /// Multiplies packed panels: `a` `[rows / kernel.rows][slice][kernel.rows]`, `b` likewise.
    #[expect(
        clippy::too_many_arguments,
        reason = "two operands, their three ranges and what becomes of the sums"
    )]
    fn multiply_block(
        &self,
        a: &[f32],
        b: &[f32],
        rows: &Range<usize>,
        columns: &Range<usize>,
        slice: &Range<usize>,
        partial: Option<&Partial>,
        a_is_shared: bool,
    ) {
        let kernel = self.kernel;
        let mut tile = Tile([0.0; TILE]);
        let stage = write::Stage { first: slice.start == 0, last: slice.end == self.words() };
        // Each tile asks for its share of what comes next from the operand that is not in this core's cache yet:
        // the next panel of B, or the next block of A.
        let tiles_down = rows.len().div_ceil(kernel.rows);
        let (ahead, ahead_step) = if a_is_shared {
            (
                a.as_ptr().wrapping_add(a.len()),
                a.len() / (tiles_down * columns.len().div_ceil(kernel.columns)),
            )
        } else {
            let panel = kernel.columns * slice.len();
            (b.as_ptr().wrapping_add(panel), panel / tiles_down)
        };
        for (j, column) in columns.clone().step_by(kernel.columns).enumerate() {
            let tile_columns = column..(column + kernel.columns).min(columns.end);
            let b = &b[j * kernel.columns * slice.len()..][..kernel.columns * slice.len()];
            for (i, row) in rows.clone().step_by(kernel.rows).enumerate() {
                let tile_rows = row..(row + kernel.rows).min(rows.end);
                let a = &a[i * kernel.rows * slice.len()..][..kernel.rows * slice.len()];
                let ahead = ahead.wrapping_add((j * tiles_down + i) * ahead_step);
                self.target.prefetch(&tile_rows, column, stage);
                // SAFETY: the kernel's instruction set is available, and `a` and `b` are as long as it
                // reads. No other task writes these rows and columns of the target.
                unsafe {
                    (kernel.multiply)(slice.len(), a.as_ptr(), b.as_ptr(), ahead, &mut tile.0);
                    (kernel.write)(
                        &self.target,
                        partial,
                        &mut tile.0,
                        tile_rows,
                        tile_columns.clone(),
                        stage,
                    );
                }
            }
        }
    }
}

multiversion! {
    /// The sums of lines that are columns, from line `first` on, over rows `depth`.
    fn sum_lines<FMA>(operand: &Operand, first: usize, depth: Range<usize>, sums: &mut [f32]) {
        for (i, values) in sums.chunks_mut(COLUMNS).enumerate() {
            let sink = SinkMut { values, add: false };
            sum_rows(operand.data, operand.stride, first + i * COLUMNS, depth.clone(), sink);
        }
    }
}

/// What a micro-kernel computes, before it is written to C.
#[repr(align(64))]
struct Tile([f32; TILE]);

/// Cuts a range into pieces of `length`.
fn blocks(range: Range<usize>, length: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(length.max(1)).map(move |start| start..(start + length).min(end))
}

/// The panels of `lines` in a shared operand of `all` lines; `lines` starts at a panel.
fn shared_part<'s>(
    shared: &'s [f32],
    slice: &Range<usize>,
    lines: &Range<usize>,
    all: usize,
    width: usize,
) -> &'s [f32] {
    let start = slice.start * all.next_multiple_of(width) + lines.start * slice.len();
    &shared[start..][..lines.len().next_multiple_of(width) * slice.len()]
}

/// Packs a block of an operand.
fn pack<'s>(
    pack: pack::Pack,
    width: usize,
    operand: &Operand,
    lines: &Range<usize>,
    slice: &Range<usize>,
    to: &'s mut [f32],
) -> &'s [f32] {
    let packed = &mut to[..lines.len().next_multiple_of(width) * slice.len()];
    // SAFETY: `pack` belongs to the kernel of an available instruction set.
    unsafe { pack(operand, lines.clone(), slice.clone(), packed) };
    packed
}

#[cfg(test)]
mod tests;
