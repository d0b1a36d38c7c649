//! Mutated packets thrown at every loaded program: each is counted once and gets the verdict of its reason
//! ([`World::run`] sees to that), and what is forwarded obeys rules that are spelled out here a second time.
//!
//! `OVERLAY_FUZZ_SECONDS` says for how long, `OVERLAY_FUZZ_SEED` where to begin.

use std::time::{Duration, Instant};

use overlay_common::{Hook, Reason};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::{
    packets::{Wire, tcp, udp, vxlan},
    world::{
        BRIDGE_MAC, CONTAINER, GATEWAY, PEER_PUBLIC, PORT, PUBLIC, REMOTE, UNKNOWN_CONTAINER,
        VTEP_MAC, World,
    },
};

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

/// What is well-formed, for mutations to start from.
fn seeds() -> Vec<Vec<u8>> {
    let inner = [
        udp(REMOTE, CONTAINER, 53, b"question"),
        tcp(REMOTE, CONTAINER, &[7; 100]),
        udp(REMOTE, UNKNOWN_CONTAINER, 53, b""),
        udp(REMOTE, GATEWAY, 53, b""),
    ];
    let outer = inner.iter().map(|packet| vxlan(Wire::default(), packet));
    let sent = [
        udp(CONTAINER, REMOTE, 53, b"question"),
        tcp(CONTAINER, REMOTE, &[7; 100]),
        udp(CONTAINER, PEER_PUBLIC, PORT, &[8, 0, 0, 0, 0, 0, 1, 0]),
        udp(CONTAINER, [8, 8, 8, 8], 53, b""),
    ];
    outer.chain(sent).chain(inner.clone()).collect()
}

/// The shortest that `BPF_PROG_TEST_RUN` takes of IPv4, Ethernet header included.
const SHORTEST: usize = 34;

/// Of so many packets, some are as they were.
const ENOUGH: u32 = 5000;

fn mutate(packet: &mut Vec<u8>, chance: &mut StdRng) {
    for _ in 0..chance.random_range(0..4) {
        let place = chance.random_range(0..packet.len());
        match chance.random_range(0..6) {
            0 => packet[place] ^= 1 << chance.random_range(0..8),
            1 => packet[place] = chance.random(),
            2 => packet[place] = [0, 1, 0x7f, 0x80, 0xff][chance.random_range(0..5)],
            3 => packet.truncate(place.max(SHORTEST)),
            4 => packet.insert(place, chance.random()),
            _ => {
                packet.remove(place);
                packet.resize(packet.len().max(SHORTEST), 0);
            }
        }
    }
}

/// Byte for byte what a VXLAN packet from our peer to our subnet must be.
fn may_be_delivered(packet: &[u8]) -> bool {
    packet.len() >= 84
        && packet[12..15] == [8, 0, 0x45]
        && packet[23] == 17
        && packet[26..30] == PEER_PUBLIC
        && packet[30..34] == PUBLIC
        && packet[36..38] == PORT.to_be_bytes()
        && packet[42] & 8 != 0
        && packet[46..49] == [0, 0, 1]
        && packet[50..56] == VTEP_MAC.0
        && packet[62..64] == [8, 0]
        && packet[76..79] == [10, 1, 20]
        && packet[80..83] == [10, 1, 15]
}

/// Byte for byte what a packet from our container to our peer's subnet must be.
fn may_be_encapsulated(packet: &[u8]) -> bool {
    packet[..6] == BRIDGE_MAC.0
        && packet[12..15] == [8, 0, 0x45]
        && packet[22] > 1
        && packet[26..29] == [10, 1, 15]
        && packet[26..30] != GATEWAY
        && packet[30..33] == [10, 1, 20]
}

#[test]
fn no_mutated_packet_gets_through_that_should_not() {
    let seed = number("OVERLAY_FUZZ_SEED", 1);
    let end = Instant::now() + Duration::from_secs(number("OVERLAY_FUZZ_SECONDS", 5));
    let mut chance = StdRng::seed_from_u64(seed);
    let mut world = World::new();
    let seeds = seeds();
    let (mut packets, mut forwarded) = (0_u32, [0_u32; 2]);
    // An emulated machine may need longer until some packet of each kind has survived its mutations.
    while Instant::now() < end || (forwarded.contains(&0) && packets < ENOUGH) {
        let mut packet = seeds[chance.random_range(0..seeds.len())].clone();
        mutate(&mut packet, &mut chance);
        let hook = Hook::ALL[chance.random_range(0..Hook::ALL.len())];
        let reason = world.run(hook, &packet).reason;
        let story = format!("seed {seed}, packet {packets}, {hook:?} {reason:?}: {packet:02x?}");
        packets += 1;
        match (hook, reason) {
            (Hook::FromUplink, Reason::ToEndpoint | Reason::Bridged) => {
                assert!(may_be_delivered(&packet), "{story}");
                forwarded[0] += 1;
            }
            (Hook::FromContainer, Reason::Encapsulated) => {
                assert!(may_be_encapsulated(&packet), "{story}");
                forwarded[1] += 1;
            }
            // Nothing came through a tunnel here, no peer is on the link.
            (_, Reason::ToEndpoint | Reason::Bridged | Reason::Routed | Reason::HelperFailed) => {
                panic!("{story}");
            }
            _ => {}
        }
    }
    println!("{packets} packets, {forwarded:?} forwarded");
    assert!(forwarded.iter().all(|count| *count > 0), "{forwarded:?}: mutations spoil everything");
}
