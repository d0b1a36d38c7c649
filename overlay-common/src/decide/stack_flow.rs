//! What leaves through the stack comes back through the stack, and what arrives through it leaves through
//! it. Netfilter may have rewritten a container's packet on its way out (a DNAT to a remote container, as
//! services do) or a peer's on its way in (a published port): the answer means nothing to the other end
//! before netfilter has put it right. What netfilter did not rewrite needs nothing of that: it leaves the stack as one of
//! our programs has seen it enter.

use network_types::ip::Ipv4Hdr;

use super::{Tables, flow::with_flow, is_fragment, rules::accept};
use crate::{
    packet::{ETHERNET_LENGTH, Packet},
    tables::{Direction, Endpoint, EndpointKey, HostConfig, SeatKey, StackFlow, StackFlowKey},
};

/// Has the flow of a packet remembered that the stack sends for a local container, if it was rewritten; else notes that
/// netfilter has let it through. Not so for the host's
/// own packets, for those that show no ports, and where the fast path is off, because then everything
/// takes the stack. Returns whether netfilter has let it through as it came.
#[inline(always)]
pub fn remember_leaving(
    packet: &impl Packet,
    host: &HostConfig,
    tables: &impl Tables,
    remember: impl FnOnce(&StackFlowKey),
) -> bool {
    if !host.fast_path() {
        return false;
    }
    let Some(ipv4) = packet.load::<Ipv4Hdr>(ETHERNET_LENGTH) else {
        return false;
    };
    let owner = tables.endpoint(&EndpointKey { address: ipv4.src_addr });
    if !host.subnet().contains(ipv4.src_addr) || owner.is_some_and(Endpoint::is_host) {
        return false;
    }
    let mut as_it_came = false;
    with_flow(packet, ETHERNET_LENGTH, &ipv4, Direction::Left, |flow| {
        as_it_came = tables.handed_over() == *flow;
        if as_it_came {
            accept(packet, &ipv4, flow, Direction::Left, host, tables);
        } else {
            remember(flow);
        }
    });
    as_it_came
}

/// Notes the flow of a packet that is left to the stack: on its way out of there, it is compared with.
#[inline(always)]
pub fn hand_over(packet: &impl Packet, going: Direction, note: impl FnOnce(&StackFlowKey)) {
    if let Some(ipv4) = packet.load::<Ipv4Hdr>(ETHERNET_LENGTH) {
        with_flow(packet, ETHERNET_LENGTH, &ipv4, going, note);
    }
}

/// The same for a packet that the stack sends to a local container.
#[inline(always)]
pub(super) fn remember_arriving(
    packet: &impl Packet,
    ipv4: &Ipv4Hdr,
    host: &HostConfig,
    tables: &impl Tables,
    remember: impl FnOnce(&StackFlowKey),
) -> Arriving {
    let mut rewritten = false;
    let shown = with_flow(packet, ETHERNET_LENGTH, ipv4, Direction::Arrived, |flow| {
        rewritten = tables.handed_over() != *flow;
        if rewritten {
            remember(flow);
        } else {
            accept(packet, ipv4, flow, Direction::Arrived, host, tables);
        }
    });
    match (shown, rewritten) {
        (false, _) => Arriving::Hidden,
        (true, false) => Arriving::AsItWas,
        (true, true) => Arriving::Rewritten,
    }
}

/// Remembers which way a flow went through the stack. One that is new takes a place of its container's share, in turn, and
/// whoever had that before is forgotten: who makes many flows loses its own. All that nobody knows have one share
/// together, because they may be one and the same.
#[inline(always)]
pub fn remember(
    flow: &StackFlowKey,
    direction: Direction,
    host: &HostConfig,
    tables: &impl Tables,
) {
    let StackFlow { directions, mut seat } = tables.stack_flow(flow);
    if direction.is_in(directions) {
        return;
    }
    if directions == 0 {
        let Some(taken) = take_seat(flow, host, tables) else { return };
        seat = taken;
    }
    let directions = directions | direction as u32;
    tables.remember_stack_flow(flow, StackFlow { directions, seat }, direction);
}

