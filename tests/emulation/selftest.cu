// Kernels for the tests of the emulation: some are right, each of the others has one fault that must be found.
#include "prelude.cuh"

/// What all of them take; each says what it makes of it.
struct Selftest {
    const void* a;
    const void* b;
    void* out;
    const Step* step;
    u32 count;
};

// ---- right ------------------------------------------------------------------------------------------------------

/// out[grid, 64] = each block's part of a[grid, 64], backwards.
KERNEL(reverse_blocks, Selftest, 64, 1) {
    u32* shared = reinterpret_cast<u32*>(shared_memory());
    u32 start = ((block_z() * 2 + block_y()) * grid_x() + block_x()) * 64;
    shared[thread_index()] = static_cast<const u32*>(args.a)[start + thread_index()];
    sync_block();
    static_cast<u32*>(args.out)[start + thread_index()] = shared[63 - thread_index()];
}

/// out[64, 6] of a[64]: a sum and a maximum of the warp, its sum in f64, what lane 5 has, what the lane 3 further
/// has as a number and as bits.
KERNEL(shuffles, Selftest, 64, 1) {
    u32 thread = thread_index();
    f32 x = static_cast<const f32*>(args.a)[thread];
    f32* out = static_cast<f32*>(args.out) + thread * 6;
    out[0] = warp_sum(x);
    out[1] = warp_max(x);
    out[2] = static_cast<f32>(warp_sum(static_cast<f64>(x)));
    out[3] = shuffle(x, 5);
    out[4] = shuffle(x, (lane_index() + 3) % 32);
    out[5] = bits_to_f32(shuffle(f32_to_bits(x), (lane_index() + 3) % 32));
}

/// out[16, 8] = a[16, 16] b, where b is `[16, 8]`, or transposed `[8, 16]`.
template <bool transposed>
DEVICE void multiply(const Selftest& args) {
    u32 lane = lane_index();
    u32 matrix = lane / 8, row = lane % 8;
    bf16* shared_a = reinterpret_cast<bf16*>(shared_memory());
    bf16* shared_b = shared_a + 16 * 16;
    const Pack* from_a = static_cast<const Pack*>(args.a);
    const Pack* from_b = static_cast<const Pack*>(args.b);
    reinterpret_cast<Pack*>(shared_a)[lane] = from_a[lane];
    if (lane < 16) reinterpret_cast<Pack*>(shared_b)[lane] = from_b[lane];
    sync_warp();
    u32 a[4], b[4];
    load_matrices(a, shared_a + (matrix % 2 * 8 + row) * 16 + matrix / 2 * 8);
    // Of b two matrices are used; the lanes of the other two name the same rows.
    if constexpr (transposed) {
        load_matrices(b, shared_b + row * 16 + matrix % 2 * 8);
    } else {
        load_matrices_transposed(b, shared_b + (matrix % 2 * 8 + row) * 8);
    }
    f32 d[4] = {};
    multiply_add(d, a, b[0], b[1]);
    multiply_add(d, a, b[2], b[3]);
    f32* out = static_cast<f32*>(args.out);
    for (u32 part = 0; part < 4; ++part) {
        out[(lane / 4 + part / 2 * 8) * 8 + lane % 4 * 2 + part % 2] = d[part] / 2;
    }
}
KERNEL(multiply_plain, Selftest, 32, 1) { multiply<false>(args); }
KERNEL(multiply_transposed, Selftest, 32, 1) { multiply<true>(args); }

/// out[32, 4, 4]: the matrices a[4, 8, 8] as the lanes get them, as they are or transposed.
template <bool transposed>
DEVICE void fetch(const Selftest& args) {
    Pack* shared = reinterpret_cast<Pack*>(shared_memory());
    shared[lane_index()] = static_cast<const Pack*>(args.a)[lane_index()];
    sync_warp();
    u32 got[4];
    if (transposed) {
        load_matrices_transposed(got, shared + lane_index());
    } else {
        load_matrices(got, shared + lane_index());
    }
    for (u32 matrix = 0; matrix < 4; ++matrix) {
        static_cast<u32*>(args.out)[lane_index() * 4 + matrix] = got[matrix];
    }
}
KERNEL(fetch_plain, Selftest, 32, 1) { fetch<false>(args); }
KERNEL(fetch_transposed, Selftest, 32, 1) { fetch<true>(args); }

