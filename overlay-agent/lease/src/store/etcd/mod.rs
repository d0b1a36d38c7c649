//! The requests that the lease protocol is made of. Every write is conditional on what was read.

mod ask;
mod config;
mod connect;
mod members;
mod page;
mod users;
mod watch;

use std::{fmt, future::Future, sync::Arc, time::Duration};

use etcd_client::{
    Compare, CompareOp, Error, GetOptions, KeyValue, LeaseTimeToLiveOptions, PutOptions,
    ResponseHeader, Txn, TxnOp, TxnOpResponse, TxnResponse, WatchOptions,
};
use ipnetwork::Ipv4Network;
use tokio::time::timeout;

pub use self::{
    config::{EtcdConfig, Identity, Secret},
    connect::OF_ANOTHER,
    members::{Condition, Member, Promotion, Snapshot},
    users::{Access, Right},
    watch::EtcdWatch,
};
use self::{
    connect::{
        Connection, Connector, explain, is_connection_trouble, is_not_permitted, is_to_be_repeated,
    },
    page::{PageSize, is_too_large},
};
use super::{Created, Entry, EtcdLease, Listing, Past, Revision, Store, StoreError};
use crate::{
    figures::Figures,
    trouble::Troubles,
    wire::{guard, key::KeyPrefix, value::LARGEST_VALUE},
};

/// How long an answer may take. etcd itself gives up on a request after about 7 s.
const ANSWER: Duration = Duration::from_secs(10);
/// The largest message to accept, for when somebody puts more than leases under our prefix.
const LARGEST_MESSAGE: usize = 64 << 20;
/// The largest answer that names the obstacles to taking a subnet.
const OBSTACLES: i64 = 1;

/// One network's part of an etcd cluster. Cheap to clone; clones share the connection.
#[derive(Clone)]
pub struct EtcdStore {
    connector: Arc<Connector>,
    prefix: KeyPrefix,
    troubles: Troubles,
    figures: Figures,
}

/// A key as etcd has it.
fn entry(kv: KeyValue) -> Entry {
    let [create_revision, mod_revision] =
        [kv.create_revision(), kv.mod_revision()].map(Revision::new);
    let etcd_lease = Some(kv.lease()).filter(|id| *id != 0);
    let (key, value) = kv.into_key_value();
    Entry { key, value, create_revision, mod_revision, etcd_lease }
}

/// One of many. A value that no lease can have keeps just enough bytes to be told from one.
fn listed(kv: KeyValue) -> Entry {
    let mut entry = entry(kv);
    if entry.value.len() > LARGEST_VALUE {
        entry.value.truncate(LARGEST_VALUE + 1);
        entry.value.shrink_to_fit();
    }
    entry
}

impl EtcdStore {
    /// Reads the files that `config` names. Connects on first use.
    pub fn new(config: &EtcdConfig) -> anyhow::Result<Self> {
        let figures = Figures::default();
        Ok(Self {
            connector: Arc::new(Connector::new(config, figures.clone())?),
            prefix: config.prefix.clone(),
            troubles: Troubles::default(),
            figures,
        })
    }

    /// Connects anew for the next request. A connection from an address that the host has lost hangs until
    /// its time runs out.
    pub fn disconnect(&self) {
        self.connector.disconnect();
    }

    fn too_large(dir: &str, start: &[u8]) -> StoreError {
        let reason = format!(
            "the value of the first key from {} on is larger than {LARGEST_MESSAGE} bytes: delete it",
            String::from_utf8_lossy(start)
        );
        let endpoint = "any endpoint".to_owned();
        StoreError::Refused { doing: "list", what: dir.to_owned(), endpoint, reason }
    }

