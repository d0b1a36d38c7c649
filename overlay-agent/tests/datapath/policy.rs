//! The network's policy, by the loaded programs: random packets against random policies, compared with what the rules say
//! one by one.
//!
//! `OVERLAY_POLICY_PACKETS` says how many, `OVERLAY_POLICY_SEED` where to begin.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use aya::programs::{TestRun as _, TestRunOptions};
use etherparse::PacketBuilder;
use ipnetwork::Ipv4Network;
use overlay_agent::kernel::policy::{
    InForce,
    reference::{PolicyFlow, verdict},
};
use overlay_common::{
    Hook, Reason,
    tables::{HostConfig, POLICY_RULES},
};
use overlay_lease::config::policy::{Action, Policy, Rule, Service};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::{
    packets::{TTL, Wire, tcp, udp, vxlan},
    world::{
        BRIDGE_MAC, CONTAINER, CONTAINER_MAC, Context, NEIGHBOUR, NEIGHBOUR_MAC, NEIGHBOUR_PORT,
        REMOTE, UNKNOWN_CONTAINER, World,
    },
};

/// A world whose agent has put a policy in force, as often as it is told to.
struct Governed {
    world: World,
    in_force: InForce,
    clock: Instant,
}

impl Governed {
    fn new() -> Self {
        Self { world: World::new(), in_force: InForce::default(), clock: Instant::now() }
    }

    fn put_in_force(&mut self, policy: &Policy) {
        // Longer than any program runs.
        self.clock += Duration::from_secs(1);
        assert!(self.in_force.follow(policy, &mut self.world.tables.policy, self.clock).unwrap());
        let number = self.in_force.number();
        self.world.configure(|host| {
            host.policy = number;
            host.flags |= HostConfig::POLICY;
        });
    }

    fn check(&self, policy: &Policy, expected: &BTreeMap<String, u64>) {
        for rule in policy {
            assert_eq!(self.denials(&rule.name), expected[&rule.name], "{rule}");
        }
    }

    fn denials(&self, name: &str) -> u64 {
        self.world.tables.policy.denials(name).packets
    }
}

fn rule(name: &str, to: [u8; 4], service: Service, action: Action) -> Rule {
    let any = Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0).unwrap();
    Rule { name: name.to_owned(), from: any, to: Ipv4Addr::from(to).into(), service, action }
}

#[test]
fn denials_are_counted_by_name_and_answers_pass() {
    let mut governed = Governed::new();
    let dns = Service::Ports(17, 53..=53);
    governed.put_in_force(&vec![
        rule("neighbour", NEIGHBOUR, Service::Any, Action::Allow),
        rule("dns", CONTAINER, dns, Action::Deny),
    ]);
    let from_peer = |packet: &[u8]| vxlan(Wire::default(), packet);
    let question = from_peer(&udp(REMOTE, CONTAINER, 53, b"question"));
    let arrives = |governed: &mut Governed, packet: &[u8]| {
        governed.world.run(Hook::FromUplink, packet).reason
    };
    assert_eq!(arrives(&mut governed, &question), Reason::PolicyDenied);
    assert_eq!(arrives(&mut governed, &question), Reason::PolicyDenied);
    assert_eq!(governed.denials("dns"), 2);
    let other = from_peer(&udp(REMOTE, CONTAINER, 54, b"question"));
    assert_eq!(arrives(&mut governed, &other), Reason::ToEndpoint);
    // From port 53 to the port that the peer asks from.
    let builder = PacketBuilder::ethernet2(CONTAINER_MAC.0, BRIDGE_MAC.0)
        .ipv4(CONTAINER, REMOTE, TTL)
        .udp(53, 40_000);
    let mut begun_here = Vec::new();
    builder.write(&mut begun_here, b"hello").unwrap();
    let left = governed.world.run(Hook::FromContainer, &begun_here).reason;
    assert_eq!(left, Reason::Encapsulated);
    assert_eq!(arrives(&mut governed, &question), Reason::ToEndpoint, "an answer");
    assert_eq!((governed.denials("dns"), governed.denials("neighbour")), (2, 0));
}

