// Attention for Hopper where no sequence crosses a line of 128 rows: a block does all of a line for 64 columns of the
// heads, one head of 64 or two of 32, in one kernel each way.
//
// The two warpgroups have 64 rows each: queries in the forward pass, keys in the backward pass, whose scores are
// transposed. Boxes come straight from the columns of the projection's output, a row's scores all lie in registers (no
// online softmax), and sums of one product are the next one's operand there. So scores never leave the processor, every
// gradient is complete within its block, and every sum has one order.
//
// What dropout keeps is drawn in both passes while the boxes are on their way.
#include "attention.cuh"
#include "hopper.cuh"

/// Rows of a line.
constexpr u32 ROWS = 128;
constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / 32;
/// Rows of a warp.
constexpr u32 WARP_ROWS = 16;
/// Bytes of a box of a line's rows, of half of its rows, and of sixteen.
constexpr u32 BOX = ROWS * LINE_BYTES, HALF_BOX = BOX / 2, SIXTEEN = 16 * LINE_BYTES;

/// `src/backend/cuda/hopper_attention.rs` has the twins of both, behind the maps.
struct LineForward {
    TensorMap qkv;
    Forward<bf16> forward;
};

struct LineBackward {
    TensorMap qkv;
    TensorMap d_context;
    Input<bf16> input;
    /// `[tokens, heads]`
    const f32* log_sum_exp;
    /// `[tokens, 3 * hidden]`
    bf16* d_qkv;
};

/// A block's line: its first row, and how many of its rows there are; none where the batch ends before.
struct Line {
    u32 first, count;
};

DEVICE Line find_line(const Input<bf16>& input) {
    u32 rows = row_count(input.step, input.rows), first = block_y() * ROWS;
    return {first, first < rows ? min(rows - first, ROWS) : 0};
}

/// Sums of columns `2 i`, `2 i + 1` and so on are numbered as a thread has them: bit `n` tells whether the row shares a
/// sequence with row `8 (n / 2) + pair + n % 2` of the line.
DEVICE u32 find_met(Row row, Line line, u32 pair) {
    if (row.first >= row.last) return 0;
    auto below = [&](u32 end) {
        u32 last = end % 8, count = 2 * (end / 8) + (last > pair ? min(last - pair, 2u) : 0);
        return count < 32 ? (1u << count) - 1 : 0xffffffffu;
    };
    return below(row.last - line.first) & ~below(row.first - line.first);
}
/// The same for the two rows of a thread's sums.
DEVICE void find_met(u32 (&met)[2], const Input<bf16>& input, Line line) {
    u32 own = line.first + WARP_ROWS * warp_index() + lane_index() / 4, pair = lane_index() % 4 * 2;
    UNROLL for (u32 r = 0; r < 2; ++r) {
        met[r] = find_met(find_row(input, own + 8 * r, line.first + line.count), line, pair);
    }
}

/// Draws what the line's queries keep of its keys: bit `b` of `kept[query * query_stride + word * word_stride]` is for
/// the key `32 word + b`. Two threads draw for each query.
template <u32 query_stride, u32 word_stride>
DEVICE void draw_line(u32* kept, const Input<bf16>& input, Line line, u32 head) {
    if (input.dropout.threshold == 0) return;
    u32 query = thread_index() / 2;
    Row row = find_row(input, line.first + query, line.first + line.count);
    UNROLL for (u32 i = 0; i < 2; ++i) {
        u32 word = thread_index() % 2 * 2 + i, begin = line.first + 32 * word, end = min(begin + 32, row.last);
        bool meets = row.first < end && begin < end;
        kept[query * query_stride + word * word_stride] =
            meets ? draw_bits(input.step, input.dropout, head, row.place, row.first, begin, end) : 0;
    }
}

/// Zeroes what lies in boxes beyond the batch's rows: garbage times a probability of 0 might be NaN.
DEVICE void clear_tail(u8* boxes, u32 count, Line line) {
    if (line.count == ROWS) return;
    for (u32 i = line.count * (LINE_BYTES / 16) + thread_index(); i < BOX / 16; i += THREADS) {
        for (u32 box = 0; box < count; ++box) reinterpret_cast<Pack*>(boxes + box * BOX)[i] = {};
    }
    fence_async_shared();
    sync_block();
}

