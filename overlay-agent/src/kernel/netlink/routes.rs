//! The way to peers: which neighbour of the uplink their packets go to, if they leave by that at all.

use std::{
    collections::{BTreeSet, HashMap},
    net::Ipv4Addr,
};

use anyhow::Result;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use ipnetwork::Ipv4Network;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::{dump, lease_routes::PROTOCOL};

/// Rules that every host has: local, main, default. With any other, the main table does not tell where a
/// packet goes, and the kernel is asked about each peer.
const USUAL_RULES: usize = 3;

/// Looking through a table of more routes costs more than to ask the kernel about each peer.
const MANY: usize = 1024;

/// The protocol's number.
const UDP: u8 = 17;

/// So many questions are under way at a time.
const AT_A_TIME: usize = 64;

/// By which way the kernel sends to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// To this neighbour of the uplink, always.
    Neighbour(Ipv4Addr),
    /// By the uplink, to one of several neighbours: the kernel's routing tells, packet by packet.
    Uplink,
    /// By another interface, or not at all, or we do not know.
    Elsewhere,
}

/// The kernel's routing, as far as it tells the way to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Routes {
    /// The main table, where nothing else decides.
    Table(Vec<Route>),
    /// What the kernel has answered.
    Answers(HashMap<Ipv4Addr, Vec<Hop>>),
}

impl Default for Routes {
    fn default() -> Self {
        Self::Table(Vec::new())
    }
}

/// A route; one without a plain way (encapsulation, unreachable) hides those that are less specific all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    destination: Ipv4Network,
    metric: u32,
    hops: Vec<Hop>,
}

/// Through an interface, to a gateway or to the destination itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    ifindex: u32,
    gateway: Option<Ipv4Addr>,
}

impl Routes {
    /// What tells the way of VXLAN from `source`, the outer packets' address, to `port` of these peers: the main table, whose content is
    /// given, or answers of the kernel. Our own routes lead to no peer.
    pub async fn observe(
        handle: &Handle,
        main: &[RouteMessage],
        source: Ipv4Addr,
        port: u16,
        peers: BTreeSet<Ipv4Addr>,
    ) -> Result<Self> {
        let rules = dump::rules(handle).await?;
        let others = || main.iter().filter(|route| route.header.protocol != PROTOCOL);
        if rules.len() <= USUAL_RULES && others().count() <= MANY {
            return Ok(Self::Table(others().filter_map(parse).collect()));
        }
        let answers = stream::iter(peers)
            .map(|peer| async move { (peer, ask(handle, source, port, peer).await) })
            .buffer_unordered(AT_A_TIME);
        Ok(Self::Answers(answers.collect().await))
    }

    /// Whether the kernel has to be asked about a new peer.
    pub const fn are_answers(&self) -> bool {
        matches!(self, Self::Answers(_))
    }

    /// The way to an address, as seen by an overlay whose packets leave by `uplink`.
    pub fn way(&self, uplink: u32, address: Ipv4Addr) -> NextHop {
        let hops = match self {
            Self::Table(routes) => {
                let matching = routes.iter().filter(|route| route.destination.contains(address));
                let best = matching
                    .max_by_key(|route| (route.destination.prefix(), u32::MAX - route.metric));
                best.map_or(&[][..], |route| &route.hops)
            }
            Self::Answers(answers) => answers.get(&address).map_or(&[][..], Vec::as_slice),
        };
        if hops.is_empty() || hops.iter().any(|hop| hop.ifindex != uplink) {
            return NextHop::Elsewhere;
        }
        match hops {
            [hop] => NextHop::Neighbour(hop.gateway.unwrap_or(address)),
            _ => NextHop::Uplink,
        }
    }
}

/// Which interface, and which next hop if it is not the address itself, the kernel has for what this host sends to
/// `address`; nothing where it would not send it.
pub async fn way_to(handle: &Handle, address: Ipv4Addr) -> Option<(u32, Option<Ipv4Addr>)> {
    let question = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build();
    // «Unreachable» is an error in netlink and an answer to us.
    let answer = handle.route().get(question).execute().try_next().await.ok()??;
    let [hop] = hops(&answer)[..] else { return None };
    Some((hop.ifindex, hop.gateway))
}

/// How the kernel would send VXLAN from `source` to `peer`; nothing where it would not.
async fn ask(handle: &Handle, source: Ipv4Addr, port: u16, peer: Ipv4Addr) -> Vec<Hop> {
    let mut question = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(peer, 32)
        .source_prefix(source, 32)
        .build();
    // A rule may go by what is sent, and not only by where from and to.
    question.attributes.extend([RouteAttribute::IpProto(UDP), RouteAttribute::Dport(port)]);
    // «Unreachable» is an error in netlink and an answer to us.
    match handle.route().get(question).execute().try_next().await {
        Ok(Some(answer)) => hops(&answer),
        Ok(None) | Err(_) => Vec::new(),
    }
}

