//! Probes: what is sent, what arrives, and what comes back.

mod ears;
mod packet;
mod sender;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::Result;

pub(crate) use self::ears::Ears;
use crate::shape::{Place, Probe, Protocol};

/// How long what was sent may take, the first time and again. What is lost by chance (a neighbour that is only being
/// asked for, a busy machine) is lost three times by necessity only.
const WINDOWS: [Duration; 3] =
    [Duration::from_millis(150), Duration::from_millis(250), Duration::from_millis(500)];

/// Source ports tell probes and attempts apart: this, and so many more for each attempt.
const PORTS: u16 = 10_000;

/// A probe and an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tag {
    pub(crate) probe: u16,
    pub(crate) attempt: u8,
}

impl Tag {
    pub(crate) fn port(self) -> u16 {
        PORTS * (u16::from(self.attempt) + 1) + self.probe
    }

    pub(crate) fn of_port(port: u16) -> Option<Self> {
        let attempt = u8::try_from((port / PORTS).checked_sub(1)?).ok()?;
        (usize::from(attempt) < WINDOWS.len()).then_some(Self { probe: port % PORTS, attempt })
    }
}

/// A packet as it arrives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Arrival {
    pub(crate) place: Place,
    pub(crate) source: Ipv4Addr,
    /// Whether the source port is the sender's.
    pub(crate) port_kept: bool,
    pub(crate) destination: Ipv4Addr,
    pub(crate) ttl: u8,
    pub(crate) tos: u8,
    pub(crate) df: bool,
    pub(crate) options: Vec<u8>,
}

/// An ICMP error.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Complaint {
    pub(crate) place: Place,
    pub(crate) from: Ipv4Addr,
    pub(crate) kind: u8,
    pub(crate) code: u8,
    /// The MTU of the way, where it is that.
    pub(crate) mtu: u16,
}

/// What became of a probe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fate {
    pub(crate) arrived: BTreeSet<Arrival>,
    pub(crate) answered: BTreeSet<Arrival>,
    pub(crate) complaints: BTreeSet<Complaint>,
    /// What the sender's own kernel said; of a connection also how it ended.
    pub(crate) said: Option<String>,
}

/// What is said of a connection that has not come about: which error it ends with depends on when it comes.
const FAILED: &str = "failed";

/// Somebody has no such neighbour, or not yet.
const HOST_UNREACHABLE: (u8, u8) = (3, 1);

impl Fate {
    /// Whether nothing more is to come in this attempt.
    fn is_over(&self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Tcp => self.said.is_some(),
            Protocol::Udp | Protocol::Icmp => {
                !self.answered.is_empty() || self.said.is_some() || !self.complaints.is_empty()
            }
        }
    }

    /// Whether it makes no sense to try again.
    fn is_settled(&self, protocol: Protocol) -> bool {
        let is_final = |complaint: &Complaint| (complaint.kind, complaint.code) != HOST_UNREACHABLE;
        let refused = self.complaints.iter().any(is_final);
        match protocol {
            Protocol::Tcp => self.said.as_deref().is_some_and(|said| said != FAILED || refused),
            Protocol::Udp | Protocol::Icmp => {
                !self.answered.is_empty() || self.said.is_some() || refused
            }
        }
    }

    /// Whether the kernel that complained is one that complains only so often: it counts what it has no route for, or
    /// a route that refuses, by who sent it, and nothing switches that off for a namespace.
    pub(crate) fn is_rationed(&self) -> bool {
        let by_route = |complaint: &Complaint| {
            complaint.kind == HOST_UNREACHABLE.0 && matches!(complaint.code, 0 | 1 | 13)
        };
        !self.complaints.is_empty() && self.complaints.iter().all(by_route)
    }

    /// Whether a neighbour was asked for that there is not, which takes its time: it may be said too late.
    pub(crate) fn is_in_vain(&self) -> bool {
        let unreachable =
            |complaint: &Complaint| (complaint.kind, complaint.code) == HOST_UNREACHABLE;
        self.arrived.is_empty() && self.complaints.iter().all(unreachable)
    }

    pub(crate) fn is_answered(&self) -> bool {
        !self.answered.is_empty() && self.said.as_deref().is_none_or(|said| said == "done")
    }
}

impl fmt::Display for Arrival {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, source, port_kept, destination, ttl, tos, df, options } = self;
        let port = if *port_kept { "" } else { " by another port" };
        let df = if *df { ", DF" } else { "" };
        write!(
            formatter,
            "at {place} from {source}{port} to {destination}, TTL {ttl}, TOS {tos}{df}"
        )?;
        if options.is_empty() { Ok(()) } else { write!(formatter, ", options {options:?}") }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, from, kind, code, mtu } = self;
        write!(formatter, "at {place} ICMP {kind}/{code} from {from}")?;
        if *mtu == 0 { Ok(()) } else { write!(formatter, ", MTU {mtu}") }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arrived = self.arrived.iter().map(|arrival| format!("arrived {arrival}"));
        let answered = self.answered.iter().map(|answer| format!("answered {answer}"));
        let complaints = self.complaints.iter().map(ToString::to_string);
        let said = self.said.iter().cloned();
        let all: Vec<_> = arrived.chain(answered).chain(complaints).chain(said).collect();
        if all.is_empty() {
            formatter.write_str("lost")
        } else {
            formatter.write_str(&all.join("; "))
        }
    }
}

/// What became of probes, attempt by attempt.
pub(crate) type Fates = BTreeMap<Tag, Fate>;

/// What became of each probe of a round, and how often each sender has heard of routes, in all attempts.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) fates: BTreeMap<u16, Fate>,
    pub(crate) heard: BTreeMap<Place, usize>,
}

/// Sends probes side by side, and again what was lost.
pub(crate) fn round(ears: &mut Ears, probes: &[(u16, Probe)]) -> Result<Round> {
    let mut fates = Fates::new();
    let mut last = BTreeMap::new();
    let mut open = probes.to_vec();
    for (attempt, window) in (0..).zip(WINDOWS) {
        for (probe, _) in &open {
            last.insert(*probe, attempt);
        }
        let sockets = ears.send(&open, attempt, window, &mut fates)?;
        let end = Instant::now() + window;
        let is_over = |fates: &Fates| {
            open.iter().all(|(probe, what)| {
                fates
                    .get(&Tag { probe: *probe, attempt })
                    .is_some_and(|fate| fate.is_over(what.protocol))
            })
        };
        while Instant::now() < end && !is_over(&fates) {
            ears.listen(Duration::from_millis(10), &mut fates)?;
        }
        // What has been sent twice, or answered by two.
        while ears.listen(Duration::from_millis(5), &mut fates)? {}
        drop(sockets);
        open.retain(|(probe, what)| {
            !fates
                .get(&Tag { probe: *probe, attempt })
                .is_some_and(|fate| fate.is_settled(what.protocol))
        });
        if open.is_empty() {
            break;
        }
    }
    let mut heard = BTreeMap::new();
    for complaint in
        fates.values().filter(|fate| fate.is_rationed()).flat_map(|fate| &fate.complaints)
    {
        *heard.entry(complaint.place).or_default() += 1;
    }
    let protocols: BTreeMap<_, _> =
        probes.iter().map(|(probe, what)| (*probe, what.protocol)).collect();
    let fate = |(probe, attempt)| {
        let mut fate = fates.remove(&Tag { probe, attempt }).unwrap_or_default();
        if protocols[&probe] == Protocol::Tcp {
            fate.said.get_or_insert_with(|| FAILED.to_owned());
        }
        (probe, fate)
    };
    Ok(Round { fates: last.into_iter().map(fate).collect(), heard })
}
