//! The overlay on this host: what it should be, and the passes that make the kernel so.

mod leases;
mod routes;
mod view;

use std::{net::Ipv4Addr, time::Instant};

use anyhow::{Context, Result};
use overlay_common::tables::{ABI_VERSION, HostConfig};
use overlay_lease::config::policy::Policy;
use rtnetlink::Handle;

use self::routes::Unrouted;
use crate::{
    claims::Claims,
    containers::{self, Containers, CutOff, Identities},
    datapath::{Attachment, Attachments, Changes, Features, Mechanism, PinPath, Programs, Tables},
    fail,
    firewall::Scrutiny,
    netlink::{self, Blackhole, LeaseRoutes, Link, Observed, Tunnel, TunnelSpec, Underlay, Vrf},
    peers::{Limits, Peers, Scope, Surroundings, Ways},
    places::{self, Newcomers},
    policy::InForce,
    repairs,
    source_check::SourceCheck,
};

/// What the overlay on this host should be.
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
#[derive(Clone, Debug)]
pub struct DataplaneSpec {
    /// The tunnel device.
    pub tunnel: TunnelSpec,
    /// The interface that carries encapsulated packets.
    pub uplink: Attachment,
    /// The host's address from which outer packets are sent.
    pub uplink_address: Ipv4Addr,
    /// Whether it is the uplink's own.
    pub uplink_has_address: bool,
    /// The address that peers send to; the same, unless the host is behind NAT.
    pub public_address: Ipv4Addr,
    /// The containers' bridge; found by its address where it is not named.
    pub bridge: Option<String>,
    /// Whether programs deliver past the host's stack.
    pub fast_path: bool,
    /// What netfilter sees of what programs could carry.
    pub scrutiny: Scrutiny,
    /// Whether peers on the same link get their packets as they are.
    pub direct_routing: bool,
    /// Which source addresses containers may use.
    pub source_check: SourceCheck,
    /// Whether our subnet has a blackhole route behind the bridge's.
    pub blackhole: bool,
    /// What containers may begin with each other.
    pub policy: Policy,
}

/// The overlay on this host, as this agent keeps it.
pub struct Dataplane {
    spec: DataplaneSpec,
    handle: Handle,
    pins: PinPath,
    programs: Programs,
    tables: Tables,
    attachments: Attachments,
    features: Features,
    tunnel: Tunnel,
    underlay: Underlay,
    bridge: Option<Link>,
    containers: Containers,
    newcomers: Newcomers,
    cut_off: CutOff,
    claims: Claims,
    policy: InForce,
    peers: Peers,
    ways: Ways,
    ways_are_stale: bool,
    lease_routes: LeaseRoutes,
    unrouted: Unrouted,
    blackhole: Blackhole,
    synced: bool,
    in_use: bool,
    uplink: Option<SeenUplink>,
    verifications: u32,
    config: HostConfig,
}

/// The uplink when it was last looked at.
#[derive(Clone, Copy)]
struct SeenUplink {
    mtu: u32,
    ethernet: bool,
    has_address: bool,
}

