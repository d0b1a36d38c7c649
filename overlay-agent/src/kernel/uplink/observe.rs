//! Asks the kernel for interfaces, addresses and routes.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Context as _;
use futures::TryStreamExt as _;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{LinkAttribute, LinkMessage},
    route::{RouteAttribute, RouteHeader, RouteMessage},
};
use overlay_common::MacAddr;
use rtnetlink::{Handle, RouteMessageBuilder};

use super::{Address, Interface, Uplink, UplinkCandidates, UplinkConfig, choose};
use crate::{
    exit::{Exit, WithExit as _},
    kernel::netlink::dump,
};

/// Chooses the uplink from what this host has now.
pub async fn discover(config: &UplinkConfig) -> anyhow::Result<Uplink> {
    let (connection, handle, _) =
        rtnetlink::new_connection().context("cannot open a netlink socket")?;
    let connection = tokio::spawn(connection);
    let observed = observe(&handle, config.can_reach).await;
    connection.abort();
    choose(config, &observed?).exit(Exit::Usage)
}

/// What there is to choose from.
pub async fn observe(
    handle: &Handle,
    can_reach: Option<Ipv4Addr>,
) -> anyhow::Result<UplinkCandidates> {
    let links = dump::links(handle).await?;
    let addresses = dump::addresses(handle).await?;
    let routes = dump::routes(handle, |route| default_route(route).is_some()).await?;

    let mut interfaces: Vec<_> = links.iter().map(interface).collect();
    interfaces.sort_by_key(|interface| interface.ifindex);
    for message in &addresses {
        let owner =
            interfaces.iter_mut().find(|interface| interface.ifindex == message.header.index);
        if let (Some(owner), Some(address)) = (owner, address(message)) {
            owner.addresses.push(address);
        }
    }
    Ok(UplinkCandidates {
        interfaces,
        default_routes: routes.iter().filter_map(default_route).collect(),
        reaching: match can_reach {
            Some(ip) => reaching(handle, ip).await,
            None => None,
        },
    })
}

/// The interface by which the kernel would send to `ip`; `None` if it would not.
async fn reaching(handle: &Handle, ip: Ipv4Addr) -> Option<u32> {
    let to = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(ip, 32).build();
    // «Unreachable» is an error in netlink and an answer to us.
    let route = handle.route().get(to).execute().try_next().await.ok()??;
    output(&route)
}

fn interface(message: &LinkMessage) -> Interface {
    let mut interface = Interface { ifindex: message.header.index, ..Interface::default() };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Address(bytes) => {
                interface.mac = <[u8; 6]>::try_from(bytes.as_slice())
                    .map(MacAddr)
                    .ok()
                    .filter(|mac| mac.is_unicast());
            }
            _ => {}
        }
    }
    interface
}

fn address(message: &AddressMessage) -> Option<Address> {
    if message.header.family != AddressFamily::Inet {
        return None;
    }
    let (mut local, mut peer) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(ip)) => local = Some(*ip),
            AddressAttribute::Address(IpAddr::V4(ip)) => peer = Some(*ip),
            _ => {}
        }
    }
    let flags = message.header.flags;
    Some(Address {
        // On a point-to-point link the «address» is the other end's.
        ip: local.or(peer)?,
        global: message.header.scope == AddressScope::Universe,
        permanent: flags.contains(AddressHeaderFlags::Permanent),
        deprecated: flags.contains(AddressHeaderFlags::Deprecated),
    })
}

/// Metric and interface, if this is a default route of the main table.
fn default_route(message: &RouteMessage) -> Option<(u32, u32)> {
    let header = &message.header;
    if header.destination_prefix_length != 0 || header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let metric = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    Some((metric.unwrap_or(0), output(message)?))
}

fn output(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(ifindex) => Some(*ifindex),
        RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
        _ => None,
    })
}
