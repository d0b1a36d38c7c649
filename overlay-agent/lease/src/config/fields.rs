//! One function per kind of field: absent, of the wrong kind, or the value.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use serde_json::{Map, Value};

use super::ConfigError;
use crate::json;

type Fields = Map<String, Value>;

pub(super) fn wrong_kind(
    field: &'static str,
    expected: &'static str,
    found: &Value,
) -> ConfigError {
    ConfigError::WrongKind { field, expected, found: json::kind(found) }
}

pub(super) fn boolean(
    fields: &Fields,
    name: &str,
    path: &'static str,
) -> Result<Option<bool>, ConfigError> {
    match json::member(fields, name) {
        None => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(other) => Err(wrong_kind(path, "true or false", other)),
    }
}

pub(super) fn number(
    fields: &Fields,
    name: &str,
    path: &'static str,
    max: u32,
) -> Result<Option<u32>, ConfigError> {
    match json::member(fields, name) {
        None => Ok(None),
        Some(Value::Number(number)) => number
            .as_u64()
            .and_then(|value| u32::try_from(value).ok())
            .filter(|value| *value <= max)
            .map(Some)
            .ok_or_else(|| ConfigError::NumberRange {
                field: path,
                max,
                found: number.to_string(),
            }),
        Some(other) => Err(wrong_kind(path, "a number", other)),
    }
}

/// A required IPv4 range. Host bits are masked off, as flannel does.
pub(super) fn network(fields: &Fields, name: &'static str) -> Result<Ipv4Network, ConfigError> {
    match json::member(fields, name) {
        None => Err(ConfigError::NoNetwork),
        Some(Value::String(text)) => {
            // All addresses are no network, as flannel has it.
            let network = parse_cidr(text).filter(|network| network.prefix() != 0);
            network.ok_or_else(|| ConfigError::BadNetwork(text.clone()))
        }
        Some(other) => Err(wrong_kind(name, "a string", other)),
    }
}

/// An optional IPv4 address. `0.0.0.0` counts as absent, as in flannel.
pub(super) fn address(
    fields: &Fields,
    name: &'static str,
) -> Result<Option<Ipv4Addr>, ConfigError> {
    match json::member(fields, name) {
        None => Ok(None),
        Some(Value::String(text)) => match text.parse::<Ipv4Addr>() {
            Ok(address) => Ok(Some(address).filter(|address| !address.is_unspecified())),
            Err(_) => Err(ConfigError::BadAddress { field: name, found: text.clone() }),
        },
        Some(other) => Err(wrong_kind(name, "a string", other)),
    }
}

/// `a.b.c.d/len`, and only that: ipnetwork alone would also take a bare address or a netmask.
fn parse_cidr(text: &str) -> Option<Ipv4Network> {
    let (address, len) = text.split_once('/')?;
    let network = Ipv4Network::new(address.parse().ok()?, len.parse().ok()?).ok()?;
    Ipv4Network::new(network.network(), network.prefix()).ok()
}