/// A box as an operand whose depth is contiguous, and as one whose lines are.
DEVICE u64 by_depth(const u8* box) { return matrix_descriptor(box, 16, 1024); }
DEVICE u64 by_lines(const u8* box) { return matrix_descriptor(box, HALF_BOX, 1024); }

/// Starts `products = a b^T` for `size` columns of 64 rows of one box and all rows of another.
template <u32 size>
DEVICE void start_products(f32 (&products)[64], const u8* a, const u8* b) {
    UNROLL for (u32 k = 0; k < size / 16; ++k) {
        wgmma<128, false, false>(products, by_depth(a + 32 * k), by_depth(b + 32 * k), k != 0);
    }
}

/// Starts `sums = weights box`: weights `[64, 128]` in registers.
DEVICE void start_weighted(f32 (&sums)[32], const u32 (&weights)[8][4], const u8* box) {
    UNROLL for (u32 b = 0; b < 8; ++b) {
        wgmma_registers<64, true>(sums, weights[b], by_lines(box + b * SIXTEEN), b != 0);
    }
}

/// Where in lines of 128 bytes a lane stores its row of four matrices, 16 columns from `16 b`.
DEVICE u8* matrices_at(u8* lines, u32 b) {
    u32 lane = lane_index();
    return lines + lane % 16 * LINE_BYTES + ((2 * b + lane / 16) % 8 ^ lane % 8) * 16;
}

/// Stores the warp's 16 rows, or as many of them as there are, each times its factor: the columns of `head` among those
/// of a block. They pass through `lines`, the warp's own, to be written in whole lines.
template <u32 size>
DEVICE void store_rows(const f32 (&sums)[32], u32 head, const f32 (&factors)[2], u8* lines, bf16* matrix, u32 stride,
                       u32 count) {
    constexpr u32 CHUNKS = size / 8;
    u32 lane = lane_index();
    UNROLL for (u32 b = 0; b < size / 16; ++b) {
        u32 words[4];
        UNROLL for (u32 i = 0; i < 4; ++i) {
            u32 at = 4 * (2 * b + i / 2) + 2 * (i % 2);
            f32 low = sums[at], high = sums[at + 1];
            if (size == 32 && head == 1) {
                low = sums[16 + at % 16];
                high = sums[17 + at % 16];
            }
            words[i] = pack_bf16(low * factors[i % 2], high * factors[i % 2]);
        }
        store_matrices(matrices_at(lines, b), words);
    }
    sync_warp();
    UNROLL for (u32 step = 0; step < WARP_ROWS * CHUNKS / 32; ++step) {
        u32 index = step * 32 + lane, row = index / CHUNKS, chunk = index % CHUNKS;
        if (row < count) {
            *reinterpret_cast<Pack*>(matrix + static_cast<u64>(row) * stride + 8 * chunk) =
                *reinterpret_cast<const Pack*>(lines + row * LINE_BYTES + (chunk ^ row % 8) * 16);
        }
    }
    sync_warp();
}

