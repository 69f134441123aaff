// Barriers in shared memory, barriers with a number, and copies of boxes to shared memory.
#include "machine.h"

namespace emulation {

void barrier_init(u64* barrier, u32 arrivals) {
    THE_CALLER;
    machine->init_barrier(barrier, arrivals);
}
void barrier_arrive(u64* barrier, u32 bytes) { machine->arrive_at_barrier(THE_CALLER, barrier, bytes); }
void barrier_wait(u64* barrier, u32 parity) { machine->wait_for_barrier(THE_CALLER, barrier, parity); }
void sync_threads_of(u32 id, u32 threads) {
    Thread& thread = THE_CALLER;
    if (id == 0 || id >= NAMED_BARRIERS) machine->fail(0, "waits at the barrier %u", id);
    machine->wait_for_named_barrier(thread, id, threads);
}

void tma_load(void* shared, const TensorMap* map, u32 x, u32 y, u64* barrier) {
    THE_CALLER;
    u64 offset = static_cast<u64>(static_cast<u8*>(shared) - current->shared);
    machine->load_box({map, offset, x, y, barrier});
}
void fence_async_shared() {
    THE_CALLER;
    machine->show_shared();
}

// ---- barriers ----------------------------------------------------------------------------------------------------

void Machine::init_barrier(u64* word, u32 arrivals) {
    i64 offset = reinterpret_cast<u8*>(word) - shared;
    if (offset < 0 || offset % 8 != 0 || offset + 8 > launch->shared) {
        fail(0, "makes a barrier at byte %lld of shared memory, which has %u", offset, launch->shared);
    }
    if (arrivals == 0) fail(0, "makes a barrier of no arrivals");
    *word = BARRIER_WORD;
    barriers.push_back({word, arrivals, arrivals, 0, 0});
}

Barrier& Machine::barrier_at(const u64* word) {
    for (Barrier& barrier : barriers) {
        if (barrier.word != word) continue;
        if (*word != BARRIER_WORD) fail(0, "finds a barrier overwritten");
        return barrier;
    }
    fail(0, "takes for a barrier what is none");
}

/// Starts the next phase if nothing is missing in this one, and says whether it did.
bool Machine::end_phase(Barrier& barrier) {
    if (barrier.missing > 0 || barrier.missing_bytes != 0) return false;
    for (u32 index = 0; index < launch->threads; ++index) {
        Thread& thread = threads[index];
        bool waits = thread.state == State::SHARED_BARRIER && thread.shared_barrier == barrier.word;
        if (waits && thread.parity == barrier.parity) make_ready(thread);
    }
    barrier.missing = barrier.arrivals;
    barrier.parity = 1 - barrier.parity;
    return true;
}

void Machine::arrive_at_barrier(Thread& thread, u64* word, u32 bytes) {
    Barrier& barrier = barrier_at(word);
    if (barrier.missing == 0) fail(0, "arrives at a barrier that waits for bytes alone");
    --barrier.missing;
    barrier.missing_bytes += bytes;
    // Those that waited go on at once, as they may on a device, while this thread is about to go on itself.
    if (end_phase(barrier)) give_way(thread);
}

void Machine::wait_for_barrier(Thread& thread, const u64* word, u32 parity) {
    if (parity > 1) fail(0, "waits for parity %u", parity);
    Barrier& barrier = barrier_at(word);
    if (barrier.parity != parity) return;
    land_loads(word);
    if (barrier.parity != parity) return;
    thread.state = State::SHARED_BARRIER;
    thread.shared_barrier = word;
    thread.parity = parity;
    --warps[thread.thread / WARP].ready;
    go_on(thread);
}

void Machine::wait_for_named_barrier(Thread& thread, u32 id, u32 count) {
    if (count == 0 || count % WARP != 0 || count > launch->threads) fail(0, "waits for %u threads", count);
    NamedBarrier& barrier = named_barriers[id];
    if (barrier.arrived > 0 && barrier.threads != count) {
        fail(0, "is one of %u threads at the barrier %u, where others are of %u", count, id, barrier.threads);
    }
    barrier.threads = count;
    thread.state = State::NAMED_BARRIER;
    thread.named_barrier = id;
    --warps[thread.thread / WARP].ready;
    if (++barrier.arrived == count) {
        barrier.arrived = 0;
        for (u32 index = 0; index < launch->threads; ++index) {
            Thread& other = threads[index];
            if (other.state == State::NAMED_BARRIER && other.named_barrier == id) make_ready(other);
        }
        give_way(thread);
    } else {
        go_on(thread);
    }
}

// ---- boxes -------------------------------------------------------------------------------------------------------

void Machine::load_box(const Load& load) {
    barrier_at(load.barrier);
    const TensorMap& map = *load.map;
    if (map.mark != MAP_MARK) fail(0, "copies a box by what is no tensor map");
    bool encodable = map.address % 16 == 0 && map.stride % 16 == 0 && map.columns > 0 && map.rows > 0 &&
                     map.box_rows > 0 && map.box_rows <= 256;
    if (!encodable) fail(0, "copies a box by a tensor map that no driver makes");
    i64 offset = static_cast<i64>(load.offset), bytes = map.box_rows * LINE_BYTES;
    if (offset < 0 || offset + bytes > launch->shared) {
        fail(0, "copies a box to byte %lld of shared memory, which has %u", offset, launch->shared);
    }
    if (offset % 1024 != 0) fail(0, "copies a box to byte %lld of shared memory, which is no multiple of 1024", offset);
    memset(shared + load.offset, POISON, load.map->box_rows * LINE_BYTES);
    memset(&shown[load.offset], POISON, load.map->box_rows * LINE_BYTES);
    loads.push_back(load);
}

/// Lands all boxes that are to count at a barrier, and says whether its phase ended.
bool Machine::land_loads(const u64* word) {
    Barrier& barrier = barrier_at(word);
    std::vector<Load> others;
    for (const Load& load : loads) {
        if (load.barrier != word) {
            others.push_back(load);
            continue;
        }
        land_box(*load.map, load.offset, load.x, load.y);
        barrier.missing_bytes -= load.map->box_rows * LINE_BYTES;
    }
    if (others.size() == loads.size()) return false;
    loads = others;
    return end_phase(barrier);
}

/// When nobody can go on: lands what someone waits for, and says whether someone can go on now.
bool Machine::land_awaited_loads() {
    bool landed = false;
    for (u32 index = 0; index < launch->threads; ++index) {
        const Thread& thread = threads[index];
        if (thread.state == State::SHARED_BARRIER) landed |= land_loads(thread.shared_barrier);
    }
    if (landed) choose_warp();
    return landed;
}

void Machine::land_box(const TensorMap& map, u64 offset, u32 x, u32 y) {
    for (u32 line = 0; line < map.box_rows; ++line) {
        for (u32 column = 0; column < BOX_COLUMNS; ++column) {
            u64 place = offset + line * LINE_BYTES + column * 2;
            place ^= (place >> 7 & 7) << 4;
            u64 of_row = static_cast<u64>(y) + line, of_column = static_cast<u64>(x) + column;
            bool inside = of_row < map.rows && of_column < map.columns;
            u8* global = reinterpret_cast<u8*>(map.address + of_row * map.stride + of_column * 2);
            inside ? memcpy(shared + place, global, 2) : memset(shared + place, 0, 2);
            memcpy(&shown[place], shared + place, 2);
        }
    }
}

/// What this thread and others wrote to shared memory is seen from now on.
void Machine::show_shared() { memcpy(shown.data(), shared, launch->shared); }

}  // namespace emulation
