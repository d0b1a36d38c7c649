use overlay_common::{
    Hook, MacAddr, Reason, Vni, echo,
    encap::{VXLAN_G_FLAG_MASK, VXLAN_LENGTH, VXLAN_OFFSET},
    tables::HostConfig,
};

use crate::{
    packets::{Wire, ipv4_of, patch, tcp, udp, vxlan},
    world::{
        BRIDGE_MAC, CONTAINER, CONTAINER_MAC, Context, REMOTE, UNKNOWN_CONTAINER, VTEP_MAC, World,
    },
};

fn inner() -> Vec<u8> {
    udp(REMOTE, CONTAINER, 53, b"hello")
}

#[test]
fn a_packet_for_a_known_container_is_delivered_to_it() {
    let mut world = World::new();
    let outcome = world.run(Hook::FromUplink, &vxlan(Wire::default(), &inner()));
    assert_eq!(outcome.reason, Reason::ToEndpoint);
    assert_eq!(outcome.packet[..6], CONTAINER_MAC.0);
    assert_eq!(outcome.packet[6..12], BRIDGE_MAC.0);
    assert_eq!(outcome.packet[12..], inner()[12..], "the inner packet is untouched");
}

#[test]
fn a_packet_for_an_unknown_container_goes_to_the_bridge() {
    let mut world = World::new();
    let packet = vxlan(Wire::default(), &udp(REMOTE, UNKNOWN_CONTAINER, 53, b"hello"));
    let outcome = world.run(Hook::FromUplink, &packet);
    assert_eq!(outcome.reason, Reason::Bridged);
    assert_eq!(outcome.packet[14..], udp(REMOTE, UNKNOWN_CONTAINER, 53, b"hello")[14..]);
}

#[test]
fn what_the_bridge_does_not_carry_goes_on_unchanged_whoever_it_is_for() {
    let mut world = World::new();
    for recipient in [CONTAINER, UNKNOWN_CONTAINER] {
        let inner = udp(REMOTE, recipient, 53, &[0; 100]);
        let packet = vxlan(Wire::default(), &inner);
        let length = u32::try_from(inner.len() - 14).unwrap();
        world.set_bridge_mtu(length);
        assert_ne!(world.run(Hook::FromUplink, &packet).reason, Reason::TooBig);
        world.set_bridge_mtu(length - 1);
        let outcome = world.run(Hook::FromUplink, &packet);
        assert_eq!(outcome.reason, Reason::TooBig);
        assert_eq!(outcome.packet, packet);
    }
}

#[test]
fn what_carries_a_group_goes_on_unchanged_where_the_network_has_groups() {
    let mut world = World::new();
    let mut packet = vxlan(Wire::default(), &inner());
    packet[VXLAN_OFFSET] |= VXLAN_G_FLAG_MASK;
    assert_eq!(world.run(Hook::FromUplink, &packet).reason, Reason::ToEndpoint);
    world.configure(|host| host.flags |= HostConfig::GROUP_POLICY);
    let outcome = world.run(Hook::FromUplink, &packet);
    assert_eq!(outcome.reason, Reason::GroupPolicy);
    assert_eq!(outcome.packet, packet);
}

#[test]
fn what_is_for_the_host_goes_on_unchanged() {
    let mut world = World::new();
    let packet = vxlan(Wire::default(), &udp(REMOTE, [10, 1, 15, 1], 53, b"hello"));
    let outcome = world.run(Hook::FromUplink, &packet);
    assert_eq!(outcome.reason, Reason::HostDestination);
    assert_eq!(outcome.packet, packet);
    world.forget_bridge();
    let packet = vxlan(Wire::default(), &udp(REMOTE, UNKNOWN_CONTAINER, 53, b"hello"));
    assert_eq!(world.run(Hook::FromUplink, &packet).reason, Reason::HostDestination);
}

#[test]
fn an_aggregate_goes_only_to_a_known_container() {
    let mut world = World::new();
    let mut run = |to| {
        let packet = vxlan(Wire::default(), &tcp(REMOTE, to, &[0; 3000]));
        let context = Context { ifindex: 1, segment_size: 1398, ..Context::default() };
        world.run_with(Hook::FromUplink, &packet, context).reason
    };
    // As in from_container: being asked shows what was decided.
    assert_eq!(run(CONTAINER), Reason::HelperDeclined);
    assert_eq!(run(UNKNOWN_CONTAINER), Reason::Aggregate);
}

#[test]
fn congestion_marked_on_the_wire_reaches_the_container_or_is_lost_by_name() {
    let mut world = World::new();
    let congested = Wire { tos: 3, ..Wire::default() };
    let mut capable = inner();
    patch(&mut capable, 1, 0xb8 | 2);
    let outcome = world.run(Hook::FromUplink, &vxlan(congested, &capable));
    assert_eq!(outcome.reason, Reason::ToEndpoint);
    let header = ipv4_of(&outcome.packet);
    assert_eq!((header.ecn.value(), header.dscp.value()), (3, 0x2e));
    let lost = world.run(Hook::FromUplink, &vxlan(congested, &inner()));
    assert_eq!(lost.reason, Reason::CongestionLost);
}

