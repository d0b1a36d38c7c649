//! What the tests say over and over.

use std::{collections::HashSet, future::Future, net::Ipv4Addr, time::Duration};

use etcd_client::{Client, PutOptions};
use ipnetwork::Ipv4Network;
use overlay_common::MacAddr;
use overlay_lease::{
    member::{
        acquire::{Acquired, acquire},
        follow::Follower,
        network::{StoredConfig, wait_for_config},
        request::Request,
        update::LeaseUpdate as Update,
    },
    store::etcd::EtcdStore,
    wire::Lease,
};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};

use crate::etcd::TestEtcd;

/// How long anything that must happen may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
pub(crate) const CONFIG_KEY: &str = "/coreos.com/network/config";

/// Where the lease of `subnet`, written with a dash, is.
pub(crate) fn key(subnet: &str) -> String {
    format!("/coreos.com/network/subnets/{subnet}")
}

/// A value as any flannel host would publish it.
pub(crate) fn value(host: u8) -> String {
    value_with_mac(host, host)
}

pub(crate) fn value_with_mac(host: u8, mac: u8) -> String {
    format!(
        r#"{{"PublicIP":"192.0.2.{host}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:{mac:02x}"}}}}"#
    )
}

/// The lease that `key` and [`value`] make.
pub(crate) fn lease(subnet: &str, host: u8) -> Lease {
    Lease {
        subnet: subnet.parse().unwrap(),
        public_ip: Ipv4Addr::new(192, 0, 2, host),
        vtep_mac: MacAddr([2, 0, 0, 0, 0, host]),
        vni: Some(overlay_common::Vni::new(1).unwrap()),
    }
}

pub(crate) fn request(host: u8) -> Request {
    Request {
        public_ip: Ipv4Addr::new(192, 0, 2, host),
        previous: None,
        vtep_mac: Some(MacAddr([2, 0, 0, 0, 0, host])),
        last_address: None,
        is_running: false,
        ttl: Duration::from_hours(24),
        occupied: Vec::new(),
    }
}

pub(crate) fn subnet(text: &str) -> Ipv4Network {
    text.parse().unwrap()
}

/// An etcd with a network config, and both kinds of client to it.
pub(crate) struct World {
    pub(crate) etcd: TestEtcd,
    pub(crate) client: Client,
    pub(crate) store: EtcdStore,
    pub(crate) config: StoredConfig,
}

impl World {
    pub(crate) async fn new(config: &str) -> Self {
        // Boxed, because the futures of the client library are large.
        Box::pin(async {
            let etcd = TestEtcd::start().await;
            let mut client = etcd.client().await;
            client.put(CONFIG_KEY, config, None).await.unwrap();
            let store = etcd.store();
            let config = wait_for_config(&store).await.unwrap();
            Self { etcd, client, store, config }
        })
        .await
    }

    pub(crate) async fn acquire(&self, request: &Request) -> Acquired {
        within(acquire(&self.store, &self.config, request)).await.unwrap()
    }

    /// Writes a key that stays.
    pub(crate) async fn put(&mut self, subnet: &str, value: &str) {
        self.client.put(key(subnet), value, None).await.unwrap();
    }

    /// Writes a key that hangs on a new etcd lease, and returns that.
    pub(crate) async fn put_with_ttl(&mut self, subnet: &str, value: &str, ttl: i64) -> i64 {
        let id = self.client.lease_grant(ttl, None).await.unwrap().id();
        let options = PutOptions::new().with_lease(id);
        self.client.put(key(subnet), value, Some(options)).await.unwrap();
        id
    }

    pub(crate) async fn delete(&mut self, subnet: &str) {
        self.client.delete(key(subnet), None).await.unwrap();
    }

    pub(crate) async fn get(&mut self, subnet: &str) -> Option<etcd_client::KeyValue> {
        let mut answer = self.client.get(key(subnet), None).await.unwrap();
        answer.take_kvs().pop()
    }

    /// The ids of all etcd leases there are.
    pub(crate) async fn etcd_leases(&mut self) -> Vec<i64> {
        let leases = self.client.leases().await.unwrap();
        leases.leases().iter().map(etcd_client::LeaseStatus::id).collect()
    }
}

/// `future`, or a failed test.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.expect("this should not have taken so long")
}

/// Polls until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let poll = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(DEADLINE, poll).await.is_ok(), "never happened: {what}");
}

/// An update without revisions, which are a test's own matter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LeaseUpdate {
    Snapshot(Vec<Lease>),
    Put(Lease),
    Removed(Ipv4Network),
}

impl From<Update> for LeaseUpdate {
    fn from(update: Update) -> Self {
        match update {
            Update::Snapshot(claims) => {
                Self::Snapshot(claims.into_iter().map(|claim| claim.lease).collect())
            }
            Update::Put(claim) => Self::Put(claim.lease),
            Update::Removed(key) => Self::Removed(key.subnet),
        }
    }
}

/// A follower under test, from the consumer's side.
pub(crate) struct Followed(mpsc::Receiver<Update>);

impl Followed {
    pub(crate) fn new(follower: Follower<EtcdStore>) -> Self {
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(follower.run(sender));
        Self(receiver)
    }

    pub(crate) async fn next(&mut self) -> LeaseUpdate {
        self.next_update().await.into()
    }

    /// The next one as the agent gets it.
    pub(crate) async fn next_update(&mut self) -> Update {
        within(self.0.recv()).await.expect("the follower has ended")
    }

    pub(crate) async fn snapshot(&mut self) -> Vec<Lease> {
        match self.next().await {
            LeaseUpdate::Snapshot(leases) => leases,
            other => panic!("not a snapshot: {other:?}"),
        }
    }

    /// Skips updates until `wanted` comes.
    pub(crate) async fn until(&mut self, wanted: &LeaseUpdate) {
        while self.next().await != *wanted {}
    }
}

/// How many connections hosts share, where there are more hosts than a test may have open files.
const CONNECTIONS: u32 = 100;

/// That many hosts take subnets at the same time.
pub(crate) async fn take_at_once(world: &World, hosts: u32) -> HashSet<String> {
    let mut tasks = JoinSet::new();
    let stores: Vec<_> = (0..hosts.min(CONNECTIONS)).map(|_| world.etcd.store()).collect();
    for (host, store) in (0..hosts).zip(stores.iter().cycle().cloned()) {
        let config = world.config.clone();
        let request =
            Request { public_ip: (0xc633_6400 + host).into(), vtep_mac: None, ..request(0) };
        tasks.spawn(async move { acquire(&store, &config, &request).await });
    }
    let mut subnets = HashSet::new();
    while let Some(result) = tasks.join_next().await {
        let acquired = result.expect("no task panics").unwrap_or_else(|error| panic!("{error}"));
        assert!(subnets.insert(acquired.lease.subnet.to_string()));
    }
    subnets
}
