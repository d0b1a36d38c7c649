//! Services, through `systemctl`.

use std::process::Output;

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;

async fn run(args: &[&str]) -> Result<Output> {
    Command::new("systemctl")
        .args(args)
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .with_context(|| format!("cannot run `systemctl {}`", args.join(" ")))
}

async fn must(args: &[&str]) -> Result<()> {
    let output = run(args).await?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        bail!("`systemctl {}` failed: {}", args.join(" "), reason.trim());
    }
    Ok(())
}

/// Has systemd read its files anew.
pub(super) async fn reload() -> Result<()> {
    must(&["daemon-reload"]).await
}

/// What makes up a unit: all its files, as they are.
pub(super) async fn files_of(unit: &str) -> Result<Option<String>> {
    let output = run(&["cat", unit]).await?;
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Whether a unit has been started, or is about to be.
pub(super) async fn is_active(unit: &str) -> Result<bool> {
    let output = run(&["is-active", unit]).await?;
    Ok(matches!(output.stdout.trim_ascii(), b"active" | b"activating" | b"reloading"))
}

/// Has a unit started at boot. Returns whether it was not.
pub(super) async fn enable(unit: &str) -> Result<bool> {
    if run(&["is-enabled", "--quiet", unit]).await?.status.success() {
        return Ok(false);
    }
    must(&["enable", unit]).await?;
    Ok(true)
}

/// Has units not started at boot any more, and stops them.
pub(super) async fn disable(unit: &str) -> Result<()> {
    must(&["disable", "--now", unit]).await
}

/// Starts a unit, and waits until it is.
pub(super) async fn start(unit: &str) -> Result<()> {
    must(&["start", unit]).await
}

/// Starts a unit again, and waits until it is.
pub(super) async fn restart(unit: &str) -> Result<()> {
    must(&["restart", unit]).await
}

/// Starts a unit again and does not wait: whoever looks on sees more than systemd does.
pub(super) async fn begin_restart(unit: &str) -> Result<()> {
    must(&["restart", "--no-block", unit]).await
}

/// Stops units, and waits until they have.
pub(super) async fn stop(units: &[&str]) -> Result<()> {
    must(&[&["stop"], units].concat()).await
}
