//! The uplink: the interface and the address by which other hosts reach this one.
//!
//! Choosing is pure; [`observe`] says what there is to choose from.

mod observe;

use std::{fmt, net::Ipv4Addr};

use overlay_common::MacAddr;
use regex::Regex;

pub use self::observe::{discover, observe};

/// How to choose the uplink.
#[derive(Clone, Debug, Default)]
pub struct UplinkConfig {
    /// Names or addresses, in order.
    pub ifaces: Vec<String>,
    /// Expressions for addresses or names, in order.
    pub regexes: Vec<Regex>,
    /// A host to be reached.
    pub can_reach: Option<Ipv4Addr>,
    /// The address to publish, if it is not the uplink's.
    pub public_ip: Option<Ipv4Addr>,
}

/// The chosen interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// The interface's index.
    pub ifindex: u32,
    /// The interface's name.
    pub name: String,
    /// The host's address from which outer packets are sent: the public one, if the host has that; otherwise one of
    /// the interface's own.
    pub address: Ipv4Addr,
    /// Whether that is one of the interface's own; otherwise it is another interface's, a loopback's for example.
    pub has_address: bool,
    /// The address that others send to: the same, unless `--public-ip` says otherwise.
    pub public_ip: Ipv4Addr,
    /// What the interface carries. 65,535 also stands for more.
    pub mtu: u16,
    /// The interface's own MAC, if it is of a kind that has one.
    pub mac: Option<MacAddr>,
}

/// An interface, as far as choosing is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its MTU.
    pub mtu: u32,
    /// Its MAC.
    pub mac: Option<MacAddr>,
    /// Its IPv4 addresses, in the kernel's order.
    pub addresses: Vec<Address>,
}

/// An IPv4 address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: Ipv4Addr,
    /// Whether it is of use beyond its link.
    pub global: bool,
    /// Whether it has no lifetime.
    pub permanent: bool,
    /// Whether it should not be used for anything new.
    pub deprecated: bool,
}

/// What this host has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UplinkCandidates {
    /// The interfaces, in order of their indexes.
    pub interfaces: Vec<Interface>,
    /// The default routes of the main table: metric and interface.
    pub default_routes: Vec<(u32, u32)>,
    /// The interface by which the kernel would reach `--iface-can-reach`.
    pub reaching: Option<u32>,
}

/// No interface is as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// Of all that was given, nothing matches.
    #[error("no interface is usable for {asked}; there are {there_are}")]
    NoMatch {
        /// The flags and their values.
        asked: String,
        /// The interfaces there are.
        there_are: String,
    },
    /// What was given names an interface that no other host can reach.
    #[error(
        "no interface is usable for {asked}: other hosts cannot reach {name} at a loopback address; there \
         are {there_are}"
    )]
    Loopback {
        /// The flags and their values.
        asked: String,
        /// The interface.
        name: String,
        /// The interfaces there are.
        there_are: String,
    },
    /// `--public-ip` alone.
    #[error(
        "no interface has --public-ip {public_ip}; there are {there_are}; behind NAT, name the \
         interface with --iface too"
    )]
    NoOwner {
        /// The address.
        public_ip: Ipv4Addr,
        /// The interfaces there are.
        there_are: String,
    },
    /// Nothing was given, and nothing suggests itself.
    #[error(
        "no default route leads out of an interface with an IPv4 address; there are {there_are}; name \
         one with --iface"
    )]
    NoDefaultRoute {
        /// The interfaces there are.
        there_are: String,
    },
}

/// Chooses as flannel does: by name or address in the order given, by expression, by what is
/// reached; otherwise the owner of the public address; otherwise the way out.
pub fn choose(config: &UplinkConfig, observed: &UplinkCandidates) -> Result<Uplink, UplinkError> {
    let there_are = || describe(&observed.interfaces);
    let asked = asked(config);
    let found = if !asked.is_empty() {
        named(config, observed).ok_or_else(|| {
            let (asked, there_are) = (asked.join(", "), there_are());
            match loopback(config, observed) {
                Some(name) => UplinkError::Loopback { asked, name, there_are },
                None => UplinkError::NoMatch { asked, there_are },
            }
        })?
    } else if let Some(public_ip) = config.public_ip {
        let owner = owner(observed, public_ip)
            .ok_or_else(|| UplinkError::NoOwner { public_ip, there_are: there_are() })?;
        // Nothing leaves by a loopback: such a host is known by an address that all its interfaces lead to.
        if owner.0.addresses.iter().any(|address| address.ip.is_loopback()) {
            way_out(observed)
                .ok_or_else(|| UplinkError::NoDefaultRoute { there_are: there_are() })?
        } else {
            owner
        }
    } else {
        way_out(observed).ok_or_else(|| UplinkError::NoDefaultRoute { there_are: there_are() })?
    };
    let (interface, own) = found;
    // Of several addresses of the host, outer packets come from the one that others know, as flannel's device
    // has it as its `local`. Behind NAT it is no address of ours.
    let address = config.public_ip.filter(|ip| owner(observed, *ip).is_some()).unwrap_or(own);
    Ok(Uplink {
        ifindex: interface.ifindex,
        name: interface.name.clone(),
        address,
        has_address: interface.addresses.iter().any(|own| own.ip == address),
        public_ip: config.public_ip.unwrap_or(address),
        mtu: u16::try_from(interface.mtu).unwrap_or(u16::MAX),
        mac: interface.mac,
    })
}

