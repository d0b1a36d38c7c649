use std::{collections::HashMap, net::Ipv4Addr};

use ipnetwork::Ipv4Network;
use serde_json::Value;

use super::{
    iptables::{OF_ENDS, are_flags_of_flow, flag, protocol},
    packet::{ESTABLISHED, Fit, Pattern, Range, Test},
};

/// Everything in the listing, and every statement, is an object with one member that says what it is.
pub(super) fn only_member(object: &Value) -> Option<(&str, &Value)> {
    let object = object.as_object()?;
    object.iter().next().filter(|_| object.len() == 1).map(|(kind, body)| (kind.as_str(), body))
}

/// What is the same for every packet of a flow, by `meta`.
const META: [&str; 27] = [
    "cgroup",
    "day",
    "hour",
    "ibrname",
    "iif",
    "iifgroup",
    "iifkind",
    "iifname",
    "iiftype",
    "ipsec",
    "l4proto",
    "mark",
    "nfproto",
    "obrname",
    "oif",
    "oifgroup",
    "oifkind",
    "oifname",
    "oiftype",
    "pkttype",
    "protocol",
    "rtclassid",
    "sdif",
    "sdifname",
    "skgid",
    "skuid",
    "time",
];

/// The same, by `ct`.
const CONNTRACK: [&str; 16] = [
    "daddr",
    "direction",
    "helper",
    "id",
    "ip daddr",
    "ip saddr",
    "l3proto",
    "label",
    "mark",
    "proto-dst",
    "proto-src",
    "protocol",
    "saddr",
    "state",
    "status",
    "zone",
];

/// What may come with an element, or with all of a set, and is not about single packets.
const EXTRAS: [&str; 7] = ["val", "comment", "counter", "timeout", "expires", "last", "ct count"];

/// The named sets and maps of a table.
pub(super) type Sets<'a> = HashMap<&'a str, &'a Value>;

/// What `left op right` asks.
pub(super) fn matching(body: &Value, sets: &Sets<'_>) -> Test {
    let (Some(left), Some(right)) = (body.get("left"), body.get("right")) else {
        return Test::OF_PACKET;
    };
    if is_about_ipv6(left) {
        return Test::Known(Fit::Never);
    }
    let operator = body.get("op").and_then(Value::as_str);
    if let Some(test) = flags_matching(left, operator, right) {
        return test;
    }
    match operator {
        Some("==" | "in") => equal(left, right, sets),
        // Also what is not asked for of a header is asked of packets that have it.
        Some("!=") => {
            let not = equal(left, right, sets).not();
            match carried(left) {
                Some(protocol) => Test::All(vec![Test::Protocol(protocol), not]),
                None => not,
            }
        }
        _ => unknown(left, right),
    }
}

/// What is asked about TCP's flags, behind a mask or not.
fn flags_matching(left: &Value, operator: Option<&str>, right: &Value) -> Option<Test> {
    let (header, mask) = match left.get("&").and_then(Value::as_array).map(Vec::as_slice) {
        Some([header, mask]) => (header, Some(mask)),
        _ => (left, None),
    };
    let payload = header.get("payload").filter(|payload| payload.get("tunnel").is_none())?;
    let is_about = |name, value| payload.get(name).and_then(Value::as_str) == Some(value);
    if !is_about("protocol", "tcp") || !is_about("field", "flags") {
        return None;
    }
    let is_of_flow = match (mask, operator) {
        (Some(mask), Some("==" | "!=")) => {
            flags(mask).zip(flags(right)).is_some_and(are_flags_of_flow)
        }
        // Whether all or one of them is asked for.
        (None, _) => flags(right).is_some_and(|flags| flags != 0 && flags & !OF_ENDS == 0),
        _ => false,
    };
    Some(Test::unknown(is_of_flow))
}

fn flags(value: &Value) -> Option<u64> {
    match value.get("|").unwrap_or(value) {
        Value::String(name) => flag(name),
        Value::Number(bits) => bits.as_u64(),
        Value::Array(values) => values.iter().try_fold(0, |bits, value| Some(bits | flags(value)?)),
        _ => None,
    }
}

/// A test that is not understood, of one value against another.
fn unknown(left: &Value, right: &Value) -> Test {
    Test::unknown(is_of_flow(left) && is_of_flow(right))
}

