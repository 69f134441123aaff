// What all matrix products have in common: their argument, which block computes which tile of C, and what happens
// to a tile as it is written.
#pragma once
#include "activation.cuh"
#include "prelude.cuh"

/// Which operand is transposed; all matrices are row-major.
enum Form : u32 { NT, NN, TN };

/// What becomes of a product, the twin of `Finish` in `src/backend/cuda/gemm.rs`.
enum Finish : u32 {
    /// c = keep * (product + bias) + other
    LINEAR,
    /// before = product + bias, c = activation(before)
    ACTIVATION,
    /// c = product * activation'(other), and the sums of c over the rows of each tile
    GRADIENT,
};

/// The argument of every product; `src/backend/cuda/gemm.rs` has its twin.
struct Product {
    /// NT and NN `[rows, depth]`, TN `[depth, rows]`.
    const void* a;
    /// NT `[columns, depth]`, NN and TN `[depth, columns]`.
    const void* b;
    /// `[rows, columns]`, or where the depth is cut into slices `[slices, rows, columns]`.
    void* c;
    /// `[rows, columns]` of C's type: what is read beside the product; null for none. May be C itself.
    const void* other;
    /// `[rows, columns]` of C's type: where an activation's argument is kept; null for nowhere.
    void* before;
    /// `[columns]`; null for none.
    const f32* bias;
    /// `[rows]`: the rows' names in the dropout's draws; without them a row's name is its number.
    const u32* keys;
    /// `[tiles of rows, columns]`: the column sums of each tile; null for nowhere.
    f32* sums;
    const Step* step;
    Rows rows;
    Rows depth;
    u32 columns;
    /// The depth is cut into so many.
    u32 slices;
    u32 finish;
    u32 activation;
    Dropout dropout;
    u32 a_is_bf16;
    u32 b_is_bf16;
    u32 c_is_bf16;
    /// Whether eight neighbours of C, `other` and `before` start at a multiple of 16 bytes each, and none is cut
    /// off.
    u32 vectors;
    u32 unused;
};

/// Threads of every block.
constexpr u32 THREADS = 128;
/// Slices of the depth begin at multiples of it.
constexpr u32 SLICE_UNIT = 64;

/// The length of all slices but the last. It follows the real depth, so that a small batch keeps all slices at
/// work.
DEVICE u32 slice_length(u32 depth, u32 slices) {
    return ceiling_division(ceiling_division(depth, slices), SLICE_UNIT) * SLICE_UNIT;
}

/// The part of a product that a block computes.
struct Part {
    /// Whether there is anything to compute; the same for all threads of the block. If not, the rest means nothing.
    bool exists;
    /// Of all of C.
    u32 rows;
    /// Of all of the product.
    u32 depth;
    u32 first_row;
    u32 first_column;
    u32 slice;
    u32 first_depth;
    u32 end_of_depth;
};

/// A tile of C and a slice of the depth, by their numbers, of a product of so many rows and so deep.
///
/// Tiles are taken eight rows of them at a time, column by column: what runs at one time then needs about as many
/// rows of A as columns of B, and both stay in the L2 cache.
template <u32 tile_rows, u32 tile_columns>
DEVICE Part part_of(const Product& args, u32 rows, u32 depth, u32 tile, u32 slice) {
    constexpr u32 GROUP = 8;
    Part part;
    part.rows = rows;
    part.depth = depth;
    u32 length = slice_length(part.depth, args.slices);
    part.slice = slice;
    part.first_depth = part.slice * length;
    part.end_of_depth = min(part.first_depth + length, part.depth);

    u32 rows_of_tiles = ceiling_division(part.rows, tile_rows);
    u32 tiles_in_row = ceiling_division(args.columns, tile_columns);
    // Of no depth the product is zeros, which the first slice stores; no one looks at what the others would store.
    part.exists = tile < rows_of_tiles * tiles_in_row && (part.slice == 0 || part.first_depth < part.depth);
    if (part.exists) {
        u32 group = tile / (GROUP * tiles_in_row), within = tile % (GROUP * tiles_in_row);
        u32 height = min(GROUP, rows_of_tiles - GROUP * group);
        part.first_row = (GROUP * group + within % height) * tile_rows;
        part.first_column = within / height * tile_columns;
    }
    return part;
}

