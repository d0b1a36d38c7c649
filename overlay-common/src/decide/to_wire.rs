use super::{contents::Contents, sender::is_vxlan};
use crate::{Reason, packet::Packet, tables::HostConfig};

/// Decides about a packet that leaves by the uplink. Whoever forwards VXLAN with our own address has masqueraded
/// it: a container of whatever network speaks for this host. Of what this host or our programs send, nothing is
/// read.
#[inline(always)]
pub fn to_wire(packet: &impl Packet, forwarded: bool, host: &HostConfig) -> Result<Reason, Reason> {
    if !forwarded {
        return Ok(Reason::SentByHost);
    }
    let contents = Contents::of(packet)?;
    let ipv4 = contents.ipv4(packet)?;
    if ipv4.src_addr == host.uplink_address && is_vxlan(packet, contents.offset, &ipv4, host)? {
        Err(Reason::ContainerVxlan)
    } else {
        Err(Reason::NotVxlan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::test_support::{PEER, World, udp_packet};

    #[test]
    fn nobody_speaks_vxlan_with_our_address_but_us() {
        let world = World::new();
        let decide = |from, port: u16, forwarded| {
            let mut packet = udp_packet(from, PEER.public_address, 60);
            packet.bytes[36..38].copy_from_slice(&port.to_be_bytes());
            let (Ok(reason) | Err(reason)) = to_wire(&packet, forwarded, &world.host);
            reason
        };
        let (ours, port) = (world.host.uplink_address, world.host.port);
        assert_eq!(decide(ours, port, true), Reason::ContainerVxlan);
        assert_eq!(decide(ours, port, false), Reason::SentByHost);
        assert_eq!(decide(ours, port + 1, true), Reason::NotVxlan);
        assert_eq!(
            decide([192, 168, 33, 77], port, true),
            Reason::NotVxlan,
            "somebody's whom we route for"
        );
    }
}
