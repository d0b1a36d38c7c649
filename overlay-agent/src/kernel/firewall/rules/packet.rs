use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::{Flow, ServicePort};

/// Whether a rule matches packets of which not everything is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fit {
    /// None of them.
    Never,
    /// Some of them, for all we know.
    Perhaps,
    /// All of them.
    Surely,
}

impl Fit {
    const fn certain(is_so: bool) -> Self {
        if is_so { Self::Surely } else { Self::Never }
    }

    const fn opposite(self) -> Self {
        match self {
            Self::Never => Self::Surely,
            Self::Perhaps => Self::Perhaps,
            Self::Surely => Self::Never,
        }
    }
}

/// What a rule asks of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Test {
    /// What needs no look at the packet.
    Known(Fit),
    /// What we know nothing about, or only whether it may be so of one packet and not of the next of the same flow.
    Unknown {
        each_packet: bool,
    },
    /// Its flow is known already, or something else that a packet which begins one is not.
    Established,
    /// Its flow is new, or something else that a packet which begins one is.
    New,
    /// The interface that it came in by.
    From(Pattern),
    /// The interface that it goes out by.
    To(Pattern),
    Source(Range),
    Destination(Range),
    /// It is for the host itself.
    ToHost,
    /// What IP carries, by its number.
    Protocol(u8),
    /// The destination port is one from the first to the last.
    Port(u16, u16),
    Not(Box<Self>),
    /// At least one, which none of none is.
    Any(Vec<Self>),
    All(Vec<Self>),
}

impl Test {
    /// What is the same for every packet of a flow in one direction. More is not known.
    pub(super) const OF_FLOW: Self = Self::Unknown { each_packet: false };

    /// What may be otherwise for the next packet, and so whatever is not understood.
    pub(super) const OF_PACKET: Self = Self::Unknown { each_packet: true };

    pub(super) const fn unknown(is_of_flow: bool) -> Self {
        if is_of_flow { Self::OF_FLOW } else { Self::OF_PACKET }
    }

    pub(super) fn not(self) -> Self {
        Self::Not(Box::new(self))
    }

    pub(super) fn fit(&self, packet: &Packet) -> Fit {
        match self {
            Self::Known(fit) => *fit,
            Self::Established if packet.begins => Fit::Never,
            Self::New if packet.begins => Fit::Surely,
            Self::Unknown { .. } | Self::Established | Self::New => Fit::Perhaps,
            Self::From(pattern) => pattern.fit(packet.from.as_deref()),
            Self::To(pattern) => pattern.fit(packet.to.as_deref()),
            Self::Source(range) => range.fit(&packet.source),
            Self::Destination(range) => range.fit(&packet.destination),
            Self::ToHost => Fit::certain(packet.is_for_host),
            Self::Protocol(protocol) => {
                packet.protocol.map_or(Fit::Perhaps, |known| Fit::certain(known == *protocol))
            }
            Self::Port(first, last) => packet
                .port
                .map_or(Fit::Perhaps, |port| Fit::certain((*first..=*last).contains(&port))),
            Self::Not(test) => test.fit(packet).opposite(),
            Self::Any(tests) => {
                tests.iter().map(|test| test.fit(packet)).max().unwrap_or(Fit::Never)
            }
            Self::All(tests) => all(tests, packet),
        }
    }

    /// Whether it looks at single packets, and not only at what all packets of a flow have.
    pub(super) fn each_packet(&self) -> bool {
        match self {
            Self::Unknown { each_packet } => *each_packet,
            Self::Not(test) => test.each_packet(),
            Self::Any(tests) | Self::All(tests) => tests.iter().any(Self::each_packet),
            Self::Known(_)
            | Self::Established
            | Self::New
            | Self::From(_)
            | Self::To(_)
            | Self::Source(_)
            | Self::Destination(_)
            | Self::ToHost
            | Self::Protocol(_)
            | Self::Port(..) => false,
        }
    }
}

/// Whether all of these match, which may be said of none.
pub(super) fn all(tests: &[Test], packet: &Packet) -> Fit {
    tests.iter().map(|test| test.fit(packet)).min().unwrap_or(Fit::Surely)
}

/// An interface's name, or how several begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    stem: String,
    is_open: bool,
}

impl Pattern {
    /// A name that stands for several if it ends in `wildcard`.
    pub(super) fn new(name: &str, wildcard: char) -> Self {
        let stem = name.strip_suffix(wildcard);
        Self { stem: stem.unwrap_or(name).to_owned(), is_open: stem.is_some() }
    }

