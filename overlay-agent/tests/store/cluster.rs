//! Several members, of which one fails.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use overlay_lease::{
    member::{acquire::acquire, follow::Follower, keeper::Keeper, network::wait_for_config},
    store::etcd::EtcdStore,
};
use tokio::sync::mpsc;

use crate::{
    etcd::{TestEtcd, metrics},
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

/// Questions for keys, and bytes that members of etcd have sent to clients.
async fn served(members: &[TestEtcd]) -> [f64; 2] {
    let mut served = [0.0; 2];
    for member in members {
        let metrics = metrics(member).await;
        let of = |name: &str| {
            let lines = metrics.lines().filter(|line| line.starts_with(name));
            lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum::<f64>()
        };
        served[0] += of("grpc_server_started_total{grpc_method=\"Range\"");
        served[1] += of("etcd_network_client_grpc_sent_bytes_total");
    }
    served
}

/// With thousands who follow, listings would be gigabytes, in the moment in which etcd has least to give.
#[tokio::test(flavor = "multi_thread")]
async fn an_election_under_two_thousand_followers_costs_no_listing() {
    const FOLLOWERS: u32 = 2000;
    const LEASES: u8 = 200;
    const AT_A_TIME: u32 = 100;
    // A connection each, here and in etcd.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let mut cluster = TestEtcd::start_cluster(3).await;
    let mut client = cluster[0].client().await;
    client.put(CONFIG_KEY, CONFIG, None).await.unwrap();
    for host in 2..=LEASES {
        client.put(key(&format!("10.5.{host}.0-24")), value(host), None).await.unwrap();
    }
    let mut config = cluster[0].config();
    config.endpoints = cluster.iter().map(TestEtcd::endpoint).collect();
    let store = EtcdStore::new(&config).unwrap();
    let stored = within(wait_for_config(&store)).await.unwrap();
    let listing = within(acquire(&store, &stored, &request(1))).await.unwrap().listing;
    let follow = || {
        let store = EtcdStore::new(&config).unwrap();
        Followed::new(Follower::new(store).starting_from(listing.clone()))
    };
    let told = async |all: &mut Vec<Followed>, host: u8| {
        let update = LeaseUpdate::Put(lease(&format!("10.5.{host}.0/24"), host));
        for followed in all {
            followed.until(&update).await;
        }
    };
    client.put(key("10.5.201.0-24"), value(201), None).await.unwrap();
    let mut all = Vec::new();
    // They are one process here, and busy with their own beginning.
    for _ in 0..FOLLOWERS / AT_A_TIME {
        let mut some = (0..AT_A_TIME).map(|_| follow()).collect();
        told(&mut some, 201).await;
        all.extend(some);
    }

    let leader = client.status().await.unwrap().leader();
    let mut leading = 0;
    for (place, member) in cluster.iter().enumerate() {
        let status = member.client().await.status().await.unwrap();
        if status.header().unwrap().member_id() == leader {
            leading = place;
        }
    }
    let dead = cluster.remove(leading);
    let before = served(&cluster).await;
    drop(dead);
    let mut client = cluster[0].client().await;
    while client.put(key("10.5.202.0-24"), value(202), None).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    told(&mut all, 202).await;
    let after = served(&cluster).await;

    let each: [f64; 2] = std::array::from_fn(|at| (after[at] - before[at]) / f64::from(FOLLOWERS));
    println!("each of {FOLLOWERS} followers: questions for keys, and bytes of answers: {each:?}");
    // Whether an endpoint answers, and whether its past is ours; the values of all leases are 30 kB.
    assert!(each[0] <= 4.0 && each[1] < 4096.0, "{each:?}");
}
