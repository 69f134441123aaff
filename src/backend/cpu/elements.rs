//! Values of either width. A kernel works in f32: what is kept in bf16 is widened as it is read and rounded as it is
//! written, a row or a part of one at a time, in a buffer that stays in the nearest cache.

use std::ops::Range;

use half::bf16;
use rayon::iter::Either;
use rayon::prelude::*;

use super::simd::multiversion;

/// Elements that a kernel reads.
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    /// As they are worked with.
    F32(&'a [f32]),
    /// To be widened.
    Bf16(&'a [bf16]),
}

/// Elements that a kernel writes.
#[derive(Debug)]
pub enum ElementsMut<'a> {
    /// As they are worked with.
    F32(&'a mut [f32]),
    /// To be rounded.
    Bf16(&'a mut [bf16]),
}

/// Where a kernel puts the gradient of a value.
#[derive(Debug)]
pub struct ElementsSink<'a> {
    /// The gradient.
    pub values: ElementsMut<'a>,
    /// Whether to add to what is there instead of storing.
    pub add: bool,
}

/// Elements that kernels without rows of their own take at a time: 2 KiB of f32. With twice as many, three buffers and
/// what is behind them crowd the L1 cache, and an activation's gradient takes a fifth longer (Zen 3).
pub(super) const PART: usize = 512;

impl<'a> Elements<'a> {
    /// How many there are.
    #[inline(always)]
    pub fn len(&self) -> usize {
        match self {
            Elements::F32(values) => values.len(),
            Elements::Bf16(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of them.
    #[inline(always)]
    pub fn part(&self, range: Range<usize>) -> Elements<'a> {
        match self {
            Elements::F32(values) => Elements::F32(&values[range]),
            Elements::Bf16(values) => Elements::Bf16(&values[range]),
        }
    }

    /// Where the element of this number lies, for prefetching; never read through.
    #[inline(always)]
    pub(super) fn address(&self, offset: usize) -> *const u8 {
        match self {
            Elements::F32(values) => values.as_ptr().wrapping_add(offset).cast(),
            Elements::Bf16(values) => values.as_ptr().wrapping_add(offset).cast(),
        }
    }

    /// Some of them in f32: where they lie if they are that, else in the buffer, which has at least as many places.
    #[inline(always)]
    pub(super) fn read<'b>(&self, range: Range<usize>, buffer: &'b mut [f32]) -> &'b [f32]
    where
        'a: 'b,
    {
        match self {
            Elements::F32(values) => &values[range],
            Elements::Bf16(values) => {
                let values = &values[range];
                let buffer = &mut buffer[..values.len()];
                widen(values, buffer);
                buffer
            }
        }
    }

    /// Adds some of them to other numbers.
    #[inline(always)]
    pub(super) fn add_to(&self, range: Range<usize>, to: &mut [f32]) {
        match self {
            Elements::F32(values) => add(&values[range], to),
            Elements::Bf16(values) => {
                for (to, value) in to.iter_mut().zip(&values[range]) {
                    *to += widened(*value);
                }
            }
        }
    }

    /// Some of them in f32, copied.
    #[inline(always)]
    pub(super) fn copy_to(&self, range: Range<usize>, to: &mut [f32]) {
        match self {
            Elements::F32(values) => to.copy_from_slice(&values[range]),
            Elements::Bf16(values) => widen(&values[range], to),
        }
    }

    /// Pieces of `size`, the last maybe shorter.
    pub(super) fn par_chunks(self, size: usize) -> impl IndexedParallelIterator<Item = Elements<'a>> {
        match self {
            Elements::F32(values) => Either::Left(values.par_chunks(size).map(Elements::F32)),
            Elements::Bf16(values) => Either::Right(values.par_chunks(size).map(Elements::Bf16)),
        }
    }
}

impl<'a> ElementsMut<'a> {
    /// How many there are.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.view().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same elements, to be read.
    #[inline(always)]
    pub(super) fn view(&self) -> Elements<'_> {
        match self {
            ElementsMut::F32(values) => Elements::F32(values),
            ElementsMut::Bf16(values) => Elements::Bf16(values),
        }
    }

    /// The same elements, for a while.
    pub(super) fn reborrow(&mut self) -> ElementsMut<'_> {
        match self {
            ElementsMut::F32(values) => ElementsMut::F32(values),
            ElementsMut::Bf16(values) => ElementsMut::Bf16(values),
        }
    }

    /// Some of them.
    pub(super) fn part_mut(&mut self, range: Range<usize>) -> ElementsMut<'_> {
        match self {
            ElementsMut::F32(values) => ElementsMut::F32(&mut values[range]),
            ElementsMut::Bf16(values) => ElementsMut::Bf16(&mut values[range]),
        }
    }

    /// The same elements, to be read from now on.
    pub(super) fn into_view(self) -> Elements<'a> {
        match self {
            ElementsMut::F32(values) => Elements::F32(values),
            ElementsMut::Bf16(values) => Elements::Bf16(values),
        }
    }

    /// Where to fill some of them: where they lie if they are f32, else in the buffer, from which
    /// [`settle`](Self::settle) rounds them.
    #[inline(always)]
    pub(super) fn place<'b>(&'b mut self, range: Range<usize>, buffer: &'b mut [f32]) -> &'b mut [f32] {
        match self {
            ElementsMut::F32(values) => &mut values[range],
            ElementsMut::Bf16(_) => &mut buffer[..range.len()],
        }
    }

    /// As [`place`](Self::place), but what was there is found in it.
    #[inline(always)]
    pub(super) fn open<'b>(&'b mut self, range: Range<usize>, buffer: &'b mut [f32]) -> &'b mut [f32] {
        if let ElementsMut::Bf16(values) = self {
            widen(&values[range.clone()], &mut buffer[..range.len()]);
        }
        self.place(range, buffer)
    }

    /// Rounds what was filled in the buffer, if it was.
    #[inline(always)]
    pub(super) fn settle(&mut self, range: Range<usize>, buffer: &[f32]) {
        if let ElementsMut::Bf16(values) = self {
            narrow(&buffer[..range.len()], &mut values[range]);
        }
    }

    /// Some of them become those of another slice, rounded if it is wider.
    #[inline(always)]
    pub(super) fn copy(&mut self, range: Range<usize>, from: Elements) {
        match (self, from) {
            (ElementsMut::Bf16(values), Elements::Bf16(from)) => values[range].copy_from_slice(from),
            (ElementsMut::Bf16(values), Elements::F32(from)) => narrow(from, &mut values[range]),
            (ElementsMut::F32(values), from) => from.copy_to(0..from.len(), &mut values[range]),
        }
    }

    /// Stores some of them.
    #[inline(always)]
    pub(super) fn store(&mut self, range: Range<usize>, from: &[f32]) {
        match self {
            ElementsMut::F32(values) => values[range].copy_from_slice(from),
            ElementsMut::Bf16(values) => narrow(from, &mut values[range]),
        }
    }

    /// Every one becomes `value`.
    pub(super) fn fill(&mut self, value: f32) {
        match self {
            ElementsMut::F32(values) => values.fill(value),
            ElementsMut::Bf16(values) => values.fill(bf16::from_f32(value)),
        }
    }

    /// Pieces of `size`, the last maybe shorter.
    pub(super) fn par_chunks_mut(self, size: usize) -> impl IndexedParallelIterator<Item = ElementsMut<'a>> {
        match self {
            ElementsMut::F32(values) => Either::Left(values.par_chunks_mut(size).map(ElementsMut::F32)),
            ElementsMut::Bf16(values) => Either::Right(values.par_chunks_mut(size).map(ElementsMut::Bf16)),
        }
    }
}

