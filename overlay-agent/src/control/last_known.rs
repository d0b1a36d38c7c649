//! What this host knew last of the network, for a start at which etcd is away: after a power cut, say, that took the
//! host with etcd, too. A host that goes on with what it knew does what an agent does that loses etcd while it runs.

use std::{
    fs::File,
    io::{self, ErrorKind},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use ipnetwork::Ipv4Network;
use overlay_common::MacAddr;
use overlay_lease::{
    config::NetworkConfig,
    member::{network::StoredConfig, registry::Registry},
    store::Revision,
    wire::Lease,
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::{control::run_config::RunConfig, subnet_env::replace};

/// How often to look whether etcd has failed to answer, after that.
const LOOK: Duration = Duration::from_millis(250);

/// How often what is known is compared with what is written.
const EVERY: Duration = Duration::from_secs(10);

/// How often the file is marked as still true.
const MARKED: Duration = Duration::from_mins(5);

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Contents {
    /// The place of the network in etcd.
    prefix: String,
    /// The network config, as it is there.
    config: String,
    peers: Vec<Peer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Peer {
    subnet: String,
    public_ip: Ipv4Addr,
    vtep_mac: String,
}

/// The network as it was when this host last knew it.
#[derive(Clone, Debug)]
pub struct LastKnown {
    /// Its config; of no version.
    pub network: StoredConfig,
    /// Everybody else's leases.
    pub leases: Vec<Lease>,
}

impl LastKnown {
    /// What an earlier run has written, unless it is older than a lease lasts: somebody else may have our subnet then.
    fn read(path: &Path, prefix: &str, lifetime: Duration) -> Result<Option<Self>> {
        let named = || format!("cannot read {}", path.display());
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(named),
        };
        let written = file.metadata().and_then(|found| found.modified()).with_context(named)?;
        let is_old = written.elapsed().is_ok_and(|age| age >= lifetime);
        let contents: Contents =
            serde_json::from_reader(io::BufReader::new(file)).with_context(named)?;
        if is_old || contents.prefix != prefix {
            return Ok(None);
        }
        contents.understood().with_context(named).map(Some)
    }
}

impl Contents {
    fn of<'a>(prefix: &str, config: &str, leases: impl Iterator<Item = &'a Lease>) -> Self {
        let peer = |lease: &Lease| Peer {
            subnet: lease.subnet.to_string(),
            public_ip: lease.public_ip,
            vtep_mac: lease.vtep_mac.to_string(),
        };
        Self {
            prefix: prefix.to_owned(),
            config: config.to_owned(),
            peers: leases.map(peer).collect(),
        }
    }

    fn understood(self) -> Result<LastKnown> {
        let config = NetworkConfig::parse(self.config.as_bytes())?.config;
        let lease = |peer: Peer| -> Result<Lease> {
            Ok(Lease {
                subnet: peer.subnet.parse::<Ipv4Network>()?,
                public_ip: peer.public_ip,
                vtep_mac: peer.vtep_mac.parse::<MacAddr>()?,
                vni: Some(config.vni),
            })
        };
        let leases = self.peers.into_iter().map(lease).collect::<Result<_>>()?;
        let network = StoredConfig { config, text: self.config, mod_revision: Revision::NONE };
        Ok(LastKnown { network, leases })
    }
}

/// Where it is: beside the state file.
fn path(config: &RunConfig) -> PathBuf {
    config.state_file.with_file_name("last-known.json")
}

/// What was known last, once etcd has not answered for [`PATIENCE`]. Never, if nothing was.
pub(super) async fn once_etcd_is_away(store: &Registry, config: &RunConfig) -> LastKnown {
    let prefix = config.etcd.prefix.to_string();
    let known = match LastKnown::read(&path(config), &prefix, config.lease_ttl) {
        Ok(known) => known.filter(|_| config.peers.is_none()),
        Err(error) => {
            tracing::warn!("what was known last of the network is of no use: {error:#}");
            None
        }
    };
    let (Some(known), Some(patience)) = (known, config.start_without_etcd) else {
        return std::future::pending().await;
    };
    tokio::time::sleep(patience).await;
    // One that answers that there is no config is there.
    while !store.does_not_answer() {
        tokio::time::sleep(LOOK).await;
    }
    tracing::warn!(
        leases = known.leases.len(),
        "etcd has not answered for {} s: starting on what this host knew last",
        patience.as_secs()
    );
    known
}

/// Removes the file beside this state file.
pub fn forget(state_file: &Path) -> Result<bool> {
    crate::state_file::remove(&state_file.with_file_name("last-known.json"))
}

/// Keeps the file true.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    looked: Option<Instant>,
    marked: Option<Instant>,
    written: Option<Contents>,
    task: Option<JoinHandle<io::Result<()>>>,
}

impl Keeper {
    /// Has the file say this, without waiting for the disk. Returns what has become of the last time.
    pub(super) async fn keep<'a>(
        &mut self,
        config: &RunConfig,
        network: &StoredConfig,
        leases: impl Iterator<Item = &'a Lease>,
    ) -> Option<Result<()>> {
        if self.looked.is_some_and(|looked| looked.elapsed() < EVERY) {
            return None;
        }
        if self.task.as_ref().is_some_and(|task| !task.is_finished()) {
            return None;
        }
        self.looked = Some(Instant::now());
        let path = path(config);
        let outcome = match self.task.take() {
            None => None,
            Some(task) => {
                let outcome = task.await.map_err(io::Error::other).and_then(|outcome| outcome);
                if outcome.is_err() {
                    (self.written, self.marked) = (None, None);
                }
                Some(outcome.with_context(|| format!("cannot write {}", path.display())))
            }
        };
        let contents = Contents::of(&config.etcd.prefix.to_string(), &network.text, leases);
        let is_news = self.written.as_ref() != Some(&contents);
        if is_news || self.marked.is_none_or(|marked| marked.elapsed() >= MARKED) {
            self.marked = Some(Instant::now());
            self.written = Some(contents.clone());
            self.task = Some(tokio::task::spawn_blocking(move || {
                if is_news {
                    return replace(&path, &serde_json::to_vec(&contents)?);
                }
                File::options().write(true).open(&path)?.set_modified(SystemTime::now())
            }));
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_known_counts_for_as_long_as_a_lease_and_for_its_own_network() {
        let lease = Lease {
            subnet: "10.1.7.0/24".parse().unwrap(),
            public_ip: Ipv4Addr::new(192, 0, 2, 7),
            vtep_mac: MacAddr([2, 0, 0, 0, 0, 7]),
            vni: None,
        };
        let config = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","VNI":7}}"#;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("last-known.json");
        let hour = Duration::from_hours(1);
        assert!(LastKnown::read(&path, "/n", hour).unwrap().is_none(), "nothing is there");
        let contents = Contents::of("/n", config, [&lease].into_iter());
        replace(&path, &serde_json::to_vec(&contents).unwrap()).unwrap();
        let known = LastKnown::read(&path, "/n", hour).unwrap().unwrap();
        let vni = Some(known.network.config.vni);
        assert_eq!(known.leases, [Lease { vni, ..lease }]);
        assert!(LastKnown::read(&path, "/other", hour).unwrap().is_none());
        let old = SystemTime::now() - hour * 2;
        File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        assert!(LastKnown::read(&path, "/n", hour).unwrap().is_none(), "too old");
        replace(&path, b"{").unwrap();
        LastKnown::read(&path, "/n", hour).unwrap_err();
    }
}
