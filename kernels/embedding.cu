// The sum of word, position and segment embeddings (Devlin et al. 2018, figure 2), and its gradients.
// `src/backend/cuda/embedding.rs` has the structs' twins. All sums have an order that only the batch decides.
#include "prelude.cuh"

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / 32;
/// Columns that a warp covers at a time.
constexpr u32 TILE = 256;
constexpr u32 NONE = 0xffffffffu;

/// `out[t] = word[id] + position[place] + token_type[type]`
template <class T>
struct Embedding {
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
    /// `[rows, cols]`
    T* out;
    Rows rows;
    u32 cols;
    u32 vocabulary;
    u32 positions;
    u32 token_types;
    /// Whether rows may be moved by packs
    u32 whole;
    u32 unused;
};

/// A warp for a row.
template <bool whole, class T>
DEVICE void embed(const Embedding<T>& args) {
    const u32 row = block_x() * WARPS + warp_index(), cols = args.cols;
    if (row >= row_count(args.step, args.rows)) return;
    u32 id = args.ids[row], type = args.types[row], place = args.places[row] & 0xffffu;
    // What is in no table shows as NaN and is not read.
    bool known = id < args.vocabulary && type < args.token_types && place < args.positions;
    const T* word = args.word + static_cast<u64>(known ? id : 0) * cols;
    const T* position = args.position + static_cast<u64>(known ? place : 0) * cols;
    const T* token_type = args.token_type + static_cast<u64>(known ? type : 0) * cols;
    for (u32 column = lane_index() * 8; column < cols; column += TILE) {
        f32 sums[8], others[2][8];
        unpack(sums, read_eight<whole>(word, column, cols));
        unpack(others[0], read_eight<whole>(position, column, cols));
        unpack(others[1], read_eight<whole>(token_type, column, cols));
        UNROLL for (u32 i = 0; i < 8; ++i)
            sums[i] = known ? sums[i] + others[0][i] + others[1][i] : bits_to_f32(0x7fc00000u);
        write_eight<whole>(args.out + static_cast<u64>(row) * cols, column, cols, sums);
    }
}
KERNEL(embed_bf16, Embedding<bf16>, THREADS, 3) { args.whole != 0 ? embed<true>(args) : embed<false>(args); }
KERNEL(embed_f32, Embedding<f32>, THREADS, 3) { args.whole != 0 ? embed<true>(args) : embed<false>(args); }

// ---- word gradients ---------------------------------------------------------------------------------------------

/// What both stages of the words' gradient take.
template <class T>
struct WordGrad {
    const Step* step;
    /// `[rows]`
    const u32* ids;
    /// Rows sorted by id, then by row, `[rows]`
    const u32* order;
    /// `[rows, cols]`
    const T* d_out;
    /// `[vocabulary, cols]`; where it is stored to, it holds zeros
    f32* d_word;
    /// `[chunks, 2, cols]`: of each chunk the sum of the rows whose id also ends the chunk before, and of those
    /// whose id begins in this chunk and goes on in the next
    f32* partials;
    Rows rows;
    u32 cols;
    u32 vocabulary;
    /// Whether rows may be moved by packs
    u32 whole;
    u32 unused;
};

constexpr u32 WORD_THREADS = 128;
/// Rows of a chunk of the order: a frequent word is shared out over many.
constexpr u32 CHUNK = 32;

/// The id at a place of the order.
template <class T>
DEVICE u32 id_at(const WordGrad<T>& args, u32 place, u32 rows) {
    return place < rows ? args.ids[args.order[place]] : NONE;
}

