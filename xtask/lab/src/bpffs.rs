//! The BPF file system: mounted when it was not, and unmounted again by the last lab to leave.

use std::{
    fs::{self, File},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
};

/// Where everybody expects it.
pub const MOUNT_POINT: &str = "/sys/fs/bpf";

/// The source we mount it with: tells our mount from the machine's own, without a file of ours.
const SOURCE: &str = "overlay-lab";

/// How long the kernel may take to close the files of a process that has just ended.
const UNMOUNT_WITHIN: Duration = Duration::from_secs(2);

/// Makes a lab's folder in the BPF file system, mounting it first if need be.
pub(crate) fn enter(pins: &Path) -> Result<()> {
    let _lock = lock()?;
    if source()?.is_none() {
        mount(
            Some(SOURCE),
            MOUNT_POINT,
            Some("bpf"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            Some("mode=0700"),
        )
        .with_context(|| format!("cannot mount the BPF file system on {MOUNT_POINT}"))?;
    }
    fs::create_dir_all(pins).with_context(|| format!("cannot create {}", pins.display()))
}

/// Removes a lab's folder with all pins, and the mount if it is ours and nobody else's lab uses it.
pub(crate) fn leave(pins: &Path) -> Result<()> {
    let _lock = lock()?;
    match fs::remove_dir_all(pins) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", pins.display()));
        }
        Ok(()) | Err(_) => {}
    }
    if source()?.as_deref() == Some(SOURCE) && is_unused()? {
        unmount()?;
    }
    Ok(())
}

/// Unmounts it, once the last process of the lab has let go of it. When somebody else is inside, with
/// nothing pinned yet, it has become theirs.
fn unmount() -> Result<()> {
    let start = Instant::now();
    loop {
        match umount2(MOUNT_POINT, MntFlags::empty()) {
            Err(Errno::EBUSY) if start.elapsed() < UNMOUNT_WITHIN => {
                thread::sleep(Duration::from_millis(20));
            }
            Ok(()) | Err(Errno::EBUSY) => return Ok(()),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot unmount {MOUNT_POINT}"));
            }
        }
    }
}

/// The source of what is mounted on the mount point.
fn source() -> Result<Option<String>> {
    let mounts =
        fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    Ok(mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (source, target, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (target == MOUNT_POINT && kind == "bpf").then(|| source.to_owned())
        })
        .next_back())
}

/// Whether there is nothing but the two iterators that the kernel puts into every instance.
fn is_unused() -> Result<bool> {
    for entry in fs::read_dir(MOUNT_POINT).with_context(|| format!("cannot list {MOUNT_POINT}"))? {
        let name = entry.with_context(|| format!("cannot list {MOUNT_POINT}"))?.file_name();
        if name != "maps.debug" && name != "progs.debug" {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Keeps two labs from mounting and unmounting at the same time. The lock is on a folder that always
/// exists, so that no lock file is left behind.
fn lock() -> Result<Flock<File>> {
    let directory = File::open("/sys/fs").context("cannot open /sys/fs")?;
    Flock::lock(directory, FlockArg::LockExclusive)
        .map_err(|(_, error)| anyhow!(error).context("cannot lock /sys/fs"))
}
