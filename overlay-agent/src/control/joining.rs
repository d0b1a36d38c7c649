//! How this host comes by its lease: at the start by what it is known by, and anew when it has lost it or got
//! another address.

use std::time::{Duration, Instant};

use anyhow::Result;
use ipnetwork::Ipv4Network;
use overlay_common::Vni;
use overlay_lease::{
    config::NetworkConfig,
    member::{
        incident::Incident,
        keeper::LeaseEvent,
        network::{ConfigUpdate, StoredConfig},
        registry::{Following, Joined},
        request::Request,
    },
    outage::Outage,
    wire::Lease,
};
use tokio_util::task::AbortOnDropHandle;

use super::{ControlLoop, dataplane_spec};
use crate::{
    control::run_config::RunConfig,
    kernel::{
        netlink::{self, KernelState, LinkKind},
        uplink::Uplink,
    },
    state_file::HostState,
    subnet_env::read_subnet,
};

/// For so long after it has happened, `status` tells what was put right.
const RECENT: Duration = Duration::from_mins(1);

/// So many things that have happened are told at most.
const TOLD: usize = 5;

/// Waits for a lease, while the agent goes on with what it has.
pub(super) struct PendingMove {
    task: AbortOnDropHandle<(StoredConfig, Joined)>,
    pub(super) purpose: Purpose,
}

/// What a lease is taken anew for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Our subnet has become another host's.
    AnotherSubnet,
    /// The lease of this subnet is to say our new address.
    AnotherAddress(Ipv4Network),
    /// Etcd was away at the start.
    Confirmation,
}

/// What has happened lately, and when.
#[derive(Debug, Default)]
pub(super) struct Recent(Vec<(Instant, Incident)>);

impl Recent {
    /// Takes note of something, and says whether it is news.
    fn note(&mut self, incident: Incident, now: Instant) -> bool {
        self.0.retain(|(then, _)| now.saturating_duration_since(*then) < RECENT);
        if let Some((then, _)) = self.0.iter_mut().find(|(_, known)| *known == incident) {
            *then = now;
            return false;
        }
        if self.0.len() >= TOLD {
            self.0.remove(0);
        }
        self.0.push((now, incident));
        true
    }

    /// As sentences.
    pub(super) fn sentences(&self, now: Instant) -> impl Iterator<Item = String> {
        let is_recent = move |then: &Instant| now.saturating_duration_since(*then) < RECENT;
        self.0.iter().filter(move |(then, _)| is_recent(then)).map(|(_, what)| what.to_string())
    }
}

impl ControlLoop {
    pub(super) fn lease_event(&mut self, event: LeaseEvent) {
        if self.moving.is_some() {
            // Whoever keeps the lease that we give up sees it change under our own hands.
            return;
        }
        match event {
            LeaseEvent::Retaken(lease) => {
                self.note_incidents([Incident::Retaken { subnet: lease.subnet }]);
            }
            LeaseEvent::Incident(incident) => self.note_incidents([incident]),
            LeaseEvent::TakenByOther { lease, key, owner } => {
                let owner =
                    owner.map_or_else(|| "another host".to_owned(), |owner| owner.to_string());
                tracing::error!(subnet = %lease.subnet, key, owner, "our subnet was taken");
                // The one in the subnet file is the one that we lose.
                self.join_again(self.network.clone(), None);
            }
            LeaseEvent::Reassigned { old, new } => {
                tracing::warn!(%old, %new, "the peers file has another lease for this host");
                self.join_again(self.network.clone(), None);
            }
        }
    }

    /// Starts to take a lease for this host as it is now, if it may be that of subnet `previous`. Until there
    /// is one, which may take as long as etcd is away, everything else goes on.
    pub(super) fn join_again(&mut self, network: StoredConfig, previous: Option<Ipv4Network>) {
        self.following.stop_keeping();
        let request = Request {
            public_ip: self.uplink.public_ip,
            previous,
            vtep_mac: Some(self.lease.vtep_mac),
            last_address: Some(self.lease.public_ip),
            is_running: previous == Some(self.lease.subnet),
            ttl: self.config.lease_ttl,
            occupied: self.occupied.clone(),
        };
        let doing = match previous {
            Some(_) => "cannot tell the new address",
            None => "cannot take another subnet",
        };
        let purpose = previous.map_or(Purpose::AnotherSubnet, Purpose::AnotherAddress);
        self.join_with(network, request, doing, purpose);
    }

    /// Makes sure of a lease that is known from before: etcd was away at the start.
    pub(super) fn confirm(&mut self, request: Request) {
        let doing = "cannot confirm this host's lease";
        self.join_with(self.network.clone(), request, doing, Purpose::Confirmation);
    }