/// A block for a chunk, a warp for each 256 columns. Ids that lie in one chunk are done with.
template <bool whole, class T>
DEVICE void sum_chunk(const WordGrad<T>& args) {
    // Rows in flight: fewer where each element has an address of its own.
    constexpr u32 batch = whole ? 8 : 4;
    const u32 rows = row_count(args.step, args.rows), cols = args.cols, begin = block_x() * CHUNK;
    if (begin >= rows) return;
    const u32 place = begin + lane_index();
    const u32 row = place < rows ? args.order[place] : 0, id = id_at(args, place, rows);
    const u32 before = begin > 0 ? id_at(args, begin - 1, rows) : NONE, after = id_at(args, begin + CHUNK, rows);
    f32* partial = args.partials + static_cast<u64>(block_x()) * 2 * cols;
    for (u32 tile = warp_index() * TILE; tile < cols; tile += WORD_THREADS / 32 * TILE) {
        const u32 column = tile + lane_index() * 8;
        f32 sums[8] = {};
        bool began_before = shuffle(id, 0) == before;
        for (u32 first = 0; first < CHUNK && begin + first < rows; first += batch) {
            Eight<T> eights[batch];
            UNROLL for (u32 i = 0; i < batch; ++i) {
                u32 from = shuffle(row, first + i);
                eights[i] = read_eight<whole>(args.d_out + static_cast<u64>(from) * cols, column, cols);
            }
            UNROLL for (u32 i = 0; i < batch; ++i) {
                const u32 own = shuffle(id, first + i), following = shuffle(id, (first + i + 1) % CHUNK);
                const bool last = first + i + 1 == CHUNK;
                const u32 next = last ? after : following;
                if (own == NONE) continue;
                f32 values[8];
                unpack(values, eights[i]);
                UNROLL for (u32 j = 0; j < 8; ++j) sums[j] += values[j];
                if (next == own && !last) continue;
                if (began_before) {
                    write_eight<whole>(partial, column, cols, sums);
                } else if (next == own) {
                    write_eight<whole>(partial + cols, column, cols, sums);
                } else if (own < args.vocabulary) {
                    // Zeros are there, or what the sum is to be added to.
                    sink_eight<whole>(args.d_word + static_cast<u64>(own) * cols, column, cols, sums, true);
                }
                UNROLL for (u32 j = 0; j < 8; ++j) sums[j] = 0.0f;
                began_before = false;
            }
        }
    }
}
KERNEL(sum_words_bf16, WordGrad<bf16>, WORD_THREADS, 3) {
    args.whole != 0 ? sum_chunk<true>(args) : sum_chunk<false>(args);
}
KERNEL(sum_words_f32, WordGrad<f32>, WORD_THREADS, 3) {
    args.whole != 0 ? sum_chunk<true>(args) : sum_chunk<false>(args);
}

/// A block for a chunk again: where an id begins in it and goes on, it adds up what the chunks have of that id.
template <bool whole>
DEVICE void join_chunks(const WordGrad<f32>& args) {
    const u32 rows = row_count(args.step, args.rows), cols = args.cols, end = (block_x() + 1) * CHUNK;
    const u32 id = id_at(args, end - 1, rows);
    if (id >= args.vocabulary || id_at(args, end, rows) != id) return;
    if (block_x() > 0 && id_at(args, end - CHUNK - 1, rows) == id) return;
    u32 last = block_x();
    for (u32 found = 32; found == 32; last += found)
        found = warp_sum(id_at(args, (last + 1 + lane_index()) * CHUNK, rows) == id ? 1u : 0u);
    for (u32 column = thread_index() * 8; column < cols; column += WORD_THREADS * 8) {
        const f32* partial = args.partials + static_cast<u64>(block_x()) * 2 * cols;
        f32 sums[8], values[8];
        unpack(sums, read_eight<whole>(partial + cols, column, cols));
        for (u32 chunk = block_x() + 1; chunk <= last; ++chunk) {
            partial += 2 * cols;
            unpack(values, read_eight<whole>(partial, column, cols));
            UNROLL for (u32 i = 0; i < 8; ++i) sums[i] += values[i];
        }
        sink_eight<whole>(args.d_word + static_cast<u64>(id) * cols, column, cols, sums, true);
    }
}
KERNEL(join_words, WordGrad<f32>, WORD_THREADS, 3) {
    args.whole != 0 ? join_chunks<true>(args) : join_chunks<false>(args);
}

// ---- position and type gradients --------------------------------------------------------------------------------

