// Kernels for the tests of Hopper's part of the emulation: some are right, each of the others has one fault.
#include "hopper.cuh"

/// What all of them take; each says what it makes of it.
struct BoxTest {
    TensorMap a;
    TensorMap b;
    f32* out;
    u32 count;
    u32 unused;
};

constexpr u32 BOX_BYTES = 64 * LINE_BYTES;

/// The barrier behind so many boxes of 64 lines, initialized for one arrival.
DEVICE u64* make_barrier(u32 boxes) {
    u64* barrier = reinterpret_cast<u64*>(aligned_shared_memory() + boxes * BOX_BYTES);
    if (thread_index() == 0) {
        barrier_init(barrier, 1);
        fence_barrier_init();
    }
    sync_block();
    return barrier;
}

/// Writes a warpgroup's sums to `out[64, columns]`.
template <u32 columns>
DEVICE void write_sums(f32* out, const f32 (&sums)[columns / 2]) {
    for (u32 i = 0; i < columns / 2; ++i) {
        u32 row = warp_index() % 4 * 16 + lane_index() / 4 + i / 2 % 2 * 8;
        out[row * columns + i / 4 * 8 + lane_index() % 4 * 2 + i % 2] = sums[i];
    }
}

// ---- right -------------------------------------------------------------------------------------------------------

