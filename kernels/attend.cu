// One query a sequence over the tokens of one of its two texts (Liu et al. 2019, section 3.1), a block a sequence.
// `src/backend/cuda/attend.rs` has the structs' twins.
#include "loss.cuh"

constexpr u32 WARPS = 8;
constexpr u32 THREADS = 32 * WARPS;
/// Rows that a block of the shared query's gradient sums.
constexpr u32 PART_ROWS = 64;

/// `sum a[i] b[i]` by a warp, the same in every lane.
template <class T>
DEVICE f32 warp_dot(const T* a, const T* b, u32 count) {
    f32 sum = 0.0f;
    for (u32 i = lane_index(); i < count; i += 32) sum = fmaf(to_f32(a[i]), to_f32(b[i]), sum);
    return warp_sum(sum);
}

/// The same in f64.
template <class T>
DEVICE f64 exact_dot(const T* a, const T* b, u32 count) {
    f64 sum = 0.0;
    for (u32 i = lane_index(); i < count; i += 32) sum += static_cast<f64>(to_f32(a[i])) * to_f32(b[i]);
    return warp_sum(sum);
}

template <class T>
struct Attend {
    const Step* step;
    /// `[tokens, cols]`
    const T* keys;
    /// `[tokens, cols]`
    const T* values;
    /// `[sequences, cols]`, or `[1, cols]`
    const T* query;
    /// `[tokens]`
    const u32* types;
    /// `[sequences]`
    const u32* starts;
    /// `[sequences]`
    const u32* ends;
    /// `[tokens]`; zeros before
    f32* weights;
    /// `[sequences, cols]`
    T* out;
    u32 cols;
    u32 segment;
    /// Whether all sequences have the same query
    u32 shared_query;
    u32 unused;
};

/// The softmax over the sequence's tokens of the text, then the weighted sum of the values, a thread a column.
template <class T>
DEVICE void attend(const Attend<T>& args) {
    const u32 sequence = block_x(), cols = args.cols;
    if (sequence >= args.step->sequences) return;
    const u32 first = args.starts[sequence], count = args.ends[sequence] - first;
    const T* query = args.query + (args.shared_query != 0 ? 0 : static_cast<u64>(sequence) * cols);
    f32* weights = args.weights + first;
    for (u32 token = warp_index(); token < count; token += WARPS) {
        f32 score = minus_infinity();
        if (args.types[first + token] == args.segment)
            score = warp_dot(args.keys + static_cast<u64>(first + token) * cols, query, cols);
        if (lane_index() == 0) weights[token] = score;
    }
    sync_block();
    Softmax all = softmax<WARPS>(weights, count, 1.0f, reinterpret_cast<Softmax*>(shared_memory()));
    // Without tokens all weights are zero; a sum that is no number shows.
    const f32 scale = all.sum == 0.0f ? 0.0f : 1.0f / all.sum;
    for (u32 token = thread_index(); token < count; token += THREADS)
        weights[token] = expf(weights[token] - base_of(all.largest)) * scale;
    sync_block();
    const T* values = args.values + static_cast<u64>(first) * cols;
    for (u32 column = thread_index(); column < cols; column += THREADS) {
        f32 sum = 0.0f;
        for (u32 token = 0; token < count; ++token)
            sum = fmaf(weights[token], to_f32(values[static_cast<u64>(token) * cols + column]), sum);
        store(args.out + static_cast<u64>(sequence) * cols + column, sum);
    }
}
KERNEL(attend_bf16, Attend<bf16>, THREADS, 4) { attend(args); }
KERNEL(attend_f32, Attend<f32>, THREADS, 4) { attend(args); }

template <class T>
struct AttendGrad {
    const Step* step;
    /// `[tokens, cols]`
    const T* keys;
    /// `[tokens, cols]`
    const T* values;
    /// `[sequences, cols]`, or `[1, cols]`
    const T* query;
    /// `[sequences]`
    const u32* starts;
    /// `[sequences]`
    const u32* ends;
    /// `[tokens]`
    const f32* weights;
    /// `[sequences, cols]`
    const T* d_out;
    /// `[tokens]`; zeros before
    f32* d_scores;
    /// `[tokens, cols]`; zeros before, or what is added to
    T* d_keys;
    /// The same; null where the keys are the values, and then part of `d_keys`
    T* d_values;
    /// `[sequences, cols]`; null where all sequences have the same query
    T* d_query;
    u32 cols;
    u32 add_to_keys;
    u32 add_to_values;
    u32 add_to_query;
};

