use super::{
    Tables,
    encapsulation::{Encapsulation, fitting_length},
    has_options, is_bridge, is_fragment, load_headers, lookup_peer,
    policy::note_leaving,
    rules::underlay_may_pass,
};
use crate::{
    Reason,
    packet::Packet,
    tables::{Direction, Endpoint, EndpointKey, HomeKey, HostConfig, Peer, Way},
};

/// Where the kernel shall send a packet that left the host's stack through the tunnel device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelTarget {
    /// The peer.
    pub peer: Peer,
}

/// Decides about a packet that the stack sends into the overlay, and that came to this host by interface
/// `came_by`, 0 where the host made it. There is no path after this one: what no peer can receive is dropped by
/// name, and so is what has a container's address without coming from where that is.
#[inline(always)]
pub fn to_tunnel(
    packet: &impl Packet,
    came_by: u32,
    host: &HostConfig,
    tables: &impl Tables,
) -> Result<TunnelTarget, Reason> {
    let (_, ipv4) = load_headers(packet).or(Err(Reason::InnerNotIpv4))?;
    let source = ipv4.src_addr;
    let may_send = if host.subnet().contains(source) {
        came_by == 0 || is_bridge(came_by, tables) || is_elsewhere(source, came_by, tables)
    } else {
        source == host.uplink_address
    };
    if !may_send {
        return Err(Reason::SpoofedSource);
    }
    let peer = lookup_peer(host, tables, ipv4.dst_addr).ok_or(Reason::Unreachable)?;
    note_leaving(packet, 0, host, tables);
    Ok(TunnelTarget { peer })
}

/// How the program encapsulates such a packet itself, of a container and left by the stack as it came, so that netfilter
/// has not to look at the packet around it. Whatever is in the way of that is the kernel's to encapsulate.
#[inline(always)]
pub fn encapsulate(
    packet: &impl Packet,
    target: &TunnelTarget,
    host: &HostConfig,
    tables: &impl Tables,
) -> Result<Encapsulation, Reason> {
    let (_, ipv4) = load_headers(packet)?;
    if target.peer.way() != Way::Vxlan {
        return Err(Reason::OtherWay);
    }
    // The kernel has its mark lead the packet around it, or carried to the other host.
    if packet.mark() != 0 {
        return Err(Reason::GroupPolicy);
    }
    if has_options(&ipv4) {
        return Err(Reason::IpOptions);
    }
    if is_fragment(&ipv4) {
        return Err(Reason::Fragment);
    }
    let inner_length = fitting_length(packet, host, &ipv4)?;
    if !underlay_may_pass(target.peer.public_address, Direction::Left, host, tables) {
        return Err(Reason::AwaitsRules);
    }
    Ok(Encapsulation::new(packet, target.peer, ipv4, inner_length))
}

/// Whether a packet that did not come from a bridge may have this source: the host's, because it is masqueraded, or a
/// container's that is behind that interface too.
#[inline(always)]
fn is_elsewhere(source: [u8; 4], came_by: u32, tables: &impl Tables) -> bool {
    tables.endpoint(&EndpointKey { address: source }).is_some_and(Endpoint::is_host)
        || tables.home(&HomeKey { address: source, ifindex: came_by }).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decide::{
            Sender,
            test_support::{BRIDGE, HOST, LOCAL, PEER, REMOTE, World, udp_packet},
            to_wire,
        },
        packet::test_support::Bytes,
    };

    #[test]
    fn the_peer_is_found_or_the_reason_named() {
        let world = World::new();
        let to = |packet| to_tunnel(&packet, 0, &world.host, &world).map(|target| target.peer);
        assert_eq!(to(udp_packet(LOCAL, REMOTE, 10)), Ok(PEER));
        assert_eq!(to(udp_packet([10, 9, 9, 9], REMOTE, 10)), Err(Reason::SpoofedSource));
        assert_eq!(to(udp_packet(world.host.uplink_address, REMOTE, 10)), Ok(PEER));
        assert_eq!(to(udp_packet(LOCAL, [10, 1, 200, 1], 10)), Err(Reason::Unreachable));
        let mut garbage = udp_packet(LOCAL, REMOTE, 10);
        garbage.bytes[13] = 6;
        assert_eq!(to(garbage), Err(Reason::InnerNotIpv4));
    }

    #[test]
    fn a_containers_address_comes_from_where_the_container_is() {
        const OTHER: u32 = 31;
        let mut world = World::new();
        let refused = |world: &World, from, came_by| {
            to_tunnel(&udp_packet(from, REMOTE, 10), came_by, &world.host, world).is_err()
        };
        assert!(!refused(&world, LOCAL, BRIDGE.ifindex));
        assert!(!refused(&world, HOST, OTHER), "masqueraded");
        assert!(refused(&world, LOCAL, OTHER));
        world.second_home = Some((LOCAL, OTHER));
        assert!(!refused(&world, LOCAL, OTHER));
    }

    #[test]
    fn what_is_in_the_way_of_our_encapsulation_is_the_kernels() {
        let mut world = World::new();
        world.host.flags |= HostConfig::HONOUR_RULES;
        let packet = udp_packet(LOCAL, REMOTE, 10);
        let refused = |world: &World, packet: &Bytes, peer| {
            encapsulate(packet, &TunnelTarget { peer }, &world.host, world).err()
        };
        assert_eq!(refused(&world, &packet, PEER), Some(Reason::AwaitsRules));
        let mut around = udp_packet(world.host.uplink_address, PEER.public_address, 60);
        around.bytes[36..38].copy_from_slice(&world.host.port.to_be_bytes());
        to_wire(&around, Sender::Program, &world.host, &world, |_| ()).expect("ours");
        assert_eq!(refused(&world, &packet, PEER), Some(Reason::AwaitsRules), "netfilter saw none");
        to_wire(&around, Sender::Host, &world.host, &world, |_| ()).expect("the kernel's");
        assert_eq!(refused(&world, &packet, PEER), None);

        let edited = |edit: fn(&mut Bytes)| {
            let mut packet = packet.clone();
            edit(&mut packet);
            refused(&world, &packet, PEER)
        };
        assert_eq!(edited(|packet| packet.mark = 1), Some(Reason::GroupPolicy));
        assert_eq!(edited(|packet| packet.bytes[14] = 0x46), Some(Reason::IpOptions));
        assert_eq!(edited(|packet| packet.bytes[20] = 0x20), Some(Reason::Fragment));
        let large = udp_packet(LOCAL, REMOTE, 1423);
        assert_eq!(refused(&world, &large, PEER), Some(Reason::TooBig));
        for way in [Way::Direct, Way::Stack] {
            let peer = Peer { way: way as u8, ..PEER };
            assert_eq!(refused(&world, &packet, peer), Some(Reason::OtherWay));
        }
        world.host.flags &= !HostConfig::HONOUR_RULES;
        assert_eq!(refused(&world, &packet, PEER), Some(Reason::AwaitsRules), "nothing is noted");
    }
}
