//! The running agent: one loop that owns the dataplane and hears about leases, the kernel, questions
//! and signals.

mod config;
pub mod etcd_members;
mod host;
pub mod identity;
mod joining;
pub mod last_known;
mod leases;
pub mod presence;
pub mod run;
pub mod run_config;
mod specs;
mod status;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use ipnetwork::Ipv4Network;
use overlay_lease::{
    config::RulesMode,
    member::{
        network::StoredConfig,
        registry::{Following, Registry},
    },
    wire::Lease,
};
use rtnetlink::Handle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use self::{
    joining::{PendingMove, Recent},
    specs::{dataplane_spec, firewall_spec, overlay_mtu, rules_mode, scene},
};
use crate::{
    admin::{Pulse, Requests},
    control::{
        presence::{Asker, Presence},
        run_config::RunConfig,
    },
    dataplane::{Dataplane, peers::Tally},
    exit::OwnExit as _,
    fail,
    kernel::{
        datapath::{Attachment, Features, PinPath},
        firewall::{self, Firewall, Rules, Scene, Scrutiny},
        netlink,
        uplink::{self, Uplink},
    },
    subnet_env::SubnetEnv,
};

/// Kernel events within this time are one change: a container brings a dozen.
const SETTLE: Duration = Duration::from_millis(3);

/// However many events there are, the kernel is not looked at more often.
const PAUSE: Duration = Duration::from_millis(20);

/// Without any event, because some damage makes none. All of it is to be mended within a second.
const VERIFY: Duration = Duration::from_millis(250);

/// The name of an attempt that is made all the time.
const IN_STEP: &str = "bringing the kernel in step";

/// What the agent works with, once the store and the host have told.
pub struct ControlLoop {
    config: RunConfig,
    network: StoredConfig,
    uplink: Uplink,
    store: Registry,
    netlink: Handle,
    dataplane: Dataplane,
    lease: Lease,
    following: Following,
    firewall: firewall::FirewallTask,
    /// A lease is being taken anew: our subnet is another host's, or our address has changed.
    moving: Option<PendingMove>,
    /// What failed the last time it was tried: a sentence for each thing that is done.
    faults: BTreeMap<&'static str, String>,
    /// What the log has been told about leases.
    said: Tally,
    /// The addresses or routes of this host may be others than when they were last looked at.
    surroundings_are_stale: bool,
    /// The uplink has no address to send from, as a sentence.
    lost_address: Option<String>,
    /// What the network config says and this agent does not do.
    config_problems: Vec<String>,
    /// What has happened to our lease and was put right.
    incidents: Recent,
    /// Which peers are there.
    presence: Presence,
    /// Networks that this host is in otherwise.
    occupied: Vec<Ipv4Network>,
    last_known: last_known::Keeper,
}

impl ControlLoop {
    /// Takes a lease and makes the overlay on this host.
    pub async fn start(
        config: RunConfig,
        pins: PinPath,
        features: Features,
        store: Registry,
        mut network: StoredConfig,
        uplink: Uplink,
        known: Option<Vec<Lease>>,
    ) -> Result<Self> {
        let netlink = netlink::connect()?;
        let observed = netlink::observe(&netlink).await?;
        let request = joining::request(&config, network.config.vni, &uplink, &observed);
        let remembered =
            known.and_then(|leases| joining::remembered(&network.config, &request, leases));
        let is_remembered = remembered.is_some();
        let joined = match remembered {
            Some(joined) => joined,
            None => Box::pin(store.join(&mut network, &request)).await.own_exit()?,
        };
        let lease = joined.lease;
        let occupied = request.occupied.clone();
        fail::point("lease");
        let mut scene = scene(&config, &network.config, &uplink, lease);
        let rules = Rules::read(&scene).await;
        let scrutiny = Scrutiny::by(rules_mode(&config, &network.config), &rules.concerns);
        let spec = dataplane_spec(&config, &network.config, &uplink, lease, scrutiny);
        let dataplane = Dataplane::start(spec, pins, features).await?;
        fail::point("dataplane");
        scene.bridges = dataplane.bridge_names();
        let firewall = Firewall::keep(firewall_spec(&config, &network.config, scene), rules);
        let presence = Presence::new(config.peer_timeout);
        let mut agent = Self {
            config,
            network,
            uplink,
            store,
            netlink,
            dataplane,
            lease,
            following: joined.following,
            firewall,
            moving: None,
            faults: BTreeMap::new(),
            said: Tally::default(),
            surroundings_are_stale: true,
            lost_address: None,
            config_problems: Vec::new(),
            incidents: Recent::default(),
            presence,
            occupied,
            last_known: last_known::Keeper::default(),
        };
        if is_remembered {
            agent.confirm(request);
        }
        agent.remember();
        agent.note_incidents(joined.incidents);
        agent.write_subnet_env()?;
        fail::point("subnet file");
        Ok(agent)
    }

