//! The network's policy: which flows may begin with whom, decided where they arrive. Answers pass. The first rule that a
//! packet meets counts, and what meets none is allowed.

use network_types::ip::Ipv4Hdr;

use super::{
    Tables,
    flow::{Ports, TransportStart, shows_ports},
    sender::is_first,
};
use crate::{
    Reason,
    packet::{PROTOCOL_ICMP, PROTOCOL_TCP, Packet, TCP_ACK, TCP_DATA_OFFSET, TCP_SYN},
    tables::{Direction, HostConfig, PolicyField, PolicyFlow, PolicyRule, StackFlowKey},
};

/// Refuses what arrives, for a local container or the host, and no rule allows. Its IPv4 header is where `offset` says, for
/// [`Packet::network`].
#[inline(always)]
pub(super) fn check_arriving(
    packet: &impl Packet,
    offset: usize,
    host: &HostConfig,
    tables: &impl Tables,
) -> Result<(), Reason> {
    if host.has_policy() { judge(packet, offset, host, tables) } else { Ok(()) }
}

/// Notes what leaves a local container or the host, and so may be answered.
#[inline(always)]
pub(super) fn note_leaving(
    packet: &impl Packet,
    offset: usize,
    host: &HostConfig,
    tables: &impl Tables,
) {
    if host.has_policy() {
        note(packet, offset, tables);
    }
}

/// A packet's flow, and whether the packet begins it. Every field is always written, as in [`Ports`].
struct Seen {
    ipv4: Ipv4Hdr,
    flow: StackFlowKey,
    /// The port that it is for; 0 where there is none.
    destination_port: [u8; 2],
    /// It shows no flow of its own: an ICMP error, or the rest of a fragmented packet, which nobody puts together
    /// without its first part.
    is_part_of_another: bool,
    begins: bool,
}

#[inline(always)]
fn look(packet: &impl Packet, offset: usize, seen: Direction) -> Result<Seen, Reason> {
    let ipv4: Ipv4Hdr = packet.network(offset).ok_or(Reason::Unreadable)?;
    let protocol = ipv4.proto;
    let shows_ports = shows_ports(protocol);
    let is_first = is_first(&ipv4);
    let transport = offset + usize::from(ipv4.vihl & 0x0f) * 4;
    let mut start: TransportStart = [0; 8];
    if is_first && shows_ports {
        start = packet.network(transport).ok_or(Reason::Unreadable)?;
    }
    let mut begins = false;
    if is_first && protocol == PROTOCOL_TCP {
        let [_, flags] =
            packet.network::<[u8; 2]>(transport + TCP_DATA_OFFSET).ok_or(Reason::Unreadable)?;
        begins = flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
    }
    let ports = Ports::of(protocol, start);
    let is_error = protocol == PROTOCOL_ICMP && is_icmp_error(start[0]);
    let destination_port = if protocol == PROTOCOL_ICMP { [0; 2] } else { ports.destination };
    let flow = ports.flow(&ipv4, seen);
    Ok(Seen { ipv4, flow, destination_port, is_part_of_another: !is_first || is_error, begins })
}

/// RFC 792: destination unreachable, source quench, time exceeded, parameter problem. They belong to a flow that the other
/// end knows, or else mean nothing to it.
#[inline(always)]
const fn is_icmp_error(kind: u8) -> bool {
    matches!(kind, 3 | 4 | 11 | 12)
}

/// Cold, so that networks without a policy do not pay: what is in registers stays there.
#[cold]
#[inline(never)]
fn judge(
    packet: &impl Packet,
    offset: usize,
    host: &HostConfig,
    tables: &impl Tables,
) -> Result<(), Reason> {
    let seen = look(packet, offset, Direction::Arrived)?;
    if seen.is_part_of_another {
        return Ok(());
    }
    let (policy, protocol, now) = (host.policy, seen.ipv4.proto, tables.now());
    let known = tables.policy_flow(&seen.flow);
    if !seen.begins && known.is_let_in(policy, protocol, now) {
        if known.is_news(protocol, now) {
            tables.note_policy_flow(&seen.flow, PolicyFlow { seen: now, ..known });
        }
        return Ok(());
    }
    let rule = first_rule(&seen, policy, tables);
    if rule.denies != 0 {
        tables.count_denied(&rule, packet.length());
        return Err(Reason::PolicyDenied);
    }
    let begun = Direction::Arrived as u32;
    tables.note_policy_flow(&seen.flow, PolicyFlow { seen: now, policy, begun });
    Ok(())
}

