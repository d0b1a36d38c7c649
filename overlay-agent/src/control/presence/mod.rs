//! Which peers are there: each is asked time and again, through the overlay, as containers' packets go. Our own programs
//! answer by themselves ([`overlay_common::echo`]), whatever the firewall there says. Who does not, flannel's hosts among
//! them, is asked by ICMP, through the overlay and past it.

mod ask;

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    num::NonZeroU32,
    time::{Duration, Instant},
};

use anyhow::Result;
use ipnetwork::Ipv4Network;
use overlay_common::{MacAddr, Vni};
use overlay_lease::wire::Lease;

use self::ask::Questions;
use crate::admin::{Answered, ProbeKind};

/// How often each is asked in the time after which silence is a fault.
const ASKED: u32 = 3;
/// Questions in one turn, of which there are four a second: thousands of peers are asked less often.
const AT_A_TIME: usize = 64;
/// Silent peers that are named.
const NAMED: usize = 5;

/// From where, and about what, peers are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The address that outer packets come from.
    pub uplink_address: Ipv4Addr,
    /// Our VTEP's address in the overlay.
    pub vtep_address: Ipv4Addr,
    /// Our VTEP's MAC.
    pub vtep_mac: MacAddr,
    /// VXLAN network identifier.
    pub vni: Vni,
    /// UDP port of VXLAN.
    pub port: u16,
    /// The VRF that outer packets go by, if the uplink is in one.
    pub vrf: Option<NonZeroU32>,
}

/// What is known of one peer.
#[derive(Clone, Debug)]
struct Seen {
    subnet: Ipv4Network,
    vtep_mac: MacAddr,
    since: Instant,
    asked: Option<Instant>,
    /// By which the answer to the latest question is known.
    nonce: u64,
    by_overlay: Option<(Instant, ProbeKind)>,
    past_overlay: Option<Instant>,
}

impl Seen {
    /// The first of its subnet, as with flannel.
    fn vtep_address(&self) -> Ipv4Addr {
        self.subnet.ip()
    }
}

/// Who has answered when.
#[derive(Debug)]
pub struct Presence {
    /// How long a peer may be silent; none where nobody is asked.
    patience: Option<Duration>,
    peers: BTreeMap<Ipv4Addr, Seen>,
    /// Whom the latest turn has asked last.
    turn: Option<Ipv4Addr>,
    questions: Option<(Asker, Questions)>,
}

impl Presence {
    /// Nobody has been asked yet.
    pub const fn new(patience: Option<Duration>) -> Self {
        Self { patience, peers: BTreeMap::new(), turn: None, questions: None }
    }

    /// Takes the peers of now for those of before.
    pub fn follow<'a>(&mut self, leases: impl Iterator<Item = &'a Lease>, now: Instant) {
        let mut before = std::mem::take(&mut self.peers);
        self.peers = leases
            .map(|lease| {
                let same = before
                    .remove(&lease.public_ip)
                    .filter(|seen| (seen.subnet, seen.vtep_mac) == (lease.subnet, lease.vtep_mac));
                let seen = same.unwrap_or(Seen {
                    subnet: lease.subnet,
                    vtep_mac: lease.vtep_mac,
                    since: now,
                    asked: None,
                    nonce: 0,
                    by_overlay: None,
                    past_overlay: None,
                });
                (lease.public_ip, seen)
            })
            .collect();
    }

    /// Hears who has answered, and asks some of those whose turn it is.
    pub fn turn(&mut self, asker: Asker, now: Instant) -> Result<()> {
        let Some(patience) = self.patience else { return Ok(()) };
        let mut questions = match self.questions.take() {
            Some((before, questions)) if before == asker => questions,
            _ => Questions::new(asker)?,
        };
        let outcome = self
            .hear(&questions, now)
            .and_then(|()| self.ask(&mut questions, patience / ASKED, now));
        self.questions = Some((asker, questions));
        outcome
    }

    fn hear(&mut self, questions: &Questions, now: Instant) -> Result<()> {
        for from in questions.echoes()? {
            if let Some(seen) = self.peers.get_mut(&from) {
                seen.past_overlay = Some(now);
            }
            if let Some(seen) = self.peers.values_mut().find(|seen| seen.vtep_address() == from) {
                seen.by_overlay = Some((now, ProbeKind::Icmp));
            }
        }
        // Of a host that has answered both ways, this one counts.
        for (from, nonce) in questions.answers() {
            if let Some(seen) = self.peers.get_mut(&from).filter(|seen| seen.nonce == nonce) {
                seen.by_overlay = Some((now, ProbeKind::Vxlan));
            }
        }
        Ok(())
    }

    fn ask(&mut self, questions: &mut Questions, pause: Duration, now: Instant) -> Result<()> {
        for address in self.due(now, pause) {
            let Some(seen) = self.peers.get_mut(&address) else { continue };
            seen.nonce = rand::random();
            questions.ask(address, seen.vtep_mac, seen.nonce);
            let has_our_program = seen.by_overlay.is_some_and(|(when, way)| {
                way == ProbeKind::Vxlan && now.duration_since(when) < 2 * pause
            });
            if seen.asked.is_some() && !has_our_program {
                questions.ask_by_icmp(address, seen.vtep_address())?;
            }
            seen.asked = Some(now);
            self.turn = Some(address);
        }
        Ok(())
    }

    /// Those who are to be asked now: the next ones, all the way round.
    fn due(&self, now: Instant, pause: Duration) -> Vec<Ipv4Addr> {
        let is_due = |seen: &Seen| seen.asked.is_none_or(|when| now.duration_since(when) >= pause);
        let next = self
            .turn
            .map_or(Ipv4Addr::UNSPECIFIED, |last| Ipv4Addr::from(u32::from(last).wrapping_add(1)));
        let around = self.peers.range(next..).chain(self.peers.range(..next));
        around
            .filter(|(_, seen)| is_due(seen))
            .map(|(address, _)| *address)
            .take(AT_A_TIME)
            .collect()
    }

    /// When and by which way each has answered last, by its public address.
    pub fn answered(&self, now: Instant) -> BTreeMap<Ipv4Addr, Answered> {
        let of = |seen: &Seen| {
            let (when, way) = seen.by_overlay?;
            Some(Answered { seconds_ago: now.duration_since(when).as_secs(), by: way })
        };
        self.peers.iter().filter_map(|(address, seen)| Some((*address, of(seen)?))).collect()
    }

    /// A sentence for each of those who have been silent for too long, of whom only some are named.
    pub fn problems(&self, port: u16, now: Instant) -> Vec<String> {
        let Some(patience) = self.patience else { return Vec::new() };
        let is_silent = |seen: &Seen| {
            let heard = seen.by_overlay.map_or(seen.since, |(when, _)| when);
            // Whoever has not been asked often enough cannot have answered.
            seen.asked.is_some() && now.duration_since(heard) >= patience
        };
        let silent: Vec<_> = self.peers.iter().filter(|(_, seen)| is_silent(seen)).collect();
        let mut problems: Vec<_> = silent
            .iter()
            .take(NAMED)
            .map(|(address, seen)| sentence(**address, seen, port, patience, now))
            .collect();
        if silent.len() > NAMED {
            problems.push(format!("{} more peers do not answer.", silent.len() - NAMED));
        }
        problems
    }
}

