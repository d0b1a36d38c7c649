//! Which host may write the lease of which subnet: one at a time, and never that of somebody who has it.

use std::time::Duration;

use ipnetwork::Ipv4Network;
use overlay_lease::{
    store::{
        Entry, Revision, Store as _, StoreError,
        etcd::{Access, EtcdStore},
    },
    wire::{
        identity::{HostId, encode},
        value::LeaseValue,
    },
};

use super::{
    access::lets_sharers_in,
    records::{Owner, Registration, known, owner, owner_key, write_record},
    seconds_at,
};

/// How many leases a host may have: one, and while it moves, two.
const MOST: usize = 2;
/// How long a subnet is kept for who was given it and has not taken it.
const KEPT: Duration = Duration::from_mins(1);

/// A reason to refuse something, as a sentence.
pub(super) type Refusal = String;

/// Lets a host write the lease of a subnet that is free, or that it has.
pub(super) async fn give(
    store: &EtcdStore,
    host: &HostId,
    subnet: Ipv4Network,
) -> Result<Result<(), Refusal>, StoreError> {
    let Some((_, found)) = known(store, host).await? else {
        return Ok(Err(format!("{host} is no host of this overlay")));
    };
    if let Err(refusal) = own(store, host, &found, subnet).await? {
        return Ok(Err(refusal));
    }
    if let Err(refusal) = remember(store, host, subnet).await? {
        return Ok(Err(refusal));
    }
    let access = Access::write(store.prefix().subnet_key(subnet));
    store.allow(&host.user(), &access).await?;
    // Somebody else who decides may have given it to another one meanwhile, or the host may be expelled.
    let is_still = owner(store, subnet).await?.is_some_and(|(_, owner)| owner.host == *host);
    if !is_still {
        store.forbid(&host.user(), &access).await?;
        return Ok(Err(taken(subnet)));
    }
    Ok(Ok(()))
}

fn taken(subnet: Ipv4Network) -> Refusal {
    format!("{subnet} is another host's")
}

/// Makes it the owner of a subnet that is nobody's any more.
async fn own(
    store: &EtcdStore,
    host: &HostId,
    registration: &Registration,
    subnet: Ipv4Network,
) -> Result<Result<(), Refusal>, StoreError> {
    let lease_key = store.prefix().subnet_key(subnet);
    let found = owner(store, subnet).await?;
    if found.as_ref().is_some_and(|(_, owner)| owner.host == *host) {
        return Ok(Ok(()));
    }
    let lease = store.get(&lease_key).await?;
    match (&found, &lease) {
        (None, None) => {}
        (Some((_, other)), None) => {
            let kept_until = other.since.saturating_add(KEPT.as_secs());
            if kept_until > seconds_at(Duration::ZERO) {
                return Ok(Err(taken(subnet)));
            }
            store.forbid(&other.host.user(), &Access::write(lease_key)).await?;
        }
        // Reserved for a host at this address, or of a time when hosts were not told apart.
        (None, Some(lease)) if is_for(lease, registration) || lets_sharers_in(store).await? => {}
        (_, Some(_)) => return Ok(Err(taken(subnet))),
    }
    let revision = found.map_or(Revision::NONE, |(entry, _)| entry.mod_revision);
    let owner = Owner { host: host.clone(), since: seconds_at(Duration::ZERO) };
    let (key, value) = (owner_key(store.prefix(), subnet), encode(&owner));
    let written = store.replace_if_unchanged(key.as_bytes(), revision, &value, None).await?;
    Ok(written.map(drop).ok_or_else(|| taken(subnet)))
}

fn is_for(lease: &Entry, of: &Registration) -> bool {
    LeaseValue::decode(&lease.value).is_ok_and(|value| of.address == Some(value.public_ip))
}

/// Remembers that a subnet is a host's, and takes from it those that it has no lease of any more.
async fn remember(
    store: &EtcdStore,
    host: &HostId,
    subnet: Ipv4Network,
) -> Result<Result<(), Refusal>, StoreError> {
    loop {
        let Some((entry, mut found)) = known(store, host).await? else {
            return Ok(Err(format!("{host} is no host of this overlay")));
        };
        let mut kept = Vec::new();
        for other in found.subnets.iter().copied().filter(|other| *other != subnet) {
            let is_own = owner(store, other).await?.is_some_and(|(_, owner)| owner.host == *host);
            if is_own && store.get(&store.prefix().subnet_key(other)).await?.is_some() {
                kept.push(other);
            } else {
                give_up(store, host, other).await?;
            }
        }
        kept.push(subnet);
        if kept.len() > MOST {
            give_up(store, host, subnet).await?;
            return Ok(Err(format!("{host} has {MOST} leases already")));
        }
        if found.subnets == kept {
            return Ok(Ok(()));
        }
        found.subnets = kept;
        if write_record(store, host, entry.mod_revision, &found).await? {
            return Ok(Ok(()));
        }
    }
}

/// Takes a subnet from a host.
async fn give_up(store: &EtcdStore, host: &HostId, subnet: Ipv4Network) -> Result<(), StoreError> {
    store.forbid(&host.user(), &Access::write(store.prefix().subnet_key(subnet))).await?;
    match owner(store, subnet).await? {
        Some((entry, owner)) if owner.host == *host => {
            store.delete_if_unchanged(&entry.key, entry.mod_revision).await.map(drop)
        }
        _ => Ok(()),
    }
}
