//! The local containers: which bridges they are behind, which port each of them has, and who it is. The kernel
//! tells, by what it has at the other end of each port's cable; what containers send tells nothing.

mod bridges;
mod cut_off;
mod identity;
#[cfg(test)]
pub(crate) use identity::test_support;

use std::{collections::BTreeMap, net::Ipv4Addr};

use anyhow::Result;
use ipnetwork::Ipv4Network;

pub use bridges::{bridge_entries, bridges};
pub use cut_off::CutOff;
pub use identity::{Contested, Identities};

use crate::kernel::netlink::{Inspector, KernelState, Link, LinkKind, PeerEnd, PeerPlace};

/// How many cables are looked at again whenever everything is verified, changed or not: the kernel may have had no
/// room to tell that one was.
const AGAIN: usize = 16;

/// The bridge's ports that lead to containers or virtual machines, up or not: a program is there before the
/// first packet is.
pub fn container_ports<'a>(
    observed: &'a KernelState,
    bridge: &Link,
) -> impl Iterator<Item = &'a Link> + use<'a> {
    let bridge = bridge.index;
    observed.links.values().filter(move |link| {
        link.master == Some(bridge)
            && matches!(link.kind, LinkKind::Veth { peer: Some(_) } | LinkKind::Tun)
    })
}

/// The MTU of the containers behind a bridge, where any of theirs is larger than the overlay's.
pub fn mtu_beyond(observed: &KernelState, bridge: &Link, overlay: u32) -> Option<u32> {
    let largest = container_ports(observed, bridge).map(|port| port.mtu).max();
    largest.filter(|mtu| *mtu > overlay)
}

/// What is at the other end of a veth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cable {
    pub(crate) place: PeerPlace,
    pub(crate) end: PeerEnd,
}

/// The local containers, as the kernel has told of them.
#[derive(Debug)]
pub struct Containers {
    inspector: Inspector,
    /// By the number of the host's half, of every bridge's ports.
    cables: BTreeMap<u32, Cable>,
    stale: bool,
    /// Where looking again has come to.
    turn: u32,
    identities: Identities,
    /// Containers that may use any source address, by an address of their own.
    exempt: Vec<Ipv4Addr>,
}

impl Containers {
    /// None looked at yet. What an earlier agent knew decides between two that claim the same.
    pub fn new(known: Identities, exempt: Vec<Ipv4Addr>) -> Result<Self> {
        Ok(Self {
            inspector: Inspector::new()?,
            cables: BTreeMap::new(),
            stale: true,
            turn: 0,
            identities: known,
            exempt,
        })
    }

    /// Something has changed in a container: the next pass looks at all of them.
    pub const fn changed(&mut self) {
        self.stale = true;
    }

    /// Looks at what may have changed since the last pass, and at a few that should not have.
    pub fn look(&mut self, observed: &KernelState) {
        let is_bridge =
            |index| observed.links.get(&index).is_some_and(|link| link.kind == LinkKind::Bridge);
        let places: BTreeMap<u32, PeerPlace> = observed
            .links
            .values()
            .filter(|link| link.master.is_some_and(is_bridge))
            .filter_map(|link| match link.kind {
                LinkKind::Veth { peer: Some(place) } => Some((link.index, place)),
                _ => None,
            })
            .collect();
        self.cables.retain(|ifindex, cable| places.get(ifindex) == Some(&cable.place));
        let stale = std::mem::take(&mut self.stale);
        let due: Vec<u32> = places.range(self.turn..).take(AGAIN).map(|(port, _)| *port).collect();
        self.turn = due.last().filter(|_| due.len() == AGAIN).map_or(0, |last| last + 1);
        for (ifindex, place) in places {
            if !stale && self.cables.contains_key(&ifindex) && !due.contains(&ifindex) {
                continue;
            }
            match self.inspector.look(place) {
                Ok(end) => {
                    self.cables.insert(ifindex, Cable { place, end });
                }
                // The next event, or the next turn, looks again. What was told before stays true until then.
                Err(error) => tracing::debug!("looking into a container: {error:#}"),
            }
        }
    }

    /// Finds out who is who behind `bridges`; what two containers claim is logged once.
    pub fn identify(
        &mut self,
        observed: &KernelState,
        bridges: &[Link],
        subnet: Ipv4Network,
    ) -> &Identities {
        let known = &self.identities;
        let found = if bridges.is_empty() {
            Identities::default()
        } else {
            Identities::of(observed, bridges, subnet, &self.cables, known, &self.exempt)
        };
        for contested in found.contested.difference(&self.identities.contested) {
            tracing::warn!("{contested}");
        }
        self.identities = found;
        &self.identities
    }

    /// What is behind these interfaces is gone.
    pub fn forget(&mut self, gone: &[u32]) {
        self.identities
            .endpoints
            .retain(|_, endpoint| endpoint.is_host() || !gone.contains(&endpoint.ifindex));
        self.identities.ports.retain(|_, port| !gone.contains(&port.ifindex));
    }

    /// Who is who.
    pub const fn identities(&self) -> &Identities {
        &self.identities
    }
}
