// What attention is given, on tensor cores and on plain multipliers alike, and who attends to whom.
//
// That is said by the bounds of each row's sequence, which serve both ways: a query attends to a key if and only if
// each lies within the other's bounds.
#pragma once
#include "prelude.cuh"

/// What all passes read; `src/backend/cuda/attention.rs` has its twin, and those of the two that follow.
template <class T>
struct Input {
    const Step* step;
    /// `[tokens]`: `sequence << 16 | position`.
    const u32* places;
    /// `[sequences]`: the first row of each, and the row after its last.
    const u32* starts;
    const u32* ends;
    /// `[tokens, 3 * hidden]`: queries, keys and values side by side.
    const T* qkv;
    Rows rows;
    u32 heads;
    u32 hidden;
    Dropout dropout;
    /// From products of queries and keys to scores.
    f32 scale;
};

template <class T>
struct Forward {
    Input<T> input;
    /// `[tokens, hidden]`
    T* context;
    /// `[tokens, heads]`: the natural logarithm of each softmax's denominator; or none.
    f32* log_sum_exp;
};

template <class T>
struct Backward {
    Input<T> input;
    /// `[tokens, heads]`
    const f32* log_sum_exp;
    /// `[tokens, hidden]`
    const T* d_context;
    /// `[tokens, 3 * hidden]`
    T* d_qkv;
    /// `[2, heads, stride]`: what the pass by queries leaves of each for the pass by keys.
    f32* statistics;
    /// Rows of whole blocks.
    u32 stride;
    u32 unused;
};

constexpr u32 MINUS_INFINITY = 0xff800000u;
constexpr f32 LOG2_E = 1.4426950408889634f;

/// A row's place and the rows of its sequence, from `first` to before `last`; none for a dead row.
struct Row {
    u32 place, first, last;
};

template <class T>
DEVICE Row find_row(const Input<T>& input, u32 row, u32 rows) {
    if (row >= rows) return {0, 0, 0};
    u32 place = input.places[row], sequence = place >> 16, position = place & 0xffff;
    if (sequence >= input.step->sequences) return {0, 0, 0};
    u32 first = input.starts[sequence], last = input.ends[sequence];
    // A dead row's place is that of the batch's first row.
    if (first + position != row || row >= last) return {0, 0, 0};
    return {place, first, last};
}

/// The rows that some of several rows share a sequence with, and those that all do.
struct Reach {
    u32 first, last, common_first, common_last;
};

/// The reach of `count` rows from `begin`, the same in all lanes.
template <u32 count, class T>
DEVICE Reach find_reach(const Input<T>& input, u32 begin, u32 rows) {
    Reach reach = {0xffffffffu, 0, 0, 0xffffffffu};
    UNROLL for (u32 i = 0; i < ceiling_division(count, 32); ++i) {
        Row row = find_row(input, begin + (32 * i + lane_index()) % count, rows);
        if (row.first < row.last) {
            reach.first = min(reach.first, row.first);
            reach.last = max(reach.last, row.last);
        }
        reach.common_first = max(reach.common_first, row.first);
        reach.common_last = min(reach.common_last, row.last);
    }
    UNROLL for (u32 mask = 16; mask > 0; mask /= 2) {
        reach.first = min(reach.first, shuffle_xor(reach.first, mask));
        reach.last = max(reach.last, shuffle_xor(reach.last, mask));
        reach.common_first = max(reach.common_first, shuffle_xor(reach.common_first, mask));
        reach.common_last = min(reach.common_last, shuffle_xor(reach.common_last, mask));
    }
    return reach;
}

/// Bit `b` tells whether the query at `place`, whose sequence starts at row `first`, keeps the key at row
/// `begin + b`; for the keys from `begin` to before `end`, at most 32. A draw serves eight neighbours.
DEVICE u32 draw_bits(const Step* step, Dropout dropout, u32 head, u32 place, u32 first, u32 begin, u32 end) {
    u32 bits = 0;
    for (u32 position = begin > first ? (begin - first) / 8 * 8 : 0; first + position < end; position += 8) {
        u32 words[4], kept = 0;
        draw_eight(words, step, dropout, head, place, position / 8);
        UNROLL for (u32 i = 0; i < 4; ++i) {
            kept |= ((words[i] & 0xffff) >= dropout.threshold ? 1u : 0u) << 2 * i;
            kept |= (words[i] >> 16 >= dropout.threshold ? 2u : 0u) << 2 * i;
        }
        u32 row = first + position;
        bits |= row < begin ? kept >> (begin - row) : kept << (row - begin);
    }
    return bits;
}

/// The sum over the four lanes that share a row.
DEVICE f32 quad_sum(f32 value) {
    value += shuffle_xor(value, 1);
    return value + shuffle_xor(value, 2);
}

DEVICE f32 quad_max(f32 value) {
    value = fmaxf(value, shuffle_xor(value, 1));
    return fmaxf(value, shuffle_xor(value, 2));
}
