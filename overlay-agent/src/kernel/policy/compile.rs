//! What the programs know of a policy. For each of a packet's fields (source, destination, service), the longest prefix
//! that it is in has the set of all rules that concern it by this field; the first rule that is in all three sets is the
//! one. So a decision costs the same however many rules there are.

use std::collections::BTreeMap;

use overlay_common::tables::{POLICY_CAPACITY, POLICY_RULES, PolicyField, PolicyRule, RuleSet};
use overlay_lease::config::policy::{Action, Policy, Rule, Service};

/// A prefix of one of a packet's fields: its length in bits, behind which the value is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldPrefix {
    /// Which field.
    pub field: u8,
    /// Bits of the value that count.
    pub length: u32,
    /// The value.
    pub value: u32,
}

/// A range of ports is 30 prefixes at most, and there are one of sources and one of destinations: whatever a policy says, two
/// banks have room for it.
const _: () = assert!(2 * POLICY_RULES * (30 + 2) <= POLICY_CAPACITY);

/// A policy as the programs want it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// The rules that concern what is in a prefix.
    pub prefixes: BTreeMap<FieldPrefix, RuleSet>,
    /// What each rule does.
    pub rules: Vec<PolicyRule>,
}

impl Compiled {
    /// Of a policy.
    pub fn of(policy: &Policy) -> Self {
        let mut own: BTreeMap<FieldPrefix, RuleSet> = BTreeMap::new();
        for (number, rule) in policy.iter().enumerate() {
            for prefix in prefixes(rule) {
                own.entry(prefix).or_default().add(number);
            }
        }
        let around = |prefix: &FieldPrefix| {
            let mut all = RuleSet::default();
            for length in 0..=prefix.length {
                if let Some(rules) = own.get(&prefix.shortened(length)) {
                    all.extend(rules);
                }
            }
            all
        };
        Self {
            prefixes: own.keys().map(|prefix| (*prefix, around(prefix))).collect(),
            rules: policy.iter().map(compile_rule).collect(),
        }
    }
}

impl FieldPrefix {
    const fn shortened(self, length: u32) -> Self {
        let mask = if length == 0 { 0 } else { u32::MAX << (32 - length) };
        Self { length, value: self.value & mask, ..self }
    }
}

fn compile_rule(rule: &Rule) -> PolicyRule {
    let denies = u32::from(rule.action == Action::Deny);
    PolicyRule { name: name_key(&rule.name), denies, reserved: 0 }
}

