//! Packets built by `etherparse`, which shares no code with ours.

use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv4Header, PacketBuilder, SlicedPacket, TransportSlice,
};
use overlay_common::MacAddr;

use crate::world::{
    BRIDGE_MAC, CONTAINER_MAC, PEER_MAC, PEER_PUBLIC, PORT, PUBLIC, UPLINK_MAC, VTEP_MAC,
};

pub(crate) const TTL: u8 = 64;

/// A UDP packet from one container's interface to its gateway.
pub(crate) fn udp(from: [u8; 4], to: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(CONTAINER_MAC.0, BRIDGE_MAC.0)
        .ipv4(from, to, TTL)
        .udp(40_000, port);
    let mut packet = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut packet, payload).unwrap();
    packet
}

/// A TCP segment with a timestamp option.
pub(crate) fn tcp(from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(CONTAINER_MAC.0, BRIDGE_MAC.0)
        .ipv4(from, to, TTL)
        .tcp(40_000, 80, 1, 1000)
        .options(&[
            etherparse::TcpOptionElement::Timestamp(1, 2),
            etherparse::TcpOptionElement::Noop,
            etherparse::TcpOptionElement::Noop,
        ])
        .unwrap();
    let mut packet = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut packet, payload).unwrap();
    packet
}

/// How a VXLAN packet differs from what the peer would send us.
#[derive(Clone, Copy)]
pub(crate) struct Wire {
    pub(crate) source: [u8; 4],
    pub(crate) destination: [u8; 4],
    pub(crate) port: u16,
    pub(crate) tos: u8,
    pub(crate) header: [u8; 8],
    pub(crate) inner_destination: MacAddr,
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            source: PEER_PUBLIC,
            destination: PUBLIC,
            port: PORT,
            tos: 0,
            header: [8, 0, 0, 0, 0, 0, 1, 0],
            inner_destination: VTEP_MAC,
        }
    }
}

/// Wraps an Ethernet frame as the peer would; its Ethernet header is replaced by the tunnel's.
pub(crate) fn vxlan(wire: Wire, frame: &[u8]) -> Vec<u8> {
    let mut payload = wire.header.to_vec();
    Ethernet2Header {
        destination: wire.inner_destination.0,
        source: PEER_MAC.0,
        ether_type: EtherType(u16::from_be_bytes([frame[12], frame[13]])),
    }
    .write(&mut payload)
    .unwrap();
    payload.extend_from_slice(&frame[14..]);
    let length = u16::try_from(payload.len() + 8).unwrap();
    let mut ipv4 =
        Ipv4Header::new(length, 64, IpNumber::UDP, wire.source, wire.destination).unwrap();
    ipv4.dscp = (wire.tos >> 2).try_into().unwrap();
    ipv4.ecn = (wire.tos & 3).try_into().unwrap();
    ipv4.header_checksum = ipv4.calc_header_checksum();
    let mut packet = Vec::new();
    Ethernet2Header {
        destination: UPLINK_MAC.0,
        source: [2, 0, 0, 0, 1, 2],
        ether_type: EtherType::IPV4,
    }
    .write(&mut packet)
    .unwrap();
    ipv4.write(&mut packet).unwrap();
    let ports = [40_000_u16, wire.port, length, 0];
    packet.extend(ports.iter().flat_map(|field| field.to_be_bytes()));
    packet.extend_from_slice(&payload);
    packet
}

/// What an independent parser reads in an encapsulated packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub(crate) source: [u8; 4],
    pub(crate) destination: [u8; 4],
    pub(crate) ttl: u8,
    pub(crate) ecn: u8,
    pub(crate) dont_fragment: bool,
    pub(crate) source_port: u16,
    pub(crate) port: u16,
    pub(crate) udp_checksum: u16,
    pub(crate) header: [u8; 8],
    pub(crate) inner: Vec<u8>,
}

/// Parses a VXLAN packet; lengths and the outer header's checksum must be right.
pub(crate) fn parse(packet: &[u8]) -> Parsed {
    let sliced = SlicedPacket::from_ethernet(packet).unwrap();
    let ipv4 = sliced.net.as_ref().unwrap().ipv4_ref().unwrap().header();
    assert_eq!(usize::from(ipv4.total_len()), packet.len() - 14, "outer length");
    assert_eq!(ipv4.header_checksum(), ipv4.to_header().calc_header_checksum(), "outer checksum");
    let Some(TransportSlice::Udp(udp)) = &sliced.transport else {
        panic!("not UDP: {sliced:?}");
    };
    assert_eq!(usize::from(udp.length()), packet.len() - 34, "UDP length");
    Parsed {
        source: ipv4.source(),
        destination: ipv4.destination(),
        ttl: ipv4.ttl(),
        ecn: ipv4.ecn().value(),
        dont_fragment: ipv4.dont_fragment(),
        source_port: udp.source_port(),
        port: udp.destination_port(),
        udp_checksum: udp.checksum(),
        header: udp.payload()[..8].try_into().unwrap(),
        inner: udp.payload()[8..].to_vec(),
    }
}

/// The IPv4 header of a frame; its checksum must be right.
pub(crate) fn ipv4_of(frame: &[u8]) -> Ipv4Header {
    let (header, _) = Ipv4Header::from_slice(&frame[14..]).unwrap();
    assert_eq!(header.header_checksum, header.calc_header_checksum(), "inner checksum");
    header
}

/// Sets a byte of the IPv4 header of a frame and puts its checksum right.
pub(crate) fn patch(frame: &mut [u8], offset: usize, value: u8) {
    frame[14 + offset] = value;
    let (header, _) = Ipv4Header::from_slice(&frame[14..]).unwrap();
    let checksum = header.calc_header_checksum();
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
}
