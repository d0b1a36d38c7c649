//! Worlds from seeds.

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use crate::shape::{
    About, Chain, Element, Event, Place, Probe, Protocol, Selector, Step, Target, Way, World,
};

struct Generator {
    random: StdRng,
    world: World,
}

/// The same world for the same seed.
pub(crate) fn world(seed: u64) -> World {
    let random = StdRng::seed_from_u64(seed);
    let mut generator = Generator { random, world: World::default() };
    generator.world.about = format!("seed {seed}");
    generator.world.hosts = generator.pick(&[2, 2, 3]);
    generator.shape();
    for round in 0..generator.random.random_range(2..=3) {
        if round > 0 {
            let event = generator.event();
            generator.world.steps.push(Step::Event(event));
        }
        for _ in 0..generator.random.random_range(15..=30) {
            let probe = generator.probe();
            generator.world.steps.push(Step::Probe(probe));
        }
    }
    firewall(&mut generator.world, seed);
    loopback(&mut generator.world, seed);
    generator.world
}

/// In every third world somebody has rules, one of which goes before the last probes.
fn firewall(world: &mut World, seed: u64) {
    let random = StdRng::seed_from_u64(!seed);
    let mut generator = Generator { random, world: std::mem::take(world) };
    if generator.one_in(3) {
        for _ in 0..generator.random.random_range(1..=3) {
            let rule = generator.rule();
            generator.add(rule);
        }
        let rule = generator.rule();
        let half = generator.world.steps.len() / 2;
        generator.world.steps.insert(half, Step::Event(Event::Add(rule)));
        let last = generator.world.steps.len() * 3 / 4;
        generator.world.steps.insert(last, Step::Event(Event::Remove(rule)));
    }
    *world = generator.world;
}

/// In every sixth world a host is known by an address of its loopback's.
fn loopback(world: &mut World, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed.reverse_bits());
    if random.random_ratio(1, 6) {
        let host = random.random_range(0..world.hosts);
        world.elements.push(Element::LoopbackAddress { host });
    }
}

const WAYS: [Way; 5] =
    [Way::Router, Way::SecondWire, Way::Blackhole, Way::Unreachable, Way::Prohibit];

