//! The network config: the JSON at `<prefix>/config` that all hosts of a network share.
//!
//! Every field, default and limit is flannel's, so that one config serves both; `Policy` and `Rules` are ours, and flannel passes them over. What flannel
//! accepts and we cannot do is refused by name with the reason, never ignored.

pub mod change;
mod error;
mod fields;
pub mod policy;
mod rules;

use std::{fmt, net::Ipv4Addr};

use ipnetwork::Ipv4Network;
use overlay_common::Vni;
use serde_json::{Map, Value};

use self::policy::Policy;
pub use self::{
    error::ConfigError,
    rules::{RulesMode, UnknownMode},
};
use crate::json;

/// The UDP port that Linux gives a VXLAN device when none is asked for, and that flannel therefore
/// uses (not IANA's 4789).
pub const DEFAULT_PORT: u16 = 8472;

/// What VXLAN over IPv4 adds to a packet: Ethernet 14, IPv4 20, UDP 8, VXLAN 8.
pub const ENCAPSULATION_OVERHEAD: u16 = 50;

/// The smallest MTU IPv4 allows (RFC 791), which is therefore the smallest for the overlay.
const MIN_IPV4_MTU: u16 = 68;

/// A network config in which every rule holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The whole overlay's address range.
    pub network: Ipv4Network,
    /// The prefix length of the subnet that each host gets.
    pub subnet_len: u8,
    /// The first subnet that may be leased.
    pub subnet_min: Ipv4Addr,
    /// The last subnet that may be leased.
    pub subnet_max: Ipv4Addr,
    /// The VXLAN network identifier on the wire.
    pub vni: Vni,
    /// The UDP destination port on the wire.
    pub port: u16,
    /// The underlay's MTU, where the config overrides what the uplink says.
    pub mtu: Option<u16>,
    /// Whether hosts on one link should route to each other without encapsulation.
    pub direct_routing: bool,
    /// Whether packets carry their mark to other hosts, as the group of VXLAN's group policy extension.
    pub gbp: bool,
    /// What rules of hosts' firewalls mean for the overlay, on hosts that were not told by `--rules`. flannel, for which rules always
    /// hold, knows nothing of it.
    pub rules: Option<RulesMode>,
    /// What containers may begin with each other. flannel knows nothing of it.
    pub policy: Policy,
}

/// A config together with what the operator should hear about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedConfig {
    /// The config itself.
    pub config: NetworkConfig,
    /// What was understood differently from how flannel would have, or has no effect here.
    pub notes: Vec<ConfigNote>,
}

/// Something in a valid config that deserves a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigNote {
    /// There is no `Backend`.
    BackendAssumed,
    /// `Backend.Learning` is true.
    LearningIgnored,
    /// `EnableNFTables` is true.
    NfTablesIgnored,
}

impl fmt::Display for ConfigNote {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::BackendAssumed => {
                "Backend is absent: taken as {\"Type\":\"vxlan\"}, as flannel's documentation says; \
                 a flanneld in the same network would use udp, so write it out"
            }
            Self::LearningIgnored => {
                "Backend.Learning has no effect here: addresses come from leases, and nothing is \
                 learned from packets"
            }
            Self::NfTablesIgnored => {
                "EnableNFTables has no effect here: packets are carried without firewall rules"
            }
        })
    }
}

impl NetworkConfig {
    /// Reads the JSON text of a network config and checks every rule.
    pub fn parse(text: &[u8]) -> Result<ParsedConfig, ConfigError> {
        let value: Value =
            serde_json::from_slice(text).map_err(|error| ConfigError::Syntax { error })?;
        let Value::Object(fields) = &value else {
            return Err(ConfigError::NotAnObject(json::kind(&value)));
        };
        let mut notes = Vec::new();

        check_families(fields)?;
        if fields::boolean(fields, "EnableNFTables", "EnableNFTables")?.unwrap_or(false) {
            notes.push(ConfigNote::NfTablesIgnored);
        }
        let network = fields::network(fields, "Network")?;
        let subnet_len = subnet_len(fields, network)?;
        let (subnet_min, subnet_max) = subnet_range(fields, network, subnet_len)?;
        let backend = Backend::parse(fields, &mut notes)?;

        let config = Self {
            network,
            subnet_len,
            subnet_min,
            subnet_max,
            vni: backend.vni,
            port: backend.port,
            mtu: backend.mtu,
            direct_routing: backend.direct_routing,
            gbp: backend.gbp,
            rules: rules(fields)?,
            policy: json::member(fields, "Policy").map_or(Ok(Policy::new()), policy::parse)?,
        };
        Ok(ParsedConfig { config, notes })
    }

    /// Whether `subnet` is one that this config would hand out today.
    pub fn admits(&self, subnet: Ipv4Network) -> bool {
        subnet.prefix() == self.subnet_len
            && subnet.ip() == subnet.network()
            && (self.subnet_min..=self.subnet_max).contains(&subnet.network())
    }

    /// How many hosts the range between the first and the last subnet has room for.
    pub fn capacity(&self) -> u64 {
        let distance = u32::from(self.subnet_max) - u32::from(self.subnet_min);
        u64::from(distance >> (32 - self.subnet_len)) + 1
    }

    /// The MTU inside the overlay, on an uplink that carries `uplink_mtu` bytes.
    ///
    /// A configured MTU wider than the uplink would only produce packets that the uplink refuses,
    /// so the smaller of the two counts.
    pub fn overlay_mtu(&self, uplink_mtu: u16) -> u16 {
        let underlay = self.mtu.map_or(uplink_mtu, |mtu| mtu.min(uplink_mtu));
        underlay.saturating_sub(ENCAPSULATION_OVERHEAD)
    }
}

