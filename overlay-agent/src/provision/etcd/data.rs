//! What this host's etcd has on its disk.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};

use super::super::ETCD_DATA;

/// Moves etcd's data beside where they were, and returns where they are now.
pub(super) fn put_aside() -> Result<PathBuf> {
    let data = Path::new(ETCD_DATA);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let aside = data.with_file_name(format!("overlay.before-{}", now.as_secs()));
    fs::rename(data, &aside)
        .with_context(|| format!("cannot move {ETCD_DATA} to {}", aside.display()))?;
    Ok(aside)
}
