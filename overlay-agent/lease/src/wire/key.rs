//! The keys: `<prefix>/config`, and `<prefix>/subnets/10.5.52.0-24` for each lease. Beside these, which are flannel's, there
//! is what [`identity`](super::identity) is about, where flannel does not look.
//!
//! A host with two address families appends the second: `…/10.5.52.0-24&fd00:12:13::-56`. We never
//! write that form, but read its first half.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnetwork::Ipv4Network;

/// The place in etcd below which everything of one network lives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyPrefix(String);

impl KeyPrefix {
    /// Normalises `text` the way flannel's `path.Join` does: no empty, `.` or `..` segments, no
    /// trailing slash; a leading slash stays as it is, present or missing.
    pub fn new(text: &str) -> Self {
        let rooted = text.starts_with('/');
        let mut segments = Vec::new();
        for segment in text.split('/') {
            match segment {
                "" | "." => {}
                ".." if segments.last().is_some_and(|last| *last != "..") => {
                    segments.pop();
                }
                ".." if rooted => {}
                segment => segments.push(segment),
            }
        }
        let root = if rooted { "/" } else { "" };
        Self(format!("{root}{}", segments.join("/")))
    }

    /// The key of the network config.
    pub fn config_key(&self) -> String {
        self.join("config")
    }

    /// What all lease keys begin with, the trailing slash included.
    pub fn subnets_dir(&self) -> String {
        self.join("subnets/")
    }

    /// Where hosts ask about what etcd lets them do, the trailing slash included.
    pub fn hosts_dir(&self) -> String {
        self.join("hosts/")
    }

    /// Where those ask who have a token and are no hosts yet, the trailing slash included.
    pub fn join_dir(&self) -> String {
        self.join("join/")
    }

    /// What the hosts keep that decide about others, the trailing slash included. Nobody else can read it.
    pub fn authority_dir(&self) -> String {
        self.join("authority/")
    }

    /// The key of the lease of `subnet`.
    pub fn subnet_key(&self, subnet: Ipv4Network) -> String {
        let mut key = self.subnets_dir();
        key.push_str(&subnet_name(subnet));
        key
    }

    /// The key that says this.
    pub fn key(&self, key: &SubnetKey) -> String {
        format!("{}{key}", self.subnets_dir())
    }

    /// Reads a key below [`subnets_dir`](Self::subnets_dir).
    pub fn parse_subnet_key(&self, key: &[u8]) -> Result<SubnetKey, KeyError> {
        let text = str::from_utf8(key).or(Err(KeyError::NotUtf8))?;
        text.strip_prefix(&self.subnets_dir()).ok_or(KeyError::Elsewhere).and_then(SubnetKey::parse)
    }

    fn join(&self, child: &str) -> String {
        match self.0.as_str() {
            "" => child.to_owned(),
            "/" => format!("/{child}"),
            prefix => format!("{prefix}/{child}"),
        }
    }
}

impl fmt::Display for KeyPrefix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// What the last segment of a lease's key says. In order of addresses, larger subnets first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubnetKey {
    /// The IPv4 subnet.
    pub subnet: Ipv4Network,
    /// The IPv6 subnet of a host that has both families.
    pub ipv6: Option<(Ipv6Addr, u8)>,
}

impl SubnetKey {
    /// Before all others.
    pub const FIRST: Self = Self { subnet: net(Ipv4Addr::UNSPECIFIED, 0), ipv6: None };

    /// After all others.
    pub const LAST: Self = Self {
        subnet: net(Ipv4Addr::BROADCAST, 32),
        ipv6: Some((Ipv6Addr::from_bits(u128::MAX), u8::MAX)),
    };

    /// Accepts exactly the text that flannel writes.
    ///
    /// flannel's own reader is laxer (it looks for a match at the end of the key), but whatever it
    /// accepts beyond its own writing is somebody's typing error, and a route to it would be wrong.
    fn parse(name: &str) -> Result<Self, KeyError> {
        let (v4, v6) = match name.split_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (name, None),
        };
        let subnet = parse_v4(v4)?;
        let ipv6 = v6.map(parse_v6).transpose()?;
        Ok(Self { subnet, ipv6 })
    }
}

impl fmt::Display for SubnetKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&subnet_name(self.subnet))?;
        match self.ipv6 {
            Some((address, length)) => write!(out, "&{address}-{length}"),
            None => Ok(()),
        }
    }
}

/// Why a key below `<prefix>/subnets/` is no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The key holds bytes that are no text.
    #[error("the key is not UTF-8")]
    NotUtf8,
    /// The key does not begin with the prefix.
    #[error("the key is not below the subnets of this network")]
    Elsewhere,
    /// The IPv4 half is not address, dash, length.
    #[error("the key must end in a subnet written as 10.5.52.0-24")]
    Form,
    /// The length is one that a lease cannot have.
    #[error("the prefix length must be from 1 to 31")]
    Length,
    /// There are bits below the prefix.
    #[error("the address is not the first of its subnet")]
    HostBits,
    /// The IPv6 half is wrong.
    #[error("the part after & must be an IPv6 subnet written as fd00:12:13::-56")]
    Ipv6Form,
}

