//! Hosts that a new listing lacks.
//!
//! A deletion that is seen on a live watch applies at once, whether an operator released the lease or it
//! expired: etcd was there, and so it knew. A new listing after an outage says less. Where etcd lost its
//! data, or was cut off from all hosts for longer than their leases lasted, it comes back without leases
//! that their hosts are only about to take again; and a host would stop sending to peers that are all
//! well. So a lease that a listing lacks after such an outage is kept for a while: until its host has it
//! again, until its public address turns up in another lease, or until the time is over. Meanwhile it is
//! younger than whatever etcd has: who has its subnet now is believed at once, and who merely claims
//! what nobody can have takes nothing from it.
//!
//! A short gap cannot have cost anybody a lease, since a host renews at a third of its TTL, which is at
//! least ten seconds. What a listing lacks after a short gap was released on purpose and goes at once.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use super::claim::LeaseClaim;
use crate::wire::key::SubnetKey;

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
    leases: BTreeMap<SubnetKey, LeaseClaim>,
    /// Those of `leases` that etcd lacks, and until when they are kept.
    missing: BTreeMap<SubnetKey, Instant>,
    /// The same in order of time, and of public addresses.
    by_time: BTreeSet<(Instant, SubnetKey)>,
    by_address: BTreeSet<(Ipv4Addr, SubnetKey)>,
}

impl Known {
    pub(super) fn new(patience: Patience) -> Self {
        Self { patience, ..Self::default() }
    }

    /// Takes over a listing after an outage, zero if there was none. Returns what counts from now on, in
    /// order.
    pub(super) fn listed(
        &mut self,
        listed: Vec<LeaseClaim>,
        outage: Duration,
        now: Instant,
    ) -> Vec<LeaseClaim> {
        let listed: BTreeMap<_, _> = listed.into_iter().map(|claim| (claim.key, claim)).collect();
        let before = std::mem::take(self);
        self.patience = before.patience;
        let is_news = |claim: &&LeaseClaim| tells_news(before.leases.get(&claim.key), claim);
        let elsewhere: HashSet<_> =
            listed.values().filter(is_news).map(|claim| claim.lease.public_ip).collect();
        let until = |key| {
            let since_now = outage >= self.patience.outage;
            if since_now {
                Some(now + self.patience.grace)
            } else {
                before.missing.get(key).copied()
            }
        };
        let kept: Vec<_> = before
            .leases
            .iter()
            .filter(|(key, claim)| {
                !listed.contains_key(key) && !elsewhere.contains(&claim.lease.public_ip)
            })
            .filter_map(|(key, claim)| Some((claim.in_doubt(), until(key)?)))
            .collect();
        self.leases = listed;
        for (claim, until) in kept {
            self.keep(claim, until);
        }
        self.leases.values().copied().collect()
    }

    /// Takes note of leases that etcd has lost during an outage, as it says afterwards. Returns each as it counts from now on:
    /// as a claim that is kept for a while, or not at all.
    pub(super) fn lost(
        &mut self,
        keys: &[SubnetKey],
        outage: Duration,
        now: Instant,
    ) -> Vec<(SubnetKey, Option<LeaseClaim>)> {
        let lost: HashSet<_> = keys.iter().collect();
        let alive = self.leases.iter().filter(|(key, _)| !lost.contains(key));
        let addresses: HashSet<_> = alive.map(|(_, claim)| claim.lease.public_ip).collect();
        let mut told = Vec::new();
        for key in keys {
            let Some(claim) = self.removed(*key) else { continue };
            let is_kept =
                outage >= self.patience.outage && !addresses.contains(&claim.lease.public_ip);
            let kept = is_kept.then(|| claim.in_doubt());
            if let Some(claim) = kept {
                self.keep(claim, now + self.patience.grace);
            }
            told.push((*key, kept));
        }
        told
    }

    /// Keeps what etcd lacks until then.
    fn keep(&mut self, claim: LeaseClaim, until: Instant) {
        self.leases.insert(claim.key, claim);
        self.missing.insert(claim.key, until);
        self.by_time.insert((until, claim.key));
        self.by_address.insert((claim.lease.public_ip, claim.key));
    }

    /// The one of etcd's that was written last.
    pub(super) fn latest(&self) -> Option<&LeaseClaim> {
        let there = self.leases.values().filter(|claim| !self.missing.contains_key(&claim.key));
        there.max_by_key(|claim| claim.written)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.leases.len()
    }

    /// Whether this is known, but for revisions.
    pub(super) fn knows(&self, claim: &LeaseClaim) -> bool {
        self.leases.get(&claim.key).is_some_and(|known| known.lease == claim.lease)
    }

