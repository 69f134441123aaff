// The machine that runs blocks: `machine.cpp` has its scheduling, `warp.cpp` what a warp does together, `boxes.cpp`
// barriers and copies of boxes, `products.cpp` products of warpgroups, `failure.cpp` how it finds words for what
// kernels do wrong.
#pragma once

#include <signal.h>
#include <ucontext.h>

#include <vector>

#include "fiber.h"
#include "hopper.cuh"

namespace emulation {

typedef long long i64;

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
enum class Operation : u8 {
    SYNC_WARP,
    SHUFFLE,
    LOAD_MATRICES,
    LOAD_MATRICES_TRANSPOSED,
    STORE_MATRICES,
    MULTIPLY_ADD,
    SET_REGISTERS,
    WGMMA_FENCE,
    WGMMA_COMMIT,
    WGMMA_WAIT,
    WGMMA,
};

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
struct StoreMatrices {
    void* row;
    const u32* from;
};
struct MultiplyAdd {
    f32* d;
    const u32* a;
    u32 b[2];
};
struct Multiply {
    f32* d;
    const Factors* factors;
};

/// Does an operation that a warp's lanes need nothing else for, at once.
void perform(Operation operation, void* const (&operands)[WARP]);

/// An asynchronous copy of 16 bytes.
struct Copy {
    u8* to;
    const u8* from;
    bool valid;
    u32 group;
};

/// A box on its way to shared memory, which counts at a barrier when it has landed.
struct Load {
    const TensorMap* map;
    u64 offset;
    u32 x, y;
    const u64* barrier;
};

/// A barrier in shared memory, at `word`.
struct Barrier {
    const u64* word;
    u32 arrivals;
    /// What this phase still waits for.
    u32 missing;
    i64 missing_bytes;
    u32 parity;
};
/// What lies in shared memory in the place of a barrier.
constexpr u64 BARRIER_WORD = 0xba881e8ba881e8b5u;

/// A barrier with a number.
struct NamedBarrier {
    u32 threads;
    u32 arrived;
};
constexpr u32 NAMED_BARRIERS = 16;
/// Behind them each warpgroup has one of its own.
constexpr u32 WARPGROUP = 4 * WARP, WARPGROUPS = 1024 / WARPGROUP;

enum class State : u8 { READY, BLOCK_BARRIER, NAMED_BARRIER, SHARED_BARRIER, WARP_OPERATION, ENDED };

struct Thread : Position {
    Fiber fiber;
    State state;
    /// Where in the kernel it last called the machine.
    const void* place;
    /// Copies that have not landed, in order, and the number of closed groups.
    std::vector<Copy> copies;
    u32 groups;
    /// The number or the place of the barrier that it waits at, and for which parity.
    u32 named_barrier;
    const u64* shared_barrier;
    u32 parity;
    u32 registers;
};

/// A warp's part of a product of its warpgroup that has not been computed: 16 rows.
struct Product {
    Factors factors;
    u32 registers[WARP][4];
    f32* sums;
    u32 group;
    bool computed;
};
/// A warp's sums of products under way: what its registers held, which hold NaN until they land.
struct Sums {
    f32* d[WARP];
    std::vector<f32> values[WARP];
};

/// The products of a warp that are under way.
struct Products {
    std::vector<Product> list;
    std::vector<Sums> sums;
    /// Closed groups, and whether one is open.
    u32 groups;
    bool open;
};

struct Warp {
    /// Lanes that can run, and lanes that wait for the others at the operation.
    u32 ready;
    u32 waiting;
    Operation operation;
    void* operands[WARP];
    Products products;
};

/// One multiprocessor with room for one block. Machines are kept and reused, one for each host thread that
/// launches.
class Machine {
public:
    Machine();

    /// Runs a launch that was found to be possible.
    i32 run(Launch& launch, const Kernel& kernel);
    /// What every fiber starts with.
    [[noreturn]] void run_thread();

    /// The running thread.
    Thread& thread() { return *static_cast<Thread*>(current); }
    void wait_for_block(Thread& thread);
    void wait_for_warp(Thread& thread, Operation operation, void* operand);
    /// Fails unless 16 bytes of shared memory start at `at`, a multiple of 16.
    void check_shared(const void* at, const char* what);

    void init_barrier(u64* word, u32 arrivals);
    void arrive_at_barrier(Thread& thread, u64* word, u32 bytes);
    void wait_for_barrier(Thread& thread, const u64* word, u32 parity);
    void wait_for_named_barrier(Thread& thread, u32 id, u32 count);
    void load_box(const Load& load);
    void show_shared();

    /// Describes what the running thread did wrong, and leaves the launch.
    [[noreturn]] void fail(u64 address, const char* format, ...) __attribute__((format(printf, 3, 4)));
    /// The same for a signal.
    [[noreturn]] void fault(i32 signal, const siginfo_t* info, const ucontext_t* context);

private:
    void run_block(u64 block);
    void go_on(Thread& from);
    /// The same for a thread that could go on itself.
    void give_way(Thread& from);
    Thread* choose();
    void choose_warp();
    void make_ready(u32 first, u32 count);
    void make_ready(Thread& thread);
    u32 random();

    Barrier& barrier_at(const u64* word);
    bool end_phase(Barrier& barrier);
    bool land_loads(const u64* word);
    bool land_awaited_loads();
    void land_box(const TensorMap& map, u64 offset, u32 x, u32 y);
    void perform_for_warpgroup(Operation operation, Warp& warp);
    void start_product(Warp& warp);
    size_t compute_products(Warp& warp, u32 end);
    void finish_products(Warp& warp, u32 pending);
    void multiply(u32 quarter, const Product& product, Sums& sums);
    f32 element_of(u64 descriptor, bool transposed, u32 line, u32 deep);
    /// What a block that has ended left behind; null for nothing.
    const char* find_leftover();

    void describe(const char* format, ...) __attribute__((format(printf, 2, 3)));
    [[noreturn]] void leave();
    [[noreturn]] void report_stuck();
    bool is_in_kernel(const void* place);

    Launch* launch = nullptr;
    const char* kernel = nullptr;
    void (*body)(const void*) = nullptr;
    u64 alignment = 0;
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
    std::vector<Barrier> barriers;
    NamedBarrier named_barriers[NAMED_BARRIERS + WARPGROUPS];
    std::vector<Load> loads;
    /// Shared memory as products see it.
    std::vector<u8> shown;
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

/// The running thread, which is noted to have called the machine from `place`.
Thread& called_from(const void* place);

}  // namespace emulation

#define THE_CALLER called_from(__builtin_return_address(0))
