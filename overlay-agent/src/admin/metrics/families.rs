use std::{
    fmt::{self, Write as _},
    time::{Duration, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use overlay_common::{
    Class,
    tables::{ABI_VERSION, Way},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text::encode},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use super::snapshot::{Etcd, Snapshot};
use crate::{admin::Verdicts, kernel::datapath::CounterRow};

/// Metrics of one name.
#[derive(Clone, Copy)]
pub(super) struct Family {
    /// Without unit and suffix.
    stem: &'static str,
    kind: Kind,
    unit: Option<Scale>,
    /// The names of its labels.
    pub(super) labels: &'static [&'static str],
    /// What it says, in a sentence.
    pub(super) help: &'static str,
    read: fn(&Snapshot) -> Vec<Sample>,
}

/// What may become of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It only grows, until the agent, or the host for what the kernel counts, starts anew.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// What a value is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    Bytes,
    Seconds,
}

impl From<Scale> for Unit {
    fn from(scale: Scale) -> Self {
        match scale {
            Scale::Bytes => Self::Bytes,
            Scale::Seconds => Self::Seconds,
        }
    }
}

struct Sample {
    /// The values of its labels, in their order.
    labels: Vec<String>,
    value: Value,
}

enum Value {
    Count(u64),
    Level(f64),
}

impl Value {
    fn encode(&self, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => encoder.encode_counter::<NoLabelSet, _, f64>(count, None),
            Self::Level(level) => encoder.encode_gauge(level),
        }
    }
}

const fn counter(
    stem: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    read: fn(&Snapshot) -> Vec<Sample>,
) -> Family {
    Family { stem, kind: Kind::Counter, unit: None, labels, help, read }
}

const fn gauge(
    stem: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    read: fn(&Snapshot) -> Vec<Sample>,
) -> Family {
    Family { stem, kind: Kind::Gauge, unit: None, labels, help, read }
}

