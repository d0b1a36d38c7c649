//! The overlay on this host: what it should be, and the passes that make the kernel so.

pub mod claims;
pub mod containers;
mod failures;
mod leases;
pub mod peers;
pub mod places;
mod reconcile;
mod routes;
pub mod source_check;
mod view;

use std::{collections::HashMap, net::Ipv4Addr};

use anyhow::Result;
use ipnetwork::Ipv4Network;
use overlay_common::tables::{ABI_VERSION, Bridge, BridgeKey, HostConfig};
use overlay_lease::config::policy::Policy;
use rtnetlink::Handle;

use self::{
    claims::Claims,
    containers::{Containers, CutOff, Identities},
    peers::{Limits, Peers, Routing, Scope, Surroundings},
    places::Newcomers,
    routes::Unrouted,
    source_check::SourceCheck,
};
use crate::{
    fail,
    kernel::{
        datapath::{Attachment, Attachments, Features, Maps, Mechanism, PinPath, Programs},
        firewall::Scrutiny,
        netlink::{
            self, Blackhole, ChangedRoutes, LeaseRoutes, Link, Tunnel, TunnelSpec, Underlay, Vrf,
        },
        policy::InForce,
    },
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
    /// The containers' bridges; found by their addresses where none is named.
    pub bridges: Vec<String>,
    /// Whether programs deliver past the host's stack.
    pub fast_path: bool,
    /// What netfilter sees of what programs could carry.
    pub scrutiny: Scrutiny,
    /// Whether peers on the same link get their packets as they are.
    pub direct_routing: bool,
    /// Which source addresses containers may use.
    pub source_check: SourceCheck,
    /// Whether our subnet has a blackhole route behind the bridges'.
    pub blackhole: bool,
    /// What containers may begin with each other.
    pub policy: Policy,
}

/// The overlay on this host, as this agent keeps it.
#[expect(clippy::struct_excessive_bools, reason = "each answers a question of its own")]
pub struct Dataplane {
    spec: DataplaneSpec,
    handle: Handle,
    pins: PinPath,
    programs: Programs,
    tables: Maps,
    attachments: Attachments,
    features: Features,
    tunnel: Tunnel,
    has_tunnel: bool,
    underlay: Underlay,
    bridges: Vec<Link>,
    bridge_entries: HashMap<BridgeKey, Bridge>,
    containers: Containers,
    newcomers: Newcomers,
    cut_off: CutOff,
    claims: Claims,
    policy: InForce,
    peers: Peers,
    ways: Routing,
    ways_are_stale: bool,
    /// Routes have changed that mattered to nobody: they may matter to a peer that comes.
    routes_were_passed_over: bool,
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
        let before = adopted.network();
        let before = Ipv4Network::new(before.address.into(), before.length).ok();
        let before = before.filter(|network| network.prefix() > 0);
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
            has_tunnel: true,
            underlay: Underlay::new(vrf),
            bridges: Vec::new(),
            bridge_entries: HashMap::new(),
            containers,
            newcomers: Newcomers::default(),
            cut_off: CutOff::default(),
            claims: Claims::default(),
            policy: InForce::adopted(&adopted),
            ways: Routing::default(),
            ways_are_stale: true,
            routes_were_passed_over: false,
            lease_routes: LeaseRoutes::new(before),
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

    /// Something in a container may have changed: the next pass looks at them.
    pub const fn containers_changed(&mut self) {
        self.containers.changed();
    }

    /// Routes may have changed: the next pass looks at them if that matters to the overlay. Returns whether it does.
    pub fn routes_changed(&mut self, changed: &ChangedRoutes) -> bool {
        let matters = match changed {
            ChangedRoutes::None => false,
            ChangedRoutes::To(networks) => self.concern(networks),
            ChangedRoutes::All => true,
        };
        self.ways_are_stale |= matters;
        self.routes_were_passed_over |= !matters && *changed != ChangedRoutes::None;
        matters
    }

    fn write_config(&mut self) -> Result<()> {
        let peer_lengths = self.peers.lengths();
        let spec = &self.spec;
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
            tunnel_ifindex: self.tunnel.ifindex,
            network: spec.tunnel.network.network().octets(),
            subnet: spec.tunnel.subnet.network().octets(),
            uplink_address: spec.uplink_address.octets(),
            network_length: spec.tunnel.network.prefix(),
            subnet_length: spec.tunnel.subnet.prefix(),
            port: spec.tunnel.port,
            mtu: u16::try_from(spec.tunnel.mtu).unwrap_or(u16::MAX),
            vtep_mac: spec.tunnel.mac.0,
            reserved: [0; 2],
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
