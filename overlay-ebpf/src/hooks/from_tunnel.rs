use aya_ebpf::{macros::classifier, programs::TcContext};
use overlay_common::{Hook, Reason, decide, packet::ETHERNET_LENGTH, tables::Direction};

use crate::{
    maps::{Maps, host, note_handed_over},
    packet::{Mark, Skb, TCP_HEADERS},
    steps::{bridge_of, deliver, tunnel_source},
    verdict::conclude,
};

/// TC ingress of the tunnel device: packets that the kernel has decapsulated.
#[classifier]
pub(crate) fn from_tunnel(ctx: TcContext) -> i32 {
    conclude(Hook::FromTunnel, &ctx, |ctx| {
        let host = host().ok_or(Reason::NotConfigured)?;
        let (keyed, source) = tunnel_source(ctx, host);
        let skb = Skb::new(ctx, TCP_HEADERS);
        if !keyed {
            if Mark::Decapsulated.is_on(ctx) {
                decide::hand_over(&skb, Direction::Arrived, note_handed_over);
                return Ok(Reason::ToStack);
            }
            // Through no tunnel, which no VTEP sends.
            return Err(Reason::UnknownVtep);
        }
        let plan = decide::from_tunnel(&skb, source, host, &Maps).inspect_err(|reason| {
            if *reason == Reason::ToStack {
                decide::hand_over(&skb, Direction::Arrived, note_handed_over);
            }
        })?;
        let bridge = bridge_of(ctx, plan.recipient, &plan.ipv4).ok_or(Reason::ToStack)?;
        if !decide::fits_bridge(&skb, ETHERNET_LENGTH, &plan.ipv4, bridge.mtu) {
            return Err(Reason::ToStack);
        }
        deliver(ctx, host, plan.recipient, bridge)
    })
}
