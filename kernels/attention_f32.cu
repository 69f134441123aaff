// Multi-head self-attention over packed sequences (Vaswani et al. 2017, equation 1) on plain multipliers, for f32
// and for heads of any size up to 256. The passes are those of `attention.cu`; here a warp has one row, and each of
// its lanes one row of a tile of those that share a sequence with any row of the block.
#include "attention.cuh"

constexpr u32 WARPS = 8;
constexpr u32 THREADS = 32 * WARPS;
/// Rows of a tile: one a lane.
constexpr u32 TILE_ROWS = 32;
/// Columns that a lane sums, 32 apart.
constexpr u32 PARTS = 8;

/// What a warp works on, and whom it meets.
struct Work {
    u32 rows, head, size;
    /// The warp's row.
    u32 row;
    Row own;
    /// The rows that the block walks over.
    Reach block;
};

template <class T>
DEVICE Work find_work(const Input<T>& input, u32 rows) {
    u32 begin = block_y() * WARPS, row = begin + warp_index(), size = input.hidden / input.heads;
    return {rows, block_x(), size, row, find_row(input, row, rows), find_reach<WARPS>(input, begin, rows)};
}

/// A matrix in global memory, from a head's first column on.
template <class T>
struct Columns {
    const T* start;
    u32 stride;
};

template <class T>
DEVICE Columns<T> third_of(const Input<T>& input, const Work& work, u32 third) {
    return {input.qkv + third * input.hidden + work.head * work.size, 3 * input.hidden};
}

/// Copies `count` rows from `first`, zeros beyond the last, to shared memory, `pitch` apart.
template <class T>
DEVICE void load_rows(f32* to, u32 pitch, Columns<T> from, const Work& work, u32 first, u32 count) {
    for (u32 i = thread_index(); i < count * work.size; i += THREADS) {
        u32 row = i / work.size, column = i % work.size;
        u64 at = static_cast<u64>(first + row) * from.stride + column;
        to[row * pitch + column] = first + row < work.rows ? to_f32(from.start[at]) : 0.0f;
    }
}

/// Floats from one row of a tile to the next: odd, so that lanes read the same column from different banks.
DEVICE u32 pitch_of(const Work& work) { return work.size | 1; }

/// Loads tile after tile of two matrices, and where they hold any row of the warp's sequence calls
/// `use(row, left, right)` with the lane's row and both tiles.
template <class T, class Use>
DEVICE void walk(f32* shared, Columns<T> left, Columns<T> right, const Work& work, Use use) {
    u32 pitch = pitch_of(work);
    f32* second = shared + TILE_ROWS * pitch;
    for (u32 begin = work.block.first; begin < work.block.last; begin += TILE_ROWS) {
        sync_block();
        load_rows(shared, pitch, left, work, begin, TILE_ROWS);
        load_rows(second, pitch, right, work, begin, TILE_ROWS);
        sync_block();
        if (work.own.first < begin + TILE_ROWS && begin < work.own.last) use(begin + lane_index(), shared, second);
    }
}

DEVICE f32 dot(const f32* a, const f32* b, u32 size) {
    f32 sum = 0.0f;
    for (u32 i = 0; i < size; ++i) sum = fmaf(a[i], b[i], sum);
    return sum;
}

/// `sums += weights tile`, where each lane has the weight of one row; it sums every 32nd column.
DEVICE void add_weighted(f32 (&sums)[PARTS], f32 weight, const f32* tile, const Work& work) {
    for (u32 row = 0; row < TILE_ROWS; ++row) {
        f32 weight_of_row = shuffle(weight, row);
        const f32* from = tile + row * pitch_of(work);
        UNROLL for (u32 part = 0; part < PARTS; ++part) {
            u32 column = 32 * part + lane_index();
            if (column < work.size) sums[part] = fmaf(weight_of_row, from[column], sums[part]);
        }
    }
}

/// Stores the warp's row of a matrix, if there is such a row.
template <class T>
DEVICE void store_row(const f32 (&sums)[PARTS], f32 factor, T* matrix, u32 stride, const Work& work) {
    T* to = matrix + static_cast<u64>(work.row) * stride + work.head * work.size;
    UNROLL for (u32 part = 0; part < PARTS; ++part) {
        u32 column = 32 * part + lane_index();
        if (work.row < work.rows && column < work.size) store(to + column, sums[part] * factor);
    }
}

