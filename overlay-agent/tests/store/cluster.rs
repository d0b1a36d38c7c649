//! Several members, of which one fails.

use std::time::Duration;

use overlay_lease::{
    member::{acquire::acquire, follow::Follower, keeper::Keeper, network::wait_for_config},
    store::etcd::EtcdStore,
};
use tokio::sync::mpsc;

use crate::{
    etcd::TestEtcd,
    support::{CONFIG, CONFIG_KEY, Followed, LeaseUpdate, key, lease, request, value, within},
};

#[tokio::test]
async fn the_loss_of_any_member_of_three_is_survived() {
    let mut cluster = TestEtcd::start_cluster(3).await;
    cluster[0].client().await.put(CONFIG_KEY, CONFIG, None).await.unwrap();
    let mut config = cluster[0].config();
    config.endpoints = cluster.iter().map(TestEtcd::endpoint).collect();
    let store = EtcdStore::new(&config).unwrap();
    let stored = within(wait_for_config(&store)).await.unwrap();
    let acquired = within(acquire(&store, &stored, &request(1))).await.unwrap();
    let keeper = Keeper::new(store.clone(), &acquired, Duration::from_hours(24));
    let mut followed = Followed::new(Follower::new(store.clone()).informing(keeper.handle()));
    followed.snapshot().await;
    let (sender, mut events) = mpsc::channel(1);
    tokio::spawn(keeper.run(sender));

    // One after the other, so that the one that we are connected to is among them.
    let ours = acquired.lease.subnet;
    let others = (50_u8..).filter(|host| lease(&format!("10.5.{host}.0/24"), *host).subnet != ours);
    for (failing, host) in (0..3_u8).zip(others) {
        cluster[usize::from(failing)].kill();
        let survivor = usize::from((failing + 1) % 3);
        let put = async {
            // There may be no leader for a moment.
            let mut client = cluster[survivor].client().await;
            let name = key(&format!("10.5.{host}.0-24"));
            while client.put(name.as_str(), value(host), None).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        within(Box::pin(put)).await;
        let expected = lease(&format!("10.5.{host}.0/24"), host);
        loop {
            match followed.next().await {
                LeaseUpdate::Put(lease) if lease == expected => break,
                LeaseUpdate::Snapshot(leases) if leases.contains(&expected) => break,
                _ => {}
            }
        }
        cluster[usize::from(failing)].restart().await;
    }
    let event = events.try_recv();
    assert!(event.is_err(), "our lease was never in doubt: {event:?}");
}
