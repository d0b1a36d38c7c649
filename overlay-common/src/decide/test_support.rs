//! A host 10.1.15.0/24 at 192.168.33.10 with one container and one peer 10.1.20.0/24 at
//! 192.168.33.11.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
};

use network_types::udp::UdpHdr;

use super::{Tables, stack_flow};
use crate::{
    MacAddr, Prefix, checksum,
    encap::OuterHeaders,
    packet::{
        Arp, ETHERTYPE_ARP, ETHERTYPE_IPV4, Ethernet,
        test_support::{Bytes, bytes_of, ipv4},
    },
    tables::{
        Accepted, Bridge, BridgeKey, Direction, Endpoint, EndpointKey, Home, HomeKey, HostConfig,
        POLICY_RULES, Peer, PeerKey, PolicyField, PolicyFlow, PolicyRule, Port, PortKey, RuleSet,
        SeatKey, StackFlow, StackFlowKey, Vtep, VtepKey, Way,
    },
};

pub(super) const LOCAL: [u8; 4] = [10, 1, 15, 2];
pub(super) const NEIGHBOUR: [u8; 4] = [10, 1, 15, 3];
pub(super) const HOST: [u8; 4] = [10, 1, 15, 1];
pub(super) const REMOTE: [u8; 4] = [10, 1, 20, 2];
pub(super) const PEER: Peer = Peer {
    public_address: [192, 168, 33, 11],
    next_hop: [0; 4],
    vtep_mac: [2, 0, 0, 0, 0, 11],
    way: Way::Vxlan as u8,
    reserved: 0,
};
pub(super) const BRIDGE: Bridge = Bridge {
    ifindex: 3,
    mtu: 1500,
    subnet: [10, 1, 15, 0],
    mac: [2, 0x42, 0, 0, 0, 1],
    subnet_length: 25,
    reserved: 0,
};
/// Another bridge of the host's, with a container.
pub(super) const SECOND_BRIDGE: Bridge = Bridge {
    ifindex: 5,
    mtu: 1400,
    subnet: [10, 1, 15, 128],
    mac: [2, 0x42, 0, 0, 0, 2],
    subnet_length: 25,
    reserved: 0,
};
const fn behind(bridge: &Bridge, ifindex: u32, mac: [u8; 6]) -> Endpoint {
    Endpoint { ifindex, bridge: bridge.ifindex, mtu: bridge.mtu, mac, gateway: bridge.mac }
}
pub(super) const ENDPOINT: Endpoint = behind(&BRIDGE, 7, [2, 0, 0, 0, 15, 2]);
pub(super) const NEIGHBOUR_ENDPOINT: Endpoint = behind(&BRIDGE, 8, [2, 0, 0, 0, 15, 3]);
pub(super) const SECOND: [u8; 4] = [10, 1, 15, 130];
pub(super) const SECOND_ENDPOINT: Endpoint = behind(&SECOND_BRIDGE, 9, [2, 0, 0, 0, 15, 130]);
const GATEWAY_MAC: MacAddr = MacAddr(BRIDGE.mac);
const PEER_SUBNET: Prefix = Prefix { address: [10, 1, 20, 0], length: 24 };

