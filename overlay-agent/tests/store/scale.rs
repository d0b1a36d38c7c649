//! As large as it gets: a /8 in /24s.

use std::time::Instant;

use etcd_client::{Client, Txn, TxnOp};
use overlay_lease::{member::follow::Follower, store::Store as _};

use crate::support::{
    Followed, LeaseUpdate, World, key, lease, request, subnet, take_at_once, value,
};

/// etcd's default limit of operations in one transaction.
const BATCH: usize = 128;

/// Writes the leases of 10.0.0.0/24 to 10.255.255.0/24, without those in `except`.
async fn fill(client: &mut Client, except: &[&str]) -> usize {
    let names: Vec<_> = (0..65_536_u32)
        .map(|number| format!("10.{}.{}.0-24", number >> 8, number & 0xff))
        .filter(|name| !except.contains(&name.as_str()))
        .collect();
    for batch in names.chunks(BATCH) {
        let puts: Vec<_> = batch.iter().map(|name| TxnOp::put(key(name), value(9), None)).collect();
        client.txn(Txn::new().and_then(puts)).await.unwrap();
    }
    names.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_of_65_536_leases_are_listed_and_followed() {
    let mut world = World::new(r#"{"Network":"10.0.0.0/8"}"#).await;
    let count = fill(&mut world.client, &[]).await;
    assert_eq!(count, 65_536);

    let start = Instant::now();
    let listing = world.store.list().await.unwrap();
    println!("listed {} leases in {:?}", listing.entries.len(), start.elapsed());
    assert_eq!(listing.entries.len(), count);

    let start = Instant::now();
    let mut followed = Followed::new(Follower::new(world.store.clone()));
    let snapshot = followed.snapshot().await;
    println!("first snapshot of {} leases after {:?}", snapshot.len(), start.elapsed());
    assert_eq!(snapshot.len(), count);

    let start = Instant::now();
    world.put("10.77.77.0-24", &value(7)).await;
    followed.until(&LeaseUpdate::Put(lease("10.77.77.0/24", 7))).await;
    println!("a change was seen after {:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_free_subnet_of_65_535_is_found() {
    let mut world = World::new(r#"{"Network":"10.0.0.0/8"}"#).await;
    fill(&mut world.client, &["10.200.7.0-24"]).await;
    let start = Instant::now();
    let acquired = world.acquire(&request(1)).await;
    println!("took the only free subnet of 65,535 in {:?}", start.elapsed());
    assert_eq!(acquired.lease.subnet, subnet("10.200.7.0/24"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_hosts_at_once_get_a_thousand_subnets() {
    let world = World::new(r#"{"Network":"10.0.0.0/8"}"#).await;
    let start = Instant::now();
    let subnets = take_at_once(&world, 1000).await;
    println!("{} hosts took subnets in {:?}", subnets.len(), start.elapsed());
    assert_eq!(subnets.len(), 1000);
}