#[test]
fn a_neighbour_is_as_far_as_another_hosts_container() {
    let mut governed = Governed::new();
    governed.put_in_force(&vec![rule("web", NEIGHBOUR, Service::Ports(6, 80..=80), Action::Deny)]);
    let segment = tcp(CONTAINER, NEIGHBOUR, &[7; 10]);
    assert_eq!(governed.world.run(Hook::FromContainer, &segment).reason, Reason::PolicyDenied);
    let datagram = udp(CONTAINER, NEIGHBOUR, 80, b"");
    let reason = governed.world.run(Hook::FromContainer, &datagram).reason;
    assert_eq!(reason, Reason::LocalDestination);
    // What a service's address was translated to leaves the stack by the bridge.
    let ingress_ifindex = governed.world.bridge_ifindex();
    let context = Context { ifindex: 1, ingress_ifindex, ..Context::default() };
    let reason = governed.world.run_with(Hook::ToBridge, &segment, context).reason;
    assert_eq!(reason, Reason::PolicyDenied);
    let mut from_neighbour = tcp(NEIGHBOUR, CONTAINER, &[7; 10]);
    from_neighbour[6..12].copy_from_slice(&NEIGHBOUR_MAC.0);
    let context = Context { ifindex: NEIGHBOUR_PORT, ..Context::default() };
    let reason = governed.world.run_with(Hook::FromContainer, &from_neighbour, context).reason;
    assert_eq!(reason, Reason::LocalDestination);
}

#[test]
fn a_peer_on_the_same_link_is_judged_too() {
    let mut governed = Governed::new();
    governed.world.put_peer_on_link();
    governed.put_in_force(&vec![rule("dns", CONTAINER, Service::Ports(17, 53..=53), Action::Deny)]);
    let arrives = |governed: &mut Governed, port| {
        let plain = udp(REMOTE, CONTAINER, port, b"question");
        governed.world.run(Hook::FromUplink, &plain).reason
    };
    assert_eq!(arrives(&mut governed, 53), Reason::PolicyDenied);
    assert_eq!(arrives(&mut governed, 54), Reason::ToEndpoint);
}

