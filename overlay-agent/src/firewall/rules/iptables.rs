use std::{collections::BTreeMap, mem, net::Ipv4Addr};

use ipnetwork::Ipv4Network;

use super::{
    packet::{Fit, Hook, Pattern, Range, Test},
    walk::{Action, Base, Rule, Table},
};

/// What `iptables-save` shows.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) tables: Vec<Table>,
    /// Lines that make no sense to us.
    pub(super) unread: Vec<String>,
    /// Tables in which there are chains that it cannot show, and says so.
    pub(super) partly: Vec<String>,
}

/// Reads the output of `iptables-save`, whose rules are to be called those of `tool`.
pub(super) fn parse(tool: &'static str, text: &str) -> Listing {
    let mut listing = Listing::default();
    for line in text.lines().map(str::trim_end) {
        if !read_line(&mut listing, tool, line) {
            let table = listing.tables.last().map_or("", |table| &table.name);
            listing.unread.push(format!("{tool} {table}: {line} (which was not understood)"));
        }
    }
    listing
}

/// Returns whether the line was understood.
fn read_line(listing: &mut Listing, tool: &'static str, line: &str) -> bool {
    if let Some(remark) = line.strip_prefix('#') {
        listing.partly.extend(incompatible(remark).map(str::to_owned));
        return true;
    }
    if let Some(name) = line.strip_prefix('*') {
        listing.tables.push(Table { tool, name: name.to_owned(), chains: BTreeMap::new() });
        return true;
    }
    match listing.tables.last_mut() {
        _ if line.is_empty() || line == "COMMIT" => true,
        Some(table) => read_chain(table, line) || read_rule(table, line),
        None => false,
    }
}

/// The table that `iptables-nft-save` says it cannot show, or not all of.
fn incompatible(remark: &str) -> Option<&str> {
    let name = remark.trim_start().strip_prefix("Table `")?;
    remark.contains("incompatible").then_some(name.split('\'').next()?)
}

/// `:FORWARD DROP [0:0]`.
fn read_chain(table: &mut Table, line: &str) -> bool {
    let Some((name, rest)) = line.strip_prefix(':').and_then(|line| line.split_once(' ')) else {
        return false;
    };
    let policy = rest.split(' ').next().unwrap_or_default();
    let drops = (policy != "ACCEPT")
        .then(|| format!("{} {}: {name} policy {policy}", table.tool, table.name));
    // A chain that an operator has made has none.
    let hook = hook(&table.name, name).filter(|_| policy != "-");
    let base = hook.map(|hook| Base { hook, drops });
    table.chains.entry(name.to_owned()).or_default().base = base;
    true
}

/// Which chains forwarded packets come by. POSTROUTING of nat is none: a chain of ours stands in front of it.
fn hook(table: &str, chain: &str) -> Option<Hook> {
    match (table, chain) {
        ("nat", "POSTROUTING") => None,
        (_, "PREROUTING") => Some(Hook::Prerouting),
        (_, "FORWARD") => Some(Hook::Forward),
        (_, "POSTROUTING") => Some(Hook::Postrouting),
        _ => None,
    }
}

/// `-A FORWARD -i eth0 -j DROP`.
fn read_rule(table: &mut Table, line: &str) -> bool {
    let Some(words) = words(line) else { return false };
    let [add, chain, rest @ ..] = words.as_slice() else { return false };
    if add != "-A" {
        return false;
    }
    let (tests, action) = rule(rest, |target| table.chains.contains_key(target));
    let text = format!("{} {}: {line}", table.tool, table.name);
    table.chains.entry(chain.clone()).or_default().rules.push(Rule { text, tests, action });
    true
}

/// The words of a line, some of them in quotes. One in quotes that looks like an option gets a space in front, so that
/// it is not taken for one.
fn words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let mut word = String::new();
        let mut quoted = false;
        let mut end = rest.len();
        let mut characters = rest.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    quoted = !quoted;
                    if quoted && word.is_empty() && rest[at + 1..].starts_with(['-', '!']) {
                        word.push(' ');
                    }
                }
                '\\' if quoted => word.push(characters.next()?.1),
                ' ' if !quoted => {
                    end = at;
                    break;
                }
                _ => word.push(character),
            }
        }
        if quoted {
            return None;
        }
        words.push(word);
        rest = rest[end..].trim_start();
    }
    Some(words)
}

/// What a rule asks, and what it does. Whatever it asks that is not known here may be so.
fn rule(words: &[String], is_chain: impl Fn(&str) -> bool) -> (Vec<Test>, Action) {
    let mut tests = Vec::new();
    let mut negated = false;
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_default();
        let test = match word {
            "!" => {
                negated = true;
                continue;
            }
            "-j" => return (tests, target(value(), is_chain)),
            "-g" => return (tests, Action::Goto(value().to_owned())),
            "-s" => range(value()).map_or(Test::UNKNOWN, Test::Source),
            "-d" => range(value()).map_or(Test::UNKNOWN, Test::Destination),
            "-i" => Test::From(Pattern::new(value(), '+')),
            "-o" => Test::To(Pattern::new(value(), '+')),
            "-m" => match value() {
                // These ask nothing without an option.
                "comment" | "conntrack" | "state" | "addrtype" => continue,
                _ => Test::UNKNOWN,
            },
            "--comment" => {
                value();
                continue;
            }
            "--ctstate" | "--state" => only(value(), "INVALID"),
            "--dst-type" => only(value(), "LOCAL"),
            _ => Test::UNKNOWN,
        };
        tests.push(if mem::take(&mut negated) { test.not() } else { test });
    }
    (tests, Action::Nothing)
}

fn target(name: &str, is_chain: impl Fn(&str) -> bool) -> Action {
    match name {
        "ACCEPT" => Action::Accept,
        "RETURN" => Action::Return,
        chain if is_chain(chain) => Action::Jump(chain.to_owned()),
        other => Action::Effect(other.to_owned()),
    }
}

/// Of a list of which one value is that of no packet of ours.
fn only(list: &str, impossible: &str) -> Test {
    Test::Known(if list == impossible { Fit::Never } else { Fit::Perhaps })
}

/// An address, or a network, whose mask need not be that of a prefix.
fn range(text: &str) -> Option<Range> {
    let network: Option<Ipv4Network> = text.contains('/').then(|| text.parse().ok()).flatten();
    let address = || text.parse::<Ipv4Addr>().ok().map(|address| Range::between(address, address));
    network.map(Range::from).or_else(address)
}
