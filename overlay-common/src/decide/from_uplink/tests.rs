use super::*;
use crate::decide::fits_bridge;
use crate::{
    decide::test_support::{
        ENDPOINT, HOST, LOCAL, PEER, REMOTE, World, tagged, udp_packet, vxlan_packet,
    },
    packet::test_support::Bytes,
    tables::{Peer, Way},
};

fn decide(edit: impl FnOnce(&mut Vec<u8>)) -> Result<Arrival<'static>, Reason> {
    let world: &World = Box::leak(Box::new(World::new()));
    let mut packet = vxlan_packet(&world.host, REMOTE, LOCAL);
    edit(&mut packet.bytes);
    from_uplink(&packet, &world.host, world, |_| true)
}

#[test]
fn a_packet_for_a_container_is_decapsulated() {
    let plan = decide(|_| ()).expect("a plan");
    assert_eq!(plan.recipient, Recipient::Endpoint(&ENDPOINT));
    assert_eq!(plan.ipv4.dst_addr, LOCAL);
}

#[test]
fn reserved_bits_are_ignored_on_receipt() {
    assert!(
        decide(|bytes| {
            bytes[42] |= 0xf7;
            bytes[43] = 0xff;
            bytes[49] = 0xff;
        })
        .is_ok()
    );
}

#[test]
fn a_group_is_the_stacks_to_read_where_the_network_carries_groups() {
    let mut world = World::new();
    let mut packet = vxlan_packet(&world.host, REMOTE, LOCAL);
    packet.bytes[VXLAN_OFFSET] |= VXLAN_G_FLAG_MASK;
    assert!(from_uplink(&packet, &world.host, &world, |_| true).is_ok());
    world.host.flags |= HostConfig::GROUP_POLICY;
    let outcome = from_uplink(&packet, &world.host, &world, |_| true);
    assert_eq!(outcome.err(), Some(Reason::GroupPolicy));
    packet.bytes[VXLAN_OFFSET] &= !VXLAN_G_FLAG_MASK;
    assert!(from_uplink(&packet, &world.host, &world, |_| true).is_ok());
}

#[test]
fn what_the_bridge_does_not_carry_is_the_stacks() {
    let world = World::new();
    let packet = vxlan_packet(&world.host, REMOTE, LOCAL);
    let plan = from_uplink(&packet, &world.host, &world, |_| true).expect("a plan");
    let length = u32::try_from(packet.bytes.len() - INNER_IPV4_OFFSET).expect("it is short");
    for (mtu, fits) in [(length, true), (length - 1, false)] {
        assert_eq!(fits_bridge(&packet, plan.offset(), &plan.ipv4, mtu), fits, "MTU {mtu}");
    }
}

#[test]
fn every_refusal_has_its_name() {
    let cases: [(Reason, Edit); 17] = [
        (Reason::NotIpv4, |bytes| bytes[13] = 0x06),
        (Reason::NotVxlan, |bytes| bytes[33] ^= 1),
        (Reason::NotVxlan, |bytes| bytes[23] = 6),
        (Reason::NotVxlan, |bytes| bytes[37] ^= 1),
        (Reason::Fragment, |bytes| bytes[21] = 1),
        (Reason::IpOptions, |bytes| bytes[14] = 0x46),
        (Reason::VxlanTruncated, |bytes| bytes.truncate(38)),
        (Reason::VxlanTruncated, |bytes| bytes.truncate(46)),
        (Reason::VxlanFlags, |bytes| bytes[42] = 0),
        (Reason::WrongVni, |bytes| bytes[48] = 2),
        (Reason::UnknownVtep, |bytes| bytes[29] = 99),
        (Reason::WrongInnerMac, |bytes| bytes[50] ^= 4),
        (Reason::InnerNotIpv4, |bytes| bytes[63] = 0x06),
        (Reason::InnerIpv6, |bytes| bytes[62..64].copy_from_slice(&[0x86, 0xdd])),
        (Reason::InnerTruncated, |bytes| bytes.truncate(80)),
        (Reason::ForeignInnerSource, |bytes| bytes[78] ^= 1),
        (Reason::ForeignInnerDestination, |bytes| bytes[82] ^= 1),
    ];
    for (reason, edit) in cases {
        assert_eq!(decide(edit).expect_err("refused"), reason);
    }
}

