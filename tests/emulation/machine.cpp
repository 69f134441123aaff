// How a block runs: whose turn it is, and who waits for whom.
#include "machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

namespace emulation {

__thread Position* current = nullptr;
__thread Machine* machine = nullptr;

namespace {

/// Of a multiprocessor.
constexpr u32 REGISTERS = 64 * 1024;

u8* reserve(u64 bytes) {
    void* memory = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) abort();
    return static_cast<u8*>(memory);
}

void protect(u8* memory, u64 bytes, i32 allowed) {
    if (mprotect(memory, bytes, allowed) != 0) abort();
}

void start_thread() { machine->run_thread(); }

bool was_written(const u8* from, const u8* to) {
    while (from < to && *from == POISON) ++from;
    return from < to;
}

}  // namespace

Machine::Machine() {
    page = static_cast<u64>(sysconf(_SC_PAGESIZE));
    stacks = reserve(MOST_THREADS * (GUARD + STACK) + GUARD) + GUARD;
    shared_bytes = (MOST_SHARED + page - 1) / page * page;
    shared_end = reserve(GUARD + shared_bytes + GUARD) + GUARD + shared_bytes;
}

i32 Machine::run(Launch& given, const Kernel& of_launch) {
    launch = &given;
    kernel = of_launch.name;
    body = of_launch.body;
    alignment = of_launch.alignment;
    failed = false;
    random_state = given.order;
    warp_count = given.threads / WARP;
    memcpy(arguments, given.arguments, given.argument_bytes);
    for (; stacks_made < given.threads; ++stacks_made) {
        protect(stacks + stacks_made * (STACK + GUARD), STACK, PROT_READ | PROT_WRITE);
    }
    // As near to the guard as the alignment allows.
    u64 room = (given.shared + alignment - 1) / alignment * alignment, pages = (room + page - 1) / page * page;
    shared = shared_end - room;
    shared_pages = shared_end - pages;
    protect(shared_end - shared_bytes, shared_bytes - pages, PROT_NONE);
    protect(shared_pages, pages, PROT_READ | PROT_WRITE);

    stack_t own{}, before;
    own.ss_sp = signal_stack;
    own.ss_size = sizeof signal_stack;
    sigaltstack(&own, &before);
    u64 count = static_cast<u64>(given.grid[0]) * given.grid[1] * given.grid[2];
    // Steps of a prime visit all blocks if it does not divide their number.
    u64 step = count % 1000003 == 0 ? 1000033 : 1000003;
    for (u64 turn_of_block = 0; turn_of_block < count && !failed; ++turn_of_block) {
        u64 block = turn_of_block;
        if (given.order == 1) block = count - 1 - turn_of_block;
        if (given.order > 1) block = (turn_of_block * step + given.order) % count;
        run_block(block);
    }
    sigaltstack(&before, nullptr);
    return failed;
}

void Machine::run_block(u64 block) {
    const u32(&grid)[3] = launch->grid;
    u32 x = static_cast<u32>(block % grid[0]);
    u32 y = static_cast<u32>(block / grid[0] % grid[1]);
    u32 z = static_cast<u32>(block / grid[0] / grid[1]);
    memset(shared_pages, POISON, static_cast<size_t>(shared_end - shared_pages));
    for (u32 index = 0; index < launch->threads; ++index) {
        Thread& thread = threads[index];
        static_cast<Position&>(thread) = {index, {x, y, z}, {grid[0], grid[1], grid[2]}, shared};
        thread.place = nullptr;
        thread.copies.clear();
        thread.groups = 0;
        thread.registers = REGISTERS / launch->threads / 8 * 8;
        make_fiber(thread.fiber, stacks + index * (STACK + GUARD), STACK, start_thread);
    }
    ended = at_barrier = 0;
    barriers.clear();
    loads.clear();
    shown.assign(launch->shared, POISON);
    for (NamedBarrier& barrier : named_barriers) barrier = {0, 0};
    for (u32 index = 0; index < warp_count; ++index) {
        Products& products = warps[index].products;
        products.list.clear();
        products.sums.clear();
        products.groups = 0;
        products.open = false;
    }
    make_ready(0, launch->threads);
    Thread* first = choose();
    current = first;
    switch_fiber(launcher, first->fiber);
    if (!failed && (was_written(shared_pages, shared) || was_written(shared + launch->shared, shared_end))) {
        describe("kernel %s, block (%u, %u, %u): something beside the %u bytes of shared memory was written",
                 kernel, x, y, z, launch->shared);
    }
    const char* leftover = failed ? nullptr : find_leftover();
    if (leftover != nullptr) describe("kernel %s, block (%u, %u, %u): %s", kernel, x, y, z, leftover);
}

