//! Which leases are believed.
//!
//! Whoever can write to the store can write nonsense, and no host must suffer from another's. The rule is that
//! of seniority: among leases that contradict each other the oldest counts, and the younger is refused for as
//! long as the older is there. A lease's age is that of its key: renewing it, or giving it another value, makes
//! it no younger. Our own lease is older than all others.
//!
//! Of the leases with one public address, the one speaks that is kept alive, and of those the one that was
//! written last: a host that has lost its memory takes a new lease while its old one runs out. The others are
//! believed, too: what is sent to them reaches the same host, which delivers nothing that is not for its
//! subnet.
//!
//! A verdict depends on older leases only. So a change is followed from the lease that changed to the younger
//! ones that contradict it and no further, oldest first; there is one outcome, whatever the order of changes.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::Ipv4Addr,
};

use ipnetwork::Ipv4Network;
use overlay_common::MacAddr;
use overlay_lease::{
    member::claim::{LeaseClaim, Rank},
    wire::{
        allocate::{overlap, overlapping},
        key::SubnetKey,
    },
};

use super::{
    limits::Limits,
    refusal::{Refusal, Special, special},
    surroundings::Surroundings,
};

/// Whose view it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The whole overlay.
    pub network: Ipv4Network,
    /// Our own subnet.
    pub own: Ipv4Network,
    /// The address that we publish.
    pub own_address: Ipv4Addr,
    /// The MAC that we publish.
    pub own_mac: MacAddr,
}

/// What has been decided about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing yet.
    Open,
    /// It is another host's.
    Believed,
    /// It is ours, now or of earlier.
    Ours,
    /// It is neither.
    Refused(Refusal),
}

#[derive(Debug)]
struct Case {
    claim: LeaseClaim,
    verdict: Verdict,
}

/// Leases in order of their public addresses, and of those in order of age.
type ByWriter = BTreeSet<(Ipv4Addr, Rank)>;

/// By key, what was believed before.
pub(super) type Changed = BTreeMap<SubnetKey, Option<LeaseClaim>>;

/// All leases there are, and what is thought of them.
#[derive(Debug)]
pub(super) struct Judge {
    scope: Scope,
    limits: Limits,
    surroundings: Surroundings,
    cases: BTreeMap<SubnetKey, Case>,
    /// How many cases there are of each prefix length.
    lengths: [usize; 33],
    believed: ByWriter,
    /// Refused for nothing but that their address has enough others.
    surplus: ByWriter,
    refused: BTreeSet<SubnetKey>,
    /// Addresses with more than one believed lease.
    shared: BTreeSet<Ipv4Addr>,
    /// Addresses with nearly as many believed leases as they may have.
    crowded: BTreeSet<Ipv4Addr>,
    /// To be decided (again).
    pending: BTreeSet<Rank>,
    /// What was believed before, of whatever is not the same any more.
    changed: Changed,
}

impl Judge {
    pub(super) fn new(scope: Scope, limits: Limits, surroundings: Surroundings) -> Self {
        Self {
            scope,
            limits,
            surroundings,
            cases: BTreeMap::new(),
            lengths: [0; 33],
            believed: ByWriter::new(),
            surplus: ByWriter::new(),
            refused: BTreeSet::new(),
            shared: BTreeSet::new(),
            crowded: BTreeSet::new(),
            pending: BTreeSet::new(),
            changed: Changed::new(),
        }
    }

    /// What is known about where this host is.
    pub(super) const fn surroundings(&self) -> &Surroundings {
        &self.surroundings
    }

    /// Decides again about the leases that another place of this host matters to.
    pub(super) fn set_surroundings(&mut self, surroundings: Surroundings) {
        let addresses: HashSet<_> =
            self.surroundings.difference(&surroundings).into_iter().collect();
        self.surroundings = surroundings;
        if addresses.is_empty() {
            return;
        }
        let concerned = self.cases.values().map(|case| &case.claim);
        let concerned = concerned.filter(|claim| addresses.contains(&claim.lease.public_ip));
        self.pending.extend(concerned.map(LeaseClaim::rank));
    }

