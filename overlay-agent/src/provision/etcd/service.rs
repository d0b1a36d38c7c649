//! This host's etcd as a service: where it is, and how it ends.

use std::path::Path;

use anyhow::Result;
use overlay_lease::store::etcd::{EtcdConfig, EtcdStore};

use super::{
    super::{
        ETCD_DATA, ETCD_DROP_IN, ETCD_ENV, ETCD_UNIT, MEMBER_TOKEN_FILE, report::Report, systemd,
    },
    at_home,
    settings::Settings,
    snapshot,
};
use crate::{
    authority::{as_root, ca_key_file, next_authority_file, pki_file, root_identity},
    control::etcd_members::reachable,
    exit::{Exit, WithExit as _},
    files,
};

/// Where etcd is asked: this member and the others.
pub(super) async fn endpoints(etcd: &EtcdConfig) -> Vec<String> {
    let asked = async { EtcdStore::new(&as_root(etcd.clone())).ok()?.members().await.ok() };
    let found = asked.await.map(|members| reachable(&members, &etcd.endpoints));
    found.filter(|found| !found.is_empty()).unwrap_or_else(|| etcd.endpoints.clone())
}

/// Tells the other members where this one is, if it has moved.
pub(super) async fn tell_where(settings: &Settings, etcd: &EtcdConfig) -> Result<()> {
    let store = EtcdStore::new(&at_home(etcd))?;
    let members = store.members().await.exit(Exit::Unavailable)?;
    let own = members.iter().find(|member| member.name == settings.name);
    let own_url = settings.peer_url();
    match own.filter(|own| own.peer_urls != [own_url.as_str()]) {
        None => Ok(()),
        Some(own) => store.move_member(own.id, &own_url).await.exit(Exit::Unavailable),
    }
}

/// This host's etcd becomes what the package makes of it.
pub(in super::super) async fn stop_serving(report: &mut Report) -> Result<()> {
    snapshot::disable_timer().await?;
    systemd::stop(&[ETCD_UNIT]).await?;
    let path = Path::new(ETCD_DROP_IN);
    files::remove(path)?;
    // Others may have settings there.
    path.parent().map(std::fs::remove_dir);
    for file in [ETCD_ENV, MEMBER_TOKEN_FILE] {
        files::remove(Path::new(file))?;
    }
    // Whoever does not serve signs for nobody, either.
    let root = root_identity();
    let etcds = ["server-key.pem", "server.pem"].map(pki_file);
    for file in [ca_key_file(), next_authority_file(), root.key_file, root.cert_file]
        .into_iter()
        .chain(etcds)
    {
        files::remove(&file)?;
    }
    files::remove_all(Path::new(ETCD_DATA))?;
    systemd::reload().await?;
    systemd::start(ETCD_UNIT).await?;
    report.done("etcd", "has its package's settings again; the overlay's data is removed")
}
