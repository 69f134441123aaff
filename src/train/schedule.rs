//! The learning rate as a function of the global step.
//!
//! One global step drives the rate of every parameter: with a step per parameter, the head of a rare task
//! would never leave its warm-up.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// What the learning rate does after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Down in a straight line from the peak to 0 at the end: a triangle, without a jump.
    #[default]
    Linear,
    /// Down along half a cosine from the peak to 0 at the end, without a jump.
    Cosine,
    /// The peak until the end, and after it.
    Constant,
    /// As BERT (Devlin et al. 2018) and the first MT-DNN were trained: the line from the peak at step 0 to 0
    /// at the end, with the warm-up laid over its beginning. After a warm-up of a tenth the rate jumps from
    /// the peak to nine tenths of it.
    WarmupLinear,
}

/// A learning rate for every step of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// What follows the warm-up.
    pub kind: ScheduleKind,
    /// The share of `total` that the warm-up takes, in [0, 1].
    pub warmup: f64,
    /// The number of updates of the whole run.
    pub total: u64,
    /// The highest learning rate.
    pub peak: f64,
}

impl Schedule {
    /// The learning rate of the update that follows `step` earlier ones.
    ///
    /// With `warm` = [`Schedule::warmup_steps`] the rate is `peak * step / warm` while `step < warm`, so that
    /// the first update has rate 0, and from there, with `rest = (total - step) / (total - warm)`:
    ///
    /// | kind          | rate                                |
    /// |---------------|-------------------------------------|
    /// | linear        | `peak * rest`                       |
    /// | cosine        | `peak * (1 - cos(pi * rest)) / 2`   |
    /// | constant      | `peak`                              |
    /// | warmup linear | `peak * (total - step) / total`     |
    ///
    /// Update `warm` has the peak, update `total - 1` is the last one. From `total` on the rate is 0, except
    /// that a constant one stays.
    pub fn learning_rate(&self, step: u64) -> f32 {
        let warm = self.warmup_steps();
        let left = self.total.saturating_sub(step);
        let descent = self.total.saturating_sub(warm);
        let factor = if step < warm {
            share(step, warm)
        } else {
            match self.kind {
                ScheduleKind::Linear => share(left, descent),
                ScheduleKind::Cosine => (1.0 - (PI * share(left, descent)).cos()) / 2.0,
                ScheduleKind::Constant => 1.0,
                ScheduleKind::WarmupLinear => share(left, self.total),
            }
        };
        (self.peak * factor) as f32
    }

    /// The number of warm-up steps: `warmup * total` rounded down, but at least 1 where a warm-up is asked
    /// for.
    pub fn warmup_steps(&self) -> u64 {
        if self.warmup <= 0.0 {
            return 0;
        }
        // The fraction is a rounded decimal: 0.29 * 100 comes out below 29. A hair more undoes that.
        let steps = self.warmup.min(1.0) * self.total as f64 * (1.0 + 1e-12);
        (steps as u64).max(1)
    }
}

/// `part / whole`, and nothing of nothing is nothing.
fn share(part: u64, whole: u64) -> f64 {
    if part == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind, warmup: f64, total: u64) -> Schedule {
        Schedule { kind, warmup, total, peak: 2e-4 }
    }

    #[test]
    fn linear_is_the_line_of_the_pytorch_script() {
        // lr * (step / warm if step < warm else (total - step) / (total - warm)), warm = max(1, total // 10)
        for total in [1, 2, 9, 10, 19, 55, 730, 148_123] {
            let schedule = schedule(ScheduleKind::Linear, 0.1, total);
            let warm = (total / 10).max(1);
            for step in 0..total.min(2_000) {
                let factor = if step < warm {
                    step as f64 / warm as f64
                } else {
                    (total - step) as f64 / (total - warm) as f64
                };
                let expected = (2e-4 * factor) as f32;
                assert_eq!(schedule.learning_rate(step), expected, "step {step} of {total}");
            }
        }
    }

    #[test]
    fn the_first_update_has_rate_zero_and_update_warm_the_peak() {
        use ScheduleKind::*;
        for kind in [Linear, Cosine, Constant] {
            let schedule = schedule(kind, 0.25, 40);
            assert_eq!(schedule.learning_rate(0), 0.0, "{kind:?}");
            assert_eq!(schedule.learning_rate(5), 1e-4, "{kind:?}");
            assert_eq!(schedule.learning_rate(10), 2e-4, "{kind:?}");
        }
    }

    #[test]
    fn linear_and_cosine_never_jump() {
        // The steepest they get: a step of the warm-up, or pi / 2 times an even descent.
        for kind in [ScheduleKind::Linear, ScheduleKind::Cosine] {
            let schedule = schedule(kind, 0.5, 200);
            for step in 0..200 {
                let change = schedule.learning_rate(step + 1) - schedule.learning_rate(step);
                assert!(change.abs() <= 2e-4 * 1.571 / 100.0, "{kind:?} jumps by {change} after step {step}");
            }
        }
    }

    #[test]
    fn cosine_is_half_way_in_the_middle_of_its_descent() {
        let schedule = schedule(ScheduleKind::Cosine, 0.1, 100);
        assert_eq!(schedule.learning_rate(55), 1e-4);
        let at_a_quarter = 1e-4 * (1.0 + 0.5_f64.sqrt()); // step 32.5 lies between these two
        assert!((schedule.learning_rate(32) as f64) > at_a_quarter);
        assert!((schedule.learning_rate(33) as f64) < at_a_quarter);
    }

    #[test]
    fn warmup_linear_jumps_to_nine_tenths() {
        let schedule = schedule(ScheduleKind::WarmupLinear, 0.1, 1000);
        assert_eq!(schedule.learning_rate(99), (2e-4 * 0.99) as f32);
        assert_eq!(schedule.learning_rate(100), (2e-4 * 0.9) as f32);
        assert_eq!(schedule.learning_rate(999), (2e-4 * 0.001) as f32);
    }

    #[test]
    fn after_the_end_only_a_constant_rate_is_left() {
        use ScheduleKind::*;
        for (kind, expected) in [(Linear, 0.0), (Cosine, 0.0), (WarmupLinear, 0.0), (Constant, 2e-4)] {
            for step in [100, 101, u64::MAX] {
                assert_eq!(schedule(kind, 0.1, 100).learning_rate(step), expected, "{kind:?} {step}");
            }
        }
    }

    #[test]
    fn without_warm_up_the_first_update_has_the_peak() {
        use ScheduleKind::*;
        for kind in [Linear, Cosine, Constant, WarmupLinear] {
            assert_eq!(schedule(kind, 0.0, 100).learning_rate(0), 2e-4, "{kind:?}");
        }
    }

    #[test]
    fn warm_up_steps_are_those_of_the_decimal_fraction() {
        let steps = |warmup, total| schedule(ScheduleKind::Linear, warmup, total).warmup_steps();
        assert_eq!(steps(0.29, 100), 29); // 0.29 * 100 = 28.999999999999996
        assert_eq!(steps(0.1, 19), 1);
        assert_eq!(steps(0.1, 3), 1);
        assert_eq!(steps(1.0, 50), 50);
        assert_eq!(steps(7.0, 50), 50);
    }

    #[test]
    fn a_schedule_of_nothing_but_warm_up_ends_at_zero() {
        let schedule = schedule(ScheduleKind::Linear, 1.0, 4);
        let rates: Vec<f32> = (0..6).map(|step| schedule.learning_rate(step)).collect();
        assert_eq!(rates, [0.0, 5e-5, 1e-4, 1.5e-4, 0.0, 0.0]);
    }
}
