// Layer normalization (Ba, Kiros and Hinton 2016) of a sum, with the dropout before it; and of the embedding's sum,
// with the dropout after it. `src/backend/cuda/norm.rs` has the structs' twins.
//
// A row lies in the registers of one warp, or of the whole block where it is wide: some eights of columns in a
// thread, the neighbouring eight in the neighbouring lane. So mean and variance are taken one after the other,
// without the cancellation of a difference of squares, and memory is read once.
#include "prelude.cuh"

/// Threads of a block forward and backward, where half of the registers hold sums.
constexpr u32 FORWARD = 256, BACKWARD = 128;

/// The column of the thread's eight number `i`, in a row that `warps` warps share.
template <u32 warps>
DEVICE u32 strip_column(u32 i) {
    return 8 * (i * 32 * warps + thread_index() % (32 * warps));
}

/// The sum over the threads that share a row. Where they are a block it goes by `sums` `[warps]` in shared memory,
/// which the caller must not use again before the next barrier.
template <u32 warps>
DEVICE f32 row_sum(f32 value, f32* sums) {
    value = warp_sum(value);
    if constexpr (warps > 1) {
        if (lane_index() == 0) sums[warp_index()] = value;
        sync_block();
        value = sums[0];
        UNROLL for (u32 warp = 1; warp < warps; ++warp) value += sums[warp];
    }
    return value;
}

