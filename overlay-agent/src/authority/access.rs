//! Who is let into etcd, and what he may do there.

use std::{net::Ipv4Addr, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use overlay_lease::{
    store::{
        Revision, Store as _, StoreError,
        etcd::{Access, EtcdStore},
    },
    wire::identity::{Applicant, HostId, TokenId, encode},
};
use ring::digest::{SHA256, digest};

use super::{
    pki::CERTIFICATE_LIFETIME,
    records::{
        Registration, Settings, TokenRecord, expelled_dir, hosts, known, owner, read, record,
        settings_key, shared_key, token_key, tokens, write_record,
    },
    seconds_at,
};
use crate::certificate;

/// The user that hosts of earlier versions were, all of them.
const SHARED_USER: &str = "overlay host";
/// How long after the end of its certificate a host is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_hours(30 * 24);
/// For how long it is said that a host was expelled: until all who have to know have heard.
const SAID_FOR: Duration = Duration::from_mins(10);

/// Has etcd tell its users apart, with this host as the first. The store is asked as root. With a `lifetime`, certificates are
/// made for that long from now on.
pub async fn establish(
    store: &EtcdStore,
    own: &Newcomer,
    lifetime: Option<Duration>,
) -> Result<(), StoreError> {
    let prefix = store.prefix();
    if let Some(lifetime) = lifetime {
        let settings = Settings { certificate_seconds: lifetime.as_secs() };
        store.put(&settings_key(prefix), &encode(&settings), None).await?;
    }
    if !admit(store, own).await? {
        // It was about to leave, and was interrupted: what was left of it goes first.
        forget(store, &own.host).await?;
        admit(store, own).await?;
    }
    // Hosts of an earlier version go on with what they have, until each has one of its own.
    if let Some(entry) = store.get(&shared_key(prefix)).await? {
        let rights = [
            Access::read(prefix.config_key()),
            Access::write(prefix.subnets_dir()),
            Access::write(prefix.hosts_dir()),
        ];
        store.add_user(SHARED_USER, &rights).await?;
        store.delete_if_unchanged(&entry.key, entry.mod_revision).await?;
    }
    store.tell_users_apart().await
}

/// For how long hosts' certificates are made.
pub(super) async fn certificate_lifetime(store: &EtcdStore) -> Result<Duration, StoreError> {
    let said = read::<Settings>(store, &settings_key(store.prefix())).await?;
    Ok(said.map_or(CERTIFICATE_LIFETIME, |(_, said)| Duration::from_secs(said.certificate_seconds)))
}

/// A host that is let in, or has its certificate anew.
#[derive(Clone, Debug)]
pub struct Newcomer {
    /// Who it is.
    pub host: HostId,
    /// Where it is.
    pub address: Option<Ipv4Addr>,
    /// Its certificate, in PEM.
    pub certificate: String,
}

/// Lets a host in, or remembers how long the one that is in has a certificate for. Returns whether it is in: it may be forgotten
/// meanwhile.
pub async fn admit(store: &EtcdStore, newcomer: &Newcomer) -> Result<bool, StoreError> {
    let Newcomer { host, address, .. } = newcomer;
    if record(store, host).await?.is_none() {
        let record = Registration {
            address: *address,
            subnets: Vec::new(),
            ends: 0,
            key: String::new(),
            leaving: false,
        };
        write_record(store, host, Revision::NONE, &record).await?;
    }
    readmit(store, newcomer).await
}

/// The same for one that has to be in.
pub async fn readmit(store: &EtcdStore, newcomer: &Newcomer) -> Result<bool, StoreError> {
    let Newcomer { host, certificate, .. } = newcomer;
    let prefix = store.prefix();
    let left = certificate::left(certificate).ok().flatten().unwrap_or_default();
    let (ends, key) = (seconds_at(left), fingerprint(certificate));
    loop {
        let Some((entry, record)) = known(store, host).await? else { return Ok(false) };
        let record = Registration { ends, key: key.clone(), ..record };
        if write_record(store, host, entry.mod_revision, &record).await? {
            break;
        }
    }
    let rights = [
        Access::read(prefix.config_key()),
        Access::read(prefix.subnets_dir()),
        Access::write(Applicant::Host(host.clone()).dir(prefix)),
    ];
    let made = store.add_user(&host.user(), &rights).await;
    // Whoever forgets it says so first, and removes the user then.
    if known(store, host).await?.is_some() {
        return made.map(|()| true);
    }
    store.remove_user(&host.user()).await?;
    Ok(false)
}

/// The SHA-256 of a certificate's public key, in Base64.
pub(super) fn fingerprint(certificate: &str) -> String {
    let sum = certificate::with_parsed(certificate, |certificate| {
        digest(&SHA256, certificate.public_key().raw)
    });
    sum.as_ref().map(|sum| URL_SAFE_NO_PAD.encode(sum)).unwrap_or_default()
}

/// Whether hosts of an earlier version are let in, which nobody can tell from each other.
pub async fn lets_sharers_in(store: &EtcdStore) -> Result<bool, StoreError> {
    Ok(store.users().await?.iter().any(|user| user == SHARED_USER))
}

/// Lets in nobody any more who has the certificate that all hosts of earlier versions shared. Returns whether anybody was.
pub async fn expel_sharers(store: &EtcdStore) -> Result<bool, StoreError> {
    let were = lets_sharers_in(store).await?;
    store.remove_user(SHARED_USER).await?;
    Ok(were)
}

/// Forgets a host: what it has from us opens nothing any more, and what it had is free.
pub async fn forget(store: &EtcdStore, host: &HostId) -> Result<(), StoreError> {
    let prefix = store.prefix();
    let subnets = loop {
        let Some((entry, record)) = record(store, host).await? else { break Vec::new() };
        let subnets = record.subnets.clone();
        let record = Registration { leaving: true, ..record };
        if write_record(store, host, entry.mod_revision, &record).await? {
            break subnets;
        }
    };
    store.remove_user(&host.user()).await?;
    for subnet in subnets {
        let owner = owner(store, subnet).await?;
        let Some((owner, _)) = owner.filter(|(_, owner)| owner.host == *host) else { continue };
        if let Some(lease) = store.get(&prefix.subnet_key(subnet)).await? {
            store.delete_if_unchanged(&lease.key, lease.mod_revision).await?;
        }
        store.delete_if_unchanged(&owner.key, owner.mod_revision).await?;
    }
    store.delete_below(&Applicant::Host(host.clone()).dir(prefix)).await?;
    match record(store, host).await? {
        Some((entry, _)) => {
            store.delete_if_unchanged(&entry.key, entry.mod_revision).await.map(drop)
        }
        None => Ok(()),
    }
}

/// Shuts a host out: its certificate opens nothing, its lease is gone, and so are all tokens, which it may have.
pub async fn expel(store: &EtcdStore, host: &HostId) -> Result<(), StoreError> {
    // By one of them it could come again while it is forgotten.
    close_tokens(store).await?;
    forget(store, host).await?;
    let said = store.grant(SAID_FOR).await?;
    let key = format!("{}{host}", expelled_dir(store.prefix()));
    store.put(&key, b"", Some(said)).await.map(drop)
}

/// Makes a token good, for its time or for one host.
pub async fn open_token(
    store: &EtcdStore,
    token: &TokenId,
    record: &TokenRecord,
) -> Result<(), StoreError> {
    let prefix = store.prefix();
    store.put(&token_key(prefix, token), &encode(record), None).await?;
    let rights = [
        Access::read(prefix.config_key()),
        Access::write(format!("{}{token}/", prefix.join_dir())),
    ];
    store.add_user(&token.user(), &rights).await
}

/// Forgets a token: who has it is nobody any more.
pub(super) async fn close_token(store: &EtcdStore, token: &TokenId) -> Result<(), StoreError> {
    store.remove_user(&token.user()).await?;
    let prefix = store.prefix();
    if let Some(entry) = store.get(&token_key(prefix, token)).await? {
        store.delete_if_unchanged(&entry.key, entry.mod_revision).await?;
    }
    store.delete_below(&format!("{}{token}/", prefix.join_dir())).await
}

/// Forgets all tokens. Returns how many there were.
pub(super) async fn close_tokens(store: &EtcdStore) -> Result<usize, StoreError> {
    let users = store.users().await?;
    let tokens: Vec<_> = users.iter().filter_map(|user| TokenId::of_user(user)).collect();
    for token in &tokens {
        close_token(store, token).await?;
    }
    Ok(tokens.len())
}

/// Forgets tokens whose time is over.
pub(super) async fn tidy_tokens(store: &EtcdStore) -> Result<(), StoreError> {
    let now = seconds_at(Duration::ZERO);
    for (token, _) in tokens(store).await?.iter().filter(|(_, record)| record.ends < now) {
        close_token(store, token).await?;
    }
    Ok(())
}

/// Forgets hosts whose certificate has ended so long ago that nobody waits for them.
pub(super) async fn tidy_hosts(store: &EtcdStore) -> Result<(), StoreError> {
    let now = seconds_at(Duration::ZERO);
    for (host, record) in hosts(store).await? {
        if record.ends.saturating_add(FORGOTTEN_AFTER.as_secs()) < now {
            tracing::info!(%host, "its certificate has ended long ago: it is forgotten");
            forget(store, &host).await?;
        }
    }
    Ok(())
}