#[test]
fn a_lying_inner_length_is_refused() {
    assert_eq!(
        decide(|bytes| bytes[66..68].copy_from_slice(&2000_u16.to_be_bytes()))
            .expect_err("longer than the packet"),
        Reason::InnerTruncated
    );
    assert_eq!(
        decide(|bytes| bytes[66..68].copy_from_slice(&19_u16.to_be_bytes()))
            .expect_err("shorter than its header"),
        Reason::InnerTruncated
    );
}

#[test]
fn a_host_may_send_from_its_own_public_address_and_the_stack_delivers_it() {
    let from = |source: [u8; 4]| {
        decide(|bytes| bytes[76..80].copy_from_slice(&source)).expect_err("not by us")
    };
    assert_eq!(from(PEER.public_address), Reason::PublicSource);
    assert_eq!(from([192, 168, 33, 12]), Reason::ForeignInnerSource);
}

#[test]
fn tags_hide_nothing() {
    let world = World::new();
    let seen = |from, to, tags: &[[u8; 4]]| {
        let packet = tagged(udp_packet(from, to, 10), tags);
        from_uplink(&packet, &world.host, &world, |_| true).expect_err("not for the fast path")
    };
    for tags in [&[[0x81, 0, 0xe0, 0]][..], &[[0x88, 0xa8, 0, 0], [0x81, 0, 0, 0]]] {
        assert_eq!(seen(REMOTE, LOCAL, tags), Reason::Unencapsulated);
        assert_eq!(seen([10, 1, 99, 9], LOCAL, tags), Reason::Tagged, "of no lease");
        assert_eq!(seen([8, 8, 8, 8], LOCAL, tags), Reason::Tagged);
    }
    assert_eq!(seen(REMOTE, LOCAL, &[[0x81, 0, 0, 5]]), Reason::OtherVlan);
}

/// Bytes 12 and 13 of an IP header are its source's: 8.0.69.1 makes of it what looks like Ethernet and IPv4.
#[test]
fn without_ethernet_headers_nothing_is_taken_for_one() {
    let mut world = World::new();
    world.host.flags |= HostConfig::NO_ETHERNET;
    let packet = vxlan_packet(&world.host, REMOTE, LOCAL);
    let seen = from_uplink(&packet, &world.host, &world, |_| true);
    assert_eq!(seen.expect_err("left to the kernel"), Reason::Tagged);
    let forged = udp_packet(REMOTE, LOCAL, 10);
    let seen = from_uplink(&forged, &world.host, &world, |_| true);
    assert_eq!(seen.expect_err("not encapsulated"), Reason::Unencapsulated);
}

#[test]
fn an_address_in_no_lease_is_the_hosts_own_business_once_leases_are_known() {
    let mut world = World::new();
    let seen = |world: &World| {
        let packet = udp_packet([10, 1, 99, 9], LOCAL, 10);
        from_uplink(&packet, &world.host, world, |_| true).expect_err("not for the fast path")
    };
    assert_eq!(seen(&world), Reason::NotVxlan);
    let packet = udp_packet([10, 1, 99, 9], LOCAL, 10);
    let not_that_way = from_uplink(&packet, &world.host, &world, |_| false);
    assert_eq!(not_that_way.expect_err("forged"), Reason::Unencapsulated);
    world.host.flags &= !HostConfig::LEASES_LISTED;
    assert_eq!(seen(&world), Reason::Unencapsulated);
}

#[test]
fn our_own_subnet_does_not_come_from_the_wire() {
    let world = World::new();
    let seen = |from, to| {
        let packet = udp_packet(from, to, 10);
        from_uplink(&packet, &world.host, &world, |_| true).expect_err("not for the fast path")
    };
    let us = world.host.uplink_address;
    for to in [LOCAL, us, [8, 8, 8, 8]] {
        assert_eq!(seen(LOCAL, to), Reason::Unencapsulated);
    }
    assert_eq!(seen(REMOTE, us), Reason::Unmasqueraded, "to this host, as with flannel");
    assert_eq!(seen(REMOTE, [10, 1, 77, 7]), Reason::Unencapsulated, "through us");
    assert_eq!(seen([10, 1, 99, 9], us), Reason::NotVxlan, "of no lease");
}

