//! The peers file, written by an operator.

use std::{collections::BTreeMap, fmt::Write as _};

use overlay_lease::store::{Change, Store, StoreError, Watch as _, WatchEnded, peers::PeersStore};
use tempfile::TempDir;

use crate::site::{Site, address, changes, mac, within};

pub(crate) struct PeersSite {
    dir: TempDir,
    store: PeersStore,
    hosts: BTreeMap<String, u8>,
    mtu: Option<u16>,
}

impl PeersSite {
    /// Writes the file, and has it looked at: what was between two looks nobody can know.
    async fn write(&self) {
        let mut text = "network = \"10.5.0.0/16\"\n".to_owned();
        if let Some(mtu) = self.mtu {
            writeln!(text, "mtu = {mtu}").unwrap();
        }
        for (subnet, host) in &self.hosts {
            let (ip, mac) = (address(*host), mac(*host));
            writeln!(text, "[[host]]\npublic-ip = \"{ip}\"\nsubnet = \"{subnet}\"").unwrap();
            writeln!(text, "vtep-mac = \"{mac}\"").unwrap();
        }
        self.write_text(&text);
        self.store.list().await.unwrap();
    }

    /// In one step, as by an editor that knows what it does.
    fn write_text(&self, text: &str) {
        let new = self.dir.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.store.path()).unwrap();
    }
}

impl Site for PeersSite {
    type Store = PeersStore;

    const IS_WRITABLE: bool = false;

    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = PeersStore::new(&dir.path().join("peers.toml"));
        let site = Self { dir, store, hosts: BTreeMap::new(), mtu: None };
        site.write().await;
        site
    }

    fn store(&self) -> &PeersStore {
        &self.store
    }

    async fn put(&mut self, subnet: &str, host: u8) {
        self.hosts.insert(subnet.to_owned(), host);
        self.write().await;
    }

    async fn delete(&mut self, subnet: &str) {
        self.hosts.remove(subnet);
        self.write().await;
    }

    async fn set_mtu(&mut self, mtu: u16) {
        self.mtu = Some(mtu);
        self.write().await;
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_named_and_what_it_said_is_not_forgotten() {
    let mut site = PeersSite::start().await;
    site.put("10.5.1.0/24", 1).await;
    let before = site.store.list().await.unwrap();
    let mut watch = site.store.watch(before.revision, true).await.unwrap();
    site.write_text("network = 7\n");
    let error = site.store.list().await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("peers.toml is malformed"), "{error}");
    let ended = within(watch.next()).await.unwrap_err();
    assert!(matches!(ended, WatchEnded::Failed { .. }), "{ended:?}");
    site.write().await;
    assert_eq!(site.store.list().await.unwrap(), before);
    assert_eq!(within(watch.next()).await.unwrap().changes, [], "it can be used again");
    site.put("10.5.2.0/24", 2).await;
    let told = changes(&mut watch, 1).await;
    assert_eq!(told, [Change::Put(site.lease("10.5.2.0/24").await)]);
}
