use network_types::ip::Ipv4Hdr;

use super::{
    Tables, is_bridge, is_nobodys, load_headers, lookup_peer,
    policy::{check_arriving, note_leaving},
    stack_flow::{Arriving, remember_arriving},
};
use crate::{
    Reason,
    packet::Packet,
    tables::{EndpointKey, HomeKey, HostConfig, StackFlowKey},
};

/// How a packet on its way to a containers' bridge came there.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The interface that it came to this host by; 0 where this host made it.
    pub ifindex: u32,
    /// One of our own programs delivers it.
    pub delivered: bool,
    /// One of our own programs has let it in although it is from an overlay address and not encapsulated.
    pub admitted: bool,
}

/// Decides about a packet on its way to a containers' bridge. Whoever has an address of the overlay and comes
/// neither by the tunnel device nor from behind a bridge, its own, is refused, whatever interface let it in. All else goes
/// on, and the flow is remembered of what the stack has taken out of the overlay and rewritten, because a
/// container's answer must be rewritten too. Not so of what our own programs deliver.
///
/// `reaches` tells whether the kernel has a way to an address out of an interface: what is in no lease comes by that
/// interface only (the feasible path of RFC 3704).
#[inline(always)]
pub fn to_bridge(
    packet: &impl Packet,
    origin: Origin,
    host: &HostConfig,
    tables: &impl Tables,
    reaches: impl Fn(u32, [u8; 4]) -> bool,
    remember: impl FnOnce(&StackFlowKey),
) -> Result<Reason, Reason> {
    if origin.delivered {
        return Ok(Reason::Delivered);
    }
    let (_, ipv4) = load_headers(packet)?;
    if host.network().contains(ipv4.src_addr) {
        check_origin(origin, host, tables, &ipv4, reaches)?;
        check_policy(packet, origin, &ipv4, host, tables)?;
    }
    if !host.fast_path() {
        return Err(Reason::FastPathOff);
    }
    if !host.network().contains(ipv4.src_addr) || host.subnet().contains(ipv4.src_addr) {
        return Err(Reason::NotFromPeer);
    }
    match remember_arriving(packet, &ipv4, host, tables, remember) {
        Arriving::Rewritten => Ok(Reason::FromStack),
        Arriving::AsItWas => Ok(Reason::NotRewritten),
        Arriving::Hidden => Err(Reason::Fragment),
    }
}

/// Netfilter may have led a packet elsewhere than it was going when it was asked about: a service's address to a local
/// container, a port of this host's to one. What the host itself sends is nobody's business.
#[inline(always)]
fn check_policy(
    packet: &impl Packet,
    origin: Origin,
    ipv4: &Ipv4Hdr,
    host: &HostConfig,
    tables: &impl Tables,
) -> Result<(), Reason> {
    if origin.ifindex == 0 {
        return Ok(());
    }
    if host.subnet().contains(ipv4.src_addr) {
        note_leaving(packet, 0, host, tables);
    }
    check_arriving(packet, 0, host, tables)
}

#[inline(always)]
fn check_origin(
    origin: Origin,
    host: &HostConfig,
    tables: &impl Tables,
    ipv4: &Ipv4Hdr,
    reaches: impl Fn(u32, [u8; 4]) -> bool,
) -> Result<(), Reason> {
    let by_tunnel = origin.ifindex == host.tunnel_ifindex;
    if origin.ifindex == 0 || by_tunnel || origin.admitted {
        return Ok(());
    }
    let may_come = if host.subnet().contains(ipv4.src_addr) {
        is_behind(ipv4.src_addr, origin.ifindex, tables)
    } else if let Some(peer) = lookup_peer(host, tables, ipv4.src_addr) {
        // What the fast path has declined of a peer on the same link.
        origin.ifindex == host.uplink_ifindex && peer.is_direct()
    } else {
        is_nobodys(host, ipv4.src_addr) && reaches(origin.ifindex, ipv4.src_addr)
    };
    if may_come { Ok(()) } else { Err(Reason::Unencapsulated) }
}

