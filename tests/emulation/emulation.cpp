// The machine behind `emulation.h`: it schedules the threads of a block, and finds out what they do wrong.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "prelude.cuh"

#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <mutex>
#include <vector>

#include "fiber.h"

namespace emulation {

__thread Position* current = nullptr;

namespace {

constexpr u32 WARP = 32;
constexpr u32 MOST_THREADS = 1024;
/// The most shared memory that a block of any supported device may have.
constexpr u64 MOST_SHARED = 227 * 1024;
/// No access is allowed this far beside stacks and shared memory.
constexpr u64 GUARD = 64 * 1024;
constexpr u64 STACK = 128 * 1024;
constexpr u64 SIGNAL_STACK = 64 * 1024;
constexpr u8 POISON = 0xff;

enum class State : u8 { READY, BLOCK_BARRIER, WARP_OPERATION, ENDED };

enum class Operation : u8 { SYNC_WARP, SHUFFLE, LOAD_MATRICES, LOAD_MATRICES_TRANSPOSED, MULTIPLY_ADD };

const char* name_of(Operation operation) {
    switch (operation) {
        case Operation::SYNC_WARP: return "sync_warp";
        case Operation::SHUFFLE: return "shuffle";
        case Operation::LOAD_MATRICES: return "load_matrices";
        case Operation::LOAD_MATRICES_TRANSPOSED: return "load_matrices_transposed";
        default: return "multiply_add";
    }
}

struct Shuffle {
    u64 bits;
    u32 from;
};

struct LoadMatrices {
    u32* to;
    const u8* row;
};

struct MultiplyAdd {
    f32* d;
    const u32* a;
    u32 b[2];
};

struct Copy {
    u8* to;
    const u8* from;
    bool valid;
    u32 group;
};

struct Thread : Position {
    Fiber fiber;
    State state;
    /// Where in the kernel it last called the machine.
    const void* place;
    /// Copies that have not landed, in order, and the number of closed groups.
    std::vector<Copy> copies;
    u32 groups;
};

/// Lanes that met at an operation, with what each gave.
struct Warp {
    u32 ready;
    u32 waiting;
    Operation operation;
    void* operands[WARP];
};

void* reserve(u64 bytes) {
    void* memory = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) abort();
    return memory;
}

void allow(void* memory, u64 bytes) {
    if (mprotect(memory, bytes, PROT_READ | PROT_WRITE) != 0) abort();
}

void forbid(void* memory, u64 bytes) {
    if (mprotect(memory, bytes, PROT_NONE) != 0) abort();
}

/// One multiprocessor with room for one block. Machines are kept and reused, one for each host thread that launches.
class Machine {
public:
    Machine() {
        stacks = static_cast<u8*>(reserve(MOST_THREADS * (GUARD + STACK) + GUARD));
        page = static_cast<u64>(sysconf(_SC_PAGESIZE));
        shared_bytes = (MOST_SHARED + page - 1) / page * page;
        shared_end = static_cast<u8*>(reserve(GUARD + shared_bytes + GUARD)) + GUARD + shared_bytes;
    }

    i32 run(Launch& launch, const char* kernel, void (*body)(const void*));

    [[noreturn]] void fail(u64 address, const char* format, ...) __attribute__((format(printf, 3, 4)));
    void wait_for_block(Thread& thread);
    void wait_for_warp(Thread& thread, Operation operation, void* operand);
    [[noreturn]] void end(Thread& thread);
    void check_shared(const void* at, const char* what);
    [[noreturn]] void fault(i32 signal, const siginfo_t* info, const ucontext_t* context);

    Thread& thread() { return *static_cast<Thread*>(current); }
    void call_body() { body(arguments); }

private:
    bool describe(const char* format, ...) __attribute__((format(printf, 2, 3)));
    void run_block(u64 block);
    void go_on(Thread& from);
    Thread* choose();
    void choose_warp();
    void perform(Warp& warp);
    void make_ready(u32 first, u32 count);
    [[noreturn]] void report_stuck();
    u32 random();

    Launch* launch = nullptr;
    const char* kernel = nullptr;
    void (*body)(const void*) = nullptr;
    void* arguments = nullptr;
    bool failed = false;

