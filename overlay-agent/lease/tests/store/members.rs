//! A host that takes part, whatever store it is.

use std::{collections::HashSet, time::Duration};

use overlay_lease::{
    member::{
        acquire::acquire,
        claim::LeaseClaim,
        follow::Follower,
        keeper::{Keeper, LeaseEvent},
        network::{ConfigUpdate, wait_for_config},
        request::{LeaseOrigin, Request},
        update::LeaseUpdate,
    },
    store::Store,
};
use tokio::{sync::mpsc, task::JoinSet};

use crate::site::{Site, WritableSite, address, lease, mac, within};

const TTL: Duration = Duration::from_mins(1);

fn request(host: u8) -> Request {
    Request {
        public_ip: address(host),
        previous: None,
        vtep_mac: Some(mac(host)),
        last_address: None,
        is_running: false,
        ttl: TTL,
        occupied: Vec::new(),
    }
}

fn follow<S: Store>(follower: Follower<S>) -> mpsc::Receiver<LeaseUpdate> {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(follower.run(sender));
    receiver
}

async fn next(updates: &mut mpsc::Receiver<LeaseUpdate>) -> LeaseUpdate {
    within(updates.recv()).await.expect("the follower has ended")
}

async fn put(updates: &mut mpsc::Receiver<LeaseUpdate>) -> LeaseClaim {
    match next(updates).await {
        LeaseUpdate::Put(claim) => claim,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn a_config_is_waited_for_and_its_changes_are_told<S: Site>() {
    let mut site = S::start().await;
    let stored = within(wait_for_config(site.store())).await.unwrap();
    assert_eq!(
        (stored.config.network.to_string().as_str(), stored.config.mtu),
        ("10.5.0.0/16", None)
    );
    let (sender, mut configs) = mpsc::channel(16);
    let follower = Follower::new(site.store().clone());
    let mut updates = follow(follower.reporting_config(stored.mod_revision, sender));
    assert_eq!(next(&mut updates).await, LeaseUpdate::Snapshot(Vec::new()));
    site.set_mtu(1400).await;
    match within(configs.recv()).await.unwrap() {
        ConfigUpdate::Changed(changed) => {
            assert_eq!(changed.config.mtu, Some(1400));
            assert!(changed.mod_revision > stored.mod_revision);
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn leases_are_followed<S: Site>() {
    let mut site = S::start().await;
    site.put("10.5.9.0/24", 9).await;
    let mut updates = follow(Follower::new(site.store().clone()));
    let LeaseUpdate::Snapshot(claims) = next(&mut updates).await else { panic!("no snapshot") };
    let leases: Vec<_> = claims.iter().map(|claim| claim.lease).collect();
    assert_eq!(leases, [lease("10.5.9.0/24", 9)]);
    site.put("10.5.1.0/24", 1).await;
    let first = put(&mut updates).await;
    assert_eq!((first.lease, first.kept), (lease("10.5.1.0/24", 1), false));
    site.put("10.5.1.0/24", 2).await;
    let second = put(&mut updates).await;
    assert_eq!((second.lease, second.created), (lease("10.5.1.0/24", 2), first.created));
    assert!(second.written > first.written && claims[0].rank() < second.rank());
    site.delete("10.5.1.0/24").await;
    assert_eq!(next(&mut updates).await, LeaseUpdate::Removed(second.key));
}

pub(crate) async fn a_host_takes_a_subnet_and_keeps_it<S: WritableSite>() {
    let mut site = S::start().await;
    site.put("10.5.9.0/24", 9).await;
    let store = site.store().clone();
    let config = within(wait_for_config(&store)).await.unwrap();
    let acquired = within(acquire(&store, &config, &request(1))).await.unwrap();
    assert_eq!((acquired.origin, acquired.lease.vtep_mac), (LeaseOrigin::Free, mac(1)));
    assert_eq!(acquired.listing.entries.len(), 2);
    let again = within(acquire(&store, &config, &request(1))).await.unwrap();
    assert_eq!((again.origin, again.lease), (LeaseOrigin::Mac, acquired.lease));
    assert_eq!(again.etcd_lease, acquired.etcd_lease);

    let keeper = Keeper::new(store.clone(), &acquired, TTL);
    let follower = Follower::new(store).starting_from(acquired.listing).informing(keeper.handle());
    let mut updates = follow(follower);
    let (sender, mut events) = mpsc::channel(16);
    tokio::spawn(keeper.run(sender));
    assert!(matches!(next(&mut updates).await, LeaseUpdate::Snapshot(claims) if claims.len() == 2));
    site.delete(&acquired.lease.subnet.to_string()).await;
    let event = within(events.recv()).await.unwrap();
    assert_eq!(event, LeaseEvent::Retaken(acquired.lease));
    let entry = site.lease(&acquired.lease.subnet.to_string()).await;
    assert_eq!(entry.value, acquired.lease.value().encode());
}

pub(crate) async fn hosts_at_once_take_different_subnets<S: WritableSite>() {
    const HOSTS: u8 = 20;
    let site = S::start().await;
    let config = within(wait_for_config(site.store())).await.unwrap();
    let mut hosts = JoinSet::new();
    for host in 1..=HOSTS {
        let (store, config) = (site.store().clone(), config.clone());
        hosts.spawn(async move { acquire(&store, &config, &request(host)).await });
    }
    let all = within(hosts.join_all()).await;
    let subnets: HashSet<_> = all.into_iter().map(|taken| taken.unwrap().lease.subnet).collect();
    assert_eq!(subnets.len(), usize::from(HOSTS));
}