    /// The one interface that is meant.
    pub(super) fn name(&self) -> Option<&str> {
        (!self.is_open).then_some(self.stem.as_str())
    }

    fn fit(&self, interface: Option<&str>) -> Fit {
        match interface {
            _ if self.is_open && self.stem.is_empty() => Fit::Surely,
            None => Fit::Perhaps,
            Some(name) if name == self.stem => Fit::Surely,
            Some(name) if self.is_open && name.starts_with(&self.stem) => Fit::Surely,
            Some(_) => Fit::Never,
        }
    }
}

/// Addresses from the first to the last, in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    first: u32,
    last: u32,
}

impl Range {
    /// Every address.
    pub(super) const ALL: Self = Self { first: 0, last: u32::MAX };

    pub(super) fn between(first: Ipv4Addr, last: Ipv4Addr) -> Self {
        Self { first: first.to_bits(), last: last.to_bits() }
    }

    /// The address, where there is only one.
    pub(super) fn single(self) -> Option<Ipv4Addr> {
        (self.first == self.last).then(|| Ipv4Addr::from_bits(self.first))
    }

    const fn contains(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    const fn meets(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    fn fit(self, addresses: &[Self]) -> Fit {
        if !addresses.iter().any(|range| self.meets(*range)) {
            Fit::Never
        } else if addresses.iter().all(|range| self.contains(*range)) {
            Fit::Surely
        } else {
            Fit::Perhaps
        }
    }
}

impl From<Ipv4Network> for Range {
    fn from(network: Ipv4Network) -> Self {
        Self::between(network.network(), network.broadcast())
    }
}

/// The addresses of `network` that are not in `subnet`.
fn outside(network: Ipv4Network, subnet: Ipv4Network) -> Vec<Range> {
    let (network, subnet) = (Range::from(network), Range::from(subnet));
    if !network.meets(subnet) {
        return vec![network];
    }
    let below = subnet.first.checked_sub(1).map(|last| Range { first: network.first, last });
    let above = subnet.last.checked_add(1).map(|first| Range { first, last: network.last });
    [below, above].into_iter().flatten().filter(|range| range.first <= range.last).collect()
}

/// States of connection tracking that no packet is in which begins a flow like others.
pub(super) const ESTABLISHED: [&str; 5] = ["established", "related", "invalid", "snat", "dnat"];

/// Packets of which no more is known than this. Their connection is not INVALID: everybody drops those.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    /// They are the first of their flows.
    begins: bool,
    from: Option<String>,
    to: Option<String>,
    source: Vec<Range>,
    destination: Vec<Range>,
    is_for_host: bool,
    /// What IP carries, where that is known.
    protocol: Option<u8>,
    /// The destination's, where it is known.
    port: Option<u16>,
}

impl Packet {
    /// The first of their flows: of TCP's and of UDP's, or of those that they are anyway.
    pub(super) fn beginning(self) -> Vec<Self> {
        let protocols = self.protocol.map_or_else(|| vec![TCP, UDP], |known| vec![known]);
        let of = |protocol| Self { begins: true, protocol: Some(protocol), ..self.clone() };
        protocols.into_iter().map(of).collect()
    }
}

/// Where packets meet a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// Before it is known where they go.
    Prerouting,
    Forward,
    /// Where, depending on the kernel, it is forgotten where they came from.
    Postrouting,
    /// What is for the host itself.
    Input,
    /// What the host itself sends.
    Output,
    /// On a device or in a bridge: alone, or inside a packet of the tunnel's.
    Link,
}

/// The protocols' numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;

impl Packet {
    fn of(source: Vec<Range>, destination: Vec<Range>) -> Self {
        Self {
            begins: false,
            from: None,
            to: None,
            source,
            destination,
            is_for_host: false,
            protocol: None,
            port: None,
        }
    }
}