fn rules(fields: &Map<String, Value>) -> Result<Option<RulesMode>, ConfigError> {
    match json::member(fields, "Rules") {
        None => Ok(None),
        Some(Value::String(mode)) => {
            mode.parse().map(Some).map_err(|UnknownMode| ConfigError::Rules { found: mode.clone() })
        }
        Some(other) => Err(fields::wrong_kind("Rules", "a string", other)),
    }
}

fn check_families(fields: &Map<String, Value>) -> Result<(), ConfigError> {
    if fields::boolean(fields, "EnableIPv6", "EnableIPv6")?.unwrap_or(false) {
        return Err(ConfigError::Ipv6);
    }
    if fields::boolean(fields, "EnableIPv4", "EnableIPv4")?.unwrap_or(true) {
        Ok(())
    } else {
        Err(ConfigError::NoFamily)
    }
}

fn subnet_len(fields: &Map<String, Value>, network: Ipv4Network) -> Result<u8, ConfigError> {
    let given = fields::number(fields, "SubnetLen", "SubnetLen", 32)?
        .and_then(|len| u8::try_from(len).ok())
        .filter(|len| *len != 0);
    let Some(len) = given else {
        return match network.prefix() {
            0..=22 => Ok(24),
            prefix @ 23..=28 => Ok(prefix + 2),
            _ => Err(ConfigError::NetworkTooSmall(network)),
        };
    };
    if len > 30 {
        Err(ConfigError::SubnetTooSmall(len))
    } else if len < network.prefix() + 2 {
        Err(ConfigError::SubnetTooLarge { len, network })
    } else {
        Ok(len)
    }
}

fn subnet_range(
    fields: &Map<String, Value>,
    network: Ipv4Network,
    len: u8,
) -> Result<(Ipv4Addr, Ipv4Addr), ConfigError> {
    let step = 1_u32 << (32 - len);
    let bound = |name: &'static str, default: u32| -> Result<Ipv4Addr, ConfigError> {
        let Some(address) = fields::address(fields, name)? else {
            return Ok(Ipv4Addr::from(default));
        };
        if !network.contains(address) {
            return Err(ConfigError::OutsideNetwork { name, address, network });
        }
        if u32::from(address) & (step - 1) != 0 {
            return Err(ConfigError::Unaligned { name, address, len });
        }
        Ok(address)
    };
    // flannel skips the first subnet; every existing cluster is laid out that way.
    let min = bound("SubnetMin", u32::from(network.network()) + step)?;
    let max = bound("SubnetMax", u32::from(network.broadcast()) - (step - 1))?;
    if min > max {
        return Err(ConfigError::EmptyRange { min, max });
    }
    Ok((min, max))
}

/// The `Backend` object.
struct Backend {
    vni: Vni,
    port: u16,
    mtu: Option<u16>,
    direct_routing: bool,
    gbp: bool,
}

impl Backend {
    fn parse(
        config: &Map<String, Value>,
        notes: &mut Vec<ConfigNote>,
    ) -> Result<Self, ConfigError> {
        let empty = Map::new();
        let fields = match json::member(config, "Backend") {
            None => {
                notes.push(ConfigNote::BackendAssumed);
                &empty
            }
            Some(Value::Object(fields)) => {
                check_backend_type(fields)?;
                fields
            }
            Some(other) => return Err(fields::wrong_kind("Backend", "an object", other)),
        };

        if fields::boolean(fields, "Learning", "Backend.Learning")?.unwrap_or(false) {
            notes.push(ConfigNote::LearningIgnored);
        }
        let vni = fields::number(fields, "VNI", "Backend.VNI", u32::MAX)?.unwrap_or(1);
        let port = fields::number(fields, "Port", "Backend.Port", u32::from(u16::MAX))?;
        let mtu = fields::number(fields, "MTU", "Backend.MTU", u32::from(u16::MAX))?;
        Ok(Self {
            vni: Vni::new(vni).map_err(|error| ConfigError::Vni { error })?,
            port: narrow(port).unwrap_or(DEFAULT_PORT),
            mtu: match narrow(mtu) {
                Some(mtu) if mtu < MIN_IPV4_MTU + ENCAPSULATION_OVERHEAD => {
                    return Err(ConfigError::Mtu(mtu));
                }
                mtu => mtu,
            },
            direct_routing: fields::boolean(fields, "DirectRouting", "Backend.DirectRouting")?
                .unwrap_or(false),
            gbp: fields::boolean(fields, "GBP", "Backend.GBP")?.unwrap_or(false),
        })
    }
}

/// Zero counts as unset, as in Go.
fn narrow(value: Option<u32>) -> Option<u16> {
    value.and_then(|value| u16::try_from(value).ok()).filter(|value| *value != 0)
}

fn check_backend_type(fields: &Map<String, Value>) -> Result<(), ConfigError> {
    match json::member(fields, "Type") {
        None => Err(ConfigError::NoBackendType),
        Some(Value::String(name)) if name.eq_ignore_ascii_case("vxlan") => Ok(()),
        Some(Value::String(name)) => Err(ConfigError::BackendType { name: name.clone() }),
        Some(other) => Err(fields::wrong_kind("Backend.Type", "a string", other)),
    }
}

#[cfg(test)]
mod tests;
