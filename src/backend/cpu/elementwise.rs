//! Sums of two values and constants.

use rayon::prelude::*;

use super::blocks::BLOCK;
use super::elements::{Elements, ElementsMut, narrowed, widened};
use super::isa::Isa;
use super::simd::multiversion;

/// `into += from`.
pub fn accumulate(isa: Isa, from: Elements, into: ElementsMut) {
    assert_eq!(from.len(), into.len(), "adding {} to {} elements", from.len(), into.len());
    into.par_chunks_mut(BLOCK)
        .zip(from.par_chunks(BLOCK))
        .for_each(|(into, from)| accumulate_block(isa, from, into));
}

/// Every element becomes `value`.
pub fn fill(out: ElementsMut, value: f32) {
    out.par_chunks_mut(BLOCK).for_each(|mut out| out.fill(value));
}

multiversion! {
    fn accumulate_block<FMA>(from: Elements, into: ElementsMut) {
        match (from, into) {
            (from, ElementsMut::F32(into)) => from.add_to(0..from.len(), into),
            (Elements::Bf16(from), ElementsMut::Bf16(into)) => {
                for (into, from) in into.iter_mut().zip(from) {
                    *into = narrowed(widened(*into) + widened(*from));
                }
            }
            (Elements::F32(from), ElementsMut::Bf16(into)) => {
                for (into, from) in into.iter_mut().zip(from) {
                    *into = narrowed(widened(*into) + from);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{FLOATS, Kept, numbers, rounded, same_on_any_threads};
    use super::*;

    #[test]
    fn sums_and_constants() {
        for (of_from, of_into) in FLOATS.into_iter().flat_map(|from| FLOATS.map(|into| (from, into))) {
            let from = rounded(of_from, &numbers(4, BLOCK + 1027));
            same_on_any_threads(
                |isa| {
                    let mut into = Kept::new(of_into, &vec![0.0; from.len()]);
                    fill(into.elements_mut(), 1.5);
                    accumulate(isa, Kept::new(of_from, &from).elements(), into.elements_mut());
                    into.numbers()
                },
                |into| {
                    let sums: Vec<f32> = from.iter().map(|from| 1.5 + from).collect();
                    assert!(into == rounded(of_into, &sums));
                },
            );
        }
    }
}
