//! Sums of two values and constants.

use rayon::prelude::*;

use super::blocks::BLOCK;

/// `into += from`.
pub fn accumulate(from: &[f32], into: &mut [f32]) {
    assert_eq!(from.len(), into.len(), "adding {} to {} elements", from.len(), into.len());
    into.par_chunks_mut(BLOCK).zip(from.par_chunks(BLOCK)).for_each(|(into, from)| add(from, into));
}

/// Every element becomes `value`.
pub fn fill(out: &mut [f32], value: f32) {
    out.par_chunks_mut(BLOCK).for_each(|out| out.fill(value));
}

/// `into += from`, in the caller's thread.
#[inline(always)]
pub(super) fn add(from: &[f32], into: &mut [f32]) {
    for (into, from) in into.iter_mut().zip(from) {
        *into += from;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::numbers;
    use super::*;

    #[test]
    fn sums_and_constants() {
        let mut into = vec![0.0; BLOCK + 3];
        fill(&mut into, 1.5);
        let from = numbers(4, into.len());
        accumulate(&from, &mut into);
        assert!(into.iter().zip(&from).all(|(into, from)| *into == 1.5 + from));
    }
}