#[test]
fn a_wrong_outer_checksum_is_left_to_the_stack() {
    assert_eq!(decide(|bytes| bytes[24] ^= 1).expect_err("declined"), Reason::BadOuterChecksum);
}

#[test]
fn what_the_kernels_socket_would_not_take_is_left_to_it() {
    let declined = |edit: Edit| decide(edit).expect_err("declined");
    assert_eq!(declined(|bytes| bytes.extend([0; 4])), Reason::BadOuterLength);
    assert_eq!(declined(|bytes| bytes[39] ^= 1), Reason::BadOuterLength, "the datagram's");
    assert_eq!(declined(|bytes| bytes[40] = 1), Reason::UdpChecksum);
    let world = World::new();
    let others = Bytes { for_another_host: true, ..vxlan_packet(&world.host, REMOTE, LOCAL) };
    let reason = from_uplink(&others, &world.host, &world, |_| true).expect_err("declined");
    assert_eq!(reason, Reason::OtherHost);
}

#[test]
fn refusals_hold_with_the_fast_path_off() {
    let mut world = World::new();
    world.host.flags = 0;
    let mut packet = vxlan_packet(&world.host, REMOTE, LOCAL);
    let declined = from_uplink(&packet, &world.host, &world, |_| true).expect_err("declined");
    assert_eq!(declined, Reason::FastPathOff);
    packet.bytes[48] = 2;
    let refused = from_uplink(&packet, &world.host, &world, |_| true).expect_err("refused");
    assert_eq!(refused, Reason::WrongVni);
}

#[test]
fn an_aggregate_needs_a_known_container() {
    let world = World::new();
    let mut packet = vxlan_packet(&world.host, REMOTE, [10, 1, 15, 77]);
    packet.bytes[73] = PROTOCOL_TCP;
    let single = from_uplink(&packet, &world.host, &world, |_| true).expect("a plan");
    assert_eq!(single.recipient, Recipient::Subnet);
    packet.segment_size = 1398;
    let aggregate = from_uplink(&packet, &world.host, &world, |_| true).expect_err("declined");
    assert_eq!(aggregate, Reason::Aggregate);
    let mut packet = vxlan_packet(&world.host, REMOTE, LOCAL);
    packet.segment_size = 1398;
    let udp = from_uplink(&packet, &world.host, &world, |_| true).expect_err("declined");
    assert_eq!(udp, Reason::Aggregate);
    packet.bytes[73] = PROTOCOL_TCP;
    assert!(from_uplink(&packet, &world.host, &world, |_| true).is_ok());
}

fn from_link(peer: Peer, edit: impl FnOnce(&mut Vec<u8>)) -> Result<Arrival<'static>, Reason> {
    let world: &World = Box::leak(Box::new(World { peer, ..World::new() }));
    let mut packet = udp_packet(REMOTE, LOCAL, 10);
    edit(&mut packet.bytes);
    from_uplink(&packet, &world.host, world, |_| true)
}

type Edit = fn(&mut Vec<u8>);

#[test]
fn a_peer_on_the_link_may_send_packets_as_they_are() {
    let on_link = Peer { way: Way::Direct as u8, ..PEER };
    let arrival = from_link(on_link, |_| ()).expect("delivered");
    assert_eq!((arrival.encapsulated, arrival.recipient), (false, Recipient::Endpoint(&ENDPOINT)));
    let cases: [(Reason, Edit); 8] = [
        (Reason::NotVxlan, |bytes| bytes[26] = 11),
        (Reason::NotVxlan, |bytes| bytes[28] = 21),
        (Reason::Unencapsulated, |bytes| bytes[28] = 15),
        (Reason::IpOptions, |bytes| bytes[14] = 0x46),
        (Reason::Fragment, |bytes| bytes[20] = 0x20),
        (Reason::BadOuterChecksum, |bytes| bytes[24] ^= 1),
        (Reason::HostDestination, |bytes| {
            (bytes[33], bytes[25]) = (HOST[3], bytes[25].wrapping_add(1));
        }),
        (Reason::Unencapsulated, |bytes| bytes[32] = 16),
    ];
    for (reason, edit) in cases {
        assert_eq!(from_link(on_link, edit).expect_err("not delivered"), reason);
    }
    let refused = from_link(PEER, |_| ()).expect_err("not delivered");
    assert_eq!(refused, Reason::Unencapsulated, "not on the link");
}
