// Activations and their derivatives, in the forms of `src/backend/cpu/math.rs`, which states where they come from.
#pragma once
#include "prelude.cuh"

/// The twin of `activation_number` in `src/backend/cuda/gemm.rs`.
enum Activation : u32 { IDENTITY, GELU, GELU_TANH, RELU, TANH, SIGMOID };

/// e^x, to a few units in the last place near 0 and to |x| 1e-7 relative far from it.
DEVICE f32 exp_fast(f32 x) { return exp2_fast(x * 1.44269504f); }

/// Two related numbers.
struct TailAndFactor {
    f32 tail;
    f32 factor;
};

/// The standard normal distribution at `size` >= 0: its upper tail, and exp(-size^2 / 2) as the factor.
///
/// Accurate relative to the tail, however small, where `1 - erf` would cancel.
DEVICE TailAndFactor normal(f32 size) {
    f32 bell = exp_fast(-0.5f * size * size);
    f32 t = reciprocal_fast(fmaf(size, 0.3025f, 1.0f));
    f32 ratio = 0.03701822f;
    ratio = fmaf(ratio, t, -0.15849747f);
    ratio = fmaf(ratio, t, 0.20163906f);
    ratio = fmaf(ratio, t, -0.050791647f);
    ratio = fmaf(ratio, t, 0.12737387f);
    ratio = fmaf(ratio, t, 0.10089805f);
    ratio = fmaf(ratio, t, 0.12173344f);
    ratio = fmaf(ratio, t, 0.12062648f);
    return {bell * t * ratio, bell};
}

/// The logistic function at 2 sqrt(2 / pi) (size + 0.044715 size^3), for `size` >= 0: its upper tail, and itself as
/// the factor. With it (1 + tanh(y)) / 2, the logistic function at 2 y, needs no tanh.
DEVICE TailAndFactor logistic(f32 size) {
    f32 decay = exp_fast(-1.595769f * size * fmaf(0.044715f * size, size, 1.0f));
    f32 share = reciprocal_fast(1.0f + decay);
    return {decay * share, share};
}

/// The size up to which the tails differ from 0; NaN stays.
DEVICE f32 size_up_to(f32 limit, f32 x) { return fabsf(x) > limit ? limit : fabsf(x); }
DEVICE f32 relu(f32 x) { return x <= 0.0f ? 0.0f : x; }

DEVICE f32 gelu(f32 x) {
    f32 size = size_up_to(12.5f, x);
    return fmaf(-size, normal(size).tail, relu(x));
}
DEVICE f32 gelu_slope(f32 x) {
    f32 size = size_up_to(12.5f, x);
    TailAndFactor at = normal(size);
    f32 left = fmaf(-0.3989423f * size, at.factor, at.tail);
    return x < 0.0f ? left : 1.0f - left;
}

DEVICE f32 gelu_tanh(f32 x) {
    f32 size = size_up_to(9.8f, x);
    return fmaf(-size, logistic(size).tail, relu(x));
}
DEVICE f32 gelu_tanh_slope(f32 x) {
    f32 size = size_up_to(9.8f, x);
    TailAndFactor at = logistic(size);
    f32 slope = 1.595769f * fmaf(3.0f * 0.044715f * size, size, 1.0f);
    f32 left = fmaf(-size * slope, at.tail * at.factor, at.tail);
    return x < 0.0f ? left : 1.0f - left;
}

DEVICE f32 tanh_slope(f32 x) {
    f32 y = tanhf(x);
    return fmaf(-y, y, 1.0f);
}

/// 1 / (1 + e^-x), of the size so that nothing overflows or cancels.
DEVICE f32 sigmoid(f32 x) {
    f32 decay = exp_fast(-size_up_to(87.0f, x));
    f32 share = reciprocal_fast(1.0f + decay);
    return x < 0.0f ? decay * share : share;
}
DEVICE f32 sigmoid_slope(f32 x) {
    f32 y = sigmoid(x);
    return y * (1.0f - y);
}

/// `values = activation(values)`; the branch is the same for all threads, so it stands outside of the loops.
template <u32 count>
DEVICE void activate(u32 activation, f32 (&values)[count]) {
    switch (activation) {
        case GELU:
            UNROLL for (u32 i = 0; i < count; ++i) values[i] = gelu(values[i]);
            break;
        case GELU_TANH:
            UNROLL for (u32 i = 0; i < count; ++i) values[i] = gelu_tanh(values[i]);
            break;
        case RELU:
            UNROLL for (u32 i = 0; i < count; ++i) values[i] = relu(values[i]);
            break;
        case TANH:
            UNROLL for (u32 i = 0; i < count; ++i) values[i] = tanhf(values[i]);
            break;
        case SIGMOID:
            UNROLL for (u32 i = 0; i < count; ++i) values[i] = sigmoid(values[i]);
            break;
        default: break;
    }
}

/// `gradients *= activation'(before)`
template <u32 count>
DEVICE void multiply_by_slope(u32 activation, f32 (&gradients)[count], const f32 (&before)[count]) {
    switch (activation) {
        case GELU:
            UNROLL for (u32 i = 0; i < count; ++i) gradients[i] *= gelu_slope(before[i]);
            break;
        case GELU_TANH:
            UNROLL for (u32 i = 0; i < count; ++i) gradients[i] *= gelu_tanh_slope(before[i]);
            break;
        case RELU:
            UNROLL for (u32 i = 0; i < count; ++i) gradients[i] *= before[i] > 0.0f ? 1.0f : 0.0f;
            break;
        case TANH:
            UNROLL for (u32 i = 0; i < count; ++i) gradients[i] *= tanh_slope(before[i]);
            break;
        case SIGMOID:
            UNROLL for (u32 i = 0; i < count; ++i) gradients[i] *= sigmoid_slope(before[i]);
            break;
        default: break;
    }
}
