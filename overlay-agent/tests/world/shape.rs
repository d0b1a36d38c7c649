//! What a world is made of. Everything is an element or a step that can be left out: a world shrinks by dropping them.

use std::{fmt, net::Ipv4Addr};

use serde::{Deserialize, Serialize};

/// The whole overlay; a host's subnet is a /24 of it.
pub(crate) const NETWORK: &str = "10.1.0.0/16";

/// Where whoever is asked listens, by UDP and TCP.
pub(crate) const PORT: u16 = 7007;

/// Where a host publishes its first container.
pub(crate) const PUBLISHED: u16 = 8080;

/// Beyond the router, by default routes.
pub(crate) const INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// In the network, in no lease.
pub(crate) const UNLEASED: Ipv4Addr = Ipv4Addr::new(10, 1, 199, 7);

/// Hosts, what they look like, and what happens on them.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct World {
    /// Where it comes from.
    pub(crate) about: String,
    /// How many have a subnet. One more is the outside: it has none, and is everybody's router.
    pub(crate) hosts: u8,
    pub(crate) elements: Vec<Element>,
    pub(crate) steps: Vec<Step>,
}

/// What makes hosts differ from plain ones: one address, one container, no rules.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Element {
    /// Of the wire and of every uplink.
    WireMtu { mtu: u16 },
    /// Of a bridge and its containers, where it is not what the agent says.
    BridgeMtu { host: u8, mtu: u16 },
    /// Uplinks send no more than the MTU at a time.
    RealWire,
    /// A second address of the uplink, which is the public one.
    SecondAddress { host: u8 },
    /// The public address is one of the loopback interface's, to which everybody has a route.
    LoopbackAddress { host: u8 },
    /// A second interface of every host, on a wire of its own.
    SecondWire,
    /// By the router, to everywhere.
    DefaultRoute { host: u8 },
    /// The way to a peer.
    Route { host: u8, peer: u8, way: Way },
    /// A second route to the same, which is worse.
    WorseRoute { host: u8, peer: u8, way: Way },
    /// A routing rule.
    Rule { host: u8, selector: Selector, way: Way },
    /// `rp_filter` of all interfaces.
    SourceCheck { host: u8, mode: u8 },
    /// What leaves the bridge's subnet by another device than the bridge, as Docker has it.
    DockerMasquerade { host: u8 },
    /// `--ip-masq`.
    IpMasq { host: u8 },
    /// The policy of FORWARD, with what Docker accepts.
    ForwardDrop { host: u8 },
    /// An address that stands for a peer's first container.
    Service { host: u8, peer: u8 },
    /// An address of the uplink that nobody asks for.
    OtherAddress { host: u8 },
    /// A port that stands for the host's own first container.
    Published { host: u8 },
    /// One more container.
    Container { host: u8 },
    /// The first container has a second address.
    SecondContainerAddress { host: u8 },
    /// Somebody's rule for what is forwarded.
    Firewall { host: u8, chain: Chain, about: About },
    /// Agents are told that rules hold, whether there are any or not.
    HonourRules,
}

impl Element {
    /// A routing rule about overlay addresses.
    pub(crate) const fn is_about_the_inside(self) -> bool {
        matches!(self, Self::Rule { selector: Selector::FromSubnet | Selector::ToSubnet(_), .. })
    }
}

/// Where somebody's rule stands, before all others, and what it does.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Chain {
    /// `raw`, which drops.
    Raw,
    /// FORWARD, which drops.
    Drop,
    /// FORWARD, which refuses.
    Reject,
}

/// What somebody's rule is about.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum About {
    /// What comes from a host's subnet.
    FromSubnet(u8),
    /// What is for a host's first container.
    ToContainer(u8),
    Protocol(Protocol),
    /// What is for the port that everybody listens on.
    Port(Protocol),
    /// Answers, and what follows them; in `raw`, where nobody knows, everything.
    Established,
}

/// Where a route leads to.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Way {
    Router,
    SecondWire,
    Blackhole,
    Unreachable,
    Prohibit,
}

