//! Writing a tile to C, and what is done to it on the way.

use std::ops::Range;

use super::super::math;
use super::super::shared::SharedMut;
use super::kernel::TILE;

/// C and what is written there.
pub(super) struct Target<'a> {
    pub(super) c: SharedMut<'a>,
    pub(super) stride: usize,
    /// Columns of C.
    pub(super) columns: usize,
    /// Whether the product is added to what C holds.
    pub(super) add: bool,
    pub(super) finish: Finish<'a>,
}

/// What is done to an element once its sum is complete.
pub(super) enum Finish<'a> {
    Plain,
    Bias(&'a [f32]),
    BiasGelu { bias: &'a [f32], before: Option<SharedMut<'a>> },
}

/// Which slices of the depth a tile is the product of.
#[derive(Clone, Copy)]
pub(super) struct Stage {
    pub(super) first: bool,
    pub(super) last: bool,
}

/// Writes the part of a tile that lies in C. The tile is used up.
///
/// Unsafe to call: the instruction set must be available, and no other thread may access that part of C.
pub(super) type Write = unsafe fn(
    target: &Target,
    tile: &mut [f32; TILE],
    rows: Range<usize>,
    columns: Range<usize>,
    stage: Stage,
);

impl Target<'_> {
    /// Asks for a tile of C ahead of its use, if it is going to be read.
    #[inline(always)]
    pub(super) fn prefetch(&self, rows: &Range<usize>, column: usize, stage: Stage) {
        #[cfg(target_arch = "x86_64")]
        if self.add || !stage.first {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            for row in rows.clone() {
                let address = self.c.address(row * self.stride + column);
                // SAFETY: a prefetch is a hint: it faults at no address.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (rows, column, stage);
    }
}

/// [`Write`] for tiles of `WIDTH` columns. All elements take the same path, in full rows of a tile, so that
/// their bits do not depend on where they fall.
#[inline(always)]
pub(super) unsafe fn write<const WIDTH: usize, const FMA: bool>(
    target: &Target,
    tile: &mut [f32; TILE],
    rows: Range<usize>,
    columns: Range<usize>,
    stage: Stage,
) {
    let width = columns.len();
    let tile_rows = tile.as_chunks_mut::<WIDTH>().0;
    for (row, values) in rows.zip(tile_rows) {
        let start = row * target.stride + columns.start;
        // SAFETY: this part of C is the caller's alone.
        let c = unsafe { target.c.slice(start..start + width) };
        if target.add || !stage.first {
            let before = load::<WIDTH>(c);
            for (value, before) in values.iter_mut().zip(before) {
                *value += before;
            }
        }
        if stage.last {
            match &target.finish {
                Finish::Plain => {}
                Finish::Bias(bias) => add_bias(values, &bias[columns.clone()]),
                Finish::BiasGelu { bias, before } => {
                    add_bias(values, &bias[columns.clone()]);
                    if let Some(before) = before {
                        let start = row * target.columns + columns.start;
                        // SAFETY: as C.
                        store(values, unsafe { before.slice(start..start + width) });
                    }
                    for value in values.iter_mut() {
                        *value = math::gelu::<FMA>(*value);
                    }
                }
            }
        }
        store(values, c);
    }
}

#[inline(always)]
fn add_bias<const WIDTH: usize>(values: &mut [f32; WIDTH], bias: &[f32]) {
    for (value, bias) in values.iter_mut().zip(load::<WIDTH>(bias)) {
        *value += bias;
    }
}

/// Up to `WIDTH` values, filled up with 0.
#[inline(always)]
fn load<const WIDTH: usize>(values: &[f32]) -> [f32; WIDTH] {
    values.try_into().unwrap_or_else(|_| {
        let mut padded = [0.0; WIDTH];
        padded[..values.len()].copy_from_slice(values);
        padded
    })
}

/// The first of the values, as many as there is place for.
#[inline(always)]
fn store<const WIDTH: usize>(values: &[f32; WIDTH], places: &mut [f32]) {
    match <&mut [f32; WIDTH]>::try_from(&mut *places) {
        Ok(places) => *places = *values,
        Err(_) => places.copy_from_slice(&values[..places.len()]),
    }
}
