//! Hosts that a new listing lacks.
//!
//! A deletion that is seen on a live watch applies at once, whether an operator released the lease or it
//! expired: etcd was there, and so it knew. A new listing after an outage says less. Where etcd lost its
//! data, or was cut off from all hosts for longer than their leases lasted, it comes back without leases
//! that their hosts are only about to take again; and a host would stop sending to peers that are all
//! well. So a lease that a listing lacks after such an outage is kept for a while: until its host has it
//! again, until its subnet or its public address turns up in another lease, or until the time is over.
//!
//! A short gap cannot have cost anybody a lease, since a host renews at a third of its TTL, which is at
//! least ten seconds. What a listing lacks after a short gap was released on purpose and goes at once.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::{Duration, Instant},
};

use ipnetwork::Ipv4Network;

use crate::lease::{Lease, allocate::overlap};

/// How long an outage must have lasted for absence to be in doubt, and for how long the doubt lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// The shortest outage that counts.
    pub outage: Duration,
    /// For how long an absent lease is kept.
    pub grace: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { outage: Duration::from_secs(5), grace: Duration::from_mins(1) }
    }
}

/// The leases as those who follow know them: what etcd has, and what it lacks for the moment.
#[derive(Debug, Default)]
pub(super) struct Known {
    patience: Patience,
    leases: BTreeMap<Ipv4Network, Lease>,
    /// Those of `leases` that etcd lacks, and until when they are kept.
    missing: BTreeMap<Ipv4Network, Instant>,
}

impl Known {
    pub(super) fn new(patience: Patience) -> Self {
        Self { patience, ..Self::default() }
    }

    /// Takes over a listing after an outage, zero if there was none. Returns what counts from now on, in
    /// order.
    pub(super) fn listed(
        &mut self,
        listed: Vec<Lease>,
        outage: Duration,
        now: Instant,
    ) -> Vec<Lease> {
        let listed: BTreeMap<_, _> =
            listed.into_iter().map(|lease| (lease.subnet, lease)).collect();
        let before = std::mem::replace(&mut self.leases, listed);
        let missing = std::mem::take(&mut self.missing);
        let index = Index::new(&self.leases);
        let kept: Vec<_> = before
            .into_iter()
            .filter(|(subnet, lease)| !index.replaces(*subnet, lease))
            .filter_map(|(subnet, lease)| {
                let until = if outage >= self.patience.outage {
                    now + self.patience.grace
                } else {
                    *missing.get(&subnet)?
                };
                Some((subnet, lease, until))
            })
            .collect();
        for (subnet, lease, until) in kept {
            self.leases.insert(subnet, lease);
            self.missing.insert(subnet, until);
        }
        self.leases.values().copied().collect()
    }

    /// Takes note of a lease that etcd has. Returns the kept ones that it takes the place of.
    pub(super) fn put(&mut self, lease: Lease) -> Vec<Ipv4Network> {
        self.missing.remove(&lease.subnet);
        let replaced: Vec<_> = self
            .missing
            .keys()
            .filter(|subnet| {
                overlap(**subnet, lease.subnet)
                    || self.leases.get(subnet).is_some_and(|old| old.public_ip == lease.public_ip)
            })
            .copied()
            .collect();
        for subnet in &replaced {
            self.removed(*subnet);
        }
        self.leases.insert(lease.subnet, lease);
        replaced
    }

    /// Takes note that a lease is gone for certain.
    pub(super) fn removed(&mut self, subnet: Ipv4Network) {
        self.leases.remove(&subnet);
        self.missing.remove(&subnet);
    }

    /// When to ask for [`expired`](Self::expired) leases next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.missing.values().min().copied()
    }

    /// Forgets and returns those that were kept for long enough.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<Ipv4Network> {
        let expired: Vec<_> = self
            .missing
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(subnet, _)| *subnet)
            .collect();
        for subnet in &expired {
            self.removed(*subnet);
        }
        expired
    }

    /// How many are kept that etcd lacks.
    pub(super) fn missing(&self) -> usize {
        self.missing.len()
    }
}

/// A listing, for finding out quickly what is in the way of a lease.
struct Index<'a> {
    leases: &'a BTreeMap<Ipv4Network, Lease>,
    lengths: BTreeSet<u8>,
    addresses: HashSet<std::net::Ipv4Addr>,
}

impl<'a> Index<'a> {
    fn new(leases: &'a BTreeMap<Ipv4Network, Lease>) -> Self {
        Self {
            leases,
            lengths: leases.keys().map(|subnet| subnet.prefix()).collect(),
            addresses: leases.values().map(|lease| lease.public_ip).collect(),
        }
    }

    /// Whether the listing has this subnet, one that overlaps it, or another one of the same host.
    fn replaces(&self, subnet: Ipv4Network, lease: &Lease) -> bool {
        self.addresses.contains(&lease.public_ip) || self.overlaps(subnet)
    }

