//! `reference/flannel.md`, 1.3: keeping a lease, and 1.5.2, 3, 7: losing it.

use std::time::{Duration, Instant};

use etcd_client::{Txn, TxnOp};
use overlay_lease::{
    member::{
        acquire::Acquired,
        follow::Follower,
        keeper::{Keeper, LeaseEvent},
        request::Request,
    },
    store::etcd::EtcdStore,
};
use tokio::sync::mpsc;

use crate::{
    support::{CONFIG, Followed, World, key, request, until, value, within},
    wire::Wire,
};

/// The shortest that etcd grants. Renewed every two thirds of a second.
const SHORT: Duration = Duration::from_secs(2);

/// A host with a lease, kept and followed.
struct Host {
    acquired: Acquired,
    name: String,
    events: mpsc::Receiver<LeaseEvent>,
    _followed: Followed,
}

impl Host {
    async fn new(world: &World, ttl: Duration) -> Self {
        Self::behind(world, world.store.clone(), ttl).await
    }

    /// A host that has its own way to etcd.
    async fn behind(world: &World, store: EtcdStore, ttl: Duration) -> Self {
        let request = Request { ttl, ..request(1) };
        let acquired = world.acquire(&request).await;
        let keeper = Keeper::new(store.clone(), &acquired, ttl);
        let mut followed = Followed::new(
            Follower::new(store).starting_from(acquired.listing.clone()).informing(keeper.handle()),
        );
        followed.snapshot().await;
        let (sender, events) = mpsc::channel(4);
        tokio::spawn(keeper.run(sender));
        let name = acquired.lease.subnet.to_string().replace('/', "-");
        // Nobody reads on, so the channel must be able to hold what a test causes: few updates.
        Self { acquired, name, events, _followed: followed }
    }

    async fn event(&mut self) -> LeaseEvent {
        within(self.events.recv()).await.expect("the keeper has ended")
    }

    fn value(&self) -> Vec<u8> {
        self.acquired.lease.value().encode()
    }
}