/// What denials of a rule are counted by: the same for a name in every version, so that counts outlive the agent. FNV-1a,
/// 64 bits.
pub(super) fn name_key(name: &str) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    name.bytes().fold(BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

fn prefixes(rule: &Rule) -> Vec<FieldPrefix> {
    let of_addresses = |field, range: ipnetwork::Ipv4Network| FieldPrefix {
        field,
        length: range.prefix().into(),
        value: range.network().into(),
    };
    let mut all = vec![
        of_addresses(PolicyField::SOURCE, rule.from),
        of_addresses(PolicyField::DESTINATION, rule.to),
    ];
    let field = PolicyField::SERVICE;
    match &rule.service {
        Service::Any => all.push(FieldPrefix { field, length: 0, value: 0 }),
        Service::Protocol(protocol) => {
            all.push(FieldPrefix { field, length: 8, value: u32::from(*protocol) << 24 });
        }
        Service::Ports(protocol, ports) => {
            let (mut next, last) = (u32::from(*ports.start()), u32::from(*ports.end()));
            while next <= last {
                // As many ports as one prefix may have that begins here, and no more than there are.
                let room = (last - next + 1).ilog2();
                let bits = next.trailing_zeros().min(room).min(16);
                let value = (u32::from(*protocol) << 24) | (next << 8);
                all.push(FieldPrefix { field, length: 24 - bits, value });
                next += 1 << bits;
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use ipnetwork::Ipv4Network;
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::policy::reference::{PolicyFlow, verdict};

    /// Few enough for rules and flows to meet.
    fn address() -> impl Strategy<Value = Ipv4Addr> {
        (0_u32..8, 0_u32..8).prop_map(|(subnet, host)| (0x0a05_0000 | subnet << 8 | host).into())
    }

    fn range() -> impl Strategy<Value = Ipv4Network> {
        let length = prop_oneof![Just(0), Just(16), 21_u8..=32];
        (address(), length).prop_map(|(address, length)| {
            let range = Ipv4Network::new(address, length).unwrap();
            Ipv4Network::new(range.network(), length).unwrap()
        })
    }

    fn port() -> impl Strategy<Value = u16> {
        prop_oneof![75_u16..85, Just(0), Just(u16::MAX), any::<u16>()]
    }

    fn service() -> impl Strategy<Value = Service> {
        prop_oneof![
            Just(Service::Any),
            prop_oneof![Just(1_u8), Just(6), Just(17), Just(47)].prop_map(Service::Protocol),
            (prop_oneof![Just(6_u8), Just(17)], port(), port())
                .prop_map(|(protocol, a, b)| Service::Ports(protocol, a.min(b)..=a.max(b))),
        ]
    }

    fn policy(most: usize) -> impl Strategy<Value = Policy> {
        let rule = (range(), range(), service()).prop_map(|(from, to, service)| Rule {
            name: "rule".to_owned(),
            from,
            to,
            service,
            action: Action::Deny,
        });
        proptest::collection::vec(rule, 0..most)
    }

    fn flow() -> impl Strategy<Value = PolicyFlow> {
        let protocol = prop_oneof![Just(1_u8), Just(6), Just(17), Just(47)];
        (address(), address(), protocol, port()).prop_map(|(from, to, protocol, port)| PolicyFlow {
            from,
            to,
            protocol,
            port,
        })
    }

    /// A flow's fields as the programs look them up.
    fn fields(flow: &PolicyFlow) -> [u32; 3] {
        let port = if matches!(flow.protocol, 6 | 17) { flow.port } else { 0 };
        let service = (u32::from(flow.protocol) << 24) | (u32::from(port) << 8);
        [flow.from.into(), flow.to.into(), service]
    }

    /// As a program reads it.
    fn decide(compiled: &Compiled, fields: [u32; 3]) -> Option<usize> {
        let longest = |field: u8, value: u32| {
            (0..=32_u32).rev().find_map(|length| {
                compiled.prefixes.get(&FieldPrefix { field, length: 32, value }.shortened(length))
            })
        };
        let [source, destination, service] = fields;
        let sources = longest(PolicyField::SOURCE, source)?;
        let destinations = longest(PolicyField::DESTINATION, destination)?;
        let services = longest(PolicyField::SERVICE, service)?;
        sources.first_of_all(destinations, services).map(|rule| rule as usize)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn what_is_compiled_says_what_the_list_of_rules_says(
            policy in policy(40),
            flows in proptest::collection::vec(flow(), 200),
        ) {
            let compiled = Compiled::of(&policy);
            for flow in flows {
                prop_assert_eq!(decide(&compiled, fields(&flow)), verdict(&policy, &flow), "{:?}", flow);
            }
        }
    }

    #[test]
    fn a_range_of_ports_is_as_few_prefixes_as_there_can_be() {
        let count = |ports| {
            let service = Service::Ports(6, ports);
            let any = "0.0.0.0/0".parse().unwrap();
            let name = "ports".to_owned();
            let rule = Rule { name, from: any, to: any, service, action: Action::Deny };
            prefixes(&rule).len() - 2
        };
        assert_eq!(count(80..=80), 1);
        assert_eq!(count(0..=u16::MAX), 1);
        assert_eq!(count(1..=u16::MAX), 16);
        assert_eq!(count(1..=u16::MAX - 1), 30);
        assert_eq!(count(8000..=8999), 6);
    }
}
