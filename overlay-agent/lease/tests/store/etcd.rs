//! A real etcd on loopback, which needs no root, and another client that writes to it.

use std::{
    fs::File,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use etcd_client::Client;
use overlay_lease::{
    store::{
        Store as _,
        etcd::{EtcdConfig, EtcdStore},
    },
    wire::key::KeyPrefix,
};
use tempfile::TempDir;

use crate::site::{CONFIG, DEADLINE, Site, WritableSite, config, value};

pub(crate) struct EtcdSite {
    store: EtcdStore,
    client: Client,
    _server: Server,
}

/// Killed on drop, which a failing test does as well.
struct Server {
    child: Child,
    dir: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Server {
    fn start(endpoint: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let peer = format!("http://127.0.0.1:{}", free_port());
        // `cargo xtask test store` names one version after the other.
        let binary = std::env::var_os("OVERLAY_ETCD").unwrap_or_else(|| "etcd".into());
        let child = Command::new(binary)
            .args(["--name", "test", "--logger", "zap", "--log-level", "error"])
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .args(["--listen-client-urls", endpoint, "--advertise-client-urls", endpoint])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("test={peer}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start etcd, is it installed? {error}"));
        Self { child, dir }
    }
}

/// A port that nobody listens on: the kernel hands ports out in turn.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap().port()
}

async fn connect(endpoint: &str, server: &Server) -> Client {
    let started = Instant::now();
    loop {
        if let Ok(mut client) = Client::connect([endpoint], None).await
            && client.status().await.is_ok()
        {
            return client;
        }
        if started.elapsed() > DEADLINE {
            let log = std::fs::read_to_string(server.dir.path().join("log")).unwrap_or_default();
            panic!("etcd does not answer:\n{log}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Site for EtcdSite {
    type Store = EtcdStore;

    const IS_WRITABLE: bool = true;

    async fn start() -> Self {
        let endpoint = format!("http://127.0.0.1:{}", free_port());
        let server = Server::start(&endpoint);
        let mut client = Box::pin(connect(&endpoint, &server)).await;
        let config = EtcdConfig {
            endpoints: vec![endpoint],
            prefix: KeyPrefix::new("/coreos.com/network"),
            ca_file: None,
            identity: None,
            user: None,
        };
        let store = EtcdStore::new(&config).unwrap();
        client.put(store.prefix().config_key(), CONFIG, None).await.unwrap();
        Self { store, client, _server: server }
    }

    fn store(&self) -> &EtcdStore {
        &self.store
    }

    async fn put(&mut self, subnet: &str, host: u8) {
        self.client.put(self.key(subnet), value(subnet, host), None).await.unwrap();
    }

    async fn delete(&mut self, subnet: &str) {
        self.client.delete(self.key(subnet), None).await.unwrap();
    }

    async fn set_mtu(&mut self, mtu: u16) {
        self.client.put(self.store.prefix().config_key(), config(mtu), None).await.unwrap();
    }
}

impl WritableSite for EtcdSite {
    async fn forget(&mut self) {
        let revision = self.store.list().await.unwrap().revision;
        self.client.compact(revision.number(), None).await.unwrap();
    }
}