fn sentence(address: Ipv4Addr, seen: &Seen, port: u16, patience: Duration, now: Instant) -> String {
    let peer = format!("{address}, which leases {},", seen.subnet);
    let is_there = seen.past_overlay.is_some_and(|when| now.duration_since(when) < patience);
    if is_there {
        return format!(
            "{peer} answers, but not through the overlay: something between drops UDP port {port}."
        );
    }
    let silence = match seen.by_overlay {
        Some((when, _)) => format!("for {} s", now.duration_since(when).as_secs()),
        None => "since this agent knows it".to_owned(),
    };
    format!(
        "{peer} has not answered {silence}, neither through the overlay nor past it: it is down, cannot be reached, or this \
         host's firewall lets no answer in."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: Ipv4Addr = Ipv4Addr::new(192, 168, 33, 11);
    const PATIENCE: Duration = Duration::from_secs(30);

    fn lease(number: u8) -> Lease {
        Lease {
            subnet: format!("10.1.{number}.0/24").parse().expect("a subnet"),
            public_ip: Ipv4Addr::new(192, 168, 33, number),
            vtep_mac: MacAddr([2, 0, 0, 0, 0, number]),
            vni: Some(Vni::MAX),
        }
    }

    fn presence(leases: &[Lease], now: Instant) -> Presence {
        let mut presence = Presence::new(Some(PATIENCE));
        presence.follow(leases.iter(), now);
        presence
    }

    #[test]
    fn who_is_silent_for_too_long_is_named() {
        let start = Instant::now();
        let mut presence = presence(&[lease(11)], start);
        assert!(presence.problems(8472, start + 2 * PATIENCE).is_empty(), "nobody was asked");
        presence.peers.get_mut(&PEER).expect("there").asked = Some(start);
        assert!(presence.problems(8472, start + PATIENCE / 2).is_empty());
        let problems = presence.problems(8472, start + PATIENCE);
        assert!(problems[0].contains("since this agent knows it"), "{problems:?}");

        let seen = presence.peers.get_mut(&PEER).expect("there");
        seen.by_overlay = Some((start + PATIENCE, ProbeKind::Vxlan));
        assert!(presence.problems(8472, start + PATIENCE + PATIENCE / 3).is_empty());
        let problems = presence.problems(8472, start + 3 * PATIENCE);
        assert!(problems[0].contains("has not answered for 60 s"), "{problems:?}");

        presence.peers.get_mut(&PEER).expect("there").past_overlay = Some(start + 3 * PATIENCE);
        let problems = presence.problems(8472, start + 3 * PATIENCE);
        assert!(problems[0].contains("drops UDP port 8472"), "{problems:?}");
    }

    #[test]
    fn another_lease_at_the_same_address_begins_anew() {
        let start = Instant::now();
        let mut presence = presence(&[lease(11)], start);
        presence.peers.get_mut(&PEER).expect("there").by_overlay = Some((start, ProbeKind::Icmp));
        presence.follow([lease(11)].iter(), start);
        assert_eq!(presence.answered(start).len(), 1);
        let other = Lease { subnet: "10.1.99.0/24".parse().expect("a subnet"), ..lease(11) };
        presence.follow([other].iter(), start);
        assert!(presence.answered(start).is_empty());
    }

    #[test]
    fn of_many_all_have_their_turn() {
        let now = Instant::now();
        let leases: Vec<_> = (0..200).map(lease).collect();
        let mut presence = presence(&leases, now);
        let mut asked = Vec::new();
        for _ in 0..4 {
            let due = presence.due(now, PATIENCE / ASKED);
            presence.turn = due.last().copied();
            for address in due {
                presence.peers.get_mut(&address).expect("there").asked = Some(now);
                asked.push(address);
            }
        }
        assert_eq!(asked.len(), 200);
        asked.sort_unstable();
        asked.dedup();
        assert_eq!(asked.len(), 200);
        assert!(presence.due(now, PATIENCE / ASKED).is_empty());
        let problems = presence.problems(8472, now + PATIENCE);
        assert_eq!(
            (problems.len(), problems[NAMED].as_str()),
            (6, "195 more peers do not answer.")
        );
    }
}
