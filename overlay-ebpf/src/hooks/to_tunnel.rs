use aya_ebpf::{macros::classifier, programs::TcContext};
use overlay_common::{Hook, Reason, decide, tables::Direction};

use crate::{
    maps::{Maps, host},
    packet::{Skb, TCP_HEADERS, ingress_ifindex},
    steps::{encap, send, set_tunnel_key},
    verdict::conclude,
};

/// TC egress of the tunnel device: packets that the host's stack sends into the overlay.
#[classifier]
pub(crate) fn to_tunnel(ctx: TcContext) -> i32 {
    conclude(Hook::ToTunnel, &ctx, |ctx| {
        let host = host().ok_or(Reason::NotConfigured)?;
        let skb = Skb::new(ctx, TCP_HEADERS);
        let target = decide::to_tunnel(&skb, ingress_ifindex(ctx), host, &Maps)?;
        let as_it_came = decide::remember_leaving(&skb, host, &Maps, |flow| {
            decide::remember(flow, Direction::Left, host, &Maps);
        });
        if as_it_came && let Ok(plan) = decide::encapsulate(&skb, &target, host, &Maps) {
            match encap(ctx, host, &plan) {
                // Nothing has been changed, and there is no path after this one but the kernel's device.
                Err(Reason::HelperDeclined) => {}
                outcome => return outcome.and_then(|()| send(ctx, host, &plan.peer)),
            }
        }
        set_tunnel_key(ctx, host, &target)
    })
}
