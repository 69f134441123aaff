//! Losses and their gradients against the CPU's.

use mtdnn_raw::backend::cpu::isa::Isa;
use mtdnn_raw::backend::cpu::loss as cpu;
use mtdnn_raw::backend::cuda::loss::{self, Candidates, SoftChoices};
use mtdnn_raw::tensor::{DType, Extents, Rows};

use super::emulation::Emulation;
use super::support::{Bench, assert_near, numbers};

/// What the loss's gradient is.
const D_LOSS: f32 = 0.7;

fn of_sequences(sequences: usize) -> Bench {
    Bench::new(Extents { tokens: 0, sequences, groups: 0, predictions: 0, in_lines: false })
}

/// The loss and the gradient of the logits.
fn cross_entropy(emulation: &Emulation, logits: &[f32], labels: &[u32], classes: usize) -> (f32, Vec<f32>) {
    let mut bench = of_sequences(labels.len());
    let logits = bench.value("logits", DType::F32, Rows::Sequences, classes, logits);
    let labels = bench.memory.words("labels", labels);
    let d_loss = bench.value("d_loss", DType::F32, Rows::Fixed(1), 1, &[D_LOSS]);
    let loss = bench.output("loss", DType::F32, Rows::Fixed(1), 1);
    let d_logits = bench.output("d_logits", DType::F32, Rows::Sequences, classes);
    bench.run(emulation, |launches| {
        loss::cross_entropy(launches, logits, labels, loss);
        loss::cross_entropy_gradient(launches, logits, labels, d_loss, d_logits);
    });
    (bench.read(loss)[0], bench.read(d_logits))
}

#[test]
fn cross_entropy_is_the_cpus() {
    let Some(emulation) = Emulation::get() else { return };
    let shapes = [(1, 1), (1, 2), (7, 3), (63, 37), (300, 2), (65, 300), (5, 1024), (3, 1025), (2, 30_522)];
    for (rows, classes) in shapes {
        let logits: Vec<f32> = numbers(1, DType::F32, rows * classes).iter().map(|x| 20.0 * x).collect();
        let labels: Vec<u32> = (0..rows).map(|row| (7 * row % classes) as u32).collect();
        let expected = cpu::cross_entropy(Isa::detect(), &logits, &labels, classes);
        let mut gradient = vec![0.0; logits.len()];
        cpu::cross_entropy_gradient(Isa::detect(), &logits, &labels, classes, D_LOSS, &mut gradient);
        let (loss, d_logits) = cross_entropy(emulation, &logits, &labels, classes);
        assert_near(&(rows, classes), DType::F32, &[loss], &[expected], 2e-6);
        assert_near(&(rows, classes), DType::F32, &d_logits, &gradient, 2e-7);
    }
}

#[test]
fn classes_that_are_ruled_out_do_not_count() {
    let Some(emulation) = Emulation::get() else { return };
    for classes in [300, 2000] {
        let mut logits = numbers(1, DType::F32, classes);
        logits[..classes - 2].fill(f32::NEG_INFINITY);
        let (loss, d_logits) = cross_entropy(emulation, &logits, &[classes as u32 - 1], classes);
        let expected = cpu::cross_entropy(Isa::detect(), &logits[classes - 2..], &[1], 2);
        assert_near(&classes, DType::F32, &[loss], &[expected], 2e-6);
        assert!(d_logits[..classes - 2].iter().all(|d| *d == 0.0));
    }
}

#[test]
fn what_is_no_number_or_no_class_shows() {
    let Some(emulation) = Emulation::get() else { return };
    for classes in [3, 1500] {
        let mut logits = numbers(1, DType::F32, 2 * classes);
        let (loss, d_logits) = cross_entropy(emulation, &logits, &[1, classes as u32], classes);
        assert!(loss.is_nan());
        assert!(d_logits[..classes].iter().all(|d| d.is_finite()));
        assert!(d_logits[classes..].iter().all(|d| d.is_nan()));
        logits[2] = f32::NAN;
        assert!(cross_entropy(emulation, &logits, &[1, 1], classes).0.is_nan());
        logits[2] = f32::INFINITY;
        assert!(cross_entropy(emulation, &logits, &[1, 1], classes).0.is_nan());
    }
}

#[test]
fn squared_error_is_the_cpus() {
    let Some(emulation) = Emulation::get() else { return };
    for rows in [1, 7, 63, 129, 1300] {
        let (predictions, targets) = (numbers(1, DType::F32, rows), numbers(2, DType::F32, rows));
        let expected = cpu::squared_error(&predictions, &targets);
        let mut gradient = vec![0.0; rows];
        cpu::squared_error_gradient(&predictions, &targets, D_LOSS, &mut gradient);
        let mut bench = of_sequences(rows);
        let predictions = bench.value("predictions", DType::F32, Rows::Sequences, 1, &predictions);
        let targets = bench.value("targets", DType::F32, Rows::Sequences, 1, &targets);
        let d_loss = bench.value("d_loss", DType::F32, Rows::Fixed(1), 1, &[D_LOSS]);
        let loss = bench.output("loss", DType::F32, Rows::Fixed(1), 1);
        let d_predictions = bench.output("d_predictions", DType::F32, Rows::Sequences, 1);
        bench.run(emulation, |launches| {
            loss::squared_error(launches, predictions, targets, loss);
            loss::squared_error_gradient(launches, predictions, targets, d_loss, d_predictions);
        });
        assert_near(&rows, DType::F32, &bench.read(loss), &[expected], 1e-6);
        assert_near(&rows, DType::F32, &bench.read(d_predictions), &gradient, 1e-6);
    }
}

