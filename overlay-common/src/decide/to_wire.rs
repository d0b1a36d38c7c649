use network_types::ip::Ipv4Hdr;

use super::{
    Tables, contents::Contents, policy::note_leaving, sender::is_vxlan,
    stack_flow::remember_leaving,
};
use crate::{
    Reason,
    packet::{ETHERNET_LENGTH, Packet},
    tables::{HostConfig, StackFlowKey},
};

/// Decides about a packet that leaves by the uplink. Whoever forwards VXLAN with our own address has masqueraded
/// it: a container of whatever network speaks for this host. Of what this host or our programs send, nothing is
/// read. Of what the stack forwards to a peer on the same link, the flow is remembered, as of what goes through the
/// tunnel device.
#[inline(always)]
pub fn to_wire(
    packet: &impl Packet,
    forwarded: bool,
    host: &HostConfig,
    tables: &impl Tables,
    remember: impl FnOnce(&StackFlowKey),
) -> Result<Reason, Reason> {
    if !forwarded {
        note_direct(packet, host, tables);
        return Ok(Reason::SentByHost);
    }
    let contents = Contents::of(packet)?;
    let ipv4 = contents.ipv4(packet)?;
    if ipv4.src_addr == host.uplink_address && is_vxlan(packet, contents.offset, &ipv4, host)? {
        return Err(Reason::ContainerVxlan);
    }
    if host.network().contains(ipv4.dst_addr) {
        note_leaving(packet, contents.offset, host, tables);
        remember_leaving(packet, host, tables, remember);
    }
    Err(Reason::NotVxlan)
}

/// What the host sends to a peer on the same link as it is may be answered.
#[inline(always)]
fn note_direct(packet: &impl Packet, host: &HostConfig, tables: &impl Tables) {
    if host.has_policy()
        && let Some(ipv4) = packet.load::<Ipv4Hdr>(ETHERNET_LENGTH)
        && host.network().contains(ipv4.dst_addr)
    {
        note_leaving(packet, 0, host, tables);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::test_support::{LOCAL, PEER, REMOTE, World, udp_packet};

    #[test]
    fn nobody_speaks_vxlan_with_our_address_but_us() {
        let world = World::new();
        let decide = |from, port: u16, forwarded| {
            let mut packet = udp_packet(from, PEER.public_address, 60);
            packet.bytes[36..38].copy_from_slice(&port.to_be_bytes());
            let (Ok(reason) | Err(reason)) =
                to_wire(&packet, forwarded, &world.host, &world, |_| ());
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
    #[test]
    fn flows_to_peers_on_the_link_are_remembered() {
        let world = World::new();
        let remembered = |to, forwarded| {
            let mut flows = 0;
            to_wire(&udp_packet(LOCAL, to, 60), forwarded, &world.host, &world, |_| flows += 1)
                .ok();
            flows
        };
        assert_eq!(remembered(REMOTE, true), 1);
        assert_eq!(remembered(REMOTE, false), 0, "our own programs'");
        assert_eq!(remembered([8, 8, 8, 8], true), 0);
    }
}
