// The optimizer's step over the flat buffers: one pass for the gradient's norm, one for everything else; LAMB takes one
// more, because the length of a tensor's update has to be known before it is made.
// `src/backend/cuda/update.rs` has the structs' twins.
#include "prelude.cuh"

constexpr u32 THREADS = 256;
/// Elements that a block takes at a time.
constexpr u32 CHUNK = 4096;

/// A range of the flat buffers that is updated alike; unused ones begin beyond every buffer and are empty.
struct UpdateGroup {
    u64 first;
    u64 count;
    /// The learning rate, with the first moment's bias correction where the rule has one and is not LAMB.
    f32 rate;
    /// What decoupled decay leaves of a parameter.
    f32 kept;
    f32 weight_decay;
    /// `1 / (1 - beta1^t)`
    f32 first_correction;
    /// `1 / sqrt(1 - beta2^t)`
    f32 second_correction;
    /// Whether to take the gradient for zero, whatever the buffer holds.
    u32 zero_gradient;
};

/// What clipping needs, for the host and for the update.
struct Clip {
    /// The norm of all gradients.
    f32 norm;
    /// What gradients are multiplied by; NaN where the norm is not finite, and nothing is to be updated.
    f32 scale;
};

/// The first group that ends beyond `element`; groups ascend and lie apart.
DEVICE u32 find_group(const UpdateGroup* groups, u32 count, u64 element) {
    u32 low = 0, high = count;
    while (low < high) {
        u32 middle = (low + high) / 2;
        if (groups[middle].first + groups[middle].count > element) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

/// Calls `work(i, begin, end)` for each group `i` that has elements of the chunk: those from `begin` to `end`.
template <class Work>
DEVICE void each_group(const UpdateGroup* groups, u32 count, u64 chunk, Work work) {
    const u64 chunk_begin = chunk * CHUNK, chunk_end = chunk_begin + CHUNK;
    for (u32 i = find_group(groups, count, chunk_begin); i < count && groups[i].first < chunk_end; ++i) {
        const u64 first = groups[i].first, group_end = first + groups[i].count;
        work(i, first > chunk_begin ? first : chunk_begin, group_end < chunk_end ? group_end : chunk_end);
    }
}

/// Calls `work(group, quad, begin, end)` with each group that has elements of the block's chunk and each four
/// elements `4 quad` to `4 quad + 3` that are the thread's; those from `begin` to `end` are the group's.
template <class Work>
DEVICE void each_quad(const UpdateGroup* groups, u32 count, u64 chunk, Work work) {
    each_group(groups, count, chunk, [&](u32 i, u64 begin, u64 end) {
        const UpdateGroup group = groups[i];
        for (u64 quad = begin / 4 + thread_index(); 4 * quad < end; quad += THREADS) work(group, quad, begin, end);
    });
}

/// Four neighbouring elements; those outside of a range read as zeros and are not written.
struct Quad {
    f32 values[4];
};

DEVICE Quad read_quad(const f32* from, u64 quad, u64 begin, u64 end) {
    Quad result = {};
    if (4 * quad >= begin && 4 * quad + 4 <= end) {
        Pack pack = reinterpret_cast<const Pack*>(from)[quad];
        UNROLL for (u32 i = 0; i < 4; ++i) result.values[i] = bits_to_f32(pack.words[i]);
    } else {
        UNROLL for (u32 i = 0; i < 4; ++i) {
            if (4 * quad + i >= begin && 4 * quad + i < end) result.values[i] = from[4 * quad + i];
        }
    }
    return result;
}

DEVICE void write_quad(f32* to, u64 quad, u64 begin, u64 end, const Quad& from) {
    if (4 * quad >= begin && 4 * quad + 4 <= end) {
        Pack pack;
        UNROLL for (u32 i = 0; i < 4; ++i) pack.words[i] = f32_to_bits(from.values[i]);
        reinterpret_cast<Pack*>(to)[quad] = pack;
    } else {
        UNROLL for (u32 i = 0; i < 4; ++i) {
            if (4 * quad + i >= begin && 4 * quad + i < end) to[4 * quad + i] = from.values[i];
        }
    }
}

/// Eight bytes, moved by one instruction.
struct alignas(8) HalfPack {
    u32 words[2];
};

DEVICE void write_quad(bf16* to, u64 quad, u64 begin, u64 end, const Quad& from) {
    if (4 * quad >= begin && 4 * quad + 4 <= end) {
        const f32(&x)[4] = from.values;
        reinterpret_cast<HalfPack*>(to)[quad] = HalfPack{{pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3])}};
    } else {
        UNROLL for (u32 i = 0; i < 4; ++i) {
            if (4 * quad + i >= begin && 4 * quad + i < end) to[4 * quad + i] = to_bf16(from.values[i]);
        }
    }
}

