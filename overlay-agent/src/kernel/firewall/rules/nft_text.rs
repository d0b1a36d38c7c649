//! Rules as an operator knows them from `nft list ruleset`, as far as that is easily said.

use std::collections::HashMap;

use serde_json::Value;

/// The devices of chains of family netdev, by table and chain.
pub(super) type Devices<'a> = HashMap<(&'a str, &'a str), Vec<&'a str>>;

/// Reads the output of `nft list ruleset netdev`, as far as devices are concerned.
pub(super) fn devices(text: &str) -> Devices<'_> {
    let mut devices = Devices::new();
    let (mut table, mut chain) = ("", "");
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table netdev ") {
            table = name.trim_end_matches(" {");
        } else if let Some(name) = line.strip_prefix("chain ") {
            chain = name.trim_end_matches(" {");
        } else if let Some((_, rest)) =
            line.split_once(" device").filter(|_| line.starts_with("type "))
        {
            // One, or `s = { several }`.
            let names = rest.split(" priority").next().unwrap_or_default();
            let names = names.trim_start_matches("s =").split([' ', ',', '{', '}', '"']);
            devices.insert((table, chain), names.filter(|name| !name.is_empty()).collect());
        }
    }
    devices
}

/// How long a rule may become before it is cut off.
const LENGTH: usize = 240;

/// The text of a rule, without its counters.
pub(super) fn rule(statements: &[Value], comment: Option<&str>) -> String {
    let mut words: Vec<String> = statements.iter().filter_map(statement).collect();
    words.extend(comment.map(|comment| format!("comment \"{comment}\"")));
    let text = words.join(" ").replace(char::is_control, " ");
    match text.char_indices().nth(LENGTH) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

fn statement(statement: &Value) -> Option<String> {
    let (kind, body) = statement.as_object()?.iter().next()?;
    let text = |name| body.get(name).and_then(Value::as_str);
    Some(match kind.as_str() {
        "counter" => return None,
        "match" => {
            let operator = text("op").filter(|operator| !["==", "in"].contains(operator));
            let words =
                [body.get("left").map(expression), operator.map(str::to_owned), operand(body)];
            words.into_iter().flatten().collect::<Vec<_>>().join(" ")
        }
        "vmap" => {
            let [key, data] =
                ["key", "data"].map(|name| body.get(name).map_or_else(String::new, expression));
            format!("{key} vmap {data}")
        }
        "mangle" => {
            let [key, value] =
                ["key", "value"].map(|name| body.get(name).map_or_else(String::new, expression));
            format!("{key} set {value}")
        }
        "jump" | "goto" => format!("{kind} {}", text("target").unwrap_or_default()),
        "log" => match (text("prefix"), body.get("group")) {
            (Some(prefix), _) => format!("log prefix \"{prefix}\""),
            (None, Some(group)) => format!("log group {group}"),
            (None, None) => kind.clone(),
        },
        "reject" => match (text("type"), text("expr")) {
            (Some(kind), Some(reason)) => format!("reject with {kind} {reason}"),
            (Some(kind), None) => format!("reject with {kind}"),
            _ => kind.clone(),
        },
        "limit" => match (body.get("rate"), text("per")) {
            (Some(rate), Some(period)) => format!("limit rate {rate}/{period}"),
            _ => kind.clone(),
        },
        "xt" => format!("xt {} {}", text("type").unwrap_or("?"), text("name").unwrap_or("?")),
        _ if body.is_null() => kind.clone(),
        _ => format!("{kind} {body}"),
    })
}

/// The right side of a match; names of interfaces in quotes, as `nft` has them.
fn operand(body: &Value) -> Option<String> {
    let right = body.get("right")?;
    let key = body.get("left").and_then(|left| left.get("meta")?.get("key")?.as_str());
    Some(match right {
        Value::String(name)
            if !name.starts_with('@') && key.is_some_and(|key| key.ends_with("ifname")) =>
        {
            format!("\"{name}\"")
        }
        Value::Array(flags) => list(flags, ","),
        right => expression(right),
    })
}

fn expression(value: &Value) -> String {
    match value {
        Value::String(text) => return text.clone(),
        // The value of an entry in a map, and what is done then.
        Value::Array(pair) => return list(pair, " : "),
        _ => {}
    }
    let member = value.as_object().and_then(|object| object.iter().next());
    let Some((kind, body)) = member else { return value.to_string() };
    let text = |name| body.get(name).and_then(Value::as_str).unwrap_or_default();
    match (kind.as_str(), body) {
        ("meta", _) if ["iifname", "oifname", "iif", "oif"].contains(&text("key")) => {
            text("key").to_owned()
        }
        ("meta" | "ct", _) => format!("{kind} {}", text("key")),
        ("payload", _) if body.get("field").is_some() => {
            format!("{} {}", text("protocol"), text("field"))
        }
        ("fib", _) => format!("fib {} {}", flags(body.get("flags")), text("result")),
        ("prefix", _) => {
            format!(
                "{}/{}",
                text("addr"),
                body.get("len").map_or_else(String::new, Value::to_string)
            )
        }
        ("range", Value::Array(ends)) => list(ends, "-"),
        ("concat", Value::Array(parts)) => list(parts, " . "),
        ("set", Value::Array(values)) => format!("{{ {} }}", list(values, ", ")),
        ("jump" | "goto", _) => format!("{kind} {}", text("target")),
        (_, Value::Null) => kind.clone(),
        _ => value.to_string(),
    }
}

fn flags(flags: Option<&Value>) -> String {
    match flags {
        Some(Value::Array(flags)) => list(flags, " . "),
        Some(flag) => expression(flag),
        None => String::new(),
    }
}

fn list(values: &[Value], separator: &str) -> String {
    values.iter().map(expression).collect::<Vec<_>>().join(separator)
}