/// out[32, 4]: the draws of eight columns, for block `thread`, row `count` and head 3 of the site 5.
KERNEL(draws, Selftest, 32, 1) {
    u32 words[4];
    draw_eight(words, args.step, Dropout{0, 5, 1.0f}, 3, args.count, thread_index());
    for (u32 word = 0; word < 4; ++word) static_cast<u32*>(args.out)[thread_index() * 4 + word] = words[word];
}

/// out[count]: the bf16 nearest to each a[count] in the lower half, the same made by `pack_bf16` in the upper half.
KERNEL(roundings, Selftest, 256, 1) {
    const f32* a = static_cast<const f32*>(args.a);
    u32* out = static_cast<u32*>(args.out);
    for (u32 at = thread_index(); at < args.count; at += 256) {
        out[at] = to_bf16(a[at]).bits | (pack_bf16(0.0f, a[at]) & 0xffff0000u);
    }
}

/// out[count] = 2^a.
KERNEL(powers, Selftest, 32, 1) {
    for (u32 at = thread_index(); at < args.count; at += 32) {
        static_cast<f32*>(args.out)[at] = exp2_fast(static_cast<const f32*>(args.a)[at]);
    }
}

/// out[64 Packs] = a by asynchronous copies in two groups; the second is cut off after `count` packs, and zeros
/// follow. `pending` groups are left to land on their own.
template <int pending>
DEVICE void copy(const Selftest& args) {
    Pack* shared = reinterpret_cast<Pack*>(shared_memory());
    const Pack* from = static_cast<const Pack*>(args.a);
    u32 first = thread_index(), second = thread_index() + 32;
    copy_async(shared + first, from + first, true);
    copy_async_commit();
    copy_async(shared + second, second < args.count ? from + second : nullptr, second < args.count);
    copy_async_commit();
    copy_async_wait<1>();
    Pack early = shared[first];
    copy_async_wait<pending>();
    static_cast<Pack*>(args.out)[first] = early;
    static_cast<Pack*>(args.out)[second] = shared[second];
}
KERNEL(copies, Selftest, 32, 1) { copy<0>(args); }

// ---- faulty: other results in another order ---------------------------------------------------------------------

/// `reverse_blocks` without its barrier.
KERNEL(without_block_barrier, Selftest, 64, 1) {
    u32* shared = reinterpret_cast<u32*>(shared_memory());
    shared[thread_index()] = static_cast<const u32*>(args.a)[thread_index()];
    static_cast<u32*>(args.out)[thread_index()] = shared[63 - thread_index()];
}

/// Every lane reads what its neighbour has just written, but does not wait for it.
KERNEL(without_warp_barrier, Selftest, 32, 1) {
    u32* shared = reinterpret_cast<u32*>(shared_memory());
    shared[thread_index()] = static_cast<const u32*>(args.a)[thread_index()];
    static_cast<u32*>(args.out)[thread_index()] = shared[thread_index() ^ 1];
}

/// Shared memory is written again before the other warp has read it.
KERNEL(without_second_barrier, Selftest, 64, 1) {
    u32* shared = reinterpret_cast<u32*>(shared_memory());
    u32 sum = 0;
    for (u32 round = 0; round < 2; ++round) {
        shared[thread_index()] = static_cast<const u32*>(args.a)[thread_index()] + round;
        sync_block();
        sum += shared[63 - thread_index()];
    }
    static_cast<u32*>(args.out)[thread_index()] = sum;
}

/// Every block adds to what the block before it left.
KERNEL(across_blocks, Selftest, 32, 1) {
    u32* out = static_cast<u32*>(args.out);
    if (thread_index() == 0) out[0] = out[0] * 3 + block_x();
}

// ---- faulty: threads that do not come ---------------------------------------------------------------------------

KERNEL(early_return, Selftest, 64, 1) {
    if (thread_index() < args.count) return;
    sync_block();
}

KERNEL(barriers_of_two_kinds, Selftest, 64, 1) {
    if (warp_index() == 0 && lane_index() >= args.count) {
        sync_warp();
    } else {
        sync_block();
    }
}

KERNEL(shuffle_of_some, Selftest, 32, 1) {
    u32 got = 0;
    if (lane_index() != args.count) got = shuffle(lane_index(), 0u);
    static_cast<u32*>(args.out)[thread_index()] = got;
}

