//! The requests that the lease protocol is made of. Every write is conditional on what was read.

mod config;
mod connect;
mod page;
mod watch;

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use etcd_client::{
    Compare, CompareOp, Error, GetOptions, KeyValue, LeaseTimeToLiveOptions, PutOptions, Txn,
    TxnOp, TxnOpResponse, WatchOptions,
};
use ipnetwork::Ipv4Network;
use tokio::time::timeout;

pub use self::{
    config::{EtcdConfig, Identity, Secret},
    watch::{Watch, WatchEnded},
};
use self::{
    connect::{Connection, Connector, NoEndpoint, explain, is_connection_trouble},
    page::{PageSize, is_too_large},
};
use crate::{
    trouble::Troubles,
    wire::{guard, key::Prefix},
};

/// How long an answer may take. etcd itself gives up on a request after about 7 s.
const ANSWER: Duration = Duration::from_secs(10);
/// The largest message to accept, for when somebody puts more than leases under our prefix.
const LARGEST_MESSAGE: usize = 64 << 20;
/// The largest value that is looked at: some twenty times that of a lease.
pub const LARGEST_VALUE: usize = 4096;
/// The largest answer that names the obstacles to taking a subnet.
const OBSTACLES: i64 = 1;

/// One network's part of an etcd cluster. Cheap to clone; clones share the connection.
#[derive(Clone)]
pub struct Etcd {
    connector: Arc<Connector>,
    prefix: Prefix,
    troubles: Troubles,
}

/// A key and what etcd knows about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The whole key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
    /// When it came to be.
    pub create_revision: i64,
    /// When it was last written.
    pub mod_revision: i64,
    /// The etcd lease it hangs on; `None` for a key that stays until it is deleted.
    pub etcd_lease: Option<i64>,
}

impl From<KeyValue> for Entry {
    fn from(kv: KeyValue) -> Self {
        let (create_revision, mod_revision) = (kv.create_revision(), kv.mod_revision());
        let etcd_lease = Some(kv.lease()).filter(|id| *id != 0);
        let (key, value) = kv.into_key_value();
        Self { key, value, create_revision, mod_revision, etcd_lease }
    }
}

impl Entry {
    /// Its key as text.
    pub fn name(&self) -> String {
        String::from_utf8_lossy(&self.key).into_owned()
    }

    /// One of many. A value that no lease can have keeps just enough bytes to be told from one.
    pub(crate) fn listed(kv: KeyValue) -> Self {
        let mut entry = Self::from(kv);
        if entry.value.len() > LARGEST_VALUE {
            entry.value.truncate(LARGEST_VALUE + 1);
            entry.value.shrink_to_fit();
        }
        entry
    }
}

/// All keys below `<prefix>/subnets/` as of one revision, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The number of the cluster that has them.
    pub cluster: u64,
    /// The revision.
    pub revision: i64,
    /// The keys.
    pub entries: Vec<Entry>,
}

/// What etcd knows about an etcd lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EtcdLease {
    /// The TTL it was granted for, in seconds.
    pub granted: i64,
    /// What is left of it.
    pub left: i64,
    /// How many keys hang on it.
    pub keys: usize,
}

/// What a cluster says of a key as of a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Past {
    /// The cluster's number.
    pub(crate) cluster: u64,
    /// Its latest revision.
    pub(crate) latest: i64,
    /// When the key was last written; `None` if it was not there.
    pub(crate) written: Option<i64>,
}

/// How an attempt to create a key ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    /// The key is there, since this revision.
    At(i64),
    /// It is not: these overlap it. Empty if only the network config was another.
    Refused(Vec<Entry>),
}

impl Etcd {
    /// Reads the files that `config` names. Connects on first use.
    pub fn new(config: &EtcdConfig) -> anyhow::Result<Self> {
        Ok(Self {
            connector: Arc::new(Connector::new(config)?),
            prefix: config.prefix.clone(),
            troubles: Troubles::default(),
        })
    }

    /// Connects anew for the next request. A connection from an address that the host has lost hangs until
    /// its time runs out.
    pub fn disconnect(&self) {
        self.connector.disconnect();
    }

