//! Means, deviations, and intervals by the percentile bootstrap (Efron 1979; Berg-Kirkpatrick et al. 2012, "An empirical
//! investigation of statistical significance in NLP", for the paired one).

use serde::{Deserialize, Serialize};

use crate::random::Random;

/// What the draws of a bootstrap are for: keeps their stream of [`Random`] apart.
const BOOTSTRAP: u32 = 0x4253_0000;

/// The arithmetic mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// The sample standard deviation, the square root of the squares' sum over n - 1; `None` for fewer than two values.
pub fn deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

/// Two bounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The lower bound.
    pub low: f64,
    /// The upper bound.
    pub high: f64,
}

/// How often something is drawn again, and which share of it an interval holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bootstrap {
    /// The key of the draws.
    pub seed: u64,
    /// Resamples.
    pub resamples: u32,
    /// The share of them within the interval; as many are below as above it.
    pub level: f64,
}

impl Bootstrap {
    /// The interval of a statistic over `len` items: in each resample so many are drawn with replacement, and `statistic`
    /// is told which. The draws depend on the key, `len` and the resample's number alone, so that two statistics of as
    /// many items see the same ones.
    ///
    /// `None` if there are fewer than two items, or where the statistic has no value for a resample.
    pub fn interval(&self, len: usize, mut statistic: impl FnMut(&[u32]) -> Option<f64>) -> Option<Interval> {
        let mut drawn = vec![0; len];
        self.bounds(len, |number| {
            self.draw(number, 0, &mut drawn);
            statistic(&drawn)
        })
    }

    /// The same for a statistic of two sides that are drawn by themselves, each with as many items as it has.
    pub fn interval_of_two(
        &self,
        [one, other]: [usize; 2],
        mut statistic: impl FnMut(&[u32], &[u32]) -> Option<f64>,
    ) -> Option<Interval> {
        let (mut of_one, mut of_other) = (vec![0; one], vec![0; other]);
        self.bounds(one.min(other), |number| {
            self.draw(number, 0, &mut of_one);
            self.draw(number, 1, &mut of_other);
            statistic(&of_one, &of_other)
        })
    }

    fn draw(&self, number: u32, side: u32, drawn: &mut [u32]) {
        let mut random = Random::new(self.seed, [number, BOOTSTRAP | side]);
        let len = drawn.len() as u32;
        drawn.iter_mut().for_each(|item| *item = random.below(len));
    }

    /// The bounds of what `statistic` makes of each resample.
    fn bounds(&self, fewest: usize, statistic: impl FnMut(u32) -> Option<f64>) -> Option<Interval> {
        if fewest < 2 {
            return None;
        }
        let mut values: Vec<f64> = (0..self.resamples).map(statistic).collect::<Option<_>>()?;
        values.sort_by(f64::total_cmp);
        let outside = (1.0 - self.level) / 2.0;
        Some(Interval { low: quantile(&values, outside), high: quantile(&values, 1.0 - outside) })
    }
}

/// The value below which this share of sorted values lies, between two neighbours in proportion.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOTSTRAP: Bootstrap = Bootstrap { seed: 1, resamples: 500, level: 0.9 };

    fn mean_of(values: &[f64], drawn: &[u32]) -> Option<f64> {
        Some(drawn.iter().map(|&item| values[item as usize]).sum::<f64>() / drawn.len() as f64)
    }

    #[test]
    fn means_and_deviations_by_hand() {
        let values = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
        assert_eq!(mean(&values), 5.0);
        // The squares' sum is 32.
        assert!((deviation(&values).unwrap() - (32.0_f64 / 7.0).sqrt()).abs() < 1e-15);
        assert_eq!((mean(&[3.0]), deviation(&[3.0])), (3.0, None));
        assert_eq!((mean(&[]), deviation(&[])), (0.0, None));
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.0), 1.0);
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.25), 1.5);
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 1.0), 4.0);
    }

    #[test]
    fn the_same_key_draws_the_same() {
        let values = [0.0, 1.0, 3.0, 7.0];
        let interval =
            |seed| Bootstrap { seed, ..BOOTSTRAP }.interval(4, |drawn| mean_of(&values, drawn)).unwrap();
        assert_eq!(interval(1), interval(1));
        assert_ne!(interval(1), interval(2));
        assert_eq!(BOOTSTRAP.interval(1, |_| Some(0.0)), None);
        assert_eq!(BOOTSTRAP.interval(4, |_| None), None);
    }

    #[test]
    fn a_higher_level_is_wider_and_more_resamples_are_others() {
        let values: Vec<f64> = (0..30).map(f64::from).collect();
        let interval =
            |bootstrap: Bootstrap| bootstrap.interval(30, |drawn| mean_of(&values, drawn)).unwrap();
        let (narrow, wide) = (
            interval(Bootstrap { level: 0.5, ..BOOTSTRAP }),
            interval(Bootstrap { level: 0.99, ..BOOTSTRAP }),
        );
        assert!(wide.low < narrow.low && narrow.high < wide.high, "{narrow:?} {wide:?}");
        assert_ne!(interval(BOOTSTRAP), interval(Bootstrap { resamples: 50, ..BOOTSTRAP }));
    }

    /// Of 90 % intervals for the mean of 60 tosses of a fair coin, some 90 % hold one half.
    #[test]
    fn intervals_cover_as_often_as_they_say() {
        let covered = (0..400).filter(|&experiment| {
            let mut random = Random::new(experiment, [9, 9]);
            let tosses: Vec<f64> = (0..60).map(|_| f64::from(random.below(2))).collect();
            let bootstrap = Bootstrap { resamples: 200, ..BOOTSTRAP };
            let Interval { low, high } = bootstrap.interval(60, |drawn| mean_of(&tosses, drawn)).unwrap();
            low <= 0.5 && 0.5 <= high
        });
        // 360 expected; five standard deviations of a binomial are 30, and percentile intervals are a little narrow.
        let covered = covered.count();
        assert!((325..=395).contains(&covered), "{covered}");
    }

    /// Pairing takes out what two sides share: a constant lead over a wild base has an interval of one point.
    #[test]
    fn a_paired_difference_is_as_sure_as_the_difference() {
        let base: Vec<f64> = (0..40).map(|item| f64::from(item * item % 17)).collect();
        let ahead: Vec<f64> = base.iter().map(|value| value + 2.0).collect();
        let interval =
            BOOTSTRAP.interval(40, |drawn| Some(mean_of(&ahead, drawn)? - mean_of(&base, drawn)?)).unwrap();
        assert!((interval.low - 2.0).abs() < 1e-12 && (interval.high - 2.0).abs() < 1e-12, "{interval:?}");
    }

    /// Two sides by themselves are less sure than pairs: the variances add.
    #[test]
    fn two_sides_are_drawn_apart() {
        let values: Vec<f64> = (0..40).map(f64::from).collect();
        let difference = |a: &[u32], b: &[u32]| Some(mean_of(&values, a)? - mean_of(&values, b)?);
        let Interval { low, high } = BOOTSTRAP.interval_of_two([40, 40], difference).unwrap();
        // The deviation of a mean of 40 is 11.5 / sqrt(40), of the difference sqrt(2) times that: 2.58; 90 % are +-1.645.
        assert!((low + 4.25).abs() < 0.8 && (high - 4.25).abs() < 0.8, "{low} {high}");
        assert_eq!(BOOTSTRAP.interval_of_two([40, 1], difference), None);
    }
}