impl Dataplane {
    /// Makes the device and loads the programs.
    ///
    /// What an earlier agent left forwards all the while. Its maps, if they are of our version, stay filled
    /// until [`replace_leases`](Self::replace_leases), and our programs take the place of its own at once;
    /// else both serve until then.
    pub async fn start(mut spec: DataplaneSpec, pins: PinPath, features: Features) -> Result<Self> {
        let mut programs = Programs::load(&pins)?;
        programs.forward_logs()?;
        fail::point("programs");
        let tables = programs.take_tables()?;
        let handle = netlink::connect()?;
        let observed = netlink::observe(&handle).await?;
        let vrf = Vrf::of(&observed, spec.uplink.ifindex);
        spec.tunnel.lower = vrf.map(|_| spec.uplink.ifindex);
        let tunnel = netlink::ensure_tunnel(&handle, &observed, &spec.tunnel).await?;
        let known = Identities {
            endpoints: tables.endpoints.entries()?,
            ports: tables.ports.entries()?,
            ..Identities::default()
        };
        let containers = Containers::new(known, spec.source_check.exempt.clone())?;
        let adopted = tables.settings.get()?;
        let mut dataplane = Self {
            peers: Peers::new(scope(&spec), Limits::default(), Surroundings::default()),
            config: HostConfig {
                peer_lengths: adopted.peer_lengths,
                flags: adopted.flags & HostConfig::LEASES_LISTED,
                ..HostConfig::default()
            },
            spec,
            attachments: Attachments::new(Mechanism::of(&features), handle.clone()),
            features,
            handle,
            pins,
            programs,
            tables,
            tunnel,
            underlay: Underlay::new(vrf),
            bridge: None,
            containers,
            newcomers: Newcomers::default(),
            cut_off: CutOff::default(),
            claims: Claims::default(),
            policy: InForce::adopted(&adopted),
            ways: Ways::default(),
            ways_are_stale: true,
            lease_routes: LeaseRoutes::default(),
            unrouted: Unrouted::All,
            blackhole: Blackhole::default(),
            synced: false,
            in_use: false,
            uplink: None,
            verifications: 0,
        };
        dataplane.reconcile().await?;
        Ok(dataplane)
    }

    /// Makes it something else: another lease, most of all. The maps keep their
    /// peers until [`replace_leases`](Self::replace_leases) brings the list.
    pub async fn move_to(&mut self, spec: DataplaneSpec) -> Result<()> {
        self.peers = self.peers.moved(scope(&spec));
        self.synced = false;
        self.ways_are_stale = true;
        self.spec = spec;
        self.reconcile().await
    }

    /// Routes to peers on the same link, or encapsulates for them too.
    pub async fn set_direct_routing(&mut self, direct_routing: bool) -> Result<()> {
        self.spec.direct_routing = direct_routing;
        self.ways_are_stale = true;
        self.reconcile().await
    }

    /// Puts another policy in force: every packet is judged by the one or by the other.
    pub async fn set_policy(&mut self, policy: Policy) -> Result<()> {
        self.spec.policy = policy;
        self.reconcile().await
    }

    /// Has netfilter see more or less, from the next packet on.
    pub fn set_scrutiny(&mut self, scrutiny: Scrutiny) -> Result<()> {
        self.spec.scrutiny = scrutiny;
        self.write_config()
    }

    /// Changes the overlay's MTU and nothing else: the peers stay.
    pub async fn set_mtu(&mut self, mtu: u32) -> Result<()> {
        self.spec.tunnel.mtu = mtu;
        self.reconcile().await
    }

    /// Looks at the kernel and mends what is not as it should be.
    pub async fn reconcile(&mut self) -> Result<()> {
        let mut observed = netlink::observe(&self.handle).await?;
        self.follow_uplink(&observed);
        if self.follow_vrf(&observed).await? {
            observed = netlink::observe(&self.handle).await?;
        }
        let observed = &observed;
        let tunnel = netlink::ensure_tunnel(&self.handle, observed, &self.spec.tunnel).await?;
        if tunnel != self.tunnel {
            tracing::warn!(device = tunnel.name, "the tunnel device was replaced");
            self.tunnel = tunnel;
            self.ways_are_stale = true;
        }
        self.follow_blackhole().await?;
        self.follow_bridge(observed);
        self.follow_ways().await?;
        // Where it has changed a moment ago, the next pass does it.
        let policy = self.policy.follow(&self.spec.policy, &mut self.tables.policy, Instant::now());
        self.write_config()?;
        fail::point("settings");
        if self.synced || self.programs.adopted() {
            self.put_to_use(observed).await?;
        }
        // After the programs: once an address is known to be somebody's, every port is watched.
        self.converge_containers(observed)?;
        fail::point("endpoints");
        // Last: what cannot be made keeps nothing else from being done.
        policy.context("putting the policy in force")?;
        self.route_leases().await
    }

