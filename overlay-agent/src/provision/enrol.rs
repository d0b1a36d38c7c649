//! How a host gets its certificate: a token's own ends with the token, and until then opens etcd, where
//! the hosts' is.

use anyhow::{Context as _, Result, bail};
use overlay_lease::store::{Revision, Store as _, etcd::EtcdStore};
use serde::{Deserialize, Serialize};

use super::pki::Credential;
use crate::exit::{Exit, WithExit as _};

#[derive(Serialize, Deserialize)]
struct Stored {
    certificate: String,
    key: String,
}

/// Not below `subnets`, where flannel takes every key for a lease.
fn key(store: &EtcdStore) -> String {
    format!("{}/join/client", store.prefix())
}

/// Puts the hosts' certificate into etcd, where only who has one can read it.
pub(super) async fn publish(store: &EtcdStore, credential: &Credential) -> Result<()> {
    let key = key(store);
    let Credential { certificate, key: secret } = credential.clone();
    let value = serde_json::to_vec(&Stored { certificate, key: secret })
        .context("cannot write the hosts' certificate as JSON")?;
    let old = store.get(&key).await.exit(Exit::Unavailable)?;
    if old.as_ref().is_some_and(|old| old.value == value) {
        return Ok(());
    }
    let revision = old.map_or(Revision::NONE, |old| old.mod_revision);
    let written = store.replace_if_unchanged(key.as_bytes(), revision, &value, None).await;
    if written.exit(Exit::Unavailable)?.is_none() {
        bail!("{key} was changed by somebody else just now: run this again");
    }
    Ok(())
}

/// Fetches it.
pub(super) async fn fetch(store: &EtcdStore) -> Result<Credential> {
    let key = key(store);
    let entry = store.get(&key).await.exit(Exit::Unavailable)?;
    let entry = entry
        .with_context(|| format!("there is no certificate for hosts at {key} in etcd: run `overlay-agent init` on the first host again"))
        .exit(Exit::NotFound)?;
    let Stored { certificate, key } = serde_json::from_slice(&entry.value)
        .with_context(|| format!("the certificate for hosts at {key} in etcd is malformed"))?;
    Ok(Credential { certificate, key })
}
