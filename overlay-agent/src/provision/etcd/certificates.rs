//! The certificates of this host's etcd, and of who may use it.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use anyhow::{Context as _, Result};
use overlay_lease::store::etcd::Identity;

use super::super::{
    ca_file,
    files::{self, Readers},
    host_identity,
    pki::{self, Authority, Credential},
    pki_file,
};

/// As whom etcd runs.
pub(super) const GROUP: &str = "etcd";

pub(super) fn ca_key_file() -> std::path::PathBuf {
    pki_file("ca-key.pem")
}

/// Keeps the authority of a cluster that is there. Returns whether it was not here.
pub(super) fn keep_authority(authority: &Credential) -> Result<bool> {
    // Without the key, the certificate is of no use: it comes last.
    let key = files::write(&ca_key_file(), &authority.key, Readers::Root)?;
    Ok(key | files::write(&ca_file(), &authority.certificate, Readers::All)?)
}

/// Makes what is missing or about to expire. Returns whether that was anything.
pub(super) fn make(address: Ipv4Addr) -> Result<bool> {
    let mut changed = false;
    let authority = if let Some(own) = read_authority()? {
        Authority::load(own)?
    } else {
        let authority = Authority::new(pki::LIFETIME)?;
        changed |= keep_authority(authority.own())?;
        authority
    };
    let addresses = [IpAddr::V4(address), IpAddr::V4(Ipv4Addr::LOCALHOST)];
    let server = (pki_file("server.pem"), pki_file("server-key.pem"));
    if !is_good(&server.0, &server.1, &authority, &addresses)? {
        let made = authority.server(&addresses, pki::LIFETIME)?;
        changed |= files::write(&server.1, &made.key, Readers::Group(GROUP))?;
        changed |= files::write(&server.0, &made.certificate, Readers::All)?;
    }
    let Identity { cert_file, key_file } = host_identity();
    if !is_good(&cert_file, &key_file, &authority, &[])? {
        let made = authority.client("overlay host", pki::LIFETIME)?;
        changed |= files::write(&key_file, &made.key, Readers::Root)?;
        changed |= files::write(&cert_file, &made.certificate, Readers::All)?;
    }
    Ok(changed)
}

/// Whether a certificate is there with its key, of this authority, for these addresses, and for long enough.
fn is_good(cert: &Path, key: &Path, authority: &Authority, addresses: &[IpAddr]) -> Result<bool> {
    let Some(text) = files::read(cert)?.filter(|_| key.exists()) else {
        return Ok(false);
    };
    Ok(pki::left(&text)?.is_some_and(|left| left > pki::RENEWAL)
        && pki::addresses(&text)? == addresses
        && pki::is_signed_by(&text, &authority.own().certificate)?)
}

/// The authority, where this host has it.
pub(super) fn read_authority() -> Result<Option<Credential>> {
    let certificate = files::read(&ca_file())?;
    let key = files::read(&ca_key_file())?;
    Ok(certificate.zip(key).map(|(certificate, key)| Credential { certificate, key }))
}

pub(super) fn read_identity(identity: &Identity) -> Result<Credential> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    Ok(Credential { certificate: read(&identity.cert_file)?, key: read(&identity.key_file)? })
}
