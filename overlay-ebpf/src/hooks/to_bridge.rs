use aya_ebpf::{macros::classifier, programs::TcContext};
use overlay_common::{
    Hook, Reason,
    decide::{self, Origin},
    tables::Direction,
};

use crate::{
    maps::{Maps, host},
    packet::{Mark, Skb, TCP_HEADERS, ingress_ifindex},
    steps::reaches_by,
    verdict::conclude,
};

/// TC egress of a containers' bridge: packets for containers.
#[classifier]
pub(crate) fn to_bridge(ctx: TcContext) -> i32 {
    conclude(Hook::ToBridge, &ctx, |ctx| {
        let host = host().ok_or(Reason::NotConfigured)?;
        let origin = Origin {
            ifindex: ingress_ifindex(ctx),
            delivered: Mark::Delivered.is_on(ctx),
            admitted: Mark::Admitted.is_on(ctx),
        };
        // What goes into a container says nothing of where it came from.
        Mark::None.set(ctx);
        let reaches = |ifindex, address| reaches_by(ctx, ifindex, address);
        decide::to_bridge(&Skb::new(ctx, TCP_HEADERS), origin, host, &Maps, reaches, |flow| {
            decide::remember(flow, Direction::Arrived, host, &Maps);
        })
    })
}
