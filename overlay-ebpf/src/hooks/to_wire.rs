use aya_ebpf::{macros::classifier, programs::TcContext};
use overlay_common::{
    Hook, Reason,
    decide::{self, Sender},
    tables::Direction,
};

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
        let sender = match ingress_ifindex(ctx) {
            _ if Mark::Sent.is_on(ctx) => Sender::Program,
            0 => Sender::Host,
            _ => Sender::Forwarded,
        };
        decide::to_wire(&Skb { ctx }, sender, host, &Maps, |flow| {
            decide::remember(flow, Direction::Left, host, &Maps);
        })
    })
}