impl ElementsSink<'_> {
    /// Stores or adds some of them.
    #[inline(always)]
    pub(super) fn put(&mut self, range: Range<usize>, from: &[f32], buffer: &mut [f32]) {
        if self.add {
            add(from, self.values.open(range.clone(), buffer));
            self.values.settle(range, buffer);
        } else {
            self.values.store(range, from);
        }
    }
}

multiversion! {
    /// Stores all of them.
    pub(super) fn store_all<FMA>(from: &[f32], to: ElementsMut) {
        let mut to = to;
        to.store(0..from.len(), from);
    }
}

impl<'a> From<&'a [f32]> for Elements<'a> {
    fn from(values: &'a [f32]) -> Self {
        Elements::F32(values)
    }
}

impl<'a> From<&'a Vec<f32>> for Elements<'a> {
    fn from(values: &'a Vec<f32>) -> Self {
        Elements::F32(values)
    }
}

impl<'a> From<&'a [bf16]> for Elements<'a> {
    fn from(values: &'a [bf16]) -> Self {
        Elements::Bf16(values)
    }
}

impl<'a> From<&'a mut [f32]> for ElementsMut<'a> {
    fn from(values: &'a mut [f32]) -> Self {
        ElementsMut::F32(values)
    }
}

impl<'a> From<&'a mut Vec<f32>> for ElementsMut<'a> {
    fn from(values: &'a mut Vec<f32>) -> Self {
        ElementsMut::F32(values)
    }
}

