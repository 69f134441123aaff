// Products of warpgroups. Each of the four warps has 16 rows; they meet where a group of products is closed, and when one
// of them has waited for it, all four have read their operands.
#include "machine.h"

namespace emulation {

void wgmma_fence() { machine->wait_for_warp(THE_CALLER, Operation::WGMMA_FENCE, nullptr); }
void wgmma_commit() {
    Thread& thread = THE_CALLER;
    machine->wait_for_warp(thread, Operation::WGMMA_COMMIT, nullptr);
    machine->wait_for_named_barrier(thread, NAMED_BARRIERS + thread.thread / WARPGROUP, WARPGROUP);
}
void wgmma_wait(u32 pending) { machine->wait_for_warp(THE_CALLER, Operation::WGMMA_WAIT, &pending); }
void wgmma(f32* d, const Factors& factors) {
    Multiply operand{d, &factors};
    machine->wait_for_warp(THE_CALLER, Operation::WGMMA, &operand);
}
void set_registers(u32 count) { machine->wait_for_warp(THE_CALLER, Operation::SET_REGISTERS, &count); }
void store_matrices(void* row, const u32* from) {
    Thread& thread = THE_CALLER;
    machine->check_shared(row, "stores a matrix's row to");
    StoreMatrices operand{row, from};
    machine->wait_for_warp(thread, Operation::STORE_MATRICES, &operand);
}

void Machine::perform_for_warpgroup(Operation operation, Warp& warp) {
    Products& products = warp.products;
    switch (operation) {
        case Operation::SET_REGISTERS: {
            u32 first = static_cast<u32>(&warp - warps) * WARP;
            for (u32 lane = 0; lane < WARP; ++lane) {
                threads[first + lane].registers = *static_cast<u32*>(warp.operands[lane]);
            }
            return;
        }
        case Operation::WGMMA_FENCE: products.open = true; return;
        case Operation::WGMMA_COMMIT:
            products.open = false;
            ++products.groups;
            return;
        case Operation::WGMMA_WAIT: return finish_products(warp, *static_cast<u32*>(warp.operands[0]));
        default: return start_product(warp);
    }
}

void Machine::start_product(Warp& warp) {
    Products& products = warp.products;
    if (!products.open) fail(0, "multiplies without a wgmma_fence at the start of the group");
    Product product{};
    product.factors = *static_cast<Multiply*>(warp.operands[0])->factors;
    product.group = products.groups;
    u32 count = product.factors.columns / 2;
    Sums started{};
    for (u32 lane = 0; lane < WARP; ++lane) {
        const Multiply& given = *static_cast<Multiply*>(warp.operands[lane]);
        const Factors &own = *given.factors, &first = product.factors;
        bool same = own.columns == first.columns && own.a == first.a && own.b == first.b &&
                    own.transpose_a == first.transpose_a && own.transpose_b == first.transpose_b &&
                    own.accumulate == first.accumulate && !own.registers == !first.registers;
        if (!same) fail(0, "multiplies other matrices than the first lane of its warp");
        if (own.registers != nullptr) memcpy(product.registers[lane], own.registers, sizeof product.registers[lane]);
        started.d[lane] = given.d;
    }
    product.sums = started.d[0];
    bool under_way = false;
    for (const Sums& sums : products.sums) under_way |= sums.d[0] == started.d[0];
    if (!under_way) {
        for (u32 lane = 0; lane < WARP; ++lane) {
            started.values[lane].assign(started.d[lane], started.d[lane] + count);
            memset(started.d[lane], POISON, count * sizeof(f32));
        }
        products.sums.push_back(started);
    }
    products.list.push_back(product);
}

/// Computes what a warp has of the groups before number `end`, and says how many products those are.
size_t Machine::compute_products(Warp& warp, u32 end) {
    Products& products = warp.products;
    u32 quarter = static_cast<u32>(&warp - warps) % 4;
    size_t done = 0;
    for (; done < products.list.size() && products.list[done].group < end; ++done) {
        Product& product = products.list[done];
        for (Sums& sums : products.sums) {
            if (!product.computed && sums.d[0] == product.sums) multiply(quarter, product, sums);
        }
        product.computed = true;
    }
    return done;
}

void Machine::finish_products(Warp& warp, u32 pending) {
    Products& products = warp.products;
    u32 end = products.groups - min(products.groups, pending);
    u32 first = static_cast<u32>(&warp - warps) / 4 * 4;
    for (u32 index = first; index < min(first + 4, warp_count); ++index) compute_products(warps[index], end);
    size_t done = compute_products(warp, end);
    products.list.erase(products.list.begin(), products.list.begin() + static_cast<ptrdiff_t>(done));
    for (size_t index = products.sums.size(); index-- > 0;) {
        Sums& sums = products.sums[index];
        bool under_way = false;
        for (const Product& product : products.list) under_way |= product.sums == sums.d[0];
        if (under_way) continue;
        for (u32 lane = 0; lane < WARP; ++lane) {
            const std::vector<f32>& values = sums.values[lane];
            for (size_t at = 0; at < values.size(); ++at) {
                if (f32_to_bits(sums.d[lane][at]) != 0xffffffffu) fail(0, "has written to sums under way");
                sums.d[lane][at] = values[at];
            }
        }
        products.sums.erase(products.sums.begin() + static_cast<ptrdiff_t>(index));
    }
}

/// The element of an operand, decoded as PTX has it for the 128-byte swizzle.
f32 Machine::element_of(u64 descriptor, bool transposed, u32 line, u32 deep) {
    u64 start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4;
    u64 stride = (descriptor >> 32 & 0x3fff) << 4;
    u64 place = transposed ? start + line / 64 * leading + deep / 8 * stride + deep % 8 * LINE_BYTES + line % 64 * 2
                           : start + line / 8 * stride + line % 8 * LINE_BYTES + deep * 2;
    place ^= (place >> 7 & 7) << 4;
    if (place + 2 > launch->shared) {
        fail(0, "multiplies byte %llu of shared memory, which has %u", place, launch->shared);
    }
    u16 bits;
    memcpy(&bits, &shown[place], sizeof bits);
    return to_f32(bf16{bits});
}

void Machine::multiply(u32 quarter, const Product& product, Sums& sums) {
    const Factors& factors = product.factors;
    auto check = [&](u64 descriptor, bool transposed) {
        u64 start = (descriptor & 0x3fff) << 4;
        // Eight lines start at a multiple of 1024 bytes; within them the depth may start at any 16 bytes.
        u64 within = transposed ? start % 1024 : start % 1024 / LINE_BYTES + (start % LINE_BYTES > 96 ? 1 : 0);
        if (descriptor >> 62 != 1) fail(0, "multiplies a matrix without the 128-byte swizzle");
        if (within != 0) fail(0, "multiplies a matrix at byte %llu of shared memory, between atoms", start);
    };
    if (factors.registers == nullptr) check(factors.a, factors.transpose_a);
    check(factors.b, factors.transpose_b);

    f32 a[16][16], b[16][256];
    for (u32 lane = 0; lane < WARP && factors.registers != nullptr; ++lane) {
        for (u32 part = 0; part < 4; ++part) {
            u32 row = lane / 4 + part % 2 * 8, column = lane % 4 * 2 + part / 2 * 8;
            a[row][column] = low_bf16(product.registers[lane][part]);
            a[row][column + 1] = high_bf16(product.registers[lane][part]);
        }
    }
    for (u32 deep = 0; deep < 16; ++deep) {
        for (u32 row = 0; row < 16 && factors.registers == nullptr; ++row) {
            a[row][deep] = element_of(factors.a, factors.transpose_a, 16 * quarter + row, deep);
        }
        for (u32 column = 0; column < factors.columns; ++column) {
            b[deep][column] = element_of(factors.b, factors.transpose_b, column, deep);
        }
    }
    for (u32 row = 0; row < 16; ++row) {
        f32 line[256];
        auto place = [&](u32 column) -> f32& {
            u32 lane = row % 8 * 4 + column % 8 / 2;
            return sums.values[lane][column / 8 * 4 + row / 8 * 2 + column % 2];
        };
        for (u32 column = 0; column < factors.columns; ++column) {
            line[column] = factors.accumulate ? place(column) : 0.0f;
        }
        for (u32 deep = 0; deep < 16; ++deep) {
            for (u32 column = 0; column < factors.columns; ++column) line[column] += a[row][deep] * b[deep][column];
        }
        for (u32 column = 0; column < factors.columns; ++column) place(column) = line[column];
    }
}

}  // namespace emulation
