//! `reference/flannel.md`, 1.3: taking a lease.

use std::time::Duration;

use overlay_lease::{
    member::{
        acquire::acquire,
        request::{LeaseOrigin, Request},
    },
    wire::value::{Backend, LeaseValue},
};

use crate::support::{CONFIG, World, lease, request, subnet, value, within};

#[tokio::test]
async fn a_host_that_comes_back_finds_its_lease_and_writes_nothing() {
    let mut world = World::new(CONFIG).await;
    let first = world.acquire(&request(1)).await;
    let name = first.lease.subnet.to_string().replace('/', "-");
    let before = world.get(&name).await.unwrap();
    let other_mac = Request { vtep_mac: Some("02:ff:ff:ff:ff:ff".parse().unwrap()), ..request(1) };
    let second = world.acquire(&other_mac).await;
    assert_eq!(second.origin, LeaseOrigin::PublicIp);
    assert_eq!((second.lease, second.etcd_lease), (first.lease, first.etcd_lease));
    assert_eq!(world.get(&name).await.unwrap().mod_revision(), before.mod_revision());
    assert_eq!(world.etcd_leases().await.len(), 1);
}

#[tokio::test]
async fn a_flannel_hosts_lease_is_taken_over_with_its_mac_and_our_ttl() {
    let mut world = World::new(CONFIG).await;
    let old = world.put_with_ttl("10.5.7.0-24", &value(1), 1000).await;
    let request = Request { vtep_mac: None, ..request(1) };
    let acquired = world.acquire(&request).await;
    assert_eq!(acquired.lease, lease("10.5.7.0/24", 1));
    assert_ne!(acquired.etcd_lease, Some(old));
    assert_eq!(world.etcd_leases().await, [acquired.etcd_lease.unwrap()]);
}

