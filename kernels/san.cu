// What the steps of a stochastic answer network compute beside products and attention (Liu et al. 2019, section 3.1): a
// gated recurrent unit, the merge of state and input, and the average of the steps' answers.
// `src/backend/cuda/san.rs` has the structs' twins.
#include "loss.cuh"

constexpr u32 THREADS = 256;
/// The most steps of an average.
constexpr u32 MOST_STEPS = 16;

/// What is there where it is added to, else zero.
template <class T>
DEVICE f32 before(const T* at, u32 add) {
    return add != 0 ? to_f32(*at) : 0.0f;
}

// ---- the gated recurrent unit -----------------------------------------------------------------------------------

template <class T>
struct Gru {
    const Step* step;
    /// `[rows, 3 * cols]`: r, z, n side by side
    const T* of_input;
    /// `[rows, 3 * cols]`
    const T* of_state;
    /// `[rows, cols]`
    const T* state;
    /// `[rows, cols]`
    T* out;
    Rows rows;
    u32 cols;
    u32 unused;
};

template <class T>
struct GruGrad {
    const Step* step;
    /// `[rows, 3 * cols]`
    const T* of_input;
    /// `[rows, 3 * cols]`
    const T* of_state;
    /// `[rows, cols]`
    const T* state;
    /// `[rows, cols]`
    const T* d_out;
    /// `[rows, 3 * cols]`
    T* d_of_input;
    /// `[rows, 3 * cols]`
    T* d_of_state;
    /// `[rows, cols]`
    T* d_state;
    Rows rows;
    u32 cols;
    /// Whether to add to the state's gradient
    u32 add;
};

DEVICE f32 sigmoid(f32 x) { return 1.0f / (1.0f + expf(-x)); }

/// The gates of one element, and what r gates.
struct Gates {
    f32 r, z, n, gated;
};

template <class T>
DEVICE Gates gates(const T* of_input, const T* of_state, u32 cols) {
    f32 r = sigmoid(to_f32(of_input[0]) + to_f32(of_state[0]));
    f32 z = sigmoid(to_f32(of_input[cols]) + to_f32(of_state[cols]));
    f32 gated = to_f32(of_state[2 * cols]);
    return {r, z, tanhf(to_f32(of_input[2 * cols]) + r * gated), gated};
}

/// A thread an element: `out = (1 - z) n + z state`.
template <class T>
DEVICE void gru(const Gru<T>& args) {
    const u32 cols = args.cols, i = block_x() * THREADS + thread_index(), row = i / cols;
    if (row >= row_count(args.step, args.rows)) return;
    const u64 first = 3 * static_cast<u64>(row) * cols + i % cols;
    Gates g = gates(args.of_input + first, args.of_state + first, cols);
    store(args.out + i, g.n + g.z * (to_f32(args.state[i]) - g.n));
}
KERNEL(gru_bf16, Gru<bf16>, THREADS, 4) { gru(args); }
KERNEL(gru_f32, Gru<f32>, THREADS, 4) { gru(args); }

template <class T>
DEVICE void gru_grad(const GruGrad<T>& args) {
    const u32 cols = args.cols, i = block_x() * THREADS + thread_index(), row = i / cols;
    if (row >= row_count(args.step, args.rows)) return;
    const u64 first = 3 * static_cast<u64>(row) * cols + i % cols;
    Gates g = gates(args.of_input + first, args.of_state + first, cols);
    const f32 d = to_f32(args.d_out[i]);
    const f32 d_n = d * (1.0f - g.z) * (1.0f - g.n * g.n);
    const f32 d_r = d_n * g.gated * g.r * (1.0f - g.r);
    const f32 d_z = d * (to_f32(args.state[i]) - g.n) * g.z * (1.0f - g.z);
    store(args.d_of_input + first, d_r);
    store(args.d_of_input + first + cols, d_z);
    store(args.d_of_input + first + 2 * cols, d_n);
    store(args.d_of_state + first, d_r);
    store(args.d_of_state + first + cols, d_z);
    store(args.d_of_state + first + 2 * cols, d_n * g.r);
    store(args.d_state + i, d * g.z + before(args.d_state + i, args.add));
}
KERNEL(gru_grad_bf16, GruGrad<bf16>, THREADS, 4) { gru_grad(args); }
KERNEL(gru_grad_f32, GruGrad<f32>, THREADS, 4) { gru_grad(args); }

// ---- the merge --------------------------------------------------------------------------------------------------

template <class T>
struct Merge {
    const Step* step;
    /// `[rows, cols]`
    const T* a;
    /// `[rows, cols]`
    const T* b;
    /// `[rows, 4 * cols]`; backward its gradient
    T* merged;
    /// `[rows, cols]`, backward
    T* d_a;
    /// `[rows, cols]`, backward
    T* d_b;
    Rows rows;
    u32 cols;
    u32 add_to_a;
    u32 add_to_b;
    u32 unused;
};

/// A thread an element: `[a; b; |a - b|; a b]`.
template <class T>
DEVICE void merge(const Merge<T>& args) {
    const u32 cols = args.cols, i = block_x() * THREADS + thread_index(), row = i / cols;
    if (row >= row_count(args.step, args.rows)) return;
    const f32 a = to_f32(args.a[i]), b = to_f32(args.b[i]);
    T* to = args.merged + 4 * static_cast<u64>(row) * cols + i % cols;
    store(to, a);
    store(to + cols, b);
    store(to + 2 * cols, fabsf(a - b));
    store(to + 3 * cols, a * b);
}
KERNEL(merge_bf16, Merge<bf16>, THREADS, 4) { merge(args); }
KERNEL(merge_f32, Merge<f32>, THREADS, 4) { merge(args); }