type Found<'a> = (&'a Interface, Ipv4Addr);

fn named<'a>(config: &UplinkConfig, observed: &'a UplinkCandidates) -> Option<Found<'a>> {
    let by_name_or_address = config.ifaces.iter().find_map(|wanted| match wanted.parse() {
        Ok(address) => owner(observed, address),
        Err(_) => observed
            .interfaces
            .iter()
            .filter(|interface| interface.name == *wanted)
            .find_map(with_best_address),
    });
    let by_regex = || {
        config.regexes.iter().find_map(|regex| {
            let by_address = observed.interfaces.iter().find_map(|interface| {
                let matching = |address: &&Address| {
                    !address.ip.is_loopback() && regex.is_match(&address.ip.to_string())
                };
                let address = interface.addresses.iter().find(matching)?;
                Some((interface, address.ip))
            });
            let mut by_name =
                observed.interfaces.iter().filter(|interface| regex.is_match(&interface.name));
            by_address.or_else(|| by_name.find_map(with_best_address))
        })
    };
    let by_reach = || by_index(observed, observed.reaching?);
    by_name_or_address.or_else(by_regex).or_else(by_reach)
}

/// The loopback interface that the flags name, if they do.
fn loopback(config: &UplinkConfig, observed: &UplinkCandidates) -> Option<String> {
    let is_named = |interface: &&Interface, address: &Address| {
        let ip = address.ip.to_string();
        config.ifaces.iter().any(|wanted| *wanted == interface.name || *wanted == ip)
            || config
                .regexes
                .iter()
                .any(|regex| regex.is_match(&ip) || regex.is_match(&interface.name))
            || observed.reaching == Some(interface.ifindex)
    };
    let named = observed.interfaces.iter().find(|interface| {
        let addresses = &interface.addresses;
        addresses.iter().any(|address| address.ip.is_loopback() && is_named(interface, address))
    });
    named.map(|interface| interface.name.clone())
}

fn owner(observed: &UplinkCandidates, ip: Ipv4Addr) -> Option<Found<'_>> {
    observed
        .interfaces
        .iter()
        .filter(|_| !ip.is_loopback())
        .find(|interface| interface.addresses.iter().any(|address| address.ip == ip))
        .map(|interface| (interface, ip))
}

/// The default route with the lowest metric, of those that lead anywhere usable.
fn way_out(observed: &UplinkCandidates) -> Option<Found<'_>> {
    let mut routes = observed.default_routes.clone();
    // Stable: among equals the kernel's order counts.
    routes.sort_by_key(|(metric, _)| *metric);
    routes.into_iter().find_map(|(_, ifindex)| by_index(observed, ifindex))
}

fn by_index(observed: &UplinkCandidates, ifindex: u32) -> Option<Found<'_>> {
    observed
        .interfaces
        .iter()
        .filter(|interface| interface.ifindex == ifindex)
        .find_map(with_best_address)
}

/// Global before link-local, permanent before dynamic, deprecated never; otherwise the first. Loopback
/// addresses are no addresses here: other hosts would send to themselves.
fn with_best_address(interface: &Interface) -> Option<Found<'_>> {
    interface
        .addresses
        .iter()
        .filter(|address| !address.deprecated && !address.ip.is_loopback())
        // `min_by_key` takes the first of several.
        .min_by_key(|address| (!address.global, !address.permanent))
        .map(|address| (interface, address.ip))
}

/// The flags that name an interface, as they were given.
fn asked(config: &UplinkConfig) -> Vec<String> {
    let ifaces = config.ifaces.iter().map(|value| format!("--iface {value}"));
    let regexes = config.regexes.iter().map(|value| format!("--iface-regex {value}"));
    let reach = config.can_reach.iter().map(|value| format!("--iface-can-reach {value}"));
    ifaces.chain(regexes).chain(reach).collect()
}

/// `eth0 (192.0.2.1), lo (127.0.0.1), eth1 (no IPv4 address)`.
fn describe(interfaces: &[Interface]) -> String {
    struct One<'a>(&'a Interface);
    impl fmt::Display for One<'_> {
        fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(out, "{} (", self.0.name)?;
            if self.0.addresses.is_empty() {
                out.write_str("no IPv4 address")?;
            }
            for (index, address) in self.0.addresses.iter().enumerate() {
                let comma = if index == 0 { "" } else { ", " };
                write!(out, "{comma}{}", address.ip)?;
            }
            out.write_str(")")
        }
    }
    if interfaces.is_empty() {
        return "none".to_owned();
    }
    let all: Vec<_> = interfaces.iter().map(|interface| One(interface).to_string()).collect();
    all.join(", ")
}

#[cfg(test)]
mod tests;
