//! Where it is agreed who has which subnet.
//!
//! A [`Store`] knows keys, revisions and conditions, but not what they are for. There is [`etcd`], the [`peers`] file, in which everything
//! is written beforehand, and, for tests, [`memory`]. [`operate`] is what operators do with one.

pub mod etcd;
pub mod memory;
pub mod operate;
pub mod peers;
mod revision;

use std::{fmt, future::Future, time::Duration};

use ipnetwork::Ipv4Network;

pub use self::revision::Revision;
use crate::{figures::Figures, trouble::Troubles, wire::key::KeyPrefix};

/// A place for the leases and the config of one network. Every write is conditional on what was read. Cheap to clone;
/// clones are the same place.
pub trait Store: Clone + fmt::Debug + Send + Sync + 'static {
    /// What follows its changes.
    type Watch: Watch;

    /// Where in it this network is.
    fn prefix(&self) -> &KeyPrefix;

    /// What fails at this moment, whoever of us it is that fails.
    fn troubles(&self) -> &Troubles;

    /// What is counted and measured meanwhile.
    fn figures(&self) -> &Figures;

    /// Reads one key.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send;

    /// Lists all leases as of one revision.
    fn list(&self) -> impl Future<Output = Result<Listing, StoreError>> + Send;

    /// What is to be known of a key as of a revision, and of the history that says it.
    ///
    /// # Errors
    /// Among others, that the revision is not kept any more, or is none yet.
    fn past(
        &self,
        key: &str,
        revision: Revision,
    ) -> impl Future<Output = Result<Past, StoreError>> + Send;

    /// Watches all leases, from the first change after `revision` on, and the network config if that is wanted.
    fn watch(
        &self,
        revision: Revision,
        config: bool,
    ) -> impl Future<Output = Result<Self::Watch, StoreError>> + Send;

    /// Creates the lease of `subnet`, if no lease overlaps it and, where given, the network config
    /// is still that of `config`.
    fn create_if_free(
        &self,
        subnet: Ipv4Network,
        value: &[u8],
        etcd_lease: Option<i64>,
        config: Option<Revision>,
    ) -> impl Future<Output = Result<Created, StoreError>> + Send;

    /// Replaces a key, if it is still as it was at `revision`. Returns the new revision, or `None` if it is not.
    fn replace_if_unchanged(
        &self,
        key: &[u8],
        revision: Revision,
        value: &[u8],
        etcd_lease: Option<i64>,
    ) -> impl Future<Output = Result<Option<Revision>, StoreError>> + Send;

    /// Deletes a key, if it is still as it was at `revision`. Returns the new revision, or `None` if it is not.
    fn delete_if_unchanged(
        &self,
        key: &[u8],
        revision: Revision,
    ) -> impl Future<Output = Result<Option<Revision>, StoreError>> + Send;

    /// Writes the network config, if it is still as it was at `config` ([`Revision::NONE`]: not there) and
    /// no lease has been written since `leases`. Returns whether it did.
    fn put_config(
        &self,
        value: &[u8],
        config: Revision,
        leases: Revision,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Asks for something to hang keys on, which go with it when nobody has kept it for `ttl`, in whole seconds.
    fn grant(&self, ttl: Duration) -> impl Future<Output = Result<i64, StoreError>> + Send;

    /// Keeps it for another TTL. `false` if there is none any more.
    fn keep(&self, etcd_lease: i64) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// What is left of it; `None` if it is gone.
    fn etcd_lease(
        &self,
        id: i64,
    ) -> impl Future<Output = Result<Option<EtcdLease>, StoreError>> + Send;

    /// Gives it back if no key hangs on it, so that it does not linger. Keys that hang on it keep it.
    fn retire(&self, etcd_lease: i64) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// The changes of all leases from some revision on.
pub trait Watch: Send {
    /// The next of what it says. Who gives up waiting has missed nothing.
    fn next(&mut self) -> impl Future<Output = Result<News, WatchEnded>> + Send;
}

/// A key and what the store knows about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The whole key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
    /// When it came to be.
    pub create_revision: Revision,
    /// When it was last written.
    pub mod_revision: Revision,
    /// The etcd lease it hangs on; `None` for a key that stays until it is deleted.
    pub etcd_lease: Option<i64>,
}