/// Watches that our key stays as it is for `time`.
async fn stays(world: &mut World, host: &Host, time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        let kv = world.get(&host.name).await.expect("the lease has expired");
        assert_eq!(kv.value(), host.value());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_kept_lease_outlives_its_ttl_without_a_write() {
    let mut world = World::new(CONFIG).await;
    let host = Host::new(&world, SHORT).await;
    let before = world.get(&host.name).await.unwrap().mod_revision();
    stays(&mut world, &host, SHORT * 3).await;
    assert_eq!(world.get(&host.name).await.unwrap().mod_revision(), before);
}

#[tokio::test]
async fn a_lease_that_an_admin_deletes_is_taken_again() {
    let mut world = World::new(CONFIG).await;
    let mut host = Host::new(&world, Duration::from_hours(24)).await;
    world.delete(&host.name).await;
    assert_eq!(host.event().await, LeaseEvent::Retaken(host.acquired.lease));
    let kv = world.get(&host.name).await.unwrap();
    assert_eq!(kv.value(), host.value());
    assert_eq!(Some(kv.lease()), host.acquired.etcd_lease, "the etcd lease was still good");
}

#[tokio::test]
async fn a_lease_that_an_admin_revokes_is_taken_again_with_a_ttl() {
    let mut world = World::new(CONFIG).await;
    let mut host = Host::new(&world, Duration::from_hours(24)).await;
    let old = host.acquired.etcd_lease.unwrap();
    world.client.lease_revoke(old).await.unwrap();
    assert_eq!(host.event().await, LeaseEvent::Retaken(host.acquired.lease));
    let kv = world.get(&host.name).await.unwrap();
    assert!(kv.lease() != 0 && kv.lease() != old);
}

#[tokio::test]
async fn a_subnet_that_another_host_has_taken_is_not_stolen_back() {
    let mut world = World::new(CONFIG).await;
    let mut host = Host::new(&world, Duration::from_hours(24)).await;
    world.put(&host.name, &value(9)).await;
    assert_eq!(
        host.event().await,
        LeaseEvent::TakenByOther {
            lease: host.acquired.lease,
            key: key(&host.name),
            owner: Some([192, 0, 2, 9].into()),
        }
    );
    assert!(within(host.events.recv()).await.is_none(), "the keeper has ended");
    assert_eq!(world.get(&host.name).await.unwrap().value_str().unwrap(), value(9));
    assert!(world.etcd_leases().await.is_empty());
}

#[tokio::test]
async fn a_part_of_our_subnet_that_another_host_has_taken_is_not_stolen_back() {
    let mut world = World::new(CONFIG).await;
    let mut host = Host::new(&world, Duration::from_hours(24)).await;
    let half = host.name.replace("-24", "-25");
    let swap = Txn::new()
        .and_then([TxnOp::delete(key(&host.name), None), TxnOp::put(key(&half), value(9), None)]);
    world.client.txn(swap).await.unwrap();
    let LeaseEvent::TakenByOther { key: taken, .. } = host.event().await else {
        panic!("our lease was taken again");
    };
    assert_eq!(taken, key(&half));
    assert!(world.get(&host.name).await.is_none());
}

#[tokio::test]
async fn a_value_that_somebody_spoils_is_put_right() {
    let mut world = World::new(CONFIG).await;
    let host = Host::new(&world, Duration::from_hours(24)).await;
    let id = host.acquired.etcd_lease.unwrap();
    let options = etcd_client::PutOptions::new().with_lease(id);
    world.client.put(key(&host.name), "nonsense", Some(options)).await.unwrap();
    // Nonsense says nothing to a follower, so it is seen with the next event about the subnet.
    let wrong_mac = crate::support::value_with_mac(1, 99);
    let options = etcd_client::PutOptions::new().with_lease(id);
    world.client.put(key(&host.name), wrong_mac, Some(options)).await.unwrap();
    until("the value is ours again", async || {
        world.get(&host.name).await.unwrap().value() == host.value()
    })
    .await;
    assert_eq!(world.get(&host.name).await.unwrap().lease(), id);
}

#[tokio::test]
async fn a_lease_that_an_admin_makes_a_reservation_stays_one() {
    let mut world = World::new(CONFIG).await;
    let host = Host::new(&world, SHORT).await;
    let value = String::from_utf8(host.value()).unwrap();
    world.put(&host.name, &value).await;
    stays(&mut world, &host, SHORT * 2).await;
    assert_eq!(world.get(&host.name).await.unwrap().lease(), 0);

    // Putting it right does not give it a TTL either.
    world.put(&host.name, &crate::support::value_with_mac(1, 99)).await;
    until("the value is ours again", async || {
        world.get(&host.name).await.unwrap().value() == host.value()
    })
    .await;
    assert_eq!(world.get(&host.name).await.unwrap().lease(), 0);
    let again = world.acquire(&request(1)).await;
    assert_eq!((again.lease, again.etcd_lease), (host.acquired.lease, None));
}

#[tokio::test]
async fn an_outage_longer_than_the_ttl_costs_neither_lease_nor_agent() {
    let mut world = World::new(CONFIG).await;
    let mut host = Host::new(&world, SHORT).await;
    world.etcd.kill();
    tokio::time::sleep(SHORT * 2).await;
    world.etcd.restart().await;
    world.client = world.etcd.client().await;
    stays(&mut world, &host, SHORT * 3).await;
    assert!(host.events.try_recv().is_err(), "nothing was lost");
}

#[tokio::test]
async fn a_host_that_is_cut_off_until_its_lease_expires_takes_the_same_subnet_again() {
    let mut world = World::new(CONFIG).await;
    let wire = Wire::to(&world.etcd).await;
    let mut host = Host::behind(&world, wire.store(), SHORT).await;
    wire.cut();
    until("the lease expires", async || world.get(&host.name).await.is_none()).await;
    wire.mend();
    assert_eq!(host.event().await, LeaseEvent::Retaken(host.acquired.lease));
    stays(&mut world, &host, SHORT * 2).await;
}

#[tokio::test]
async fn a_host_that_wakes_up_after_its_subnet_went_to_another_does_not_steal_it() {
    let mut world = World::new(CONFIG).await;
    let wire = Wire::to(&world.etcd).await;
    let mut host = Host::behind(&world, wire.store(), SHORT).await;
    wire.cut();
    until("the lease expires", async || world.get(&host.name).await.is_none()).await;
    let other = Request { previous: Some(host.acquired.lease.subnet), ..request(9) };
    let theirs = world.acquire(&other).await.lease;
    assert_eq!(theirs.subnet, host.acquired.lease.subnet);
    wire.mend();
    assert!(matches!(
        host.event().await,
        LeaseEvent::TakenByOther { owner: Some(owner), .. } if owner == theirs.public_ip
    ));
    let kv = world.get(&host.name).await.unwrap();
    assert_eq!(kv.value(), theirs.value().encode());
}
