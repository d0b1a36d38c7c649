use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result};
use aya::programs::{
    LinkOrder, SchedClassifier, TcAttachType,
    links::{FdLink, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions},
};
use overlay_common::Hook;

use super::{PinPath, Programs};

/// Where one program is attached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The interface's number, by which the kernel knows it.
    pub ifindex: u32,
    /// Its name, for people.
    pub interface: String,
}

/// The links that hold our programs on interfaces. They are pinned, so that the programs run on when
/// the agent does not.
#[derive(Debug, Default)]
pub struct Attachments {
    attached: BTreeMap<(&'static str, u32), Attachment>,
    /// Every pinned link is one of these. Otherwise there may be an earlier agent's, and those of interfaces
    /// that went while nobody looked.
    tidy: bool,
}

impl Attachments {
    /// Forgets every attachment whose program or pin is gone, so that it is made again, and returns them.
    pub fn forget_lost(
        &mut self,
        programs: &mut Programs,
        pins: &PinPath,
    ) -> Result<Vec<(&'static str, Attachment)>> {
        let mut lost = Vec::new();
        for hook in Hook::ALL {
            let id = programs.get(hook)?.info().context("asking about our program")?.id();
            for ifindex in self.of(hook) {
                let Some(place) = self.attached.get(&(hook.name(), ifindex)) else { continue };
                let runs = SchedClassifier::query_tcx(&place.interface, direction(hook))
                    .is_ok_and(|(_, programs)| programs.iter().any(|program| program.id() == id));
                if !runs || !pins.link(&link_name(hook, ifindex)).exists() {
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
    pub fn attach(
        &mut self,
        programs: &mut Programs,
        pins: &PinPath,
        hook: Hook,
        to: &Attachment,
    ) -> Result<()> {
        if self.attached.contains_key(&(hook.name(), to.ifindex)) {
            return Ok(());
        }
        let pin = pins.link(&link_name(hook, to.ifindex));
        let program = programs.get(hook)?;
        let replaced = pin.exists() && replace(program, &pin).is_ok();
        if !replaced {
            if pin.exists() {
                // Its interface is gone, and the link with it.
                fs::remove_file(&pin).with_context(|| format!("removing {}", pin.display()))?;
            }
            attach_new(program, hook, &to.interface, &pin)
                .with_context(|| format!("attaching {} to {}", hook.name(), to.interface))?;
        }
        self.attached.insert((hook.name(), to.ifindex), to.clone());
        Ok(())
    }

    /// Detaches the program of `hook` from an interface that it should not be on.
    pub fn detach(&mut self, pins: &PinPath, hook: Hook, ifindex: u32) -> Result<()> {
        self.attached.remove(&(hook.name(), ifindex));
        let pin = pins.link(&link_name(hook, ifindex));
        match fs::remove_file(&pin) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", pin.display()))
            }
            _ => Ok(()),
        }
    }

    /// Detaches whatever is attached and not ours any more.
    pub fn detach_leftovers(&mut self, pins: &PinPath) -> Result<()> {
        if self.tidy {
            return Ok(());
        }
        let ours: Vec<_> =
            self.attached.keys().map(|(hook, ifindex)| format!("{hook}-{ifindex}")).collect();
        for name in pins.links()?.into_iter().filter(|name| !ours.contains(name)) {
            let pin = pins.link(&name);
            fs::remove_file(&pin).with_context(|| format!("removing {}", pin.display()))?;
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
}

fn link_name(hook: Hook, ifindex: u32) -> String {
    format!("{}-{ifindex}", hook.name())
}

const fn direction(hook: Hook) -> TcAttachType {
    match hook {
        Hook::ToTunnel | Hook::ToBridge => TcAttachType::Egress,
        Hook::FromContainer | Hook::FromBridge | Hook::FromUplink | Hook::FromTunnel => {
            TcAttachType::Ingress
        }
    }
}

/// Puts `program` into the pinned link; fails when the link's interface is gone.
fn replace(program: &mut SchedClassifier, pin: &std::path::Path) -> Result<()> {
    let link = PinnedLink::from_pin(pin).context("opening the pinned link")?;
    let link = SchedClassifierLink::try_from(FdLink::from(link))
        .context("the pinned link is not one of TCX")?;
    let id = program.attach_to_link(link).context("replacing the program")?;
    // The pin keeps the link; our handle may go.
    drop(program.take_link(id).context("releasing the link")?);
    Ok(())
}

fn attach_new(
    program: &mut SchedClassifier,
    hook: Hook,
    interface: &str,
    pin: &std::path::Path,
) -> Result<()> {
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program.attach_with_options(interface, direction(hook), options)?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    // As above.
    drop(link.pin(pin).with_context(|| format!("pinning the link at {}", pin.display()))?);
    Ok(())
}
