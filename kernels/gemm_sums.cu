// Sums that products leave over, each in a fixed order.
#include "product.cuh"

struct SliceSums {
    /// `[slices, count]`
    const f32* parts;
    /// `[count]`
    f32* out;
    const Step* step;
    /// Of the product: how many slices there are follows from it.
    Rows depth;
    u32 slices;
    u32 count;
    /// Whether to add to what is there.
    u32 add;
    u32 unused;
};

/// Adds up the slices of a product whose depth was cut.
KERNEL(sum_slices, SliceSums, 256, 4) {
    constexpr u32 EACH = 4;
    u32 depth = row_count(args.step, args.depth);
    u32 slices = depth == 0 ? 1 : ceiling_division(depth, slice_length(depth, args.slices));
    u64 first = static_cast<u64>(block_x()) * EACH * 256 + thread_index();
    f32 sums[EACH];
    UNROLL for (u32 i = 0; i < EACH; ++i) {
        u64 place = first + i * 256;
        sums[i] = args.add && place < args.count ? args.out[place] : 0.0f;
    }
    for (u32 slice = 0; slice < slices; ++slice) {
        const f32* part = args.parts + static_cast<u64>(slice) * args.count;
        UNROLL for (u32 i = 0; i < EACH; ++i) {
            u64 place = first + i * 256;
            sums[i] += place < args.count ? part[place] : 0.0f;
        }
    }
    UNROLL for (u32 i = 0; i < EACH; ++i) {
        u64 place = first + i * 256;
        if (place < args.count) args.out[place] = sums[i];
    }
}

struct ColumnSums {
    /// `[rows / unit rounded up, columns]`
    const void* x;
    /// `[blocks in y, columns]`
    f32* out;
    const Step* step;
    Rows rows;
    /// Rows of the batch that one row of x stands for.
    u32 unit;
    /// Rows of x that a block sums.
    u32 length;
    u32 columns;
    /// Whether to add to what is there.
    u32 add;
};

/// Sums the rows of 32 columns: each warp takes every eighth row, then the first adds up the warps.
template <class T>
DEVICE void column_sums(const ColumnSums& args) {
    constexpr u32 WARPS = 8;
    u32 rows = ceiling_division(row_count(args.step, args.rows), args.unit);
    u32 first = block_y() * args.length, end = min(first + args.length, rows);
    // The sum of no rows is 0, and the first block says so.
    if (first >= rows && block_y() > 0) return;
    u32 column = block_x() * 32 + lane_index();
    f32 sum = 0.0f;
    if (column < args.columns) {
        const T* x = static_cast<const T*>(args.x) + column;
        for (u32 row = first + warp_index(); row < end; row += WARPS) {
            sum += to_f32(x[static_cast<u64>(row) * args.columns]);
        }
    }
    f32* sums = reinterpret_cast<f32*>(shared_memory());
    sums[thread_index()] = sum;
    sync_block();
    if (warp_index() == 0 && column < args.columns) {
        f32* out = args.out + static_cast<u64>(block_y()) * args.columns + column;
        f32 total = 0.0f;
        UNROLL for (u32 warp = 0; warp < WARPS; ++warp) total += sums[32 * warp + lane_index()];
        *out = args.add ? *out + total : total;
    }
}

KERNEL(column_sums_f32, ColumnSums, 256, 4) { column_sums<f32>(args); }
KERNEL(column_sums_bf16, ColumnSums, 256, 4) { column_sums<bf16>(args); }
