//! The certificates of a host with a share in etcd: etcd's, and those of who may use it.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use anyhow::{Context as _, Result};
use overlay_lease::{store::etcd::Identity, wire::identity::HostId};

use super::{
    host_name,
    pki::{self, Authority, CERTIFICATE_LIFETIME, Credential, ROOT},
    places::{ca_file, ca_key_file, host_identity, pki_file, root_identity},
};
use crate::{
    certificate::{each, time_to_renewal},
    files::{self, Readers},
};

/// As whom etcd runs.
const GROUP: &str = "etcd";

/// Keeps the authority of a cluster that is there. Returns whether it was not here.
pub(crate) fn keep_authority(authority: &Credential) -> Result<bool> {
    // Without the key, the certificate is of no use: it comes last.
    let key = files::write(&ca_key_file(), &authority.key, Readers::Root)?;
    // While it is made another, two are trusted.
    if files::read(&ca_file())?.is_some_and(|trusted| trusted.contains(&authority.certificate)) {
        return Ok(key);
    }
    Ok(key | files::write(&ca_file(), &authority.certificate, Readers::All)?)
}

/// Makes what is missing or about to expire, also the authority. Returns whether that was anything.
pub fn make(address: Ipv4Addr) -> Result<bool> {
    let mut changed = false;
    let authority = if let Some(own) = read_authority()? {
        Authority::load(own)?
    } else {
        let authority = Authority::new(pki::LIFETIME)?;
        changed |= keep_authority(authority.own())?;
        authority
    };
    changed |= make_servers(&authority, &[IpAddr::V4(address), IpAddr::V4(Ipv4Addr::LOCALHOST)])?;
    changed |= make_roots(&authority)?;
    // One that all hosts shared, of an earlier version, is no host's.
    let (own, host) = (host_identity(), host_identity().host());
    let is_new = host.is_none();
    let host = host.unwrap_or_else(|| HostId::new(&host_name()));
    if is_new {
        files::remove(&own.key_file)?;
    }
    changed |= make_clients(&authority, &own, &host.user(), is_new)?;
    Ok(changed)
}

/// Makes those anew that will expire, for as long as this host has the authority's key. Keys stay; etcd reads its certificate
/// anew for each connection.
pub(super) fn renew(authority: &Authority) -> Result<()> {
    if let Some(text) = files::read(&pki_file("server.pem"))? {
        make_servers(authority, &pki::addresses(&text)?)?;
    }
    make_roots(authority).map(drop)
}

fn make_servers(authority: &Authority, addresses: &[IpAddr]) -> Result<bool> {
    let place =
        Identity { cert_file: pki_file("server.pem"), key_file: pki_file("server-key.pem") };
    let named = files::read(&place.cert_file)?.map(|text| pki::addresses(&text)).transpose()?;
    if named.as_deref() == Some(addresses) && is_good(&place, authority)? {
        return Ok(false);
    }
    make_at(&place, Readers::Group(GROUP), |key| {
        authority.server_with(key, addresses, CERTIFICATE_LIFETIME)
    })
}

fn make_roots(authority: &Authority) -> Result<bool> {
    make_clients(authority, &root_identity(), ROOT, false)
}

fn make_clients(
    authority: &Authority,
    place: &Identity,
    name: &str,
    in_any_case: bool,
) -> Result<bool> {
    if !in_any_case && is_good(place, authority)? {
        return Ok(false);
    }
    make_at(place, Readers::Root, |key| authority.client_with(key, name, CERTIFICATE_LIFETIME))
}

/// Makes a certificate for the key that is there, or for a new one.
fn make_at(
    place: &Identity,
    readers: Readers,
    certify: impl FnOnce(&str) -> Result<String>,
) -> Result<bool> {
    let key = match files::read(&place.key_file)? {
        Some(key) => key,
        None => pki::new_key()?,
    };
    let certificate = certify(&key)?;
    let changed = files::write(&place.key_file, &key, readers)?;
    Ok(changed | files::write(&place.cert_file, &certificate, Readers::All)?)
}

/// Keeps what a host shows to etcd. Returns whether it was not there.
pub fn write(place: &Identity, made: &Credential) -> Result<bool> {
    let changed = files::write(&place.key_file, &made.key, Readers::Root)?;
    Ok(changed | files::write(&place.cert_file, &made.certificate, Readers::All)?)
}

/// Whether a certificate is there with its key, of this authority, and for long enough.
fn is_good(place: &Identity, authority: &Authority) -> Result<bool> {
    let Some(text) = files::read(&place.cert_file)?.filter(|_| place.key_file.exists()) else {
        return Ok(false);
    };
    Ok(!time_to_renewal(&text)?.is_zero()
        && pki::is_signed_by(&text, &authority.own().certificate)?)
}

/// The authority, where this host has it.
pub(crate) fn read_authority() -> Result<Option<Credential>> {
    read_authority_at(&ca_file(), &ca_key_file())
}

/// The same where it is elsewhere. While it is made another, two are trusted, of which one signs: the one whose key is there.
pub(super) fn read_authority_at(ca: &Path, key: &Path) -> Result<Option<Credential>> {
    let Some((trusted, key)) = files::read(ca)?.zip(files::read(key)?) else { return Ok(None) };
    for certificate in each(&trusted) {
        if pki::fit(&certificate, &key)? {
            return Ok(Some(Credential { certificate, key }));
        }
    }
    // Whoever uses it says what is wrong with it.
    Ok(Some(Credential { certificate: trusted, key }))
}

pub(crate) fn read_identity(identity: &Identity) -> Result<Credential> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    Ok(Credential { certificate: read(&identity.cert_file)?, key: read(&identity.key_file)? })
}
