//! Which interface carries which program, and which interface is the uplink.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use overlay_common::{
    Hook,
    tables::{Home, HomeKey},
};

use crate::{
    dataplane::containers,
    kernel::{
        datapath::Attachment,
        netlink::{KernelState, Link, LinkKind, Tunnel},
    },
};

/// The uplink, by what identifies it: the interface that it was, for as long as that is there and has our address;
/// whichever has the address, if another one has it now; the interface that it was without the address; another of
/// the same name. An address that was never that interface's own tells nothing.
pub fn uplink<'a>(
    observed: &'a KernelState,
    was: &Attachment,
    own_address: Option<Ipv4Addr>,
    tunnel: u32,
) -> Option<&'a Link> {
    let owners = || {
        let of_address =
            observed.addresses.iter().filter(|(_, found, _)| Some(*found) == own_address);
        of_address.filter_map(|(index, ..)| observed.links.get(index))
    };
    owners()
        .find(|link| link.index == was.ifindex)
        .or_else(|| owners().find(|link| !link.loopback && link.index != tunnel))
        .or_else(|| observed.links.get(&was.ifindex))
        .or_else(|| observed.links.values().find(|link| link.name == was.interface))
}

/// A veth that leads elsewhere is a bridge's port in the next moment, as a rule, and what is behind it a container. Only
/// one that stays alone for so long, or has an address, is an interface of the host.
const ALONE: Duration = Duration::from_millis(500);

/// Veths that have only just appeared, and are no ports yet.
#[derive(Debug, Default)]
pub struct Newcomers {
    /// Since when each has been seen alone. Whoever starts has seen none: which of them will be ports in the next moment,
    /// nobody can tell.
    since: BTreeMap<u32, Instant>,
    young: BTreeSet<u32>,
    /// They are not those that [`take_change`](Self::take_change) was asked about the last time.
    changed: bool,
}

impl Newcomers {
    /// Finds those that have been alone for too short a time, at this moment.
    pub fn look(&mut self, observed: &KernelState, now: Instant) {
        let has_address = |link: &Link| observed.addresses.iter().any(|at| at.0 == link.index);
        let alone = |link: &&Link| {
            link.master.is_none()
                && matches!(link.kind, LinkKind::Veth { peer: Some(_) })
                && !has_address(link)
        };
        let before = std::mem::take(&mut self.since);
        let alone = observed.links.values().filter(alone);
        self.since = alone
            .map(|link| (link.index, before.get(&link.index).copied().unwrap_or(now)))
            .collect();
        let young = self.since.iter().filter(|(_, since)| now.duration_since(**since) < ALONE);
        let young = young.map(|(ifindex, _)| *ifindex).collect();
        self.changed |= self.young != young;
        self.young = young;
    }

    /// Whether there are others since this was asked the last time: some have come, or are no newcomers any more.
    pub const fn take_change(&mut self) -> bool {
        std::mem::replace(&mut self.changed, false)
    }

    /// What the map `homes` should hold for them.
    pub fn homes(&self) -> impl Iterator<Item = (HomeKey, Home)> {
        self.young.iter().map(|ifindex| (HomeKey::newcomer(*ifindex), Home::default()))
    }
}

/// Every program and the interfaces that it should be on.
pub fn places(
    observed: &KernelState,
    uplink: Option<&Attachment>,
    tunnel: Option<&Tunnel>,
    bridges: &[Link],
) -> [(Hook, Vec<Attachment>); Hook::ALL.len()] {
    let place = |link: &Link| Attachment { ifindex: link.index, interface: link.name.clone() };
    let tunnel_place: Vec<_> = tunnel
        .map(|tunnel| Attachment { ifindex: tunnel.ifindex, interface: tunnel.name.clone() })
        .into_iter()
        .collect();
    let bridge_places: Vec<_> = bridges.iter().map(place).collect();
    let uplink_place: Vec<_> = uplink.cloned().into_iter().collect();
    let ports = bridges.iter().flat_map(|bridge| containers::container_ports(observed, bridge));
    let ports: Vec<_> = ports.map(place).collect();
    let own = |link: &&Link| {
        let named = [&uplink_place, &tunnel_place, &bridge_places, &ports];
        named.iter().any(|places| places.iter().any(|place| place.ifindex == link.index))
    };
    let others = observed.links.values().filter(|link| receives(observed, link));
    let others = others.filter(|link| !own(link)).map(place).collect();
    [
        (Hook::FromUplink, uplink_place.clone()),
        (Hook::FromTunnel, tunnel_place.clone()),
        (Hook::FromInterface, others),
        (Hook::FromBridge, bridge_places.clone()),
        (Hook::FromContainer, ports),
        (Hook::ToTunnel, tunnel_place),
        (Hook::ToBridge, bridge_places),
        (Hook::ToWire, uplink_place),
    ]
}

