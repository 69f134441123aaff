//! Launches of matrix products and of the sums that belong to them.
//!
//! Two families of kernels compute the same: `kernels/gemm_bf16.cu` on tensor cores, where types and alignment allow, and
//! `kernels/gemm_any.cu` everything else; a third one, of [`hopper_gemm`], where it was asked for. Which tile is used, and
//! into how many slices a weight gradient's depth is cut, is decided here from the capacity and the number of
//! processors. The tile changes no bit of a result.

use bytemuck::{Pod, Zeroable};

use super::hopper_gemm;
use super::launch::{Address, DropoutSite, Kernels, Launches, Operand, RowCount, TensorMap};
use crate::tensor::{Activation, DType, Rows};

/// Which operand of C `[m, n]` is transposed; all matrices are row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A · Bᵀ of A `[m, k]` and B `[n, k]`: a linear map.
    NT,
    /// A · B of A `[m, k]` and B `[k, n]`: the gradient of its input.
    NN,
    /// Aᵀ · B of A `[k, m]` and B `[k, n]`: the gradient of its weight.
    TN,
}

/// What happens to a product as it is written. Matrices beside C have its shape and its kind of element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Epilogue {
    /// C = AB
    Store,
    /// C += AB
    Add,
    /// C = AB + bias, f32 `[n]`, which is added to every row.
    Bias(Address),
    /// C = activation(AB + bias)
    BiasActivation {
        /// f32 `[n]`
        bias: Address,
        /// Which.
        activation: Activation,
        /// Where AB + bias is kept for the backward pass; 0 for nowhere.
        before: Address,
    },
    /// C = dropout(AB + bias) + residual
    BiasDropoutResidual {
        /// f32 `[n]`
        bias: Address,
        /// On AB + bias.
        dropout: DropoutSite,
        /// The rows' keys for the dropout, u32 `[m]`; 0 where a row's key is its number.
        keys: Address,
        /// `[m, n]`
        residual: Address,
    },
    /// C = AB * activation'(before), and the column sums of C.
    ActivationGradient {
        /// Which.
        activation: Activation,
        /// The activation's argument in the forward pass, `[m, n]`.
        before: Address,
        /// Where the column sums go, f32 `[n]`; 0 for nowhere.
        d_bias: Address,
        /// Whether they are added to what is there.
        add: bool,
    },
}

/// The number of an activation in `kernels/activation.cuh`.
pub fn activation_number(activation: Activation) -> u32 {
    match activation {
        Activation::Identity => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Relu => 3,
        Activation::Tanh => 4,
        Activation::Sigmoid => 5,
    }
}

/// The twin of `Product` in `kernels/product.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Product {
    a: Address,
    b: Address,
    c: Address,
    other: Address,
    before: Address,
    bias: Address,
    keys: Address,
    sums: Address,
    step: Address,
    rows: RowCount,
    depth: RowCount,
    columns: u32,
    slices: u32,
    finish: u32,
    activation: u32,
    dropout: DropoutSite,
    a_is_bf16: u32,
    b_is_bf16: u32,
    c_is_bf16: u32,
    vectors: u32,
    unused: u32,
}

/// The twin of `Finish` in `kernels/product.cuh`.
#[derive(Clone, Copy)]
enum Finish {
    Linear,
    Activation,
    Gradient,
}

/// The twin of `SliceSums` in `kernels/gemm_sums.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SliceSums {
    parts: Address,
    out: Address,
    step: Address,
    depth: RowCount,
    slices: u32,
    count: u32,
    add: u32,
    unused: u32,
}

/// The twin of `ColumnSums` in `kernels/gemm_sums.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ColumnSums {
    x: Address,
    out: Address,
    step: Address,
    rows: RowCount,
    unit: u32,
    length: u32,
    columns: u32,
    add: u32,
}

/// Threads of a product's block.
const THREADS: u32 = 128;
/// Slices of the depth begin at multiples of it.
const SLICE_UNIT: u32 = 64;
/// More slices than this are not tried.
const MOST_SLICES: u32 = 32;
/// What a block does beside its multiplications, as so much more depth.
const DEPTH_OF_THE_REST: u64 = 128;

