use aya_ebpf::{macros::classifier, programs::TcContext};
use overlay_common::{Hook, decide::Port};

use crate::{packet::ifindex, steps::leave_container, verdict::conclude};

/// TC ingress of a container's host-side veth: packets that it sends.
#[classifier]
pub(crate) fn from_container(ctx: TcContext) -> i32 {
    conclude(Hook::FromContainer, &ctx, |ctx| leave_container(ctx, Port::Veth(ifindex(ctx))))
}
