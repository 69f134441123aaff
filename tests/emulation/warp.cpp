// What the lanes of a warp do together, once all have come.
#include "machine.h"

namespace emulation {

namespace {

void shuffle_lanes(void* const (&operands)[WARP]) {
    u64 bits[WARP];
    for (u32 lane = 0; lane < WARP; ++lane) bits[lane] = static_cast<Shuffle*>(operands[lane])->bits;
    for (void* operand : operands) {
        Shuffle& shuffle = *static_cast<Shuffle*>(operand);
        shuffle.bits = bits[shuffle.from % WARP];
    }
}

void load_four_matrices(void* const (&operands)[WARP], bool transposed) {
    u16 matrices[4][8][8];
    for (u32 lane = 0; lane < WARP; ++lane) {
        memcpy(matrices[lane / 8][lane % 8], static_cast<LoadMatrices*>(operands[lane])->row, 16);
    }
    for (u32 lane = 0; lane < WARP; ++lane) {
        u32 group = lane / 4, pair = lane % 4 * 2;
        for (u32 matrix = 0; matrix < 4; ++matrix) {
            auto& m = matrices[matrix];
            u32 low = transposed ? m[pair][group] : m[group][pair];
            u32 high = transposed ? m[pair + 1][group] : m[group][pair + 1];
            static_cast<LoadMatrices*>(operands[lane])->to[matrix] = low | high << 16;
        }
    }
}

void store_four_matrices(void* const (&operands)[WARP]) {
    u16 matrices[4][8][8];
    for (u32 lane = 0; lane < WARP; ++lane) {
        u32 group = lane / 4, pair = lane % 4 * 2;
        for (u32 matrix = 0; matrix < 4; ++matrix) {
            u32 word = static_cast<StoreMatrices*>(operands[lane])->from[matrix];
            auto& m = matrices[matrix];
            m[group][pair] = static_cast<u16>(word);
            m[group][pair + 1] = static_cast<u16>(word >> 16);
        }
    }
    for (u32 lane = 0; lane < WARP; ++lane) {
        memcpy(static_cast<StoreMatrices*>(operands[lane])->row, matrices[lane / 8][lane % 8], 16);
    }
}

void multiply_add_tile(void* const (&operands)[WARP]) {
    f32 a[16][16], b[16][8], d[16][8];
    for (u32 lane = 0; lane < WARP; ++lane) {
        const MultiplyAdd& given = *static_cast<MultiplyAdd*>(operands[lane]);
        u32 group = lane / 4, pair = lane % 4 * 2;
        for (u32 part = 0; part < 4; ++part) {
            u32 row = group + part % 2 * 8, column = pair + part / 2 * 8;
            a[row][column] = low_bf16(given.a[part]);
            a[row][column + 1] = high_bf16(given.a[part]);
        }
        for (u32 part = 0; part < 2; ++part) {
            b[pair + part * 8][group] = low_bf16(given.b[part]);
            b[pair + part * 8 + 1][group] = high_bf16(given.b[part]);
        }
        for (u32 part = 0; part < 4; ++part) d[group + part / 2 * 8][pair + part % 2] = given.d[part];
    }
    for (u32 row = 0; row < 16; ++row) {
        for (u32 k = 0; k < 16; ++k) {
            for (u32 column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
        }
    }
    for (u32 lane = 0; lane < WARP; ++lane) {
        u32 group = lane / 4, pair = lane % 4 * 2;
        f32* to = static_cast<MultiplyAdd*>(operands[lane])->d;
        for (u32 part = 0; part < 4; ++part) to[part] = d[group + part / 2 * 8][pair + part % 2];
    }
}

}  // namespace

void perform(Operation operation, void* const (&operands)[WARP]) {
    switch (operation) {
        case Operation::SYNC_WARP: return;
        case Operation::SHUFFLE: return shuffle_lanes(operands);
        case Operation::LOAD_MATRICES: return load_four_matrices(operands, false);
        case Operation::LOAD_MATRICES_TRANSPOSED: return load_four_matrices(operands, true);
        case Operation::STORE_MATRICES: return store_four_matrices(operands);
        case Operation::MULTIPLY_ADD: return multiply_add_tile(operands);
        default: return;
    }
}

const char* name_of(Operation operation) {
    switch (operation) {
        case Operation::SYNC_WARP: return "sync_warp";
        case Operation::SHUFFLE: return "shuffle";
        case Operation::LOAD_MATRICES: return "load_matrices";
        case Operation::LOAD_MATRICES_TRANSPOSED: return "load_matrices_transposed";
        case Operation::STORE_MATRICES: return "store_matrices";
        case Operation::MULTIPLY_ADD: return "multiply_add";
        case Operation::SET_REGISTERS: return "set_registers";
        case Operation::WGMMA_FENCE: return "wgmma_fence";
        case Operation::WGMMA_COMMIT: return "wgmma_commit";
        case Operation::WGMMA_WAIT: return "wgmma_wait";
        case Operation::WGMMA: return "wgmma";
    }
    return "";
}

}  // namespace emulation
