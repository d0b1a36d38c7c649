//! The running agent: one loop that owns the dataplane and hears about leases, the kernel, questions
//! and signals.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;
use overlay_common::MacAddr;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    admin::{
        CounterStatus, LeaseStatus, PeerStatus, ProgramStatus, Requests, Status, UplinkStatus,
    },
    datapath::{Attachment, PinPath, read_counters},
    dataplane::{Dataplane, DataplaneSpec},
    exit::{Exit, WithExit},
    firewall::{Firewall, Masquerade},
    lease::{
        Lease,
        acquire::{AcquireError, Acquired, Request, acquire},
        keeper::{Keeper, LeaseEvent},
    },
    netlink::{self, Tunnel, TunnelSpec},
    network_config::NetworkConfig,
    run_config::RunConfig,
    store::{
        Etcd, Follower, LeaseUpdate,
        config::{StoredConfig, wait_for_config},
    },
    subnet_env::{SubnetEnv, read_subnet},
    uplink::Uplink,
};

/// Kernel events within this time are one change: a container brings a dozen.
const SETTLE: Duration = Duration::from_millis(3);

/// However many events there are, the kernel is not looked at more often.
const PAUSE: Duration = Duration::from_millis(20);

/// Without any event, because some damage makes none.
const VERIFY: Duration = Duration::from_millis(500);

/// What the agent works with, once etcd and the host have told.
pub struct Agent {
    config: RunConfig,
    network: StoredConfig,
    uplink: Uplink,
    store: Etcd,
    dataplane: Dataplane,
    lease: Lease,
    following: Following,
    firewall: Firewall,
    faults: Faults,
}

/// The tasks that keep our lease and follow everybody's. They end with this value.
struct Following {
    updates: mpsc::Receiver<LeaseUpdate>,
    events: mpsc::Receiver<LeaseEvent>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

/// What failed the last time it was tried.
#[derive(Debug, Default)]
struct Faults {
    reconcile: Option<String>,
    firewall: Option<String>,
}

impl Agent {
    /// Takes a lease and makes the overlay on this host.
    pub async fn start(
        config: RunConfig,
        pins: PinPath,
        store: Etcd,
        mut network: StoredConfig,
        uplink: Uplink,
    ) -> Result<Self> {
        let device = netlink::observe(&netlink::connect()?).await?;
        let vtep_mac = device
            .links
            .values()
            .find(|link| link.name == netlink::tunnel_name(network.config.vni))
            .map(|link| link.mac);
        let acquired = take_lease(&config, &store, &mut network, &uplink, vtep_mac).await?;
        let lease = acquired.lease;
        let spec = dataplane_spec(&config, &network.config, &uplink, lease);
        let dataplane = Dataplane::start(spec, pins).await?;
        let following = follow(&config, &store, acquired);
        let firewall = firewall(&config, &network.config, lease, dataplane.tunnel());
        let agent = Self {
            config,
            network,
            uplink,
            store,
            dataplane,
            lease,
            following,
            firewall,
            faults: Faults::default(),
        };
        agent.write_subnet_env()?;
        Ok(agent)
    }

