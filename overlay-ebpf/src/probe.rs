//! Attached nowhere: the agent runs each of these once, at start, to see what this kernel's helper takes. Named
//! after the feature; the result is 0, or what the kernel has against it.

use aya_ebpf::{
    bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, macros::classifier, programs::TcContext,
};
use overlay_common::encap::OVERHEAD;

use crate::steps::{GROW, SHRINK};

/// `BPF_F_ADJ_ROOM_DECAP_L4_UDP`, newer than the bindings.
const DECAP_L4_UDP: u64 = 1 << 10;

#[classifier]
pub(crate) fn probe_encap_l2_eth(ctx: TcContext) -> i32 {
    error_number(ctx.adjust_room(OVERHEAD as i32, BPF_ADJ_ROOM_MAC, GROW))
}

#[classifier]
pub(crate) fn probe_decap_l4_udp(ctx: TcContext) -> i32 {
    error_number(ctx.adjust_room(-(OVERHEAD as i32), BPF_ADJ_ROOM_MAC, SHRINK | DECAP_L4_UDP))
}

#[inline(always)]
fn error_number(result: Result<(), i64>) -> i32 {
    result.map_or_else(|error| -(error as i32), |()| 0)
}