/// The first rule that concerns a packet; one that does nothing where none does.
#[inline(always)]
fn first_rule(seen: &Seen, policy: u32, tables: &impl Tables) -> PolicyRule {
    let [port_high, port_low] = seen.destination_port;
    let service = [seen.ipv4.proto, port_high, port_low, 0];
    let field = |field, value| tables.policy_rules(&PolicyField::new(policy, field, value));
    let Some(of_source) = field(PolicyField::SOURCE, seen.ipv4.src_addr) else {
        return PolicyRule::default();
    };
    let Some(of_destination) = field(PolicyField::DESTINATION, seen.ipv4.dst_addr) else {
        return PolicyRule::default();
    };
    let Some(of_service) = field(PolicyField::SERVICE, service) else {
        return PolicyRule::default();
    };
    match of_source.first_of_all(of_destination, of_service) {
        Some(rule) => tables.policy_rule(PolicyRule::index(policy, rule)),
        None => PolicyRule::default(),
    }
}

/// As above.
#[cold]
#[inline(never)]
fn note(packet: &impl Packet, offset: usize, tables: &impl Tables) -> bool {
    let Ok(seen) = look(packet, offset, Direction::Left) else {
        return false;
    };
    if seen.is_part_of_another {
        return false;
    }
    let (protocol, now) = (seen.ipv4.proto, tables.now());
    let known = tables.policy_flow(&seen.flow);
    let begun = Direction::Left as u32;
    let flow = if known.is_alive(protocol, now) && !(seen.begins && known.begun != begun) {
        if !known.is_news(protocol, now) {
            return false;
        }
        PolicyFlow { seen: now, ..known }
    } else if protocol == PROTOCOL_TCP && !seen.begins && !is_from_client(&seen.flow) {
        // What the other end has begun before there was a policy is for the rules to decide.
        return false;
    } else {
        PolicyFlow { seen: now, policy: 0, begun }
    };
    tables.note_policy_flow(&seen.flow, flow);
    true
}

