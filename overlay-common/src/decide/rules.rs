//! Rules that hold: where somebody's rules may concern the overlay, netfilter decides about the beginning of every flow,
//! and again more than once a second; the fast path carries what it has let through as it came. What begins or ends a
//! connection, and what shows no flow, is always netfilter's.
//!
//! What is netfilter's is encapsulated and decapsulated by our programs all the same: netfilter then has to look at one
//! packet, not at two. The kernel's own way is taken by enough packets to and from each peer for rules about the packets
//! that carry the overlay's to hold as well.

use network_types::ip::Ipv4Hdr;

use super::{
    Tables,
    flow::{shows_ports, with_flow},
    is_fragment,
};
use crate::{
    packet::{
        ETHERNET_LENGTH, PROTOCOL_TCP, PROTOCOL_UDP, Packet, TCP_ACK, TCP_DATA_OFFSET, TCP_FIN,
        TCP_RST, TCP_SYN,
    },
    tables::{Direction, HostConfig, StackFlowKey},
};

/// Whether the fast path may carry a packet that goes `this` way and whose IPv4 header is at `offset`.
#[inline(always)]
pub(super) fn may_pass(
    packet: &impl Packet,
    offset: usize,
    ipv4: &Ipv4Hdr,
    this: Direction,
    host: &HostConfig,
    tables: &impl Tables,
) -> bool {
    if !host.honours_rules() {
        return true;
    }
    if host.every_packet() || !shows_ports(ipv4.proto) || is_fragment(ipv4) {
        return false;
    }
    if tcp_flags(packet, offset, ipv4) & (TCP_SYN | TCP_FIN | TCP_RST) != 0 {
        return false;
    }
    let mut holds = false;
    with_flow(packet, offset, ipv4, this, |flow| {
        let mut accepted = tables.accepted(flow);
        holds = accepted.holds(this, tables.now());
        // Connection tracking is about to see that both ends talk, even if rules refuse the packet then.
        if !holds && accepted.see(this) {
            tables.accept(flow, |known| *known = accepted);
        }
    });
    holds
}

/// Notes that netfilter has let a packet through as it came. Its IPv4 header is behind the Ethernet header.
#[inline(always)]
pub(super) fn accept(
    packet: &impl Packet,
    ipv4: &Ipv4Hdr,
    flow: &StackFlowKey,
    this: Direction,
    host: &HostConfig,
    tables: &impl Tables,
) {
    if !host.honours_rules() {
        return;
    }
    let begins = tcp_flags(packet, ETHERNET_LENGTH, ipv4) & (TCP_SYN | TCP_ACK) == TCP_SYN;
    tables.accept(flow, |accepted| accepted.note(this, tables.now(), begins));
}

/// Whether netfilter need not see the packet around one that goes `this` way between this host and the one at `remote`:
/// it has just let such a one through.
#[inline(always)]
pub(super) fn underlay_may_pass(
    remote: [u8; 4],
    this: Direction,
    host: &HostConfig,
    tables: &impl Tables,
) -> bool {
    host.honours_rules()
        && !host.every_packet()
        && tables.accepted(&underlay_flow(remote, host)).underlay_holds(this, tables.now())
}

/// Notes that netfilter has let such a packet through.
#[inline(always)]
pub(super) fn accept_underlay(
    remote: [u8; 4],
    this: Direction,
    host: &HostConfig,
    tables: &impl Tables,
) {
    if !host.honours_rules() {
        return;
    }
    let flow = underlay_flow(remote, host);
    if !tables.accepted(&flow).underlay_holds(this, tables.now()) {
        tables.accept(&flow, |accepted| accepted.note(this, tables.now(), false));
    }
}

/// Everything that two hosts send each other, whatever ports it comes from, which are the flows' within.
#[inline(always)]
const fn underlay_flow(remote: [u8; 4], host: &HostConfig) -> StackFlowKey {
    StackFlowKey {
        local: host.uplink_address,
        remote,
        local_port: [0; 2],
        remote_port: host.port.to_be_bytes(),
        protocol: PROTOCOL_UDP as u32,
    }
}