template <class T>
DEVICE void merge_grad(const Merge<T>& args) {
    const u32 cols = args.cols, i = block_x() * THREADS + thread_index(), row = i / cols;
    if (row >= row_count(args.step, args.rows)) return;
    const f32 a = to_f32(args.a[i]), b = to_f32(args.b[i]);
    const T* d = args.merged + 4 * static_cast<u64>(row) * cols + i % cols;
    const f32 of_difference = to_f32(d[2 * cols]), of_product = to_f32(d[3 * cols]);
    const f32 signed_difference = a == b ? 0.0f : a > b ? of_difference : -of_difference;
    store(args.d_a + i, before(args.d_a + i, args.add_to_a) + to_f32(d[0]) + signed_difference + b * of_product);
    store(args.d_b + i, before(args.d_b + i, args.add_to_b) + to_f32(d[cols]) - signed_difference + a * of_product);
}
KERNEL(merge_grad_bf16, Merge<bf16>, THREADS, 4) { merge_grad(args); }
KERNEL(merge_grad_f32, Merge<f32>, THREADS, 4) { merge_grad(args); }

// ---- the average of the steps -----------------------------------------------------------------------------------

struct StepAverage {
    const Step* step;
    /// `[rows, classes]` each
    const f32* logits[MOST_STEPS];
    /// `[rows, classes]`
    f32* out;
    /// `[rows, classes]`, backward
    const f32* d_out;
    /// `[rows, classes]` each, backward
    f32* d_logits[MOST_STEPS];
    Rows rows;
    Dropout dropout;
    u32 steps;
    u32 classes;
    u32 unused;
};

/// Which steps a row keeps, a bit each: those whose draw says so, and one that a draw of its own picks.
DEVICE u32 kept_steps(const StepAverage& args, u32 row) {
    if (args.dropout.threshold == 0) return (1u << args.steps) - 1;
    u32 words[4];
    draw_eight(words, args.step, args.dropout, 0, row, MOST_STEPS / 8);
    u32 kept = 1u << ((words[0] & 0xffffu) * args.steps >> 16);
    for (u32 block = 0; 8 * block < args.steps; ++block) {
        draw_eight(words, args.step, args.dropout, 0, row, block);
        UNROLL for (u32 i = 0; i < 8; ++i) {
            if (8 * block + i < args.steps && keep_factor(words, args.dropout, i) > 0.0f) kept |= 1u << (8 * block + i);
        }
    }
    return kept;
}

/// What is taken from a step's logits to make them logarithms of probabilities.
DEVICE f32 log_sum(const f32* logits, u32 classes) {
    f32 largest = minus_infinity(), sum = 0.0f;
    for (u32 i = 0; i < classes; ++i) largest = fmaxf(largest, logits[i]);
    for (u32 i = 0; i < classes; ++i) sum += expf(logits[i] - largest);
    return largest + logf(sum);
}

/// A thread a row: `out = log(mean over the steps kept of softmax(logits))`.
KERNEL(step_average, StepAverage, THREADS, 1) {
    const u32 row = block_x() * THREADS + thread_index(), classes = args.classes;
    if (row >= row_count(args.step, args.rows)) return;
    const u32 kept = kept_steps(args, row);
    const u64 first = static_cast<u64>(row) * classes;
    f32 count = 0.0f;
    for (u32 step = 0; step < args.steps; ++step) count += static_cast<f32>(kept >> step & 1);
    for (u32 i = 0; i < classes; ++i) {
        Softmax all = {minus_infinity(), 0.0f};
        for (u32 step = 0; step < args.steps; ++step) {
            if ((kept >> step & 1) == 0) continue;
            const f32* logits = args.logits[step] + first;
            all = join(all, {logits[i] - log_sum(logits, classes), 1.0f});
        }
        args.out[first + i] = all.largest + logf(all.sum / count);
    }
}

KERNEL(step_average_grad, StepAverage, THREADS, 1) {
    const u32 row = block_x() * THREADS + thread_index(), classes = args.classes;
    if (row >= row_count(args.step, args.rows)) return;
    const u32 kept = kept_steps(args, row);
    const u64 first = static_cast<u64>(row) * classes;
    const f32 *out = args.out + first, *d_out = args.d_out + first;
    f32 count = 0.0f;
    for (u32 step = 0; step < args.steps; ++step) count += static_cast<f32>(kept >> step & 1);
    for (u32 step = 0; step < args.steps; ++step) {
        const f32* logits = args.logits[step] + first;
        f32* d_logits = args.d_logits[step] + first;
        const bool keeps = (kept >> step & 1) != 0;
        const f32 base = log_sum(logits, classes), log_count = logf(count);
        f32 total = 0.0f;
        // The step's share of a class's probability, times the gradient of its logarithm.
        for (u32 i = 0; i < classes; ++i) total += expf(logits[i] - base - out[i] - log_count) * d_out[i];
        for (u32 i = 0; i < classes; ++i) {
            f32 share = expf(logits[i] - base - out[i] - log_count) * d_out[i];
            d_logits[i] = keeps ? share - expf(logits[i] - base) * total : 0.0f;
        }
    }
}
