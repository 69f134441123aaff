// Matrix products of bf16 by Hopper's warpgroups: wgmma fed by the TMA from a ring of stages in shared memory.
//
// A block stays and takes one tile of C after another, as many blocks as there are multiprocessors. Its first warpgroup
// has one thread load; the other two multiply, each its own half of the tile, and finish what they have multiplied,
// while the next tile is loaded already. Operands are read as they lie: the instruction transposes. All tiles sum an
// element in the same order, so the choice among them changes no bit.
//
// Maps have the rows that a launch was made for. Of those that are not of the batch, whatever lies there, products are
// computed and not written; where they are the depth, they are made zeros in shared memory.
#include "hopper.cuh"
#include "product.cuh"

/// The argument; `src/backend/cuda/hopper_gemm.rs` makes it. A and B are read through their maps.
struct MappedProduct {
    TensorMap a;
    TensorMap b;
    Product product;
};

/// Threads of a warpgroup: what the portable kernel's whole block has.
constexpr u32 GROUP_THREADS = THREADS;
/// Warpgroups that multiply, and all threads.
constexpr u32 MULTIPLYING = 2, BLOCK_THREADS = (1 + MULTIPLYING) * GROUP_THREADS;
/// Registers of a thread that loads, and of one that multiplies: 128 x 40 + 256 x 232 are all that there are.
constexpr u32 FEW_REGISTERS = 40, MANY_REGISTERS = 232;
/// The depth of a stage: a line of a box.
constexpr u32 DEPTH = BOX_COLUMNS;
constexpr u32 BOX_BYTES = DEPTH * LINE_BYTES;
/// Where each multiplying warp turns 16 rows of 64 columns from its fragments into eights.
constexpr u32 WARP_ROWS = 16, STAGED_COLUMNS = 64, STAGED_BYTES = WARP_ROWS * STAGED_COLUMNS * sizeof(f32);
/// The numbers of barriers: of all that multiply, and the first of those of one warpgroup.
constexpr u32 BARRIER_OF_ALL = 1, BARRIER_OF_GROUP = 2;

/// How a tile is divided and where it lies in shared memory.
template <u32 tile_rows, u32 tile_columns, u32 stages>
struct Tiling {
    static_assert(tile_rows == 64 || tile_rows == 128, "a warpgroup has 64 rows");
    /// A warpgroup's columns: two divide the rows where there are 128, else the columns.
    static constexpr u32 COLUMNS = tile_rows == 128 ? tile_columns : tile_columns / 2;
    static constexpr u32 A_BYTES = tile_rows * LINE_BYTES, STAGE_BYTES = (tile_rows + tile_columns) * LINE_BYTES;
    static constexpr u32 RING_BYTES = stages * STAGE_BYTES;
    static constexpr u32 BARRIERS_AT = RING_BYTES + 4 * MULTIPLYING * STAGED_BYTES;
};

/// Where a thread is in the ring, whose stages are filled and emptied in turn.
struct Turn {
    u32 stage;
    /// Of how often the ring has been passed through.
    u32 parity;
};

template <u32 stages>
DEVICE void advance(Turn& turn) {
    if (++turn.stage == stages) {
        turn.stage = 0;
        turn.parity ^= 1;
    }
}

/// Calls `work(part, steps)` for each part that this block computes. Of no depth there is one step, of zeros.
template <u32 tile_rows, u32 tile_columns, class Work>
DEVICE void for_own_parts(const Product& args, const Work& work) {
    const u32 rows = row_count(args.step, args.rows), depth = row_count(args.step, args.depth);
    const u32 tiles = ceiling_division(rows, tile_rows) * ceiling_division(args.columns, tile_columns);
    for (u32 index = block_x(); index < tiles * args.slices; index += grid_x()) {
        const Part part = part_of<tile_rows, tile_columns>(args, rows, depth, index % tiles, index / tiles);
        if (part.exists) work(part, max(1u, ceiling_division(part.end_of_depth - part.first_depth, DEPTH)));
    }
}