    /// What fails at this moment, whoever of us it is that fails.
    pub const fn troubles(&self) -> &Troubles {
        &self.troubles
    }

    /// Where in etcd this network is.
    pub const fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// Reads one key.
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.request("read", key, async |mut connection| {
            let mut answer = connection.client.get(key, None).await?;
            Ok(answer.take_kvs().pop().map(Entry::from))
        })
        .await
    }

    /// What is to be known of a key as of a revision, and of the cluster that says it, all of whose members agree by then.
    ///
    /// # Errors
    /// Among others, that the revision is not kept any more, or is none yet.
    pub(crate) async fn past(&self, key: &str, revision: i64) -> Result<Past, StoreError> {
        let options = GetOptions::new().with_revision(revision).with_keys_only();
        self.request("look at", key, async |mut connection| {
            let answer = connection.client.get(key, Some(options.clone())).await?;
            let (cluster, latest) =
                answer.header().map_or((0, 0), |header| (header.cluster_id(), header.revision()));
            let written = answer.kvs().first().map(KeyValue::mod_revision);
            Ok(Past { cluster, latest, written })
        })
        .await
    }

    /// Lists all leases, page by page, as of one revision.
    pub async fn list(&self) -> Result<Listing, StoreError> {
        let (dir, end) = self.subnets_range();
        let mut listing = Listing::default();
        let mut start = dir.clone().into_bytes();
        let mut size = PageSize::default();
        loop {
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_revision(listing.revision)
                .with_limit(size.keys());
            let mut page = match self
                .request("list", &dir, async |connection| {
                    let mut kv =
                        connection.client.kv_client().max_decoding_message_size(LARGEST_MESSAGE);
                    match kv.get(start.clone(), Some(options.clone())).await {
                        Err(error) if is_too_large(&error) => Ok(None),
                        answer => answer.map(Some),
                    }
                })
                .await?
            {
                Some(page) => page,
                None if size.halve() => continue,
                None => return Err(Self::too_large(&dir, &start)),
            };
            if let Some(header) = page.header().filter(|_| listing.revision == 0) {
                (listing.cluster, listing.revision) = (header.cluster_id(), header.revision());
            }
            let more = page.more();
            let kvs = page.take_kvs();
            size.fits(kvs.iter().map(|kv| kv.key().len() + kv.value().len()).sum());
            listing.entries.extend(kvs.into_iter().map(Entry::listed));
            match listing.entries.last() {
                Some(last) if more => {
                    start.clone_from(&last.key);
                    start.push(0);
                }
                _ => return Ok(listing),
            }
        }
    }

    fn too_large(dir: &str, start: &[u8]) -> StoreError {
        let error = format!(
            "the value of the first key from {} on is larger than {LARGEST_MESSAGE} bytes: delete it",
            String::from_utf8_lossy(start)
        );
        let endpoint = "any endpoint".to_owned();
        StoreError {
            doing: "list",
            what: dir.to_owned(),
            reason: Reason::Refused { endpoint, error },
        }
    }

    /// Watches all leases from `revision` on, and the network config if that is wanted, in one stream.
    pub async fn watch(&self, revision: i64, config: bool) -> Result<Watch, StoreError> {
        let dir = self.prefix.subnets_dir();
        let options = WatchOptions::new().with_start_revision(revision);
        let config = config.then(|| (self.prefix.config_key(), options.clone()));
        let options = options.with_prefix().with_fragment().with_progress_notify();
        self.request("watch", &dir, async |connection| {
            let mut client =
                connection.client.watch_client().max_decoding_message_size(LARGEST_MESSAGE);
            let mut stream = client.watch(dir.as_str(), Some(options)).await?;
            if let Some((key, options)) = config {
                stream.watch(key, Some(options)).await?;
            }
            Ok(Watch::new(stream, Arc::clone(&self.connector), connection))
        })
        .await
    }

    /// Asks for a new etcd lease.
    pub async fn grant(&self, ttl: Duration) -> Result<i64, StoreError> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        self.request(
            "ask for a lease in",
            self.prefix.to_string().as_str(),
            async |mut connection| Ok(connection.client.lease_grant(seconds, None).await?.id()),
        )
        .await
    }

    /// Renews an etcd lease once. `false` if there is none any more.
    pub async fn keep_alive(&self, id: i64) -> Result<bool, StoreError> {
        self.request(
            "keep alive lease",
            &format!("{id:x}"),
            async |mut connection| match connection.client.lease_keep_alive(id).await {
                Ok(_) => Ok(true),
                Err(Error::LeaseKeepAliveError(_)) => Ok(false),
                Err(error) => Err(error),
            },
        )
        .await
    }

    /// What is left of an etcd lease; `None` if it is gone.
    pub async fn etcd_lease(&self, id: i64) -> Result<Option<EtcdLease>, StoreError> {
        let options = LeaseTimeToLiveOptions::new().with_keys();
        self.request("look at lease", &format!("{id:x}"), async |mut connection| {
            let answer = connection.client.lease_time_to_live(id, Some(options)).await?;
            Ok((answer.ttl() > 0).then(|| EtcdLease {
                granted: answer.granted_ttl(),
                left: answer.ttl(),
                keys: answer.keys().len(),
            }))
        })
        .await
    }

    /// Gives back an etcd lease that no key hangs on, so that it does not linger. Keys that hang on
    /// it keep it.
    pub async fn retire(&self, id: i64) -> Result<(), StoreError> {
        match self.etcd_lease(id).await? {
            Some(EtcdLease { keys: 0, .. }) => {
                self.request("give back lease", &format!("{id:x}"), async |mut connection| {
                    connection.client.lease_revoke(id).await.map(drop)
                })
                .await
            }
            _ => Ok(()),
        }
    }

    /// Creates the lease of `subnet`, if no lease overlaps it and, where given, the network config
    /// is still that of `config_revision`.
    pub async fn create(
        &self,
        subnet: Ipv4Network,
        value: &[u8],
        etcd_lease: Option<i64>,
        config_revision: Option<i64>,
    ) -> Result<Created, StoreError> {
        let key = self.prefix.subnet_key(subnet);
        let guards = guard::guards(&self.prefix, subnet);
        let mut conditions: Vec<_> = guards
            .iter()
            .map(|range| {
                Compare::version(range.start.as_str(), CompareOp::Equal, 0)
                    .with_range(range.end.as_str())
            })
            .collect();
        conditions.extend(config_revision.map(|revision| {
            Compare::mod_revision(self.prefix.config_key(), CompareOp::Equal, revision)
        }));
        let obstacles: Vec<_> = guards
            .iter()
            .map(|range| {
                let options =
                    GetOptions::new().with_range(range.end.as_str()).with_limit(OBSTACLES);
                TxnOp::get(range.start.as_str(), Some(options))
            })
            .collect();
        let txn =
            Txn::new().when(conditions).and_then([put(&key, value, etcd_lease)]).or_else(obstacles);
        self.request("create", &key, async |mut connection| {
            let answer = connection.client.txn(txn).await?;
            if answer.succeeded() {
                return Ok(Created::At(revision(&answer)));
            }
            let obstacles = answer.op_responses().into_iter().filter_map(|answer| match answer {
                TxnOpResponse::Get(mut found) => found.take_kvs().pop().map(Entry::from),
                _ => None,
            });
            Ok(Created::Refused(obstacles.collect()))
        })
        .await
    }

    /// Replaces a key, if it is still as it was at `mod_revision`. Returns the new revision, or
    /// `None` if it is not.
    pub async fn replace(
        &self,
        key: &[u8],
        mod_revision: i64,
        value: &[u8],
        etcd_lease: Option<i64>,
    ) -> Result<Option<i64>, StoreError> {
        let name = String::from_utf8_lossy(key);
        let txn = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, mod_revision)])
            .and_then([put(&name, value, etcd_lease)]);
        self.conditional("replace", &name, txn).await
    }

    /// Deletes a key, if it is still as it was at `mod_revision`. Returns the new revision, or
    /// `None` if it is not.
    pub async fn delete(&self, key: &[u8], mod_revision: i64) -> Result<Option<i64>, StoreError> {
        let txn = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, mod_revision)])
            .and_then([TxnOp::delete(key, None)]);
        self.conditional("delete", &String::from_utf8_lossy(key), txn).await
    }

    /// Writes the network config, if it is still as it was at `config_revision` (zero: not there) and
    /// no lease has been written since `leases_revision`. Returns whether it did.
    pub async fn put_config(
        &self,
        value: &[u8],
        config_revision: i64,
        leases_revision: i64,
    ) -> Result<bool, StoreError> {
        let key = self.prefix.config_key();
        let (start, end) = self.subnets_range();
        let txn = Txn::new()
            .when([
                Compare::mod_revision(key.as_str(), CompareOp::Equal, config_revision),
                Compare::mod_revision(start, CompareOp::Less, leases_revision + 1).with_range(end),
            ])
            .and_then([put(&key, value, None)]);
        Ok(self.conditional("write", &key, txn).await?.is_some())
    }

    /// All keys of leases: from the first one up to the second one, exclusive.
    fn subnets_range(&self) -> (String, String) {
        let dir = self.prefix.subnets_dir();
        // '/' is followed by '0'.
        let end = format!("{}0", dir.trim_end_matches('/'));
        (dir, end)
    }

    async fn conditional(
        &self,
        doing: &'static str,
        key: &str,
        txn: Txn,
    ) -> Result<Option<i64>, StoreError> {
        self.request(doing, key, async |mut connection| {
            let answer = connection.client.txn(txn).await?;
            Ok(answer.succeeded().then(|| revision(&answer)))
        })
        .await
    }

    /// Sends one request over the connection there is, in the time there is, and drops the
    /// connection if it is at fault.
    async fn request<T>(
        &self,
        doing: &'static str,
        what: &str,
        send: impl AsyncFnOnce(Connection) -> Result<T, Error>,
    ) -> Result<T, StoreError> {
        let failed = |reason| StoreError { doing, what: what.to_owned(), reason };
        let connection = self
            .connector
            .connection()
            .await
            .map_err(|error| failed(Reason::Unreachable(error)))?;
        // The library's futures are large, and would make all of ours as large.
        let answer = Box::pin(send(connection.clone()));
        let (error, trouble) = match timeout(ANSWER, answer).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => (explain(&error), is_connection_trouble(&error)),
            Err(_) => (format!("no answer within {} s", ANSWER.as_secs()), true),
        };
        if trouble {
            self.connector.give_up(&connection).await;
        }
        Err(failed(Reason::Refused { endpoint: connection.endpoint, error }))
    }
}

