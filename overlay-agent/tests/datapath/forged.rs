//! What a container or the wire forges, by whatever frame: refused by the loaded programs, by name.

use overlay_common::{
    Hook, MacAddr, Reason,
    tables::{ClaimKey, Home, HomeKey, HostConfig},
};

use crate::{
    packets::{Wire, udp, vxlan},
    world::{
        BRIDGE_MAC, CONTAINER, CONTAINER_MAC, Context, GATEWAY, NEIGHBOUR, NEIGHBOUR_MAC,
        NEIGHBOUR_PORT, PEER_PUBLIC, PORT, PUBLIC, REMOTE, TUNNEL_IFINDEX, World, run,
    },
};

const PRIORITY: [u8; 4] = [0x81, 0, 0xe0, 0];
const SERVICE: [u8; 4] = [0x88, 0xa8, 0, 0];
const VLAN: [u8; 4] = [0x81, 0, 0, 5];

fn tagged(packet: &[u8], tags: &[[u8; 4]]) -> Vec<u8> {
    [&packet[..12], &tags.concat(), &packet[12..]].concat()
}

fn from(mac: MacAddr, packet: &[u8]) -> Vec<u8> {
    [&packet[..6], &mac.0, &packet[12..]].concat()
}

fn arp(mac: MacAddr, sender: [u8; 4]) -> Vec<u8> {
    let mut frame = [[0xff; 6], CONTAINER_MAC.0].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac.0);
    frame.extend(sender);
    frame.extend([0; 6]);
    frame.extend(GATEWAY);
    frame
}

#[test]
fn tags_hide_neither_addresses_nor_vxlan_of_containers() {
    let mut world = World::new();
    let spoofed = udp(NEIGHBOUR, REMOTE, 53, b"");
    let tunnelled = udp(CONTAINER, PEER_PUBLIC, PORT, &[8; 60]);
    let honest = udp(CONTAINER, REMOTE, 53, b"");
    for hook in [Hook::FromContainer, Hook::FromBridge] {
        for tags in [&[PRIORITY][..], &[SERVICE], &[PRIORITY, SERVICE, PRIORITY]] {
            let mut reason = |packet: &[u8]| world.run(hook, &tagged(packet, tags)).reason;
            assert_eq!(reason(&spoofed), Reason::SpoofedSource, "{hook:?} {tags:?}");
            assert_eq!(reason(&tunnelled), Reason::ContainerVxlan, "{hook:?} {tags:?}");
            assert_eq!(reason(&honest), Reason::Tagged, "{hook:?} {tags:?}");
        }
        let deep = tagged(&honest, &[PRIORITY; 4]);
        assert_eq!(world.run(hook, &deep).reason, Reason::TagsTooDeep);
        assert_eq!(world.run(hook, &tagged(&honest, &[VLAN])).reason, Reason::OtherVlan);
    }
}

#[test]
fn tags_hide_no_overlay_source_from_the_wire() {
    let mut world = World::new();
    let forged = udp(REMOTE, CONTAINER, 53, b"");
    for hook in [Hook::FromUplink, Hook::FromInterface] {
        for tags in [&[][..], &[PRIORITY], &[SERVICE, PRIORITY]] {
            let reason = world.run(hook, &tagged(&forged, tags)).reason;
            assert_eq!(reason, Reason::Unencapsulated, "{hook:?} {tags:?}");
        }
    }
}

#[test]
fn another_containers_mac_opens_no_frame() {
    let mut world = World::new();
    let mut junk = udp(CONTAINER, REMOTE, 53, b"");
    junk[12..14].copy_from_slice(&[0x88, 0xb5]);
    for frame in [
        junk,
        udp(CONTAINER, REMOTE, 53, b""),
        tagged(&udp(CONTAINER, REMOTE, 53, b""), &[VLAN]),
        udp([10, 1, 15, 77], REMOTE, 53, b""),
    ] {
        let forged = from(NEIGHBOUR_MAC, &frame);
        assert_eq!(world.run(Hook::FromContainer, &forged).reason, Reason::ForeignMac);
        let there = Context { ifindex: NEIGHBOUR_PORT, ..Context::default() };
        let reason = world.run_with(Hook::FromContainer, &forged, there).reason;
        assert_ne!(reason, Reason::ForeignMac, "its owner's");
    }
    let bridges = from(BRIDGE_MAC, &udp([10, 1, 15, 77], REMOTE, 53, b""));
    assert_eq!(world.run(Hook::FromContainer, &bridges).reason, Reason::ForeignMac);
}

