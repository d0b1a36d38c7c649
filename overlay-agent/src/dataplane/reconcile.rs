//! The passes that make the kernel what it should be. What fails of one keeps nothing else from being done.

use std::time::Instant;

use anyhow::{Context, Result};

use super::{
    Dataplane, SeenUplink, containers, failures::Failures, peers::Routing, places, routes::Unrouted,
};
use crate::{
    fail,
    kernel::{
        datapath::{Attachment, MapChanges},
        netlink::{self, KernelState, Link, TunnelSpec, Vrf},
        repairs,
    },
};

impl Dataplane {
    /// Looks at the kernel and mends what is not as it should be.
    pub async fn reconcile(&mut self) -> Result<()> {
        let mut failures = Failures::default();
        let mut observed = netlink::observe(&self.handle).await?;
        self.follow_uplink(&observed);
        if failures.keep(self.follow_vrf(&observed).await) == Some(true) {
            observed = netlink::observe(&self.handle).await?;
        }
        let observed = &observed;
        let made = netlink::ensure_tunnel(&self.handle, observed, &self.spec.tunnel).await;
        let made = failures.keep(made);
        self.has_tunnel = made.is_some() || observed.links.contains_key(&self.tunnel.ifindex);
        if let Some(tunnel) = made.filter(|tunnel| *tunnel != self.tunnel) {
            tracing::warn!(device = tunnel.name, "the tunnel device was replaced");
            self.tunnel = tunnel;
            self.ways_are_stale = true;
        }
        failures.keep(self.follow_blackhole().await);
        self.follow_bridges(observed);
        failures.keep(self.follow_ways().await);
        // Where it has changed a moment ago, the next pass does it.
        let policy = self.policy.follow(&self.spec.policy, &mut self.tables.policy, Instant::now());
        failures.keep(policy.context("putting the policy in force"));
        failures.keep(self.write_config());
        fail::point("settings");
        // Before any program is on a port: it asks whose that is.
        failures.keep(self.converge_bridges(observed));
        if self.synced || self.programs.adopted() {
            failures.keep(self.put_to_use(observed).await);
        }
        // After the programs: once an address is known to be somebody's, every port is watched.
        failures.keep(self.converge_containers(observed));
        fail::point("endpoints");
        failures.keep(self.route_leases().await);
        failures.into_result()
    }

    /// As [`reconcile`](Self::reconcile), and also what the kernel sends no events about: programs, pins and
    /// map entries that somebody else removed or changed.
    pub async fn verify(&mut self) -> Result<()> {
        self.verifications = self.verifications.wrapping_add(1);
        let mut failures = Failures::default();
        if failures.keep(self.pins.restore()) == Some(true) {
            tracing::warn!("the pin path was removed by somebody else");
            repairs::made("pin path");
        }
        let lost = self.attachments.forget_lost(&mut self.programs, &self.pins).await;
        for (hook, place) in failures.keep(lost).unwrap_or_default() {
            tracing::warn!(hook, interface = place.interface, "our program was detached");
            repairs::made("program");
        }
        if self.synced {
            failures.keep(self.verify_leases());
        }
        if let Some(claims) = failures.keep(self.tables.claims.entries()) {
            self.claims.look(&claims, Instant::now());
        }
        failures.keep(self.verify_policy());
        failures.keep(self.verify_settings());
        failures.keep(self.reconcile().await);
        failures.into_result()
    }