    fn join_with(
        &mut self,
        mut network: StoredConfig,
        request: Request,
        doing: &'static str,
        purpose: Purpose,
    ) {
        let store = self.store.clone();
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut outage = Outage::on(doing, store.troubles());
            loop {
                match Box::pin(store.join(&mut network, &request)).await {
                    Ok(joined) => {
                        outage.over();
                        return (network, joined);
                    }
                    Err(error) => {
                        let error = format!("{:#}", anyhow::Error::from(error));
                        tokio::time::sleep(outage.failed(&error)).await;
                    }
                }
            }
        }));
        self.moving = Some(PendingMove { task, purpose });
    }

    /// Ends a move. A network config that has changed while etcd was away is followed as one that changes now.
    pub(super) async fn arrive(&mut self, network: StoredConfig, joined: Joined) {
        let purpose = self.moving.take().map(|moving| moving.purpose);
        if purpose != Some(Purpose::Confirmation) {
            return self.move_to(network, joined).await;
        }
        self.move_to(self.network.clone(), joined).await;
        self.config_update(ConfigUpdate::Changed(network)).await;
    }

    async fn move_to(&mut self, network: StoredConfig, joined: Joined) {
        let old = std::mem::replace(&mut self.lease, joined.lease);
        self.network = network;
        self.config_problems.clear();
        self.following = joined.following;
        let scrutiny = self.dataplane.spec().scrutiny;
        let (config, network) = (&self.config, &self.network.config);
        let spec = dataplane_spec(config, network, &self.uplink, self.lease, scrutiny);
        let outcome = self.dataplane.move_to(spec).await;
        self.note("putting the new lease to use", outcome);
        self.firewall = self.keep_firewall();
        self.surroundings_are_stale = true;
        self.remember();
        self.note_incidents(joined.incidents);
        let outcome = self.write_subnet_env();
        self.note("writing the subnet file", outcome);
        if old.subnet != self.lease.subnet {
            tracing::error!(
                old = %old.subnet,
                new = %self.lease.subnet,
                subnet_file = %self.config.subnet_file.display(),
                "this host has moved to another subnet: restart Docker with the options from the subnet file"
            );
        }
    }

    /// Keeps for the next start what this host is known by. A peers file says itself who has what.
    pub(super) fn remember(&mut self) {
        if self.config.peers.is_some() {
            return;
        }
        let state = HostState::new(&self.config.etcd.prefix, &self.lease, self.uplink.mac);
        let outcome = state.write(&self.config.state_file);
        self.note("writing the state file", outcome);
    }

    /// Tells, once a minute at most for each, what has happened to our lease.
    pub(super) fn note_incidents(&mut self, incidents: impl IntoIterator<Item = Incident>) {
        for incident in incidents {
            let sentence = incident.to_string();
            if self.incidents.note(incident, Instant::now()) {
                tracing::warn!("{sentence}");
            }
        }
    }
}

/// This host as it knew itself last, if that is known.
pub(super) fn remembered(
    network: &NetworkConfig,
    request: &Request,
    leases: Vec<Lease>,
) -> Option<Joined> {
    let subnet = request.previous.filter(|subnet| network.admits(*subnet))?;
    let (public_ip, vtep_mac) = (request.public_ip, request.vtep_mac?);
    let lease = Lease { subnet, public_ip, vtep_mac, vni: Some(network.vni) };
    let others = leases.into_iter().filter(move |other| other.subnet != subnet);
    Some(Joined { lease, incidents: Vec::new(), following: Following::remembered(others) })
}

/// The end of a move; never, if there is none.
pub(super) async fn moved(moving: &mut Option<PendingMove>) -> Result<(StoredConfig, Joined)> {
    match moving {
        Some(moving) => Ok((&mut moving.task).await?),
        None => std::future::pending().await,
    }
}

/// What this host brings along when it starts and asks for a subnet.
///
/// The tunnel device is the best evidence of who we are, since nobody copies what is in the kernel; then the state
/// file, which is there after a reboot, too.
pub(super) fn request(
    config: &RunConfig,
    vni: Vni,
    uplink: &Uplink,
    observed: &KernelState,
) -> Request {
    let subnet = read_subnet(&config.subnet_file).unwrap_or_else(|error| {
        tracing::warn!("{error:#}");
        None
    });
    let state = state(config, observed);
    let state = state.as_ref();
    Request {
        public_ip: uplink.public_ip,
        previous: subnet.or_else(|| state.map(|state| state.subnet)),
        vtep_mac: observed_mac(config, vni, observed).or_else(|| state.map(|state| state.vtep_mac)),
        last_address: state.map(|state| state.public_ip),
        is_running: false,
        ttl: config.lease_ttl,
        occupied: occupied(observed, &netlink::tunnel_name(vni)),
    }
}

/// The networks that this host is in otherwise than by the tunnel device.
pub(super) fn occupied(observed: &KernelState, tunnel: &str) -> Vec<Ipv4Network> {
    let is_ours = |index| observed.links.get(index).is_some_and(|link| link.name == tunnel);
    let others = observed.addresses.iter().filter(|(index, ..)| !is_ours(index));
    others.filter_map(|(_, address, length)| Ipv4Network::new(*address, *length).ok()).collect()
}

fn observed_mac(
    config: &RunConfig,
    vni: Vni,
    observed: &KernelState,
) -> Option<overlay_common::MacAddr> {
    let device = |name: String| {
        observed
            .links
            .values()
            .find(|link| link.name == name && matches!(link.kind, LinkKind::Vxlan { .. }))
            .map(|link| link.mac)
            .filter(|mac| mac.is_unicast())
    };
    let flannels = || config.replace_flannel.then(|| device(netlink::flannel_name(vni))).flatten();
    device(netlink::tunnel_name(vni)).or_else(flannels)
}

/// What the state file says, if it is this host's.
fn state(config: &RunConfig, observed: &KernelState) -> Option<HostState> {
    if config.peers.is_some() {
        return None;
    }
    let path = config.state_file.display();
    let state = HostState::read(&config.state_file).unwrap_or_else(|error| {
        tracing::warn!("{error:#}");
        None
    })?;
    let macs = observed.links.values().map(|link| link.mac);
    match state.check(&config.etcd.prefix, macs) {
        Ok(()) => Some(state),
        Err(reason) => {
            tracing::warn!(
                "the state file {path} is not this host's: {reason}; this host is a new one"
            );
            None
        }
    }
}
