//! What may arrive, spelled out on its own: what the kernel would make of a frame, and whether who sent it may say so.
//! Nothing here is shared with what is tested.

use std::net::Ipv4Addr;

use super::generate::Origin;
use crate::tools::{
    frame::{ARP, IPV4, Mac, UDP, VXLAN_PORT, checksum},
    site::{
        ATTACKER, ATTACKER_MAC, GATEWAY, GATEWAY_MAC, HOST, HOST_MAC, HOST_VTEP, OWNER, OWNER_MAC,
        PEER, PEER_MAC, REMOTE, REMOTE_MAC,
    },
};

/// An IPv4 packet that a kernel takes as one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet<'frame> {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    protocol: u8,
    is_fragment: bool,
    is_first: bool,
    payload: &'frame [u8],
}

/// `EtherType` and payload behind all tags that the kernel takes away by itself: those without an identifier.
fn see_through(frame: &[u8]) -> Option<(u16, &[u8])> {
    let word = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    let mut at = 12;
    while matches!(word(at)?, 0x8100 | 0x88a8) && word(at + 2)? << 4 == 0 {
        at += 4;
    }
    Some((word(at)?, frame.get(at + 2..)?))
}

/// As RFC 1122 and `ip_rcv` have it: version, lengths and checksum must be right.
pub(crate) fn ipv4(bytes: &[u8]) -> Option<Packet<'_>> {
    let first = *bytes.first()?;
    let header = usize::from(first & 15) * 4;
    let total = usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]));
    let whole = bytes.get(..total)?;
    if first >> 4 != 4 || header < 20 || checksum(whole.get(..header)?) != 0 {
        return None;
    }
    let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&whole[at..at + 4]).unwrap());
    let fragment = u16::from_be_bytes([whole[6], whole[7]]) & 0x3fff;
    Some(Packet {
        source: address(12),
        destination: address(16),
        protocol: whole[9],
        is_fragment: fragment != 0,
        is_first: fragment << 3 == 0,
        payload: &whole[header..],
    })
}

/// The IPv4 packet in a frame.
fn taken(frame: &[u8]) -> Option<Packet<'_>> {
    let (ethertype, bytes) = see_through(frame)?;
    (ethertype == IPV4).then(|| ipv4(bytes)).flatten()
}

fn mac(frame: &[u8], at: usize) -> Mac {
    frame[at..at + 6].try_into().unwrap()
}

fn in_overlay(address: Ipv4Addr) -> bool {
    address.octets()[..2] == [10, 1]
}

/// In the lease of the host of this number.
fn of_host(address: Ipv4Addr, number: u8) -> bool {
    address.octets()[..3] == [10, 1, number]
}

/// The addresses of the attacker's subnet that are others': the neighbour's, and the host's two.
const OTHERS: [Ipv4Addr; 3] = [OWNER, GATEWAY, TUNNEL];
const TUNNEL: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 0);

/// Whether the attacker may use this source: its own, one that is nobody's, or one that the overlay does not know.
fn attackers(address: Ipv4Addr) -> bool {
    !in_overlay(address) || of_host(address, 1) && !OTHERS.contains(&address)
}

fn is_vxlan(packet: Packet<'_>) -> bool {
    packet.protocol == UDP
        && packet.is_first
        && packet.payload.get(2..4) == Some(&VXLAN_PORT.to_be_bytes())
}

/// The payload of a datagram that a kernel takes: its length and, where it has one, its checksum are right.
fn datagram(packet: Packet<'_>) -> Option<&[u8]> {
    let length = u16::from_be_bytes([*packet.payload.get(4)?, *packet.payload.get(5)?]);
    let whole = packet.payload.get(..usize::from(length)).filter(|_| length >= 8)?;
    let pseudo = [
        &packet.source.octets()[..],
        &packet.destination.octets(),
        &[0, UDP],
        &length.to_be_bytes(),
        whole,
    ];
    (whole[6..8] == [0, 0] || checksum(&pseudo.concat()) == 0).then(|| &whole[8..])
}

/// What is wrong with a frame of the attacker's, if anything is: nothing of it may then arrive anywhere.
fn wrong_from_container(frame: &[u8]) -> Option<&'static str> {
    if [OWNER_MAC, GATEWAY_MAC].contains(&mac(frame, 6)) {
        return Some("it has another's source MAC");
    }
    if let Some(packet) = taken(frame) {
        if !attackers(packet.source) {
            return Some("it has another's source address");
        }
        // Containers may have a tunnel among themselves.
        let to_container =
            in_overlay(packet.destination) && !OTHERS[1..].contains(&packet.destination);
        if is_vxlan(packet) && !to_container {
            return Some("it is VXLAN");
        }
    }
    let (ethertype, bytes) = see_through(frame)?;
    // Linux takes ARP for Ethernet and for IEEE 802 alike, if it is all there.
    let arp = bytes.get(..28).filter(|arp| matches!(arp[..6], [0, 1 | 6, 8, 0, 6, 4]))?;
    let claim: [u8; 4] = arp[14..18].try_into().unwrap();
    (ethertype == ARP && OTHERS.contains(&claim.into())).then_some("it claims another's address")
}

