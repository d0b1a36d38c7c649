//! `reference/flannel.md`, 1.4: following everybody's leases, and 1.5.5: seeing every change.

use overlay_lease::{member::follow::Follower, store::Store as _};

use crate::{
    support::{CONFIG, Followed, LeaseUpdate, World, lease, subnet, until, value, value_with_mac},
    wire::Wire,
};

#[tokio::test]
async fn a_lease_is_seen_when_it_comes_changes_and_goes() {
    let mut world = World::new(CONFIG).await;
    world.put("10.5.1.0-24", &value(1)).await;
    let mut followed = Followed::new(Follower::new(world.store.clone()));
    assert_eq!(followed.snapshot().await, [lease("10.5.1.0/24", 1)]);

    world.put("10.5.2.0-24", &value(2)).await;
    assert_eq!(followed.next().await, LeaseUpdate::Put(lease("10.5.2.0/24", 2)));
    world.put("10.5.2.0-24", &value(3)).await;
    assert_eq!(followed.next().await, LeaseUpdate::Put(lease("10.5.2.0/24", 3)));
    world.delete("10.5.2.0-24").await;
    assert_eq!(followed.next().await, LeaseUpdate::Removed(subnet("10.5.2.0/24")));
}

#[tokio::test]
async fn an_expired_lease_is_removed() {
    let mut world = World::new(CONFIG).await;
    let id = world.put_with_ttl("10.5.1.0-24", &value(1), 1000).await;
    let mut followed = Followed::new(Follower::new(world.store.clone()));
    assert_eq!(followed.snapshot().await.len(), 1);
    world.client.lease_revoke(id).await.unwrap();
    assert_eq!(followed.next().await, LeaseUpdate::Removed(subnet("10.5.1.0/24")));
}

#[tokio::test]
async fn after_a_compacted_gap_everything_is_listed_again() {
    let mut world = World::new(CONFIG).await;
    for host in 1..=3 {
        world.put(&format!("10.5.{host}.0-24"), &value(host)).await;
    }
    let before = world.store.list().await.unwrap();

    // While nobody looks, one host changes its MAC, one goes and one comes; then history is
    // dropped.
    world.put("10.5.1.0-24", &value_with_mac(1, 77)).await;
    world.delete("10.5.2.0-24").await;
    world.put("10.5.4.0-24", &value(4)).await;
    let revision = world.store.list().await.unwrap().revision;
    world.client.compact(revision.number(), None).await.unwrap();

    let mut followed = Followed::new(Follower::new(world.store.clone()).starting_from(before));
    assert_eq!(followed.snapshot().await.len(), 3);
    let mut changed = lease("10.5.1.0/24", 1);
    changed.vtep_mac.0[5] = 77;
    let now = [changed, lease("10.5.3.0/24", 3), lease("10.5.4.0/24", 4)];
    assert_eq!(followed.snapshot().await, now);
    world.delete("10.5.4.0-24").await;
    assert_eq!(followed.next().await, LeaseUpdate::Removed(subnet("10.5.4.0/24")));
}

#[tokio::test]
async fn a_restart_of_etcd_is_survived_and_nothing_is_missed() {
    let mut world = World::new(CONFIG).await;
    world.put("10.5.1.0-24", &value(1)).await;
    let mut followed = Followed::new(Follower::new(world.store.clone()));
    followed.snapshot().await;

    world.etcd.kill();
    world.etcd.restart().await;
    world.put("10.5.2.0-24", &value(2)).await;
    let all = vec![lease("10.5.1.0/24", 1), lease("10.5.2.0/24", 2)];
    loop {
        match followed.next().await {
            LeaseUpdate::Snapshot(leases) if leases == all => break,
            LeaseUpdate::Put(put) if put == all[1] => break,
            LeaseUpdate::Snapshot(_) => {}
            other => panic!("{other:?}"),
        }
    }
    world.put("10.5.3.0-24", &value(3)).await;
    followed.until(&LeaseUpdate::Put(lease("10.5.3.0/24", 3))).await;
}

#[tokio::test]
async fn following_ends_when_nobody_wants_updates() {
    let world = World::new(CONFIG).await;
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
    let task = tokio::spawn(Follower::new(world.store.clone()).run(sender));
    receiver.recv().await.unwrap();
    drop(receiver);
    until("the follower ends", async || task.is_finished()).await;
}

#[tokio::test]
async fn a_host_that_is_cut_off_while_history_is_dropped_sees_everything_afterwards() {
    let mut world = World::new(CONFIG).await;
    for host in 1..=3 {
        world.put(&format!("10.5.{host}.0-24"), &value(host)).await;
    }
    let wire = Wire::to(&world.etcd).await;
    let mut followed = Followed::new(Follower::new(wire.store()));
    followed.snapshot().await;
    // Only a watch that works proves that the cut will end one.
    world.put("10.5.3.0-24", &value(33)).await;
    followed.until(&LeaseUpdate::Put(lease("10.5.3.0/24", 33))).await;

    wire.cut();
    world.put("10.5.1.0-24", &value_with_mac(1, 77)).await;
    world.delete("10.5.2.0-24").await;
    world.put("10.5.4.0-24", &value(4)).await;
    let revision = world.store.list().await.unwrap().revision;
    world.client.compact(revision.number(), None).await.unwrap();
    wire.mend();

    let mut changed = lease("10.5.1.0/24", 1);
    changed.vtep_mac.0[5] = 77;
    let now = [changed, lease("10.5.3.0/24", 33), lease("10.5.4.0/24", 4)];
    assert_eq!(followed.snapshot().await, now);
}
