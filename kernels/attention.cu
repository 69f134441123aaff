// Multi-head self-attention over packed sequences (Vaswani et al. 2017, equation 1) on tensor cores, with dropout
// on the probabilities. Scores never leave the registers (Dao 2023, FlashAttention-2).
//
// A block takes 64 rows of one head, a warp 16 of them: queries in the forward pass and for their gradient, keys
// for the gradients of keys and values. It walks over all rows that share a sequence with its own, tile by tile,
// while the next ones are on their way.
//
// Backward goes twice over the scores: by queries, for the softmax's inner products `delta` and the gradient of the
// queries, then by keys. So every sum has one owner and one order.
#include "attention.cuh"
#include "attention_tile.cuh"

/// Rows that a block owns.
constexpr u32 BLOCK_ROWS = 64;

/// What a warp works on, and whom it meets.
struct Work {
    const Step* step;
    u32 rows, head;
    /// The warp's first row, and its place within the block's.
    u32 first, offset;
    /// The rows that the block walks over, and those that the warp does.
    Reach block, warp;
    /// Those of a sum's two rows.
    Row own[2];
};

DEVICE Work find_work(const Input<bf16>& input, u32 rows) {
    u32 block = block_y() * BLOCK_ROWS, offset = WARP_ROWS * warp_index(), first = block + offset;
    u32 group = lane_index() / 4;
    return {input.step,
            rows,
            block_x(),
            first,
            offset,
            find_reach<BLOCK_ROWS>(input, block, rows),
            find_reach<WARP_ROWS>(input, first, rows),
            {find_row(input, first + group, rows), find_row(input, first + group + 8, rows)}};
}

/// Tiles of `columns` rows from row `first` that hold all that the block walks over.
template <u32 columns>
DEVICE u32 count_tiles(const Work& work, u32 first) {
    return first < work.block.last ? ceiling_division(work.block.last - first, columns) : 0;
}

/// Whether the warp shares a sequence with any of `columns` rows from `begin`.
template <u32 columns>
DEVICE bool touches(const Work& work, u32 begin) {
    return work.warp.first < begin + columns && begin < work.warp.last;
}

/// Sets to minus infinity the products of rows that share no sequence, with `columns` rows from `begin`.
template <u32 columns>
DEVICE void mask(f32 (&products)[columns / 8][4], const Work& work, u32 begin) {
    if (work.warp.common_first <= begin && begin + columns <= work.warp.common_last) return;
    UNROLL for (u32 n = 0; n < columns / 8; ++n) {
        UNROLL for (u32 e = 0; e < 4; ++e) {
            Row own = work.own[e / 2];
            u32 row = begin + 8 * n + lane_index() % 4 * 2 + e % 2;
            if (row - own.first >= own.last - own.first) products[n][e] = bits_to_f32(MINUS_INFINITY);
        }
    }
}

/// What the warp's queries keep of the `columns` keys from `begin`: two lanes draw for each, half of the keys each.
///
/// `query` is row `lane / 2` of the warp's.
template <u32 columns>
DEVICE u32 draw(const Work& work, Dropout dropout, Row query, u32 begin) {
    if (dropout.threshold == 0) return 0xffffffffu;
    u32 half = begin + lane_index() % 2 * (columns / 2), end = min(half + columns / 2, query.last);
    return draw_bits(work.step, dropout, work.head, query.place, query.first, half, end);
}

/// Sets to 0 the products that are not kept, by the bits that [`draw`] gave to the lanes.
template <u32 columns>
DEVICE void drop(f32 (&products)[columns / 8][4], Dropout dropout, u32 drawn) {
    if (dropout.threshold == 0) return;
    u32 group = lane_index() / 4, pair = lane_index() % 4 * 2;
    UNROLL for (u32 r = 0; r < 2; ++r) {
        UNROLL for (u32 half = 0; half < 2; ++half) {
            u32 bits = shuffle(drawn, 2 * (group + 8 * r) + half) >> pair;
            UNROLL for (u32 n = 0; n < columns / 16; ++n) {
                UNROLL for (u32 e = 0; e < 2; ++e) {
                    if ((bits >> (8 * n + e) & 1) == 0) products[half * (columns / 16) + n][2 * r + e] = 0.0f;
                }
            }
        }
    }
}