/// Starts to load an operand of a stage: the depth is contiguous in memory (`by_line`), one box of all lines, or the
/// lines are, boxes of 64.
template <bool by_line, u32 lines>
DEVICE void load_operand(u8* to, const TensorMap* map, u32 first_line, u32 first_depth, u64* full) {
    if constexpr (by_line) {
        tma_load(to, map, first_depth, first_line, full);
    } else {
        UNROLL for (u32 line = 0; line < lines; line += BOX_COLUMNS) {
            tma_load(to + line * LINE_BYTES, map, first_line + line, first_depth, full);
        }
    }
}

/// One thread loads all stages of all parts, each as soon as it is empty.
template <u32 form, u32 tile_rows, u32 tile_columns, u32 stages>
DEVICE void load_parts(const MappedProduct& args, u8* ring, u64* full, u64* empty) {
    using Tile = Tiling<tile_rows, tile_columns, stages>;
    Turn turn = {0, 0};
    for_own_parts<tile_rows, tile_columns>(args.product, [&](const Part& part, u32 steps) {
        for (u32 step = 0; step < steps; ++step) {
            u8* stage = ring + turn.stage * Tile::STAGE_BYTES;
            u64* barrier = full + turn.stage;
            u32 depth = part.first_depth + step * DEPTH;
            barrier_wait(empty + turn.stage, 1 - turn.parity);
            barrier_expect(barrier, Tile::STAGE_BYTES);
            load_operand<form != TN, tile_rows>(stage, &args.a, part.first_row, depth, barrier);
            load_operand<form == NT, tile_columns>(stage + Tile::A_BYTES, &args.b, part.first_column, depth, barrier);
            advance<stages>(turn);
        }
    });
}

/// Makes zeros of the lines from `first` on in all boxes of a stage of so many bytes. All threads that multiply call
/// it before any of them does.
DEVICE void clear_lines(u8* stage, u32 bytes, u32 first) {
    const u32 packs = (DEPTH - first) * LINE_BYTES / sizeof(Pack);
    for (u32 box = 0; box < bytes; box += BOX_BYTES) {
        Pack* lines = reinterpret_cast<Pack*>(stage + box + first * LINE_BYTES);
        for (u32 i = thread_index() - GROUP_THREADS; i < packs; i += MULTIPLYING * GROUP_THREADS) lines[i] = {};
    }
    fence_async_shared();
    sync_threads_of(BARRIER_OF_ALL, MULTIPLYING * GROUP_THREADS);
}

