use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    NFTABLES, iptables,
    nft_iptables::Census,
    nft_match::{self, Sets, equal, is_about_ipv6, is_volatile, matching, only_member},
    nft_text::{self, Devices},
    packet::{Hook, Test},
    table::{Action, Base, Chain, Rule, Table},
};

/// Families whose chains packets of ours may come by.
const FAMILIES: [&str; 4] = ["ip", "inet", "bridge", "netdev"];

/// A table, and what of it `iptables-nft` would show.
#[derive(Debug)]
pub(super) struct Native {
    pub(super) table: Table,
    pub(super) census: Census,
}

/// Reads the output of `nft -j list ruleset`: tables that packets of ours may come by. `devices` is of chains of
/// family netdev, by table and chain.
///
/// # Errors
/// Where it is no such output: then nothing of it is to be relied on.
pub(super) fn parse(text: &str, devices: &Devices<'_>) -> Result<Vec<Native>> {
    let root: Value = serde_json::from_str(text).context("no JSON")?;
    let objects = root.get("nftables").and_then(Value::as_array).context("no list of objects")?;
    let objects: Option<Vec<_>> = objects.iter().map(only_member).collect();
    let objects = objects.context("an object of no kind")?;
    let mut tables = BTreeMap::new();
    let mut sets = HashMap::new();
    for (kind, object) in &objects {
        match *kind {
            "chain" => {
                let chain = Chain { base: base(object, devices)?, rules: Vec::new() };
                let name = member(object, "name")?.to_owned();
                native(&mut tables, object)?.table.chains.insert(name, chain);
            }
            "set" | "map" => {
                let table = (member(object, "family")?, member(object, "table")?);
                sets.entry(table).or_insert_with(Sets::new).insert(member(object, "name")?, object);
            }
            _ => {}
        }
    }
    let none = Sets::new();
    for (_, rule) in objects.iter().filter(|(kind, _)| *kind == "rule") {
        let name = (member(rule, "family")?, member(rule, "table")?);
        let steps = steps(rule, sets.get(&name).unwrap_or(&none))?;
        let chain = member(rule, "chain")?.to_owned();
        let native = native(&mut tables, rule)?;
        native.census.add(statements(rule)?);
        native.table.chains.entry(chain).or_default().rules.extend(steps);
    }
    let tables = tables.into_iter().filter(|((family, _), _)| FAMILIES.contains(family));
    Ok(tables.map(|(_, native)| native).collect())
}

fn member<'a>(object: &'a Value, name: &str) -> Result<&'a str> {
    object.get(name).and_then(Value::as_str).with_context(|| format!("an object without {name}"))
}

/// The table that a chain or rule stands in.
fn native<'t, 'v>(
    tables: &'t mut BTreeMap<(&'v str, &'v str), Native>,
    object: &'v Value,
) -> Result<&'t mut Native> {
    let (family, name) = (member(object, "family")?, member(object, "table")?);
    Ok(tables.entry((family, name)).or_insert_with(|| {
        let name = format!("{family} {name}");
        let table = Table { tool: NFTABLES, name, chains: BTreeMap::new() };
        Native { table, census: Census::default() }
    }))
}

/// Where a chain is entered, if it is by packets of ours.
fn base(chain: &Value, devices: &Devices<'_>) -> Result<Option<Base>> {
    if chain.get("hook").is_none() {
        return Ok(None);
    }
    let drops = chain.get("policy").and_then(Value::as_str) == Some("drop");
    let (family, table, name) =
        (member(chain, "family")?, member(chain, "table")?, member(chain, "name")?);
    let drops = drops.then(|| format!("{NFTABLES} {family} {table} {name}: policy drop"));
    let devices = devices.get(&(table, name)).filter(|_| family == "netdev");
    let devices: Vec<_> = devices.into_iter().flatten().map(|&name| name.to_owned()).collect();
    if devices == ["lo"] {
        return Ok(None);
    }
    Ok(hook(family, chain).map(|hook| Base { hook, devices, drops }))
}

/// What is translated in postrouting does not concern: a chain of ours stands in front of it.
fn hook(family: &str, chain: &Value) -> Option<Hook> {
    let text = |name| chain.get(name).and_then(Value::as_str).unwrap_or_default();
    match (family, text("hook")) {
        ("ip" | "inet", "prerouting") => Some(Hook::Prerouting),
        ("ip" | "inet", "forward") => Some(Hook::Forward),
        ("ip" | "inet", "postrouting") if text("type") == "nat" => None,
        ("ip" | "inet", "postrouting") => Some(Hook::Postrouting),
        ("ip" | "inet", "input") => Some(Hook::Input),
        ("ip" | "inet", "output") => Some(Hook::Output),
        _ => Some(Hook::Link),
    }
}

