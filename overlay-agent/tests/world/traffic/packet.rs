//! What is in probes, and how it is read off the packets that raw sockets see.

use std::net::Ipv4Addr;

use super::Tag;
use crate::shape::{PORT, Protocol};

const MARK: [u8; 2] = [0xa7, 0x7e];

/// So much payload tells which probe it is.
pub(crate) const TAGGED: usize = 8;

/// A payload of this size that asks for an answer of that size.
pub(crate) fn payload(tag: Tag, size: u16, answer: u16) -> Vec<u8> {
    let mut payload = MARK.to_vec();
    payload.extend(tag.probe.to_be_bytes());
    payload.extend([tag.attempt, 0]);
    payload.extend(answer.to_be_bytes());
    // Something that is not all zeros, which checksums would not notice.
    payload.extend((payload.len()..usize::from(size)).map(|at| at.to_be_bytes()[7]));
    payload.truncate(usize::from(size));
    payload
}

/// The size of the answer that a payload asks for; its own where it does not say.
pub(crate) fn wanted_answer(payload: &[u8]) -> usize {
    match payload {
        [0xa7, 0x7e, _, _, _, _, high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
        _ => payload.len(),
    }
}

fn tag_of(payload: &[u8]) -> Option<Tag> {
    let [0xa7, 0x7e, high, low, attempt, _, _, _] = *payload.first_chunk::<TAGGED>()? else {
        return None;
    };
    Some(Tag { probe: u16::from_be_bytes([high, low]), attempt })
}

pub(crate) const REQUEST: u8 = 8;
const REPLY: u8 = 0;

/// An echo request, its checksum included.
pub(crate) fn echo(tag: Tag, size: u16) -> Vec<u8> {
    let mut message = vec![REQUEST, 0, 0, 0];
    message.extend(tag.probe.to_be_bytes());
    message.extend(u16::from(tag.attempt).to_be_bytes());
    message.extend(payload(tag, size, size));
    let sum = checksum(&message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    message
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        rest => u32::from(rest[0]) << 8,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// An IPv4 packet as a raw socket shows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet<'a> {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) ttl: u8,
    pub(crate) tos: u8,
    pub(crate) df: bool,
    pub(crate) options: &'a [u8],
    pub(crate) protocol: u8,
    pub(crate) content: &'a [u8],
}

impl<'a> Packet<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header = bytes.first_chunk::<20>()?;
        let length = usize::from(header[0] & 15) * 4;
        let address =
            |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
        Some(Self {
            source: address(12),
            destination: address(16),
            ttl: header[8],
            tos: header[1],
            df: header[6] & 0x40 != 0,
            options: bytes.get(20..length)?,
            protocol: header[9],
            content: bytes.get(length..)?,
        })
    }
}

/// What a packet is, to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// A probe, whose source port is the sender's or not.
    Question(Tag, bool),
    Answer(Tag),
    /// An ICMP error about a probe: type, code, MTU.
    Complaint(Tag, u8, u8, u16),
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// None for what has nothing to do with probes.
pub(crate) fn meaning(packet: &Packet) -> Option<Meaning> {
    let content = packet.content;
    match packet.protocol {
        UDP => {
            let (ports, payload) = (*content.first_chunk::<4>()?, content.get(8..)?);
            between(ports, tag_of(payload))
        }
        TCP => {
            let ports = *content.first_chunk::<4>()?;
            // Of a connection, the first packet each way.
            (content.get(13)? & 0x02 != 0).then(|| between(ports, None)).flatten()
        }
        ICMP => of_icmp(content),
        _ => None,
    }
}

fn between(ports: [u8; 4], tag: Option<Tag>) -> Option<Meaning> {
    let [source, destination] =
        [[ports[0], ports[1]], [ports[2], ports[3]]].map(u16::from_be_bytes);
    if destination == PORT {
        let by_port = Tag::of_port(source);
        let tag = tag.or(by_port)?;
        return Some(Meaning::Question(tag, source == tag.port()));
    }
    Tag::of_port(destination).map(Meaning::Answer)
}

fn of_icmp(content: &[u8]) -> Option<Meaning> {
    let [kind, code, _, _, id_high, id_low, last_high, last_low] = *content.first_chunk::<8>()?;
    let [id, last] = [[id_high, id_low], [last_high, last_low]].map(u16::from_be_bytes);
    let rest = content.get(8..)?;
    if kind == REQUEST || kind == REPLY {
        let by_id = Tag { probe: id, attempt: u8::try_from(last).ok()? };
        let tag = tag_of(rest).unwrap_or(by_id);
        return Some(if kind == REQUEST {
            Meaning::Question(tag, tag == by_id)
        } else {
            Meaning::Answer(tag)
        });
    }
    // Of what the error is about, there is at least the header and eight bytes.
    let about = Packet::parse(rest)?;
    let words = about.content.first_chunk::<8>()?;
    let tag = match about.protocol {
        UDP | TCP => Tag::of_port(u16::from_be_bytes([words[0], words[1]]))?,
        ICMP if words[0] == REQUEST => Tag {
            probe: u16::from_be_bytes([words[4], words[5]]),
            attempt: u8::try_from(u16::from_be_bytes([words[6], words[7]])).ok()?,
        },
        _ => return None,
    };
    Some(Meaning::Complaint(tag, kind, code, last))
}

/// The number of a protocol.
pub(crate) const fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Icmp => ICMP,
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    }
}