impl Entry {
    /// Its key as text.
    pub fn name(&self) -> String {
        String::from_utf8_lossy(&self.key).into_owned()
    }
}

/// All keys below `<prefix>/subnets/` as of one revision, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The number of the history that the revision is of: a cluster's, in etcd.
    pub cluster: u64,
    /// The revision.
    pub revision: Revision,
    /// The keys.
    pub entries: Vec<Entry>,
}

/// What a store says of a key as of a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    /// The number of its history.
    pub cluster: u64,
    /// Its latest revision.
    pub latest: Revision,
    /// When the key was last written; `None` if it was not there.
    pub written: Option<Revision>,
}

/// What a store knows about what keys hang on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EtcdLease {
    /// The TTL it was granted for, in seconds.
    pub granted: i64,
    /// What is left of it.
    pub left: i64,
    /// How many keys hang on it.
    pub keys: usize,
}

/// How an attempt to create a key ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    /// The key is there, since this revision.
    At(Revision),
    /// It is not: these overlap it. Empty if only the network config was another.
    Refused(Vec<Entry>),
}

/// What has become of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was written.
    Put(Entry),
    /// It is gone.
    Deleted {
        /// The whole key.
        key: Vec<u8>,
        /// Since when.
        revision: Revision,
    },
}

impl Change {
    /// The whole key.
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Put(Entry { key, .. }) | Self::Deleted { key, .. } => key,
        }
    }

    /// When it was.
    pub const fn revision(&self) -> Revision {
        match self {
            Self::Put(Entry { mod_revision: revision, .. }) | Self::Deleted { revision, .. } => {
                *revision
            }
        }
    }
}

/// What a watch says.
#[derive(Debug)]
pub struct News {
    /// Changes, in order. There may be none: the store says so that the watch is alive.
    pub changes: Vec<Change>,
    /// No change of a lease up to this revision is still to come.
    pub complete: Option<Revision>,
}

/// Why there are no more changes to be had from a watch.
#[derive(Debug, thiserror::Error)]
pub enum WatchEnded {
    /// The connection failed, or etcd has lost its leader.
    #[error("the watch at {endpoint} has failed: {reason}")]
    Failed {
        /// Where it was.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// The changes that were asked for are not kept any more.
    #[error("etcd has forgotten all changes up to revision {0}")]
    Compacted(Revision),
    /// The store does not want to go on.
    #[error("etcd has cancelled the watch: {0}")]
    Cancelled(String),
}

/// A request that the store did not answer, or refused.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is nobody to ask.
    #[error("cannot {doing} {what}: {reason}")]
    Unreachable {
        /// What was asked.
        doing: &'static str,
        /// Of what.
        what: String,
        /// Why.
        reason: String,
    },
    /// It was reached, and did not want to, or did not answer.
    #[error("cannot {doing} {what} at {endpoint}: {reason}")]
    Refused {
        /// What was asked.
        doing: &'static str,
        /// Of what.
        what: String,
        /// Whom.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// Those who decide who may do what have decided that it is not ours to do.
    #[error("cannot {doing} {what}: {reason}")]
    NotPermitted {
        /// What was asked.
        doing: &'static str,
        /// Of what.
        what: String,
        /// Why.
        reason: String,
    },
    /// It can be read, and is written by people alone.
    #[error("cannot {doing} {what}: the peers file is not ours to write")]
    ReadOnly {
        /// What was asked.
        doing: &'static str,
        /// Of what.
        what: String,
    },
}

impl StoreError {
    /// Whether the store was reached and did not want to.
    pub const fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::NotPermitted { .. })
    }
}