/// The part of this block: a tile by block_x, a slice by block_y.
template <u32 tile_rows, u32 tile_columns>
DEVICE Part part_of_block(const Product& args) {
    u32 rows = row_count(args.step, args.rows), depth = row_count(args.step, args.depth);
    return part_of<tile_rows, tile_columns>(args, rows, depth, block_x(), block_y());
}

/// An operand as a part of the product sees it: lines, which are the rows of A or the columns of C, each as long as
/// the depth.
struct Operand {
    /// Row-major: `[all_lines, depth]`, or `[depth, all_lines]`.
    const void* matrix;
    u32 is_bf16;
    /// From one row to the next, in elements.
    u32 stride;
    u32 first_line;
    u32 all_lines;
    u32 end_of_depth;
};

template <u32 form>
DEVICE Operand operand_a(const Product& args, const Part& part) {
    u32 stride = form == TN ? part.rows : part.depth;
    return {args.a, args.a_is_bf16, stride, part.first_row, part.rows, part.end_of_depth};
}
template <u32 form>
DEVICE Operand operand_b(const Product& args, const Part& part) {
    u32 stride = form == NT ? part.depth : args.columns;
    return {args.b, args.b_is_bf16, stride, part.first_column, args.columns, part.end_of_depth};
}

/// Rows of a tile of C that lie in shared memory at a time.
constexpr u32 STAGED_ROWS = 32;

/// Where `column`, an even one, of a row of staged numbers lies. Eight neighbours move as one and their halves may
/// change places, such that neither the writes of fragments nor the reads of eights meet in a bank.
template <u32 tile_columns>
DEVICE u32 staged_place(u32 row, u32 column) {
    u32 eight = column / 8, half = column / 4 % 2;
    return row * tile_columns + 8 * (eight ^ row % 4) + 4 * (half ^ eight / 4 % 2) + column % 4;
}

struct alignas(8) Two {
    f32 values[2];
};
struct alignas(16) Four {
    f32 values[4];
};

/// Makes eight neighbours of a row of C of the product's, to which the bias has been added, and of what is read
/// `beside` them. `sums` take what column sums are made of, `write(row, values)` writes eights of a row.
template <class T, class Write>
DEVICE void finish_eight(
    const Product& args, u32 row, u32 column, f32 (&values)[8], const f32 (&beside)[8], f32 (&sums)[8],
    const Write& write) {
    if (args.finish == LINEAR) {
        if (args.dropout.threshold > 0) {
            u32 key = args.keys ? args.keys[row] : row;
            drop_eight(values, args.step, args.dropout, key, column / 8);
        }
        UNROLL for (u32 i = 0; i < 8; ++i) values[i] += beside[i];
    } else if (args.finish == ACTIVATION) {
        if (args.before) write(static_cast<T*>(args.before) + static_cast<u64>(row) * args.columns, values);
        activate(args.activation, values);
    } else {
        multiply_by_slope(args.activation, values, beside);
        UNROLL for (u32 i = 0; i < 8; ++i) sums[i] += values[i];
    }
}

