//! What the kernel's routing says.

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
        BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup,
    },
    helpers,
    programs::TcContext,
};
use network_types::ip::Ipv4Hdr;
use overlay_common::{decide::Tables as _, tables::BridgeKey};

use crate::{maps::Maps, packet::ifindex};

const AF_INET: u8 = 2;

/// The bridge of a recipient.
#[derive(Clone, Copy)]
pub(crate) struct Seat {
    /// The bridge, where it is that which delivers.
    pub(crate) ifindex: u32,
    /// Largest packet, in bytes, that the stack would put on it.
    pub(crate) mtu: u32,
}

/// The containers' bridge that the kernel would forward the inner packet to; it would not where the address is one of the
/// host's own, or routed elsewhere.
#[inline(always)]
pub(crate) fn bridge_to(ctx: &TcContext, inner: &Ipv4Hdr) -> Option<Seat> {
    let ifindex = next_hop(ctx, ifindex(ctx), inner.src_addr, inner.dst_addr, 0).ifindex;
    let bridge = Maps.bridge(&BridgeKey { ifindex })?;
    (bridge.ifindex == ifindex).then_some(Seat { ifindex, mtu: bridge.mtu })
}

/// Whether the kernel has a way to an address out of the interface that the program runs on.
#[inline(always)]
pub(crate) fn reaches(ctx: &TcContext, address: [u8; 4]) -> bool {
    reaches_by(ctx, ifindex(ctx), address)
}

/// Whether the kernel has a way to an address out of an interface.
#[inline(always)]
pub(crate) fn reaches_by(ctx: &TcContext, ifindex: u32, address: [u8; 4]) -> bool {
    next_hop(ctx, ifindex, [0; 4], address, BPF_FIB_LOOKUP_OUTPUT).ifindex == ifindex
}

/// Whether the kernel looks for an address itself, and not for a router, on the interface that the program runs on.
#[inline(always)]
pub(crate) fn is_on_link(ctx: &TcContext, address: [u8; 4]) -> bool {
    let here = ifindex(ctx);
    let hop = next_hop(ctx, here, [0; 4], address, BPF_FIB_LOOKUP_OUTPUT);
    hop.ifindex == here && hop.address == address
}

/// Where the kernel would send a packet to.
struct NextHop {
    /// 0 where it would not.
    ifindex: u32,
    /// The router's, or the destination itself.
    address: [u8; 4],
}

#[inline(always)]
fn next_hop(
    ctx: &TcContext,
    ifindex: u32,
    source: [u8; 4],
    destination: [u8; 4],
    flags: u32,
) -> NextHop {
    // SAFETY: all fields are integers.
    let mut lookup: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    lookup.family = AF_INET;
    lookup.ifindex = ifindex;
    lookup.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(source);
    lookup.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(destination);
    // SAFETY: the kernel writes no more than the size it is told.
    let found = unsafe {
        helpers::bpf_fib_lookup(
            ctx.skb.skb.cast(),
            &raw mut lookup,
            size_of::<bpf_fib_lookup>() as i32,
            flags,
        )
    } as u32;
    // Whether it fits is not asked here: the kernel measures the packet as it is now, encapsulated.
    let is_found = matches!(
        found,
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED
    );
    NextHop {
        ifindex: if is_found { lookup.ifindex } else { 0 },
        // SAFETY: whatever the kernel has written there is four bytes.
        address: unsafe { lookup.__bindgen_anon_4.ipv4_dst }.to_ne_bytes(),
    }
}
