//! A host 10.1.15.0/24 at 192.168.33.10 with one container and one peer 10.1.20.0/24 at
//! 192.168.33.11.

use network_types::udp::UdpHdr;

use super::Tables;
use crate::{
    MacAddr, Prefix, checksum,
    encap::OuterHeaders,
    packet::{
        ETHERTYPE_IPV4, Ethernet,
        test_support::{Bytes, bytes_of, ipv4},
    },
    tables::{
        Direction, Endpoint, EndpointKey, HostConfig, Peer, PeerKey, StackFlowKey, Vtep, VtepKey,
    },
};

pub(super) const LOCAL: [u8; 4] = [10, 1, 15, 2];
pub(super) const HOST: [u8; 4] = [10, 1, 15, 1];
pub(super) const REMOTE: [u8; 4] = [10, 1, 20, 2];
pub(super) const PEER: Peer = Peer {
    public_address: [192, 168, 33, 11],
    next_hop: [0; 4],
    vtep_mac: [2, 0, 0, 0, 0, 11],
    direct: 0,
    reserved: 0,
};
pub(super) const ENDPOINT: Endpoint =
    Endpoint { ifindex: 7, mac: [2, 0, 0, 0, 15, 2], reserved: [0; 2] };
const GATEWAY_MAC: MacAddr = MacAddr([2, 0x42, 0, 0, 0, 1]);
const PEER_SUBNET: Prefix = Prefix { address: [10, 1, 20, 0], length: 24 };

pub(super) struct World {
    pub(super) host: HostConfig,
    pub(super) peer: Peer,
    pub(super) stack_flows: Vec<(StackFlowKey, Direction)>,
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            peer: PEER,
            stack_flows: Vec::new(),
            host: HostConfig {
                flags: HostConfig::FAST_PATH,
                vni: 1,
                network: [10, 1, 0, 0],
                network_length: 16,
                subnet: [10, 1, 15, 0],
                subnet_length: 24,
                uplink_address: [192, 168, 33, 10],
                port: 8472,
                mtu: 1450,
                vtep_mac: [2, 0, 0, 0, 0, 10],
                bridge_mac: GATEWAY_MAC.0,
                peer_lengths: [24, 0, 0, 0],
                ..HostConfig::default()
            },
        }
    }
}

impl Tables for World {
    fn peer(&self, key: &PeerKey) -> Option<Peer> {
        (*key == PeerKey::new(PEER_SUBNET)).then_some(self.peer)
    }

    fn vtep(&self, key: &VtepKey) -> Option<Vtep> {
        (key.public_address == PEER.public_address).then_some(Vtep::new(PEER_SUBNET))
    }

    fn endpoint(&self, key: &EndpointKey) -> Option<Endpoint> {
        match key.address {
            LOCAL => Some(ENDPOINT),
            HOST => Some(Endpoint::HOST),
            _ => None,
        }
    }

    fn any_stack_flow(&self, direction: Direction) -> bool {
        self.stack_flows.iter().any(|(_, went)| *went == direction)
    }

    fn is_stack_flow(&self, key: &StackFlowKey, direction: Direction) -> bool {
        self.stack_flows.contains(&(*key, direction))
    }
}

fn frame(destination: MacAddr, src: [u8; 4], dst: [u8; 4], payload: usize) -> Bytes {
    let ethernet =
        Ethernet { destination, source: MacAddr(ENDPOINT.mac), ethertype: ETHERTYPE_IPV4 };
    let length = |bytes: usize| u16::try_from(bytes).unwrap_or(0).to_be_bytes();
    let mut header = ipv4(src, dst);
    header.tot_len = length(28 + payload);
    header.check = checksum::ipv4_header(&header);
    let udp = UdpHdr { src: [0x12, 0x34], dst: [0, 53], len: length(8 + payload), check: [0, 0] };
    let mut bytes = [bytes_of(&ethernet), bytes_of(&header), bytes_of(&udp)].concat();
    bytes.resize(bytes.len() + payload, 0xa5);
    Bytes { bytes, segment_size: 0 }
}

/// A UDP packet as a container sends it to its gateway.
pub(super) fn udp_packet(src: [u8; 4], dst: [u8; 4], payload: usize) -> Bytes {
    frame(GATEWAY_MAC, src, dst, payload)
}

/// The inner packet of what the peer sends.
pub(super) fn inner_packet(host: &HostConfig, src: [u8; 4], dst: [u8; 4]) -> Bytes {
    frame(MacAddr(host.vtep_mac), src, dst, 10)
}

/// What the peer sends, on the wire.
pub(super) fn vxlan_packet(host: &HostConfig, src: [u8; 4], dst: [u8; 4]) -> Bytes {
    let inner = inner_packet(host, src, dst);
    let peer = HostConfig { uplink_address: PEER.public_address, vtep_mac: PEER.vtep_mac, ..*host };
    let us =
        Peer { public_address: host.uplink_address, vtep_mac: host.vtep_mac, ..Peer::default() };
    let length = u16::try_from(inner.bytes.len() - 14).expect("a small packet");
    let headers = OuterHeaders::new(&peer, &us, 0, length, 40_000, 7);
    let outer_ethernet = Ethernet {
        destination: MacAddr([2, 0, 0, 0, 0, 1]),
        source: MacAddr([2, 0, 0, 0, 0, 2]),
        ethertype: ETHERTYPE_IPV4,
    };
    let bytes = [
        bytes_of(&outer_ethernet),
        bytes_of(&headers.ipv4),
        bytes_of(&headers.udp),
        &headers.vxlan,
        &inner.bytes,
    ]
    .concat();
    Bytes { bytes, segment_size: 0 }
}
