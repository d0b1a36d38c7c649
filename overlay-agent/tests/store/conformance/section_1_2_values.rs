//! `reference/flannel.md`, 1.2: the values, and 3.4: what we must publish.

use overlay_lease::member::{
    follow::Follower,
    request::{LeaseOrigin, Request},
};

use crate::support::{CONFIG, CONFIG_KEY, Followed, LeaseUpdate, World, request, subnet, value};

const ONE_SUBNET: &str = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.52.0","SubnetMax":"10.5.52.0",
    "Backend":{"Type":"vxlan"}}"#;

#[tokio::test]
async fn the_key_and_the_value_are_flannels_byte_for_byte() {
    let mut world = World::new(ONE_SUBNET).await;
    let request = Request {
        public_ip: [192, 168, 64, 3].into(),
        vtep_mac: Some("c6:d2:32:6f:8f:44".parse().unwrap()),
        ..request(0)
    };
    let acquired = world.acquire(&request).await;
    assert_eq!(acquired.origin, LeaseOrigin::Free);

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
async fn a_host_that_changes_to_another_backend_is_removed() {
    let mut world = World::new(CONFIG).await;
    world.put("10.5.1.0-24", &value(1)).await;
    let mut followed = Followed::new(Follower::new(world.store.clone()));
    followed.snapshot().await;
    world.put("10.5.1.0-24", r#"{"PublicIP":"192.0.2.1","BackendType":"host-gw"}"#).await;
    assert_eq!(followed.next().await, LeaseUpdate::Removed(subnet("10.5.1.0/24")));
}

#[tokio::test]
async fn a_mac_that_another_host_has_is_not_taken() {
    let mut world = World::new(CONFIG).await;
    world.put("10.5.7.0-24", &crate::support::value_with_mac(9, 1)).await;
    let acquired = world.acquire(&request(1)).await;
    assert_ne!(acquired.lease.vtep_mac, request(1).vtep_mac.unwrap());
    assert!(acquired.lease.vtep_mac.is_unicast());
}
