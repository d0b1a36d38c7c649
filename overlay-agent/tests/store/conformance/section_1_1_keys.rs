//! `reference/flannel.md`, 1.1: the keys.

use overlay_lease::member::{follow::Follower, request::Request};

use crate::support::{CONFIG, Followed, LeaseUpdate, World, lease, request, subnet, value};

#[tokio::test]
async fn malformed_keys_are_worked_around() {
    let config = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.2.0"}"#;
    let mut world = World::new(config).await;
    world.put("10.5.1.0-24x", "nonsense").await;
    world.put("garbage", "nonsense").await;
    // Even where it is in the way of the subnet that this host had.
    let request = Request { previous: Some(subnet("10.5.1.0/24")), ..request(1) };
    let acquired = world.acquire(&request).await;
    assert_eq!(acquired.lease.subnet, subnet("10.5.2.0/24"));
}

#[tokio::test]
async fn malformed_and_foreign_keys_disturb_nobody() {
    let mut world = World::new(CONFIG).await;
    world.put("10.5.1.0-24", &value(1)).await;
    world.put("nonsense", "nonsense").await;
    world.put("10.5.9.0-24", "nonsense").await;
    world.client.put("/coreos.com/network/subnetsX", "nonsense", None).await.unwrap();
    let mut followed = Followed::new(Follower::new(world.store.clone()));
    assert_eq!(followed.snapshot().await, [lease("10.5.1.0/24", 1)]);

    // A lease whose value becomes nonsense is kept as it was.
    for name in ["10.5.1.0-24", "10.5.9.7-24", "more nonsense", "10.5.9.0-24"] {
        world.put(name, r#"{"PublicIP":null}"#).await;
    }
    world.delete("nonsense").await;
    world.put("10.5.2.0-24", &value(2)).await;
    assert_eq!(followed.next().await, LeaseUpdate::Put(lease("10.5.2.0/24", 2)));
}

#[tokio::test]
async fn a_host_of_both_families_is_followed_by_its_ipv4_subnet() {
    let mut world = World::new(CONFIG).await;
    let mut followed = Followed::new(Follower::new(world.store.clone()));
    followed.snapshot().await;
    world.put("10.5.1.0-24&fd00:12:13::-56", &value(1)).await;
    assert_eq!(followed.next().await, LeaseUpdate::Put(lease("10.5.1.0/24", 1)));
    world.delete("10.5.1.0-24&fd00:12:13::-56").await;
    assert_eq!(followed.next().await, LeaseUpdate::Removed(subnet("10.5.1.0/24")));
}

/// One bad key for each rule of the form, beside a good one, all with a value that is fine.
#[tokio::test]
async fn no_bad_key_is_taken_for_a_lease() {
    let mut world = World::new(CONFIG).await;
    world.put("10.5.1.0-24", &value(1)).await;
    for (host, bad) in (2..).zip([
        "10.5.52.0",
        "10.5.52-24",
        "10.5.52.256-24",
        "x10.5.52.0-24",
        "10.5.52.0-24x",
        "10.5.52.0-+24",
        "10.5.52.0-024",
        "10.5.52.0-32",
        "10.5.52.1-24",
        "10.5.52.0-24/child",
        "10.5.52.0-24&",
        "10.5.52.0-24&FD00:12:13::-56",
        "10.5.52.0-24&fd00:12:13::-128",
    ]) {
        world.put(bad, &value(host)).await;
    }
    let mut followed = Followed::new(Follower::new(world.store.clone()));
    assert_eq!(followed.snapshot().await, [lease("10.5.1.0/24", 1)]);
}
