//! Programs on interfaces: held by TCX links where the kernel has them, else as filters of a clsact qdisc. Both
//! outlive the agent, both are replaced without a gap, and what an earlier agent attached the other way goes
//! once ours is in its place.

mod clsact;
mod tcx;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use aya::programs::TcAttachType;
use nix::{errno::Errno, net::if_::if_indextoname};
use overlay_common::{Feature, Hook};
use rtnetlink::Handle;

use super::{Features, PinPath, Programs};
use crate::kernel::netlink::KernelState;

/// Where one program is attached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The interface's number, by which the kernel knows it.
    pub ifindex: u32,
    /// Its name, for people.
    pub interface: String,
}

/// What holds a program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// Links, pinned so that they outlive the agent.
    Tcx,
    /// Filters, which belong to the interface.
    Clsact,
}

impl Mechanism {
    /// The better one of those that the kernel has.
    pub fn of(features: &Features) -> Self {
        if features.has(Feature::Tcx) { Self::Tcx } else { Self::Clsact }
    }

    /// Its name in `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// What holds our programs on interfaces.
#[derive(Debug)]
pub struct Attachments {
    mechanism: Mechanism,
    netlink: Handle,
    attached: BTreeMap<(&'static str, u32), Attachment>,
    /// Whatever is attached is one of these. Otherwise there may be an earlier agent's, and links of interfaces
    /// that went while nobody looked.
    tidy: bool,
}

impl Attachments {
    /// None yet.
    pub const fn new(mechanism: Mechanism, netlink: Handle) -> Self {
        Self { mechanism, netlink, attached: BTreeMap::new(), tidy: false }
    }

    /// Forgets every attachment that somebody else removed, so that it is made again, and returns them.
    pub async fn forget_lost(
        &mut self,
        programs: &mut Programs,
        pins: &PinPath,
    ) -> Result<Vec<(&'static str, Attachment)>> {
        let mut lost = Vec::new();
        for hook in Hook::ALL {
            let id = programs.get(hook)?.info().context("asking about our program")?.id();
            for ifindex in self.of(hook) {
                let Some(place) = self.attached.get(&(hook.name(), ifindex)) else { continue };
                let runs = match self.mechanism {
                    Mechanism::Tcx => tcx::runs(pins, hook, place, id)?,
                    Mechanism::Clsact => clsact::runs(&self.netlink, pins, hook, place, id).await?,
                };
                if !runs {
                    lost.push((hook.name(), place.clone()));
                }
            }
        }
        for (hook, place) in &lost {
            self.attached.remove(&(*hook, place.ifindex));
        }
        self.tidy &= lost.is_empty();
        Ok(lost)
    }

    /// Attaches the program of `hook`, in place of an earlier agent's if there is one, without a gap.
    pub async fn attach(
        &mut self,
        programs: &mut Programs,
        pins: &PinPath,
        hook: Hook,
        to: &Attachment,
    ) -> Result<()> {
        if let Some(attached) = self.attached.get_mut(&(hook.name(), to.ifindex)) {
            // It may have another name by now.
            attached.interface.clone_from(&to.interface);
            return Ok(());
        }
        let program = programs.get(hook)?;
        match self.mechanism {
            Mechanism::Tcx => tcx::attach(program, pins, hook, to),
            Mechanism::Clsact => clsact::attach(&self.netlink, pins, program, hook, to).await,
        }
        .with_context(|| format!("attaching {} to {}", hook.name(), to.interface))?;
        self.attached.insert((hook.name(), to.ifindex), to.clone());
        Ok(())
    }

    /// Detaches the program of `hook` from an interface that it should not be on.
    pub async fn detach(&mut self, pins: &PinPath, hook: Hook, ifindex: u32) -> Result<()> {
        self.attached.remove(&(hook.name(), ifindex));
        match self.mechanism {
            Mechanism::Tcx => tcx::detach(pins, hook, ifindex),
            Mechanism::Clsact => clsact::detach(&self.netlink, pins, hook, ifindex).await.map(drop),
        }
    }

    /// Detaches whatever is attached, either way, and not ours any more.
    pub async fn detach_leftovers(&mut self, pins: &PinPath, observed: &KernelState) -> Result<()> {
        if self.tidy {
            return Ok(());
        }
        let ours = |mechanism, hook: &str, ifindex| {
            self.mechanism == mechanism
                && self.attached.keys().any(|&(name, index)| name == hook && index == ifindex)
        };
        tcx::detach_others(pins, |hook, ifindex| ours(Mechanism::Tcx, hook, ifindex))?;
        for (hook, place) in clsact::find(&self.netlink, pins, observed).await? {
            if !ours(Mechanism::Clsact, hook.name(), place.ifindex) {
                clsact::detach(&self.netlink, pins, hook, place.ifindex).await?;
            }
        }
        self.tidy = true;
        Ok(())
    }

    /// Every program and the interface it is on.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Attachment)> {
        self.attached.iter().map(|((hook, _), attachment)| (*hook, attachment))
    }

    /// The interfaces that carry the program of `hook`.
    pub fn of(&self, hook: Hook) -> Vec<u32> {
        self.attached
            .keys()
            .filter(|(name, _)| *name == hook.name())
            .map(|(_, ifindex)| *ifindex)
            .collect()
    }

    /// What holds them.
    pub const fn mechanism(&self) -> Mechanism {
        self.mechanism
    }
}

/// Removes the filters of a pin path, which do not go with it, and returns the interfaces that had one.
pub async fn remove_filters(
    netlink: &Handle,
    pins: &PinPath,
    observed: &KernelState,
) -> Result<Vec<String>> {
    let mut interfaces = Vec::new();
    for (hook, place) in clsact::find(netlink, pins, observed).await? {
        if clsact::detach(netlink, pins, hook, place.ifindex).await? {
            interfaces.push(place.interface);
        }
    }
    interfaces.sort_unstable();
    interfaces.dedup();
    Ok(interfaces)
}

/// The name that an interface has at this moment: libraries ask for it, where the kernel goes by number. None where
/// the interface is gone.
fn name_now(ifindex: u32) -> Result<Option<String>> {
    match if_indextoname(ifindex) {
        Ok(name) => Ok(Some(name.to_string_lossy().into_owned())),
        Err(Errno::ENXIO | Errno::ENODEV) => Ok(None),
        // No descriptor to ask with is no answer.
        Err(errno) => {
            Err(errno).with_context(|| format!("asking for the name of interface {ifindex}"))
        }
    }
}

const fn direction(hook: Hook) -> TcAttachType {
    match hook {
        Hook::ToTunnel | Hook::ToBridge | Hook::ToWire => TcAttachType::Egress,
        Hook::FromContainer
        | Hook::FromBridge
        | Hook::FromUplink
        | Hook::FromTunnel
        | Hook::FromInterface => TcAttachType::Ingress,
    }
}