pub(super) struct World {
    pub(super) host: HostConfig,
    pub(super) peer: Peer,
    pub(super) stack_flows: RefCell<HashMap<StackFlowKey, StackFlow>>,
    pub(super) seats: RefCell<HashMap<SeatKey, StackFlowKey>>,
    pub(super) turns: RefCell<HashMap<[u8; 4], u32>>,
    pub(super) handed_over: Cell<StackFlowKey>,
    pub(super) accepted: RefCell<HashMap<StackFlowKey, Accepted>>,
    pub(super) clock: Cell<u64>,
    /// The policy's tries, without prefixes: every field by its whole value.
    pub(super) policy: HashMap<PolicyField, RuleSet>,
    pub(super) policy_rules: Vec<PolicyRule>,
    pub(super) policy_flows: RefCell<HashMap<StackFlowKey, PolicyFlow>>,
    pub(super) denied: RefCell<Vec<u64>>,
    pub(super) claims: RefCell<Vec<(u32, [u8; 4])>>,
    /// An interface that has just appeared.
    pub(super) newcomer: Option<u32>,
    /// The container may use any source address.
    pub(super) exempt: bool,
    /// A container's address, and another bridge that it is behind with the first container's MAC.
    pub(super) second_home: Option<([u8; 4], u32)>,
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            peer: PEER,
            stack_flows: RefCell::default(),
            seats: RefCell::default(),
            turns: RefCell::default(),
            handed_over: Cell::default(),
            accepted: RefCell::default(),
            clock: Cell::new(1_000_000_000),
            policy: HashMap::new(),
            policy_rules: Vec::new(),
            policy_flows: RefCell::default(),
            denied: RefCell::default(),
            claims: RefCell::default(),
            newcomer: None,
            exempt: false,
            second_home: None,
            host: HostConfig {
                flags: HostConfig::FAST_PATH | HostConfig::LEASES_LISTED,
                vni: 1,
                uplink_ifindex: 2,
                tunnel_ifindex: 4,
                network: [10, 1, 0, 0],
                network_length: 16,
                subnet: [10, 1, 15, 0],
                subnet_length: 24,
                uplink_address: [192, 168, 33, 10],
                port: 8472,
                mtu: 1450,
                vtep_mac: [2, 0, 0, 0, 0, 10],
                peer_lengths: [24, 0, 0, 0],
                ..HostConfig::default()
            },
        }
    }
}

