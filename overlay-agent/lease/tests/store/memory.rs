//! Memory, written by whoever has a clone of it.

use overlay_lease::{
    store::{Revision, Store, memory::MemoryStore},
    wire::key::KeyPrefix,
};

use crate::site::{CONFIG, Site, WritableSite, config, value};

pub(crate) struct MemorySite(MemoryStore);

impl MemorySite {
    async fn written(&self, key: &str) -> Revision {
        let entry = self.0.get(key).await.unwrap();
        entry.map_or(Revision::NONE, |entry| entry.mod_revision)
    }

    async fn write_config(&self, text: &str) {
        let config = self.written(&self.0.prefix().config_key()).await;
        assert!(self.0.put_config(text.as_bytes(), config, Revision::LAST).await.unwrap());
    }
}

impl Site for MemorySite {
    type Store = MemoryStore;

    const IS_WRITABLE: bool = true;

    async fn start() -> Self {
        let site = Self(MemoryStore::new(KeyPrefix::new("/coreos.com/network")));
        site.write_config(CONFIG).await;
        site
    }

    fn store(&self) -> &MemoryStore {
        &self.0
    }

    async fn put(&mut self, subnet: &str, host: u8) {
        let key = self.key(subnet);
        let revision = self.written(&key).await;
        let value = value(subnet, host);
        let put = self.0.replace_if_unchanged(key.as_bytes(), revision, &value, None).await;
        put.unwrap().unwrap();
    }

    async fn delete(&mut self, subnet: &str) {
        let key = self.key(subnet);
        let revision = self.written(&key).await;
        self.0.delete_if_unchanged(key.as_bytes(), revision).await.unwrap().unwrap();
    }

    async fn set_mtu(&mut self, mtu: u16) {
        self.write_config(&config(mtu)).await;
    }
}

impl WritableSite for MemorySite {
    async fn forget(&mut self) {
        self.0.compact();
    }
}
