//! The overlay on this host: what it should be, and the passes that make the kernel so.

mod leases;

use std::{collections::HashMap, net::Ipv4Addr};

use anyhow::{Context, Result};
use overlay_common::{
    Hook,
    tables::{ABI_VERSION, Endpoint, EndpointKey, HostConfig},
};
use rtnetlink::Handle;

use crate::{
    containers,
    datapath::{Attachment, Attachments, Changes, Features, Mechanism, PinPath, Programs, Tables},
    fail,
    netlink::{self, Link, Observed, Tunnel, TunnelSpec},
    peers::{Limits, Peers, Scope, Surroundings, Ways},
    repairs,
};

/// What the overlay on this host should be.
#[derive(Clone, Debug)]
pub struct DataplaneSpec {
    /// The tunnel device.
    pub tunnel: TunnelSpec,
    /// The interface that carries encapsulated packets.
    pub uplink: Attachment,
    /// The uplink's own address.
    pub uplink_address: Ipv4Addr,
    /// The address that peers send to; the same, unless the host is behind NAT.
    pub public_address: Ipv4Addr,
    /// The containers' bridge; found by its address where it is not named.
    pub bridge: Option<String>,
    /// Whether programs deliver past the host's stack.
    pub fast_path: bool,
    /// Whether peers on the same link get their packets as they are.
    pub direct_routing: bool,
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
    bridge: Option<Link>,
    endpoints: HashMap<EndpointKey, Endpoint>,
    peers: Peers,
    ways: Ways,
    ways_are_stale: bool,
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
    has_address: bool,
}

