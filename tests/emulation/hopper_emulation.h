// The host's meaning of `kernels/hopper.cuh`: barriers in shared memory, copies of boxes, products of warpgroups.
//
// What is asynchronous lands when it is waited for and not before. Until then NaN lies where a box goes to and where
// sums are; operands of products are read as late as that, and as shared memory was at the last `fence_async_shared`, but
// for boxes that have landed since. Descriptors and the swizzle are decoded as the device does it, so that a wrong one
// gives wrong numbers. What would hang or be undefined is a failure with a message: barriers that nobody completes, a
// place that is misaligned, more registers than there are, products that nobody waits for.
//
// It is laxer than a device where one thread's fence shows what all wrote, and fences for the compiler alone are nothing.
#pragma once

/// What stands in a tensor map; `tests/emulation/library.rs` has its twin.
struct alignas(64) TensorMap {
    u64 address;
    /// Bytes from one row to the next.
    u64 stride;
    u32 columns;
    u32 rows;
    u32 box_rows;
    /// Tells a map from other bytes.
    u32 mark;
    u32 unused[24];
};
static_assert(sizeof(TensorMap) == 128, "as large as the driver's");

namespace emulation {

constexpr u32 MAP_MARK = 0x3a9df00d;

/// Operands of a product of a warpgroup: `[64, 16]` and `[16, columns]`.
struct Factors {
    u32 columns;
    /// The first one's registers, or null and its descriptor.
    const u32* registers;
    u64 a;
    u64 b;
    bool transpose_a;
    bool transpose_b;
    bool accumulate;
};

void barrier_init(u64* barrier, u32 arrivals);
void barrier_arrive(u64* barrier, u32 bytes);
void barrier_wait(u64* barrier, u32 parity);
void sync_threads_of(u32 id, u32 threads);
void set_registers(u32 count);
void tma_load(void* shared, const TensorMap* map, u32 x, u32 y, u64* barrier);
void fence_async_shared();
void store_matrices(void* row, const u32* from);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(u32 pending);
void wgmma(f32* d, const Factors& factors);

}  // namespace emulation

#define KERNEL_WITH_MAPS(name, Arguments, threads, blocks) KERNEL_ALIGNED(name, Arguments, threads, blocks, 1024)

DEVICE u8* aligned_shared_memory() { return emulation::current->shared; }

DEVICE void barrier_init(u64* barrier, u32 arrivals) { emulation::barrier_init(barrier, arrivals); }
DEVICE void fence_barrier_init() {}
DEVICE void barrier_expect(u64* barrier, u32 bytes) { emulation::barrier_arrive(barrier, bytes); }
DEVICE void barrier_arrive(u64* barrier) { emulation::barrier_arrive(barrier, 0); }
DEVICE void barrier_wait(u64* barrier, u32 parity) { emulation::barrier_wait(barrier, parity); }

DEVICE void sync_threads_of(u32 id, u32 threads) { emulation::sync_threads_of(id, threads); }
template <u32 count>
DEVICE void set_registers_up() {
    static_assert(count % 8 == 0 && count >= 24 && count <= 256, "registers");
    emulation::set_registers(count);
}
template <u32 count>
DEVICE void set_registers_down() {
    set_registers_up<count>();
}

DEVICE void prefetch_map(const TensorMap*) {}
DEVICE void tma_load(void* shared, const TensorMap* map, u32 x, u32 y, u64* barrier) {
    emulation::tma_load(shared, map, x, y, barrier);
}
DEVICE void fence_async_shared() { emulation::fence_async_shared(); }

DEVICE void store_matrices(void* row, const u32 (&from)[4]) { emulation::store_matrices(row, from); }

DEVICE void wgmma_fence() { emulation::wgmma_fence(); }
DEVICE void wgmma_commit() { emulation::wgmma_commit(); }
template <int pending>
DEVICE void wgmma_wait() {
    emulation::wgmma_wait(pending);
}
template <u32 count>
DEVICE void wgmma_done(f32 (&)[count]) {}
template <u32 count>
DEVICE void wgmma_operands(u32 (&)[count][4]) {}

DEVICE u64 matrix_descriptor(const void* shared, u32 leading_bytes, u32 stride_bytes) {
    u64 offset = static_cast<u64>(static_cast<const u8*>(shared) - emulation::current->shared);
    return (offset & 0x3ffff) >> 4 | static_cast<u64>(leading_bytes >> 4) << 16 |
           static_cast<u64>(stride_bytes >> 4) << 32 | 1ull << 62;
}

template <u32 columns, bool transpose_a, bool transpose_b>
DEVICE void wgmma(f32 (&d)[columns / 2], u64 a, u64 b, bool accumulate) {
    static_assert(columns == 64 || columns == 128 || columns == 192 || columns == 256, "sizes that there are");
    emulation::wgmma(d, {columns, nullptr, a, b, transpose_a, transpose_b, accumulate});
}
template <u32 columns, bool transpose_b>
DEVICE void wgmma_registers(f32 (&d)[columns / 2], const u32 (&a)[4], u64 b, bool accumulate) {
    static_assert(columns == 64 || columns == 128 || columns == 192 || columns == 256, "sizes that there are");
    emulation::wgmma(d, {columns, a, 0, b, false, transpose_b, accumulate});
}
