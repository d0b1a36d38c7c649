//! `reference/flannel.md`, 1.1: the keys.

use overlay_lab::corpus;
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

/// All of the corpus's at once: what is no lease costs those that are nothing, above all no peer.
#[tokio::test]
async fn of_all_keys_that_ever_were_trouble_those_that_are_leases_are_followed() {
    let mut world = World::new(CONFIG).await;
    let mut leases = Vec::new();
    for case in corpus::read("keys").unwrap() {
        let (name, value) = case.body.split_once('\n').unwrap();
        assert!(world.get(name).await.is_none(), "{}: {name:?} is another file's", case.name);
        world.put(name, value).await;
        let verdict = case.verdict().unwrap();
        leases.extend((verdict.0 == "lease").then(|| verdict.1.to_owned()));
    }
    let mut followed = Followed::new(Follower::new(world.store.clone()));
    let found = followed.snapshot().await;
    let mut found: Vec<_> = found.iter().map(ToString::to_string).collect();
    found.sort();
    leases.sort();
    assert_eq!(found, leases);
}
