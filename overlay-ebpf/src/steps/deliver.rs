use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_REDIRECT},
    helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
    programs::TcContext,
};
use overlay_common::{
    MacAddr, Reason,
    decide::Recipient,
    packet::{ETHERTYPE_IPV4, Ethernet},
    tables::{Endpoint, HostConfig},
};

use crate::packet::{Mark, Skb};

/// Delivers an inner packet past the host's netfilter: into the container where it is known, else to
/// the bridge, whose neighbour table finds it.
#[inline(always)]
pub(crate) fn deliver(
    ctx: &TcContext,
    host: &HostConfig,
    recipient: Recipient,
) -> Result<Reason, Reason> {
    match recipient {
        Recipient::Endpoint(endpoint) => to_endpoint(ctx, host, endpoint),
        Recipient::Subnet | Recipient::Host => to_bridge(ctx, host),
        Recipient::Netfilter => to_netfilter(ctx, host),
    }
}

#[inline(always)]
fn to_endpoint(ctx: &TcContext, host: &HostConfig, endpoint: Endpoint) -> Result<Reason, Reason> {
    let ethernet = Ethernet {
        destination: MacAddr(endpoint.mac),
        source: MacAddr(host.bridge_mac),
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
fn to_bridge(ctx: &TcContext, host: &HostConfig) -> Result<Reason, Reason> {
    Mark::Delivered.set(ctx);
    // SAFETY: no next hop is given, so no memory is read.
    match unsafe { bpf_redirect_neigh(host.bridge_ifindex, core::ptr::null_mut(), 0, 0) } as i32 {
        TC_ACT_REDIRECT => Ok(Reason::Bridged),
        _ => Err(Reason::HelperFailed),
    }
}
