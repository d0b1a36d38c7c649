use std::{collections::BTreeMap, mem, net::Ipv4Addr};

use ipnetwork::Ipv4Network;

use super::{
    packet::{ESTABLISHED, Fit, Hook, Pattern, Range, Test},
    table::{Action, Base, Rule, Table},
};

/// Matches that ask what is the same for every packet of a flow, as far as their options do.
const MATCHES: [&str; 29] = [
    "addrtype",
    "cgroup",
    "comment",
    "connlabel",
    "connlimit",
    "connmark",
    "conntrack",
    "dccp",
    "devgroup",
    "helper",
    "icmp",
    "iprange",
    "mac",
    "mark",
    "multiport",
    "owner",
    "physdev",
    "pkttype",
    "policy",
    "realm",
    "recent",
    "rpfilter",
    "sctp",
    "set",
    "socket",
    "state",
    "tcp",
    "time",
    "udp",
];

/// Those of them that have other options too.
const MIXED: [&str; 4] = ["recent", "set", "socket", "tcp"];

/// Options that ask what is the same for every packet of a flow.
const OPTIONS: &str = "-f -p --accept-local --cgroup --connlimit-above --connlimit-daddr --connlimit-mask \
    --connlimit-saddr --connlimit-upto --contiguous --ctdir --ctorigdst --ctorigdstport \
    --ctorigsrc --ctorigsrcport --ctproto --ctrepldst --ctrepldstport --ctreplsrc \
    --ctreplsrcport --ctstatus --datestart --datestop --dir --dport --dports --dst-group \
    --dst-range --gid-owner --helper --icmp-type --invert --kerneltz --label --limit-iface-in \
    --limit-iface-out --loose --mac-source --mark --mask --match-set --monthdays --name \
    --nowildcard --path --physdev-in --physdev-is-bridged --physdev-is-in --physdev-is-out \
    --physdev-out --pkt-type --pol --ports --rcheck --rdest --realm --reap --remove \
    --return-nomatch --rsource --seconds --set --socket-exists --sport --sports --src-group \
    --src-range --src-type --syn --timestart --timestop --transparent --uid-owner --update \
    --validmark --weekdays";

/// Targets that it is enough to meet now and then. Those that translate addresses, and TCPMSS, are only met by what
/// begins a flow.
const TARGETS: [&str; 15] = [
    "CT",
    "DNAT",
    "DROP",
    "LOG",
    "MASQUERADE",
    "NETMAP",
    "NFLOG",
    "NOTRACK",
    "RATEEST",
    "REDIRECT",
    "REJECT",
    "SNAT",
    "TCPMSS",
    "TRACE",
    "ULOG",
];

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
    let base = hook.map(|hook| Base { hook, devices: Vec::new(), drops });
    table.chains.entry(name.to_owned()).or_default().base = base;
    true
}

/// Where packets come by a chain. POSTROUTING of nat is none: a chain of ours stands in front of it.
fn hook(table: &str, chain: &str) -> Option<Hook> {
    match (table, chain) {
        ("nat", "POSTROUTING") => None,
        (_, "PREROUTING") => Some(Hook::Prerouting),
        (_, "FORWARD") => Some(Hook::Forward),
        (_, "POSTROUTING") => Some(Hook::Postrouting),
        (_, "INPUT") => Some(Hook::Input),
        (_, "OUTPUT") => Some(Hook::Output),
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
    let mut is_of_flow = false;
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().map_or("", String::as_str);
        let test = match word.as_str() {
            "!" => {
                negated = true;
                continue;
            }
            "-j" => {
                let name = value();
                return (tests, target(name, words.as_slice(), is_chain));
            }
            "-g" => return (tests, Action::Goto(value().to_owned())),
            "-s" => range(value()).map_or(Test::OF_FLOW, Test::Source),
            "-d" => range(value()).map_or(Test::OF_FLOW, Test::Destination),
            "-i" => Test::From(Pattern::new(value(), '+')),
            "-o" => Test::To(Pattern::new(value(), '+')),
            "-m" => match value() {
                // These ask nothing without an option.
                "comment" | "conntrack" | "state" | "addrtype" | "multiport" | "tcp" | "udp" => {
                    continue;
                }
                name => Test::unknown(MATCHES.contains(&name)),
            },
            "--comment" => {
                value();
                continue;
            }
            "--ctstate" | "--state" => state(value()),
            "--dst-type" => {
                if value() == "LOCAL" {
                    Test::ToHost
                } else {
                    Test::OF_FLOW
                }
            }
            "-p" => protocol(value()).map_or(Test::OF_FLOW, Test::Protocol),
            "--dport" | "--dports" => ports(value()),
            "--tcp-flags" => {
                let mask = value();
                Test::unknown(flags(mask).zip(flags(value())).is_some_and(are_flags_of_flow))
            }
            // An option, or one more of its values.
            word => {
                if word.starts_with('-') {
                    is_of_flow = OPTIONS.split(' ').any(|option| option == word);
                }
                Test::unknown(is_of_flow)
            }
        };
        tests.push(if mem::take(&mut negated) { test.not() } else { test });
    }
    (tests, Action::Nothing)
}

