use aya_ebpf::{macros::classifier, programs::TcContext};
use overlay_common::{Hook, Reason, decide};

use crate::{
    maps::{Maps, host},
    packet::{Mark, Skb, TCP_HEADERS, ifindex},
    steps::{encap, route},
    verdict::conclude,
};

/// TC ingress of a container's host-side veth: packets that it sends.
#[classifier]
pub(crate) fn from_container(ctx: TcContext) -> i32 {
    conclude(Hook::FromContainer, &ctx, |ctx| {
        let host = host().ok_or(Reason::NotConfigured)?;
        Mark::None.set(ctx);
        let plan = decide::from_container(&Skb::new(ctx, TCP_HEADERS), ifindex(ctx), host, &Maps)?;
        if plan.peer.is_direct() { route(ctx, host, &plan) } else { encap(ctx, host, &plan) }
    })
}
