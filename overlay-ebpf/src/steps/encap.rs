use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, TC_ACT_REDIRECT,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1,
    },
    helpers::{bpf_get_prandom_u32, bpf_redirect_neigh},
    programs::TcContext,
};
use overlay_common::{
    Reason, checksum,
    decide::Encapsulation,
    encap::{self, INNER_IPV4_OFFSET, OVERHEAD, OuterHeaders, source_port},
    packet::ETHERNET_LENGTH,
    tables::HostConfig,
};

use crate::packet::Skb;

/// The inner L2 length is that of the Ethernet header alone. Adding the VXLAN header to it passes the
/// verifier and small packets, and breaks the checksum of every segment of a large one.
pub(crate) const GROW: u64 = (BPF_F_ADJ_ROOM_FIXED_GSO
    | BPF_F_ADJ_ROOM_NO_CSUM_RESET
    | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
    | BPF_F_ADJ_ROOM_ENCAP_L2_ETH) as u64
    | ((ETHERNET_LENGTH as u64) << 56);

/// Puts the outer headers in front of the packet and sends it to the peer through the uplink, to
/// whatever next hop the kernel's routing and neighbour tables give.
#[inline(always)]
pub(crate) fn encap(
    ctx: &TcContext,
    host: &HostConfig,
    plan: &Encapsulation,
) -> Result<Reason, Reason> {
    let flow_hash = flow_hash(ctx, plan);
    ctx.adjust_room(OVERHEAD as i32, BPF_ADJ_ROOM_MAC, GROW).or(Err(Reason::HelperDeclined))?;

    // SAFETY: the helper takes no arguments.
    let identification = unsafe { bpf_get_prandom_u32() } as u16;
    let outer = OuterHeaders::new(
        host,
        &plan.peer,
        plan.ipv4.tos,
        plan.inner_length,
        source_port(flow_hash),
        identification,
    );
    let skb = Skb::new(ctx, (INNER_IPV4_OFFSET + size_of_val(&plan.ipv4)) as u32);
    skb.store(ETHERNET_LENGTH, outer).ok_or(Reason::HelperFailed)?;

    let mut inner = plan.ipv4;
    inner.ttl -= 1;
    inner.check =
        checksum::update(inner.check, [plan.ipv4.ttl, plan.ipv4.proto], [inner.ttl, inner.proto]);
    skb.store(INNER_IPV4_OFFSET, inner).ok_or(Reason::HelperFailed)?;

    match send(host.uplink_ifindex, plan.peer.next_hop) {
        TC_ACT_REDIRECT => Ok(Reason::Encapsulated),
        _ => Err(Reason::HelperFailed),
    }
}

/// The kernel's hash of the packet's flow where it has one, as for TCP, else one of ours: having the kernel
/// dissect the packet for it costs more than all of our own parsing.
#[inline(always)]
fn flow_hash(ctx: &TcContext, plan: &Encapsulation) -> u32 {
    // SAFETY: the context is valid for as long as the program runs.
    match unsafe { (*ctx.skb.skb).hash } {
        0 => encap::flow_hash(&plan.ipv4, plan.ports),
        hash => hash,
    }
}

/// Sends through an interface, to a next hop that the agent has looked up, or to whichever the kernel's
/// routing finds for this packet. The neighbour's MAC is the kernel's business either way.
#[inline(always)]
fn send(ifindex: u32, next_hop: [u8; 4]) -> i32 {
    const AF_INET: u32 = 2;
    if next_hop == [0; 4] {
        // SAFETY: no next hop is given, so no memory is read.
        return unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) } as i32;
    }
    let mut params = bpf_redir_neigh {
        nh_family: AF_INET,
        __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 {
            ipv6_nh: [u32::from_ne_bytes(next_hop), 0, 0, 0],
        },
    };
    let size = size_of::<bpf_redir_neigh>() as i32;
    // SAFETY: the kernel reads no more than the size it is told.
    unsafe { bpf_redirect_neigh(ifindex, &raw mut params, size, 0) as i32 }
}