#[test]
fn addresses_are_claimed_by_their_owners() {
    let mut world = World::new();
    for (frame, expected) in [
        (arp(CONTAINER_MAC, CONTAINER), Reason::NotIpv4),
        (arp(CONTAINER_MAC, [0; 4]), Reason::NotIpv4),
        (arp(CONTAINER_MAC, NEIGHBOUR), Reason::SpoofedArp),
        (arp(CONTAINER_MAC, GATEWAY), Reason::SpoofedArp),
        (arp(NEIGHBOUR_MAC, [10, 1, 15, 77]), Reason::SpoofedArp),
        (tagged(&arp(CONTAINER_MAC, NEIGHBOUR), &[PRIORITY]), Reason::SpoofedArp),
    ] {
        assert_eq!(world.run(Hook::FromContainer, &frame).reason, expected, "{frame:02x?}");
    }
    let claims = world.tables.claims.entries().unwrap();
    let neighbours = ClaimKey { address: NEIGHBOUR, ifindex: 1 };
    assert_eq!(claims[&neighbours].packets, 2, "{claims:?}");
}

#[test]
fn the_source_is_checked_whatever_the_frame_is_addressed_to() {
    let mut world = World::new();
    let mut packet = udp(NEIGHBOUR, REMOTE, 53, b"");
    // The MAC of the container's own port: local to the host, and not the bridge's.
    packet[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0x77]);
    assert_eq!(world.run(Hook::FromContainer, &packet).reason, Reason::SpoofedSource);
}

#[test]
fn vxlan_leaves_no_container_for_anywhere() {
    let mut world = World::new();
    for destination in [PEER_PUBLIC, [192, 168, 44, 11], [8, 8, 8, 8], PUBLIC, GATEWAY] {
        let packet = udp(CONTAINER, destination, PORT, &[8; 60]);
        let options = [&packet[..14], &[0x4f], &packet[15..34], &[1; 40], &packet[34..]].concat();
        for hook in [Hook::FromContainer, Hook::FromBridge] {
            for packet in [&packet, &options] {
                let reason = world.run(hook, packet).reason;
                assert_eq!(reason, Reason::ContainerVxlan, "{hook:?} {destination:?}");
            }
        }
    }
    let to_neighbour = udp(CONTAINER, NEIGHBOUR, PORT, &[8; 60]);
    assert_eq!(world.run(Hook::FromContainer, &to_neighbour).reason, Reason::LocalDestination);
}

#[test]
fn headers_that_are_not_there_are_not_imagined() {
    let mut world = World::new();
    let options = |length: u8| {
        let packet = udp(CONTAINER, PEER_PUBLIC, PORT, b"");
        let kind = [0x40 | (5 + length)];
        [&packet[..14], &kind, &packet[15..34], &vec![1; usize::from(length) * 4 - 2]].concat()
    };
    assert_eq!(world.run(Hook::FromContainer, &options(10)).reason, Reason::Unreadable);
}

#[test]
fn the_operator_decides_how_strict_to_be() {
    let mut world = World::new();
    let nobodys = udp([10, 1, 15, 77], REMOTE, 53, b"");
    let neighbours = udp(NEIGHBOUR, REMOTE, 53, b"");
    let mut reasons = |flags| {
        world.configure(|host| host.flags = HostConfig::FAST_PATH | flags);
        [&nobodys, &neighbours].map(|packet| world.run(Hook::FromContainer, packet).reason)
    };
    let (sent, spoofed) = (Reason::Encapsulated, Reason::SpoofedSource);
    assert_eq!(reasons(0), [sent, spoofed]);
    assert_eq!(reasons(HostConfig::SOURCE_STRICT), [spoofed, spoofed]);
    assert_eq!(reasons(HostConfig::SOURCE_ANY), [sent, sent]);
}

#[test]
fn other_interfaces_bring_nothing_of_the_overlay() {
    let mut world = World::new();
    let home = HomeKey { address: CONTAINER, ifindex: 1 };
    let mut reason = |packet: &[u8]| world.run(Hook::FromInterface, packet).reason;
    assert_eq!(reason(&udp([8, 8, 8, 8], PUBLIC, 53, b"")), Reason::Checked);
    assert_eq!(reason(&udp(REMOTE, CONTAINER, 53, b"")), Reason::Unencapsulated);
    assert_eq!(reason(&udp(CONTAINER, REMOTE, 53, b"")), Reason::Unencapsulated);
    // There is no route to the peer here.
    assert_eq!(reason(&udp(REMOTE, PUBLIC, 53, b"")), Reason::Unencapsulated);
    let in_a_peers_name = vxlan(Wire::default(), &udp(REMOTE, CONTAINER, 53, b""));
    assert_eq!(reason(&in_a_peers_name), Reason::MisplacedVtep);
    let in_ours =
        vxlan(Wire { source: PUBLIC, ..Wire::default() }, &udp(REMOTE, CONTAINER, 53, b""));
    assert_eq!(reason(&in_ours), Reason::MisplacedVtep);
    world.tables.homes.insert(&home, &Home { mac: CONTAINER_MAC.0, reserved: [0; 2] }).unwrap();
    let packet = udp(CONTAINER, REMOTE, 53, b"");
    assert_eq!(world.run(Hook::FromInterface, &packet).reason, Reason::Checked);
    let mut bridged = packet.clone();
    bridged[5] ^= 8;
    assert_eq!(world.run(Hook::FromInterface, &bridged).reason, Reason::OtherHost);
    let forged = from(NEIGHBOUR_MAC, &packet);
    assert_eq!(world.run(Hook::FromInterface, &forged).reason, Reason::Unencapsulated);
}

