//! The routes to peers' subnets, and to nothing else: what lies in the network and in no lease is the host's own
//! business, as with flannel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use anyhow::{Context, Result, bail};
use futures::{StreamExt as _, stream};
use ipnetwork::Ipv4Network;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope,
};
use nix::libc;
use rtnetlink::{Handle, RouteMessageBuilder};

use crate::kernel::repairs;

/// By what our routes are known in `ip route` (`proto 111`), also those that do not lead to our device. Nobody else's
/// in `/etc/iproute2/rt_protos`.
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(111);

/// Next hop of every route to the device. The device needs no ARP, so no such host has to exist; one address
/// for all destinations keeps the neighbour table at one entry, whatever the number of containers.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// So many requests are under way at a time.
const AT_A_TIME: usize = 64;

/// Where a peer's subnet is routed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRoute {
    ifindex: u32,
    gateway: Ipv4Addr,
    source: Option<Ipv4Addr>,
}

impl LeaseRoute {
    /// To the tunnel device; the host itself speaks from `source`, its address in the overlay.
    pub const fn by_tunnel(tunnel: u32, source: Ipv4Addr) -> Self {
        Self { ifindex: tunnel, gateway: GATEWAY, source: Some(source) }
    }

    /// To the peer itself, which is on the same link (`DirectRouting`).
    pub const fn by_link(uplink: u32, peer: Ipv4Addr) -> Self {
        Self { ifindex: uplink, gateway: peer, source: None }
    }

    fn message(&self, subnet: Ipv4Network) -> RouteMessage {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(subnet.network(), subnet.prefix())
            .gateway(self.gateway)
            .output_interface(self.ifindex)
            .scope(RouteScope::Universe)
            .protocol(PROTOCOL);
        match self.source {
            Some(source) => message.onlink().pref_source(source).build(),
            None => message.build(),
        }
    }
}

/// Our routes as they are in the kernel, as far as we know.
#[derive(Debug, Default)]
pub struct LeaseRoutes {
    known: BTreeMap<Ipv4Network, LeaseRoute>,
    /// The overlay's networks, today's and earlier ones: another agent of this host has routes with our number in its own.
    networks: Vec<Ipv4Network>,
    /// Subnets to which somebody else has a route.
    taken: BTreeSet<Ipv4Network>,
    /// Where else in the overlay's network somebody's routes lead.
    others: Vec<Ipv4Network>,
}

enum Request {
    Add(LeaseRoute),
    Replace(LeaseRoute),
    Remove(LeaseRoute),
}

impl LeaseRoutes {
    /// None known yet; an earlier agent may have made some in network `before`.
    pub fn new(before: Option<Ipv4Network>) -> Self {
        Self { networks: before.into_iter().collect(), ..Self::default() }
    }

    /// Takes note of what there is: of the main table's routes, those that are ours, and those to our device that an
    /// earlier version has made; of others' routes, those into the overlay's `network`.
    pub fn look(&mut self, main: &[RouteMessage], tunnel: u32, network: Ipv4Network) {
        self.taken.clear();
        if !self.networks.contains(&network) {
            self.networks.push(network);
        }
        let others = main.iter().filter(|message| message.header.protocol != PROTOCOL);
        self.others =
            others.filter_map(destination).filter(|other| network.contains(other.ip())).collect();
        self.known = main
            .iter()
            .filter_map(|message| {
                let (subnet, route) = parse(message)?;
                let is_marked = message.header.protocol == PROTOCOL;
                let is_to_us = route.ifindex == tunnel;
                let is_within = self.networks.iter().any(|network| network.contains(subnet.ip()));
                let ours = (is_marked && (is_to_us || is_within))
                    || (is_to_us && route.gateway == GATEWAY);
                ours.then_some((subnet, route))
            })
            .collect();
    }

    /// Makes the routes to all subnets what they should be. Whatever else is ours goes, after what takes its place.
    pub async fn converge(
        &mut self,
        handle: &Handle,
        wanted: &BTreeMap<Ipv4Network, LeaseRoute>,
    ) -> Result<()> {
        let gone = self.known.keys().filter(|subnet| !wanted.contains_key(subnet));
        let gone: Vec<_> = gone.map(|subnet| (*subnet, None)).collect();
        let there = wanted.iter().map(|(subnet, route)| (*subnet, Some(*route)));
        self.set(handle, there.collect()).await?;
        self.set(handle, gone).await
    }

