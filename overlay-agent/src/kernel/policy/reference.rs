//! What a policy means, rule by rule: what the programs' decisions are compared with.

use std::net::Ipv4Addr;

use overlay_lease::config::policy::{Policy, Rule, Service};

/// The beginning of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyFlow {
    /// Who begins it.
    pub from: Ipv4Addr,
    /// Whom it is for.
    pub to: Ipv4Addr,
    /// IPv4 protocol number.
    pub protocol: u8,
    /// Destination port; that of protocols without any does not matter.
    pub port: u16,
}

/// The place of the first rule that concerns a flow.
pub fn verdict(policy: &Policy, flow: &PolicyFlow) -> Option<usize> {
    policy.iter().position(|rule| concerns(rule, flow))
}

fn concerns(rule: &Rule, flow: &PolicyFlow) -> bool {
    rule.from.contains(flow.from)
        && rule.to.contains(flow.to)
        && match &rule.service {
            Service::Any => true,
            Service::Protocol(protocol) => *protocol == flow.protocol,
            Service::Ports(protocol, ports) => {
                *protocol == flow.protocol && ports.contains(&flow.port)
            }
        }
}
