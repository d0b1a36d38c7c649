//! The manual's reference pages, made of what the code says: `cargo xtask docs` has these tests write them.

use std::{fmt::Write as _, fs};

use clap::{Arg, Command as Verb};
use overlay_common::{Class, Reason};
use overlay_lease::{
    config::NetworkConfig,
    wire::{
        identity::{About, Applicant, HostId, TokenId},
        key::KeyPrefix,
        trust::order_key,
        value::{Backend, LeaseValue},
    },
};
use serde_json::{Value, json};

use super::*;
use crate::{
    address_pools::{AddressPools, PoolSize},
    admin::Verdicts,
    exit::Exit,
    provision::DEFAULT_NETWORK,
};

/// The heading of the flags that say how to reach etcd.
const ETCD: &str = "etcd";

/// Compares what stands between a page's marks of this name with what the code says, or writes it there.
fn hold_true(path: &str, mark: &str, text: &str) {
    let file = overlay_lab::workspace::root().join(path);
    let page = fs::read_to_string(&file).unwrap();
    let [begin, end] = [format!("<!-- made of the code: {mark} -->\n"), "<!-- end -->".to_owned()];
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("{path}: no {begin}"));
    let (found, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{path}: no {end}"));
    let text = format!("\n{text}\n");
    if std::env::var_os("OVERLAY_RECORD_PAGES").is_some() {
        fs::write(&file, format!("{before}{begin}{text}{end}{after}")).unwrap();
    } else {
        assert!(found == text, "{path}: {mark} is stale: `cargo xtask docs`");
    }
}

/// One line of a table, whatever is in the text.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ").trim().to_owned()
}

/// `overlay-agent`, and every verb with those of its own.
fn verbs(command: &Verb, name: &str, all: &mut Vec<(String, Verb)>) {
    all.push((name.to_owned(), command.clone()));
    for verb in command.get_subcommands() {
        verbs(verb, &format!("{name} {}", verb.get_name()), all);
    }
}

#[test]
fn the_page_of_the_command_line_has_every_verb_and_flag() {
    let mut command = Cli::command();
    command.build();
    let run = command.find_subcommand("run").unwrap().clone();
    let mut all = Vec::new();
    verbs(&command, "overlay-agent", &mut all);
    let mut text = String::new();
    for (name, mut verb) in all {
        let usage = verb.render_usage().to_string();
        let about = verb.get_long_about().or_else(|| verb.get_about()).unwrap().to_string();
        writeln!(text, "### {name}\n\n{}\n\n`{}`", sentence(&about), usage_line(&usage)).unwrap();
        let is_runs = |arg: &Arg| {
            let of_run = run.get_arguments().find(|other| other.get_id() == arg.get_id());
            of_run.is_some_and(|other| {
                other.get_help_heading() == Some(ETCD) && help(other) == help(arg)
            })
        };
        let shown = verb.get_arguments().filter(|arg| is_shown(arg));
        let (common, own): (Vec<_>, Vec<_>) =
            shown.partition(|arg| !name.ends_with(" run") && is_runs(arg));
        let (flags, words): (Vec<_>, Vec<_>) =
            own.into_iter().partition(|arg| !arg.is_positional());
        if !words.is_empty() {
            text.push('\n');
        }
        for word in words {
            let what = word.get_value_names().unwrap_or_default().join(" ");
            writeln!(text, "- `{what}`: {}.", cell(&help(word))).unwrap();
        }
        if !flags.is_empty() {
            text.push_str("\n| flag | variable | default | what it does |\n|---|---|---|---|\n");
        }
        for flag in flags {
            let variable = if env::has_variables(&verb) { variable(flag) } else { String::new() };
            let (name, default, help) = (cell(&typed(flag)), default(flag), cell(&help(flag)));
            writeln!(text, "| `{name}` | {variable} | {default} | {help} |").unwrap();
        }
        if !common.is_empty() {
            text.push_str(
                "\nHow to reach etcd: the `--etcd-…` flags of [run](#overlay-agent-run).\n",
            );
        }
        text.push('\n');
    }
    hold_true("docs/command-line.md", "verbs", text.trim_end());
}

/// What every verb has is said once, before them.
fn is_shown(arg: &Arg) -> bool {
    !arg.is_hide_set() && !["help", "version", "verbosity"].contains(&arg.get_id().as_str())
}

fn sentence(text: &str) -> String {
    let text = text.trim();
    if text.ends_with('.') { text.to_owned() } else { format!("{text}.") }
}

