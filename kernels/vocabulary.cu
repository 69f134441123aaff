// The loss over a vocabulary, of whose logits there is a block of columns at a time: what comes between the products.
// `src/backend/cuda/vocabulary.rs` has the structs' twins.
#include "loss.cuh"

/// What is kept of a row's logits.
struct Statistics {
    f32 largest;
    /// Of all `exp(logit - largest)`
    f32 sum;
    /// The label's logit; not a number until it was met.
    f32 of_label;
};

struct VocabularyBlock {
    const Step* step;
    /// `[rows, columns]`
    const f32* logits;
    /// `[rows]`
    const u32* labels;
    /// `[rows]`
    Statistics* softmax;
    Rows rows;
    u32 columns;
    /// The class of the first column; the first block's, 0, starts the statistics.
    u32 first;
};

/// Takes a block of logits into the rows' statistics.
template <u32 warps, u32 threads>
DEVICE void gather_statistics(const VocabularyBlock& args) {
    const u32 row = block_x() * (threads / 32 / warps) + warp_index() / warps;
    if (row >= row_count(args.step, args.rows)) return;
    const f32* logits = args.logits + static_cast<u64>(row) * args.columns;
    Softmax block = softmax<warps>(logits, args.columns, 1.0f, reinterpret_cast<Softmax*>(shared_memory()));
    if (thread_index() % (32 * warps) > 0) return;
    Statistics known = {minus_infinity(), 0.0f, not_a_number()};
    if (args.first > 0) known = args.softmax[row];
    Softmax all = join({known.largest, known.sum}, block);
    // A label of an earlier block wraps around to a large number.
    const u32 column = args.labels[row] - args.first;
    args.softmax[row] = {all.largest, all.sum, column < args.columns ? logits[column] : known.of_label};
}
KERNEL(vocabulary_statistics_few, VocabularyBlock, FEW, 4) { gather_statistics<1, FEW>(args); }
KERNEL(vocabulary_statistics_many, VocabularyBlock, MANY, 2) { gather_statistics<MANY / 32, MANY>(args); }

struct VocabularyMeans {
    const Step* step;
    /// `[rows]`, of all blocks
    const Statistics* softmax;
    /// `[1]`
    f32* loss;
    /// `[1]`
    f32* accuracy;
    Rows rows;
};

/// The mean loss, and the share of rows in which no logit is larger than the label's.
KERNEL(vocabulary_means, VocabularyMeans, MEAN, 1) {
    const u32 rows = row_count(args.step, args.rows);
    f64 loss = 0.0, right = 0.0;
    for (u32 row = thread_index(); row < rows; row += MEAN) {
        const Statistics of_row = args.softmax[row];
        // Not log-sum-exp less the logit: that would cancel where the loss is small.
        loss += logf(of_row.sum) - (of_row.of_label - of_row.largest);
        right += of_row.of_label >= of_row.largest ? 1.0 : 0.0;
    }
    f64* of_warps = reinterpret_cast<f64*>(shared_memory());
    loss = block_sum<MEAN / 32>(loss, of_warps);
    right = block_sum<MEAN / 32>(right, of_warps + MEAN / 32);
    if (thread_index() > 0) return;
    *args.loss = static_cast<f32>(loss / rows);
    *args.accuracy = static_cast<f32>(right / rows);
}

constexpr u32 THREADS = 256;

template <class T>
struct VocabularyGradient {
    const Step* step;
    /// `[rows, columns]`
    const f32* logits;
    /// `[rows]`
    const u32* labels;
    /// `[rows]`, of all blocks
    const Statistics* softmax;
    /// `[1]`
    const f32* d_loss;
    /// `[rows, columns]`; may be the logits themselves
    T* d_logits;
    Rows rows;
    u32 columns;
    /// The class of the first column
    u32 first;
    /// Of all blocks
    u32 classes;
    /// Whether rows may be moved by packs
    u32 whole;
};

/// `d_logits = (softmax - one_hot(label)) d_loss / rows`, of a block; not a number in a row whose label is no class.
template <bool whole, class T>
DEVICE void differentiate(const VocabularyGradient<T>& args) {
    const u32 eights = ceiling_division(args.columns, 8), eight = block_x() * THREADS + thread_index();
    const u32 row = eight / eights, column = eight % eights * 8;
    const u32 rows = row_count(args.step, args.rows);
    if (row >= rows) return;
    const u32 label = args.labels[row];
    const Statistics of_row = args.softmax[row];
    const f32 share = label < args.classes ? *args.d_loss / static_cast<f32>(rows) : not_a_number();
    const f32 scale = share / of_row.sum;
    const u64 start = static_cast<u64>(row) * args.columns;
    f32 values[8];
    unpack(values, read_eight<whole>(args.logits + start, column, args.columns));
    UNROLL for (u32 i = 0; i < 8; ++i)
        values[i] = scale * expf(values[i] - of_row.largest) - (args.first + column + i == label ? share : 0.0f);
    write_eight<whole>(args.d_logits + start, column, args.columns, values);
}
template <class T>
DEVICE void differentiate(const VocabularyGradient<T>& args) {
    args.whole != 0 ? differentiate<true>(args) : differentiate<false>(args);
}
KERNEL(vocabulary_gradient_bf16, VocabularyGradient<bf16>, THREADS, 4) { differentiate(args); }
KERNEL(vocabulary_gradient_f32, VocabularyGradient<f32>, THREADS, 4) { differentiate(args); }
