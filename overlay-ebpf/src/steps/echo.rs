use aya_ebpf::{bindings::TC_ACT_REDIRECT, helpers::bpf_redirect, programs::TcContext};
use network_types::{ip::Ipv4Hdr, udp::UdpHdr};
use overlay_common::{
    Reason,
    packet::{ETHERNET_LENGTH, Ethernet, IPV4_LENGTH, Packet as _},
};

use crate::packet::{Mark, Skb, ifindex};

/// Sends a datagram back to where it came from. All checksums stay right: only what they add up changes places.
#[inline(always)]
pub(crate) fn echo(ctx: &TcContext) -> Result<Reason, Reason> {
    const UDP: usize = ETHERNET_LENGTH + IPV4_LENGTH;
    let skb = Skb { ctx };
    let mut ethernet: Ethernet = skb.load(0).ok_or(Reason::Unreadable)?;
    let mut ipv4: Ipv4Hdr = skb.load(ETHERNET_LENGTH).ok_or(Reason::Unreadable)?;
    let mut udp: UdpHdr = skb.load(UDP).ok_or(Reason::Unreadable)?;
    (ethernet.destination, ethernet.source) = (ethernet.source, ethernet.destination);
    (ipv4.dst_addr, ipv4.src_addr) = (ipv4.src_addr, ipv4.dst_addr);
    (udp.dst, udp.src) = (udp.src, udp.dst);
    skb.store(0, ethernet).ok_or(Reason::HelperFailed)?;
    skb.store(ETHERNET_LENGTH, ipv4).ok_or(Reason::HelperFailed)?;
    skb.store(UDP, udp).ok_or(Reason::HelperFailed)?;
    Mark::Sent.set(ctx);
    // SAFETY: the helper only reads its arguments.
    match unsafe { bpf_redirect(ifindex(ctx), 0) } as i32 {
        TC_ACT_REDIRECT => Ok(Reason::Echoed),
        _ => Err(Reason::HelperFailed),
    }
}