fn usage_line(usage: &str) -> String {
    usage.trim_start_matches("Usage:").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn help(arg: &Arg) -> String {
    let said = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let values = arg.get_possible_values();
    let values: Vec<_> = values
        .iter()
        .filter_map(|value| {
            let help = value.get_help()?.to_string();
            Some(format!("`{}`: {}", value.get_name(), help))
        })
        .collect();
    if values.is_empty() { said } else { format!("{said}. {}", values.join("; ")) }
}

fn typed(arg: &Arg) -> String {
    let short = arg.get_short().map(|short| format!("-{short}"));
    let long = arg.get_long().map(|long| format!("--{long}"));
    let names: Vec<_> = short.into_iter().chain(long).collect();
    let takes_value = arg.get_action().takes_values();
    let value = arg.get_value_names().filter(|_| takes_value).map(|names| names.join(" "));
    let value = value.map(|value| {
        if arg.is_require_equals_set() { format!("[={value}]") } else { format!(" {value}") }
    });
    format!("{}{}", names.join(", "), value.unwrap_or_default())
}

fn variable(arg: &Arg) -> String {
    let long = arg.get_long().filter(|_| arg.get_action().takes_values());
    long.map(|long| format!("`OVERLAY_{}`", env::suffix(long))).unwrap_or_default()
}

fn default(arg: &Arg) -> String {
    let values = arg.get_default_values();
    let shown = values.iter().map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(",");
    if shown.is_empty() || !arg.get_action().takes_values() {
        String::new()
    } else {
        format!("`{shown}`")
    }
}

#[test]
fn the_page_of_the_command_line_has_every_exit_code() {
    let mut text = String::from("| code | meaning |\n|---|---|\n");
    for exit in Exit::ALL {
        writeln!(text, "| {} | {} |", exit.code(), cell(exit.meaning())).unwrap();
    }
    hold_true("docs/command-line.md", "exit codes", text.trim_end());
}

#[test]
fn the_page_of_etcds_keys_has_what_is_written() {
    let prefix = KeyPrefix::new("/coreos.com/network");
    let subnet = "10.1.78.0/24".parse().unwrap();
    let value = LeaseValue {
        public_ip: [192, 168, 33, 10].into(),
        backend: Backend::Vxlan {
            vni: Some(overlay_common::Vni::new(1).unwrap()),
            vtep_mac: overlay_common::MacAddr([0x3a, 0x5c, 0x11, 0x90, 0xe2, 0x07]),
        },
    };
    let config = json!({"Network": DEFAULT_NETWORK, "Backend": {"Type": "vxlan"}});
    let rows = [
        (
            prefix.config_key(),
            "`init`, `config set`",
            "the network config ([configuration.md](configuration.md#the-network-config)); an agent waits until it is there",
            config.to_string(),
        ),
        (
            prefix.subnet_key(subnet),
            "the agent that has the subnet; `lease reserve`, `lease release`",
            "a lease, or without an end in etcd a reservation: who has the subnet, and how he is reached",
            String::from_utf8(value.encode()).unwrap(),
        ),
    ];
    let host = HostId::parse("web1-3f9a04c2").unwrap();
    let token = TokenId::parse("1f0c6e0d9b7a2c44").unwrap();
    let asks = |applicant: &Applicant, about, who, what| {
        (applicant.request_key(&prefix, about), who, what)
    };
    let known = Applicant::Host(host.clone());
    let guest = Applicant::Guest(token, host.clone());
    let questions = [
        asks(
            &guest,
            About::Certificate,
            "`join`",
            "a question, answered beside it in `answer`: a certificate for a host that has a token",
        ),
        asks(
            &known,
            About::Certificate,
            "the host's agent",
            "the same for the next certificate of a host that has one",
        ),
        asks(
            &known,
            About::Subnet,
            "the host's agent",
            "the same for the right to write the lease of a subnet",
        ),
        asks(&known, About::Leaving, "`leave`", "the same for being forgotten"),
        (
            order_key(&prefix, &host),
            "`authority rotate`",
            "whom the host is to trust, while the authority is made another; answered beside it in `done`",
        ),
        (
            prefix.authority_dir(),
            "agents of hosts with a share in etcd, `init`, `expel`, `authority`",
            "what these remember of hosts, tokens and who may write which lease; nobody else can read it",
        ),
    ];
    let mut text = String::from("| key | who writes it | what it is |\n|---|---|---|\n");
    let first = rows.iter().map(|(key, who, what, _)| (key, who, what));
    for (key, who, what) in first.chain(questions.iter().map(|(key, who, what)| (key, who, what))) {
        writeln!(text, "| `{key}` | {who} | {what} |").unwrap();
    }
    for (key, _, _, value) in &rows {
        writeln!(text, "\n`{key}`:\n\n```json\n{value}\n```").unwrap();
    }
    hold_true("docs/etcd-keys.md", "keys", text.trim_end());
}

/// A field of the network config: its default where that is no other field's, and what it says.
struct Field {
    name: &'static str,
    says: &'static str,
    default: fn(&NetworkConfig) -> String,
}

fn off(_: &NetworkConfig) -> String {
    "`false`".to_owned()
}

fn nothing(_: &NetworkConfig) -> String {
    String::new()
}

const FIELDS: &[Field] = &[
    Field {
        name: "Network",
        says: "The whole overlay's range. Has to be there.",
        default: nothing,
    },
    Field {
        name: "SubnetLen",
        says: "The prefix length of each host's subnet, at least two longer than the network's, at most 30.",
        default: |config| {
            format!("`{}`; longer in a network smaller than a /22", config.subnet_len)
        },
    },
    Field {
        name: "SubnetMin",
        says: "The first subnet that is leased.",
        default: |config| format!("the second of the network: `{}`", config.subnet_min),
    },
    Field {
        name: "SubnetMax",
        says: "The last subnet that is leased.",
        default: |config| format!("the last of the network: `{}`", config.subnet_max),
    },
    Field {
        name: "Backend.Type",
        says: "`vxlan`; another is refused. Write it out where flanneld is in the network, too: it takes `udp` where there is none.",
        default: |_| "`vxlan`".to_owned(),
    },
    Field {
        name: "Backend.VNI",
        says: "The network's number on the wire.",
        default: |config| format!("`{}`", config.vni),
    },
    Field {
        name: "Backend.Port",
        says: "The UDP port on the wire.",
        default: |config| format!("`{}`", config.port),
    },
    Field {
        name: "Backend.MTU",
        says: "What the wire carries, where that is less than the uplink says ([mtu.md](mtu.md)).",
        default: |_| "the uplink's".to_owned(),
    },
    Field {
        name: "Backend.DirectRouting",
        says: "Hosts on one link send each other plain packets.",
        default: off,
    },
    Field {
        name: "Backend.GBP",
        says: "Packets carry their mark in the VXLAN header (group policy).",
        default: off,
    },
    Field {
        name: "Backend.Learning",
        says: "Taken, and without effect: nothing is learned from packets.",
        default: off,
    },
    Field { name: "EnableNFTables", says: "Taken, and without effect.", default: off },
    Field { name: "EnableIPv4", says: "`false` is refused.", default: |_| "`true`".to_owned() },
    Field { name: "EnableIPv6", says: "`true` is refused: IPv4 only.", default: off },
    Field {
        name: "Rules",
        says: "Whether rules of hosts' firewalls hold for the overlay ([firewall.md](firewall.md)): `auto`, `honour`, `bypass`. Ours; flannel passes it over.",
        default: |_| "`auto`".to_owned(),
    },
    Field {
        name: "Policy",
        says: "Who may begin what with whom ([policy.md](policy.md)). Ours; flannel passes it over.",
        default: |_| "none: all may".to_owned(),
    },
];

#[test]
fn the_page_of_configuration_has_every_field_of_the_network_config() {
    let config = json!({"Network": DEFAULT_NETWORK, "Backend": {"Type": "vxlan"}});
    let parse = |config: &Value| NetworkConfig::parse(config.to_string().as_bytes());
    let parsed = parse(&config).unwrap().config;
    let mut text = String::from("| field | default | what it says |\n|---|---|---|\n");
    for Field { name, says, default } in FIELDS {
        // That a value of a wrong kind is called wrong by this name shows that the field is read.
        let mut wrong = config.clone();
        let pointer = format!("/{}", name.replace('.', "/"));
        let (parent, last) = pointer.rsplit_once('/').unwrap();
        wrong.pointer_mut(parent).unwrap()[last] = json!({"a": ["wrong kind"]});
        let error = parse(&wrong).expect_err(name).to_string();
        assert!(error.contains(last), "{name}: {error}");
        writeln!(text, "| `{name}` | {} | {} |", default(&parsed), cell(says)).unwrap();
    }
    hold_true("docs/configuration.md", "network config", text.trim_end());
}

#[test]
fn the_page_of_sizes_has_what_networks_have_room_for() {
    let mut text = String::from(
        "| network | each host's subnet | hosts | containers of a host |\n|---|---|---|---|\n",
    );
    for (network, length) in [
        ("10.0.0.0/8", 24),
        ("10.0.0.0/12", 24),
        ("10.1.0.0/16", 24),
        ("10.1.0.0/16", 26),
        ("10.1.0.0/16", 22),
        ("10.1.0.0/20", 26),
        ("10.1.0.0/24", 28),
    ] {
        let config = json!({"Network": network, "SubnetLen": length, "Backend": {"Type": "vxlan"}});
        let config = NetworkConfig::parse(config.to_string().as_bytes()).unwrap().config;
        // The network's own, the bridge's, the broadcast's.
        let containers = (1_u32 << (32 - length)) - 3;
        let hosts = config.capacity();
        writeln!(text, "| {network} | /{length} | {hosts} | {containers} |").unwrap();
    }
    hold_true("docs/sizing.md", "sizes", text.trim_end());
    // One after the other: they write the same page.
    hold_true("docs/sizing.md", "address pools", address_pools().trim_end());
}

fn address_pools() -> String {
    let mut text = String::from(
        "| each host's subnet | hosts of a /16 | `--address-pools` | networks of a host, beside Docker's own | containers of each |\n\
         |---|---|---|---|---|\n",
    );
    for (length, size) in
        [(24, None), (24, Some(27)), (24, Some(26)), (22, None), (22, Some(27)), (20, None)]
    {
        let config =
            json!({"Network": "10.1.0.0/16", "SubnetLen": length, "Backend": {"Type": "vxlan"}});
        let config = NetworkConfig::parse(config.to_string().as_bytes()).unwrap().config;
        let subnet = format!("10.1.16.0/{length}").parse().unwrap();
        let parts =
            AddressPools::of(subnet, size.map_or(PoolSize::Usual, PoolSize::Length)).unwrap();
        let flag = size.map_or_else(String::new, |size| format!("={size}"));
        let containers = (1_u32 << (32 - parts.size)) - 3;
        let (hosts, networks) = (config.capacity(), parts.networks());
        writeln!(
            text,
            "| /{length} | {hosts} | `--address-pools{flag}` | {networks} | {containers} |"
        )
        .unwrap();
    }
    text
}

/// What there is to do about packets that leave by this reason.
fn what_to_do(reason: Reason) -> &'static str {
    match reason {
        Reason::AwaitsRules => {
            "Nothing, while few: it is each flow's first packets. If it is nearly all, `status` names the rule that looks at single packets ([firewall.md](firewall.md))."
        }
        Reason::FastPathOff => "Leave out `--fast-path off`.",
        Reason::NotConfigured => "Nothing at a start. If it grows, look at `status`.",
        Reason::TooBig => {
            "Nothing, while few. If it grows, `doctor` compares what containers and the wire carry ([mtu.md](mtu.md))."
        }
        Reason::OtherWay => "`ip route get` the peer's address, if it should go by the uplink.",
        Reason::NoPeer | Reason::Unreachable => {
            "`overlay-agent lease list`: is there a lease for the destination?"
        }
        Reason::Unencapsulated | Reason::MisplacedVtep | Reason::ForeignInnerSource => {
            "Somebody forges, or routes around the tunnel: `tcpdump` on the interface names the sender's MAC ([security.md](security.md))."
        }
        Reason::UnknownVtep => {
            "A host that sends VXLAN has no lease, or another address than its lease says: compare `overlay-agent lease list` with its addresses (NAT, `--public-ip`)."
        }
        Reason::WrongVtepAddress => {
            "Others send to another address of this host than its lease has: set `--public-ip` or `--iface`."
        }
        Reason::WrongVni => {
            "Another overlay on the same port: give one of them another `VNI` and `Port`."
        }
        Reason::WrongInnerMac => {
            "A peer goes by an old lease of this host for a moment; if it lasts, it forges, or does not hear etcd."
        }
        Reason::ForeignInnerDestination => {
            "A peer takes this host for another subnet's: `overlay-agent lease list` on both."
        }
        Reason::InnerIpv6 => "Switch IPv6 off in the network config: the overlay carries IPv4.",
        Reason::ContainerVxlan => {
            "A container of this host speaks VXLAN to hosts: find it, it may attack."
        }
        Reason::ForeignMac | Reason::SpoofedArp | Reason::SpoofedSource => {
            "A container uses what is not its own; `status` names the address. If it is meant to (LVS, keepalived): `--source-check-exempt`."
        }
        Reason::PolicyDenied => {
            "The part *Policy* of `overlay-agent status` names the rule ([policy.md](policy.md))."
        }
        Reason::CongestionLost => "Nothing: a sender that does not know ECN is told by the loss.",
        Reason::HelperFailed => "`overlay-agent report`: this should not happen.",
        _ => match reason.class() {
            Class::Dropped => {
                "Nothing, while few: damaged or forged. If it grows, look for the sender."
            }
            Class::Forwarded | Class::Passed | Class::Declined => "Nothing.",
        },
    }
}

#[test]
fn the_page_of_reasons_has_each_of_them() {
    let mut text =
        String::from("| reason | class | what it says | what to do |\n|---|---|---|---|\n");
    for &reason in Reason::ALL {
        let (name, class) = (reason.name(), Verdicts::from(reason.class()).name());
        writeln!(text, "| `{name}` | {class} | {} | {} |", reason.describe(), what_to_do(reason))
            .unwrap();
    }
    hold_true("docs/reasons.md", "reasons", text.trim_end());
}