/// For lengths that are right.
const fn net(address: Ipv4Addr, length: u8) -> Ipv4Network {
    match Ipv4Network::new_checked(address, length) {
        Some(network) => network,
        None => panic!("no prefix length"),
    }
}

fn subnet_name(subnet: Ipv4Network) -> String {
    format!("{}-{}", subnet.network(), subnet.prefix())
}

fn parse_v4(text: &str) -> Result<Ipv4Network, KeyError> {
    let (address, len) = text.split_once('-').ok_or(KeyError::Form)?;
    let address: Ipv4Addr = address.parse().or(Err(KeyError::Form))?;
    let len = parse_len(len).ok_or(KeyError::Form)?;
    // flannel reads the length as five bits; and a lease of everything is none.
    if !(1..=31).contains(&len) {
        return Err(KeyError::Length);
    }
    let subnet = Ipv4Network::new(address, len).or(Err(KeyError::Length))?;
    if subnet.network() == address { Ok(subnet) } else { Err(KeyError::HostBits) }
}

fn parse_v6(text: &str) -> Result<(Ipv6Addr, u8), KeyError> {
    let (text, len) = text.rsplit_once('-').ok_or(KeyError::Ipv6Form)?;
    let address: Ipv6Addr = text.parse().or(Err(KeyError::Ipv6Form))?;
    let len = parse_len(len).filter(|len| (1..=127).contains(len));
    match len {
        Some(len) if !text.contains(|c: char| c.is_ascii_uppercase()) => Ok((address, len)),
        _ => Err(KeyError::Ipv6Form),
    }
}

/// A decimal number as a machine writes it: no sign, no leading zero.
fn parse_len(text: &str) -> Option<u8> {
    let len: u8 = text.parse().ok()?;
    (len.to_string() == text).then_some(len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix() -> KeyPrefix {
        KeyPrefix::new("/coreos.com/network")
    }

    fn parse(name: &str) -> Result<SubnetKey, KeyError> {
        prefix().parse_subnet_key(format!("/coreos.com/network/subnets/{name}").as_bytes())
    }

    #[test]
    fn prefixes_are_joined_as_by_gos_path_join() {
        for (text, config) in [
            ("/coreos.com/network", "/coreos.com/network/config"),
            ("/coreos.com/network/", "/coreos.com/network/config"),
            ("//coreos.com///network//", "/coreos.com/network/config"),
            ("coreos.com/network", "coreos.com/network/config"),
            ("/a/./b/../c", "/a/c/config"),
            ("/../a", "/a/config"),
            ("../a", "../a/config"),
            ("a/../..", "../config"),
            ("", "config"),
            ("/", "/config"),
        ] {
            assert_eq!(KeyPrefix::new(text).config_key(), config, "{text:?}");
        }
    }

    #[test]
    fn a_subnets_key_is_flannels_byte_for_byte() {
        let subnet = "10.5.52.0/24".parse().unwrap();
        assert_eq!(prefix().subnet_key(subnet), "/coreos.com/network/subnets/10.5.52.0-24");
        assert_eq!(parse("10.5.52.0-24").unwrap().subnet, subnet);
    }

    #[test]
    fn a_key_of_both_families_is_read() {
        let key = parse("10.12.13.0-24&fd00:12:13::-56").unwrap();
        assert_eq!(key.to_string(), "10.12.13.0-24&fd00:12:13::-56");
        assert_eq!(key.subnet.to_string(), "10.12.13.0/24");
        assert_eq!(key.ipv6, Some(("fd00:12:13::".parse().unwrap(), 56)));
    }

    #[test]
    fn what_is_elsewhere_or_no_text_is_told_from_bad_keys() {
        assert_eq!(
            prefix().parse_subnet_key(b"/coreos.com/network/subnetsX/10.5.52.0-24"),
            Err(KeyError::Elsewhere)
        );
        assert_eq!(
            prefix().parse_subnet_key(b"/coreos.com/network/subnets/\xff"),
            Err(KeyError::NotUtf8)
        );
    }

    proptest! {
        #[test]
        fn every_key_that_we_write_we_read(bits: u32, len in 1_u8..=31) {
            let host = Ipv4Network::new(bits.into(), len).unwrap();
            let subnet = Ipv4Network::new(host.network(), len).unwrap();
            let key = prefix().subnet_key(subnet);
            prop_assert_eq!(
                prefix().parse_subnet_key(key.as_bytes()),
                Ok(SubnetKey { subnet, ipv6: None })
            );
        }

        #[test]
        fn whatever_is_accepted_is_what_would_be_written(name in "[0-9.\\-]{0,20}|\\PC{0,30}") {
            if let Ok(SubnetKey { subnet, ipv6: None }) = parse(&name) {
                prop_assert_eq!(subnet_name(subnet), name);
            }
        }

        #[test]
        fn normalising_a_prefix_twice_changes_nothing(text in "[a./]{0,12}") {
            let once = KeyPrefix::new(&text);
            prop_assert_eq!(KeyPrefix::new(&once.to_string()), once);
        }
    }
}
