//! Kernels through the host emulation. Here: that the emulation computes what a device would, and finds each fault.
#![cfg(feature = "cuda")]

#[path = "kernels/attention.rs"]
mod attention;
#[path = "common/cases.rs"]
mod cases;
#[path = "kernels/elementwise.rs"]
mod elementwise;
#[path = "kernels/embedding.rs"]
mod embedding;
mod emulation;
#[path = "kernels/gemm.rs"]
mod gemm;
#[path = "kernels/hopper.rs"]
mod hopper;
#[path = "kernels/hopper_gemm.rs"]
mod hopper_gemm;
#[path = "kernels/loss.rs"]
mod loss;
#[path = "kernels/norm.rs"]
mod norm;
#[path = "kernels/programs.rs"]
mod programs;
#[path = "common/steps.rs"]
mod steps;
#[path = "kernels/support.rs"]
mod support;
#[path = "kernels/update.rs"]
mod update;
#[path = "kernels/vocabulary.rs"]
mod vocabulary;

use bytemuck::{Pod, Zeroable};
use emulation::{Emulation, Memory, Order};
use half::bf16;
use mtdnn_raw::backend::cuda::launch::{Address, Launch, Step};
use mtdnn_raw::random::{Random, philox4x32_10};
use mtdnn_raw::tensor::DType;

/// The twin of `Selftest` in `tests/emulation/selftest.cu`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Selftest {
    a: Address,
    b: Address,
    out: Address,
    step: Address,
    count: u32,
    unused: u32,
}

/// One block of 32 threads with 1024 bytes of shared memory.
fn one_warp(kernel: &'static str, arguments: Selftest) -> Launch {
    Launch::new(kernel, [1, 1, 1], 32, 1024, &arguments)
}

/// One block of two warps.
fn two_warps(kernel: &'static str, arguments: Selftest) -> Launch {
    Launch::new(kernel, [1, 1, 1], 64, 1024, &arguments)
}

/// Numbers with few enough bits that bf16 has them and sums of products are exact.
fn small_numbers(random: &mut Random, len: usize) -> Vec<f32> {
    (0..len).map(|_| (random.below(33) as f32 - 16.0) / 8.0).collect()
}

/// What the emulation says of a faulty kernel.
fn fault(emulation: &Emulation, memory: &Memory, launch: Launch) -> String {
    let name = launch.kernel;
    emulation.run(memory, &[launch]).expect_err(name)
}

/// Fails unless the message has all the parts.
fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

#[test]
fn blocks_and_threads_have_their_places() {
    let Some(emulation) = Emulation::get() else { return };
    let mut memory = Memory::new();
    let values: Vec<u32> = (0..3 * 2 * 2 * 64).collect();
    let a = memory.words("a", &values);
    let out = memory.poison("out", DType::U32, values.len());
    let arguments = Selftest { a, out, ..Selftest::default() };
    let launch = Launch::new("reverse_blocks", [3, 2, 2], 64, 256, &arguments);
    emulation.run(&memory, &[launch]).unwrap();
    let backwards: Vec<u32> = values.chunks(64).flat_map(|block| block.iter().rev().copied()).collect();
    assert_eq!(memory.read_words(out), backwards);
}

#[test]
fn lanes_exchange_values() {
    let Some(emulation) = Emulation::get() else { return };
    let mut memory = Memory::new();
    let values = small_numbers(&mut Random::new(1, [0, 0]), 64);
    let a = memory.floats("a", DType::F32, &values);
    let out = memory.poison("out", DType::F32, 64 * 6);
    let launch = two_warps("shuffles", Selftest { a, out, ..Selftest::default() });
    emulation.run(&memory, &[launch]).unwrap();
    for (thread, got) in memory.read_floats(out).chunks(6).enumerate() {
        let warp = &values[thread / 32 * 32..][..32];
        let (sum, most) = (warp.iter().sum(), warp.iter().copied().fold(f32::MIN, f32::max));
        let further = warp[(thread + 3) % 32];
        assert_eq!(got, [sum, most, sum, warp[5], further, further], "thread {thread}");
    }
}

