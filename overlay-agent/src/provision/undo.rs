//! `leave`: what `init` or `join` did is undone.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use ipnetwork::Ipv4Network;
use overlay_common::MacAddr;
use overlay_lease::{
    store::{
        Store as _,
        etcd::{EtcdConfig, EtcdStore},
        operate::give_back,
    },
    wire::identity::{About, Applicant},
};

use super::{
    AGENT_UNIT, CONFIG_DIR, ETCD_DATA, ETCD_DROP_IN, checks,
    consent::{self, Consent},
    docker,
    etcd::{self, at_home},
    report::Report,
    systemd,
};
use crate::{
    authority::{self, host_identity, root_identity},
    cleanup::{Places, cleanup, own_lease},
    control::{etcd_members, last_known},
    exit::{Exit, OwnExit as _, WithExit as _},
    files::{self, Readers},
    state_file::{self, HostState},
    subnet_env::read_subnet,
};

/// What `docker-opts` writes for Docker's service.
const DOCKER_OPTIONS: &str = "/run/overlay/docker_opts.env";

/// Who used this host's etcd when the agent left it running.
const USERS: &str = "/var/lib/overlay/etcd-users";

/// What `leave` is asked for.
#[derive(Clone, Debug)]
pub struct Leaving {
    /// Where everything of the agent's is.
    pub places: Places,
    /// How to reach etcd, to give the lease back.
    pub etcd: EtcdConfig,
    /// Whether lease and credentials stay, for this host to come back.
    pub keep: bool,
    /// Whether this host's etcd goes also where others use it.
    pub delete_etcd: bool,
    /// Whether containers may be ended.
    pub consent: Consent,
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
    let has_etcd = Path::new(ETCD_DROP_IN).exists();
    let serves = has_etcd && !leaving.keep;
    // Of whatever address the host has become, its own etcd is at home.
    let etcd = if has_etcd { at_home(&leaving.etcd) } else { leaving.etcd.clone() };
    let everywhere = EtcdConfig {
        endpoints: etcd.endpoints.iter().chain(&leaving.etcd.endpoints).cloned().collect(),
        ..leaving.etcd.clone()
    };
    let others =
        if serves { etcd::others(&everywhere).await.unwrap_or_default() } else { Vec::new() };
    let mut users = None;
    if has_etcd && !leaving.delete_etcd && others.is_empty() {
        // After `leave --keep` only the state file tells which lease is this host's own.
        let own = match subnet {
            Some(subnet) => Some(subnet),
            None => HostState::read(&leaving.places.state_file)?.map(|state| state.subnet),
        };
        let found = Users::of(&etcd, own).await;
        users = if leaving.keep {
            Some(found.to_word())
        } else {
            found.refuse_to_strand().map(|()| None)?
        };
    }
    let sentence = match subnet {
        Some(subnet) if !leaving.keep => format!("This host gives {subnet} back. "),
        _ => String::new(),
    };
    let sentence = format!(
        "{sentence}The overlay's agent is stopped, and Docker has a bridge of its own again.\n"
    );
    if !consent::ask(leaving.consent, &steps(leaving, subnet, serves), Some(&sentence)).await? {
        return Ok(());
    }
    if let Some(users) = users {
        files::write(Path::new(USERS), &format!("{users}\n"), Readers::All)?;
    }
    let mut report = Report::default();
    let etcd = match others.as_slice() {
        [] => etcd,
        // The others have to be able to go on: before anything is changed here.
        others => match etcd::part_with(&everywhere, others, &mut report).await {
            Err(error) if leaving.delete_etcd => {
                tracing::warn!("etcd's other members are not told: {error:#}");
                etcd
            }
            outcome => outcome?,
        },
    };
    if systemd::files_of(AGENT_UNIT).await?.is_some() && systemd::is_active(AGENT_UNIT).await? {
        systemd::disable(AGENT_UNIT).await?;
        report.done("agent", "stopped, and not started at boot any more")?;
    }
    if let Some(lease) = own_lease(&leaving.places).await?.filter(|_| !leaving.keep) {
        release(&etcd, lease, &mut report).await?;
    }
    if !leaving.keep && (!serves || !others.is_empty()) {
        forget_identity(&etcd, &mut report).await?;
    }
    for line in cleanup(&leaving.places).await? {
        report.done("removed", &line)?;
    }
    if !leaving.keep {
        last_known::forget(&leaving.places.state_file)?;
        etcd_members::forget(&leaving.places.state_file)?;
    }
    if !leaving.keep && state_file::remove(&leaving.places.state_file)? {
        report.done("removed", &leaving.places.state_file.display().to_string())?;
    }
    files::remove(Path::new(DOCKER_OPTIONS))?;
    if let Some(address) = docker::release(&mut report).await? {
        report.done("docker", &format!("has its own bridge again, at {address}"))?;
    }
    if has_etcd && leaving.keep {
        // Without the package there is nothing that could make copies.
        etcd::disable_timer().await?;
    }
    if serves {
        etcd::stop_serving(&mut report).await?;
    }
    if !leaving.keep && files::remove_all(&PathBuf::from(CONFIG_DIR))? {
        report.done("removed", CONFIG_DIR)?;
    }
    report.finish()
}

