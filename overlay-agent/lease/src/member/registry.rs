//! Whichever store it is, seen from a host that takes part.

use std::{net::Ipv4Addr, path::PathBuf};

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::info;

use super::{
    acquire::{AcquireError, acquire},
    claim::LeaseClaim,
    fixed,
    follow::Follower,
    incident::Incident,
    keeper::{Keeper, LeaseEvent},
    network::{ConfigUpdate, MalformedConfig, StoredConfig, UNREACHABLE, wait_for_good_config},
    request::Request,
    update::LeaseUpdate,
};
use crate::{
    figures::Figures,
    store::{
        Store as _,
        etcd::{EtcdConfig, EtcdStore},
        peers::PeersStore,
    },
    trouble::Troubles,
    wire::{Lease, key::SubnetKey},
};

/// Which registry, and how to reach it.
#[derive(Clone, Debug)]
pub enum RegistryConfig {
    /// In etcd.
    Etcd(EtcdConfig),
    /// In the file of this name.
    Fixed(PathBuf),
}

/// There is no subnet to be had.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The network config in etcd is malformed, or asks for what we do not do.
    #[error(transparent)]
    Config(#[from] MalformedConfig),
    /// The peers file is.
    #[error(transparent)]
    Fixed(anyhow::Error),
    /// There is none free.
    #[error("cannot take a subnet")]
    Acquire(#[source] AcquireError),
}

/// Where it is agreed who has which subnet.
#[derive(Clone, Debug)]
pub enum Registry {
    /// In etcd, as flannel does.
    Etcd(EtcdStore),
    /// In a file on every host.
    Fixed(PeersStore),
}

/// A host that has its subnet and hears about everybody else's.
pub struct Joined {
    /// Its lease.
    pub lease: Lease,
    /// What was put right on the way.
    pub incidents: Vec<Incident>,
    /// What it hears.
    pub following: Following,
}

/// What the tasks say that keep our lease and follow everybody's. They end with this value.
pub struct Following {
    /// Everybody's leases, ours included.
    pub updates: mpsc::Receiver<LeaseUpdate>,
    /// What happens to ours.
    pub events: mpsc::Receiver<LeaseEvent>,
    /// What becomes of the network config.
    pub configs: mpsc::Receiver<ConfigUpdate>,
    _follower: AbortOnDropHandle<()>,
    keeper: Option<AbortOnDropHandle<()>>,
}

impl Following {
    /// Has nobody keep the lease any more: whoever takes another one, or changes this one, does not want his own
    /// writes put right.
    pub fn stop_keeping(&mut self) {
        self.keeper = None;
    }
}

impl Following {
    /// Hears these leases once, and nothing after: what is known while etcd is away.
    pub fn remembered(leases: impl IntoIterator<Item = Lease>) -> Self {
        let (updates_sender, updates) = mpsc::channel(1);
        let (events_sender, events) = mpsc::channel(1);
        let (configs_sender, configs) = mpsc::channel(1);
        let snapshot = LeaseUpdate::Snapshot(leases.into_iter().map(LeaseClaim::listed).collect());
        let follower = AbortOnDropHandle::new(tokio::spawn(async move {
            // Closed means that the agent is stopping.
            updates_sender.send(snapshot).await.ok();
            std::future::pending::<()>().await;
            drop((events_sender, configs_sender));
        }));
        Self { updates, events, configs, _follower: follower, keeper: None }
    }
}

impl Registry {
    /// Reads the files that name how etcd is to be reached. Connects to nothing yet.
    pub fn new(config: &RegistryConfig) -> anyhow::Result<Self> {
        match config {
            RegistryConfig::Fixed(path) => Ok(Self::Fixed(PeersStore::new(path))),
            RegistryConfig::Etcd(etcd) => Ok(Self::Etcd(EtcdStore::new(etcd)?)),
        }
    }

    /// Connects anew for the next request, where there are connections.
    pub fn disconnect(&self) {
        match self {
            Self::Etcd(store) => store.disconnect(),
            Self::Fixed(_) => {}
        }
    }

    /// What fails at this moment.
    pub fn troubles(&self) -> &Troubles {
        match self {
            Self::Etcd(store) => store.troubles(),
            Self::Fixed(store) => store.troubles(),
        }
    }

    /// What is counted of etcd and of our lease there; nothing where there is no etcd.
    pub fn figures(&self) -> Option<&Figures> {
        match self {
            Self::Etcd(store) => Some(store.figures()),
            Self::Fixed(_) => None,
        }
    }

    /// Whether who waits for [`network`](Self::network) waits for a store that does not answer.
    pub fn does_not_answer(&self) -> bool {
        self.troubles().has(UNREACHABLE)
    }

    /// What this store calls a lease.
    pub fn name_of(&self, key: &SubnetKey) -> String {
        match self {
            Self::Etcd(store) => store.prefix().key(key),
            Self::Fixed(_) => format!("of {} in the peers file", key.subnet),
        }
    }

    /// The network config. Waits for etcd to have one that can be read.
    ///
    /// # Errors
    /// None but those of the config.
    pub async fn network(&self) -> Result<StoredConfig, JoinError> {
        match self {
            Self::Etcd(store) => Ok(wait_for_good_config(store).await?),
            Self::Fixed(store) => fixed::network(store).map_err(JoinError::Fixed),
        }
    }

    /// Gets this host a subnet, and follows everybody else from then on. Where the network config changes
    /// meanwhile, `network` is the new one afterwards.
    pub async fn join(
        &self,
        network: &mut StoredConfig,
        request: &Request,
    ) -> Result<Joined, JoinError> {
        match self {
            Self::Etcd(store) => self.join_etcd(store, network, request).await,
            Self::Fixed(store) => join_fixed(store, network, request.public_ip).await,
        }
    }

    async fn join_etcd(
        &self,
        store: &EtcdStore,
        network: &mut StoredConfig,
        request: &Request,
    ) -> Result<Joined, JoinError> {
        let acquired = loop {
            match acquire(store, network, request).await {
                Ok(acquired) => break acquired,
                Err(AcquireError::ConfigChanged) => {
                    info!("the network config has changed: reading it again");
                    *network = self.network().await?;
                }
                Err(error) => return Err(JoinError::Acquire(error)),
            }
        };
        let lease = acquired.lease;
        info!("lease: {lease}, {:?}", acquired.origin);
        let (updates_sender, updates) = mpsc::channel(1024);
        let (events_sender, events) = mpsc::channel(16);
        let (configs_sender, configs) = mpsc::channel(16);
        let keeper = Keeper::new(store.clone(), &acquired, request.ttl);
        let follower = Follower::new(store.clone())
            .starting_from(acquired.listing)
            .informing(keeper.handle())
            .reporting_config(network.mod_revision, configs_sender);
        let follower = AbortOnDropHandle::new(tokio::spawn(follower.run(updates_sender)));
        let keeper = Some(AbortOnDropHandle::new(tokio::spawn(keeper.run(events_sender))));
        let following = Following { updates, events, configs, _follower: follower, keeper };
        Ok(Joined { lease, incidents: acquired.incidents, following })
    }
}

async fn join_fixed(
    store: &PeersStore,
    network: &mut StoredConfig,
    public_ip: Ipv4Addr,
) -> Result<Joined, JoinError> {
    let (lease, stored, follower) =
        fixed::join(store, public_ip).await.map_err(JoinError::Fixed)?;
    *network = stored;
    info!("lease: {lease}, as the peers file says");
    let (updates_sender, updates) = mpsc::channel(1024);
    let (events_sender, events) = mpsc::channel(16);
    let (configs_sender, configs) = mpsc::channel(16);
    let follow = follower.run(updates_sender, events_sender, configs_sender);
    let follower = AbortOnDropHandle::new(tokio::spawn(follow));
    let following = Following { updates, events, configs, _follower: follower, keeper: None };
    Ok(Joined { lease, incidents: Vec::new(), following })
}