impl Dataplane {
    /// Makes the device and loads the programs.
    ///
    /// What an earlier agent left forwards all the while. Its maps, if they are of our version, stay filled
    /// until [`replace_leases`](Self::replace_leases), and our programs take the place of its own at once;
    /// else both serve until then.
    pub async fn start(spec: DataplaneSpec, pins: PinPath, features: Features) -> Result<Self> {
        let mut programs = Programs::load(&pins)?;
        programs.forward_logs()?;
        fail::point("programs");
        let tables = programs.take_tables()?;
        let handle = netlink::connect()?;
        let observed = netlink::observe(&handle).await?;
        let tunnel = netlink::ensure_tunnel(&handle, &observed, &spec.tunnel).await?;
        let endpoints = tables.endpoints.entries()?;
        let adopted = tables.config.get(&0, 0).context("reading BPF map config")?;
        let mut dataplane = Self {
            peers: Peers::new(scope(&spec), Limits::default(), Surroundings::default()),
            config: HostConfig { peer_lengths: adopted.peer_lengths, ..HostConfig::default() },
            spec,
            attachments: Attachments::new(Mechanism::of(&features), handle.clone()),
            features,
            handle,
            pins,
            programs,
            tables,
            tunnel,
            bridge: None,
            endpoints,
            ways: Ways::default(),
            ways_are_stale: true,
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

    /// Changes the overlay's MTU and nothing else: the peers stay.
    pub async fn set_mtu(&mut self, mtu: u32) -> Result<()> {
        self.spec.tunnel.mtu = mtu;
        self.reconcile().await
    }

    /// Looks at the kernel and mends what is not as it should be.
    pub async fn reconcile(&mut self) -> Result<()> {
        let observed = &netlink::observe(&self.handle).await?;
        let tunnel = netlink::ensure_tunnel(&self.handle, observed, &self.spec.tunnel).await?;
        if tunnel != self.tunnel {
            tracing::warn!(device = tunnel.name, "the tunnel device was replaced");
            self.tunnel = tunnel;
        }
        self.follow_uplink(observed);
        self.follow_bridge(observed);
        self.follow_ways().await?;
        self.write_config()?;
        fail::point("settings");
        self.converge_endpoints(observed)?;
        fail::point("endpoints");
        if self.synced || self.programs.adopted() {
            self.put_to_use(observed).await?;
        }
        Ok(())
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
        if self.tables.config.get(&0, 0).context("reading BPF map config")? != self.config {
            tracing::warn!("this host's settings were changed by somebody else");
            self.tables.config.set(0, self.config, 0).context("writing BPF map config")?;
            repairs::made("settings");
        }
        self.reconcile().await
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

    /// The routes may have changed: the next pass looks at them.
    pub const fn routes_changed(&mut self) {
        self.ways_are_stale = true;
    }

    async fn follow_ways(&mut self) -> Result<()> {
        if !self.ways_are_stale && self.ways.uplink == self.spec.uplink.ifindex {
            return Ok(());
        }
        let routes = netlink::Routes::observe(&self.handle).await?;
        let ways = Ways {
            routes,
            uplink: self.spec.uplink.ifindex,
            direct_routing: self.spec.direct_routing,
        };
        if ways != self.ways {
            self.ways = ways;
            if self.synced {
                self.tables.peers.converge(&self.peers.all_peers(&self.ways))?;
            }
        }
        self.ways_are_stale = false;
        Ok(())
    }

    /// An uplink that was removed and made again has another number.
    fn follow_uplink(&mut self, observed: &Observed) {
        let uplink = &mut self.spec.uplink;
        let found = observed.links.values().find(|link| link.name == uplink.interface);
        match found {
            Some(link) if link.index != uplink.ifindex => {
                tracing::warn!(uplink = uplink.interface, "the uplink was replaced");
                uplink.ifindex = link.index;
            }
            _ => {}
        }
        let wanted = self.spec.uplink_address;
        self.uplink = found.map(|link| SeenUplink {
            mtu: link.mtu,
            has_address: observed
                .addresses
                .iter()
                .any(|(index, address, _)| (*index, *address) == (link.index, wanted)),
        });
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
            flags: if spec.fast_path { HostConfig::FAST_PATH } else { 0 },
            vni: spec.tunnel.vni.get(),
            uplink_ifindex: spec.uplink.ifindex,
            bridge_ifindex: bridge.map_or(0, |link| link.index),
            network: spec.tunnel.network.network().octets(),
            subnet: spec.tunnel.subnet.network().octets(),
            uplink_address: spec.uplink_address.octets(),
            network_length: spec.tunnel.network.prefix(),
            subnet_length: spec.tunnel.subnet.prefix(),
            port: spec.tunnel.port,
            mtu: u16::try_from(spec.tunnel.mtu).unwrap_or(u16::MAX),
            vtep_mac: spec.tunnel.mac.0,
            bridge_mac: bridge.map_or([0; 6], |link| link.mac.0),
            reserved: [0; 2],
            // Until the leases are listed, an earlier agent's entries stay in use.
            peer_lengths: if self.synced { peer_lengths } else { self.config.peer_lengths },
        };
        if config != self.config {
            self.tables.config.set(0, config, 0).context("writing BPF map config")?;
            self.config = config;
        }
        Ok(())
    }

    async fn attach(&mut self, observed: &Observed) -> Result<()> {
        let place = |link: &Link| Attachment { ifindex: link.index, interface: link.name.clone() };
        let tunnel =
            Attachment { ifindex: self.tunnel.ifindex, interface: self.tunnel.name.clone() };
        let ports = self.bridge.as_ref().map_or_else(Vec::new, |bridge| {
            containers::container_ports(observed, bridge).map(place).collect()
        });
        let places = [
            (
                Hook::FromUplink,
                self.uplink_is_there().then(|| self.spec.uplink.clone()).into_iter().collect(),
            ),
            (Hook::ToTunnel, vec![tunnel.clone()]),
            (Hook::FromTunnel, vec![tunnel]),
            (Hook::FromBridge, self.bridge.iter().map(place).collect()),
            (Hook::ToBridge, self.bridge.iter().map(place).collect()),
            (Hook::FromContainer, ports),
        ];
        for (hook, places) in places {
            for ifindex in self.attachments.of(hook) {
                if !places.iter().any(|place| place.ifindex == ifindex) {
                    self.attachments.detach(&self.pins, hook, ifindex).await?;
                }
            }
            for place in places {
                self.attachments.attach(&mut self.programs, &self.pins, hook, &place).await?;
            }
            fail::point(hook.name());
        }
        Ok(())
    }

    fn converge_endpoints(&mut self, observed: &Observed) -> Result<()> {
        let endpoints = match &self.bridge {
            Some(bridge) => {
                let subnet = self.spec.tunnel.subnet;
                containers::endpoints(observed, bridge, subnet, &self.endpoints)
            }
            None => HashMap::new(),
        };
        let changes = self.tables.endpoints.converge(&endpoints)?;
        if endpoints != self.endpoints {
            self.endpoints = endpoints;
        } else if changes != Changes::default() {
            tracing::warn!(?changes, "endpoints were changed by somebody else");
            repairs::made("endpoints");
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
                self.endpoints.remove(&address);
            }
        }
        Ok(())
    }

    /// What it should be.
    pub const fn spec(&self) -> &DataplaneSpec {
        &self.spec
    }

    /// Handles to the maps.
    pub const fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Where the programs are attached.
    pub const fn attachments(&self) -> &Attachments {
        &self.attachments
    }

    /// What the kernel gives us.
    pub const fn features(&self) -> &Features {
        &self.features
    }

    /// The containers' bridge, once it has appeared.
    pub const fn bridge(&self) -> Option<&Link> {
        self.bridge.as_ref()
    }

    /// The tunnel device.
    pub const fn tunnel(&self) -> &Tunnel {
        &self.tunnel
    }

    /// The uplink's MTU when it was last looked at; none where it was not there.
    pub fn uplink_mtu(&self) -> Option<u32> {
        self.uplink.map(|uplink| uplink.mtu)
    }

    /// Whether the uplink, if it exists, has the address that outer packets are sent from.
    pub fn uplink_has_address(&self) -> bool {
        self.uplink.is_none_or(|uplink| uplink.has_address)
    }

    /// Whether the uplink exists.
    pub const fn uplink_is_there(&self) -> bool {
        self.uplink.is_some()
    }

    /// Whether every lease that the store knows has been programmed.
    pub const fn synced(&self) -> bool {
        self.synced
    }

    /// Everybody else's leases.
    pub const fn peers(&self) -> &Peers {
        &self.peers
    }

    /// How many local containers can be delivered to directly.
    pub fn endpoints(&self) -> usize {
        self.endpoints.values().filter(|endpoint| !endpoint.is_host()).count()
    }

    /// How often everything was looked at.
    pub const fn verifications(&self) -> u32 {
        self.verifications
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
