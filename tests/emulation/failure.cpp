// What kernels do wrong, in words, and the way out of a launch from there.
#include "machine.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>

#include <string>

namespace emulation {

namespace {

/// Where an instruction lies in the library that it came from, as ` [library+0x12]`; the harness finds the line.
std::string place_of(const void* place) {
    Dl_info info;
    if (place == nullptr || dladdr(place, &info) == 0 || info.dli_fname == nullptr) return "";
    char offset[32];
    const u8* start = static_cast<const u8*>(info.dli_fbase);
    snprintf(offset, sizeof offset, "+0x%tx]", static_cast<const u8*>(place) - start);
    return std::string(" [") + info.dli_fname + offset;
}

/// The place of a call, given where it returns to, which may be on the next line already.
std::string place_of_call(const void* place) {
    return place_of(place == nullptr ? nullptr : static_cast<const u8*>(place) - 1);
}

}  // namespace

/// Writes for the caller what went wrong.
void Machine::describe(const char* format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(launch->message, launch->message_bytes, format, values);
    va_end(values);
    failed = true;
}

void Machine::fail(u64 address, const char* format, ...) {
    const Thread& mine = thread();
    char what[512];
    va_list values;
    va_start(values, format);
    vsnprintf(what, sizeof what, format, values);
    va_end(values);
    launch->address = address;
    describe("kernel %s, block (%u, %u, %u), thread %u: %s%s", kernel, mine.block[0], mine.block[1], mine.block[2],
             mine.thread, what, place_of_call(mine.place).c_str());
    leave();
}

/// Says who waits where when nobody can go on.
void Machine::report_stuck() {
    auto waits_at = [&](const Thread& thread) -> std::string {
        if (thread.state == State::ENDED) return "ended";
        if (thread.state == State::BLOCK_BARRIER) return "at sync_block";
        if (thread.state == State::NAMED_BARRIER) {
            const NamedBarrier& barrier = named_barriers[thread.named_barrier];
            if (thread.named_barrier >= NAMED_BARRIERS) return "at wgmma_commit, where not all of the warpgroup are";
            return "at the barrier " + std::to_string(thread.named_barrier) + " (" +
                   std::to_string(barrier.threads - barrier.arrived) + " threads missing)";
        }
        if (thread.state == State::SHARED_BARRIER) {
            const Barrier& barrier = barrier_at(thread.shared_barrier);
            return "at barrier_wait for parity " + std::to_string(thread.parity) + " (" +
                   std::to_string(barrier.missing) + " arrivals and " + std::to_string(barrier.missing_bytes) +
                   " bytes missing)";
        }
        return std::string("at ") + name_of(warps[thread.thread / WARP].operation);
    };
    constexpr u32 MOST_RUNS = 8;
    std::string text;
    u32 runs = 0;
    for (u32 first = 0, next = 0; first < launch->threads && runs <= MOST_RUNS; first = next, ++runs) {
        std::string where = waits_at(threads[first]);
        while (next < launch->threads && waits_at(threads[next]) == where) ++next;
        std::string numbers = std::to_string(first);
        if (next > first + 1) numbers += " to " + std::to_string(next - 1);
        text += runs == 0 ? " " : "; ";
        if (runs == MOST_RUNS) {
            text += "and so on";
        } else {
            text += (next > first + 1 ? "threads " : "thread ") + numbers + " " + where;
            if (threads[first].state != State::ENDED) text += place_of_call(threads[first].place);
        }
    }
    const u32(&block)[3] = current->block;
    describe("kernel %s, block (%u, %u, %u): threads wait for others that never come:%s", kernel, block[0],
             block[1], block[2], text.c_str());
    leave();
}

void Machine::check_shared(const void* at, const char* what) {
    long long offset = static_cast<const u8*>(at) - shared;
    if (offset < 0 || offset + 16 > launch->shared) {
        fail(0, "%s byte %lld of shared memory, which has %u", what, offset, launch->shared);
    }
    if (offset % 16 != 0) fail(0, "%s byte %lld of shared memory, which is no multiple of 16", what, offset);
}

/// Whether an instruction is the kernel's own, not the machine's or the C library's.
bool Machine::is_in_kernel(const void* place) {
    Dl_info of_place, of_kernel;
    return dladdr(place, &of_place) != 0 && dladdr(reinterpret_cast<const void*>(body), &of_kernel) != 0 &&
           of_place.dli_fbase == of_kernel.dli_fbase;
}

void Machine::fault(i32 signal, const siginfo_t* info, [[maybe_unused]] const ucontext_t* context) {
    Thread& mine = thread();
    const void* place = nullptr;
    const char* access = "accesses";
#if defined(__x86_64__) && defined(__linux__)
    place = reinterpret_cast<const void*>(context->uc_mcontext.gregs[REG_RIP]);
    access = (context->uc_mcontext.gregs[REG_ERR] & 2) != 0 ? "writes" : "reads";
#elif defined(__aarch64__) && defined(__linux__)
    place = reinterpret_cast<const void*>(context->uc_mcontext.pc);
#endif
    // Elsewhere the kernel's line is the one that called.
    if (place != nullptr && is_in_kernel(place)) mine.place = static_cast<const u8*>(place) + 1;
    if (signal == SIGFPE) fail(0, "divides by zero");
    if (signal == SIGILL || signal == SIGTRAP) {
        fail(0, "does what C++ leaves undefined: a misaligned access, an index beyond an array, an overflow");
    }
    const u8* at = static_cast<const u8*>(info->si_addr);
    const u8* stack = stacks + mine.thread * (STACK + GUARD);
    if (at >= stack - GUARD && at < stack) fail(0, "needs more than %llu bytes of stack", STACK);
    if (at >= shared_end - shared_bytes - GUARD && at < shared_end + GUARD) {
        long long offset = at - shared;
        fail(0, "%s byte %lld of shared memory, which has %u", access, offset, launch->shared);
    }
#ifdef SI_KERNEL
    // The processor tells no address where a vector is misaligned or the address is beyond all memory.
    if (info->si_code == SI_KERNEL) fail(0, "%s at an address that is misaligned or none at all", access);
#endif
    u64 address = reinterpret_cast<u64>(at);
    fail(address, "%s address 0x%llx", access, address);
}

}  // namespace emulation
