//! A slice whose disjoint parts are written by the tasks of a parallel region.

use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice that tasks share, each writing a part that no other task touches.
///
/// `chunks_mut` serves when the parts are contiguous; this serves when they are not: the columns that
/// one attention head writes in every row, or a tile of a matrix.
#[derive(Clone, Copy)]
pub struct SharedMut<'a> {
    start: *mut f32,
    length: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: it stands for a `&mut [f32]`, which is `Send`.
unsafe impl Send for SharedMut<'_> {}
// SAFETY: a shared reference only gives out parts through `slice`, whose caller promises that they are
// disjoint; disjoint parts of a `&mut [f32]` may go to different threads.
unsafe impl Sync for SharedMut<'_> {}

impl<'a> SharedMut<'a> {
    /// Takes the slice for as long as tasks write to it.
    pub fn new(slice: &'a mut [f32]) -> Self {
        Self { start: slice.as_mut_ptr(), length: slice.len(), borrow: PhantomData }
    }

    /// The part at `range`; panics if that is outside the slice.
    ///
    /// # Safety
    /// While the part is in use nothing else may hold a part that overlaps it.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // parts are disjoint by the caller's promise
    pub unsafe fn slice(&self, range: Range<usize>) -> &'a mut [f32] {
        assert!(
            range.start <= range.end && range.end <= self.length,
            "part {range:?} of a slice of {}",
            self.length
        );
        // SAFETY: inside the slice by the assertion, and unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.end - range.start) }
    }

    /// Where `offset` lies, for prefetching; never read through.
    #[inline(always)]
    pub fn address(&self, offset: usize) -> *const f32 {
        self.start.wrapping_add(offset)
    }
}
