//! After a warm-up a training step allocates nothing, on any thread.

#[path = "common/runs.rs"]
mod runs;

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::nn::Model;
use mtdnn_raw::tensor::Space;
use mtdnn_raw::train::config::TrainConfig;
use mtdnn_raw::train::trainer::Trainer;
use runs::{new_parameters, small_config, three_tasks, write};

/// The system's allocator, which counts while it is told to.
struct Counting;

static COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
/// Who was the first to allocate.
static FIRST: Mutex<Option<Backtrace>> = Mutex::new(None);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is the one that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

fn count() {
    // Off while the backtrace is taken, which allocates.
    if COUNTING.swap(false, Ordering::SeqCst) {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        FIRST.lock().unwrap().get_or_insert_with(Backtrace::force_capture);
        COUNTING.store(true, Ordering::SeqCst);
    }
}

/// Runs `work` and returns how often any thread allocated meanwhile.
fn allocations(work: impl FnOnce()) -> usize {
    ALLOCATIONS.store(0, Ordering::SeqCst);
    COUNTING.store(true, Ordering::SeqCst);
    work();
    COUNTING.store(false, Ordering::SeqCst);
    ALLOCATIONS.load(Ordering::SeqCst)
}

// The only test of its program: another would allocate beside it.
#[test]
fn a_step_allocates_nothing() {
    assert_eq!(allocations(|| drop(vec![1, 2, 3])), 1, "the counter counts");
    FIRST.lock().unwrap().take();

    let (tasks, data) = three_tasks(0.1, [400, 300, 200]);
    let model = Model::new(&small_config(96, 0.1), &tasks);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    pool.install(|| {
        for (batch_size, accumulation) in [(5, 1), (16, 2)] {
            let config =
                TrainConfig { batch_size, accumulation, weight_decay: 0.01, ..TrainConfig::default() };
            let mut backend = CpuBackend::new();
            let mut trainer = Trainer::new(&config, 1, &model, &data, &mut backend).unwrap();
            write(trainer.backend(), Space::Parameters, &new_parameters(&model, 1));
            // The warm-up: every task's program has run once.
            let mut met = BTreeSet::new();
            while met.len() < 3 {
                met.insert(trainer.step().unwrap().task);
            }
            met.clear();
            let mut sizes = BTreeSet::new();
            let mut reports = Vec::with_capacity(100);
            let found = allocations(|| reports.extend((0..30).map(|_| trainer.step().unwrap())));
            met.extend(reports.iter().map(|report| report.task));
            sizes.extend(reports.iter().map(|report| report.tokens));
            assert!(met.len() == 3 && sizes.len() > 10, "several tasks and sizes: {met:?}, {sizes:?}");
            let first = FIRST.lock().unwrap().take();
            assert_eq!(found, 0, "allocations; the first:\n{}", first.unwrap_or_else(Backtrace::disabled));
        }
    });
}
