// The losses of MT-DNN (Liu et al. 2019, equations 6 to 9), each a mean, and their gradients.
// `src/backend/cuda/loss.rs` has the structs' twins. Logits, losses and their gradients are f32 in every precision.
#include "loss.cuh"

struct Mean {
    const Step* step;
    /// `[rows]`
    const f32* values;
    /// `[1]`
    f32* out;
    Rows rows;
};

KERNEL(mean_of_rows, Mean, MEAN, 1) {
    const u32 rows = row_count(args.step, args.rows);
    f64 sum = 0.0;
    for (u32 row = thread_index(); row < rows; row += MEAN) sum += args.values[row];
    sum = block_sum<MEAN / 32>(sum, reinterpret_cast<f64*>(shared_memory()));
    if (thread_index() == 0) *args.out = static_cast<f32>(sum / rows);
}

// ---- classification ---------------------------------------------------------------------------------------------

struct CrossEntropy {
    const Step* step;
    /// `[rows, classes]`
    const f32* logits;
    /// `[rows]`
    const u32* labels;
    /// `[1]`, backward
    const f32* d_loss;
    /// Each row's loss, `[rows]`; backward d_logits, `[rows, classes]`
    f32* out;
    Rows rows;
    u32 classes;
    u32 unused;
};

template <u32 warps, u32 threads>
DEVICE void cross_entropy(const CrossEntropy& args) {
    const u32 row = block_x() * (threads / 32 / warps) + warp_index() / warps;
    if (row >= row_count(args.step, args.rows)) return;
    const f32* logits = args.logits + static_cast<u64>(row) * args.classes;
    Softmax all = softmax<warps>(logits, args.classes, 1.0f, reinterpret_cast<Softmax*>(shared_memory()));
    if (thread_index() % (32 * warps) > 0) return;
    const u32 label = args.labels[row];
    // Not log-sum-exp less the logit: that would cancel where the loss is small. What is no class has no loss.
    args.out[row] = label < args.classes ? logf(all.sum) - (logits[label] - all.largest) : not_a_number();
}
KERNEL(cross_entropy_few, CrossEntropy, FEW, 4) { cross_entropy<1, FEW>(args); }
KERNEL(cross_entropy_many, CrossEntropy, MANY, 2) { cross_entropy<MANY / 32, MANY>(args); }

/// `d_logits = (softmax(logits) - one_hot(label)) d_loss / rows`
template <u32 warps, u32 threads>
DEVICE void cross_entropy_grad(const CrossEntropy& args) {
    constexpr u32 sharing = 32 * warps, batch = 4;
    const u32 row = block_x() * (threads / 32 / warps) + warp_index() / warps;
    const u32 rows = row_count(args.step, args.rows), classes = args.classes;
    if (row >= rows) return;
    const f32* logits = args.logits + static_cast<u64>(row) * classes;
    f32* d_logits = args.out + static_cast<u64>(row) * classes;
    Softmax all = softmax<warps>(logits, classes, 1.0f, reinterpret_cast<Softmax*>(shared_memory()));
    const u32 label = args.labels[row];
    const f32 share = label < classes ? *args.d_loss / static_cast<f32>(rows) : not_a_number();
    const f32 scale = share / all.sum;
    for (u32 first = thread_index() % sharing; first < classes; first += batch * sharing) {
        f32 values[batch];
        UNROLL for (u32 i = 0; i < batch; ++i)
            values[i] = first + i * sharing < classes ? logits[first + i * sharing] : 0.0f;
        UNROLL for (u32 i = 0; i < batch; ++i) {
            const u32 column = first + i * sharing;
            if (column < classes)
                d_logits[column] = scale * expf(values[i] - all.largest) - (column == label ? share : 0.0f);
        }
    }
}
KERNEL(cross_entropy_grad_few, CrossEntropy, FEW, 4) { cross_entropy_grad<1, FEW>(args); }
KERNEL(cross_entropy_grad_many, CrossEntropy, MANY, 2) { cross_entropy_grad<MANY / 32, MANY>(args); }

// ---- regression -------------------------------------------------------------------------------------------------

struct SquaredError {
    const Step* step;
    /// `[rows]`
    const f32* predictions;
    /// `[rows]`
    const f32* targets;
    /// `[1]`, backward
    const f32* d_loss;
    /// The loss, `[1]`; backward d_predictions, `[rows]`
    f32* out;
    Rows rows;
};

KERNEL(squared_error, SquaredError, MEAN, 1) {
    const u32 rows = row_count(args.step, args.rows);
    f64 sum = 0.0;
    for (u32 row = thread_index(); row < rows; row += MEAN) {
        f64 error = args.targets[row] - args.predictions[row];
        sum += error * error;
    }
    sum = block_sum<MEAN / 32>(sum, reinterpret_cast<f64*>(shared_memory()));
    if (thread_index() == 0) *args.out = static_cast<f32>(sum / rows);
}

/// `d_predictions = 2 (prediction - target) d_loss / rows`
KERNEL(squared_error_grad, SquaredError, FEW, 1) {
    const u32 rows = row_count(args.step, args.rows), row = block_x() * FEW + thread_index();
    if (row >= rows) return;
    const f32 share = 2.0f * *args.d_loss / static_cast<f32>(rows);
    args.out[row] = (args.predictions[row] - args.targets[row]) * share;
}

// ---- ranking ----------------------------------------------------------------------------------------------------

struct Ranking {
    const Step* step;
    /// `[candidates, columns]`
    const f32* scores;
    /// First candidate of each group and the end of the last, `[groups + 1]`
    const u32* groups;
    /// The number of the right candidate within its group, in each column, `[groups, columns]`
    const u32* positives;
    /// `[1]`, backward
    const f32* d_loss;
    /// Each group's loss, `[groups]`; backward d_scores, `[candidates, columns]`
    f32* out;
    f32 gamma;
    u32 columns;
};

