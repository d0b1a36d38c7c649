//! Direct-action filters of a clsact qdisc, for kernels before TCX. What they return means the same: `TC_ACT_UNSPEC`
//! goes on to the next filter.
//!
//! A filter of ours is one with our priority, the number of our pin path and of its hook as its handle, and the name of
//! the hook. Other agents of the host have other pin paths. The qdisc is shared with everybody
//! who has filters on the interface, so it is never removed: empty, it does nothing.

use anyhow::{Context, Result};
use aya::programs::{
    SchedClassifier, TcAttachType,
    links::Link as _,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
};
use futures::TryStreamExt as _;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption};
use nix::errno::Errno;
use overlay_common::Hook;
use rtnetlink::Handle;

use super::{Attachment, PinPath, direction, name_now};
use crate::kernel::netlink::KernelState;

/// Before filters whose priority the kernel chose (49152 and below, downwards), after those that somebody
/// has put first on purpose. The number is that of flannel's UDP port, to be recognised.
const PRIORITY: u16 = 8472;

/// One for each pin path and hook: an interface may carry two hooks, and those of several agents.
const fn handle(pin_path: u16, hook: Hook) -> TcHandle {
    TcHandle::new(pin_path, 1 + hook as u16)
}

/// The numbers of pin paths whose filters are ours: our own, and that of before if we inherit it.
fn numbers(pins: &PinPath) -> impl Iterator<Item = u16> {
    [Some(pins.number()), pins.inherits().then_some(0)].into_iter().flatten()
}

/// Whether the filter runs the program with this number.
pub(super) async fn runs(
    netlink: &Handle,
    pins: &PinPath,
    hook: Hook,
    place: &Attachment,
    id: u32,
) -> Result<bool> {
    Ok(program_of(netlink, pins.number(), hook, place.ifindex).await? == Some(id))
}

pub(super) async fn attach(
    netlink: &Handle,
    pins: &PinPath,
    program: &mut SchedClassifier,
    hook: Hook,
    to: &Attachment,
) -> Result<()> {
    let name = name_now(to.ifindex)?.with_context(|| format!("{} is gone", to.interface))?;
    let number = pins.number();
    let id = if program_of(netlink, number, hook, to.ifindex).await?.is_some() {
        program.attach_to_link(link(number, hook, &name)?).context("replacing the program")?
    } else {
        add_qdisc(&name)?;
        let handle = handle(number, hook);
        let options = NlOptions { priority: PRIORITY, handle, classid: None };
        program.attach_with_options(&name, direction(hook), TcAttachOptions::Netlink(options))?
    };
    // A handle that is dropped takes its filter along.
    std::mem::forget(program.take_link(id).context("releasing the filter")?);
    // Until now it saw what ours, in front of it, let pass.
    for earlier in numbers(pins).filter(|earlier| *earlier != number) {
        remove(netlink, earlier, hook, to.ifindex).await?;
    }
    Ok(())
}

/// Removes our filter, and returns whether there was one.
pub(super) async fn detach(
    netlink: &Handle,
    pins: &PinPath,
    hook: Hook,
    ifindex: u32,
) -> Result<bool> {
    let mut any = false;
    for number in numbers(pins) {
        any |= remove(netlink, number, hook, ifindex).await?;
    }
    Ok(any)
}

async fn remove(netlink: &Handle, number: u16, hook: Hook, ifindex: u32) -> Result<bool> {
    if program_of(netlink, number, hook, ifindex).await?.is_none() {
        return Ok(false);
    }
    // Gone with the interface otherwise.
    let Some(name) = name_now(ifindex)? else { return Ok(false) };
    link(number, hook, &name)?
        .detach()
        .with_context(|| format!("removing filter {} from {name}", hook.name()))?;
    Ok(true)
}

/// Every filter of ours.
pub(super) async fn find(
    netlink: &Handle,
    pins: &PinPath,
    observed: &KernelState,
) -> Result<Vec<(Hook, Attachment)>> {
    let mut found = Vec::new();
    for interface in observed.links.values() {
        for side in [TcAttachType::Ingress, TcAttachType::Egress] {
            let filters = filters(netlink, interface.index, side).await?;
            for hook in Hook::ALL.into_iter().filter(|&hook| direction(hook) == side) {
                let is_ours = |filter| {
                    numbers(pins).any(|number| program_if_ours(filter, number, hook).is_some())
                };
                if filters.iter().any(is_ours) {
                    let ifindex = interface.index;
                    found.push((hook, Attachment { ifindex, interface: interface.name.clone() }));
                }
            }
        }
    }
    Ok(found)
}

fn link(number: u16, hook: Hook, interface: &str) -> Result<SchedClassifierLink> {
    let handle = handle(number, hook);
    SchedClassifierLink::attached(interface, direction(hook), PRIORITY, handle, None)
        .with_context(|| format!("looking for {interface}"))
}

/// Makes room for filters. There may be one already, of whoever was first.
fn add_qdisc(interface: &str) -> Result<()> {
    match qdisc_add_clsact(interface) {
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(Errno::EEXIST as i32) => {
            Ok(())
        }
        result => result.context("adding a clsact qdisc"),
    }
}

/// The number of the program that our filter runs; none where there is no such filter.
async fn program_of(
    netlink: &Handle,
    number: u16,
    hook: Hook,
    ifindex: u32,
) -> Result<Option<u32>> {
    let filters = filters(netlink, ifindex, direction(hook)).await?;
    Ok(filters.iter().find_map(|filter| program_if_ours(filter, number, hook)))
}

/// Everybody's filters on one side of an interface; none where it is gone.
async fn filters(netlink: &Handle, ifindex: u32, side: TcAttachType) -> Result<Vec<TcMessage>> {
    let request = netlink.traffic_filter(i32::try_from(ifindex)?).get();
    let request = match side {
        TcAttachType::Egress => request.egress(),
        TcAttachType::Ingress | TcAttachType::Custom(_) => request.ingress(),
    };
    // The whole answer: the connection complains about one that nobody reads to its end.
    let filters = request.execute().try_collect().await;
    filters.with_context(|| format!("listing the filters of interface {ifindex}"))
}

fn program_if_ours(filter: &TcMessage, number: u16, hook: Hook) -> Option<u32> {
    let header = &filter.header;
    if header.info >> 16 != u32::from(PRIORITY)
        || u32::from(header.handle) != u32::from(handle(number, hook))
    {
        return None;
    }
    let options = filter.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let name = options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.as_str()),
        _ => None,
    })?;
    let program = options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(program)) => Some(*program),
        _ => None,
    })?;
    (name == hook.name()).then_some(program)
}
