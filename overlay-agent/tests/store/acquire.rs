//! Taking a subnet.

use std::{collections::HashSet, time::Duration};

use overlay_agent::{
    lease::{
        acquire::{AcquireError, Origin, Request, acquire},
        value::{Backend, LeaseValue},
    },
    store::etcd::Created,
};
use tokio::task::JoinSet;

use crate::support::{CONFIG, CONFIG_KEY, World, key, lease, request, subnet, value, within};

const ONE_SUBNET: &str = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.52.0","SubnetMax":"10.5.52.0",
    "Backend":{"Type":"vxlan"}}"#;

/// Room for exactly `hosts` hosts.
fn config_for(hosts: usize) -> String {
    let (third, second) = (hosts % 256, hosts / 256);
    format!(r#"{{"Network":"10.0.0.0/8","SubnetMax":"10.{second}.{third}.0"}}"#)
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

#[tokio::test]
async fn the_key_and_the_value_are_flannels_byte_for_byte() {
    let mut world = World::new(ONE_SUBNET).await;
    let request = Request {
        public_ip: [192, 168, 64, 3].into(),
        vtep_mac: Some("c6:d2:32:6f:8f:44".parse().unwrap()),
        ..request(0)
    };
    let acquired = world.acquire(&request).await;
    assert_eq!(acquired.origin, Origin::Free);

    let all = etcd_client::GetOptions::new().with_all_keys();
    let found = world.client.get("", Some(all)).await.unwrap();
    let keys: Vec<_> = found.kvs().iter().map(|kv| kv.key_str().unwrap()).collect();
    assert_eq!(keys, [CONFIG_KEY, "/coreos.com/network/subnets/10.5.52.0-24"]);
    let kv = world.get("10.5.52.0-24").await.unwrap();
    assert_eq!(
        kv.value_str().unwrap(),
        r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#
    );
    assert_eq!(Some(kv.lease()), acquired.etcd_lease);
    let ttl = world.client.lease_time_to_live(kv.lease(), None).await.unwrap();
    assert_eq!(ttl.granted_ttl(), 86_400);
}

#[tokio::test]
async fn two_hosts_at_once_get_two_subnets() {
    let world = World::new(&config_for(2)).await;
    assert_eq!(within(take_at_once(&world, 2)).await.len(), 2);
}

#[tokio::test]
async fn fifty_hosts_at_once_fill_a_network_of_fifty_subnets() {
    let mut world = World::new(&config_for(50)).await;
    assert_eq!(within(take_at_once(&world, 50)).await.len(), 50);
    assert_eq!(world.etcd_leases().await.len(), 50, "no etcd lease is left over");
}

#[tokio::test]
async fn a_host_that_comes_back_finds_its_lease_and_writes_nothing() {
    let mut world = World::new(CONFIG).await;
    let first = world.acquire(&request(1)).await;
    let name = first.lease.subnet.to_string().replace('/', "-");
    let before = world.get(&name).await.unwrap();
    let other_mac = Request { vtep_mac: Some("02:ff:ff:ff:ff:ff".parse().unwrap()), ..request(1) };
    let second = world.acquire(&other_mac).await;
    assert_eq!(second.origin, Origin::PublicIp);
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

#[tokio::test]
async fn the_subnet_of_the_file_is_taken_again_if_nobody_has_it() {
    let world = World::new(CONFIG).await;
    let request = Request { previous: Some(subnet("10.5.99.0/24")), ..request(1) };
    let acquired = world.acquire(&request).await;
    assert_eq!(acquired.lease, lease("10.5.99.0/24", 1));
    assert_eq!(acquired.origin, Origin::SubnetFile);
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
        assert_eq!(acquired.origin, Origin::Free, "{previous}");
        world.delete(&acquired.lease.subnet.to_string().replace('/', "-")).await;
    }
    assert_eq!(world.get("10.5.99.0-24").await.unwrap().value_str().unwrap(), value(9));
}

#[tokio::test]
async fn a_subnet_of_the_file_outside_the_config_is_not_taken() {
    let world = World::new(CONFIG).await;
    for previous in ["10.6.1.0/24", "10.5.1.0/25", "10.5.0.0/24"] {
        let request = Request { previous: Some(subnet(previous)), ..request(1) };
        assert_ne!(world.acquire(&request).await.origin, Origin::SubnetFile);
    }
}

#[tokio::test]
async fn our_own_lease_that_the_config_does_not_allow_any_more_is_replaced() {
    let mut world = World::new(CONFIG).await;
    let old = world.put_with_ttl("10.4.7.0-24", &value(1), 1000).await;
    let acquired = world.acquire(&request(1)).await;
    assert_eq!(acquired.origin, Origin::Free);
    assert!(world.get("10.4.7.0-24").await.is_none());
    assert!(!world.etcd_leases().await.contains(&old));
}

#[tokio::test]
async fn an_operators_reservation_is_not_deleted_even_if_it_does_not_fit() {
    let mut world = World::new(CONFIG).await;
    world.put("10.4.7.0-24", &value(1)).await;
    assert_eq!(world.acquire(&request(1)).await.origin, Origin::Free);
    assert!(world.get("10.4.7.0-24").await.is_some());
}

#[tokio::test]
async fn out_of_subnets_is_said_plainly_and_leaves_nothing() {
    let mut world = World::new(ONE_SUBNET).await;
    world.put("10.5.52.0-24", &value(9)).await;
    let error = within(acquire(&world.store, &world.config, &request(1))).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "out of subnets: all 1 from 10.5.52.0 to 10.5.52.0 (/24) are taken; widen SubnetMin and \
         SubnetMax or Network, or delete leases of hosts that are gone"
    );
    assert!(world.etcd_leases().await.is_empty());
}

#[tokio::test]
async fn no_subnet_of_an_outdated_config_is_taken() {
    let mut world = World::new(CONFIG).await;
    world.client.put(CONFIG_KEY, ONE_SUBNET, None).await.unwrap();
    let error = within(acquire(&world.store, &world.config, &request(1))).await.unwrap_err();
    assert!(matches!(error, AcquireError::ConfigChanged), "{error}");
    assert!(world.etcd_leases().await.is_empty());
}

#[tokio::test]
async fn malformed_keys_are_worked_around() {
    let config = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.2.0"}"#;
    let mut world = World::new(config).await;
    world.put("10.5.1.0-24x", "nonsense").await;
    world.put("garbage", "nonsense").await;
    let acquired = world.acquire(&request(1)).await;
    assert_eq!(acquired.lease.subnet, subnet("10.5.2.0/24"));
}

#[tokio::test]
async fn a_mac_that_another_host_has_is_not_taken() {
    let mut world = World::new(CONFIG).await;
    world.put("10.5.7.0-24", &crate::support::value_with_mac(9, 1)).await;
    let acquired = world.acquire(&request(1)).await;
    assert_ne!(acquired.lease.vtep_mac, request(1).vtep_mac.unwrap());
    assert!(acquired.lease.vtep_mac.is_unicast());
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
async fn etcd_itself_refuses_what_overlaps() {
    let mut world = World::new(CONFIG).await;
    world.put("10.5.16.0-20", &value(9)).await;
    world.put("10.5.32.64-26", &value(8)).await;
    for (wanted, obstacle) in [
        ("10.5.17.0/24", Some("10.5.16.0-20")),
        ("10.5.32.0/24", Some("10.5.32.64-26")),
        ("10.5.0.0/16", Some("10.5.16.0-20")),
        ("10.5.33.0/24", None),
    ] {
        let created =
            world.store.create(subnet(wanted), value(1).as_bytes(), None, None).await.unwrap();
        match (created, obstacle) {
            (Created::At(_), None) => {}
            (Created::Refused(entries), Some(name)) => {
                assert!(entries.iter().any(|entry| entry.key == key(name).as_bytes()), "{wanted}");
            }
            (created, _) => panic!("{wanted}: {created:?}"),
        }
    }
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