impl World {
    pub(super) fn remember(&mut self, flows: Vec<(StackFlowKey, Direction)>) {
        self.stack_flows = RefCell::default();
        for (flow, direction) in flows {
            stack_flow::remember(&flow, direction, &self.host, self);
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

    fn bridge(&self, key: &BridgeKey) -> Option<Bridge> {
        match key.ifindex {
            3 | 7 | 8 => Some(BRIDGE),
            5 | 9 => Some(SECOND_BRIDGE),
            _ => None,
        }
    }

    fn endpoint(&self, key: &EndpointKey) -> Option<&Endpoint> {
        match key.address {
            LOCAL => Some(&ENDPOINT),
            NEIGHBOUR => Some(&NEIGHBOUR_ENDPOINT),
            SECOND => Some(&SECOND_ENDPOINT),
            HOST => Some(&Endpoint::HOST),
            _ => None,
        }
    }

    fn port(&self, key: &PortKey) -> Option<Port> {
        let flags = if self.exempt { Port::SOURCE_ANY } else { 0 };
        let is = |endpoint: Endpoint| *key == PortKey::new(endpoint.bridge, endpoint.mac);
        let all = [(ENDPOINT, flags), (NEIGHBOUR_ENDPOINT, 0), (SECOND_ENDPOINT, 0)];
        let found = all.into_iter().find(|(endpoint, _)| is(*endpoint));
        found.map(|(endpoint, flags)| Port { ifindex: endpoint.ifindex, flags })
    }

    fn home(&self, key: &HomeKey) -> Option<Home> {
        if self.newcomer.is_some_and(|ifindex| *key == HomeKey::newcomer(ifindex)) {
            return Some(Home::default());
        }
        let is_home = Some((key.address, key.ifindex)) == self.second_home;
        is_home.then_some(Home { mac: ENDPOINT.mac, reserved: [0; 2] })
    }

    fn note_claim(&self, port: u32, address: [u8; 4]) {
        self.claims.borrow_mut().push((port, address));
    }

    fn stack_flows(&self) -> u32 {
        self.stack_flows.borrow().values().fold(0, |all, flow| all | flow.directions)
    }

    fn stack_flow(&self, key: &StackFlowKey) -> StackFlow {
        self.stack_flows.borrow().get(key).copied().unwrap_or_default()
    }

    fn remember_stack_flow(&self, key: &StackFlowKey, flow: StackFlow, _: Direction) {
        self.stack_flows.borrow_mut().insert(*key, flow);
    }

    fn forget_stack_flow(&self, key: &StackFlowKey) {
        self.stack_flows.borrow_mut().remove(key);
    }

    fn next_turn(&self, local: [u8; 4]) -> u32 {
        let mut turns = self.turns.borrow_mut();
        let next = turns.entry(local).or_default();
        *next += 1;
        *next - 1
    }

    fn seated(&self, key: &SeatKey) -> Option<StackFlowKey> {
        self.seats.borrow().get(key).copied()
    }

    fn unseat(&self, key: &SeatKey) -> bool {
        self.seats.borrow_mut().remove(key).is_some()
    }

    fn seat(&self, key: &SeatKey, flow: &StackFlowKey) -> bool {
        self.seats.borrow_mut().insert(*key, *flow).is_none()
    }

    fn handed_over(&self) -> StackFlowKey {
        self.handed_over.get()
    }

    fn accepted(&self, key: &StackFlowKey) -> Accepted {
        self.accepted.borrow().get(key).copied().unwrap_or_default()
    }

    fn accept(&self, key: &StackFlowKey, note: impl FnOnce(&mut Accepted)) {
        note(self.accepted.borrow_mut().entry(*key).or_default());
    }

    fn policy_rules(&self, field: &PolicyField) -> Option<&RuleSet> {
        self.policy.get(field)
    }

    fn policy_rule(&self, index: u32) -> PolicyRule {
        self.policy_rules[index as usize % POLICY_RULES]
    }

    fn count_denied(&self, rule: &PolicyRule, _: u32) {
        self.denied.borrow_mut().push(rule.name);
    }

    fn policy_flow(&self, key: &StackFlowKey) -> PolicyFlow {
        self.policy_flows.borrow().get(key).copied().unwrap_or_default()
    }

    fn note_policy_flow(&self, key: &StackFlowKey, flow: PolicyFlow) {
        self.policy_flows.borrow_mut().insert(*key, flow);
    }

    fn now(&self) -> u64 {
        self.clock.get()
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
    Bytes { bytes, segment_size: 0, vlan: None, for_another_host: false, mark: 0 }
}

/// A UDP packet as a container sends it to its gateway.
pub(super) fn udp_packet(src: [u8; 4], dst: [u8; 4], payload: usize) -> Bytes {
    frame(GATEWAY_MAC, src, dst, payload)
}

/// The same packet the other way, from port to port.
pub(super) fn back(mut packet: Bytes) -> Bytes {
    let (source, destination) = packet.bytes[26..38].split_at_mut(4);
    source.swap_with_slice(&mut destination[..4]);
    let (source, destination) = packet.bytes[34..38].split_at_mut(2);
    source.swap_with_slice(destination);
    packet
}

/// A TCP segment without data, with these flags (RFC 9293, section 3.1).
pub(super) fn tcp_packet(src: [u8; 4], dst: [u8; 4], flags: u8) -> Bytes {
    let mut packet = udp_packet(src, dst, 12);
    packet.bytes[23] = 6;
    packet.bytes[46..48].copy_from_slice(&[0x50, flags]);
    packet
}

/// The inner packet of what the peer sends.
pub(super) fn inner_packet(host: &HostConfig, src: [u8; 4], dst: [u8; 4]) -> Bytes {
    frame(MacAddr(host.vtep_mac), src, dst, 10)
}

/// What the peer sends, on the wire.
pub(super) fn vxlan_packet(host: &HostConfig, src: [u8; 4], dst: [u8; 4]) -> Bytes {
    vxlan_of(host, inner_packet(host, src, dst))
}

/// The peer's VXLAN packet around a frame, which it addresses to us.
pub(super) fn vxlan_of(host: &HostConfig, mut inner: Bytes) -> Bytes {
    inner.bytes[..6].copy_from_slice(&host.vtep_mac);
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
    Bytes { bytes, segment_size: 0, vlan: None, for_another_host: false, mark: 0 }
}

/// The packet with tags in front of what its Ethernet header announces.
pub(super) fn tagged(mut packet: Bytes, tags: &[[u8; 4]]) -> Bytes {
    // A tag's EtherType stands where the packet's was, which moves behind the tag's own.
    packet.bytes.splice(12..12, tags.concat());
    packet
}

/// An ARP request in which the container behind the first port claims an address and a MAC.
pub(super) fn arp(sender_mac: MacAddr, sender: [u8; 4]) -> Bytes {
    let ethernet = Ethernet {
        destination: MacAddr([0xff; 6]),
        source: MacAddr(ENDPOINT.mac),
        ethertype: ETHERTYPE_ARP,
    };
    let arp = Arp { kind: Arp::ETHERNET_IPV4, operation: [0, 1], sender_mac, sender };
    let mut bytes = [bytes_of(&ethernet), bytes_of(&arp)].concat();
    bytes.extend([0, 0, 0, 0, 0, 0, 10, 1, 15, 1]);
    Bytes { bytes, segment_size: 0, vlan: None, for_another_host: false, mark: 0 }
}
