use std::{collections::HashMap, net::Ipv4Addr};

use ipnetwork::Ipv4Network;
use serde_json::Value;

use super::packet::{Fit, Pattern, Range, Test};

/// The named sets and maps of a table.
pub(super) type Sets<'a> = HashMap<&'a str, &'a Value>;

/// What `left op right` asks.
pub(super) fn matching(body: &Value, sets: &Sets<'_>) -> Test {
    let (Some(left), Some(right)) = (body.get("left"), body.get("right")) else {
        return Test::UNKNOWN;
    };
    if is_about_ipv6(left) {
        return Test::Known(Fit::Never);
    }
    match body.get("op").and_then(Value::as_str) {
        Some("==" | "in") => equal(left, right, sets),
        Some("!=") => equal(left, right, sets).not(),
        _ => Test::UNKNOWN,
    }
}

/// Whether the value looks into a header that no packet of ours has. Then the rule does not match, negated or not.
pub(super) fn is_about_ipv6(value: &Value) -> bool {
    match value {
        Value::Object(object) => {
            let payload = object.get("payload").filter(|payload| payload.get("tunnel").is_none());
            let protocol = payload.and_then(|payload| payload.get("protocol")?.as_str());
            matches!(protocol, Some("ip6" | "arp"))
                || payload.is_none() && object.values().any(is_about_ipv6)
        }
        Value::Array(values) => values.iter().any(is_about_ipv6),
        _ => false,
    }
}

/// Whether packets or time change what is in a set.
pub(super) fn is_volatile(set: &Value) -> bool {
    let is_one = |flag: &Value| matches!(flag.as_str(), Some("dynamic" | "timeout"));
    match set.get("flags") {
        Some(Value::Array(flags)) => flags.iter().any(is_one),
        Some(flag) => is_one(flag),
        None => false,
    }
}

/// Whether `left` is `right`, or one of those that `right` has.
pub(super) fn equal(left: &Value, right: &Value, sets: &Sets<'_>) -> Test {
    if let Some(name) = right.as_str().and_then(|right| right.strip_prefix('@')) {
        return sets.get(name).map_or(Test::UNKNOWN, |set| named(left, set, sets));
    }
    let values = right.get("set").unwrap_or(right);
    if let Some(values) = values.as_array() {
        return Test::Any(values.iter().map(|value| equal(left, value, sets)).collect());
    }
    if let Some(element) = right.get("elem") {
        return element_of(left, element, sets);
    }
    let parts = left.get("concat").and_then(Value::as_array);
    match (parts, right.get("concat").and_then(Value::as_array)) {
        (Some(parts), Some(values)) if parts.len() == values.len() => {
            let pairs = parts.iter().zip(values);
            Test::All(pairs.map(|(part, value)| equal(part, value, sets)).collect())
        }
        (None, None) => is_value(left, right),
        _ => Test::UNKNOWN,
    }
}

fn named(left: &Value, set: &Value, sets: &Sets<'_>) -> Test {
    if is_volatile(set) {
        return Test::UNKNOWN;
    }
    let none = Value::Array(Vec::new());
    let test = equal(left, set.get("elem").unwrap_or(&none), sets);
    // A statement of the set's may be a limit.
    if set.get("stmt").is_some() { Test::All(vec![test, Test::UNKNOWN]) } else { test }
}

/// An element that comes with something else, a limit for example.
fn element_of(left: &Value, element: &Value, sets: &Sets<'_>) -> Test {
    let (Some(value), Some(object)) = (element.get("val"), element.as_object()) else {
        return Test::UNKNOWN;
    };
    let test = equal(left, value, sets);
    let is_plain = |name: &String| ["val", "comment", "counter"].contains(&name.as_str());
    if object.keys().all(is_plain) { test } else { Test::All(vec![test, Test::UNKNOWN]) }
}

/// Whether `left` is the single value `right`.
fn is_value(left: &Value, right: &Value) -> Test {
    let name = right.as_str();
    let text = |value: &Value, key| value.get(key).and_then(Value::as_str).map(str::to_owned);
    if let Some(meta) = left.get("meta") {
        return match (text(meta, "key").as_deref(), name) {
            (Some("iifname" | "iif"), Some(name)) => interface(name, Test::From),
            (Some("oifname" | "oif"), Some(name)) => interface(name, Test::To),
            (Some("nfproto"), Some("ipv4")) | (Some("protocol"), Some("ip")) => ALWAYS,
            (Some("nfproto"), Some("ipv6")) | (Some("protocol"), Some("ip6" | "arp")) => NEVER,
            _ => Test::UNKNOWN,
        };
    }
    // What a packet carries that is itself a tunnel's is nothing that we know of.
    let payload = left.get("payload").filter(|payload| payload.get("tunnel").is_none());
    if let Some(payload) = payload {
        let protocol = text(payload, "protocol");
        return match (protocol.as_deref(), text(payload, "field").as_deref()) {
            (Some("ip"), Some("saddr")) => range(right).map_or(Test::UNKNOWN, Test::Source),
            (Some("ip"), Some("daddr")) => range(right).map_or(Test::UNKNOWN, Test::Destination),
            (Some("ether"), Some("type")) if name == Some("ip") => ALWAYS,
            (Some("ether"), Some("type")) if matches!(name, Some("ip6" | "arp")) => NEVER,
            _ => Test::UNKNOWN,
        };
    }
    if let Some(conntrack) = left.get("ct") {
        let is_invalid =
            text(conntrack, "key").as_deref() == Some("state") && name == Some("invalid");
        return if is_invalid { NEVER } else { Test::UNKNOWN };
    }
    left.get("fib").map_or(Test::UNKNOWN, |fib| route(fib, name))
}

const ALWAYS: Test = Test::Known(Fit::Surely);
const NEVER: Test = Test::Known(Fit::Never);

fn interface(name: &str, test: impl Fn(Pattern) -> Test) -> Test {
    // A star alone stands for all that the set does not have, and one that is escaped for itself.
    if name == "*" || name.contains('\\') { Test::UNKNOWN } else { test(Pattern::new(name, '*')) }
}

/// What is forwarded is not for the host.
fn route(fib: &Value, name: Option<&str>) -> Test {
    let flags = match fib.get("flags") {
        Some(Value::Array(flags)) => flags.as_slice(),
        Some(flag) => std::slice::from_ref(flag),
        None => &[],
    };
    let has = |name| flags.iter().any(|flag| flag.as_str() == Some(name));
    let is_type = fib.get("result").and_then(Value::as_str) == Some("type");
    let is_never = is_type && has("daddr") && !has("saddr") && name == Some("local");
    if is_never { NEVER } else { Test::UNKNOWN }
}

fn range(value: &Value) -> Option<Range> {
    let address = |value: &Value| value.as_str()?.parse::<Ipv4Addr>().ok();
    if let Some(prefix) = value.get("prefix") {
        let length = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
        return Ipv4Network::new(address(prefix.get("addr")?)?, length).ok().map(Range::from);
    }
    if let Some([first, last]) = value.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        return Some(Range::between(address(first)?, address(last)?));
    }
    address(value).map(|address| Range::between(address, address))
}
