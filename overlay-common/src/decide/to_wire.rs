use super::{
    Tables, contents::Contents, policy::note_leaving, sender::is_vxlan,
    stack_flow::remember_leaving,
};
use crate::{
    Reason,
    packet::Packet,
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
        && let Ok(contents) = Contents::of(packet)
        && let Ok(ipv4) = contents.ipv4(packet)
        && host.network().contains(ipv4.dst_addr)
    {
        note_leaving(packet, contents.offset, host, tables);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decide::test_support::{HOST, LOCAL, PEER, REMOTE, World, udp_packet},
        tables::Direction,
    };

    /// Its answer comes the same way, and would else be judged like what the peer begins.
    #[test]
    fn what_the_host_sends_a_peer_on_the_same_link_may_be_answered() {
        let mut world = World::new();
        let question = udp_packet(HOST, REMOTE, 10);
        to_wire(&question, false, &world.host, &world, |_| ()).expect("sent by the host");
        assert!(world.policy_flows.borrow().is_empty(), "without a policy nobody asks");
        world.host.flags |= HostConfig::POLICY;
        to_wire(&question, false, &world.host, &world, |_| ()).expect("sent by the host");
        let flows = world.policy_flows.borrow();
        let (flow, known) = flows.iter().next().expect("noted");
        assert_eq!((flow.local, flow.remote), (HOST, REMOTE));
        assert_eq!(known.begun, Direction::Left as u32);
    }

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
