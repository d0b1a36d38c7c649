//! What etcd knows about leases beside their values, by which they are judged.

use etcd_client::PutOptions;
use overlay_lease::{
    member::{claim::LeaseClaim, follow::Follower, update::LeaseUpdate as Update},
    store::Store as _,
};

use crate::support::{
    CONFIG, Followed, LeaseUpdate, World, key, lease, request, subnet, value, value_with_mac,
};

async fn put(followed: &mut Followed) -> LeaseClaim {
    match followed.next_update().await {
        Update::Put(claim) => claim,
        other => panic!("not a put: {other:?}"),
    }
}

#[tokio::test]
async fn a_lease_is_as_old_as_its_key_whatever_becomes_of_its_value() {
    let mut world = World::new(CONFIG).await;
    world.put_with_ttl("10.5.2.0-24", &value(2), 600).await;
    let mut followed = Followed::new(Follower::new(world.store.clone()));
    let Update::Snapshot(claims) = followed.next_update().await else { panic!("no snapshot") };
    let first = claims[0];
    assert!(first.kept && first.created == first.written, "{first:?}");

    // A renewal as flannel makes it, with another etcd lease; and another address.
    world.put_with_ttl("10.5.2.0-24", &value(2), 600).await;
    let renewed = put(&mut followed).await;
    assert!(renewed.kept && renewed.created == first.created && renewed.written > first.written);
    world.put("10.5.2.0-24", &value_with_mac(3, 2)).await;
    let reserved = put(&mut followed).await;
    assert!(
        !reserved.kept && reserved.created == first.created && reserved.written > renewed.written
    );

    world.delete("10.5.2.0-24").await;
    assert_eq!(followed.next().await, LeaseUpdate::Removed(subnet("10.5.2.0/24")));
    world.put("10.5.2.0-24", &value(2)).await;
    let again = put(&mut followed).await;
    assert!(again.created > reserved.written, "{again:?}");

    // Ours says the same from the first moment on, by the listing that it was taken with.
    let acquired = world.acquire(&request(7)).await;
    let start = Follower::new(world.store.clone()).starting_from(acquired.listing);
    let mut followed = Followed::new(start);
    let Update::Snapshot(claims) = followed.next_update().await else { panic!("no snapshot") };
    let ours = claims.iter().find(|claim| claim.lease == acquired.lease).unwrap();
    let stored = world.get(&ours.key.to_string()).await.unwrap();
    let of_ours = (ours.created.number(), ours.written.number());
    assert_eq!(of_ours, (stored.create_revision(), stored.mod_revision()));
    assert!(ours.kept);
}

#[tokio::test]
async fn values_of_megabytes_are_listed_in_pages_that_fit_and_are_no_leases() {
    let mut world = World::new(CONFIG).await;
    world.put("10.5.250.0-24", &value(250)).await;
    // Together, more than the largest message that we accept.
    let large = "x".repeat(1_400_000);
    for third in 100..150 {
        let name = key(&format!("10.5.{third}.0-24"));
        world.client.put(name, large.as_str(), None).await.unwrap();
    }
    world.put("10.5.1.0-24", &value(1)).await;
    let listing = world.store.list().await.unwrap();
    assert_eq!(listing.entries.len(), 52);
    let kept: usize = listing.entries.iter().map(|entry| entry.value.len()).sum();
    assert!(kept < 1_000_000, "{kept} bytes are kept of values that are no leases");
    let acquired = world.acquire(&request(7)).await;
    assert!(!(100..150).contains(&acquired.lease.subnet.network().octets()[2]));
    let mut followed = Followed::new(Follower::new(world.store.clone()));
    assert_eq!(followed.snapshot().await.len(), 3);
    assert_eq!(world.store.troubles().ignored(3).1, 50);
    // As an event, too, and forgotten when it is one no more.
    let options = PutOptions::new();
    world.client.put(key("10.5.151.0-24"), large.as_str(), Some(options)).await.unwrap();
    world.put("10.5.100.0-24", &value(100)).await;
    assert_eq!(followed.next().await, LeaseUpdate::Put(lease("10.5.100.0/24", 100)));
    let (named, all) = world.store.troubles().ignored(1);
    assert_eq!(all, 50);
    let expected =
        format!("{} is ignored: its value is longer than 4096 bytes", key("10.5.101.0-24"));
    assert_eq!(named, [expected]);
}