/// Whether a value is the same for every packet of a flow.
fn is_of_flow(value: &Value) -> bool {
    match value {
        Value::Array(values) => values.iter().all(is_of_flow),
        Value::Object(_) => {
            only_member(value).is_some_and(|(kind, body)| is_kind_of_flow(kind, body))
        }
        _ => true,
    }
}

fn is_kind_of_flow(kind: &str, body: &Value) -> bool {
    let text = |name| body.get(name).and_then(Value::as_str).unwrap_or_default();
    match kind {
        "meta" => META.contains(&text("key")),
        "ct" => CONNTRACK.contains(&text("key")),
        "payload" => {
            body.get("tunnel").is_none() && is_field_of_flow(text("protocol"), text("field"))
        }
        // Only what begins a connection has it.
        "tcp option" => text("name") == "maxseg",
        "fib" | "rt" | "socket" | "prefix" => true,
        "&" | "|" | "^" | "<<" | ">>" | "concat" | "range" | "set" => is_of_flow(body),
        "elem" => is_plain(body, &EXTRAS) && body.get("val").is_some_and(is_of_flow),
        _ => false,
    }
}

fn is_field_of_flow(protocol: &str, field: &str) -> bool {
    match protocol {
        "ether" => ["saddr", "daddr", "type"].contains(&field),
        "vlan" => ["id", "type"].contains(&field),
        "ip" => ["saddr", "daddr", "protocol", "version"].contains(&field),
        "tcp" | "udp" | "udplite" | "sctp" | "dccp" | "th" => ["sport", "dport"].contains(&field),
        // What is no echo takes the host's stack.
        "icmp" => ["type", "code"].contains(&field),
        _ => false,
    }
}

/// Whether it is enough that some packets of a flow meet a statement, now and then.
pub(super) fn is_effect_of_flow(kind: &str, body: &Value) -> bool {
    match kind {
        "log" | "notrack" | "dnat" | "snat" | "masquerade" | "redirect" | "ct helper"
        | "ct timeout" | "ct expectation" => true,
        "mangle" => body.get("key").and_then(only_member).is_some_and(|(kind, key)| {
            let key_is = |value| key.get("key").and_then(Value::as_str) == Some(value);
            match kind {
                "meta" => key_is("nftrace"),
                "ct" => key_is("helper") || key_is("zone"),
                kind => kind == "tcp option" && is_kind_of_flow(kind, key),
            }
        }),
        "set" => body.get("elem").is_some_and(is_of_flow) && has_plain_statements(body),
        _ => false,
    }
}

/// Whether a set, or what adds to one, does nothing about single packets but count them.
fn has_plain_statements(set: &Value) -> bool {
    let is_plain =
        |statement| only_member(statement).is_some_and(|(kind, _)| EXTRAS.contains(&kind));
    match set.get("stmt") {
        Some(Value::Array(statements)) => statements.iter().all(is_plain),
        Some(statement) => is_plain(statement),
        None => true,
    }
}

/// Whether an object has no other members.
fn is_plain(object: &Value, names: &[&str]) -> bool {
    object
        .as_object()
        .is_some_and(|object| object.keys().all(|name| names.contains(&name.as_str())))
}

/// What becomes of a test because the elements are those of a named set or map.
pub(super) fn through(left: &Value, set: &Value, test: Test) -> Test {
    let is_known = !is_volatile(set);
    if is_known && set.get("stmt").is_none() {
        return test;
    }
    // A statement of the set's may be a limit, and so may one of an element's.
    let is_of_flow = is_of_flow(left) && has_plain_statements(set) && !test.each_packet();
    let unknown = Test::unknown(is_of_flow);
    if is_known { Test::All(vec![test, unknown]) } else { unknown }
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
        return sets.get(name).map_or(Test::OF_PACKET, |set| named(left, set, sets));
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
        _ => Test::OF_PACKET,
    }
}

fn named(left: &Value, set: &Value, sets: &Sets<'_>) -> Test {
    let none = Value::Array(Vec::new());
    let test = equal(left, set.get("elem").unwrap_or(&none), sets);
    through(left, set, test)
}

