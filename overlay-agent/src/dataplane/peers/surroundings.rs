//! Addresses that are special because of where this host is.

use std::{collections::BTreeMap, net::Ipv4Addr};

use anyhow::Result;
use ipnetwork::Ipv4Network;
use netlink_packet_route::{
    AddressFamily,
    address::AddressAttribute,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage},
};
use rtnetlink::Handle;

use super::refusal::Special;
use crate::kernel::netlink::dump;

/// The addresses here that no peer can have, each with what it is.
///
/// That of etcd is none of them: etcd often runs on a member, and a lease that names an etcd which is no
/// member harms nobody. The programs send such a lease's packets to UDP port 8472 of that machine, as they
/// would to any other that is no member; the host's own way to etcd is by the routing table, where leases
/// have no part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings(BTreeMap<Ipv4Addr, Special>);

impl Surroundings {
    /// Of a host with these addresses, each with its prefix length, and these default gateways.
    pub fn new(
        addresses: impl IntoIterator<Item = (Ipv4Addr, u8)>,
        gateways: impl IntoIterator<Item = Ipv4Addr>,
    ) -> Self {
        let mut special: BTreeMap<_, _> =
            gateways.into_iter().map(|gateway| (gateway, Special::Gateway)).collect();
        let addresses: Vec<_> = addresses.into_iter().collect();
        // On a link of two there is no broadcast, and on /32 no link.
        let links = addresses
            .iter()
            .filter(|(_, length)| (1..=30).contains(length))
            .filter_map(|(address, length)| Ipv4Network::new(*address, *length).ok());
        for link in links {
            let subnet = Ipv4Network::new(link.network(), link.prefix()).unwrap_or(link);
            special.insert(link.network(), Special::Broadcast(subnet));
            special.insert(link.broadcast(), Special::Broadcast(subnet));
        }
        special.extend(addresses.iter().map(|(address, _)| (*address, Special::Ours)));
        Self(special)
    }

    /// Asks the kernel.
    pub async fn observe(handle: &Handle) -> Result<Self> {
        let mut addresses = Vec::new();
        for message in dump::addresses(handle).await? {
            if message.header.family != AddressFamily::Inet {
                continue;
            }
            addresses.extend(message.attributes.iter().filter_map(|attribute| match attribute {
                AddressAttribute::Local(std::net::IpAddr::V4(address)) => {
                    Some((*address, message.header.prefix_len))
                }
                _ => None,
            }));
        }
        let routes = dump::routes(handle, |route| default_gateway(route).is_some()).await?;
        Ok(Self::new(addresses, routes.iter().filter_map(default_gateway)))
    }

    /// What an address is here, if anything.
    pub(super) fn special(&self, address: Ipv4Addr) -> Option<Special> {
        self.0.get(&address).copied()
    }

    /// The addresses that are not the same in both.
    pub(super) fn difference(&self, other: &Self) -> Vec<Ipv4Addr> {
        let missing = |from: &Self, to: &Self| {
            from.0
                .iter()
                .filter(|(address, special)| to.0.get(address) != Some(special))
                .map(|(address, _)| *address)
                .collect::<Vec<_>>()
        };
        [missing(self, other), missing(other, self)].concat()
    }
}

fn default_gateway(message: &RouteMessage) -> Option<Ipv4Addr> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.destination_prefix_length != 0 {
        return None;
    }
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn a_hosts_own_addresses_links_and_gateways_are_special() {
        let here = Surroundings::new(
            [(address("192.168.33.10"), 24), (address("10.9.9.9"), 32), (address("10.8.8.8"), 31)],
            [address("192.168.33.1")],
        );
        let subnet = "192.168.33.0/24".parse().unwrap();
        for (text, expected) in [
            ("192.168.33.10", Some(Special::Ours)),
            ("10.9.9.9", Some(Special::Ours)),
            ("192.168.33.1", Some(Special::Gateway)),
            ("192.168.33.255", Some(Special::Broadcast(subnet))),
            ("192.168.33.0", Some(Special::Broadcast(subnet))),
            ("192.168.33.11", None),
            ("10.8.8.9", None),
        ] {
            assert_eq!(here.special(address(text)), expected, "{text}");
        }
        let moved = Surroundings::new([(address("192.168.33.11"), 24)], []);
        let mut difference = here.difference(&moved);
        difference.sort_unstable();
        difference.dedup();
        let expected = ["10.8.8.8", "10.9.9.9", "192.168.33.1", "192.168.33.10", "192.168.33.11"];
        assert_eq!(difference, expected.map(address));
    }
}