/// Whether the kernel takes packets for itself from this interface. Those of a bridge's or bond's port come by the
/// bridge or bond; both halves of a veth pair are here only until one is moved into its container.
fn receives(observed: &KernelState, link: &Link) -> bool {
    let is_port = link.master.is_some_and(|master| {
        observed
            .links
            .get(&master)
            .is_none_or(|master| !matches!(master.kind, LinkKind::Vrf { .. }))
    });
    !link.loopback && !is_port && link.kind != LinkKind::Veth { peer: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::containers::test_support::{
        BRIDGE, NEIGHBOUR, OTHER_BRIDGE, VETH, link, observed, place as peer,
    };

    const UPLINK: u32 = 2;
    const TUNNEL: u32 = 5;
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 33, 10);

    fn was() -> Attachment {
        Attachment { ifindex: UPLINK, interface: "link2".to_owned() }
    }

    fn found(observed: &KernelState) -> Option<u32> {
        uplink(observed, &was(), Some(ADDRESS), TUNNEL).map(|link| link.index)
    }

    #[test]
    fn the_uplink_is_followed_by_number_address_and_name_in_this_order() {
        let mut host = observed();
        host.links.get_mut(&UPLINK).expect("there").name = "renamed".to_owned();
        assert_eq!(found(&host), Some(UPLINK), "renamed");
        host.addresses.retain(|(_, address, _)| *address != ADDRESS);
        assert_eq!(found(&host), Some(UPLINK), "without its address for a moment");
        host.addresses.push((OTHER_BRIDGE, ADDRESS, 24));
        assert_eq!(found(&host), Some(OTHER_BRIDGE), "a port of a bridge now");
        let without = uplink(&host, &was(), None, TUNNEL).map(|link| link.index);
        assert_eq!(without, Some(UPLINK), "never had it");
        host.addresses.pop();
        host.links.remove(&UPLINK);
        assert_eq!(found(&host), None, "gone");
        host.links.insert(20, Link { name: "link2".to_owned(), ..link(20, LinkKind::Other, None) });
        assert_eq!(found(&host), Some(20), "made again");
    }

    #[test]
    fn every_interface_that_receives_has_a_program() {
        let mut host = observed();
        let mut add = |index, kind, master| host.links.insert(index, link(index, kind, master));
        add(TUNNEL, LinkKind::Vxlan { port: 8472, external: true, gbp: false, lower: None }, None);
        add(20, LinkKind::Other, None);
        add(21, LinkKind::Veth { peer: None }, None);
        add(22, LinkKind::Veth { peer: Some(peer(22)) }, None);
        add(23, LinkKind::Veth { peer: Some(peer(23)) }, Some(OTHER_BRIDGE));
        add(24, LinkKind::Vrf { table: 17 }, None);
        add(25, LinkKind::Other, Some(24));
        add(26, LinkKind::Tun, Some(BRIDGE));
        add(1, LinkKind::Other, None);
        host.links.get_mut(&1).expect("there").loopback = true;
        let tunnel = Tunnel { ifindex: TUNNEL, name: "overlay.1".to_owned() };
        let bridges = [host.links[&BRIDGE].clone()];
        let places = places(&host, Some(&was()), Some(&tunnel), &bridges);
        let of = |hook| {
            let (_, places) = places.iter().find(|(found, _)| *found == hook).expect("each hook");
            places.iter().map(|place| place.ifindex).collect::<Vec<_>>()
        };
        assert_eq!(of(Hook::FromInterface), [OTHER_BRIDGE, 20, 22, 24, 25]);
        assert_eq!(of(Hook::FromContainer), [VETH, NEIGHBOUR, 26]);
        assert_eq!((of(Hook::FromUplink), of(Hook::ToWire)), (vec![UPLINK], vec![UPLINK]));
    }

    #[test]
    fn a_veth_is_left_alone_until_it_has_been_alone_for_a_while() {
        let mut host = observed();
        let mut newcomers = Newcomers::default();
        let mut add = |index| {
            let veth = LinkKind::Veth { peer: Some(peer(index)) };
            host.links.insert(index, link(index, veth, None));
            host.clone()
        };
        let start = Instant::now();
        let mut young = |host: &KernelState, when| {
            newcomers.look(host, when);
            newcomers.homes().map(|(key, _)| key.ifindex).collect::<Vec<_>>()
        };
        assert_eq!(young(&add(20), start), [20]);
        let host = add(21);
        assert_eq!(young(&host, start + ALONE / 2), [20, 21]);
        assert_eq!(young(&host, start + ALONE), [21]);
        assert!(young(&host, start + ALONE * 2).is_empty());
        // Nobody else has changed what they are in the map.
        assert!(newcomers.take_change() && !newcomers.take_change());
        newcomers.look(&host, start + ALONE * 2);
        assert!(!newcomers.take_change());
    }
}
