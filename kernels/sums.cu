// The second stage of sums down columns: what blocks summed over their rows comes together in a fixed order.
// `src/backend/cuda/sums.rs` has the struct's twin.
#include "prelude.cuh"

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / 32;

struct PartialSums {
    /// `[parts, outputs, cols]`
    const f32* partials;
    /// `[cols]` each
    f32* out[2];
    /// Whether to add to what is there
    u32 add[2];
    u32 parts;
    u32 outputs;
    u32 cols;
    u32 unused;
};

/// A block sums 32 columns of one output: each warp every eighth part, then one warp the warps' sums. Parts of
/// zeros at the end change nothing, so that a launch for more rows than there are gives the same bits.
KERNEL(sum_partials, PartialSums, THREADS, 4) {
    f32* of_warps = reinterpret_cast<f32*>(shared_memory());
    u32 column = block_x() * 32 + lane_index(), output = block_y();
    f32 sum = 0.0f;
    if (column < args.cols) {
        const f32* from = args.partials + static_cast<u64>(output) * args.cols + column;
        for (u32 part = warp_index(); part < args.parts; part += WARPS)
            sum += from[static_cast<u64>(part) * args.outputs * args.cols];
    }
    of_warps[thread_index()] = sum;
    sync_block();
    if (warp_index() > 0 || column >= args.cols) return;
    UNROLL for (u32 warp = 1; warp < WARPS; ++warp) sum += of_warps[warp * 32 + lane_index()];
    f32* out = (output == 0 ? args.out[0] : args.out[1]) + column;
    u32 add = output == 0 ? args.add[0] : args.add[1];
    *out = add != 0 ? *out + sum : sum;
}