// ---- the norm ---------------------------------------------------------------------------------------------------

struct SquaredNorm {
    /// `[groups]`, ascending
    const UpdateGroup* groups;
    /// `[parameters]`
    const f32* gradients;
    /// Each block's sum of squares, `[blocks]`
    f64* partials;
    u32 group_count;
    u32 chunks;
};

/// The sum over the block of `threads`, in thread 0.
template <u32 threads>
DEVICE f64 block_sum(f64 value) {
    f64* of_warps = reinterpret_cast<f64*>(shared_memory());
    value = warp_sum(value);
    if (lane_index() == 0) of_warps[warp_index()] = value;
    sync_block();
    if (thread_index() == 0) {
        for (u32 warp = 1; warp < threads / 32; ++warp) value += of_warps[warp];
    }
    return value;
}

/// In f64: f32 would not hold the squares of large gradients, nor the sum of many small ones.
KERNEL(squared_norm, SquaredNorm, THREADS, 4) {
    f64 sum = 0.0;
    for (u32 chunk = block_x(); chunk < args.chunks; chunk += grid_x()) {
        auto add = [&](const UpdateGroup& group, u64 quad, u64 begin, u64 end) {
            if (group.zero_gradient != 0) return;
            Quad gradient = read_quad(args.gradients, quad, begin, end);
            UNROLL for (u32 i = 0; i < 4; ++i) {
                f64 g = gradient.values[i];
                sum += g * g;
            }
        };
        each_quad(args.groups, args.group_count, chunk, add);
    }
    sum = block_sum<THREADS>(sum);
    if (thread_index() == 0) args.partials[block_x()] = sum;
}

constexpr u32 FINISH = 1024;

struct ClipScale {
    /// `[parts]`
    const f64* partials;
    /// `[1]`
    Clip* clip;
    u32 parts;
    /// The largest norm; 0 for any
    f32 most;
};

KERNEL(clip_scale, ClipScale, FINISH, 1) {
    f64 sum = 0.0;
    for (u32 part = thread_index(); part < args.parts; part += FINISH) sum += args.partials[part];
    sum = block_sum<FINISH>(sum);
    if (thread_index() > 0) return;
    const f64 norm = sqrt(sum);
    f64 scale = 1.0;
    // As PyTorch's clip_grad_norm_: the small number keeps a norm of zero from dividing.
    if (args.most > 0.0f) scale = static_cast<f64>(args.most) / (norm + 1e-6);
    if (scale > 1.0) scale = 1.0;
    // 0 for a finite norm, else NaN.
    *args.clip = {static_cast<f32>(norm), static_cast<f32>(scale + (norm - norm))};
}

// ---- the update -------------------------------------------------------------------------------------------------

struct Update {
    /// `[groups]`, ascending
    const UpdateGroup* groups;
    /// `[1]`
    const Clip* clip;
    /// `[parameters]`
    f32* parameters;
    /// `[parameters]`
    const f32* gradients;
    /// `[parameters]`; for SGD its momentum
    f32* first;
    /// `[parameters]`: the second moment or the infinity norm; SGD has none
    f32* second;
    /// The parameters as products read them, `[parameters]`, or none
    bf16* copy;
    u32 group_count;
    f32 beta1;
    f32 beta2;
    f32 epsilon;
};

/// Zero for what is about to become subnormal, as the CPU has it.
DEVICE f32 settle(f32 x) { return fabsf(x) < 1.17549435e-38f ? 0.0f : x; }

/// What the rules of `src/backend/optimizer.rs` make of a parameter, its gradient and its moments.
struct Element {
    f32 theta, first, second;
};

DEVICE f32 moment(const Update& args, f32 m, f32 g) { return settle(fmaf(args.beta1, m, (1.0f - args.beta1) * g)); }
DEVICE f32 second_moment(const Update& args, f32 v, f32 g) {
    return settle(fmaf(args.beta2, v, (1.0f - args.beta2) * g * g));
}
DEVICE f32 infinity_norm(const Update& args, f32 u, f32 g) {
    f32 decayed = args.beta2 * u, fresh = fabsf(g) + args.epsilon;
    return decayed > fresh ? decayed : fresh;
}

