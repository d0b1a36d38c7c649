//! What every member needs, the first and the last: the agent's settings, the agent, and Docker.

use std::{path::Path, time::Instant};

use anyhow::{Result, anyhow};
use overlay_lease::store::etcd::EtcdConfig;

use super::{
    AGENT_ENV, AGENT_UNIT, READY_WITHIN, agent_env, ca_file,
    docker::Docker,
    files::{self, Readers},
    report::Report,
    systemd,
};
use crate::{
    admin::{DEFAULT_SOCKET, OverlayStatus, Status, fetch_status},
    exit::{Exit, WithExit as _},
};

/// How often to ask the agent.
const LOOK: std::time::Duration = std::time::Duration::from_millis(50);

/// A host has one overlay: fails where it is a member with other settings, or of another authority's.
pub(super) fn refuse_other(etcd: &EtcdConfig, iface: Option<&str>, ca: Option<&str>) -> Result<()> {
    let Some(found) = files::read(Path::new(AGENT_ENV))? else {
        return Ok(());
    };
    let same_authority = match ca {
        Some(ca) => files::read(&ca_file())?.as_deref() == Some(ca),
        None => true,
    };
    if same_authority && found == agent_env(etcd, iface) {
        return Ok(());
    }
    Err(anyhow!(
        "this host is a member already, with other settings ({AGENT_ENV}): `overlay-agent leave` first"
    ))
    .exit(Exit::Conflict)
}

/// Starts agent and Docker in this order, and waits until both are as they should be. An agent with `renewed`
/// credentials is started anew: it has read the old ones.
pub(super) async fn start(
    etcd: &EtcdConfig,
    iface: Option<&str>,
    renewed: bool,
    docker: &Docker,
    report: &mut Report,
) -> Result<()> {
    let text = agent_env(etcd, iface);
    let mut changed = renewed | files::write(Path::new(AGENT_ENV), &text, Readers::All)?;
    if systemd::files_of(AGENT_UNIT).await?.is_none() {
        return Err(anyhow!("there is no {AGENT_UNIT}: install the package, not only the program"))
            .exit(Exit::Unavailable);
    }
    docker.configure(report).await?;
    changed |= systemd::enable(AGENT_UNIT).await?;
    changed |= !systemd::is_active(AGENT_UNIT).await?;
    if changed {
        systemd::begin_restart(AGENT_UNIT).await?;
    }
    let overlay = wait("the agent to be ready", |status| status.ready).await?;
    let lease = &overlay.lease;
    let text = format!("leases {} at {} on {}", lease.subnet, lease.public_ip, overlay.uplink.name);
    report.step(changed, "agent", &text)?;
    docker.bring_up(lease.subnet, report).await?;
    wait("the overlay to be without problems", Status::is_fine).await.map(drop)
}

/// Asks the agent until it is as wanted; fails with what is in the way.
async fn wait(what: &str, wanted: impl Fn(&Status) -> bool) -> Result<OverlayStatus> {
    let start = Instant::now();
    loop {
        let last = match fetch_status(Path::new(DEFAULT_SOCKET)).await {
            Ok(status) if wanted(&status) => match status.overlay {
                Some(overlay) => return Ok(overlay),
                None => "it has no lease".to_owned(),
            },
            Ok(status) => status.problems.join(" "),
            Err(error) => format!("{error:#}"),
        };
        if start.elapsed() > READY_WITHIN {
            return Err(anyhow!(
                "waited {} s for {what}: {last} `journalctl --unit {AGENT_UNIT}` has the whole story; \
                 once that is mended, run this again: it goes on where it stopped",
                READY_WITHIN.as_secs()
            ))
            .exit(Exit::Unavailable);
        }
        tokio::time::sleep(LOOK).await;
    }
}