/// Shared memory: queries, keys, values, what is stored; bits `[heads, queries, 4]`; the barrier.
template <u32 size>
DEVICE void forward(const LineForward& args) {
    constexpr u32 HEADS = BOX_COLUMNS / size;
    const Input<bf16>& input = args.forward.input;
    Line line = find_line(input);
    if (line.count == 0) return;
    u8 *queries = aligned_shared_memory(), *keys = queries + BOX, *values = keys + BOX, *staged = values + BOX;
    u32* kept = reinterpret_cast<u32*>(staged + BOX);
    u64* barrier = reinterpret_cast<u64*>(kept + HEADS * ROWS * 4);
    u32 first_head = block_x() * HEADS;

    if (thread_index() == 0) {
        barrier_init(barrier, 1);
        fence_barrier_init();
    }
    sync_block();
    if (thread_index() == 0) {
        barrier_expect(barrier, 3 * BOX);
        UNROLL for (u32 third = 0; third < 3; ++third) {
            u32 column = third * input.hidden + block_x() * BOX_COLUMNS;
            tma_load(queries + third * BOX, &args.qkv, column, line.first, barrier);
        }
    }
    for (u32 head = 0; head < HEADS; ++head) draw_line<4, 1>(kept + head * ROWS * 4, input, line, first_head + head);
    u32 own = WARP_ROWS * warp_index(), group = lane_index() / 4, pair = lane_index() % 4 * 2, met[2];
    find_met(met, input, line);
    sync_block();
    barrier_wait(barrier, 0);
    clear_tail(values, 1, line);

    f32 factor = input.scale * LOG2_E;
    UNROLL for (u32 head = 0; head < HEADS; ++head) {
        u32 columns = head * size * sizeof(bf16);
        f32 products[64];
        wgmma_fence();
        start_products<size>(products, queries + own / 64 * HALF_BOX + columns, keys + columns);
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_done(products);

        u32 weights[8][4];
        f32 factors[2];
        UNROLL for (u32 r = 0; r < 2; ++r) {
            f32 largest = bits_to_f32(MINUS_INFINITY), sum = 0.0f;
            UNROLL for (u32 n = 0; n < 32; ++n) {
                f32& product = products[4 * (n / 2) + 2 * r + n % 2];
                if ((met[r] >> n & 1) == 0) product = bits_to_f32(MINUS_INFINITY);
                largest = fmaxf(largest, product);
            }
            largest = quad_max(largest);
            // A row that is nobody's meets none.
            f32 now = largest == bits_to_f32(MINUS_INFINITY) ? 0.0f : largest * factor;
            UNROLL for (u32 n = 0; n < 32; ++n) {
                f32& product = products[4 * (n / 2) + 2 * r + n % 2];
                product = exp2_fast(fmaf(product, factor, -now));
                sum += product;
            }
            sum = quad_sum(sum);
            factors[r] = sum > 0.0f ? input.dropout.scale / sum : 0.0f;
            u32 row = own + group + 8 * r;
            if (args.forward.log_sum_exp && lane_index() % 4 == 0 && row < line.count) {
                args.forward.log_sum_exp[static_cast<u64>(line.first + row) * input.heads + first_head + head] =
                    sum > 0.0f ? fmaf(largest, input.scale, logf(sum)) : 0.0f;
            }
            if (input.dropout.threshold != 0) {
                Pack bits = *reinterpret_cast<const Pack*>(kept + (head * ROWS + row) * 4);
                UNROLL for (u32 n = 0; n < 32; ++n) {
                    bool keeps = (bits.words[n / 8] >> pair >> (8 * (n / 2 % 4) + n % 2) & 1) != 0;
                    if (!keeps) products[4 * (n / 2) + 2 * r + n % 2] = 0.0f;
                }
            }
        }
        UNROLL for (u32 i = 0; i < 32; ++i) weights[i / 4][i % 4] = pack_bf16(products[2 * i], products[2 * i + 1]);

        f32 context[32];
        wgmma_operands(weights);
        wgmma_fence();
        start_weighted(context, weights, values);
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_operands(weights);
        wgmma_done(context);
        bf16* to = args.forward.context + static_cast<u64>(line.first + own) * input.hidden;
        store_rows<size>(context, head, factors, staged + own * LINE_BYTES, to + (first_head + head) * size,
                         input.hidden, line.count > own ? line.count - own : 0);
    }
}

/// Adds the lane `distance` away: of twice `count` sums a lane keeps half, the upper one where its number has that bit.
template <u32 count>
DEVICE void fold(f32 (&sums)[count], const f32 (&from)[2 * count], u32 distance) {
    bool upper = (lane_index() & distance) != 0;
    UNROLL for (u32 i = 0; i < count; ++i) {
        f32 mine = upper ? from[count + i] : from[i], theirs = upper ? from[i] : from[count + i];
        sums[i] = mine + shuffle_xor(theirs, distance);
    }
}

/// Sums each of the values over the eight lanes that share `lane % 4`; a lane gets the sums of the four values from
/// `4 (lane / 4)`.
DEVICE void sum_columns(f32 (&sums)[4], const f32 (&values)[32]) {
    f32 halves[16], quarters[8];
    fold<16>(halves, values, 16);
    fold<8>(quarters, halves, 8);
    fold<4>(sums, quarters, 4);
}