#[test]
fn ranking_is_the_cpus() {
    let Some(emulation) = Emulation::get() else { return };
    for (sizes, columns) in [(&[1][..], 1), (&[2, 5, 1, 40, 3], 1), (&[300, 7], 1), (&[300, 1, 7], 2)] {
        let groups: Vec<u32> = (0..=sizes.len()).map(|group| sizes[..group].iter().sum()).collect();
        let positives: Vec<u32> =
            sizes.iter().flat_map(|size| (0..columns).map(move |column| (size - 1) / (column + 1))).collect();
        let sequences = groups[sizes.len()] as usize;
        let columns = columns as usize;
        let (scores, gamma) = (numbers(1, DType::F32, sequences * columns), 5.0);
        let expected = cpu::ranking(&scores, &groups, &positives, gamma);
        let mut gradient = vec![0.0; sequences * columns];
        cpu::ranking_gradient(&scores, &groups, &positives, gamma, D_LOSS, &mut gradient);
        let mut bench = Bench::new(Extents {
            tokens: 0,
            sequences,
            groups: sizes.len(),
            predictions: 0,
            in_lines: false,
        });
        let candidates = Candidates {
            scores: bench.value("scores", DType::F32, Rows::Sequences, columns, &scores),
            groups: bench.memory.words("groups", &groups),
            positives: bench.memory.words("positives", &positives),
            gamma,
        };
        let d_loss = bench.value("d_loss", DType::F32, Rows::Fixed(1), 1, &[D_LOSS]);
        let loss = bench.output("loss", DType::F32, Rows::Fixed(1), 1);
        let d_scores = bench.output("d_scores", DType::F32, Rows::Sequences, columns);
        bench.run(emulation, |launches| {
            loss::ranking(launches, &candidates, loss);
            loss::ranking_gradient(launches, &candidates, d_loss, d_scores);
        });
        assert_near(&sizes, DType::F32, &bench.read(loss), &[expected], 2e-6);
        assert_near(&sizes, DType::F32, &bench.read(d_scores), &gradient, 1e-6);
    }
}

/// Rows of few and of many classes, and groups of any size; some choices are ruled out and have no probability.
#[test]
fn soft_cross_entropy_is_the_cpus() {
    let Some(emulation) = Emulation::get() else { return };
    let cases: [(usize, &[u32]); 5] =
        [(3, &[3; 7]), (40, &[40; 65]), (1, &[1]), (0, &[2, 5, 1, 40, 3]), (0, &[300, 7])];
    for (classes, sizes) in cases {
        let ends: Vec<u32> = (0..=sizes.len()).map(|choice| sizes[..choice].iter().sum()).collect();
        let count = ends[sizes.len()] as usize;
        let grouped = classes == 0;
        let mut logits = numbers(1, DType::F32, count);
        let mut targets: Vec<f32> = numbers(2, DType::F32, count).iter().map(|x| x.abs()).collect();
        if sizes[0] > 1 {
            (logits[0], targets[0]) = (f32::NEG_INFINITY, 0.0);
        }
        let choices = match grouped {
            true => cpu::Choices::Groups(&ends),
            false => cpu::Choices::Rows { rows: sizes.len(), classes },
        };
        let factor = 2.5;
        let expected = cpu::soft_cross_entropy(&logits, &targets, choices, factor);
        let mut gradient = vec![0.0; count];
        cpu::soft_cross_entropy_gradient(&logits, &targets, choices, factor, D_LOSS, &mut gradient);
        let (sequences, groups) = if grouped { (count, sizes.len()) } else { (sizes.len(), 0) };
        let mut bench = Bench::new(Extents { tokens: 0, sequences, groups, predictions: 0, in_lines: false });
        let cols = classes.max(1);
        let soft = SoftChoices {
            logits: bench.value("logits", DType::F32, Rows::Sequences, cols, &logits),
            targets: bench.value("targets", DType::F32, Rows::Sequences, cols, &targets),
            groups: grouped.then(|| bench.memory.words("groups", &ends)),
            factor,
        };
        let d_loss = bench.value("d_loss", DType::F32, Rows::Fixed(1), 1, &[D_LOSS]);
        let loss = bench.output("loss", DType::F32, Rows::Fixed(1), 1);
        let d_logits = bench.output("d_logits", DType::F32, Rows::Sequences, cols);
        bench.run(emulation, |launches| {
            loss::soft_cross_entropy(launches, &soft, loss);
            loss::soft_cross_entropy_gradient(launches, &soft, d_loss, d_logits);
        });
        assert_near(&sizes, DType::F32, &bench.read(loss), &[expected], 2e-6);
        assert_near(&sizes, DType::F32, &bench.read(d_logits), &gradient, 1e-6);
    }
}

#[test]
fn two_losses_become_one() {
    let Some(emulation) = Emulation::get() else { return };
    let mut bench = of_sequences(1);
    let [first, second] = [("first", 2.0), ("second", -3.0)]
        .map(|(name, x)| bench.value(name, DType::F32, Rows::Fixed(1), 1, &[x]));
    let [sum, alone] = ["sum", "alone"].map(|name| bench.output(name, DType::F32, Rows::Fixed(1), 1));
    bench.run(emulation, |launches| {
        loss::weighted_sum(launches, (first, Some(second)), [0.5, 0.25], sum);
        loss::weighted_sum(launches, (first, None), [0.5, 0.25], alone);
    });
    assert_eq!((bench.read(sum), bench.read(alone)), (vec![0.25], vec![1.0]));
}
