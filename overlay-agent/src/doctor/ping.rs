//! ICMP echo with «do not fragment», for which no program has to be installed.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};

/// How long an answer may take.
const WITHIN: Duration = Duration::from_millis(400);
/// One lost packet says nothing.
const ATTEMPTS: u16 = 3;

const IP_HEADER: usize = 20;
const ICMP: u8 = 1;
const TTL: u8 = 64;
const DO_NOT_FRAGMENT: u16 = 0x4000;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;

/// Whether `peer` answers a packet of `size` bytes, IP header and all, that must not be cut.
pub(super) async fn answers(peer: Ipv4Addr, from: Ipv4Addr, size: u16) -> Result<bool> {
    tokio::task::spawn_blocking(move || {
        for attempt in 0..ATTEMPTS {
            if answers_once(peer, from, size, attempt)? {
                return Ok(true);
            }
        }
        Ok(false)
    })
    .await
    .context("a probe has ended")?
}

fn answers_once(peer: Ipv4Addr, from: Ipv4Addr, size: u16, sequence: u16) -> Result<bool> {
    let failed = || format!("cannot probe {peer}");
    let mut socket =
        Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).with_context(failed)?;
    // The header is ours, with «do not fragment» in it; what the kernel has learned about the way does not
    // count then.
    socket.set_header_included_v4(true).with_context(failed)?;
    socket.connect(&SocketAddr::new(peer.into(), 0).into()).with_context(failed)?;
    let identifier: u16 = rand::random();
    if socket.write(&request(peer, from, size, identifier, sequence)).is_err() {
        // Larger than our own interface takes, or no way there.
        return Ok(false);
    }
    let start = Instant::now();
    let mut answer = vec![0_u8; usize::from(u16::MAX)];
    while let Some(left) = WITHIN.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
        socket.set_read_timeout(Some(left)).with_context(failed)?;
        match socket.read(&mut answer) {
            Ok(length) if is_reply(&answer[..length], identifier, sequence) => return Ok(true),
            Ok(_) => {}
            // Time is over; or somebody on the way says that it is too large, or that nobody is there.
            Err(_) => break,
        }
    }
    Ok(false)
}

/// An IPv4 packet; the kernel fills in the header's checksum, and the source if it is zero.
fn request(peer: Ipv4Addr, from: Ipv4Addr, size: u16, identifier: u16, sequence: u16) -> Vec<u8> {
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
fn is_reply(packet: &[u8], identifier: u16, sequence: u16) -> bool {
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
            let packet = request(peer, from, 1500, identifier, sequence);
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
        let mut packet = request(Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, 100, 7, 1);
        assert!(!is_reply(&packet, 7, 1));
        packet[IP_HEADER] = ECHO_REPLY;
        assert!(is_reply(&packet, 7, 1));
        assert!(
            !is_reply(&packet, 7, 2) && !is_reply(&packet, 8, 1) && !is_reply(&packet[..24], 7, 1)
        );
        assert!(!is_reply(&[], 7, 1));
    }
}