    fn verify_settings(&mut self) -> Result<()> {
        if self.tables.settings.get()? != self.config {
            tracing::warn!("this host's settings were changed by somebody else");
            self.tables.settings.set(self.config)?;
            repairs::made("settings");
        }
        Ok(())
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
    async fn put_to_use(&mut self, observed: &KernelState) -> Result<()> {
        let attached = self.attach(observed).await;
        let is_attached = attached.is_ok();
        if !is_attached && !self.in_use {
            return attached;
        }
        let pinned = self.tables.ensure_pinned(&self.pins)?;
        fail::point("pins");
        if is_attached {
            self.attachments.detach_leftovers(&self.pins, observed).await?;
        }
        fail::point("leftovers");
        if self.in_use && !pinned.is_empty() {
            tracing::warn!(?pinned, "maps were unpinned by somebody else");
            repairs::made("pins");
        }
        self.in_use = true;
        attached
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
        let ways = Routing {
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
        self.routes_were_passed_over = false;
        Ok(())
    }

    /// An uplink that was removed and made again has another number; one that was renamed, another name; and one
    /// that became a port of a bridge has left its address to that.
    fn follow_uplink(&mut self, observed: &KernelState) {
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
    async fn follow_vrf(&mut self, observed: &KernelState) -> Result<bool> {
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

    fn follow_bridges(&mut self, observed: &KernelState) {
        let subnet = self.spec.tunnel.subnet;
        let bridges = containers::bridges(observed, subnet, &self.spec.bridges);
        let lacks = |bridges: &[Link], name| !bridges.iter().any(|link| link.name == name);
        for link in bridges.iter().filter(|link| lacks(&self.bridges, link.name.as_str())) {
            tracing::info!(bridge = link.name, %subnet, "containers are behind");
        }
        for link in self.bridges.iter().filter(|link| lacks(&bridges, link.name.as_str())) {
            if bridges.is_empty() {
                tracing::warn!(bridge = link.name, %subnet, "the containers' bridge is gone");
            } else {
                tracing::info!(bridge = link.name, %subnet, "a bridge of containers is gone");
            }
        }
        self.bridges = bridges;
    }

    fn converge_bridges(&mut self, observed: &KernelState) -> Result<()> {
        let subnet = self.spec.tunnel.subnet;
        let entries = containers::bridge_entries(observed, &self.bridges, subnet);
        let changes = self.tables.bridges.converge(&entries)?;
        if entries == self.bridge_entries && changes != MapChanges::default() {
            tracing::warn!(map = "bridges", ?changes, "entries were changed by somebody else");
            repairs::made("bridges");
        }
        self.bridge_entries = entries;
        Ok(())
    }

    /// Everywhere first, and only then nowhere else: what changes its role is never without a program.
    async fn attach(&mut self, observed: &KernelState) -> Result<()> {
        let uplink = self.uplink_is_there().then_some(&self.spec.uplink);
        let tunnel = self.has_tunnel.then_some(&self.tunnel);
        let places = places::places(observed, uplink, tunnel, &self.bridges);
        let mut failures = Failures::default();
        self.newcomers.look(observed, Instant::now());
        for (key, home) in self.newcomers.homes() {
            failures.keep(self.tables.homes.insert(&key, &home));
        }
        for (hook, places) in &places {
            for place in places {
                let attached =
                    self.attachments.attach(&mut self.programs, &self.pins, *hook, place).await;
                failures.keep(attached);
            }
            fail::point(hook.name());
        }
        failures.into_result()?;
        for (hook, places) in &places {
            for ifindex in self.attachments.of(*hook) {
                if !places.iter().any(|place| place.ifindex == ifindex) {
                    self.attachments.detach(&self.pins, *hook, ifindex).await?;
                }
            }
        }
        Ok(())
    }

    fn converge_containers(&mut self, observed: &KernelState) -> Result<()> {
        self.containers.look(observed);
        self.cut_off.look(observed, &self.bridges, Instant::now());
        let before = self.containers.identities().clone();
        let subnet = self.spec.tunnel.subnet;
        let now = self.containers.identify(observed, &self.bridges, subnet);
        // Whose a MAC is before whose an address is: an address without its MAC is dropped.
        let ports = self.tables.ports.converge(&now.ports)?;
        let endpoints = self.tables.endpoints.converge(&now.endpoints)?;
        let homes = now.homes.iter().map(|(key, home)| (*key, *home));
        let homes = self.tables.homes.converge(&homes.chain(self.newcomers.homes()).collect())?;
        if self.newcomers.take_change() || *now != before {
            return Ok(());
        }
        for (map, changes) in [("ports", ports), ("endpoints", endpoints), ("homes", homes)] {
            if changes != MapChanges::default() {
                tracing::warn!(map, ?changes, "entries were changed by somebody else");
                repairs::made(map);
            }
        }
        Ok(())
    }
}