/// A kernel's tile and what is known of its speed.
#[derive(Debug, PartialEq)]
struct Tile {
    rows: u32,
    columns: u32,
    /// Bytes of shared memory.
    shared: usize,
    /// By form.
    kernels: [&'static str; 3],
    /// Multiplications in a given time, in percent of the fastest tile: small ones read shared memory more often.
    rate: u64,
    /// Multiplications that one processor does while all of them together write one sum of a slice and read it again.
    multiplications_a_sum: u64,
}

/// The tensor cores' tiles, the largest first.
const TILES: [Tile; 3] = [
    Tile {
        rows: 128,
        columns: 128,
        shared: 48 << 10,
        kernels: ["gemm_bf16_nt_128x128", "gemm_bf16_nn_128x128", "gemm_bf16_tn_128x128"],
        rate: 100,
        multiplications_a_sum: 5,
    },
    Tile {
        rows: 64,
        columns: 128,
        shared: 48 << 10,
        kernels: ["gemm_bf16_nt_64x128", "gemm_bf16_nn_64x128", "gemm_bf16_tn_64x128"],
        rate: 80,
        multiplications_a_sum: 5,
    },
    Tile {
        rows: 64,
        columns: 64,
        shared: 48 << 10,
        kernels: ["gemm_bf16_nt_64x64", "gemm_bf16_nn_64x64", "gemm_bf16_tn_64x64"],
        rate: 60,
        multiplications_a_sum: 5,
    },
];

/// The general kernel's only tile.
const TILE_OF_ANY: Tile = Tile {
    rows: 64,
    columns: 64,
    shared: 24 << 10,
    kernels: ["gemm_any_nt", "gemm_any_nn", "gemm_any_tn"],
    rate: 100,
    multiplications_a_sum: 1,
};

/// The size of a product: C is `[m, n]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Size {
    pub m: u32,
    pub n: u32,
    pub k: u32,
}

/// How a product is computed.
pub(super) struct Plan {
    pub kernel: &'static str,
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared: usize,
    /// Into so many slices the depth is cut.
    pub slices: u32,
    /// Rows of C whose column sums stand in one row.
    pub rows_of_sums: u32,
    /// Of A and B, if the kernel takes any.
    pub maps: Vec<TensorMap>,
}

impl Tile {
    fn count(&self, size: Size) -> u32 {
        size.m.div_ceil(self.rows) * size.n.div_ceil(self.columns)
    }

    /// How long a product takes, in multiplications of one processor: that of the one with the most tiles, and the sums.
    fn cost(&self, size: Size, slices: u32, processors: u32) -> u64 {
        let [m, n, k, slices] = [size.m, size.n, size.k, slices].map(u64::from);
        let rounds = (u64::from(self.count(size)) * slices).div_ceil(u64::from(processors));
        let block = u64::from(self.rows * self.columns) * (k.div_ceil(slices) + DEPTH_OF_THE_REST);
        let sums = if slices > 1 { slices * m * n * self.multiplications_a_sum } else { 0 };
        rounds * block * 100 / self.rate + sums
    }
}

/// The tile, and the number of slices up to the most, that cost the least; of equals the first.
fn choose(tiles: &[Tile], size: Size, most_slices: u32, processors: u32) -> (&Tile, u32) {
    let choices = tiles.iter().flat_map(|tile| (1..=most_slices).map(move |slices| (tile, slices)));
    choices.min_by_key(|(tile, slices)| tile.cost(size, *slices, processors)).expect("a tile")
}

/// How one of the portable kernels computes a product.
fn plan(tiles: &[Tile], form: Form, size: Size, most_slices: u32, processors: u32) -> Plan {
    let (tile, slices) = choose(tiles, size, most_slices, processors);
    Plan {
        kernel: tile.kernels[form as usize],
        grid: [tile.count(size), slices, 1],
        threads: THREADS,
        shared: tile.shared,
        slices,
        rows_of_sums: tile.rows,
        maps: Vec::new(),
    }
}

/// Whether the tensor cores' kernel can read the operand: in pieces of 16 bytes.
fn is_in_pieces(operand: &Operand) -> bool {
    operand.dtype == DType::Bf16 && operand.address.is_multiple_of(16) && operand.cols.is_multiple_of(8)
}

fn is_bf16(operand: &Operand) -> u32 {
    match operand.dtype {
        DType::F32 => 0,
        DType::Bf16 => 1,
        DType::U32 => panic!("a matrix of indices"),
    }
}

