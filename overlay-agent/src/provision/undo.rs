//! `leave`: what `init` or `join` did is undone.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use ipnetwork::Ipv4Network;
use overlay_common::MacAddr;
use overlay_lease::store::{
    Store as _,
    etcd::{EtcdConfig, EtcdStore},
    operate::give_back,
};

use super::{
    AGENT_UNIT, CONFIG_DIR, ETCD_DATA, ETCD_DROP_IN, ETCD_UNIT, checks, docker, files,
    report::Report, systemd,
};
use crate::{
    cleanup::{Places, cleanup, own_lease},
    exit::{Exit, OwnExit as _, WithExit as _},
    state_file,
    subnet_env::read_subnet,
};

/// What `docker-opts` writes for Docker's service.
const DOCKER_OPTIONS: &str = "/run/overlay/docker_opts.env";

/// What `leave` is asked for.
#[derive(Clone, Debug)]
pub struct Leaving {
    /// Where everything of the agent's is.
    pub places: Places,
    /// How to reach etcd, to give the lease back.
    pub etcd: EtcdConfig,
    /// Whether lease and credentials stay, for this host to come back.
    pub keep: bool,
}

impl Leaving {
    /// The subnet that this host has.
    pub fn subnet(&self) -> Result<Option<Ipv4Network>> {
        read_subnet(&self.places.subnet_file)
    }
}

/// Makes this host a stranger to the overlay.
pub async fn leave(leaving: &Leaving) -> Result<()> {
    checks::root("leave")?;
    let subnet = leaving.subnet()?;
    let serves = Path::new(ETCD_DROP_IN).exists() && !leaving.keep;
    if serves {
        refuse_to_strand_others(&leaving.etcd, subnet).await?;
    }
    let mut report = Report::default();
    if systemd::files_of(AGENT_UNIT).await?.is_some() && systemd::is_active(AGENT_UNIT).await? {
        systemd::disable(AGENT_UNIT).await?;
        report.done("agent", "stopped, and not started at boot any more")?;
    }
    if let Some(lease) = own_lease(&leaving.places).await?.filter(|_| !leaving.keep) {
        release(&leaving.etcd, lease, &mut report).await?;
    }
    for line in cleanup(&leaving.places).await? {
        report.done("removed", &line)?;
    }
    if !leaving.keep && state_file::remove(&leaving.places.state_file)? {
        report.done("removed", &leaving.places.state_file.display().to_string())?;
    }
    files::remove(Path::new(DOCKER_OPTIONS))?;
    if let Some(address) = docker::release().await? {
        report.done("docker", &format!("has its own bridge again, at {address}"))?;
    }
    if serves {
        stop_serving(&mut report).await?;
    }
    if !leaving.keep && files::remove_all(&PathBuf::from(CONFIG_DIR))? {
        report.done("removed", CONFIG_DIR)?;
    }
    report.finish()
}

/// Without this host's etcd, nobody could take or renew a lease.
async fn refuse_to_strand_others(etcd: &EtcdConfig, own: Option<Ipv4Network>) -> Result<()> {
    let Ok(store) = EtcdStore::new(etcd) else { return Ok(()) };
    let Ok(listing) = store.list().await else {
        tracing::warn!("this host's etcd does not answer: whether others use it is not known");
        return Ok(());
    };
    let others: Vec<_> = listing
        .entries
        .iter()
        .filter_map(|entry| store.prefix().parse_subnet_key(&entry.key).ok())
        .filter(|key| Some(key.subnet) != own)
        .map(|key| key.subnet.to_string())
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    Err(anyhow!(
        "this host's etcd serves others, with leases of {}: they have to leave first. `overlay-agent lease \
         release` forgets one that is gone for good",
        others.join(", ")
    ))
    .exit(Exit::Conflict)
}

/// A lease that cannot be given back ends by itself.
async fn release(
    etcd: &EtcdConfig,
    (subnet, vtep_mac): (Ipv4Network, MacAddr),
    report: &mut Report,
) -> Result<()> {
    let given = match EtcdStore::new(etcd) {
        Ok(store) => give_back(&store, subnet, vtep_mac).await.own_exit(),
        Err(error) => Err(error),
    };
    match given {
        Ok(()) => report.done("lease", &format!("{subnet} is given back")),
        Err(error) => {
            tracing::warn!("{subnet} could not be given back, and expires by itself: {error:#}");
            Ok(())
        }
    }
}

/// This host's etcd becomes what the package makes of it.
async fn stop_serving(report: &mut Report) -> Result<()> {
    systemd::stop(&[ETCD_UNIT]).await?;
    let path = Path::new(ETCD_DROP_IN);
    files::remove(path)?;
    // Others may have settings there.
    path.parent().map(std::fs::remove_dir);
    files::remove_all(Path::new(ETCD_DATA))?;
    systemd::reload().await?;
    systemd::start(ETCD_UNIT).await?;
    report.done("etcd", "has its package's settings again; the overlay's data is removed")
}