impl fmt::Debug for Etcd {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Etcd({})", self.prefix)
    }
}

fn put(key: &str, value: &[u8], etcd_lease: Option<i64>) -> TxnOp {
    let options = etcd_lease.map(|id| PutOptions::new().with_lease(id));
    TxnOp::put(key, value, options)
}

fn revision(answer: &etcd_client::TxnResponse) -> i64 {
    answer.header().map_or(0, etcd_client::ResponseHeader::revision)
}

/// A request that etcd did not answer, or refused.
#[derive(Debug)]
pub struct StoreError {
    doing: &'static str,
    what: String,
    reason: Reason,
}

#[derive(Debug)]
enum Reason {
    Unreachable(NoEndpoint),
    Refused { endpoint: String, error: String },
}

impl fmt::Display for StoreError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { doing, what, reason } = self;
        match reason {
            Reason::Unreachable(error) => write!(out, "cannot {doing} {what}: {error}"),
            Reason::Refused { endpoint, error } => {
                write!(out, "cannot {doing} {what} at {endpoint}: {error}")
            }
        }
    }
}

impl StdError for StoreError {}

impl StoreError {
    /// Whether etcd was reached and did not want to.
    pub(crate) const fn is_refusal(&self) -> bool {
        matches!(self.reason, Reason::Refused { .. })
    }
}
