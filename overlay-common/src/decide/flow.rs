//! The flow that a packet is of.

use network_types::ip::Ipv4Hdr;

use super::sender::is_first;
use crate::{
    packet::{PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, Packet},
    tables::{Direction, StackFlowKey},
};

const ICMP_ECHO_REPLY: u8 = 0;
const ICMP_ECHO: u8 = 8;

/// The ports of a packet. Every field is always written: of an `Option`, the compiler would copy bytes
/// that hold nothing, which the verifier refuses.
pub(super) struct Ports {
    /// Whether the packet shows them: fragments but the first, and ICMP errors, do not.
    shown: bool,
    source: [u8; 2],
    pub(super) destination: [u8; 2],
}

#[inline(always)]
fn ports(packet: &impl Packet, offset: usize, ipv4: &Ipv4Hdr) -> Ports {
    const HIDDEN: Ports = Ports { shown: false, source: [0; 2], destination: [0; 2] };
    if !is_first(ipv4) {
        return HIDDEN;
    }
    if !shows_ports(ipv4.proto) {
        return Ports { shown: true, ..HIDDEN };
    }
    let transport = offset + usize::from(ipv4.vihl & 0x0f) * 4;
    let Some(start) = packet.load::<TransportStart>(transport) else {
        return HIDDEN;
    };
    Ports::of(ipv4.proto, start)
}

/// Whether the ports of this protocol, or what it has in their place, are known here.
#[inline(always)]
pub(super) const fn shows_ports(protocol: u8) -> bool {
    matches!(protocol, PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_ICMP)
}

/// Enough for a UDP header and for an ICMP echo's.
pub(super) type TransportStart = [u8; 8];

impl Ports {
    /// Of TCP, UDP or ICMP, whose header starts so.
    #[inline(always)]
    pub(super) const fn of(protocol: u8, start: TransportStart) -> Self {
        let [a, b, c, d, id_high, id_low, _, _] = start;
        if protocol != PROTOCOL_ICMP {
            return Self { shown: true, source: [a, b], destination: [c, d] };
        }
        let identifier = [id_high, id_low];
        let shown = matches!(a, ICMP_ECHO | ICMP_ECHO_REPLY);
        Self { shown, source: identifier, destination: identifier }
    }

    /// The flow of a packet that has these, seen from the local end.
    #[inline(always)]
    pub(super) fn flow(&self, ipv4: &Ipv4Hdr, seen: Direction) -> StackFlowKey {
        let protocol = u32::from(ipv4.proto);
        match seen {
            Direction::Left => StackFlowKey {
                local: ipv4.src_addr,
                remote: ipv4.dst_addr,
                local_port: self.source,
                remote_port: self.destination,
                protocol,
            },
            Direction::Arrived => StackFlowKey {
                local: ipv4.dst_addr,
                remote: ipv4.src_addr,
                local_port: self.destination,
                remote_port: self.source,
                protocol,
            },
        }
    }
}

/// Whether a packet shows its flow, seen from the local end, and if so hands it to `use_flow`.
///
/// A closure instead of an `Option` to return, for the reason above.
#[inline(always)]
pub(super) fn with_flow(
    packet: &impl Packet,
    offset: usize,
    ipv4: &Ipv4Hdr,
    seen: Direction,
    use_flow: impl FnOnce(&StackFlowKey),
) -> bool {
    let ports = ports(packet, offset, ipv4);
    if ports.shown {
        use_flow(&ports.flow(ipv4, seen));
    }
    ports.shown
}
