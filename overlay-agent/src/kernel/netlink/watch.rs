use anyhow::{Context, Result};
use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::{RouteNetlinkMessage, link::LinkFlags};
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, TokioSocket, protocols::NETLINK_ROUTE};
use nix::libc::ENOBUFS;
use rtnetlink::MulticastGroup;

use super::lease_routes::PROTOCOL;

/// What changed in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelEvents {
    /// Interfaces that are gone or down: whatever was behind them is not there any more, and that cannot
    /// wait for the next look.
    pub gone: Vec<u32>,
    /// Whether the way to peers may have changed: a route or a rule did, or an interface.
    pub routes: bool,
    /// Whether a container's own interface may have changed.
    pub containers: bool,
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
        routes: events.iter().any(|(event, _)| concerns_routes(&event.payload)),
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
fn concerns_routes(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) = payload {
        return route.header.protocol != PROTOCOL;
    }
    matches!(
        payload,
        NetlinkPayload::Overrun(_)
            | NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::DelRoute(_)
                    | RouteNetlinkMessage::NewRule(_)
                    | RouteNetlinkMessage::DelRule(_)
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
