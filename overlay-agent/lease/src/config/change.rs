//! What becomes of a network whose config changes: hosts that run, leases that exist.

use std::{fmt, net::Ipv4Addr};

use ipnetwork::Ipv4Network;

use super::{NetworkConfig, RulesMode};

/// A field that is different in the new config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigChange {
    /// The whole overlay's range.
    Network(Ipv4Network, Ipv4Network),
    /// The VXLAN network identifier.
    Vni(u32, u32),
    /// The UDP port.
    Port(u16, u16),
    /// Which subnets are handed out: length, first, last.
    Range((u8, Ipv4Addr, Ipv4Addr), (u8, Ipv4Addr, Ipv4Addr)),
    /// The underlay's MTU.
    Mtu(Option<u16>, Option<u16>),
    /// Whether hosts on one link route to each other.
    DirectRouting(bool, bool),
    /// Whether packets carry a group: a kernel that expects none drops those that do.
    Gbp(bool, bool),
    /// What rules of hosts' firewalls mean for the overlay.
    Rules(Option<RulesMode>, Option<RulesMode>),
    /// What containers may begin with each other: how many rules there are.
    Policy(usize, usize),
}

impl ConfigChange {
    /// Whether hosts that run on with the old value and hosts that start with the new one could not
    /// talk to each other. Such a change needs a restart of every agent.
    pub const fn parts_hosts(&self) -> bool {
        matches!(self, Self::Network(..) | Self::Vni(..) | Self::Port(..) | Self::Gbp(..))
    }

    /// Whether hosts on one link are to route to each other from now on, if that is the change.
    pub const fn direct_routing(&self) -> Option<bool> {
        match self {
            Self::DirectRouting(_, new) => Some(*new),
            _ => None,
        }
    }
}

impl fmt::Display for ConfigChange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mtu = |mtu: &Option<u16>| match mtu {
            Some(mtu) => mtu.to_string(),
            None => "the uplink's".to_owned(),
        };
        match self {
            Self::Network(old, new) => write!(out, "Network {old} becomes {new}"),
            Self::Vni(old, new) => write!(out, "Backend.VNI {old} becomes {new}"),
            Self::Port(old, new) => write!(out, "Backend.Port {old} becomes {new}"),
            Self::Range(old, new) => {
                let range = |(len, min, max): &(u8, Ipv4Addr, Ipv4Addr)| {
                    format!("/{len} from {min} to {max}")
                };
                write!(out, "the range of subnets, {}, becomes {}", range(old), range(new))
            }
            Self::Mtu(old, new) => write!(out, "Backend.MTU {} becomes {}", mtu(old), mtu(new)),
            Self::DirectRouting(old, new) => {
                write!(out, "Backend.DirectRouting {old} becomes {new}")
            }
            Self::Rules(old, new) => write!(out, "Rules {} becomes {}", rules(*old), rules(*new)),
            Self::Gbp(old, new) => write!(out, "Backend.GBP {old} becomes {new}"),
            Self::Policy(old, new) => {
                write!(out, "Policy of {old} rules becomes another of {new}")
            }
        }
    }
}

const fn rules(mode: Option<RulesMode>) -> &'static str {
    match mode {
        Some(mode) => mode.name(),
        None => "unset",
    }
}

