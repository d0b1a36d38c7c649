use aya_ebpf::{macros::classifier, programs::TcContext};
use overlay_common::{
    Class, Hook, Reason, decide, encap::INNER_IPV4_OFFSET, packet::ETHERNET_LENGTH,
    tables::Direction,
};

use crate::{
    maps::{Maps, host, note_handed_over},
    packet::{Mark, Skb, TCP_HEADERS, ifindex},
    steps::{encap, one_hop_on, send},
    verdict::conclude,
};

/// TC ingress of a container's host-side veth: packets that it sends.
#[classifier]
pub(crate) fn from_container(ctx: TcContext) -> i32 {
    conclude(Hook::FromContainer, &ctx, |ctx| {
        let host = host().ok_or(Reason::NotConfigured)?;
        Mark::None.set(ctx);
        let skb = Skb::new(ctx, TCP_HEADERS);
        let plan =
            decide::from_container(&skb, ifindex(ctx), host, &Maps).inspect_err(|reason| {
                if reason.class() == Class::Declined {
                    decide::hand_over(&skb, Direction::Left, note_handed_over);
                }
            })?;
        let offset = if plan.peer.is_direct() {
            ETHERNET_LENGTH
        } else {
            encap(ctx, host, &plan)?;
            INNER_IPV4_OFFSET
        };
        one_hop_on(ctx, offset, &plan.ipv4)?;
        send(ctx, host, &plan.peer)
    })
}
