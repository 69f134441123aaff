// Rows picked out of a matrix, and put back. `src/backend/cuda/gather.rs` has the struct's twin.
#include "prelude.cuh"

constexpr u32 THREADS = 256;

/// `to[s] = from[rows[s]]`, or `to[rows[s]] = from[s]`, each row at most once.
template <class T>
struct Gather {
    const Step* step;
    /// `[_, cols]`
    const T* from;
    /// `[count]`
    const u32* rows;
    /// `[_, cols]`
    T* to;
    Rows count;
    u32 cols;
    /// Whether to add to what is there
    u32 add;
    /// Whether rows may be moved by packs
    u32 whole;
    u32 unused;
};

template <bool whole, bool gather, class T>
DEVICE void move_rows(const Gather<T>& args) {
    const u32 eights = ceiling_division(args.cols, 8), eight = block_x() * THREADS + thread_index();
    const u32 listed = eight / eights, column = eight % eights * 8;
    if (listed >= row_count(args.step, args.count)) return;
    const u32 picked = args.rows[listed];
    f32 values[8];
    unpack(values, read_eight<whole>(args.from + static_cast<u64>(gather ? picked : listed) * args.cols, column,
                                     args.cols));
    sink_eight<whole>(args.to + static_cast<u64>(gather ? listed : picked) * args.cols, column, args.cols, values,
                      args.add != 0);
}

template <bool gather, class T>
DEVICE void move_rows(const Gather<T>& args) {
    args.whole != 0 ? move_rows<true, gather>(args) : move_rows<false, gather>(args);
}

KERNEL(gather_bf16, Gather<bf16>, THREADS, 4) { move_rows<true>(args); }
KERNEL(gather_f32, Gather<f32>, THREADS, 4) { move_rows<true>(args); }
KERNEL(scatter_bf16, Gather<bf16>, THREADS, 4) { move_rows<false>(args); }
KERNEL(scatter_f32, Gather<f32>, THREADS, 4) { move_rows<false>(args); }
