use aya_ebpf::{
    bindings::{TC_ACT_REDIRECT, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1},
    helpers::bpf_redirect_neigh,
    programs::TcContext,
};
use overlay_common::{
    Reason,
    decide::Encapsulation,
    packet::{ETHERNET_LENGTH, IPV4_LENGTH},
    tables::{HostConfig, Peer},
};

use crate::packet::{Mark, Skb};

const AF_INET: u32 = 2;

/// Sends a container's packet as it is to a peer on the same link, one hop further.
#[inline(always)]
pub(crate) fn route(
    ctx: &TcContext,
    host: &HostConfig,
    plan: &Encapsulation,
) -> Result<Reason, Reason> {
    Skb::new(ctx, (ETHERNET_LENGTH + IPV4_LENGTH) as u32)
        .store(ETHERNET_LENGTH, plan.ipv4)
        .ok_or(Reason::HelperFailed)?;
    Mark::Sent.set(ctx);
    send(host, &plan.peer)?;
    Ok(Reason::Routed)
}

/// Sends through the uplink, to the next hop that the agent has looked up, or to whichever the kernel's
/// routing finds for this packet. The neighbour's MAC is the kernel's business either way.
#[inline(always)]
pub(crate) fn send(host: &HostConfig, peer: &Peer) -> Result<(), Reason> {
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
    if action as i32 == TC_ACT_REDIRECT { Ok(()) } else { Err(Reason::HelperFailed) }
}
