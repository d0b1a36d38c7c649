use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use overlay_common::InvalidVni;

use super::{ENCAPSULATION_OVERHEAD, MIN_IPV4_MTU, policy::PolicyError};

/// The first rule that a network config violates: which field, which rule.
///
/// The text is complete; there is no source to add to it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is no JSON.
    #[error("not valid JSON: {error}")]
    Syntax {
        /// Where and why.
        error: serde_json::Error,
    },

    /// The JSON is something other than an object.
    #[error("the network config must be a JSON object, but is {0}")]
    NotAnObject(&'static str),

    /// A field holds a value of another JSON type than it must.
    #[error("{field} must be {expected}, but is {found}")]
    WrongKind {
        /// The field, with its path.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },

    /// A number is negative, has a fraction, or exceeds what the field can hold.
    #[error("{field} must be a whole number from 0 to {max}, but is {found}")]
    NumberRange {
        /// The field, with its path.
        field: &'static str,
        /// The largest value that the field can hold.
        max: u32,
        /// The number as written.
        found: String,
    },

    /// `Network` is absent.
    #[error("Network is missing: it must be an IPv4 range such as \"10.5.0.0/16\"")]
    NoNetwork,

    /// `Network` is no IPv4 CIDR.
    #[error("Network must be an IPv4 range such as \"10.5.0.0/16\", but is {0:?}")]
    BadNetwork(String),

    /// An address field holds something else.
    #[error("{field} must be an IPv4 address, but is {found:?}")]
    BadAddress {
        /// The field.
        field: &'static str,
        /// The text it holds.
        found: String,
    },

    /// `EnableIPv6` is true.
    #[error("EnableIPv6 is true, but IPv6 is not supported yet: set it to false")]
    Ipv6,

    /// `EnableIPv4` is false, which leaves no address family.
    #[error("EnableIPv4 is false, which leaves no address family to carry: set it to true")]
    NoFamily,

    /// No `SubnetLen`, and the network is too small to derive one.
    #[error("Network {0} is too small to be divided: without SubnetLen it may be at most /28")]
    NetworkTooSmall(Ipv4Network),

    /// `SubnetLen` is above 30.
    #[error("SubnetLen must be at most 30, so that a host has room for containers, but is {0}")]
    SubnetTooSmall(u8),

    /// `SubnetLen` leaves room for fewer than four subnets.
    #[error(
        "SubnetLen must be at least {min} for Network {network}, so that there are at least four \
         subnets, but is {len}",
        min = network.prefix() + 2
    )]
    SubnetTooLarge {
        /// The length as given.
        len: u8,
        /// The network it does not fit.
        network: Ipv4Network,
    },

    /// `SubnetMin` or `SubnetMax` is elsewhere.
    #[error("{name} {address} is outside Network {network}")]
    OutsideNetwork {
        /// `SubnetMin` or `SubnetMax`.
        name: &'static str,
        /// Its value.
        address: Ipv4Addr,
        /// The network.
        network: Ipv4Network,
    },

    /// `SubnetMin` or `SubnetMax` is not where a subnet begins.
    #[error("{name} {address} is not the first address of a /{len} subnet (SubnetLen is {len})")]
    Unaligned {
        /// `SubnetMin` or `SubnetMax`.
        name: &'static str,
        /// Its value.
        address: Ipv4Addr,
        /// The subnets' prefix length.
        len: u8,
    },

    /// There is no subnet between `SubnetMin` and `SubnetMax`.
    #[error("SubnetMin {min} is after SubnetMax {max}, which leaves no subnet to lease")]
    EmptyRange {
        /// The first subnet.
        min: Ipv4Addr,
        /// The last subnet.
        max: Ipv4Addr,
    },

    /// `Backend` has no `Type`.
    #[error("Backend.Type is missing: it must be \"vxlan\"")]
    NoBackendType,

    /// `Backend.Type` is not vxlan.
    #[error("Backend.Type is {name:?}, {}: it must be \"vxlan\"", reason_against(name))]
    BackendType {
        /// The type as given.
        name: String,
    },

    /// `Backend.VNI` does not fit.
    #[error("Backend.VNI: {error}")]
    Vni {
        /// The rule.
        error: InvalidVni,
    },

    /// `Backend.MTU` leaves no room for a packet.
    #[error(
        "Backend.MTU is the underlay's MTU and must be at least {min}, so that {MIN_IPV4_MTU} bytes \
         remain after encapsulation, but is {0}",
        min = MIN_IPV4_MTU + ENCAPSULATION_OVERHEAD
    )]
    Mtu(u16),

    /// `Rules` is no mode.
    #[error("Rules must be \"auto\", \"honour\" or \"bypass\", but is {found:?}")]
    Rules {
        /// What is there.
        found: String,
    },

    /// `Policy` is no policy.
    #[error("{0}")]
    Policy(#[from] PolicyError),
}

impl ConfigError {
    /// Whether the config asks for what this agent does not do, so that waiting for a better text is waiting for
    /// another decision. flanneld ends there, too, or does what we cannot.
    pub const fn is_beyond_us(&self) -> bool {
        matches!(self, Self::Ipv6 | Self::NoFamily | Self::NoBackendType | Self::BackendType { .. })
    }
}

/// Why a backend that flannel has is none of ours.
fn reason_against(backend: &str) -> &'static str {
    match backend.to_ascii_lowercase().as_str() {
        "udp" => "which tunnels packets through a user-space process",
        "host-gw" => "which routes without a tunnel and so needs all hosts on one link",
        "wireguard" | "ipsec" => "which encrypts, and that is not supported",
        "ipip" => "which is another encapsulation than the one this agent speaks",
        "alloc" => "which leases subnets but carries no packets",
        "extension" => "which runs commands of its own to carry packets",
        "ali-vpc" | "aws-vpc" | "gce" | "tencent-vpc" => "which programs a cloud's route table",
        _ => "which is no backend that flannel knows",
    }
}
