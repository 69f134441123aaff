// Matrix products of bf16 on tensor cores, for every card since Ampere: mma.sync fed by ldmatrix from a ring of
// tiles that cp.async fills ahead.
//
// The rows of A and of B are multiples of 16 bytes and start at one; what lies beyond a matrix counts as zeros. All
// tiles sum an element in the same order, so the choice among them changes no bit.
#include "product.cuh"

/// Where a chunk of 16 bytes of a tile lies, counted in chunks. Of any eight neighbouring rows, the same chunk lies
/// in eight different groups of banks, so that ldmatrix reads without conflicts.
template <u32 chunks_in_row>
DEVICE u32 chunk_place(u32 row, u32 chunk) {
    return row * chunks_in_row + (chunk ^ (chunks_in_row >= 8 ? row % 8 : row / 2 % 4));
}

/// A part of an operand in shared memory. Here as in global memory either the depth is contiguous (`by_line`) or
/// the lines are; ldmatrix transposes where that is not what the fragment needs.
template <bool by_line, u32 lines, u32 depth>
struct OperandTile {
    static constexpr u32 ROWS = by_line ? lines : depth;
    static constexpr u32 CHUNKS = (by_line ? depth : lines) / 8;
    static constexpr u32 BYTES = lines * depth * 2;
    /// Rows from one of a thread's chunks to the next: whole periods of `chunk_place`, so that a thread copies the
    /// same column to places that lie evenly, and few registers hold its addresses.
    static constexpr u32 APART = THREADS / CHUNKS;
    static_assert(APART % 8 == 0 && ROWS % APART == 0, "each thread copies as many chunks");

    /// Starts to copy this thread's chunks of the tile whose depth begins at `first_depth`.
    DEVICE void copy(u8* tile, const Operand& from, u32 first_depth) {
        const u32 row = thread_index() / CHUNKS, chunk = thread_index() % CHUNKS;
        const u32 from_row = (by_line ? from.first_line : first_depth) + row;
        const u32 from_column = (by_line ? first_depth : from.first_line) + 8 * chunk;
        const u32 end_of_rows = by_line ? from.all_lines : from.end_of_depth;
        const u32 end_of_columns = by_line ? from.end_of_depth : from.all_lines;
        const bf16* matrix = static_cast<const bf16*>(from.matrix);
        const bf16* at = matrix + static_cast<u64>(from_row) * from.stride + from_column;
        u8* to = tile + 16 * chunk_place<CHUNKS>(row, chunk);
        UNROLL for (u32 i = 0; i < ROWS / APART; ++i) {
            bool valid = from_row + i * APART < end_of_rows && from_column < end_of_columns;
            copy_async(to + 16 * THREADS * i, at, valid);
            at += static_cast<u64>(APART) * from.stride;
        }
    }

    /// The fragment of A: 16 lines, 16 deep.
    DEVICE void load_a(u32 (&to)[4], const u8* tile, u32 line, u32 deep) {
        const u32 lane = lane_index();
        if constexpr (by_line) {
            load_matrices(to, tile + 16 * chunk_place<CHUNKS>(line + lane % 16, deep / 8 + lane / 16));
        } else {
            u32 row = deep + lane / 16 * 8 + lane % 8;
            load_matrices_transposed(to, tile + 16 * chunk_place<CHUNKS>(row, line / 8 + lane / 8 % 2));
        }
    }

    /// The fragments of B of 16 lines, 16 deep: two words for the first eight lines, two for the others.
    DEVICE void load_b(u32 (&to)[4], const u8* tile, u32 line, u32 deep) {
        const u32 lane = lane_index();
        if constexpr (by_line) {
            u32 row = line + lane / 16 * 8 + lane % 8;
            load_matrices(to, tile + 16 * chunk_place<CHUNKS>(row, deep / 8 + lane / 8 % 2));
        } else {
            load_matrices_transposed(to, tile + 16 * chunk_place<CHUNKS>(deep + lane % 16, line / 8 + lane / 16));
        }
    }
};