    /// Takes note of a lease that is new or has changed.
    pub(super) fn put(&mut self, claim: LeaseClaim) {
        if let Some(case) = self.cases.get_mut(&claim.key)
            && case.claim.lease == claim.lease
            && case.claim.created == claim.created
        {
            // Renewed. Who speaks may depend on that.
            let before = std::mem::replace(&mut case.claim, claim);
            let believed = case.verdict == Verdict::Believed;
            self.changed.entry(claim.key).or_insert(believed.then_some(before));
            return;
        }
        self.remove(claim.key);
        self.lengths[usize::from(claim.key.subnet.prefix())] += 1;
        self.cases.insert(claim.key, Case { claim, verdict: Verdict::Open });
        self.pending.insert(claim.rank());
    }

    /// Takes note that a lease is gone.
    pub(super) fn remove(&mut self, key: SubnetKey) {
        let Some(claim) = self.cases.get(&key).map(|case| case.claim) else { return };
        self.pending.remove(&claim.rank());
        self.set_verdict(&claim, Verdict::Open);
        self.cases.remove(&key);
        self.lengths[usize::from(key.subnet.prefix())] -= 1;
    }

    /// Decides what is open, and returns which believed leases are new, gone, or have changed, with what was
    /// believed before.
    pub(super) fn settle(&mut self) -> Changed {
        while let Some(rank) = self.pending.pop_first() {
            let Some(claim) = self.cases.get(&rank.key).map(|case| case.claim) else { continue };
            let verdict = self.judge(&claim);
            self.set_verdict(&claim, verdict);
        }
        std::mem::take(&mut self.changed)
    }

    /// Every key there is.
    pub(super) fn keys(&self) -> impl Iterator<Item = SubnetKey> {
        self.cases.keys().copied()
    }

    /// A lease, if it is believed.
    pub(super) fn believed(&self, key: SubnetKey) -> Option<&LeaseClaim> {
        let case = self.cases.get(&key)?;
        (case.verdict == Verdict::Believed).then_some(&case.claim)
    }

    /// Everything that is believed, in order of subnets.
    pub(super) fn all_believed(&self) -> impl Iterator<Item = &LeaseClaim> {
        let believed = self.cases.values().filter(|case| case.verdict == Verdict::Believed);
        believed.map(|case| &case.claim)
    }

    /// The believed lease of a subnet. There is one at most, since two would overlap.
    pub(super) fn of_subnet(&self, subnet: Ipv4Network) -> Option<&LeaseClaim> {
        let keys = SubnetKey { subnet, ipv6: None }..;
        let mut cases = self.cases.range(keys).take_while(|(key, _)| key.subnet == subnet);
        let (_, found) = cases.find(|(_, case)| case.verdict == Verdict::Believed)?;
        Some(&found.claim)
    }

    /// All believed leases with this address, the oldest first.
    pub(super) fn of_address(&self, address: Ipv4Addr) -> impl Iterator<Item = &LeaseClaim> {
        of_writer(&self.believed, address).filter_map(|(_, rank)| self.believed(rank.key))
    }

    /// How many leases are refused.
    pub(super) fn refused(&self) -> usize {
        self.refused.len()
    }

    /// The refused leases, in order of keys.
    pub(super) fn refusals(&self) -> impl Iterator<Item = (SubnetKey, Refusal)> {
        self.refused.iter().filter_map(|key| match self.cases.get(key)?.verdict {
            Verdict::Refused(refusal) => Some((*key, refusal)),
            _ => None,
        })
    }

    /// Addresses with more than one believed lease.
    pub(super) const fn shared(&self) -> &BTreeSet<Ipv4Addr> {
        &self.shared
    }

    /// Addresses with nearly as many believed leases as they may have, and how many.
    pub(super) fn crowded(&self) -> impl Iterator<Item = (Ipv4Addr, usize)> {
        self.crowded.iter().map(|address| (*address, of_writer(&self.believed, *address).count()))
    }

    fn judge(&self, claim: &LeaseClaim) -> Verdict {
        let lease = &claim.lease;
        let scope = &self.scope;
        if lease.public_ip == scope.own_address
            && (lease.subnet == scope.own || lease.vtep_mac == scope.own_mac)
        {
            return Verdict::Ours;
        }
        let refusal = self.refusal_by_itself(claim).or_else(|| self.refusal_by_others(claim));
        refusal.map_or(Verdict::Believed, Verdict::Refused)
    }

