//! What we want to reach (`DESIGN`, section 7), and whether a measurement shows it.

use std::fmt;

use overlay_lab::statistics::Estimate;
use serde::Serialize;

use super::{
    rounds::Wire,
    work::{Quantity, Work},
};

/// A ratio whose interval is wider than this share of it, on either side, is no figure to quote.
pub(super) const NOISE_LIMIT: f64 = 0.15;

/// An interval that is less sure than this, from too few rounds, is none.
const CONFIDENCE_LIMIT: f64 = 0.9;

/// What a ratio should be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Bound {
    /// At least this: more is better.
    AtLeast(f64),
    /// At most this: less is better.
    AtMost(f64),
}

/// What we want of one quantity: a ratio to the host, and one to flannel.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Goal {
    pub(super) host: Bound,
    pub(super) flannel: Bound,
}

/// What a measurement says about a goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// The whole interval is where we want it.
    Reached,
    /// The whole interval is not.
    Missed,
    /// The bound lies within the interval: more rounds would tell.
    Close,
    /// The interval is so wide that it tells nothing.
    TooNoisy,
}

impl Goal {
    /// The goal for a quantity, if there is one.
    pub(super) fn of(wire: Wire, work: Work, quantity: Quantity) -> Option<Self> {
        use Bound::{AtLeast, AtMost};
        let (host, flannel) = match (work, quantity, wire) {
            (Work::Tcp1, Quantity::Throughput, Wire::On) => (AtLeast(0.97), AtLeast(1.10)),
            (Work::Tcp1, Quantity::Throughput, Wire::Imitated) => (AtLeast(0.95), AtLeast(1.15)),
            (Work::TcpRr | Work::UdpRr, Quantity::Median, _) => (AtMost(1.12), AtMost(0.55)),
            (Work::Udp64, Quantity::Rate, _) => (AtLeast(0.93), AtLeast(1.6)),
            _ => return None,
        };
        Some(Self { host, flannel })
    }
}

impl Bound {
    /// What this measured ratio says about it.
    pub(super) fn judge(self, ratio: &Estimate) -> Verdict {
        if is_too_noisy(ratio) {
            return Verdict::TooNoisy;
        }
        let [low, high] = [ratio.low, ratio.high].map(|ratio| self.holds(ratio));
        match (low, high) {
            (true, true) => Verdict::Reached,
            (false, false) => Verdict::Missed,
            _ => Verdict::Close,
        }
    }

    fn holds(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(bound) => ratio >= bound,
            Self::AtMost(bound) => ratio <= bound,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(formatter, "≥ {bound:.2}"),
            Self::AtMost(bound) => write!(formatter, "≤ {bound:.2}"),
        }
    }
}

impl Verdict {
    /// In words.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Reached => "reached",
            Self::Missed => "missed",
            Self::Close => "too close to tell",
            Self::TooNoisy => "too noisy to tell",
        }
    }
}

/// Whether a figure would pretend to know what it does not.
pub(super) fn is_too_noisy(estimate: &Estimate) -> bool {
    estimate.confidence < CONFIDENCE_LIMIT || estimate.relative_error() > NOISE_LIMIT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(low: f64, median: f64, high: f64) -> Estimate {
        Estimate { median, low, high, confidence: 0.97, count: 10 }
    }

    #[test]
    fn only_a_whole_interval_reaches_or_misses() {
        let bound = Bound::AtLeast(0.97);
        assert_eq!(bound.judge(&estimate(0.97, 0.98, 0.99)), Verdict::Reached);
        assert_eq!(bound.judge(&estimate(0.96, 0.98, 0.99)), Verdict::Close);
        assert_eq!(bound.judge(&estimate(0.90, 0.95, 0.96)), Verdict::Missed);
        let bound = Bound::AtMost(0.55);
        assert_eq!(bound.judge(&estimate(0.50, 0.52, 0.55)), Verdict::Reached);
        assert_eq!(bound.judge(&estimate(0.50, 0.52, 0.56)), Verdict::Close);
        assert_eq!(bound.judge(&estimate(0.56, 0.57, 0.58)), Verdict::Missed);
    }

    #[test]
    fn noise_is_no_verdict() {
        let wide = estimate(1.0, 1.5, 2.0);
        assert_eq!(Bound::AtLeast(0.5).judge(&wide), Verdict::TooNoisy);
        assert_eq!(Bound::AtLeast(3.0).judge(&wide), Verdict::TooNoisy);
        // Two rounds cannot show how far apart rounds are.
        let two = Estimate { confidence: 0.5, count: 2, ..estimate(1.0, 1.0, 1.0) };
        assert_eq!(Bound::AtLeast(0.5).judge(&two), Verdict::TooNoisy);
    }

    #[test]
    fn goals_are_those_of_the_design() {
        let goal = Goal::of(Wire::Imitated, Work::Tcp1, Quantity::Throughput).unwrap();
        assert_eq!((goal.host, goal.flannel), (Bound::AtLeast(0.95), Bound::AtLeast(1.15)));
        assert_eq!(goal.host.to_string(), "≥ 0.95");
        assert_eq!(Goal::of(Wire::On, Work::Tcp8, Quantity::Throughput), None);
    }
}
