//! Medians and intervals that assume nothing about how measurements scatter.

use serde::Serialize;

/// How sure an interval is meant to be.
const CONFIDENCE: f64 = 0.95;

/// The middle of some measurements, and how far it can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The median.
    pub median: f64,
    /// The interval that holds the true median …
    pub low: f64,
    /// … between these two.
    pub high: f64,
    /// With this probability: from as few as five rounds there is no interval of 95 %.
    pub confidence: f64,
    /// How many measurements it is made of.
    pub count: usize,
}

impl Estimate {
    /// Of these measurements; none of none.
    ///
    /// The interval lies between two of the measurements, chosen by the binomial distribution: each is
    /// below the true median with a probability of one half, whatever else is true of them.
    pub fn of(values: &[f64]) -> Option<Self> {
        let sorted = sorted(values);
        let median = median_of_sorted(&sorted)?;
        let (skipped, confidence) = skipped_at_each_end(sorted.len());
        let low = *sorted.get(skipped)?;
        let high = *sorted.get(sorted.len() - 1 - skipped)?;
        Some(Self { median, low, high, confidence, count: sorted.len() })
    }

    /// Half the interval's width as a share of the median: how noisy it is.
    pub fn relative_error(&self) -> f64 {
        if self.median == 0.0 {
            return f64::INFINITY;
        }
        (self.high - self.low) / 2.0 / self.median.abs()
    }
}

/// The median; none of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    median_of_sorted(&sorted(values))
}

/// The value below which this share of a sorted list lies (nearest rank).
pub fn quantile<T: Copy>(sorted: &[T], share: f64) -> Option<T> {
    let rank = (share * as_float(sorted.len())).ceil();
    // Small and not negative: it is a place in a list.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place in a list"
    )]
    let rank = rank as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

/// Half the distance between the quartiles as a share of the median: the noise of single measurements.
pub fn spread(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values);
    let median = median_of_sorted(&sorted)?;
    let distance = quantile(&sorted, 0.75)? - quantile(&sorted, 0.25)?;
    (median != 0.0).then(|| distance / 2.0 / median.abs())
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn median_of_sorted(sorted: &[f64]) -> Option<f64> {
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(sorted[sorted.len() / 2 - 1], upper))
}

/// How many of the smallest and of the largest measurements can be left out of an interval, and what
/// confidence remains.
fn skipped_at_each_end(count: usize) -> (usize, f64) {
    let mut best = (0, coverage(count, 0));
    for skipped in 1..count.div_ceil(2) {
        let confidence = coverage(count, skipped);
        if confidence < CONFIDENCE {
            break;
        }
        best = (skipped, confidence);
    }
    best
}

/// The probability that the median lies between the measurements that are left.
fn coverage(count: usize, skipped: usize) -> f64 {
    // P(at most `skipped` of `count` fall on one side), for each of both sides.
    let mut term = 0.5_f64.powf(as_float(count));
    let mut tail = term;
    for k in 1..=skipped {
        term *= as_float(count - k + 1) / as_float(k);
        tail += term;
    }
    (1.0 - 2.0 * tail).max(0.0)
}

/// A count as a number to calculate with.
pub fn as_float(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(left: f64, right: f64) {
        assert!((left - right).abs() < 1e-9, "{left} instead of {right}");
    }

    #[test]
    fn the_median_is_the_middle() {
        close(median(&[3.0, 1.0, 2.0]).unwrap(), 2.0);
        close(median(&[4.0, 1.0, 2.0, 3.0]).unwrap(), 2.5);
        assert_eq!(median(&[]), None);
        close(median(&[f64::NAN, 7.0]).unwrap(), 7.0);
    }

    #[test]
    fn ten_measurements_leave_out_one_at_each_end() {
        let values: Vec<f64> = (1..=10).map(f64::from).collect();
        let estimate = Estimate::of(&values).unwrap();
        close(estimate.low, 2.0);
        close(estimate.high, 9.0);
        // 1 - 2 × (1 + 10) / 1024, as in every table of this interval.
        close(estimate.confidence, 1.0 - 22.0 / 1024.0);
    }

    #[test]
    fn few_measurements_say_how_sure_they_are() {
        let estimate = Estimate::of(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        close(estimate.low, 1.0);
        close(estimate.high, 5.0);
        close(estimate.confidence, 0.9375);
        close(Estimate::of(&[5.0]).unwrap().confidence, 0.0);
        assert_eq!(Estimate::of(&[]), None);
    }

    #[test]
    fn the_interval_holds_the_true_median_as_often_as_it_says() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            f64::from(u32::try_from(state >> 32).unwrap()) / f64::from(u32::MAX)
        };
        for count in [6, 10, 11, 25] {
            // Far from symmetric: the true median of x^4 is 0.5^4.
            let truth = 0.5_f64.powi(4);
            let trials = 4000;
            let mut held = 0;
            let mut promised = 0.0;
            for _ in 0..trials {
                let values: Vec<f64> = (0..count).map(|_| random().powi(4)).collect();
                let estimate = Estimate::of(&values).unwrap();
                promised = estimate.confidence;
                held += u32::from(estimate.low <= truth && truth <= estimate.high);
                assert!(estimate.low <= estimate.median && estimate.median <= estimate.high);
            }
            let held = f64::from(held) / f64::from(trials);
            assert!(promised >= CONFIDENCE && (held - promised).abs() < 0.015, "{held} {promised}");
        }
    }

    #[test]
    fn quantiles_are_nearest_ranks() {
        let values: Vec<u64> = (1..=100).collect();
        assert_eq!(quantile(&values, 0.5), Some(50));
        assert_eq!(quantile(&values, 0.99), Some(99));
        assert_eq!(quantile(&values, 1.0), Some(100));
        assert_eq!(quantile(&[7], 0.0), Some(7));
        assert_eq!(quantile::<u64>(&[], 0.5), None);
    }

    #[test]
    fn noise_is_relative() {
        close(spread(&[9.0, 10.0, 10.0, 11.0]).unwrap(), 0.05);
        close(spread(&[5.0; 4]).unwrap(), 0.0);
        let estimate = Estimate::of(&[8.0, 10.0, 12.0]).unwrap();
        close(estimate.relative_error(), 0.2);
    }
}
