//! Services, through `systemctl`.

use std::process::Output;

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;

/// The unit of Debian's etcd.
pub(crate) const ETCD_UNIT: &str = "etcd.service";

async fn run(args: &[&str]) -> Result<Output> {
    Command::new("systemctl")
        .args(args)
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .with_context(|| format!("cannot run `systemctl {}`", args.join(" ")))
}

async fn must(args: &[&str]) -> Result<Output> {
    let output = run(args).await?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        bail!("`systemctl {}` failed: {}", args.join(" "), reason.trim());
    }
    Ok(output)
}

/// Has systemd read its files anew.
pub(crate) async fn reload() -> Result<()> {
    must(&["daemon-reload"]).await.map(drop)
}

/// What makes up a unit: all its files, as they are.
pub(crate) async fn files_of(unit: &str) -> Result<Option<String>> {
    let output = run(&["cat", unit]).await?;
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Whether a unit has been started, or is about to be.
pub(crate) async fn is_active(unit: &str) -> Result<bool> {
    let output = run(&["is-active", unit]).await?;
    Ok(matches!(output.stdout.trim_ascii(), b"active" | b"activating" | b"reloading"))
}

/// How often systemd has started a unit again by itself, since somebody last did.
pub(crate) async fn restarts(unit: &str) -> Result<u32> {
    let output = must(&["show", "--property=NRestarts", "--value", unit]).await?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim()
        .parse()
        .with_context(|| format!("systemd says that {unit} restarted {text:?} times"))
}

/// The last thing that a unit's program has written about an error, or at all.
pub(crate) async fn last_words(unit: &str, program: &str) -> Result<String> {
    let args =
        ["--unit", unit, "--identifier", program, "--lines=20", "--output=cat", "--no-pager"];
    let output = Command::new("journalctl")
        .args(args)
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .context("cannot run `journalctl`")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let about_errors = |line: &&str| line.contains("ERROR") || line.starts_with("error");
    let last = text.lines().rfind(about_errors).or_else(|| text.lines().next_back());
    Ok(last.unwrap_or("it has written nothing").trim().trim_end_matches('.').to_owned())
}

/// Has a unit started at boot. Returns whether it was not.
pub(crate) async fn enable(unit: &str) -> Result<bool> {
    if run(&["is-enabled", "--quiet", unit]).await?.status.success() {
        return Ok(false);
    }
    must(&["enable", unit]).await?;
    Ok(true)
}

/// Has units not started at boot any more, and stops them.
pub(crate) async fn disable(unit: &str) -> Result<()> {
    must(&["disable", "--now", unit]).await.map(drop)
}

/// Starts a unit, and waits until it is.
pub(crate) async fn start(unit: &str) -> Result<()> {
    must(&["start", unit]).await.map(drop)
}

/// Starts a unit again, and waits until it is.
pub(crate) async fn restart(unit: &str) -> Result<()> {
    must(&["restart", unit]).await.map(drop)
}

/// Starts a unit again and does not wait: whoever looks on sees more than systemd does.
pub(crate) async fn begin_restart(unit: &str) -> Result<()> {
    must(&["restart", "--no-block", unit]).await.map(drop)
}

/// Stops units, and waits until they have.
pub(crate) async fn stop(units: &[&str]) -> Result<()> {
    must(&[&["stop"], units].concat()).await.map(drop)
}
