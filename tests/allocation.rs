//! After a warm-up a training step allocates nothing, on any thread.

#[path = "common/runs.rs"]
mod runs;
#[path = "common/texts.rs"]
mod texts;

use std::alloc::{self, GlobalAlloc, System};
use std::backtrace::Backtrace;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use mtdnn_raw::backend::Rule;
use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::data::text::Layout;
use mtdnn_raw::data::{Corpus, Masking, SanSpec, TaskSpec};
use mtdnn_raw::nn::{Model, PretrainingModel};
use mtdnn_raw::tensor::{Precision, Space};
use mtdnn_raw::train::config::TrainConfig;
use mtdnn_raw::train::pretrain::corpora::Corpora;
use mtdnn_raw::train::pretrain::trainer::PretrainTrainer;
use mtdnn_raw::train::pretrain::{Phase, PretrainConfig};
use mtdnn_raw::train::trainer::Trainer;
use runs::{new_parameters, small_config, three_tasks, write};
use texts::Files;

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
    unsafe fn alloc(&self, layout: alloc::Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is the one that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: alloc::Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: alloc::Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: alloc::Layout, size: usize) -> *mut u8 {
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

    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    pool.install(|| {
        train_without_allocating();
        pretrain_without_allocating();
    });
}

fn assert_none(found: usize) {
    let first = FIRST.lock().unwrap().take();
    assert_eq!(found, 0, "allocations; the first:\n{}", first.unwrap_or_else(Backtrace::disabled));
}

fn train_without_allocating() {
    let (mut tasks, mut data) = three_tasks(0.1, [400, 300, 200]);
    let san = Some(SanSpec::default());
    tasks.push(TaskSpec { name: "pairs".into(), san, ..tasks[0].clone() });
    data.push(data[0].clone());
    let model = Model::new(&small_config(96, 0.1), &tasks);
    for (batch_size, accumulation, optimizer, precision) in [
        (5, 1, Rule::Adamax, Precision::F32),
        (16, 2, Rule::Lamb, Precision::F32),
        (16, 2, Rule::Adamax, Precision::Bf16),
    ] {
        let config =
            TrainConfig { batch_size, accumulation, optimizer, weight_decay: 0.01, ..TrainConfig::default() };
        let mut backend = CpuBackend::new().with_precision(precision);
        let mut trainer = Trainer::new(&config, 1, &model, &data, &mut backend).unwrap();
        write(trainer.backend(), Space::Parameters, &new_parameters(&model, 1));
        // The warm-up: every task's program has run once.
        let mut met = BTreeSet::new();
        while met.len() < 4 {
            met.insert(trainer.step().unwrap().task);
        }
        met.clear();
        let mut sizes = BTreeSet::new();
        let mut reports = Vec::with_capacity(100);
        let found = allocations(|| reports.extend((0..30).map(|_| trainer.step().unwrap())));
        met.extend(reports.iter().map(|report| report.task));
        sizes.extend(reports.iter().map(|report| report.tokens));
        assert!(met.len() == 4 && sizes.len() > 10, "several tasks and sizes: {met:?}, {sizes:?}");
        assert_none(found);
    }
}

/// Batches are drawn and filled in a step, too; only a new pass over the text allocates, for the list of its pairs.
fn pretrain_without_allocating() {
    let folder = tempfile::tempdir().unwrap();
    let files = Files::new(folder.path());
    let tokenizer = texts::tokenizer();
    let path = folder.path().join("train.corpus");
    let train =
        Corpus::build(&[files.train], Layout::Sentences, &tokenizer, &path, &mut |_, _| true).unwrap();
    let corpora = Corpora { train, dev: None };
    let model = PretrainingModel::new(&texts::encoder(96, 2));
    for (batch_size, accumulation, optimizer, whole_words, precision) in [
        (5, 1, Rule::AdamBert, false, Precision::F32),
        (12, 2, Rule::Lamb, true, Precision::F32),
        (12, 2, Rule::AdamBert, false, Precision::Bf16),
    ] {
        let masking = Masking::new(&tokenizer, &files.vocabulary, 0.15, whole_words, None).unwrap();
        let phases = vec![Phase { max_length: 48, batch_size, steps: 100 }];
        let config = PretrainConfig { phases, accumulation, optimizer, ..PretrainConfig::default() };
        let mut backend = CpuBackend::new().with_precision(precision);
        let mut trainer = PretrainTrainer::new(&config, 1, &model, &corpora, &masking, &mut backend).unwrap();
        let mut values = vec![0.0; model.parameters().len()];
        for parameter in model.parameters().parameters() {
            model.parameters().initialise(parameter, 1, &mut values[parameter.range()]);
        }
        write(trainer.backend(), Space::Parameters, &values);
        for _ in 0..2 {
            trainer.step().unwrap();
        }
        let mut reports = Vec::with_capacity(100);
        let found = allocations(|| reports.extend((0..12).map(|_| trainer.step().unwrap())));
        assert_none(found);
        assert!(reports.iter().all(|report| report.epoch == 0), "a new pass, which may allocate");
        let sizes: BTreeSet<_> = reports.iter().map(|report| (report.tokens, report.predictions)).collect();
        assert!(sizes.len() > 10, "several sizes: {sizes:?}");
    }
}