#[test]
fn matrices_are_multiplied() {
    let Some(emulation) = Emulation::get() else { return };
    let mut random = Random::new(2, [0, 0]);
    let (left, right) = (small_numbers(&mut random, 16 * 16), small_numbers(&mut random, 16 * 8));
    let transposed: Vec<f32> = (0..8 * 16).map(|at| right[at % 16 * 8 + at / 16]).collect();
    let product: Vec<f32> =
        (0..16 * 8).map(|at| (0..16).map(|k| left[at / 8 * 16 + k] * right[k * 8 + at % 8]).sum()).collect();
    for (kernel, right) in [("multiply_plain", &right), ("multiply_transposed", &transposed)] {
        let mut memory = Memory::new();
        let a = memory.floats("a", DType::Bf16, &left);
        let b = memory.floats("b", DType::Bf16, right);
        let out = memory.poison("out", DType::F32, 16 * 8);
        let launch = one_warp(kernel, Selftest { a, b, out, ..Selftest::default() });
        emulation.run(&memory, &[launch]).unwrap();
        assert_eq!(memory.read_floats(out), product, "{kernel}");
    }
}

#[test]
fn lanes_get_their_parts_of_matrices() {
    let Some(emulation) = Emulation::get() else { return };
    let mut memory = Memory::new();
    let values: Vec<u16> = (0..4 * 8 * 8).collect();
    let a = memory.words("a", bytemuck::cast_slice(&values));
    let out = memory.poison("out", DType::U32, 32 * 4);
    for (kernel, transposed) in [("fetch_plain", false), ("fetch_transposed", true)] {
        let launch = one_warp(kernel, Selftest { a, out, ..Selftest::default() });
        emulation.run(&memory, &[launch]).unwrap();
        let element = |matrix: usize, row: usize, column: usize| {
            let (row, column) = if transposed { (column, row) } else { (row, column) };
            u32::from(values[(matrix * 8 + row) * 8 + column])
        };
        for (at, got) in memory.read_words(out).into_iter().enumerate() {
            let (lane, matrix) = (at / 4, at % 4);
            let (row, column) = (lane / 4, lane % 4 * 2);
            let expected = element(matrix, row, column) | element(matrix, row, column + 1) << 16;
            assert_eq!(got, expected, "{kernel}: lane {lane}, matrix {matrix}");
        }
    }
}

#[test]
fn draws_are_those_of_the_processor() {
    let Some(emulation) = Emulation::get() else { return };
    let mut memory = Memory::new();
    let (seed, row) = ([0x0123_4567, 0x89ab_cdef], 0x0007_0009);
    let step = Step { tokens: 1, step: 11, seed, ..Step::default() };
    let step = memory.words("step", bytemuck::cast_slice(&[step]));
    let out = memory.poison("out", DType::U32, 32 * 4);
    let launch = one_warp("draws", Selftest { out, step, count: row, ..Selftest::default() });
    emulation.run(&memory, &[launch]).unwrap();
    for (block, got) in memory.read_words(out).chunks(4).enumerate() {
        assert_eq!(got, philox4x32_10([block as u32, row, 5 << 8 | 3, 11], seed), "block {block}");
    }
}

#[test]
fn numbers_are_rounded_to_bf16() {
    let Some(emulation) = Emulation::get() else { return };
    let mut random = Random::new(3, [0, 0]);
    let mut bits: Vec<u32> = (0..100_000).map(|_| random.word()).collect();
    // Ties and their neighbours at every exponent, to even and odd; zeros, infinities and NaN among them.
    for upper in (0..=u16::MAX).step_by(64).flat_map(|upper| [upper, upper | 1, upper | 63]) {
        bits.extend([0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|lower| u32::from(upper) << 16 | lower));
    }
    let mut memory = Memory::new();
    let a = memory.words("a", &bits);
    let out = memory.poison("out", DType::U32, bits.len());
    let arguments = Selftest { a, out, count: bits.len() as u32, ..Selftest::default() };
    emulation.run(&memory, &[Launch::new("roundings", [1, 1, 1], 256, 0, &arguments)]).unwrap();
    for (bits, got) in bits.into_iter().zip(memory.read_words(out)) {
        let value = f32::from_bits(bits);
        // The device knows one NaN.
        let expected = if value.is_nan() { 0x7fff } else { u32::from(bf16::from_f32(value).to_bits()) };
        assert_eq!(got, expected << 16 | expected, "{value:e} ({bits:#x})");
    }
}

