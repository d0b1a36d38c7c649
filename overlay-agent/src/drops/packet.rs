use std::{
    fmt::{self, Write as _},
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

    /// The packet's first bytes.
    pub(super) fn packet(&self) -> Vec<u8> {
        let digits: Vec<_> = self.bytes.chars().filter_map(|digit| digit.to_digit(16)).collect();
        let bytes = digits.chunks_exact(2).map(|pair| pair[0] * 16 + pair[1]);
        bytes.filter_map(|byte| u8::try_from(byte).ok()).collect()
    }
}

/// In a line.
impl fmt::Display for ToldPacket {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clock = self.time.split_once('T').map_or(&*self.time, |(_, clock)| clock);
        let interface = self.interface.as_deref().unwrap_or("(gone)");
        write!(out, "{clock} {} {} {} on {interface}", self.class, self.reason, self.hook)?;
        if let Some(container) = &self.container {
            let network = self.docker_network.as_deref().unwrap_or("?");
            write!(out, " (container {container}, network {network})")?;
        }
        write!(out, ": {}, {} bytes", self.ends, self.length)?;
        if let Some(mac) = &self.source_mac {
            write!(out, ", from {mac}")?;
        }
        if let Some(vlan) = self.vlan {
            write!(out, ", VLAN {vlan}")?;
        }
        if let Some(outer) = &self.outer {
            write!(out, ", in VXLAN {} {outer}", self.vni.unwrap_or_default())?;
        }
        if let Some(peer) = self.peer {
            write!(out, ", peer {peer}")?;
        }
        write!(out, ": {}", self.why)
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
    bytes.iter().fold(String::new(), |mut text, byte| {
        // A string takes everything.
        write!(text, "{byte:02x}").ok();
        text
    })
}

fn mac(bytes: [u8; 6]) -> String {
    overlay_common::MacAddr(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use overlay_common::{Hook, Reason, tables::DROP_BYTES};

    use super::*;

    const PORT: u16 = 8472;
    const A: [u8; 4] = [10, 1, 15, 2];
    const B: [u8; 4] = [10, 1, 20, 2];

    fn record(bytes: &[u8]) -> DropRecord {
        let mut record = DropRecord {
            length: bytes.len().try_into().unwrap(),
            hook: Hook::FromUplink as u8,
            reason: Reason::WrongVni as u8,
            ..DropRecord::default()
        };
        let captured = bytes.len().min(DROP_BYTES);
        record.captured = captured.try_into().unwrap();
        record.bytes.as_flattened_mut()[..captured].copy_from_slice(&bytes[..captured]);
        record
    }

    fn told(bytes: &[u8]) -> ToldPacket {
        ToldPacket::read(&record(bytes), PORT, true).unwrap()
    }

    fn udp(from: [u8; 4], to: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(from, to, 64)
            .udp(4711, port)
            .write(&mut bytes, payload)
            .unwrap();
        bytes
    }

    #[test]
    fn a_packet_in_vxlan_is_told_of_by_what_is_in_it_and_around() {
        let inner = udp(A, B, 53, &[0; 1000]);
        let vxlan = [&[8, 0, 0, 0, 0, 1, 2, 0], &*inner].concat();
        let told = told(&udp([192, 168, 0, 1], [192, 168, 0, 2], PORT, &vxlan));
        assert_eq!(told.vni, Some(0x102));
        assert_eq!(told.ends.to_string(), "udp 10.1.15.2:4711 > 10.1.20.2:53");
        assert_eq!(told.outer.unwrap().to_string(), "udp 192.168.0.1:4711 > 192.168.0.2:8472");
        assert_eq!(told.length, 1092);
        assert_eq!(told.bytes.len(), 2 * DROP_BYTES);
    }

    #[test]
    fn wherever_a_packet_ends_what_is_there_is_told() {
        let inner = udp(A, B, 53, &[1, 2, 3]);
        let vxlan = [&[8, 0, 0, 0, 0, 0, 1, 0], &*inner].concat();
        let whole = udp([192, 168, 0, 1], [192, 168, 0, 2], PORT, &vxlan);
        for length in 0..=whole.len() {
            let told = told(&whole[..length]);
            let has_inner = length >= 14 + 20 + 8 + 8 + 14;
            let has_ends = if has_inner { length >= 50 + 34 } else { length >= 34 };
            assert_eq!(told.ends.source.is_some(), has_ends, "{length}: {told:?}");
            assert_eq!(told.outer.is_some(), has_inner, "{length}: {told:?}");
            assert_eq!(told.packet(), &whole[..length]);
            assert!(!told.to_string().is_empty());
        }
    }

    #[test]
    fn tags_arp_and_packets_without_ethernet_headers_are_understood() {
        let frame = udp(A, B, 53, &[]);
        let tagged = [&frame[..12], &[0x81, 0, 0x20, 7], &frame[12..]].concat();
        assert_eq!(told(&tagged).vlan, Some(7));
        assert_eq!(told(&tagged).ends.destination_port, Some(53));
        let mut offloaded = record(&frame);
        offloaded.vlan_tci = 0x2007;
        assert_eq!(ToldPacket::read(&offloaded, PORT, true).unwrap().vlan, Some(7));

        let arp = [
            0, 1, 8, 0, 6, 4, 0, 1, 2, 2, 2, 2, 2, 2, 10, 1, 15, 2, 0, 0, 0, 0, 0, 0, 10, 1, 15, 1,
        ];
        let arp = [&frame[..12], &[8, 6], &arp].concat();
        assert_eq!(told(&arp).ends.to_string(), "arp 10.1.15.2 about 10.1.15.1");

        let mut bare = record(&frame[14..]);
        bare.protocol = [8, 0];
        let bare = ToldPacket::read(&bare, PORT, false).unwrap();
        assert_eq!(bare.ends.to_string(), "udp 10.1.15.2:4711 > 10.1.20.2:53");
        assert_eq!(bare.source_mac, None);

        let strange = [&frame[..12], &[0x88, 0xb5], &[0; 20]].concat();
        assert_eq!(told(&strange).ends.to_string(), "EtherType 0x88b5");
    }
}
