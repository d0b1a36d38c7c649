//! What elements are on a host: lines for `ip`, rules for `iptables`, settings of the kernel.

use super::Mode;
use crate::shape::{
    About, Chain, Element, INTERNET, NETWORK, PORT, PUBLISHED, Protocol, Selector, Way, World,
    container, other_of_host, second_wire, service, subnet, wire,
};

/// A change of one host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Change {
    pub(crate) ip: Vec<String>,
    pub(crate) raw: Vec<String>,
    pub(crate) nat: Vec<String>,
    pub(crate) filter: Vec<String>,
    /// Files below `/proc/sys/net/ipv4`, and what is written to them.
    pub(crate) settings: Vec<(String, String)>,
}

impl Change {
    pub(crate) fn extend(&mut self, other: Self) {
        self.ip.extend(other.ip);
        self.raw.extend(other.raw);
        self.nat.extend(other.nat);
        self.filter.extend(other.filter);
        self.settings.extend(other.settings);
    }

    /// What `iptables-restore --noflush` reads.
    pub(crate) fn rules(&self) -> String {
        let table = |name: &str, lines: &[String]| {
            if lines.is_empty() {
                return String::new();
            }
            format!("*{name}\n{}\nCOMMIT\n", lines.join("\n"))
        };
        table("raw", &self.raw) + &table("nat", &self.nat) + &table("filter", &self.filter)
    }
}

/// Tables that rules lead to, one for each way.
const WAYS: [Way; 5] =
    [Way::Router, Way::SecondWire, Way::Blackhole, Way::Unreachable, Way::Prohibit];

fn table(way: Way) -> usize {
    100 + WAYS.iter().position(|known| *known == way).unwrap()
}

/// What every host has whatever it looks like.
pub(crate) fn base(world: &World, host: u8) -> Change {
    let mut change = Change::default();
    for way in WAYS {
        if way != Way::SecondWire || world.has(Element::SecondWire) {
            let route = route(world, "default", way, world.hosts);
            change.ip.push(format!("route add {route} table {}", table(way)));
        }
    }
    if host == world.hosts {
        // The outside knows the way to everybody's containers, and is where default routes lead to.
        change.ip.push(format!("address add {INTERNET}/32 dev lo"));
        let hosts = 0..world.hosts;
        change.ip.extend(
            hosts.map(|host| format!("route add {}/24 via {}", subnet(host), world.on_wire(host))),
        );
    }
    change
}

/// A route by a way, in which `next` is who comes next on the second wire.
fn route(world: &World, to: &str, way: Way, next: u8) -> String {
    match way {
        Way::Router => format!("{to} via {} dev eth0", wire(world.hosts)),
        Way::SecondWire => format!("{to} via {} dev eth1", second_wire(next)),
        Way::Blackhole => format!("blackhole {to}"),
        Way::Unreachable => format!("unreachable {to}"),
        Way::Prohibit => format!("prohibit {to}"),
    }
}

