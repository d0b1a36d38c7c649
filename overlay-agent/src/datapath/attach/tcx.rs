//! Links (Linux 6.6, commit e420bed02507), pinned as `links/<hook>-<ifindex>`.

use std::{fs, io::ErrorKind, path::Path};

use anyhow::{Context, Result};
use aya::programs::{
    LinkOrder, SchedClassifier,
    links::{FdLink, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions},
};
use overlay_common::Hook;

use super::{Attachment, PinPath, direction, name_now};

/// Whether the program with this number runs there, by a link whose pin is there.
pub(super) fn runs(pins: &PinPath, hook: Hook, place: &Attachment, id: u32) -> bool {
    let runs = name_now(place.ifindex).is_some_and(|name| {
        SchedClassifier::query_tcx(&name, direction(hook))
            .is_ok_and(|(_, programs)| programs.iter().any(|program| program.id() == id))
    });
    runs && pins.link(&name(hook, place.ifindex)).exists()
}

pub(super) fn attach(
    program: &mut SchedClassifier,
    pins: &PinPath,
    hook: Hook,
    to: &Attachment,
) -> Result<()> {
    let pin = pins.link(&name(hook, to.ifindex));
    if pin.exists() {
        if replace(program, &pin).is_ok() {
            return Ok(());
        }
        // Its interface is gone, and the link with it.
        unpin(&pin)?;
    }
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let name = name_now(to.ifindex).with_context(|| format!("{} is gone", to.interface))?;
    let id = program.attach_with_options(&name, direction(hook), options)?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    // The pin keeps the link; our handle may go.
    drop(link.pin(&pin).with_context(|| format!("pinning the link at {}", pin.display()))?);
    Ok(())
}

pub(super) fn detach(pins: &PinPath, hook: Hook, ifindex: u32) -> Result<()> {
    unpin(&pins.link(&name(hook, ifindex)))
}

/// Detaches every pinned link but those that `keep` wants, by name of the hook and number of the interface.
pub(super) fn detach_others(pins: &PinPath, keep: impl Fn(&str, u32) -> bool) -> Result<()> {
    for name in pins.links()? {
        let kept = name.rsplit_once('-').is_some_and(|(hook, ifindex)| {
            ifindex.parse().is_ok_and(|ifindex| keep(hook, ifindex))
        });
        if !kept {
            unpin(&pins.link(&name))?;
        }
    }
    Ok(())
}

fn name(hook: Hook, ifindex: u32) -> String {
    format!("{}-{ifindex}", hook.name())
}

fn unpin(pin: &Path) -> Result<()> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", pin.display()))
        }
        _ => Ok(()),
    }
}

/// Puts `program` into the pinned link; fails when the link's interface is gone.
fn replace(program: &mut SchedClassifier, pin: &Path) -> Result<()> {
    let link = PinnedLink::from_pin(pin).context("opening the pinned link")?;
    let link = SchedClassifierLink::try_from(FdLink::from(link))
        .context("the pinned link is not one of TCX")?;
    let id = program.attach_to_link(link).context("replacing the program")?;
    // As above.
    drop(program.take_link(id).context("releasing the link")?);
    Ok(())
}