/// What is different in `new`, what parts hosts first.
pub fn changes(old: &NetworkConfig, new: &NetworkConfig) -> Vec<ConfigChange> {
    let range = |config: &NetworkConfig| (config.subnet_len, config.subnet_min, config.subnet_max);
    [
        (old.network != new.network).then_some(ConfigChange::Network(old.network, new.network)),
        (old.vni != new.vni).then(|| ConfigChange::Vni(old.vni.get(), new.vni.get())),
        (old.port != new.port).then_some(ConfigChange::Port(old.port, new.port)),
        (range(old) != range(new)).then(|| ConfigChange::Range(range(old), range(new))),
        (old.mtu != new.mtu).then_some(ConfigChange::Mtu(old.mtu, new.mtu)),
        (old.direct_routing != new.direct_routing)
            .then_some(ConfigChange::DirectRouting(old.direct_routing, new.direct_routing)),
        (old.gbp != new.gbp).then_some(ConfigChange::Gbp(old.gbp, new.gbp)),
        (old.rules != new.rules).then_some(ConfigChange::Rules(old.rules, new.rules)),
        (old.policy != new.policy)
            .then_some(ConfigChange::Policy(old.policy.len(), new.policy.len())),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Why a config must not be written over another one without being told to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Harm {
    /// Leases that the new config would not hand out: their hosts would move at their next start.
    pub stranded: Vec<Ipv4Network>,
    /// Changes that part hosts which run from hosts which start.
    pub parting: Vec<ConfigChange>,
}

impl Harm {
    /// What `new` would do to a network that has these leases.
    pub fn of(
        old: Option<&NetworkConfig>,
        new: &NetworkConfig,
        leases: impl IntoIterator<Item = Ipv4Network>,
    ) -> Self {
        let mut any = false;
        let stranded: Vec<_> = leases
            .into_iter()
            .inspect(|_| any = true)
            .filter(|subnet| !new.admits(*subnet))
            .collect();
        let parting = match old {
            // With nobody there, nobody is parted.
            Some(old) if any => {
                changes(old, new).into_iter().filter(ConfigChange::parts_hosts).collect()
            }
            _ => Vec::new(),
        };
        Self { stranded, parting }
    }

    /// Whether there is none.
    pub const fn is_none(&self) -> bool {
        self.stranded.is_empty() && self.parting.is_empty()
    }
}

/// How many subnets a message names.
const NAMED: usize = 5;

impl fmt::Display for Harm {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut reasons = Vec::new();
        if !self.stranded.is_empty() {
            let mut names: Vec<_> =
                self.stranded.iter().take(NAMED).map(Ipv4Network::to_string).collect();
            if self.stranded.len() > NAMED {
                names.push("…".to_owned());
            }
            let leases = match self.stranded.len() {
                1 => "1 lease".to_owned(),
                count => format!("{count} leases"),
            };
            reasons.push(format!(
                "{leases} would not be allowed any more, and their hosts would move to other subnets \
                 at their next start: {}",
                names.join(", ")
            ));
        }
        if !self.parting.is_empty() {
            let parting: Vec<_> = self.parting.iter().map(ConfigChange::to_string).collect();
            reasons.push(format!(
                "hosts that start with it could not talk to those that run, until all are restarted: \
                 {}",
                parting.join(", ")
            ));
        }
        out.write_str(&reasons.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> NetworkConfig {
        NetworkConfig::parse(text.as_bytes()).unwrap().config
    }

    const OLD: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

    #[test]
    fn the_same_config_in_other_words_changes_nothing() {
        let same = r#"{"network":"10.5.9.9/16","SubnetLen":24,"Backend":{"Type":"VXLAN","VNI":1}}"#;
        assert_eq!(changes(&config(OLD), &config(same)), []);
    }

    #[test]
    fn every_change_is_named_with_both_values() {
        let new = r#"{"Network":"10.0.0.0/8","SubnetLen":24,
            "Backend":{"Type":"vxlan","VNI":7,"Port":4789,"MTU":1400,"DirectRouting":true,"GBP":true},
            "Rules":"honour",
            "Policy":[{"Name":"none","Action":"deny"}]}"#;
        let said: Vec<_> =
            changes(&config(OLD), &config(new)).iter().map(ConfigChange::to_string).collect();
        assert_eq!(
            said,
            [
                "Network 10.5.0.0/16 becomes 10.0.0.0/8",
                "Backend.VNI 1 becomes 7",
                "Backend.Port 8472 becomes 4789",
                "the range of subnets, /24 from 10.5.1.0 to 10.5.255.0, becomes /24 from 10.0.1.0 to \
                 10.255.255.0",
                "Backend.MTU the uplink's becomes 1400",
                "Backend.DirectRouting false becomes true",
                "Backend.GBP false becomes true",
                "Rules unset becomes honour",
                "Policy of 0 rules becomes another of 1",
            ]
        );
    }

    #[test]
    fn a_narrower_range_harms_only_the_leases_outside() {
        let new = config(r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.9.0"}"#);
        let leases = ["10.5.9.0/24", "10.5.10.0/24"].map(|text| text.parse().unwrap());
        let harm = Harm::of(Some(&config(OLD)), &new, leases);
        assert_eq!(harm.stranded, [leases[1]]);
        assert_eq!(
            harm.to_string(),
            "1 lease would not be allowed any more, and their hosts would move to other subnets at \
             their next start: 10.5.10.0/24"
        );
        assert!(Harm::of(Some(&config(OLD)), &new, [leases[0]]).is_none());
    }

    #[test]
    fn another_vni_harms_nobody_where_nobody_is() {
        let new = config(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7}}"#);
        assert!(Harm::of(Some(&config(OLD)), &new, []).is_none());
        assert!(Harm::of(None, &new, ["10.5.9.0/24".parse().unwrap()]).is_none());
        let harm = Harm::of(Some(&config(OLD)), &new, ["10.5.9.0/24".parse().unwrap()]);
        assert_eq!(harm.parting, [ConfigChange::Vni(1, 7)]);
    }
}
