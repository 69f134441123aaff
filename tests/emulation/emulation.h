// The host's meaning of the machine that `kernels/prelude.cuh` speaks to: every CUDA thread is a fiber, the blocks
// of a launch run one after another. `machine.h` has the machine itself.
//
// What a device would leave undefined is a failure with a message: a barrier or an operation of the warp that not
// all threads reach, an address beyond shared memory, a copy that is misaligned. What only shows now and then on a
// device is made to show: memory starts as NaN, an asynchronous copy lands when it is waited for and not before,
// and threads run in the order that the launch asks for, so that a missing barrier gives other results in another.
#pragma once

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

#include <type_traits>

namespace emulation {

/// The largest argument that every device takes.
constexpr u64 MOST_ARGUMENT_BYTES = 4096;

/// What the caller of a kernel gives; `tests/emulation/library.rs` has its twin.
struct Launch {
    u32 grid[3];
    u32 threads;
    /// Bytes of dynamic shared memory.
    u32 shared;
    /// The order of threads between barriers, and of blocks: 0 ascending, 1 descending, else a random one's seed.
    u32 order;
    const void* arguments;
    u64 argument_bytes;
    /// Where a failure is described, and the room there.
    char* message;
    u64 message_bytes;
    /// The address that a failure is about; 0 for none.
    u64 address;
};

/// What a running thread knows of itself.
struct Position {
    u32 thread;
    u32 block[3];
    u32 grid[3];
    u8* shared;
};

/// The thread that runs; null outside of kernels.
extern __thread Position* current __attribute__((tls_model("initial-exec")));

/// What a kernel is made for.
struct Kernel {
    const char* name;
    u32 threads;
    u64 argument_bytes;
    /// What the start of its shared memory is a multiple of.
    u64 alignment;
    /// What each thread does.
    void (*body)(const void* arguments);
};

/// Runs a kernel; 0, or 1 after a failure.
i32 run(Launch& launch, const Kernel& kernel);

void sync_block();
void sync_warp();
/// What lane `from` of the warp gives for `bits`.
u64 shuffle(u64 bits, u32 from);
void copy_async(void* shared, const void* global, bool valid);
void copy_async_commit();
void copy_async_wait(u32 pending);
void load_matrices(u32* to, const void* row, bool transposed);
void multiply_add(f32* d, const u32* a, u32 b0, u32 b1);

}  // namespace emulation

#define DEVICE static inline __attribute__((unused))
#define UNROLL
#define ROLLED
#define KERNEL(name, Arguments, threads, blocks) KERNEL_ALIGNED(name, Arguments, threads, blocks, 128)
#define KERNEL_ALIGNED(name, Arguments, threads, blocks, alignment)                                                \
    static __attribute__((noinline)) void name##_thread(const Arguments& args);                                    \
    extern "C" __attribute__((visibility("default"))) i32 name(emulation::Launch* launch) {                        \
        static_assert(std::is_trivially_copyable<Arguments>::value, "arguments are passed as bytes");              \
        static_assert(sizeof(Arguments) <= emulation::MOST_ARGUMENT_BYTES, "arguments are too large");             \
        static_assert((threads) % 32 == 0 && (threads) <= 1024 && (blocks) >= 1, "launch bounds");                 \
        auto body = [](const void* arguments) { name##_thread(*static_cast<const Arguments*>(arguments)); };       \
        return emulation::run(*launch, {#name, threads, sizeof(Arguments), alignment, body});                      \
    }                                                                                                              \
    static void name##_thread([[maybe_unused]] const Arguments& args)

DEVICE u8* shared_memory() { return emulation::current->shared; }
DEVICE u32 thread_index() { return emulation::current->thread; }
DEVICE u32 block_x() { return emulation::current->block[0]; }
DEVICE u32 block_y() { return emulation::current->block[1]; }
DEVICE u32 block_z() { return emulation::current->block[2]; }
DEVICE u32 grid_x() { return emulation::current->grid[0]; }

DEVICE void sync_block() { emulation::sync_block(); }
DEVICE void sync_warp() { emulation::sync_warp(); }

DEVICE f32 bits_to_f32(u32 bits) {
    f32 x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
DEVICE u32 f32_to_bits(f32 x) {
    u32 bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

DEVICE u32 shuffle(u32 value, u32 lane) { return static_cast<u32>(emulation::shuffle(value, lane)); }
DEVICE f32 shuffle(f32 value, u32 lane) { return bits_to_f32(shuffle(f32_to_bits(value), lane)); }
DEVICE u32 shuffle_xor(u32 value, u32 mask) { return shuffle(value, (thread_index() % 32) ^ mask); }
DEVICE f32 shuffle_xor(f32 value, u32 mask) { return shuffle(value, (thread_index() % 32) ^ mask); }
DEVICE f64 shuffle_xor(f64 value, u32 mask) {
    u64 bits;
    memcpy(&bits, &value, sizeof bits);
    bits = emulation::shuffle(bits, (thread_index() % 32) ^ mask);
    memcpy(&value, &bits, sizeof value);
    return value;
}

DEVICE f32 exp2_fast(f32 x) {
    f32 y = exp2f(x);
    return y < FLT_MIN ? 0.0f : y;
}

DEVICE f32 reciprocal_fast(f32 x) {
    if (fabsf(x) < FLT_MIN) x = copysignf(0.0f, x);
    f32 y = 1.0f / x;
    return fabsf(y) < FLT_MIN ? copysignf(0.0f, y) : y;
}

/// NaN becomes the one that the device's conversion gives.
DEVICE bf16 to_bf16(f32 x) {
    u32 bits = f32_to_bits(x);
    if (x != x) return {0x7fff};
    return {static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
DEVICE u32 pack_bf16(f32 low, f32 high) {
    return to_bf16(low).bits | static_cast<u32>(to_bf16(high).bits) << 16;
}

DEVICE u32 multiply_high(u32 a, u32 b) { return static_cast<u32>(static_cast<u64>(a) * b >> 32); }

DEVICE void copy_async(void* shared, const void* global, bool valid) {
    emulation::copy_async(shared, global, valid);
}
DEVICE void copy_async_commit() { emulation::copy_async_commit(); }
template <int pending>
DEVICE void copy_async_wait() {
    emulation::copy_async_wait(pending);
}

DEVICE void load_matrices(u32 (&to)[4], const void* row) { emulation::load_matrices(to, row, false); }
DEVICE void load_matrices_transposed(u32 (&to)[4], const void* row) { emulation::load_matrices(to, row, true); }
DEVICE void multiply_add(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { emulation::multiply_add(d, a, b0, b1); }

// What CUDA C++ has beside the C library.
DEVICE f32 rsqrtf(f32 x) { return 1.0f / sqrtf(x); }
DEVICE i32 min(i32 a, i32 b) { return a < b ? a : b; }
DEVICE i32 max(i32 a, i32 b) { return a < b ? b : a; }
DEVICE u32 min(u32 a, u32 b) { return a < b ? a : b; }
DEVICE u32 max(u32 a, u32 b) { return a < b ? b : a; }
DEVICE u64 min(u64 a, u64 b) { return a < b ? a : b; }
DEVICE u64 max(u64 a, u64 b) { return a < b ? b : a; }