    fn overlaps(&self, subnet: Ipv4Network) -> bool {
        let around =
            self.lengths.iter().filter(|length| **length <= subnet.prefix()).any(|length| {
                let larger = Ipv4Network::new(subnet.network(), *length)
                    .and_then(|larger| Ipv4Network::new(larger.network(), *length));
                larger.is_ok_and(|larger| self.leases.contains_key(&larger))
            });
        around
            || Ipv4Network::new(subnet.network(), 0)
                .and_then(|first| Ok((first, Ipv4Network::new(subnet.broadcast(), 32)?)))
                .is_ok_and(|(first, last)| self.leases.range(first..=last).next().is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use overlay_common::MacAddr;
    use proptest::prelude::*;

    use super::*;

    const LONG: Duration = Duration::from_hours(1);

    fn lease(subnet: &str, host: u8) -> Lease {
        Lease {
            subnet: subnet.parse().unwrap(),
            public_ip: Ipv4Addr::new(192, 0, 2, host),
            vtep_mac: MacAddr([2, 0, 0, 0, 0, host]),
            vni: None,
        }
    }

    fn known(leases: &[Lease]) -> Known {
        let mut known = Known::default();
        known.listed(leases.to_vec(), Duration::ZERO, Instant::now());
        known
    }

    #[test]
    fn after_a_long_outage_what_is_absent_is_kept_for_a_minute() {
        let all = [lease("10.5.1.0/24", 1), lease("10.5.2.0/24", 2)];
        let mut known = known(&all);
        let now = Instant::now();
        assert_eq!(known.listed(vec![all[0]], LONG, now), all);
        assert_eq!(known.missing(), 1);
        assert!(known.expired(now + Duration::from_secs(59)).is_empty());
        assert_eq!(known.deadline(), Some(now + Duration::from_mins(1)));
        assert_eq!(known.expired(now + Duration::from_mins(1)), [all[1].subnet]);
        assert_eq!(known.deadline(), None);
    }

    #[test]
    fn after_a_short_gap_what_is_absent_is_gone() {
        let all = [lease("10.5.1.0/24", 1), lease("10.5.2.0/24", 2)];
        let mut known = known(&all);
        let listed = known.listed(vec![all[0]], Duration::from_secs(4), Instant::now());
        assert_eq!(listed, [all[0]]);
    }

    #[test]
    fn a_second_gap_does_not_cut_a_grace_short() {
        let all = [lease("10.5.1.0/24", 1), lease("10.5.2.0/24", 2)];
        let mut known = known(&all);
        let now = Instant::now();
        known.listed(vec![], LONG, now);
        let listed = known.listed(vec![all[0]], Duration::ZERO, now + Duration::from_secs(30));
        assert_eq!(listed, all);
        assert_eq!(known.deadline(), Some(now + Duration::from_mins(1)));
    }

    #[test]
    fn a_host_that_is_back_is_not_missing_any_more() {
        let all = [lease("10.5.1.0/24", 1), lease("10.5.2.0/24", 2)];
        let mut known = known(&all);
        known.listed(vec![], LONG, Instant::now());
        assert!(known.put(all[0]).is_empty());
        assert_eq!(known.missing(), 1);
        known.removed(all[1].subnet);
        assert_eq!(known.missing(), 0);
    }

    #[test]
    fn whoever_has_the_subnet_or_the_address_now_ends_the_grace() {
        let all = [lease("10.5.1.0/24", 1), lease("10.5.2.0/24", 2), lease("10.5.3.0/24", 3)];
        // In the listing: 1 has moved, the subnet of 2 is partly another host's.
        let listed = [lease("10.5.2.128/25", 7), lease("10.5.9.0/24", 1)];
        let mut after = known(&all);
        let kept = after.listed(listed.to_vec(), LONG, Instant::now());
        assert_eq!(kept, [listed[0], all[2], listed[1]]);
        // The same as events.
        let mut after = known(&all);
        after.listed(vec![], LONG, Instant::now());
        assert_eq!(after.put(listed[0]), [all[1].subnet]);
        assert_eq!(after.put(listed[1]), [all[0].subnet]);
        assert_eq!(after.missing(), 1);
    }

    proptest! {
        #[test]
        fn the_index_finds_exactly_what_overlaps(
            nets in prop::collection::vec((0_u32..64, 20_u8..=31), 0..12), at in 0_u32..64, len in 20_u8..=31,
        ) {
            let subnet = |at: u32, len: u8| {
                let host = Ipv4Network::new(Ipv4Addr::from(0x0a00_0000 + at * 37), len).unwrap();
                Ipv4Network::new(host.network(), len).unwrap()
            };
            let leases: BTreeMap<_, _> = nets
                .into_iter()
                .map(|(at, len)| subnet(at, len))
                .map(|subnet| (subnet, Lease { subnet, ..lease("10.5.1.0/24", 1) }))
                .collect();
            let wanted = subnet(at, len);
            let expected = leases.keys().any(|other| overlap(*other, wanted));
            prop_assert_eq!(Index::new(&leases).overlaps(wanted), expected);
        }
    }
}