/// Finishes this warpgroup's half of a tile, which begins at the part's first row and column, and writes it.
///
/// Each warp stages 64 columns of its 16 rows at a time; a lane then takes eight neighbours of every fourth row, as
/// the portable kernels do. What is read beside the product is on its way while the eight before is worked on.
template <u32 columns, class T>
DEVICE void finish_half(const Product& args, const Part& part, const f32 (&sums)[columns / 2], u8* staging) {
    constexpr u32 PIECES = WARP_ROWS / 4;
    if (part.first_row >= part.rows) return;
    const u32 warp = warp_index() - GROUP_THREADS / 32, lane = lane_index();
    f32* staged = reinterpret_cast<f32*>(staging + warp * STAGED_BYTES);
    const u32 first_row = part.first_row + warp % 4 * WARP_ROWS + lane / 8, eight = lane % 8;
    T* c = static_cast<T*>(args.c) + static_cast<u64>(part.slice) * part.rows * args.columns;
    const T* other = static_cast<const T*>(args.other);

    auto row_of = [&](u32 piece) { return first_row + piece % PIECES * 4; };
    auto column_of = [&](u32 piece) { return part.first_column + piece / PIECES * STAGED_COLUMNS + 8 * eight; };
    auto read = [&](u32 piece) {
        const u32 row = row_of(piece), column = column_of(piece);
        if (!other || row >= part.rows) return Eight<T>{};
        return read_eight<true>(other + static_cast<u64>(row) * args.columns, column, args.columns);
    };

    // A lane's column sums of 64 columns, and of those whose number is lane / 8 the warp's.
    f32 bias[8] = {}, column_sums[8] = {}, kept[8] = {};
    Eight<T> next = read(0);
    ROLLED for (u32 piece = 0; piece < columns / STAGED_COLUMNS * PIECES; ++piece) {
        const u32 row = row_of(piece), column = column_of(piece);
        if (piece % PIECES == 0) {
            sync_warp();
            UNROLL for (u32 i = 0; i < columns / 2; i += 2) {
                if (i / 32 != piece / PIECES) continue;
                const u32 staged_row = lane / 4 + i / 2 % 2 * 8, staged_column = i % 32 / 4 * 8 + lane % 4 * 2;
                Two two = {{sums[i], sums[i + 1]}};
                *reinterpret_cast<Two*>(staged + staged_place<STAGED_COLUMNS>(staged_row, staged_column)) = two;
            }
            sync_warp();
            if (args.bias) unpack(bias, read_eight<false>(args.bias, column, args.columns));
        }
        f32 beside[8];
        unpack(beside, next);
        if (piece + 1 < columns / STAGED_COLUMNS * PIECES) next = read(piece + 1);

        if (row < part.rows && column < args.columns) {
            f32 values[8];
            UNROLL for (u32 half = 0; half < 2; ++half) {
                u32 from = staged_place<STAGED_COLUMNS>(lane / 8 + piece % PIECES * 4, 8 * eight + 4 * half);
                Four four = *reinterpret_cast<const Four*>(staged + from);
                UNROLL for (u32 i = 0; i < 4; ++i) values[4 * half + i] = four.values[i] + bias[4 * half + i];
            }
            auto write = [&](T* row_start, const f32 (&eights)[8]) {
                write_eight<true>(row_start, column, args.columns, eights);
            };
            finish_eight<T>(args, row, column, values, beside, column_sums, write);
            write(c + static_cast<u64>(row) * args.columns, values);
        }
        if (args.sums && piece % PIECES + 1 == PIECES) {
            UNROLL for (u32 i = 0; i < 8; ++i) {
                f32 sum = column_sums[i] + shuffle_xor(column_sums[i], 8);
                sum += shuffle_xor(sum, 16);
                if (lane / 8 == piece / PIECES) kept[i] = sum;
                column_sums[i] = 0.0f;
            }
        }
    }

    if (args.sums) {
        const u32 group = warp / 4, thread = thread_index() % GROUP_THREADS;
        sync_warp();
        UNROLL for (u32 i = 0; i < 8; ++i) staged[8 * lane + i] = kept[i];
        sync_threads_of(BARRIER_OF_GROUP + group, GROUP_THREADS);
        f32* out = args.sums + static_cast<u64>(part.first_row / 64) * args.columns;
        for (u32 own = thread; own < columns && part.first_column + own < args.columns; own += GROUP_THREADS) {
            f32 sum = 0.0f;
            for (u32 other_warp = 4 * group; other_warp < 4 * group + 4; ++other_warp) {
                sum += reinterpret_cast<const f32*>(staging + other_warp * STAGED_BYTES)[own];
            }
            out[part.first_column + own] = sum;
        }
        sync_threads_of(BARRIER_OF_GROUP + group, GROUP_THREADS);
    }
}

/// An operand's lines from `lines` on, from `deep` of the stage's depth on.
template <bool transposed>
DEVICE u64 descriptor_at(const u8* lines, u32 deep) {
    if constexpr (transposed) return matrix_descriptor(lines + deep * LINE_BYTES, BOX_BYTES, 8 * LINE_BYTES);
    return matrix_descriptor(lines + deep * sizeof(bf16), 16, 8 * LINE_BYTES);
}

