use aya_ebpf::{macros::classifier, programs::TcContext};
use overlay_common::{Hook, decide::Port};

use crate::{steps::leave_container, verdict::conclude};

/// TC ingress of the containers' bridge: packets of containers whose veth has no program yet.
#[classifier]
pub(crate) fn from_bridge(ctx: TcContext) -> i32 {
    conclude(Hook::FromBridge, &ctx, |ctx| leave_container(ctx, Port::Bridge))
}
