//! Where on a host its keys and certificates are.

use std::path::PathBuf;

use overlay_lease::store::etcd::{EtcdConfig, Identity};

const PKI_DIR: &str = "/etc/overlay/pki";

/// A file among the keys and certificates.
pub(crate) fn pki_file(name: &str) -> PathBuf {
    PathBuf::from(PKI_DIR).join(name)
}

/// The certificate of the authority that signs for etcd and for the hosts.
pub fn ca_file() -> PathBuf {
    pki_file("ca.pem")
}

/// Its key, on hosts with a share in etcd.
pub fn ca_key_file() -> PathBuf {
    pki_file("ca-key.pem")
}

/// An authority that is to take the place of the one there is, certificate and key in one: what hosts with a share in etcd are
/// given by hand, while the old key opens all that is in etcd.
pub fn next_authority_file() -> PathBuf {
    pki_file("next-authority.pem")
}

/// What this host shows to etcd.
pub fn host_identity() -> Identity {
    Identity { cert_file: pki_file("client.pem"), key_file: pki_file("client-key.pem") }
}

/// What hosts with a share in etcd show to it for what only they may do: decide about others.
pub fn root_identity() -> Identity {
    Identity { cert_file: pki_file("root.pem"), key_file: pki_file("root-key.pem") }
}

/// The same etcd, asked by somebody who may do everything, where this host has what that takes.
pub fn as_root(etcd: EtcdConfig) -> EtcdConfig {
    let root = root_identity();
    let may = etcd.identity.as_ref() == Some(&host_identity()) && root.key_file.exists();
    EtcdConfig { identity: if may { Some(root) } else { etcd.identity }, ..etcd }
}