/// A tile of C of `tile_rows` x `tile_columns` by 2 x 2 warps, `depth` at a time, with `stages` tiles of each
/// operand in the ring.
///
/// Fragments are loaded 16 of the depth ahead of the multiplications that use them, across the barrier too, so that
/// the tensor cores have work while shared memory is read: those of B in turns, one of A as soon as its last use is
/// behind.
template <u32 form, u32 tile_rows, u32 tile_columns, u32 depth, u32 stages>
DEVICE void multiply_tile(const Product& args) {
    using TileA = OperandTile<form != TN, tile_rows, depth>;
    using TileB = OperandTile<form == NT, tile_columns, depth>;
    constexpr u32 STAGE = TileA::BYTES + TileB::BYTES;
    constexpr u32 WARP_ROWS = tile_rows / 2, WARP_COLUMNS = tile_columns / 2;
    constexpr u32 DOWN = WARP_ROWS / 16, ACROSS = WARP_COLUMNS / 8, PARTS = depth / 16;
    static_assert(PARTS % 2 == 0 && stages >= 3, "fragments alternate, and tiles are filled ahead");

    const Part own = part_of_block<tile_rows, tile_columns>(args);
    if (!own.exists) return;
    const u32 steps = ceiling_division(own.end_of_depth - own.first_depth, depth);
    const Operand a = operand_a<form>(args, own), b = operand_b<form>(args, own);

    u8* ring = shared_memory();
    auto copy = [&](u32 step) {
        if (step < steps) {
            u8* stage = ring + step % stages * STAGE;
            TileA::copy(stage, a, own.first_depth + step * depth);
            TileB::copy(stage + TileA::BYTES, b, own.first_depth + step * depth);
        }
        copy_async_commit();
    };

    const u32 warp_row = warp_index() / 2 * WARP_ROWS, warp_column = warp_index() % 2 * WARP_COLUMNS;
    u32 fragments_a[DOWN][4], fragments_b[2][ACROSS / 2][4];
    auto load_a = [&](u32 i, u32 step, u32 deep) {
        TileA::load_a(fragments_a[i], ring + step % stages * STAGE, warp_row + 16 * i, deep);
    };
    auto load_b = [&](u32 into, u32 step, u32 deep) {
        const u8* tile = ring + step % stages * STAGE + TileA::BYTES;
        UNROLL for (u32 j = 0; j < ACROSS / 2; ++j) {
            TileB::load_b(fragments_b[into][j], tile, warp_column + 16 * j, deep);
        }
    };

    f32 sums[DOWN][ACROSS][4];
    UNROLL for (u32 i = 0; i < DOWN; ++i) {
        UNROLL for (u32 j = 0; j < ACROSS; ++j) {
            UNROLL for (u32 l = 0; l < 4; ++l) sums[i][j][l] = 0.0f;
        }
    }

    UNROLL for (u32 step = 0; step + 1 < stages; ++step) copy(step);
    copy_async_wait<stages - 2>();
    sync_block();
    UNROLL for (u32 i = 0; i < DOWN; ++i) load_a(i, 0, 0);
    load_b(0, 0, 0);
    for (u32 step = 0; step < steps; ++step) {
        UNROLL for (u32 part = 0; part < PARTS; ++part) {
            const u32 now = part % 2;
            const bool last = part + 1 == PARTS;
            const u32 next_step = last ? step + 1 : step, next_deep = last ? 0 : 16 * (part + 1);
            if (last) {
                // The next tiles have landed for all threads, and no thread will read this step's again.
                copy_async_wait<stages - 2>();
                sync_block();
            }
            load_b(1 - now, next_step, next_deep);
            if (part == 0) copy(step + stages - 1);
            UNROLL for (u32 i = 0; i < DOWN; ++i) {
                UNROLL for (u32 j = 0; j < ACROSS; ++j) {
                    const u32(&words)[4] = fragments_b[now][j / 2];
                    multiply_add(sums[i][j], fragments_a[i], words[j % 2 * 2], words[j % 2 * 2 + 1]);
                }
                load_a(i, next_step, next_deep);
            }
        }
    }
    // What was loaded for the step after the last is not used; all have loaded when the ring is written again.
    sync_block();

    auto stage = [&](u32 pass, f32* staged) {
        const u32 group = lane_index() / 4, pair = lane_index() % 4 * 2;
        UNROLL for (u32 i = 0; i < DOWN; ++i) {
            const u32 row = warp_row + 16 * i;
            if (row / STAGED_ROWS != pass) continue;
            UNROLL for (u32 j = 0; j < ACROSS; ++j) {
                UNROLL for (u32 half = 0; half < 2; ++half) {
                    u32 staged_row = row % STAGED_ROWS + 8 * half + group;
                    u32 place = staged_place<tile_columns>(staged_row, warp_column + 8 * j + pair);
                    Two two = {{sums[i][j][2 * half], sums[i][j][2 * half + 1]}};
                    *reinterpret_cast<Two*>(staged + place) = two;
                }
            }
        }
    };
    finish_tile<tile_rows, tile_columns>(args, own, stage);
}

#define PRODUCT(name, form, rows, columns, depth, stages, blocks)                                                  \
    KERNEL(name, Product, THREADS, blocks) { multiply_tile<form, rows, columns, depth, stages>(args); }

// All use 48 KiB of shared memory: at least two blocks fit every card.
PRODUCT(gemm_bf16_nt_128x128, NT, 128, 128, 32, 3, 2)
PRODUCT(gemm_bf16_nn_128x128, NN, 128, 128, 32, 3, 2)
PRODUCT(gemm_bf16_tn_128x128, TN, 128, 128, 32, 3, 2)
PRODUCT(gemm_bf16_nt_64x128, NT, 64, 128, 32, 4, 3)
PRODUCT(gemm_bf16_nn_64x128, NN, 64, 128, 32, 4, 3)
PRODUCT(gemm_bf16_tn_64x128, TN, 64, 128, 32, 4, 3)
PRODUCT(gemm_bf16_nt_64x64, NT, 64, 64, 64, 3, 3)
PRODUCT(gemm_bf16_nn_64x64, NN, 64, 64, 64, 3, 3)
PRODUCT(gemm_bf16_tn_64x64, TN, 64, 64, 64, 3, 3)