/// What a rule does, one after the other.
fn steps(rule: &Value, sets: &Sets<'_>) -> Result<Vec<Rule>> {
    let (family, table, chain) =
        (member(rule, "family")?, member(rule, "table")?, member(rule, "chain")?);
    let comment = rule.get("comment").and_then(Value::as_str);
    let statements = statements(rule)?;
    let described = nft_text::rule(statements, comment);
    let text = format!("{NFTABLES} {family} {table} {chain}: {described}");
    let mut tests = Vec::new();
    let mut steps = Vec::new();
    for part in statements.iter().flat_map(|statement| parts(statement, sets)) {
        match part {
            Part::Ask(asked) => tests.push(asked),
            Part::Do(asked, action) => {
                let tests = tests.iter().cloned().chain(asked).collect();
                steps.push(Rule { text: text.clone(), tests, action });
            }
        }
    }
    Ok(steps)
}

fn statements(rule: &Value) -> Result<&[Value]> {
    let statements = rule.get("expr").and_then(Value::as_array);
    statements.map(Vec::as_slice).context("a rule without statements")
}

/// A part of a statement.
enum Part {
    /// Goes for everything that follows in the rule.
    Ask(Test),
    /// What is done, under a condition of its own, if it has one.
    Do(Option<Test>, Action),
}

fn parts(statement: &Value, sets: &Sets<'_>) -> Vec<Part> {
    let Some((kind, body)) = only_member(statement) else { return unknown("statement") };
    match kind {
        "match" => vec![Part::Ask(matching(body, sets))],
        "counter" | "comment" | "last" | "continue" => Vec::new(),
        "limit" | "quota" => vec![Part::Ask(Test::OF_PACKET)],
        "ct count" => vec![Part::Ask(Test::OF_FLOW)],
        "xt" => xt(body),
        "vmap" => map(body, sets),
        _ => match verdict(kind, body) {
            Some(action) => vec![Part::Do(None, action)],
            None => effect(kind, nft_match::is_effect_of_flow(kind, body)),
        },
    }
}

/// What is not known here.
fn unknown(kind: &str) -> Vec<Part> {
    effect(kind, false)
}

/// What may be a condition as well.
fn effect(kind: &str, is_of_flow: bool) -> Vec<Part> {
    let action = Action::Effect { what: kind.to_owned(), each_packet: !is_of_flow };
    vec![Part::Do(None, action), Part::Ask(Test::unknown(is_of_flow))]
}

fn verdict(kind: &str, body: &Value) -> Option<Action> {
    let target = || body.get("target").and_then(Value::as_str).map(str::to_owned);
    match kind {
        "accept" => Some(Action::Accept),
        "return" => Some(Action::Return),
        "continue" => Some(Action::Nothing),
        "drop" | "reject" => Some(Action::Effect { what: kind.to_owned(), each_packet: false }),
        "jump" => target().map(Action::Jump),
        "goto" => target().map(Action::Goto),
        _ => None,
    }
}

/// What came from `iptables-nft`. Neither a match nor a target says more than its name.
fn xt(body: &Value) -> Vec<Part> {
    let text = |name| body.get(name).and_then(Value::as_str).unwrap_or_default();
    match (text("type"), text("name")) {
        ("match", "comment") => Vec::new(),
        ("match", name) => vec![Part::Ask(Test::unknown(iptables::is_match_of_flow(name)))],
        (_, name) => effect(name, iptables::is_target_of_flow(name)),
    }
}

/// A verdict for each value of a key. No two are the same, so it does not matter in which order they are looked at.
fn map(body: &Value, sets: &Sets<'_>) -> Vec<Part> {
    let (Some(key), Some(data)) = (body.get("key"), body.get("data")) else {
        return unknown("vmap");
    };
    if is_about_ipv6(key) {
        return Vec::new();
    }
    let map = data.as_str().and_then(|name| name.strip_prefix('@')).and_then(|name| sets.get(name));
    let entries = match map {
        Some(map) => map.get("elem"),
        None => data.get("set"),
    };
    let is_volatile = map.is_some_and(|map| is_volatile(map));
    let mut parts = Vec::new();
    if map.is_none() && entries.is_none() || is_volatile {
        parts.push(Part::Do(Some(Test::OF_PACKET), unknown_verdict()));
    }
    for entry in entries.and_then(Value::as_array).into_iter().flatten() {
        let (test, verdicts) = match entry.as_array().map(Vec::as_slice) {
            Some([value, verdict]) => (equal(key, value, sets), only_member(verdict)),
            _ => (Test::OF_PACKET, None),
        };
        let action = verdicts.and_then(|(kind, body)| verdict(kind, body));
        let action = action.unwrap_or_else(unknown_verdict);
        let test = match map {
            Some(map) => nft_match::through(key, map, test),
            None => test,
        };
        parts.push(Part::Do(Some(test), action));
    }
    parts
}

fn unknown_verdict() -> Action {
    Action::Effect { what: "vmap".to_owned(), each_packet: true }
}