    /// As [`reconcile`](Self::reconcile), and also what the kernel sends no events about: programs, pins and
    /// map entries that somebody else removed or changed.
    pub async fn verify(&mut self) -> Result<()> {
        self.verifications = self.verifications.wrapping_add(1);
        if self.pins.restore()? {
            tracing::warn!("the pin path was removed by somebody else");
            repairs::made("pin path");
        }
        for (hook, place) in self.attachments.forget_lost(&mut self.programs, &self.pins).await? {
            tracing::warn!(hook, interface = place.interface, "our program was detached");
            repairs::made("program");
        }
        if self.synced {
            self.verify_leases()?;
        }
        self.claims.look(&self.tables.claims.entries()?, Instant::now());
        self.verify_policy()?;
        if self.tables.settings.get()? != self.config {
            tracing::warn!("this host's settings were changed by somebody else");
            self.tables.settings.set(self.config)?;
            repairs::made("settings");
        }
        self.reconcile().await
    }

    /// There may be ten thousand entries, so once in four seconds.
    fn verify_policy(&mut self) -> Result<()> {
        const EVERY: u32 = 16;
        if self.verifications.is_multiple_of(EVERY) && !self.policy.verify(&self.tables.policy)? {
            tracing::warn!("the policy's maps were changed by somebody else");
            repairs::made("policy");
        }
        Ok(())
    }

    /// Attaches the programs and pins the maps: in this order, so that pinned maps are always filled ones.
    async fn put_to_use(&mut self, observed: &Observed) -> Result<()> {
        self.attach(observed).await?;
        let pinned = self.tables.ensure_pinned(&self.pins)?;
        fail::point("pins");
        self.attachments.detach_leftovers(&self.pins, observed).await?;
        fail::point("leftovers");
        if self.in_use && !pinned.is_empty() {
            tracing::warn!(?pinned, "maps were unpinned by somebody else");
            repairs::made("pins");
        }
        self.in_use = true;
        Ok(())
    }

    /// Something in a container may have changed: the next pass looks at them.
    pub const fn containers_changed(&mut self) {
        self.containers.changed();
    }

    /// The routes may have changed: the next pass looks at them.
    pub const fn routes_changed(&mut self) {
        self.ways_are_stale = true;
    }

    async fn follow_blackhole(&mut self) -> Result<()> {
        let TunnelSpec { network, subnet, .. } = self.spec.tunnel;
        let wanted = self.spec.blackhole.then_some(subnet);
        self.blackhole.ensure(&self.handle, network, wanted).await
    }

    pub(super) async fn follow_ways(&mut self) -> Result<()> {
        if !self.ways_are_stale && self.ways.uplink == self.spec.uplink.ifindex {
            return Ok(());
        }
        let main = netlink::main_table(&self.handle).await?;
        let peers = self.peers.addresses();
        let (source, port) = (self.spec.uplink_address, self.spec.tunnel.port);
        let routes = netlink::Routes::observe(&self.handle, &main, source, port, peers).await?;
        let ways = Ways {
            routes,
            uplink: self.spec.uplink.ifindex,
            // What comes by an interface in a VRF is routed by that, and containers are elsewhere.
            direct_routing: self.spec.direct_routing
                && self.underlay.vrf().is_none()
                && !self.has_no_ethernet(),
        };
        if ways != self.ways {
            self.ways = ways;
            if self.synced {
                self.tables.peers.converge(&self.peers.all_peers(&self.ways))?;
            }
        }
        let network = self.spec.tunnel.network;
        self.lease_routes.look(&main, self.tunnel.ifindex, network);
        self.unrouted = Unrouted::All;
        self.ways_are_stale = false;
        Ok(())
    }