DEVICE f32 sum_eight(const f32 (&x)[8]) {
    return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

/// `values = (values - mean) * inverse_std`, and returns `inverse_std`; columns beyond the row's end hold zeros
/// before.
template <u32 strips, u32 warps, bool whole>
DEVICE f32 normalize(f32 (&values)[strips][8], u32 cols, f32 epsilon) {
    f32* sums = reinterpret_cast<f32*>(shared_memory());
    f32 sum = 0.0f;
    UNROLL for (u32 i = 0; i < strips; ++i) sum += sum_eight(values[i]);
    f32 mean = row_sum<warps>(sum, sums) / static_cast<f32>(cols);
    f32 squares = 0.0f;
    UNROLL for (u32 i = 0; i < strips; ++i) {
        u32 column = strip_column<warps>(i);
        f32 eight[8];
        UNROLL for (u32 j = 0; j < 8; ++j) {
            bool inside = (whole ? column : column + j) < cols;
            values[i][j] -= mean;
            eight[j] = inside ? values[i][j] * values[i][j] : 0.0f;
        }
        squares += sum_eight(eight);
    }
    f32 variance = row_sum<warps>(squares, sums + warps) / static_cast<f32>(cols);
    f32 inverse_std = 1.0f / sqrtf(variance + epsilon);
    UNROLL for (u32 i = 0; i < strips; ++i) {
        UNROLL for (u32 j = 0; j < 8; ++j) values[i][j] *= inverse_std;
    }
    return inverse_std;
}

/// `y = gamma * normalized(dropout(x) + residual) + beta`, biased variance.
template <class T>
struct AddNorm {
    const Step* step;
    /// `[rows, cols]`
    const T* x;
    /// `[rows, cols]`, or none
    const T* residual;
    /// `[cols]`
    const f32* gamma;
    /// `[cols]`
    const f32* beta;
    /// The rows' keys, `[rows]`
    const u32* keys;
    /// `[rows, cols]`
    T* y;
    /// `[rows, cols]`, or none
    T* normalized;
    /// `[rows]`, or none
    f32* inverse_std;
    Rows rows;
    Dropout dropout;
    u32 cols;
    f32 epsilon;
    u32 unused;
};

template <u32 strips, u32 warps, bool whole, class T>
DEVICE void add_norm(const AddNorm<T>& args) {
    u32 row = block_x() * (FORWARD / 32 / warps) + warp_index() / warps;
    if (row >= row_count(args.step, args.rows)) return;
    const u32 cols = args.cols;
    const u64 first = static_cast<u64>(row) * cols;
    Eight<T> x[strips], residual[strips];
    UNROLL for (u32 i = 0; i < strips; ++i) x[i] = read_eight<whole>(args.x + first, strip_column<warps>(i), cols);
    if (args.residual != nullptr) {
        UNROLL for (u32 i = 0; i < strips; ++i)
            residual[i] = read_eight<whole>(args.residual + first, strip_column<warps>(i), cols);
    }
    f32 values[strips][8];
    UNROLL for (u32 i = 0; i < strips; ++i) unpack(values[i], x[i]);
    if (args.dropout.threshold > 0) {
        const Step step = *args.step;
        u32 key = args.keys[row];
        UNROLL for (u32 i = 0; i < strips; ++i)
            drop_eight(values[i], &step, args.dropout, key, strip_column<warps>(i) / 8);
    }
    if (args.residual != nullptr) {
        UNROLL for (u32 i = 0; i < strips; ++i) {
            f32 other[8];
            unpack(other, residual[i]);
            UNROLL for (u32 j = 0; j < 8; ++j) values[i][j] += other[j];
        }
    }
    f32 inverse_std = normalize<strips, warps, whole>(values, cols, args.epsilon);
    const bool keeps = args.normalized != nullptr;
    if (keeps && thread_index() % (32 * warps) == 0) args.inverse_std[row] = inverse_std;
    UNROLL for (u32 i = 0; i < strips; ++i) {
        u32 column = strip_column<warps>(i);
        f32 gamma[8], y[8];
        unpack(gamma, read_eight<whole>(args.gamma, column, cols));
        unpack(y, read_eight<whole>(args.beta, column, cols));
        UNROLL for (u32 j = 0; j < 8; ++j) y[j] = fmaf(gamma[j], values[i][j], y[j]);
        if (keeps) write_eight<whole>(args.normalized + first, column, cols, values[i]);
        write_eight<whole>(args.y + first, column, cols, y);
    }
}

/// `out = dropout(gamma * normalized(word[id] + position[place] + token_type[type]) + beta)`: what stands before
/// the first layer, without the values between, which no backward pass reads.
template <class T>
struct EmbeddingNorm {
    const Step* step;
    /// `[rows]` each; positions are the lower halves of places
    const u32* ids;
    const u32* types;
    const u32* places;
    /// `[vocabulary, cols]`
    const T* word;
    /// `[positions, cols]`
    const T* position;
    /// `[token_types, cols]`
    const T* token_type;
    /// `[cols]`
    const f32* gamma;
    /// `[cols]`
    const f32* beta;
    /// The rows' keys, `[rows]`
    const u32* keys;
    /// `[rows, cols]`
    T* out;
    /// `[rows, cols]`
    T* normalized;
    /// `[rows]`
    f32* inverse_std;
    Rows rows;
    Dropout dropout;
    u32 cols;
    u32 vocabulary;
    u32 positions;
    u32 token_types;
    f32 epsilon;
};

template <u32 strips, u32 warps, bool whole, class T>
DEVICE void embedding_norm(const EmbeddingNorm<T>& args) {
    u32 row = block_x() * (FORWARD / 32 / warps) + warp_index() / warps;
    if (row >= row_count(args.step, args.rows)) return;
    const u32 cols = args.cols;
    const u64 first = static_cast<u64>(row) * cols;
    u32 id = args.ids[row], type = args.types[row], place = args.places[row] & 0xffffu;
    // What is in no table shows as NaN and is not read.
    bool known = id < args.vocabulary && type < args.token_types && place < args.positions;
    const T* word = args.word + static_cast<u64>(known ? id : 0) * cols;
    const T* position = args.position + static_cast<u64>(known ? place : 0) * cols;
    const T* token_type = args.token_type + static_cast<u64>(known ? type : 0) * cols;
    Eight<T> tables[3][strips];
    UNROLL for (u32 i = 0; i < strips; ++i) {
        u32 column = strip_column<warps>(i);
        tables[0][i] = read_eight<whole>(word, column, cols);
        tables[1][i] = read_eight<whole>(position, column, cols);
        tables[2][i] = read_eight<whole>(token_type, column, cols);
    }
    f32 values[strips][8];
    UNROLL for (u32 i = 0; i < strips; ++i) {
        f32 others[2][8];
        unpack(values[i], tables[0][i]);
        unpack(others[0], tables[1][i]);
        unpack(others[1], tables[2][i]);
        UNROLL for (u32 j = 0; j < 8; ++j) values[i][j] = values[i][j] + others[0][j] + others[1][j];
    }
    if (!known) values[0][0] = bits_to_f32(0x7fc00000u);
    f32 inverse_std = normalize<strips, warps, whole>(values, cols, args.epsilon);
    if (thread_index() % (32 * warps) == 0) args.inverse_std[row] = inverse_std;
    const Step step = *args.step;
    u32 key = args.dropout.threshold > 0 ? args.keys[row] : 0;
    UNROLL for (u32 i = 0; i < strips; ++i) {
        u32 column = strip_column<warps>(i);
        f32 gamma[8], y[8];
        unpack(gamma, read_eight<whole>(args.gamma, column, cols));
        unpack(y, read_eight<whole>(args.beta, column, cols));
        UNROLL for (u32 j = 0; j < 8; ++j) y[j] = fmaf(gamma[j], values[i][j], y[j]);
        if (args.dropout.threshold > 0) drop_eight(y, &step, args.dropout, key, column / 8);
        write_eight<whole>(args.normalized + first, column, cols, values[i]);
        write_eight<whole>(args.out + first, column, cols, y);
    }
}

/// The backward pass of AddNorm, but that the columns' sums are left in parts.
template <class T>
struct AddNormGrad {
    const Step* step;
    /// `[rows, cols]`
    const T* d_y;
    /// `[rows, cols]`
    const T* normalized;
    /// `[rows]`
    const f32* inverse_std;
    /// `[cols]`
    const f32* gamma;
    /// `[rows]`
    const u32* keys;
    /// `[rows, cols]`
    T* d_x;
    /// `[rows, cols]`, or none
    T* d_residual;
    /// Each block's sums over its rows of `d_y * normalized` and of `d_y`, `[blocks, 2, cols]`
    f32* partials;
    Rows rows;
    Dropout dropout;
    u32 cols;
    /// Whether to add to `d_residual`
    u32 add_residual;
    u32 unused;
};

/// Writes the block's sums of each column, from each thread's over its own rows.
template <u32 strips, u32 warps, bool whole>
DEVICE void write_partial(f32* partial, const f32 (&sums)[strips][8], u32 cols) {
    constexpr u32 warps_of_block = BACKWARD / 32;
    if constexpr (warps == warps_of_block) {
        UNROLL for (u32 i = 0; i < strips; ++i)
            write_eight<whole>(partial, strip_column<warps>(i), cols, sums[i]);
    } else {
        f32* of_warps = reinterpret_cast<f32*>(shared_memory());
        sync_block();
        UNROLL for (u32 i = 0; i < strips; ++i)
            write_eight<whole>(of_warps + warp_index() * cols, strip_column<warps>(i), cols, sums[i]);
        sync_block();
        for (u32 column = thread_index(); column < cols; column += BACKWARD) {
            f32 sum = of_warps[column];
            UNROLL for (u32 warp = 1; warp < warps_of_block; ++warp) sum += of_warps[warp * cols + column];
            partial[column] = sum;
        }
    }
}

template <u32 strips, u32 warps, bool whole, class T>
DEVICE void add_norm_grad(const AddNormGrad<T>& args) {
    constexpr u32 at_a_time = BACKWARD / 32 / warps;
    f32* shared_sums = reinterpret_cast<f32*>(shared_memory());
    const Step step = *args.step;
    const u32 rows = row_count(&step, args.rows), cols = args.cols;
    f32 d_gamma[strips][8] = {}, d_beta[strips][8] = {};
    for (u32 row = block_x() * at_a_time + warp_index() / warps; row < rows; row += grid_x() * at_a_time) {
        const u64 first = static_cast<u64>(row) * cols;
        Eight<T> d_y[strips], normalized[strips];
        UNROLL for (u32 i = 0; i < strips; ++i) {
            d_y[i] = read_eight<whole>(args.d_y + first, strip_column<warps>(i), cols);
            normalized[i] = read_eight<whole>(args.normalized + first, strip_column<warps>(i), cols);
        }
        f32 inverse_std = args.inverse_std[row];
        // With d_n = d_y gamma: d_s = inverse_std (d_n - mean(d_n) - normalized mean(d_n normalized)).
        f32 sum = 0.0f, dot = 0.0f;
        UNROLL for (u32 i = 0; i < strips; ++i) {
            f32 gamma[8], d[8], n[8];
            unpack(gamma, read_eight<whole>(args.gamma, strip_column<warps>(i), cols));
            unpack(d, d_y[i]);
            unpack(n, normalized[i]);
            UNROLL for (u32 j = 0; j < 8; ++j) {
                d_gamma[i][j] = fmaf(d[j], n[j], d_gamma[i][j]);
                d_beta[i][j] += d[j];
                d[j] *= gamma[j];
                n[j] *= d[j];
            }
            sum += sum_eight(d);
            dot += sum_eight(n);
        }
        // Each sum's barrier also keeps the other's place until all have read it.
        f32 mean = row_sum<warps>(sum, shared_sums) / static_cast<f32>(cols);
        f32 slope = row_sum<warps>(dot, shared_sums + warps) / static_cast<f32>(cols);
        u32 key = args.dropout.threshold > 0 ? args.keys[row] : 0;
        UNROLL for (u32 i = 0; i < strips; ++i) {
            u32 column = strip_column<warps>(i);
            f32 gamma[8], d[8], n[8];
            unpack(gamma, read_eight<whole>(args.gamma, column, cols));
            unpack(d, d_y[i]);
            unpack(n, normalized[i]);
            UNROLL for (u32 j = 0; j < 8; ++j)
                d[j] = inverse_std * fmaf(-slope, n[j], fmaf(d[j], gamma[j], -mean));
            if (args.d_residual != nullptr)
                sink_eight<whole>(args.d_residual + first, column, cols, d, args.add_residual != 0);
            if (args.dropout.threshold > 0) drop_eight(d, &step, args.dropout, key, column / 8);
            write_eight<whole>(args.d_x + first, column, cols, d);
        }
    }
    f32* partial = args.partials + static_cast<u64>(block_x()) * 2 * cols;
    write_partial<strips, warps, whole>(partial, d_gamma, cols);
    write_partial<strips, warps, whole>(partial + cols, d_beta, cols);
}

// Rows of up to 512, 768 and 1024 columns in a warp, of up to 4096 in a block; `any` has no alignment to rely on.
#define EACH_WIDTH(kernel, Arguments, T, threads, blocks)                                                          \
    KERNEL(kernel##_##T##_512, Arguments<T>, threads, blocks) { kernel<2, 1, true>(args); }                        \
    KERNEL(kernel##_##T##_768, Arguments<T>, threads, blocks) { kernel<3, 1, true>(args); }                        \
    KERNEL(kernel##_##T##_1024, Arguments<T>, threads, blocks) { kernel<4, 1, true>(args); }                       \
    KERNEL(kernel##_##T##_4096, Arguments<T>, threads, blocks) { kernel<512 / threads, threads / 32, true>(args); }\
    KERNEL(kernel##_##T##_any, Arguments<T>, threads, blocks) { kernel<512 / threads, threads / 32, false>(args); }

EACH_WIDTH(add_norm, AddNorm, bf16, FORWARD, 3)
EACH_WIDTH(add_norm, AddNorm, f32, FORWARD, 2)
EACH_WIDTH(embedding_norm, EmbeddingNorm, bf16, FORWARD, 3)
EACH_WIDTH(embedding_norm, EmbeddingNorm, f32, FORWARD, 2)
EACH_WIDTH(add_norm_grad, AddNormGrad, bf16, BACKWARD, 2)
EACH_WIDTH(add_norm_grad, AddNormGrad, f32, BACKWARD, 2)
