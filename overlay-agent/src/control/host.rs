//! What of this host is not as the overlay needs it.

use std::time::Instant;

use overlay_lease::wire::allocate::overlap;

use crate::{
    dataplane::containers::mtu_beyond,
    kernel::netlink::{self, KernelState, Link},
};

use super::{ControlLoop, joining};

/// Containers that are named.
const NAMED: usize = 3;

/// Peers for which the kernel is asked where it would send their packets.
const ASKED: usize = 64;

fn cut_off_from(bridge: &Link, ports: &[&Link]) -> Option<String> {
    let ports = ports.iter().filter(|port| port.master == Some(bridge.index));
    let names: Vec<_> = ports.map(|port| port.name.as_str()).collect();
    let shown = names.get(..NAMED).unwrap_or(&names).join(", ");
    let more = names.len().saturating_sub(NAMED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    (!names.is_empty()).then(|| {
        format!(
            "The bridge {} lets nothing pass to containers behind {shown}{more}: the port, or the interface in the \
             container, is down, or `bridge link` shows another state than forwarding.",
            bridge.name
        )
    })
}

impl ControlLoop {
    /// A sentence for each thing.
    pub(super) async fn host_problems(&self, observed: &KernelState) -> Vec<String> {
        let mut problems = self.missing_links(observed);
        problems.extend(self.cut_off(observed));
        problems.extend(self.too_large(observed));
        problems.extend(self.inside_itself(observed));
        if problems.is_empty() {
            problems.extend(self.led_away().await);
        }
        problems
    }

    /// The containers' bridges as they are now.
    fn bridges_in<'a>(&self, observed: &'a KernelState) -> impl Iterator<Item = &'a Link> {
        self.dataplane.bridges().iter().filter_map(|link| observed.links.get(&link.index))
    }

    /// Containers that their bridge lets nothing pass to: a sentence for each bridge.
    fn cut_off(&self, observed: &KernelState) -> Vec<String> {
        let ports = self.dataplane.cut_off().ports(Instant::now());
        let ports: Vec<_> = ports.filter_map(|port| observed.links.get(&port)).collect();
        let of = |bridge| cut_off_from(bridge, &ports);
        self.bridges_in(observed).filter_map(of).collect()
    }

    /// Whether this host's routing leads what is for a peer's subnet somewhere else. (Other routes are told of where
    /// they are seen; this is for rules.)
    async fn led_away(&self) -> Option<String> {
        let (tunnel, uplink) =
            (self.dataplane.tunnel().ifindex, self.dataplane.spec().uplink.ifindex);
        // One that has just come has no route yet.
        let leases = self.dataplane.peers().leases();
        for lease in leases.filter(|lease| self.dataplane.routes_to(lease.subnet)).take(ASKED) {
            let address = lease.subnet.network();
            let way = netlink::way_to(&self.netlink, address).await;
            let is_ours = way.is_some_and(|(by, gateway)| {
                by == tunnel || by == uplink && gateway == Some(lease.public_ip)
            });
            if !is_ours {
                return Some(format!(
                    "This host's routes or rules do not lead into the overlay what is for {}, which {} leases: `ip route \
                     get {address}` shows where to, and `ip rule` what decides.",
                    lease.subnet, lease.public_ip
                ));
            }
        }
        None
    }

    fn too_large(&self, observed: &KernelState) -> Option<String> {
        let overlay = self.dataplane.spec().tunnel.mtu;
        let beyond = |bridge| Some((bridge, mtu_beyond(observed, bridge, overlay)?));
        let (Link { name: bridge, .. }, mtu) = self.bridges_in(observed).find_map(beyond)?;
        Some(format!(
            "Containers behind {bridge} have an MTU of up to {mtu}, and the overlay carries {overlay}: restart Docker \
             with the options that `overlay-agent docker-opts` makes, and then the containers."
        ))
    }

    /// Whether the overlay's network is also one that this host is in, or has a peer's address in it.
    fn inside_itself(&self, observed: &KernelState) -> Option<String> {
        let spec = self.dataplane.spec();
        let network = spec.tunnel.network;
        let ours = joining::occupied(observed, &self.dataplane.tunnel().name).into_iter();
        let mut others = ours.filter(|other| !overlap(*other, spec.tunnel.subnet));
        if let Some(other) = others.find(|other| overlap(*other, network)) {
            return Some(format!(
                "The overlay's network {network} and {other}, which this host is in, have addresses in common: no subnet is \
                 chosen there, and containers of a host that has one there cannot be reached. Use another network."
            ));
        }
        let mut peers = self.dataplane.peers().leases().map(|lease| lease.public_ip);
        let peer = peers.find(|address| network.contains(*address))?;
        Some(format!(
            "The peer at {peer} has its public address inside the overlay's network {network}: use another network."
        ))
    }

    fn missing_links(&self, observed: &KernelState) -> Vec<String> {
        let mut problems = Vec::new();
        let uplink = &self.dataplane.spec().uplink;
        match observed.links.get(&uplink.ifindex) {
            None => problems.push(format!(
                "The uplink {} (number {}) is gone; it is used again once it, or its address {}, is back.",
                uplink.interface,
                uplink.ifindex,
                self.uplink.address
            )),
            Some(link) if !link.up => problems.push(format!("The uplink {} is down.", link.name)),
            Some(_) => {}
        }
        let down = self.bridges_in(observed).filter(|link| !link.up);
        problems.extend(down.map(|link| format!("The bridge {} is down.", link.name)));
        let name = &self.dataplane.tunnel().name;
        match observed.links.values().find(|link| link.name == *name) {
            None => problems.push(format!("The tunnel device {name} is missing.")),
            Some(link) if !link.up => problems.push(format!("The tunnel device {name} is down.")),
            Some(_) => {}
        }
        problems
    }
}
