//! Peers on the same link, to which packets go as they are.

use overlay_common::{Hook, Reason};

use crate::{
    packets::{TTL, ipv4_of, tcp, udp},
    world::{BRIDGE_MAC, CONTAINER, CONTAINER_MAC, Context, REMOTE, UNKNOWN_CONTAINER, World},
};

#[test]
fn a_containers_packet_goes_one_hop_further_and_is_else_untouched() {
    let mut world = World::new();
    world.put_peer_on_link();
    let packet = udp(CONTAINER, REMOTE, 53, b"hello");
    let outcome = world.run(Hook::FromContainer, &packet);
    assert_eq!(outcome.reason, Reason::Routed);
    assert_eq!(ipv4_of(&outcome.packet).time_to_live, TTL - 1);
    assert_eq!(outcome.packet[34..], packet[34..]);
}

#[test]
fn what_comes_from_such_a_peer_is_delivered_and_from_others_forged() {
    let mut world = World::new();
    let packet = udp(REMOTE, CONTAINER, 53, b"hello");
    assert_eq!(world.run(Hook::FromUplink, &packet).reason, Reason::Unencapsulated);

    world.put_peer_on_link();
    let outcome = world.run(Hook::FromUplink, &packet);
    assert_eq!(outcome.reason, Reason::ToEndpoint);
    assert_eq!(outcome.packet[..6], CONTAINER_MAC.0);
    assert_eq!(outcome.packet[6..12], BRIDGE_MAC.0);
    assert_eq!(outcome.packet[12..], packet[12..]);
    // No tunnel state is left on such an aggregate: any socket can take it.
    let context = Context { ifindex: 1, segment_size: 1398, ..Context::default() };
    let aggregate = tcp(REMOTE, CONTAINER, &[0; 3000]);
    let outcome = world.run_with(Hook::FromUplink, &aggregate, context);
    assert_eq!(outcome.reason, Reason::ToEndpoint);

    let unknown = udp(REMOTE, UNKNOWN_CONTAINER, 53, b"hello");
    assert_eq!(world.run(Hook::FromUplink, &unknown).reason, Reason::Bridged);
    let host = udp(REMOTE, [10, 1, 15, 1], 53, b"hello");
    assert_eq!(world.run(Hook::FromUplink, &host).reason, Reason::HostDestination);
    let stranger = udp([10, 1, 21, 2], CONTAINER, 53, b"hello");
    // Of no lease, and the kernel has no way to it by the uplink.
    assert_eq!(world.run(Hook::FromUplink, &stranger).reason, Reason::Unencapsulated);
    let outside = udp([8, 8, 8, 8], CONTAINER, 53, b"hello");
    assert_eq!(world.run(Hook::FromUplink, &outside).reason, Reason::NotVxlan);
    world.configure(|host| host.flags = 0);
    assert_eq!(world.run(Hook::FromUplink, &packet).reason, Reason::FastPathOff);
}