#[test]
fn powers_of_two_underflow_to_zero() {
    let Some(emulation) = Emulation::get() else { return };
    let values = [0.0, 1.0, -1.0, 0.5, -126.0, -126.5, -149.0, f32::NEG_INFINITY, 128.0];
    let expected = [1.0, 2.0, 0.5, 2f32.sqrt(), f32::MIN_POSITIVE, 0.0, 0.0, 0.0, f32::INFINITY];
    let mut memory = Memory::new();
    let a = memory.floats("a", DType::F32, &values);
    let out = memory.poison("out", DType::F32, values.len());
    let launch = one_warp("powers", Selftest { a, out, count: values.len() as u32, ..Selftest::default() });
    emulation.run(&memory, &[launch]).unwrap();
    for (got, expected) in memory.read_floats(out).into_iter().zip(expected) {
        assert!(got == expected || (got / expected - 1.0).abs() < 1e-6, "{got} for {expected}");
    }
}

#[test]
fn copies_land_when_they_are_waited_for() {
    let Some(emulation) = Emulation::get() else { return };
    let values: Vec<u32> = (1..=64 * 4).collect();
    // Of 64 packs the second half is cut off after the 40th; the source ends there.
    let mut memory = Memory::new();
    let a = memory.words("a", &values[..40 * 4]);
    let out = memory.poison("out", DType::U32, 64 * 4);
    let arguments = Selftest { a, out, count: 40, ..Selftest::default() };
    emulation.run(&memory, &[one_warp("copies", arguments)]).unwrap();
    let mut expected = values.clone();
    expected[40 * 4..].fill(0);
    assert_eq!(memory.read_words(out), expected);

    // Left to land on their own, the second half is not there.
    emulation.run(&memory, &[one_warp("copy_without_wait", arguments)]).unwrap();
    expected[32 * 4..].fill(u32::MAX);
    assert_eq!(memory.read_words(out), expected);

    // A copy may land at once, so that what was there is lost.
    emulation.run(&memory, &[one_warp("copy_too_early", arguments)]).unwrap();
    assert_eq!(memory.read_words(out)[..32 * 4], [u32::MAX; 32 * 4]);
}

#[test]
fn unwritten_memory_is_not_a_number() {
    let Some(emulation) = Emulation::get() else { return };
    let mut memory = Memory::new();
    let out = memory.poison("out", DType::F32, 33);
    let launch = one_warp("read_fresh_shared", Selftest { out, ..Selftest::default() });
    emulation.run(&memory, &[launch]).unwrap();
    assert!(memory.read_floats(out).iter().all(|value| value.is_nan()));
    let half = memory.poison("half", DType::Bf16, 3);
    assert!(memory.read_floats(half).iter().all(|value| value.is_nan()));
}

#[test]
fn a_missing_barrier_is_found() {
    let Some(emulation) = Emulation::get() else { return };
    let mut memory = Memory::new();
    let a = memory.words("a", &(0..64).collect::<Vec<u32>>());
    let out = memory.poison("out", DType::U32, 64);
    let arguments = Selftest { a, out, ..Selftest::default() };
    for launch in [
        two_warps("without_block_barrier", arguments),
        two_warps("without_second_barrier", arguments),
        one_warp("without_warp_barrier", arguments),
        Launch { grid: [5, 1, 1], ..one_warp("across_blocks", arguments) },
    ] {
        let kernel = launch.kernel;
        assert_says(&fault(emulation, &memory, launch), &[kernel, "out[", "depends on the order of threads"]);
    }
}

