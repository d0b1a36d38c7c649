//! Hosts that are absent when etcd comes back.

use std::time::Duration;

use overlay_lease::member::{follow::Follower, grace::Patience, network::ConfigUpdate};
use tokio::sync::mpsc;

use crate::{
    support::{CONFIG, CONFIG_KEY, Followed, LeaseUpdate, World, lease, subnet, value, within},
    wire::Wire,
};

/// Every outage counts, and the grace is as long as the test says.
fn patience(grace: Duration) -> Patience {
    Patience { outage: Duration::from_millis(1), grace }
}

/// A host that knows hosts 1 to 3 and is cut off while 2 and 3 lose their leases.
async fn cut_off(world: &mut World, patience: Patience) -> (Followed, Wire) {
    for host in 1..=3 {
        world.put(&format!("10.5.{host}.0-24"), &value(host)).await;
    }
    let wire = Wire::to(&world.etcd).await;
    let mut followed = Followed::new(Follower::new(wire.store()).with_patience(patience));
    assert_eq!(followed.snapshot().await.len(), 3);
    // Only a watch that works proves that the cut will end one.
    world.put("10.5.9.0-24", &value(9)).await;
    followed.until(&LeaseUpdate::Put(lease("10.5.9.0/24", 9))).await;
    wire.cut();
    world.delete("10.5.2.0-24").await;
    world.delete("10.5.3.0-24").await;
    (followed, wire)
}

/// The two that etcd has lost, as they are told of.
async fn kept(followed: &mut Followed) -> Vec<overlay_lease::wire::Lease> {
    let mut kept = Vec::new();
    for _ in 0..2 {
        let LeaseUpdate::Put(lease) = followed.next().await else { panic!("another update") };
        kept.push(lease);
    }
    kept
}

/// Leases are compared as of this many.
fn hosts(hosts: &[u8]) -> Vec<overlay_lease::wire::Lease> {
    hosts.iter().map(|host| lease(&format!("10.5.{host}.0/24"), *host)).collect()
}

#[tokio::test]
async fn a_host_that_is_absent_after_an_outage_stays_until_it_is_back() {
    let mut world = World::new(CONFIG).await;
    let (mut followed, wire) = cut_off(&mut world, patience(Duration::from_hours(1))).await;
    wire.mend();
    assert_eq!(kept(&mut followed).await, hosts(&[2, 3]), "nobody stops sending to 2 and 3");
    world.put("10.5.2.0-24", &value(2)).await;
    assert_eq!(followed.next().await, LeaseUpdate::Put(lease("10.5.2.0/24", 2)));
    // What is seen to go on a live watch goes at once.
    world.delete("10.5.2.0-24").await;
    assert_eq!(followed.next().await, LeaseUpdate::Removed(subnet("10.5.2.0/24")));
    // Host 3 turns up elsewhere.
    world.put("10.5.33.0-24", &value(3)).await;
    assert_eq!(followed.next().await, LeaseUpdate::Removed(subnet("10.5.3.0/24")));
    assert_eq!(followed.next().await, LeaseUpdate::Put(lease("10.5.33.0/24", 3)));
}

#[tokio::test]
async fn a_host_that_does_not_come_back_is_given_up_after_the_grace() {
    let mut world = World::new(CONFIG).await;
    let (mut followed, wire) = cut_off(&mut world, patience(Duration::from_millis(500))).await;
    wire.mend();
    assert_eq!(kept(&mut followed).await, hosts(&[2, 3]));
    assert_eq!(followed.next().await, LeaseUpdate::Removed(subnet("10.5.2.0/24")));
    assert_eq!(followed.next().await, LeaseUpdate::Removed(subnet("10.5.3.0/24")));
}

#[tokio::test]
async fn after_a_short_gap_whoever_is_absent_is_gone() {
    let mut world = World::new(CONFIG).await;
    let long = Patience { outage: Duration::from_hours(1), grace: Duration::from_hours(1) };
    let (mut followed, wire) = cut_off(&mut world, long).await;
    wire.mend();
    assert_eq!(followed.next().await, LeaseUpdate::Removed(subnet("10.5.2.0/24")));
    assert_eq!(followed.next().await, LeaseUpdate::Removed(subnet("10.5.3.0/24")));
}

#[tokio::test]
async fn a_host_that_took_another_subnet_during_the_outage_is_not_waited_for_at_the_old_one() {
    let mut world = World::new(CONFIG).await;
    let (mut followed, wire) = cut_off(&mut world, patience(Duration::from_hours(1))).await;
    world.put("10.5.33.0-24", &value(3)).await;
    wire.mend();
    assert_eq!(followed.next().await, LeaseUpdate::Put(lease("10.5.33.0/24", 3)));
    assert_eq!(followed.next().await, LeaseUpdate::Put(lease("10.5.2.0/24", 2)), "is kept");
    assert_eq!(followed.next().await, LeaseUpdate::Removed(subnet("10.5.3.0/24")));
}

/// Where etcd has forgotten what happened meanwhile, a listing says who is absent.
#[tokio::test]
async fn a_host_that_a_listing_lacks_after_an_outage_stays_as_well() {
    let mut world = World::new(CONFIG).await;
    let (mut followed, wire) = cut_off(&mut world, patience(Duration::from_hours(1))).await;
    let revision = world.client.get(CONFIG_KEY, None).await.unwrap().header().unwrap().revision();
    world.client.compact(revision, None).await.unwrap();
    wire.mend();
    assert_eq!(followed.snapshot().await, hosts(&[1, 2, 3, 9]));
}

#[tokio::test]
async fn changes_of_the_network_config_are_reported_each_once_even_those_in_a_gap() {
    let mut world = World::new(CONFIG).await;
    let wire = Wire::to(&world.etcd).await;
    let (sender, mut updates) = mpsc::channel(4);
    let known = world.config.mod_revision;
    let mut followed = Followed::new(Follower::new(wire.store()).reporting_config(known, sender));
    followed.snapshot().await;
    world.put("10.5.9.0-24", &value(9)).await;
    followed.until(&LeaseUpdate::Put(lease("10.5.9.0/24", 9))).await;
    assert!(updates.try_recv().is_err(), "what is known is no change");

    let mtu = |mtu: u16| CONFIG.replace(r#""vxlan""#, &format!(r#""vxlan","MTU":{mtu}"#));
    world.client.put(CONFIG_KEY, mtu(1400), None).await.unwrap();
    let ConfigUpdate::Changed(config) = within(updates.recv()).await.unwrap() else { panic!() };
    assert_eq!(config.config.mtu, Some(1400));
    world.client.put(CONFIG_KEY, "{", None).await.unwrap();
    assert!(matches!(within(updates.recv()).await.unwrap(), ConfigUpdate::Malformed(_)));
    world.client.delete(CONFIG_KEY, None).await.unwrap();
    assert!(matches!(within(updates.recv()).await.unwrap(), ConfigUpdate::Gone(_)));

    wire.cut();
    world.client.put(CONFIG_KEY, mtu(1300), None).await.unwrap();
    wire.mend();
    let ConfigUpdate::Changed(config) = within(updates.recv()).await.unwrap() else { panic!() };
    assert_eq!(config.config.mtu, Some(1300));
    world.put("10.5.8.0-24", &value(8)).await;
    followed.until(&LeaseUpdate::Put(lease("10.5.8.0/24", 8))).await;
    assert!(updates.try_recv().is_err(), "nothing is said twice");
}