    /// An uplink that was removed and made again has another number; one that was renamed, another name; and one
    /// that became a port of a bridge has left its address to that.
    fn follow_uplink(&mut self, observed: &Observed) {
        let wanted = self.spec.uplink_address;
        let is_own = self.spec.uplink_has_address;
        let own = is_own.then_some(wanted);
        let found = places::uplink(observed, &self.spec.uplink, own, self.tunnel.ifindex);
        if let Some(link) = found {
            let now = Attachment { ifindex: link.index, interface: link.name.clone() };
            let was = std::mem::replace(&mut self.spec.uplink, now);
            if was != self.spec.uplink {
                let now = &self.spec.uplink.interface;
                tracing::warn!(was = was.interface, now, %wanted, "the uplink is another");
            }
        }
        self.uplink = found.map(|link| SeenUplink {
            mtu: link.mtu,
            ethernet: link.ethernet,
            has_address: observed
                .addresses
                .iter()
                .any(|(index, address, _)| *address == wanted && (!is_own || *index == link.index)),
        });
    }

    /// Returns whether the tunnel device is gone: it listens where it came up.
    async fn follow_vrf(&mut self, observed: &Observed) -> Result<bool> {
        let uplink = self.spec.uplink.ifindex;
        let vrf = Vrf::of(observed, uplink);
        self.spec.tunnel.lower = vrf.map(|_| uplink);
        let (source, port) = (self.spec.uplink_address, self.spec.tunnel.port);
        let listens_elsewhere = self.underlay.was_another(&self.handle, vrf, port).await?;
        if listens_elsewhere && observed.links.contains_key(&self.tunnel.ifindex) {
            let device = self.handle.link().del(self.tunnel.ifindex).execute();
            device.await.context("removing the tunnel device, which listens in another VRF")?;
        }
        // After that: it is by the rule that an agent knows where the device listens.
        self.underlay.follow(&self.handle, vrf, source, port).await?;
        Ok(listens_elsewhere)
    }

    fn follow_bridge(&mut self, observed: &Observed) {
        let subnet = self.spec.tunnel.subnet;
        let bridge = containers::bridge(observed, subnet, self.spec.bridge.as_deref()).cloned();
        let name = |bridge: &Option<Link>| bridge.as_ref().map(|link| link.name.clone());
        if name(&bridge) != name(&self.bridge) {
            if let Some(link) = &bridge {
                tracing::info!(bridge = link.name, %subnet, "containers are behind");
            } else if self.bridge.is_some() {
                tracing::warn!(%subnet, "the containers' bridge is gone");
            }
        }
        self.bridge = bridge;
    }

    fn write_config(&mut self) -> Result<()> {
        let peer_lengths = self.peers.lengths();
        let spec = &self.spec;
        let bridge = self.bridge.as_ref();
        let config = HostConfig {
            abi_version: ABI_VERSION,
            flags: spec.source_check.flags()
                | if spec.fast_path { HostConfig::FAST_PATH } else { 0 }
                | spec.scrutiny.flags()
                // As with the peers' lengths below.
                | match (self.synced, self.peers.are_all_seated()) {
                    (true, true) => HostConfig::LEASES_LISTED,
                    (true, false) => 0,
                    (false, _) => self.config.flags & HostConfig::LEASES_LISTED,
                }
                | if self.policy.exists() { HostConfig::POLICY } else { 0 }
                | if spec.tunnel.gbp { HostConfig::GROUP_POLICY } else { 0 }
                | if self.has_no_ethernet() { HostConfig::NO_ETHERNET } else { 0 },
            vni: spec.tunnel.vni.get(),
            uplink_ifindex: spec.uplink.ifindex,
            bridge_ifindex: bridge.map_or(0, |link| link.index),
            tunnel_ifindex: self.tunnel.ifindex,
            network: spec.tunnel.network.network().octets(),
            subnet: spec.tunnel.subnet.network().octets(),
            uplink_address: spec.uplink_address.octets(),
            network_length: spec.tunnel.network.prefix(),
            subnet_length: spec.tunnel.subnet.prefix(),
            port: spec.tunnel.port,
            mtu: u16::try_from(spec.tunnel.mtu).unwrap_or(u16::MAX),
            vtep_mac: spec.tunnel.mac.0,
            bridge_mac: bridge.map_or([0; 6], |link| link.mac.0),
            bridge_mtu: bridge.map_or(u32::MAX, |link| link.mtu),
            flow_share: self.tables.flow_share,
            // Until the leases are listed, an earlier agent's entries stay in use.
            policy: self.policy.number(),
            peer_lengths: if self.synced { peer_lengths } else { self.config.peer_lengths },
        };
        if config != self.config {
            self.tables.settings.set(config)?;
            self.config = config;
        }
        Ok(())
    }