/// Takes turns: `use(turn)` follows `load(turn)`, which starts asynchronous copies to stage `turn % stages` and
/// runs `stages - 1` turns ahead. Nothing is copied if there are no turns.
template <u32 stages, class Load, class Use>
DEVICE void take_turns(u32 turns, Load load, Use use) {
    UNROLL for (u32 turn = 0; turn < stages - 1; ++turn) {
        if (turn < turns) load(turn);
        copy_async_commit();
    }
    for (u32 turn = 0; turn < turns; ++turn) {
        copy_async_wait<stages - 2>();
        // All have used the stage that is loaded next.
        sync_block();
        if (turn + stages - 1 < turns) load(turn + stages - 1);
        copy_async_commit();
        use(turn);
    }
}

/// Starts to load `count` keys and, to the tile after them, their values.
template <u32 size, u32 count>
DEVICE void load_keys(u8* tiles, const Input<bf16>& input, const Work& work, u32 begin) {
    const bf16 *keys = input.qkv + input.hidden + work.head * size, *values = keys + input.hidden;
    load_tile<size, count>(tiles, keys, 3 * input.hidden, begin, work.rows);
    load_tile<size, count>(tiles + count * size * sizeof(bf16), values, 3 * input.hidden, begin, work.rows);
}

/// Starts to load `count` queries and, to the tile after them, the gradients of their context.
template <u32 size, u32 count>
DEVICE void load_queries(u8* tiles, const Backward<bf16>& args, const Work& work, u32 begin) {
    const bf16 *queries = args.input.qkv + work.head * size, *d_context = args.d_context + work.head * size;
    u32 hidden = args.input.hidden;
    load_tile<size, count>(tiles, queries, 3 * hidden, begin, work.rows);
    load_tile<size, count>(tiles + count * size * sizeof(bf16), d_context, hidden, begin, work.rows);
}

/// Shared memory: the queries, then four stages of keys and values.
template <u32 size>
DEVICE void forward(const Forward<bf16>& args) {
    constexpr u32 KEYS = 32, TILE = KEYS * size * sizeof(bf16), OWN_TILE = BLOCK_ROWS * size * sizeof(bf16);
    const Input<bf16>& input = args.input;
    u32 rows = row_count(input.step, input.rows);
    if (block_y() * BLOCK_ROWS >= rows) return;
    Work work = find_work(input, rows);
    Row query = find_row(input, work.first + lane_index() / 2, rows);
    u8 *queries = shared_memory(), *stages = queries + OWN_TILE;

    auto load = [&](u32 turn) {
        const bf16* from = input.qkv + work.head * size;
        if (turn == 0) load_tile<size, BLOCK_ROWS>(queries, from, 3 * input.hidden, work.first - work.offset, rows);
        load_keys<size, KEYS>(stages + turn % 4 * (2 * TILE), input, work, work.block.first + turn * KEYS);
    };

    // The online softmax (Milakov and Gimelshein 2018): sums are relative to the largest product so far.
    f32 context[size / 8][4] = {}, sums[2] = {};
    f32 largest[2] = {bits_to_f32(MINUS_INFINITY), bits_to_f32(MINUS_INFINITY)};
    f32 factor = input.scale * LOG2_E;
    take_turns<4>(count_tiles<KEYS>(work, work.block.first), load, [&](u32 turn) {
        u32 begin = work.block.first + turn * KEYS;
        u8* keys = stages + turn % 4 * (2 * TILE);
        if (!touches<KEYS>(work, begin)) return;
        u32 drawn = draw<KEYS>(work, input.dropout, query, begin);
        f32 products[KEYS / 8][4] = {};
        add_products<size, KEYS>(products, queries, work.offset, keys);
        mask<KEYS>(products, work, begin);
        UNROLL for (u32 r = 0; r < 2; ++r) {
            f32 before = largest[r] * factor;
            UNROLL for (u32 n = 0; n < KEYS / 8; ++n) {
                largest[r] = fmaxf(largest[r], fmaxf(products[n][2 * r], products[n][2 * r + 1]));
            }
            largest[r] = quad_max(largest[r]);
            // A row that met none of its keys yet has no largest product.
            f32 now = largest[r] == bits_to_f32(MINUS_INFINITY) ? 0.0f : largest[r] * factor;
            f32 shrink = exp2_fast(before - now);
            sums[r] *= shrink;
            UNROLL for (u32 n = 0; n < size / 8; ++n) {
                context[n][2 * r] *= shrink;
                context[n][2 * r + 1] *= shrink;
            }
            UNROLL for (u32 n = 0; n < KEYS / 8; ++n) {
                UNROLL for (u32 e = 2 * r; e < 2 * r + 2; ++e) {
                    products[n][e] = exp2_fast(fmaf(products[n][e], factor, -now));
                    sums[r] += products[n][e];
                }
            }
        }
        drop<KEYS>(products, input.dropout, drawn);
        add_weighted<size, KEYS>(context, products, keys + TILE);
    });

    f32 factors[2];
    UNROLL for (u32 r = 0; r < 2; ++r) {
        u32 row = work.first + lane_index() / 4 + 8 * r;
        f32 sum = quad_sum(sums[r]);
        factors[r] = sum > 0.0f ? input.dropout.scale / sum : 0.0f;
        if (args.log_sum_exp && lane_index() % 4 == 0 && row < rows) {
            args.log_sum_exp[static_cast<u64>(row) * input.heads + work.head] =
                sum > 0.0f ? fmaf(largest[r], input.scale, logf(sum)) : 0.0f;
        }
    }
    bf16* to = args.context + work.head * size;
    store_rows<size>(context, factors, queries, work.offset, to, input.hidden, work.first, rows);
}