/// All scores are transposed: a thread's rows are keys, its columns queries.
///
/// With P the probabilities, K the dropout's factors and D the gradients of their products: the gradients of the
/// scores are P (K D - delta), where delta is the sum of P K D over a query's keys, here rows of all warps.
///
/// Shared memory: queries, keys, values, gradients of the context; the gradients of the scores, two boxes of 64
/// queries; what is stored; logarithms `[heads, queries]`, deltas `[queries]`, their parts `[warps, queries]`; bits
/// `[heads, 4, queries]`; the barrier.
template <u32 size>
DEVICE void backward(const LineBackward& args) {
    constexpr u32 HEADS = BOX_COLUMNS / size;
    const Input<bf16>& input = args.input;
    Line line = find_line(input);
    if (line.count == 0) return;
    u8 *queries = aligned_shared_memory(), *keys = queries + BOX, *values = keys + BOX, *d_context = values + BOX;
    u8 *d_scores = d_context + BOX, *staged = d_scores + 2 * BOX;
    f32 *logarithms = reinterpret_cast<f32*>(staged + BOX), *deltas = logarithms + HEADS * ROWS;
    f32* parts = deltas + ROWS;
    u32* kept = reinterpret_cast<u32*>(parts + WARPS * ROWS);
    u64* barrier = reinterpret_cast<u64*>(kept + HEADS * 4 * ROWS);
    u32 first_head = block_x() * HEADS;

    if (thread_index() == 0) {
        barrier_init(barrier, 1);
        fence_barrier_init();
    }
    sync_block();
    if (thread_index() == 0) {
        u32 column = block_x() * BOX_COLUMNS;
        barrier_expect(barrier, 4 * BOX);
        UNROLL for (u32 third = 0; third < 3; ++third) {
            tma_load(queries + third * BOX, &args.qkv, third * input.hidden + column, line.first, barrier);
        }
        tma_load(d_context, &args.d_context, column, line.first, barrier);
    }
    for (u32 i = thread_index(); i < HEADS * ROWS; i += THREADS) {
        u32 head = i / ROWS, row = i % ROWS;
        const f32* from = args.log_sum_exp + static_cast<u64>(line.first + row) * input.heads + first_head + head;
        logarithms[i] = row < line.count ? *from * LOG2_E : 0.0f;
    }
    for (u32 head = 0; head < HEADS; ++head) {
        draw_line<1, ROWS>(kept + head * 4 * ROWS, input, line, first_head + head);
    }
    u32 own = WARP_ROWS * warp_index(), group = lane_index() / 4, pair = lane_index() % 4 * 2, met[2];
    find_met(met, input, line);
    sync_block();
    barrier_wait(barrier, 0);
    clear_tail(queries, 4, line);

    f32 factor = input.scale * LOG2_E;
    for (u32 head = 0; head < HEADS; ++head) {
        u32 columns = head * size * sizeof(bf16), half = own / 64 * HALF_BOX + columns;
        f32 products[64], gradients[64];
        wgmma_fence();
        start_products<size>(products, keys + half, queries + columns);
        wgmma_commit();
        wgmma_fence();
        start_products<size>(gradients, values + half, d_context + columns);
        wgmma_commit();

        wgmma_wait<1>();
        wgmma_done(products);
        UNROLL for (u32 n = 0; n < 32; ++n) {
            f32 logarithm = logarithms[head * ROWS + 8 * (n / 2) + pair + n % 2];
            UNROLL for (u32 r = 0; r < 2; ++r) {
                f32& product = products[4 * (n / 2) + 2 * r + n % 2];
                product = (met[r] >> n & 1) != 0 ? exp2_fast(fmaf(product, factor, -logarithm)) : 0.0f;
            }
        }
        // The bits of the warp's keys, the thread's two among them, for a query.
        const u32* bits_of = kept + (head * 4 + own / 32) * ROWS + pair;
        auto find_bits = [&](u32 n) {
            if (input.dropout.threshold == 0) return 0xffffffffu;
            return bits_of[8 * (n / 2) + n % 2] >> (own % 32 + group);
        };
        wgmma_wait<0>();
        wgmma_done(gradients);
        f32 shares[32], sums[4];
        UNROLL for (u32 n = 0; n < 32; ++n) {
            u32 bits = find_bits(n);
            shares[n] = 0.0f;
            UNROLL for (u32 r = 0; r < 2; ++r) {
                u32 at = 4 * (n / 2) + 2 * r + n % 2;
                gradients[at] = (bits >> 8 * r & 1) != 0 ? gradients[at] * input.dropout.scale : 0.0f;
                shares[n] = fmaf(products[at], gradients[at], shares[n]);
            }
        }
        sum_columns(sums, shares);
        UNROLL for (u32 i = 0; i < 4; ++i) {
            parts[warp_index() * ROWS + 8 * (2 * group + i / 2) + pair + i % 2] = sums[i];
        }
        sync_block();
        if (thread_index() < ROWS) {
            f32 delta = 0.0f;
            UNROLL for (u32 warp = 0; warp < WARPS; ++warp) delta += parts[warp * ROWS + thread_index()];
            deltas[thread_index()] = delta;
        }
        sync_block();

        u32 weights[8][4], d_weights[8][4];
        UNROLL for (u32 n = 0; n < 32; ++n) {
            u32 bits = find_bits(n);
            f32 delta = deltas[8 * (n / 2) + pair + n % 2];
            UNROLL for (u32 r = 0; r < 2; ++r) {
                f32 &product = products[4 * (n / 2) + 2 * r + n % 2], &gradient = gradients[4 * (n / 2) + 2 * r + n % 2];
                gradient = product * (gradient - delta);
                if ((bits >> 8 * r & 1) == 0) product = 0.0f;
            }
        }
        UNROLL for (u32 b = 0; b < 8; ++b) {
            UNROLL for (u32 i = 0; i < 4; ++i) {
                u32 at = 8 * b + 2 * i;
                weights[b][i] = pack_bf16(products[at], products[at + 1]);
                d_weights[b][i] = pack_bf16(gradients[at], gradients[at + 1]);
            }
            store_matrices(matrices_at(d_scores + b / 4 * BOX + own * LINE_BYTES, b), d_weights[b]);
        }
        fence_async_shared();

        f32 d_values[32], d_keys[32], d_queries[32];
        wgmma_operands(weights);
        wgmma_operands(d_weights);
        wgmma_fence();
        start_weighted(d_values, weights, d_context);
        start_weighted(d_keys, d_weights, queries);
        wgmma_commit();
        sync_block();
        wgmma_fence();
        UNROLL for (u32 b = 0; b < 8; ++b) {
            u64 a = by_lines(d_scores + own / 64 * BOX + b * SIXTEEN);
            wgmma<64, true, true>(d_queries, a, by_lines(keys + b * SIXTEEN), b != 0);
        }
        wgmma_commit();

        bf16* to = args.d_qkv + static_cast<u64>(line.first + own) * (3 * input.hidden) + (first_head + head) * size;
        u8* lines = staged + own * LINE_BYTES;
        u32 stride = 3 * input.hidden, count = line.count > own ? line.count - own : 0;
        f32 scales[2] = {input.scale, input.scale}, value_scales[2] = {input.dropout.scale, input.dropout.scale};
        wgmma_wait<1>();
        wgmma_operands(weights);
        wgmma_operands(d_weights);
        wgmma_done(d_values);
        wgmma_done(d_keys);
        store_rows<size>(d_values, head, value_scales, lines, to + 2 * input.hidden, stride, count);
        store_rows<size>(d_keys, head, scales, lines, to + input.hidden, stride, count);
        wgmma_wait<0>();
        wgmma_done(d_queries);
        store_rows<size>(d_queries, head, scales, lines, to, stride, count);
    }
}

KERNEL_WITH_MAPS(attention_lines_32, LineForward, THREADS, 2) { forward<32>(args); }
KERNEL_WITH_MAPS(attention_lines_64, LineForward, THREADS, 2) { forward<64>(args); }
KERNEL_WITH_MAPS(attention_grad_lines_32, LineBackward, THREADS, 1) { backward<32>(args); }
KERNEL_WITH_MAPS(attention_grad_lines_64, LineBackward, THREADS, 1) { backward<64>(args); }
