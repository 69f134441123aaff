//! Hopper's part of the emulation: boxes, barriers and products are the device's, and faults are found.

use bytemuck::{Pod, Zeroable};
use half::bf16;
use mtdnn_raw::backend::cuda::launch::{Address, Launch, TensorMap};
use mtdnn_raw::random::Random;
use mtdnn_raw::tensor::DType;

use super::emulation::{Emulation, Memory};
use super::{assert_says, fault, small_numbers};

/// The twin of `BoxTest` in `tests/emulation/selftest_hopper.cu`, but for its maps.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct BoxTest {
    out: Address,
    count: u32,
    unused: u32,
}

/// Room for five boxes and a barrier.
const SHARED: usize = 5 * 8192 + 1024;

fn launch(kernel: &'static str, threads: u32, maps: [TensorMap; 2], out: Address, count: u32) -> Launch {
    let arguments = BoxTest { out, count, unused: 0 };
    Launch::new(kernel, [1, 1, 1], threads, SHARED, &arguments).with_maps(maps.to_vec())
}

fn map(address: Address, rows: usize, columns: usize, box_rows: u32) -> TensorMap {
    let (rows, columns) = (rows as u32, columns as u32);
    TensorMap { address, columns, rows, stride: columns.next_multiple_of(8), box_rows }
}

fn transposed(matrix: &[f32], columns: usize) -> Vec<f32> {
    let rows = matrix.len() / columns;
    (0..matrix.len()).map(|at| matrix[at % rows * columns + at / rows]).collect()
}

#[test]
fn products_of_boxes_are_those_of_their_matrices() {
    let Some(emulation) = Emulation::get() else { return };
    let mut random = Random::new(11, [0, 0]);
    for (kernel, columns, transpose_a, transpose_b) in [
        ("multiply_boxes_nt_64", 64, false, false),
        ("multiply_boxes_nt_192", 192, false, false),
        ("multiply_boxes_nn_128", 128, false, true),
        ("multiply_boxes_tn_256", 256, true, true),
        ("multiply_registers", 64, false, true),
    ] {
        // [64, depth] and [columns, depth]; beyond 60 of the depth and the last 8 lines there is nothing.
        let (rows, lines, depth) = (56, columns - 8, 60);
        let a = small_numbers(&mut random, rows * depth);
        let b = small_numbers(&mut random, lines * depth);
        let mut memory = Memory::new();
        let mut put = |name: &str, matrix: &[f32], lines: usize, transpose: bool, box_rows: u32| {
            let (rows, columns) = if transpose { (depth, lines) } else { (lines, depth) };
            let matrix = if transpose { transposed(matrix, depth) } else { matrix.to_vec() };
            // Rows are as far apart as a multiple of 16 bytes asks for, with NaN between.
            let stride = columns.next_multiple_of(8);
            let mut padded = vec![f32::NAN; rows * stride];
            for (to, from) in padded.chunks_mut(stride).zip(matrix.chunks(columns)) {
                to[..columns].copy_from_slice(from);
            }
            map(memory.floats(name, DType::Bf16, &padded), rows, columns, box_rows)
        };
        let of_b = if transpose_b { 64 } else { columns as u32 };
        let maps = [put("a", &a, rows, transpose_a, 64), put("b", &b, lines, transpose_b, of_b)];
        let out = memory.poison("out", DType::F32, 64 * columns);
        emulation.run(&memory, &[launch(kernel, 128, maps, out, 0)]).unwrap();
        let expected: Vec<f32> = (0..64 * columns)
            .map(|at| (at / columns, at % columns))
            .map(|(row, column)| match row < rows && column < lines {
                true => (0..depth).map(|k| a[row * depth + k] * b[column * depth + k]).sum(),
                false => 0.0,
            })
            .collect();
        assert_eq!(memory.read_floats(out), expected, "{kernel}");
    }
}

#[test]
fn boxes_are_cut_off_at_the_edges() {
    let Some(emulation) = Emulation::get() else { return };
    let mut memory = Memory::new();
    let (rows, columns, stride) = (9, 90, 96);
    let values = small_numbers(&mut Random::new(12, [0, 0]), rows * stride);
    let a = memory.floats("a", DType::Bf16, &values);
    let maps = [TensorMap { stride: stride as u32, ..map(a, rows, columns, 8) }; 2];
    let out = memory.poison("out", DType::F32, 8 * 64);
    emulation.run(&memory, &[launch("read_box", 32, maps, out, 0)]).unwrap();
    // 64 columns and 8 rows from (40, 3) on.
    let expected: Vec<f32> = (0..8 * 64)
        .map(|at| (at / 64 + 3, at % 64 + 40))
        .map(|(row, column)| if row < rows && column < columns { values[row * stride + column] } else { 0.0 })
        .collect();
    assert_eq!(memory.read_floats(out), expected);
}

