//! The kernel's lists, whole. One that changes while it is told is marked as such (`NLM_F_DUMP_INTR`, netlink(7)), and may
//! lack what has been there all the while: it is asked for again.

use std::{net::Ipv4Addr, pin::pin};

use anyhow::{Context as _, Result};
use futures::{Stream, StreamExt as _};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::AddressMessage,
    link::LinkMessage,
    route::{RouteHeader, RouteMessage},
    rule::RuleMessage,
};
use rtnetlink::{Error, Handle, RouteMessageBuilder};

/// A table that somebody fills for minutes is never told whole. What changes in it makes events, and with them another
/// look.
const ATTEMPTS: usize = 5;

/// Every interface.
pub async fn links(handle: &Handle) -> Result<Vec<LinkMessage>> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let pick = |message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    };
    dump(handle, request, pick).await.context("listing interfaces")
}

/// Every address, IPv6 too.
pub async fn addresses(handle: &Handle) -> Result<Vec<AddressMessage>> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let pick = |message| match message {
        RouteNetlinkMessage::NewAddress(address) => Some(address),
        _ => None,
    };
    dump(handle, request, pick).await.context("listing addresses")
}

/// Those IPv4 routes of all tables that are wanted. There may be a million.
pub async fn routes(
    handle: &Handle,
    wanted: impl Fn(&RouteMessage) -> bool,
) -> Result<Vec<RouteMessage>> {
    let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let pick = |message| match message {
        RouteNetlinkMessage::NewRoute(route) => wanted(&route).then_some(route),
        _ => None,
    };
    dump(handle, RouteNetlinkMessage::GetRoute(all), pick).await.context("listing routes")
}

/// The main table's IPv4 routes.
pub async fn main_table(handle: &Handle) -> Result<Vec<RouteMessage>> {
    routes(handle, |route| route.header.table == RouteHeader::RT_TABLE_MAIN).await
}

/// Every IPv4 routing rule.
pub async fn rules(handle: &Handle) -> Result<Vec<RuleMessage>> {
    let mut all = RuleMessage::default();
    all.header.family = AddressFamily::Inet;
    let pick = |message| match message {
        RouteNetlinkMessage::NewRule(rule) => Some(rule),
        _ => None,
    };
    dump(handle, RouteNetlinkMessage::GetRule(all), pick).await.context("listing routing rules")
}

async fn dump<T>(
    handle: &Handle,
    request: RouteNetlinkMessage,
    pick: impl Fn(RouteNetlinkMessage) -> Option<T>,
) -> Result<Vec<T>, Error> {
    let ask = || {
        let mut request = NetlinkMessage::from(request.clone());
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        handle.clone().request(request)
    };
    whole(ask, pick).await
}

async fn whole<S, T>(
    ask: impl Fn() -> Result<S, Error>,
    pick: impl Fn(RouteNetlinkMessage) -> Option<T>,
) -> Result<Vec<T>, Error>
where
    S: Stream<Item = NetlinkMessage<RouteNetlinkMessage>>,
{
    let mut attempt = 1;
    loop {
        let (mut list, mut interrupted) = (Vec::new(), false);
        let mut answers = pin!(ask()?);
        while let Some(message) = answers.next().await {
            interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
            match message.payload {
                NetlinkPayload::InnerMessage(message) => list.extend(pick(message)),
                NetlinkPayload::Error(error) => return Err(Error::NetlinkError(error)),
                _ => {}
            }
        }
        if !interrupted || attempt == ATTEMPTS {
            return Ok(list);
        }
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures::{FutureExt as _, stream};

    use super::*;

    /// Lists of one link each, of which the first ones were interrupted; what came of them, and how often was asked.
    fn told(interrupted: u32) -> (Vec<u32>, u32) {
        let asked = Cell::new(0);
        let ask = || {
            asked.set(asked.get() + 1);
            let mut link = LinkMessage::default();
            link.header.index = asked.get();
            let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewLink(link));
            message.header.flags = if asked.get() <= interrupted { NLM_F_DUMP_INTR } else { 0 };
            Ok(stream::iter([message]))
        };
        let pick = |message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(link.header.index),
            _ => None,
        };
        let list = whole(ask, pick).now_or_never().expect("nothing to wait for");
        (list.expect("no error"), asked.get())
    }

    #[test]
    fn a_list_that_was_interrupted_is_asked_for_again() {
        assert_eq!(told(0), (vec![1], 1));
        assert_eq!(told(2), (vec![3], 3));
        assert_eq!(told(99), (vec![5], 5), "rather an old list than none");
    }
}
