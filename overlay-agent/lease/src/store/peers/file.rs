//! The file that `--peers` names: a network and its hosts, in TOML. `docs/peers.toml` is one.

use std::{collections::HashSet, net::Ipv4Addr};

use ipnetwork::Ipv4Network;
use overlay_common::MacAddr;
use serde::Deserialize;
use serde_json::json;

use crate::{
    config::{ConfigError, NetworkConfig},
    wire::{Lease, allocate::overlap},
};

/// A file in which every rule holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeersFile {
    /// The network; its subnets may be of any length, and of those that the config would hand out on its
    /// own nothing is meant.
    pub network: NetworkConfig,
    /// The same in the words of one in etcd.
    pub config: String,
    /// Every host's lease, in order of subnets.
    pub leases: Vec<Lease>,
}

/// The rule that a file violates.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    /// It is no TOML, or a field is missing, unknown or of another type.
    #[error("{0}")]
    Syntax(String),
    /// A field of the network is wrong.
    #[error("{0}")]
    Network(ConfigError),
    /// `public-ip` is no address of a host.
    #[error("public-ip {0} is not the address of a host")]
    PublicIp(Ipv4Addr),
    /// Two hosts with one address.
    #[error("two hosts have public-ip {0}")]
    SamePublicIp(Ipv4Addr),
    /// Two hosts with one MAC.
    #[error("two hosts have vtep-mac {0}: it must be unique in the network")]
    SameMac(MacAddr),
    /// `vtep-mac` is no MAC of a device.
    #[error("vtep-mac of {host} must be a unicast MAC address, but is {found:?}")]
    Mac {
        /// The host.
        host: Ipv4Addr,
        /// What is there.
        found: String,
    },
    /// `subnet` is no subnet that a host could have.
    #[error("subnet of {host} must be an IPv4 subnet such as \"10.5.1.0/24\", but is {found:?}")]
    Subnet {
        /// The host.
        host: Ipv4Addr,
        /// What is there.
        found: String,
    },
    /// `subnet` is elsewhere.
    #[error("subnet {0} is outside network {1}")]
    Outside(Ipv4Network, Ipv4Network),
    /// Two hosts share addresses.
    #[error("subnets {0} and {1} overlap")]
    Overlap(Ipv4Network, Ipv4Network),
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Raw {
    network: String,
    vni: Option<u32>,
    port: Option<u16>,
    mtu: Option<u16>,
    rules: Option<String>,
    #[serde(default)]
    policy: Vec<serde_json::Map<String, serde_json::Value>>,
    #[serde(default)]
    host: Vec<RawHost>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawHost {
    public_ip: Ipv4Addr,
    subnet: String,
    vtep_mac: Option<String>,
}

impl PeersFile {
    /// Reads the text of a file and checks every rule.
    pub fn parse(text: &str) -> Result<Self, PeersError> {
        let raw: Raw = toml::from_str(text)
            .map_err(|error| PeersError::Syntax(error.to_string().trim_end().replace('\n', " ")))?;
        let config = config(&raw);
        let parsed = NetworkConfig::parse(config.as_bytes()).map_err(PeersError::Network)?;
        let network = parsed.config;
        let mut leases =
            raw.host.iter().map(|host| lease(host, &network)).collect::<Result<Vec<_>, _>>()?;
        leases.sort_unstable_by_key(|lease| lease.subnet);
        check_unique(&leases)?;
        Ok(Self { network, config, leases })
    }

    /// The lease of the host with this address.
    pub fn of(&self, public_ip: Ipv4Addr) -> Option<Lease> {
        self.leases.iter().find(|lease| lease.public_ip == public_ip).copied()
    }
}

/// The rules for a network are those for one in etcd.
fn config(raw: &Raw) -> String {
    let mut backend = json!({ "Type": "vxlan" });
    backend["VNI"] = json!(raw.vni);
    backend["Port"] = json!(raw.port);
    backend["MTU"] = json!(raw.mtu);
    json!({
        "Network": raw.network,
        "Backend": backend,
        "Policy": raw.policy,
        "Rules": raw.rules,
    })
    .to_string()
}

fn lease(host: &RawHost, network: &NetworkConfig) -> Result<Lease, PeersError> {
    let public_ip = host.public_ip;
    if public_ip.is_unspecified() || public_ip.is_broadcast() || public_ip.is_multicast() {
        return Err(PeersError::PublicIp(public_ip));
    }
    let vtep_mac = match &host.vtep_mac {
        None => derived_mac(public_ip),
        Some(text) => text
            .parse::<MacAddr>()
            .ok()
            .filter(|mac| mac.is_unicast())
            .ok_or_else(|| PeersError::Mac { host: public_ip, found: text.clone() })?,
    };
    let subnet = subnet(&host.subnet)
        .ok_or_else(|| PeersError::Subnet { host: public_ip, found: host.subnet.clone() })?;
    let whole = network.network;
    if !whole.contains(subnet.network()) || subnet.prefix() < whole.prefix() {
        return Err(PeersError::Outside(subnet, whole));
    }
    Ok(Lease { subnet, public_ip, vtep_mac, vni: Some(network.vni) })
}

/// The MAC of a host that is given none: its address, so that two hosts never have the same.
fn derived_mac(public_ip: Ipv4Addr) -> MacAddr {
    let [a, b, c, d] = public_ip.octets();
    MacAddr([0x02, 0x6f, a, b, c, d])
}

fn subnet(text: &str) -> Option<Ipv4Network> {
    let (address, len) = text.split_once('/')?;
    let subnet = Ipv4Network::new(address.parse().ok()?, len.parse().ok()?).ok()?;
    ((1..=30).contains(&subnet.prefix()) && subnet.network() == subnet.ip()).then_some(subnet)
}

fn check_unique(leases: &[Lease]) -> Result<(), PeersError> {
    // In order of their first addresses, whatever overlaps at all overlaps its neighbour.
    for pair in leases.windows(2) {
        let [first, second] = [pair[0].subnet, pair[1].subnet];
        if overlap(first, second) {
            return Err(PeersError::Overlap(first, second));
        }
    }
    let mut addresses = HashSet::new();
    let mut macs = HashSet::new();
    for lease in leases {
        if !addresses.insert(lease.public_ip) {
            return Err(PeersError::SamePublicIp(lease.public_ip));
        }
        if !macs.insert(lease.vtep_mac) {
            return Err(PeersError::SameMac(lease.vtep_mac));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use overlay_lab::corpus;
    use proptest::prelude::*;

    use super::*;

    const SAMPLE: &str = include_str!("../../../../../docs/peers.toml");

    #[test]
    fn the_documented_sample_is_understood() {
        let file = PeersFile::parse(SAMPLE).unwrap();
        assert_eq!(file.network.network.to_string(), "10.5.0.0/16");
        assert_eq!((file.network.vni.get(), file.network.port, file.network.mtu), (1, 8472, None));
        let leases: Vec<_> = file.leases.iter().map(Lease::to_string).collect();
        assert_eq!(
            leases,
            [
                "10.5.1.0/24 of 192.0.2.1 (02:6f:c0:00:02:01)",
                "10.5.2.0/24 of 192.0.2.2 (02:42:c0:00:02:02)",
            ]
        );
        assert_eq!(file.of(Ipv4Addr::new(192, 0, 2, 2)), Some(file.leases[1]));
        assert_eq!(file.of(Ipv4Addr::new(192, 0, 2, 3)), None);
    }

    #[test]
    fn rules_are_those_of_a_network_config() {
        let rule = |port: &str| {
            format!(
                "network = \"10.5.0.0/16\"\n[[policy]]\nname = \"db\"\nto = \"10.5.2.7\"\nprotocol = \"tcp\"\n\
             port = {port}\naction = \"deny\"\n"
            )
        };
        let file = PeersFile::parse(&rule("5432")).unwrap();
        let said: Vec<_> = file.network.policy.iter().map(ToString::to_string).collect();
        assert_eq!(said, ["db: deny tcp port 5432 from 0.0.0.0/0 to 10.5.2.7/32"]);
        let error = PeersFile::parse(&rule("\"x\"")).unwrap_err().to_string();
        assert!(error.starts_with("Policy[0].Port must be a port"), "{error}");
    }

    #[test]
    fn every_peers_file_of_the_corpus_is_read_as_its_file_says() {
        let differences = corpus::differences("peers", |case| match PeersFile::parse(&case.body) {
            Ok(file) => ("hosts", file.leases.len().to_string()),
            Err(error) => ("refused", error.to_string()),
        });
        assert_eq!(differences.unwrap(), [""; 0]);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*") {
            drop(PeersFile::parse(&text));
        }

        #[test]
        fn whatever_is_accepted_has_no_overlap_and_lies_inside(
            hosts in prop::collection::vec((0_u8..4, 0_u8..8, 22_u8..=30), 0..5)
        ) {
            let text = hosts.iter().fold("network = \"10.5.0.0/16\"\n".to_owned(), |text, (ip, at, len)| {
                text + &format!("[[host]]\npublic-ip = \"192.0.2.{ip}\"\nsubnet = \"10.5.{at}.0/{len}\"\n")
            });
            if let Ok(file) = PeersFile::parse(&text) {
                for (index, lease) in file.leases.iter().enumerate() {
                    prop_assert!(file.network.network.contains(lease.subnet.broadcast()));
                    let apart = file.leases[..index].iter().all(|other| {
                        !overlap(other.subnet, lease.subnet) && other.public_ip != lease.public_ip
                    });
                    prop_assert!(apart);
                }
            }
        }
    }
}