/// An element that comes with something else, a limit for example.
fn element_of(left: &Value, element: &Value, sets: &Sets<'_>) -> Test {
    let Some(value) = element.get("val") else {
        return Test::OF_PACKET;
    };
    let test = equal(left, value, sets);
    if is_plain(element, &["val", "comment", "counter"]) {
        return test;
    }
    Test::All(vec![test, Test::unknown(is_plain(element, &EXTRAS))])
}

/// Whether `left` is the single value `right`.
fn is_value(left: &Value, right: &Value) -> Test {
    let name = right.as_str();
    let unknown = unknown(left, right);
    let text = |value: &Value, key| value.get(key).and_then(Value::as_str).map(str::to_owned);
    if let Some(meta) = left.get("meta") {
        return match (text(meta, "key").as_deref(), name) {
            (Some("iifname" | "iif"), Some(name)) => interface(name, Test::From),
            (Some("oifname" | "oif"), Some(name)) => interface(name, Test::To),
            (Some("nfproto"), Some("ipv4")) | (Some("protocol"), Some("ip")) => ALWAYS,
            (Some("l4proto"), _) => protocol_is(right),
            (Some("nfproto"), Some("ipv6")) | (Some("protocol"), Some("ip6" | "arp")) => NEVER,
            _ => unknown,
        };
    }
    // What a packet carries that is itself a tunnel's is nothing that we know of.
    let payload = left.get("payload").filter(|payload| payload.get("tunnel").is_none());
    if let Some(payload) = payload {
        let protocol = text(payload, "protocol");
        return match (protocol.as_deref(), text(payload, "field").as_deref()) {
            (Some("ip"), Some("saddr")) => range(right).map_or(unknown, Test::Source),
            (Some("ip"), Some("daddr")) => range(right).map_or(unknown, Test::Destination),
            (Some("ip"), Some("protocol")) => protocol_is(right),
            (Some("udp" | "tcp" | "th"), Some("dport")) => {
                let port = port(right).unwrap_or(unknown);
                match carried(left) {
                    Some(protocol) => Test::All(vec![Test::Protocol(protocol), port]),
                    None => port,
                }
            }
            (Some("ether"), Some("type")) if name == Some("ip") => ALWAYS,
            (Some("ether"), Some("type")) if matches!(name, Some("ip6" | "arp")) => NEVER,
            _ => match carried(left) {
                Some(protocol) => Test::All(vec![Test::Protocol(protocol), unknown]),
                None => unknown,
            },
        };
    }
    if let Some(conntrack) = left.get("ct") {
        return match (text(conntrack, "key").as_deref(), name) {
            (Some("state"), Some("invalid")) => NEVER,
            (Some("state"), Some("new")) => Test::New,
            (Some("state" | "status"), Some(name)) if ESTABLISHED.contains(&name) => {
                Test::Established
            }
            _ => unknown,
        };
    }
    left.get("fib").map_or(unknown, |fib| route(fib, name))
}

const ALWAYS: Test = Test::Known(Fit::Surely);
const NEVER: Test = Test::Known(Fit::Never);

fn interface(name: &str, test: impl Fn(Pattern) -> Test) -> Test {
    // A star alone stands for all that the set does not have, and one that is escaped for itself.
    if name == "*" || name.contains('\\') { Test::OF_FLOW } else { test(Pattern::new(name, '*')) }
}

/// The protocol that a packet must carry for this to be a part of it.
fn carried(value: &Value) -> Option<u8> {
    match value.get("payload")?.get("protocol")?.as_str()? {
        // Their own headers, or one of several.
        "ether" | "vlan" | "ip" | "th" => None,
        name => protocol(name),
    }
}

fn protocol_is(value: &Value) -> Test {
    let number = match value {
        Value::String(name) => protocol(name),
        value => value.as_u64().and_then(|number| u8::try_from(number).ok()),
    };
    number.map_or(Test::OF_FLOW, Test::Protocol)
}

fn port(value: &Value) -> Option<Test> {
    let number = |value: &Value| u16::try_from(value.as_u64()?).ok();
    if let Some([first, last]) = value.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        return Some(Test::Port(number(first)?, number(last)?));
    }
    number(value).map(|port| Test::Port(port, port))
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
    let is_to_host = is_type && has("daddr") && !has("saddr") && name == Some("local");
    if is_to_host { Test::ToHost } else { Test::OF_FLOW }
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