/// What is wrong with a frame from the wire, if anything is: no container, and no address of the overlay, may get
/// anything of it.
fn wrong_from_wire(frame: &[u8]) -> Option<&'static str> {
    let Some(outer) = taken(frame) else { return Some("it is not IPv4") };
    if outer.is_fragment {
        // It may have found the others; what it then is, is judged where it arrives.
        return None;
    }
    let to = mac(frame, 0);
    // Both hosts are on this wire.
    if ![HOST_MAC, PEER_MAC].contains(&to) && to[0] & 1 == 0 {
        return Some("it is for another's MAC");
    }
    if !is_vxlan(outer) || outer.destination != HOST {
        // From outside the overlay, anybody may send to a container.
        return in_overlay(outer.source).then_some("it is of the overlay and not encapsulated");
    }
    if outer.source != PEER {
        return Some("it is not from a peer");
    }
    let Some(payload) = datagram(outer) else { return Some("its UDP header is wrong") };
    let Some(vxlan) = payload.get(..8) else { return Some("it ends early") };
    if vxlan[0] & 8 == 0 || vxlan[4..7] != [0, 0, 1] {
        return Some("it has another network's identifier");
    }
    let inner = &payload[8..];
    if inner.len() < 14 || mac(inner, 0) != HOST_VTEP {
        return Some("it is for another VTEP");
    }
    let Some(inner) = ipv4(&inner[14..]).filter(|_| inner[12..14] == IPV4.to_be_bytes()) else {
        return Some("there is no IPv4 inside");
    };
    if !of_host(inner.source, 2) && inner.source != PEER {
        return Some("its inner source is not the peer's");
    }
    (!of_host(inner.destination, 1)).then_some("its inner destination is not ours")
}

/// Whose eyes saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A container of this address.
    Container(Ipv4Addr),
    /// The stack of the first host.
    Host,
}

/// Whether `packet` says that something which its recipient itself seems to have sent did not arrive.
fn is_answer(packet: Packet<'_>) -> bool {
    let quoted = packet.payload.get(8..).and_then(|quoted| quoted.get(12..16));
    packet.protocol == 1
        && matches!(packet.payload.first(), Some(3 | 11 | 12 | 5))
        && quoted == Some(&packet.destination.octets())
}

/// What the stack of the container of this address takes of a frame that comes in.
pub(crate) fn taken_by(address: Ipv4Addr, frame: &[u8]) -> Option<Packet<'_>> {
    let own = match address {
        OWNER => OWNER_MAC,
        ATTACKER => ATTACKER_MAC,
        _ => REMOTE_MAC,
    };
    let to = mac(frame, 0);
    let packet = taken(frame).filter(|_| to == own || to[0] & 1 == 1)?;
    let groups = [Ipv4Addr::BROADCAST, broadcast_of(address)];
    let for_us = packet.destination == address
        || packet.destination.is_multicast()
        || groups.contains(&packet.destination);
    for_us.then_some(packet)
}

/// The broadcast address of a /24.
fn broadcast_of(address: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, _] = address.octets();
    Ipv4Addr::new(a, b, c, 255)
}

/// What is wrong with something that has arrived, if anything is. `sent` is the frame that it was, where that is known.
pub(crate) fn wrong(
    origin: Origin,
    place: Place,
    arrived: Option<Packet<'_>>,
    sent: Option<&[u8]>,
) -> Option<String> {
    // An answer has a right of its own: to whom it answers, that was delivered.
    if place != Place::Host && arrived.is_some_and(is_answer) {
        return None;
    }
    // What no kernel takes does no harm there; on a bridge, a MAC alone does.
    if origin == Origin::Wire && arrived.is_none() {
        return None;
    }
    let how = sent.and_then(|sent| match origin {
        Origin::Container | Origin::Machine => wrong_from_container(sent),
        Origin::Wire => wrong_from_wire(sent),
    });
    if let Some(how) = how {
        // To its own addresses of the underlay, a host's neighbour may send whatever it wants.
        let own = place == Place::Host
            && origin == Origin::Wire
            && arrived.is_some_and(|packet| !in_overlay(packet.destination));
        return (!own).then(|| how.to_owned());
    }
    let packet = arrived?;
    let honest = match (origin, place) {
        (Origin::Container | Origin::Machine, Place::Container(REMOTE)) => {
            of_host(packet.source, 1) && attackers(packet.source)
        }
        (Origin::Container | Origin::Machine, _) => {
            // The host answers whoever asks, be it everybody.
            let answers = packet.protocol == 1 && [GATEWAY, TUNNEL].contains(&packet.source);
            attackers(packet.source) || answers
        }
        (Origin::Wire, Place::Container(REMOTE)) => {
            !in_overlay(packet.source) || of_host(packet.source, 1)
        }
        (Origin::Wire, Place::Container(_)) => {
            !in_overlay(packet.source) || of_host(packet.source, 2) || packet.source == GATEWAY
        }
        (Origin::Wire, Place::Host) => {
            !in_overlay(packet.destination)
                || of_host(packet.source, 2)
                || !in_overlay(packet.source)
        }
    };
    // Those who live there talk with each other.
    let neighbours = [OWNER, ATTACKER, GATEWAY, TUNNEL, REMOTE, Ipv4Addr::new(10, 1, 2, 1)];
    let own = sent.is_none() && neighbours.contains(&packet.source);
    (!honest && !own).then(|| format!("{} may not have sent it", packet.source))
}
