// The machine that runs blocks: `machine.cpp` has its scheduling, `warp.cpp` what a warp does together,
// `failure.cpp` how it finds words for what kernels do wrong.
#pragma once

#include <signal.h>
#include <ucontext.h>

#include <vector>

#include "fiber.h"
#include "prelude.cuh"

namespace emulation {

constexpr u32 WARP = 32;
constexpr u32 MOST_THREADS = 1024;
/// The most shared memory that a block of any supported device may have.
constexpr u64 MOST_SHARED = 227 * 1024;
/// No access is allowed this far beside stacks and shared memory.
constexpr u64 GUARD = 64 * 1024;
constexpr u64 STACK = 128 * 1024;
constexpr u64 SIGNAL_STACK = 64 * 1024;
/// Every byte that nobody has written yet: NaN, be it read as f32 or as bf16.
constexpr u8 POISON = 0xff;

/// What a warp does together.
enum class Operation : u8 { SYNC_WARP, SHUFFLE, LOAD_MATRICES, LOAD_MATRICES_TRANSPOSED, MULTIPLY_ADD };

const char* name_of(Operation operation);

// What each lane brings to an operation.
struct Shuffle {
    u64 bits;
    u32 from;
};
struct LoadMatrices {
    u32* to;
    const void* row;
};
struct MultiplyAdd {
    f32* d;
    const u32* a;
    u32 b[2];
};

/// Does an operation for all lanes at once.
void perform(Operation operation, void* const (&operands)[WARP]);

/// An asynchronous copy of 16 bytes.
struct Copy {
    u8* to;
    const u8* from;
    bool valid;
    u32 group;
};

enum class State : u8 { READY, BLOCK_BARRIER, WARP_OPERATION, ENDED };

struct Thread : Position {
    Fiber fiber;
    State state;
    /// Where in the kernel it last called the machine.
    const void* place;
    /// Copies that have not landed, in order, and the number of closed groups.
    std::vector<Copy> copies;
    u32 groups;
};

struct Warp {
    /// Lanes that can run, and lanes that wait for the others at the operation.
    u32 ready;
    u32 waiting;
    Operation operation;
    void* operands[WARP];
};

/// One multiprocessor with room for one block. Machines are kept and reused, one for each host thread that
/// launches.
class Machine {
public:
    Machine();

    /// Runs a launch that was found to be possible.
    i32 run(Launch& launch, const char* kernel, void (*body)(const void*));
    /// What every fiber starts with.
    [[noreturn]] void run_thread();

    /// The running thread.
    Thread& thread() { return *static_cast<Thread*>(current); }
    void wait_for_block(Thread& thread);
    void wait_for_warp(Thread& thread, Operation operation, void* operand);
    /// Fails unless 16 bytes of shared memory start at `at`, a multiple of 16.
    void check_shared(const void* at, const char* what);

    /// Describes what the running thread did wrong, and leaves the launch.
    [[noreturn]] void fail(u64 address, const char* format, ...) __attribute__((format(printf, 3, 4)));
    /// The same for a signal.
    [[noreturn]] void fault(i32 signal, const siginfo_t* info, const ucontext_t* context);

private:
    void run_block(u64 block);
    void go_on(Thread& from);
    Thread* choose();
    void choose_warp();
    void make_ready(u32 first, u32 count);
    u32 random();

    void describe(const char* format, ...) __attribute__((format(printf, 2, 3)));
    [[noreturn]] void leave();
    [[noreturn]] void report_stuck();
    bool is_in_kernel(const void* place);

    Launch* launch = nullptr;
    const char* kernel = nullptr;
    void (*body)(const void*) = nullptr;
    bool failed = false;
    alignas(64) u8 arguments[MOST_ARGUMENT_BYTES];

    Fiber launcher;
    u8* stacks = nullptr;
    u32 stacks_made = 0;
    alignas(16) u8 signal_stack[SIGNAL_STACK];

    u64 page = 0;
    /// The pages that hold a block's shared memory at the most end here, where a guard starts.
    u8* shared_end = nullptr;
    u64 shared_bytes = 0;
    /// The launch's shared memory, and the start of the pages that it lies in.
    u8* shared = nullptr;
    u8* shared_pages = nullptr;

    Thread threads[MOST_THREADS];
    Warp warps[MOST_THREADS / WARP];
    u32 warp_count = 0;
    u32 ended = 0;
    u32 at_barrier = 0;
    /// The warp that runs, how many of its lanes had their turn, and in which order they have it.
    u32 warp = 0;
    u32 turn = 0;
    u32 lane_start = 0, lane_step = 1;
    u64 random_state = 0;
};

/// The machine of this host thread while it launches.
extern __thread Machine* machine;

}  // namespace emulation
