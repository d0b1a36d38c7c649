use overlay_common::{Hook, Reason};

use crate::{
    packets::udp,
    world::{CONTAINER, PEER_MAC, REMOTE, VTEP_MAC, World},
};

#[test]
fn a_packet_of_the_stack_is_addressed_to_its_peer() {
    let mut world = World::new();
    let packet = udp(CONTAINER, REMOTE, 53, b"hello");
    let outcome = world.run(Hook::ToTunnel, &packet);
    assert_eq!(outcome.reason, Reason::TunnelKeySet);
    assert_eq!(outcome.packet[..6], PEER_MAC.0);
    assert_eq!(outcome.packet[6..12], VTEP_MAC.0);
    assert_eq!(outcome.packet[12..], packet[12..]);
}

#[test]
fn what_no_peer_can_receive_is_dropped_by_name() {
    let mut world = World::new();
    let mut arp = udp(CONTAINER, REMOTE, 53, b"");
    arp[12..14].copy_from_slice(&[8, 6]);
    let cases = [
        (Reason::SpoofedSource, udp([192, 168, 33, 77], REMOTE, 53, b"")),
        (Reason::Unreachable, udp(CONTAINER, [10, 1, 21, 2], 53, b"")),
        (Reason::InnerNotIpv4, arp),
    ];
    for (expected, packet) in cases {
        assert_eq!(world.run(Hook::ToTunnel, &packet).reason, expected);
    }
}
