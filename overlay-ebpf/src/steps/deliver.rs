use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, TC_ACT_REDIRECT, bpf_fib_lookup,
    },
    helpers::{self, bpf_redirect_neigh, bpf_redirect_peer},
    programs::TcContext,
};
use network_types::ip::Ipv4Hdr;
use overlay_common::{
    MacAddr, Reason,
    decide::Recipient,
    packet::{ETHERTYPE_IPV4, Ethernet},
    tables::{Endpoint, HostConfig},
};

use crate::packet::{Skb, ifindex};

const AF_INET: u8 = 2;

/// What `tc_index` holds from here to the bridge's egress, so that our deliveries are told from what the
/// stack forwards. Nothing but TC looks at it.
const DELIVERY_MARK: u32 = 0x4f56;

#[inline(always)]
fn set_tc_index(ctx: &TcContext, value: u32) {
    // SAFETY: the context is valid for as long as the program runs.
    unsafe { (*ctx.skb.skb).tc_index = value };
}

/// Whether [`deliver`] sent this packet to the bridge. It is not told again.
#[inline(always)]
pub(crate) fn take_delivery_mark(ctx: &TcContext) -> bool {
    // SAFETY: as above.
    let marked = unsafe { (*ctx.skb.skb).tc_index } == DELIVERY_MARK;
    if marked {
        set_tc_index(ctx, 0);
    }
    marked
}

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

#[inline(always)]
fn to_bridge(ctx: &TcContext, host: &HostConfig) -> Result<Reason, Reason> {
    set_tc_index(ctx, DELIVERY_MARK);
    // SAFETY: no next hop is given, so no memory is read.
    match unsafe { bpf_redirect_neigh(host.bridge_ifindex, core::ptr::null_mut(), 0, 0) } as i32 {
        TC_ACT_REDIRECT => Ok(Reason::ToBridge),
        _ => Err(Reason::HelperFailed),
    }
}

/// Whether the kernel would forward the inner packet to the containers' bridge; it would not where
/// the address is one of the host's own, or routed elsewhere.
#[inline(always)]
pub(crate) fn on_bridge(ctx: &TcContext, host: &HostConfig, inner: &Ipv4Hdr) -> bool {
    if host.bridge_ifindex == 0 {
        return false;
    }
    // SAFETY: all fields are integers.
    let mut lookup: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    lookup.family = AF_INET;
    lookup.ifindex = ifindex(ctx);
    lookup.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(inner.src_addr);
    lookup.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(inner.dst_addr);
    // SAFETY: the kernel writes no more than the size it is told.
    let found = unsafe {
        helpers::bpf_fib_lookup(
            ctx.skb.skb.cast(),
            &raw mut lookup,
            size_of::<bpf_fib_lookup>() as i32,
            0,
        )
    } as u32;
    (found == BPF_FIB_LKUP_RET_SUCCESS || found == BPF_FIB_LKUP_RET_NO_NEIGH)
        && lookup.ifindex == host.bridge_ifindex
}
