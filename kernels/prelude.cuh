// What every kernel starts with: types, the step's state, and wrappers for the instructions that C++ has no words for.
//
// No header is included, so that NVRTC needs no include path. The same sources are compiled for the host by the tests,
// with `MTDNN_HOST` defined: `tests/emulation/emulation.h` then defines what stands under "the machine" below, with
// one fiber a thread.
//
// A kernel is written `KERNEL(name, Arguments, threads, blocks) { ... args.x ... }`: it takes one struct by value,
// runs in blocks of `threads`, and at least `blocks` of them are to fit a multiprocessor. Shared memory is all dynamic.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef float f32;
typedef double f64;

/// A bfloat16: the upper half of an f32.
struct bf16 {
    u16 bits;
};

/// Sixteen bytes, moved by one instruction.
struct alignas(16) Pack {
    u32 words[4];
};

#ifdef MTDNN_HOST
#include "emulation.h"
#else

// ---- the machine -------------------------------------------------------------------------------------------------

#define DEVICE static __device__ __forceinline__
#define KERNEL(name, Arguments, threads, blocks)                                                                       \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const Arguments args)
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")

/// The block's dynamic shared memory, aligned to 128 bytes.
DEVICE u8* shared_memory() {
    extern __shared__ __align__(128) u8 shared_bytes[];
    return shared_bytes;
}

DEVICE u32 thread_index() { return threadIdx.x; }
DEVICE u32 block_x() { return blockIdx.x; }
DEVICE u32 block_y() { return blockIdx.y; }
DEVICE u32 block_z() { return blockIdx.z; }
DEVICE u32 grid_x() { return gridDim.x; }

/// All threads of the block arrive before any goes on; what they wrote to memory is seen by all.
DEVICE void sync_block() { __syncthreads(); }
/// The same among the 32 threads of a warp.
DEVICE void sync_warp() { __syncwarp(); }

