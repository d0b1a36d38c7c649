//! Everybody's leases in the routing table.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use anyhow::Result;
use ipnetwork::Ipv4Network;
use overlay_common::tables::Peer;
use overlay_lease::wire::allocate::overlap;

use super::Dataplane;
use crate::{fail, kernel::netlink::LeaseRoute};

/// To which subnets the routes may not be as they should.
#[derive(Debug)]
pub(super) enum Unrouted {
    /// To any.
    All,
    /// To these.
    Some(BTreeSet<Ipv4Network>),
}

impl Unrouted {
    pub(super) fn add(&mut self, subnets: &BTreeSet<Ipv4Network>) {
        if let Self::Some(found) = self {
            found.extend(subnets);
        }
    }
}

impl Dataplane {
    /// Routes leased subnets, and nothing else: to the tunnel device, or to a peer on the same link. Until leases are
    /// listed, an earlier agent's routes stay; and without the device none can be made.
    pub(super) async fn route_leases(&mut self) -> Result<()> {
        if !self.synced || !self.has_tunnel {
            return Ok(());
        }
        let tunnel = LeaseRoute::by_tunnel(self.tunnel.ifindex, self.spec.tunnel.subnet.network());
        let uplink = self.spec.uplink.ifindex;
        let route = |peer: Peer| {
            if peer.is_direct() {
                LeaseRoute::by_link(uplink, Ipv4Addr::from(peer.public_address))
            } else {
                tunnel
            }
        };
        match std::mem::replace(&mut self.unrouted, Unrouted::All) {
            Unrouted::All => {
                let subnets = self.peers.leases().map(|lease| lease.subnet);
                let wanted: BTreeMap<_, _> = subnets
                    .filter_map(|subnet| {
                        Some((subnet, route(self.peers.peer(subnet, &self.ways)?)))
                    })
                    .collect();
                self.lease_routes.converge(&self.handle, &wanted).await?;
            }
            Unrouted::Some(subnets) => {
                let wanted = subnets
                    .into_iter()
                    .map(|subnet| (subnet, self.peers.peer(subnet, &self.ways).map(route)));
                self.lease_routes.set(&self.handle, wanted.collect()).await?;
            }
        }
        fail::point("route");
        self.unrouted = Unrouted::Some(BTreeSet::new());
        Ok(())
    }

    /// Whether any of these networks has addresses of the overlay's, or of a peer.
    pub(super) fn concern(&self, networks: &BTreeSet<Ipv4Network>) -> bool {
        let overlay = self.spec.tunnel.network;
        if networks.iter().any(|network| overlap(*network, overlay)) {
            return true;
        }
        let peers = self.peers.addresses();
        let has_peer = |network: &Ipv4Network| {
            peers.range(network.network()..=network.broadcast()).next().is_some()
        };
        networks.iter().any(has_peer)
    }

    /// Whether there is a route of ours to a peer's subnet.
    pub fn routes_to(&self, subnet: Ipv4Network) -> bool {
        self.lease_routes.has(subnet)
    }

    /// Fails where others have routes to peers' subnets, which stay.
    pub fn check_routes(&self) -> Result<()> {
        self.lease_routes.check_taken()
    }
}
