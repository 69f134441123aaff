//! The CUDA backend on a real GPU. Where there is none, that is said and all is skipped; with `MTDNN_REQUIRE_GPU=1`
//! it is a failure. Nothing of the source tree is read, so that the program runs on any machine: `benches/gpu.sh`.
#![cfg(feature = "cuda")]

#[path = "common/cases.rs"]
mod cases;
#[path = "common/steps.rs"]
mod steps;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mtdnn_raw::backend::cpu::CpuBackend;
use mtdnn_raw::backend::cuda::backend::CudaBackend;
use mtdnn_raw::backend::cuda::device::Device;
use mtdnn_raw::backend::cuda::images::Tools;
use mtdnn_raw::backend::cuda::launch::Kernels;
use mtdnn_raw::backend::cuda::nvrtc::roots;
use mtdnn_raw::backend::{Backend, BackendError, Group, KEPT, Optimizer, Rule, Sizes, StepScalars};
use mtdnn_raw::data::Batch;
use mtdnn_raw::nn::{BertConfig, HiddenAct, extents};
use mtdnn_raw::random::Random;
use mtdnn_raw::tensor::{DType, Extents, Mode, Precision, Program, Rows, Space, Span, Tape};
use steps::{Fixture, PretrainingFixture, TASKS, config};

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];
const SPACES: [Space; 4] = [Space::Parameters, Space::Gradients, Space::FirstMoment, Space::SecondMoment];

/// The GPU, which one test has at a time: some fill its memory.
struct Gpu {
    /// Keeps the driver's context until the test is over.
    device: Device,
    _turn: MutexGuard<'static, ()>,
}

impl Gpu {
    /// This test's turn; none where there is no GPU.
    fn take() -> Option<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        // One that failed leaves nothing behind.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        match Device::new(0, Kernels::Portable, &tools()) {
            Ok(device) => Some(Self { device, _turn: turn }),
            Err(error) => {
                let required = std::env::var("MTDNN_REQUIRE_GPU").is_ok_and(|value| value == "1");
                assert!(!required, "{error}");
                eprintln!("skipped: {error}");
                None
            }
        }
    }

    /// One with Hopper's own kernels, in bf16; none where the card is no Hopper.
    fn hopper(&self) -> Option<CudaBackend> {
        match Device::new(0, Kernels::Hopper, &tools()) {
            Ok(device) => Some(CudaBackend::new(device, Precision::Bf16).unwrap()),
            Err(error) => {
                assert!(!self.device.images().arch.is_hopper(), "{error}");
                eprintln!("skipped: {error}");
                None
            }
        }
    }

    fn backend(&self, precision: Precision) -> CudaBackend {
        CudaBackend::new(Device::new(0, Kernels::Portable, &tools()).unwrap(), precision).unwrap()
    }
}

/// A compiler, where one is found, for a program that holds no kernels, and a place to keep what it makes.
fn tools() -> Tools {
    let ours = [Path::new(env!("CARGO_MANIFEST_DIR")).join(".cuda")];
    let kept = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    Tools::new(roots(&ours, |name| std::env::var_os(name)), kept.is_dir().then(|| kept.join("kernels")))
}

/// Numbers in [-scale, scale).
fn numbers(seed: u64, scale: f32, len: usize) -> Vec<f32> {
    let mut random = Random::new(seed, [0, 0]);
    (0..len).map(|_| scale * (random.word() as f32 / (1u64 << 31) as f32 - 1.0)).collect()
}

fn write(backend: &mut dyn Backend, span: Span, values: &[f32]) {
    backend.write(span, bytemuck::cast_slice(values)).unwrap();
}

