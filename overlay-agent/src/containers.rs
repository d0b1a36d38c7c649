//! Which bridge the local containers are behind, and which veth each of them is behind: read off the
//! kernel's own tables, never guessed.

use std::{
    collections::{BTreeSet, HashMap},
    net::Ipv4Addr,
};

use ipnetwork::Ipv4Network;
use overlay_common::{
    MacAddr,
    tables::{Endpoint, EndpointKey},
};

use crate::netlink::{Link, LinkKind, Neighbour, Observed};

/// The bridge that carries our subnet: the one named, else whichever has an address inside it.
pub fn bridge<'a>(
    observed: &'a Observed,
    subnet: Ipv4Network,
    named: Option<&str>,
) -> Option<&'a Link> {
    if let Some(name) = named {
        return observed
            .links
            .values()
            .find(|link| link.name == name && link.kind == LinkKind::Bridge);
    }
    observed
        .addresses
        .iter()
        .filter(|(_, address, _)| subnet.contains(*address))
        .filter_map(|(index, ..)| observed.links.get(index))
        .find(|link| link.kind == LinkKind::Bridge)
}

/// The bridge's ports that lead into containers: veths whose other half is in another network namespace,
/// where packets can be caught and delivered without the bridge.
pub fn container_ports<'a>(
    observed: &'a Observed,
    bridge: &Link,
) -> impl Iterator<Item = &'a Link> + use<'a> {
    let bridge = bridge.index;
    observed.links.values().filter(move |link| {
        link.master == Some(bridge)
            && link.up
            && link.kind == LinkKind::Veth { peer_is_elsewhere: true }
    })
}

/// The containers behind `bridge` that can be delivered to directly: their address and MAC are known to
/// the host, the MAC was seen behind exactly one port, and that port is a veth into another network
/// namespace. Whatever the kernel is unsure of is left out: the bridge finds it. The host's own addresses
/// are there too, as its own.
///
/// A bridge forgets a MAC after five minutes without a packet from it, and sees none of a container that
/// talks by the fast path: where it merely knows nothing, what was `known` stays true.
pub(crate) fn endpoints(
    observed: &Observed,
    bridge: &Link,
    subnet: Ipv4Network,
    known: &HashMap<EndpointKey, Endpoint>,
) -> HashMap<EndpointKey, Endpoint> {
    let own: BTreeSet<Ipv4Addr> = observed
        .addresses
        .iter()
        .map(|(_, address, _)| *address)
        .filter(|address| subnet.contains(*address))
        .collect();
    let deliverable: BTreeSet<u32> =
        container_ports(observed, bridge).map(|link| link.index).collect();
    let ports = ports(observed, bridge, &deliverable);
    let remembered = |neighbour: &Neighbour| {
        let endpoint = known.get(&EndpointKey { address: neighbour.address.octets() })?;
        let same = endpoint.mac == neighbour.mac.0 && deliverable.contains(&endpoint.ifindex);
        same.then_some(endpoint.ifindex)
    };
    let containers = observed
        .neighbours
        .iter()
        .filter(|neighbour| neighbour.ifindex == bridge.index)
        .filter(|neighbour| subnet.contains(neighbour.address) && !own.contains(&neighbour.address))
        .filter_map(|neighbour| {
            let ifindex = match ports.get(&neighbour.mac) {
                Some(&port) => port?,
                None => remembered(neighbour)?,
            };
            Some((neighbour.address, Endpoint { ifindex, mac: neighbour.mac.0, reserved: [0; 2] }))
        });
    containers
        .chain(own.iter().map(|address| (*address, Endpoint::HOST)))
        .map(|(address, endpoint)| (EndpointKey { address: address.octets() }, endpoint))
        .collect()
}

