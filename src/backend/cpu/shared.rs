//! A slice whose disjoint parts are written by the tasks of a parallel region.

use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;

use super::elements::ElementsMut;

/// A mutable slice that tasks share, each writing a part that no other task touches.
///
/// `chunks_mut` serves when the parts are contiguous; this serves when they are not: the columns that
/// one attention head writes in every row, or a tile of a matrix.
pub struct SharedMut<'a, T = f32> {
    start: *mut T,
    length: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// Derived, they would ask the same of `T`.
impl<T> Clone for SharedMut<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SharedMut<'_, T> {}

// SAFETY: it stands for a `&mut [T]`, which is `Send` where `T` is.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: a shared reference only gives out parts through `slice`, whose caller promises that they are
// disjoint; disjoint parts of a `&mut [T]` may go to different threads.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    /// Takes the slice for as long as tasks write to it.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), length: slice.len(), borrow: PhantomData }
    }

    /// The part at `range`; panics if that is outside the slice.
    ///
    /// # Safety
    /// While the part is in use nothing else may hold a part that overlaps it.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // parts are disjoint by the caller's promise
    pub unsafe fn slice(&self, range: Range<usize>) -> &'a mut [T] {
        self.assert_inside(&range);
        // SAFETY: inside the slice by the assertion, and unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// The part at `range`, to be read; panics if that is outside the slice.
    ///
    /// # Safety
    /// While the part is in use nothing may write to what overlaps it.
    pub unsafe fn read(&self, range: Range<usize>) -> &'a [T] {
        self.assert_inside(&range);
        // SAFETY: inside the slice by the assertion, and not written by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }

    #[inline(always)]
    fn assert_inside(&self, range: &Range<usize>) {
        let inside = range.start <= range.end && range.end <= self.length;
        assert!(inside, "part {range:?} of a slice of {}", self.length);
    }

    /// Where `offset` lies, for prefetching; never read through.
    #[inline(always)]
    pub fn address(&self, offset: usize) -> *const T {
        self.start.wrapping_add(offset)
    }
}

/// A [`SharedMut`] of either width.
#[derive(Clone, Copy)]
pub enum SharedElements<'a> {
    /// Of f32.
    F32(SharedMut<'a>),
    /// Of bf16.
    Bf16(SharedMut<'a, bf16>),
}

impl<'a> SharedElements<'a> {
    /// Takes the elements for as long as tasks write to them.
    pub fn new(elements: ElementsMut<'a>) -> Self {
        match elements {
            ElementsMut::F32(values) => SharedElements::F32(SharedMut::new(values)),
            ElementsMut::Bf16(values) => SharedElements::Bf16(SharedMut::new(values)),
        }
    }

    /// The part at `range`; panics if that is outside.
    ///
    /// # Safety
    /// While the part is in use nothing else may hold a part that overlaps it.
    #[inline(always)]
    pub unsafe fn part(&self, range: Range<usize>) -> ElementsMut<'a> {
        // SAFETY: the caller's promise is the same.
        unsafe {
            match self {
                SharedElements::F32(values) => ElementsMut::F32(values.slice(range)),
                SharedElements::Bf16(values) => ElementsMut::Bf16(values.slice(range)),
            }
        }
    }

    /// Where `offset` lies, for prefetching; never read through.
    #[inline(always)]
    pub fn address(&self, offset: usize) -> *const u8 {
        match self {
            SharedElements::F32(values) => values.address(offset).cast(),
            SharedElements::Bf16(values) => values.address(offset).cast(),
        }
    }
}