#[tokio::test]
async fn a_reservation_stays_without_a_ttl() {
    let mut world = World::new(CONFIG).await;
    world.put("10.5.7.0-24", r#"{"PublicIP":"192.0.2.1"}"#).await;
    let acquired = world.acquire(&request(1)).await;
    assert_eq!(acquired.lease, lease("10.5.7.0/24", 1));
    assert_eq!(acquired.etcd_lease, None);
    let kv = world.get("10.5.7.0-24").await.unwrap();
    assert_eq!((kv.lease(), kv.value_str().unwrap()), (0, value(1).as_str()));
    assert!(world.etcd_leases().await.is_empty());
}

/// flannel goes by the address alone.
#[tokio::test]
async fn a_reservation_with_nonsense_beside_the_address_is_taken() {
    for data in ["", r#","BackendData":null"#, r#","BackendData":{}"#, r#","BackendData":7"#] {
        let mut world = World::new(CONFIG).await;
        let reserved = format!(r#"{{"PublicIP":"192.0.2.1","BackendType":"vxlan"{data}}}"#);
        world.put("10.5.7.0-24", &reserved).await;
        let acquired = world.acquire(&request(1)).await;
        assert_eq!(acquired.lease, lease("10.5.7.0/24", 1), "{reserved}");
        assert_eq!(acquired.etcd_lease, None, "{reserved}");
        assert_eq!(world.get("10.5.7.0-24").await.unwrap().value_str().unwrap(), value(1));
    }
}

#[tokio::test]
async fn the_subnet_of_the_file_is_taken_again_if_nobody_has_it() {
    let world = World::new(CONFIG).await;
    let request = Request { previous: Some(subnet("10.5.99.0/24")), ..request(1) };
    let acquired = world.acquire(&request).await;
    assert_eq!(acquired.lease, lease("10.5.99.0/24", 1));
    assert_eq!(acquired.origin, LeaseOrigin::SubnetFile);
}

#[tokio::test]
async fn the_subnet_of_the_file_is_not_stolen() {
    let mut world = World::new(CONFIG).await;
    for taken in ["10.5.99.0-24", "10.5.98.128-25", "10.5.96.0-23&fd00::-64"] {
        world.put(taken, &value(9)).await;
    }
    for previous in ["10.5.99.0/24", "10.5.98.0/24", "10.5.97.0/24"] {
        let request = Request { previous: Some(subnet(previous)), ..request(1) };
        let acquired = world.acquire(&request).await;
        assert_eq!(acquired.origin, LeaseOrigin::Free, "{previous}");
        world.delete(&acquired.lease.subnet.to_string().replace('/', "-")).await;
    }
    assert_eq!(world.get("10.5.99.0-24").await.unwrap().value_str().unwrap(), value(9));
}

#[tokio::test]
async fn a_subnet_of_the_file_outside_the_config_is_not_taken() {
    let world = World::new(CONFIG).await;
    for previous in ["10.6.1.0/24", "10.5.1.0/25", "10.5.0.0/24"] {
        let request = Request { previous: Some(subnet(previous)), ..request(1) };
        assert_ne!(world.acquire(&request).await.origin, LeaseOrigin::SubnetFile);
    }
}

#[tokio::test]
async fn our_own_lease_that_the_config_does_not_allow_any_more_is_replaced() {
    let mut world = World::new(CONFIG).await;
    let old = world.put_with_ttl("10.4.7.0-24", &value(1), 1000).await;
    let acquired = world.acquire(&request(1)).await;
    assert_eq!(acquired.origin, LeaseOrigin::Free);
    assert!(world.get("10.4.7.0-24").await.is_none());
    assert!(!world.etcd_leases().await.contains(&old));
}

#[tokio::test]
async fn an_operators_reservation_is_not_deleted_even_if_it_does_not_fit() {
    let mut world = World::new(CONFIG).await;
    world.put("10.4.7.0-24", &value(1)).await;
    assert_eq!(world.acquire(&request(1)).await.origin, LeaseOrigin::Free);
    assert!(world.get("10.4.7.0-24").await.is_some());
}

#[tokio::test]
async fn the_listing_that_comes_with_a_lease_contains_it() {
    let mut world = World::new(CONFIG).await;
    world.put("10.5.7.0-24", &value(9)).await;
    let acquired = world.acquire(&request(1)).await;
    let listed: Vec<_> = acquired
        .listing
        .entries
        .iter()
        .map(|entry| LeaseValue::decode(&entry.value).unwrap())
        .filter(|value| matches!(value.backend, Backend::Vxlan { .. }))
        .map(|value| value.public_ip.octets()[3])
        .collect();
    assert_eq!(listed.len(), 2);
    assert!(listed.contains(&1) && listed.contains(&9));
}

#[tokio::test]
async fn a_host_that_starts_while_etcd_is_away_waits_for_it() {
    let mut world = World::new(CONFIG).await;
    world.etcd.kill();
    let (store, config) = (world.store.clone(), world.config.clone());
    let waiting = tokio::spawn(async move { acquire(&store, &config, &request(1)).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    world.etcd.restart().await;
    within(waiting).await.unwrap().unwrap();
}

/// Known by the subnet that it had and the MAC of its device, which is still there.
#[tokio::test]
async fn a_host_whose_address_has_changed_keeps_its_subnet() {
    let mut world = World::new(CONFIG).await;
    world.put_with_ttl("10.5.7.0-24", &value(1), 1000).await;
    let moved = Request {
        public_ip: [192, 0, 2, 101].into(),
        previous: Some(subnet("10.5.7.0/24")),
        ..request(1)
    };
    let acquired = world.acquire(&moved).await;
    assert_eq!(acquired.lease.public_ip, moved.public_ip);
    assert_eq!(acquired.lease.subnet, subnet("10.5.7.0/24"));
    let kv = world.get("10.5.7.0-24").await.unwrap();
    assert_eq!(kv.value_str().unwrap(), value(1).replace("192.0.2.1", "192.0.2.101"));

    // Another host with that subnet file, but without the device, is not the same.
    let clone = Request { public_ip: [192, 0, 2, 102].into(), vtep_mac: None, ..moved };
    assert_ne!(world.acquire(&clone).await.lease.subnet, subnet("10.5.7.0/24"));
}