    /// Lists all keys that begin with `dir`, as of one revision.
    pub async fn list_below(&self, dir: &str) -> Result<Listing, StoreError> {
        let (dir, end) = (dir.to_owned(), end_of(dir));
        let mut listing = Listing::default();
        let mut start = dir.clone().into_bytes();
        let mut size = PageSize::default();
        loop {
            let from = &start;
            let options = &GetOptions::new()
                .with_range(end.clone())
                .with_revision(listing.revision.number())
                .with_limit(size.keys());
            let mut page = match self
                .request("list", &dir, |connection| async move {
                    let mut kv =
                        connection.client.kv_client().max_decoding_message_size(LARGEST_MESSAGE);
                    match kv.get(from.clone(), Some(options.clone())).await {
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
            if let Some(header) = page.header().filter(|_| listing.revision == Revision::NONE) {
                listing.cluster = header.cluster_id();
                listing.revision = Revision::new(header.revision());
            }
            let more = page.more();
            let kvs = page.take_kvs();
            size.fits(kvs.iter().map(|kv| kv.key().len() + kv.value().len()).sum());
            listing.entries.extend(kvs.into_iter().map(listed));
            match listing.entries.last() {
                Some(last) if more => {
                    start.clone_from(&last.key);
                    start.push(0);
                }
                _ => return Ok(listing),
            }
        }
    }

    async fn conditional(
        &self,
        doing: &'static str,
        key: &str,
        txn: Txn,
    ) -> Result<Option<Revision>, StoreError> {
        let answer = self.transact(doing, key, txn).await?;
        Ok(answer.succeeded().then(|| revision(&answer)))
    }

    /// A transaction about one key. Where the right to write it is missing, whoever gives it is asked.
    async fn transact(
        &self,
        doing: &'static str,
        key: &str,
        txn: Txn,
    ) -> Result<TxnResponse, StoreError> {
        let txn = &txn;
        let attempt = || {
            self.request(doing, key, |mut connection| async move {
                match connection.client.txn(txn.clone()).await {
                    Err(error) if is_not_permitted(&error) => Ok(None),
                    answer => answer.map(Some),
                }
            })
        };
        if let Some(answer) = attempt().await? {
            return Ok(answer);
        }
        self.ask_for_right_to(doing, key).await?;
        attempt().await?.ok_or_else(|| StoreError::NotPermitted {
            doing,
            what: key.to_owned(),
            reason: "the right to was given, and taken again".to_owned(),
        })
    }

    /// Sends one request over the connection there is, in the time there is, and drops the
    /// connection if it is at fault.
    async fn request<T, F: Future<Output = Result<T, Error>> + Send>(
        &self,
        doing: &'static str,
        what: &str,
        send: impl Fn(Connection) -> F,
    ) -> Result<T, StoreError> {
        let connection = self.connector.connection().await.map_err(|error| {
            StoreError::Unreachable { doing, what: what.to_owned(), reason: error.to_string() }
        })?;
        // The library's futures are large, and would make all of ours as large.
        let answer = Box::pin(async {
            loop {
                match send(connection.clone()).await {
                    Err(error) if is_to_be_repeated(&error) => {}
                    answer => return answer,
                }
            }
        });
        let (reason, trouble) = match timeout(ANSWER, answer).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => (explain(&error), is_connection_trouble(&error)),
            Err(_) => (format!("no answer within {} s", ANSWER.as_secs()), true),
        };
        if trouble {
            self.connector.give_up(&connection).await;
        }
        let Connection { endpoint, .. } = connection;
        Err(StoreError::Refused { doing, what: what.to_owned(), endpoint, reason })
    }
}

impl Store for EtcdStore {
    type Watch = EtcdWatch;

    fn troubles(&self) -> &Troubles {
        &self.troubles
    }

    fn figures(&self) -> &Figures {
        &self.figures
    }

    fn prefix(&self) -> &KeyPrefix {
        &self.prefix
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.request("read", key, |mut connection| async move {
            let mut answer = connection.client.get(key, None).await?;
            Ok(answer.take_kvs().pop().map(entry))
        })
        .await
    }

    async fn past(&self, key: &str, revision: Revision) -> Result<Past, StoreError> {
        let options = &GetOptions::new().with_revision(revision.number()).with_keys_only();
        self.request("look at", key, |mut connection| async move {
            let answer = connection.client.get(key, Some(options.clone())).await?;
            let (cluster, latest) =
                answer.header().map_or((0, 0), |header| (header.cluster_id(), header.revision()));
            let written = answer.kvs().first().map(|kv| Revision::new(kv.mod_revision()));
            Ok(Past { cluster, latest: Revision::new(latest), written })
        })
        .await
    }

    async fn list(&self) -> Result<Listing, StoreError> {
        let listing = self.list_below(&self.prefix.subnets_dir()).await?;
        self.figures.listed();
        Ok(listing)
    }

    async fn watch(&self, revision: Revision, config: bool) -> Result<EtcdWatch, StoreError> {
        let dir = &self.prefix.subnets_dir();
        let options = WatchOptions::new().with_start_revision(revision.next().number());
        let config = &config.then(|| (self.prefix.config_key(), options.clone()));
        let options = &options.with_prefix().with_fragment().with_progress_notify();
        self.request("watch", dir, |connection| async move {
            let mut client =
                connection.client.watch_client().max_decoding_message_size(LARGEST_MESSAGE);
            let mut stream = client.watch(dir.as_str(), Some(options.clone())).await?;
            if let Some((key, options)) = config.clone() {
                stream.watch(key, Some(options)).await?;
            }
            self.figures.watched();
            Ok(EtcdWatch::new(stream, Arc::clone(&self.connector), connection))
        })
        .await
    }

    async fn grant(&self, ttl: Duration) -> Result<i64, StoreError> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        self.request(
            "ask for a lease in",
            self.prefix.to_string().as_str(),
            |mut connection| async move { Ok(connection.client.lease_grant(seconds, None).await?.id()) },
        )
        .await
    }

    async fn keep(&self, id: i64) -> Result<bool, StoreError> {
        self.request("keep alive lease", &format!("{id:x}"), |mut connection| async move {
            match connection.client.lease_keep_alive(id).await {
                Ok(_) => Ok(true),
                Err(Error::LeaseKeepAliveError(_)) => Ok(false),
                Err(error) => Err(error),
            }
        })
        .await
    }

    async fn etcd_lease(&self, id: i64) -> Result<Option<EtcdLease>, StoreError> {
        let options = &LeaseTimeToLiveOptions::new().with_keys();
        self.request("look at lease", &format!("{id:x}"), |mut connection| async move {
            let answer = connection.client.lease_time_to_live(id, Some(options.clone())).await?;
            Ok((answer.ttl() > 0).then(|| EtcdLease {
                granted: answer.granted_ttl(),
                left: answer.ttl(),
                keys: answer.keys().len(),
            }))
        })
        .await
    }

    async fn retire(&self, id: i64) -> Result<(), StoreError> {
        match self.etcd_lease(id).await? {
            Some(EtcdLease { keys: 0, .. }) => {
                self.request("give back lease", &format!("{id:x}"), |mut connection| async move {
                    connection.client.lease_revoke(id).await.map(drop)
                })
                .await
            }
            _ => Ok(()),
        }
    }

    async fn create_if_free(
        &self,
        subnet: Ipv4Network,
        value: &[u8],
        etcd_lease: Option<i64>,
        config: Option<Revision>,
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
        conditions.extend(config.map(|revision| written_at(self.prefix.config_key(), revision)));
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
        let answer = self.transact("create", &key, txn).await?;
        if answer.succeeded() {
            return Ok(Created::At(revision(&answer)));
        }
        let obstacles = answer.op_responses().into_iter().filter_map(|answer| match answer {
            TxnOpResponse::Get(mut found) => found.take_kvs().pop().map(entry),
            _ => None,
        });
        Ok(Created::Refused(obstacles.collect()))
    }

    async fn replace_if_unchanged(
        &self,
        key: &[u8],
        revision: Revision,
        value: &[u8],
        etcd_lease: Option<i64>,
    ) -> Result<Option<Revision>, StoreError> {
        let name = String::from_utf8_lossy(key);
        let txn =
            Txn::new().when([written_at(key, revision)]).and_then([put(&name, value, etcd_lease)]);
        self.conditional("replace", &name, txn).await
    }

    async fn delete_if_unchanged(
        &self,
        key: &[u8],
        revision: Revision,
    ) -> Result<Option<Revision>, StoreError> {
        let txn = Txn::new().when([written_at(key, revision)]).and_then([TxnOp::delete(key, None)]);
        self.conditional("delete", &String::from_utf8_lossy(key), txn).await
    }

    async fn put_config(
        &self,
        value: &[u8],
        config: Revision,
        leases: Revision,
    ) -> Result<bool, StoreError> {
        let key = self.prefix.config_key();
        let start = self.prefix.subnets_dir();
        let end = end_of(&start);
        let txn = Txn::new()
            .when([
                written_at(key.as_str(), config),
                Compare::mod_revision(start, CompareOp::Less, leases.next().number())
                    .with_range(end),
            ])
            .and_then([put(&key, value, None)]);
        Ok(self.conditional("write", &key, txn).await?.is_some())
    }
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "EtcdStore({})", self.prefix)
    }
}

/// What is after all keys that begin with `dir`, which ends in a slash.
fn end_of(dir: &str) -> String {
    // '/' is followed by '0'.
    format!("{}0", dir.trim_end_matches('/'))
}

fn written_at(key: impl Into<Vec<u8>>, revision: Revision) -> Compare {
    Compare::mod_revision(key, CompareOp::Equal, revision.number())
}

fn put(key: &str, value: &[u8], etcd_lease: Option<i64>) -> TxnOp {
    let options = etcd_lease.map(|id| PutOptions::new().with_lease(id));
    TxnOp::put(key, value, options)
}

fn revision(answer: &TxnResponse) -> Revision {
    Revision::new(answer.header().map_or(0, ResponseHeader::revision))
}
