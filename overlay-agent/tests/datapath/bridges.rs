//! A host with two bridges of containers: each container is reached behind its own, and speaks as one of its own.

use overlay_common::{
    Hook, MacAddr, Reason,
    tables::{Home, HomeKey},
};

use crate::{
    packets::{Wire, udp, vxlan},
    world::{
        BRIDGE_MAC, CONTAINER_MAC, Context, REMOTE, SECOND, SECOND_BRIDGE, SECOND_BRIDGE_MAC,
        SECOND_MAC, SECOND_PORT, World,
    },
};

const UNKNOWN_SECOND: [u8; 4] = [10, 1, 15, 131];

fn sent(to: MacAddr, from: MacAddr, source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    [&to.0[..], &from.0, &udp(source, destination, 53, b"hello")[12..]].concat()
}

fn run_at(world: &mut World, hook: Hook, ifindex: u32, packet: &[u8]) -> Reason {
    world.run_with(hook, packet, Context { ifindex, ..Context::default() }).reason
}

#[test]
fn what_a_container_of_the_second_bridge_sends_its_gateway_is_encapsulated() {
    let mut world = World::new();
    let mut reason = |gateway| {
        let packet = sent(gateway, SECOND_MAC, SECOND, REMOTE);
        run_at(&mut world, Hook::FromContainer, SECOND_PORT, &packet)
    };
    assert_eq!(reason(SECOND_BRIDGE_MAC), Reason::Encapsulated);
    assert_eq!(reason(BRIDGE_MAC), Reason::NotForGateway);
}

#[test]
fn what_comes_for_it_is_delivered_as_its_own_gateways() {
    let mut world = World::new();
    for to in [SECOND, UNKNOWN_SECOND] {
        let packet = vxlan(Wire::default(), &udp(REMOTE, to, 53, b"hello"));
        let outcome = world.run(Hook::FromUplink, &packet);
        if to == SECOND {
            assert_eq!(outcome.reason, Reason::ToEndpoint);
            assert_eq!(outcome.packet[..6], SECOND_MAC.0);
            assert_eq!(outcome.packet[6..12], SECOND_BRIDGE_MAC.0);
        } else {
            assert_eq!(outcome.reason, Reason::Bridged);
        }
        // Its bridge carries less than the other.
        let large = vxlan(Wire::default(), &udp(REMOTE, to, 53, &[0; 1400]));
        assert_eq!(world.run(Hook::FromUplink, &large).reason, Reason::TooBig);
    }
}

#[test]
fn a_container_does_not_speak_as_one_of_another_bridge() {
    let mut world = World::new();
    for hook in [Hook::FromContainer, Hook::FromBridge] {
        let mut reason = |ifindex, mac, source| {
            run_at(&mut world, hook, ifindex, &sent(BRIDGE_MAC, mac, source, REMOTE))
        };
        assert_eq!(reason(1, CONTAINER_MAC, SECOND), Reason::SpoofedSource);
        assert_eq!(reason(1, SECOND_MAC, SECOND), Reason::SpoofedSource, "with its MAC, too");
        let second = if hook == Hook::FromBridge { SECOND_BRIDGE } else { SECOND_PORT };
        assert_eq!(reason(second, SECOND_MAC, [10, 1, 15, 77]), Reason::SpoofedSource, "nobody's");
    }
    // One that is behind both answers by either.
    let home = Home { mac: CONTAINER_MAC.0, reserved: [0; 2] };
    let key = HomeKey { address: SECOND, ifindex: world.bridge_ifindex() };
    world.tables.homes.insert(&key, &home).unwrap();
    let answer = sent(BRIDGE_MAC, CONTAINER_MAC, SECOND, REMOTE);
    assert_eq!(run_at(&mut world, Hook::FromContainer, 1, &answer), Reason::Encapsulated);
}

#[test]
fn what_goes_from_bridge_to_bridge_is_left_to_the_host() {
    let mut world = World::new();
    let packet = sent(SECOND_BRIDGE_MAC, SECOND_MAC, SECOND, [10, 1, 15, 2]);
    let reason = run_at(&mut world, Hook::FromContainer, SECOND_PORT, &packet);
    assert_eq!(reason, Reason::LocalDestination);
    let mut to_bridge = |source, ingress_ifindex| {
        let packet = udp(source, [10, 1, 15, 2], 53, b"");
        let context = Context { ifindex: 1, ingress_ifindex, ..Context::default() };
        world.run_with(Hook::ToBridge, &packet, context).reason
    };
    assert_eq!(to_bridge(SECOND, SECOND_BRIDGE), Reason::NotFromPeer, "netfilter has let it");
    assert_eq!(to_bridge(SECOND, 31), Reason::Unencapsulated);
}
