// Tiles of attention's operands in shared memory, rows of one head, and their products on tensor cores.
#pragma once
#include "prelude.cuh"

constexpr u32 THREADS = 128;
/// Rows that a warp owns: those of the products' left operand.
constexpr u32 WARP_ROWS = 16;

/// Where eight columns of a row of `size` lie. The chunks of 16 bytes are permuted within each row so that the same
/// chunk of eight rows lies in all banks.
template <u32 size>
DEVICE u8* chunk_at(u8* tile, u32 row, u32 chunk) {
    constexpr u32 period = size < 64 ? size / 8 : 8;
    return tile + row * (size * sizeof(bf16)) + (chunk ^ row / (8 / period) % period) * 16;
}

/// Starts to load rows `first` to `first + count` of a matrix whose rows are `stride` apart; zeros beyond `rows`.
template <u32 size, u32 count>
DEVICE void load_tile(u8* tile, const bf16* matrix, u32 stride, u32 first, u32 rows) {
    constexpr u32 CHUNKS = size / 8, STEP = THREADS / CHUNKS;
    u32 row = thread_index() / CHUNKS, chunk = thread_index() % CHUNKS;
    const bf16* from = matrix + static_cast<u64>(first + row) * stride + 8 * chunk;
    UNROLL for (u32 i = 0; i < count; i += STEP) {
        copy_async(chunk_at<size>(tile, row + i, chunk), from, first + row + i < rows);
        from += STEP * stride;
    }
}

/// `sums += a b^T`: a the warp's 16 rows of a tile from `row`, b a tile of `columns` rows.
template <u32 size, u32 columns>
DEVICE void add_products(f32 (&sums)[columns / 8][4], u8* a, u32 row, u8* b) {
    u32 lane = lane_index();
    UNROLL for (u32 k = 0; k < size / 16; ++k) {
        u32 left[4], right[4];
        load_matrices(left, chunk_at<size>(a, row + lane % 16, 2 * k + lane / 16));
        UNROLL for (u32 n = 0; n < columns / 16; ++n) {
            load_matrices(right, chunk_at<size>(b, 16 * n + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
            multiply_add(sums[2 * n], left, right[0], right[1]);
            multiply_add(sums[2 * n + 1], left, right[2], right[3]);
        }
    }
}

/// `sums += weights b`: weights `[16, columns]`, b a tile of `columns` rows. Sums of one product are laid out as
/// the left operand of the next, so weights need no exchange between lanes.
template <u32 size, u32 columns>
DEVICE void add_weighted(f32 (&sums)[size / 8][4], const f32 (&weights)[columns / 8][4], u8* b) {
    u32 lane = lane_index();
    UNROLL for (u32 k = 0; k < columns / 16; ++k) {
        const f32(&low)[4] = weights[2 * k], (&high)[4] = weights[2 * k + 1];
        u32 right[4], left[4] = {pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]), pack_bf16(high[0], high[1]),
                                 pack_bf16(high[2], high[3])};
        UNROLL for (u32 n = 0; n < size / 16; ++n) {
            load_matrices_transposed(right, chunk_at<size>(b, 16 * k + lane % 16, 2 * n + lane / 16));
            multiply_add(sums[2 * n], left, right[0], right[1]);
            multiply_add(sums[2 * n + 1], left, right[2], right[3]);
        }
    }
}

/// Stores the warp's 16 rows, each times its factor, as rows `first` on of a matrix whose rows are `stride` apart,
/// none beyond `rows`. They pass through the warp's own rows of a tile, from `row`, to be written in whole lines.
template <u32 size>
DEVICE void store_rows(const f32 (&sums)[size / 8][4], const f32 (&factors)[2], u8* tile, u32 row, bf16* matrix,
                       u32 stride, u32 first, u32 rows) {
    u32 lane = lane_index();
    UNROLL for (u32 n = 0; n < size / 8; ++n) {
        UNROLL for (u32 half = 0; half < 2; ++half) {
            u8* at = chunk_at<size>(tile, row + lane / 4 + 8 * half, n) + lane % 4 * 4;
            *reinterpret_cast<u32*>(at) =
                pack_bf16(sums[n][2 * half] * factors[half], sums[n][2 * half + 1] * factors[half]);
        }
    }
    sync_warp();
    UNROLL for (u32 step = 0; step < WARP_ROWS * size / 8 / 32; ++step) {
        u32 index = step * 32 + lane, i = index / (size / 8), chunk = index % (size / 8);
        if (first + i < rows) {
            *reinterpret_cast<Pack*>(matrix + static_cast<u64>(first + i) * stride + 8 * chunk) =
                *reinterpret_cast<const Pack*>(chunk_at<size>(tile, row + i, chunk));
        }
    }
}