fn read(backend: &mut dyn Backend, span: Span) -> Vec<f32> {
    let mut values = vec![0.0; span.len];
    backend.read(span, bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The norm of the difference divided by that of what was expected.
fn error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f64| x * x;
    let off: f64 = found.iter().zip(expected).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    (off / expected.iter().map(|&b| square(f64::from(b))).sum::<f64>()).sqrt()
}

/// All parameters as one group.
fn whole(len: usize, update: u64) -> Group {
    Group { range: 0..len, learning_rate: 1e-3, weight_decay: 0.01, update, zero_gradient: false }
}

/// Batches of other sizes than that of all examples, the last a small one.
fn parts(fixture: &Fixture) -> Vec<Batch> {
    let all = fixture.batch.examples() as u32;
    let mut parts = vec![fixture.batch.clone(), fixture.part(&[0]), fixture.part(&[all - 1, 0])];
    parts.extend([fixture.batch.clone(), fixture.part(&[all - 1])]);
    parts
}

/// The list that `tests/ops.rs` holds the CPU to.
#[test]
fn every_case_agrees_with_the_cpu() {
    let Some(gpu) = Gpu::take() else { return };
    for precision in PRECISIONS {
        cases::assert_cases_agree(&mut gpu.backend(precision));
    }
}

#[test]
fn every_operation_agrees_with_the_cpu() {
    let Some(gpu) = Gpu::take() else { return };
    for (precision, heads, act) in [
        (Precision::F32, 4, HiddenAct::GeluNew),
        (Precision::Bf16, 4, HiddenAct::GeluNew),
        (Precision::Bf16, 2, HiddenAct::Gelu),
        (Precision::Bf16, 1, HiddenAct::Relu),
    ] {
        for task in 0..TASKS {
            Fixture::new(act, heads, task, 128).assert_operations_agree(&mut gpu.backend(precision));
        }
    }
}

#[test]
fn whole_steps_agree_with_the_cpu() {
    let Some(gpu) = Gpu::take() else { return };
    for precision in PRECISIONS {
        for task in 0..TASKS {
            let fixture = Fixture::new(HiddenAct::Gelu, 2, task, 128);
            fixture.assert_steps_agree(&mut gpu.backend(precision), &[&fixture.batch; 3]);
        }
    }
}

#[test]
fn pretraining_agrees_with_the_cpu() {
    let Some(gpu) = Gpu::take() else { return };
    for precision in PRECISIONS {
        let fixture = PretrainingFixture::new(HiddenAct::Gelu, 2, 128);
        fixture.assert_operations_agree(&mut gpu.backend(precision));
        fixture.assert_steps_agree(&mut gpu.backend(precision));
    }
}

#[test]
fn one_program_takes_batches_of_any_size() {
    let Some(gpu) = Gpu::take() else { return };
    // In f32: the loss of a single example in bf16 is too rough to tell a wrong size by.
    for task in 0..TASKS {
        let fixture = Fixture::new(HiddenAct::Gelu, 2, task, 128);
        let parts = parts(&fixture);
        fixture.assert_steps_agree(&mut gpu.backend(Precision::F32), &parts.iter().collect::<Vec<_>>());
    }
}

#[test]
fn the_same_run_gives_the_same_bits_with_graphs_and_without() {
    let Some(gpu) = Gpu::take() else { return };
    for precision in PRECISIONS {
        for task in 0..TASKS {
            let fixture = Fixture::new(HiddenAct::Gelu, 2, task, 128);
            let parts = parts(&fixture);
            let run = |mut backend: CudaBackend| {
                let batches: Vec<&Batch> = parts.iter().collect();
                let (losses, parameters) = fixture.train(&mut backend, Rule::Adamax, &batches);
                (bits(&losses), bits(&parameters))
            };
            let first = run(gpu.backend(precision));
            assert!(run(gpu.backend(precision)) == first, "{precision:?}, task {task}: another run");
            let plain = run(gpu.backend(precision).without_graphs());
            assert!(plain == first, "{precision:?}, task {task}: without graphs");
        }
    }
}

#[test]
fn buffers_hold_what_is_written() {
    let Some(gpu) = Gpu::take() else { return };
    let mut backend = gpu.backend(Precision::Bf16);
    // More than the staging memory takes at once, and no multiple of anything.
    let len = (3 << 20) + 7;
    backend.reserve(&Sizes { parameters: len, arena: 64, training: true }).unwrap();
    for space in SPACES {
        let span = Span { space, offset: 0, len };
        assert!(read(&mut backend, span).iter().all(|x| x.to_bits() == 0), "{space:?} begins with zeros");
    }
    let mut expected = numbers(1, 1.0, len);
    let all = Span { space: Space::Parameters, offset: 0, len };
    write(&mut backend, all, &expected);
    // Small pieces, several times the staging memory in all: each half waits for what was sent from it before.
    let piece = 5000;
    for round in 0..3 {
        let values = numbers(2 + round, 1.0, len);
        for offset in (0..len).step_by(piece) {
            let part = offset..len.min(offset + piece);
            let span = Span { space: Space::Parameters, offset, len: part.len() };
            write(&mut backend, span, &values[part]);
        }
        expected = values;
    }
    assert!(bits(&read(&mut backend, all)) == bits(&expected), "written in pieces");
    let part = Span { space: Space::Parameters, offset: 1001, len: 70_003 };
    assert!(read(&mut backend, part) == expected[part.range()], "a part");
    backend.clear(part).unwrap();
    expected[part.range()].fill(0.0);
    assert!(read(&mut backend, all) == expected, "a part cleared");
    for space in &SPACES[1..] {
        let span = Span { space: *space, offset: 0, len };
        assert!(read(&mut backend, span).iter().all(|x| *x == 0.0), "{space:?} was not written");
    }
}

/// Hopper's own kernels, on one: batches within lines and across them in turn, and the same bits without graphs.
#[test]
fn kernels_for_hopper_agree_with_the_cpu() {
    let Some(gpu) = Gpu::take() else { return };
    let Some(mut hopper) = gpu.hopper() else { return };
    let another = || gpu.hopper().unwrap();
    for heads in [1, 2] {
        let config = config(HiddenAct::Gelu, heads);
        let within = Fixture::of_lengths(&config, &[128, 1, 70, 30, 90]);
        within.assert_operations_agree(&mut hopper);
        let across = Fixture::of_lengths(&config, &[128, 1, 70, 30, 90, 130]);
        let batches = [&within.batch, &across.batch, &within.batch];
        assert_eq!(batches.map(|batch| extents(batch).in_lines), [true, false, true]);
        across.assert_steps_agree(&mut another(), &batches);
        let train = |mut backend: CudaBackend| {
            let (losses, parameters) = across.train(&mut backend, Rule::Adamax, &batches);
            (bits(&losses), bits(&parameters))
        };
        let replayed = train(another());
        assert!(train(another()) == replayed, "the same steps twice");
        assert!(train(another().without_graphs()) == replayed, "kernel by kernel");
    }
}

#[test]
fn parameters_outlive_a_growing_arena() {
    let Some(gpu) = Gpu::take() else { return };
    for precision in PRECISIONS {
        let fixture = Fixture::new(HiddenAct::Gelu, 2, 0, 128);
        let recorded = fixture.recorded(precision);
        let mut backend = gpu.backend(precision);
        fixture.ready(&mut backend, &recorded);
        let extents = extents(&fixture.batch);
        let step = |backend: &mut CudaBackend| {
            recorded.write(backend, &fixture.batch).unwrap();
            backend.run(&recorded.program, &StepScalars { extents, seed: 3, step: 1 }).unwrap();
            let span = recorded.program.span(recorded.outputs[0], &extents);
            bits(&read(backend, span))
        };
        let loss = step(&mut backend);
        let len = fixture.parameters.len();
        let arena = recorded.program.arena_len();
        let moments = numbers(4, 1.0, len);
        let span = Span { space: Space::SecondMoment, offset: 0, len };
        write(&mut backend, span, &moments);
        backend.reserve(&Sizes { parameters: len, arena: 3 * arena, training: true }).unwrap();
        assert!(read(&mut backend, fixture.whole()) == fixture.parameters, "parameters");
        assert!(read(&mut backend, span) == moments, "moments");
        assert_eq!(step(&mut backend), loss, "{precision:?}: the same step in another place");
        // Parameters that are written after a step reach the copy that products read.
        write(&mut backend, fixture.whole(), &vec![0.01; len]);
        assert_ne!(step(&mut backend), loss);
        write(&mut backend, fixture.whole(), &fixture.parameters);
        assert_eq!(step(&mut backend), loss, "{precision:?}: the same parameters again");
    }
}

#[test]
fn a_norm_that_is_not_finite_changes_nothing() {
    let Some(gpu) = Gpu::take() else { return };
    let len = 100_003;
    for rule in Rule::ALL {
        for clip in [0.0, 1.0] {
            let mut backend = gpu.backend(Precision::Bf16);
            backend.reserve(&Sizes { parameters: len, arena: 16, training: true }).unwrap();
            for wrong in [f32::INFINITY, f32::NAN] {
                let before = SPACES.map(|space| {
                    let mut values = numbers(space as u64, 1.0, len);
                    match space {
                        Space::Gradients => values[len / 2] = wrong,
                        Space::SecondMoment => values.iter_mut().for_each(|value| *value = value.abs()),
                        _ => {}
                    }
                    write(&mut backend, Span { space, offset: 0, len }, &values);
                    bits(&values)
                });
                let norm = backend.update(&Optimizer::new(rule), clip, &[whole(len, 1)]).unwrap();
                assert!(!backend.number(norm).unwrap().is_finite(), "{rule:?}");
                for (space, before) in SPACES.iter().zip(before) {
                    let after = read(&mut backend, Span { space: *space, offset: 0, len });
                    assert!(bits(&after) == before, "{rule:?}, clip {clip}: {space:?} after {wrong}");
                }
            }
        }
    }
}

#[test]
fn too_large_a_plan_is_an_error_that_names_bytes() {
    let Some(gpu) = Gpu::take() else { return };
    let mut backend = gpu.backend(Precision::F32);
    let (len, offset) = (1000, 0);
    let small = Sizes { parameters: len, arena: 16, training: true };
    backend.reserve(&small).unwrap();
    let span = Span { space: Space::Parameters, offset, len };
    let values = numbers(1, 1.0, len);
    write(&mut backend, span, &values);
    let free = gpu.device.free_memory().unwrap();
    let error = backend.reserve(&Sizes { arena: (free + (1 << 30)) / 4, ..small }).unwrap_err();
    let message = error.to_string();
    let BackendError::OutOfMemory { bytes, available: Some(available) } = error else { panic!("{message}") };
    assert!(bytes > free && available < bytes, "{message}");
    assert!(message.contains(&bytes.to_string()) && message.contains("--batch-size"), "{message}");
    // What there was is still there.
    assert!(read(&mut backend, span) == values);
    backend.reserve(&Sizes { arena: 1 << 20, ..small }).unwrap();
    assert!(read(&mut backend, span) == values);
}

#[test]
fn numbers_arrive_in_order() {
    let Some(gpu) = Gpu::take() else { return };
    let mut backend = gpu.backend(Precision::F32);
    backend.reserve(&Sizes { parameters: 16, arena: 64, training: false }).unwrap();
    let span = Span { space: Space::Arena, offset: 5, len: 1 };
    for lag in [1, 2, 100, KEPT] {
        let mut waiting = VecDeque::new();
        for number in 0..3 * KEPT as u32 {
            write(&mut backend, span, &[number as f32]);
            waiting.push_back((number, backend.keep(span).unwrap()));
            if waiting.len() == lag {
                let (number, ticket) = waiting.pop_front().unwrap();
                assert_eq!(backend.number(ticket).unwrap(), number as f32, "{lag} behind");
            }
        }
        for (number, ticket) in waiting {
            assert_eq!(backend.number(ticket).unwrap(), number as f32, "{lag} behind");
        }
    }
}

/// Every kernel at the sizes of BERT-base: 32 sequences of 128 tokens through two of its layers. The first has all rows
/// in each product, the second only the first tokens' behind the attention.
#[test]
fn operations_of_full_size_agree_with_the_cpu() {
    let Some(gpu) = Gpu::take() else { return };
    let config = BertConfig { num_hidden_layers: 2, ..BertConfig::default() };
    let fixture = Fixture::of_lengths(&config, &[128; 32]);
    for precision in PRECISIONS {
        fixture.assert_operations_agree(&mut gpu.backend(precision));
    }
}

/// The same by Hopper's own kernels: all tiles of products, several a block, and attention of heads of 64 and of 32
/// columns; then with rows and columns that fill no tile.
#[test]
fn operations_of_full_size_by_kernels_for_hopper_agree_with_the_cpu() {
    let Some(gpu) = Gpu::take() else { return };
    let Some(mut hopper) = gpu.hopper() else { return };
    let base = BertConfig { num_hidden_layers: 2, ..BertConfig::default() };
    let odd = BertConfig {
        hidden_size: 704,
        num_attention_heads: 22,
        intermediate_size: 3000,
        num_hidden_layers: 1,
        ..BertConfig::default()
    };
    for (config, lengths) in [(&base, vec![128; 32]), (&odd, [vec![128; 30], vec![70]].concat())] {
        Fixture::of_lengths(config, &lengths).assert_operations_agree(&mut hopper);
    }
}

#[test]
fn a_loss_over_a_vocabulary_agrees_with_the_cpu() {
    let Some(gpu) = Gpu::take() else { return };
    let (rows, classes) = (512, 30522);
    // Logits as parameters, so that there is a gradient to compare.
    let mut tape = Tape::new(Mode::Training);
    let logits = tape.parameter("logits", 0, rows, classes);
    let labels = tape.input("labels", DType::U32, Rows::Fixed(rows), 1);
    let loss = tape.cross_entropy(logits, labels);
    let extents = Extents { tokens: 128, sequences: 1, groups: 1, predictions: 0, in_lines: false };
    let program = Program::training(tape, &[loss], 1.0, false, extents);
    let values = numbers(1, 8.0, rows * classes);
    let mut random = Random::new(2, [0, 0]);
    let classes_of_rows: Vec<u32> = (0..rows).map(|_| random.below(classes as u32)).collect();
    let run = |backend: &mut dyn Backend| {
        let len = values.len();
        backend.reserve(&Sizes { parameters: len, arena: program.arena_len(), training: true }).unwrap();
        write(backend, Span { space: Space::Parameters, offset: 0, len }, &values);
        backend.write(program.span(labels, &extents), bytemuck::cast_slice(&classes_of_rows)).unwrap();
        backend.run(&program, &StepScalars { extents, seed: 1, step: 0 }).unwrap();
        let loss = read(backend, program.span(loss, &extents));
        (loss, read(backend, Span { space: Space::Gradients, offset: 0, len }))
    };
    let (expected_loss, expected) = run(&mut CpuBackend::new());
    let (loss, gradient) = run(&mut gpu.backend(Precision::F32));
    assert!(error(&loss, &expected_loss) < 1e-5, "{loss:?} instead of {expected_loss:?}");
    assert!(error(&gradient, &expected) < 1e-5, "the gradient is {:.1e} off", error(&gradient, &expected));
}

#[test]
fn updates_of_many_parameters_agree_with_the_cpu() {
    let Some(gpu) = Gpu::take() else { return };
    let len = 2_000_003;
    let state = SPACES.map(|space| {
        let scale = if space == Space::Gradients { 1e-3 } else { 0.05 };
        let values = numbers(space as u64, scale, len);
        if space == Space::SecondMoment { values.iter().map(|value| value.abs()).collect() } else { values }
    });
    for rule in [Rule::Adamax, Rule::AdamW, Rule::AdamBert, Rule::Lamb] {
        let run = |backend: &mut dyn Backend| {
            backend.reserve(&Sizes { parameters: len, arena: 16, training: true }).unwrap();
            for (space, values) in SPACES.into_iter().zip(&state) {
                write(backend, Span { space, offset: 0, len }, values);
            }
            let norms = [5, 6].map(|number| {
                let norm = backend.update(&Optimizer::new(rule), 1.0, &[whole(len, number)]).unwrap();
                backend.number(norm).unwrap()
            });
            (norms, SPACES.map(|space| read(backend, Span { space, offset: 0, len })))
        };
        let (expected_norms, expected) = run(&mut CpuBackend::new());
        let (norms, found) = run(&mut gpu.backend(Precision::Bf16));
        assert!(error(&norms, &expected_norms) < 1e-6, "{norms:?} instead of {expected_norms:?}");
        for ((space, found), expected) in SPACES.iter().zip(&found).zip(&expected) {
            let off = error(found, expected);
            assert!(off < 1e-6, "{rule:?}: {space:?} is {off:.1e} off");
        }
    }
}