    /// Everywhere first, and only then nowhere else: what changes its role is never without a program.
    async fn attach(&mut self, observed: &Observed) -> Result<()> {
        let uplink = self.uplink_is_there().then_some(&self.spec.uplink);
        let bridge = self.bridge.as_ref();
        let places = places::places(observed, uplink, &self.tunnel, bridge);
        self.newcomers.look(observed, Instant::now());
        for (key, home) in self.newcomers.homes() {
            self.tables.homes.insert(&key, &home)?;
        }
        for (hook, places) in &places {
            for place in places {
                self.attachments.attach(&mut self.programs, &self.pins, *hook, place).await?;
            }
            fail::point(hook.name());
        }
        for (hook, places) in &places {
            for ifindex in self.attachments.of(*hook) {
                if !places.iter().any(|place| place.ifindex == ifindex) {
                    self.attachments.detach(&self.pins, *hook, ifindex).await?;
                }
            }
        }
        Ok(())
    }

    fn converge_containers(&mut self, observed: &Observed) -> Result<()> {
        self.containers.look(observed);
        self.cut_off.look(observed, self.bridge.as_ref(), Instant::now());
        let before = self.containers.identities().clone();
        let subnet = self.spec.tunnel.subnet;
        let now = self.containers.identify(observed, self.bridge.as_ref(), subnet);
        // Whose a MAC is before whose an address is: an address without its MAC is dropped.
        let ports = self.tables.ports.converge(&now.ports)?;
        let endpoints = self.tables.endpoints.converge(&now.endpoints)?;
        let homes = now.homes.iter().map(|(key, home)| (*key, *home));
        let homes = self.tables.homes.converge(&homes.chain(self.newcomers.homes()).collect())?;
        if *now != before {
            return Ok(());
        }
        for (map, changes) in [("ports", ports), ("endpoints", endpoints), ("homes", homes)] {
            if changes != Changes::default() {
                tracing::warn!(map, ?changes, "entries were changed by somebody else");
                repairs::made(map);
            }
        }
        Ok(())
    }

    /// Forgets the containers behind interfaces that are gone: somebody else may have their addresses
    /// in the next moment.
    pub fn forget_ports(&mut self, gone: &[u32]) -> Result<()> {
        if gone.is_empty() {
            return Ok(());
        }
        for (address, endpoint) in self.tables.endpoints.entries()? {
            if !endpoint.is_host() && gone.contains(&endpoint.ifindex) {
                self.tables.endpoints.remove(&address)?;
            }
        }
        for (mac, port) in self.tables.ports.entries()? {
            if gone.contains(&port.ifindex) {
                self.tables.ports.remove(&mac)?;
            }
        }
        self.containers.forget(gone);
        Ok(())
    }
}

fn scope(spec: &DataplaneSpec) -> Scope {
    Scope {
        network: spec.tunnel.network,
        own: spec.tunnel.subnet,
        own_address: spec.public_address,
        own_mac: spec.tunnel.mac,
    }
}