impl Generator {
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        *from.choose(&mut self.random).unwrap()
    }

    fn one_in(&mut self, times: u32) -> bool {
        self.random.random_ratio(1, times)
    }

    fn host(&mut self) -> u8 {
        self.random.random_range(0..self.world.hosts)
    }

    /// Two hosts that are not the same.
    fn pair(&mut self) -> (u8, u8) {
        let host = self.host();
        let peer = (host + self.random.random_range(1..self.world.hosts)) % self.world.hosts;
        (host, peer)
    }

    fn shape(&mut self) {
        if self.one_in(4) {
            let mtu = self.pick(&[1280, 1400, 1492, 9000]);
            self.world.elements.push(Element::WireMtu { mtu });
        }
        if self.one_in(4) {
            self.world.elements.push(Element::RealWire);
        }
        if self.one_in(3) {
            self.world.elements.push(Element::SecondWire);
        }
        for host in 0..self.world.hosts {
            self.shape_host(host);
        }
        for _ in 0..self.random.random_range(0..=2) {
            let element = self.routing();
            self.add(element);
        }
    }

    fn shape_host(&mut self, host: u8) {
        if self.one_in(6) {
            let mtu = self.pick(&[1280, 1400, 1500]);
            self.add(Element::BridgeMtu { host, mtu });
        }
        if self.one_in(4) {
            self.add(Element::SecondAddress { host });
        }
        if self.one_in(2) {
            self.add(Element::DefaultRoute { host });
        }
        if self.one_in(3) {
            let mode = self.pick(&[1, 2]);
            self.add(Element::SourceCheck { host, mode });
        }
        match self.random.random_range(0..3) {
            0 => self.add(Element::DockerMasquerade { host }),
            1 => self.add(Element::IpMasq { host }),
            _ => {}
        }
        if self.one_in(3) {
            self.add(Element::ForwardDrop { host });
        }
        if self.one_in(3) {
            let peer = (host + 1) % self.world.hosts;
            self.add(Element::Service { host, peer });
        }
        if self.one_in(3) {
            self.add(Element::Published { host });
        }
        if self.one_in(6) {
            self.add(Element::OtherAddress { host });
        }
        if self.one_in(3) {
            self.add(Element::Container { host });
        }
        if self.one_in(5) {
            self.add(Element::SecondContainerAddress { host });
        }
    }

    fn add(&mut self, element: Element) {
        // Two routes to one destination, neither of which is worse, there cannot be.
        let is_twice = |other: &Element| match (element, *other) {
            (Element::Route { host, peer, .. }, Element::Route { host: of, peer: to, .. })
            | (
                Element::WorseRoute { host, peer, .. },
                Element::WorseRoute { host: of, peer: to, .. },
            ) => (host, peer) == (of, to),
            _ => *other == element,
        };
        if !self.world.elements.iter().any(is_twice) {
            self.world.elements.push(element);
        }
    }

    fn way(&mut self) -> Way {
        let way = self.pick(&WAYS);
        if way == Way::SecondWire && !self.world.has(Element::SecondWire) {
            return Way::Router;
        }
        way
    }

    fn routing(&mut self) -> Element {
        let (host, peer) = self.pair();
        let way = self.way();
        match self.random.random_range(0..4) {
            0 => Element::Route { host, peer, way },
            1 => Element::WorseRoute { host, peer, way },
            _ => {
                let selector = self.pick(&[
                    Selector::FromPublic,
                    Selector::FromSubnet,
                    Selector::ToPeer(peer),
                    Selector::ToPeer(peer),
                    Selector::ToSubnet(peer),
                    Selector::Port,
                    Selector::Mark,
                ]);
                Element::Rule { host, selector, way }
            }
        }
    }

    fn rule(&mut self) -> Element {
        let (host, peer) = self.pair();
        let protocol = self.pick(&[Protocol::Udp, Protocol::Tcp, Protocol::Icmp]);
        let chain = self.pick(&[Chain::Raw, Chain::Drop, Chain::Reject]);
        let about = self.pick(&[
            About::FromSubnet(peer),
            About::FromSubnet(host),
            About::ToContainer(peer),
            About::ToContainer(host),
            About::Protocol(protocol),
            About::Port(protocol),
            About::Established,
        ]);
        Element::Firewall { host, chain, about }
    }

    fn event(&mut self) -> Event {
        let (host, peer) = self.pair();
        let elements: Vec<_> = self
            .world
            .elements
            .iter()
            .copied()
            .filter(|element| comes_and_goes(*element))
            .collect();
        match self.random.random_range(0..11) {
            10 => Event::SecondMoves { host },
            0 => Event::Crash { host },
            1 => Event::Restart { host },
            2 => Event::UplinkDown { host },
            3 => Event::UplinkUp { host },
            4 => Event::ContainerGoes { host },
            5 => Event::Add(Element::Container { host }),
            6 if !elements.is_empty() => Event::Remove(self.pick(&elements)),
            7 => Event::Add(self.pick(&[
                Element::DefaultRoute { host },
                Element::ForwardDrop { host },
                Element::DockerMasquerade { host },
                Element::Service { host, peer },
                Element::OtherAddress { host },
            ])),
            _ => Event::Add(self.routing()),
        }
    }

    fn probe(&mut self) -> Probe {
        let from = self.place();
        let to = self.target();
        let protocol = self.pick(&[Protocol::Udp, Protocol::Udp, Protocol::Icmp, Protocol::Tcp]);
        let mtu = self.world.wire_mtu() - 50;
        let sizes =
            [0, 1, 64, 64, 64, mtu - 29, mtu - 28, mtu - 27, 1472, 1473, 3000, mtu + 22, mtu + 23];
        let size = self.pick(&sizes);
        let answer = if self.one_in(3) { self.pick(&sizes) } else { 64 };
        let plain = self.one_in(2);
        let (ttl, tos, df, options) = if plain {
            (64, 0, false, false)
        } else {
            (
                self.pick(&[1, 2, 3, 64, 64, 255]),
                self.pick(&[0, 0, 0x10, 0xb8, 1, 2, 3]),
                self.one_in(3),
                self.one_in(8),
            )
        };
        let tcp = protocol == Protocol::Tcp;
        Probe {
            from,
            to,
            protocol,
            size,
            answer,
            ttl: if tcp { ttl.max(2) } else { ttl },
            // TCP's ECN is TCP's own business.
            tos: if tcp { tos & 0xfc } else { tos },
            df: df && !tcp,
            options: options && !tcp,
            bound: self.one_in(10),
        }
    }

    fn place(&mut self) -> Place {
        let host = self.host();
        match self.random.random_range(0..10) {
            0 => Place::Outside,
            1 | 2 => Place::Host(host),
            _ => Place::Container { host, number: self.number(host) },
        }
    }

    fn number(&mut self, host: u8) -> u8 {
        self.random.random_range(0..self.world.containers(host))
    }

    fn target(&mut self) -> Target {
        let host = self.host();
        match self.random.random_range(0..16) {
            0 => Target::Subnet(host),
            1 => Target::Gateway(host),
            2 => Target::Public(host),
            3 => Target::Wire(host),
            4 => Target::Service(host),
            5 => Target::Published(host),
            6 => Target::Outside,
            7 => Target::Internet,
            8 => Target::Unleased,
            9 => Target::Second(host),
            _ => Target::Container { host, number: self.number(host) },
        }
    }
}

fn comes_and_goes(element: Element) -> bool {
    matches!(
        element,
        Element::DefaultRoute { .. }
            | Element::Route { .. }
            | Element::WorseRoute { .. }
            | Element::Rule { .. }
            | Element::SourceCheck { .. }
            | Element::DockerMasquerade { .. }
            | Element::ForwardDrop { .. }
            | Element::Service { .. }
            | Element::OtherAddress { .. }
            | Element::Published { .. }
    )
}
