//! Memory that kernels work in, allocated once and kept: after a warm-up a step allocates nothing.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

/// One buffer a thread, for what a task needs while it runs.
///
/// A worker of a rayon pool has the buffer of its index, the thread outside of the pool one of its own.
/// The locks are never contended; they turn a nested use, which would alias, into a panic.
pub struct Scratch {
    buffers: Vec<Mutex<Buffer>>,
}

impl Scratch {
    /// Buffers for a pool of `threads` workers and for the thread that calls into it.
    pub fn new(threads: usize) -> Self {
        Self { buffers: (0..=threads).map(|_| Mutex::default()).collect() }
    }

    /// Makes every thread's buffer hold `floats`.
    pub fn reserve(&mut self, floats: usize) {
        for buffer in &mut self.buffers {
            buffer.get_mut().unwrap_or_else(|poison| poison.into_inner()).reserve(floats);
        }
    }

    /// Lends this thread's buffer: `floats` floats with whatever was left in them, 64-byte aligned.
    /// It grows if it was not reserved. Panics on a nested use and in a pool larger than announced.
    pub fn with<R>(&self, floats: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
        let index = rayon::current_thread_index().map_or(0, |index| index + 1);
        assert!(
            index < self.buffers.len(),
            "scratch for {} threads used by worker {index}",
            self.buffers.len() - 1
        );
        match self.buffers[index].try_lock() {
            Ok(mut buffer) => work(buffer.first(floats)),
            Err(std::sync::TryLockError::Poisoned(poison)) => work(poison.into_inner().first(floats)),
            Err(std::sync::TryLockError::WouldBlock) => panic!("scratch used twice at once by one thread"),
        }
    }
}

/// All memory that the CPU kernels work in: a buffer that the tasks of one kernel share, and one a thread.
pub struct Workspace {
    shared: Buffer,
    scratch: Scratch,
}

impl Workspace {
    /// For a pool of `threads` workers and the thread that calls into it.
    pub fn new(threads: usize) -> Self {
        Self { shared: Buffer::default(), scratch: Scratch::new(threads) }
    }

    /// Makes the shared buffer hold `shared` floats and each thread's `per_thread`.
    pub fn reserve(&mut self, shared: usize, per_thread: usize) {
        self.shared.reserve(shared);
        self.scratch.reserve(per_thread);
    }

    /// The per-thread buffers.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// `floats` floats of the shared buffer, 64-byte aligned, next to the per-thread buffers.
    pub fn parts(&mut self, floats: usize) -> (&mut [f32], &Scratch) {
        (self.shared.first(floats), &self.scratch)
    }
}

/// Zeroed floats from a 64-byte boundary on, so that a row of a product's tile is one cache line and not parts of two.
#[derive(Default)]
pub(super) struct Zeroed {
    floats: Vec<f32>,
    start: usize,
}

impl Zeroed {
    /// So many, which take no page before they are touched; `None` where there is no memory to be had.
    pub(super) fn new(len: usize) -> Option<Self> {
        // `vec!` ends the process where memory runs out; asking first makes it an error.
        let mut probe: Vec<f32> = Vec::new();
        probe.try_reserve_exact(len + LINE).ok()?;
        drop(probe);
        let mut floats = vec![0.0; len + LINE];
        let start = floats.as_ptr().align_offset(LINE * size_of::<f32>());
        floats.truncate(start + len);
        Some(Self { floats, start })
    }
}

impl Deref for Zeroed {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.floats[self.start..]
    }
}

impl DerefMut for Zeroed {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.floats[self.start..]
    }
}

/// A vector that grows and is lent from a 64-byte boundary on.
#[derive(Default)]
struct Buffer(Vec<f32>);

/// Floats in a cache line and in an AVX-512 register.
const LINE: usize = 16;

impl Buffer {
    fn reserve(&mut self, floats: usize) {
        if self.0.len() < floats + LINE {
            self.0 = vec![0.0; floats + LINE];
        }
    }

    fn first(&mut self, floats: usize) -> &mut [f32] {
        self.reserve(floats);
        let skipped = self.0.as_ptr().align_offset(LINE * size_of::<f32>());
        &mut self.0[skipped..][..floats]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_has_an_aligned_buffer_that_stays_where_it_is() {
        let mut scratch = Scratch::new(2);
        scratch.reserve(100);
        let address = scratch.with(100, |buffer| buffer.as_ptr() as usize);
        assert_eq!(address % 64, 0);
        assert_eq!(scratch.with(50, |buffer| (buffer.as_ptr() as usize, buffer.len())), (address, 50));

        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let others = pool.broadcast(|_| scratch.with(100, |buffer| buffer.as_ptr() as usize));
        assert!(others[0] != others[1] && !others.contains(&address));
    }

    #[test]
    fn zeroed_floats_begin_at_a_cache_line() {
        for len in [0, 1, 100, 1 << 20] {
            let zeroed = Zeroed::new(len).unwrap();
            assert_eq!((zeroed.as_ptr() as usize % 64, zeroed.len()), (0, len));
            assert!(zeroed.iter().all(|float| *float == 0.0));
        }
        assert!(Zeroed::new(usize::MAX / 8).is_none());
    }

    #[test]
    #[should_panic(expected = "used twice at once")]
    fn a_nested_use_panics() {
        let scratch = Scratch::new(1);
        scratch.with(1, |_| scratch.with(1, |_| ()));
    }
}
