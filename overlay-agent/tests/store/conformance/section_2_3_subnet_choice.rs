//! `reference/flannel.md`, 2.3: which subnet a host takes, and 1.5.1: when two want the same.

use overlay_lease::{
    member::acquire::{AcquireError, acquire},
    store::{Created, Store as _},
};

use crate::support::{
    CONFIG, CONFIG_KEY, World, key, request, subnet, take_at_once, value, within,
};

const ONE_SUBNET: &str = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.52.0","SubnetMax":"10.5.52.0",
    "Backend":{"Type":"vxlan"}}"#;

/// Room for exactly `hosts` hosts.
fn config_for(hosts: usize) -> String {
    let (third, second) = (hosts % 256, hosts / 256);
    format!(r#"{{"Network":"10.0.0.0/8","SubnetMax":"10.{second}.{third}.0"}}"#)
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
        let created = world
            .store
            .create_if_free(subnet(wanted), value(1).as_bytes(), None, None)
            .await
            .unwrap();
        match (created, obstacle) {
            (Created::At(_), None) => {}
            (Created::Refused(entries), Some(name)) => {
                assert!(entries.iter().any(|entry| entry.key == key(name).as_bytes()), "{wanted}");
            }
            (created, _) => panic!("{wanted}: {created:?}"),
        }
    }
}