const char* Machine::find_leftover() {
    u32 registers = 0;
    for (u32 index = 0; index < launch->threads; ++index) registers += threads[index].registers;
    if (registers > REGISTERS / launch->threads / 8 * 8 * launch->threads) {
        return "asks for more registers than it was launched with, and would wait for ever";
    }
    if (!loads.empty()) return "ends without waiting for copies of boxes";
    for (u32 index = 0; index < warp_count; ++index) {
        if (!warps[index].products.list.empty()) return "ends without waiting for products";
    }
    return nullptr;
}

void Machine::run_thread() {
    body(arguments);
    Thread& mine = thread();
    mine.state = State::ENDED;
    --warps[mine.thread / WARP].ready;
    if (++ended == launch->threads) leave();
    go_on(mine);
    abort();
}

/// Goes back to the launcher for good.
void Machine::leave() {
    Fiber& from = thread().fiber;
    current = nullptr;
    switch_fiber(from, launcher);
    abort();
}

void Machine::wait_for_block(Thread& thread) {
    thread.state = State::BLOCK_BARRIER;
    --warps[thread.thread / WARP].ready;
    if (++at_barrier == launch->threads) {
        at_barrier = 0;
        make_ready(0, launch->threads);
    }
    go_on(thread);
}

void Machine::wait_for_warp(Thread& thread, Operation operation, void* operand) {
    Warp& mine = warps[thread.thread / WARP];
    if (mine.waiting > 0 && mine.operation != operation) {
        const char *this_one = name_of(operation), *that_one = name_of(mine.operation);
        fail(0, "comes to %s while other lanes of its warp wait at %s", this_one, that_one);
    }
    mine.operation = operation;
    mine.operands[thread.thread % WARP] = operand;
    thread.state = State::WARP_OPERATION;
    --mine.ready;
    if (++mine.waiting == WARP) {
        if (operation >= Operation::SET_REGISTERS) {
            perform_for_warpgroup(operation, mine);
        } else {
            perform(operation, mine.operands);
        }
        make_ready(thread.thread / WARP * WARP, WARP);
    }
    go_on(thread);
}

/// Lets whole warps run on.
void Machine::make_ready(u32 first, u32 count) {
    for (u32 index = first; index < first + count; ++index) threads[index].state = State::READY;
    for (u32 index = first / WARP; index < (first + count) / WARP; ++index) {
        warps[index].ready = WARP;
        warps[index].waiting = 0;
    }
    choose_warp();
}

/// Lets one thread run on that waited at a barrier.
void Machine::make_ready(Thread& thread) {
    thread.state = State::READY;
    ++warps[thread.thread / WARP].ready;
}

void Machine::give_way(Thread& from) {
    choose_warp();
    go_on(from);
}

/// Lets others run until it is this thread's turn again.
void Machine::go_on(Thread& from) {
    Thread* to = choose();
    if (to == nullptr && land_awaited_loads()) to = choose();
    if (to == nullptr) report_stuck();
    if (to == &from) return;
    current = to;
    switch_fiber(from.fiber, to->fiber);
}

/// The thread whose turn it is; null if none can run.
Thread* Machine::choose() {
    if (warps[warp].ready == 0) choose_warp();
    if (warps[warp].ready == 0) return nullptr;
    for (;; ++turn) {
        Thread& thread = threads[warp * WARP + (lane_start + turn * lane_step) % WARP];
        if (thread.state == State::READY) return &thread;
    }
}

/// Chooses a warp with threads that can run, if there is one, and the order of its lanes.
///
/// In a fixed order the first of them has its turn until all of its lanes wait for other warps; a random order may
/// leave it whenever its lanes have met.
void Machine::choose_warp() {
    u32 step = 1;
    warp = 0, lane_start = 0, lane_step = 1;
    if (launch->order == 1) {
        warp = step = warp_count - 1;
        lane_start = lane_step = WARP - 1;
    } else if (launch->order > 1) {
        warp = random() % warp_count;
        // Any odd step visits all lanes.
        lane_start = random() % WARP, lane_step = random() % WARP | 1;
    }
    turn = 0;
    for (u32 tried = 0; tried < warp_count && warps[warp].ready == 0; ++tried) warp = (warp + step) % warp_count;
}

u32 Machine::random() {
    // SplitMix64 (Steele et al. 2014).
    u64 z = random_state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return static_cast<u32>(z >> 32);
}

}  // namespace emulation
