//! A policy as it is written in a network config.

use std::{collections::HashSet, net::Ipv4Addr, ops::RangeInclusive};

use ipnetwork::Ipv4Network;
use overlay_common::{
    packet::{PROTOCOL_TCP, PROTOCOL_UDP},
    tables::POLICY_RULES,
};
use serde_json::{Map, Value};

use super::{Action, PROTOCOLS, Policy, PolicyError, Rule, Service};
use crate::json;

const FIELDS: [&str; 6] = ["Name", "From", "To", "Protocol", "Port", "Action"];

/// Longer names are in nobody's way, but for whoever reads them.
const NAME_LENGTH: usize = 64;

/// Reads the value of `Policy` and checks every rule.
pub fn parse(value: &Value) -> Result<Policy, PolicyError> {
    let Value::Array(rules) = value else {
        return Err(PolicyError::NotAnArray(json::kind(value)));
    };
    if rules.len() > POLICY_RULES {
        return Err(PolicyError::TooManyRules(rules.len()));
    }
    let policy = rules
        .iter()
        .enumerate()
        .map(|(place, value)| match value {
            Value::Object(fields) => Fields { place, fields }.rule(),
            other => Err(PolicyError::NotAnObject { rule: place, found: json::kind(other) }),
        })
        .collect::<Result<Policy, _>>()?;
    let mut names = HashSet::new();
    for (place, rule) in policy.iter().enumerate() {
        if !names.insert(&rule.name) {
            return Err(PolicyError::SameName(place, rule.name.clone()));
        }
    }
    Ok(policy)
}

/// One rule's fields.
struct Fields<'a> {
    place: usize,
    fields: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn rule(&self) -> Result<Rule, PolicyError> {
        let is_known = |name: &str| FIELDS.iter().any(|known| known.eq_ignore_ascii_case(name));
        if let Some(field) = self.fields.keys().find(|name| !is_known(name)) {
            return Err(PolicyError::UnknownField { rule: self.place, field: field.clone() });
        }
        Ok(Rule {
            name: self.name()?,
            from: self.addresses("From")?,
            to: self.addresses("To")?,
            service: self.service()?,
            action: self.action()?,
        })
    }

    fn wrong(&self, field: &'static str, expected: &'static str) -> PolicyError {
        let found = match json::member(self.fields, field) {
            None => "missing".to_owned(),
            Some(value) => value.to_string(),
        };
        PolicyError::Field { rule: self.place, field, expected, found }
    }

    fn name(&self) -> Result<String, PolicyError> {
        let is_name = |name: &&str| {
            (1..=NAME_LENGTH).contains(&name.len()) && name.chars().all(|c| c.is_ascii_graphic())
        };
        let name = json::member(self.fields, "Name").and_then(Value::as_str).filter(is_name);
        let expected = "a name of 1 to 64 letters, digits and signs without spaces";
        name.map(str::to_owned).ok_or_else(|| self.wrong("Name", expected))
    }

    /// An address or a range of them, of which host bits are masked off as those of `Network` are; everybody where it is
    /// missing.
    fn addresses(&self, field: &'static str) -> Result<Ipv4Network, PolicyError> {
        let everybody = Ipv4Network::from(Ipv4Addr::UNSPECIFIED);
        let everybody = Ipv4Network::new(everybody.ip(), 0).unwrap_or(everybody);
        let expected = "an address, a range such as \"10.5.1.0/24\", or \"any\"";
        match json::member(self.fields, field) {
            None => Ok(everybody),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("any") => Ok(everybody),
            Some(Value::String(text)) => range_of(text).ok_or_else(|| self.wrong(field, expected)),
            Some(_) => Err(self.wrong(field, expected)),
        }
    }

    fn service(&self) -> Result<Service, PolicyError> {
        let protocol = self.protocol()?;
        match (protocol, self.ports()?) {
            (None, None) => Ok(Service::Any),
            (Some(protocol), None) => Ok(Service::Protocol(protocol)),
            (Some(protocol @ (PROTOCOL_TCP | PROTOCOL_UDP)), Some(ports)) => {
                Ok(Service::Ports(protocol, ports))
            }
            (_, Some(_)) => Err(PolicyError::PortOfNothing(self.place)),
        }
    }

    fn protocol(&self) -> Result<Option<u8>, PolicyError> {
        let expected = "\"tcp\", \"udp\", \"icmp\", \"any\" or a number from 0 to 255";
        let number = match json::member(self.fields, "Protocol") {
            None => return Ok(None),
            Some(Value::String(name)) if name.eq_ignore_ascii_case("any") => return Ok(None),
            Some(Value::String(name)) => PROTOCOLS
                .iter()
                .find(|(known, _)| known.eq_ignore_ascii_case(name))
                .map(|(_, number)| *number),
            Some(value) => value.as_u64().and_then(|number| u8::try_from(number).ok()),
        };
        number.map(Some).ok_or_else(|| self.wrong("Protocol", expected))
    }

    fn ports(&self) -> Result<Option<RangeInclusive<u16>>, PolicyError> {
        let port = |text: &str| {
            text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u16>().ok())?
        };
        let ports = match json::member(self.fields, "Port") {
            None => return Ok(None),
            Some(Value::String(text)) => match text.split_once('-') {
                None => port(text).map(|port| port..=port),
                Some((first, last)) => port(first)
                    .zip(port(last))
                    .filter(|(first, last)| first <= last)
                    .map(|(first, last)| first..=last),
            },
            Some(value) => {
                value.as_u64().and_then(|number| u16::try_from(number).ok()).map(|port| port..=port)
            }
        };
        let expected = "a port such as 443, or a range such as \"8000-8999\"";
        ports.map(Some).ok_or_else(|| self.wrong("Port", expected))
    }

    fn action(&self) -> Result<Action, PolicyError> {
        match json::member(self.fields, "Action").and_then(Value::as_str) {
            Some(text) if text.eq_ignore_ascii_case("allow") => Ok(Action::Allow),
            Some(text) if text.eq_ignore_ascii_case("deny") => Ok(Action::Deny),
            _ => Err(self.wrong("Action", "\"allow\" or \"deny\"")),
        }
    }
}