/// C = the product of A and B as `form` says, finished as `epilogue` says.
///
/// The row count that the device knows is that of A and C, for [`Form::TN`] that of A and B.
pub fn product(launches: &mut Launches, form: Form, a: Operand, b: Operand, c: Operand, epilogue: Epilogue) {
    let fixed = |count: u32| RowCount::new(Rows::Fixed(count as usize));
    let (rows, depth, size, depth_of_b) = match form {
        Form::NT => (a.rows, fixed(a.cols), Size { m: a.most_rows, n: b.most_rows, k: a.cols }, b.cols),
        Form::NN => (a.rows, fixed(a.cols), Size { m: a.most_rows, n: b.cols, k: a.cols }, b.most_rows),
        Form::TN => (fixed(a.cols), a.rows, Size { m: a.cols, n: b.cols, k: a.most_rows }, b.most_rows),
    };
    assert_eq!(depth_of_b, size.k, "{form:?} product of {a:?} and {b:?}");
    assert_eq!((c.most_rows, c.cols), (size.m, size.n), "{form:?} product of {a:?} and {b:?} in {c:?}");

    let mut product = Product {
        a: a.address,
        b: b.address,
        c: c.address,
        other: 0,
        before: 0,
        bias: 0,
        keys: 0,
        sums: 0,
        step: launches.step,
        rows,
        depth,
        columns: size.n,
        slices: 1,
        finish: Finish::Linear as u32,
        activation: activation_number(Activation::Identity),
        dropout: DropoutSite::off(),
        a_is_bf16: is_bf16(&a),
        b_is_bf16: is_bf16(&b),
        c_is_bf16: is_bf16(&c),
        vectors: 0,
        unused: 0,
    };
    match epilogue {
        Epilogue::Store => {}
        Epilogue::Add => product.other = c.address,
        Epilogue::Bias(bias) => product.bias = bias,
        Epilogue::BiasActivation { bias, activation, before } => {
            product.finish = Finish::Activation as u32;
            product.activation = activation_number(activation);
            (product.bias, product.before) = (bias, before);
        }
        Epilogue::BiasDropoutResidual { bias, dropout, keys, residual } => {
            (product.bias, product.dropout, product.keys, product.other) = (bias, dropout, keys, residual);
        }
        Epilogue::ActivationGradient { activation, before, .. } => {
            product.finish = Finish::Gradient as u32;
            product.activation = activation_number(activation);
            product.other = before;
        }
    }
    let written_in_pieces = |product: &Product| {
        let all = [product.c, product.other, product.before];
        size.n.is_multiple_of(8) && all.iter().all(|at| at.is_multiple_of(16))
    };

    let sliceable =
        form == Form::TN && c.dtype == DType::F32 && matches!(epilogue, Epilogue::Store | Epilogue::Add);
    let most_slices = if sliceable { size.k.div_ceil(SLICE_UNIT).clamp(1, MOST_SLICES) } else { 1 };
    let read_in_pieces = is_in_pieces(&a) && is_in_pieces(&b);
    let Plan { kernel, grid, threads, shared, slices, rows_of_sums, maps } = match launches.kernels {
        Kernels::Hopper if read_in_pieces && written_in_pieces(&product) => {
            hopper_gemm::plan(form, &a, &b, size, most_slices, launches.processors)
        }
        Kernels::Hopper | Kernels::Portable => {
            let tiles = if read_in_pieces { &TILES[..] } else { &[TILE_OF_ANY] };
            plan(tiles, form, size, most_slices, launches.processors)
        }
    };
    if slices > 1 {
        (product.slices, product.other) = (slices, 0);
        product.c = launches.scratch(4 * slices as usize * size.m as usize * size.n as usize);
    }
    if let Epilogue::ActivationGradient { d_bias, .. } = epilogue
        && d_bias != 0
    {
        product.sums = launches.scratch(4 * (size.m.div_ceil(rows_of_sums) * size.n) as usize);
    }
    product.vectors = u32::from(written_in_pieces(&product));
    launches.push_with_maps(kernel, grid, threads, shared, maps, &product);

    if slices > 1 {
        let (count, add) = (size.m * size.n, u32::from(epilogue == Epilogue::Add));
        let (parts, out, step) = (product.c, c.address, launches.step);
        let arguments = SliceSums { parts, out, step, depth, slices, count, add, unused: 0 };
        launches.push("sum_slices", [count.div_ceil(1024), 1, 1], 256, 0, &arguments);
    }
    if let Epilogue::ActivationGradient { d_bias, add, .. } = epilogue
        && product.sums != 0
    {
        let sums = ColumnSums {
            x: product.sums,
            out: d_bias,
            step: launches.step,
            rows,
            unit: rows_of_sums,
            length: size.m.div_ceil(rows_of_sums),
            columns: size.n,
            add: u32::from(add),
        };
        push_column_sums(launches, DType::F32, 1, sums);
    }
}

