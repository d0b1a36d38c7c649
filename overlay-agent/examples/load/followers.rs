//! Many agents' control loops in one process, with the datapath off.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use etcd_client::Client;
use overlay_lease::{
    member::{
        acquire::acquire, follow::Follower, network::wait_for_config, request::Request,
        update::LeaseUpdate,
    },
    wire::key::KeyPrefix,
};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{Row, etcd, row, spread};

/// Over so many connections do hosts take their subnets; a process has only so many descriptors.
const CONNECTIONS: u32 = 100;

/// Follows with many agents at once, then changes a lease and waits for all of them to see it.
pub(crate) async fn follow(endpoint: &str, agents: usize, leases: u32) -> Result<Vec<Row>> {
    let before = etcd::requests(endpoint).await?;
    let start = Instant::now();
    let mut starting = JoinSet::new();
    for _ in 0..agents {
        let store = etcd::store(endpoint, etcd::prefix())?;
        starting.spawn(async move {
            let (sender, mut updates) = mpsc::channel(1024);
            tokio::spawn(Follower::new(store).run(sender));
            let count = match updates.recv().await {
                Some(LeaseUpdate::Snapshot(leases)) => leases.len(),
                _ => 0,
            };
            (updates, count, start.elapsed())
        });
    }
    let (mut all, mut times) = (Vec::new(), Vec::new());
    while let Some(started) = starting.join_next().await {
        let (updates, count, time) = started?;
        ensure!(count == usize::try_from(leases)?, "an agent knows {count} leases of {leases}");
        all.push(updates);
        times.push(time);
    }
    let mut client = Client::connect([endpoint], None).await?;
    let own = std::net::Ipv4Addr::LOCALHOST;
    let changed = etcd::lease(leases - 1, 2, own)?;
    etcd::put(&mut client, &changed).await?;
    let answered = Instant::now();
    let mut seen = JoinSet::new();
    for mut updates in all {
        seen.spawn(async move {
            while let Some(update) = updates.recv().await {
                if matches!(update, LeaseUpdate::Put(claim) if claim.lease == changed) {
                    return Some(answered.elapsed());
                }
            }
            None
        });
    }
    let seen: Option<Vec<Duration>> = seen.join_all().await.into_iter().collect();
    let seen = seen.context("a follower has ended")?;
    let after = etcd::requests(endpoint).await?;
    Ok(vec![
        row(format!("{agents} agents at once: start to all leases known"), spread(times), ""),
        row(
            format!("{agents} agents at once: requests"),
            etcd::difference(&before, &after),
            "one watch each",
        ),
        // They share the processors with each other and with etcd, which no real agent does.
        row(format!("{agents} agents: etcd's answer to a change known"), spread(seen), ""),
    ])
}

/// Takes subnets for many hosts at once, in a network of their own.
pub(crate) async fn acquire_at_once(endpoint: &str, hosts: u32) -> Result<Vec<Row>> {
    let prefix = KeyPrefix::new("/crowd");
    let mut client = Client::connect([endpoint], None).await?;
    client.put(prefix.config_key(), crate::CONFIG, None).await?;
    let stores = (0..hosts.min(CONNECTIONS))
        .map(|_| etcd::store(endpoint, prefix.clone()))
        .collect::<Result<Vec<_>>>()?;
    let config = match stores.first() {
        Some(store) => wait_for_config(store).await?,
        None => return Ok(Vec::new()),
    };
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for (host, store) in (0..hosts).zip(stores.iter().cycle().cloned()) {
        let config = config.clone();
        let request = Request {
            public_ip: (0xac10_0000 | host).into(),
            previous: None,
            vtep_mac: None,
            last_address: None,
            is_running: false,
            ttl: Duration::from_hours(24),
            occupied: Vec::new(),
        };
        tasks.spawn(async move {
            let acquired = acquire(&store, &config, &request).await;
            acquired.map(|acquired| (acquired.lease.subnet, start.elapsed()))
        });
    }
    let (mut subnets, mut times) = (HashSet::new(), Vec::new());
    while let Some(result) = tasks.join_next().await {
        let (subnet, time) = result??;
        ensure!(subnets.insert(subnet), "two hosts got {subnet}");
        times.push(time);
    }
    let what = format!("{} hosts at once: different subnets, none failed", subnets.len());
    Ok(vec![row(what, spread(times), "")])
}