DEVICE f32 shuffle_xor(f32 value, u32 mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE f64 shuffle_xor(f64 value, u32 mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE u32 shuffle_xor(u32 value, u32 mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE f32 shuffle(f32 value, u32 lane) { return __shfl_sync(0xffffffffu, value, lane); }
DEVICE u32 shuffle(u32 value, u32 lane) { return __shfl_sync(0xffffffffu, value, lane); }

/// 2^x to about 2 units in the last place; 0 for minus infinity.
DEVICE f32 exp2_fast(f32 x) {
    f32 y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/// 1 / x to 1 unit in the last place; subnormal numbers count as 0.
DEVICE f32 reciprocal_fast(f32 x) {
    f32 y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/// Rounds to nearest, ties to even.
DEVICE bf16 to_bf16(f32 x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

/// Two bf16 in one word: `low` in its lower half, which comes first in memory.
DEVICE u32 pack_bf16(f32 low, f32 high) {
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

DEVICE f32 bits_to_f32(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 f32_to_bits(f32 x) { return __float_as_uint(x); }
DEVICE u32 multiply_high(u32 a, u32 b) { return __umulhi(a, b); }

/// Starts to copy 16 bytes from global to shared memory, or zeros if not `valid`; both addresses are multiples of 16.
/// An address that is not valid is never read.
DEVICE void copy_async(void* shared, const void* global, bool valid) {
    u32 to = static_cast<u32>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid ? 16 : 0) : "memory");
}
/// Closes this thread's group of copies.
DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until all but the latest `pending` groups of this thread have landed; a barrier makes them seen by others.
template <int pending>
DEVICE void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

/// Four 8 x 8 matrices of bf16: lane `8 i + r` names row `r` (16 bytes) of matrix `i`; each lane gets of matrix `i`,
/// in `to[i]`, row `lane / 4`, columns `2 (lane % 4)` and the next.
DEVICE void load_matrices(u32 (&to)[4], const void* row) {
    u32 from = static_cast<u32>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
}
/// The same with each matrix transposed.
DEVICE void load_matrices_transposed(u32 (&to)[4], const void* row) {
    u32 from = static_cast<u32>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
}

/// `d += a b` by a warp: a `[16, 16]` row-major, b `[16, 8]`, d `[16, 8]` (PTX `mma.sync.m16n8k16`).
///
/// With group = lane / 4 and pair = 2 (lane % 4): d[0..2] are row group, columns pair and pair + 1, d[2..4] row group + 8;
/// a[0] row group, columns pair and pair + 1; a[1] row group + 8; a[2] row group, columns pair + 8 and + 9; a[3] row
/// group + 8 of those; b[0] rows pair and pair + 1 of column group; b[1] rows pair + 8 and + 9.
DEVICE void multiply_add(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif

// ---- what is built on it -----------------------------------------------------------------------------------------

/// What changes from step to step; lies in device memory, so that one captured graph serves all steps.
/// `src/backend/cuda/launch.rs` has its twin.
struct Step {
    u32 tokens;
    u32 sequences;
    u32 groups;
    u32 predictions;
    /// The number of the step, part of every draw's counter.
    u32 step;
    /// The run's seed, the key of every draw.
    u32 seed[2];
    u32 unused;
};

/// The number of rows of an operand: `fixed`, or one of the batch's extents.
struct Rows {
    /// 0 fixed, 1 tokens, 2 sequences, 3 groups, 4 predictions.
    u32 kind;
    u32 fixed;
};

DEVICE u32 row_count(const Step* step, Rows rows) {
    switch (rows.kind) {
        case 1: return step->tokens;
        case 2: return step->sequences;
        case 3: return step->groups;
        case 4: return step->predictions;
        default: return rows.fixed;
    }
}

/// One dropout site.
struct Dropout {
    /// A 16-bit draw below it drops the element; 0 turns the site off.
    u32 threshold;
    u32 site;
    /// What kept elements are multiplied by.
    f32 scale;
};

DEVICE f32 to_f32(bf16 x) { return bits_to_f32(static_cast<u32>(x.bits) << 16); }
DEVICE f32 to_f32(f32 x) { return x; }
DEVICE f32 low_bf16(u32 word) { return bits_to_f32(word << 16); }
DEVICE f32 high_bf16(u32 word) { return bits_to_f32(word & 0xffff0000u); }
DEVICE void store(f32* at, f32 x) { *at = x; }
DEVICE void store(bf16* at, f32 x) { *at = to_bf16(x); }

DEVICE u32 lane_index() { return thread_index() % 32; }
DEVICE u32 warp_index() { return thread_index() / 32; }
DEVICE u32 ceiling_division(u32 a, u32 b) { return (a + b - 1) / b; }

/// The sum over the warp, the same in every lane.
template <class T>
DEVICE T warp_sum(T value) {
    UNROLL for (u32 mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}
DEVICE f32 warp_max(f32 value) {
    UNROLL for (u32 mask = 16; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
    return value;
}

/// Philox4x32-10 (Salmon et al. 2011).
DEVICE void philox(u32 (&counter)[4], u32 key0, u32 key1) {
    UNROLL for (i32 round = 0; round < 10; ++round) {
        u32 low_even = 0xD2511F53u * counter[0], high_even = multiply_high(0xD2511F53u, counter[0]);
        u32 low_odd = 0xCD9E8D57u * counter[2], high_odd = multiply_high(0xCD9E8D57u, counter[2]);
        counter[0] = high_odd ^ counter[1] ^ key0;
        counter[1] = low_odd;
        counter[2] = high_even ^ counter[3] ^ key1;
        counter[3] = low_even;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

/// The draws of columns `8 block` to `8 block + 7` of the row `key`: two in each word, the earlier in the lower half.
/// `head` is 0 but for attention probabilities. The same bits as the CPU's.
DEVICE void draw_eight(u32 (&words)[4], const Step* step, Dropout dropout, u32 head, u32 key, u32 block) {
    words[0] = block;
    words[1] = key;
    words[2] = dropout.site << 8 | head;
    words[3] = step->step;
    philox(words, step->seed[0], step->seed[1]);
}

/// The factor of column `column % 8` among eight draws: the scale where it is kept, else 0.
DEVICE f32 keep_factor(const u32 (&words)[4], Dropout dropout, u32 column) {
    u32 word = words[column % 8 / 2];
    u32 draw = column % 2 == 0 ? word & 0xffffu : word >> 16;
    return draw >= dropout.threshold ? dropout.scale : 0.0f;
}

// ---- rows in pieces of eight columns, which one block of draws covers ------------------------------------------

/// Multiplies columns `8 block` to `8 block + 7` of the row `key` by what the site keeps of them.
DEVICE void drop_eight(f32 (&values)[8], const Step* step, Dropout dropout, u32 key, u32 block) {
    u32 words[4];
    draw_eight(words, step, dropout, 0, key, block);
    UNROLL for (u32 i = 0; i < 8; ++i) values[i] *= keep_factor(words, dropout, i);
}

/// Eight neighbouring elements as they lie in memory: 16 bytes of bf16, 32 of f32.
template <class T>
struct Eight {
    Pack packs[sizeof(T) / 2];
};

DEVICE void unpack(f32 (&to)[8], const Eight<bf16>& from) {
    UNROLL for (u32 i = 0; i < 4; ++i) {
        to[2 * i] = low_bf16(from.packs[0].words[i]);
        to[2 * i + 1] = high_bf16(from.packs[0].words[i]);
    }
}
DEVICE void unpack(f32 (&to)[8], const Eight<f32>& from) {
    UNROLL for (u32 i = 0; i < 8; ++i) to[i] = bits_to_f32(from.packs[i / 4].words[i % 4]);
}
DEVICE void pack(Eight<bf16>& to, const f32 (&from)[8]) {
    UNROLL for (u32 i = 0; i < 4; ++i) to.packs[0].words[i] = pack_bf16(from[2 * i], from[2 * i + 1]);
}
DEVICE void pack(Eight<f32>& to, const f32 (&from)[8]) {
    UNROLL for (u32 i = 0; i < 8; ++i) to.packs[i / 4].words[i % 4] = f32_to_bits(from[i]);
}

/// Columns `column` to `column + 7` of a row of `cols`, zeros beyond its end. `whole` says that eights end where
/// the row does and start at multiples of 16 bytes: they are then moved by packs, else element by element.
template <bool whole, class T>
DEVICE Eight<T> read_eight(const T* row, u32 column, u32 cols) {
    Eight<T> eight = {};
    if constexpr (whole) {
        const Pack* from = reinterpret_cast<const Pack*>(row + column);
        if (column < cols) {
            UNROLL for (u32 i = 0; i < sizeof(T) / 2; ++i) eight.packs[i] = from[i];
        }
    } else {
        f32 values[8];
        UNROLL for (u32 i = 0; i < 8; ++i) values[i] = column + i < cols ? to_f32(row[column + i]) : 0.0f;
        pack(eight, values);
    }
    return eight;
}
/// Writes them, but for those beyond the end of the row.
template <bool whole, class T>
DEVICE void write_eight(T* row, u32 column, u32 cols, const f32 (&values)[8]) {
    if constexpr (whole) {
        Eight<T> eight;
        pack(eight, values);
        Pack* to = reinterpret_cast<Pack*>(row + column);
        if (column < cols) {
            UNROLL for (u32 i = 0; i < sizeof(T) / 2; ++i) to[i] = eight.packs[i];
        }
    } else {
        UNROLL for (u32 i = 0; i < 8; ++i) {
            if (column + i < cols) store(row + column + i, values[i]);
        }
    }
}
/// Stores them, or adds them to what is there.
template <bool whole, class T>
DEVICE void sink_eight(T* row, u32 column, u32 cols, const f32 (&values)[8], bool add) {
    f32 sums[8] = {};
    if (add) unpack(sums, read_eight<whole>(row, column, cols));
    UNROLL for (u32 i = 0; i < 8; ++i) sums[i] += values[i];
    write_eight<whole>(row, column, cols, sums);
}
