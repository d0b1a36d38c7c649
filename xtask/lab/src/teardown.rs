//! Taking a lab down by its record: the same way whether it ends well, by Ctrl-C, or is found after
//! a crash.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::Signal,
};

use crate::{
    bpffs, cgroups,
    ledger::Record,
    namespace,
    process::STOP_WITHIN,
    process_id::{self, ProcessId},
};

/// Takes down everything in the record, and then the record itself.
///
/// Every step is tried whatever happened to those before; the record stays when something could not
/// be removed, so that the next attempt finds it.
pub fn teardown(record: &Record) -> Result<()> {
    let mut failures = Vec::new();
    let mut attempt = |result: Result<()>| {
        if let Err(error) = result {
            failures.push(format!("{error:#}"));
        }
    };

    // Containers first: a Docker daemon whose containers are gone ends at once.
    attempt(cgroups::kill(&record.cgroup));
    attempt(stop(record));
    for name in record.namespaces.iter().rev() {
        attempt(namespace::delete(name));
    }
    attempt(cgroups::remove(&record.cgroup));
    attempt(unmount_below(&record.directory));
    attempt(bpffs::leave(&record.pins));
    attempt(remove_files(&record.directory));

    if failures.is_empty() {
        let path = Record::path(&record.name)?;
        return match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        };
    }
    bail!("lab {} could not be taken down completely:\n  {}", record.name, failures.join("\n  "))
}

/// Takes down the labs whose owner was killed before it could.
pub fn sweep() -> Result<()> {
    for record in Record::all()? {
        if record.is_orphan() {
            eprintln!("taking down lab {}, left behind by a crash", record.name);
            teardown(&record)?;
        }
    }
    Ok(())
}

fn stop(record: &Record) -> Result<()> {
    let processes: Vec<ProcessId> =
        record.processes.iter().rev().map(|process| process.id).collect();
    for (signal, within) in
        [(Signal::SIGTERM, STOP_WITHIN), (Signal::SIGKILL, Duration::from_secs(5))]
    {
        for process in &processes {
            process.signal(signal)?;
        }
        if process_id::gone(&processes, within) {
            return Ok(());
        }
    }
    let left: Vec<String> = record
        .processes
        .iter()
        .filter(|process| process.id.is_running())
        .map(|process| format!("{} ({})", process.what, process.id.pid))
        .collect();
    bail!("still running after SIGKILL: {}", left.join(", "))
}

/// Unmounts whatever is mounted below a folder, the innermost first.
fn unmount_below(directory: &Path) -> Result<()> {
    let mounts =
        fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let below: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1).map(PathBuf::from))
        .filter(|target| target.starts_with(directory))
        .collect();
    for target in below.iter().rev() {
        umount2(target, MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {}", target.display()))?;
    }
    Ok(())
}

fn remove_files(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