template <class T>
DEVICE void attend_grad(const AttendGrad<T>& args) {
    const u32 sequence = block_x(), cols = args.cols;
    if (sequence >= args.step->sequences) return;
    const u32 first = args.starts[sequence], count = args.ends[sequence] - first;
    const u64 own = static_cast<u64>(sequence) * cols, start = static_cast<u64>(first) * cols;
    const T* d_out = args.d_out + own;
    const f32* weights = args.weights + first;
    f32* d_scores = args.d_scores + first;
    // In f64 up to the difference: tokens of one text are alike, and it cancels.
    f64 mean = 0.0;
    for (u32 token = warp_index(); token < count; token += WARPS) {
        f64 d_weight = exact_dot(args.values + start + static_cast<u64>(token) * cols, d_out, cols);
        if (lane_index() == 0) mean += weights[token] * d_weight;
    }
    mean = block_sum<WARPS>(mean, reinterpret_cast<f64*>(shared_memory()));
    for (u32 token = warp_index(); token < count; token += WARPS) {
        f64 d_weight = exact_dot(args.values + start + static_cast<u64>(token) * cols, d_out, cols);
        if (lane_index() == 0) d_scores[token] = weights[token] * static_cast<f32>(d_weight - mean);
    }
    sync_block();
    for (u32 column = thread_index(); column < cols; column += THREADS) {
        const f32 query = to_f32(args.query[(args.d_query != nullptr ? own : 0) + column]);
        const f32 d = to_f32(d_out[column]);
        f32 sum = 0.0f;
        for (u32 token = 0; token < count; ++token) {
            const u64 at = start + static_cast<u64>(token) * cols + column;
            const f32 of_value = weights[token] * d;
            f32 of_key = d_scores[token] * query;
            sum = fmaf(d_scores[token], to_f32(args.keys[at]), sum);
            if (args.d_values == nullptr) {
                of_key += of_value;
            } else {
                store(args.d_values + at, of_value + (args.add_to_values != 0 ? to_f32(args.d_values[at]) : 0.0f));
            }
            store(args.d_keys + at, of_key + (args.add_to_keys != 0 ? to_f32(args.d_keys[at]) : 0.0f));
        }
        if (args.d_query == nullptr) continue;
        T* to = args.d_query + own + column;
        store(to, sum + (args.add_to_query != 0 ? to_f32(*to) : 0.0f));
    }
}
KERNEL(attend_grad_bf16, AttendGrad<bf16>, THREADS, 2) { attend_grad(args); }
KERNEL(attend_grad_f32, AttendGrad<f32>, THREADS, 2) { attend_grad(args); }

template <class T>
struct QueryGrad {
    const Step* step;
    /// `[tokens, cols]`
    const T* keys;
    /// `[tokens]`
    const f32* d_scores;
    /// `[parts, cols]`
    f32* partials;
    u32 cols;
    u32 unused;
};

/// The gradient of a query that all sequences share, a part of the rows a block, a thread a column: the sum over tokens
/// of `d_scores keys`.
template <class T>
DEVICE void query_grad(const QueryGrad<T>& args) {
    const u32 column = block_x() * THREADS + thread_index(), cols = args.cols, tokens = args.step->tokens;
    if (column >= cols) return;
    const u32 first = block_y() * PART_ROWS;
    f32 sum = 0.0f;
    for (u32 row = first; row < first + PART_ROWS && row < tokens; ++row)
        sum = fmaf(args.d_scores[row], to_f32(args.keys[static_cast<u64>(row) * cols + column]), sum);
    args.partials[static_cast<u64>(block_y()) * cols + column] = sum;
}
KERNEL(query_grad_bf16, QueryGrad<bf16>, THREADS, 4) { query_grad(args); }
KERNEL(query_grad_f32, QueryGrad<f32>, THREADS, 4) { query_grad(args); }
