//! The agent's life, from its configuration to its end.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use overlay_common::MacAddr;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
};
use tracing::{info, warn};

use crate::{
    exit::{Exit, WithExit as _},
    lease::{
        acquire::{AcquireError, Acquired, Request, acquire},
        keeper::{Keeper, LeaseEvent},
    },
    network_config::NetworkConfig,
    run_config::RunConfig,
    store::{Etcd, Follower, LeaseUpdate, config::wait_for_config},
    subnet_env::{SubnetEnv, read_subnet},
    uplink::{Uplink, discover},
};

/// How many updates may wait to be applied. A follower that is ahead by more waits.
const UPDATES: usize = 1024;

/// Runs the agent until it is told to stop.
pub async fn run(config: RunConfig) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    for line in &config.without_effect {
        warn!("{line}");
    }
    tokio::select! {
        result = serve(Arc::new(config)) => result,
        _ = terminate.recv() => { info!("stopping: SIGTERM; the lease is kept"); Ok(()) }
        _ = interrupt.recv() => { info!("stopping: SIGINT; the lease is kept"); Ok(()) }
    }
}

async fn serve(config: Arc<RunConfig>) -> anyhow::Result<()> {
    let store = Etcd::new(&config.etcd).exit(Exit::Usage)?;
    let mut vtep_mac = None;
    loop {
        let (network, uplink, acquired) = join(&config, &store, vtep_mac).await?;
        vtep_mac = Some(acquired.lease.vtep_mac);
        let keeper = Keeper::new(store.clone(), &acquired, config.lease_ttl);
        let follower = Follower::new(store.clone())
            .starting_from(acquired.listing)
            .informing(keeper.handle());
        let (update_sender, updates) = mpsc::channel(UPDATES);
        let (event_sender, events) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        tasks.spawn(follower.run(update_sender));
        tasks.spawn(keeper.run(event_sender));

        SubnetEnv {
            network: network.network,
            subnet: acquired.lease.subnet,
            mtu: network.overlay_mtu(uplink.mtu),
            ip_masq: config.ip_masq,
        }
        .write(&config.subnet_file)?;
        serve_lease(updates, events).await?;
        // The subnet is somebody else's. Leave what we followed behind and take another one.
        tasks.shutdown().await;
    }
}

/// Gets everything that one stay in the network needs: its config, the uplink and a lease.
async fn join(
    config: &RunConfig,
    store: &Etcd,
    vtep_mac: Option<MacAddr>,
) -> anyhow::Result<(NetworkConfig, Uplink, Acquired)> {
    loop {
        let stored = wait_for_config(store).await.exit(Exit::Config)?;
        let uplink = discover(&config.uplink)
            .await
            .context("cannot choose an uplink")?;
        info!("uplink: {} with {}", uplink.name, uplink.address);
        let previous = read_subnet(&config.subnet_file).unwrap_or_else(|error| {
            warn!("{error:#}");
            None
        });
        let request = Request {
            public_ip: uplink.public_ip,
            previous,
            vtep_mac,
            ttl: config.lease_ttl,
        };
        match acquire(store, &stored, &request).await {
            Ok(acquired) => {
                info!("lease: {}, {:?}", acquired.lease, acquired.origin);
                return Ok((stored.config, uplink, acquired));
            }
            Err(AcquireError::ConfigChanged) => {
                info!("the network config has changed: starting over");
            }
            Err(error) => return Err(error).context("cannot take a subnet"),
        }
    }
}

/// Follows until our lease is lost to another host.
async fn serve_lease(
    mut updates: mpsc::Receiver<LeaseUpdate>,
    mut events: mpsc::Receiver<LeaseEvent>,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            update = updates.recv() => {
                let update = update.context("the follower of leases has died")?;
                if let LeaseUpdate::Snapshot(_) = update {
                    // Without systemd there is nobody to tell.
                    drop(sd_notify::notify(&[sd_notify::NotifyState::Ready]));
                } else {
                    info!("{update}");
                }
            }
            event = events.recv() => match event.context("the keeper of our lease has died")? {
                LeaseEvent::Retaken(lease) => info!("lease taken again: {lease}"),
                LeaseEvent::TakenByOther { lease, .. } => {
                    let subnet = lease.subnet;
                    warn!("giving {subnet} up: restart Docker with the subnet that comes next");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    return Ok(());
                }
            },
        }
    }
}
