//! Connections to this host's etcd. etcd asks who somebody is when a watch begins, and never again: whoever was expelled would
//! hear of everything for as long as his connection lasts.

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

/// Where clients reach etcd.
const ETCD_PORT: u16 = 2379;

/// Ends all connections of clients (`SOCK_DESTROY`, since Linux 4.5). Who may, comes back at once, and goes on where he was.
pub async fn end_all() -> Result<()> {
    end_at(ETCD_PORT).await
}

/// The same where etcd answers at this port.
pub async fn end_at(port: u16) -> Result<()> {
    let mut command = Command::new("ss");
    command
        .args(["--kill", "--tcp", "--no-header", "state", "established"])
        .arg(format!("( sport = :{port} )"));
    // Our own connection ends among the first, and whoever waits for this may give up by that: the others have to end, too.
    let ended = tokio::spawn(async move { command.output().await });
    let output = ended
        .await
        .context("nobody ends the connections of etcd's clients")?
        .context("cannot run ss, to end the connections of etcd's clients")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "cannot end the connections of etcd's clients: {}",
        said.trim()
    );
    Ok(())
}