    /// Runs until `stop`. `ready` is called once, when every known lease has been programmed.
    pub async fn run(
        mut self,
        stop: CancellationToken,
        mut requests: Requests,
        ready: impl FnOnce(),
    ) -> Result<()> {
        let mut changes = netlink::changes()?;
        let mut verification = interval(VERIFY);
        verification.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut firewall_check = interval(self.config.iptables_resync);
        firewall_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut due: Option<Instant> = None;
        let mut earliest = Instant::now();
        let mut ready = Some(ready);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(event) = self.following.events.recv() => self.lease_event(event).await?,
                update = self.following.updates.recv() => {
                    self.lease_update(update.context("the task that follows leases has ended")?).await;
                    if self.dataplane.synced() && let Some(ready) = ready.take() {
                        ready();
                    }
                }
                change = changes.next() => {
                    change.context("the netlink socket for events was closed")?;
                    due.get_or_insert_with(|| (Instant::now() + SETTLE).max(earliest));
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.reconcile().await;
                    due = None;
                    earliest = Instant::now() + PAUSE;
                }
                _ = verification.tick() => self.verify().await,
                _ = firewall_check.tick() => self.ensure_firewall().await,
                Some(answer) = requests.recv() => self.answer(answer)?,
            }
        }
    }

    async fn lease_update(&mut self, update: LeaseUpdate) {
        let outcome = match update {
            LeaseUpdate::Snapshot(leases) => match self.dataplane.replace_leases(leases) {
                // Programs over new maps are attached as soon as these are filled.
                Ok(()) => self.dataplane.reconcile().await,
                failed => failed,
            },
            LeaseUpdate::Put(lease) => self.dataplane.put_lease(lease),
            LeaseUpdate::Removed(subnet) => self.dataplane.remove_lease(subnet),
        };
        self.faults.reconcile = report("programming leases", outcome);
    }

    async fn reconcile(&mut self) {
        let outcome = self.dataplane.reconcile().await;
        self.faults.reconcile = report("bringing the kernel in step", outcome);
    }

    async fn verify(&mut self) {
        let outcome = self.dataplane.verify().await;
        self.faults.reconcile = report("bringing the kernel in step", outcome);
    }

    async fn ensure_firewall(&mut self) {
        let outcome = self.firewall.ensure().await;
        self.faults.firewall = report("bringing the firewall in step", outcome);
    }

    async fn lease_event(&mut self, event: LeaseEvent) -> Result<()> {
        match event {
            LeaseEvent::Retaken(lease) => {
                tracing::warn!(subnet = %lease.subnet, "the lease was lost and is ours again");
                Ok(())
            }
            LeaseEvent::TakenByOther { lease, key, owner } => {
                let owner =
                    owner.map_or_else(|| "another host".to_owned(), |owner| owner.to_string());
                tracing::error!(subnet = %lease.subnet, key, owner, "our subnet was taken");
                self.move_to_another_subnet().await
            }
        }
    }

    async fn move_to_another_subnet(&mut self) -> Result<()> {
        let mac = Some(self.lease.vtep_mac);
        let acquired =
            take_lease(&self.config, &self.store, &mut self.network, &self.uplink, mac).await?;
        let old = self.lease.subnet;
        self.lease = acquired.lease;
        let spec = dataplane_spec(&self.config, &self.network.config, &self.uplink, acquired.lease);
        self.dataplane.move_to(spec).await?;
        self.following = follow(&self.config, &self.store, acquired);
        let tunnel = self.dataplane.tunnel();
        self.firewall = firewall(&self.config, &self.network.config, self.lease, tunnel);
        self.write_subnet_env()?;
        tracing::error!(
            %old,
            new = %self.lease.subnet,
            subnet_file = %self.config.subnet_file.display(),
            "this host has moved to another subnet: restart Docker with the options from the subnet file"
        );
        Ok(())
    }

    fn write_subnet_env(&self) -> Result<()> {
        SubnetEnv {
            network: self.network.config.network,
            subnet: self.lease.subnet,
            mtu: overlay_mtu(&self.network.config, &self.uplink),
            ip_masq: self.config.ip_masq,
        }
        .write(&self.config.subnet_file)
    }

    fn answer(&self, answer: oneshot::Sender<Status>) -> Result<()> {
        // Whoever asked may have gone.
        answer.send(self.status()?).ok();
        Ok(())
    }

    fn status(&self) -> Result<Status> {
        let dataplane = &self.dataplane;
        let spec = dataplane.spec();
        let counters = read_counters(&dataplane.tables().counters)?;
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: dataplane.synced(),
            problems: self.problems(),
            network: spec.tunnel.network,
            vni: spec.tunnel.vni.get(),
            port: spec.tunnel.port,
            mtu: spec.tunnel.mtu,
            fast_path: spec.fast_path,
            lease: LeaseStatus {
                subnet: self.lease.subnet,
                public_ip: self.lease.public_ip,
                vtep_mac: self.lease.vtep_mac.to_string(),
            },
            uplink: UplinkStatus {
                name: spec.uplink.interface.clone(),
                ifindex: spec.uplink.ifindex,
            },
            tunnel: dataplane.tunnel().name.clone(),
            bridge: dataplane.bridge().map(|link| link.name.clone()),
            endpoints: dataplane.endpoints(),
            peers: dataplane
                .peers()
                .leases()
                .map(|lease| PeerStatus {
                    subnet: lease.subnet,
                    public_ip: lease.public_ip,
                    vtep_mac: lease.vtep_mac.to_string(),
                })
                .collect(),
            programs: dataplane
                .attachments()
                .iter()
                .map(|(hook, place)| ProgramStatus {
                    hook: hook.to_owned(),
                    interface: place.interface.clone(),
                })
                .collect(),
            counters: counters.into_iter().map(CounterStatus::from).collect(),
        })
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.dataplane.synced() {
            problems.push("The leases in etcd have not been listed yet.".to_owned());
        }
        if self.dataplane.bridge().is_none() {
            problems.push(match &self.config.bridge {
                Some(name) => format!("There is no bridge {name}, which --bridge names."),
                None => format!(
                    "No bridge has an address in {}: start Docker with the options that `overlay-agent docker-opts` makes of {}.",
                    self.lease.subnet,
                    self.config.subnet_file.display()
                ),
            });
        }
        problems.extend(self.faults.reconcile.iter().chain(&self.faults.firewall).cloned());
        problems
    }
}