#[test]
fn matrices_are_stored_as_they_are_fetched() {
    let Some(emulation) = Emulation::get() else { return };
    let mut memory = Memory::new();
    let a = memory.floats("a", DType::Bf16, &[0.0; 64]);
    let maps = [map(a, 1, 64, 1); 2];
    let out = memory.poison("out", DType::U32, 128);
    emulation.run(&memory, &[launch("store_and_fetch", 32, maps, out, 0)]).unwrap();
    // Lane `l` gave of matrix `i` the word `4 l + i`, whose upper half is 0.
    let given = |matrix: usize, row: usize, column: usize| match column % 2 {
        0 => (4 * (4 * row + column / 2) + matrix) as u32,
        _ => 0,
    };
    for (at, got) in memory.read_words(out).into_iter().enumerate() {
        let (lane, matrix) = (at / 4, at % 4);
        let (row, column) = (lane / 4, lane % 4 * 2);
        let expected = given(matrix, column, row) | given(matrix, column + 1, row) << 16;
        assert_eq!(got, expected, "lane {lane}, matrix {matrix}");
    }
}

#[test]
fn barriers_pass_a_number_to_and_fro() {
    let Some(emulation) = Emulation::get() else { return };
    let mut memory = Memory::new();
    let a = memory.floats("a", DType::Bf16, &[0.0; 64]);
    let out = memory.poison("out", DType::F32, 1);
    emulation.run(&memory, &[launch("pass_to_and_fro", 64, [map(a, 1, 64, 1); 2], out, 9)]).unwrap();
    assert_eq!(memory.read_floats(out), [9.0]);
}

#[test]
fn what_would_hang_or_be_undefined_on_hopper_is_found() {
    let Some(emulation) = Emulation::get() else { return };
    let mut memory = Memory::new();
    let a = memory.floats("a", DType::Bf16, &[1.0; 64 * 64]);
    let out = memory.poison("out", DType::F32, 64 * 64);
    let maps = [map(a, 64, 64, 64); 2];
    let says = |kernel, threads, count, parts: &[&str]| {
        let message = fault(emulation, &memory, launch(kernel, threads, maps, out, count));
        assert_says(&message, &[kernel]);
        assert_says(&message, parts);
    };
    says("wait_for_nobody", 32, 0, &["threads 0 to 31 at barrier_wait", "1 arrivals and 0 bytes missing"]);
    says("wait_for_nobody", 32, 8193, &["0 arrivals and 1 bytes missing"]);
    says("wait_for_nobody", 32, 8191, &["0 arrivals and -1 bytes missing"]);
    says("box_without_wait", 32, 128, &["copies a box to byte 128", "no multiple of 1024"]);
    says("box_without_wait", 32, SHARED as u32, &["copies a box to byte 41984 of shared memory"]);
    says("multiply_badly", 128, 1, &["without a wgmma_fence"]);
    says("multiply_badly", 128, 2, &["multiplies a matrix at byte 128 of shared memory, between atoms"]);
    says("multiply_badly", 128, 3, &["ends without waiting for products"]);
    says("multiply_badly", 128, 4, &["has written to sums under way"]);
    says("multiply_badly", 128, 5, &["threads 0 to 95 at wgmma_commit, where not all of the warpgroup are"]);
    says("more_registers", 384, 0, &["more registers than it was launched with"]);
    says(
        "too_few_at_a_barrier",
        128,
        0,
        &["at the barrier 3 (32 threads missing)", "threads 64 to 127 ended"],
    );

    // A box is not there before it is waited for, and products of nothing are nothing.
    emulation.run(&memory, &[launch("box_without_wait", 32, maps, out, 0)]).unwrap();
    assert!(memory.read_floats(out)[..32].iter().all(|number| number.is_nan()));
    emulation.run(&memory, &[launch("registers_that_there_are", 384, maps, out, 0)]).unwrap();
    emulation.run(&memory, &[launch("multiply_badly", 128, maps, out, 0)]).unwrap();
    assert!(memory.read_floats(out).iter().all(|number| number.is_nan()));
    // What threads write is seen by products after a fence.
    for (fenced, expected) in [(1, 16.0), (0, f32::NAN)] {
        emulation.run(&memory, &[launch("multiply_written", 128, maps, out, fenced)]).unwrap();
        assert!(
            memory
                .read_floats(out)
                .iter()
                .all(|got| got.to_bits() == expected.to_bits() || expected.is_nan() && got.is_nan())
        );
    }
    // What no driver makes a map of: rows at no multiple of 16 bytes.
    let odd = TensorMap { address: a + 2, ..maps[0] };
    let message = fault(emulation, &memory, launch("box_without_wait", 32, [odd; 2], out, 0));
    assert_says(&message, &["by a tensor map that no driver makes"]);
    assert_eq!(bf16::ONE, memory.read::<bf16>(a, 1)[0], "what is read stays");
}
