use aya_ebpf::programs::TcContext;
use overlay_common::{
    Reason,
    decide::{self, Port},
};

use super::encap;
use crate::{
    maps::{Maps, host},
    packet::Skb,
};

/// Ethernet, IPv4 and TCP up to the data offset.
const HEADERS: u32 = 14 + 20 + 13;

/// What happens to a packet of a container, wherever it is caught.
#[inline(always)]
pub(crate) fn leave_container(ctx: &TcContext, port: Port) -> Result<Reason, Reason> {
    let host = host().ok_or(Reason::NotConfigured)?;
    let plan = decide::from_container(&Skb::new(ctx, HEADERS), port, host, &Maps)?;
    encap(ctx, host, &plan)
}
