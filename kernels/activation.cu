// Activations and their derivatives. `src/backend/cuda/activation.rs` has the struct's twin.
#include "activation.cuh"

constexpr u32 THREADS = 256;

/// `out = activation(before)`, or `out = d_after * activation'(before)` where there is a `d_after`.
template <class T>
struct Activate {
    const Step* step;
    /// `[rows, cols]`
    const T* before;
    /// `[rows, cols]`, or none
    const T* d_after;
    /// `[rows, cols]`; may be `before`
    T* out;
    Rows rows;
    u32 cols;
    /// An `Activation`
    u32 activation;
};

template <bool whole, class T>
DEVICE void activate_eight(const Activate<T>& args, u32 first, u32 count) {
    f32 values[8];
    unpack(values, read_eight<whole>(args.before, first, count));
    if (args.d_after == nullptr) {
        activate(args.activation, values);
        write_eight<whole>(args.out, first, count, values);
    } else {
        f32 gradients[8];
        unpack(gradients, read_eight<whole>(args.d_after, first, count));
        multiply_by_slope(args.activation, gradients, values);
        write_eight<whole>(args.out, first, count, gradients);
    }
}

template <class T>
DEVICE void activate_all(const Activate<T>& args) {
    const u32 count = row_count(args.step, args.rows) * args.cols;
    const u32 first = (block_x() * THREADS + thread_index()) * 8;
    if (first + 8 <= count) {
        activate_eight<true>(args, first, count);
    } else if (first < count) {
        activate_eight<false>(args, first, count);
    }
}
KERNEL(activate_bf16, Activate<bf16>, THREADS, 4) { activate_all(args); }
KERNEL(activate_f32, Activate<f32>, THREADS, 4) { activate_all(args); }
