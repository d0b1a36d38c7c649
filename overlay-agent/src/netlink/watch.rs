use anyhow::{Context, Result};
use futures::{Stream, StreamExt};
use rtnetlink::MulticastGroup;

/// Yields an item whenever a link, an IPv4 address, a neighbour or an IPv4 route has changed. What
/// changed is for [`observe`](super::observe) to find out: events can be lost, the kernel's state not.
pub fn changes() -> Result<impl Stream<Item = ()> + Unpin + Send> {
    let (connection, _handle, messages) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv4Route,
    ])
    .context("opening a netlink socket for events")?;
    tokio::spawn(connection);
    // A batch of events is one change.
    Ok(messages.ready_chunks(4096).map(|_events| ()))
}