/// Finishes a tile of C, `tile_rows` x `tile_columns`, and writes it, in passes of 32 rows. All threads call it,
/// after the last read of the shared memory by what came before.
///
/// `stage(pass, staged)` writes this thread's share of the pass's sums to shared memory, each at its
/// `staged_place`. A thread then takes eight neighbours at a time: one block of draws, 16 bytes of bf16. What is
/// read beside the product is on its way from global memory while the pass before is worked on.
template <u32 tile_rows, u32 tile_columns, class T, class Stage>
DEVICE void finish_tile(const Product& args, const Part& part, const Stage& stage) {
    constexpr u32 EIGHTS = tile_columns / 8, ROWS_AT_A_TIME = THREADS / EIGHTS;
    f32* staged = reinterpret_cast<f32*>(shared_memory());
    T* others = reinterpret_cast<T*>(staged + STAGED_ROWS * tile_columns);
    T* c = static_cast<T*>(args.c) + static_cast<u64>(part.slice) * part.rows * args.columns;
    const T* other = static_cast<const T*>(args.other);

    const u32 own_row = thread_index() / EIGHTS, own_column = 8 * (thread_index() % EIGHTS);
    const u32 column = part.first_column + own_column;
    const u32 rows = min(tile_rows, part.rows - part.first_row);

    f32 bias[8] = {}, sums[8] = {};
    if (args.bias) unpack(bias, read_eight<false>(args.bias, column, args.columns));

    // Each thread copies what it will read itself, so no barrier is needed.
    auto fetch = [&](u32 pass) {
        if (other && args.vectors && pass * STAGED_ROWS < rows) {
            for (u32 row = own_row; row < STAGED_ROWS; row += ROWS_AT_A_TIME) {
                u32 row_of_tile = pass * STAGED_ROWS + row;
                bool valid = column < args.columns && row_of_tile < rows;
                const T* from = other + static_cast<u64>(part.first_row + row_of_tile) * args.columns + column;
                T* to = others + (pass % 2 * STAGED_ROWS + row) * tile_columns + own_column;
                UNROLL for (u32 i = 0; i < 8; i += 16 / sizeof(T)) copy_async(to + i, from + i, valid);
            }
        }
        copy_async_commit();
    };

    auto write = [&](T* row, const f32 (&values)[8]) {
        if (args.vectors) {
            write_eight<true>(row, column, args.columns, values);
        } else {
            write_eight<false>(row, column, args.columns, values);
        }
    };

    fetch(0);
    for (u32 pass = 0; pass * STAGED_ROWS < rows; ++pass) {
        fetch(pass + 1);
        stage(pass, staged);
        copy_async_wait<1>();
        sync_block();
        for (u32 row = own_row; row < STAGED_ROWS; row += ROWS_AT_A_TIME) {
            u32 row_of_tile = pass * STAGED_ROWS + row;
            if (row_of_tile >= rows || column >= args.columns) break;
            u32 row_of_c = part.first_row + row_of_tile;
            u64 start = static_cast<u64>(row_of_c) * args.columns;

            f32 values[8], beside[8] = {};
            UNROLL for (u32 half = 0; half < 2; ++half) {
                u32 from = staged_place<tile_columns>(row, own_column + 4 * half);
                Four four = *reinterpret_cast<const Four*>(staged + from);
                UNROLL for (u32 i = 0; i < 4; ++i) values[4 * half + i] = four.values[i] + bias[4 * half + i];
            }
            if (other && args.vectors) {
                const T* fetched = others + (pass % 2 * STAGED_ROWS + row) * tile_columns;
                unpack(beside, read_eight<true>(fetched, own_column, tile_columns));
            } else if (other) {
                unpack(beside, read_eight<false>(other + start, column, args.columns));
            }

            finish_eight<T>(args, row_of_c, column, values, beside, sums, write);
            write(c + start, values);
        }
        // The staged numbers are read before the next pass writes.
        sync_block();
    }

    if (args.sums) {
        UNROLL for (u32 i = 0; i < 8; ++i) staged[own_row * tile_columns + own_column + i] = sums[i];
        sync_block();
        u32 own = thread_index();
        if (own < tile_columns && part.first_column + own < args.columns) {
            f32 sum = 0.0f;
            for (u32 row = 0; row < ROWS_AT_A_TIME; ++row) sum += staged[row * tile_columns + own];
            args.sums[static_cast<u64>(part.first_row / tile_rows) * args.columns + part.first_column + own] = sum;
        }
    }
}

/// The same for the type of C that the argument names.
template <u32 tile_rows, u32 tile_columns, class Stage>
DEVICE void finish_tile(const Product& args, const Part& part, const Stage& stage) {
    if (args.c_is_bf16) {
        finish_tile<tile_rows, tile_columns, bf16>(args, part, stage);
    } else {
        finish_tile<tile_rows, tile_columns, f32>(args, part, stage);
    }
}
