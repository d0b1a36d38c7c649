use aya_ebpf::{
    bindings::{TC_ACT_REDIRECT, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1},
    helpers::bpf_redirect_neigh,
    programs::TcContext,
};
use network_types::ip::Ipv4Hdr;
use overlay_common::{
    Reason, checksum,
    packet::IPV4_LENGTH,
    tables::{HostConfig, Peer},
};

use crate::packet::{Mark, Skb};

const AF_INET: u32 = 2;

/// Counts the hop that a packet makes here, as the stack does of those that it forwards. `offset` is that of its IPv4
/// header.
#[inline(always)]
pub(crate) fn one_hop_on(ctx: &TcContext, offset: usize, ipv4: &Ipv4Hdr) -> Result<(), Reason> {
    Skb::new(ctx, (offset + IPV4_LENGTH) as u32)
        .store(offset, checksum::one_hop_on(ipv4))
        .ok_or(Reason::HelperFailed)
}

/// Sends to a peer through the uplink, to the next hop that the agent has looked up, or to whichever the kernel's routing
/// finds for this packet. The neighbour's MAC is the kernel's business either way.
#[inline(always)]
pub(crate) fn send(ctx: &TcContext, host: &HostConfig, peer: &Peer) -> Result<Reason, Reason> {
    Mark::Sent.set(ctx);
    let action = if peer.next_hop == [0; 4] {
        // SAFETY: no next hop is given, so no memory is read.
        unsafe { bpf_redirect_neigh(host.uplink_ifindex, core::ptr::null_mut(), 0, 0) }
    } else {
        let mut params = bpf_redir_neigh {
            nh_family: AF_INET,
            __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 {
                ipv6_nh: [u32::from_ne_bytes(peer.next_hop), 0, 0, 0],
            },
        };
        let size = size_of::<bpf_redir_neigh>() as i32;
        // SAFETY: the kernel reads no more than the size it is told.
        unsafe { bpf_redirect_neigh(host.uplink_ifindex, &raw mut params, size, 0) }
    };
    match action as i32 {
        TC_ACT_REDIRECT if peer.is_direct() => Ok(Reason::Routed),
        TC_ACT_REDIRECT => Ok(Reason::Encapsulated),
        _ => Err(Reason::HelperFailed),
    }
}
