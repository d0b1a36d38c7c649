//! Which bridges containers are behind, and which addresses are behind which of them.

use std::{
    collections::{BTreeSet, HashMap},
    net::Ipv4Addr,
};

use ipnetwork::Ipv4Network;
use overlay_common::tables::{Bridge, BridgeKey};

use super::container_ports;
use crate::kernel::netlink::{KernelState, Link, LinkKind};

/// The bridges that carry our subnet: those named, else whichever have an address inside it.
pub fn bridges(observed: &KernelState, subnet: Ipv4Network, named: &[String]) -> Vec<Link> {
    let inside: BTreeSet<u32> = observed
        .addresses
        .iter()
        .filter(|(_, address, _)| subnet.contains(*address))
        .map(|(index, ..)| *index)
        .collect();
    let is_one = |link: &&Link| {
        let chosen = if named.is_empty() {
            inside.contains(&link.index)
        } else {
            named.contains(&link.name)
        };
        chosen && link.kind == LinkKind::Bridge
    };
    observed.links.values().filter(is_one).cloned().collect()
}

/// What the map `bridges` should hold: every bridge, and every port that has a program.
pub fn bridge_entries(
    observed: &KernelState,
    bridges: &[Link],
    subnet: Ipv4Network,
) -> HashMap<BridgeKey, Bridge> {
    let mut entries = HashMap::new();
    for link in bridges {
        let behind = subnet_of(observed, link.index, subnet);
        let bridge = Bridge {
            ifindex: link.index,
            mtu: link.mtu,
            subnet: behind.map_or([0; 4], |behind| behind.network().octets()),
            mac: link.mac.0,
            subnet_length: behind.map_or(0, Ipv4Network::prefix),
            reserved: 0,
        };
        let ports = container_ports(observed, link).map(|port| port.index);
        for ifindex in ports.chain([link.index]) {
            entries.insert(BridgeKey { ifindex }, bridge);
        }
    }
    entries
}

/// What of our subnet is behind a bridge, by its addresses; none where they do not say.
fn subnet_of(observed: &KernelState, bridge: u32, subnet: Ipv4Network) -> Option<Ipv4Network> {
    let networks = || networks(observed, bridge).filter(|network| subnet.contains(network.ip()));
    let widest = networks().min_by_key(|network| network.prefix())?;
    networks().all(|network| widest.contains(network.ip())).then_some(widest)
}

fn networks(observed: &KernelState, bridge: u32) -> impl Iterator<Item = Ipv4Network> {
    let own = observed.addresses.iter().filter(move |(index, ..)| *index == bridge);
    own.filter_map(|(_, address, length)| Ipv4Network::new(*address, *length).ok())
}

/// Whether the host looks for an address behind this bridge, and not behind another: a container that gives itself an
/// address of another bridge's does not get its packets. What no bridge has a network for may be behind any.
pub(super) fn carries(
    observed: &KernelState,
    bridges: &[Link],
    bridge: u32,
    address: Ipv4Addr,
) -> bool {
    let longest = |bridge: u32| {
        let around = networks(observed, bridge).filter(|network| network.contains(address));
        around.map(Ipv4Network::prefix).max()
    };
    longest(bridge) >= bridges.iter().map(|link| longest(link.index)).max().flatten()
}

#[cfg(test)]
mod tests {
    use super::{
        super::test_support::{
            BRIDGE, CONTAINER, NEIGHBOUR, OTHER_BRIDGE, VETH, link, observed, place, subnet,
        },
        *,
    };

    const PORT: u32 = 11;
    const BEHIND_OTHER: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 130);

    /// The host of the tests', with half of the subnet behind another bridge.
    fn two() -> KernelState {
        let mut host = observed();
        host.addresses.push((OTHER_BRIDGE, Ipv4Addr::new(10, 1, 15, 129), 25));
        let veth = LinkKind::Veth { peer: Some(place(PORT)) };
        host.links.insert(PORT, link(PORT, veth, Some(OTHER_BRIDGE)));
        host
    }

    fn numbers(observed: &KernelState, named: &[&str]) -> Vec<u32> {
        let named: Vec<_> = named.iter().map(|name| (*name).to_owned()).collect();
        bridges(observed, subnet(), &named).iter().map(|link| link.index).collect()
    }

    #[test]
    fn the_bridges_are_those_with_an_address_in_the_subnet_or_those_named() {
        assert_eq!(numbers(&observed(), &[]), [BRIDGE]);
        assert_eq!(numbers(&two(), &[]), [BRIDGE, OTHER_BRIDGE]);
        assert_eq!(numbers(&two(), &["link3"]), [BRIDGE]);
        assert_eq!(
            numbers(&observed(), &["link4", "link3", "link9", "none"]),
            [BRIDGE, OTHER_BRIDGE]
        );
        assert_eq!(numbers(&observed(), &["link2"]), [0; 0], "not a bridge");
        let elsewhere = "10.1.16.0/24".parse().expect("a subnet");
        assert_eq!(bridges(&two(), elsewhere, &[]), []);
    }

    #[test]
    fn a_bridge_and_its_ports_are_known_by_number() {
        let host = two();
        let entries = bridge_entries(&host, &bridges(&host, subnet(), &[]), subnet());
        let of = |ifindex| entries.get(&BridgeKey { ifindex }).map(|bridge| bridge.ifindex);
        assert_eq!([VETH, NEIGHBOUR, BRIDGE].map(of), [Some(BRIDGE); 3]);
        assert_eq!([PORT, OTHER_BRIDGE].map(of), [Some(OTHER_BRIDGE); 2]);
        assert_eq!(of(2), None);
        let second = entries[&BridgeKey { ifindex: PORT }];
        assert_eq!((second.subnet, second.subnet_length), ([10, 1, 15, 128], 25));
        let named = bridges(&observed(), subnet(), &["link4".to_owned()]);
        let entries = bridge_entries(&observed(), &named, subnet());
        assert_eq!(entries[&BridgeKey { ifindex: OTHER_BRIDGE }].subnet_length, 0, "any");
    }

    #[test]
    fn an_address_is_behind_the_bridge_that_the_host_looks_for_it_on() {
        let host = two();
        let both = bridges(&host, subnet(), &[]);
        let behind = |bridge, address| carries(&host, &both, bridge, address);
        assert!(behind(BRIDGE, CONTAINER) && !behind(OTHER_BRIDGE, CONTAINER));
        assert!(behind(OTHER_BRIDGE, BEHIND_OTHER) && !behind(BRIDGE, BEHIND_OTHER));
        let nobodys = Ipv4Addr::new(10, 1, 16, 2);
        assert!(behind(BRIDGE, nobodys) && behind(OTHER_BRIDGE, nobodys));
    }
}
