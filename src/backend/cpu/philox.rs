//! Random numbers as a function of their place: Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011).
//!
//! Whether an element is dropped depends on the seed, the step, the dropout's site, the attention head, the key of the
//! element's row and its column, and on nothing else: not on the thread count, the packing or the backend. A draw is
//! 16 bits; a block of the generator gives the eight draws of eight neighbouring columns.

use super::simd::multiversion;
use crate::tensor::Dropout;

/// What all draws of one step have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stream {
    /// The seed of the run.
    pub seed: u64,
    /// The number of the step.
    pub step: u32,
}

impl Stream {
    /// The generator's key.
    fn key(self) -> [u32; 2] {
        [self.seed as u32, (self.seed >> 32) as u32]
    }
}

const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const LOW: u64 = 0xFFFF_FFFF;

/// [`philox4x32_10`](crate::random::philox4x32_10) with each word in the low half of a u64, and anything above it: a
/// vector's widening products then need no shuffles. A block takes 4.8 ns on Zen 3; with words in u32 it took 5.7.
#[inline(always)]
fn rounds(counter: [u64; 4], key: [u32; 2]) -> [u64; 4] {
    let [mut a, mut b, mut c, mut d] = counter;
    for round in 0..10u32 {
        let first = MULTIPLIERS[0] * (a & LOW);
        let second = MULTIPLIERS[1] * (c & LOW);
        a = (second >> 32) ^ b ^ u64::from(key[0].wrapping_add(round.wrapping_mul(KEY_STEPS[0])));
        b = second;
        c = (first >> 32) ^ d ^ u64::from(key[1].wrapping_add(round.wrapping_mul(KEY_STEPS[1])));
        d = first;
    }
    [a, b, c, d]
}

/// Blocks whose draws are made at a time: their words lie on the stack between the two loops.
const BATCH: usize = 16;
/// Draws in a block.
const DRAWS: usize = 8;

multiversion! {
    /// Factors for `out.len()` elements of a row from `column0` on, a multiple of 8: `out[i]` is the dropout's scale if
    /// element `column0 + i` is kept, else 0. `head` is 0 except for attention probabilities.
    pub fn keep_row<FMA>(
        stream: Stream, dropout: Dropout, head: u32, row_key: u32, column0: usize, out: &mut [f32],
    ) {
        keep_row_inline(stream, dropout, head, row_key, column0, out);
    }
}

/// [`keep_row`] for the bodies of kernels that are compiled for each instruction set themselves.
#[inline(always)]
pub(super) fn keep_row_inline(
    stream: Stream,
    dropout: Dropout,
    head: u32,
    row_key: u32,
    column0: usize,
    out: &mut [f32],
) {
    assert!(column0.is_multiple_of(DRAWS), "column {column0} does not begin a block of draws");
    if dropout.threshold == 0 {
        out.fill(1.0);
        return;
    }
    let scale = dropout.scale();
    let threshold = dropout.threshold as u16;
    let row = [u64::from(row_key), u64::from(dropout.site << 8 | head), u64::from(stream.step)];
    let first_block = (column0 / DRAWS) as u32;
    for (batch, out) in out.chunks_mut(BATCH * DRAWS).enumerate() {
        // Always a full batch: the loop then has a fixed length and no scalar remainder.
        let mut words = [[0u64; 2]; BATCH];
        for (i, pair) in words.iter_mut().enumerate() {
            let block = u64::from(first_block.wrapping_add((batch * BATCH + i) as u32));
            let [a, b, c, d] = rounds([block, row[0], row[1], row[2]], stream.key());
            *pair = [a & LOW | b << 32, c & LOW | d << 32];
        }
        let draws: &[u16] = bytemuck::cast_slice(&words);
        for (factor, draw) in out.iter_mut().zip(draws) {
            *factor = if *draw >= threshold { scale } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::isa::Isa;
    use super::*;
    use crate::random::philox4x32_10;

    /// [`philox4x32_10`] is checked against the published answers; this is the same arithmetic for vectors.
    #[test]
    fn the_vector_form_gives_the_same_words() {
        for counter in [[0; 4], [u32::MAX; 4], [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344]] {
            let key = [0xa4093822, 0x299f31d0];
            let words = rounds(counter.map(u64::from), key).map(|word| word as u32);
            assert_eq!(words, philox4x32_10(counter, key));
        }
    }

    const STREAM: Stream = Stream { seed: 0x0123_4567_89ab_cdef, step: 77 };

    /// The convention, spelt out one element at a time.
    fn factor(dropout: Dropout, head: u32, row_key: u32, column: usize) -> f32 {
        let counter = [(column / 8) as u32, row_key, dropout.site << 8 | head, STREAM.step];
        let words = philox4x32_10(counter, [0x89ab_cdef, 0x0123_4567]);
        let word = words[column % 8 / 2];
        let draw = if column.is_multiple_of(2) { word & 0xffff } else { word >> 16 };
        if draw >= dropout.threshold { 1.0 / (1.0 - dropout.threshold as f32 / 65536.0) } else { 0.0 }
    }

    #[test]
    fn rows_follow_the_convention() {
        let dropout = Dropout::new(0.3, 5);
        for &isa in Isa::available() {
            // The long row has draws of every size, those at the threshold among them.
            for (columns, column0, head) in
                [(0, 0, 0), (1, 0, 0), (7, 8, 3), (384, 0, 0), (531, 16, 11), (1 << 20, 0, 0)]
            {
                let mut out = vec![f32::NAN; columns];
                keep_row(isa, STREAM, dropout, head, 1 << 16 | 9, column0, &mut out);
                for (i, value) in out.iter().enumerate() {
                    let expected = factor(dropout, head, 1 << 16 | 9, column0 + i);
                    assert!((value - expected).abs() < 1e-6, "{isa:?}, column {column0} + {i}");
                }
            }
        }
    }

    #[test]
    fn the_share_kept_is_the_one_asked_for() {
        for probability in [0.1, 0.5, 0.9] {
            let mut out = vec![0.0; 1 << 20];
            keep_row(Isa::detect(), STREAM, Dropout::new(probability, 0), 0, 0, 0, &mut out);
            let kept = out.iter().filter(|factor| **factor != 0.0).count() as f32 / out.len() as f32;
            assert!((kept - (1.0 - probability)).abs() < 0.002, "{kept} kept at {probability}");
            let mean = out.iter().sum::<f32>() / out.len() as f32;
            assert!((mean - 1.0).abs() < 0.01, "mean {mean} at {probability}");
        }
    }

    #[test]
    fn off_means_one() {
        let mut out = [0.0; 9];
        keep_row(Isa::detect(), STREAM, Dropout::new(0.0, 0), 0, 0, 0, &mut out);
        assert_eq!(out, [1.0; 9]);
    }
}
