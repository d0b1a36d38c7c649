//! What the samples say: medians per contender, and medians of ratios within a round.

use std::collections::BTreeMap;

use overlay_lab::statistics::{self, Estimate};
use serde::Serialize;

use super::{
    contenders::{CEILING, FLANNEL, HOST, OURS, OURS_BEFORE, OURS_HONOUR, OURS_MANY, SWARM},
    goals::{Goal, Verdict},
    rounds::{Sample, Wire},
    work::{Quantity, Work},
};

/// What else is compared, where both were measured: what is out of reach for us, what Docker has itself, what a change has
/// cost, and what leases and rules cost.
const PAIRS: [[&str; 2]; 5] =
    [[CEILING, HOST], [OURS, SWARM], [OURS, OURS_BEFORE], [OURS_HONOUR, OURS], [OURS_MANY, OURS]];

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Line {
    pub(super) wire: Wire,
    pub(super) work: Work,
    pub(super) quantity: Quantity,
    pub(super) unit: &'static str,
    pub(super) columns: Vec<Column>,
    pub(super) goal: Option<Goal>,
    /// What ours reaches against the host, and against flannel.
    pub(super) verdicts: [Option<Verdict>; 2],
    pub(super) pairs: Vec<Pair>,
}

/// Two contenders against each other.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Pair {
    pub(super) contenders: [&'static str; 2],
    pub(super) ratio: Option<Estimate>,
}

/// One contender in a line.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Column {
    pub(super) contender: &'static str,
    pub(super) value: Estimate,
    /// Of each round, in order.
    pub(super) rounds: Vec<f64>,
    pub(super) to_host: Option<Estimate>,
    pub(super) to_flannel: Option<Estimate>,
}

/// How quiet the machine was.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Noise {
    /// Runs.
    pub(super) runs: usize,
    /// Runs during which others used too much of the cores, repeated in vain.
    pub(super) disturbed: usize,
    /// The median of what others used of the cores.
    pub(super) foreign: f64,
    /// Half the distance between the quartiles of the host's own single stream, or of whatever
    /// the host was measured by, as a share of its median.
    pub(super) host_spread: Option<f64>,
}

impl Line {
    /// A contender's column.
    pub(super) fn column(&self, contender: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.contender == contender)
    }

    /// The first quantity of its work is the one to look at.
    pub(super) fn is_primary(&self) -> bool {
        self.work.quantities().first() == Some(&self.quantity)
    }
}

