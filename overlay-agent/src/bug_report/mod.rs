//! `report`: one file with all that tells somebody else what a host is like, and with nothing that opens anything.

mod redact;
mod sources;

use std::{
    fs,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};
use overlay_lease::store::etcd::EtcdConfig;
use time::{OffsetDateTime, macros::format_description};

use self::redact::Redactor;
use crate::{
    cleanup::Places,
    exit::{Exit, WithExit as _},
};

/// So much of each source, from its end: of a log, what is latest.
const MOST: usize = 4 << 20;

/// What `report` is asked for.
#[derive(Clone, Debug)]
pub struct ReportOptions {
    /// Where to write it; otherwise a new file in this folder.
    pub file: Option<PathBuf>,
    /// Where everything of the agent's is.
    pub places: Places,
    /// How to reach etcd.
    pub etcd: EtcdConfig,
}

/// Asks everything that can be asked, and writes what was answered, or why nothing was, into one archive that only its
/// owner can read. Returns where it is.
pub async fn write(options: &ReportOptions) -> Result<PathBuf> {
    if !nix::unistd::Uid::effective().is_root() {
        return Err(anyhow!(
            "overlay-agent report has to be root: it reads maps, rules and logs of the host"
        ))
        .exit(Exit::NotPermitted);
    }
    let name = name(OffsetDateTime::now_utc())?;
    let path = options.file.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar")));
    let doing = || format!("cannot write {}", path.display());
    // Of a file that is there nobody knows whose it is.
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .with_context(doing)
        .exit(Exit::Conflict)?;
    let written = fill(file, &name, options).await.with_context(doing);
    if written.is_err() {
        // Half a report is none.
        fs::remove_file(&path).ok();
    }
    written.map(|()| path)
}

async fn fill(file: fs::File, folder: &str, options: &ReportOptions) -> Result<()> {
    let redactor = Redactor::new()?;
    let mut archive = tar::Builder::new(file);
    for (name, answer) in sources::all(options).await {
        let text = answer.unwrap_or_else(|error| format!("not to be had: {error:#}\n"));
        // First, lest half a key has lost what it is known by.
        let text = redactor.redact(&text);
        let text = latest(&text);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        let path = Path::new(folder).join(name);
        archive.append_data(&mut header, &path, text.as_bytes())?;
    }
    archive.into_inner()?.sync_all()?;
    Ok(())
}

/// The end of a text that is too long.
fn latest(text: &str) -> &str {
    let from = text.len().saturating_sub(MOST);
    let from = (from..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    &text[from..]
}

fn name(now: OffsetDateTime) -> Result<String> {
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    let now = now.format(format).context("cannot write the time")?;
    let host = fs::read_to_string("/proc/sys/kernel/hostname");
    let host = host.as_deref().map_or("host", str::trim);
    Ok(format!("overlay-report-{host}-{now}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_text_the_end_is_kept() {
        let text = format!("{}é{}", "a".repeat(10), "b".repeat(MOST - 1));
        let kept = latest(&text);
        assert_eq!(kept.len(), MOST - 1);
        assert!(kept.starts_with('b'));
        assert_eq!(latest("short"), "short");
    }
}
