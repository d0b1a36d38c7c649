//! Control groups of a lab's Docker containers: the one sure way to find every process of theirs,
//! even when Docker itself is gone.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use crate::process_id::{self, ProcessId};

/// How long the kernel may take to let go of the last process.
const REMOVE_WITHIN: Duration = Duration::from_secs(5);

/// Kills every process below this group, in every hierarchy.
pub(crate) fn kill(group: &str) -> Result<()> {
    let mut processes = Vec::new();
    for path in everywhere(group)? {
        members(&path, &mut processes);
    }
    for process in &processes {
        process.signal(Signal::SIGKILL)?;
    }
    process_id::gone(&processes, REMOVE_WITHIN);
    Ok(())
}

/// Removes this group and those below, in every hierarchy.
pub(crate) fn remove(group: &str) -> Result<()> {
    let start = Instant::now();
    for path in everywhere(group)? {
        while let Err(error) = remove_tree(&path) {
            if start.elapsed() > REMOVE_WITHIN {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// Where the group exists: one folder in each hierarchy of a version 1 machine, one in all on
/// version 2, both on a hybrid.
fn everywhere(group: &str) -> Result<Vec<PathBuf>> {
    let mounts =
        fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    Ok(mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (target, kind) = (fields.next()?, fields.next()?);
            let path = Path::new(target).join(group.trim_start_matches('/'));
            (kind.starts_with("cgroup") && path.is_dir()).then_some(path)
        })
        .collect())
}

fn members(path: &Path, found: &mut Vec<ProcessId>) {
    // A group may go while we look: then it has no members.
    let processes = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    found.extend(processes.lines().filter_map(|line| ProcessId::of(line.parse().ok()?).ok()));
    for child in children(path) {
        members(&child, found);
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for child in children(path) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn children(path: &Path) -> Vec<PathBuf> {
    fs::read_dir(path).map_or_else(
        |_gone| Vec::new(),
        |entries| {
            entries
                .filter_map(Result::ok)
                .map(|entry| entry.path())
                .filter(|path| path.is_dir())
                .collect()
        },
    )
}