#[test]
fn every_order_alone_can_be_run() {
    let Some(emulation) = Emulation::get() else { return };
    let mut memory = Memory::new();
    let a = memory.words("a", &(0..64).collect::<Vec<u32>>());
    let out = memory.poison("out", DType::U32, 64);
    let launch = two_warps("without_block_barrier", Selftest { a, out, ..Selftest::default() });
    let run = |launch: &Launch, order| {
        memory.write(out, &[u32::MAX; 64]);
        emulation.run_in(order, &memory, std::slice::from_ref(launch)).unwrap();
        memory.read_words(out)
    };
    let outs = [Order::Ascending, Order::Descending].map(|order| run(&launch, order));
    // Thread `t` finds the value `63 - t` if that thread was before it.
    assert!((0..64).all(|thread| (outs[0][thread] == u32::MAX) == (thread < 32)));
    assert!((0..64).all(|thread| (outs[1][thread] == u32::MAX) == (thread >= 32)));
    // Lanes that read what their neighbours write have more orders than two.
    let launch = Launch { kernel: "without_warp_barrier", threads: 32, ..launch };
    let orders = [Order::Ascending, Order::Descending, Order::Random(7), Order::Random(8)];
    let mut outs = orders.map(|order| run(&launch, order)).to_vec();
    outs.sort();
    outs.dedup();
    assert_eq!(outs.len(), orders.len());
    // Blocks 0 to 4 write the digits of a number to the base 3, the first one first or last.
    let arguments = Selftest { out, ..Selftest::default() };
    let launch = Launch { grid: [5, 1, 1], ..one_warp("across_blocks", arguments) };
    for (order, number) in [(Order::Ascending, 58), (Order::Descending, 426)] {
        memory.write(out, &[0]);
        emulation.run_in(order, &memory, std::slice::from_ref(&launch)).unwrap();
        assert_eq!(memory.read::<u32>(out, 1), [number], "{order:?}");
    }
}

#[test]
fn every_order_starts_from_the_same_memory() {
    let Some(emulation) = Emulation::get() else { return };
    let mut memory = Memory::new();
    let out = memory.words("out", &[5]);
    let launch = one_warp("across_blocks", Selftest { out, ..Selftest::default() });
    emulation.run(&memory, &[launch.clone(), launch]).unwrap();
    assert_eq!(memory.read_words(out), [5 * 3 * 3]);
}

#[test]
fn threads_that_do_not_come_are_found() {
    let Some(emulation) = Emulation::get() else { return };
    let mut memory = Memory::new();
    let out = memory.poison("out", DType::U32, 64);
    let arguments = Selftest { out, count: 20, ..Selftest::default() };
    let message = fault(emulation, &memory, two_warps("early_return", arguments));
    assert_says(&message, &["early_return, block (0, 0, 0)", "threads 0 to 19 ended"]);
    assert_says(&message, &["threads 20 to 63 at sync_block"]);
    let message = fault(emulation, &memory, two_warps("barriers_of_two_kinds", arguments));
    assert_says(&message, &["threads 0 to 19 at sync_block", "threads 20 to 31 at sync_warp"]);
    let message = fault(emulation, &memory, one_warp("shuffle_of_some", arguments));
    assert_says(&message, &["threads 0 to 19 at shuffle", "thread 20 ended", "threads 21 to 31 at shuffle"]);
    let message = fault(emulation, &memory, one_warp("two_operations", arguments));
    assert_says(
        &message,
        &["thread 20: comes to sync_warp while other lanes of its warp wait at multiply_add"],
    );
    let beyond = Selftest { count: 32, ..arguments };
    let message = fault(emulation, &memory, one_warp("shuffle_from_beyond", beyond));
    assert_says(&message, &["thread 0: shuffles from lane 32"]);
    // After a failure all is well again.
    let whole = Selftest { count: 32, ..arguments };
    emulation.run(&memory, &[one_warp("shuffle_of_some", whole), one_warp("two_operations", whole)]).unwrap();
    emulation.run(&memory, &[one_warp("shuffle_from_beyond", arguments)]).unwrap();
    emulation.run(&memory, &[two_warps("early_return", Selftest { count: 64, ..arguments })]).unwrap();
    emulation.run(&memory, &[two_warps("early_return", Selftest { count: 0, ..arguments })]).unwrap();
}