/// What would be done, for `--dry-run`.
fn steps(leaving: &Leaving, subnet: Option<Ipv4Network>, serves: bool) -> Vec<String> {
    let lease = subnet.filter(|_| !leaving.keep).map(|subnet| format!("give {subnet} back"));
    let etcd = serves.then(|| format!("remove this host's etcd with its data in {ETCD_DATA}"));
    let settings = (!leaving.keep).then(|| format!("remove {CONFIG_DIR}"));
    ["stop the agent".to_owned()]
        .into_iter()
        .chain(lease)
        .chain(["remove programs, maps, device, routes and rules".to_owned()])
        .chain(["start Docker on its own bridge, if it has the overlay's".to_owned()])
        .chain(etcd)
        .chain(settings)
        .collect()
}

/// Who has leases in this host's etcd, besides this host.
#[derive(Debug)]
enum Users {
    Nobody,
    Others(Vec<String>),
    Unknown(anyhow::Error),
}

impl Users {
    async fn of(etcd: &EtcdConfig, own: Option<Ipv4Network>) -> Self {
        match others(etcd, own).await {
            Ok(others) if others.is_empty() => Self::Nobody,
            Ok(others) => Self::Others(others),
            Err(error) => Self::Unknown(error),
        }
    }

    /// For the package's script, which deletes nothing but what nobody uses.
    fn to_word(&self) -> String {
        match self {
            Self::Nobody => "nobody".to_owned(),
            Self::Others(others) => others.join(","),
            Self::Unknown(_) => "unknown".to_owned(),
        }
    }

    /// Without this host's etcd, nobody could take or renew a lease.
    fn refuse_to_strand(self) -> Result<()> {
        match self {
            Self::Nobody => Ok(()),
            Self::Others(others) => Err(anyhow!(
                "this host's etcd serves others, with leases of {}: they have to leave first. `overlay-agent \
                 lease release` forgets one that is gone for good",
                others.join(", ")
            ))
            .exit(Exit::Conflict),
            Self::Unknown(error) => Err(error)
                .context(
                    "whether others use this host's etcd is not known, so nothing was removed. Start it (`systemctl \
                     start etcd`; `overlay-agent init` gives it this host's address, if that is another now), or leave \
                     with --delete-etcd, which ends the overlay for all who use it",
                )
                .exit(Exit::Unavailable),
        }
    }
}

async fn others(etcd: &EtcdConfig, own: Option<Ipv4Network>) -> Result<Vec<String>> {
    let store = EtcdStore::new(etcd)?;
    let listing = store.list().await?;
    let keys =
        listing.entries.iter().filter_map(|entry| store.prefix().parse_subnet_key(&entry.key).ok());
    Ok(keys.filter(|key| Some(key.subnet) != own).map(|key| key.subnet.to_string()).collect())
}

/// A certificate that nobody needs any more is to open nothing.
async fn forget_identity(etcd: &EtcdConfig, report: &mut Report) -> Result<()> {
    let Some(host) = host_identity().host() else { return Ok(()) };
    let asked = async {
        let store = EtcdStore::new(etcd)?;
        if etcd.identity == Some(root_identity()) {
            return Ok(authority::forget(&store, &host).await?);
        }
        store.ask(&Applicant::Host(host.clone()), About::Leaving, b"{}", None).await?;
        anyhow::Ok(())
    };
    match asked.await {
        Ok(()) => report.done("identity", &format!("{host} is known to etcd no more")),
        Err(error) => {
            tracing::warn!(
                "{host} stays known to etcd; `overlay-agent expel {host}` on a host with a share in it forgets it: {error:#}"
            );
            Ok(())
        }
    }
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
