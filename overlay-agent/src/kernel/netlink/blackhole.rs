//! The blackhole route of our own subnet: what no bridge is there for ends here, and goes neither back into the
//! overlay nor out by the default route.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use ipnetwork::Ipv4Network;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::main_table;
use crate::kernel::repairs;

/// The highest there is: of two routes for one subnet the bridge's counts, whatever its metric and whichever
/// came first. flannel gives it none, and then the older route counts: a bridge that comes later is cut off.
const METRIC: u32 = u32::MAX;

/// By which such a route is known to be ours. No routing daemon has this number.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(84);

/// The blackhole route of our own subnet, as this agent keeps it.
#[derive(Debug, Default)]
pub struct Blackhole {
    /// An earlier agent may have left one; afterwards none comes up that is not wanted.
    has_looked: bool,
}

impl Blackhole {
    /// Makes `wanted` the only subnet in `network` with a blackhole route of ours, and changes nothing where
    /// it is so already.
    pub async fn ensure(
        &mut self,
        handle: &Handle,
        network: Ipv4Network,
        wanted: Option<Ipv4Network>,
    ) -> Result<()> {
        if wanted.is_some() || !self.has_looked {
            ensure(handle, network, wanted).await?;
            self.has_looked = true;
        }
        Ok(())
    }
}

async fn ensure(handle: &Handle, network: Ipv4Network, wanted: Option<Ipv4Network>) -> Result<()> {
    let routes = main_table(handle).await?;
    let ours = routes.iter().filter(|route| is_ours(route)).filter_map(destination);
    for subnet in ours.filter(|subnet| network.contains(subnet.ip()) && Some(*subnet) != wanted) {
        remove(handle, subnet).await?;
        repairs::made("blackhole route that is no more ours");
    }
    let Some(subnet) = wanted else { return Ok(()) };
    // Somebody else's of the same metric does as well, and would be in the way of ours.
    let there = |route: &RouteMessage| destination(route) == Some(subnet) && has_metric(route);
    if routes.iter().any(there) {
        return Ok(());
    }
    repairs::made("blackhole route");
    handle
        .route()
        .add(message(subnet))
        .execute()
        .await
        .with_context(|| format!("adding a blackhole route for {subnet}"))
}

/// Removes all blackhole routes of ours but those that `keep` wants, and returns what they were for.
pub async fn remove_blackholes(
    handle: &Handle,
    keep: impl Fn(Ipv4Network) -> bool,
) -> Result<Vec<Ipv4Network>> {
    let routes = main_table(handle).await?;
    let ours = routes.iter().filter(|route| is_ours(route)).filter_map(destination);
    let ours: Vec<_> = ours.filter(|subnet| !keep(*subnet)).collect();
    for subnet in &ours {
        remove(handle, *subnet).await?;
    }
    Ok(ours)
}

async fn remove(handle: &Handle, subnet: Ipv4Network) -> Result<()> {
    handle
        .route()
        .del(message(subnet))
        .execute()
        .await
        .with_context(|| format!("removing the blackhole route for {subnet}"))
}

fn message(subnet: Ipv4Network) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(subnet.network(), subnet.prefix())
        .kind(RouteType::BlackHole)
        .scope(RouteScope::Universe)
        .protocol(PROTOCOL)
        .priority(METRIC)
        .build()
}

fn is_ours(route: &RouteMessage) -> bool {
    let header = &route.header;
    (header.kind, header.protocol) == (RouteType::BlackHole, PROTOCOL) && has_metric(route)
}

fn has_metric(route: &RouteMessage) -> bool {
    route.attributes.contains(&RouteAttribute::Priority(METRIC))
}

fn destination(route: &RouteMessage) -> Option<Ipv4Network> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })?;
    Ipv4Network::new(address, route.header.destination_prefix_length).ok()
}