/// The port of `bridge` each MAC was seen behind; `None` where there is more than one, or one that is not
/// `deliverable`.
fn ports(
    observed: &Observed,
    bridge: &Link,
    deliverable: &BTreeSet<u32>,
) -> HashMap<MacAddr, Option<u32>> {
    let mut ports: HashMap<MacAddr, Option<u32>> = HashMap::new();
    for &(mac, ifindex) in &observed.forwarding {
        if observed.links.get(&ifindex).and_then(|link| link.master) != Some(bridge.index) {
            continue;
        }
        let here = deliverable.contains(&ifindex).then_some(ifindex);
        let port = ports.entry(mac).or_insert(here);
        if *port != here {
            *port = None;
        }
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: u32 = 3;
    const VETH: u32 = 9;
    const MAC: MacAddr = MacAddr([2, 0x42, 10, 1, 15, 2]);
    const CONTAINER: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 2);

    fn link(index: u32, kind: LinkKind, master: Option<u32>) -> Link {
        Link {
            index,
            name: format!("link{index}"),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mtu: 1450,
            up: true,
            no_arp: false,
            master,
            kind,
        }
    }

    fn subnet() -> Ipv4Network {
        "10.1.15.0/24".parse().expect("a subnet")
    }

    fn observed() -> Observed {
        let veth = LinkKind::Veth { peer_is_elsewhere: true };
        Observed {
            links: [
                link(2, LinkKind::Other, None),
                link(BRIDGE, LinkKind::Bridge, None),
                link(VETH, veth.clone(), Some(BRIDGE)),
                link(10, veth, Some(BRIDGE)),
            ]
            .into_iter()
            .map(|link| (link.index, link))
            .collect(),
            addresses: vec![
                (2, Ipv4Addr::new(192, 168, 33, 10), 24),
                (BRIDGE, Ipv4Addr::new(10, 1, 15, 1), 24),
            ],
            neighbours: vec![Neighbour { ifindex: BRIDGE, address: CONTAINER, mac: MAC }],
            forwarding: vec![(MAC, VETH)],
        }
    }

    fn found(observed: &Observed) -> HashMap<EndpointKey, Endpoint> {
        endpoints(observed, &observed.links[&BRIDGE], subnet(), &HashMap::new())
    }

    #[test]
    fn the_bridge_is_the_one_with_an_address_in_the_subnet() {
        let observed = observed();
        assert_eq!(bridge(&observed, subnet(), None).expect("found").index, BRIDGE);
        assert_eq!(bridge(&observed, subnet(), Some("link3")).expect("found").index, BRIDGE);
        assert_eq!(bridge(&observed, subnet(), Some("link2")), None, "not a bridge");
        let elsewhere = "10.1.16.0/24".parse().expect("a subnet");
        assert_eq!(bridge(&observed, elsewhere, None), None);
    }

    #[test]
    fn a_known_container_is_an_endpoint() {
        let endpoints = found(&observed());
        let endpoint = endpoints[&EndpointKey { address: CONTAINER.octets() }];
        assert_eq!((endpoint.ifindex, endpoint.mac), (VETH, MAC.0));
    }

    #[test]
    fn a_container_is_known_longer_than_the_bridge_remembers_it_but_not_against_the_evidence() {
        type Edit = fn(&mut Observed);
        let known = found(&observed());
        let container = EndpointKey { address: CONTAINER.octets() };
        let after = |edit: Edit| {
            let mut observed = observed();
            observed.forwarding.clear();
            edit(&mut observed);
            endpoints(&observed, &observed.links[&BRIDGE], subnet(), &known).remove(&container)
        };
        assert_eq!(after(|_| ()), Some(known[&container]));
        let cases: [(&str, Edit); 5] = [
            ("a port that is gone", |observed| {
                observed.links.remove(&VETH);
            }),
            ("a port that is down", |observed| {
                observed.links.get_mut(&VETH).expect("there").up = false;
            }),
            ("seen behind a port that leads nowhere we know", |observed| {
                observed.links.insert(21, link(21, LinkKind::Other, Some(BRIDGE)));
                observed.forwarding.push((MAC, 21));
            }),
            ("another MAC", |observed| observed.neighbours[0].mac = MacAddr([2; 6])),
            ("an address that nobody has", |observed| observed.neighbours.clear()),
        ];
        for (name, edit) in cases {
            assert_eq!(after(edit), None, "{name}");
        }
    }

    #[test]
    fn the_hosts_own_addresses_are_its_own() {
        let gateway = EndpointKey { address: [10, 1, 15, 1] };
        assert_eq!(found(&observed()).get(&gateway), Some(&Endpoint::HOST));
    }

    #[test]
    fn whatever_is_doubtful_is_no_endpoint() {
        type Edit = fn(&mut Observed);
        let cases: [(&str, Edit); 7] = [
            ("no forwarding entry", |observed| observed.forwarding.clear()),
            ("a MAC behind two ports", |observed| observed.forwarding.push((MAC, 10))),
            ("a port that is down", |observed| {
                observed.links.get_mut(&VETH).expect("there").up = false;
            }),
            ("a port of another bridge", |observed| {
                observed.links.get_mut(&VETH).expect("there").master = Some(77);
            }),
            ("a veth within this namespace", |observed| {
                observed.links.get_mut(&VETH).expect("there").kind =
                    LinkKind::Veth { peer_is_elsewhere: false };
            }),
            ("an address of the host", |observed| observed.addresses.push((2, CONTAINER, 32))),
            ("a neighbour of another interface", |observed| {
                observed.neighbours[0].ifindex = 2;
            }),
        ];
        for (name, edit) in cases {
            let mut observed = observed();
            edit(&mut observed);
            let containers =
                found(&observed).into_values().filter(|found| !found.is_host()).count();
            assert_eq!(containers, 0, "{name}");
        }
    }
}