    /// Makes the routes to these subnets what they should be; none where none is given.
    pub async fn set(
        &mut self,
        handle: &Handle,
        wanted: Vec<(Ipv4Network, Option<LeaseRoute>)>,
    ) -> Result<()> {
        for (subnet, _) in wanted.iter().filter(|(_, wanted)| wanted.is_none()) {
            self.taken.remove(subnet);
        }
        let requests = wanted.into_iter().filter_map(|(subnet, wanted)| {
            let request = match (self.known.get(&subnet), wanted) {
                (None, Some(wanted)) => Request::Add(wanted),
                (Some(known), Some(wanted)) if *known != wanted => Request::Replace(wanted),
                (Some(known), None) => Request::Remove(*known),
                _ => return None,
            };
            Some((subnet, request))
        });
        let requests: Vec<_> = requests.collect();
        let mut outcomes = stream::iter(requests)
            .map(|(subnet, request)| async move {
                let outcome = ask(handle, subnet, &request).await;
                (subnet, request, outcome)
            })
            .buffer_unordered(AT_A_TIME);
        let mut failed = None;
        while let Some((subnet, request, outcome)) = outcomes.next().await {
            self.taken.remove(&subnet);
            match (request, outcome) {
                (Request::Add(route) | Request::Replace(route), Ok(())) => {
                    self.known.insert(subnet, route);
                    repairs::made("route");
                }
                (Request::Remove(_), Ok(())) => {
                    self.known.remove(&subnet);
                }
                (Request::Add(_), Err(error)) if is(&error, libc::EEXIST) => {
                    self.taken.insert(subnet);
                }
                // Gone with its interface, or by somebody's hand.
                (Request::Remove(_), Err(error)) if is(&error, libc::ESRCH) => {
                    self.known.remove(&subnet);
                }
                (_, Err(error)) => {
                    failed = Some(anyhow::Error::new(error).context(format!("routing {subnet}")));
                }
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Whether there is a route of ours to a subnet.
    pub fn has(&self, subnet: Ipv4Network) -> bool {
        self.known.contains_key(&subnet)
    }

    /// Fails, naming them, where others have routes to peers' subnets, or to parts of them. Theirs stay.
    pub fn check_taken(&self) -> Result<()> {
        let within = |other: &Ipv4Network| {
            let mut longer = self.known.range(..=other).rev().map(|(subnet, _)| *subnet);
            longer
                .next()
                .filter(|subnet| subnet.contains(other.ip()) && subnet.prefix() < other.prefix())
        };
        let part = self.others.iter().find_map(|other| Some((other, within(other)?)));
        if let Some((other, subnet)) = part {
            bail!(
                "a route of somebody else's to {other} leads away what is for a part of {subnet}, which another host \
                 leases: `ip route show {other}` shows it, and it is left alone"
            );
        }
        if self.taken.is_empty() {
            return Ok(());
        }
        let subnets: Vec<_> = self.taken.iter().take(3).map(ToString::to_string).collect();
        bail!(
            "{} of the leased subnets have a route of somebody else's already, {} among them: `ip route` shows it, and \
             it is left alone",
            self.taken.len(),
            subnets.join(", ")
        )
    }
}

async fn ask(
    handle: &Handle,
    subnet: Ipv4Network,
    request: &Request,
) -> Result<(), rtnetlink::Error> {
    match request {
        // Exclusively: another's route is not to be replaced.
        Request::Add(route) => handle.route().add(route.message(subnet)).execute().await,
        Request::Replace(route) => {
            handle.route().add(route.message(subnet)).replace().execute().await
        }
        Request::Remove(route) => {
            let mut message = route.message(subnet);
            // Whoever made it, and however it was made.
            message.header.protocol = RouteProtocol::Unspec;
            message
                .attributes
                .retain(|attribute| !matches!(attribute, RouteAttribute::PrefSource(_)));
            handle.route().del(message).execute().await
        }
    }
}

fn is(error: &rtnetlink::Error, code: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -code)
}

/// Where a route leads; a default route says so by its length alone.
pub(super) fn destination(message: &RouteMessage) -> Option<Ipv4Network> {
    let length = message.header.destination_prefix_length;
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    });
    let address = address.or((length == 0).then_some(Ipv4Addr::UNSPECIFIED));
    Ipv4Network::new(address?, length).ok()
}

fn parse(message: &RouteMessage) -> Option<(Ipv4Network, LeaseRoute)> {
    let (mut destination, mut gateway, mut ifindex, mut source) = (None, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                destination = Some(*address);
            }
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(*address),
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            _ => {}
        }
    }
    let subnet = Ipv4Network::new(destination?, message.header.destination_prefix_length).ok()?;
    Some((subnet, LeaseRoute { ifindex: ifindex?, gateway: gateway?, source }))
}

/// Removes every route of ours but those that `keep` wants, by where they lead. Returns how many there were.
pub async fn remove(handle: &Handle, keep: impl Fn(Ipv4Network) -> bool) -> Result<usize> {
    let main = super::main_table(handle).await?;
    let is_kept = |route: &RouteMessage| destination(route).is_some_and(&keep);
    let ours =
        main.into_iter().filter(|route| route.header.protocol == PROTOCOL && !is_kept(route));
    let mut removed = 0;
    for route in ours {
        handle.route().del(route).execute().await.context("removing the route to a lease")?;
        removed += 1;
    }
    Ok(removed)
}
