//! Multinomial logistic regression with a penalty on the squares of the weights, by L-BFGS with a bound on its curvature.

use std::collections::VecDeque;

use rayon::prelude::*;

use super::scatter::{Factor, Scatter};
use super::{Matrix, add_scaled, dot};

/// A row of weights and an intercept for each class.
#[derive(Clone, Debug, PartialEq)]
pub struct Logistic {
    /// `[classes, columns + 1]`, the intercept last, which is not penalised.
    values: Vec<f64>,
    columns: usize,
}

/// Examples that one task sums up; sums of tasks are added in their order, whatever thread made them.
const CHUNK: usize = 256;
/// Pairs of steps and changes of the gradient that L-BFGS remembers.
const MEMORY: usize = 10;
/// Steps at most.
const STEPS: usize = 2000;
/// The largest element of the gradient of the mean loss with which a fit ends.
const TOLERANCE: f64 = 1e-6;
/// The share of the expected gain that a step must bring (Armijo).
const GAIN: f64 = 1e-4;
/// Halvings of a step at most.
const HALVINGS: usize = 40;

impl Logistic {
    /// Weights of zero.
    pub fn zero(classes: usize, columns: usize) -> Self {
        Self { values: vec![0.0; classes * (columns + 1)], columns }
    }

    /// The weights of a class, and its intercept last.
    pub fn of_class(&self, class: usize) -> &[f64] {
        &self.values[class * (self.columns + 1)..][..self.columns + 1]
    }

    /// One logit a class for one row of features.
    pub fn logits(&self, row: &[f64]) -> Vec<f32> {
        logits(&self.values, row).map(|logit| logit as f32).collect()
    }

    /// Goes on from its present weights to the least of `C sum(loss) + |w|^2 / 2`, over the examples `rows` of `features`,
    /// whose classes are `classes[row]` and whose sums are `scatter`. False if it came to the end of its steps first.
    ///
    /// The method is L-BFGS (Liu and Nocedal 1989) with halved steps, whose first guess of the curvature is Böhning's bound
    /// ([`Bound`]). The same bits at any number of threads.
    pub fn fit(
        &mut self,
        features: &Matrix,
        rows: &[usize],
        classes: &[u32],
        scatter: &Scatter,
        c: f64,
    ) -> bool {
        assert_eq!(features.columns(), self.columns, "columns of the features and of the weights");
        // Divided by C and the number of examples, so that a tolerance means the same for all of them.
        let penalty = 1.0 / (c * rows.len() as f64);
        let objective = |values: &[f64]| self::objective(values, features, rows, classes, penalty);
        let bound = Bound::new(scatter, penalty);
        let (mut value, mut gradient) = objective(&self.values);
        let mut memory: VecDeque<(Vec<f64>, Vec<f64>)> = VecDeque::new(); // steps and changes of the gradient
        for _ in 0..STEPS {
            if gradient.iter().all(|element| element.abs() <= TOLERANCE) {
                return true;
            }
            let direction = direction(&gradient, &memory, &bound);
            let slope = dot(&gradient, &direction);
            let mut size = 1.0;
            let next = (0..HALVINGS).find_map(|_| {
                let mut values = self.values.clone();
                add_scaled(&mut values, size, &direction);
                let (next, gradient) = objective(&values);
                let enough = next <= value + GAIN * size * slope;
                size /= 2.0;
                enough.then_some((values, next, gradient))
            });
            // No step brings anything: what is left is rounding.
            let Some((values, next, next_gradient)) = next else { return true };
            let difference = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<f64>>();
            let (step, change) = (difference(&values, &self.values), difference(&next_gradient, &gradient));
            if dot(&step, &change) > 0.0 {
                if memory.len() == MEMORY {
                    memory.pop_front();
                }
                memory.push_back((step, change));
            }
            (self.values, value, gradient) = (values, next, next_gradient);
        }
        false
    }
}

/// The logits of a row by weights `[classes, columns + 1]`.
fn logits<'a>(values: &'a [f64], row: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
    let columns = row.len();
    values.chunks_exact(columns + 1).map(move |class| class[columns] + dot(&class[..columns], row))
}