/// Whether a container's address may come by an interface: by the bridge that the container is behind, by one that it is
/// behind, too, and, where the bridge itself asks netfilter and that translates, by its port. Nobody's comes by any bridge.
#[inline(always)]
fn is_behind(address: [u8; 4], ifindex: u32, tables: &impl Tables) -> bool {
    match tables.endpoint(&EndpointKey { address }) {
        Some(owner) if owner.bridge == ifindex || owner.ifindex == ifindex => true,
        Some(_) => tables.home(&HomeKey { address, ifindex }).is_some(),
        None => is_bridge(ifindex, tables),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decide::test_support::{
            BRIDGE, ENDPOINT, HOST, LOCAL, NEIGHBOUR, NEIGHBOUR_ENDPOINT, PEER, REMOTE, SECOND,
            SECOND_ENDPOINT, World, udp_packet,
        },
        tables::{Peer, Way},
    };

    fn decide(world: &World, from: [u8; 4], ifindex: u32) -> Reason {
        let origin = Origin { ifindex, delivered: false, admitted: false };
        let packet = udp_packet(from, LOCAL, 10);
        // The way to everybody is by the uplink.
        let reaches = |ifindex, _| ifindex == world.host.uplink_ifindex;
        let (Ok(reason) | Err(reason)) =
            to_bridge(&packet, origin, &world.host, world, reaches, |_| ());
        reason
    }

    #[test]
    fn overlay_addresses_come_by_the_tunnel_or_from_behind_the_bridge_fast_path_on_or_off() {
        let mut world = World::new();
        let (tunnel, bridge) = (world.host.tunnel_ifindex, BRIDGE.ifindex);
        let (uplink, other) = (world.host.uplink_ifindex, 99);
        let listed = HostConfig::LEASES_LISTED;
        for flags in [HostConfig::FAST_PATH, 0, HostConfig::FAST_PATH | listed, listed] {
            world.host.flags = flags;
            let refused = |from, ifindex| decide(&world, from, ifindex) == Reason::Unencapsulated;
            for ifindex in [other, uplink, bridge] {
                assert!(refused(REMOTE, ifindex), "{ifindex}");
                let of_no_lease = refused([10, 1, 99, 9], ifindex);
                let may_come = flags & listed != 0 && ifindex == uplink;
                assert_eq!(of_no_lease, !may_come, "{ifindex}, of no lease");
            }
            assert!(!refused(REMOTE, tunnel));
            assert!(!refused(REMOTE, 0), "a proxy on this host");
            assert!(refused(NEIGHBOUR, other) && refused(NEIGHBOUR, uplink));
            assert!(!refused(NEIGHBOUR, bridge), "by a published port");
            assert!(!refused(NEIGHBOUR, NEIGHBOUR_ENDPOINT.ifindex), "by one, on the bridge");
            assert!(refused(NEIGHBOUR, ENDPOINT.ifindex));
            assert!(refused(SECOND, bridge) && !refused(SECOND, SECOND_ENDPOINT.bridge));
            assert!(!refused([10, 1, 15, 77], SECOND_ENDPOINT.bridge), "from_bridge has looked");
            assert!(!refused(HOST, 0));
            assert!(!refused([8, 8, 8, 8], uplink));
        }
    }

    #[test]
    fn a_peer_on_the_link_may_come_by_the_uplink() {
        let world = World { peer: Peer { way: Way::Direct as u8, ..PEER }, ..World::new() };
        assert_eq!(decide(&world, REMOTE, world.host.uplink_ifindex), Reason::FromStack);
        assert_eq!(decide(&world, REMOTE, 99), Reason::Unencapsulated);
    }

    #[test]
    fn what_a_check_of_ours_has_admitted_goes_on() {
        let world = World::new();
        let packet = udp_packet(REMOTE, LOCAL, 10);
        let origin = Origin { ifindex: 99, delivered: false, admitted: true };
        let outcome = to_bridge(&packet, origin, &world.host, &world, |_, _| false, |_| ());
        assert_eq!(outcome, Ok(Reason::FromStack));
    }
}
