use aya_ebpf::{macros::classifier, programs::TcContext};
use overlay_common::{Hook, Reason, decide};

use crate::{
    maps::{Maps, host},
    packet::Skb,
    steps::encap,
    verdict::conclude,
};

/// Ethernet, IPv4 and TCP up to the data offset.
const HEADERS: u32 = 14 + 20 + 13;

/// TC ingress of the containers' bridge: packets that containers send.
#[classifier]
pub(crate) fn from_container(ctx: TcContext) -> i32 {
    conclude(Hook::FromContainer, &ctx, |ctx| {
        let host = host().ok_or(Reason::NotConfigured)?;
        let plan = decide::from_container(&Skb::new(ctx, HEADERS), host, &Maps)?;
        encap(ctx, host, &plan)
    })
}
