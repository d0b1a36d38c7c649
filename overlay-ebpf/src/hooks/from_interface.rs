use aya_ebpf::{macros::classifier, programs::TcContext};
use overlay_common::{Hook, Reason, decide};

use crate::{
    maps::{Maps, host},
    packet::{Mark, Skb, ifindex},
    steps::{is_on_link, reaches},
    verdict::conclude,
};

/// TC ingress of every interface of the host that has no other program: nothing of the overlay comes that way.
#[classifier]
pub(crate) fn from_interface(ctx: TcContext) -> i32 {
    conclude(Hook::FromInterface, &ctx, |ctx| {
        let host = host().ok_or(Reason::NotConfigured)?;
        Mark::None.set(ctx);
        let reaches = |address| reaches(ctx, address);
        let is_on_link = |address| is_on_link(ctx, address);
        decide::from_interface(&Skb { ctx }, ifindex(ctx), host, &Maps, reaches, is_on_link)
            .inspect_err(|reason| admit(ctx, *reason))
    })
}

/// Has [`to_bridge`](super::to_bridge) know what netfilter may lead to a container.
#[inline(always)]
pub(super) fn admit(ctx: &TcContext, reason: Reason) {
    if reason == Reason::Unmasqueraded {
        Mark::Admitted.set(ctx);
    }
}
