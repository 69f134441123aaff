//! Hopper's matrix products against plain sums in f64, with NaN in the rows that are not of the batch.

use std::collections::BTreeSet;

use mtdnn_raw::backend::cuda::gemm::Form;
use mtdnn_raw::backend::cuda::launch::Kernels;

use super::emulation::{Emulation, Order};
use super::gemm::{B, Case, F, FORMS, check, finish};

/// A case on so many processors, which decide the tile.
fn case(form: Form, rows: usize, capacity: usize, sizes: [usize; 2], number: usize, processors: u32) -> Case {
    Case {
        form,
        kernels: Kernels::Hopper,
        rows,
        capacity,
        sizes,
        dtypes: [B, B, if number % 4 == 3 { F } else { B }],
        finish: finish(number),
        as_parameters: false,
        processors,
    }
}

/// A weight gradient whose depth is cut, over batches of all sizes that the launch was made for, the empty one included.
#[test]
fn slices_follow_the_batch() {
    let Some(emulation) = Emulation::get() else { return };
    for (number, rows) in [0, 1, 63, 64, 65, 128, 300, 1000].into_iter().enumerate() {
        let case = Case { dtypes: [B, B, F], ..case(Form::TN, rows, 1000, [72, 40], number % 2, 132) };
        let launched = check(emulation, case, &[Order::Ascending]);
        assert_eq!(launched, ["hopper_gemm_tn_64x128", "sum_slices"], "{case:?}");
    }
}

#[test]
fn every_form_gives_the_same_bits_in_every_order() {
    let Some(emulation) = Emulation::get() else { return };
    for (number, form) in FORMS.into_iter().enumerate() {
        // The last one sums columns, over two tiles of rows.
        let sizes = if form == Form::TN { [136, 72] } else { [72, 328] };
        check(emulation, case(form, 130, 150, sizes, [3, 5, 0][number], 2), &Order::ALL);
    }
}

/// Every tile in every form with every epilogue, cut off in all directions, over more tiles than blocks.
#[test]
fn every_tile_computes_every_epilogue() {
    let Some(emulation) = Emulation::get() else { return };
    let mut launched = BTreeSet::new();
    let mut number = 0;
    for form in FORMS {
        // Rows and columns of C, for which one processor or many take one tile or another.
        for (tile, rows, columns, processors) in [
            ("128x256", 129_usize, 200, 1),
            ("128x192", 190, 264, 1),
            ("128x128", 250, 104, 1),
            ("64x128", 70, 136, 132),
        ] {
            for _ in 0..6 {
                // So that each epilogue meets each of the following.
                let mixed = number + number / 6;
                let depth = [72, 200][mixed % 2];
                let (rows, sizes) = match form {
                    Form::NT | Form::NN => (rows, [columns, depth]),
                    Form::TN => (depth + 5, [rows.next_multiple_of(8), columns]),
                };
                let order = [Order::Ascending, Order::Descending, Order::Random(number as u32)][mixed % 3];
                let capacity = rows + [0, 60, 300][mixed % 3];
                let case = case(form, rows, capacity, sizes, number, processors);
                let kernels = check(emulation, case, &[order]);
                let expected = format!("hopper_gemm_{}_{tile}", format!("{form:?}").to_lowercase());
                assert_eq!(kernels[0], expected, "{case:?}");
                launched.insert(kernels[0]);
                number += 1;
            }
        }
    }
    assert_eq!(launched.len(), 12, "{launched:?}");
}