/// What a routing rule goes by.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Selector {
    /// The host's public address as source.
    FromPublic,
    /// The host's subnet as source.
    FromSubnet,
    /// A peer's public address.
    ToPeer(u8),
    /// A peer's subnet.
    ToSubnet(u8),
    /// VXLAN.
    Port,
    /// A mark that nobody sets.
    Mark,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Step {
    Event(Event),
    Probe(Probe),
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Event {
    Add(Element),
    Remove(Element),
    UplinkDown {
        host: u8,
    },
    UplinkUp {
        host: u8,
    },
    /// The agent is killed and started again; flannel has none that matters.
    Crash {
        host: u8,
    },
    /// The agent is stopped and started again.
    Restart {
        host: u8,
    },
    /// The second address of the first container becomes the second container's.
    SecondMoves {
        host: u8,
    },
    /// The last container goes.
    ContainerGoes {
        host: u8,
    },
}

/// Something that is sent, and is to be answered.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Probe {
    pub(crate) from: Place,
    pub(crate) to: Target,
    pub(crate) protocol: Protocol,
    /// Of the payload.
    pub(crate) size: u16,
    /// Of the answer's payload; of an echo it is the same as the question's.
    pub(crate) answer: u16,
    pub(crate) ttl: u8,
    pub(crate) tos: u8,
    pub(crate) df: bool,
    pub(crate) options: bool,
    /// From the host's public address, or the container's second, instead of the one that the kernel takes.
    #[serde(default)]
    pub(crate) bound: bool,
}

impl Probe {
    /// What two containers that can talk can say to each other.
    pub(crate) const fn hello(from: u8, to: u8) -> Self {
        Self {
            from: Place::Container { host: from, number: 0 },
            to: Target::Container { host: to, number: 0 },
            protocol: Protocol::Udp,
            size: 64,
            answer: 64,
            ttl: 64,
            tos: 0,
            df: false,
            options: false,
            bound: false,
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Protocol {
    Udp,
    Tcp,
    Icmp,
}

/// Where something is sent from or arrives.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Place {
    Container { host: u8, number: u8 },
    Host(u8),
    Outside,
}

impl Place {
    /// The host that it is on; none outside.
    pub(crate) const fn host(self) -> Option<u8> {
        match self {
            Self::Container { host, .. } | Self::Host(host) => Some(host),
            Self::Outside => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container { host, number } => write!(formatter, "container {number} of {host}"),
            Self::Host(host) => write!(formatter, "host {host}"),
            Self::Outside => formatter.write_str("the outside"),
        }
    }
}

/// What is sent to.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Target {
    Container {
        host: u8,
        number: u8,
    },
    /// The second address of a host's first container.
    Second(u8),
    /// The first address of a host's subnet, which is the tunnel device's.
    Subnet(u8),
    /// The bridge's address.
    Gateway(u8),
    /// What other hosts know a host by.
    Public(u8),
    /// The host's first address on the wire.
    Wire(u8),
    Service(u8),
    Published(u8),
    Outside,
    Internet,
    Unleased,
}

/// Of a container's interface, or of a bridge for number 255; as Docker makes them.
pub(crate) fn mac(host: u8, number: u8) -> String {
    format!("02:42:0a:01:{:02x}:{:02x}", host + 1, number.wrapping_add(2))
}

pub(crate) const fn subnet(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, host + 1, 0)
}

pub(crate) const fn gateway(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, host + 1, 1)
}

pub(crate) const fn container(host: u8, number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, host + 1, 2 + number)
}

pub(crate) const fn second_of_container(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, host + 1, 102)
}

pub(crate) const fn wire(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 33, 10 + host)
}

pub(crate) const fn second_of_host(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 33, 110 + host)
}

pub(crate) const fn loopback_of_host(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 255, 0, 10 + host)
}

pub(crate) const fn other_of_host(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 33, 150 + host)
}

pub(crate) const fn second_wire(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 20, 0, 10 + host)
}

pub(crate) const fn service(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 0, 10 + host)
}

impl Target {
    /// The host that it is on, or behind.
    pub(crate) const fn host(self) -> Option<u8> {
        match self {
            Self::Container { host, .. }
            | Self::Second(host)
            | Self::Subnet(host)
            | Self::Gateway(host)
            | Self::Public(host)
            | Self::Wire(host)
            | Self::Published(host) => Some(host),
            Self::Service(_) | Self::Outside | Self::Internet | Self::Unleased => None,
        }
    }
}

