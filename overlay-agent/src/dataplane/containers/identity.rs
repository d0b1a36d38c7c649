use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    net::Ipv4Addr,
};

use ipnetwork::Ipv4Network;
use overlay_common::{
    MacAddr,
    tables::{Endpoint, EndpointKey, Home, HomeKey, Port, PortKey},
};

use super::{Cable, bridges::carries};
use crate::kernel::netlink::{KernelState, Link, LinkKind};

/// Who is behind which port, as the maps hold it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identities {
    /// Addresses, the host's own among them.
    pub endpoints: HashMap<EndpointKey, Endpoint>,
    /// MACs.
    pub ports: HashMap<PortKey, Port>,
    /// Other bridges that containers are behind, too.
    pub homes: HashMap<HomeKey, Home>,
    /// What two containers claim.
    pub contested: BTreeSet<Contested>,
}

/// Two containers have the same address or MAC. Only a container that may configure its own interface comes to that,
/// or somebody's mistake.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Contested {
    what: String,
    keeps: String,
    also: String,
}

impl fmt::Display for Contested {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, keeps, also } = self;
        write!(
            out,
            "Two containers have the {what}: the one behind {keeps}, which keeps it, and the one behind {also}, \
             whose packets with it are dropped until the first gives it up."
        )
    }
}

impl Identities {
    /// Who is behind the ports of `bridges`, of all `cables`. An address is behind the bridge that the host looks for it on. It belongs to the interface that the kernel has
    /// it on; to the first of several, for as long as that has it: being `known` already counts most, then being
    /// the older interface.
    pub(crate) fn of(
        observed: &KernelState,
        bridges: &[Link],
        subnet: Ipv4Network,
        cables: &BTreeMap<u32, Cable>,
        known: &Self,
        exempt: &[Ipv4Addr],
    ) -> Self {
        let own = observed.addresses.iter().map(|(_, address, _)| *address);
        let own: HashSet<Ipv4Addr> = own.filter(|address| subnet.contains(*address)).collect();
        let behind = |ifindex: u32| {
            let link = observed.links.get(&ifindex).filter(|link| link.up)?;
            Some((link, bridges.iter().find(|bridge| link.master == Some(bridge.index))?))
        };
        let ports = cables.iter().filter_map(|(ifindex, cable)| Some((behind(*ifindex)?, cable)));

        let mut found = Self::default();
        for &address in &own {
            found.endpoints.insert(key(address), Endpoint::HOST);
        }
        let mut contest = Contest { names: &observed.links, contested: BTreeSet::new() };
        for ((link, bridge), cable) in ports {
            let mac = cable.end.mac.0;
            let source_any = cable.end.addresses.iter().any(|address| exempt.contains(address));
            let flags = if source_any { Port::SOURCE_ANY } else { 0 };
            let key_of_mac = PortKey::new(bridge.index, mac);
            let holder = known.ports.get(&key_of_mac).map(|port| port.ifindex);
            contest.claim(
                &mut found.ports,
                key_of_mac,
                Port { ifindex: link.index, flags },
                |port| port.ifindex,
                holder,
                || format!("MAC {}", MacAddr(mac)),
            );
            for &address in cable.end.addresses.iter().filter(|address| subnet.contains(**address))
            {
                if own.contains(&address) || !carries(observed, bridges, bridge.index, address) {
                    continue;
                }
                let holder = known.endpoints.get(&key(address)).map(|endpoint| endpoint.ifindex);
                contest.claim(
                    &mut found.endpoints,
                    key(address),
                    Endpoint {
                        ifindex: link.index,
                        bridge: bridge.index,
                        mtu: bridge.mtu,
                        mac,
                        gateway: bridge.mac.0,
                    },
                    |endpoint| endpoint.ifindex,
                    holder,
                    || format!("address {address}"),
                );
            }
        }
        found.contested = contest.contested;
        found.homes = homes(observed, cables, &found.endpoints);
        found
    }

    /// How many containers' addresses there are.
    pub fn containers(&self) -> usize {
        self.endpoints.values().filter(|endpoint| !endpoint.is_host()).count()
    }
}

const fn key(address: Ipv4Addr) -> EndpointKey {
    EndpointKey { address: address.octets() }
}

struct Contest<'a> {
    names: &'a BTreeMap<u32, Link>,
    contested: BTreeSet<Contested>,
}

impl Contest<'_> {
    /// Gives `key` to a port, unless another one has the better claim.
    fn claim<K: Eq + std::hash::Hash, V>(
        &mut self,
        map: &mut HashMap<K, V>,
        key: K,
        claim: V,
        port: impl Fn(&V) -> u32,
        holder: Option<u32>,
        what: impl Fn() -> String,
    ) {
        let Some(other) = map.get(&key).map(&port) else {
            map.insert(key, claim);
            return;
        };
        let new = port(&claim);
        let (keeps, also) = if holder == Some(new) { (new, other) } else { (other, new) };
        let name = |ifindex| self.names.get(&ifindex).map_or("?", |link| &link.name).to_owned();
        self.contested.insert(Contested { what: what(), keeps: name(keeps), also: name(also) });
        if keeps == new {
            map.insert(key, claim);
        }
    }
}

