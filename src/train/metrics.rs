//! How good predictions are: one number for a whole evaluation set, in f64.
//!
//! Every function has a value for every input of matching lengths. A set of nothing scores 0, a predictor
//! that says the same thing always scores 0 where the textbook formula divides by 0, and what each makes of a
//! NaN is said with it: a model that has diverged scores badly and stops nothing.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// The share of predictions that are right, in [0, 1].
pub fn accuracy(predicted: &[u32], gold: &[u32]) -> f64 {
    same_length(predicted.len(), gold.len());
    let right = predicted.iter().zip(gold).filter(|(p, g)| p == g).count();
    mean_of(right as f64, gold.len())
}

/// F1 of class 1, in [0, 1]: the harmonic mean of its precision and recall, `2 TP / (2 TP + FP + FN)`.
///
/// Every other class counts as negative. Where class 1 is neither predicted nor present the score is 0.
pub fn f1(predicted: &[u32], gold: &[u32]) -> f64 {
    f1_of(1, predicted, gold)
}

/// F1 as a task of so many classes is measured by: that of class 1 of two, else the mean over the classes.
pub fn f1_among(classes: usize, predicted: &[u32], gold: &[u32]) -> f64 {
    if classes > 2 { macro_f1(predicted, gold) } else { f1(predicted, gold) }
}

/// The mean of the F1 of every class that is predicted or present, in [0, 1]: for tasks of more than two
/// classes.
pub fn macro_f1(predicted: &[u32], gold: &[u32]) -> f64 {
    let classes: BTreeSet<u32> = predicted.iter().chain(gold).copied().collect();
    mean_of(classes.iter().map(|&class| f1_of(class, predicted, gold)).sum(), classes.len())
}

/// F1 of all classes counted together, in [0, 1]. Of examples with one label each a wrong prediction is one false positive
/// and one false negative, so that it is their [`accuracy`]: the name under which papers give it.
pub fn micro_f1(predicted: &[u32], gold: &[u32]) -> f64 {
    accuracy(predicted, gold)
}

/// The area under the receiver's curve, in [0, 1]: how often an example of a class has a higher probability of it than one
/// of another class, equal ones counting half. The mean over the classes that are present and are not all there is; for
/// two classes that is the area of either.
///
/// `logits` is `[examples, outputs]`. It is 0 where there is no such class, and where a logit is NaN.
pub fn auc(logits: &[f32], outputs: usize, gold: &[u32]) -> f64 {
    same_length(logits.len(), gold.len() * outputs);
    if logits.iter().any(|logit| logit.is_nan()) {
        return 0.0;
    }
    let of_class = |class: usize| {
        // The logit of the probability, which orders examples as the probability does.
        let odds = |row: &[f32]| {
            let others =
                || row.iter().enumerate().filter(|&(k, _)| k != class).map(|(_, &logit)| f64::from(logit));
            let largest = others().fold(f64::NEG_INFINITY, f64::max);
            let rest = others().map(|logit| (logit - largest).exp()).sum::<f64>().ln() + largest;
            (f64::from(row[class]) - rest) as f32
        };
        let ranks = ranks(&logits.chunks_exact(outputs).map(odds).collect::<Vec<f32>>());
        let inside = gold.iter().filter(|&&gold| gold as usize == class).count() as f64;
        let outside = gold.len() as f64 - inside;
        let sum: f64 =
            ranks.iter().zip(gold).filter(|(_, gold)| **gold as usize == class).map(|(rank, _)| rank).sum();
        // Mann and Whitney's U over all pairs.
        (inside * outside > 0.0).then(|| (sum - inside * (inside + 1.0) / 2.0) / (inside * outside))
    };
    let areas: Vec<f64> = (0..outputs).filter_map(of_class).collect();
    mean_of(areas.iter().sum(), areas.len())
}

