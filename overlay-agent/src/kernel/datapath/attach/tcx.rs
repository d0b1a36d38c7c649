//! Links (Linux 6.6, commit e420bed02507), pinned as `links/<hook>-<ifindex>`.

use std::{fs, io::ErrorKind, path::Path};

use anyhow::{Context, Result};
use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier,
    links::{FdLink, LinkError, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions, TcError},
};
use nix::errno::Errno;
use overlay_common::Hook;

use super::{Attachment, PinPath, direction, name_now};

/// Whether the program with this number runs there, by a link whose pin is there. Fails where that cannot be
/// found out, which is no reason to take the program for detached.
pub(super) fn runs(pins: &PinPath, hook: Hook, place: &Attachment, id: u32) -> Result<bool> {
    let Some(interface) = name_now(place.ifindex)? else { return Ok(false) };
    let runs = match SchedClassifier::query_tcx(&interface, direction(hook)) {
        Ok((_, programs)) => programs.iter().any(|program| program.id() == id),
        Err(error) if is_gone(&error) => false,
        Err(error) => {
            return Err(error).with_context(|| {
                format!("asking whether {} is still on {interface}", hook.name())
            });
        }
    };
    let pin = pins.link(&name(hook, place.ifindex));
    let is_pinned = || {
        pin.try_exists().with_context(|| format!("looking for the pinned link {}", pin.display()))
    };
    Ok(runs && is_pinned()?)
}

/// Whether an error means that the interface, or a program on it, is not there; as opposed to having no file
/// descriptor left to look with. Of the latter the C library says `ENOENT` when it is asked for an interface's
/// number.
fn is_gone(error: &ProgramError) -> bool {
    let (error, gone): (_, &[Errno]) = match error {
        ProgramError::IOError(error) | ProgramError::TcError(TcError::IoError(error)) => {
            (error, &[Errno::ENODEV, Errno::ENXIO])
        }
        ProgramError::SyscallError(error) => (&error.io_error, &[Errno::ENODEV, Errno::ENOENT]),
        _ => return false,
    };
    error.raw_os_error().is_some_and(|number| gone.contains(&Errno::from_raw(number)))
}

pub(super) fn attach(
    program: &mut SchedClassifier,
    pins: &PinPath,
    hook: Hook,
    to: &Attachment,
) -> Result<()> {
    let pin = pins.link(&name(hook, to.ifindex));
    if pin.exists() {
        match replace(program, &pin) {
            Ok(()) => return Ok(()),
            Err(error) if is_of_no_use(&error) => unpin(&pin)?,
            // What is there works on, for all we know.
            Err(error) => return Err(error),
        }
    }
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let name = name_now(to.ifindex)?.with_context(|| format!("{} is gone", to.interface))?;
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

/// Whether a pinned link cannot carry a program of ours any more: its interface is gone (`ENOLINK`, `tcx_link_update` in
/// `kernel/bpf/tcx.c`), or it is of another kind.
fn is_of_no_use(error: &anyhow::Error) -> bool {
    let refused = match (error.downcast_ref(), error.downcast_ref()) {
        (Some(LinkError::SyscallError(error)), _)
        | (_, Some(ProgramError::SyscallError(error))) => error,
        (not_one, _) => return not_one.is_some(),
    };
    let number = refused.io_error.raw_os_error().map(Errno::from_raw);
    number.is_some_and(|number| matches!(number, Errno::ENOLINK | Errno::EINVAL))
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

#[cfg(test)]
mod tests {
    use std::io::Error;

    use aya::sys::SyscallError;

    use super::*;

    #[test]
    fn a_link_that_works_is_not_given_up_for_want_of_a_file_descriptor() {
        let of = |errno: Errno| {
            let io_error = Error::from_raw_os_error(errno as i32);
            let error = SyscallError { call: "bpf_link_update", io_error };
            is_of_no_use(&anyhow::Error::from(ProgramError::from(error)).context("replacing"))
        };
        assert!(of(Errno::ENOLINK) && of(Errno::EINVAL));
        assert!(!of(Errno::EMFILE) && !of(Errno::EPERM) && !of(Errno::ENOMEM));
        assert!(is_of_no_use(&anyhow::Error::from(LinkError::InvalidLink)));
        // What is pinned there is no link at all.
        let io_error = Error::from_raw_os_error(Errno::EINVAL as i32);
        let error = LinkError::from(SyscallError { call: "bpf_obj_get_info_by_fd", io_error });
        assert!(is_of_no_use(&anyhow::Error::from(error)));
    }

    #[test]
    fn an_interface_that_is_gone_is_told_from_one_that_cannot_be_looked_at() {
        let error = |errno: Errno| Error::from_raw_os_error(errno as i32);
        for (errno, gone) in [
            (Errno::ENODEV, true),
            (Errno::ENXIO, true),
            (Errno::EMFILE, false),
            (Errno::EPERM, false),
        ] {
            assert_eq!(is_gone(&ProgramError::IOError(error(errno))), gone, "{errno}");
            let error = ProgramError::from(TcError::IoError(error(errno)));
            assert_eq!(is_gone(&error), gone, "{errno}");
        }
    }
}