/// Every metric, in the order in which it is shown.
pub(super) const FAMILIES: &[Family] = &[
    counter(
        "overlay_packets",
        &["hook", "reason", "class"],
        "Packets by the program that they left, why, and what became of them; an aggregate counts once. What never occurred is left out.",
        |now| by_reason(now, |row| row.packets),
    ),
    in_unit(
        Scale::Bytes,
        counter(
            "overlay_packet",
            &["hook", "reason", "class"],
            "Bytes of these packets, Ethernet headers included.",
            |now| by_reason(now, |row| row.bytes),
        ),
    ),
    counter(
        "overlay_verdicts",
        &["class"],
        "The same packets by what became of them, all programs and reasons together; every class is there from the start.",
        |now| now.counters.iter().flat_map(|rows| by_class(rows)).collect(),
    ),
    gauge(
        "overlay_peers",
        &[],
        "Other hosts' leases that are believed and have a place in the maps.",
        |now| level(now.census().map(|census| census.peers)),
    ),
    gauge("overlay_refused_leases", &[], "Other hosts' leases that are not believed.", |now| {
        level(now.census().map(|census| census.refused_leases))
    }),
    gauge(
        "overlay_peer_ways",
        &["way"],
        "Entries of map peers by the way that packets take: in VXLAN, as they are over the link that both hosts are on, or as the host's stack knows.",
        |now| {
            let ways = now.contents.iter().flat_map(|contents| contents.ways);
            ways.map(|(way, count)| labelled(way_name(way), count)).collect()
        },
    ),
    gauge("overlay_endpoints", &[], "Local containers that are delivered to directly.", |now| {
        level(now.census().map(|census| census.endpoints))
    }),
    gauge("overlay_map_entries", &["map"], "Entries of a BPF map.", |now| {
        let fills = now.contents.iter().flat_map(|contents| &contents.fills);
        fills.map(|fill| labelled(fill.map, fill.entries)).collect()
    }),
    gauge("overlay_map_capacity", &["map"], "Entries that a BPF map has room for.", |now| {
        let fills = now.contents.iter().flat_map(|contents| &contents.fills);
        fills.map(|fill| labelled(fill.map, fill.capacity)).collect()
    }),
    counter(
        "overlay_verifications",
        &[],
        "Passes in which the agent has looked at everything that it keeps in the kernel.",
        |now| count(now.census().map(|census| census.verifications.into())),
    ),
    counter(
        "overlay_repairs",
        &[],
        "Changes that it took to bring the kernel in step, those of the start included.",
        |now| count(Some(now.repairs)),
    ),
    in_unit(
        Scale::Seconds,
        gauge(
            "overlay_loop_silence",
            &[],
            "Since when the agent's loop has said nothing. It speaks once a second; from 10 s on it counts as hanging. Not there until it runs.",
            |now| seconds(now.latest.as_ref().map(|latest| latest.age)),
        ),
    ),
    gauge(
        "overlay_ready",
        &[],
        "1 where every known lease is programmed and the agent's loop turns, as /readyz says; else 0.",
        |now| level(Some(usize::from(now.ready))),
    ),
    gauge(
        "overlay_problems",
        &[],
        "Sentences that `overlay-agent status` has about what is wrong. Not there until the agent runs.",
        |now| level(now.latest.as_ref().map(|latest| latest.problems)),
    ),
    gauge(
        "overlay_etcd_connected",
        &[],
        "1 where there is a connection to etcd that has answered and not failed since; else 0. Not there with a peers file.",
        |now| level(now.etcd.as_ref().map(|etcd| usize::from(etcd.connected))),
    ),
    counter(
        "overlay_etcd_connections",
        &[],
        "Connections to etcd that were made. After the first, each takes the place of one that has failed.",
        |now| of_etcd(now, |etcd| etcd.connections),
    ),
    counter(
        "overlay_etcd_listings",
        &[],
        "How often all leases were read from etcd, those of the start included.",
        |now| of_etcd(now, |etcd| etcd.listings),
    ),
    counter(
        "overlay_etcd_watches",
        &[],
        "Watches of the leases in etcd that were begun. After the first, each takes the place of one that has ended.",
        |now| of_etcd(now, |etcd| etcd.watches),
    ),
    in_unit(
        Scale::Seconds,
        gauge(
            "overlay_lease_left",
            &[],
            "How long etcd keeps this host's lease if nobody renews it from now on. Not there where it does not end (a reservation, a peers file), and before etcd has granted it.",
            |now| seconds(lease(now).map(|(_, left)| left)),
        ),
    ),
    in_unit(
        Scale::Seconds,
        gauge(
            "overlay_lease_ttl",
            &[],
            "For how long the lease is renewed each time, which happens in a third of that.",
            |now| seconds(lease(now).map(|(ttl, _)| ttl)),
        ),
    ),
    in_unit(
        Scale::Seconds,
        gauge(
            "overlay_certificate_left",
            &[],
            "How long the certificate file by which etcd knows this host is good; 0 once it has expired. Not there where the agent was given none.",
            |now| seconds(now.certificate.map(|(left, _)| left)),
        ),
    ),
    in_unit(
        Scale::Seconds,
        gauge(
            "overlay_certificate_soon",
            &[],
            "With less than this left, that certificate ends soon: a quarter of its life where agents make it anew, thirty days at most, and always \
             thirty days where somebody else does.",
            |now| seconds(now.certificate.map(|(_, soon)| soon)),
        ),
    ),
    gauge(
        "overlay_build_info",
        &["version", "abi"],
        "Always 1: the agent's version, and that of the layout of its BPF maps.",
        |_| {
            let labels = vec![env!("CARGO_PKG_VERSION").to_owned(), ABI_VERSION.to_string()];
            vec![Sample { labels, value: Value::Level(1.0) }]
        },
    ),
    in_unit(
        Scale::Seconds,
        gauge("overlay_start_time", &[], "When the agent was started, since 1970.", |now| {
            seconds(now.started.duration_since(UNIX_EPOCH).ok())
        }),
    ),
];

const fn in_unit(unit: Scale, family: Family) -> Family {
    Family { unit: Some(unit), ..family }
}

fn by_reason(now: &Snapshot, what: fn(&CounterRow) -> u64) -> Vec<Sample> {
    let rows = now.counters.iter().flatten();
    let sample = |row: &CounterRow| Sample {
        labels: [row.hook.name(), row.reason.name(), Verdicts::from(row.class()).name()]
            .map(str::to_owned)
            .into(),
        value: Value::Count(what(row)),
    };
    rows.map(sample).collect()
}