#[test]
fn what_somebody_changes_is_put_in_force_again() {
    let mut governed = Governed::new();
    let policy = vec![rule("dns", CONTAINER, Service::Ports(17, 53..=53), Action::Deny)];
    governed.put_in_force(&policy);
    assert!(governed.in_force.verify(&governed.world.tables.policy).unwrap());
    let mut others = InForce::adopted(&HostConfig {
        policy: governed.in_force.number().wrapping_sub(1),
        ..HostConfig::default()
    });
    let allowing = vec![rule("dns", CONTAINER, Service::Ports(17, 53..=53), Action::Allow)];
    others.follow(&allowing, &mut governed.world.tables.policy, governed.clock).unwrap();
    assert!(!governed.in_force.verify(&governed.world.tables.policy).unwrap());
    governed.put_in_force(&policy);
    let question = vxlan(Wire::default(), &udp(REMOTE, CONTAINER, 53, b"question"));
    let reason = governed.world.run(Hook::FromUplink, &question).reason;
    assert_eq!(reason, Reason::PolicyDenied);
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

/// Of the peer's.
fn remote(chance: &mut StdRng) -> [u8; 4] {
    [10, 1, 20, chance.random_range(0..16)]
}

fn local(chance: &mut StdRng) -> [u8; 4] {
    [CONTAINER, NEIGHBOUR, UNKNOWN_CONTAINER][chance.random_range(0..3)]
}

/// Rules and packets are to meet.
fn port(chance: &mut StdRng) -> u16 {
    if chance.random_range(0..4) == 0 { chance.random() } else { chance.random_range(70..100) }
}

fn protocol(chance: &mut StdRng) -> u8 {
    [1, 6, 17, 47][chance.random_range(0..4)]
}

fn random_policy(chance: &mut StdRng) -> Policy {
    let range = |address: [u8; 4], chance: &mut StdRng| {
        let length = if chance.random_range(0..4) == 0 { 0 } else { chance.random_range(27..=32) };
        let range = Ipv4Network::new(address.into(), length).unwrap();
        Ipv4Network::new(range.network(), length).unwrap()
    };
    let rule = |number, chance: &mut StdRng| {
        let (from, to) = (remote(chance), local(chance));
        let service = match chance.random_range(0..8) {
            0 => Service::Any,
            1 => Service::Protocol(protocol(chance)),
            _ => {
                let (a, b) = (port(chance), port(chance));
                Service::Ports([6, 17][chance.random_range(0..2)], a.min(b)..=a.max(b))
            }
        };
        let action = [Action::Allow, Action::Deny][chance.random_range(0..2)];
        let (from, to) = (range(from, chance), range(to, chance));
        Rule { name: format!("rule-{number}"), from, to, service, action }
    };
    let rules = chance.random_range(0..=POLICY_RULES);
    (0..rules).map(|number| rule(number, chance)).collect()
}

fn random_packet(chance: &mut StdRng) -> (PolicyFlow, Vec<u8>) {
    let (from, to, protocol, port) =
        (remote(chance), local(chance), protocol(chance), port(chance));
    let builder = PacketBuilder::ethernet2(CONTAINER_MAC.0, BRIDGE_MAC.0).ipv4(from, to, TTL);
    let source_port = chance.random();
    let mut packet = Vec::new();
    match protocol {
        1 => builder.icmpv4_echo_request(port, 7).write(&mut packet, b"ping").unwrap(),
        6 if chance.random() => {
            builder.tcp(source_port, port, 1, 1000).syn().write(&mut packet, b"").unwrap();
        }
        6 => builder.tcp(source_port, port, 1, 1000).ack(1).write(&mut packet, b"data").unwrap(),
        17 => builder.udp(source_port, port).write(&mut packet, b"data").unwrap(),
        other => builder.write(&mut packet, other.into(), b"data").unwrap(),
    }
    (
        PolicyFlow { from: from.into(), to: to.into(), protocol, port },
        vxlan(Wire::default(), &packet),
    )
}

#[test]
fn random_packets_meet_the_rule_that_they_should() {
    const SHOT: i32 = 2;
    /// So many packets are judged by one policy.
    const EACH: u64 = 4000;
    let packets = number("OVERLAY_POLICY_PACKETS", 20_000);
    let mut chance = StdRng::seed_from_u64(number("OVERLAY_POLICY_SEED", 1));
    let mut governed = Governed::new();
    let mut denied = 0;
    let mut policy = Policy::new();
    // What each rule has denied since it is in force, and what had been counted before.
    let mut by_name = BTreeMap::<String, u64>::new();
    for packet in 0..packets {
        if packet % EACH == 0 {
            governed.check(&policy, &by_name);
            policy = random_policy(&mut chance);
            governed.put_in_force(&policy);
            by_name.clear();
            for rule in &policy {
                by_name.insert(rule.name.clone(), governed.denials(&rule.name));
            }
        }
        let (flow, bytes) = random_packet(&mut chance);
        let result = governed
            .world
            .programs
            .get(Hook::FromUplink)
            .unwrap()
            .test_run(TestRunOptions { data_in: Some(&bytes), ..TestRunOptions::new() })
            .unwrap();
        let rule = verdict(&policy, &flow).map(|place| &policy[place]);
        let expected = rule.filter(|rule| rule.action == Action::Deny);
        let is_denied = result.return_value.cast_signed() == SHOT;
        assert_eq!(is_denied, expected.is_some(), "packet {packet}: {flow:?} meets {rule:?}");
        if let Some(rule) = expected {
            denied += 1;
            *by_name.entry(rule.name.clone()).or_default() += 1;
        }
    }
    eprintln!("{packets} packets, {denied} denied");
    assert!(denied > packets / 10 && denied < packets * 9 / 10, "{denied} of {packets}");
    governed.check(&policy, &by_name);
}
