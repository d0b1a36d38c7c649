//! What every member needs, the first and the last: the agent's settings, the agent, and Docker.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use overlay_lease::store::etcd::EtcdConfig;

use super::{
    AGENT_ENV, AGENT_UNIT, READY_WITHIN, agent_env, docker::Docker, report::Report, systemd,
};
use crate::{
    admin::{DEFAULT_SOCKET, OverlayStatus, Status, fetch_status},
    exit::{Exit, WithExit as _},
    files::{self, Readers},
    output::print,
};

/// How often to ask the agent.
const LOOK: Duration = Duration::from_millis(50);
/// How often to ask systemd about it, and to say what is waited for.
const LOOK_AT_UNIT: Duration = Duration::from_secs(2);
/// After so many starts that came to nothing, another one helps no more.
const GIVEN_UP: u32 = 2;
/// How long the first answer of another host may take.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// By which name its lines are in the journal.
const AGENT: &str = "overlay-agent";

/// Whether an etcd is the one that this host is a member by, as its authority tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SameEtcd {
    /// It is, at whatever address.
    Yes,
    /// It is another.
    No,
    /// Nothing but its address tells.
    ByAddress,
}

/// A host has one overlay: fails where it is a member with other settings, or of another etcd.
pub(super) fn refuse_other(etcd: &EtcdConfig, iface: Option<&str>, same: SameEtcd) -> Result<()> {
    let Some(found) = files::read(Path::new(AGENT_ENV))? else {
        return Ok(());
    };
    let wanted = agent_env(etcd, iface);
    let but_address = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with("OVERLAY_ETCD_ENDPOINTS="));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let is_same = match same {
        SameEtcd::Yes => but_address(&found) == but_address(&wanted),
        SameEtcd::No => false,
        SameEtcd::ByAddress => found == wanted,
    };
    if is_same {
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

/// Has the agent, where there is one, ask etcd at these places from now on.
pub(super) async fn ask_at(endpoints: &[String], report: &mut Report) -> Result<()> {
    const SETTING: &str = "OVERLAY_ETCD_ENDPOINTS=";
    let Some(text) = files::read(Path::new(AGENT_ENV))? else {
        return Ok(());
    };
    let line = |line: &str| match line.strip_prefix(SETTING) {
        Some(_) => format!("{SETTING}{}\n", endpoints.join(",")),
        None => format!("{line}\n"),
    };
    let text: String = text.lines().map(line).collect();
    if !files::write(Path::new(AGENT_ENV), &text, Readers::All)?
        || !systemd::is_active(AGENT_UNIT).await?
    {
        return Ok(());
    }
    systemd::begin_restart(AGENT_UNIT).await?;
    wait("the agent to be ready", |status| status.ready).await?;
    report.done("agent", &format!("asks etcd at {}", endpoints.join(",")))
}

/// Waits for another host's answer through the overlay, which takes UDP packets both ways, and says whether there is one.
/// Where there is none, something between may drop them, or all of them are down.
pub(super) async fn hear_from_others() -> Result<()> {
    let start = Instant::now();
    loop {
        let status = fetch_status(Path::new(DEFAULT_SOCKET)).await?;
        let Some(overlay) = status.overlay.filter(|overlay| !overlay.peers.is_empty()) else {
            return Ok(());
        };
        let answered = overlay.peers.iter().find(|peer| peer.answered.is_some());
        if let Some(peer) = answered {
            let text = format!("{} answers at UDP port {}", peer.public_ip, overlay.port);
            return Report::found("overlay", &text);
        }
        if start.elapsed() > ANSWERS_WITHIN {
            let text = format!(
                "no other host answers at UDP port {} yet: `overlay-agent doctor` looks for what is in the way, and has the \
                 command for this host's firewall",
                overlay.port
            );
            return Report::found("overlay", &text);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Asks the agent until it is as wanted, saying what is waited for; fails with what is in the way, and at once where
/// the agent does not stay up.
async fn wait(what: &str, wanted: impl Fn(&Status) -> bool) -> Result<OverlayStatus> {
    let start = Instant::now();
    let mut said = String::new();
    let mut looked = start;
    // It may have ended in earlier times, too, and starts to count anew some time after it is told to start.
    let mut before = u32::MAX;
    loop {
        let last = match fetch_status(Path::new(DEFAULT_SOCKET)).await {
            Ok(status) if wanted(&status) => match status.overlay {
                Some(overlay) => return Ok(overlay),
                None => "it has no lease".to_owned(),
            },
            Ok(status) => status.problems.join(" "),
            Err(error) => format!("{error:#}"),
        };
        if looked.elapsed() > LOOK_AT_UNIT {
            looked = Instant::now();
            let restarts = systemd::restarts(AGENT_UNIT).await?;
            before = before.min(restarts);
            if restarts - before >= GIVEN_UP {
                let last = systemd::last_words(AGENT_UNIT, AGENT).await?;
                return Err(anyhow!(
                    "the agent does not stay up: {last}. Once that is mended, run this again: it goes on where it \
                     stopped"
                ))
                .exit(Exit::Unavailable);
            }
            if said != last {
                print(format_args!("{:<9} waits for {what}: {last}\n", "agent"))?;
                said.clone_from(&last);
            }
        }
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