#[test]
fn a_peer_that_the_interface_leads_to_is_believed() {
    let mut world = World::new();
    run("ip route add 192.168.33.11/32 dev lo");
    let unmasqueraded = udp(REMOTE, PUBLIC, 53, b"");
    assert_eq!(world.run(Hook::FromInterface, &unmasqueraded).reason, Reason::Unmasqueraded);
    let packet = vxlan(Wire::default(), &udp(REMOTE, CONTAINER, 53, b""));
    assert_eq!(world.run(Hook::FromInterface, &packet).reason, Reason::Checked);
}

#[test]
fn nobody_speaks_vxlan_with_the_hosts_address_but_the_host() {
    let mut world = World::new();
    let packet = vxlan(
        Wire { source: PUBLIC, destination: PEER_PUBLIC, ..Wire::default() },
        &udp(CONTAINER, REMOTE, 53, b""),
    );
    let came_by = |ingress_ifindex| Context { ifindex: 1, ingress_ifindex, ..Context::default() };
    let mut reason =
        |packet: &[u8], from| world.run_with(Hook::ToWire, packet, came_by(from)).reason;
    assert_eq!(reason(&packet, 0), Reason::SentByHost);
    assert_eq!(reason(&packet, 31), Reason::ContainerVxlan);
    assert_eq!(reason(&udp(PUBLIC, PEER_PUBLIC, 53, b""), 31), Reason::NotVxlan);
    let others = vxlan(
        Wire { source: [192, 168, 33, 77], destination: PEER_PUBLIC, ..Wire::default() },
        &udp(CONTAINER, REMOTE, 53, b""),
    );
    assert_eq!(reason(&others, 31), Reason::NotVxlan, "of somebody whom we route for");
}

#[test]
fn overlay_addresses_come_to_containers_by_the_tunnel_only() {
    let mut world = World::new();
    let packet = udp(REMOTE, CONTAINER, 53, b"");
    for flags in [HostConfig::FAST_PATH, 0] {
        world.configure(|host| host.flags = flags);
        let mut reason = |ingress_ifindex| {
            let context = Context { ingress_ifindex, ..Context::default() };
            world.run_with(Hook::ToBridge, &packet, context).reason
        };
        assert_eq!(reason(1), Reason::Unencapsulated, "by the uplink");
        assert_eq!(reason(31), Reason::Unencapsulated, "by another interface");
        assert_ne!(reason(TUNNEL_IFINDEX), Reason::Unencapsulated);
    }
}

#[test]
fn what_the_kernels_socket_would_not_take_is_left_to_it() {
    let mut world = World::new();
    let honest = vxlan(Wire::default(), &udp(REMOTE, CONTAINER, 53, b""));
    let mut reason = |place: usize, value: u8| {
        let mut packet = honest.clone();
        packet[place] ^= value;
        world.run(Hook::FromUplink, &packet).reason
    };
    assert_eq!(reason(5, 8), Reason::OtherHost);
    assert_eq!(reason(39, 1), Reason::BadOuterLength);
    assert_eq!(reason(41, 1), Reason::UdpChecksum);
    let longer = [&honest[..], &[0; 4]].concat();
    assert_eq!(world.run(Hook::FromUplink, &longer).reason, Reason::BadOuterLength);
}

#[test]
fn a_host_may_send_from_its_own_public_address() {
    let mut world = World::new();
    let honest = vxlan(Wire::default(), &udp(PEER_PUBLIC, CONTAINER, 53, b""));
    assert_eq!(world.run(Hook::FromUplink, &honest).reason, Reason::PublicSource);
    let forged = vxlan(Wire::default(), &udp([192, 168, 33, 12], CONTAINER, 53, b""));
    assert_eq!(world.run(Hook::FromUplink, &forged).reason, Reason::ForeignInnerSource);
    let leaving = udp(PUBLIC, REMOTE, 53, b"");
    assert_eq!(world.run(Hook::ToTunnel, &leaving).reason, Reason::TunnelKeySet);
}