impl World {
    /// As it is kept in the corpus: a line for each element and step.
    pub(crate) fn to_json(&self) -> String {
        let line = |value: serde_json::Result<String>| format!("    {}", value.unwrap());
        let elements: Vec<_> =
            self.elements.iter().map(|element| line(serde_json::to_string(element))).collect();
        let steps: Vec<_> =
            self.steps.iter().map(|step| line(serde_json::to_string(step))).collect();
        format!(
            "{{\n  \"about\": {},\n  \"hosts\": {},\n  \"elements\": [\n{}\n  ],\n  \"steps\": [\n{}\n  ]\n}}\n",
            serde_json::to_string(&self.about).unwrap(),
            self.hosts,
            elements.join(",\n"),
            steps.join(",\n")
        )
    }

    /// Whether somebody has rules for what is forwarded, at any time.
    pub(crate) fn has_firewall(&self) -> bool {
        let is_rule = |element: &Element| matches!(element, Element::Firewall { .. });
        self.elements.iter().any(is_rule)
            || self
                .steps
                .iter()
                .any(|step| matches!(step, Step::Event(Event::Add(element)) if is_rule(element)))
    }

    /// Whether somebody has routing rules about overlay addresses, at any time.
    pub(crate) fn has_rules_about_the_inside(&self) -> bool {
        let is_rule = |step: &Step| matches!(step, Step::Event(Event::Add(element)) if element.is_about_the_inside());
        self.elements.iter().any(|element| element.is_about_the_inside())
            || self.steps.iter().any(is_rule)
    }

    pub(crate) fn has(&self, element: Element) -> bool {
        self.elements.contains(&element)
    }

    pub(crate) fn public(&self, host: u8) -> Ipv4Addr {
        if self.has(Element::LoopbackAddress { host }) {
            loopback_of_host(host)
        } else {
            self.on_wire(host)
        }
    }

    /// By which a host is its neighbours' next hop.
    pub(crate) fn on_wire(&self, host: u8) -> Ipv4Addr {
        if self.has(Element::SecondAddress { host }) { second_of_host(host) } else { wire(host) }
    }

    pub(crate) fn wire_mtu(&self) -> u16 {
        self.elements
            .iter()
            .find_map(|element| match element {
                Element::WireMtu { mtu } => Some(*mtu),
                _ => None,
            })
            .unwrap_or(1500)
    }

    pub(crate) fn bridge_mtu(&self, host: u8) -> u16 {
        self.elements
            .iter()
            .find_map(|element| match element {
                Element::BridgeMtu { host: of, mtu } if *of == host => Some(*mtu),
                _ => None,
            })
            .unwrap_or(self.overlay_mtu())
    }

    /// What encapsulation leaves of the wire's.
    pub(crate) fn overlay_mtu(&self) -> u16 {
        self.wire_mtu() - 50
    }

    /// How many containers a host has in the beginning.
    pub(crate) fn containers(&self, host: u8) -> u8 {
        let more = self.elements.iter().filter(|element| **element == Element::Container { host });
        1 + u8::try_from(more.count()).unwrap()
    }

    /// Where a probe is sent from.
    pub(crate) fn source(&self, probe: &Probe) -> Ipv4Addr {
        match probe.from {
            Place::Host(host) if probe.bound => self.public(host),
            Place::Container { host, .. } if probe.bound => second_of_container(host),
            _ => Ipv4Addr::UNSPECIFIED,
        }
    }

    /// Where a target is, and by which port.
    pub(crate) fn address(&self, target: Target) -> (Ipv4Addr, u16) {
        let address = match target {
            Target::Container { host, number } => container(host, number),
            Target::Second(host) => second_of_container(host),
            Target::Subnet(host) => subnet(host),
            Target::Gateway(host) => gateway(host),
            Target::Public(host) => self.public(host),
            Target::Published(host) => return (self.public(host), PUBLISHED),
            Target::Wire(host) => wire(host),
            Target::Service(host) => service(host),
            Target::Outside => wire(self.hosts),
            Target::Internet => INTERNET,
            Target::Unleased => UNLEASED,
        };
        (address, PORT)
    }
}
