//! Settings of the whole machine that a measurement needs, put back when it ends.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

/// Which congestion controls namespaces may use (`net/ipv4/tcp_cong.c`): the machine's own, of its first namespace.
const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

/// A changed setting: as before once this is dropped.
#[derive(Debug)]
pub(super) struct Setting {
    path: PathBuf,
    before: String,
}

impl Setting {
    /// Writes what `change` makes of a file of `/proc/sys`.
    pub(super) fn change(path: &str, change: impl FnOnce(&str) -> String) -> Result<Self> {
        let before = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
        let before = before.trim().to_owned();
        let now = change(&before);
        fs::write(path, &now).with_context(|| format!("cannot write {now:?} to {path}"))?;
        Ok(Self { path: path.into(), before })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.path, &self.before) {
            eprintln!("cannot put back {:?} in {}: {error}", self.before, self.path.display());
        }
    }
}

/// Lets namespaces use a congestion control that the kernel has, whatever the machine allows.
pub(super) fn allow_congestion_control(name: &str) -> Result<Setting> {
    Setting::change(ALLOWED, |allowed| {
        if allowed.split_whitespace().any(|one| one == name) {
            allowed.to_owned()
        } else {
            format!("{allowed} {name}")
        }
    })
    .with_context(|| format!("this kernel may have no congestion control {name}"))
}