    /// Runs until `stop`. `ready` is called once, when every known lease has been programmed.
    ///
    /// No turn of the loop takes long: of the leases it takes as many as there is time for. Questions come
    /// first, then what is rare, then what is due, which limits itself, then the kernel; leases, which can come by the
    /// thousands, have a part of every turn.
    pub async fn run(
        mut self,
        stop: CancellationToken,
        mut requests: Requests,
        pulse: Pulse,
        ready: impl FnOnce(),
    ) -> Result<()> {
        let mut changes = netlink::changes()?;
        let mut verification = interval(VERIFY);
        verification.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut due: Option<Instant> = None;
        let mut earliest = Instant::now();
        let mut ready = Some(ready);
        loop {
            fail::hang().await;
            let mut first = None;
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(answer) = requests.recv() => self.answer(answer).await,
                Some(event) = self.following.events.recv() => self.lease_event(event),
                Some(update) = self.following.configs.recv() => self.config_update(update).await,
                moved = joining::moved(&mut self.moving) => {
                    let (network, joined) = moved.context("the task that takes a subnet has ended")?;
                    self.arrive(network, joined).await;
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.reconcile().await;
                    due = None;
                    earliest = Instant::now() + PAUSE;
                }
                _ = verification.tick() => self.verify().await,
                change = changes.next() => {
                    let change = change.context("the netlink socket for events was closed")?;
                    self.forget_ports(&change.gone);
                    self.surroundings_are_stale |= self.dataplane.routes_changed(&change.routes);
                    if change.containers {
                        self.dataplane.containers_changed();
                    }
                    due.get_or_insert_with(|| (Instant::now() + SETTLE).max(earliest));
                }
                () = self.firewall.changed() => self.follow_rules(),
                Some(update) = self.following.updates.recv() => first = Some(update),
            }
            self.lease_updates(first).await;
            let is_ready = self.dataplane.synced() && ready.is_some();
            if is_ready && let Some(ready) = ready.take() {
                ready();
            }
            if is_ready || pulse.is_due() {
                pulse.beat(self.dataplane.synced(), self.problems().await, self.census());
                self.log_leases();
            }
            if self.firewall.is_dead() {
                bail!("the task that looks after the firewall has ended");
            }
            // Whoever hands us to another subnet has ended with good reason, of which we may not have heard yet.
            let following = &self.following;
            let has_ended = following.updates.is_closed() && following.events.is_empty();
            if self.moving.is_none() && has_ended {
                bail!("the task that follows leases has ended");
            }
        }
    }

    async fn reconcile(&mut self) {
        self.look_around().await;
        let outcome = self.dataplane.reconcile().await;
        self.note(IN_STEP, outcome);
        self.show_surroundings();
    }

    /// The firewall's rules go by the bridges' names, and some are about peers.
    fn show_surroundings(&self) {
        let peers = self.dataplane.peers().leases().take(Scene::PEERS);
        let peers = peers.map(|lease| (lease.public_ip, lease.subnet)).collect();
        self.firewall.see(self.dataplane.bridge_names(), peers);
    }

    /// Netfilter decides from now on, or does not any more.
    fn follow_rules(&mut self) {
        let concerns = self.firewall.rules().concerns;
        let scrutiny = Scrutiny::by(self.rules_mode(), &concerns);
        if scrutiny != self.dataplane.spec().scrutiny {
            let because = concerns.first().map(|rule| rule.text.as_str());
            tracing::warn!(
                ?scrutiny,
                because,
                "what the firewall's rules are asked about has changed"
            );
        }
        let outcome = self.dataplane.set_scrutiny(scrutiny);
        self.note("telling the programs what rules are asked about", outcome);
    }

    fn rules_mode(&self) -> RulesMode {
        rules_mode(&self.config, &self.network.config)
    }

    fn forget_ports(&mut self, gone: &[u32]) {
        if !gone.is_empty() {
            let outcome = self.dataplane.forget_ports(gone);
            self.note("forgetting containers that are gone", outcome);
        }
    }

    async fn verify(&mut self) {
        tell_watchdog();
        self.look_around().await;
        // What has failed is tried again.
        let outcome = self.dataplane.program_leases().await;
        self.note(leases::PROGRAMMING, outcome);
        let outcome = self.dataplane.verify().await;
        self.note(IN_STEP, outcome);
        self.show_surroundings();
        let outcome = self.dataplane.check_routes();
        self.note("routing leased subnets", outcome);
        let outcome = self.ask_peers();
        self.note("asking peers whether they are there", outcome);
        self.follow_uplink_interface();
        self.follow_uplink_mtu().await;
        self.follow_uplink_address().await;
        self.keep_last_known().await;
    }

    /// What etcd has confirmed, for a start at which it is away.
    async fn keep_last_known(&mut self) {
        if self.config.peers.is_some() || self.moving.is_some() || !self.dataplane.synced() {
            return;
        }
        let leases = self.dataplane.peers().leases();
        let outcome = self.last_known.keep(&self.config, &self.network, leases).await;
        if let Some(outcome) = outcome {
            self.note("keeping what is known of the network", outcome);
        }
    }

    fn ask_peers(&mut self) -> Result<()> {
        // Who there is changes seldom, and may take time to say.
        const FOLLOWED: u32 = 8;
        let now = std::time::Instant::now();
        if self.dataplane.verifications().is_multiple_of(FOLLOWED) {
            self.presence.follow(self.dataplane.peers().leases(), now);
        }
        let spec = self.dataplane.spec();
        let asker = Asker {
            uplink_address: spec.uplink_address,
            vtep_address: spec.tunnel.subnet.network(),
            vtep_mac: spec.tunnel.mac,
            vni: spec.tunnel.vni,
            port: spec.tunnel.port,
            vrf: self.dataplane.vrf().map(|vrf| vrf.ifindex),
        };
        self.presence.turn(asker, now)
    }

    /// The dataplane goes by the interface's number and address; whatever goes by its name follows.
    fn follow_uplink_interface(&mut self) {
        let Attachment { ifindex, interface } = &self.dataplane.spec().uplink;
        if *interface == self.uplink.name && *ifindex == self.uplink.ifindex {
            return;
        }
        (self.uplink.ifindex, self.uplink.name) = (*ifindex, interface.clone());
        self.firewall = self.keep_firewall();
    }

    /// Keeps what has become of the latest attempt at something, until the next one.
    fn note(&mut self, doing: &'static str, outcome: Result<()>) {
        let Err(error) = outcome else {
            self.faults.remove(doing);
            return;
        };
        let sentence = format!("The last attempt at {doing} failed: {error:#}.");
        if self.faults.get(doing) != Some(&sentence) {
            tracing::error!("{doing}: {error:#}");
        }
        self.faults.insert(doing, sentence);
    }

    /// A host that has another address (DHCP, most of all) tells its peers, and keeps its subnet.
    async fn follow_uplink_address(&mut self) {
        if self.moving.is_some() || self.dataplane.uplink_has_address() {
            self.lost_address = None;
            return;
        }
        let uplink = match uplink::discover(&self.config.uplink).await {
            Ok(uplink) if uplink.address != self.uplink.address => uplink,
            Ok(_) => return,
            Err(error) => {
                let Uplink { name, address, .. } = &self.uplink;
                let sentence = format!(
                    "{name} has lost its address {address}, and there is no other: {error:#}."
                );
                if self.lost_address.as_ref() != Some(&sentence) {
                    tracing::error!("{sentence}");
                }
                self.lost_address = Some(sentence);
                return;
            }
        };
        tracing::warn!(
            old = %self.uplink.address,
            new = %uplink.address,
            uplink = uplink.name,
            "this host has another address"
        );
        self.uplink = uplink;
        self.store.disconnect();
        self.join_again(self.network.clone(), Some(self.lease.subnet));
    }

    fn keep_firewall(&self) -> firewall::FirewallTask {
        let mut scene = scene(&self.config, &self.network.config, &self.uplink, self.lease);
        scene.bridges = self.dataplane.bridge_names();
        let spec = firewall_spec(&self.config, &self.network.config, scene);
        Firewall::keep(spec, self.firewall.rules())
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
}

/// Tells systemd, where it wants to know, that the loop turns.
fn tell_watchdog() {
    if std::env::var_os("WATCHDOG_USEC").is_none() {
        return;
    }
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]) {
        tracing::debug!(%error, "systemd's watchdog was not told");
    }
}
