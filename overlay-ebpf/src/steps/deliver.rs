use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_REDIRECT},
    helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
    programs::TcContext,
};
use network_types::ip::Ipv4Hdr;
use overlay_common::{
    MacAddr, Reason,
    decide::Recipient,
    packet::{ETHERTYPE_IPV4, Ethernet},
    tables::{Endpoint, HostConfig},
};

use super::fib::{Seat, bridge_to};
use crate::packet::{Mark, Skb};

/// The bridge that a recipient is behind; none where the kernel would deliver elsewhere. What a known container's is, its
/// entry says.
#[inline(always)]
pub(crate) fn bridge_of(
    ctx: &TcContext,
    recipient: Recipient<'_>,
    inner: &Ipv4Hdr,
) -> Option<Seat> {
    match recipient {
        Recipient::Endpoint(endpoint) => Some(Seat { ifindex: 0, mtu: endpoint.mtu }),
        Recipient::Netfilter => Some(Seat { ifindex: 0, mtu: u32::MAX }),
        Recipient::Subnet | Recipient::Host => bridge_to(ctx, inner),
    }
}

/// Delivers an inner packet past the host's netfilter: into the container where it is known, else to
/// its bridge, whose neighbour table finds it.
#[inline(always)]
pub(crate) fn deliver(
    ctx: &TcContext,
    host: &HostConfig,
    recipient: Recipient<'_>,
    bridge: Seat,
) -> Result<Reason, Reason> {
    match recipient {
        Recipient::Endpoint(endpoint) => to_endpoint(ctx, endpoint),
        Recipient::Subnet | Recipient::Host => to_bridge(ctx, bridge),
        Recipient::Netfilter => to_netfilter(ctx, host),
    }
}

#[inline(always)]
fn to_endpoint(ctx: &TcContext, endpoint: &Endpoint) -> Result<Reason, Reason> {
    let ethernet = Ethernet {
        destination: MacAddr(endpoint.mac),
        source: MacAddr(endpoint.gateway),
        ethertype: ETHERTYPE_IPV4,
    };
    Skb::new(ctx, size_of::<Ethernet>() as u32).store(0, ethernet).ok_or(Reason::HelperFailed)?;
    // SAFETY: the helper only reads its arguments.
    match unsafe { bpf_redirect_peer(endpoint.ifindex, 0) } as i32 {
        TC_ACT_REDIRECT => Ok(Reason::ToEndpoint),
        _ => Err(Reason::HelperFailed),
    }
}

/// Has the packet come by the tunnel device, as if the kernel had decapsulated it. Its Ethernet header is the inner one.
#[inline(always)]
fn to_netfilter(ctx: &TcContext, host: &HostConfig) -> Result<Reason, Reason> {
    Mark::Decapsulated.set(ctx);
    // SAFETY: the helper only reads its arguments.
    match unsafe { bpf_redirect(host.tunnel_ifindex, u64::from(BPF_F_INGRESS)) } as i32 {
        TC_ACT_REDIRECT => Ok(Reason::ToNetfilter),
        _ => Err(Reason::HelperFailed),
    }
}

#[inline(always)]
fn to_bridge(ctx: &TcContext, bridge: Seat) -> Result<Reason, Reason> {
    Mark::Delivered.set(ctx);
    // SAFETY: no next hop is given, so no memory is read.
    match unsafe { bpf_redirect_neigh(bridge.ifindex, core::ptr::null_mut(), 0, 0) } as i32 {
        TC_ACT_REDIRECT => Ok(Reason::Bridged),
        _ => Err(Reason::HelperFailed),
    }
}