impl super::Scene {
    /// What others send to this port of the host's, as it comes by a chain that is entered there, on these devices if it
    /// is one of a device; of the packets that the tunnel's are carried in, also what the host sends. Each is the first of
    /// its flow: no answer has the ports of what it answers.
    pub(super) fn services(
        &self,
        hook: Hook,
        devices: &[String],
        service: ServicePort,
    ) -> Vec<Packet> {
        let (protocol, port) = match service {
            ServicePort::Udp(port) => (UDP, port),
            ServicePort::Tcp(port) => (TCP, port),
        };
        let any = || vec![Range::ALL];
        let uplink = || Some(self.uplink.clone());
        let comes = |peer: Vec<Range>| Packet {
            from: uplink(),
            is_for_host: true,
            protocol: Some(protocol),
            port: Some(port),
            ..Packet::of(peer, any())
        };
        let goes = |peer: Vec<Range>| Packet {
            to: uplink(),
            protocol: Some(protocol),
            port: Some(port),
            ..Packet::of(any(), peer)
        };
        let peers = self.peers.iter().map(|(address, _)| vec![Range::between(*address, *address)]);
        let mut peers: Vec<_> = peers.collect();
        if !self.knows_all_peers() {
            peers.push(any());
        }
        match hook {
            Hook::Postrouting | Hook::Output if protocol == TCP => Vec::new(),
            Hook::Prerouting | Hook::Input => peers.into_iter().map(comes).collect(),
            Hook::Postrouting | Hook::Output => peers.into_iter().map(goes).collect(),
            Hook::Link if devices.contains(&self.uplink) => peers.into_iter().map(comes).collect(),
            Hook::Forward | Hook::Link => Vec::new(),
        }
    }

    /// What containers here and on other hosts send each other, host by host.
    pub(super) fn packets_by_peer(&self, hook: Hook) -> Vec<Packet> {
        // Of a device or a bridge it is not known whether it is one that the overlay goes by.
        if hook == Hook::Link {
            return Vec::new();
        }
        let of_peer = |(_, subnet): &(Ipv4Addr, Ipv4Network)| {
            self.packets_with(hook, &[Range::from(*subnet)])
        };
        let all = (!self.knows_all_peers()).then(|| self.packets(hook));
        self.peers.iter().flat_map(of_peer).chain(all.into_iter().flatten()).collect()
    }

    const fn knows_all_peers(&self) -> bool {
        !self.peers.is_empty() && self.peers.len() < Self::PEERS
    }

    /// The overlay's packets as they come by a hook: to other hosts and from them, by each of the ways.
    pub(super) fn packets(&self, hook: Hook) -> Vec<Packet> {
        if hook == Hook::Link {
            let any = vec![Range::ALL];
            return vec![Packet::of(any.clone(), any)];
        }
        self.packets_with(hook, &outside(self.network, self.subnet))
    }

    /// The same of one flow, both ways.
    pub(super) fn packets_of(&self, hook: Hook, flow: &Flow) -> Vec<Packet> {
        let [here, there] =
            [flow.local, flow.remote].map(|end| Range::between(*end.ip(), *end.ip()));
        if hook == Hook::Link {
            return self.packets(hook);
        }
        let mut packets = self.packets_between(hook, here, &[there]);
        for packet in &mut packets {
            let to = if packet.source == [here] { flow.remote } else { flow.local };
            packet.protocol = Some(flow.protocol);
            packet.port = Some(to.port());
        }
        packets
    }

    /// The same for what has its other end in some part of the network.
    fn packets_with(&self, hook: Hook, there: &[Range]) -> Vec<Packet> {
        self.packets_between(hook, Range::from(self.subnet), there)
    }

    fn packets_between(&self, hook: Hook, here: Range, there: &[Range]) -> Vec<Packet> {
        if matches!(hook, Hook::Input | Hook::Output) {
            return Vec::new();
        }
        let (here, there) = (vec![here], there.to_vec());
        let uplink = self.direct.then_some(&self.uplink);
        let mut packets = Vec::new();
        let known = self.bridges.iter().cloned().map(Some);
        let bridges: Vec<_> = known.chain(self.bridges.is_empty().then_some(None)).collect();
        for way in [&self.tunnel].into_iter().chain(uplink) {
            for bridge in &bridges {
                packets.push(Packet {
                    from: bridge.clone(),
                    to: Some(way.clone()),
                    ..Packet::of(here.clone(), there.clone())
                });
                packets.push(Packet {
                    from: Some(way.clone()),
                    to: bridge.clone(),
                    ..Packet::of(there.clone(), here.clone())
                });
            }
        }
        for packet in &mut packets {
            match hook {
                Hook::Prerouting => packet.to = None,
                Hook::Postrouting => packet.from = None,
                Hook::Forward | Hook::Input | Hook::Output | Hook::Link => {}
            }
        }
        packets
    }
}