#[test]
fn accesses_beyond_operands_are_found() {
    let Some(emulation) = Emulation::get() else { return };
    let mut memory = Memory::new();
    let a = memory.words("a", &[0; 32]);
    let odd = memory.parameter("odd", DType::F32, &[0.0; 33]);
    let out = memory.poison("out", DType::U32, 40);
    let reading = Selftest { a, out, count: 32, ..Selftest::default() };
    let message = fault(emulation, &memory, one_warp("read_beyond", reading));
    assert_says(
        &message,
        &["kernel read_beyond, block (0, 0, 0), thread 0: reads", "byte 128 of a, which has 128"],
    );
    // A parameter ends at the guard, too, wherever it starts.
    let message =
        fault(emulation, &memory, one_warp("read_beyond", Selftest { a: odd, count: 33, ..reading }));
    assert_says(&message, &["byte 132 of odd, which has 132"]);
    // 160 bytes end at the guard less 32, since values start at multiples of 64.
    let writing = |count| one_warp("write_beyond", Selftest { out, count, ..Selftest::default() });
    assert_says(&fault(emulation, &memory, writing(40)), &["write_beyond: something beside out was written"]);
    // A buffer that was damaged once stays so.
    let mut memory = Memory::new();
    let out = memory.poison("out", DType::U32, 40);
    let before = one_warp("write_beyond", Selftest { out, count: u32::MAX, ..Selftest::default() });
    assert_says(&fault(emulation, &memory, before), &["write_beyond: something beside out was written"]);
    let message = fault(emulation, &Memory::new(), writing(48));
    assert_says(&message, &["thread 0: writes address"]);
}

#[test]
fn accesses_beyond_shared_memory_are_found() {
    let Some(emulation) = Emulation::get() else { return };
    let mut memory = Memory::new();
    let out = memory.poison("out", DType::U32, 32);
    let launch = |kernel, shared, count| {
        Launch::new(kernel, [1, 1, 1], 32, shared, &Selftest { out, count, ..Selftest::default() })
    };
    emulation.run(&memory, &[launch("write_beyond_shared", 1024, 255)]).unwrap();
    emulation.run(&memory, &[launch("read_beyond_shared", 227 * 1024, 227 * 256 - 1)]).unwrap();
    let message = fault(emulation, &memory, launch("write_beyond_shared", 1024, 256));
    assert_says(&message, &["thread 0: writes byte 1024 of shared memory, which has 1024"]);
    let message = fault(emulation, &memory, launch("read_beyond_shared", 0, 0));
    assert_says(&message, &["thread 0: reads byte 0 of shared memory, which has 0"]);
    // A start at a multiple of 128 leaves a gap behind.
    let message = fault(emulation, &memory, launch("write_beyond_shared", 1000, 250));
    assert_says(&message, &["something beside the 1000 bytes of shared memory was written"]);
    let message = fault(emulation, &memory, launch("write_before_shared", 1024, 1));
    assert_says(&message, &["something beside the 1024 bytes of shared memory was written"]);
    let message = fault(emulation, &memory, launch("write_before_shared", 1024, 2000));
    assert_says(&message, &["writes byte -8000 of shared memory"]);
}

