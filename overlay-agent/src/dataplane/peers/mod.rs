//! Everybody's leases, as the maps should hold them.
//!
//! `judge` says which leases are believed, and `refusal` why others are not; `limits` says how many have
//! a place in the maps, and `surroundings` what is special about where this host is. All of that is pure but
//! for looking around.

mod judge;
mod limits;
mod refusal;
mod report;
mod surroundings;

use std::{
    collections::{BTreeSet, HashMap},
    net::Ipv4Addr,
};

use ipnetwork::Ipv4Network;
use overlay_common::{
    Prefix,
    tables::{PEER_PREFIX_LENGTHS, Peer, PeerKey, Vtep, VtepKey, Way},
};
use overlay_lease::{
    member::claim::{LeaseClaim, Rank},
    store::Revision,
    wire::{Lease, key::SubnetKey},
};

use self::{
    judge::Judge,
    limits::{Lengths, Seats},
};
pub use self::{
    judge::Scope,
    limits::Limits,
    refusal::{Refusal, Special},
    report::Tally,
    surroundings::Surroundings,
};
use crate::kernel::netlink::{NextHop, Routes};

/// Other hosts' leases, as far as they are believed. A lease of ours is no peer.
#[derive(Debug)]
pub struct Peers {
    judge: Judge,
    limits: Limits,
    seats: Seats,
    lengths: Lengths,
    stale: Stale,
    listed: bool,
}

/// What the maps may not hold as they should.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stale {
    /// Keys of `peers`.
    pub subnets: BTreeSet<Ipv4Network>,
    /// Keys of `vteps`.
    pub addresses: BTreeSet<Ipv4Addr>,
}

impl Stale {
    /// Whether there is nothing of that kind.
    pub fn is_empty(&self) -> bool {
        self.subnets.is_empty() && self.addresses.is_empty()
    }
}

impl Peers {
    /// No peers yet.
    pub fn new(scope: Scope, limits: Limits, surroundings: Surroundings) -> Self {
        Self {
            judge: Judge::new(scope, limits, surroundings),
            limits,
            seats: Seats::new(limits.of_all),
            lengths: Lengths::default(),
            stale: Stale::default(),
            listed: false,
        }
    }

    /// No peers yet, for the same host with another lease.
    #[must_use]
    pub fn moved(&self, scope: Scope) -> Self {
        Self::new(scope, self.limits, self.judge.surroundings().clone())
    }

