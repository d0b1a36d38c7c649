//! The static store: who has which subnet is written in a file, on every host the same.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tracing::{info, warn};

use super::{
    claim::Claim,
    follow::LeaseUpdate,
    keeper::LeaseEvent,
    network::{ConfigUpdate, StoredConfig},
};
use crate::{store::peers_file::PeersFile, trouble::Troubles, wire::Lease};

/// How often to look at the file. Looking is reliable where waiting for events is not: whatever way the
/// file is replaced, and whatever file system it is on.
const LOOK: Duration = Duration::from_secs(1);

const UNUSABLE: &str = "the peers file cannot be used, the last good one stays in force";
const UNLISTED: &str = "the peers file does not list this host any more, it keeps its subnet";

/// A file of peers, read again whenever it changes.
#[derive(Clone, Debug)]
pub struct FixedStore {
    path: PathBuf,
    troubles: Troubles,
}

impl FixedStore {
    /// A store in the file at `path`, which is not read yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), troubles: Troubles::default() }
    }

    /// What fails at this moment.
    pub const fn troubles(&self) -> &Troubles {
        &self.troubles
    }

    /// The network that the file describes.
    pub fn network(&self) -> anyhow::Result<StoredConfig> {
        Ok(stored(&self.read()?.1))
    }

    /// What the file has for the host with this address, and the task that follows the file from then on.
    pub fn join(&self, public_ip: Ipv4Addr) -> anyhow::Result<(Lease, StoredConfig, FileFollower)> {
        let (text, file) = self.read()?;
        let lease = file.of(public_ip).ok_or_else(|| {
            anyhow!("{} lists no host with public-ip {public_ip}", self.path.display())
        })?;
        let network = stored(&file);
        let store = self.clone();
        Ok((lease, network, FileFollower { store, lease, text, file }))
    }

    fn read(&self) -> anyhow::Result<(String, PeersFile)> {
        let place = || format!("the peers file {}", self.path.display());
        let text = std::fs::read_to_string(&self.path)
            .with_context(|| format!("cannot read {}", place()))?;
        let file = PeersFile::parse(&text).with_context(|| format!("{} is malformed", place()))?;
        Ok((text, file))
    }
}

/// What the file says is judged as what etcd says.
fn snapshot(file: &PeersFile) -> LeaseUpdate {
    LeaseUpdate::Snapshot(file.leases.iter().copied().map(Claim::listed).collect())
}

/// A file has no revisions.
fn stored(file: &PeersFile) -> StoredConfig {
    StoredConfig { config: file.network.clone(), mod_revision: 0 }
}

/// Follows the file of one host.
#[derive(Debug)]
pub struct FileFollower {
    store: FixedStore,
    lease: Lease,
    text: String,
    file: PeersFile,
}

impl FileFollower {
    /// Follows until nobody listens any more, or the file gives this host another subnet.
    pub async fn run(
        mut self,
        updates: mpsc::Sender<LeaseUpdate>,
        events: mpsc::Sender<LeaseEvent>,
        configs: mpsc::Sender<ConfigUpdate>,
    ) {
        info!("leases in all: {}", self.file.leases.len());
        // Closed means that the agent is stopping.
        updates.send(snapshot(&self.file)).await.ok();
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut since = None;
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = updates.closed() => return,
            }
            match self.store.read() {
                Err(error) => {
                    let error = format!("{error:#}");
                    if since.is_none() {
                        warn!("{UNUSABLE}: {error}");
                    }
                    let since = *since.get_or_insert_with(Instant::now);
                    self.store.troubles.post(UNUSABLE, since, error);
                }
                Ok((text, file)) => {
                    if since.take().is_some() {
                        self.store.troubles.clear(UNUSABLE);
                        info!("the peers file can be used again");
                    }
                    if text != self.text
                        && !self.take(text, file, &updates, &events, &configs).await
                    {
                        return;
                    }
                }
            }
        }
    }

    /// Takes over a new version. Returns whether there is still something to follow.
    async fn take(
        &mut self,
        text: String,
        file: PeersFile,
        updates: &mpsc::Sender<LeaseUpdate>,
        events: &mpsc::Sender<LeaseEvent>,
        configs: &mpsc::Sender<ConfigUpdate>,
    ) -> bool {
        info!("the peers file has changed: {} leases", file.leases.len());
        match file.of(self.lease.public_ip) {
            Some(now) if (now.subnet, now.vtep_mac) != (self.lease.subnet, self.lease.vtep_mac) => {
                events.send(LeaseEvent::Reassigned { old: self.lease, new: now }).await.ok();
                return false;
            }
            Some(_) => self.store.troubles.clear(UNLISTED),
            None => {
                warn!("{UNLISTED}");
                let host = format!("no host has public-ip {}", self.lease.public_ip);
                self.store.troubles.post(UNLISTED, Instant::now(), host);
            }
        }
        if file.network != self.file.network {
            configs.send(ConfigUpdate::Changed(stored(&file))).await.ok();
        }
        (self.text, self.file) = (text, file);
        updates.send(snapshot(&self.file)).await.is_ok()
    }
}
