// What kernels call of the machine, and how a launch comes to one.
#include <stdio.h>

#include <mutex>

#include "machine.h"

namespace emulation {

namespace {

constexpr i32 SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
struct sigaction previous[64];

/// Faults of kernels end the launch; all others are left to whom they were left to before.
void handle(i32 signal, siginfo_t* info, void* context) {
    if (current != nullptr) machine->fault(signal, info, static_cast<const ucontext_t*>(context));
    const struct sigaction& before = previous[signal];
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
        // The handler is left by a switch of fibers, so it must not change what would have to be put back.
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

/// Why no device would run the launch; null if one would.
const char* find_fault(const Launch& launch, u32 threads, u64 argument_bytes) {
    const u32(&grid)[3] = launch.grid;
    if (launch.threads != threads) return "the kernel was made for another number of threads";
    if (launch.argument_bytes != argument_bytes) return "the kernel's argument has another size";
    if (launch.shared > MOST_SHARED) return "no block has so much shared memory";
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0) return "the grid is empty";
    if (grid[0] > 0x7fffffffu || grid[1] > 65535 || grid[2] > 65535) return "the grid is too large";
    return nullptr;
}

}  // namespace

Thread& called_from(const void* place) {
    Thread& thread = machine->thread();
    thread.place = place;
    return thread;
}

i32 run(Launch& launch, const Kernel& kernel) {
    launch.address = 0;
    if (const char* why = find_fault(launch, kernel.threads, kernel.argument_bytes)) {
        snprintf(launch.message, launch.message_bytes, "kernel %s, %u threads, %u bytes of shared memory: %s",
                 kernel.name, launch.threads, launch.shared, why);
        return 1;
    }
    machine = take_machine();
    i32 result = machine->run(launch, kernel);
    give_back(machine);
    machine = nullptr;
    return result;
}

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
    LoadMatrices operand{to, row};
    Operation operation = transposed ? Operation::LOAD_MATRICES_TRANSPOSED : Operation::LOAD_MATRICES;
    machine->wait_for_warp(thread, operation, &operand);
}

void multiply_add(f32* d, const u32* a, u32 b0, u32 b1) {
    MultiplyAdd operand{d, a, {b0, b1}};
    machine->wait_for_warp(THE_CALLER, Operation::MULTIPLY_ADD, &operand);
}

/// The copy lands when it is waited for. Until then NaN lies where it goes to: what was there is lost from now on.
void copy_async(void* shared, const void* global, bool valid) {
    Thread& thread = THE_CALLER;
    machine->check_shared(shared, "copies to");
    const u8* from = static_cast<const u8*>(global);
    if (valid) {
        u64 address = reinterpret_cast<u64>(global);
        if (address % 16 != 0) machine->fail(address, "copies from address %p, which is no multiple of 16", global);
        // An address that must not be read is found here and now.
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

}  // namespace emulation