KERNEL(shuffle_from_beyond, Selftest, 32, 1) {
    static_cast<u32*>(args.out)[thread_index()] = shuffle_xor(thread_index(), args.count);
}

KERNEL(two_operations, Selftest, 32, 1) {
    f32 d[4] = {};
    u32 a[4] = {};
    if (lane_index() < args.count) {
        multiply_add(d, a, 0, 0);
    } else {
        sync_warp();
    }
}

// ---- faulty: memory ---------------------------------------------------------------------------------------------

/// Reads and writes the element `count`, which is beyond the others or before them.
KERNEL(read_beyond, Selftest, 32, 1) {
    const u32* a = static_cast<const u32*>(args.a);
    static_cast<u32*>(args.out)[0] = a[args.count];
}
KERNEL(write_beyond, Selftest, 32, 1) { static_cast<u32*>(args.out)[static_cast<i32>(args.count)] = 7; }

/// The same in shared memory, which starts or ends before that.
KERNEL(read_beyond_shared, Selftest, 32, 1) {
    static_cast<u32*>(args.out)[0] = reinterpret_cast<u32*>(shared_memory())[args.count];
}
KERNEL(write_beyond_shared, Selftest, 32, 1) { reinterpret_cast<u32*>(shared_memory())[args.count] = 7; }
KERNEL(write_before_shared, Selftest, 32, 1) { *(reinterpret_cast<u32*>(shared_memory()) - args.count) = 7; }

/// Shared memory that nobody wrote.
KERNEL(read_fresh_shared, Selftest, 32, 1) {
    static_cast<f32*>(args.out)[thread_index()] = reinterpret_cast<f32*>(shared_memory())[thread_index()];
}

KERNEL(copy_without_wait, Selftest, 32, 1) { copy<1>(args); }

/// A copy goes to where a value still is to be read.
KERNEL(copy_too_early, Selftest, 32, 1) {
    Pack* shared = reinterpret_cast<Pack*>(shared_memory()) + thread_index();
    *shared = static_cast<const Pack*>(args.a)[thread_index()];
    copy_async(shared, static_cast<const Pack*>(args.a) + thread_index(), true);
    copy_async_commit();
    static_cast<Pack*>(args.out)[thread_index()] = *shared;
    copy_async_wait<0>();
}

/// Copies between places that are `count` bytes off.
KERNEL(copy_from_off, Selftest, 32, 1) {
    copy_async(shared_memory(), static_cast<const u8*>(args.a) + args.count, true);
}
KERNEL(copy_to_off, Selftest, 32, 1) { copy_async(shared_memory() + args.count, args.a, true); }
KERNEL(matrices_from_off, Selftest, 32, 1) {
    u32 got[4];
    load_matrices(got, shared_memory() + args.count);
    static_cast<u32*>(args.out)[thread_index()] = got[0];
}

// ---- faulty: what C++ leaves undefined --------------------------------------------------------------------------

KERNEL(divide_by_zero, Selftest, 32, 1) {
    static_cast<u32*>(args.out)[0] = 7 / (args.count - static_cast<const u32*>(args.a)[0]);
}
template <class T>
DEVICE void move_from_off(const Selftest& args) {
    *static_cast<T*>(args.out) = *reinterpret_cast<const T*>(static_cast<const u8*>(args.a) + args.count);
}
KERNEL(misaligned_word, Selftest, 32, 1) { move_from_off<u32>(args); }
KERNEL(misaligned_pack, Selftest, 32, 1) { move_from_off<Pack>(args); }
KERNEL(index_beyond_registers, Selftest, 32, 1) {
    u32 registers[4] = {};
    for (u32 at = 0; at <= args.count; ++at) registers[at] = at;
    static_cast<u32*>(args.out)[0] = registers[static_cast<const u32*>(args.a)[0]];
}
DEVICE u32 deep(volatile u8* above, u32 depth) {
    volatile u8 frame[4096];
    frame[0] = *above;
    return depth == 0 ? frame[0] : deep(frame, depth - 1) + frame[0];
}
KERNEL(deep_stack, Selftest, 32, 1) {
    volatile u8 first = 0;
    static_cast<u32*>(args.out)[0] = deep(&first, args.count);
}