/// A warp for a group: the mean over columns of `-log softmax(gamma * scores)[positive]`.
KERNEL(ranking, Ranking, FEW, 4) {
    const u32 group = block_x() * (FEW / 32) + warp_index(), columns = args.columns;
    if (group >= args.step->groups) return;
    const u32 first = args.groups[group], candidates = args.groups[group + 1] - first;
    f32 loss = 0.0f;
    for (u32 column = 0; column < columns; ++column) {
        const f32* scores = args.scores + static_cast<u64>(first) * columns + column;
        Softmax all = softmax<1>(scores, candidates, args.gamma, nullptr, columns);
        const u32 positive = args.positives[group * columns + column];
        loss += positive < candidates ? logf(all.sum) - (args.gamma * scores[positive * columns] - all.largest)
                                      : not_a_number();
    }
    if (lane_index() == 0) args.out[group] = loss / static_cast<f32>(columns);
}

/// `d_scores = gamma (softmax(gamma * scores) - one_hot(positive)) d_loss / (groups columns)`, each group and column by
/// itself.
KERNEL(ranking_grad, Ranking, FEW, 4) {
    const u32 group = block_x() * (FEW / 32) + warp_index(), groups = args.step->groups, columns = args.columns;
    if (group >= groups) return;
    const u32 first = args.groups[group], candidates = args.groups[group + 1] - first;
    for (u32 column = 0; column < columns; ++column) {
        const u64 start = static_cast<u64>(first) * columns + column;
        const f32* scores = args.scores + start;
        f32* d_scores = args.out + start;
        Softmax all = softmax<1>(scores, candidates, args.gamma, nullptr, columns);
        const u32 positive = args.positives[group * columns + column];
        const f32 share = positive < candidates
                              ? args.gamma * *args.d_loss / (static_cast<f32>(groups) * static_cast<f32>(columns))
                              : not_a_number();
        for (u32 i = lane_index(); i < candidates; i += 32) {
            f32 probability = expf(args.gamma * scores[i * columns] - all.largest) / all.sum;
            d_scores[i * columns] = share * (probability - (i == positive ? 1.0f : 0.0f));
        }
    }
}

// ---- soft targets -----------------------------------------------------------------------------------------------

struct SoftCrossEntropy {
    const Step* step;
    /// `[rows, classes]`, or `[sequences]`
    const f32* logits;
    /// As many
    const f32* targets;
    /// First sequence of each group and the end of the last, `[groups + 1]`; none where a row is a choice
    const u32* groups;
    /// `[1]`, backward
    const f32* d_loss;
    /// Each choice's loss, `[choices]`; backward d_logits, as many as logits
    f32* out;
    /// How many choices
    Rows rows;
    u32 classes;
    /// What logits are multiplied by
    f32 factor;
};

/// The first element of a choice.
DEVICE u32 start_of(const SoftCrossEntropy& args, u32 choice) {
    return args.groups != nullptr ? args.groups[choice] : choice * args.classes;
}

/// A warp for a choice: `-sum_c target_c log softmax(factor * logits)_c`.
KERNEL(soft_cross_entropy, SoftCrossEntropy, FEW, 4) {
    const u32 choice = block_x() * (FEW / 32) + warp_index();
    if (choice >= row_count(args.step, args.rows)) return;
    const u32 first = start_of(args, choice), count = start_of(args, choice + 1) - first;
    const f32* logits = args.logits + first;
    Softmax all = softmax<1>(logits, count, args.factor, nullptr);
    const f32 log_sum = logf(all.sum);
    f32 sum = 0.0f;
    for (u32 i = lane_index(); i < count; i += 32) {
        const f32 target = args.targets[first + i];
        if (target != 0.0f) sum += target * (log_sum - (args.factor * logits[i] - all.largest));
    }
    sum = warp_sum(sum);
    if (lane_index() == 0) args.out[choice] = sum;
}

/// `d_logits = factor (softmax(factor * logits) sum(targets) - targets) d_loss / choices`
KERNEL(soft_cross_entropy_grad, SoftCrossEntropy, FEW, 4) {
    const u32 choice = block_x() * (FEW / 32) + warp_index(), choices = row_count(args.step, args.rows);
    if (choice >= choices) return;
    const u32 first = start_of(args, choice), count = start_of(args, choice + 1) - first;
    const f32* targets = args.targets + first;
    Softmax all = softmax<1>(args.logits + first, count, args.factor, nullptr);
    f32 whole = 0.0f;
    for (u32 i = lane_index(); i < count; i += 32) whole += targets[i];
    whole = warp_sum(whole);
    const f32 share = args.factor * *args.d_loss / static_cast<f32>(choices);
    for (u32 i = lane_index(); i < count; i += 32) {
        f32 probability = expf(args.factor * args.logits[first + i] - all.largest) / all.sum;
        args.out[first + i] = share * (probability * whole - targets[i]);
    }
}

// ---- two losses as one ------------------------------------------------------------------------------------------

struct WeightedSum {
    /// `[1]`
    const f32* first;
    /// `[1]`, or none
    const f32* second;
    /// `[1]`
    f32* out;
    f32 first_weight;
    f32 second_weight;
};

KERNEL(weighted_sum, WeightedSum, 32, 1) {
    if (thread_index() > 0) return;
    const f32 second = args.second != nullptr ? args.second_weight * *args.second : 0.0f;
    *args.out = args.first_weight * *args.first + second;
}