/// Matthews' correlation coefficient, in [-1, 1], for any number of classes: R_K of Gorodkin (2004).
///
/// With the number of examples `s`, of right ones `c`, and of predicted and present ones of a class, `p_k`
/// and `t_k`, it is `(c s - sum p_k t_k) / sqrt((s^2 - sum p_k^2) (s^2 - sum t_k^2))`. For two classes this
/// is `(TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN))`. Where only one class is predicted,
/// or only one is present, it is 0.
pub fn mcc(predicted: &[u32], gold: &[u32]) -> f64 {
    same_length(predicted.len(), gold.len());
    let mut counts: BTreeMap<u32, (i128, i128)> = BTreeMap::new(); // class -> (p_k, t_k)
    for (&p, &g) in predicted.iter().zip(gold) {
        counts.entry(p).or_default().0 += 1;
        counts.entry(g).or_default().1 += 1;
    }
    // Whole numbers, so that a predictor as good as chance scores 0 and not nearly 0.
    let all = gold.len() as i128;
    let right = predicted.iter().zip(gold).filter(|(p, g)| p == g).count() as i128;
    let covariance = right * all - counts.values().map(|(p, t)| p * t).sum::<i128>();
    let of_predicted = all * all - counts.values().map(|(p, _)| p * p).sum::<i128>();
    let of_gold = all * all - counts.values().map(|(_, t)| t * t).sum::<i128>();
    if of_predicted == 0 || of_gold == 0 {
        return 0.0;
    }
    covariance as f64 / (of_predicted as f64 * of_gold as f64).sqrt()
}

/// Pearson's correlation, in [-1, 1]. It is 0 where either side is constant or holds a NaN or an infinity.
pub fn pearson(predicted: &[f32], gold: &[f32]) -> f64 {
    same_length(predicted.len(), gold.len());
    let wide = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<f64>>();
    correlation(&wide(predicted), &wide(gold))
}

/// Spearman's correlation, in [-1, 1]: Pearson's of the ranks, where equal values share the mean of their
/// ranks.
///
/// It is 0 where either side is constant or holds a NaN.
pub fn spearman(predicted: &[f32], gold: &[f32]) -> f64 {
    same_length(predicted.len(), gold.len());
    if predicted.iter().chain(gold).any(|value| value.is_nan()) {
        return 0.0;
    }
    correlation(&ranks(predicted), &ranks(gold))
}

/// The share of groups whose positive is the single best of its group, in [0, 1].
///
/// `scores` holds one number a candidate, group `i` is `starts[i]..starts[i + 1]` of them, and its positive
/// is candidate `starts[i] + positives[i]`. In this and the other two ranking metrics a candidate that scores
/// the same as the positive stands before it, so that a model that says the same of all gets no credit; so
/// does one that scores NaN, and a positive with NaN stands last.
pub fn accuracy_at_1(scores: &[f32], starts: &[u32], positives: &[u32]) -> f64 {
    mean_over_groups(scores, starts, positives, |place| if place == 1 { 1.0 } else { 0.0 })
}

/// The mean of 1 / the place of the positive in its group, in (0, 1]; arguments and ties as in
/// [`accuracy_at_1`].
pub fn mrr(scores: &[f32], starts: &[u32], positives: &[u32]) -> f64 {
    mean_over_groups(scores, starts, positives, |place| 1.0 / place as f64)
}

/// The mean over the groups of the average precision, in (0, 1]; arguments and ties as in [`accuracy_at_1`].
///
/// The average precision of a group is the mean, over its positives, of the precision among the candidates
/// down to that positive. A group here has one positive, whose precision is 1 / its place: the value is that
/// of [`mrr`], and this is its name in the literature of answer selection.
pub fn mean_average_precision(scores: &[f32], starts: &[u32], positives: &[u32]) -> f64 {
    mrr(scores, starts, positives)
}

