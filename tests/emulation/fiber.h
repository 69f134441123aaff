// Fibers: stacks of their own that are switched between by a call.
#pragma once

#include <stddef.h>

#if defined(__x86_64__) && defined(__linux__)

/// Where a fiber goes on: the top of its stack, with the registers that a call preserves.
struct Fiber {
    void** top;
};

// Puts the registers of the caller on its stack, that stack's top to `*from`, and takes up what lies at `to`.
extern "C" void emulation_switch(void*** from, void** to);
asm(R"(
    .pushsection .text
    .type emulation_switch, @function
emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emulation_switch, . - emulation_switch
    .popsection
)");

static inline void switch_fiber(Fiber& from, Fiber& to) { emulation_switch(&from.top, to.top); }

/// A fiber that calls `start`, which must not return.
static inline void make_fiber(Fiber& fiber, void* stack, size_t bytes, void (*start)()) {
    void** top = reinterpret_cast<void**>(static_cast<char*>(stack) + bytes);
    *--top = nullptr;  // where `start` would return to: a call leaves the stack 8 bytes off a multiple of 16
    *--top = reinterpret_cast<void*>(start);
    for (int preserved = 0; preserved < 6; ++preserved) *--top = nullptr;
    fiber.top = top;
}

#else

#include <ucontext.h>

struct Fiber {
    ucontext_t context;
};

static inline void switch_fiber(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

static inline void make_fiber(Fiber& fiber, void* stack, size_t bytes, void (*start)()) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, start, 0);
}

#endif
