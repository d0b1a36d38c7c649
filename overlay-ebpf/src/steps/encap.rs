use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::bpf_get_prandom_u32,
    programs::TcContext,
};
use overlay_common::{
    Reason,
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

/// Puts the outer headers in front of the packet.
#[inline(always)]
pub(crate) fn encap(
    ctx: &TcContext,
    host: &HostConfig,
    plan: &Encapsulation,
) -> Result<(), Reason> {
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
    Skb::new(ctx, (INNER_IPV4_OFFSET + size_of_val(&plan.ipv4)) as u32)
        .store(ETHERNET_LENGTH, outer)
        .ok_or(Reason::HelperFailed)
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
