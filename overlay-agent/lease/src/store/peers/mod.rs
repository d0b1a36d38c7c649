//! The peers file as a store: who has which subnet is written in it, on every host the same, by people or by what serves
//! them. It can be read and watched, and each change of it is one revision; whatever would write is refused.

mod file;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use ipnetwork::Ipv4Network;

pub use self::file::{PeersError, PeersFile};
use super::{
    Created, Entry, EtcdLease, Listing, News, Past, Revision, Store, StoreError, Watch, WatchEnded,
    memory::{MemoryStore, MemoryWatch},
};
use crate::{figures::Figures, trouble::Troubles, wire::key::KeyPrefix};

/// How often to look at the file. Looking is reliable where waiting for events is not: whatever way the
/// file is replaced, and whatever file system it is on.
const LOOK: Duration = Duration::from_secs(1);

/// A file of peers, read again whenever somebody asks.
#[derive(Clone, Debug)]
pub struct PeersStore {
    path: PathBuf,
    /// What it said when it was read the last time, and before.
    said: MemoryStore,
}

impl PeersStore {
    /// A store in the file at `path`, which is not read yet.
    pub fn new(path: &Path) -> Self {
        // Keys are nowhere but here.
        Self { path: path.to_owned(), said: MemoryStore::new(KeyPrefix::new("")) }
    }

    /// The file's name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file as it is now, and its revision. Who waits meanwhile waits for a disk.
    ///
    /// # Errors
    /// It cannot be read, or violates a rule.
    pub fn look(&self) -> anyhow::Result<(Revision, PeersFile)> {
        let place = || format!("the peers file {}", self.path.display());
        let text = std::fs::read_to_string(&self.path)
            .with_context(|| format!("cannot read {}", place()))?;
        let file = PeersFile::parse(&text).with_context(|| format!("{} is malformed", place()))?;
        let prefix = self.said.prefix();
        let leases = file
            .leases
            .iter()
            .map(|lease| (prefix.subnet_key(lease.subnet).into_bytes(), lease.value().encode()));
        let config = (prefix.config_key().into_bytes(), file.config.clone().into_bytes());
        let revision = self.said.become_these(&leases.chain([config]).collect());
        Ok((revision, file))
    }

    fn asked(&self, doing: &'static str, what: &str) -> Result<&MemoryStore, StoreError> {
        self.look().map(|_| &self.said).map_err(|error| {
            let reason = format!("{error:#}");
            StoreError::Unreachable { doing, what: what.to_owned(), reason }
        })
    }
}

fn refusal<T>(doing: &'static str, what: impl Into<String>) -> Result<T, StoreError> {
    Err(StoreError::ReadOnly { doing, what: what.into() })
}

impl Store for PeersStore {
    type Watch = PeersWatch;

    fn prefix(&self) -> &KeyPrefix {
        self.said.prefix()
    }

    fn troubles(&self) -> &Troubles {
        self.said.troubles()
    }

    fn figures(&self) -> &Figures {
        self.said.figures()
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.asked("read", key)?.get(key).await
    }

    async fn list(&self) -> Result<Listing, StoreError> {
        self.asked("list", "the hosts")?.list().await
    }

    async fn past(&self, key: &str, revision: Revision) -> Result<Past, StoreError> {
        self.asked("look at", key)?.past(key, revision).await
    }

    async fn watch(&self, revision: Revision, config: bool) -> Result<PeersWatch, StoreError> {
        let watch = self.said.watch(revision, config).await?;
        Ok(PeersWatch { store: self.clone(), watch, has_failed: false })
    }

    async fn create_if_free(
        &self,
        subnet: Ipv4Network,
        _value: &[u8],
        _etcd_lease: Option<i64>,
        _config: Option<Revision>,
    ) -> Result<Created, StoreError> {
        refusal("create", self.prefix().subnet_key(subnet))
    }

    async fn replace_if_unchanged(
        &self,
        key: &[u8],
        _revision: Revision,
        _value: &[u8],
        _etcd_lease: Option<i64>,
    ) -> Result<Option<Revision>, StoreError> {
        refusal("replace", String::from_utf8_lossy(key))
    }

    async fn delete_if_unchanged(
        &self,
        key: &[u8],
        _revision: Revision,
    ) -> Result<Option<Revision>, StoreError> {
        refusal("delete", String::from_utf8_lossy(key))
    }

    async fn put_config(
        &self,
        _value: &[u8],
        _config: Revision,
        _leases: Revision,
    ) -> Result<bool, StoreError> {
        refusal("write", self.prefix().config_key())
    }

    async fn grant(&self, _ttl: Duration) -> Result<i64, StoreError> {
        refusal("ask for a lease in", self.path.display().to_string())
    }

    /// What is written stays until somebody writes something else.
    async fn keep(&self, _etcd_lease: i64) -> Result<bool, StoreError> {
        Ok(false)
    }

    async fn etcd_lease(&self, _id: i64) -> Result<Option<EtcdLease>, StoreError> {
        Ok(None)
    }

    async fn retire(&self, _etcd_lease: i64) -> Result<(), StoreError> {
        Ok(())
    }
}

/// The changes of a peers file.
#[derive(Debug)]
pub struct PeersWatch {
    store: PeersStore,
    watch: MemoryWatch,
    has_failed: bool,
}

impl Watch for PeersWatch {
    /// Goes on when the file can be used again, and says so at once.
    async fn next(&mut self) -> Result<News, WatchEnded> {
        if self.has_failed {
            tokio::time::sleep(LOOK).await;
        }
        loop {
            if let Err(error) = self.store.look() {
                self.has_failed = true;
                let endpoint = self.store.path.display().to_string();
                return Err(WatchEnded::Failed { endpoint, reason: format!("{error:#}") });
            }
            if std::mem::take(&mut self.has_failed) {
                return Ok(News { changes: Vec::new(), complete: None });
            }
            if let Ok(news) = tokio::time::timeout(LOOK, self.watch.next()).await {
                return news;
            }
        }
    }
}