#[test]
fn misplaced_copies_and_rows_are_found() {
    let Some(emulation) = Emulation::get() else { return };
    let mut memory = Memory::new();
    let a = memory.words("a", &[0; 64]);
    let out = memory.poison("out", DType::U32, 32);
    let says = |kernel, count, part| {
        let launch = one_warp(kernel, Selftest { a, out, count, ..Selftest::default() });
        assert_says(&fault(emulation, &memory, launch), &[part]);
    };
    says("copy_from_off", 8, "which is no multiple of 16");
    says("copy_from_off", 256, "byte 271 of a, which has 256");
    says("copy_to_off", 8, "copies to byte 8 of shared memory, which is no multiple of 16");
    says("copy_to_off", 1024, "copies to byte 1024 of shared memory, which has 1024");
    says(
        "matrices_from_off",
        4,
        "loads a matrix's row from byte 4 of shared memory, which is no multiple of 16",
    );
    says("matrices_from_off", 1016, "from byte 1016 of shared memory, which has 1024");
}

#[test]
fn undefined_behaviour_is_found() {
    let Some(emulation) = Emulation::get() else { return };
    let mut memory = Memory::new();
    let a = memory.words("a", &[4; 64]);
    let out = memory.poison("out", DType::U32, 32);
    let launch = |kernel, count| one_warp(kernel, Selftest { a, out, count, ..Selftest::default() });
    // Compilers differ in whether they ask first or leave it to the processor.
    let message = fault(emulation, &memory, launch("divide_by_zero", 4));
    assert!(
        message.contains("thread 0: divides by zero") || message.contains("thread 0: does what C++ leaves")
    );
    assert_says(&fault(emulation, &memory, launch("misaligned_pack", 8)), &["thread 0", "misaligned"]);
    let undefined = ["thread 0: does what C++ leaves undefined"];
    assert_says(&fault(emulation, &memory, launch("misaligned_word", 2)), &undefined);
    assert_says(&fault(emulation, &memory, launch("index_beyond_registers", 3)), &undefined);
    let message = fault(emulation, &memory, launch("deep_stack", 1000));
    assert_says(&message, &["thread 0: needs more than", "of stack"]);
    let good = [launch("divide_by_zero", 5), launch("misaligned_word", 4), launch("misaligned_pack", 16)];
    emulation.run(&memory, &good).unwrap();
    emulation.run(&memory, &[launch("deep_stack", 10)]).unwrap();
}

#[test]
fn launches_that_no_device_would_take_are_refused() {
    let Some(emulation) = Emulation::get() else { return };
    let memory = Memory::new();
    let good = one_warp("sync_nothing", Selftest::default());
    assert_says(&fault(emulation, &memory, good), &["there is no kernel sync_nothing"]);
    let good = one_warp("early_return", Selftest { count: 64, ..Selftest::default() });
    let says = |launch, part| assert_says(&fault(emulation, &memory, launch), &["early_return", part]);
    says(good.clone(), "made for another number of threads");
    let good = Launch { threads: 64, ..good };
    says(Launch { grid: [1, 0, 1], ..good.clone() }, "the grid is empty");
    says(Launch { grid: [1, 65536, 1], ..good.clone() }, "the grid is too large");
    says(Launch { shared: 227 * 1024 + 1, ..good.clone() }, "no block has so much shared memory");
    says(Launch { arguments: vec![0; 4], ..good.clone() }, "another size");
    emulation.run(&memory, &[good]).unwrap();
}

#[test]
fn several_tests_may_run_kernels_at_once() {
    let Some(emulation) = Emulation::get() else { return };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut memory = Memory::new();
                let a = memory.words("a", &(0..64).collect::<Vec<u32>>());
                let out = memory.poison("out", DType::U32, 64);
                let arguments = Selftest { a, out, count: 20, ..Selftest::default() };
                for _ in 0..20 {
                    emulation.run(&memory, &[two_warps("reverse_blocks", arguments)]).unwrap();
                    assert_eq!(memory.read_words(out), (0..64).rev().collect::<Vec<u32>>());
                    fault(emulation, &memory, two_warps("early_return", arguments));
                    let beyond = Selftest { count: 64, ..arguments };
                    fault(emulation, &memory, one_warp("read_beyond", beyond));
                }
            });
        }
    });
}
