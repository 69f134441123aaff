//! Writing a tile to C, and what is done to it on the way.

use std::ops::Range;

use half::bf16;

use super::super::elements::{Elements, ElementsMut, narrowed, widened};
use super::super::math;
use super::super::shared::{SharedElements, SharedMut};
use super::kernel::TILE;
use super::pack::{prefetch, prefetch_to_write};

/// C and what is written there.
pub(super) struct Target<'a> {
    pub(super) c: SharedElements<'a>,
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
    BiasGelu { bias: &'a [f32], before: Option<SharedElements<'a>> },
    GeluGradient { before: Elements<'a> },
}

/// Which slices of the depth a tile is the product of.
#[derive(Clone, Copy)]
pub(super) struct Stage {
    pub(super) first: bool,
    pub(super) last: bool,
}

/// Where the sums of a block of C wait for further slices: C would round them. The caller's own.
#[derive(Clone, Copy)]
pub(super) struct Partial<'a> {
    pub(super) sums: SharedMut<'a>,
    /// From one row to the next.
    pub(super) stride: usize,
    /// Where the block begins in C.
    pub(super) first: (usize, usize),
}

impl<'a> Partial<'a> {
    /// The sums of some columns of a row of C.
    ///
    /// Safe to call from the thread alone that the block belongs to.
    unsafe fn row(&self, row: usize, columns: &Range<usize>) -> &'a mut [f32] {
        let start = (row - self.first.0) * self.stride + columns.start - self.first.1;
        // SAFETY: as the caller promises.
        unsafe { self.sums.slice(start..start + columns.len()) }
    }
}

/// Writes the part of a tile that lies in C. The tile is used up. `partial` is given if C is bf16 and there are several
/// slices.
///
/// Unsafe to call: the instruction set must be available, and no other thread may access that part of C and of `partial`.
pub(super) type Write = unsafe fn(
    target: &Target,
    partial: Option<&Partial>,
    tile: &mut [f32; TILE],
    rows: Range<usize>,
    columns: Range<usize>,
    stage: Stage,
);

impl Target<'_> {
    /// Asks ahead of their use for a tile of C and for what else is read where it is written: a store to a line that is
    /// not there waits as a load does. With these, and with buffers that begin at cache lines, writing went from 10 - 12 %
    /// of a MiniLM step's time to 6 % (Zen 3).
    #[inline(always)]
    pub(super) fn prefetch(&self, rows: &Range<usize>, column: usize, stage: Stage) {
        for row in rows.clone() {
            prefetch_to_write(self.c.address(row * self.stride + column));
            if let (Finish::GeluGradient { before }, true) = (&self.finish, stage.last) {
                prefetch(before.address(row * self.columns + column));
            }
        }
    }
}

/// [`Write`] for tiles of `WIDTH` columns. All elements take the same path, in full rows of a tile, so that
/// their bits do not depend on where they fall.
#[inline(always)]
pub(super) unsafe fn write<const WIDTH: usize, const FMA: bool>(
    target: &Target,
    partial: Option<&Partial>,
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
        let c = unsafe { target.c.part(start..start + width) };
        // SAFETY: as this part of C.
        let partial = partial.map(|partial| unsafe { partial.row(row, &columns) });
        match &partial {
            Some(sums) if !stage.first => add(values, load::<WIDTH>(Elements::F32(sums))),
            _ if target.add || !stage.first => add(values, load::<WIDTH>(c.view())),
            _ => {}
        }
        if stage.last {
            let start = row * target.columns + columns.start;
            match &target.finish {
                Finish::Plain => {}
                Finish::Bias(bias) => add(values, load::<WIDTH>(Elements::F32(&bias[columns.clone()]))),
                Finish::BiasGelu { bias, before } => {
                    add(values, load::<WIDTH>(Elements::F32(&bias[columns.clone()])));
                    if let Some(before) = before {
                        // SAFETY: as C.
                        store(values, unsafe { before.part(start..start + width) });
                    }
                    for value in values.iter_mut() {
                        *value = math::gelu::<FMA>(*value);
                    }
                }
                Finish::GeluGradient { before } => {
                    let before = load::<WIDTH>(before.part(start..start + width));
                    for (value, before) in values.iter_mut().zip(before) {
                        *value *= math::gelu_derivative::<FMA>(before);
                    }
                }
            }
        }
        match partial {
            Some(sums) if !stage.last => store(values, ElementsMut::F32(sums)),
            _ => store(values, c),
        }
    }
}

#[inline(always)]
fn add<const WIDTH: usize>(values: &mut [f32; WIDTH], more: [f32; WIDTH]) {
    for (value, more) in values.iter_mut().zip(more) {
        *value += more;
    }
}

/// Up to `WIDTH` values, filled up with 0.
#[inline(always)]
fn load<const WIDTH: usize>(values: Elements) -> [f32; WIDTH] {
    match values {
        Elements::F32(values) => filled_up(values, 0.0),
        Elements::Bf16(values) => filled_up::<bf16, WIDTH>(values, bf16::ZERO).map(widened),
    }
}

#[inline(always)]
fn filled_up<T: Copy, const WIDTH: usize>(values: &[T], zero: T) -> [T; WIDTH] {
    values.try_into().unwrap_or_else(|_| {
        let mut padded = [zero; WIDTH];
        padded[..values.len()].copy_from_slice(values);
        padded
    })
}

/// The first of the values, as many as there is place for.
#[inline(always)]
fn store<const WIDTH: usize>(values: &[f32; WIDTH], places: ElementsMut) {
    match places {
        ElementsMut::F32(places) => store_first(values, places),
        ElementsMut::Bf16(places) => store_first(&values.map(narrowed), places),
    }
}

#[inline(always)]
fn store_first<T: Copy, const WIDTH: usize>(values: &[T; WIDTH], places: &mut [T]) {
    match <&mut [T; WIDTH]>::try_from(&mut *places) {
        Ok(places) => *places = *values,
        Err(_) => places.copy_from_slice(&values[..places.len()]),
    }
}
