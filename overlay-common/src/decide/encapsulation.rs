use network_types::ip::Ipv4Hdr;

use super::segment_length;
use crate::{
    Reason,
    encap::OVERHEAD,
    packet::{ETHERNET_LENGTH, IPV4_LENGTH, Packet},
    tables::{HostConfig, Peer},
};

/// A packet that can be encapsulated: to whom, and what of it the outer header depends on.
#[derive(Clone, Copy, Debug)]
pub struct Encapsulation {
    /// Where it goes.
    pub peer: Peer,
    /// Its IPv4 header, as it came.
    pub ipv4: Ipv4Hdr,
    /// Its length from the IPv4 header on, in bytes.
    pub inner_length: u16,
    /// Its ports, or whatever its protocol has in their place; zero where the packet is too short.
    pub ports: [u8; 4],
}

impl Encapsulation {
    #[inline(always)]
    pub(super) fn new(packet: &impl Packet, peer: Peer, ipv4: Ipv4Hdr, inner_length: u16) -> Self {
        let ports = packet.load(ETHERNET_LENGTH + IPV4_LENGTH).unwrap_or_default();
        Self { peer, ipv4, inner_length, ports }
    }
}

/// The packet's length from its IPv4 header on, if every segment of it fits the overlay's MTU and the
/// whole, encapsulated, still has a length that an IPv4 header can state.
#[inline(always)]
pub(super) fn fitting_length(
    packet: &impl Packet,
    host: &HostConfig,
    ipv4: &Ipv4Hdr,
) -> Result<u16, Reason> {
    let length = packet.length() - ETHERNET_LENGTH as u32;
    let segment = segment_length(packet, ETHERNET_LENGTH, ipv4)?;
    if segment > u32::from(host.mtu) || length + OVERHEAD as u32 > u32::from(u16::MAX) {
        return Err(Reason::TooBig);
    }
    Ok(length as u16)
}
