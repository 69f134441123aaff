use serde_json::Value;

use super::*;

/// What scikit-learn makes of small sets; `tests/fixtures/probe.py` has made it.
fn fixture() -> Value {
    serde_json::from_str(include_str!("../../../tests/fixtures/probe.json")).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn features(fixture: &Value) -> Matrix {
    let rows: Vec<Vec<f64>> = fixture["features"].as_array().unwrap().iter().map(numbers).collect();
    Matrix::new(rows.concat(), rows[0].len())
}

#[track_caller]
fn assert_close(ours: &[f64], theirs: &[f64], tolerance: f64) {
    assert_eq!(ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(theirs) {
        assert!((a - b).abs() <= tolerance, "{ours:?} against {theirs:?}");
    }
}

#[test]
fn ridge_has_the_weights_of_scikit_learn() {
    let fixture = fixture();
    let (features, scores) = (features(&fixture), numbers(&fixture["scores"]));
    let rows: Vec<usize> = (0..scores.len()).collect();
    let moments = Moments::of(&features, &rows, &scores);
    for case in fixture["ridge"].as_array().unwrap() {
        let ridge = moments.solve(case["penalty"].as_f64().unwrap());
        assert_close(&ridge.weights, &numbers(&case["weights"]), 1e-10);
        assert_close(&[ridge.intercept], &[case["intercept"].as_f64().unwrap()], 1e-10);
    }
    // A fold's sums taken off are the sums of the rest.
    let (held, rest) = rows.split_at(20);
    let by_difference = {
        let mut rest = moments.clone();
        rest.add(-1.0, &Moments::of(&features, held, &scores));
        rest.solve(1.0)
    };
    assert_close(&by_difference.weights, &Moments::of(&features, rest, &scores).solve(1.0).weights, 1e-10);
}

#[test]
fn logistic_regression_has_the_weights_of_scikit_learn() {
    let fixture = fixture();
    let features = features(&fixture);
    let classes: Vec<u32> = numbers(&fixture["classes"]).iter().map(|&class| class as u32).collect();
    let rows: Vec<usize> = (0..classes.len()).collect();
    let scatter = Scatter::of(&features, &rows);
    // One model for all strengths: where a fit starts from does not matter.
    let mut model = Logistic::zero(3, features.columns());
    for case in fixture["logistic"].as_array().unwrap() {
        assert!(model.fit(&features, &rows, &classes, &scatter, case["c"].as_f64().unwrap()));
        let intercepts = numbers(&case["intercepts"]);
        let mean = (0..3).map(|class| model.of_class(class)[features.columns()]).sum::<f64>() / 3.0;
        for class in 0..3 {
            let (weights, ours) = (numbers(&case["weights"][class]), model.of_class(class));
            assert_close(&ours[..features.columns()], &weights, 2e-3);
            // The same number added to all intercepts changes nothing.
            let theirs = intercepts[class] - intercepts.iter().sum::<f64>() / 3.0;
            assert_close(&[ours[features.columns()] - mean], &[theirs], 2e-3);
        }
    }
    let is_one: Vec<u32> = classes.iter().map(|&class| u32::from(class == 1)).collect();
    for case in fixture["binary"].as_array().unwrap() {
        let mut model = Logistic::zero(2, features.columns());
        assert!(model.fit(&features, &rows, &is_one, &scatter, case["c"].as_f64().unwrap()));
        let ours: Vec<f64> = rows
            .iter()
            .map(|&row| {
                let logits = model.logits(features.row(row));
                1.0 / (1.0 + f64::from(logits[0] - logits[1]).exp())
            })
            .collect();
        assert_close(&ours, &numbers(&case["probabilities"]), 1e-3);
    }
}

#[test]
fn features_of_a_pair_are_distances_and_products() {
    let features: Vec<f64> = pair_features(&[1.0, -2.0], &[3.0, 0.5]).collect();
    assert_eq!(features, [2.0, 2.5, 3.0, -1.0]);
}

#[test]
fn folds_hold_every_example_once_and_the_shares_of_the_classes() {
    let classes: Vec<u32> = (0..40).map(|row| u32::from(row % 4 == 0)).collect();
    let folds = held_out(&classes, 5, 1);
    for held in &folds {
        let of = |class| held.iter().filter(|&&row| classes[row] == class).count();
        assert_eq!((of(0), of(1)), (6, 2), "{held:?}");
        assert_eq!([held.clone(), others(held, 40)].concat().len(), 40);
        assert!(others(held, 40).iter().all(|row| !held.contains(row)));
    }
    let mut all = folds.concat();
    all.sort_unstable();
    assert_eq!(all, (0..40).collect::<Vec<_>>());
    assert_ne!(folds, held_out(&classes, 5, 2), "the seed does not matter");
    assert_ne!(folds, held_out(&classes, 4, 1));
}

/// Twenty noisy features, of which one tells the answer. `examples` of them, drawn by `seed`.
fn set(kind: TaskKind, examples: usize, seed: u64) -> Set {
    let mut random = Random::new(seed, [0, 0]);
    let mut noise = || f64::from(random.below(2001)) / 1000.0 - 1.0;
    let (mut values, mut labels) = (Vec::new(), Vec::new());
    for _ in 0..examples {
        let row: Vec<f64> = (0..20).map(|_| noise()).collect();
        let signal = row[3] + 0.3 * noise();
        labels.push(match kind {
            TaskKind::Regression => Label::Score(signal as f32),
            _ => Label::Class(u32::from(signal > 0.0)),
        });
        values.extend(row);
    }
    Set { features: Matrix::new(values, 20), labels }
}

fn spec(kind: TaskKind) -> TaskSpec {
    let labels = if kind == TaskKind::Regression { vec![] } else { vec!["no".into(), "yes".into()] };
    TaskSpec { labels, ..TaskSpec::new("t", kind) }
}

#[test]
fn the_penalty_is_the_best_of_the_folds_and_beats_the_weakest() {
    for kind in [TaskKind::Classification, TaskKind::Regression] {
        let (train, dev) = (set(kind, 60, 1), set(kind, 500, 2));
        let probed = probe(&spec(kind), &train, &[dev], 5, 0, &|| {});
        let grid = if kind == TaskKind::Regression { RIDGE_GRID } else { LOGISTIC_GRID };
        let chosen = grid.iter().position(|&value| value == probed.strength).unwrap();
        let best = probed.validation.iter().copied().fold(f64::MIN, f64::max);
        assert_eq!(probed.validation[chosen], best, "{kind}: {:?}", probed.validation);
        assert!(probed.validation[..chosen].iter().all(|&value| value < best), "of equal ones the strongest");
        assert!(best > *probed.validation.last().unwrap(), "{kind}: {:?}", probed.validation);
        let (_, main) = probed.metrics[0][0];
        assert!(main > 0.85, "{kind}: {main}");
        assert_eq!(probed.unfinished, 0);
        let other = probe(&spec(kind), &train, &[], 5, 1, &|| {});
        assert_ne!(probed.validation, other.validation, "{kind}: the seed has drawn the same folds");
        assert_ne!(probed.validation, probe(&spec(kind), &train, &[], 3, 0, &|| {}).validation);
    }
}

#[test]
fn the_same_bits_at_any_number_of_threads() {
    for kind in [TaskKind::Classification, TaskKind::Regression] {
        let (train, dev) = (set(kind, 600, 1), set(kind, 100, 2));
        let of = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let sets = [Set { features: dev.features.clone(), labels: dev.labels.clone() }];
            pool.install(|| probe(&spec(kind), &train, &sets, 3, 0, &|| {}))
        };
        assert_eq!(of(1), of(3), "{kind}");
    }
}