fn f1_of(class: u32, predicted: &[u32], gold: &[u32]) -> f64 {
    same_length(predicted.len(), gold.len());
    let both = predicted.iter().zip(gold).filter(|&(&p, &g)| p == class && g == class).count();
    let either = predicted.iter().chain(gold).filter(|&&c| c == class).count(); // 2 TP + FP + FN
    mean_of(2.0 * both as f64, either)
}

fn same_length(predicted: usize, gold: usize) {
    assert_eq!(predicted, gold, "{predicted} predictions for {gold} gold values");
}

/// `sum / count`, 0 for a count of 0.
fn mean_of(sum: f64, count: usize) -> f64 {
    if count == 0 { 0.0 } else { sum / count as f64 }
}

/// Pearson's correlation; 0 where it has no value.
fn correlation(a: &[f64], b: &[f64]) -> f64 {
    // Of up to 2^29 equal numbers that were f32, the mean in f64 is exact: a constant has variance 0, not
    // nearly.
    let mean = |values: &[f64]| mean_of(values.iter().sum(), values.len());
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut covariance, mut variance_a, mut variance_b) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (a - mean_a, b - mean_b);
        covariance += a * b;
        variance_a += a * a;
        variance_b += b * b;
    }
    let r = covariance / (variance_a.sqrt() * variance_b.sqrt());
    if r.is_finite() { r.clamp(-1.0, 1.0) } else { 0.0 }
}

/// The rank of every value, from 1; equal values share the mean of their ranks. No value is NaN.
fn ranks(values: &[f32]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for equal in order.chunk_by(|&i, &j| values[i] == values[j]) {
        let rank = before as f64 + (equal.len() + 1) as f64 / 2.0;
        equal.iter().for_each(|&i| ranks[i] = rank);
        before += equal.len();
    }
    ranks
}

