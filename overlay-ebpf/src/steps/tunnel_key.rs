use aya_ebpf::{
    bindings::{
        BPF_F_ZERO_CSUM_TX, bpf_tunnel_key, bpf_tunnel_key__bindgen_ty_1,
        bpf_tunnel_key__bindgen_ty_2, bpf_tunnel_key__bindgen_ty_3,
    },
    helpers::{
        bpf_skb_get_tunnel_key, bpf_skb_get_tunnel_opt, bpf_skb_set_tunnel_key,
        bpf_skb_set_tunnel_opt,
    },
    programs::TcContext,
};
use overlay_common::{
    MacAddr, Reason,
    decide::{TunnelSource, TunnelTarget},
    encap::OUTER_TTL,
    packet::{ETHERTYPE_IPV4, Ethernet},
    tables::HostConfig,
};

use crate::packet::Skb;

/// Addresses the packet to the peer's VTEP and tells the kernel device where that is. The UDP checksum
/// is left out as on the fast path, so that both look the same on the wire.
#[inline(always)]
pub(crate) fn set_tunnel_key(
    ctx: &TcContext,
    host: &HostConfig,
    target: &TunnelTarget,
) -> Result<Reason, Reason> {
    let ethernet = Ethernet {
        destination: MacAddr(target.peer.vtep_mac),
        source: MacAddr(host.vtep_mac),
        ethertype: ETHERTYPE_IPV4,
    };
    Skb::new(ctx, size_of::<Ethernet>() as u32).store(0, ethernet).ok_or(Reason::HelperFailed)?;

    // The helper takes addresses in host order.
    let mut key = tunnel_key(
        host.vni,
        u32::from_be_bytes(target.peer.public_address),
        u32::from_be_bytes(host.uplink_address),
    );
    // SAFETY: the kernel reads no more than the size it is told.
    let set = unsafe {
        bpf_skb_set_tunnel_key(
            ctx.skb.skb,
            &raw mut key,
            size_of::<bpf_tunnel_key>() as u32,
            u64::from(BPF_F_ZERO_CSUM_TX),
        )
    };
    if set != 0 || host.carries_groups() && !set_group(ctx) {
        return Err(Reason::HelperFailed);
    }
    Ok(Reason::TunnelKeySet)
}

/// The kernel's `struct vxlan_metadata`: the group, and bits about it, as a device that is for one tunnel makes them of a
/// packet's mark and a packet's mark of them.
type Group = u32;

/// Has the device carry the packet's mark. Where the mark is 0, the header says nothing of groups. Returns whether it could.
#[inline(always)]
fn set_group(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid for as long as the program runs.
    let mut group: Group = unsafe { (*ctx.skb.skb).mark };
    // SAFETY: the kernel reads no more than the size it is told.
    let set = unsafe {
        bpf_skb_set_tunnel_opt(ctx.skb.skb, (&raw mut group).cast(), size_of::<Group>() as u32)
    };
    set == 0
}

/// Marks a packet with the group that it carries, and returns it; 0 where it carries none.
#[inline(always)]
fn take_group(ctx: &TcContext) -> u32 {
    let mut group: Group = 0;
    // SAFETY: the kernel writes no more than the size it is told.
    let got = unsafe {
        bpf_skb_get_tunnel_opt(ctx.skb.skb, (&raw mut group).cast(), size_of::<Group>() as u32)
    };
    if got != size_of::<Group>() as i64 {
        return 0;
    }
    // SAFETY: as in `set_group`.
    unsafe { (*ctx.skb.skb).mark = group };
    group
}

/// Whether the kernel has decapsulated a packet, and where it came from then. Not a `Result`: Linux 6.1 takes what of one
/// may hold nothing for read where it is not.
#[inline(always)]
pub(crate) fn tunnel_source(ctx: &TcContext, host: &HostConfig) -> (bool, TunnelSource) {
    let mut key = tunnel_key(0, 0, 0);
    // SAFETY: the kernel writes no more than the size it is told.
    let got = unsafe {
        bpf_skb_get_tunnel_key(ctx.skb.skb, &raw mut key, size_of::<bpf_tunnel_key>() as u32, 0)
    };
    let keyed = got == 0;
    // SAFETY: either member of both unions is four integers.
    let (remote, local) =
        unsafe { (key.__bindgen_anon_1.remote_ipv4, key.__bindgen_anon_3.local_ipv4) };
    let source = TunnelSource {
        remote: remote.to_be_bytes(),
        local: local.to_be_bytes(),
        vni: key.tunnel_id,
        group: if keyed && host.carries_groups() { take_group(ctx) } else { 0 },
    };
    (keyed, source)
}

#[inline(always)]
const fn tunnel_key(tunnel_id: u32, remote: u32, local: u32) -> bpf_tunnel_key {
    bpf_tunnel_key {
        tunnel_id,
        __bindgen_anon_1: bpf_tunnel_key__bindgen_ty_1 { remote_ipv6: [remote, 0, 0, 0] },
        tunnel_tos: 0,
        tunnel_ttl: OUTER_TTL,
        __bindgen_anon_2: bpf_tunnel_key__bindgen_ty_2 { tunnel_ext: 0 },
        tunnel_label: 0,
        __bindgen_anon_3: bpf_tunnel_key__bindgen_ty_3 { local_ipv6: [local, 0, 0, 0] },
    }
}