/// The other bridges that containers with an address of the overlay are behind.
fn homes(
    observed: &KernelState,
    cables: &BTreeMap<u32, Cable>,
    endpoints: &HashMap<EndpointKey, Endpoint>,
) -> HashMap<HomeKey, Home> {
    let mut homes = HashMap::new();
    for (address, endpoint) in endpoints {
        let Some(own) = cables.get(&endpoint.ifindex) else { continue };
        for (ifindex, cable) in cables {
            let Some(link) = observed.links.get(ifindex) else { continue };
            let Some(other) = link.master.filter(|master| *master != endpoint.bridge) else {
                continue;
            };
            if cable.place.namespace == own.place.namespace
                && observed.links.get(&other).is_some_and(|link| link.kind == LinkKind::Bridge)
            {
                homes.insert(
                    HomeKey { address: address.address, ifindex: other },
                    Home { mac: cable.end.mac.0, reserved: [0; 2] },
                );
            }
        }
    }
    homes
}

#[cfg(test)]
pub(crate) mod test_support {
    use super::*;
    use crate::kernel::netlink::{PeerEnd, PeerPlace};

    pub(crate) const BRIDGE: u32 = 3;
    pub(crate) const OTHER_BRIDGE: u32 = 4;
    pub(crate) const VETH: u32 = 9;
    pub(crate) const NEIGHBOUR: u32 = 10;
    pub(crate) const CONTAINER: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 2);

    pub(crate) fn mac(ifindex: u32) -> MacAddr {
        MacAddr([2, 0x42, 10, 1, 15, u8::try_from(ifindex).expect("small")])
    }

    pub(crate) fn place(ifindex: u32) -> PeerPlace {
        PeerPlace { namespace: i32::try_from(ifindex).expect("small"), ifindex: 2 }
    }

    pub(crate) fn link(index: u32, kind: LinkKind, master: Option<u32>) -> Link {
        Link {
            index,
            name: format!("link{index}"),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mtu: 1450,
            up: true,
            no_arp: false,
            ethernet: true,
            loopback: false,
            master,
            blocked: false,
            kind,
        }
    }

    pub(crate) fn subnet() -> Ipv4Network {
        "10.1.15.0/24".parse().expect("a subnet")
    }

    pub(crate) fn observed() -> KernelState {
        let veth = |ifindex| LinkKind::Veth { peer: Some(place(ifindex)) };
        KernelState {
            links: [
                link(2, LinkKind::Other, None),
                link(BRIDGE, LinkKind::Bridge, None),
                link(OTHER_BRIDGE, LinkKind::Bridge, None),
                link(VETH, veth(VETH), Some(BRIDGE)),
                link(NEIGHBOUR, veth(NEIGHBOUR), Some(BRIDGE)),
            ]
            .into_iter()
            .map(|link| (link.index, link))
            .collect(),
            addresses: vec![
                (2, Ipv4Addr::new(192, 168, 33, 10), 24),
                (BRIDGE, Ipv4Addr::new(10, 1, 15, 1), 24),
            ],
        }
    }

    pub(crate) fn cable(ifindex: u32, addresses: &[Ipv4Addr]) -> (u32, Cable) {
        let end = PeerEnd { mac: mac(ifindex), addresses: addresses.to_vec() };
        (ifindex, Cable { place: place(ifindex), end })
    }
}

#[cfg(test)]
mod tests {
    use super::{test_support::*, *};
    use crate::kernel::netlink::PeerEnd;

    fn identities(
        observed: &KernelState,
        cables: impl IntoIterator<Item = (u32, Cable)>,
        known: &Identities,
    ) -> Identities {
        let cables = cables.into_iter().collect();
        let bridges = super::super::bridges(observed, subnet(), &[]);
        Identities::of(observed, &bridges, subnet(), &cables, known, &[])
    }

    fn owner(identities: &Identities) -> Option<u32> {
        identities.endpoints.get(&key(CONTAINER)).map(|endpoint| endpoint.ifindex)
    }

    #[test]
    fn an_address_belongs_to_the_port_that_the_kernel_has_it_behind() {
        let elsewhere = Ipv4Addr::new(172, 18, 0, 2);
        let found = identities(
            &observed(),
            [cable(VETH, &[elsewhere, CONTAINER]), cable(NEIGHBOUR, &[])],
            &Identities::default(),
        );
        let endpoint = found.endpoints[&key(CONTAINER)];
        assert_eq!((endpoint.ifindex, endpoint.mac), (VETH, mac(VETH).0));
        assert_eq!(found.containers(), 1);
        assert_eq!(found.ports[&PortKey::new(BRIDGE, mac(NEIGHBOUR).0)].ifindex, NEIGHBOUR);
        assert_eq!(found.endpoints[&key(Ipv4Addr::new(10, 1, 15, 1))], Endpoint::HOST);
        assert!(found.contested.is_empty() && found.homes.is_empty());
    }

