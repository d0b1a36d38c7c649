use aya_ebpf::{macros::classifier, programs::TcContext};
use overlay_common::{Hook, Reason, decide};

use crate::{
    maps::{Maps, host},
    packet::{Skb, TCP_HEADERS, ifindex},
    verdict::conclude,
};

/// TC ingress of a containers' bridge: packets of ports that have no program of their own.
#[classifier]
pub(crate) fn from_bridge(ctx: TcContext) -> i32 {
    conclude(Hook::FromBridge, &ctx, |ctx| {
        let host = host().ok_or(Reason::NotConfigured)?;
        decide::from_bridge(&Skb::new(ctx, TCP_HEADERS), ifindex(ctx), host, &Maps)?;
        Ok(Reason::ToStack)
    })
}