/// An element that can come and go, on its host; nothing for one that is there from the beginning.
pub(crate) fn of(world: &World, mode: Mode, element: Element, on: bool) -> Option<(u8, Change)> {
    let verb = if on { "add" } else { "del" };
    let rule = if on { "-A" } else { "-D" };
    let mut change = Change::default();
    let host = match element {
        Element::DefaultRoute { host } => {
            let route = route(world, "default", Way::Router, world.hosts);
            change.ip.push(format!("route {verb} {route}"));
            host
        }
        Element::Route { host, peer, way } => {
            let route = route(world, &world.public(peer).to_string(), way, peer);
            change.ip.push(format!("route {verb} {route}"));
            host
        }
        Element::WorseRoute { host, peer, way } => {
            let route = route(world, &world.public(peer).to_string(), way, peer);
            change.ip.push(format!("route {verb} {route} metric 200"));
            host
        }
        Element::Rule { host, selector, way } => {
            let selector = select(world, host, selector);
            change.ip.push(format!("rule {verb} {selector} lookup {}", table(way)));
            host
        }
        Element::SourceCheck { host, mode } => {
            let value = if on { mode } else { 0 };
            change.settings.push(("conf/all/rp_filter".to_owned(), value.to_string()));
            host
        }
        Element::OtherAddress { host } => {
            change.ip.push(format!("address {verb} {}/24 dev eth0", other_of_host(host)));
            host
        }
        Element::DockerMasquerade { host } => {
            let subnet = subnet(host);
            change
                .nat
                .push(format!("{rule} POSTROUTING -s {subnet}/24 ! -o docker0 -j MASQUERADE"));
            host
        }
        Element::IpMasq { host } if !mode.is_ours() => {
            change.nat.extend(ip_masq(host));
            host
        }
        Element::ForwardDrop { host } => {
            let policy = if on { "DROP" } else { "ACCEPT" };
            change.filter.push(format!(":FORWARD {policy} [0:0]"));
            let accepted = [
                "-o docker0 -m conntrack --ctstate RELATED,ESTABLISHED",
                "-i docker0 ! -o docker0",
                "-i docker0 -o docker0",
            ];
            change
                .filter
                .extend(accepted.map(|accepted| format!("{rule} FORWARD {accepted} -j ACCEPT")));
            host
        }
        Element::Service { host, peer } => {
            let (address, behind) = (service(host), container(peer, 0));
            for chain in ["PREROUTING", "OUTPUT"] {
                change
                    .nat
                    .push(format!("{rule} {chain} -d {address} -j DNAT --to-destination {behind}"));
            }
            host
        }
        Element::Published { host } => {
            let behind = container(host, 0);
            for protocol in ["tcp", "udp"] {
                for chain in ["PREROUTING", "OUTPUT"] {
                    change.nat.push(format!(
                        "{rule} {chain} -p {protocol} --dport {PUBLISHED} -m addrtype --dst-type LOCAL \
                         -j DNAT --to-destination {behind}:{PORT}"
                    ));
                }
                change.filter.push(format!(
                    "{rule} FORWARD -d {behind} ! -i docker0 -o docker0 -p {protocol} --dport {PORT} \
                     -j ACCEPT"
                ));
            }
            host
        }
        Element::Firewall { host, chain, about } => {
            let first = if on { "-I" } else { "-D" };
            let (about, reject) = (match_of(about), "REJECT --reject-with icmp-admin-prohibited");
            match chain {
                Chain::Raw => change.raw.push(format!("{first} PREROUTING {about} -j DROP")),
                Chain::Drop => change.filter.push(format!("{first} FORWARD {about} -j DROP")),
                Chain::Reject => change.filter.push(format!("{first} FORWARD {about} -j {reject}")),
            }
            host
        }
        _ => return None,
    };
    Some((host, change))
}

fn match_of(about: About) -> String {
    let protocol = |protocol| match protocol {
        Protocol::Udp => "udp",
        Protocol::Tcp => "tcp",
        Protocol::Icmp => "icmp",
    };
    match about {
        About::FromSubnet(host) => format!("-s {}/24", subnet(host)),
        About::ToContainer(host) => format!("-d {}", container(host, 0)),
        About::Port(Protocol::Icmp) => "-p icmp -m icmp --icmp-type echo-request".to_owned(),
        About::Port(of) => format!("-p {} --dport {PORT}", protocol(of)),
        About::Protocol(of) => format!("-p {}", protocol(of)),
        About::Established => "-m conntrack --ctstate ESTABLISHED".to_owned(),
    }
}

fn select(world: &World, host: u8, selector: Selector) -> String {
    match selector {
        Selector::FromPublic => format!("from {}", world.public(host)),
        Selector::FromSubnet => format!("from {}/24", subnet(host)),
        Selector::ToPeer(peer) => format!("to {}", world.public(peer)),
        Selector::ToSubnet(peer) => format!("to {}/24", subnet(peer)),
        Selector::Port => "ipproto udp dport 8472".to_owned(),
        Selector::Mark => "fwmark 7".to_owned(),
    }
}

/// flannel's rules, in its order, which let ports be where they can.
fn ip_masq(host: u8) -> Vec<String> {
    let subnet = subnet(host);
    [
        "-m mark --mark 0x4000/0x4000 -j RETURN".to_owned(),
        format!("-s {subnet}/24 -d {NETWORK} -j RETURN"),
        format!("-s {NETWORK} -d {subnet}/24 -j RETURN"),
        format!("! -s {NETWORK} -d {subnet}/24 -j RETURN"),
        format!("-s {NETWORK} ! -d 224.0.0.0/4 -j MASQUERADE"),
        format!("! -s {NETWORK} -d {NETWORK} -j MASQUERADE"),
    ]
    .map(|rule| format!("-A POSTROUTING {rule}"))
    .into()
}
