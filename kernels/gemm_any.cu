// Matrix products on ordinary multipliers: of f32, and of any shape, alignment or mixture of types that the tensor
// cores' kernel does not take. An element is summed in the order of its depth, by fused multiply-adds.
#include "product.cuh"

/// A block computes 64 x 64 of C, 16 of the depth at a time; a thread 8 rows x 4 columns.
constexpr u32 LINES = 64;
constexpr u32 DEPTH = 16;
constexpr u32 EACH = LINES * DEPTH / THREADS;
/// From one place in the depth to the next in shared memory; a multiple of 16 bytes, and such that the transposing
/// writes spread over the banks.
constexpr u32 STRIDE = LINES + 4;

/// Which element of a tile this thread moves as its `i`-th; neighbouring threads move neighbours in memory.
template <bool by_line>
DEVICE void own_place(u32 i, u32& line, u32& deep) {
    u32 index = i * THREADS + thread_index();
    line = by_line ? index / DEPTH : index % LINES;
    deep = by_line ? index % DEPTH : index / LINES;
}

/// Reads this thread's elements of the tile whose depth begins at `first_depth`; zeros beyond the matrix.
template <bool by_line, class T>
DEVICE void read_tile(f32 (&to)[EACH], const Operand& from, u32 first_depth) {
    UNROLL for (u32 i = 0; i < EACH; ++i) {
        u32 line, deep;
        own_place<by_line>(i, line, deep);
        line += from.first_line;
        deep += first_depth;
        u64 row = by_line ? line : deep, column = by_line ? deep : line;
        bool valid = line < from.all_lines && deep < from.end_of_depth;
        to[i] = valid ? to_f32(static_cast<const T*>(from.matrix)[row * from.stride + column]) : 0.0f;
    }
}
template <bool by_line>
DEVICE void read_tile(f32 (&to)[EACH], const Operand& from, u32 first_depth) {
    if (from.is_bf16) {
        read_tile<by_line, bf16>(to, from, first_depth);
    } else {
        read_tile<by_line, f32>(to, from, first_depth);
    }
}

/// Writes them to shared memory, `[DEPTH, STRIDE]`: lines are contiguous there.
template <bool by_line>
DEVICE void write_tile(f32* tile, const f32 (&from)[EACH]) {
    UNROLL for (u32 i = 0; i < EACH; ++i) {
        u32 line, deep;
        own_place<by_line>(i, line, deep);
        tile[deep * STRIDE + line] = from[i];
    }
}

template <u32 form>
DEVICE void multiply_tile(const Product& args) {
    constexpr u32 TILE = DEPTH * STRIDE, DOWN = 8, ACROSS = 4;

    const Part part = part_of_block<LINES, LINES>(args);
    if (!part.exists) return;
    const Operand a = operand_a<form>(args, part), b = operand_b<form>(args, part);

    // Two buffers of a tile of A and one of B: the next are written while one is read.
    f32* tiles = reinterpret_cast<f32*>(shared_memory());
    f32 next_a[EACH], next_b[EACH];
    const u32 own_row = thread_index() / (LINES / ACROSS) * DOWN;
    const u32 own_column = thread_index() % (LINES / ACROSS) * ACROSS;
    f32 sums[DOWN][ACROSS];
    UNROLL for (u32 i = 0; i < DOWN; ++i) {
        UNROLL for (u32 j = 0; j < ACROSS; ++j) sums[i][j] = 0.0f;
    }

    read_tile<form != TN>(next_a, a, part.first_depth);
    read_tile<form == NT>(next_b, b, part.first_depth);
    u32 buffer = 0;
    for (u32 depth = part.first_depth; depth < part.end_of_depth; depth += DEPTH) {
        f32* tile_a = tiles + buffer * 2 * TILE;
        f32* tile_b = tile_a + TILE;
        write_tile<form != TN>(tile_a, next_a);
        write_tile<form == NT>(tile_b, next_b);
        sync_block();
        read_tile<form != TN>(next_a, a, depth + DEPTH);
        read_tile<form == NT>(next_b, b, depth + DEPTH);
        UNROLL for (u32 deep = 0; deep < DEPTH; ++deep) {
            f32 line_a[DOWN];
            unpack(line_a, *reinterpret_cast<const Eight<f32>*>(tile_a + deep * STRIDE + own_row));
            Four line_b = *reinterpret_cast<const Four*>(tile_b + deep * STRIDE + own_column);
            UNROLL for (u32 i = 0; i < DOWN; ++i) {
                UNROLL for (u32 j = 0; j < ACROSS; ++j) sums[i][j] = fmaf(line_a[i], line_b.values[j], sums[i][j]);
            }
        }
        buffer = 1 - buffer;
    }
    sync_block();

    auto stage = [&](u32 pass, f32* staged) {
        if (own_row / STAGED_ROWS != pass) return;
        UNROLL for (u32 i = 0; i < DOWN; ++i) {
            Four four = {{sums[i][0], sums[i][1], sums[i][2], sums[i][3]}};
            *reinterpret_cast<Four*>(staged + staged_place<LINES>(own_row % STAGED_ROWS + i, own_column)) = four;
        }
    };
    finish_tile<LINES, LINES>(args, part, stage);
}

KERNEL(gemm_any_nt, Product, THREADS, 3) { multiply_tile<NT>(args); }
KERNEL(gemm_any_nn, Product, THREADS, 3) { multiply_tile<NN>(args); }
KERNEL(gemm_any_tn, Product, THREADS, 3) { multiply_tile<TN>(args); }