fn by_class(rows: &[CounterRow]) -> impl Iterator<Item = Sample> {
    [Class::Forwarded, Class::Passed, Class::Declined, Class::Dropped].into_iter().map(|class| {
        let packets = rows.iter().filter(|row| row.class() == class).map(|row| row.packets);
        let labels = vec![Verdicts::from(class).name().to_owned()];
        Sample { labels, value: Value::Count(packets.sum()) }
    })
}

const fn way_name(way: Way) -> &'static str {
    match way {
        Way::Vxlan => "vxlan",
        Way::Direct => "direct",
        Way::Stack => "stack",
    }
}

fn lease(now: &Snapshot) -> Option<(Duration, Duration)> {
    now.etcd.as_ref()?.lease
}

fn of_etcd(now: &Snapshot, what: fn(&Etcd) -> u64) -> Vec<Sample> {
    count(now.etcd.as_ref().map(what))
}

fn count(known: Option<u64>) -> Vec<Sample> {
    let sample = |count| Sample { labels: Vec::new(), value: Value::Count(count) };
    known.map(sample).into_iter().collect()
}

fn level(known: Option<usize>) -> Vec<Sample> {
    let sample = |level| Sample { labels: Vec::new(), value: Value::Level(exact(level)) };
    known.map(sample).into_iter().collect()
}

fn seconds(known: Option<Duration>) -> Vec<Sample> {
    let sample =
        |time: Duration| Sample { labels: Vec::new(), value: Value::Level(time.as_secs_f64()) };
    known.map(sample).into_iter().collect()
}

fn labelled(value: &str, level: usize) -> Sample {
    Sample { labels: vec![value.to_owned()], value: Value::Level(exact(level)) }
}

/// Nothing that is counted like this comes near what a float cannot hold.
fn exact(level: usize) -> f64 {
    u32::try_from(level).unwrap_or(u32::MAX).into()
}

impl Family {
    /// The name that `OpenMetrics` has for all of it.
    fn family_name(&self) -> String {
        match self.unit {
            Some(unit) => format!("{}_{}", self.stem, Unit::from(unit).as_str()),
            None => self.stem.to_owned(),
        }
    }

    /// The name of its samples.
    pub(super) fn name(&self) -> String {
        let suffix = match self.kind {
            Kind::Counter => "_total",
            Kind::Gauge => "",
        };
        self.family_name() + suffix
    }

    const fn metric_type(&self) -> MetricType {
        match self.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
        }
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in FAMILIES {
            let samples = (family.read)(self);
            if samples.is_empty() {
                continue;
            }
            let unit = family.unit.map(Unit::from);
            let mut encoder = encoder.encode_descriptor(
                family.stem,
                family.help,
                unit.as_ref(),
                family.metric_type(),
            )?;
            for Sample { labels, value } in samples {
                let labels: Vec<_> = family.labels.iter().copied().zip(labels).collect();
                // Without labels, the library would write empty braces.
                if labels.is_empty() {
                    value.encode(&mut encoder)?;
                } else {
                    value.encode(&mut encoder.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}

/// Everything, as `OpenMetrics` has it.
pub(super) fn open_metrics(snapshot: Snapshot) -> Result<String> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    encode(&mut text, &registry).context("writing metrics")?;
    Ok(text)
}

/// The same in the format that Prometheus had before: there, a counter's family is called as its samples are, units are
/// in names alone, and nothing marks the end.
pub(super) fn plain(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    for line in page.lines() {
        let mut words = line.splitn(4, ' ');
        let (hash, what, name, rest) = (words.next(), words.next(), words.next(), words.next());
        let outcome = match (hash, what, name, rest) {
            (Some("#"), Some("EOF" | "UNIT"), ..) => Ok(()),
            (Some("#"), Some(what), Some(name), Some(rest)) => {
                let family = FAMILIES.iter().find(|family| family.family_name() == name);
                let name = family.map_or_else(|| name.to_owned(), Family::name);
                writeln!(text, "# {what} {name} {rest}")
            }
            _ => writeln!(text, "{line}"),
        };
        // Writing to a string cannot fail.
        outcome.ok();
    }
    text
}
