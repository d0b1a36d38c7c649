use aya_ebpf::{macros::classifier, programs::TcContext};
use overlay_common::{Hook, Reason, decide, tables::Direction};

use crate::{
    maps::{Maps, host},
    packet::{Mark, Skb, ingress_ifindex},
    verdict::conclude,
};

/// TC egress of the uplink: packets that leave this host.
#[classifier]
pub(crate) fn to_wire(ctx: TcContext) -> i32 {
    conclude(Hook::ToWire, &ctx, |ctx| {
        let host = host().ok_or(Reason::NotConfigured)?;
        let forwarded = ingress_ifindex(ctx) != 0 && !Mark::Sent.is_on(ctx);
        decide::to_wire(&Skb { ctx }, forwarded, host, &Maps, |flow| {
            decide::remember(flow, Direction::Left, host, &Maps);
        })
    })
}