/// Whoever loses a place to another processor tries the next.
const ATTEMPTS: u32 = 4;

#[inline(always)]
fn take_seat(flow: &StackFlowKey, host: &HostConfig, tables: &impl Tables) -> Option<u32> {
    let known = tables.endpoint(&EndpointKey { address: flow.local }).is_some();
    let local = if known { flow.local } else { [0; 4] };
    for _ in 0..ATTEMPTS {
        let seat = tables.next_turn(local) % u32::from(host.flow_share).max(1);
        let key = SeatKey { local, seat };
        if let Some(before) = tables.seated(&key) {
            if !tables.unseat(&key) {
                continue;
            }
            // It may have been forgotten, and taken another place since.
            if tables.stack_flow(&before).seat == seat {
                tables.forget_stack_flow(&before);
            }
        }
        if tables.seat(&key, flow) {
            return Some(seat);
        }
    }
    None
}

/// What became of a packet in the stack.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Arriving {
    /// It shows no flow.
    Hidden,
    /// It left the stack as it had come.
    AsItWas,
    /// It did not, as far as is known.
    Rewritten,
}

/// Whether a packet, which goes `this` way and whose IPv4 header is at `offset`, belongs to a flow that
/// went the other way through the stack. A packet that shows no ports may: it does wherever there is any
/// such flow.
///
/// A flow that went the same way through the stack, with the very addresses and ports of this packet, which netfilter
/// has not seen, was not rewritten: it is forgotten.
#[inline(always)]
pub(super) fn answers_a_stack_flow(
    packet: &impl Packet,
    offset: usize,
    ipv4: &Ipv4Hdr,
    this: Direction,
    tables: &impl Tables,
) -> bool {
    let any = tables.stack_flows();
    if any == 0 {
        return false;
    }
    // Of all its fragments only the first would be known, and no end puts together what came by two ways.
    if is_fragment(ipv4) {
        return this.back().is_in(any);
    }
    let mut found = false;
    let shown = with_flow(packet, offset, ipv4, this, |flow| {
        let directions = tables.stack_flow(flow).directions;
        found = this.back().is_in(directions);
        if !found && this.is_in(directions) {
            tables.forget_stack_flow(flow);
        }
    });
    found || (!shown && this.back().is_in(any))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Reason,
        decide::{
            Origin, from_container, from_uplink,
            test_support::{
                ENDPOINT, HOST, LOCAL, NEIGHBOUR, REMOTE, World, udp_packet, vxlan_packet,
            },
            to_bridge,
        },
        packet::test_support::Bytes,
    };

    type Flows = Vec<(StackFlowKey, Direction)>;

    fn remembered(world: &World, [from, to]: [[u8; 4]; 2]) -> Flows {
        let mut flows = Flows::new();
        let packet = udp_packet(from, to, 10);
        let mut remember = |flow: &StackFlowKey| flows.push((*flow, Direction::Left));
        remember_leaving(&packet, &world.host, world, &mut remember);
        flows
    }

    /// What is remembered of a packet on its way from the stack to the bridge, and why it left the hook.
    fn arrived(world: &World, packet: &impl Packet, ours: bool) -> (Flows, Reason) {
        let mut flows = Flows::new();
        let ifindex = if ours { 0 } else { world.host.tunnel_ifindex };
        let origin = Origin { ifindex, delivered: ours, admitted: false };
        let (Ok(reason) | Err(reason)) = to_bridge(
            packet,
            origin,
            &world.host,
            world,
            |_, _| true,
            |flow| {
                flows.push((*flow, Direction::Arrived));
            },
        );
        (flows, reason)
    }

    #[test]
    fn the_answer_to_a_flow_that_left_through_the_stack_goes_to_the_stack() {
        let mut world = World::new();
        let mut answer = vxlan_packet(&world.host, REMOTE, LOCAL);
        // The answer comes from port 53, where the question went.
        answer.bytes[84..88].copy_from_slice(&[0, 53, 0x12, 0x34]);
        assert!(from_uplink(&answer, &world.host, &world, |_| true).is_ok());

        world.remember(remembered(&world, [LOCAL, REMOTE]));
        let refused = from_uplink(&answer, &world.host, &world, |_| true).expect_err("declined");
        assert_eq!(refused, Reason::StackFlow);

        answer.bytes[85] = 54;
        assert!(from_uplink(&answer, &world.host, &world, |_| true).is_ok(), "another flow");
        answer.bytes[70] = 0x20;
        let refused = from_uplink(&answer, &world.host, &world, |_| true).expect_err("declined");
        assert_eq!(refused, Reason::StackFlow, "a fragment could belong to it");
    }

    /// The fast path had declined the packet, and nobody rewrote it.
    #[test]
    fn what_leaves_the_stack_as_it_came_is_not_remembered() {
        let world = World::new();
        for (going, packet) in [
            (Direction::Left, udp_packet(LOCAL, REMOTE, 10)),
            (Direction::Arrived, udp_packet(REMOTE, LOCAL, 10)),
        ] {
            hand_over(&packet, going, |flow| world.handed_over.set(*flow));
            assert_eq!(remembered(&world, [LOCAL, REMOTE]).is_empty(), going == Direction::Left);
            let (flows, reason) = arrived(&world, &udp_packet(REMOTE, LOCAL, 10), false);
            let as_it_was = going == Direction::Arrived;
            assert_eq!((flows.is_empty(), reason == Reason::NotRewritten), (as_it_was, as_it_was));
        }
    }

    /// A container may have been there before its program: what it sent took the stack for the bridge's.
    #[test]
    fn a_flow_that_turns_out_not_to_be_rewritten_is_forgotten() {
        let mut world = World::new();
        let flows = remembered(&world, [LOCAL, REMOTE]);
        world.remember(flows);
        let packet = udp_packet(LOCAL, REMOTE, 10);
        assert!(from_container(&packet, ENDPOINT.ifindex, &world.host, &world).is_ok());
        assert!(world.stack_flows.borrow().is_empty());

        let mut world = World::new();
        let question = vxlan_packet(&world.host, REMOTE, LOCAL);
        let (flows, _) = arrived(&world, &udp_packet(REMOTE, LOCAL, 10), false);
        world.remember(flows);
        assert!(from_uplink(&question, &world.host, &world, |_| true).is_ok());
        assert!(world.stack_flows.borrow().is_empty());
    }

    /// A flow of a container's, by the port of the other end.
    fn flow(local: [u8; 4], port: u16) -> StackFlowKey {
        let remote_port = port.to_be_bytes();
        StackFlowKey { local, remote: REMOTE, remote_port, protocol: 17, ..StackFlowKey::default() }
    }

    #[test]
    fn who_makes_many_flows_loses_its_own() {
        const SHARE: u16 = 4;
        let mut world = World::new();
        world.host.flow_share = SHARE;
        let begin = |flow| remember(&flow, Direction::Left, &world.host, &world);
        let is_known = |flow| world.stack_flow(&flow).directions != 0;
        begin(flow(NEIGHBOUR, 1));
        for port in 0..100 {
            begin(flow(LOCAL, port));
            begin(flow([10, 1, 15, 77], port));
            begin(flow([10, 1, 15, 78], port));
        }
        assert!(is_known(flow(NEIGHBOUR, 1)), "another container's");
        let known = (0..100).filter(|port| is_known(flow(LOCAL, *port)));
        assert_eq!(known.collect::<Vec<_>>(), [96, 97, 98, 99]);
        let unknown = [[10, 1, 15, 77], [10, 1, 15, 78]];
        let unknown = unknown.map(|of| (0..100).filter(|port| is_known(flow(of, *port))).count());
        assert_eq!(unknown, [2, 2], "all that nobody knows are one");
    }

    #[test]
    fn a_flow_keeps_the_place_that_it_took_last() {
        let mut world = World::new();
        world.host.flow_share = 4;
        let begin = |port| remember(&flow(LOCAL, port), Direction::Left, &world.host, &world);
        begin(0);
        remember(&flow(LOCAL, 0), Direction::Arrived, &world.host, &world);
        assert_eq!(world.stack_flow(&flow(LOCAL, 0)), StackFlow { directions: 3, seat: 0 });
        world.forget_stack_flow(&flow(LOCAL, 0));
        (1..3).for_each(begin);
        begin(0);
        // The place that it had first is taken by another.
        begin(4);
        let seats = [0, 1, 2, 4].map(|port| world.stack_flow(&flow(LOCAL, port)).seat);
        assert_eq!(seats, [3, 1, 2, 0]);
        assert_eq!(world.stack_flows.borrow().len(), 4);
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

    /// A published port: a peer's packet that netfilter has sent on to a container.
    #[test]
    fn the_answer_to_a_flow_that_arrived_through_the_stack_leaves_through_it() {
        let mut world = World::new();
        let mut answer = udp_packet(LOCAL, REMOTE, 10);
        answer.bytes[34..38].copy_from_slice(&[0, 53, 0x12, 0x34]);
        let decide = |world: &World, answer: &Bytes| {
            from_container(answer, ENDPOINT.ifindex, &world.host, world)
        };
        assert!(decide(&world, &answer).is_ok());

        let (flows, reason) = arrived(&world, &udp_packet(REMOTE, LOCAL, 10), false);
        assert_eq!(reason, Reason::FromStack);
        world.remember(flows);
        assert_eq!(decide(&world, &answer).expect_err("declined"), Reason::StackFlow);

        answer.bytes[35] = 54;
        assert!(decide(&world, &answer).is_ok(), "another flow");
        let question = vxlan_packet(&world.host, REMOTE, LOCAL);
        assert!(
            from_uplink(&question, &world.host, &world, |_| true).is_ok(),
            "the way in is not changed"
        );
    }

    #[test]
    fn only_what_the_stack_brings_from_a_peer_is_remembered() {
        let world = World::new();
        let seen = |packet, ours| arrived(&world, &packet, ours);
        assert_eq!(seen(udp_packet(REMOTE, LOCAL, 10), true), (vec![], Reason::Delivered));
        assert_eq!(seen(udp_packet(HOST, LOCAL, 10), false), (vec![], Reason::NotFromPeer));
        assert_eq!(seen(udp_packet([8, 8, 8, 8], LOCAL, 10), false), (vec![], Reason::NotFromPeer));
        let mut arp = udp_packet(REMOTE, LOCAL, 10);
        arp.bytes[13] = 6;
        assert_eq!(seen(arp, false), (vec![], Reason::NotIpv4));
        let mut fragment = udp_packet(REMOTE, LOCAL, 10);
        fragment.bytes[20] = 0x20;
        fragment.bytes[21] = 1;
        assert_eq!(seen(fragment, false), (vec![], Reason::Fragment), "not the first");
    }

    /// A flow may have questions that are too big for one packet, and answers that are not: found by
    /// `cargo xtask test world`.
    #[test]
    fn the_first_fragment_of_what_was_rewritten_is_enough() {
        let world = World::new();
        let mut first = udp_packet(REMOTE, LOCAL, 10);
        first.bytes[20] = 0x20;
        let (flows, reason) = arrived(&world, &first, false);
        assert_eq!((flows.len(), reason), (1, Reason::FromStack));
        let mut first = udp_packet(LOCAL, REMOTE, 10);
        first.bytes[20] = 0x20;
        let mut flows = Vec::new();
        remember_leaving(&first, &world.host, &world, |flow| flows.push(*flow));
        assert_eq!(flows.len(), 1);
    }
}
