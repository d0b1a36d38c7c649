use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_ktime_get_ns, bpf_skb_load_bytes},
    programs::TcContext,
};
use overlay_common::{
    Hook, Reason,
    tables::{DROP_BYTES, DropRecord},
};

use crate::maps::{DROPS, DROPS_PACE, DROPS_WATCH};

/// Tells whoever watches of a packet that is dropped or declined. It is too late to do anything about what fails here:
/// it is counted.
#[inline(always)]
pub(crate) fn tell(hook: Hook, ctx: &TcContext, reason: Reason) {
    let Some(watch) = DROPS_WATCH.get(0) else { return };
    if watch.asks_for(reason.class()) {
        record(ctx.skb.skb, hook as u32, reason as u32, watch.per_second);
    }
}

/// A function of its own: few packets come here, and what it needs would fill the registers of all programs.
#[inline(never)]
fn record(skb: *mut __sk_buff, hook: u32, reason: u32, per_second: u32) {
    let Some(pace) = DROPS_PACE.get_ptr_mut(reason) else { return };
    // SAFETY: this CPU's own slot, and a TC program is not interrupted by itself.
    let pace = unsafe { &mut *pace };
    // SAFETY: the helper takes no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if !pace.admit(per_second, now) {
        return;
    }
    let Some(mut entry) = DROPS.reserve(0) else {
        pace.lost += 1;
        return;
    };
    let told: *mut DropRecord = entry.as_mut_ptr();
    // SAFETY: the context is valid for as long as the program runs, and the kernel has reserved room for a record,
    // of which the reader looks at no more bytes of the packet than are said to be there.
    unsafe {
        let length = (*skb).len;
        // At least 1: for the verifier, and of nothing at all the kernel copies nothing.
        let captured = length.saturating_sub(1).min(DROP_BYTES as u32 - 1) + 1;
        (*told).time = now;
        (*told).ifindex = (*skb).ifindex;
        (*told).ingress_ifindex = (*skb).ingress_ifindex;
        (*told).length = length;
        (*told).mark = (*skb).mark;
        (*told).protocol = ((*skb).protocol as u16).to_ne_bytes();
        (*told).vlan_tci = if (*skb).vlan_present == 0 { 0 } else { (*skb).vlan_tci as u16 };
        (*told).hook = hook as u8;
        (*told).reason = reason as u8;
        let bytes = (&raw mut (*told).bytes).cast();
        let read = bpf_skb_load_bytes(skb.cast(), 0, bytes, captured) == 0;
        (*told).captured = if read { captured as u16 } else { 0 };
    }
    entry.submit(0);
}
