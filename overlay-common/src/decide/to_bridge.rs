use super::{load_headers, stack_flow::remember_arriving};
use crate::{
    Reason,
    packet::Packet,
    tables::{HostConfig, StackFlowKey},
};

/// Decides about a packet on its way to the containers' bridge, which goes on in any case: has the flow
/// remembered of what the stack has taken out of the overlay and rewritten, because a container's answer
/// must be rewritten too. Not so of what our own programs deliver, which is `ours`.
#[inline(always)]
pub fn to_bridge(
    packet: &impl Packet,
    ours: bool,
    host: &HostConfig,
    remember: impl FnOnce(&StackFlowKey),
) -> Result<Reason, Reason> {
    if ours {
        return Ok(Reason::Delivered);
    }
    if !host.fast_path() {
        return Err(Reason::FastPathOff);
    }
    let (_, ipv4) = load_headers(packet)?;
    if !host.network().contains(ipv4.src_addr) || host.subnet().contains(ipv4.src_addr) {
        return Err(Reason::NotFromPeer);
    }
    if remember_arriving(packet, &ipv4, remember) {
        Ok(Reason::FromStack)
    } else {
        Err(Reason::Fragment)
    }
}
