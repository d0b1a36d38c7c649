//! The way to peers: which neighbour of the uplink their packets go to.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use futures::TryStreamExt;
use ipnetwork::Ipv4Network;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType,
};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

/// Rules that every host has: local, main, default. With any other, the main table does not tell where a
/// packet goes.
const USUAL_RULES: usize = 3;

/// A host with more routes takes part in a routing protocol. Its table changes all the time, and looking
/// through it would cost more than the kernel's lookup of each packet.
const MANY: usize = 1024;

/// The routes of the main table, as far as they tell the way to a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    routes: Vec<Route>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Route {
    destination: Ipv4Network,
    metric: u32,
    way: Option<Way>,
}

/// Through one interface, to a gateway or to the destination itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    ifindex: u32,
    gateway: Option<Ipv4Addr>,
}

impl Routes {
    /// Asks the kernel. Where its routing is not simple, nothing is known, and every packet is looked up.
    pub async fn observe(handle: &Handle) -> Result<Self> {
        let rules: Vec<_> = handle
            .rule()
            .get(IpVersion::V4)
            .execute()
            .try_collect()
            .await
            .context("listing routing rules")?;
        if rules.len() > USUAL_RULES {
            return Ok(Self::default());
        }
        let messages: Vec<_> = handle
            .route()
            .get(RouteMessageBuilder::<Ipv4Addr>::new().build())
            .execute()
            .try_collect()
            .await
            .context("listing routes")?;
        let main = messages.iter().filter(|route| route.header.table == RouteHeader::RT_TABLE_MAIN);
        let routes: Vec<_> = main.filter_map(parse).collect();
        if routes.len() > MANY {
            return Ok(Self::default());
        }
        Ok(Self { routes })
    }

    /// The neighbour on `uplink` that packets for `address` go to, if that is all there is to know.
    pub fn next_hop(&self, uplink: u32, address: Ipv4Addr) -> Option<Ipv4Addr> {
        let best = self
            .routes
            .iter()
            .filter(|route| route.destination.contains(address))
            .max_by_key(|route| (route.destination.prefix(), u32::MAX - route.metric))?;
        let way = best.way?;
        (way.ifindex == uplink).then(|| way.gateway.unwrap_or(address))
    }
}

/// A route; one without a single plain way (several next hops, encapsulation, unreachable) hides those
/// that are less specific all the same.
fn parse(message: &RouteMessage) -> Option<Route> {
    let mut destination = Ipv4Addr::UNSPECIFIED;
    let mut metric = 0;
    let mut ifindex = None;
    let mut gateway = None;
    let mut plain = message.header.kind == RouteType::Unicast;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            RouteAttribute::MultiPath(_)
            | RouteAttribute::Encap(_)
            | RouteAttribute::EncapType(_)
            | RouteAttribute::Via(_)
            | RouteAttribute::NhId(_) => plain = false,
            _ => {}
        }
    }
    let destination =
        Ipv4Network::new(destination, message.header.destination_prefix_length).ok()?;
    let way = ifindex.filter(|_| plain).map(|ifindex| Way { ifindex, gateway });
    Some(Route { destination, metric, way })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPLINK: u32 = 2;

    type Via = Option<(u32, Option<[u8; 4]>)>;

    fn route(destination: &str, metric: u32, via: Via) -> Route {
        let way = via.map(|(ifindex, gateway)| Way { ifindex, gateway: gateway.map(Into::into) });
        Route { destination: destination.parse().unwrap(), metric, way }
    }

    fn next_hop(routes: &[Route], address: [u8; 4]) -> Option<Ipv4Addr> {
        Routes { routes: routes.to_vec() }.next_hop(UPLINK, address.into())
    }

    #[test]
    fn a_peer_on_the_link_is_its_own_next_hop_and_others_have_the_gateway() {
        let routes = [
            route("192.168.33.0/24", 0, Some((UPLINK, None))),
            route("0.0.0.0/0", 0, Some((UPLINK, Some([192, 168, 33, 1])))),
        ];
        let on_link = [192, 168, 33, 11];
        assert_eq!(next_hop(&routes, on_link), Some(on_link.into()));
        assert_eq!(next_hop(&routes, [10, 9, 8, 7]), Some([192, 168, 33, 1].into()));
    }

    #[test]
    fn the_most_specific_route_decides_then_the_lowest_metric() {
        let routes = [
            route("10.0.0.0/8", 100, Some((UPLINK, Some([1, 1, 1, 1])))),
            route("10.0.0.0/8", 50, Some((UPLINK, Some([2, 2, 2, 2])))),
            route("10.7.0.0/16", 500, Some((UPLINK, Some([3, 3, 3, 3])))),
            route("10.8.0.0/16", 0, Some((9, None))),
            route("10.9.0.0/16", 0, None),
        ];
        assert_eq!(next_hop(&routes, [10, 1, 1, 1]), Some([2, 2, 2, 2].into()));
        assert_eq!(next_hop(&routes, [10, 7, 1, 1]), Some([3, 3, 3, 3].into()));
        assert_eq!(next_hop(&routes, [10, 8, 1, 1]), None, "through another interface");
        assert_eq!(next_hop(&routes, [10, 9, 1, 1]), None, "no single way");
        assert_eq!(next_hop(&routes, [172, 16, 0, 1]), None, "no route");
    }
}