/// What the gradients of the short tables take.
template <class T>
struct TableGrad {
    const Step* step;
    /// First row of each sequence and the row after its last, `[sequences]`, where positions are summed
    const u32* starts;
    const u32* ends;
    /// `[rows]`, where types are
    const u32* types;
    /// `[rows, cols]`
    const T* d_out;
    /// `[positions, cols]`; of types each part's sum, `[parts, token_types, cols]`
    f32* out;
    Rows rows;
    u32 cols;
    /// Types; 1 of positions
    u32 token_types;
    /// Whether to add to what is there
    u32 add;
    /// Whether rows may be moved by packs
    u32 whole;
};

/// `out[cols] = sum of d_out[row_of(i)]` for i from `begin` to `end`, 256 columns a block; a row may be none. Warps
/// take turns, and their sums come together in order.
template <bool whole, class T, class RowOf>
DEVICE void sum_rows(const TableGrad<T>& args, u32 begin, u32 end, f32* out, RowOf row_of) {
    constexpr u32 batch = 4;
    f32* of_warps = reinterpret_cast<f32*>(shared_memory());
    const u32 cols = args.cols, column = block_y() * TILE + lane_index() * 8;
    f32 sums[8] = {};
    for (u32 first = begin + warp_index(); first < end; first += batch * WARPS) {
        Eight<T> eights[batch];
        UNROLL for (u32 i = 0; i < batch; ++i) {
            u32 row = first + i * WARPS < end ? row_of(first + i * WARPS) : NONE;
            // A row of no columns reads as zeros.
            eights[i] = read_eight<whole>(args.d_out + static_cast<u64>(row == NONE ? 0 : row) * cols, column,
                                          row == NONE ? 0 : cols);
        }
        UNROLL for (u32 i = 0; i < batch; ++i) {
            f32 values[8];
            unpack(values, eights[i]);
            UNROLL for (u32 j = 0; j < 8; ++j) sums[j] += values[j];
        }
    }
    write_eight<true>(of_warps + warp_index() * TILE, lane_index() * 8, TILE, sums);
    sync_block();
    const u32 own = block_y() * TILE + thread_index();
    if (own >= cols) return;
    f32 sum = of_warps[thread_index()];
    UNROLL for (u32 warp = 1; warp < WARPS; ++warp) sum += of_warps[warp * TILE + thread_index()];
    out[own] = args.add != 0 ? out[own] + sum : sum;
}

/// A block for a position and 256 columns: the sequences that are long enough.
template <bool whole, class T>
DEVICE void sum_positions(const TableGrad<T>& args) {
    const u32 position = block_x();
    f32* out = args.out + static_cast<u64>(position) * args.cols;
    sum_rows<whole>(args, 0, args.step->sequences, out, [&](u32 sequence) {
        u32 row = args.starts[sequence] + position;
        return row < args.ends[sequence] ? row : NONE;
    });
}
KERNEL(sum_positions_bf16, TableGrad<bf16>, THREADS, 4) {
    args.whole != 0 ? sum_positions<true>(args) : sum_positions<false>(args);
}
KERNEL(sum_positions_f32, TableGrad<f32>, THREADS, 4) {
    args.whole != 0 ? sum_positions<true>(args) : sum_positions<false>(args);
}

/// Rows of a part of the sum of types.
constexpr u32 PART = 128;

/// A block for a part of the rows, 256 columns and a type.
template <bool whole, class T>
DEVICE void sum_types(const TableGrad<T>& args) {
    const u32 type = block_z(), begin = block_x() * PART, rows = row_count(args.step, args.rows);
    f32* out = args.out + (static_cast<u64>(block_x()) * args.token_types + type) * args.cols;
    sum_rows<whole>(args, begin, begin + PART < rows ? begin + PART : rows, out,
                    [&](u32 row) { return args.types[row] == type ? row : NONE; });
}
KERNEL(sum_types_bf16, TableGrad<bf16>, THREADS, 4) {
    args.whole != 0 ? sum_types<true>(args) : sum_types<false>(args);
}
KERNEL(sum_types_f32, TableGrad<f32>, THREADS, 4) {
    args.whole != 0 ? sum_types<true>(args) : sum_types<false>(args);
}
