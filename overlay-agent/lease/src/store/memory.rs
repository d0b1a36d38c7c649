//! A store that is gone with its process: what etcd does, without etcd, for tests and as the memory of the peers file.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ipnetwork::Ipv4Network;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    Change, Created, Entry, EtcdLease, Listing, News, Past, Revision, Store, StoreError, Watch,
    WatchEnded,
};
use crate::{
    figures::Figures,
    trouble::Troubles,
    wire::{guard::guards, key::KeyPrefix},
};

/// The only history that there is.
const CLUSTER: u64 = 1;

/// So many changes are kept at most.
const KEPT: usize = 1 << 16;

/// Where it is, for messages.
const HERE: &str = "memory";

/// One network's keys, and what they have been.
#[derive(Clone)]
pub struct MemoryStore {
    prefix: KeyPrefix,
    troubles: Troubles,
    figures: Figures,
    state: Arc<Mutex<State>>,
    /// Tells whoever watches that there is something to look at.
    latest: Arc<watch::Sender<Revision>>,
}

#[derive(Debug, Default)]
struct State {
    revision: Revision,
    keys: BTreeMap<Vec<u8>, Entry>,
    /// All changes since `forgotten`, in order.
    changes: Vec<Change>,
    /// All changes up to this one are not kept any more.
    forgotten: Revision,
    /// When each key that was there by then had been written.
    written: BTreeMap<Vec<u8>, Revision>,
    leases: BTreeMap<i64, Granted>,
    last_lease: i64,
}

#[derive(Debug)]
struct Granted {
    ttl: Duration,
    until: Instant,
}

impl State {
    /// Makes changes that are of one revision.
    fn change(
        &mut self,
        puts: impl IntoIterator<Item = (Vec<u8>, Vec<u8>, Option<i64>)>,
        deleted: impl IntoIterator<Item = Vec<u8>>,
    ) -> Revision {
        let revision = self.revision.next();
        for key in deleted {
            if self.keys.remove(&key).is_some() {
                self.changes.push(Change::Deleted { key, revision });
            }
        }
        for (key, value, etcd_lease) in puts {
            let create_revision = self.keys.get(&key).map_or(revision, |old| old.create_revision);
            let entry = Entry {
                key: key.clone(),
                value,
                create_revision,
                mod_revision: revision,
                etcd_lease,
            };
            self.changes.push(Change::Put(entry.clone()));
            self.keys.insert(key, entry);
        }
        self.revision = revision;
        if self.changes.len() > KEPT {
            self.forget(self.changes[KEPT / 2].revision());
        }
        revision
    }

    /// Forgets all changes up to this one, but for what they have left.
    fn forget(&mut self, revision: Revision) {
        let first = self.changes.partition_point(|change| change.revision() <= revision);
        for change in self.changes.drain(..first) {
            match change {
                Change::Put(entry) => self.written.insert(entry.key, entry.mod_revision),
                Change::Deleted { key, .. } => self.written.remove(&key),
            };
        }
        self.forgotten = revision;
    }

    fn is_unchanged(&self, key: &[u8], revision: Revision) -> bool {
        self.keys.get(key).map_or(Revision::NONE, |entry| entry.mod_revision) == revision
    }

    fn hanging_on(&self, id: i64) -> impl Iterator<Item = &Entry> {
        self.keys.values().filter(move |entry| entry.etcd_lease == Some(id))
    }

    /// Deletes what nobody has kept until now.
    fn expire(&mut self, now: Instant) {
        let expired: Vec<_> =
            self.leases.iter().filter(|(_, lease)| lease.until <= now).map(|(id, _)| *id).collect();
        for id in expired {
            self.leases.remove(&id);
            let keys: Vec<_> = self.hanging_on(id).map(|entry| entry.key.clone()).collect();
            if !keys.is_empty() {
                self.change([], keys);
            }
        }
    }
}

impl MemoryStore {
    /// An empty one.
    pub fn new(prefix: KeyPrefix) -> Self {
        Self {
            prefix,
            troubles: Troubles::default(),
            figures: Figures::default(),
            state: Arc::default(),
            latest: Arc::new(watch::Sender::new(Revision::NONE)),
        }
    }

    /// Forgets all changes up to now; what is there stays.
    pub fn compact(&self) {
        self.with(|state| state.forget(state.revision));
    }