/// Writes the statistics of the queries and their gradient.
///
/// With P the probabilities, K the dropout's factors and D the gradients of their products: the gradients of the
/// scores are P (K D - delta), where delta is the sum of P K D over the keys. So the keys are passed twice, first
/// for delta. Shared memory: the queries, the gradients of their context, and four stages of keys and values.
template <u32 size>
DEVICE void backward_queries(const Backward<bf16>& args) {
    constexpr u32 KEYS = 32, TILE = KEYS * size * sizeof(bf16), OWN_TILE = BLOCK_ROWS * size * sizeof(bf16);
    const Input<bf16>& input = args.input;
    u32 rows = row_count(input.step, input.rows);
    if (block_y() * BLOCK_ROWS >= rows) return;
    Work work = find_work(input, rows);
    u32 group = lane_index() / 4, tiles = count_tiles<KEYS>(work, work.block.first);
    Row query = find_row(input, work.first + lane_index() / 2, rows);
    u8 *queries = shared_memory(), *d_context = queries + OWN_TILE, *stages = d_context + OWN_TILE;

    auto tile_of = [&](u32 turn) { return turn < tiles ? turn : turn - tiles; };
    auto stage_of = [&](u32 turn) { return stages + (tiles <= 4 ? tile_of(turn) : turn) % 4 * (2 * TILE); };
    auto load = [&](u32 turn) {
        if (turn == 0) load_queries<size, BLOCK_ROWS>(queries, args, work, work.first - work.offset);
        // Up to four tiles stay where they are for the second pass.
        if (turn >= tiles && tiles <= 4) return;
        load_keys<size, KEYS>(stage_of(turn), input, work, work.block.first + tile_of(turn) * KEYS);
    };

    f32 logarithms[2], d_queries[size / 8][4] = {}, deltas[2] = {};
    UNROLL for (u32 r = 0; r < 2; ++r) {
        u32 row = work.first + group + 8 * r;
        f32 logarithm = row < rows ? args.log_sum_exp[static_cast<u64>(row) * input.heads + work.head] : 0.0f;
        logarithms[r] = logarithm * LOG2_E;
    }
    f32 factor = input.scale * LOG2_E;
    take_turns<4>(2 * tiles, load, [&](u32 turn) {
        u32 begin = work.block.first + tile_of(turn) * KEYS;
        u8* keys = stage_of(turn);
        if (turn == tiles) {
            deltas[0] = quad_sum(deltas[0]);
            deltas[1] = quad_sum(deltas[1]);
        }
        if (!touches<KEYS>(work, begin)) return;
        u32 drawn = draw<KEYS>(work, input.dropout, query, begin);
        f32 products[KEYS / 8][4] = {}, gradients[KEYS / 8][4] = {};
        add_products<size, KEYS>(products, queries, work.offset, keys);
        add_products<size, KEYS>(gradients, d_context, work.offset, keys + TILE);
        mask<KEYS>(products, work, begin);
        drop<KEYS>(gradients, input.dropout, drawn);
        UNROLL for (u32 n = 0; n < KEYS / 8; ++n) {
            UNROLL for (u32 e = 0; e < 4; ++e) {
                products[n][e] = exp2_fast(fmaf(products[n][e], factor, -logarithms[e / 2]));
                gradients[n][e] *= input.dropout.scale;
            }
        }
        if (turn < tiles) {
            UNROLL for (u32 n = 0; n < KEYS / 8; ++n) {
                UNROLL for (u32 e = 0; e < 4; ++e) {
                    deltas[e / 2] = fmaf(products[n][e], gradients[n][e], deltas[e / 2]);
                }
            }
        } else {
            UNROLL for (u32 n = 0; n < KEYS / 8; ++n) {
                UNROLL for (u32 e = 0; e < 4; ++e) products[n][e] *= gradients[n][e] - deltas[e / 2];
            }
            add_weighted<size, KEYS>(d_queries, products, keys);
        }
    });

    if (lane_index() % 4 == 0) {
        // The logarithms to base 2 and the deltas, of rows beyond the last too: what the second kernel loads is
        // never an accidental NaN.
        u64 stride = args.stride, at = work.head * stride + work.first + group;
        UNROLL for (u32 r = 0; r < 2; ++r) {
            args.statistics[at + 8 * r] = logarithms[r];
            args.statistics[input.heads * stride + at + 8 * r] = deltas[r];
        }
    }
    bf16* to = args.d_qkv + work.head * size;
    f32 factors[2] = {input.scale, input.scale};
    store_rows<size>(d_queries, factors, queries, work.offset, to, 3 * input.hidden, work.first, rows);
}

