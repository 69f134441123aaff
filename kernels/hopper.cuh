// What Hopper (compute capability 9.0) has beside the machine of `prelude.cuh`: barriers in shared memory, copies of
// boxes by the tensor memory accelerator (TMA), and matrix products of warpgroups (wgmma).
//
// Only modules named `hopper_*` include it; they are compiled for sm_90a alone. For the host,
// `tests/emulation/hopper_emulation.h` says what it means. The layouts are those of PTX's 128-byte swizzle: a box is
// lines of 128 bytes, and the 16-byte chunk `c` of a line lies at `c ^ (line % 8)`, counted from multiples of 1024
// bytes.
//
// A kernel that takes tensor maps is written `KERNEL_WITH_MAPS(name, Arguments, threads, blocks)`; its argument starts
// with them, and its shared memory, `aligned_shared_memory()`, at a multiple of 1024 bytes.
#pragma once
#include "prelude.cuh"

/// Columns of every box: 128 bytes of bf16.
constexpr u32 BOX_COLUMNS = 64;
/// Bytes of a line of a box.
constexpr u32 LINE_BYTES = 128;

#ifdef MTDNN_HOST
#include "hopper_emulation.h"
#else

#ifndef __CUDA_ARCH_FEAT_SM90_ALL
#error "this module is for sm_90a alone"
#endif

#define KERNEL_WITH_MAPS(name, Arguments, threads, blocks)                                                             \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Arguments args)

/// A matrix in global memory as the TMA reads it: the driver's `CUtensorMap`.
struct alignas(64) TensorMap {
    u64 opaque[16];
};

/// The block's dynamic shared memory, aligned to 1024 bytes.
DEVICE u8* aligned_shared_memory() {
    extern __shared__ __align__(1024) u8 aligned_shared_bytes[];
    return aligned_shared_bytes;
}

DEVICE u32 shared_address(const void* shared) { return static_cast<u32>(__cvta_generic_to_shared(shared)); }

// ---- barriers ----------------------------------------------------------------------------------------------------

/// Makes a barrier in shared memory whose phases each end with so many arrivals and all bytes that were expected.
/// One thread does it; then come `fence_barrier_init` and `sync_block`.
DEVICE void barrier_init(u64* barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
/// Makes the initialized barriers seen by the TMA.
DEVICE void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
/// Arrives, and has the phase wait for so many bytes of copies.
DEVICE void barrier_expect(u64* barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}
/// Arrives.
DEVICE void barrier_arrive(u64* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
/// Waits until the phase of this parity has ended: the first one's is 0, and before it one of parity 1 counts as ended.
DEVICE void barrier_wait(u64* barrier, u32 parity) {
    asm volatile("{\n"
                 ".reg .pred ended;\n"
                 "again%=:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
                 "@!ended bra again%=;\n"
                 "}" ::"r"(shared_address(barrier)),
                 "r"(parity)
                 : "memory");
}

/// `threads` threads, whole warps, meet at the named barrier `id`, 1 to 15.
DEVICE void sync_threads_of(u32 id, u32 threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
/// Changes the registers of each thread of this warp, a multiple of 8 from 24 to 256. Those of all the block's threads
/// must not be more than it was launched with, else the threads that ask for more wait for ever.
template <u32 count>
DEVICE void set_registers_up() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}
template <u32 count>
DEVICE void set_registers_down() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}

// ---- copies ------------------------------------------------------------------------------------------------------

/// Fetches a tensor map before it is needed.
DEVICE void prefetch_map(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/// Starts to copy a box whose first element is column `x` of row `y` to shared memory, a multiple of 1024 bytes; its
/// bytes count at the barrier as they land, zeros for what lies outside of the matrix included. One thread calls it.
DEVICE void tma_load(void* shared, const TensorMap* map, u32 x, u32 y, u64* barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(shared)),
                 "l"(map), "r"(x), "r"(y), "r"(shared_address(barrier))
                 : "memory");
}
/// Makes what this thread wrote to shared memory seen by matrix products.
DEVICE void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Four 8 x 8 matrices of bf16 to shared memory: the inverse of `load_matrices`.
DEVICE void store_matrices(void* row, const u32 (&from)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
                 "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
                 : "memory");
}
// ---- products ----------------------------------------------------------------------------------------------------

/// Opens a group of products: what was written to their registers before is seen by them.
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
/// Closes it.
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until all but the latest `pending` groups of this warpgroup are done.
template <int pending>
DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
/// Says that sums are read from here on, after the wait for them: the compiler knows nothing of that wait.
template <u32 count>
DEVICE void wgmma_done(f32 (&d)[count]) {
    UNROLL for (u32 i = 0; i < count; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

/// Says that operands in registers are written by here, ahead of `wgmma_fence`, or kept until here, after the wait.
template <u32 count>
DEVICE void wgmma_operands(u32 (&a)[count][4]) {
    UNROLL for (u32 i = 0; i < 4 * count; ++i) asm volatile("" : "+r"(a[i / 4][i % 4])::"memory");
}

/// Where an operand lies in shared memory, in boxes of 64 columns. With the depth contiguous, `leading_bytes` means
/// nothing (16), and `stride_bytes` lead from eight lines to the next eight (1024). With the lines contiguous,
/// `leading_bytes` lead from one box to the next, and `stride_bytes` from eight of the depth to the next eight (1024).
DEVICE u64 matrix_descriptor(const void* shared, u32 leading_bytes, u32 stride_bytes) {
    return static_cast<u64>((shared_address(shared) & 0x3ffff) >> 4) | static_cast<u64>(leading_bytes >> 4) << 16 |
           static_cast<u64>(stride_bytes >> 4) << 32 | 1ull << 62;
}

#include "hopper_wgmma.cuh"

/// Starts `d = a b`, or with `accumulate` `d += a b`, by a warpgroup: a `[64, 16]`, b `[16, columns]`, both in shared
/// memory. An operand is transposed where its lines, rows of a or columns of b, are contiguous instead of the depth.
///
/// Warp w of the four has rows 16 w to 16 w + 15. With group = lane / 4 and pair = 2 (lane % 4), d[4 j] and d[4 j + 1]
/// are row group, columns 8 j + pair and the next; d[4 j + 2] and d[4 j + 3] those of row group + 8. They are not to be
/// touched until the group is waited for.
template <u32 columns, bool transpose_a, bool transpose_b>
DEVICE void wgmma(f32 (&d)[columns / 2], u64 a, u64 b, bool accumulate) {
    Wgmma<columns>::template of_shared<transpose_a, transpose_b>(d, a, b, accumulate);
}
/// The same with a in registers, as `multiply_add` has it for each warp's 16 rows.
template <u32 columns, bool transpose_b>
DEVICE void wgmma_registers(f32 (&d)[columns / 2], const u32 (&a)[4], u64 b, bool accumulate) {
    Wgmma<columns>::template of_registers<transpose_b>(d, a, b, accumulate);
}

#endif