fn target(name: &str, options: &[String], is_chain: impl Fn(&str) -> bool) -> Action {
    match name {
        "ACCEPT" => Action::Accept,
        "RETURN" => Action::Return,
        chain if is_chain(chain) => Action::Jump(chain.to_owned()),
        // Marks packets, if it looks up how.
        "SET" => {
            let each_packet = options.iter().any(|option| option == "--map-set");
            Action::Effect { what: name.to_owned(), each_packet }
        }
        _ => Action::Effect { what: name.to_owned(), each_packet: !is_target_of_flow(name) },
    }
}

/// Whether a target is one that it is enough to meet now and then, whatever its options.
pub(super) fn is_target_of_flow(name: &str) -> bool {
    TARGETS.contains(&name)
}

/// Whether a match asks what is the same for every packet of a flow, whatever its options. (Nobody asks when a
/// connection expires.)
pub(super) fn is_match_of_flow(name: &str) -> bool {
    MATCHES.contains(&name) && !MIXED.contains(&name)
}

/// The bits of flags in TCP's header.
fn flags(list: &str) -> Option<u64> {
    match list {
        "NONE" => Some(0),
        "ALL" => Some(0x3f),
        names => names.split(',').try_fold(0, |flags, name| Some(flags | flag(name)?)),
    }
}

pub(super) fn flag(name: &str) -> Option<u64> {
    let names = ["fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr"];
    let place = names.iter().position(|known| name.eq_ignore_ascii_case(known))?;
    Some(1 << place)
}

/// SYN, FIN and RST: segments with one of these take the host's stack.
pub(super) const OF_ENDS: u64 = 0b111;

/// Whether all other segments have the same answer to whether of the flags in `mask` exactly those in `value` are set.
pub(super) const fn are_flags_of_flow((mask, value): (u64, u64)) -> bool {
    mask & !OF_ENDS == 0 || value & OF_ENDS != 0
}

fn state(list: &str) -> Test {
    let is_established =
        |state: &str| ESTABLISHED.iter().any(|known| state.eq_ignore_ascii_case(known));
    match list {
        "INVALID" => Test::Known(Fit::Never),
        list if list.split(',').all(is_established) => Test::Established,
        list if list.split(',').any(|state| state.eq_ignore_ascii_case("new")) => Test::New,
        _ => Test::OF_FLOW,
    }
}

/// By the names that `iptables-save` and `nft` have for them.
pub(super) fn protocol(name: &str) -> Option<u8> {
    let number = match name {
        "icmp" => 1,
        "igmp" => 2,
        "ipencap" => 4,
        "tcp" => 6,
        "udp" => 17,
        "dccp" => 33,
        "ipv6" => 41,
        "gre" => 47,
        "esp" => 50,
        "ah" => 51,
        "ipv6-icmp" | "icmpv6" => 58,
        "ospf" => 89,
        "pim" => 103,
        "ipcomp" | "comp" => 108,
        "vrrp" => 112,
        "sctp" => 132,
        "udplite" => 136,
        number => return number.parse().ok(),
    };
    Some(number)
}

/// `53,8000:9000`.
fn ports(list: &str) -> Test {
    let range = |text: &str| {
        let (from, to) = text.split_once(':').unwrap_or((text, text));
        Some(Test::Port(from.parse().ok()?, to.parse().ok()?))
    };
    list.split(',').map(range).collect::<Option<Vec<_>>>().map_or(Test::OF_FLOW, Test::Any)
}

/// An address, or a network, whose mask need not be that of a prefix.
fn range(text: &str) -> Option<Range> {
    let network: Option<Ipv4Network> = text.contains('/').then(|| text.parse().ok()).flatten();
    let address = || text.parse::<Ipv4Addr>().ok().map(|address| Range::between(address, address));
    network.map(Range::from).or_else(address)
}
