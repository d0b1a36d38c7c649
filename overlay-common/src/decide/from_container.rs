use network_types::ip::Ipv4Hdr;

use super::{
    Tables,
    encapsulation::{Encapsulation, fitting_length},
    has_options, is_fragment, lookup_peer, plain_ipv4,
    policy::{check_arriving, note_leaving},
    rules::may_pass,
    sender::{check_no_vxlan, check_other, check_source},
    stack_flow::answers_a_stack_flow,
};
use crate::{
    Reason,
    packet::{ETHERNET_LENGTH, Ethernet, Packet},
    tables::{Direction, HostConfig, Way},
};

/// Decides about a packet that a container sent into its veth `ifindex`: encapsulate it, leave it to the
/// stack, or, where it forges VXLAN, another's address or another's MAC, drop it. Whatever it is, it has been
/// checked before it is left to the stack.
#[inline(always)]
pub fn from_container(
    packet: &impl Packet,
    ifindex: u32,
    host: &HostConfig,
    tables: &impl Tables,
) -> Result<Encapsulation, Reason> {
    let (for_gateway, ipv4) = check_sender(packet, ifindex, host, tables)?;
    let for_peers =
        host.network().contains(ipv4.dst_addr) && !host.subnet().contains(ipv4.dst_addr);
    if !for_gateway || !for_peers {
        return Err(not_for_peers(packet, for_gateway, host, tables));
    }
    if !host.fast_path() {
        return Err(Reason::FastPathOff);
    }
    if !host.subnet().contains(ipv4.src_addr) {
        return Err(Reason::ForeignSource);
    }
    if has_options(&ipv4) {
        return Err(Reason::IpOptions);
    }
    if is_fragment(&ipv4) {
        return Err(Reason::Fragment);
    }
    if ipv4.ttl <= 1 {
        return Err(Reason::TtlExpired);
    }
    if answers_a_stack_flow(packet, ETHERNET_LENGTH, &ipv4, Direction::Left, tables) {
        return Err(Reason::StackFlow);
    }
    if !may_pass(packet, ETHERNET_LENGTH, &ipv4, Direction::Left, host, tables) {
        return Err(Reason::AwaitsRules);
    }
    let inner_length = fitting_length(packet, host, &ipv4)?;
    let peer = lookup_peer(host, tables, ipv4.dst_addr).ok_or(Reason::NoPeer)?;
    if peer.way() == Way::Stack {
        return Err(Reason::OtherWay);
    }
    note_leaving(packet, 0, host, tables);
    Ok(Encapsulation::new(packet, peer, ipv4, inner_length))
}

/// Whose business a packet is that no peer is to get; VXLAN is nobody's.
#[inline(never)]
fn not_for_peers(
    packet: &impl Packet,
    for_gateway: bool,
    host: &HostConfig,
    tables: &impl Tables,
) -> Reason {
    let Some(ipv4) = packet.load::<Ipv4Hdr>(ETHERNET_LENGTH) else {
        return Reason::Unreadable;
    };
    if let Err(reason) = check_no_vxlan(packet, 0, &ipv4, host, tables) {
        return reason;
    }
    if host.subnet().contains(ipv4.dst_addr)
        && let Err(reason) = check_neighbour(packet, 0, host, tables)
    {
        return reason;
    }
    if !for_gateway {
        Reason::NotForGateway
    } else if host.subnet().contains(ipv4.dst_addr) {
        Reason::LocalDestination
    } else {
        Reason::NotOverlay
    }
}

/// What a container sends to one of this host's leaves it and arrives at once, for the policy.
#[inline(always)]
fn check_neighbour(
    packet: &impl Packet,
    offset: usize,
    host: &HostConfig,
    tables: &impl Tables,
) -> Result<(), Reason> {
    note_leaving(packet, offset, host, tables);
    check_arriving(packet, offset, host, tables)
}

/// Checks a packet that a container sent and that its bridge `ifindex`, which has forgotten the port, hands to the
/// stack. Not for the fast path: bridges let netfilter rewrite packets before this hook (`br_netfilter`),
/// and what it rewrote has to come back through it.
#[inline(always)]
pub fn from_bridge(
    packet: &impl Packet,
    ifindex: u32,
    host: &HostConfig,
    tables: &impl Tables,
) -> Result<(), Reason> {
    let (_, ipv4) = check_sender(packet, ifindex, host, tables)?;
    check_no_vxlan(packet, 0, &ipv4, host, tables)
}