    /// Takes note of a lease that etcd has. Returns the kept ones that it takes the place of.
    pub(super) fn put(&mut self, claim: LeaseClaim) -> Vec<SubnetKey> {
        let before = self.removed(claim.key);
        let mut replaced = Vec::new();
        if tells_news(before.as_ref(), &claim) {
            let address = claim.lease.public_ip;
            let range = (address, SubnetKey::FIRST)..=(address, SubnetKey::LAST);
            replaced.extend(self.by_address.range(range).map(|(_, key)| *key));
        }
        for key in &replaced {
            self.removed(*key);
        }
        self.leases.insert(claim.key, claim);
        replaced
    }

    /// Takes note that a lease is gone for certain, and returns what was known of it.
    pub(super) fn removed(&mut self, key: SubnetKey) -> Option<LeaseClaim> {
        let claim = self.leases.remove(&key)?;
        if let Some(until) = self.missing.remove(&key) {
            self.by_time.remove(&(until, key));
            self.by_address.remove(&(claim.lease.public_ip, key));
        }
        Some(claim)
    }

    /// When to ask for [`expired`](Self::expired) leases next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.by_time.first().map(|(until, _)| *until)
    }

    /// Forgets and returns those that were kept for long enough.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<SubnetKey> {
        let past = self.by_time.iter().take_while(|(until, _)| *until <= now);
        let expired: Vec<_> = past.map(|(_, key)| *key).collect();
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

/// Whether a lease says something about its host that was not known before.
fn tells_news(before: Option<&LeaseClaim>, now: &LeaseClaim) -> bool {
    before.is_none_or(|before| before.lease.public_ip != now.lease.public_ip)
}

#[cfg(test)]
mod tests {
    use overlay_common::MacAddr;

    use super::*;
    use crate::{store::Revision, wire::Lease};

    const LONG: Duration = Duration::from_hours(1);

    fn lease(subnet: &str, host: u8) -> LeaseClaim {
        LeaseClaim::listed(Lease {
            subnet: subnet.parse().unwrap(),
            public_ip: Ipv4Addr::new(192, 0, 2, host),
            vtep_mac: MacAddr([2, 0, 0, 0, 0, host]),
            vni: None,
        })
    }

    fn known(leases: &[LeaseClaim]) -> Known {
        let mut known = Known::default();
        known.listed(leases.to_vec(), Duration::ZERO, Instant::now());
        known
    }

    #[test]
    fn after_a_long_outage_what_is_absent_is_kept_for_a_minute() {
        let all = [lease("10.5.1.0/24", 1), lease("10.5.2.0/24", 2)];
        let mut known = known(&all);
        let now = Instant::now();
        assert_eq!(known.listed(vec![all[0]], LONG, now), [all[0], all[1].in_doubt()]);
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
        assert_eq!(listed, [all[0], all[1].in_doubt()]);
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
    fn whoever_is_elsewhere_now_ends_the_grace_and_nobody_else() {
        let all = [lease("10.5.1.0/24", 1), lease("10.5.2.0/24", 2), lease("10.5.3.0/24", 3)];
        // 1 has moved; what says that it has a part of the subnet of 2, and more, is for others to judge. 3 had a
        // reservation all the time.
        let (moved, wide) = (lease("10.5.9.0/24", 1), lease("10.5.0.0/20", 7));
        let reserved = lease("10.5.8.0/24", 3);
        let mut after = known(&[&all[..], &[reserved]].concat());
        let kept = after.listed(vec![moved, wide, reserved], LONG, Instant::now());
        assert_eq!(kept, [wide, all[1].in_doubt(), all[2].in_doubt(), reserved, moved]);
        // The same as events.
        let mut after = known(&[&all[..], &[reserved]].concat());
        after.listed(vec![reserved], LONG, Instant::now());
        assert!(after.put(wide).is_empty());
        assert_eq!(after.put(moved), [all[0].key]);
        assert!(after.put(reserved).is_empty());
        assert_eq!(after.missing(), 2);
        assert_eq!(after.put(lease("10.5.7.0/24", 3)), [all[2].key]);
    }

    #[test]
    fn in_doubt_a_lease_is_younger_than_all_and_as_old_as_before_among_its_likes() {
        let [old, young] = [1, 2]
            .map(Revision::new)
            .map(|created| LeaseClaim { created, ..lease("10.5.1.0/24", 1) });
        assert!(young.in_doubt().rank() > old.in_doubt().rank());
        assert!(old.in_doubt().rank() > LeaseClaim { created: Revision::LAST, ..young }.rank());
        assert_eq!(old.in_doubt().in_doubt(), old.in_doubt());
    }
}
