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

use crate::lease::{
    allocate::{overlap, overlapping},
    claim::Claim,
    key::SubnetKey,
};

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
    leases: BTreeMap<SubnetKey, Claim>,
    /// Those of `leases` that etcd lacks, and until when they are kept.
    missing: BTreeMap<SubnetKey, Instant>,
}

impl Known {
    pub(super) fn new(patience: Patience) -> Self {
        Self { patience, ..Self::default() }
    }

    /// Takes over a listing after an outage, zero if there was none. Returns what counts from now on, in
    /// order.
    pub(super) fn listed(
        &mut self,
        listed: Vec<Claim>,
        outage: Duration,
        now: Instant,
    ) -> Vec<Claim> {
        let listed: BTreeMap<_, _> = listed.into_iter().map(|claim| (claim.key, claim)).collect();
        let before = std::mem::replace(&mut self.leases, listed);
        let missing = std::mem::take(&mut self.missing);
        let index = Index::new(&self.leases);
        let kept: Vec<_> = before
            .into_iter()
            .filter(|(_, claim)| !index.replaces(claim))
            .filter_map(|(key, claim)| {
                let until = if outage >= self.patience.outage {
                    now + self.patience.grace
                } else {
                    *missing.get(&key)?
                };
                Some((key, claim, until))
            })
            .collect();
        for (key, claim, until) in kept {
            self.leases.insert(key, claim);
            self.missing.insert(key, until);
        }
        self.leases.values().copied().collect()
    }

    /// Takes note of a lease that etcd has. Returns the kept ones that it takes the place of.
    pub(super) fn put(&mut self, claim: Claim) -> Vec<SubnetKey> {
        let lease = claim.lease;
        self.missing.remove(&claim.key);
        let replaced: Vec<_> = self
            .missing
            .keys()
            .filter(|key| {
                let same_host = |old: &Claim| old.lease.public_ip == lease.public_ip;
                overlap(key.subnet, lease.subnet) || self.leases.get(key).is_some_and(same_host)
            })
            .copied()
            .collect();
        for key in &replaced {
            self.removed(*key);
        }
        self.leases.insert(claim.key, claim);
        replaced
    }

    /// Takes note that a lease is gone for certain.
    pub(super) fn removed(&mut self, key: SubnetKey) {
        self.leases.remove(&key);
        self.missing.remove(&key);
    }

    /// When to ask for [`expired`](Self::expired) leases next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.missing.values().min().copied()
    }

    /// Forgets and returns those that were kept for long enough.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<SubnetKey> {
        let expired: Vec<_> =
            self.missing.iter().filter(|(_, until)| **until <= now).map(|(key, _)| *key).collect();
        for key in &expired {
            self.removed(*key);
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
    leases: &'a BTreeMap<SubnetKey, Claim>,
    lengths: BTreeSet<u8>,
    addresses: HashSet<std::net::Ipv4Addr>,
}

impl<'a> Index<'a> {
    fn new(leases: &'a BTreeMap<SubnetKey, Claim>) -> Self {
        Self {
            leases,
            lengths: leases.keys().map(|key| key.subnet.prefix()).collect(),
            addresses: leases.values().map(|claim| claim.lease.public_ip).collect(),
        }
    }

    /// Whether the listing has this subnet, one that overlaps it, or another one of the same host.
    fn replaces(&self, claim: &Claim) -> bool {
        self.addresses.contains(&claim.lease.public_ip) || self.overlaps(claim.key.subnet)
    }

    fn overlaps(&self, subnet: Ipv4Network) -> bool {
        overlapping(self.leases, self.lengths.iter().copied(), subnet).next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use overlay_common::MacAddr;
    use proptest::prelude::*;

    use super::*;
    use crate::lease::Lease;

    const LONG: Duration = Duration::from_hours(1);

    fn lease(subnet: &str, host: u8) -> Claim {
        Claim::listed(Lease {
            subnet: subnet.parse().unwrap(),
            public_ip: Ipv4Addr::new(192, 0, 2, host),
            vtep_mac: MacAddr([2, 0, 0, 0, 0, host]),
            vni: None,
        })
    }

    fn known(leases: &[Claim]) -> Known {
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
        assert_eq!(known.expired(now + Duration::from_mins(1)), [all[1].key]);
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
        known.removed(all[1].key);
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
        assert_eq!(after.put(listed[0]), [all[1].key]);
        assert_eq!(after.put(listed[1]), [all[0].key]);
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
                .map(|subnet| Claim::listed(Lease { subnet, ..lease("10.5.1.0/24", 1).lease }))
                .map(|claim| (claim.key, claim))
                .collect();
            let wanted = subnet(at, len);
            let expected = leases.keys().any(|other| overlap(other.subnet, wanted));
            prop_assert_eq!(Index::new(&leases).overlaps(wanted), expected);
        }
    }
}