/// `out[j]` = (or += if `add`) the sum over the rows of `x[i][j]`; `out` is f32.
pub fn column_sums(launches: &mut Launches, x: Operand, out: Address, add: bool) {
    /// More rows are first summed in blocks of so many.
    const ROWS_OF_A_BLOCK: u32 = 128;
    let all = ColumnSums {
        x: x.address,
        out,
        step: launches.step,
        rows: x.rows,
        unit: 1,
        length: x.most_rows,
        columns: x.cols,
        add: u32::from(add),
    };
    if x.most_rows <= 2 * ROWS_OF_A_BLOCK {
        return push_column_sums(launches, x.dtype, 1, all);
    }
    let blocks = x.most_rows.div_ceil(ROWS_OF_A_BLOCK);
    let parts = launches.scratch(4 * (blocks * x.cols) as usize);
    push_column_sums(
        launches,
        x.dtype,
        blocks,
        ColumnSums { out: parts, length: ROWS_OF_A_BLOCK, add: 0, ..all },
    );
    let last = ColumnSums { x: parts, unit: ROWS_OF_A_BLOCK, length: blocks, ..all };
    push_column_sums(launches, DType::F32, 1, last);
}

fn push_column_sums(launches: &mut Launches, dtype: DType, blocks: u32, arguments: ColumnSums) {
    let kernel = match dtype {
        DType::F32 => "column_sums_f32",
        DType::Bf16 => "column_sums_bf16",
        DType::U32 => panic!("sums of indices"),
    };
    launches.push(kernel, [arguments.columns.div_ceil(32), blocks, 1], 256, 1024, &arguments);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Extents;

    fn operand(dtype: DType, rows: u32, cols: u32) -> Operand {
        let count = RowCount::new(Rows::Fixed(rows as usize));
        Operand { address: 1 << 20, dtype, rows: count, most_rows: rows, cols }
    }

    /// The kernels launched for a product, with the first one's grid and argument.
    fn launched(
        form: Form,
        a: Operand,
        b: Operand,
        c: Operand,
        epilogue: Epilogue,
    ) -> (Vec<&'static str>, [u32; 3], Product) {
        let mut launches = Launches::new(0, Extents::default(), 1 << 30);
        product(&mut launches, form, a, b, c, epilogue);
        let first = &launches.list[0];
        let argument = bytemuck::pod_read_unaligned(&first.arguments);
        (launches.list.iter().map(|launch| launch.kernel).collect(), first.grid, argument)
    }

    #[test]
    fn tensor_cores_get_what_they_can_read() {
        use DType::{Bf16, F32};
        let kernel = |a: Operand, b: Operand| {
            let c = operand(F32, a.most_rows, b.most_rows);
            launched(Form::NT, a, b, c, Epilogue::Store).0[0]
        };
        let (a, b) = (operand(Bf16, 100, 64), operand(Bf16, 3, 64));
        assert_eq!(kernel(a, b), "gemm_bf16_nt_64x64");
        for (a, b) in [
            (operand(F32, 100, 64), b),
            (a, operand(F32, 3, 64)),
            (Operand { address: a.address + 8, ..a }, b),
            (a, Operand { address: b.address + 2, ..b }),
            (operand(Bf16, 100, 60), operand(Bf16, 3, 60)),
        ] {
            assert_eq!(kernel(a, b), "gemm_any_nt", "{a:?} {b:?}");
        }
    }

    /// Where they were asked for, Hopper's kernels take what both of them could, if it is written in pieces, too.
    #[test]
    fn hopper_gets_what_it_can_read_and_write() {
        use DType::{Bf16, F32};
        let kernel = |a: Operand, b: Operand, c: Operand| {
            let mut launches = Launches::new(0, Extents::default(), 1 << 30);
            launches.kernels = Kernels::Hopper;
            product(&mut launches, Form::NT, a, b, c, Epilogue::Store);
            (launches.list[0].kernel, launches.list[0].maps.len())
        };
        let (a, b, c) = (operand(Bf16, 100, 64), operand(Bf16, 24, 64), operand(F32, 100, 24));
        assert_eq!(kernel(a, b, c), ("hopper_gemm_nt_64x128", 2));
        assert_eq!(kernel(a, b, Operand { address: 4, ..c }), ("gemm_bf16_nt_64x64", 0));
        assert_eq!(kernel(a, operand(Bf16, 3, 64), operand(F32, 100, 3)), ("gemm_bf16_nt_64x64", 0));
        assert_eq!(kernel(a, Operand { address: 8, ..b }, c), ("gemm_any_nt", 0));
        assert_eq!(kernel(operand(F32, 100, 64), b, c), ("gemm_any_nt", 0));
    }

    #[test]
    fn numbers_move_in_pieces_of_16_bytes_where_all_of_them_lie_so() {
        let (a, b) = (operand(DType::Bf16, 100, 64), operand(DType::Bf16, 24, 64));
        let c = operand(DType::Bf16, 100, 24);
        let vectors = |b: Operand, c: Operand, epilogue| launched(Form::NT, a, b, c, epilogue).2.vectors == 1;
        let activation = |before| Epilogue::BiasActivation { bias: 4, activation: Activation::Gelu, before };
        assert!(vectors(b, c, activation(32)));
        assert!(vectors(b, c, activation(0)));
        assert!(!vectors(b, c, activation(8)));
        assert!(!vectors(b, Operand { address: 2, ..c }, activation(32)));
        assert!(!vectors(operand(DType::Bf16, 25, 64), operand(DType::Bf16, 100, 25), activation(32)));
    }

    /// Tiles and slices of the products of BERT-base on 132 processors.
    #[test]
    fn tiles_fill_the_processors() {
        let chosen = |m, n, k, most_slices| {
            let (tile, slices) = choose(&TILES, Size { m, n, k }, most_slices, 132);
            (tile.rows, tile.columns, slices)
        };
        assert_eq!(chosen(8192, 3072, 768, 1), (128, 128, 1));
        assert_eq!(chosen(4096, 3072, 768, 1), (128, 128, 1));
        assert_eq!(chosen(1024, 768, 768, 1), (64, 128, 1));
        assert_eq!(chosen(350, 768, 768, 1), (64, 64, 1));
        assert_eq!(chosen(32, 768, 768, 1), (64, 64, 1));
        assert_eq!(chosen(768, 768, 4096, 32), (128, 128, 3));
        assert_eq!(chosen(2304, 768, 4096, 32), (128, 128, 1));
    }

    #[test]
    fn weight_gradients_are_cut_into_slices_that_are_added_up() {
        let (dy, x) = (operand(DType::Bf16, 4096, 768), operand(DType::Bf16, 4096, 768));
        let c = operand(DType::F32, 768, 768);
        for epilogue in [Epilogue::Store, Epilogue::Add] {
            let (kernels, grid, product) = launched(Form::TN, dy, x, c, epilogue);
            assert_eq!(kernels, ["gemm_bf16_tn_128x128", "sum_slices"]);
            assert_eq!((grid, product.slices), ([36, 3, 1], 3));
            // Slices are stored beside one another, and C is read by who adds them up.
            assert_eq!((product.c, product.other), (1 << 30, 0));
        }
        let c = operand(DType::Bf16, 768, 768);
        assert_eq!(launched(Form::TN, dy, x, c, Epilogue::Store).0.len(), 1, "sums are in f32");
    }

    #[test]
    fn many_rows_are_summed_in_two_stages() {
        let stages = |rows| {
            let mut launches = Launches::new(0, Extents::default(), 1 << 30);
            column_sums(&mut launches, operand(DType::Bf16, rows, 72), 64, true);
            launches.list.iter().map(|launch| (launch.kernel, launch.grid)).collect::<Vec<_>>()
        };
        assert_eq!(stages(256), [("column_sums_bf16", [3, 1, 1])]);
        assert_eq!(stages(257), [("column_sums_bf16", [3, 3, 1]), ("column_sums_f32", [3, 1, 1])]);
    }
}
