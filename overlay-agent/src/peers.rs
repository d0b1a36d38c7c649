//! Everybody's leases, as the maps should hold them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
};

use ipnetwork::Ipv4Network;
use overlay_common::{
    Prefix,
    tables::{PEER_PREFIX_LENGTHS, Peer, PeerKey, Vtep, VtepKey},
};

use crate::{lease::Lease, netlink::Routes};

/// Other hosts' leases. A lease of ours, or one with our public address, is no peer.
#[derive(Debug)]
pub struct Peers {
    own: Ipv4Network,
    own_address: Ipv4Addr,
    leases: BTreeMap<Ipv4Network, Lease>,
    by_address: HashMap<Ipv4Addr, BTreeSet<Ipv4Network>>,
}

impl Peers {
    /// No peers yet, for a host with this lease and public address.
    pub fn new(own: Ipv4Network, own_address: Ipv4Addr) -> Self {
        Self { own, own_address, leases: BTreeMap::new(), by_address: HashMap::new() }
    }

    /// Every peer's lease.
    pub fn leases(&self) -> impl ExactSizeIterator<Item = &Lease> {
        self.leases.values()
    }

    /// The lease of a subnet.
    pub fn lease(&self, subnet: Ipv4Network) -> Option<&Lease> {
        self.leases.get(&subnet)
    }

    /// Takes over a complete list of leases.
    pub fn replace_all(&mut self, leases: Vec<Lease>) {
        self.leases.clear();
        self.by_address.clear();
        for lease in leases {
            self.put(lease);
        }
    }

    /// Adds or replaces a lease.
    pub fn put(&mut self, lease: Lease) {
        self.remove(lease.subnet);
        if lease.subnet == self.own || lease.public_ip == self.own_address {
            return;
        }
        self.by_address.entry(lease.public_ip).or_default().insert(lease.subnet);
        self.leases.insert(lease.subnet, lease);
    }

    /// Forgets a lease, and returns it if it was there.
    pub fn remove(&mut self, subnet: Ipv4Network) -> Option<Lease> {
        let lease = self.leases.remove(&subnet)?;
        if let Some(subnets) = self.by_address.get_mut(&lease.public_ip) {
            subnets.remove(&subnet);
            if subnets.is_empty() {
                self.by_address.remove(&lease.public_ip);
            }
        }
        Some(lease)
    }

    /// What `peers` should hold for a subnet, on a host with these ways.
    pub fn peer(&self, subnet: Ipv4Network, ways: &Ways) -> Option<Peer> {
        self.leases.get(&subnet).map(|lease| peer(lease, ways))
    }

    /// What `vteps` should hold for an address. One that has two leases speaks for the first of them;
    /// etcd holds two only while one of them runs out.
    pub fn vtep(&self, address: Ipv4Addr) -> Option<Vtep> {
        let subnet = self.by_address.get(&address)?.first()?;
        Some(Vtep::new(prefix(*subnet)))
    }

    /// Everything that `peers` should hold.
    pub fn all_peers(&self, ways: &Ways) -> HashMap<PeerKey, Peer> {
        self.leases.values().map(|lease| (peer_key(lease.subnet), peer(lease, ways))).collect()
    }

    /// Everything that `vteps` should hold.
    pub fn all_vteps(&self) -> HashMap<VtepKey, Vtep> {
        self.by_address
            .keys()
            .filter_map(|address| Some((vtep_key(*address), self.vtep(*address)?)))
            .collect()
    }

    /// The prefix lengths in use, longest first, and those that do not fit and are left out.
    pub fn lengths(&self) -> ([u8; PEER_PREFIX_LENGTHS], Vec<u8>) {
        let all: BTreeSet<u8> = self.leases.keys().map(|subnet| subnet.prefix()).collect();
        let mut lengths = [0; PEER_PREFIX_LENGTHS];
        let mut left_out = Vec::new();
        for (position, length) in all.into_iter().rev().enumerate() {
            match lengths.get_mut(position) {
                Some(slot) => *slot = length,
                None => left_out.push(length),
            }
        }
        (lengths, left_out)
    }
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
pub struct Ways {
    /// The main table's routes.
    pub routes: Routes,
    /// The interface that carries encapsulated packets.
    pub uplink: u32,
    /// Whether peers on the same link get their packets as they are (`DirectRouting`).
    pub direct_routing: bool,
}

fn peer(lease: &Lease, ways: &Ways) -> Peer {
    let next_hop = ways.routes.next_hop(ways.uplink, lease.public_ip);
    Peer {
        public_address: lease.public_ip.octets(),
        next_hop: next_hop.unwrap_or(Ipv4Addr::UNSPECIFIED).octets(),
        vtep_mac: lease.vtep_mac.0,
        // As flannel decides it: by the way to the peer, if it has no gateway.
        direct: u8::from(ways.direct_routing && next_hop == Some(lease.public_ip)),
        reserved: 0,
    }
}

fn prefix(subnet: Ipv4Network) -> Prefix {
    Prefix { address: subnet.ip().octets(), length: subnet.prefix() }
}

#[cfg(test)]
mod tests {
    use overlay_common::MacAddr;

    use super::*;

    fn subnet(text: &str) -> Ipv4Network {
        text.parse().expect("a subnet")
    }

    fn lease(of: &str, host: u8) -> Lease {
        Lease {
            subnet: subnet(of),
            public_ip: Ipv4Addr::new(192, 168, 33, host),
            vtep_mac: MacAddr([2, 0, 0, 0, 0, host]),
            vni: None,
        }
    }

    fn peers() -> Peers {
        Peers::new(subnet("10.1.15.0/24"), Ipv4Addr::new(192, 168, 33, 10))
    }

    #[test]
    fn our_own_leases_are_no_peers() {
        let mut peers = peers();
        peers.replace_all(vec![
            lease("10.1.15.0/24", 10),
            lease("10.1.99.0/24", 10),
            lease("10.1.20.0/24", 11),
        ]);
        assert_eq!(peers.all_peers(&Ways::default()).len(), 1);
        assert_eq!(peers.all_vteps().len(), 1);
    }

    #[test]
    fn a_changed_address_moves_the_right_to_speak() {
        let mut peers = peers();
        peers.put(lease("10.1.20.0/24", 11));
        peers.put(lease("10.1.20.0/24", 12));
        assert_eq!(peers.vtep(Ipv4Addr::new(192, 168, 33, 11)), None);
        assert!(peers.vtep(Ipv4Addr::new(192, 168, 33, 12)).is_some());
        peers.remove(subnet("10.1.20.0/24"));
        assert!(peers.all_vteps().is_empty());
    }

    #[test]
    fn lengths_come_longest_first() {
        let mut peers = peers();
        for of in ["10.1.20.0/24", "10.1.64.0/22", "10.1.32.0/26", "10.1.40.0/28", "10.1.128.0/20"]
        {
            peers.put(lease(of, 20));
        }
        assert_eq!(peers.lengths(), ([28, 26, 24, 22], vec![20]));
    }
}
