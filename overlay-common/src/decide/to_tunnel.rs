use super::{Tables, load_headers, lookup_peer};
use crate::{
    Reason,
    packet::Packet,
    tables::{HostConfig, Peer},
};

/// Where the kernel shall send a packet that left the host's stack through the tunnel device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelTarget {
    /// The peer.
    pub peer: Peer,
}

/// Decides about a packet that the stack sends into the overlay. There is no path after this one: what
/// no peer can receive is dropped by name.
#[inline(always)]
pub fn to_tunnel(
    packet: &impl Packet,
    host: &HostConfig,
    tables: &impl Tables,
) -> Result<TunnelTarget, Reason> {
    let (_, ipv4) = load_headers(packet).or(Err(Reason::InnerNotIpv4))?;
    if !host.subnet().contains(ipv4.src_addr) && ipv4.src_addr != host.uplink_address {
        return Err(Reason::SpoofedSource);
    }
    let peer = lookup_peer(host, tables, ipv4.dst_addr).ok_or(Reason::Unreachable)?;
    Ok(TunnelTarget { peer })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::test_support::{LOCAL, PEER, REMOTE, World, udp_packet};

    #[test]
    fn the_peer_is_found_or_the_reason_named() {
        let world = World::new();
        let to = |packet| to_tunnel(&packet, &world.host, &world).map(|target| target.peer);
        assert_eq!(to(udp_packet(LOCAL, REMOTE, 10)), Ok(PEER));
        assert_eq!(to(udp_packet([10, 9, 9, 9], REMOTE, 10)), Err(Reason::SpoofedSource));
        assert_eq!(to(udp_packet(world.host.uplink_address, REMOTE, 10)), Ok(PEER));
        assert_eq!(to(udp_packet(LOCAL, [10, 1, 200, 1], 10)), Err(Reason::Unreachable));
        let mut garbage = udp_packet(LOCAL, REMOTE, 10);
        garbage.bytes[13] = 6;
        assert_eq!(to(garbage), Err(Reason::InnerNotIpv4));
    }
}
