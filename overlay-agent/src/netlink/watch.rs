use anyhow::{Context, Result};
use futures::{Stream, StreamExt};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::{RouteNetlinkMessage, link::LinkFlags};
use rtnetlink::MulticastGroup;

/// What changed in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Interfaces that are gone or down: whatever was behind them is not there any more, and that cannot
    /// wait for the next look.
    pub gone: Vec<u32>,
    /// Whether the way to peers may have changed: a route did, or an interface.
    pub routes: bool,
}

/// Yields an item whenever a link, an IPv4 address, a neighbour or an IPv4 route has changed. What
/// changed is for [`observe`](super::observe) to find out: events can be lost, the kernel's state not.
pub fn changes() -> Result<impl Stream<Item = Changes> + Unpin + Send> {
    let (connection, _handle, messages) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv4Route,
    ])
    .context("opening a netlink socket for events")?;
    tokio::spawn(connection);
    // A batch of events is one change.
    Ok(messages.ready_chunks(4096).map(|events| Changes {
        gone: events.iter().filter_map(|(event, _)| gone(&event.payload)).collect(),
        routes: events.iter().any(|(event, _)| concerns_routes(&event.payload)),
    }))
}

/// The kernel tells of no route that goes with its interface, so that changes of interfaces count too.
const fn concerns_routes(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    matches!(
        payload,
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(_)
                | RouteNetlinkMessage::DelRoute(_)
                | RouteNetlinkMessage::NewLink(_)
                | RouteNetlinkMessage::DelLink(_)
                | RouteNetlinkMessage::NewAddress(_)
                | RouteNetlinkMessage::DelAddress(_)
        )
    )
}

fn gone(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<u32> {
    match payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => Some(link.header.index),
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
            let up = link.header.flags.contains(LinkFlags::Up);
            (!up).then_some(link.header.index)
        }
        _ => None,
    }
}