fn parse(message: &RouteMessage) -> Option<Route> {
    // The kernel passes over routes whose interface is down.
    if message.header.flags.contains(RouteFlags::Dead) {
        return None;
    }
    let (mut destination, mut metric) = (Ipv4Addr::UNSPECIFIED, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    let destination =
        Ipv4Network::new(destination, message.header.destination_prefix_length).ok()?;
    Some(Route { destination, metric, hops: hops(message) })
}

/// Where a route leads to; nowhere if it is not plain.
fn hops(message: &RouteMessage) -> Vec<Hop> {
    let special = message.attributes.iter().any(|attribute| {
        matches!(
            attribute,
            RouteAttribute::Encap(_) | RouteAttribute::EncapType(_) | RouteAttribute::Via(_)
        )
    });
    if message.header.kind != RouteType::Unicast || special {
        return Vec::new();
    }
    let several = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    if let Some(several) = several {
        return several
            .iter()
            .filter(|hop| !hop.flags.contains(RouteNextHopFlags::Dead))
            .map(|hop| Hop { ifindex: hop.interface_index, gateway: gateway_of(&hop.attributes) })
            .collect();
    }
    let ifindex = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    let gateway = gateway_of(&message.attributes);
    ifindex.map(|ifindex| Hop { ifindex, gateway }).into_iter().collect()
}

fn gateway_of(attributes: &[RouteAttribute]) -> Option<Ipv4Addr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPLINK: u32 = 2;

    fn hop(ifindex: u32, gateway: Option<[u8; 4]>) -> Hop {
        Hop { ifindex, gateway: gateway.map(Into::into) }
    }

    fn route(destination: &str, metric: u32, hops: &[Hop]) -> Route {
        Route { destination: destination.parse().unwrap(), metric, hops: hops.to_vec() }
    }

    fn way(routes: &[Route], address: [u8; 4]) -> NextHop {
        Routes::Table(routes.to_vec()).way(UPLINK, address.into())
    }

    fn neighbour(address: [u8; 4]) -> NextHop {
        NextHop::Neighbour(address.into())
    }

    #[test]
    fn a_peer_on_the_link_is_its_own_next_hop_and_others_have_the_gateway() {
        let routes = [
            route("192.168.33.0/24", 0, &[hop(UPLINK, None)]),
            route("0.0.0.0/0", 0, &[hop(UPLINK, Some([192, 168, 33, 1]))]),
        ];
        let on_link = [192, 168, 33, 11];
        assert_eq!(way(&routes, on_link), neighbour(on_link));
        assert_eq!(way(&routes, [10, 9, 8, 7]), neighbour([192, 168, 33, 1]));
    }

    #[test]
    fn the_most_specific_route_decides_then_the_lowest_metric() {
        let by = |gateway| [hop(UPLINK, Some(gateway))];
        let routes = [
            route("10.0.0.0/8", 100, &by([1, 1, 1, 1])),
            route("10.0.0.0/8", 50, &by([2, 2, 2, 2])),
            route("10.7.0.0/16", 500, &by([3, 3, 3, 3])),
            route("10.8.0.0/16", 0, &[hop(9, None)]),
            route("10.9.0.0/16", 0, &[]),
            route("10.10.0.0/16", 0, &[hop(UPLINK, None), hop(UPLINK, Some([4, 4, 4, 4]))]),
            route("10.11.0.0/16", 0, &[hop(UPLINK, None), hop(9, None)]),
        ];
        assert_eq!(way(&routes, [10, 1, 1, 1]), neighbour([2, 2, 2, 2]));
        assert_eq!(way(&routes, [10, 7, 1, 1]), neighbour([3, 3, 3, 3]));
        assert_eq!(way(&routes, [10, 8, 1, 1]), NextHop::Elsewhere, "through another interface");
        assert_eq!(way(&routes, [10, 9, 1, 1]), NextHop::Elsewhere, "no plain way");
        assert_eq!(way(&routes, [10, 10, 1, 1]), NextHop::Uplink, "several next hops");
        assert_eq!(way(&routes, [10, 11, 1, 1]), NextHop::Elsewhere, "one of them elsewhere");
        assert_eq!(way(&routes, [172, 16, 0, 1]), NextHop::Elsewhere, "no route");
    }

    #[test]
    fn where_the_kernel_is_asked_its_answers_count() {
        let [known, unknown] = [[192, 0, 2, 1], [192, 0, 2, 2]].map(Ipv4Addr::from);
        let answers = HashMap::from([(known, vec![hop(UPLINK, Some([1, 1, 1, 1]))])]);
        let routes = Routes::Answers(answers);
        assert_eq!(routes.way(UPLINK, known), neighbour([1, 1, 1, 1]));
        assert_eq!(routes.way(UPLINK, unknown), NextHop::Elsewhere, "not asked yet");
        assert_eq!(routes.way(9, known), NextHop::Elsewhere);
    }
}
