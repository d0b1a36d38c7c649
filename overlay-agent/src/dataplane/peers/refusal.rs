//! Why a lease is not believed.

use std::{fmt, net::Ipv4Addr};

use ipnetwork::Ipv4Network;

/// The rule that a lease violates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its subnet is not in the network.
    Outside(Ipv4Network),
    /// Its subnet is the whole network, or more.
    Covers(Ipv4Network),
    /// Its subnet has addresses of our own lease.
    OverlapsOurs(Ipv4Network),
    /// Its subnet has addresses of a lease that is older.
    OverlapsOlder {
        /// That lease's subnet.
        subnet: Ipv4Network,
        /// Whose it is.
        public_ip: Ipv4Addr,
    },
    /// Nobody can be reached at its public address.
    Address(Ipv4Addr, Special),
    /// Its MAC is that of our own tunnel device.
    OurMac,
    /// Its public address has so many older leases.
    TooMany {
        /// The public address.
        public_ip: Ipv4Addr,
        /// How many are believed.
        most: usize,
    },
}

/// What an address is that no peer can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// 0.0.0.0/8.
    ThisNetwork,
    /// 127.0.0.0/8.
    Loopback,
    /// 224.0.0.0/4.
    Multicast,
    /// 240.0.0.0/4, the limited broadcast address included.
    Reserved,
    /// Inside the overlay network, which is reached through peers.
    Overlay(Ipv4Network),
    /// One of this host's.
    Ours,
    /// The first or the last one of a subnet that this host is in.
    Broadcast(Ipv4Network),
    /// This host's default gateway.
    Gateway,
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outside(network) => write!(out, "it is outside the network {network}"),
            Self::Covers(network) => write!(out, "it covers the whole network {network}"),
            Self::OverlapsOurs(subnet) => write!(out, "it overlaps our own subnet {subnet}"),
            Self::OverlapsOlder { subnet, public_ip } => {
                write!(out, "it overlaps {subnet}, which {public_ip} has had for longer")
            }
            Self::Address(address, special) => {
                write!(out, "its public address {address} {special}")
            }
            Self::OurMac => out.write_str("its VtepMAC is that of our own tunnel device"),
            Self::TooMany { public_ip, most } => {
                write!(out, "{public_ip} has {most} older leases, and no host gets more")
            }
        }
    }
}

impl fmt::Display for Special {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ThisNetwork => out.write_str("is in 0.0.0.0/8, which no host has"),
            Self::Loopback => out.write_str("is a loopback address"),
            Self::Multicast => out.write_str("is a multicast address"),
            Self::Reserved => out.write_str("is in 240.0.0.0/4, which no host has"),
            Self::Overlay(network) => write!(out, "is inside the overlay network {network}"),
            Self::Ours => out.write_str("is this host's own"),
            Self::Broadcast(subnet) => write!(out, "means all hosts of {subnet}"),
            Self::Gateway => out.write_str("is this host's default gateway"),
        }
    }
}

/// What an address is by itself.
pub(super) fn special(address: Ipv4Addr, network: Ipv4Network) -> Option<Special> {
    match address.octets() {
        [0, ..] => Some(Special::ThisNetwork),
        [127, ..] => Some(Special::Loopback),
        [224..=239, ..] => Some(Special::Multicast),
        [240..=255, ..] => Some(Special::Reserved),
        _ => network.contains(address).then_some(Special::Overlay(network)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_no_host_has_are_told_apart() {
        let network = "10.1.0.0/16".parse().unwrap();
        for (address, expected) in [
            ("0.0.0.0", Some(Special::ThisNetwork)),
            ("0.1.2.3", Some(Special::ThisNetwork)),
            ("127.0.0.1", Some(Special::Loopback)),
            ("224.0.0.1", Some(Special::Multicast)),
            ("239.255.255.255", Some(Special::Multicast)),
            ("240.0.0.1", Some(Special::Reserved)),
            ("255.255.255.255", Some(Special::Reserved)),
            ("10.1.7.1", Some(Special::Overlay(network))),
            ("10.2.7.1", None),
            ("223.255.255.255", None),
            ("1.0.0.1", None),
        ] {
            assert_eq!(special(address.parse().unwrap(), network), expected, "{address}");
        }
    }
}
