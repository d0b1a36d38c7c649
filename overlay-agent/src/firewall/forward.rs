use std::{ffi::OsStr, process::Output};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

/// The rules, one per direction. What comes out of the device has been checked by `from_tunnel`.
fn rules(device: &str) -> [[String; 8]; 2] {
    ["-i", "-o"].map(|direction| {
        [direction, device, "-m", "comment", "--comment", "overlay forward", "-j", "ACCEPT"]
            .map(str::to_owned)
    })
}

/// Adds the rules that are missing to the end of FORWARD, after everything that Docker puts in front.
/// Docker sets that chain's policy to DROP, so the exception has to stand in the same chain. On a host
/// without `iptables` nothing filters, and nothing is done.
pub(super) async fn ensure(device: &str) -> Result<()> {
    for rule in rules(device) {
        let Some(found) = iptables("-C", &rule).await? else {
            return Ok(());
        };
        if found.status.success() {
            continue;
        }
        crate::repairs::made("rule in FORWARD");
        let output = iptables("-A", &rule).await?.context("iptables has vanished")?;
        if !output.status.success() {
            bail!(
                "adding rule `{}` to FORWARD: {}",
                rule.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
    }
    Ok(())
}

/// Removes the rules. Returns whether there were any.
pub(super) async fn remove(device: &str) -> Result<bool> {
    let mut removed = false;
    for rule in rules(device) {
        while iptables("-D", &rule).await?.is_some_and(|output| output.status.success()) {
            removed = true;
        }
    }
    Ok(removed)
}

async fn iptables<S: AsRef<OsStr>>(action: &str, rule: &[S]) -> Result<Option<Output>> {
    let output = Command::new("iptables")
        // Wait for the lock: Docker changes rules too.
        .args(["-w", "5", action, "FORWARD"])
        .args(rule)
        .output()
        .await;
    match output {
        Ok(output) => Ok(Some(output)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("running iptables"),
    }
}
