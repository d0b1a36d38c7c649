//! `overlay-agent run`: start in order, run, stop.

use anyhow::{Context, Result};
use overlay_lease::{member::registry::Registry, store::etcd::EtcdStore};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    admin::{self, Listener, Meters, Pulse, Waiting},
    authority::{self, host_identity},
    cleanup::{Places, cleanup},
    control::{ControlLoop, etcd_members, identity, last_known, run_config::RunConfig},
    drops::Drops,
    exit::{Exit, OwnExit as _, WithExit as _},
    fail,
    kernel::{
        datapath::{Features, PinPath},
        netlink, uplink,
    },
};

/// Runs the agent until SIGTERM or SIGINT. The datapath goes on without it.
pub async fn run(config: RunConfig) -> Result<()> {
    for note in &config.without_effect {
        tracing::warn!("{note}");
    }
    let stop = stop_on_signals()?;
    let places = config.cleanup_on_exit.then(|| Places {
        pin_path: config.pin_path.clone(),
        subnet_file: config.subnet_file.clone(),
        state_file: config.state_file.clone(),
        socket: config.socket.clone(),
    });
    tokio::select! {
        outcome = start_and_run(config, stop.clone()) => outcome?,
        // Waiting for etcd or for the config ends at once; a running agent ends its loop by itself.
        () = async { stop.cancelled().await; tokio::time::sleep(STOP_WITHIN).await } => {}
    }
    let Some(places) = places else {
        tracing::info!("stopped; the datapath and the lease stay as they are");
        return Ok(());
    };
    for line in cleanup(&places).await? {
        tracing::info!("removed {line}");
    }
    Ok(())
}

/// How long a running agent may take to stop.
const STOP_WITHIN: std::time::Duration = std::time::Duration::from_secs(2);

async fn start_and_run(config: RunConfig, stop: CancellationToken) -> Result<()> {
    let features = check_host()?;
    let pins = PinPath::open(&config.pin_path)?;
    fail::point("pin path");
    let store = Registry::new(&config.registry()).exit(Exit::Usage)?;
    let _beside = match &store {
        Registry::Etcd(etcd) => beside_the_loop(etcd, &config),
        Registry::Fixed(_) => Vec::new(),
    };

    // From here on, whoever asks is told what the agent waits for.
    let (asker, mut requests) = mpsc::channel(16);
    let (pulse, listener) = Pulse::new();
    let meters = meters(&config, &store, &listener);
    let drops = Drops::default();
    let _socket_file =
        admin::serve_socket(&config.socket, asker.clone(), meters.clone(), drops.clone())?;
    if let Some(address) = config.healthz {
        admin::serve_probes(address, asker.clone(), listener, meters.clone()).await?;
    }
    let waiting = Waiting::new("the network config", store.troubles().clone());
    let agent = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        agent = Box::pin(start(config, pins, features, store, &waiting)) => agent?,
        never = waiting.answer(&mut requests) => match never {},
    };
    meters.read_from(agent.readings().context("opening the maps for metrics")?);
    let (ring, watch) = agent.drop_ring().context("opening the maps for drops")?;
    let _reader = drops.read_from(ring, watch, netlink::connect()?)?;
    Box::pin(agent.run(stop, requests, pulse, notify_ready)).await
}

/// What goes on by itself, whatever the loop does: etcd's members are followed, this host's certificate is kept good and, where
/// this host can, others are given theirs.
fn beside_the_loop(store: &EtcdStore, config: &RunConfig) -> Vec<AbortOnDropHandle<()>> {
    let members = etcd_members::follow(store.clone(), config.state_file.clone());
    let mut tasks = vec![AbortOnDropHandle::new(tokio::spawn(members))];
    if config.etcd.identity == Some(host_identity()) {
        tasks.push(AbortOnDropHandle::new(tokio::spawn(identity::keep(store.clone()))));
        let office = authority::serve(config.etcd.clone());
        tasks.push(AbortOnDropHandle::new(tokio::spawn(office)));
    }
    tasks
}

fn meters(config: &RunConfig, store: &Registry, listener: &Listener) -> Meters {
    let identity = config.etcd.identity.as_ref().filter(|_| store.figures().is_some());
    let certificate = identity.map(|identity| identity.cert_file.clone());
    Meters::new(listener.clone(), store.figures().cloned(), certificate)
}

async fn start(
    config: RunConfig,
    pins: PinPath,
    features: Features,
    store: Registry,
    waiting: &Waiting,
) -> Result<ControlLoop> {
    let (network, known) = tokio::select! {
        biased;
        network = store.network() => (network.own_exit()?, None),
        known = last_known::once_etcd_is_away(&store, &config) => {
            (known.network, Some(known.leases))
        }
    };
    fail::point("network config");
    let handle = netlink::connect()?;
    let uplink = uplink::discover(&config.uplink).await.context("cannot choose an uplink")?;
    netlink::check_port(
        &netlink::observe(&handle).await?,
        network.config.vni,
        network.config.port,
        config.replace_flannel,
    )?;
    fail::point("uplink");
    waiting.step("a subnet");
    ControlLoop::start(config, pins, features, store, network, uplink, known).await
}

fn check_host() -> Result<Features> {
    if !nix::unistd::Uid::effective().is_root() {
        return Err(anyhow::anyhow!(
            "overlay-agent run has to be root: it loads BPF programs and makes network devices"
        ))
        .exit(Exit::NotPermitted);
    }
    Features::probe()
}

fn stop_on_signals() -> Result<CancellationToken> {
    let stop = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).context("listening for signals")?;
        let stop = stop.clone();
        tokio::spawn(async move {
            signals.recv().await;
            stop.cancel();
        });
    }
    Ok(stop)
}

fn notify_ready() {
    fail::point("ready");
    tracing::info!("ready: every known lease is programmed");
    // Without systemd there is nobody to tell.
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::debug!(%error, "systemd was not told");
    }
}
