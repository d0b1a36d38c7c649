use aya_ebpf::{macros::classifier, programs::TcContext};
use overlay_common::{Hook, Reason, decide, encap::INNER_IPV4_OFFSET, tables::Direction};

use super::from_interface::admit;
use crate::{
    maps::{Maps, host, note_handed_over},
    packet::{Mark, Skb},
    steps::{bridge_of, decap, deliver, echo, reaches},
    verdict::conclude,
};

/// Everything up to the inner packet's TCP flags.
const HEADERS: u32 = INNER_IPV4_OFFSET as u32 + 20 + 14;

/// TC ingress of the uplink: packets from the wire.
#[classifier]
pub(crate) fn from_uplink(ctx: TcContext) -> i32 {
    conclude(Hook::FromUplink, &ctx, |ctx| {
        let host = host().ok_or(Reason::NotConfigured)?;
        Mark::None.set(ctx);
        let reaches = |address| reaches(ctx, address);
        let skb = Skb::new(ctx, HEADERS);
        let plan = match decide::from_uplink(&skb, host, &Maps, reaches) {
            Err(Reason::InnerNotIpv4) if decide::is_question(&skb, host) => return echo(ctx),
            plan => plan.inspect_err(|reason| {
                admit(ctx, *reason);
                // What is encapsulated is handed over when it is not any more.
                if *reason == Reason::AwaitsRules {
                    decide::hand_over(&skb, Direction::Arrived, note_handed_over);
                }
            })?,
        };
        let bridge = bridge_of(ctx, plan.recipient, &plan.ipv4).ok_or(Reason::HostDestination)?;
        if !decide::fits_bridge(&skb, plan.offset(), &plan.ipv4, bridge.mtu) {
            return Err(Reason::TooBig);
        }
        if plan.encapsulated {
            decap(ctx, &plan)?;
        }
        deliver(ctx, host, plan.recipient, bridge)
    })
}
