use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use etherparse::{
    EtherType, IpNumber, LaxNetSlice, LaxSlicedPacket, LinkSlice, TransportSlice, UdpSlice,
};
use overlay_common::{Class, encap::VXLAN_LENGTH, tables::DropRecord};
use serde::{Deserialize, Serialize};

/// One packet that a program has dropped or declined, as far as its first bytes tell.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct ToldPacket {
    /// When: RFC 3339, UTC.
    pub time: String,
    /// The program.
    pub hook: String,
    /// Why, by the name that counters have.
    pub reason: String,
    /// `dropped` or `declined`.
    pub class: String,
    /// Why, in a sentence.
    pub why: String,
    /// Interface that the program runs on.
    pub interface: Option<String>,
    /// Interface that the packet came to the host by, where it is another one.
    pub came_by: Option<String>,
    /// Its length in bytes, Ethernet header included. Of an aggregate, that of all packets in it.
    pub length: u32,
    /// Its mark.
    pub mark: u32,
    /// Its VLAN.
    pub vlan: Option<u16>,
    /// The MAC that it is from.
    pub source_mac: Option<String>,
    /// The MAC that it is for.
    pub destination_mac: Option<String>,
    /// Between whom; of a packet in VXLAN, the inner one's.
    #[serde(flatten)]
    pub ends: Ends,
    /// Between which hosts, of a packet in VXLAN.
    pub outer: Option<Ends>,
    /// Its network identifier, of a packet in VXLAN.
    pub vni: Option<u32>,
    /// Name of the container that it is from or for, where Docker knows one.
    pub container: Option<String>,
    /// Docker network that this container is in.
    pub docker_network: Option<String>,
    /// Public address of the peer that it is from or for.
    pub peer: Option<Ipv4Addr>,
    /// Its first bytes, in hexadecimal.
    pub bytes: String,
    /// Whether these begin with an Ethernet header: not so by interfaces such as `WireGuard`'s.
    pub ethernet: bool,
}

/// Between whom a packet goes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Ends {
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `arp`, a number of an IP protocol or of an `EtherType`.
    pub protocol: Option<String>,
    /// From which address.
    pub source: Option<IpAddr>,
    /// For which address; in ARP, the one that is asked for.
    pub destination: Option<IpAddr>,
    /// From which port.
    pub source_port: Option<u16>,
    /// For which port.
    pub destination_port: Option<u16>,
}

impl ToldPacket {
    /// What a program has written; `None` where none has. The names of interfaces and the time are the caller's.
    pub(super) fn read(record: &DropRecord, vxlan_port: u16, ethernet: bool) -> Option<Self> {
        let (hook, reason) = record.verdict()?;
        let bytes = record.packet();
        let packet = if ethernet {
            LaxSlicedPacket::from_ethernet(bytes).ok()
        } else {
            let kind = EtherType(u16::from_be_bytes(record.protocol));
            Some(LaxSlicedPacket::from_ether_type(kind, bytes))
        };
        let mut told = Self {
            hook: hook.name().to_owned(),
            reason: reason.name().to_owned(),
            class: match reason.class() {
                Class::Dropped => "dropped",
                _ => "declined",
            }
            .to_owned(),
            why: reason.describe().to_owned(),
            length: record.length,
            mark: record.mark,
            bytes: hexadecimal(bytes),
            ethernet,
            ..Self::default()
        };
        let tag = (record.vlan_tci != 0).then_some(record.vlan_tci & 0x0fff);
        let Some(packet) = packet else {
            told.vlan = tag;
            return Some(told);
        };
        let tags = packet.vlan_ids();
        told.vlan = tag.or_else(|| tags.first().map(|tag| tag.value()));
        if let Some(LinkSlice::Ethernet2(ethernet)) = &packet.link {
            told.source_mac = Some(mac(ethernet.source()));
            told.destination_mac = Some(mac(ethernet.destination()));
        }
        told.ends = Ends::of(&packet, record.protocol);
        if let Some((vni, inner)) = inner(&packet, vxlan_port) {
            let ends = Ends::of(&inner, [0; 2]);
            told.outer = Some(std::mem::replace(&mut told.ends, ends));
            told.vni = Some(vni);
        }
        Some(told)
    }

    /// In a line.
    pub fn to_text(&self) -> String {
        let clock = self.time.split_once('T').map_or(&*self.time, |(_, clock)| clock);
        let interface = self.interface.as_deref().unwrap_or("(gone)");
        let mut line =
            format!("{clock} {} {} {} on {interface}", self.class, self.reason, self.hook);
        if let Some(container) = &self.container {
            let network = self.docker_network.as_deref().unwrap_or("?");
            line += &format!(" (container {container}, network {network})");
        }
        line += &format!(": {}, {} bytes", self.ends, self.length);
        if let Some(mac) = &self.source_mac {
            line += &format!(", from {mac}");
        }
        if let Some(vlan) = self.vlan {
            line += &format!(", VLAN {vlan}");
        }
        if let Some(outer) = &self.outer {
            let vni = self.vni.unwrap_or_default();
            line += &format!(", in VXLAN {vni} {outer}");
        }
        if let Some(peer) = self.peer {
            line += &format!(", peer {peer}");
        }
        line + ": " + &self.why
    }