struct AdamaxMtdnn {
    static constexpr bool has_second = true;
    DEVICE Element apply(const Update& args, const UpdateGroup& group, Element x, f32 g) {
        f32 m = moment(args, x.first, g), u = infinity_norm(args, x.second, g);
        f32 change = fmaf(group.weight_decay, x.theta, m / (u + args.epsilon));
        return {fmaf(-group.rate, change, x.theta), m, u};
    }
};

struct AdamaxW {
    static constexpr bool has_second = true;
    DEVICE Element apply(const Update& args, const UpdateGroup& group, Element x, f32 g) {
        f32 m = moment(args, x.first, g), u = infinity_norm(args, x.second, g);
        return {fmaf(-group.rate, m / u, group.kept * x.theta), m, u};
    }
};

struct Adamax {
    static constexpr bool has_second = true;
    DEVICE Element apply(const Update& args, const UpdateGroup& group, Element x, f32 g) {
        g = fmaf(group.weight_decay, x.theta, g);
        f32 m = moment(args, x.first, g), u = infinity_norm(args, x.second, g);
        return {fmaf(-group.rate, m / u, x.theta), m, u};
    }
};

struct AdamW {
    static constexpr bool has_second = true;
    DEVICE Element apply(const Update& args, const UpdateGroup& group, Element x, f32 g) {
        f32 m = moment(args, x.first, g), v = second_moment(args, x.second, g);
        f32 change = m / fmaf(sqrtf(v), group.second_correction, args.epsilon);
        return {fmaf(-group.rate, change, group.kept * x.theta), m, v};
    }
};

struct AdamBert {
    static constexpr bool has_second = true;
    DEVICE Element apply(const Update& args, const UpdateGroup& group, Element x, f32 g) {
        f32 m = moment(args, x.first, g), v = second_moment(args, x.second, g);
        f32 change = fmaf(group.weight_decay, x.theta, m / (sqrtf(v) + args.epsilon));
        return {fmaf(-group.rate, change, x.theta), m, v};
    }
};

struct Sgd {
    static constexpr bool has_second = false;
    DEVICE Element apply(const Update& args, const UpdateGroup& group, Element x, f32 g) {
        f32 m = settle(fmaf(args.beta1, x.first, fmaf(group.weight_decay, x.theta, g)));
        return {fmaf(-group.rate, m, x.theta), m, x.second};
    }
};

/// A block for a chunk; blocks of parameters that no group has return at once.
template <class Rule>
DEVICE void update(const Update& args) {
    const f32 scale = args.clip->scale;
    if (scale != scale) return;
    auto step = [&](const UpdateGroup& group, u64 quad, u64 begin, u64 end) {
        Quad theta = read_quad(args.parameters, quad, begin, end), first = read_quad(args.first, quad, begin, end);
        Quad second = {}, gradient = {};
        if (Rule::has_second) second = read_quad(args.second, quad, begin, end);
        if (group.zero_gradient == 0) gradient = read_quad(args.gradients, quad, begin, end);
        UNROLL for (u32 i = 0; i < 4; ++i) {
            Element before = {theta.values[i], first.values[i], second.values[i]};
            Element after = Rule::apply(args, group, before, scale * gradient.values[i]);
            theta.values[i] = after.theta, first.values[i] = after.first, second.values[i] = after.second;
        }
        write_quad(args.parameters, quad, begin, end, theta);
        write_quad(args.first, quad, begin, end, first);
        if (Rule::has_second) write_quad(args.second, quad, begin, end, second);
        if (args.copy != nullptr) write_quad(args.copy, quad, begin, end, theta);
    };
    each_quad(args.groups, args.group_count, block_x(), step);
}
KERNEL(update_adamax_mtdnn, Update, THREADS, 4) { update<AdamaxMtdnn>(args); }
KERNEL(update_adamax_w, Update, THREADS, 4) { update<AdamaxW>(args); }
KERNEL(update_adamax, Update, THREADS, 4) { update<Adamax>(args); }
KERNEL(update_adam_w, Update, THREADS, 4) { update<AdamW>(args); }
KERNEL(update_adam_bert, Update, THREADS, 4) { update<AdamBert>(args); }
KERNEL(update_sgd, Update, THREADS, 4) { update<Sgd>(args); }

// ---- LAMB ---------------------------------------------------------------------------------------------------------

/// A sum over parameters and one over their directions.
struct Norms {
    f64 parameters, directions;
};

