//! What leaves through the stack comes back through the stack. Netfilter may have rewritten a container's
//! packet on its way out (a DNAT to a remote container, as services do); the answer then means nothing to
//! the container before netfilter has put it right.

use network_types::ip::Ipv4Hdr;

use super::{Tables, is_fragment};
use crate::{
    packet::{ETHERNET_LENGTH, PROTOCOL_TCP, PROTOCOL_UDP, Packet},
    tables::{EndpointKey, HostConfig, StackFlowKey},
};

const PROTOCOL_ICMP: u8 = 1;
const ICMP_ECHO_REPLY: u8 = 0;
const ICMP_ECHO: u8 = 8;

/// The ports of a packet. Every field is always written: of an `Option`, the compiler would copy bytes
/// that hold nothing, which the verifier refuses.
struct Ports {
    /// Whether the packet shows them: fragments and ICMP errors do not.
    shown: bool,
    source: [u8; 2],
    destination: [u8; 2],
}

#[inline(always)]
fn ports(packet: &impl Packet, offset: usize, ipv4: &Ipv4Hdr) -> Ports {
    const HIDDEN: Ports = Ports { shown: false, source: [0; 2], destination: [0; 2] };
    if is_fragment(ipv4) {
        return HIDDEN;
    }
    if !matches!(ipv4.proto, PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_ICMP) {
        return Ports { shown: true, ..HIDDEN };
    }
    // Enough for a UDP header and for an ICMP echo's.
    let transport = offset + usize::from(ipv4.vihl & 0x0f) * 4;
    let Some([a, b, c, d, id_high, id_low, _, _]) = packet.load::<[u8; 8]>(transport) else {
        return HIDDEN;
    };
    if ipv4.proto != PROTOCOL_ICMP {
        return Ports { shown: true, source: [a, b], destination: [c, d] };
    }
    let identifier = [id_high, id_low];
    let shown = matches!(a, ICMP_ECHO | ICMP_ECHO_REPLY);
    Ports { shown, source: identifier, destination: identifier }
}

/// Has the flow of a packet remembered that the stack sends for a local container. Not so for the host's
/// own packets, for those that show no ports, and where the fast path is off, because then everything
/// takes the stack.
///
/// A closure instead of an `Option` to return: its bytes that hold nothing would be copied, and the
/// verifier refuses to read what was never written.
#[inline(always)]
pub fn remember_leaving(
    packet: &impl Packet,
    host: &HostConfig,
    tables: &impl Tables,
    remember: impl FnOnce(&StackFlowKey),
) {
    if !host.fast_path() {
        return;
    }
    let Some(ipv4) = packet.load::<Ipv4Hdr>(ETHERNET_LENGTH) else {
        return;
    };
    let owner = tables.endpoint(&EndpointKey { address: ipv4.src_addr });
    if owner.is_some_and(|owner| owner.is_host()) {
        return;
    }
    let ports = ports(packet, ETHERNET_LENGTH, &ipv4);
    if ports.shown {
        remember(&StackFlowKey {
            local: ipv4.src_addr,
            remote: ipv4.dst_addr,
            local_port: ports.source,
            remote_port: ports.destination,
            protocol: u32::from(ipv4.proto),
        });
    }
}

/// Whether a received packet, whose IPv4 header is at `offset`, belongs to a flow that left through the
/// stack. A packet that shows no ports may: it does wherever any such flow exists.
#[inline(always)]
pub(super) fn answers_a_stack_flow(
    packet: &impl Packet,
    offset: usize,
    ipv4: &Ipv4Hdr,
    tables: &impl Tables,
) -> bool {
    if !tables.any_stack_flow() {
        return false;
    }
    let ports = ports(packet, offset, ipv4);
    !ports.shown
        || tables.is_stack_flow(&StackFlowKey {
            local: ipv4.dst_addr,
            remote: ipv4.src_addr,
            local_port: ports.destination,
            remote_port: ports.source,
            protocol: u32::from(ipv4.proto),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Reason,
        decide::{
            from_uplink,
            test_support::{HOST, LOCAL, REMOTE, World, udp_packet, vxlan_packet},
        },
    };

    fn remembered(world: &World, [from, to]: [[u8; 4]; 2]) -> Vec<StackFlowKey> {
        let mut flows = Vec::new();
        let packet = udp_packet(from, to, 10);
        remember_leaving(&packet, &world.host, world, |flow| flows.push(*flow));
        flows
    }

    #[test]
    fn the_answer_to_a_flow_that_left_through_the_stack_goes_to_the_stack() {
        let mut world = World::new();
        let mut answer = vxlan_packet(&world.host, REMOTE, LOCAL);
        // The answer comes from port 53, where the question went.
        answer.bytes[84..88].copy_from_slice(&[0, 53, 0x12, 0x34]);
        assert!(from_uplink(&answer, &world.host, &world).is_ok());

        world.stack_flows = remembered(&world, [LOCAL, REMOTE]);
        let refused = from_uplink(&answer, &world.host, &world).expect_err("declined");
        assert_eq!(refused, Reason::StackFlow);

        answer.bytes[85] = 54;
        assert!(from_uplink(&answer, &world.host, &world).is_ok(), "another flow");
        answer.bytes[70] = 0x20;
        let refused = from_uplink(&answer, &world.host, &world).expect_err("declined");
        assert_eq!(refused, Reason::StackFlow, "a fragment could belong to it");
    }

    #[test]
    fn the_hosts_own_flows_are_not_remembered() {
        let world = World::new();
        assert_eq!(remembered(&world, [HOST, REMOTE]), []);
    }

    #[test]
    fn with_the_fast_path_off_nothing_is_remembered() {
        let mut world = World::new();
        world.host.flags = 0;
        assert_eq!(remembered(&world, [LOCAL, REMOTE]), []);
    }
}