    /// The packet's first bytes.
    pub(super) fn packet(&self) -> Vec<u8> {
        let digits: Vec<_> = self.bytes.chars().filter_map(|digit| digit.to_digit(16)).collect();
        let bytes = digits.chunks_exact(2).map(|pair| pair[0] * 16 + pair[1]);
        bytes.filter_map(|byte| u8::try_from(byte).ok()).collect()
    }
}

/// The packet that is in a VXLAN packet, and its network identifier (RFC 7348, section 5).
fn inner<'a>(packet: &LaxSlicedPacket<'a>, port: u16) -> Option<(u32, LaxSlicedPacket<'a>)> {
    let payload = match &packet.transport {
        Some(TransportSlice::Udp(udp)) if udp.destination_port() == port => udp.payload(),
        // Lengths that are more than what was kept.
        None => {
            let payload = packet.net.as_ref()?.ip_payload_ref()?;
            if payload.ip_number != IpNumber::UDP || payload.fragmented {
                return None;
            }
            let udp = UdpSlice::from_slice_lax(payload.payload).ok()?;
            (udp.destination_port() == port).then(|| udp.payload())?
        }
        Some(_) => return None,
    };
    let (header, frame) = payload.split_at_checked(VXLAN_LENGTH)?;
    let vni = u32::from_be_bytes([0, header[4], header[5], header[6]]);
    Some((vni, LaxSlicedPacket::from_ethernet(frame).ok()?))
}

impl Ends {
    fn of(packet: &LaxSlicedPacket<'_>, protocol: [u8; 2]) -> Self {
        let mut ends = Self::default();
        let (number, payload) = match &packet.net {
            Some(LaxNetSlice::Ipv4(ip)) => {
                ends.source = Some(ip.header().source_addr().into());
                ends.destination = Some(ip.header().destination_addr().into());
                (ip.payload_ip_number(), ip.payload())
            }
            Some(LaxNetSlice::Ipv6(ip)) => {
                ends.source = Some(ip.header().source_addr().into());
                ends.destination = Some(ip.header().destination_addr().into());
                (ip.payload().ip_number, ip.payload())
            }
            Some(LaxNetSlice::Arp(arp)) => {
                let address = |bytes: &[u8]| {
                    <[u8; 4]>::try_from(bytes)
                        .ok()
                        .map(|octets| IpAddr::from(Ipv4Addr::from(octets)))
                };
                ends.protocol = Some("arp".to_owned());
                ends.source = address(arp.sender_protocol_addr());
                ends.destination = address(arp.target_protocol_addr());
                return ends;
            }
            None => {
                let kind = packet
                    .ether_payload()
                    .map_or(protocol, |payload| payload.ether_type.0.to_be_bytes());
                let kind = u16::from_be_bytes(kind);
                ends.protocol = Some(format!("EtherType 0x{kind:04x}"));
                return ends;
            }
        };
        ends.protocol = Some(match number {
            IpNumber::TCP => "tcp".to_owned(),
            IpNumber::UDP => "udp".to_owned(),
            IpNumber::ICMP => "icmp".to_owned(),
            IpNumber::IPV6_ICMP => "icmpv6".to_owned(),
            other => format!("IP protocol {}", other.0),
        });
        // Both have their ports first, and of a header that is not whole they may be there.
        if matches!(number, IpNumber::TCP | IpNumber::UDP)
            && !payload.fragmented
            && let [a, b, c, d, ..] = payload.payload
        {
            ends.source_port = Some(u16::from_be_bytes([*a, *b]));
            ends.destination_port = Some(u16::from_be_bytes([*c, *d]));
        }
        ends
    }
}

impl fmt::Display for Ends {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = self.protocol.as_deref().unwrap_or("unreadable");
        write!(out, "{protocol}")?;
        let (Some(source), Some(destination)) = (self.source, self.destination) else {
            return Ok(());
        };
        let end = |address: IpAddr, port: Option<u16>| match (address, port) {
            (address, None) => address.to_string(),
            (IpAddr::V4(address), Some(port)) => format!("{address}:{port}"),
            (IpAddr::V6(address), Some(port)) => format!("[{address}]:{port}"),
        };
        let verb = if protocol == "arp" { "about" } else { ">" };
        write!(
            out,
            " {} {verb} {}",
            end(source, self.source_port),
            end(destination, self.destination_port)
        )
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn mac(bytes: [u8; 6]) -> String {
    overlay_common::MacAddr(bytes).to_string()
}
