//! What is remembered of whom in etcd, below `<prefix>/authority/`, where nobody else can read.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use overlay_lease::{
    store::{Entry, Revision, Store as _, StoreError, etcd::EtcdStore},
    wire::{
        identity::{HostId, TokenId, decode, encode},
        key::KeyPrefix,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// What is remembered of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Where it was when it came.
    pub address: Option<Ipv4Addr>,
    /// The subnets whose leases it may write: its own, and while it moves, two.
    pub subnets: Vec<Ipv4Network>,
    /// Seconds since 1970 at which its latest certificate ends.
    pub ends: u64,
    /// The SHA-256 of its public key, in Base64: by it the same question, answered twice, is told from another one.
    pub key: String,
    /// Whether it is being forgotten: nothing is given to it any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
}

/// What is remembered of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Seconds since 1970 at which it ends.
    pub ends: u64,
    /// Whether it is good for one host.
    pub once: bool,
    /// That host, once it has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_by: Option<HostId>,
}

/// What all who sign have to agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Settings {
    /// For how long certificates are made.
    pub(super) certificate_seconds: u64,
}

/// Who may write the lease of a subnet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    /// The host.
    pub(super) host: HostId,
    /// Seconds since 1970 at which it was given that.
    pub(super) since: u64,
}

/// How far it is with making the authority another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Everybody comes to trust both, the old one and the new one. The old one signs.
    Both,
    /// The new one signs, and everybody comes to have a certificate of it.
    Sign,
    /// Everybody comes to trust the new one alone.
    Only,
}

/// What is remembered while the authority is made another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// How far it is.
    pub step: Step,
    /// The certificate of the authority that there was, in PEM.
    pub old: String,
    /// The certificate of the one that takes its place.
    pub new: String,
    /// A certificate to its key, signed by the old one: hosts trust no other.
    pub endorsement: String,
    /// The member of etcd whose turn it is, by its number.
    pub turn: Option<u64>,
    /// Hosts for which nobody waits.
    pub without: Vec<HostId>,
}

/// How far a member of etcd is with that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MemberDone {
    /// What it has done, or cannot do.
    pub(super) step: Step,
    /// Why it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) trouble: Option<String>,
}

/// Where it is remembered that the authority is made another.
pub(super) fn rotation_key(prefix: &KeyPrefix) -> String {
    format!("{}rotation", prefix.authority_dir())
}

/// Where members of etcd say how far they are with it.
pub(super) fn turns_dir(prefix: &KeyPrefix) -> String {
    format!("{}turns/", prefix.authority_dir())
}

/// Where one of them does.
pub(super) fn turn_key(prefix: &KeyPrefix, member: u64) -> String {
    format!("{}{member:x}", turns_dir(prefix))
}

/// Whether the authority is being made another, and how far that is.
pub async fn rotation(store: &EtcdStore) -> Result<Option<Rotation>, StoreError> {
    Ok(read(store, &rotation_key(store.prefix())).await?.map(|(_, rotation)| rotation))
}

fn key(prefix: &KeyPrefix, below: &str, name: &impl std::fmt::Display) -> String {
    format!("{}{below}/{name}", prefix.authority_dir())
}

fn host_key(prefix: &KeyPrefix, host: &HostId) -> String {
    key(prefix, "hosts", host)
}

pub(super) fn token_key(prefix: &KeyPrefix, token: &TokenId) -> String {
    key(prefix, "tokens", token)
}

pub(super) fn settings_key(prefix: &KeyPrefix) -> String {
    format!("{}settings", prefix.authority_dir())
}

/// Where it is said that somebody answers.
pub(super) fn chair_key(prefix: &KeyPrefix) -> String {
    format!("{}chair", prefix.authority_dir())
}

/// Where it is said that hosts were expelled.
pub(super) fn expelled_dir(prefix: &KeyPrefix) -> String {
    format!("{}expelled/", prefix.authority_dir())
}

/// Where the host is remembered that may write the lease of a subnet.
pub(super) fn owner_key(prefix: &KeyPrefix, subnet: Ipv4Network) -> String {
    let name = format!("{}-{}", subnet.network(), subnet.prefix());
    key(prefix, "subnets", &name)
}

/// Where earlier versions kept the certificate that all hosts shared, and its key.
pub fn shared_key(prefix: &KeyPrefix) -> String {
    format!("{}client", prefix.join_dir())
}

/// A key with what it says; nothing if it is not there, or says nothing.
pub(super) async fn read<T: DeserializeOwned>(
    store: &EtcdStore,
    key: &str,
) -> Result<Option<(Entry, T)>, StoreError> {
    let entry = store.get(key).await?;
    Ok(entry.and_then(|entry| decode(&entry.value).map(|said| (entry, said))))
}

/// What is remembered of a host.
pub(super) async fn record(
    store: &EtcdStore,
    host: &HostId,
) -> Result<Option<(Entry, Registration)>, StoreError> {
    read(store, &host_key(store.prefix(), host)).await
}

/// The same of one that may be given something.
pub(super) async fn known(
    store: &EtcdStore,
    host: &HostId,
) -> Result<Option<(Entry, Registration)>, StoreError> {
    Ok(record(store, host).await?.filter(|(_, record)| !record.leaving))
}

/// Remembers something else of a host, if nobody has since this revision. Returns whether nobody had.
pub(super) async fn write_record(
    store: &EtcdStore,
    host: &HostId,
    revision: Revision,
    record: &Registration,
) -> Result<bool, StoreError> {
    let key = host_key(store.prefix(), host);
    let written = store.replace_if_unchanged(key.as_bytes(), revision, &encode(record), None).await;
    Ok(written?.is_some())
}

/// All tokens that are good.
pub(super) async fn tokens(store: &EtcdStore) -> Result<Vec<(TokenId, TokenRecord)>, StoreError> {
    let dir = format!("{}tokens/", store.prefix().authority_dir());
    list(store, &dir, TokenId::parse).await
}

/// All hosts that are known, in the order of their names.
pub async fn hosts(store: &EtcdStore) -> Result<Vec<(HostId, Registration)>, StoreError> {
    let dir = format!("{}hosts/", store.prefix().authority_dir());
    list(store, &dir, HostId::parse).await
}

async fn list<N, T: DeserializeOwned>(
    store: &EtcdStore,
    dir: &str,
    parse: fn(&str) -> Option<N>,
) -> Result<Vec<(N, T)>, StoreError> {
    let listing = store.list_below(dir).await?;
    let known = listing.entries.iter().filter_map(|entry| {
        let name = parse(entry.name().strip_prefix(dir)?)?;
        Some((name, decode(&entry.value)?))
    });
    Ok(known.collect())
}

/// Who may write the lease of a subnet.
pub(super) async fn owner(
    store: &EtcdStore,
    subnet: Ipv4Network,
) -> Result<Option<(Entry, Owner)>, StoreError> {
    read(store, &owner_key(store.prefix(), subnet)).await
}

/// What is remembered of a token that is good.
pub async fn token(
    store: &EtcdStore,
    token: &TokenId,
) -> Result<Option<(Entry, TokenRecord)>, StoreError> {
    read(store, &token_key(store.prefix(), token)).await
}