/// Writes the gradients of keys and values. All scores are transposed: a warp's rows are keys, columns are queries.
///
/// Shared memory: the keys, the values, and two stages of queries, gradients of the context and statistics.
template <u32 size>
DEVICE void backward_keys(const Backward<bf16>& args) {
    // As many as leave registers for two gradients.
    constexpr u32 QUERIES = size == 128 ? 16 : 32;
    constexpr u32 TILE = QUERIES * size * sizeof(bf16), STATISTICS = 2 * QUERIES * sizeof(f32);
    constexpr u32 OWN_TILE = BLOCK_ROWS * size * sizeof(bf16);
    const Input<bf16>& input = args.input;
    u32 rows = row_count(input.step, input.rows);
    if (block_y() * BLOCK_ROWS >= rows) return;
    Work work = find_work(input, rows);
    // Statistics are loaded by fours.
    u32 lane = lane_index(), walk = work.block.first / 4 * 4;
    u8 *keys = shared_memory(), *values = keys + OWN_TILE, *stages = values + OWN_TILE;

    auto stage_of = [&](u32 turn) { return stages + turn % 2 * (2 * TILE + STATISTICS); };
    auto load = [&](u32 turn) {
        if (turn == 0) load_keys<size, BLOCK_ROWS>(keys, input, work, work.first - work.offset);
        u32 begin = walk + turn * QUERIES;
        load_queries<size, QUERIES>(stage_of(turn), args, work, begin);
        u32 kind = thread_index() / (QUERIES / 4), four = thread_index() % (QUERIES / 4) * 4;
        if (kind < 2) {
            const f32* from = args.statistics + (static_cast<u64>(kind) * input.heads + work.head) * args.stride;
            u8* to = stage_of(turn) + 2 * TILE + (kind * QUERIES + four) * sizeof(f32);
            copy_async(to, from + begin + four, begin + four < rows);
        }
    };

    // A lane draws for one query of the tile, whose place is fetched a turn ahead.
    auto find_place = [&](u32 query) {
        return input.dropout.threshold != 0 && query < rows ? input.places[query] : 0;
    };
    u32 next_place = find_place(walk + lane);
    f32 d_keys[size / 8][4] = {}, d_values[size / 8][4] = {};
    f32 factor = input.scale * LOG2_E;
    take_turns<2>(count_tiles<QUERIES>(work, walk), load, [&](u32 turn) {
        u32 begin = walk + turn * QUERIES, place = next_place, drawn = 0xffffffffu;
        next_place = find_place(begin + QUERIES + lane);
        u8 *queries = stage_of(turn), *d_context = queries + TILE;
        const f32* logarithms = reinterpret_cast<const f32*>(d_context + TILE);
        if (!touches<QUERIES>(work, begin)) return;
        if (input.dropout.threshold != 0) {
            u32 first = begin + lane - (place & 0xffff), end = work.first + WARP_ROWS;
            drawn = draw_bits(input.step, input.dropout, work.head, place, first, work.first, end);
        }
        f32 products[QUERIES / 8][4] = {}, gradients[QUERIES / 8][4] = {};
        add_products<size, QUERIES>(products, keys, work.offset, queries);
        add_products<size, QUERIES>(gradients, values, work.offset, d_context);
        mask<QUERIES>(products, work, begin);
        UNROLL for (u32 n = 0; n < QUERIES / 8; ++n) {
            UNROLL for (u32 e = 0; e < 2; ++e) {
                u32 query = 8 * n + lane % 4 * 2 + e, bits = shuffle(drawn, query) >> lane / 4;
                f32 logarithm = logarithms[query], delta = logarithms[QUERIES + query];
                UNROLL for (u32 r = 0; r < 2; ++r) {
                    f32 &product = products[n][2 * r + e], &gradient = gradients[n][2 * r + e];
                    bool kept = (bits >> 8 * r & 1) != 0;
                    f32 probability = exp2_fast(fmaf(product, factor, -logarithm));
                    product = kept ? probability : 0.0f;
                    gradient = probability * ((kept ? gradient * input.dropout.scale : 0.0f) - delta);
                }
            }
        }
        add_weighted<size, QUERIES>(d_values, products, d_context);
        add_weighted<size, QUERIES>(d_keys, gradients, queries);
    });

    bf16* to = args.d_qkv + input.hidden + work.head * size;
    u32 stride = 3 * input.hidden;
    f32 key_factors[2] = {input.scale, input.scale}, value_factors[2] = {input.dropout.scale, input.dropout.scale};
    store_rows<size>(d_keys, key_factors, keys, work.offset, to, stride, work.first, rows);
    store_rows<size>(d_values, value_factors, values, work.offset, to + input.hidden, stride, work.first, rows);
}

KERNEL(attention_32, Forward<bf16>, THREADS, 4) { forward<32>(args); }
KERNEL(attention_64, Forward<bf16>, THREADS, 4) { forward<64>(args); }
KERNEL(attention_128, Forward<bf16>, THREADS, 2) { forward<128>(args); }
KERNEL(attention_grad_queries_32, Backward<bf16>, THREADS, 4) { backward_queries<32>(args); }
KERNEL(attention_grad_queries_64, Backward<bf16>, THREADS, 4) { backward_queries<64>(args); }
KERNEL(attention_grad_queries_128, Backward<bf16>, THREADS, 2) { backward_queries<128>(args); }
KERNEL(attention_grad_keys_32, Backward<bf16>, THREADS, 3) { backward_keys<32>(args); }
KERNEL(attention_grad_keys_64, Backward<bf16>, THREADS, 3) { backward_keys<64>(args); }
KERNEL(attention_grad_keys_128, Backward<bf16>, THREADS, 2) { backward_keys<128>(args); }
