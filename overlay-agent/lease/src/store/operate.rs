//! What operators do with leases and with the network config. Every write is a transaction on what was read, and none waits
//! for a store that does not answer.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use overlay_common::MacAddr;
use tracing::warn;

use super::{Created, Entry, Revision, Store, StoreError};
use crate::{
    config::{ConfigError, NetworkConfig, change::Harm},
    wire::{
        Lease,
        value::{LeaseValue, ValueError},
    },
};

/// How often to start anew when somebody writes at the same time.
const RACES: usize = 10;

/// Nothing was written, and this is why.
#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    /// The store did not answer, or did not want to.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The new config would harm hosts.
    #[error("not written to {key}: {harm}")]
    Harmful {
        /// Where it would have been written.
        key: String,
        /// What it would do.
        harm: Harm,
    },
    /// Others write all the time.
    #[error("{0} or the leases change all the time: not written after {RACES} attempts")]
    Restless(String),
    /// There is no such lease.
    #[error("there is no lease of {subnet} below {dir}")]
    NoLease {
        /// Whose lease was meant.
        subnet: Ipv4Network,
        /// Where leases are.
        dir: String,
    },
    /// There is no network config at this key.
    #[error("there is no network config at {0}")]
    NoConfig(String),
    /// The network config that is there cannot be used.
    #[error("the network config at {key} is malformed")]
    MalformedConfig {
        /// Where it is.
        key: String,
        /// The field and the rule.
        #[source]
        error: ConfigError,
    },
    /// A key that names a subnet holds no lease.
    #[error("{key} is no lease: {error}")]
    Malformed {
        /// The key.
        key: String,
        /// What is wrong with its value.
        error: ValueError,
    },
    /// The subnet is free, and nobody was named.
    #[error("nobody has this subnet, and no host is named that it is reserved for")]
    Nobody,
    /// Somebody else than was named has it.
    #[error("{subnet} is leased to {owner}")]
    Leased {
        /// The subnet.
        subnet: Ipv4Network,
        /// Who has it.
        owner: Ipv4Addr,
    },
    /// The network config does not hand it out.
    #[error(
        "the network config does not allow {subnet}: its subnets are /{len} from {min} to {max}"
    )]
    NotAdmitted {
        /// The subnet.
        subnet: Ipv4Network,
        /// The prefix length of those that it hands out.
        len: u8,
        /// The first of them.
        min: Ipv4Addr,
        /// The last of them.
        max: Ipv4Addr,
    },
    /// The host has another subnet.
    #[error("{public_ip} has a lease already, {other}: a host has one")]
    HasOther {
        /// The host.
        public_ip: Ipv4Addr,
        /// What it has: a subnet, or the key where that names none.
        other: String,
    },
    /// Another key is in the way.
    #[error("{subnet} overlaps {key}")]
    Overlaps {
        /// The subnet.
        subnet: Ipv4Network,
        /// The key.
        key: String,
    },
    /// The lease is not the one that was meant.
    #[error("{0} is another host's")]
    AnothersLease(String),
    /// Somebody wrote it between our read and our write.
    #[error("{0} was changed by somebody else just now")]
    Changed(String),
}

/// How a subnet came to be reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// It was.
    Already(Ipv4Addr),
    /// The lease of this host does not expire any more.
    Kept(Ipv4Addr),
    /// Nobody had it; this host takes it when it starts.
    Free(Ipv4Addr),
}

/// What was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// The key.
    pub key: String,
    /// The host whose lease it was, if it was one.
    pub owner: Option<Ipv4Addr>,
}

/// Writes a config that has been checked, under the condition that what the decision rests on has
/// not changed; what it would harm is only written with `force`.
pub async fn set_config(
    store: &impl Store,
    text: &[u8],
    config: &NetworkConfig,
    force: bool,
) -> Result<(), OperateError> {
    let key = store.prefix().config_key();
    for _ in 0..RACES {
        let old = store.get(&key).await?;
        let leases = store.list().await?;
        let subnets = leases
            .entries
            .iter()
            .filter_map(|entry| store.prefix().parse_subnet_key(&entry.key).ok())
            .map(|key| key.subnet);
        // What is malformed now stands for nothing that could be harmed.
        let before = old.as_ref().and_then(|entry| NetworkConfig::parse(&entry.value).ok());
        let harm = Harm::of(before.as_ref().map(|parsed| &parsed.config), config, subnets);
        if !harm.is_none() {
            if !force {
                return Err(OperateError::Harmful { key, harm });
            }
            warn!("{harm}");
        }
        let revision = old.map_or(Revision::NONE, |entry| entry.mod_revision);
        if store.put_config(text, revision, leases.revision).await? {
            return Ok(());
        }
    }
    Err(OperateError::Restless(key))
}

/// Makes the lease of `subnet` one that does not expire, or one for the host at `public_ip` where there is none.
pub async fn reserve(
    store: &impl Store,
    subnet: Ipv4Network,
    public_ip: Option<Ipv4Addr>,
) -> Result<Reserved, OperateError> {
    if let Some(entry) = look(store, subnet).await? {
        return make_permanent(store, subnet, &entry, public_ip).await;
    }
    create(store, subnet, public_ip.ok_or(OperateError::Nobody)?).await
}

