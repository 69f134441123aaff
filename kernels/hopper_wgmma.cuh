// The text of `wgmma.mma_async` for each number of columns: an instruction that names every register of its sums, which
// C++ has no words for. `hopper.cuh` includes it and has the functions.
#pragma once

// Places and operands of 32 sums each: `%0` to `%31`, and so on.
#define PLACES_0 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PLACES_1 \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PLACES_2 \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define PLACES_3 \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define SUMS_4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define SUMS_16(i) SUMS_4(i), SUMS_4((i) + 4), SUMS_4((i) + 8), SUMS_4((i) + 12)
#define SUMS_32(i) SUMS_16(i), SUMS_16((i) + 16)
#define JOIN(...) __VA_ARGS__

/// The instruction for so many columns of d.
template <u32 columns>
struct Wgmma;

// One size of `wgmma` and `wgmma_registers`. The numbers are the places behind the sums.
#define WGMMA(columns, places, sums, p0, p1, p2, p3, p4, p5, p6)                                                       \
    template <>                                                                                                        \
    struct Wgmma<columns> {                                                                                            \
        template <bool transpose_a, bool transpose_b>                                                                  \
        DEVICE void of_shared(f32 (&d)[columns / 2], u64 a, u64 b, bool accumulate) {                                  \
            asm volatile("{.reg .pred add; setp.ne.b32 add, " p2 ", 0; "                                               \
                         "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.bf16.bf16 {" places "}, " p0 ", " p1    \
                         ", add, 1, 1, " p3 ", " p4 ";}"                                                               \
                         : sums                                                                                        \
                         : "l"(a), "l"(b), "r"(static_cast<u32>(accumulate)), "n"(static_cast<u32>(transpose_a)),      \
                           "n"(static_cast<u32>(transpose_b))                                                          \
                         : "memory");                                                                                  \
        }                                                                                                              \
        template <bool transpose_b>                                                                                    \
        DEVICE void of_registers(f32 (&d)[columns / 2], const u32 (&a)[4], u64 b, bool accumulate) {                   \
            asm volatile("{.reg .pred add; setp.ne.b32 add, " p5 ", 0; "                                               \
                         "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.bf16.bf16 {" places "}, {" p0 ", " p1   \
                         ", " p2 ", " p3 "}, " p4 ", add, 1, 1, " p6 ";}"                                              \
                         : sums                                                                                        \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<u32>(accumulate)),      \
                           "n"(static_cast<u32>(transpose_b))                                                          \
                         : "memory");                                                                                  \
        }                                                                                                              \
    };

WGMMA(64, PLACES_0, JOIN(SUMS_32(0)), "%32", "%33", "%34", "%35", "%36", "%37", "%38")
WGMMA(128, PLACES_0 ", " PLACES_1, JOIN(SUMS_32(0), SUMS_32(32)), "%64", "%65", "%66", "%67", "%68", "%69", "%70")
WGMMA(192, PLACES_0 ", " PLACES_1 ", " PLACES_2, JOIN(SUMS_32(0), SUMS_32(32), SUMS_32(64)),
      "%96", "%97", "%98", "%99", "%100", "%101", "%102")
WGMMA(256, PLACES_0 ", " PLACES_1 ", " PLACES_2 ", " PLACES_3,
      JOIN(SUMS_32(0), SUMS_32(32), SUMS_32(64), SUMS_32(96)), "%128", "%129", "%130", "%131", "%132", "%133", "%134")
