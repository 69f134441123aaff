//! Which of Hopper's kernels computes a product: `kernels/hopper_gemm.cu`, chosen among by a model of its time.
//!
//! The tile is to change no bit of a result: each sums an element in the same order. The numbers of the model are
//! estimates from a plainer kernel on one H100; these themselves have not run on a card.

use super::gemm::{Form, Plan, Size};
use super::launch::{Operand, TensorMap};

/// Threads of a block: a warpgroup that loads, two that multiply.
const THREADS: u32 = 384;
/// The depth of a stage: 128 bytes.
const DEPTH: u32 = 64;
/// Rows of C whose column sums stand in one row.
const ROWS_OF_SUMS: u32 = 64;
/// Bytes of shared memory in which eight warps stage 16 x 64 numbers each.
const STAGING: usize = 8 * 16 * 64 * size_of::<f32>();

/// A kernel's tile of C.
#[derive(Debug, PartialEq)]
struct Tile {
    rows: u32,
    columns: u32,
    /// Of the ring.
    stages: u32,
    /// By form.
    kernels: [&'static str; 3],
}

/// The largest first: of equals, the first is taken.
const TILES: [Tile; 4] = [
    Tile {
        rows: 128,
        columns: 256,
        stages: 4,
        kernels: ["hopper_gemm_nt_128x256", "hopper_gemm_nn_128x256", "hopper_gemm_tn_128x256"],
    },
    Tile {
        rows: 128,
        columns: 192,
        stages: 4,
        kernels: ["hopper_gemm_nt_128x192", "hopper_gemm_nn_128x192", "hopper_gemm_tn_128x192"],
    },
    Tile {
        rows: 128,
        columns: 128,
        stages: 6,
        kernels: ["hopper_gemm_nt_128x128", "hopper_gemm_nn_128x128", "hopper_gemm_tn_128x128"],
    },
    Tile {
        rows: 64,
        columns: 128,
        stages: 8,
        kernels: ["hopper_gemm_nt_64x128", "hopper_gemm_nn_64x128", "hopper_gemm_tn_64x128"],
    },
];

impl Tile {
    fn count(&self, size: Size) -> u32 {
        size.m.div_ceil(self.rows) * size.n.div_ceil(self.columns)
    }

    /// Bytes of shared memory: the ring, the staged numbers, and two barriers a stage.
    fn shared(&self) -> usize {
        self.stages as usize * ((self.rows + self.columns) as usize * 128 + 16) + STAGING
    }

    /// Clocks for one stage of the depth: the tensor cores do 2048 multiplications in one, less what they lose on
    /// random numbers, and the L2 cache gives each multiprocessor 34 bytes.
    fn clocks_of_stage(&self) -> u64 {
        let (rows, columns) = (u64::from(self.rows), u64::from(self.columns));
        (rows * columns * 64 * 115 / 100 / 2048).max((rows + columns) * 128 / 34)
    }

    /// Clocks for all of a product: the block with the most tiles, each finished at 12 numbers a clock (they go through
    /// shared memory, 8 bytes of 128 a clock, and take instructions), and the sums of slices, 4 bytes written and 4 read
    /// at 1700 bytes a clock after a launch of their own.
    fn clocks(&self, size: Size, slices: u32, processors: u32) -> u64 {
        let stages = u64::from(size.k.div_ceil(slices).div_ceil(DEPTH));
        let tile = stages * self.clocks_of_stage() + u64::from(self.rows * self.columns) / 12;
        let rounds = u64::from(self.count(size) * slices).div_ceil(u64::from(processors));
        let sums = u64::from(slices) * u64::from(size.m) * u64::from(size.n) * 8 / 1700 + 4000;
        rounds * tile + if slices > 1 { sums } else { 0 }
    }
}

/// The tile, and the number of slices up to the most, that take the least time; of equals the first.
fn choose(size: Size, most_slices: u32, processors: u32) -> (&'static Tile, u32) {
    let choices = TILES.iter().flat_map(|tile| (1..=most_slices).map(move |slices| (tile, slices)));
    choices.min_by_key(|(tile, slices)| tile.clocks(size, *slices, processors)).expect("a tile")
}

/// How a product is computed whose operands the tensor cores can read in pieces of 16 bytes, and whose result too is
/// written so.
pub(super) fn plan(
    form: Form,
    a: &Operand,
    b: &Operand,
    size: Size,
    most_slices: u32,
    processors: u32,
) -> Plan {
    let (tile, slices) = choose(size, most_slices, processors);
    // A box has all the lines of a tile where the depth is contiguous, else 64 of the depth.
    let of_a = if form == Form::TN { DEPTH } else { tile.rows };
    let of_b = if form == Form::NT { tile.columns } else { DEPTH };
    Plan {
        kernel: tile.kernels[form as usize],
        grid: [(tile.count(size) * slices).clamp(1, processors), 1, 1],
        threads: THREADS,
        shared: tile.shared(),
        slices,
        rows_of_sums: ROWS_OF_SUMS,
        maps: vec![TensorMap::of(a, of_a), TensorMap::of(b, of_b)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tiles and slices of the products of BERT-base and BERT-large on 132 processors.
    #[test]
    fn tiles_fill_the_processors() {
        let chosen = |m, n, k, most_slices| {
            let (tile, slices) = choose(Size { m, n, k }, most_slices, 132);
            (tile.rows, tile.columns, slices)
        };
        assert_eq!(chosen(4096, 768, 768, 1), (128, 192, 1));
        assert_eq!(chosen(4096, 2304, 768, 1), (128, 192, 1));
        assert_eq!(chosen(4096, 3072, 768, 1), (128, 256, 1));
        assert_eq!(chosen(4096, 768, 3072, 1), (128, 192, 1));
        assert_eq!(chosen(4096, 1024, 1024, 1), (128, 256, 1));
        assert_eq!(chosen(4096, 4096, 1024, 1), (128, 256, 1));
        assert_eq!(chosen(2048, 1024, 1024, 1), (128, 128, 1));
        assert_eq!(chosen(1024, 3072, 768, 1), (128, 192, 1));
        assert_eq!(chosen(1024, 768, 768, 1), (64, 128, 1));
        assert_eq!(chosen(32, 768, 768, 1), (64, 128, 1));
        // Weight gradients.
        assert_eq!(chosen(768, 768, 4096, 32), (128, 128, 3));
        assert_eq!(chosen(3072, 768, 4096, 32), (128, 192, 1));
        assert_eq!(chosen(3072, 1024, 16384, 32), (128, 256, 4));
    }

    #[test]
    fn every_tile_fits_a_multiprocessor() {
        for tile in &TILES {
            assert!(tile.shared() <= 227 << 10, "{tile:?}");
        }
    }
}