impl<'a> From<&'a mut [bf16]> for ElementsMut<'a> {
    fn from(values: &'a mut [bf16]) -> Self {
        ElementsMut::Bf16(values)
    }
}

/// The f32 of the same value.
#[inline(always)]
pub(super) fn widened(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// The nearest bf16, the even one of two; NaN stays.
#[inline(always)]
pub(super) fn narrowed(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // Rounding could carry a NaN's payload into the sign.
    let quiet = (bits >> 16) | 0x40;
    bf16::from_bits(if value.is_nan() { quiet } else { rounded } as u16)
}

/// Ranges of [`PART`] elements, the last maybe shorter.
#[inline(always)]
pub(super) fn parts(len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(PART).map(move |start| start..(start + PART).min(len))
}

/// `into += from`.
#[inline(always)]
pub(super) fn add(from: &[f32], into: &mut [f32]) {
    for (into, from) in into.iter_mut().zip(from) {
        *into += from;
    }
}

/// Each value in f32.
#[inline(always)]
pub(super) fn widen(from: &[bf16], to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "widening {} into {} elements", from.len(), to.len());
    for (to, from) in to.iter_mut().zip(from) {
        *to = widened(*from);
    }
}

/// Each value in bf16.
#[inline(always)]
pub(super) fn narrow(from: &[f32], to: &mut [bf16]) {
    assert_eq!(from.len(), to.len(), "rounding {} into {} elements", from.len(), to.len());
    for (to, from) in to.iter_mut().zip(from) {
        *to = narrowed(*from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_the_nearest_and_even() {
        for (value, rounded) in [
            (0.0, 0x0000),
            (-0.0, 0x8000),
            (1.0, 0x3f80),
            (f32::from_bits(0x3f80_8000), 0x3f80),
            (f32::from_bits(0x3f81_8000), 0x3f82),
            (f32::from_bits(0x3f80_8001), 0x3f81),
            (f32::from_bits(0x0000_ffff), 0x0001),
            (f32::MAX, 0x7f80),
            (f32::NEG_INFINITY, 0xff80),
        ] {
            assert_eq!(narrowed(value).to_bits(), rounded, "{value:e}");
        }
        for nan in [f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(0xffff_ffff)] {
            assert!(widened(narrowed(nan)).is_nan());
            assert_eq!(narrowed(nan).is_sign_negative(), nan.is_sign_negative());
        }
    }

    #[test]
    fn agrees_with_the_package_on_every_narrow_number_and_its_neighbours() {
        for bits in 0..=u16::MAX {
            let narrow = bf16::from_bits(bits);
            // The package makes a signalling NaN quiet.
            let (wide, expected) = (widened(narrow), narrow.to_f32());
            assert!(
                wide.to_bits() == expected.to_bits() || wide.is_nan() && expected.is_nan(),
                "{bits:#06x}"
            );
            for step in [0x0001, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let near = f32::from_bits(u32::from(bits) << 16 | step);
                assert!(
                    narrowed(near).to_bits() == bf16::from_f32(near).to_bits() || near.is_nan(),
                    "{near:e}"
                );
            }
        }
    }

    #[test]
    fn either_width_is_read_and_written() {
        let numbers: Vec<f32> = (0..10).map(|i| i as f32 / 4.0).collect();
        let narrow: Vec<bf16> = numbers.iter().map(|x| narrowed(*x)).collect();
        let (mut wide_out, mut narrow_out) = (numbers.clone(), narrow.clone());
        for (from, to) in [
            (Elements::from(&numbers), ElementsMut::from(&mut wide_out)),
            (Elements::from(&narrow[..]), ElementsMut::from(&mut narrow_out[..])),
        ] {
            let mut sink = ElementsSink { values: to, add: true };
            let (mut first, mut second) = ([0.0; 4], [0.0; 4]);
            sink.put(2..6, from.read(2..6, &mut first), &mut second);
            sink.add = false;
            sink.put(6..8, from.read(0..2, &mut first), &mut second);
            sink.values.copy(8..9, from.part(3..4));
            sink.values.place(9..10, &mut second).fill(9.0);
            sink.values.settle(9..10, &second);
        }
        assert_eq!(wide_out, [0.0, 0.25, 1.0, 1.5, 2.0, 2.5, 0.0, 0.25, 0.75, 9.0]);
        assert_eq!(narrow_out.iter().map(|x| widened(*x)).collect::<Vec<_>>(), wide_out);
    }
}
