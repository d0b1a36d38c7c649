use overlay_common::{Hook, Reason, tables::HostConfig};

use crate::{
    packets::{TTL, ipv4_of, parse, patch, tcp, udp},
    world::{
        CONTAINER, Context, GATEWAY, NEIGHBOUR_PORT, PEER_MAC, PEER_PUBLIC, PUBLIC, REMOTE,
        VTEP_MAC, World,
    },
};

fn reason(world: &mut World, packet: &[u8]) -> Reason {
    world.run(Hook::FromContainer, packet).reason
}

#[test]
fn a_packet_for_a_peer_leaves_encapsulated() {
    let mut world = World::new();
    let sent = udp(CONTAINER, REMOTE, 53, b"hello");
    let outcome = world.run(Hook::FromContainer, &sent);
    assert_eq!(outcome.reason, Reason::Encapsulated);
    let outer = parse(&outcome.packet);
    assert_eq!((outer.source, outer.destination), (PUBLIC, PEER_PUBLIC));
    assert_eq!((outer.ttl, outer.dont_fragment, outer.udp_checksum), (64, false, 0));
    assert_eq!(outer.port, 8472);
    assert_eq!(outer.header, [8, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(outer.inner[..6], PEER_MAC.0);
    assert_eq!(outer.inner[6..12], VTEP_MAC.0);
    assert_eq!(ipv4_of(&outer.inner).time_to_live, TTL - 1);
    assert_eq!(outer.inner[34..], sent[34..], "the payload is untouched");
}

#[test]
fn one_flow_keeps_its_source_port_and_identifications_differ() {
    let mut world = World::new();
    let packet = udp(CONTAINER, REMOTE, 53, b"hello");
    let mut send = || world.run(Hook::FromContainer, &packet).packet;
    let packets: Vec<_> = (0..8).map(|_| send()).collect();
    let ports: std::collections::HashSet<_> =
        packets.iter().map(|packet| parse(packet).source_port).collect();
    assert_eq!(ports.len(), 1);
    let identifications: std::collections::HashSet<_> =
        packets.iter().map(|packet| packet[18..20].to_vec()).collect();
    assert!(identifications.len() > 1);
}

#[test]
fn flows_spread_over_source_ports() {
    let mut world = World::new();
    let ports: std::collections::HashSet<_> = (1..=100)
        .map(|port| {
            let packet = udp(CONTAINER, REMOTE, port, b"hello");
            parse(&world.run(Hook::FromContainer, &packet).packet).source_port
        })
        .collect();
    assert!(ports.len() > 80, "{} source ports for 100 flows", ports.len());
}

#[test]
fn congestion_bits_are_copied_outside_and_dscp_is_not() {
    let mut world = World::new();
    for ecn in 0..4 {
        let mut packet = udp(CONTAINER, REMOTE, 53, b"hello");
        patch(&mut packet, 1, 0xb8 | ecn);
        let outcome = world.run(Hook::FromContainer, &packet);
        assert_eq!(outcome.packet[15], ecn);
        assert_eq!(ipv4_of(&parse(&outcome.packet).inner).ecn.value(), ecn);
    }
}

#[test]
fn what_the_fast_path_cannot_carry_goes_on_unchanged() {
    let mut world = World::new();
    let base = || udp(CONTAINER, REMOTE, 53, b"hello");
    let patched = |offset, value| {
        let mut packet = base();
        patch(&mut packet, offset, value);
        packet
    };
    let mut arp = base();
    arp[12..14].copy_from_slice(&[8, 6]);
    let mut options = base();
    options[14] = 0x46;
    let cases = [
        (Reason::NotIpv4, arp),
        (Reason::NotOverlay, udp(CONTAINER, [192, 0, 2, 1], 53, b"")),
        (Reason::LocalDestination, udp(CONTAINER, [10, 1, 15, 3], 53, b"")),
        (Reason::ForeignSource, udp([172, 18, 0, 2], REMOTE, 53, b"")),
        (Reason::IpOptions, options),
        (Reason::Fragment, patched(6, 0x20)),
        (Reason::Fragment, patched(7, 9)),
        (Reason::TtlExpired, patched(8, 1)),
        (Reason::NoPeer, udp(CONTAINER, [10, 1, 21, 2], 53, b"")),
        (Reason::TooBig, udp(CONTAINER, REMOTE, 53, &[0; 1423])),
    ];
    for (expected, packet) in cases {
        let outcome = world.run(Hook::FromContainer, &packet);
        assert_eq!(outcome.reason, expected);
        assert_eq!(outcome.packet, packet, "{expected:?}");
    }
}

#[test]
fn the_largest_packet_that_fits_is_encapsulated() {
    let mut world = World::new();
    let packet = udp(CONTAINER, REMOTE, 53, &[0; 1422]);
    assert_eq!(reason(&mut world, &packet), Reason::Encapsulated);
}

#[test]
fn an_aggregate_is_measured_by_its_segments() {
    let mut world = World::new();
    let packet = tcp(CONTAINER, REMOTE, &[0; 3000]);
    let mut run = |segment_size| {
        let context = Context { ifindex: 1, segment_size, ..Context::default() };
        world.run_with(Hook::FromContainer, &packet, context).reason
    };
    // The helper refuses aggregates that `BPF_PROG_TEST_RUN` made: they have no GSO type. That it was
    // asked shows that the segments fit.
    assert_eq!(run(1450 - 20 - 32), Reason::HelperDeclined);
    assert_eq!(run(1450 - 20 - 32 + 1), Reason::TooBig);
}

#[test]
fn the_switch_and_an_unwritten_configuration_leave_everything_to_the_stack() {
    let mut world = World::new();
    let packet = udp(CONTAINER, REMOTE, 53, b"hello");
    world.configure(|host| host.flags &= !HostConfig::FAST_PATH);
    assert_eq!(reason(&mut world, &packet), Reason::FastPathOff);
    world.configure(|host| host.abi_version = 0);
    assert_eq!(reason(&mut world, &packet), Reason::NotConfigured);
}

#[test]
fn a_second_lease_length_is_found() {
    let mut world = World::new();
    world.configure(|host| host.peer_lengths = [26, 24, 0, 0]);
    let packet = udp(CONTAINER, REMOTE, 53, b"hello");
    assert_eq!(reason(&mut world, &packet), Reason::Encapsulated);
}

#[test]
fn a_container_can_use_neither_anothers_address_nor_anothers_mac() {
    let mut world = World::new();
    let own = udp(CONTAINER, REMOTE, 53, b"");
    let mut other_mac = own.clone();
    other_mac[11] ^= 1;
    let gateways = udp(GATEWAY, REMOTE, 53, b"");
    for (hook, packet, expected) in [
        (Hook::FromContainer, &own, Reason::Encapsulated),
        (Hook::FromBridge, &own, Reason::ToStack),
        (Hook::FromContainer, &other_mac, Reason::SpoofedSource),
        (Hook::FromBridge, &other_mac, Reason::SpoofedSource),
        (Hook::FromContainer, &gateways, Reason::SpoofedSource),
        (Hook::FromBridge, &gateways, Reason::SpoofedSource),
    ] {
        assert_eq!(world.run(hook, packet).reason, expected, "{hook:?}");
    }
    // The packet of another veth.
    let elsewhere = Context { ifindex: NEIGHBOUR_PORT, ..Context::default() };
    let outcome = world.run_with(Hook::FromContainer, &own, elsewhere);
    assert_eq!(outcome.reason, Reason::ForeignMac);
}

#[test]
fn what_is_for_another_container_is_the_bridges_business() {
    let mut world = World::new();
    let mut packet = udp(CONTAINER, REMOTE, 53, b"");
    packet[5] ^= 8;
    assert_eq!(reason(&mut world, &packet), Reason::NotForGateway);
}
