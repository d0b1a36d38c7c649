use std::collections::BTreeSet;

use anyhow::{Context, Result};
use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use ipnetwork::Ipv4Network;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::{RouteNetlinkMessage, link::LinkFlags};
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, TokioSocket, protocols::NETLINK_ROUTE};
use nix::libc::ENOBUFS;
use rtnetlink::MulticastGroup;

use super::lease_routes::{PROTOCOL, destination};

/// What changed in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelEvents {
    /// Interfaces that are gone or down: whatever was behind them is not there any more, and that cannot
    /// wait for the next look.
    pub gone: Vec<u32>,
    /// Where the way may have changed.
    pub routes: ChangedRoutes,
    /// Whether a container's own interface may have changed.
    pub containers: bool,
}

/// To which addresses the kernel's way may have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ChangedRoutes {
    /// To none.
    #[default]
    None,
    /// To some of those in these networks: a host with a full routing table has changes all the time, hardly any of which
    /// matters to the overlay.
    To(BTreeSet<Ipv4Network>),
    /// To any: by a rule or an interface, or we have not heard of all changes.
    All,
}

impl ChangedRoutes {
    fn add(self, event: &NetlinkPayload<RouteNetlinkMessage>) -> Self {
        match (self, changed_by(event)) {
            (Self::All, _) | (_, Self::All) => Self::All,
            (before, Self::None) => before,
            (Self::None, now) => now,
            (Self::To(mut before), Self::To(now)) => {
                // One by one: `append` makes the whole set anew.
                before.extend(now);
                Self::To(before)
            }
        }
    }
}

/// Yields an item whenever a link, an IPv4 address, route or rule has changed here, or a link or an address in a
/// container. What changed is for [`observe`](super::observe) to find out: events can be lost, the kernel's state
/// not.
pub fn changes() -> Result<impl Stream<Item = KernelEvents> + Unpin + Send> {
    let (connection, _handle, messages) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv4Rule,
    ])
    .context("opening a netlink socket for events")?;
    tokio::spawn(connection);
    // A batch of events is one change.
    let here = messages.ready_chunks(4096).map(|events| KernelEvents {
        gone: events.iter().filter_map(|(event, _)| gone(&event.payload)).collect(),
        routes: events
            .iter()
            .fold(ChangedRoutes::None, |changed, (event, _)| changed.add(&event.payload)),
        containers: false,
    });
    // The end of the first is the end of all; the second has none.
    Ok(Box::pin(stream::select_with_strategy(here, in_containers(), |(): &mut ()| {
        stream::PollNext::Left
    })))
}

/// Yields an item whenever something changed at an interface of any namespace that this one knows, and that is
/// every one with the other end of a cable from here (`NETLINK_LISTEN_ALL_NSID`, Linux 4.2).
fn in_containers() -> BoxStream<'static, KernelEvents> {
    let open = || -> std::io::Result<TokioSocket> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_ref().set_listen_all_namespaces(true)?;
        for group in [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr] {
            socket.socket_mut().add_membership(group as u32)?;
        }
        Ok(socket)
    };
    let socket = match open() {
        Ok(socket) => socket,
        Err(error) => {
            tracing::warn!(
                %error,
                "changes in containers are not told (that takes CAP_NET_BROADCAST): they are seen within seconds"
            );
            return stream::pending().boxed();
        }
    };
    let changes = stream::unfold(socket, |socket| async move {
        match socket.recv_from_full().await {
            // What was lost is as good as what was told: somebody has to look.
            Err(error) if error.raw_os_error() != Some(ENOBUFS) => {
                tracing::error!(%error, "changes in containers are not told any more");
                std::future::pending::<()>().await;
            }
            _ => while socket.socket_ref().recv_from_full().is_ok() {},
        }
        Some((KernelEvents { containers: true, ..KernelEvents::default() }, socket))
    });
    changes.boxed()
}

/// The kernel tells of no route that goes with its interface, so that changes of interfaces count too; and after an
/// overrun, anything may have changed. What we add ourselves, we know.
fn changed_by(event: &NetlinkPayload<RouteNetlinkMessage>) -> ChangedRoutes {
    let message = match event {
        NetlinkPayload::InnerMessage(message) => message,
        NetlinkPayload::Overrun(_) => return ChangedRoutes::All,
        _ => return ChangedRoutes::None,
    };
    match message {
        RouteNetlinkMessage::NewRoute(route) if route.header.protocol == PROTOCOL => {
            ChangedRoutes::None
        }
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            destination(route).map_or(ChangedRoutes::All, |to| ChangedRoutes::To([to].into()))
        }
        RouteNetlinkMessage::NewRule(_)
        | RouteNetlinkMessage::DelRule(_)
        | RouteNetlinkMessage::NewLink(_)
        | RouteNetlinkMessage::DelLink(_)
        | RouteNetlinkMessage::NewAddress(_)
        | RouteNetlinkMessage::DelAddress(_) => ChangedRoutes::All,
        _ => ChangedRoutes::None,
    }
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use netlink_packet_route::{
        link::LinkMessage,
        route::{RouteMessage, RouteProtocol},
    };
    use rtnetlink::RouteMessageBuilder;

    use super::*;

    type Event = NetlinkPayload<RouteNetlinkMessage>;

    fn route(to: [u8; 4], length: u8) -> RouteMessage {
        RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to.into(), length)
            .protocol(RouteProtocol::Bgp)
            .build()
    }

    fn changed(events: &[Event]) -> ChangedRoutes {
        events.iter().fold(ChangedRoutes::None, ChangedRoutes::add)
    }

    #[test]
    fn routes_are_told_by_where_they_lead_and_what_may_change_any_by_itself() {
        let new = |route| Event::InnerMessage(RouteNetlinkMessage::NewRoute(route));
        let gone = |route| Event::InnerMessage(RouteNetlinkMessage::DelRoute(route));
        let to = |networks: &[&str]| {
            ChangedRoutes::To(networks.iter().map(|network| network.parse().unwrap()).collect())
        };
        assert_eq!(changed(&[]), ChangedRoutes::None);
        let routes = vec![new(route([10, 9, 0, 0], 16)), gone(route([192, 0, 2, 7], 32))];
        assert_eq!(changed(&routes), to(&["10.9.0.0/16", "192.0.2.7/32"]));
        // The default route has no destination in its message.
        let mut default = route([0, 0, 0, 0], 0);
        default.attributes.clear();
        assert_eq!(changed(&[new(default)]), to(&["0.0.0.0/0"]));
        let mut ours = route([10, 1, 2, 0], 24);
        ours.header.protocol = PROTOCOL;
        assert_eq!(changed(&[new(ours.clone())]), ChangedRoutes::None);
        assert_eq!(changed(&[gone(ours)]), to(&["10.1.2.0/24"]));
        for any in [
            Event::InnerMessage(RouteNetlinkMessage::NewLink(LinkMessage::default())),
            Event::Overrun(Vec::new()),
        ] {
            let mut events = routes.clone();
            events.insert(1, any);
            assert_eq!(changed(&events), ChangedRoutes::All);
        }
    }
}
