use aya_ebpf::{macros::classifier, programs::TcContext};
use overlay_common::{Hook, Reason, decide};

use crate::{
    maps::{Maps, host},
    packet::Skb,
    steps::set_tunnel_key,
    verdict::conclude,
};

/// Ethernet and IPv4.
const HEADERS: u32 = 14 + 20;

/// TC egress of the tunnel device: packets that the host's stack sends into the overlay.
#[classifier]
pub(crate) fn to_tunnel(ctx: TcContext) -> i32 {
    conclude(Hook::ToTunnel, &ctx, |ctx| {
        let host = host().ok_or(Reason::NotConfigured)?;
        let target = decide::to_tunnel(&Skb::new(ctx, HEADERS), host, &Maps)?;
        set_tunnel_key(ctx, host, &target)
    })
}