    /// Becomes what has exactly these keys and values, in one change, or in none if it is. Returns the latest revision.
    pub(super) fn become_these(&self, keys: &BTreeMap<Vec<u8>, Vec<u8>>) -> Revision {
        self.with(|state| {
            let is_new = |(key, value): &(&Vec<u8>, &Vec<u8>)| {
                state.keys.get(*key).is_none_or(|entry| entry.value != **value)
            };
            let puts: Vec<_> = keys
                .iter()
                .filter(is_new)
                .map(|(key, value)| (key.clone(), value.clone(), None))
                .collect();
            let gone: Vec<_> =
                state.keys.keys().filter(|key| !keys.contains_key(*key)).cloned().collect();
            if !(puts.is_empty() && gone.is_empty()) {
                state.change(puts, gone);
            }
            state.revision
        })
    }

    /// Does something to the state as of now, and tells whoever watches of it.
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        state.expire(Instant::now());
        let outcome = act(&mut state);
        let revision = state.revision;
        drop(state);
        self.latest.send_if_modified(|latest| {
            let is_later = revision > *latest;
            *latest = revision.max(*latest);
            is_later
        });
        outcome
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nobody panics between two halves of a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "MemoryStore({})", self.prefix)
    }
}

impl Store for MemoryStore {
    type Watch = MemoryWatch;

    fn prefix(&self) -> &KeyPrefix {
        &self.prefix
    }

    fn troubles(&self) -> &Troubles {
        &self.troubles
    }

    fn figures(&self) -> &Figures {
        &self.figures
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.with(|state| state.keys.get(key.as_bytes()).cloned()))
    }

    async fn list(&self) -> Result<Listing, StoreError> {
        let dir = self.prefix.subnets_dir();
        let is_lease = |entry: &&Entry| entry.key.starts_with(dir.as_bytes());
        Ok(self.with(|state| Listing {
            cluster: CLUSTER,
            revision: state.revision,
            entries: state.keys.values().filter(is_lease).cloned().collect(),
        }))
    }

    async fn past(&self, key: &str, revision: Revision) -> Result<Past, StoreError> {
        self.with(|state| {
            if revision < state.forgotten || revision > state.revision {
                return Err(StoreError::Refused {
                    doing: "look at",
                    what: key.to_owned(),
                    endpoint: HERE.to_owned(),
                    reason: format!("there is no revision {revision} any more, or not yet"),
                });
            }
            let of_key = |change: &&Change| change.key() == key.as_bytes();
            let mut changes = state.changes.iter().filter(of_key);
            let written = match changes.rfind(|change| change.revision() <= revision) {
                Some(Change::Put(entry)) => Some(entry.mod_revision),
                Some(Change::Deleted { .. }) => None,
                None => state.written.get(key.as_bytes()).copied(),
            };
            Ok(Past { cluster: CLUSTER, latest: state.revision, written })
        })
    }

    async fn watch(&self, revision: Revision, config: bool) -> Result<MemoryWatch, StoreError> {
        let latest = self.latest.subscribe();
        Ok(MemoryWatch { store: self.clone(), seen: revision, config, latest })
    }

    async fn create_if_free(
        &self,
        subnet: Ipv4Network,
        value: &[u8],
        etcd_lease: Option<i64>,
        config: Option<Revision>,
    ) -> Result<Created, StoreError> {
        let key = self.prefix.subnet_key(subnet);
        let guards = guards(&self.prefix, subnet);
        self.with(|state| {
            check(state, etcd_lease, "create", &key)?;
            let is_obstacle = |entry: &&Entry| guards.iter().any(|range| range.covers(&entry.key));
            let obstacles: Vec<_> = state.keys.values().filter(is_obstacle).cloned().collect();
            let config_key = self.prefix.config_key();
            let is_another = |config| !state.is_unchanged(config_key.as_bytes(), config);
            if !obstacles.is_empty() || config.is_some_and(is_another) {
                return Ok(Created::Refused(obstacles));
            }
            Ok(Created::At(state.change([(key.into_bytes(), value.to_vec(), etcd_lease)], [])))
        })
    }

    async fn replace_if_unchanged(
        &self,
        key: &[u8],
        revision: Revision,
        value: &[u8],
        etcd_lease: Option<i64>,
    ) -> Result<Option<Revision>, StoreError> {
        self.with(|state| {
            check(state, etcd_lease, "replace", &String::from_utf8_lossy(key))?;
            let put = (key.to_vec(), value.to_vec(), etcd_lease);
            Ok(state.is_unchanged(key, revision).then(|| state.change([put], [])))
        })
    }

    async fn delete_if_unchanged(
        &self,
        key: &[u8],
        revision: Revision,
    ) -> Result<Option<Revision>, StoreError> {
        Ok(self.with(|state| {
            state.is_unchanged(key, revision).then(|| state.change([], [key.to_vec()]))
        }))
    }

    async fn put_config(
        &self,
        value: &[u8],
        config: Revision,
        leases: Revision,
    ) -> Result<bool, StoreError> {
        let (key, dir) = (self.prefix.config_key(), self.prefix.subnets_dir());
        Ok(self.with(|state| {
            let is_later = |entry: &Entry| {
                entry.key.starts_with(dir.as_bytes()) && entry.mod_revision > leases
            };
            let is_good =
                state.is_unchanged(key.as_bytes(), config) && !state.keys.values().any(is_later);
            if is_good {
                state.change([(key.into_bytes(), value.to_vec(), None)], []);
            }
            is_good
        }))
    }

    async fn grant(&self, ttl: Duration) -> Result<i64, StoreError> {
        Ok(self.with(|state| {
            state.last_lease += 1;
            state.leases.insert(state.last_lease, Granted { ttl, until: Instant::now() + ttl });
            state.last_lease
        }))
    }

    async fn keep(&self, etcd_lease: i64) -> Result<bool, StoreError> {
        Ok(self.with(|state| match state.leases.get_mut(&etcd_lease) {
            Some(lease) => {
                lease.until = Instant::now() + lease.ttl;
                true
            }
            None => false,
        }))
    }

    async fn etcd_lease(&self, id: i64) -> Result<Option<EtcdLease>, StoreError> {
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        Ok(self.with(|state| {
            let lease = state.leases.get(&id)?;
            Some(EtcdLease {
                granted: seconds(lease.ttl),
                left: seconds(lease.until.saturating_duration_since(Instant::now())),
                keys: state.hanging_on(id).count(),
            })
        }))
    }

    async fn retire(&self, etcd_lease: i64) -> Result<(), StoreError> {
        self.with(|state| {
            if state.hanging_on(etcd_lease).next().is_none() {
                state.leases.remove(&etcd_lease);
            }
        });
        Ok(())
    }
}