/// A warpgroup multiplies its half of all tiles, and finishes them. One group of products is always under way: a stage
/// is given back when those of the next have been started.
template <u32 form, u32 tile_rows, u32 tile_columns, u32 stages>
DEVICE void multiply_parts(const MappedProduct& args, u8* ring, u64* full, u64* empty) {
    using Tile = Tiling<tile_rows, tile_columns, stages>;
    constexpr bool TRANSPOSE_A = form == TN, TRANSPOSE_B = form != NT;
    constexpr u32 COLUMNS = Tile::COLUMNS;
    const u32 group = warp_index() / 4 - 1;
    const bool leads = thread_index() % GROUP_THREADS == 0;
    const u32 own_row = tile_rows == 128 ? 64 * group : 0, own_column = tile_rows == 128 ? 0 : COLUMNS * group;
    Turn turn = {0, 0};
    for_own_parts<tile_rows, tile_columns>(args.product, [&](const Part& part, u32 steps) {
        f32 sums[COLUMNS / 2];
        u64* before = nullptr;
        for (u32 step = 0; step < steps; ++step) {
            u8* stage = ring + turn.stage * Tile::STAGE_BYTES;
            barrier_wait(full + turn.stage, turn.parity);
            if constexpr (form == TN) {
                const u32 left = part.end_of_depth - part.first_depth - step * DEPTH;
                if (left < DEPTH) clear_lines(stage, Tile::STAGE_BYTES, left);
            }
            const u8 *a = stage + own_row * LINE_BYTES, *b = stage + Tile::A_BYTES + own_column * LINE_BYTES;
            wgmma_fence();
            UNROLL for (u32 deep = 0; deep < DEPTH; deep += 16) {
                u64 of_a = descriptor_at<TRANSPOSE_A>(a, deep), of_b = descriptor_at<TRANSPOSE_B>(b, deep);
                wgmma<COLUMNS, TRANSPOSE_A, TRANSPOSE_B>(sums, of_a, of_b, step > 0 || deep > 0);
            }
            wgmma_commit();
            if (before) {
                wgmma_wait<1>();
                if (leads) barrier_arrive(before);
            }
            before = empty + turn.stage;
            advance<stages>(turn);
        }
        wgmma_wait<0>();
        wgmma_done(sums);
        if (leads) barrier_arrive(before);

        Part half = part;
        half.first_row += own_row;
        half.first_column += own_column;
        u8* staging = ring + Tile::RING_BYTES;
        if (args.product.c_is_bf16) {
            finish_half<COLUMNS, bf16>(args.product, half, sums, staging);
        } else {
            finish_half<COLUMNS, f32>(args.product, half, sums, staging);
        }
    });
}

template <u32 form, u32 tile_rows, u32 tile_columns, u32 stages>
DEVICE void multiply(const MappedProduct& args) {
    u8* ring = aligned_shared_memory();
    u64* full = reinterpret_cast<u64*>(ring + Tiling<tile_rows, tile_columns, stages>::BARRIERS_AT);
    u64* empty = full + stages;
    if (thread_index() == 0) {
        prefetch_map(&args.a);
        prefetch_map(&args.b);
        for (u32 stage = 0; stage < stages; ++stage) {
            barrier_init(full + stage, 1);
            barrier_init(empty + stage, MULTIPLYING);
        }
        fence_barrier_init();
    }
    sync_block();
    if (thread_index() < GROUP_THREADS) {
        set_registers_down<FEW_REGISTERS>();
        if (thread_index() == 0) load_parts<form, tile_rows, tile_columns, stages>(args, ring, full, empty);
    } else {
        set_registers_up<MANY_REGISTERS>();
        multiply_parts<form, tile_rows, tile_columns, stages>(args, ring, full, empty);
    }
}

#define PRODUCT(name, form, rows, columns, stages)                                                                 \
    KERNEL_WITH_MAPS(name, MappedProduct, BLOCK_THREADS, 1) { multiply<form, rows, columns, stages>(args); }

PRODUCT(hopper_gemm_nt_128x256, NT, 128, 256, 4)
PRODUCT(hopper_gemm_nn_128x256, NN, 128, 256, 4)
PRODUCT(hopper_gemm_tn_128x256, TN, 128, 256, 4)
PRODUCT(hopper_gemm_nt_128x192, NT, 128, 192, 4)
PRODUCT(hopper_gemm_nn_128x192, NN, 128, 192, 4)
PRODUCT(hopper_gemm_tn_128x192, TN, 128, 192, 4)
PRODUCT(hopper_gemm_nt_128x128, NT, 128, 128, 6)
PRODUCT(hopper_gemm_nn_128x128, NN, 128, 128, 6)
PRODUCT(hopper_gemm_tn_128x128, TN, 128, 128, 6)
PRODUCT(hopper_gemm_nt_64x128, NT, 64, 128, 8)
PRODUCT(hopper_gemm_nn_64x128, NN, 64, 128, 8)
PRODUCT(hopper_gemm_tn_64x128, TN, 64, 128, 8)