async fn make_permanent(
    store: &impl Store,
    subnet: Ipv4Network,
    entry: &Entry,
    public_ip: Option<Ipv4Addr>,
) -> Result<Reserved, OperateError> {
    let owner = match LeaseValue::decode(&entry.value) {
        Ok(value) => value.public_ip,
        Err(error) => return Err(OperateError::Malformed { key: entry.name(), error }),
    };
    if public_ip.is_some_and(|wanted| wanted != owner) {
        return Err(OperateError::Leased { subnet, owner });
    }
    if entry.etcd_lease.is_none() {
        return Ok(Reserved::Already(owner));
    }
    // The same bytes: whatever another implementation wrote there stays.
    store
        .replace_if_unchanged(&entry.key, entry.mod_revision, &entry.value, None)
        .await?
        .ok_or_else(|| OperateError::Changed(entry.name()))?;
    Ok(Reserved::Kept(owner))
}

async fn create(
    store: &impl Store,
    subnet: Ipv4Network,
    public_ip: Ipv4Addr,
) -> Result<Reserved, OperateError> {
    let key = store.prefix().config_key();
    let Some(stored) = store.get(&key).await? else {
        return Err(OperateError::NoConfig(key));
    };
    let config = match NetworkConfig::parse(&stored.value) {
        Ok(parsed) => parsed.config,
        Err(error) => return Err(OperateError::MalformedConfig { key, error }),
    };
    if !config.admits(subnet) {
        let NetworkConfig { subnet_len: len, subnet_min: min, subnet_max: max, .. } = config;
        return Err(OperateError::NotAdmitted { subnet, len, min, max });
    }
    let listing = store.list().await?;
    let other = listing.entries.iter().find_map(|entry| {
        let value = LeaseValue::decode(&entry.value).ok()?;
        let key = store.prefix().parse_subnet_key(&entry.key);
        let name = || key.map_or_else(|_no_subnet| entry.name(), |key| key.subnet.to_string());
        (value.public_ip == public_ip).then(name)
    });
    if let Some(other) = other {
        return Err(OperateError::HasOther { public_ip, other });
    }
    let vtep_mac = MacAddr::local(rand::random());
    let lease = Lease { subnet, public_ip, vtep_mac, vni: Some(config.vni) };
    let value = lease.value().encode();
    match store.create_if_free(subnet, &value, None, Some(stored.mod_revision)).await? {
        Created::At(_) => Ok(Reserved::Free(public_ip)),
        Created::Refused(obstacles) => Err(match obstacles.first() {
            Some(entry) => OperateError::Overlaps { subnet, key: entry.name() },
            None => OperateError::Changed("the network config".to_owned()),
        }),
    }
}

/// Deletes the lease of `subnet`, whatever it is.
pub async fn release(store: &impl Store, subnet: Ipv4Network) -> Result<Released, OperateError> {
    let entry = find(store, subnet).await?;
    delete(store, &entry).await?;
    let owner = LeaseValue::decode(&entry.value).ok().map(|value| value.public_ip);
    Ok(Released { key: entry.name(), owner })
}

/// Deletes the lease of `subnet` if it is that of the host with this VTEP, else fails.
pub async fn give_back(
    store: &impl Store,
    subnet: Ipv4Network,
    vtep_mac: MacAddr,
) -> Result<(), OperateError> {
    let entry = find(store, subnet).await?;
    let value = LeaseValue::decode(&entry.value).ok();
    if value.and_then(|value| value.vtep_mac()) != Some(vtep_mac) {
        return Err(OperateError::AnothersLease(entry.name()));
    }
    delete(store, &entry).await
}

async fn delete(store: &impl Store, entry: &Entry) -> Result<(), OperateError> {
    store
        .delete_if_unchanged(&entry.key, entry.mod_revision)
        .await?
        .ok_or_else(|| OperateError::Changed(entry.name()))?;
    if let Some(id) = entry.etcd_lease {
        // What is left of it expires by itself.
        store.retire(id).await.ok();
    }
    Ok(())
}

/// The lease of exactly this subnet, whether its host has one address family or two.
async fn look(store: &impl Store, subnet: Ipv4Network) -> Result<Option<Entry>, StoreError> {
    let listing = store.list().await?;
    let ours = |entry: &Entry| {
        store.prefix().parse_subnet_key(&entry.key).is_ok_and(|key| key.subnet == subnet)
    };
    Ok(listing.entries.into_iter().find(ours))
}

/// The lease of exactly this subnet, whether its host has one address family or two, or a failure.
pub async fn find(store: &impl Store, subnet: Ipv4Network) -> Result<Entry, OperateError> {
    let dir = store.prefix().subnets_dir();
    look(store, subnet).await?.ok_or(OperateError::NoLease { subnet, dir })
}
