use aya_ebpf::{macros::classifier, programs::TcContext};
use overlay_common::{Hook, Reason, decide, tables::Direction};

use crate::{
    maps::{host, remember_stack_flow},
    packet::Skb,
    steps::take_delivery_mark,
    verdict::conclude,
};

/// Ethernet, IPv4 and the ports.
const HEADERS: u32 = 14 + 20 + 8;

/// TC egress of the containers' bridge: packets for containers.
#[classifier]
pub(crate) fn to_bridge(ctx: TcContext) -> i32 {
    conclude(Hook::ToBridge, &ctx, |ctx| {
        let host = host().ok_or(Reason::NotConfigured)?;
        let ours = take_delivery_mark(ctx);
        decide::to_bridge(&Skb::new(ctx, HEADERS), ours, host, |flow| {
            remember_stack_flow(flow, Direction::Arrived);
        })
    })
}
