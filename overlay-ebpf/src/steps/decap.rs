use aya_ebpf::{
    bindings::{
        BPF_CSUM_LEVEL_DEC, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::bpf_csum_level,
    programs::TcContext,
};
use overlay_common::{
    Reason, checksum,
    decide::{Arrival, Recipient},
    encap::{INNER_ETHERNET_OFFSET, OVERHEAD},
    packet::{ETHERNET_LENGTH, Ethernet, IPV4_LENGTH, Packet as _},
};

use crate::packet::Skb;

pub(crate) const SHRINK: u64 = (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET) as u64;

/// Takes the outer headers off; the packet's first Ethernet header stays, with the MACs of the wire. Where netfilter is to
/// see the packet, it gets those of the inner one.
#[inline(always)]
pub(crate) fn decap(ctx: &TcContext, plan: &Arrival<'_>) -> Result<(), Reason> {
    let inner: Ethernet = Skb { ctx }.load(INNER_ETHERNET_OFFSET).ok_or(Reason::Unreadable)?;
    ctx.adjust_room(-(OVERHEAD as i32), BPF_ADJ_ROOM_MAC, SHRINK)
        .or(Err(Reason::HelperDeclined))?;
    if plan.recipient == Recipient::Netfilter {
        Skb::new(ctx, ETHERNET_LENGTH as u32).store(0, inner).ok_or(Reason::HelperFailed)?;
    }
    // The NIC's verdict on the outer UDP checksum went with the header. The helper refuses where there
    // is no verdict to take back.
    // SAFETY: the context is valid for as long as the program runs.
    let _no_verdict = unsafe { bpf_csum_level(ctx.skb.skb, u64::from(BPF_CSUM_LEVEL_DEC)) };

    if plan.tos != plan.ipv4.tos {
        let mut ipv4 = plan.ipv4;
        ipv4.tos = plan.tos;
        ipv4.check =
            checksum::update(ipv4.check, [ipv4.vihl, plan.ipv4.tos], [ipv4.vihl, plan.tos]);
        Skb::new(ctx, (ETHERNET_LENGTH + IPV4_LENGTH) as u32)
            .store(ETHERNET_LENGTH, ipv4)
            .ok_or(Reason::HelperFailed)?;
    }
    Ok(())
}