/// A key cannot hang on nothing.
fn check(
    state: &State,
    etcd_lease: Option<i64>,
    doing: &'static str,
    key: &str,
) -> Result<(), StoreError> {
    match etcd_lease {
        Some(id) if !state.leases.contains_key(&id) => Err(StoreError::Refused {
            doing,
            what: key.to_owned(),
            endpoint: HERE.to_owned(),
            reason: format!("there is no lease {id:x}"),
        }),
        _ => Ok(()),
    }
}

/// The changes of a [`MemoryStore`].
#[derive(Debug)]
pub struct MemoryWatch {
    store: MemoryStore,
    seen: Revision,
    config: bool,
    latest: watch::Receiver<Revision>,
}

impl Watch for MemoryWatch {
    async fn next(&mut self) -> Result<News, WatchEnded> {
        let prefix = &self.store.prefix;
        let (dir, config_key) = (prefix.subnets_dir(), prefix.config_key());
        let is_wanted = |change: &&Change| {
            let key = change.key();
            key.starts_with(dir.as_bytes()) || self.config && key == config_key.as_bytes()
        };
        loop {
            let (revision, expiry) = self.store.with(|state| {
                if self.seen < state.forgotten {
                    return Err(WatchEnded::Compacted(state.forgotten));
                }
                let expiry = state.leases.values().map(|lease| lease.until).min();
                Ok((state.revision, expiry))
            })?;
            if revision > self.seen {
                let changes = self.store.with(|state| {
                    let news = |change: &&Change| {
                        (self.seen.next()..=revision).contains(&change.revision())
                    };
                    state.changes.iter().filter(news).filter(is_wanted).cloned().collect()
                });
                self.seen = revision;
                return Ok(News { changes, complete: Some(revision) });
            }
            tokio::select! {
                _ = self.latest.changed() => {}
                () = async { sleep_until(expiry.unwrap_or_else(Instant::now)).await },
                    if expiry.is_some() => {}
            }
        }
    }
}