/// What dropout multiplies the probability of the query at `place` for its sequence's key `position` by.
template <class T>
DEVICE f32 drop_factor(const Input<T>& input, u32 head, u32 place, u32 position) {
    if (input.dropout.threshold == 0) return 1.0f;
    u32 words[4];
    draw_eight(words, input.step, input.dropout, head, place, position / 8);
    // Chosen and not indexed, so that the draws stay in registers.
    u32 early = position % 4 < 2 ? words[0] : words[1], late = position % 4 < 2 ? words[2] : words[3];
    words[0] = position % 8 < 4 ? early : late;
    return keep_factor(words, input.dropout, position % 2);
}

/// Shared memory: the queries, a tile of keys and one of values.
template <class T>
DEVICE void forward(const Forward<T>& args) {
    const Input<T>& input = args.input;
    u32 rows = row_count(input.step, input.rows);
    if (block_y() * WARPS >= rows) return;
    Work work = find_work(input, rows);
    f32* queries = reinterpret_cast<f32*>(shared_memory());
    load_rows(queries, work.size, third_of(input, work, 0), work, block_y() * WARPS, WARPS);
    const f32* query = queries + warp_index() * work.size;

    // The online softmax (Milakov and Gimelshein 2018): sums are relative to the largest score so far.
    f32 context[PARTS] = {}, sum = 0.0f, largest = 0.0f;
    Columns<T> keys = third_of(input, work, 1), values = third_of(input, work, 2);
    walk(queries + WARPS * work.size, keys, values, work, [&](u32 key, const f32* keys, const f32* values) {
        bool inside = work.own.first <= key && key < work.own.last;
        f32 score = dot(query, keys + lane_index() * pitch_of(work), work.size) * input.scale;
        // The first tile that holds a key of the sequence sets the first largest score.
        f32 floor = sum > 0.0f ? largest : bits_to_f32(MINUS_INFINITY);
        f32 now = warp_max(inside ? fmaxf(score, floor) : floor);
        f32 shrink = sum > 0.0f ? expf(largest - now) : 0.0f;
        f32 probability = inside ? expf(score - now) : 0.0f;
        sum = fmaf(sum, shrink, warp_sum(probability));
        largest = now;
        UNROLL for (u32 part = 0; part < PARTS; ++part) context[part] *= shrink;
        if (inside) probability *= drop_factor(input, work.head, work.own.place, key - work.own.first);
        add_weighted(context, probability, values, work);
    });

    store_row(context, sum > 0.0f ? 1.0f / sum : 0.0f, args.context, input.hidden, work);
    if (args.log_sum_exp && lane_index() == 0 && work.row < rows) {
        u64 at = static_cast<u64>(work.row) * input.heads + work.head;
        args.log_sum_exp[at] = sum > 0.0f ? largest + logf(sum) : 0.0f;
    }
}

/// The probability of a query for a key, its dropout factor, and the gradient of the probability.
struct Pair {
    f32 probability, factor, gradient;
};

/// From the product of query and key, and that of the context's gradient and the value.
template <class T>
DEVICE Pair find_pair(const Backward<T>& args, u32 head, u32 place, u32 position, f32 log_sum_exp, f32 product,
                      f32 gradient) {
    f32 factor = drop_factor(args.input, head, place, position);
    return {expf(fmaf(product, args.input.scale, -log_sum_exp)), factor, gradient * factor};
}