/// Logs a failure and turns it into a sentence for `status`.
fn report(doing: &str, outcome: Result<()>) -> Option<String> {
    let error = outcome.err()?;
    tracing::error!("{doing}: {error:#}");
    Some(format!("The last attempt at {doing} failed: {error:#}."))
}

/// Acquires a lease. Where the network config changes meanwhile, it is read again.
async fn take_lease(
    config: &RunConfig,
    store: &Etcd,
    network: &mut StoredConfig,
    uplink: &Uplink,
    vtep_mac: Option<MacAddr>,
) -> Result<Acquired> {
    let previous = read_subnet(&config.subnet_file).unwrap_or_else(|error| {
        tracing::warn!("{error:#}");
        None
    });
    let request =
        Request { public_ip: uplink.public_ip, previous, vtep_mac, ttl: config.lease_ttl };
    loop {
        match acquire(store, network, &request).await {
            Ok(acquired) => {
                tracing::info!("lease: {}, {:?}", acquired.lease, acquired.origin);
                return Ok(acquired);
            }
            Err(AcquireError::ConfigChanged) => {
                tracing::info!("the network config has changed: reading it again");
                *network = wait_for_config(store).await.exit(Exit::Config)?;
            }
            Err(error) => return Err(error).context("cannot take a subnet"),
        }
    }
}

fn follow(config: &RunConfig, store: &Etcd, acquired: Acquired) -> Following {
    let keeper = Keeper::new(store.clone(), &acquired, config.lease_ttl);
    let follower =
        Follower::new(store.clone()).starting_from(acquired.listing).informing(keeper.handle());
    let (updates_sender, updates) = mpsc::channel(1024);
    let (events_sender, events) = mpsc::channel(16);
    let tasks = [
        AbortOnDropHandle::new(tokio::spawn(follower.run(updates_sender))),
        AbortOnDropHandle::new(tokio::spawn(keeper.run(events_sender))),
    ];
    Following { updates, events, _tasks: tasks }
}

fn firewall(
    config: &RunConfig,
    network: &NetworkConfig,
    lease: Lease,
    tunnel: &Tunnel,
) -> Firewall {
    let masquerade = config.ip_masq.then_some(Masquerade {
        network: network.network,
        subnet: lease.subnet,
        random: config.masquerade_random,
    });
    Firewall::new(tunnel.name.clone(), config.forward_rules, masquerade)
}

fn overlay_mtu(network: &NetworkConfig, uplink: &Uplink) -> u16 {
    network.overlay_mtu(uplink.mtu)
}

fn dataplane_spec(
    config: &RunConfig,
    network: &NetworkConfig,
    uplink: &Uplink,
    lease: Lease,
) -> DataplaneSpec {
    DataplaneSpec {
        tunnel: TunnelSpec {
            vni: network.vni,
            port: network.port,
            mac: lease.vtep_mac,
            mtu: overlay_mtu(network, uplink).into(),
            subnet: lease.subnet,
            network: network.network,
            replace_flannel: config.replace_flannel,
        },
        uplink: Attachment { ifindex: uplink.ifindex, interface: uplink.name.clone() },
        uplink_address: uplink.address,
        public_address: uplink.public_ip,
        bridge: config.bridge.clone(),
        fast_path: config.fast_path,
    }
}