    /// What is wrong with a lease whatever else there is.
    fn refusal_by_itself(&self, claim: &LeaseClaim) -> Option<Refusal> {
        let LeaseClaim { lease, .. } = claim;
        let Scope { network, own, own_address, own_mac } = self.scope;
        let subnet = lease.subnet;
        if subnet.contains(network.network()) && subnet.prefix() <= network.prefix() {
            return Some(Refusal::Covers(network));
        }
        if !network.contains(subnet.network()) {
            return Some(Refusal::Outside(network));
        }
        if overlap(subnet, own) {
            return Some(Refusal::OverlapsOurs(own));
        }
        let address = lease.public_ip;
        let special = special(address, network)
            .or_else(|| (address == own_address).then_some(Special::Ours))
            .or_else(|| self.surroundings.special(address));
        if let Some(special) = special {
            return Some(Refusal::Address(address, special));
        }
        (lease.vtep_mac == own_mac).then_some(Refusal::OurMac)
    }

    /// What is wrong with a lease because of those that are older.
    fn refusal_by_others(&self, claim: &LeaseClaim) -> Option<Refusal> {
        let rank = claim.rank();
        let older = self
            .overlapping(claim.key.subnet)
            .find(|case| case.verdict == Verdict::Believed && case.claim.rank() < rank);
        if let Some(case) = older {
            let lease = &case.claim.lease;
            return Some(Refusal::OverlapsOlder {
                subnet: lease.subnet,
                public_ip: lease.public_ip,
            });
        }
        let public_ip = claim.lease.public_ip;
        let most = self.limits.of_writer;
        let older = self.believed.range((public_ip, Rank::FIRST)..(public_ip, rank)).count();
        (older >= most).then_some(Refusal::TooMany { public_ip, most })
    }

    /// Every case, this one's included, whose subnet has addresses of this one.
    fn overlapping(&self, subnet: Ipv4Network) -> impl Iterator<Item = &Case> {
        let lengths =
            (0..).zip(self.lengths).filter(|(_, count)| *count > 0).map(|(length, _)| length);
        overlapping(&self.cases, lengths, subnet).map(|(_, case)| case)
    }

    /// Writes a verdict down, and opens again what depends on it.
    fn set_verdict(&mut self, claim: &LeaseClaim, verdict: Verdict) {
        let Some(case) = self.cases.get_mut(&claim.key) else { return };
        let before = std::mem::replace(&mut case.verdict, verdict);
        if before == verdict {
            return;
        }
        if matches!(verdict, Verdict::Refused(_)) {
            self.refused.insert(claim.key);
        } else {
            self.refused.remove(&claim.key);
        }
        let rank = claim.rank();
        let was_believed = before == Verdict::Believed;
        if was_believed != (verdict == Verdict::Believed) {
            self.changed.entry(claim.key).or_insert(was_believed.then_some(*claim));
            let younger: Vec<_> = self
                .overlapping(claim.key.subnet)
                .map(|case| case.claim.rank())
                .filter(|other| *other > rank)
                .collect();
            self.pending.extend(younger);
        }
        self.count_writer(claim.lease.public_ip, rank, verdict);
    }

    /// Keeps the believed and the surplus leases of an address.
    fn count_writer(&mut self, address: Ipv4Addr, rank: Rank, verdict: Verdict) {
        let most = self.limits.of_writer;
        set(&mut self.believed, (address, rank), verdict == Verdict::Believed);
        let too_many = matches!(verdict, Verdict::Refused(Refusal::TooMany { .. }));
        set(&mut self.surplus, (address, rank), too_many);
        let count = of_writer(&self.believed, address).count();
        // Where there is room, the oldest of the surplus comes in; where there is none, the youngest goes.
        let next = if count < most {
            of_writer(&self.surplus, address).next()
        } else {
            of_writer(&self.believed, address).nth(most)
        };
        self.pending.extend(next.map(|(_, rank)| *rank));
        set(&mut self.shared, address, count > 1);
        set(&mut self.crowded, address, count >= Limits::nearly(most));
    }
}

fn of_writer(all: &ByWriter, address: Ipv4Addr) -> impl Iterator<Item = &(Ipv4Addr, Rank)> {
    all.range((address, Rank::FIRST)..=(address, Rank::LAST))
}

fn set<T: Ord>(set: &mut BTreeSet<T>, member: T, is_in: bool) {
    if is_in {
        set.insert(member);
    } else {
        set.remove(&member);
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