/// Writes the deltas of the queries and their gradient.
///
/// Shared memory: the queries, the gradients of their context, a tile of keys and one of values.
template <class T>
DEVICE void backward_queries(const Backward<T>& args) {
    const Input<T>& input = args.input;
    u32 rows = row_count(input.step, input.rows);
    if (block_y() * WARPS >= rows) return;
    Work work = find_work(input, rows);
    f32 *queries = reinterpret_cast<f32*>(shared_memory()), *d_contexts = queries + WARPS * work.size;
    f32* tiles = d_contexts + WARPS * work.size;
    Columns<T> d_context = {args.d_context + work.head * work.size, input.hidden};
    load_rows(queries, work.size, third_of(input, work, 0), work, block_y() * WARPS, WARPS);
    load_rows(d_contexts, work.size, d_context, work, block_y() * WARPS, WARPS);
    const f32 *query = queries + warp_index() * work.size, *d_row = d_contexts + warp_index() * work.size;
    u64 at = static_cast<u64>(work.row) * input.heads + work.head;
    f32 log_sum_exp = work.row < rows ? args.log_sum_exp[at] : 0.0f;

    Columns<T> keys = third_of(input, work, 1), values = third_of(input, work, 2);
    auto find = [&](u32 key, const f32* keys, const f32* values) {
        if (key < work.own.first || key >= work.own.last) return Pair{0.0f, 0.0f, 0.0f};
        u32 offset = lane_index() * pitch_of(work);
        f32 product = dot(query, keys + offset, work.size), gradient = dot(d_row, values + offset, work.size);
        return find_pair(args, work.head, work.own.place, key - work.own.first, log_sum_exp, product, gradient);
    };
    f32 delta = 0.0f, d_query[PARTS] = {};
    walk(tiles, keys, values, work, [&](u32 key, const f32* keys, const f32* values) {
        Pair pair = find(key, keys, values);
        delta = fmaf(pair.probability, pair.gradient, delta);
    });
    delta = warp_sum(delta);
    walk(tiles, keys, values, work, [&](u32 key, const f32* keys, const f32* values) {
        Pair pair = find(key, keys, values);
        add_weighted(d_query, pair.probability * (pair.gradient - delta), keys, work);
    });

    store_row(d_query, input.scale, args.d_qkv, 3 * input.hidden, work);
    if (lane_index() == 0 && work.row < rows) args.statistics[work.head * args.stride + work.row] = delta;
}

/// Writes the gradients of keys and values: the warp's row is a key, the lanes' are queries.
///
/// Shared memory: the keys, the values, a tile of queries and one of gradients of their context.
template <class T>
DEVICE void backward_keys(const Backward<T>& args) {
    const Input<T>& input = args.input;
    u32 rows = row_count(input.step, input.rows);
    if (block_y() * WARPS >= rows) return;
    Work work = find_work(input, rows);
    f32 *keys = reinterpret_cast<f32*>(shared_memory()), *values = keys + WARPS * work.size;
    f32* tiles = values + WARPS * work.size;
    load_rows(keys, work.size, third_of(input, work, 1), work, block_y() * WARPS, WARPS);
    load_rows(values, work.size, third_of(input, work, 2), work, block_y() * WARPS, WARPS);
    const f32 *key = keys + warp_index() * work.size, *value = values + warp_index() * work.size;

    f32 d_key[PARTS] = {}, d_value[PARTS] = {};
    Columns<T> d_context = {args.d_context + work.head * work.size, input.hidden};
    auto use = [&](u32 query, const f32* queries, const f32* d_contexts) {
        Pair pair = {0.0f, 0.0f, 0.0f};
        f32 delta = 0.0f;
        if (work.own.first <= query && query < work.own.last) {
            u32 offset = lane_index() * pitch_of(work), place = work.own.place + query - work.row;
            f32 product = dot(key, queries + offset, work.size);
            f32 gradient = dot(value, d_contexts + offset, work.size);
            f32 log_sum_exp = args.log_sum_exp[static_cast<u64>(query) * input.heads + work.head];
            delta = args.statistics[work.head * args.stride + query];
            pair = find_pair(args, work.head, place, work.row - work.own.first, log_sum_exp, product, gradient);
        }
        add_weighted(d_value, pair.probability * pair.factor, d_contexts, work);
        add_weighted(d_key, pair.probability * (pair.gradient - delta), queries, work);
    };
    walk(tiles, third_of(input, work, 0), d_context, work, use);

    store_row(d_key, input.scale, args.d_qkv + input.hidden, 3 * input.hidden, work);
    store_row(d_value, 1.0f, args.d_qkv + 2 * input.hidden, 3 * input.hidden, work);
}

KERNEL(attention_f32, Forward<f32>, THREADS, 1) { forward(args); }
KERNEL(attention_bf16, Forward<bf16>, THREADS, 1) { forward(args); }
KERNEL(attention_grad_queries_f32, Backward<f32>, THREADS, 1) { backward_queries(args); }
KERNEL(attention_grad_queries_bf16, Backward<bf16>, THREADS, 1) { backward_queries(args); }
KERNEL(attention_grad_keys_f32, Backward<f32>, THREADS, 1) { backward_keys(args); }
KERNEL(attention_grad_keys_bf16, Backward<bf16>, THREADS, 1) { backward_keys(args); }