/// The flags of a TCP packet, all of them where it does not show any; none of other protocols'.
#[inline(always)]
fn tcp_flags(packet: &impl Packet, offset: usize, ipv4: &Ipv4Hdr) -> u8 {
    if ipv4.proto != PROTOCOL_TCP {
        return 0;
    }
    let transport = offset + usize::from(ipv4.vihl & 0x0f) * 4;
    // Two bytes, because the verifier learns nothing from a comparison that leaves room for one.
    packet.load::<[u8; 2]>(transport + TCP_DATA_OFFSET).map_or(u8::MAX, |[_, flags]| flags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Reason,
        decide::{
            Origin, Recipient, TunnelSource, from_container, from_tunnel, from_uplink, hand_over,
            remember_leaving,
            test_support::{
                ENDPOINT, LOCAL, PEER, REMOTE, World, back, inner_packet, tcp_packet, udp_packet,
                vxlan_of,
            },
            to_bridge,
        },
        packet::test_support::Bytes,
    };

    fn honouring() -> World {
        let mut world = World::new();
        world.host.flags |= HostConfig::HONOUR_RULES;
        world
    }

    /// A container's packet; if it is left to the stack and that lets it out, so it is noted.
    fn leave(world: &World, packet: &Bytes, let_out: bool) -> Option<Reason> {
        let reason = from_container(packet, ENDPOINT.ifindex, &world.host, world).err()?;
        hand_over(packet, Direction::Left, |flow| world.handed_over.set(*flow));
        if let_out {
            remember_leaving(packet, &world.host, world, |_| panic!("nobody rewrote it"));
        }
        Some(reason)
    }

    /// A peer's packet, the same way.
    fn arrive(world: &World, packet: &Bytes, let_in: bool) -> Option<Reason> {
        let outer = vxlan_of(&world.host, packet.clone());
        let reason = from_uplink(&outer, &world.host, world, |_| true).err()?;
        hand_over(packet, Direction::Arrived, |flow| world.handed_over.set(*flow));
        if let_in {
            let ifindex = world.host.tunnel_ifindex;
            let origin = Origin { ifindex, delivered: false, admitted: false };
            let outcome =
                to_bridge(packet, origin, &world.host, world, |_, _| true, |_| panic!("rewrote"));
            assert_eq!(outcome, Ok(Reason::NotRewritten));
        }
        Some(reason)
    }

    const WAITS: Option<Reason> = Some(Reason::AwaitsRules);

    #[test]
    fn a_flow_takes_the_stack_until_rules_have_let_it_through_both_ways() {
        let world = honouring();
        let question = udp_packet(LOCAL, REMOTE, 10);
        let answer = back(question.clone());
        assert_eq!(leave(&world, &question, true), WAITS);
        assert_eq!(leave(&world, &question, true), None, "the same question");
        assert_eq!(arrive(&world, &answer, true), WAITS);
        assert_eq!(arrive(&world, &answer, true), None);
        assert_eq!(leave(&world, &question, true), WAITS, "not a new flow's any more");
        assert_eq!(leave(&world, &question, true), None);
        world.clock.set(world.clock.get() + 1_000_000_000);
        assert_eq!(leave(&world, &question, false), WAITS, "asked again");
        assert_eq!(leave(&world, &question, false), WAITS, "and refused");
    }

    /// Found by `cargo xtask test world`: connection tracking has seen the answer that was refused.
    #[test]
    fn an_answer_that_is_refused_makes_another_flow_of_it() {
        let world = honouring();
        let question = udp_packet(LOCAL, REMOTE, 10);
        let answer = back(question.clone());
        assert_eq!(leave(&world, &question, true), WAITS);
        assert_eq!(leave(&world, &question, true), None);
        assert_eq!(arrive(&world, &answer, false), WAITS);
        assert_eq!(leave(&world, &question, false), WAITS);
    }

    #[test]
    fn what_begins_or_ends_a_connection_is_always_netfilters() {
        let world = honouring();
        let segment = |flags| tcp_packet(LOCAL, REMOTE, flags);
        assert_eq!(leave(&world, &segment(TCP_SYN), true), WAITS);
        assert_eq!(arrive(&world, &back(segment(TCP_SYN | TCP_ACK)), true), WAITS);
        assert_eq!(leave(&world, &segment(TCP_ACK), true), WAITS);
        assert_eq!(leave(&world, &segment(TCP_ACK), true), None);
        for flag in [TCP_SYN, TCP_FIN, TCP_RST] {
            assert_eq!(leave(&world, &segment(flag | TCP_ACK), false), WAITS);
        }
        assert_eq!(leave(&world, &segment(TCP_ACK), true), None);
        assert_eq!(leave(&world, &segment(TCP_SYN), true), WAITS);
        assert_eq!(arrive(&world, &back(segment(TCP_ACK)), true), WAITS, "another connection");
        assert_eq!(leave(&world, &segment(TCP_ACK), true), WAITS);
    }

    /// Whether a peer's packet that awaits rules comes to them by our program; and that what awaits them does.
    fn arrives_decapsulated(world: &World, packet: &Bytes) -> bool {
        match from_uplink(packet, &world.host, world, |_| true) {
            Ok(arrival) => {
                assert_eq!(arrival.recipient, Recipient::Netfilter);
                true
            }
            Err(reason) => {
                assert_eq!(reason, Reason::AwaitsRules);
                false
            }
        }
    }

    #[test]
    fn netfilter_sees_the_packet_around_it_more_than_six_times_a_second() {
        let mut world = honouring();
        let inner = inner_packet(&world.host, REMOTE, LOCAL);
        let mut packet = vxlan_of(&world.host, inner.clone());
        let (remote, local) = (PEER.public_address, world.host.uplink_address);
        let source = TunnelSource { remote, local, vni: 1, group: 0 };
        let kernel_decapsulates = |world: &World| {
            let reason = from_tunnel(&inner, source, &world.host, world).expect_err("not let in");
            assert_eq!(reason, Reason::ToStack);
        };
        assert!(!arrives_decapsulated(&world, &packet));
        kernel_decapsulates(&world);
        assert!(arrives_decapsulated(&world, &packet));
        world.clock.set(world.clock.get() + 100_000_000);
        kernel_decapsulates(&world);
        world.clock.set(world.clock.get() + 100_000_000);
        assert!(!arrives_decapsulated(&world, &packet), "noted once, and 200 ms ago");
        kernel_decapsulates(&world);
        packet.segment_size = 100;
        assert!(!arrives_decapsulated(&world, &packet), "an aggregate is the kernel's");
        packet.segment_size = 0;
        world.host.flags |= HostConfig::EVERY_PACKET;
        assert!(!arrives_decapsulated(&world, &packet), "rules may be about single packets");
    }

    #[test]
    fn rules_about_single_packets_see_all_of_them() {
        let mut world = honouring();
        world.host.flags |= HostConfig::EVERY_PACKET;
        let question = udp_packet(LOCAL, REMOTE, 10);
        for _ in 0..4 {
            assert_eq!(leave(&world, &question, true), WAITS);
            assert_eq!(arrive(&world, &back(question.clone()), true), WAITS);
        }
    }

    #[test]
    fn where_no_rule_asks_nothing_waits() {
        let world = World::new();
        assert_eq!(leave(&world, &udp_packet(LOCAL, REMOTE, 10), false), None);
        assert!(world.accepted.borrow().is_empty());
    }

    #[test]
    fn protocols_without_known_ports_are_netfilters() {
        let world = honouring();
        let mut packet = udp_packet(LOCAL, REMOTE, 10);
        packet.bytes[23] = 132;
        for _ in 0..4 {
            assert_eq!(leave(&world, &packet, true), WAITS);
        }
    }
}
