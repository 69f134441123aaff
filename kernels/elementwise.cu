// Element by element: constants, sums, dropout, roundings. `src/backend/cuda/elementwise.rs` has the twins.
#include "prelude.cuh"

constexpr u32 THREADS = 256;

/// The first of the eight elements that are the thread's, in an operation on all elements alike.
DEVICE u32 first_element() { return (block_x() * THREADS + thread_index()) * 8; }

template <class T>
DEVICE Eight<T> read_elements(const T* from, u32 first, u32 count, bool aligned) {
    if (aligned && first + 8 <= count) return read_eight<true>(from, first, count);
    return read_eight<false>(from, first, count);
}
template <class T>
DEVICE void write_elements(T* to, u32 first, u32 count, const f32 (&values)[8], bool aligned) {
    if (aligned && first + 8 <= count) {
        write_eight<true>(to, first, count, values);
    } else {
        write_eight<false>(to, first, count, values);
    }
}

/// Every element becomes `value`.
template <class T>
struct Fill {
    const Step* step;
    /// `[rows, cols]`
    T* out;
    Rows rows;
    u32 cols;
    f32 value;
    /// Whether `out` is a multiple of 16
    u32 aligned;
    u32 unused;
};

template <class T>
DEVICE void fill(const Fill<T>& args) {
    constexpr u32 elements = 16 / sizeof(T);
    const u32 count = row_count(args.step, args.rows) * args.cols;
    const u32 first = (block_x() * THREADS + thread_index()) * elements;
    if (first >= count) return;
    if (args.aligned != 0 && first + elements <= count) {
        u32 word = sizeof(T) == 2 ? pack_bf16(args.value, args.value) : f32_to_bits(args.value);
        *reinterpret_cast<Pack*>(args.out + first) = Pack{{word, word, word, word}};
    } else {
        UNROLL for (u32 i = 0; i < elements; ++i) {
            if (first + i < count) store(args.out + first + i, args.value);
        }
    }
}
KERNEL(fill_bf16, Fill<bf16>, THREADS, 4) { fill(args); }
KERNEL(fill_f32, Fill<f32>, THREADS, 4) { fill(args); }

/// `into += from`, or `into = from`
template <class From, class Into>
struct Accumulate {
    const Step* step;
    /// `[rows, cols]`
    const From* from;
    /// `[rows, cols]`
    Into* into;
    Rows rows;
    u32 cols;
    /// Whether both are multiples of 16
    u32 aligned;
    /// Whether to add to what is there
    u32 add;
    u32 unused;
};

template <class From, class Into>
DEVICE void accumulate(const Accumulate<From, Into>& args) {
    const u32 count = row_count(args.step, args.rows) * args.cols, first = first_element();
    if (first >= count) return;
    f32 sums[8] = {}, others[8];
    if (args.add != 0) unpack(sums, read_elements(args.into, first, count, args.aligned != 0));
    unpack(others, read_elements(args.from, first, count, args.aligned != 0));
    UNROLL for (u32 i = 0; i < 8; ++i) sums[i] += others[i];
    write_elements(args.into, first, count, sums, args.aligned != 0);
}
using AccumulateBf16 = Accumulate<bf16, bf16>;
using AccumulateF32 = Accumulate<f32, f32>;
using AccumulateRounded = Accumulate<f32, bf16>;
KERNEL(accumulate_bf16, AccumulateBf16, THREADS, 4) { accumulate(args); }
KERNEL(accumulate_f32, AccumulateF32, THREADS, 4) { accumulate(args); }
KERNEL(accumulate_rounded, AccumulateRounded, THREADS, 4) { accumulate(args); }

/// `out = x * keep`
template <class T>
struct Drop {
    const Step* step;
    /// `[rows, cols]`
    const T* x;
    /// The rows' keys, `[rows]`; where there are none, a row's key is its number
    const u32* keys;
    /// `[rows, cols]`
    T* out;
    Rows rows;
    Dropout dropout;
    u32 cols;
    /// Whether rows may be moved by packs
    u32 whole;
    u32 unused;
};

template <bool whole, class T>
DEVICE void drop(const Drop<T>& args) {
    const u32 eights = ceiling_division(args.cols, 8), eight = block_x() * THREADS + thread_index();
    const u32 row = eight / eights, column = eight % eights * 8;
    if (row >= row_count(args.step, args.rows)) return;
    const u64 first = static_cast<u64>(row) * args.cols;
    f32 values[8];
    unpack(values, read_eight<whole>(args.x + first, column, args.cols));
    if (args.dropout.threshold > 0)
        drop_eight(values, args.step, args.dropout, args.keys != nullptr ? args.keys[row] : row, column / 8);
    write_eight<whole>(args.out + first, column, args.cols, values);
}
KERNEL(drop_bf16, Drop<bf16>, THREADS, 4) { args.whole != 0 ? drop<true>(args) : drop<false>(args); }
KERNEL(drop_f32, Drop<f32>, THREADS, 4) { args.whole != 0 ? drop<true>(args) : drop<false>(args); }

/// The copy of the parameters that products read.
struct Round {
    /// `[count]`, a multiple of 16
    const f32* from;
    /// `[count]`, a multiple of 16
    bf16* to;
    u32 count;
    u32 unused;
};

KERNEL(round_to_bf16, Round, THREADS, 4) {
    const u32 first = first_element();
    if (first >= args.count) return;
    f32 values[8];
    unpack(values, read_elements(args.from, first, args.count, true));
    write_elements(args.to, first, args.count, values, true);
}