/// out[64, columns] = a b over a depth of 64, either operand with its depth contiguous (a box of all lines) or its
/// lines (boxes of 64).
template <u32 columns, bool transpose_a, bool transpose_b>
DEVICE void multiply_boxes(const BoxTest& args) {
    u8 *a = aligned_shared_memory(), *b = a + BOX_BYTES;
    u64* barrier = make_barrier(1 + columns / 64);
    if (thread_index() == 0) {
        barrier_expect(barrier, (64 + columns) * LINE_BYTES);
        tma_load(a, &args.a, 0, 0, barrier);
        for (u32 box = 0; box < (transpose_b ? columns / 64 : 1); ++box) {
            tma_load(b + box * BOX_BYTES, &args.b, 64 * box, 0, barrier);
        }
    }
    barrier_wait(barrier, 0);
    f32 sums[columns / 2];
    wgmma_fence();
    for (u32 deep = 0; deep < 64; deep += 16) {
        u64 of_a = matrix_descriptor(a + deep * (transpose_a ? LINE_BYTES : 2), 16, 1024);
        u64 of_b = matrix_descriptor(b + deep * (transpose_b ? LINE_BYTES : 2), BOX_BYTES, 1024);
        wgmma<columns, transpose_a, transpose_b>(sums, of_a, of_b, deep > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_done(sums);
    write_sums<columns>(args.out, sums);
}
KERNEL_WITH_MAPS(multiply_boxes_nt_64, BoxTest, 128, 1) { multiply_boxes<64, false, false>(args); }
KERNEL_WITH_MAPS(multiply_boxes_nt_192, BoxTest, 128, 1) { multiply_boxes<192, false, false>(args); }
KERNEL_WITH_MAPS(multiply_boxes_nn_128, BoxTest, 128, 1) { multiply_boxes<128, false, true>(args); }
KERNEL_WITH_MAPS(multiply_boxes_tn_256, BoxTest, 128, 1) { multiply_boxes<256, true, true>(args); }

/// out[64, 64] = a b, the lines of b contiguous, with a in registers and added up in two groups.
KERNEL_WITH_MAPS(multiply_registers, BoxTest, 128, 1) {
    u8 *a = aligned_shared_memory(), *b = a + BOX_BYTES;
    u64* barrier = make_barrier(2);
    if (thread_index() == 0) {
        barrier_expect(barrier, 2 * BOX_BYTES);
        tma_load(a, &args.a, 0, 0, barrier);
        tma_load(b, &args.b, 0, 0, barrier);
    }
    barrier_wait(barrier, 0);
    f32 sums[32];
    for (u32 deep = 0; deep < 64; deep += 16) {
        u32 words[4];
        for (u32 part = 0; part < 4; ++part) {
            u32 row = warp_index() * 16 + lane_index() / 4 + part % 2 * 8;
            u32 column = deep + lane_index() % 4 * 2 + part / 2 * 8;
            u32 place = row * LINE_BYTES + ((column / 8) ^ row % 8) * 16 + column % 8 * 2;
            words[part] = *reinterpret_cast<const u32*>(a + place);
        }
        wgmma_fence();
        wgmma_registers<64, true>(sums, words, matrix_descriptor(b + deep * LINE_BYTES, BOX_BYTES, 1024), deep > 0);
        wgmma_commit();
    }
    wgmma_wait<0>();
    wgmma_done(sums);
    write_sums<64>(args.out, sums);
}

/// out[8, 64] = a box of a, from 40 columns and 3 rows in.
KERNEL_WITH_MAPS(read_box, BoxTest, 32, 1) {
    u64* barrier = make_barrier(1);
    if (thread_index() == 0) {
        barrier_expect(barrier, 8 * LINE_BYTES);
        tma_load(aligned_shared_memory(), &args.a, 40, 3, barrier);
    }
    barrier_wait(barrier, 0);
    for (u32 i = thread_index(); i < 8 * BOX_COLUMNS; i += 32) {
        u32 line = i / BOX_COLUMNS, column = i % BOX_COLUMNS;
        u32 place = line * LINE_BYTES + ((column / 8) ^ line % 8) * 16 + column % 8 * 2;
        args.out[i] = bits_to_f32(*reinterpret_cast<const u16*>(aligned_shared_memory() + place) << 16);
    }
}

/// out[32, 4] words = the matrices a[4, 8, 8] stored and read again, transposed.
KERNEL_WITH_MAPS(store_and_fetch, BoxTest, 32, 1) {
    u8* shared = aligned_shared_memory();
    u32 words[4];
    for (u32 matrix = 0; matrix < 4; ++matrix) words[matrix] = lane_index() * 4 + matrix;
    u8* row = shared + lane_index() * 16;
    store_matrices(row, words);
    sync_warp();
    u32 got[4];
    load_matrices_transposed(got, row);
    for (u32 matrix = 0; matrix < 4; ++matrix) args.out[lane_index() * 4 + matrix] = bits_to_f32(got[matrix]);
}

/// out[0] = how often the second warp, given `count` in shared memory and given back, has seen the number go up.
KERNEL_WITH_MAPS(pass_to_and_fro, BoxTest, 64, 1) {
    u32* number = reinterpret_cast<u32*>(aligned_shared_memory());
    u64 *full = reinterpret_cast<u64*>(number + 2), *empty = full + 1;
    if (thread_index() == 0) {
        barrier_init(full, 32);
        barrier_init(empty, 1);
        fence_barrier_init();
    }
    sync_block();
    u32 seen = 0;
    for (u32 turn = 0; turn < args.count; ++turn) {
        if (warp_index() == 0) {
            barrier_wait(empty, 1 - turn % 2);
            if (lane_index() == 0) *number = turn + 1;
            sync_warp();
            barrier_arrive(full);
        } else {
            barrier_wait(full, turn % 2);
            seen += *number == turn + 1 ? 1 : 0;
            sync_warp();
            if (lane_index() == 0) barrier_arrive(empty);
        }
    }
    sync_threads_of(1, 64);
    if (thread_index() == 32) args.out[0] = static_cast<f32>(seen);
}

// ---- faulty ------------------------------------------------------------------------------------------------------

/// Waits for a phase that nobody ends, or one that is `count` bytes of copies away.
KERNEL_WITH_MAPS(wait_for_nobody, BoxTest, 32, 1) {
    u64* barrier = make_barrier(1);
    if (thread_index() == 0 && args.count > 0) {
        barrier_expect(barrier, args.count);
        tma_load(aligned_shared_memory(), &args.a, 0, 0, barrier);
    }
    barrier_wait(barrier, 0);
}

/// Takes the box before it has landed.
KERNEL_WITH_MAPS(box_without_wait, BoxTest, 32, 1) {
    u64* barrier = make_barrier(1);
    if (thread_index() == 0) {
        barrier_expect(barrier, BOX_BYTES);
        tma_load(aligned_shared_memory() + args.count, &args.a, 0, 0, barrier);
    }
    sync_block();
    args.out[thread_index()] = reinterpret_cast<const f32*>(aligned_shared_memory())[thread_index()];
    sync_block();
    if (thread_index() == 0) barrier_wait(barrier, 0);
}

/// out[64, 64] = a b of ones, written to shared memory by threads; `count` says whether they are shown to the products.
KERNEL_WITH_MAPS(multiply_written, BoxTest, 128, 1) {
    u8* shared = aligned_shared_memory();
    for (u32 i = thread_index(); i < BOX_BYTES / 4; i += 128) reinterpret_cast<u32*>(shared)[i] = 0x3f803f80;
    if (args.count > 0) fence_async_shared();
    sync_block();
    f32 sums[32];
    wgmma_fence();
    wgmma<64, false, false>(sums, matrix_descriptor(shared, 16, 1024), matrix_descriptor(shared, 16, 1024), false);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_done(sums);
    write_sums<64>(args.out, sums);
}

/// Multiplies what nobody wrote: 0 well, 1 without a fence, 2 between atoms, 3 without a wait, 4 touching the sums, 5 by
/// three warps.
KERNEL_WITH_MAPS(multiply_badly, BoxTest, 128, 1) {
    if (args.count == 5 && warp_index() == 3) return;
    f32 sums[32] = {};
    if (args.count != 1) wgmma_fence();
    u8* shared = aligned_shared_memory();
    u8* start = shared + (args.count == 2 ? 128 : 0);
    wgmma<64, false, false>(sums, matrix_descriptor(start, 16, 1024), matrix_descriptor(shared, 16, 1024), true);
    wgmma_commit();
    if (args.count == 4) sums[thread_index() % 32] = 1.0f;
    if (args.count != 3) wgmma_wait<0>();
    write_sums<64>(args.out, sums);
}

/// One warpgroup gives up registers, two take as many as are named.
template <u32 up>
DEVICE void share_registers() {
    if (warp_index() < 4) {
        set_registers_down<40>();
    } else {
        set_registers_up<up>();
    }
}
KERNEL_WITH_MAPS(registers_that_there_are, BoxTest, 384, 1) { share_registers<232>(); }
KERNEL_WITH_MAPS(more_registers, BoxTest, 384, 1) { share_registers<240>(); }

KERNEL_WITH_MAPS(too_few_at_a_barrier, BoxTest, 128, 1) {
    if (warp_index() < 2) sync_threads_of(3, 96);
}
