// What the losses have in common: the softmax of a row of logits, and sums over a block.
#pragma once
#include "prelude.cuh"

/// Threads of blocks whose warps have a row of few logits each, of those that have a row of many together, and of the
/// block that takes a mean.
constexpr u32 FEW = 128, MANY = 512, MEAN = 512;

DEVICE f32 minus_infinity() { return bits_to_f32(0xff800000u); }
DEVICE f32 not_a_number() { return bits_to_f32(0x7fc00000u); }

/// What is known of some logits: the largest, and the sum of all `exp(logit - largest)`.
struct Softmax {
    f32 largest;
    f32 sum;
};

/// What exponents are taken relative to; a difference of infinities would be no number.
DEVICE f32 base_of(f32 largest) { return largest == minus_infinity() ? 0.0f : largest; }

/// The same of both together.
DEVICE Softmax join(Softmax left, Softmax right) {
    f32 largest = fmaxf(left.largest, right.largest), base = base_of(largest);
    return {largest, left.sum * expf(left.largest - base) + right.sum * expf(right.largest - base)};
}

/// The softmax of `count` logits times `gamma`, each `stride` after the last, which `warps` warps look through once, in
/// steps of eight for loads to overlap; the same in all of their threads. Across warps it goes by `of_warps` `[warps]`.
template <u32 warps>
DEVICE Softmax softmax(const f32* logits, u32 count, f32 gamma, Softmax* of_warps, u32 stride = 1) {
    constexpr u32 threads = 32 * warps, batch = 8;
    Softmax own = {minus_infinity(), 0.0f};
    for (u32 first = thread_index() % threads; first < count; first += batch * threads) {
        f32 values[batch];
        UNROLL for (u32 i = 0; i < batch; ++i)
            values[i] =
                first + i * threads < count ? gamma * logits[(first + i * threads) * stride] : minus_infinity();
        f32 largest = own.largest;
        UNROLL for (u32 i = 0; i < batch; ++i) largest = fmaxf(largest, values[i]);
        f32 base = base_of(largest), sum = own.sum * expf(own.largest - base);
        UNROLL for (u32 i = 0; i < batch; ++i) sum += expf(values[i] - base);
        own = {largest, sum};
    }
    UNROLL for (u32 mask = 16; mask > 0; mask /= 2)
        own = join(own, {shuffle_xor(own.largest, mask), shuffle_xor(own.sum, mask)});
    // Left and right differ among lanes, and so may the last bit.
    own = {shuffle(own.largest, 0), shuffle(own.sum, 0)};
    if constexpr (warps > 1) {
        if (lane_index() == 0) of_warps[warp_index()] = own;
        sync_block();
        own = of_warps[0];
        UNROLL for (u32 warp = 1; warp < warps; ++warp) own = join(own, of_warps[warp]);
    }
    return own;
}

/// The sum over a block of `32 warps` threads, the same in all of them, by `of_warps` `[warps]`.
template <u32 warps>
DEVICE f64 block_sum(f64 value, f64* of_warps) {
    value = warp_sum(value);
    if (lane_index() == 0) of_warps[warp_index()] = value;
    sync_block();
    value = of_warps[0];
    UNROLL for (u32 warp = 1; warp < warps; ++warp) value += of_warps[warp];
    return value;
}
