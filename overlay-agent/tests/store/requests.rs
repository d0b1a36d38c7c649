//! What an agent costs etcd, by etcd's own count.

use std::collections::BTreeMap;

use overlay_lease::member::{
    acquire::acquire, follow::Follower, keeper::Keeper, network::wait_for_config, request::Request,
};
use tokio::sync::mpsc;

use crate::{
    etcd::{TestEtcd, metrics},
    support::{CONFIG, Followed, LeaseUpdate, World, key, lease, request, subnet, value},
    wire::Wire,
};

/// How many requests of each kind etcd has begun to serve.
async fn requests(etcd: &TestEtcd) -> BTreeMap<String, u64> {
    let text = metrics(etcd).await;
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

/// Whatever ends a watch, nobody asks for all leases again: with thousands who follow, that would be gigabytes at once.
#[tokio::test]
async fn a_watch_that_ends_costs_no_listing() {
    const FOLLOWERS: usize = 20;
    let mut world = World::new(CONFIG).await;
    for host in 1..=100 {
        world.put(&format!("10.5.{host}.0-24"), &value(host)).await;
    }
    let wire = Wire::to(&world.etcd).await;
    let mut all: Vec<_> =
        (0..FOLLOWERS).map(|_| Followed::new(Follower::new(wire.store()))).collect();
    for followed in &mut all {
        assert_eq!(followed.snapshot().await.len(), 100);
    }
    world.put("10.5.101.0-24", &value(101)).await;
    for followed in &mut all {
        followed.until(&LeaseUpdate::Put(lease("10.5.101.0/24", 101))).await;
    }
    let before = requests(&world.etcd).await;
    wire.cut();
    // What happens meanwhile is not lost.
    world.delete("10.5.7.0-24").await;
    world.put("10.5.102.0-24", &value(102)).await;
    wire.mend();
    for followed in &mut all {
        let told = [followed.next().await, followed.next().await];
        assert!(told.contains(&LeaseUpdate::Removed(subnet("10.5.7.0/24"))), "{told:?}");
        assert!(told.contains(&LeaseUpdate::Put(lease("10.5.102.0/24", 102))), "{told:?}");
    }
    let mut asked = difference(&before, &requests(&world.etcd).await);
    let test_is = BTreeMap::from([("Put".to_owned(), 1), ("DeleteRange".to_owned(), 1)]);
    for (method, count) in test_is {
        assert_eq!(asked.remove(&method), Some(count), "{method}");
    }
    // Of each: whether the endpoint answers, and whether the last change is the one that it was.
    let followers = FOLLOWERS as u64;
    let ranges = asked.remove("Range").unwrap_or_default();
    assert!((followers..=4 * followers).contains(&ranges), "{ranges} for {followers}");
    let watches = asked.remove("Watch").unwrap_or_default();
    assert!((followers..=2 * followers).contains(&watches), "{watches} for {followers}");
    assert_eq!(asked, BTreeMap::new());
}

/// Another etcd at the same address has another past, even if it has come farther.
#[tokio::test]
async fn another_past_is_noticed() {
    let mut world = World::new(CONFIG).await;
    for host in 1..=3 {
        world.put(&format!("10.5.{host}.0-24"), &value(host)).await;
    }
    let wire = Wire::to(&world.etcd).await;
    let mut followed = Followed::new(Follower::new(wire.store()));
    assert_eq!(followed.snapshot().await.len(), 3);
    world.put("10.5.9.0-24", &value(9)).await;
    followed.until(&LeaseUpdate::Put(lease("10.5.9.0/24", 9))).await;
    // What is not there in either past tells nothing.
    world.delete("10.5.9.0-24").await;
    assert_eq!(followed.next().await, LeaseUpdate::Removed(subnet("10.5.9.0/24")));
    wire.cut();
    world.etcd.kill();
    world.etcd.forget();
    world.etcd.restart().await;
    let mut client = world.etcd.client().await;
    for host in 11..=30 {
        let name = key(&format!("10.5.{host}.0-24"));
        client.put(name.as_str(), value(host), None).await.unwrap();
    }
    wire.mend();
    let leases = followed.snapshot().await;
    let expected: Vec<_> =
        (11..=30).map(|host| lease(&format!("10.5.{host}.0/24"), host)).collect();
    assert_eq!(leases, expected);
}