/// The mean over the groups of `value` of the place (from 1) of the group's positive.
fn mean_over_groups(scores: &[f32], starts: &[u32], positives: &[u32], value: impl Fn(usize) -> f64) -> f64 {
    let ends = starts.last().copied().unwrap_or(0) as usize;
    assert_eq!(ends, scores.len(), "the groups end at {ends}, the scores at {}", scores.len());
    assert_eq!(
        starts.len().max(1),
        positives.len() + 1,
        "{} starts, {} positives",
        starts.len(),
        positives.len()
    );
    let of_group = |(bounds, &positive): (&[u32], &u32)| {
        let group = &scores[bounds[0] as usize..bounds[1] as usize];
        let best = group[positive as usize];
        let behind = group.iter().filter(|score| score.partial_cmp(&&best) == Some(Ordering::Less)).count();
        value(group.len() - behind)
    };
    mean_of(starts.windows(2).zip(positives).map(of_group).sum(), positives.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Fixture {
        classes: Vec<Classes>,
        numbers: Vec<Numbers>,
        groups: Vec<Groups>,
        areas: Vec<Area>,
    }

    #[derive(Deserialize)]
    struct Area {
        gold: Vec<u32>,
        logits: Vec<f32>,
        outputs: usize,
        auc: f64,
    }

    #[derive(Deserialize)]
    struct Classes {
        predicted: Vec<u32>,
        gold: Vec<u32>,
        accuracy: f64,
        f1: f64,
        macro_f1: f64,
        micro_f1: f64,
        mcc: f64,
    }

    #[derive(Deserialize)]
    struct Numbers {
        predicted: Vec<f32>,
        gold: Vec<f32>,
        pearson: f64,
        spearman: f64,
    }

    #[derive(Deserialize)]
    struct Groups {
        scores: Vec<f32>,
        starts: Vec<u32>,
        positives: Vec<u32>,
        accuracy_at_1: f64,
        mrr: f64,
    }

    /// Random cases and what scipy and scikit-learn say of them; made by metrics.py beside it.
    fn fixture() -> Fixture {
        serde_json::from_str(include_str!("../../tests/fixtures/metrics.json")).unwrap()
    }

    #[test]
    fn classes_are_scored_as_by_scikit_learn() {
        for case in fixture().classes {
            let (predicted, gold) = (&case.predicted, &case.gold);
            assert_relative_eq!(accuracy(predicted, gold), case.accuracy, max_relative = 1e-14);
            assert_relative_eq!(f1(predicted, gold), case.f1, max_relative = 1e-14);
            assert_relative_eq!(macro_f1(predicted, gold), case.macro_f1, max_relative = 1e-14);
            assert_relative_eq!(micro_f1(predicted, gold), case.micro_f1, max_relative = 1e-14);
            assert_relative_eq!(mcc(predicted, gold), case.mcc, max_relative = 1e-12);
        }
    }

    #[test]
    fn numbers_are_scored_as_by_scipy() {
        for case in fixture().numbers {
            assert_relative_eq!(pearson(&case.predicted, &case.gold), case.pearson, max_relative = 1e-12);
            assert_relative_eq!(spearman(&case.predicted, &case.gold), case.spearman, max_relative = 1e-12);
        }
    }

    #[test]
    fn groups_are_scored_as_by_scikit_learn() {
        for Groups { scores, starts, positives, accuracy_at_1: top, mrr: mean } in fixture().groups {
            assert_relative_eq!(accuracy_at_1(&scores, &starts, &positives), top, max_relative = 1e-14);
            assert_relative_eq!(mrr(&scores, &starts, &positives), mean, max_relative = 1e-14);
            assert_relative_eq!(
                mean_average_precision(&scores, &starts, &positives),
                mean,
                max_relative = 1e-14
            );
        }
    }

    #[test]
    fn areas_are_those_of_scikit_learn() {
        for Area { gold, logits, outputs, auc: expected } in fixture().areas {
            assert_relative_eq!(auc(&logits, outputs, &gold), expected, max_relative = 1e-12);
        }
    }

    #[test]
    fn areas_by_hand() {
        // Of the four pairs of one inside and one outside three are in order.
        assert_eq!(auc(&[0.0, 0.1, 0.0, 0.3, 0.0, 0.2, 0.0, 0.4], 2, &[0, 0, 1, 1]), 3.0 / 4.0);
        assert_eq!(auc(&[1.0; 8], 2, &[0, 0, 1, 1]), 0.5);
        assert_eq!(auc(&[1.0, 2.0], 2, &[1]), 0.0);
        assert_eq!(auc(&[1.0, f32::NAN, 0.0, 1.0], 2, &[0, 1]), 0.0);
    }

    #[test]
    fn classes_by_hand() {
        // TP 2, FN 1, FP 1, TN 1
        let gold = [1, 1, 1, 0, 0];
        let predicted = [1, 1, 0, 1, 0];
        assert_eq!(accuracy(&predicted, &gold), 3.0 / 5.0);
        assert_eq!(f1(&predicted, &gold), 4.0 / 6.0);
        assert_eq!(macro_f1(&predicted, &gold), (4.0 / 6.0 + 2.0 / 4.0) / 2.0);
        assert_eq!(macro_f1(&[0, 7], &[0, 0]), (2.0 / 3.0 + 0.0) / 2.0);
        assert_relative_eq!(mcc(&predicted, &gold), (2.0 - 1.0) / 36.0_f64.sqrt(), max_relative = 1e-15);
        assert_eq!(mcc(&gold, &gold), 1.0);
        assert_eq!(mcc(&[0, 0, 0, 1, 1], &gold), -1.0);
        // Three classes: s 3, c 1, sum p t 3, sum p^2 3, sum t^2 3.
        assert_eq!(mcc(&[0, 2, 1], &[0, 1, 2]), 0.0);
    }

    #[test]
    fn a_predictor_of_one_class_has_no_correlation() {
        assert_eq!(mcc(&[1, 1, 1, 1], &[1, 0, 1, 0]), 0.0);
        assert_eq!(mcc(&[1, 0, 1, 0], &[1, 1, 1, 1]), 0.0);
        assert_eq!(f1(&[0, 0, 0, 0], &[1, 0, 1, 0]), 0.0);
        assert_eq!(f1(&[0, 2], &[2, 0]), 0.0);
    }

    #[test]
    fn correlations_by_hand() {
        let gold = [1.0, 2.0, 3.0, 4.0];
        assert_relative_eq!(pearson(&[3.0, 5.0, 7.0, 9.0], &gold), 1.0, max_relative = 1e-15);
        assert_relative_eq!(pearson(&[0.0, -1.0, -2.0, -3.0], &gold), -1.0, max_relative = 1e-15);
        // (1, 0, 0, 1) about its mean: (.5, -.5, -.5, .5); with (-1.5, -.5, .5, 1.5) that makes 0.
        assert_eq!(pearson(&[1.0, 0.0, 0.0, 1.0], &gold), 0.0);
        // Monotone: the ranks agree though the values are not on a line.
        assert_relative_eq!(spearman(&[1.0, 10.0, 100.0, f32::INFINITY], &gold), 1.0, max_relative = 1e-15);
        assert_eq!(ranks(&[5.0, 1.0, 5.0, 0.0, -0.0, 5.0]), [5.0, 3.0, 5.0, 1.5, 1.5, 5.0]);
    }

    #[test]
    fn a_constant_or_broken_predictor_has_no_correlation() {
        let gold = [0.1, 2.0, 3.3];
        for predicted in [[0.1; 3], [f32::NAN; 3], [1.0, f32::NAN, 3.0], [f32::INFINITY; 3]] {
            assert_eq!(pearson(&predicted, &gold), 0.0, "{predicted:?}");
            assert_eq!(spearman(&predicted, &gold), 0.0, "{predicted:?}");
        }
        assert_eq!(pearson(&[1.0, f32::NEG_INFINITY, 3.0], &gold), 0.0);
    }

    #[test]
    fn places_by_hand() {
        // Places 1, 2, 3 of groups of 2, 3 and 3.
        let scores = [0.9, 0.1, 5.0, 7.0, 1.0, 3.0, 2.0, 1.0];
        let (starts, positives) = ([0, 2, 5, 8], [0, 0, 2]);
        assert_eq!(accuracy_at_1(&scores, &starts, &positives), 1.0 / 3.0);
        assert_eq!(mrr(&scores, &starts, &positives), (1.0 + 1.0 / 2.0 + 1.0 / 3.0) / 3.0);
    }

    #[test]
    fn ties_and_nan_stand_before_the_positive() {
        let place = |scores: &[f32]| 1.0 / mrr(scores, &[0, scores.len() as u32], &[0]);
        assert_eq!(place(&[1.0, 0.0, 0.0]), 1.0);
        assert_eq!(place(&[1.0, 1.0, 0.0]), 2.0);
        assert_eq!(place(&[1.0, 1.0, 1.0]), 3.0);
        assert_eq!(place(&[1.0, f32::NAN, 0.0]), 2.0);
        assert_eq!(place(&[f32::NAN, 2.0, 1.0]), 3.0);
        assert_eq!(accuracy_at_1(&[f32::NAN; 4], &[0, 2, 4], &[0, 1]), 0.0);
    }

    #[test]
    fn nothing_scores_zero() {
        assert_eq!(accuracy(&[], &[]), 0.0);
        assert_eq!(f1(&[], &[]), 0.0);
        assert_eq!(macro_f1(&[], &[]), 0.0);
        assert_eq!(mcc(&[], &[]), 0.0);
        assert_eq!(pearson(&[], &[]), 0.0);
        assert_eq!(spearman(&[], &[]), 0.0);
        assert_eq!(mrr(&[], &[], &[]), 0.0);
        assert_eq!(accuracy_at_1(&[], &[0], &[]), 0.0);
    }
}
