//! How kernels are cut into tasks: into blocks fixed by the shape alone, so that the results do not depend on the
//! number of threads.

use rayon::iter::Either;
use rayon::prelude::*;

use super::elements::ElementsMut;

/// Elements of one operand that a task works on: 64 KiB, enough to make the cost of a task vanish.
pub(super) const BLOCK: usize = 16 * 1024;

/// Rows of `cols` elements that a task works on.
pub(super) fn rows_per_block(cols: usize) -> usize {
    assert!(cols > 0, "a matrix without columns");
    (BLOCK / cols).max(1)
}

/// Where a kernel puts a gradient.
pub struct SinkMut<'a> {
    /// The gradient.
    pub values: &'a mut [f32],
    /// Whether to add to what is there instead of storing.
    pub add: bool,
}

/// The chunks of an operand that may be absent; `None` for each of `count` chunks where it is.
pub(super) fn optional_chunks_mut(
    values: Option<ElementsMut>,
    size: usize,
    count: usize,
) -> impl IndexedParallelIterator<Item = Option<ElementsMut>> {
    match values {
        Some(values) => Either::Left(values.par_chunks_mut(size).map(Some)),
        None => Either::Right((0..count).into_par_iter().map(|_| None)),
    }
}
