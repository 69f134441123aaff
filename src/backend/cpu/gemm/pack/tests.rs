#[cfg(target_arch = "x86_64")]
use super::super::super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use super::super::avx2;
use super::super::tests::{narrowed, noise};
use super::*;

/// Every width of a panel, packed for products of bf16 as pairs and as widened elements, from operands of both kinds.
#[test]
fn narrow_panels_hold_the_lines_of_the_operand_and_zeros() {
    fn check<const WIDTH: usize, const PAIRS: bool>(gather: impl Fn(&[f32], usize, &mut [f32]) + Copy) {
        for (lines, depth) in
            [(0..WIDTH, 0..5), (3..3 + 4 * WIDTH, 5..45), (1..3 * WIDTH, 2..131), (0..1, 7..8)]
        {
            // The depth of the operand is odd, and the last word of pairs half empty.
            let elements = if PAIRS { 2 * depth.end - 1 } else { depth.end };
            for lines_are_rows in [true, false] {
                let (rows, cols) =
                    if lines_are_rows { (lines.end, elements) } else { (elements, lines.end + 3) };
                let data = noise(rows * cols, 1);
                let narrow = narrowed(&data);
                for data in [Elements::from(&data), Elements::from(&narrow[..])] {
                    let matrix = Matrix::new(data, rows, cols);
                    let operand =
                        if lines_are_rows { Operand::rows(matrix) } else { Operand::columns(matrix) };
                    let mut packed = vec![f32::NAN; lines.len().next_multiple_of(WIDTH) * depth.len()];
                    pack_narrow::<WIDTH, PAIRS>(&operand, lines.clone(), depth.clone(), &mut packed, gather);
                    for (index, word) in packed.iter().enumerate() {
                        let (panel, place) = (index / (WIDTH * depth.len()), index % (WIDTH * depth.len()));
                        let (line, word_number) =
                            (lines.start + panel * WIDTH + place % WIDTH, depth.start + place / WIDTH);
                        let element = |p: usize| {
                            let (row, col) = if lines_are_rows { (line, p) } else { (p, line) };
                            let inside = line < lines.end && p < elements;
                            if inside { narrow[row * cols + col] } else { bf16::ZERO }
                        };
                        if PAIRS {
                            let bits = word.to_bits();
                            let pair = [bits as u16, (bits >> 16) as u16].map(bf16::from_bits);
                            assert_eq!(pair, [element(2 * word_number), element(2 * word_number + 1)]);
                        } else {
                            assert_eq!(*word, element(word_number).to_f32());
                        }
                    }
                }
            }
        }
    }
    fn check_width<const WIDTH: usize>() {
        check::<WIDTH, true>(gather_scalar::<WIDTH>);
        check::<WIDTH, false>(gather_scalar::<WIDTH>);
        #[cfg(target_arch = "x86_64")]
        if Isa::available().contains(&Isa::Avx2) && WIDTH >= 6 {
            // SAFETY: AVX2 is available.
            let gather = |rows: &[f32], stride: usize, panel: &mut [f32]| unsafe {
                avx2::gather::<WIDTH>(rows, stride, panel)
            };
            check::<WIDTH, true>(gather);
            check::<WIDTH, false>(gather);
        }
    }
    check_width::<6>();
    check_width::<8>();
    check_width::<14>();
    check_width::<16>();
    check_width::<32>();
}
