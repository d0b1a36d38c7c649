//! ICMP echoes (RFC 792), for which no program has to be installed.

use std::{io, net::Ipv4Addr, num::NonZeroU32};

use socket2::{Domain, Protocol, Socket, Type};

/// The least that an echo takes, IP header and all.
pub(crate) const SMALLEST: u16 = 64;

const IP_HEADER: usize = 20;
const ICMP: u8 = 1;
const TTL: u8 = 64;
const DO_NOT_FRAGMENT: u16 = 0x4000;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;

/// A socket that sends packets with the IP header that they have, «do not fragment» in it: what the kernel has learned
/// about the way does not count then. It receives all ICMP of this host, or of the VRF whose number it gets.
pub(crate) fn socket(vrf: Option<NonZeroU32>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.bind_device_by_index_v4(vrf)?;
    socket.set_header_included_v4(true)?;
    Ok(socket)
}

/// An IPv4 packet of `size` bytes; the kernel fills in the header's checksum, and the source if it is zero.
pub(crate) fn echo_request(
    peer: Ipv4Addr,
    from: Ipv4Addr,
    size: u16,
    identifier: u16,
    sequence: u16,
) -> Vec<u8> {
    let mut packet = vec![0; usize::from(size)];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&size.to_be_bytes());
    packet[6..8].copy_from_slice(&DO_NOT_FRAGMENT.to_be_bytes());
    packet[8] = TTL;
    packet[9] = ICMP;
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&peer.octets());
    let echo = &mut packet[IP_HEADER..];
    echo[0] = ECHO_REQUEST;
    echo[4..6].copy_from_slice(&identifier.to_be_bytes());
    echo[6..8].copy_from_slice(&sequence.to_be_bytes());
    // RFC 1071. All other bytes are zero, and so add nothing.
    let sum = (u32::from(ECHO_REQUEST) << 8) + u32::from(identifier) + u32::from(sequence);
    let folded = (sum & 0xffff) + (sum >> 16);
    let check = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or_default();
    echo[2..4].copy_from_slice(&check.to_be_bytes());
    packet
}

/// Whether a packet, IP header and all, answers that request.
pub(crate) fn is_echo_reply(packet: &[u8], identifier: u16, sequence: u16) -> bool {
    let Some(&first) = packet.first() else { return false };
    let header = usize::from(first & 0x0f) * 4;
    packet.get(header..header + 8).is_some_and(|echo| {
        echo[0] == ECHO_REPLY
            && echo[4..6] == identifier.to_be_bytes()
            && echo[6..8] == sequence.to_be_bytes()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_packet_that_others_understand() {
        let [from, peer] = [[192, 0, 2, 1], [192, 0, 2, 2]].map(Ipv4Addr::from);
        for (identifier, sequence) in [(0, 0), (0xffff, 0xffff), (0x1234, 2)] {
            let packet = echo_request(peer, from, 1500, identifier, sequence);
            let parsed = etherparse::SlicedPacket::from_ip(&packet).unwrap();
            let Some(etherparse::TransportSlice::Icmpv4(echo)) = parsed.transport else {
                panic!("no ICMP");
            };
            assert!(matches!(echo.icmp_type(), etherparse::Icmpv4Type::EchoRequest(_)));
            let check = echo.header().icmp_type.calc_checksum(echo.payload());
            assert_eq!(echo.checksum(), check);
        }
    }

    #[test]
    fn only_the_answer_to_our_request_is_one() {
        let mut packet = echo_request(Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, 100, 7, 1);
        assert!(!is_echo_reply(&packet, 7, 1));
        packet[IP_HEADER] = ECHO_REPLY;
        assert!(is_echo_reply(&packet, 7, 1));
        assert!(
            !is_echo_reply(&packet, 7, 2)
                && !is_echo_reply(&packet, 8, 1)
                && !is_echo_reply(&packet[..24], 7, 1)
        );
        assert!(!is_echo_reply(&[], 7, 1));
    }
}