struct Lamb {
    Update update;
    /// `[chunks + groups]`: at `c + i` the sums of squares of what chunk `c` holds of group `i`. Both ascend from one
    /// such pair to the next, so that no two have one place.
    Norms* partials;
    /// `[groups]`: the learning rate times the ratio of the norms
    f32* rates;
};

/// Where a parameter is to go, by its moments after their update.
DEVICE f32 lamb_direction(const Update& args, const UpdateGroup& group, Element x) {
    f32 root = fmaf(sqrtf(x.second), group.second_correction, args.epsilon);
    return fmaf(group.weight_decay, x.theta, group.first_correction * x.first / root);
}

/// The sums over the block, in thread 0.
DEVICE Norms block_sums(Norms sums) {
    sums.parameters = block_sum<THREADS>(sums.parameters);
    sync_block();
    sums.directions = block_sum<THREADS>(sums.directions);
    sync_block();
    return sums;
}

/// A block for a chunk.
KERNEL(lamb_moments, Lamb, THREADS, 4) {
    const Update& update = args.update;
    const f32 scale = update.clip->scale;
    if (scale != scale) return;
    each_group(update.groups, update.group_count, block_x(), [&](u32 i, u64 begin, u64 end) {
        const UpdateGroup group = update.groups[i];
        Norms sums = {};
        for (u64 quad = begin / 4 + thread_index(); 4 * quad < end; quad += THREADS) {
            Quad theta = read_quad(update.parameters, quad, begin, end), gradient = {};
            Quad first = read_quad(update.first, quad, begin, end), second = read_quad(update.second, quad, begin, end);
            if (group.zero_gradient == 0) gradient = read_quad(update.gradients, quad, begin, end);
            UNROLL for (u32 j = 0; j < 4; ++j) {
                f32 g = scale * gradient.values[j];
                first.values[j] = moment(update, first.values[j], g);
                second.values[j] = second_moment(update, second.values[j], g);
                // Zero outside of the group, where all that is read is.
                f64 direction = lamb_direction(update, group, {theta.values[j], first.values[j], second.values[j]});
                sums.directions += direction * direction;
                sums.parameters += static_cast<f64>(theta.values[j]) * theta.values[j];
            }
            write_quad(update.first, quad, begin, end, first);
            write_quad(update.second, quad, begin, end, second);
        }
        sums = block_sums(sums);
        if (thread_index() == 0) args.partials[block_x() + i] = sums;
    });
}

/// A block for a group.
KERNEL(lamb_rates, Lamb, THREADS, 4) {
    const f32 scale = args.update.clip->scale;
    const UpdateGroup group = args.update.groups[block_x()];
    if (scale != scale || group.count == 0) return;
    const u64 first = group.first / CHUNK, last = (group.first + group.count - 1) / CHUNK;
    Norms sums = {};
    for (u64 chunk = first + thread_index(); chunk <= last; chunk += THREADS) {
        const Norms part = args.partials[chunk + block_x()];
        sums.parameters += part.parameters;
        sums.directions += part.directions;
    }
    sums = block_sums(sums);
    if (thread_index() > 0) return;
    f64 ratio = 1.0;
    if (sums.parameters > 0.0 && sums.directions > 0.0) ratio = sqrt(sums.parameters) / sqrt(sums.directions);
    args.rates[block_x()] = static_cast<f32>(group.rate * ratio);
}

/// A block for a chunk.
KERNEL(lamb_parameters, Lamb, THREADS, 4) {
    const Update& update = args.update;
    const f32 scale = update.clip->scale;
    if (scale != scale) return;
    each_group(update.groups, update.group_count, block_x(), [&](u32 i, u64 begin, u64 end) {
        const UpdateGroup group = update.groups[i];
        const f32 rate = args.rates[i];
        for (u64 quad = begin / 4 + thread_index(); 4 * quad < end; quad += THREADS) {
            Quad theta = read_quad(update.parameters, quad, begin, end);
            Quad first = read_quad(update.first, quad, begin, end), second = read_quad(update.second, quad, begin, end);
            UNROLL for (u32 j = 0; j < 4; ++j) {
                Element x = {theta.values[j], first.values[j], second.values[j]};
                theta.values[j] = fmaf(-rate, lamb_direction(update, group, x), x.theta);
            }
            write_quad(update.parameters, quad, begin, end, theta);
            if (update.copy != nullptr) write_quad(update.copy, quad, begin, end, theta);
        }
    });
}