/// Every line, in the order of the samples' wires and works.
pub(super) fn lines(samples: &[Sample], contenders: &[&'static str]) -> Vec<Line> {
    let mut groups: BTreeMap<(Wire, Work), Vec<&Sample>> = BTreeMap::new();
    for sample in samples {
        groups.entry((sample.wire, sample.work)).or_default().push(sample);
    }
    let mut lines = Vec::new();
    for ((wire, work), samples) in groups {
        for &quantity in work.quantities() {
            lines.push(line(wire, work, quantity, &samples, contenders));
        }
    }
    lines
}

fn line(
    wire: Wire,
    work: Work,
    quantity: Quantity,
    samples: &[&Sample],
    contenders: &[&'static str],
) -> Line {
    let by_round = |contender: &str| -> BTreeMap<u32, f64> {
        samples
            .iter()
            .filter(|sample| sample.contender == contender)
            .filter_map(|sample| Some((sample.round, *sample.values.get(&quantity)?)))
            .collect()
    };
    let [host, flannel] = [HOST, FLANNEL].map(by_round);
    let columns: Vec<Column> = contenders
        .iter()
        .filter_map(|&contender| {
            let values = by_round(contender);
            let rounds: Vec<f64> = values.values().copied().collect();
            Some(Column {
                contender,
                value: Estimate::of(&rounds)?,
                to_host: ratio(&values, &host),
                to_flannel: ratio(&values, &flannel),
                rounds,
            })
        })
        .collect();
    let goal = Goal::of(wire, work, quantity);
    let ours = columns.iter().find(|column| column.contender == OURS);
    let verdicts = goal.zip(ours).map_or([None; 2], |(goal, ours)| {
        [(goal.host, ours.to_host), (goal.flannel, ours.to_flannel)]
            .map(|(bound, ratio)| ratio.map(|ratio| bound.judge(&ratio)))
    });
    let pairs = PAIRS
        .into_iter()
        .filter(|pair| pair.iter().all(|name| contenders.contains(name)))
        .map(|pair| {
            let [values, to] = pair.map(by_round);
            Pair { contenders: pair, ratio: ratio(&values, &to) }
        })
        .collect();
    Line { wire, work, quantity, unit: work.unit(quantity), columns, goal, verdicts, pairs }
}

/// Of each round's ratio.
fn ratio(values: &BTreeMap<u32, f64>, to: &BTreeMap<u32, f64>) -> Option<Estimate> {
    let ratios: Vec<f64> =
        values.iter().filter_map(|(round, value)| Some(value / to.get(round)?)).collect();
    Estimate::of(&ratios)
}

/// How quiet it was.
pub(super) fn noise(samples: &[Sample], lines: &[Line]) -> Noise {
    let foreign: Vec<f64> = samples.iter().map(|sample| sample.foreign + sample.stolen).collect();
    let host_spreads: Vec<f64> = lines
        .iter()
        .filter(|line| line.is_primary())
        .filter_map(|line| statistics::spread(&line.column(HOST)?.rounds))
        .collect();
    Noise {
        runs: samples.len(),
        disturbed: samples.iter().filter(|sample| sample.is_disturbed()).count(),
        foreign: statistics::median(&foreign).unwrap_or(0.0),
        host_spread: statistics::median(&host_spreads),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(contender: &'static str, round: u32, value: f64) -> Sample {
        Sample {
            wire: Wire::On,
            work: Work::Udp64,
            contender,
            round,
            values: [(Quantity::Rate, value)].into(),
            foreign: 0.01,
            stolen: 0.0,
        }
    }

    #[test]
    fn ratios_are_made_within_a_round() {
        // The machine gets twice as slow for half of the time: ratios do not notice.
        let mut samples = Vec::new();
        for round in 1..=10 {
            let speed = if round % 2 == 0 { 1.0 } else { 2.0 };
            samples.push(sample(HOST, round, 100.0 * speed));
            samples.push(sample(FLANNEL, round, 50.0 * speed));
            samples.push(sample(OURS, round, 95.0 * speed));
        }
        let lines = lines(&samples, &[HOST, FLANNEL, OURS]);
        let line = lines.iter().find(|line| line.quantity == Quantity::Rate).unwrap();
        let ours = line.column(OURS).unwrap();
        let to_host = ours.to_host.unwrap();
        assert!((to_host.low - 0.95).abs() < 1e-9 && (to_host.high - 0.95).abs() < 1e-9);
        assert_eq!(line.verdicts, [Some(Verdict::Reached); 2]);
        assert!(ours.value.relative_error() > 0.3);
        let noise = noise(&samples, &lines);
        assert_eq!((noise.runs, noise.disturbed), (30, 0));
        assert!(noise.host_spread.unwrap() > 0.3);
    }

    #[test]
    fn pairs_are_compared_where_both_were_measured() {
        let samples = [sample(OURS, 1, 100.0), sample(OURS_MANY, 1, 99.0)];
        let lines = lines(&samples, &[OURS, OURS_MANY]);
        let [pair] = &lines[0].pairs[..] else { panic!("{:?}", lines[0].pairs) };
        assert_eq!(pair.contenders, [OURS_MANY, OURS]);
        assert!((pair.ratio.unwrap().median - 0.99).abs() < 1e-9, "{pair:?}");
    }

    #[test]
    fn a_round_without_its_counterpart_is_left_out() {
        let samples = [sample(HOST, 1, 100.0), sample(OURS, 1, 90.0), sample(OURS, 2, 10.0)];
        let lines = lines(&samples, &[HOST, OURS]);
        let ours = lines[0].column(OURS).unwrap();
        assert_eq!(ours.to_host.unwrap().count, 1);
        assert_eq!(ours.to_flannel, None);
    }
}
