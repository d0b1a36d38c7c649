//! What an agent costs etcd, by etcd's own count.

use std::collections::BTreeMap;

use overlay_agent::{
    lease::{
        acquire::{Request, acquire},
        keeper::Keeper,
    },
    store::{Follower, config::wait_for_config},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};

use crate::{
    etcd::TestEtcd,
    support::{CONFIG, Followed, LeaseUpdate, World, lease, request, subnet, value},
};

/// How many requests of each kind etcd has begun to serve.
async fn requests(etcd: &TestEtcd) -> BTreeMap<String, u64> {
    let address = etcd.endpoint().trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let get = format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(get.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text.lines()
        .filter_map(|line| {
            let labels = line.strip_prefix("grpc_server_started_total{")?;
            let method = labels.split_once("grpc_method=\"")?.1.split_once('"')?.0;
            let count = labels.rsplit_once(' ')?.1.parse().ok()?;
            Some((method.to_owned(), count))
        })
        .filter(|(_, count)| *count != 0)
        .collect()
}

/// The requests of `after` that are not among those of `before`.
fn difference(
    before: &BTreeMap<String, u64>,
    after: &BTreeMap<String, u64>,
) -> BTreeMap<String, u64> {
    after
        .iter()
        .map(|(method, count)| (method.clone(), count - before.get(method).unwrap_or(&0)))
        .filter(|(_, count)| *count != 0)
        .collect()
}

#[tokio::test]
async fn a_start_costs_one_listing_and_one_watch_and_a_change_costs_nothing() {
    let mut world = World::new(CONFIG).await;
    for host in 2..=100 {
        world.put(&format!("10.5.{host}.0-24"), &value(host)).await;
    }
    let before = requests(&world.etcd).await;

    let store = world.etcd.store();
    let stored = wait_for_config(&store).await.unwrap();
    let ours = Request { previous: Some(subnet("10.5.1.0/24")), ..request(1) };
    let acquired = Box::pin(acquire(&store, &stored, &ours)).await.unwrap();
    let keeper = Keeper::new(store.clone(), &acquired, ours.ttl);
    let mut followed = Followed::new(
        Follower::new(store).starting_from(acquired.listing.clone()).informing(keeper.handle()),
    );
    let (sender, _events) = mpsc::channel(1);
    tokio::spawn(keeper.run(sender));
    assert_eq!(followed.snapshot().await.len(), 100);
    followed.until(&LeaseUpdate::Put(acquired.lease)).await;
    let started = requests(&world.etcd).await;
    let expected = [
        ("LeaseGrant", 1),
        // One to see whether the endpoint answers, one for the config, one for all leases.
        ("Range", 3),
        ("Txn", 1),
        ("Watch", 1),
    ];
    let expected = expected.map(|(method, count)| (method.to_owned(), count));
    assert_eq!(difference(&before, &started), BTreeMap::from(expected));

    for host in 101..=200 {
        world.put(&format!("10.5.{host}.0-24"), &value(host)).await;
    }
    followed.until(&LeaseUpdate::Put(lease("10.5.200.0/24", 200))).await;
    let changed = requests(&world.etcd).await;
    let puts = BTreeMap::from([("Put".to_owned(), 100)]);
    assert_eq!(difference(&started, &changed), puts, "they are the test's own");
}
