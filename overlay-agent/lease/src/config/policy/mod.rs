//! Who in the network may begin what with whom: the `Policy` of a network config.

mod error;
mod parse;

use std::{fmt, ops::RangeInclusive};

use ipnetwork::Ipv4Network;
use overlay_common::packet::{PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP};

pub use self::{error::PolicyError, parse::parse};

/// An ordered list of rules, of which the first that a flow meets counts; what meets none is allowed. Empty where the network
/// has no policy.
pub type Policy = Vec<Rule>;

/// One rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What its denials are counted by.
    pub name: String,
    /// Whom the flow begins with.
    pub from: Ipv4Network,
    /// Whom it is for.
    pub to: Ipv4Network,
    /// Which flows.
    pub service: Service,
    /// What becomes of them.
    pub action: Action,
}

/// Protocols and ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Service {
    /// Everything.
    Any,
    /// One IPv4 protocol.
    Protocol(u8),
    /// Destination ports of TCP or UDP.
    Ports(u8, RangeInclusive<u16>),
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Lets it in, whatever later rules say.
    Allow,
    /// Keeps it out.
    Deny,
}

/// Protocols that have a name.
const PROTOCOLS: [(&str, u8); 3] =
    [("tcp", PROTOCOL_TCP), ("udp", PROTOCOL_UDP), ("icmp", PROTOCOL_ICMP)];

impl fmt::Display for Rule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, from, to, service, action } = self;
        let action = match action {
            Action::Allow => "allow",
            Action::Deny => "deny",
        };
        write!(out, "{name}: {action} {service} from {from} to {to}")
    }
}

impl fmt::Display for Service {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = |number: u8| {
            let known = PROTOCOLS.iter().find(|(_, known)| *known == number);
            known.map_or_else(|| format!("protocol {number}"), |(name, _)| (*name).to_owned())
        };
        match self {
            Self::Any => out.write_str("everything"),
            Self::Protocol(number) => out.write_str(&protocol(*number)),
            Self::Ports(number, ports) if ports.start() == ports.end() => {
                write!(out, "{} port {}", protocol(*number), ports.start())
            }
            Self::Ports(number, ports) => {
                write!(out, "{} ports {}-{}", protocol(*number), ports.start(), ports.end())
            }
        }
    }
}