/// Whether a plain IPv4 packet from whom it says is for the gateway, and its header. Anything else has been checked when it
/// is declined.
#[inline(always)]
fn check_sender(
    packet: &impl Packet,
    here: u32,
    host: &HostConfig,
    tables: &impl Tables,
) -> Result<(bool, Ipv4Hdr), Reason> {
    let ethernet: Ethernet = packet.load(0).ok_or(Reason::Unreadable)?;
    if let Ok(ipv4) = plain_ipv4(packet, &ethernet) {
        let gateway = check_source(here, &ethernet, &ipv4, host, tables)?;
        return Ok((ethernet.destination.0 == gateway, ipv4));
    }
    let (offset, destination) = check_other(packet, here, host, tables)?;
    if host.subnet().contains(destination) {
        check_neighbour(packet, offset, host, tables)?;
    }
    Err(Reason::Tagged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::test_support::{
        BRIDGE, ENDPOINT, LOCAL, PEER, REMOTE, SECOND, SECOND_BRIDGE, SECOND_ENDPOINT, World,
        udp_packet,
    };

    const PORT: u32 = ENDPOINT.ifindex;

    type Edit = fn(&mut Vec<u8>);

    fn decide(world: &World, edit: impl FnOnce(&mut Vec<u8>)) -> Result<Encapsulation, Reason> {
        let mut packet = udp_packet(LOCAL, REMOTE, 100);
        edit(&mut packet.bytes);
        from_container(&packet, PORT, &world.host, world)
    }

    #[test]
    fn a_packet_for_a_peer_is_encapsulated() {
        let plan = decide(&World::new(), |_| ()).expect("a plan");
        assert_eq!(plan.peer, PEER);
        assert_eq!(plan.inner_length, 128);
    }

    #[test]
    fn what_the_fast_path_cannot_carry_is_left_to_the_stack() {
        let world = World::new();
        let cases: [(Reason, Edit); 9] = [
            (Reason::NotIpv4, |bytes| bytes[12] = 0x86),
            (Reason::NotOverlay, |bytes| bytes[30] = 11),
            (Reason::LocalDestination, |bytes| bytes[32] = 15),
            (Reason::ForeignSource, |bytes| bytes[26] = 11),
            (Reason::NotForGateway, |bytes| bytes[5] ^= 8),
            (Reason::IpOptions, |bytes| bytes[14] = 0x46),
            (Reason::Fragment, |bytes| bytes[20] = 0x20),
            (Reason::TtlExpired, |bytes| bytes[22] = 1),
            (Reason::NoPeer, |bytes| bytes[32] = 200),
        ];
        for (reason, edit) in cases {
            assert_eq!(decide(&world, edit).expect_err("declined"), reason);
        }
    }

    #[test]
    fn the_gateway_is_that_of_the_containers_own_bridge() {
        let mut packet = udp_packet(SECOND, REMOTE, 100);
        packet.bytes[6..12].copy_from_slice(&SECOND_ENDPOINT.mac);
        let world = World::new();
        let mut decide = |gateway: [u8; 6]| {
            packet.bytes[..6].copy_from_slice(&gateway);
            from_container(&packet, SECOND_ENDPOINT.ifindex, &world.host, &world)
        };
        assert_eq!(decide(SECOND_BRIDGE.mac).expect("a plan").peer, PEER);
        assert_eq!(decide(BRIDGE.mac).err(), Some(Reason::NotForGateway));
        // Who is not known yet has a gateway, too.
        let nobodys = |bytes: &mut Vec<u8>| bytes[29] = 77;
        assert!(self::decide(&world, nobodys).is_ok());
    }

    #[test]
    fn packets_between_bridges_are_the_hosts_business() {
        let decided = decide(&World::new(), |bytes| bytes[30..34].copy_from_slice(&SECOND));
        assert_eq!(decided.err(), Some(Reason::LocalDestination));
    }

    #[test]
    fn the_switch_turns_it_off() {
        let mut world = World::new();
        world.host.flags = 0;
        assert_eq!(decide(&world, |_| ()).expect_err("declined"), Reason::FastPathOff);
    }

    #[test]
    fn segments_are_measured_not_the_aggregate() {
        let world = World::new();
        let mut packet = udp_packet(LOCAL, REMOTE, 30_000);
        packet.segment_size = 1422;
        assert!(from_container(&packet, PORT, &world.host, &world).is_ok());
        packet.segment_size = 1423;
        assert_eq!(
            from_container(&packet, PORT, &world.host, &world).expect_err("1451 bytes a segment"),
            Reason::TooBig
        );
        let whole = udp_packet(LOCAL, REMOTE, 1423);
        assert_eq!(
            from_container(&whole, PORT, &world.host, &world).expect_err("1451 bytes"),
            Reason::TooBig
        );
    }

    #[test]
    fn an_aggregate_that_would_overflow_the_outer_length_is_declined() {
        let world = World::new();
        let mut packet = udp_packet(LOCAL, REMOTE, 65_535 - 50 - 28 + 1);
        packet.segment_size = 1000;
        assert_eq!(
            from_container(&packet, PORT, &world.host, &world).expect_err("65,536 bytes"),
            Reason::TooBig
        );
    }
}