/// The mean of the cross-entropy and half the penalised squares, and its gradient.
fn objective(
    values: &[f64],
    features: &Matrix,
    rows: &[usize],
    classes: &[u32],
    penalty: f64,
) -> (f64, Vec<f64>) {
    let columns = features.columns();
    let parts: Vec<(f64, Vec<f64>)> = rows
        .par_chunks(CHUNK)
        .map(|rows| {
            let mut loss = 0.0;
            let mut gradient = vec![0.0; values.len()];
            for &row in rows {
                let (gold, row) = (classes[row] as usize, features.row(row));
                let logits: Vec<f64> = logits(values, row).collect();
                let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
                loss += largest + sum.ln() - logits[gold];
                for (class, (logit, gradient)) in
                    logits.iter().zip(gradient.chunks_exact_mut(columns + 1)).enumerate()
                {
                    let difference = (logit - largest).exp() / sum - f64::from(u8::from(class == gold));
                    add_scaled(&mut gradient[..columns], difference, row);
                    gradient[columns] += difference;
                }
            }
            (loss, gradient)
        })
        .collect();
    let scale = 1.0 / rows.len() as f64;
    let mut loss = 0.0;
    let mut gradient = vec![0.0; values.len()];
    for (part, of_part) in &parts {
        loss += scale * part;
        add_scaled(&mut gradient, scale, of_part);
    }
    for (class, gradient) in values.chunks_exact(columns + 1).zip(gradient.chunks_exact_mut(columns + 1)) {
        let weights = &class[..columns];
        loss += 0.5 * penalty * dot(weights, weights);
        add_scaled(&mut gradient[..columns], penalty, weights);
    }
    (loss, gradient)
}

/// What the curvature of the mean loss is at most, whatever the weights: `(x'x / n) / 2` for the weights of each class
/// (Böhning 1992, with features less their means, which the intercept makes up for), and the penalty.
///
/// On the 768 features of MRPC's 3668 pairs by MiniLM's vectors, 41 fits took 7 s on two cores; from a first guess of one for
/// all weights they had not ended after 3 minutes.
struct Bound {
    factor: Factor,
    mean: Vec<f64>,
}

impl Bound {
    fn new(scatter: &Scatter, penalty: f64) -> Self {
        Self { factor: scatter.factor(0.5 / scatter.count, penalty), mean: scatter.mean() }
    }

    /// Multiplies `[classes, columns + 1]` by the bound's inverse.
    fn divide(&self, values: &mut [f64]) {
        for class in values.chunks_exact_mut(self.mean.len() + 1) {
            let (intercept, weights) = class.split_last_mut().expect("an intercept");
            // A gradient by features less their means, a step in them, and the intercept that makes up for the means.
            add_scaled(weights, -*intercept, &self.mean);
            self.factor.solve(weights);
            *intercept = 2.0 * *intercept - dot(weights, &self.mean);
        }
    }
}

/// Where to go: the gradient by what the last steps say of the curvature, downwards (Nocedal and Wright 2006, algorithm
/// 7.4).
fn direction(gradient: &[f64], memory: &VecDeque<(Vec<f64>, Vec<f64>)>, bound: &Bound) -> Vec<f64> {
    let mut direction: Vec<f64> = gradient.iter().map(|element| -element).collect();
    let mut shares = Vec::new();
    for (step, change) in memory.iter().rev() {
        let share = dot(step, &direction) / dot(step, change);
        add_scaled(&mut direction, -share, change);
        shares.push(share);
    }
    bound.divide(&mut direction);
    if let Some((step, change)) = memory.back() {
        let mut bounded = change.clone();
        bound.divide(&mut bounded);
        let scale = dot(step, change) / dot(change, &bounded);
        direction.iter_mut().for_each(|element| *element *= scale);
    }
    for ((step, change), share) in memory.iter().zip(shares.into_iter().rev()) {
        let correction = share - dot(change, &direction) / dot(step, change);
        add_scaled(&mut direction, correction, step);
    }
    direction
}