/// Of a connection whose beginning nobody has seen, because there was no policy yet, the end with the higher port counts
/// as the one that has begun it.
#[inline(always)]
const fn is_from_client(flow: &StackFlowKey) -> bool {
    u16::from_be_bytes(flow.local_port) > u16::from_be_bytes(flow.remote_port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decide::{
            Origin, TunnelSource, from_container, from_tunnel, from_uplink,
            test_support::{
                ENDPOINT, LOCAL, NEIGHBOUR, PEER, REMOTE, World, back, tagged, tcp_packet,
                udp_packet, vxlan_of,
            },
            to_bridge, to_tunnel,
        },
        packet::test_support::Bytes,
        tables::RuleSet,
    };

    const NAME: u64 = 77;

    /// A policy of one rule, by which what is for port 53 of LOCAL or NEIGHBOUR is denied, whoever it is from.
    fn denying() -> World {
        let mut world = World::new();
        world.host.flags |= HostConfig::POLICY;
        put_in_force(&mut world, 1, 1);
        world
    }

    fn put_in_force(world: &mut World, policy: u32, denies: u32) {
        world.host.policy = policy;
        let mut set = RuleSet::default();
        set.add(0);
        let mut add = |field, value| {
            world.policy.insert(PolicyField::new(policy, field, value), set);
        };
        for address in [LOCAL, REMOTE, NEIGHBOUR] {
            add(PolicyField::SOURCE, address);
        }
        for address in [LOCAL, NEIGHBOUR] {
            add(PolicyField::DESTINATION, address);
        }
        for protocol in [6, 17] {
            add(PolicyField::SERVICE, [protocol, 0, 53, 0]);
        }
        world.policy_rules = vec![PolicyRule { name: NAME, denies, reserved: 0 }];
    }

    fn arrive(world: &World, packet: &Bytes) -> Option<Reason> {
        let outer = vxlan_of(&world.host, packet.clone());
        from_uplink(&outer, &world.host, world, |_| true).err()
    }

    fn leave(world: &World, packet: &Bytes) -> Option<Reason> {
        from_container(packet, ENDPOINT.ifindex, &world.host, world).err()
    }

    const DENIED: Option<Reason> = Some(Reason::PolicyDenied);

    #[test]
    fn what_a_rule_denies_is_dropped_and_counted_by_its_name() {
        let world = denying();
        assert_eq!(arrive(&world, &udp_packet(REMOTE, LOCAL, 10)), DENIED);
        assert_eq!(*world.denied.borrow(), [NAME]);
        let mut elsewhere = udp_packet(REMOTE, LOCAL, 10);
        elsewhere.bytes[37] = 54;
        assert_eq!(arrive(&world, &elsewhere), None, "another port");
        assert_eq!(leave(&world, &udp_packet(LOCAL, REMOTE, 10)), None, "the receiver decides");
    }

    #[test]
    fn an_answer_passes_until_there_has_been_silence() {
        let world = denying();
        let question = back(udp_packet(REMOTE, LOCAL, 10));
        let answer = udp_packet(REMOTE, LOCAL, 10);
        assert_eq!(leave(&world, &question), None);
        assert_eq!(arrive(&world, &answer), None);
        world.clock.set(world.clock.get() + 100_000_000_000);
        assert_eq!(arrive(&world, &answer), None, "seen 100 s ago");
        world.clock.set(world.clock.get() + 100_000_000_000);
        assert_eq!(arrive(&world, &answer), None, "and again");
        world.clock.set(world.clock.get() + 125_000_000_000);
        assert_eq!(arrive(&world, &answer), DENIED);
    }

    #[test]
    fn who_has_begun_a_connection_is_told_by_its_first_segment() {
        let world = denying();
        let from_server = |flags| back(tcp_packet(LOCAL, REMOTE, flags));
        // REMOTE's port 53 to LOCAL's 0x1234: LOCAL is the client.
        assert_eq!(leave(&world, &tcp_packet(LOCAL, REMOTE, TCP_SYN)), None);
        assert_eq!(arrive(&world, &from_server(TCP_SYN | TCP_ACK)), None);
        // LOCAL's port 53 is what the rule is about.
        assert_eq!(arrive(&world, &tcp_packet(REMOTE, LOCAL, TCP_SYN)), DENIED);
        assert_eq!(arrive(&world, &tcp_packet(REMOTE, LOCAL, TCP_ACK)), DENIED);
        assert_eq!(leave(&world, &from_local_server(TCP_ACK)), None);
        assert_eq!(arrive(&world, &tcp_packet(REMOTE, LOCAL, TCP_ACK)), DENIED, "still REMOTE's");
        // An old connection the other way, with the same ports.
        assert_eq!(leave(&world, &from_local_server(TCP_SYN)), None);
        assert_eq!(arrive(&world, &tcp_packet(REMOTE, LOCAL, TCP_ACK)), None);
        assert_eq!(arrive(&world, &tcp_packet(REMOTE, LOCAL, TCP_SYN)), DENIED, "a new one");
    }

    fn from_local_server(flags: u8) -> Bytes {
        back(tcp_packet(REMOTE, LOCAL, flags))
    }

    #[test]
    fn of_an_older_connection_the_higher_port_is_the_clients() {
        let world = denying();
        assert_eq!(leave(&world, &back(tcp_packet(REMOTE, LOCAL, TCP_ACK))), None);
        assert!(world.policy_flows.borrow().is_empty(), "LOCAL is the server");
        assert_eq!(leave(&world, &tcp_packet(LOCAL, REMOTE, TCP_ACK)), None);
        assert_eq!(world.policy_flows.borrow().len(), 1);
    }

    #[test]
    fn another_policy_decides_anew_about_what_came_in_and_not_about_answers() {
        let mut world = denying();
        put_in_force(&mut world, 2, 0);
        let (question, answer) = (udp_packet(REMOTE, LOCAL, 10), udp_packet(LOCAL, REMOTE, 10));
        assert_eq!(arrive(&world, &question), None);
        assert_eq!(leave(&world, &answer), None);
        put_in_force(&mut world, 3, 1);
        assert_eq!(arrive(&world, &question), DENIED);
        assert_eq!(leave(&world, &back(question.clone())), None);
        assert_eq!(arrive(&world, &question), DENIED, "its answers do not make it ours");
        assert_eq!(arrive(&world, &back(answer)), None);
    }

    #[test]
    fn neighbours_are_judged_too_behind_tags_as_well() {
        let world = denying();
        let question = udp_packet(LOCAL, NEIGHBOUR, 10);
        assert_eq!(leave(&world, &question), DENIED);
        assert_eq!(leave(&world, &tagged(question, &[[0x81, 0, 0, 0]])), DENIED);
        let answer = udp_packet(NEIGHBOUR, LOCAL, 10);
        let from_neighbour = |packet: &Bytes| {
            let mut packet = packet.clone();
            packet.bytes[6..12].copy_from_slice(&[2, 0, 0, 0, 15, 3]);
            from_container(&packet, 8, &world.host, &world).expect_err("never for a peer")
        };
        assert_eq!(from_neighbour(&answer), Reason::PolicyDenied);
        assert_eq!(leave(&world, &back(answer.clone())), Some(Reason::LocalDestination));
        assert_eq!(from_neighbour(&answer), Reason::LocalDestination, "an answer");
    }

    #[test]
    fn what_the_stack_carries_is_judged_where_it_leaves_it() {
        let mut world = denying();
        let packet = udp_packet(REMOTE, LOCAL, 10);
        let remote = PEER.public_address;
        let source = TunnelSource { remote, local: world.host.uplink_address, vni: 1, group: 0 };
        let mut inner = packet.clone();
        inner.bytes[..6].copy_from_slice(&world.host.vtep_mac);
        let judge = |world: &World| from_tunnel(&inner, source, &world.host, world).err();
        assert_eq!(judge(&world), DENIED);
        world.host.flags &= !HostConfig::FAST_PATH;
        assert_eq!(judge(&world), DENIED, "fast path or not");
        let to = |world: &World, ifindex| {
            let origin = Origin { ifindex, delivered: false, admitted: false };
            to_bridge(&packet, origin, &world.host, world, |_, _| true, |_| ()).err()
        };
        assert_eq!(to(&world, world.host.tunnel_ifindex), DENIED, "led elsewhere by netfilter");
        assert_ne!(to(&world, 0), DENIED, "the host's own");
        assert!(to_tunnel(&back(packet.clone()), 0, &world.host, &world).is_ok());
        assert_eq!(judge(&world), Some(Reason::ToStack), "an answer");
    }

    #[test]
    fn the_rest_of_a_packet_and_errors_belong_to_what_is_judged() {
        let world = denying();
        let mut rest = udp_packet(REMOTE, LOCAL, 10);
        rest.bytes[20..22].copy_from_slice(&[0, 9]);
        assert_eq!(judge(&rest, 0, &world.host, &world), Ok(()));
        let mut first = udp_packet(REMOTE, LOCAL, 10);
        first.bytes[20] = 0x20;
        assert_eq!(judge(&first, 0, &world.host, &world), Err(Reason::PolicyDenied));
        let mut short = udp_packet(REMOTE, LOCAL, 10);
        short.bytes.truncate(36);
        assert_eq!(judge(&short, 0, &world.host, &world), Err(Reason::Unreadable));
    }
}