    /// Every peer's lease, in order of subnets.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        let believed = self.judge.all_believed();
        believed.filter(|claim| self.seats.has(claim.rank())).map(|claim| &claim.lease)
    }

    /// How many leases of peers there are.
    pub fn count(&self) -> usize {
        self.seats.taken()
    }

    /// How many leases are not believed.
    pub fn refused(&self) -> usize {
        self.judge.refused()
    }

    /// The lease of a subnet.
    pub fn lease(&self, subnet: Ipv4Network) -> Option<&Lease> {
        self.claim(subnet).map(|claim| &claim.lease)
    }

    fn claim(&self, subnet: Ipv4Network) -> Option<&LeaseClaim> {
        self.judge.of_subnet(subnet).filter(|claim| self.seats.has(claim.rank()))
    }

    /// Takes over a complete list of leases.
    pub fn replace_all(&mut self, claims: Vec<LeaseClaim>) {
        let listed: BTreeSet<_> = claims.iter().map(|claim| claim.key).collect();
        for key in self.judge.keys().filter(|key| !listed.contains(key)).collect::<Vec<_>>() {
            self.judge.remove(key);
        }
        for claim in claims {
            self.judge.put(claim);
        }
        self.listed = true;
        self.settle();
    }

    /// Whether there has been a complete list.
    pub const fn are_listed(&self) -> bool {
        self.listed
    }

    /// Adds or replaces a lease.
    pub fn put(&mut self, claim: LeaseClaim) {
        self.judge.put(claim);
        self.settle();
    }

    /// Forgets a lease.
    pub fn remove(&mut self, key: SubnetKey) {
        self.judge.remove(key);
        self.settle();
    }

    /// Takes note of where this host is now.
    pub fn set_surroundings(&mut self, surroundings: Surroundings) {
        if surroundings != *self.judge.surroundings() {
            self.judge.set_surroundings(surroundings);
            self.settle();
        }
    }

    /// Whether the maps do not hold everything as they should.
    pub fn have_changed(&self) -> bool {
        !self.stale.is_empty()
    }

    /// What the maps do not hold as they should since the last time that this was asked.
    pub fn take_stale(&mut self) -> Stale {
        std::mem::take(&mut self.stale)
    }

    /// What could not be brought up to date.
    pub fn put_stale_back(&mut self, stale: Stale) {
        self.stale.subnets.extend(stale.subnets);
        self.stale.addresses.extend(stale.addresses);
    }

    fn settle(&mut self) {
        let changed = self.judge.settle();
        for before in changed.values().flatten() {
            if self.seats.has(before.rank()) {
                self.unseat(before);
            }
            self.seats.remove(before.rank());
        }
        while let Some(key) = self.seats.next() {
            self.seat(key);
        }
        for key in changed.into_keys() {
            let Some(rank) = self.judge.believed(key).map(LeaseClaim::rank) else { continue };
            if let Some(claim) = self.seats.add(rank).and_then(|key| self.judge.believed(key)) {
                let claim = *claim;
                self.unseat(&claim);
            }
            if self.seats.has(rank) {
                self.seat(key);
            }
        }
    }

    fn seat(&mut self, key: SubnetKey) {
        if let Some(claim) = self.judge.believed(key).copied() {
            self.lengths.add(key.subnet.prefix());
            self.touch(&claim);
        }
    }

    fn unseat(&mut self, claim: &LeaseClaim) {
        self.lengths.remove(claim.key.subnet.prefix());
        self.touch(claim);
    }

    fn touch(&mut self, claim: &LeaseClaim) {
        self.stale.subnets.insert(claim.lease.subnet);
        self.stale.addresses.insert(claim.lease.public_ip);
    }

    /// The addresses of all peers.
    pub fn addresses(&self) -> BTreeSet<Ipv4Addr> {
        self.leases().map(|lease| lease.public_ip).collect()
    }

    /// What `peers` should hold for a subnet, on a host with these ways.
    pub fn peer(&self, subnet: Ipv4Network, ways: &Routing) -> Option<Peer> {
        self.lease(subnet).map(|lease| peer(lease, ways))
    }

    /// What `vteps` should hold for an address.
    pub fn vtep(&self, address: Ipv4Addr) -> Option<Vtep> {
        self.speaker(address).map(|claim| Vtep::new(prefix(claim.lease.subnet)))
    }

    /// The lease that an address speaks for.
    fn speaker(&self, address: Ipv4Addr) -> Option<&LeaseClaim> {
        let claims = self.judge.of_address(address);
        claims.filter(|claim| self.seats.has(claim.rank())).max_by_key(|claim| voice(claim))
    }

    /// Everything that `peers` should hold.
    pub fn all_peers(&self, ways: &Routing) -> HashMap<PeerKey, Peer> {
        self.leases().map(|lease| (peer_key(lease.subnet), peer(lease, ways))).collect()
    }

    /// Everything that `vteps` should hold.
    pub fn all_vteps(&self) -> HashMap<VtepKey, Vtep> {
        let addresses = self.leases().map(|lease| lease.public_ip);
        addresses.filter_map(|address| Some((vtep_key(address), self.vtep(address)?))).collect()
    }

    /// Whether the maps hold every lease that is believed.
    pub fn are_all_seated(&self) -> bool {
        let (_, left_out) = self.lengths.chosen();
        left_out.is_empty() && self.seats.without() == 0
    }

    /// The prefix lengths that most leases have, longest first.
    pub fn lengths(&self) -> [u8; PEER_PREFIX_LENGTHS] {
        self.lengths.chosen().0
    }
}

/// Of the leases with one address, the one for which this is the most speaks.
const fn voice(claim: &LeaseClaim) -> (bool, Revision, Rank) {
    (claim.kept, claim.written, claim.rank())
}

/// The key of a lease in `peers`.
pub fn peer_key(subnet: Ipv4Network) -> PeerKey {
    PeerKey::new(prefix(subnet))
}

/// The key of a public address in `vteps`.
pub const fn vtep_key(address: Ipv4Addr) -> VtepKey {
    VtepKey { public_address: address.octets() }
}

/// How this host reaches others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// What the kernel's routing says.
    pub routes: Routes,
    /// The interface that carries encapsulated packets.
    pub uplink: u32,
    /// Whether peers on the same link get their packets as they are (`DirectRouting`).
    pub direct_routing: bool,
}

fn peer(lease: &Lease, ways: &Routing) -> Peer {
    let way = ways.routes.way(ways.uplink, lease.public_ip);
    let next_hop = match way {
        NextHop::Neighbour(address) => address,
        NextHop::Uplink | NextHop::Elsewhere => Ipv4Addr::UNSPECIFIED,
    };
    // As flannel decides it: by the way to the peer, if it has no gateway.
    let is_on_link = ways.direct_routing && next_hop == lease.public_ip;
    let way = match way {
        NextHop::Elsewhere => Way::Stack,
        _ if is_on_link => Way::Direct,
        _ => Way::Vxlan,
    };
    Peer {
        public_address: lease.public_ip.octets(),
        next_hop: next_hop.octets(),
        vtep_mac: lease.vtep_mac.0,
        way: way as u8,
        reserved: 0,
    }
}

fn prefix(subnet: Ipv4Network) -> Prefix {
    Prefix { address: subnet.ip().octets(), length: subnet.prefix() }
}

#[cfg(test)]
mod tests;