fn range_of(text: &str) -> Option<Ipv4Network> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
            (address, length.parse().ok()?)
        }
        Some(_) => return None,
        None => (text, 32),
    };
    let range = Ipv4Network::new(address.parse().ok()?, length).ok()?;
    Ipv4Network::new(range.network(), length).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(rule: &Value) -> Result<Rule, String> {
        parse(&json!([rule])).map(|mut rules| rules.remove(0)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_rule_says_what_it_means() {
        let said = |rule: Value| one(&rule).unwrap().to_string();
        assert_eq!(
            said(json!({"Name": "all", "Action": "allow"})),
            "all: allow everything from 0.0.0.0/0 to 0.0.0.0/0"
        );
        assert_eq!(
            said(json!({"name": "db", "from": "10.5.1.9/24", "to": "10.5.2.7", "protocol": "TCP",
                "port": 5432, "action": "Deny"})),
            "db: deny tcp port 5432 from 10.5.1.0/24 to 10.5.2.7/32"
        );
        assert_eq!(
            said(json!({"Name": "x", "From": "any", "Protocol": "udp", "Port": "8000-8999",
                "Action": "deny"})),
            "x: deny udp ports 8000-8999 from 0.0.0.0/0 to 0.0.0.0/0"
        );
        assert_eq!(
            said(json!({"Name": "gre", "Protocol": 47, "Action": "deny"})),
            "gre: deny protocol 47 from 0.0.0.0/0 to 0.0.0.0/0"
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            (json!({"Action": "deny"}), "Policy[0].Name must be"),
            (json!({"Name": "a b", "Action": "deny"}), "Policy[0].Name must be"),
            (
                json!({"Name": "a"}),
                "Policy[0].Action must be \"allow\" or \"deny\", but is missing",
            ),
            (json!({"Name": "a", "Action": "drop"}), "but is \"drop\""),
            (json!({"Name": "a", "Action": "deny", "Fromm": "10.5.1.2"}), "has a field \"Fromm\""),
            (json!({"Name": "a", "Action": "deny", "From": "10.5.1"}), "Policy[0].From must be"),
            (json!({"Name": "a", "Action": "deny", "To": "10.5.1.0/33"}), "Policy[0].To must be"),
            (json!({"Name": "a", "Action": "deny", "To": 10}), "but is 10"),
            (json!({"Name": "a", "Action": "deny", "Port": 80}), "Policy[0].Port needs a Protocol"),
            (
                json!({"Name": "a", "Action": "deny", "Protocol": "icmp", "Port": 80}),
                "Policy[0].Port needs a Protocol",
            ),
            (json!({"Name": "a", "Action": "deny", "Protocol": "sctp"}), "but is \"sctp\""),
            (json!({"Name": "a", "Action": "deny", "Protocol": 256}), "but is 256"),
            (
                json!({"Name": "a", "Action": "deny", "Protocol": "tcp", "Port": "90-80"}),
                "but is \"90-80\"",
            ),
            (
                json!({"Name": "a", "Action": "deny", "Protocol": "tcp", "Port": "+80"}),
                "but is \"+80\"",
            ),
            (json!(7), "Policy[0] must be an object, but is a number"),
        ];
        for (rule, expected) in cases {
            let told = one(&rule).unwrap_err();
            assert!(told.contains(expected), "{told}");
        }
        let rule = json!({"Name": "a", "Action": "deny"});
        let error = parse(&json!([rule, rule])).unwrap_err().to_string();
        assert!(error.starts_with("Policy[1].Name \"a\" is another rule's"), "{error}");
        assert!(parse(&json!({})).unwrap_err().to_string().contains("but is an object"));
    }

    #[test]
    fn limits_are_told() {
        let rules = |count: usize| {
            let rule = |number| json!({"Name": format!("r{number}"), "Action": "allow"});
            parse(&(0..count).map(rule).collect())
        };
        assert!(rules(POLICY_RULES).is_ok());
        let error = rules(POLICY_RULES + 1).unwrap_err().to_string();
        assert_eq!(error, "Policy has 1025 rules, and 1024 are the most");
    }
}