    #[test]
    fn of_two_that_have_an_address_the_one_keeps_it_that_had_it() {
        let both = || [cable(VETH, &[CONTAINER]), cable(NEIGHBOUR, &[CONTAINER])];
        let fresh = identities(&observed(), both(), &Identities::default());
        assert_eq!(owner(&fresh), Some(VETH), "the older interface");
        let known = identities(&observed(), [cable(NEIGHBOUR, &[CONTAINER])], &fresh);
        assert_eq!(owner(&known), Some(NEIGHBOUR), "the only one");
        let found = identities(&observed(), both(), &known);
        assert_eq!(owner(&found), Some(NEIGHBOUR), "the one that had it");
        let said: Vec<_> = found.contested.iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 1);
        assert!(said[0].contains("10.1.15.2: the one behind link10, which keeps it"), "{said:?}");
        let given_up = identities(&observed(), [cable(VETH, &[CONTAINER])], &found);
        assert_eq!(owner(&given_up), Some(VETH));
    }

    #[test]
    fn a_mac_belongs_to_one_port() {
        let mut second = cable(NEIGHBOUR, &[]);
        second.1.end.mac = mac(VETH);
        let found = identities(&observed(), [cable(VETH, &[]), second], &Identities::default());
        assert_eq!(found.ports[&PortKey::new(BRIDGE, mac(VETH).0)].ifindex, VETH);
        assert_eq!(found.contested.len(), 1);
    }

    #[test]
    fn what_is_not_behind_the_bridge_is_no_container_of_ours() {
        type Edit = fn(&mut KernelState);
        let cases: [(&str, Edit); 3] = [
            ("a port that is down", |observed| {
                observed.links.get_mut(&VETH).expect("there").up = false;
            }),
            ("a port of another bridge", |observed| {
                observed.links.get_mut(&VETH).expect("there").master = Some(OTHER_BRIDGE);
            }),
            ("an address of the host", |observed| observed.addresses.push((2, CONTAINER, 32))),
        ];
        for (name, edit) in cases {
            let mut observed = observed();
            edit(&mut observed);
            let found = identities(&observed, [cable(VETH, &[CONTAINER])], &Identities::default());
            assert_eq!(found.containers(), 0, "{name}");
        }
    }

    #[test]
    fn a_container_with_a_second_network_has_a_second_home() {
        const SECOND: u32 = 11;
        let mut observed = observed();
        let veth = LinkKind::Veth { peer: Some(place(SECOND)) };
        observed.links.insert(SECOND, link(SECOND, veth, Some(OTHER_BRIDGE)));
        let second = Cable {
            place: crate::kernel::netlink::PeerPlace { ifindex: 3, ..place(VETH) },
            end: PeerEnd { mac: mac(SECOND), addresses: vec![] },
        };
        let found = identities(
            &observed,
            [cable(VETH, &[CONTAINER]), (SECOND, second)],
            &Identities::default(),
        );
        let home = HomeKey { address: CONTAINER.octets(), ifindex: OTHER_BRIDGE };
        assert_eq!(found.homes[&home].mac, mac(SECOND).0);
        assert_eq!(found.homes.len(), 1);
    }

    #[test]
    fn bridges_keep_their_containers_apart() {
        const SECOND: u32 = 11;
        let behind_other = Ipv4Addr::new(10, 1, 15, 130);
        let mut observed = observed();
        let veth = LinkKind::Veth { peer: Some(place(SECOND)) };
        observed.links.insert(SECOND, link(SECOND, veth, Some(OTHER_BRIDGE)));
        let other = observed.links.get_mut(&OTHER_BRIDGE).expect("there");
        (other.mac, other.mtu) = (MacAddr([2, 0, 0, 0, 0, 2]), 1400);
        observed.addresses.push((OTHER_BRIDGE, Ipv4Addr::new(10, 1, 15, 129), 25));
        // With the same MAC, and the other's address.
        let mut second = cable(SECOND, &[behind_other, CONTAINER]);
        second.1.end.mac = mac(VETH);
        let cables = [cable(VETH, &[CONTAINER, behind_other]), second];
        let found = identities(&observed, cables, &Identities::default());
        assert_eq!(owner(&found), Some(VETH));
        let theirs = found.endpoints[&key(behind_other)];
        assert_eq!((theirs.ifindex, theirs.bridge, theirs.mtu), (SECOND, OTHER_BRIDGE, 1400));
        assert_eq!(theirs.gateway, [2, 0, 0, 0, 0, 2]);
        assert_eq!(found.ports[&PortKey::new(BRIDGE, mac(VETH).0)].ifindex, VETH);
        assert_eq!(found.ports[&PortKey::new(OTHER_BRIDGE, mac(VETH).0)].ifindex, SECOND);
        assert!(found.contested.is_empty(), "{:?}", found.contested);
    }

    #[test]
    fn a_container_that_may_use_any_source_is_known_by_its_address() {
        let cables = BTreeMap::from([cable(VETH, &[CONTAINER])]);
        let observed = observed();
        let bridges = [observed.links[&BRIDGE].clone()];
        let known = Identities::default();
        let found = Identities::of(&observed, &bridges, subnet(), &cables, &known, &[CONTAINER]);
        assert!(found.ports[&PortKey::new(BRIDGE, mac(VETH).0)].source_any());
    }
}
