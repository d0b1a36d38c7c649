//! A host whose subnet is written in the peers file.

use std::{net::Ipv4Addr, time::Instant};

use anyhow::anyhow;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{
    claim::LeaseClaim,
    keeper::LeaseEvent,
    network::{ConfigUpdate, StoredConfig},
    update::LeaseUpdate,
};
use crate::{
    store::{
        Revision, Store as _, Watch as _,
        peers::{PeersFile, PeersStore, PeersWatch},
    },
    wire::Lease,
};

const UNUSABLE: &str = "the peers file cannot be used, the last good one stays in force";
const UNLISTED: &str = "the peers file does not list this host any more, it keeps its subnet";

/// The network that the file describes.
pub fn network(store: &PeersStore) -> anyhow::Result<StoredConfig> {
    Ok(stored(&store.look()?.1))
}

/// What the file has for the host with this address, and the task that follows the file from then on.
pub async fn join(
    store: &PeersStore,
    public_ip: Ipv4Addr,
) -> anyhow::Result<(Lease, StoredConfig, FileFollower)> {
    let (revision, file) = store.look()?;
    let lease = file.of(public_ip).ok_or_else(|| {
        anyhow!("{} lists no host with public-ip {public_ip}", store.path().display())
    })?;
    let network = stored(&file);
    let watch = store.watch(revision, true).await?;
    Ok((lease, network, FileFollower { store: store.clone(), lease, file, watch }))
}

/// What the file says is judged as what etcd says.
fn snapshot(file: &PeersFile) -> LeaseUpdate {
    LeaseUpdate::Snapshot(file.leases.iter().copied().map(LeaseClaim::listed).collect())
}

/// A file has no revisions.
fn stored(file: &PeersFile) -> StoredConfig {
    StoredConfig {
        config: file.network.clone(),
        text: file.config.clone(),
        mod_revision: Revision::NONE,
    }
}

/// Follows the file of one host.
#[derive(Debug)]
pub struct FileFollower {
    store: PeersStore,
    lease: Lease,
    file: PeersFile,
    watch: PeersWatch,
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
        let mut since = None;
        loop {
            let news = tokio::select! {
                news = self.watch.next() => news,
                () = updates.closed() => return,
            };
            // Whatever the watch says of it, a file is taken over whole.
            match self.store.look() {
                Err(error) => {
                    let error = format!("{error:#}");
                    if since.is_none() {
                        warn!("{UNUSABLE}: {error}");
                    }
                    let since = *since.get_or_insert_with(Instant::now);
                    self.store.troubles().post(UNUSABLE, since, error);
                }
                Ok((revision, file)) => {
                    if since.take().is_some() {
                        self.store.troubles().clear(UNUSABLE);
                        info!("the peers file can be used again");
                    }
                    if news.is_err()
                        && let Ok(watch) = self.store.watch(revision, true).await
                    {
                        self.watch = watch;
                    }
                    if file != self.file && !self.take(file, &updates, &events, &configs).await {
                        return;
                    }
                }
            }
        }
    }

    /// Takes over a new version. Returns whether there is still something to follow.
    async fn take(
        &mut self,
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
            Some(_) => self.store.troubles().clear(UNLISTED),
            None => {
                warn!("{UNLISTED}");
                let host = format!("no host has public-ip {}", self.lease.public_ip);
                self.store.troubles().post(UNLISTED, Instant::now(), host);
            }
        }
        if file.network != self.file.network {
            configs.send(ConfigUpdate::Changed(stored(&file))).await.ok();
        }
        self.file = file;
        updates.send(snapshot(&self.file)).await.is_ok()
    }
}
