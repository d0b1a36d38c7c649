//! The one place where a reason is counted and becomes a TC action.

use aya_ebpf::{
    bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use overlay_common::{Class, Hook, Reason, tables::counter_index};

use crate::{maps::COUNTERS, steps::tell};

/// Runs a hook's steps, counts why the packet left, and says what becomes of it.
///
/// `TC_ACT_UNSPEC` continues with whatever program or filter comes after ours; TCX calls the same
/// number `TCX_NEXT`.
#[inline(always)]
pub(crate) fn conclude(
    hook: Hook,
    ctx: &TcContext,
    steps: impl FnOnce(&TcContext) -> Result<Reason, Reason>,
) -> i32 {
    // Before the steps: they may change the packet's length.
    let bytes = u64::from(ctx.len());
    let (Ok(reason) | Err(reason)) = steps(ctx);
    if let Some(counter) = COUNTERS.get_ptr_mut(counter_index(hook, reason)) {
        // SAFETY: this CPU's own slot, and a TC program is not interrupted by itself.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += bytes;
        }
    }
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(ctx, "hook {} reason {} bytes {}", hook as u32, reason as u32, bytes);
    let class = reason.class();
    if matches!(class, Class::Declined | Class::Dropped) {
        tell(hook, ctx, reason);
    }
    match class {
        Class::Forwarded => TC_ACT_REDIRECT,
        Class::Passed | Class::Declined => TC_ACT_UNSPEC,
        Class::Dropped => TC_ACT_SHOT,
    }
}
