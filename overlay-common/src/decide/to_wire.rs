use super::{
    Tables, contents::Contents, policy::note_leaving, rules::accept_underlay, sender::is_vxlan,
    stack_flow::remember_leaving,
};
use crate::{
    Reason,
    packet::Packet,
    tables::{Direction, HostConfig, StackFlowKey},
};

/// Who sends a packet that leaves by the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// One of our programs.
    Program,
    /// This host.
    Host,
    /// Somebody for whom this host forwards it.
    Forwarded,
}

/// Decides about a packet that leaves by the uplink. Whoever forwards VXLAN with our own address has masqueraded
/// it: a container of whatever network speaks for this host. What this host or our programs send may be answered; VXLAN
/// of the host's shows that netfilter lets it out. Of what the stack forwards to a peer on the same link, the flow is remembered, as of what goes through the
/// tunnel device.
#[inline(always)]
pub fn to_wire(
    packet: &impl Packet,
    sender: Sender,
    host: &HostConfig,
    tables: &impl Tables,
    remember: impl FnOnce(&StackFlowKey),
) -> Result<Reason, Reason> {
    if sender != Sender::Forwarded {
        note_direct(packet, host, tables);
        if sender == Sender::Host {
            note_underlay(packet, host, tables);
        }
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

/// What the kernel has encapsulated has passed the host's own rules.
#[inline(always)]
fn note_underlay(packet: &impl Packet, host: &HostConfig, tables: &impl Tables) {
    if host.honours_rules()
        && let Ok(contents) = Contents::of(packet)
        && let Ok(ipv4) = contents.ipv4(packet)
        && ipv4.src_addr == host.uplink_address
        && is_vxlan(packet, contents.offset, &ipv4, host) == Ok(true)
    {
        accept_underlay(ipv4.dst_addr, Direction::Left, host, tables);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::test_support::{HOST, LOCAL, PEER, REMOTE, World, udp_packet};

    /// Its answer comes the same way, and would else be judged like what the peer begins.
    #[test]
    fn what_the_host_sends_a_peer_on_the_same_link_may_be_answered() {
        let mut world = World::new();
        let question = udp_packet(HOST, REMOTE, 10);
        to_wire(&question, Sender::Host, &world.host, &world, |_| ()).expect("sent by the host");
        assert!(world.policy_flows.borrow().is_empty(), "without a policy nobody asks");
        world.host.flags |= HostConfig::POLICY;
        to_wire(&question, Sender::Host, &world.host, &world, |_| ()).expect("sent by the host");
        let flows = world.policy_flows.borrow();
        let (flow, known) = flows.iter().next().expect("noted");
        assert_eq!((flow.local, flow.remote), (HOST, REMOTE));
        assert_eq!(known.begun, Direction::Left as u32);
    }

    #[test]
    fn nobody_speaks_vxlan_with_our_address_but_us() {
        let world = World::new();
        let decide = |from, port: u16, sender| {
            let mut packet = udp_packet(from, PEER.public_address, 60);
            packet.bytes[36..38].copy_from_slice(&port.to_be_bytes());
            let (Ok(reason) | Err(reason)) = to_wire(&packet, sender, &world.host, &world, |_| ());
            reason
        };
        let (ours, port) = (world.host.uplink_address, world.host.port);
        assert_eq!(decide(ours, port, Sender::Forwarded), Reason::ContainerVxlan);
        assert_eq!(decide(ours, port, Sender::Host), Reason::SentByHost);
        assert_eq!(decide(ours, port + 1, Sender::Forwarded), Reason::NotVxlan);
        assert_eq!(
            decide([192, 168, 33, 77], port, Sender::Forwarded),
            Reason::NotVxlan,
            "somebody's whom we route for"
        );
    }
    #[test]
    fn flows_to_peers_on_the_link_are_remembered() {
        let world = World::new();
        let remembered = |to, sender| {
            let mut flows = 0;
            to_wire(&udp_packet(LOCAL, to, 60), sender, &world.host, &world, |_| flows += 1).ok();
            flows
        };
        assert_eq!(remembered(REMOTE, Sender::Forwarded), 1);
        assert_eq!(remembered(REMOTE, Sender::Program), 0, "our own programs'");
        assert_eq!(remembered([8, 8, 8, 8], Sender::Forwarded), 0);
    }
}