#[test]
fn a_peers_question_is_sent_back_as_it_came() {
    let mut world = World::new();
    let vni = Vni::new(1).unwrap();
    let question = |inner_destination| {
        let frame = &echo::question(vni, inner_destination, MacAddr([2; 6]), 7)[VXLAN_LENGTH..];
        vxlan(Wire { inner_destination, ..Wire::default() }, frame)
    };
    let asked = question(VTEP_MAC);
    let outcome = world.run(Hook::FromUplink, &asked);
    assert_eq!(outcome.reason, Reason::Echoed);
    assert_eq!((&outcome.packet[..6], &outcome.packet[6..12]), (&asked[6..12], &asked[..6]));
    assert_eq!(
        (&outcome.packet[26..30], &outcome.packet[30..34]),
        (&asked[30..34], &asked[26..30])
    );
    assert_eq!(
        (&outcome.packet[34..36], &outcome.packet[36..38]),
        (&asked[36..38], &asked[34..36])
    );
    assert_eq!(outcome.packet[38..], asked[38..]);
    assert_eq!(outcome.packet[12..26], asked[12..26], "the same checksum is right");

    let other = question(MacAddr([2, 0, 0, 0, 0, 99]));
    assert_eq!(world.run(Hook::FromUplink, &other).reason, Reason::WrongInnerMac);
    let mut stranger = asked.clone();
    stranger[29] ^= 0x40;
    assert_eq!(world.run(Hook::FromUplink, &stranger).reason, Reason::UnknownVtep);
    let mut answer = asked;
    answer[34..36].copy_from_slice(&[0x21, 0x18]);
    assert_eq!(
        world.run(Hook::FromUplink, &answer).reason,
        Reason::InnerNotIpv4,
        "none is asked back"
    );
}

#[test]
fn nothing_forged_gets_in() {
    let mut world = World::new();
    let wire = Wire::default();
    let mut not_ipv4 = inner();
    not_ipv4[12..14].copy_from_slice(&[8, 6]);
    let mut ipv6 = inner();
    ipv6[12..14].copy_from_slice(&[0x86, 0xdd]);
    let mut lying = inner();
    patch(&mut lying, 3, 200);
    let cases = [
        (Reason::UnknownVtep, vxlan(Wire { source: [192, 168, 33, 66], ..wire }, &inner())),
        (Reason::VxlanFlags, vxlan(Wire { header: [0, 0, 0, 0, 0, 0, 1, 0], ..wire }, &inner())),
        (Reason::WrongVni, vxlan(Wire { header: [8, 0, 0, 0, 0, 0, 2, 0], ..wire }, &inner())),
        (Reason::WrongVni, vxlan(Wire { header: [8, 0, 0, 0, 1, 0, 1, 0], ..wire }, &inner())),
        (
            Reason::WrongInnerMac,
            vxlan(Wire { inner_destination: MacAddr([0xff; 6]), ..wire }, &inner()),
        ),
        (Reason::ForeignInnerSource, vxlan(wire, &udp([10, 1, 21, 2], CONTAINER, 53, b""))),
        (Reason::ForeignInnerSource, vxlan(wire, &udp(CONTAINER, CONTAINER, 53, b""))),
        (Reason::ForeignInnerDestination, vxlan(wire, &udp(REMOTE, [10, 1, 16, 2], 53, b""))),
        (Reason::ForeignInnerDestination, vxlan(wire, &udp(REMOTE, [192, 0, 2, 1], 53, b""))),
        (Reason::InnerNotIpv4, vxlan(wire, &not_ipv4)),
        (Reason::InnerIpv6, vxlan(wire, &ipv6)),
        (Reason::InnerTruncated, vxlan(wire, &lying)),
        (Reason::InnerTruncated, vxlan(wire, &inner())[..70].to_vec()),
        (Reason::VxlanTruncated, vxlan(wire, &inner())[..46].to_vec()),
    ];
    for (expected, packet) in &cases {
        assert_eq!(world.run(Hook::FromUplink, packet).reason, *expected);
    }
    world.configure(|host| host.flags &= !HostConfig::FAST_PATH);
    for (expected, packet) in &cases {
        let outcome = world.run(Hook::FromUplink, packet);
        assert_eq!(outcome.reason, *expected, "with the fast path off");
    }
}

#[test]
fn reserved_bits_are_ignored_on_receipt() {
    let mut world = World::new();
    let wire = Wire { header: [0xff, 1, 2, 3, 0, 0, 1, 0xff], ..Wire::default() };
    assert_eq!(world.run(Hook::FromUplink, &vxlan(wire, &inner())).reason, Reason::ToEndpoint);
}

#[test]
fn what_is_not_ours_goes_on_unchanged() {
    let mut world = World::new();
    let wire = Wire::default();
    let good = vxlan(wire, &inner());
    let patched = |offset, value| {
        let mut packet = good.clone();
        patch(&mut packet, offset, value);
        packet
    };
    let mut arp = good.clone();
    arp[12..14].copy_from_slice(&[8, 6]);
    let mut outer_options = good.clone();
    outer_options[14] = 0x46;
    let mut corrupt = good.clone();
    corrupt[24] ^= 1;
    let mut options = inner();
    options[14] = 0x46;
    let cases = [
        (Reason::NotIpv4, arp),
        (Reason::NotVxlan, vxlan(Wire { destination: [192, 168, 33, 12], ..wire }, &inner())),
        (Reason::NotVxlan, vxlan(Wire { port: 4789, ..wire }, &inner())),
        (Reason::NotVxlan, patched(9, 6)),
        (Reason::Fragment, patched(6, 0x20)),
        (Reason::IpOptions, outer_options),
        (Reason::IpOptions, vxlan(wire, &options)),
        (Reason::BadOuterChecksum, corrupt),
    ];
    for (expected, packet) in cases {
        let outcome = world.run(Hook::FromUplink, &packet);
        assert_eq!(outcome.reason, expected);
        assert_eq!(outcome.packet, packet, "{expected:?}");
    }
    world.configure(|host| host.flags &= !HostConfig::FAST_PATH);
    let outcome = world.run(Hook::FromUplink, &good);
    assert_eq!(outcome.reason, Reason::FastPathOff);
    assert_eq!(outcome.packet, good);
}