    Fiber launcher;
    u8* stacks = nullptr;
    u32 stacks_made = 0;
    u64 page = 0;
    /// The pages that hold a block's shared memory at the most end here, where a guard starts.
    u8* shared_end = nullptr;
    u64 shared_bytes = 0;
    /// The launch's shared memory, and the start of the pages that it lies in.
    u8* shared = nullptr;
    u8* shared_pages = nullptr;
    alignas(16) u8 signal_stack[SIGNAL_STACK];
    alignas(64) u8 argument_copy[MOST_ARGUMENT_BYTES];

    Thread threads[MOST_THREADS];
    Warp warps[MOST_THREADS / WARP];
    u32 warp_count = 0;
    u32 ended = 0;
    u32 at_barrier = 0;
    /// Which warp runs, and how many of its lanes had their turn.
    u32 warp = 0;
    u32 turn = 0;
    u32 lane_step = 1, lane_start = 0;
    u64 random_state = 0;
};

__thread Machine* machine = nullptr;

/// What every fiber starts with.
void start_thread() {
    machine->call_body();
    machine->end(machine->thread());
}

// ---- scheduling --------------------------------------------------------------------------------------------------

u32 Machine::random() {
    // SplitMix64 (Steele et al. 2014).
    u64 z = random_state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return static_cast<u32>(z >> 32);
}

/// Chooses a warp with threads that can run, if there is one, and the order of its lanes.
void Machine::choose_warp() {
    u32 first = 0, step = 1;
    lane_start = 0, lane_step = 1;
    if (launch->order == 1) {
        first = warp_count - 1, step = warp_count - 1;
        lane_start = WARP - 1, lane_step = WARP - 1;
    } else if (launch->order > 1) {
        first = random() % warp_count;
        // Any odd step visits all lanes.
        lane_start = random() % WARP, lane_step = random() % WARP | 1;
    }
    turn = 0;
    warp = first;
    for (u32 tried = 0; tried < warp_count && warps[warp].ready == 0; ++tried) warp = (warp + step) % warp_count;
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

/// Lets others run until it is this thread's turn again.
void Machine::go_on(Thread& from) {
    Thread* to = choose();
    if (to == nullptr) report_stuck();
    if (to == &from) return;
    current = to;
    switch_fiber(from.fiber, to->fiber);
}

void Machine::make_ready(u32 first, u32 count) {
    for (u32 index = first; index < first + count; ++index) threads[index].state = State::READY;
    for (u32 index = first / WARP; index < (first + count) / WARP; ++index) {
        warps[index].ready = WARP;
        warps[index].waiting = 0;
    }
    choose_warp();
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
        fail(0, "comes to %s while other lanes of its warp wait at %s", name_of(operation), name_of(mine.operation));
    }
    mine.operation = operation;
    mine.operands[thread.thread % WARP] = operand;
    thread.state = State::WARP_OPERATION;
    --mine.ready;
    if (++mine.waiting == WARP) {
        perform(mine);
        u32 first = thread.thread / WARP * WARP;
        u32 here = warp;
        make_ready(first, WARP);
        // Only a random order leaves a warp that can go on.
        if (launch->order <= 1) warp = here;
    }
    go_on(thread);
}

void Machine::end(Thread& thread) {
    thread.state = State::ENDED;
    --warps[thread.thread / WARP].ready;
    if (++ended == launch->threads) {
        current = nullptr;
        switch_fiber(thread.fiber, launcher);
    }
    go_on(thread);
    abort();
}

void Machine::run_block(u64 block) {
    u32 block_x = static_cast<u32>(block % launch->grid[0]);
    u32 block_y = static_cast<u32>(block / launch->grid[0] % launch->grid[1]);
    u32 block_z = static_cast<u32>(block / launch->grid[0] / launch->grid[1]);
    memset(shared_pages, POISON, static_cast<size_t>(shared_end - shared_pages));
    for (u32 index = 0; index < launch->threads; ++index) {
        Thread& thread = threads[index];
        static_cast<Position&>(thread) = {
            index, {block_x, block_y, block_z}, {launch->grid[0], launch->grid[1], launch->grid[2]}, shared};
        thread.copies.clear();
        thread.groups = 0;
        thread.place = nullptr;
        make_fiber(thread.fiber, stacks + GUARD + index * (GUARD + STACK), STACK, start_thread);
    }
    ended = at_barrier = 0;
    make_ready(0, launch->threads);
    Thread* first = choose();
    current = first;
    switch_fiber(launcher, first->fiber);
    current = nullptr;
    if (failed) return;
    auto touched = [](const u8* from, const u8* to) {
        while (from < to && *from == POISON) ++from;
        return from < to;
    };
    if (touched(shared_pages, shared) || touched(shared + launch->shared, shared_end)) {
        failed = describe("kernel %s, block (%u, %u, %u): something beside the %u bytes of shared memory was written",
                          kernel, block_x, block_y, block_z, launch->shared);
    }
}

i32 Machine::run(Launch& given, const char* name, void (*given_body)(const void*)) {
    launch = &given;
    kernel = name;
    body = given_body;
    failed = false;
    random_state = given.order;
    warp_count = given.threads / WARP;
    memcpy(argument_copy, given.arguments, given.argument_bytes);
    arguments = argument_copy;
    // As near to the guard as the alignment allows.
    u64 room = (given.shared + 127ull) / 128 * 128, pages = (room + page - 1) / page * page;
    shared = shared_end - room;
    shared_pages = shared_end - pages;
    forbid(shared_end - shared_bytes, shared_bytes - pages);
    allow(shared_pages, pages);
    for (; stacks_made < given.threads; ++stacks_made) allow(stacks + GUARD + stacks_made * (GUARD + STACK), STACK);

    stack_t own{}, before;
    own.ss_sp = signal_stack;
    own.ss_size = sizeof signal_stack;
    sigaltstack(&own, &before);
    u64 count = static_cast<u64>(given.grid[0]) * given.grid[1] * given.grid[2];
    for (u64 turn_of_block = 0; turn_of_block < count && !failed; ++turn_of_block) {
        u64 block = turn_of_block;
        if (given.order == 1) block = count - 1 - turn_of_block;
        // A prime step visits all blocks if it does not divide their number.
        if (given.order > 1) block = (turn_of_block * (count % 1000003 == 0 ? 1000033 : 1000003) + given.order) % count;
        run_block(block);
    }
    sigaltstack(&before, nullptr);
    return failed;
}

// ---- operations of a warp ----------------------------------------------------------------------------------------

void shuffle_lanes(void* const (&operands)[WARP]) {
    u64 bits[WARP];
    for (u32 lane = 0; lane < WARP; ++lane) bits[lane] = static_cast<Shuffle*>(operands[lane])->bits;
    for (void* operand : operands) {
        Shuffle& shuffle = *static_cast<Shuffle*>(operand);
        shuffle.bits = bits[shuffle.from % WARP];
    }
}

void load_four_matrices(void* const (&operands)[WARP], bool transposed) {
    u16 matrices[4][8][8];
    for (u32 lane = 0; lane < WARP; ++lane) {
        memcpy(matrices[lane / 8][lane % 8], static_cast<LoadMatrices*>(operands[lane])->row, 16);
    }
    for (u32 lane = 0; lane < WARP; ++lane) {
        u32 group = lane / 4, pair = lane % 4 * 2;
        for (u32 matrix = 0; matrix < 4; ++matrix) {
            auto& m = matrices[matrix];
            u32 low = transposed ? m[pair][group] : m[group][pair];
            u32 high = transposed ? m[pair + 1][group] : m[group][pair + 1];
            static_cast<LoadMatrices*>(operands[lane])->to[matrix] = low | high << 16;
        }
    }
}

void multiply_add_tile(void* const (&operands)[WARP]) {
    f32 a[16][16], b[16][8], d[16][8];
    for (u32 lane = 0; lane < WARP; ++lane) {
        const MultiplyAdd& given = *static_cast<MultiplyAdd*>(operands[lane]);
        u32 group = lane / 4, pair = lane % 4 * 2;
        for (u32 part = 0; part < 4; ++part) {
            u32 row = group + part % 2 * 8, column = pair + part / 2 * 8;
            a[row][column] = low_bf16(given.a[part]);
            a[row][column + 1] = high_bf16(given.a[part]);
        }
        for (u32 part = 0; part < 2; ++part) {
            b[pair + part * 8][group] = low_bf16(given.b[part]);
            b[pair + part * 8 + 1][group] = high_bf16(given.b[part]);
        }
        for (u32 part = 0; part < 4; ++part) d[group + part / 2 * 8][pair + part % 2] = given.d[part];
    }
    for (u32 row = 0; row < 16; ++row) {
        for (u32 k = 0; k < 16; ++k) {
            for (u32 column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
        }
    }
    for (u32 lane = 0; lane < WARP; ++lane) {
        u32 group = lane / 4, pair = lane % 4 * 2;
        f32* to = static_cast<MultiplyAdd*>(operands[lane])->d;
        for (u32 part = 0; part < 4; ++part) to[part] = d[group + part / 2 * 8][pair + part % 2];
    }
}

void Machine::perform(Warp& at) {
    switch (at.operation) {
        case Operation::SYNC_WARP: return;
        case Operation::SHUFFLE: return shuffle_lanes(at.operands);
        case Operation::LOAD_MATRICES: return load_four_matrices(at.operands, false);
        case Operation::LOAD_MATRICES_TRANSPOSED: return load_four_matrices(at.operands, true);
        case Operation::MULTIPLY_ADD: return multiply_add_tile(at.operands);
    }
}

// ---- failures ----------------------------------------------------------------------------------------------------

/// Writes what went wrong for the caller; true.
bool Machine::describe(const char* format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(launch->message, launch->message_bytes, format, values);
    va_end(values);
    return true;
}

/// Where an instruction lies in the library that it came from; the harness finds the line.
void write_place(char* to, size_t room, const void* place) {
    Dl_info info;
    to[0] = 0;
    if (place == nullptr || dladdr(place, &info) == 0 || info.dli_fname == nullptr) return;
    u64 offset = static_cast<u64>(static_cast<const char*>(place) - static_cast<const char*>(info.dli_fbase));
    snprintf(to, room, " [%s+0x%llx]", info.dli_fname, offset);
}

/// Describes what the running thread did wrong and leaves the launch.
void Machine::fail(u64 address, const char* format, ...) {
    Thread& mine = thread();
    char what[1024], place[512];
    va_list values;
    va_start(values, format);
    vsnprintf(what, sizeof what, format, values);
    va_end(values);
    // The place is a return address, which may be on the next line already.
    write_place(place, sizeof place, mine.place == nullptr ? nullptr : static_cast<const u8*>(mine.place) - 1);
    launch->address = address;
    failed = describe("kernel %s, block (%u, %u, %u), thread %u: %s%s", kernel, mine.block[0], mine.block[1],
                      mine.block[2], mine.thread, what, place);
    current = nullptr;
    switch_fiber(mine.fiber, launcher);
    abort();
}

/// Says who waits where when nobody can go on.
void Machine::report_stuck() {
    const Thread& mine = thread();
    char text[2048];
    u64 used = 0;
    text[0] = 0;
    auto add = [&](const char* format, auto... values) {
        if (used < sizeof text) {
            i32 more = snprintf(text + used, sizeof text - used, format, values...);
            used += more > 0 ? static_cast<u64>(more) : 0;
        }
    };
    auto same = [&](const Thread& a, const Thread& b) {
        return a.state == b.state &&
               (a.state != State::WARP_OPERATION || warps[a.thread / WARP].operation == warps[b.thread / WARP].operation);
    };
    u32 runs = 0;
    for (u32 first = 0, last; first < launch->threads; first = last + 1) {
        const Thread& of = threads[first];
        for (last = first; last + 1 < launch->threads && same(of, threads[last + 1]);) ++last;
        if (++runs > 8) continue;
        add(runs == 1 ? " " : "; ");
        first == last ? add("thread %u ", first) : add("threads %u to %u ", first, last);
        char place[512];
        write_place(place, sizeof place, of.place == nullptr ? nullptr : static_cast<const u8*>(of.place) - 1);
        switch (of.state) {
            case State::ENDED: add("ended"); break;
            case State::BLOCK_BARRIER: add("at sync_block%s", place); break;
            default: add("at %s%s", name_of(warps[first / WARP].operation), place);
        }
    }
    if (runs > 8) add("; and so on");
    failed = describe("kernel %s, block (%u, %u, %u): threads wait for others that never come:%s", kernel,
                      mine.block[0], mine.block[1], mine.block[2], text);
    Fiber& from = threads[mine.thread].fiber;
    current = nullptr;
    switch_fiber(from, launcher);
    abort();
}

void Machine::check_shared(const void* at, const char* what) {
    const u8* byte = static_cast<const u8*>(at);
    u64 address = reinterpret_cast<u64>(at);
    if (byte < shared || byte + 16 > shared + launch->shared) {
        long long offset = static_cast<long long>(byte - shared);
        fail(0, "%s byte %lld of shared memory, which has %u", what, offset, launch->shared);
    }
    if (address % 16 != 0) {
        fail(0, "%s byte %lld of shared memory, which is no multiple of 16", what,
             static_cast<long long>(byte - shared));
    }
}

void Machine::fault(i32 signal, const siginfo_t* info, const ucontext_t* context) {
    const void* place = nullptr;
    const char* access = "accesses";
#if defined(__x86_64__) && defined(__linux__)
    place = reinterpret_cast<const void*>(context->uc_mcontext.gregs[REG_RIP]);
    access = (context->uc_mcontext.gregs[REG_ERR] & 2) != 0 ? "writes" : "reads";
#elif defined(__aarch64__) && defined(__linux__)
    place = reinterpret_cast<const void*>(context->uc_mcontext.pc);
#else
    (void)context;
#endif
    // Within the machine or the C library the kernel's own line is the one that called.
    Dl_info of_place, of_kernel;
    if (place != nullptr && dladdr(place, &of_place) != 0 &&
        dladdr(reinterpret_cast<const void*>(body), &of_kernel) != 0 && of_place.dli_fbase == of_kernel.dli_fbase) {
        thread().place = static_cast<const u8*>(place) + 1;
    }
    if (signal == SIGFPE) fail(0, "divides by zero");
    if (signal == SIGILL || signal == SIGTRAP) {
        fail(0, "does what C++ leaves undefined: a misaligned access, an index beyond an array, an overflow");
    }
    const u8* at = static_cast<const u8*>(info->si_addr);
    u64 address = reinterpret_cast<u64>(at);
    const u8* stack = stacks + GUARD + thread().thread * (GUARD + STACK);
    if (at >= stack - GUARD && at < stack) fail(0, "needs more than %llu bytes of stack", STACK);
    if (at >= shared_end - shared_bytes - GUARD && at < shared_end + GUARD) {
        fail(0, "%s byte %lld of shared memory, which has %u", access, static_cast<long long>(at - shared),
             launch->shared);
    }
    // A misaligned vector instruction faults without an address.
    if (info->si_code == SI_KERNEL) fail(0, "%s an address that is misaligned or no address at all", access);
    fail(address, "%s address 0x%llx", access, address);
}

constexpr i32 SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
struct sigaction previous[64];

/// Faults of kernels end the launch; all others are left to whom they were left to before.
void handle(i32 signal, siginfo_t* info, void* context) {
    if (current != nullptr) machine->fault(signal, info, static_cast<const ucontext_t*>(context));
    struct sigaction& before = previous[signal];
    if ((before.sa_flags & SA_SIGINFO) != 0) {
        before.sa_sigaction(signal, info, context);
    } else if (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN) {
        sigaction(signal, &before, nullptr);
    } else {
        before.sa_handler(signal);
    }
}

std::mutex idle_mutex;
std::vector<Machine*> idle;

Machine* take_machine() {
    std::lock_guard<std::mutex> lock(idle_mutex);
    static bool handled = false;
    if (!handled) {
        struct sigaction action {};
        action.sa_sigaction = handle;
        // The handler is left by a switch, so nothing may have to be undone.
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        for (i32 signal : SIGNALS) sigaction(signal, &action, &previous[signal]);
        handled = true;
    }
    if (idle.empty()) return new Machine;
    Machine* last = idle.back();
    idle.pop_back();
    return last;
}

void give_back(Machine* used) {
    std::lock_guard<std::mutex> lock(idle_mutex);
    idle.push_back(used);
}

/// The running thread, which is noted to have called the machine from `place`.
Thread& called_from(const void* place) {
    Thread& thread = machine->thread();
    thread.place = place;
    return thread;
}

}  // namespace

#define THE_CALLER called_from(__builtin_return_address(0))

// ---- what kernels call -------------------------------------------------------------------------------------------

void sync_block() { machine->wait_for_block(THE_CALLER); }

void sync_warp() { machine->wait_for_warp(THE_CALLER, Operation::SYNC_WARP, nullptr); }

u64 shuffle(u64 bits, u32 from) {
    Thread& thread = THE_CALLER;
    if (from >= WARP) machine->fail(0, "shuffles from lane %u", from);
    Shuffle operand{bits, from};
    machine->wait_for_warp(thread, Operation::SHUFFLE, &operand);
    return operand.bits;
}

void load_matrices(u32* to, const void* row, bool transposed) {
    Thread& thread = THE_CALLER;
    machine->check_shared(row, "loads a matrix's row from");
    LoadMatrices operand{to, static_cast<const u8*>(row)};
    machine->wait_for_warp(
        thread, transposed ? Operation::LOAD_MATRICES_TRANSPOSED : Operation::LOAD_MATRICES, &operand);
}

void multiply_add(f32* d, const u32* a, u32 b0, u32 b1) {
    MultiplyAdd operand{d, a, {b0, b1}};
    machine->wait_for_warp(THE_CALLER, Operation::MULTIPLY_ADD, &operand);
}

/// The copy lands when it is waited for; until then the place holds NaN, as what lies there is undefined from now on.
void copy_async(void* shared, const void* global, bool valid) {
    Thread& thread = THE_CALLER;
    machine->check_shared(shared, "copies to");
    const u8* from = static_cast<const u8*>(global);
    if (valid) {
        if (reinterpret_cast<u64>(from) % 16 != 0) {
            machine->fail(reinterpret_cast<u64>(from), "copies from address %p, which is no multiple of 16", global);
        }
        static_cast<void>(*static_cast<const volatile u8*>(from + 15));
    }
    memset(shared, POISON, 16);
    thread.copies.push_back({static_cast<u8*>(shared), from, valid, thread.groups});
}

void copy_async_commit() { ++THE_CALLER.groups; }

void copy_async_wait(u32 pending) {
    Thread& thread = THE_CALLER;
    size_t landed = 0;
    for (; landed < thread.copies.size(); ++landed) {
        const Copy& copy = thread.copies[landed];
        if (copy.group + pending >= thread.groups) break;
        copy.valid ? memcpy(copy.to, copy.from, 16) : memset(copy.to, 0, 16);
    }
    thread.copies.erase(thread.copies.begin(), thread.copies.begin() + static_cast<ptrdiff_t>(landed));
}

i32 run(Launch& launch, const char* kernel, u32 threads, u64 argument_bytes, void (*body)(const void*)) {
    auto refuse = [&](const char* why) {
        snprintf(launch.message, launch.message_bytes, "kernel %s, %u threads, %u bytes of shared memory: %s", kernel,
                 launch.threads, launch.shared, why);
        return 1;
    };
    launch.address = 0;
    if (launch.threads != threads) return refuse("the kernel was made for another number of threads");
    if (launch.argument_bytes != argument_bytes) return refuse("the argument has another size on the host");
    if (launch.shared > MOST_SHARED) return refuse("no block has so much shared memory");
    if (launch.grid[0] == 0 || launch.grid[1] == 0 || launch.grid[2] == 0) return refuse("the grid is empty");
    if (launch.grid[0] > 0x7fffffffu || launch.grid[1] > 65535 || launch.grid[2] > 65535) {
        return refuse("the grid is too large");
    }
    machine = take_machine();
    i32 result = machine->run(launch, kernel, body);
    give_back(machine);
    machine = nullptr;
    return result;
}

}  // namespace emulation
