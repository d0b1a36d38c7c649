//! Flows by the thousands against random firewalls: which of them arrive, are answered and go on is the same by the fast
//! path where rules are honoured, by the stack, and by flannel's device.
//!
//! `OVERLAY_FLOWS_SEED` and `OVERLAY_FLOWS_SETS` make a long search of it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{Ipv4Addr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{setsockopt, sockopt::RcvBuf};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use crate::{
    play::{Mode, Site},
    search::number,
    shape::{Element, World, container},
};

/// Of each firewall, sources times destinations.
const SOURCES: u16 = 50;
const DESTINATIONS: u16 = 40;

/// Where their ports begin. No two firewalls see the same ones, as long as connection tracking may remember them.
const FIRST_SOURCE: u16 = 20_000;
const FIRST_DESTINATION: u16 = 40_000;
const GENERATIONS: u16 = 400;

/// So many packets are sent before their answers are waited for: more would not fit the receivers' memory.
const BURST: usize = 100;
/// What a busy machine loses is sent again, as often. What rules drop is dropped each time.
const ATTEMPTS: u8 = 3;
/// Nothing comes any more if nothing has come for so long.
const QUIET: Duration = Duration::from_millis(5);
/// The same at the end of a round.
const OVER: Duration = Duration::from_millis(100);

/// What becomes of a flow: whether its first packet arrives, whether that is answered, and the same of its second.
type Fate = [bool; 4];

/// An operator's rules on both hosts, and where the flows come from.
struct Firewall {
    number: u16,
    rules: [Vec<String>; 2],
    from: u8,
}

impl Firewall {
    fn random(number: u16, random: &mut StdRng) -> Self {
        let mut firewall =
            Self { number, rules: [Vec::new(), Vec::new()], from: random.random_range(0..2) };
        let [sources, destinations] = [firewall.sources(), firewall.destinations()];
        for rules in &mut firewall.rules {
            for _ in 0..random.random_range(0..=6) {
                rules.push(rule(random, sources, destinations));
            }
        }
        firewall
    }

    const fn sources(&self) -> u16 {
        FIRST_SOURCE + self.number % GENERATIONS * SOURCES
    }

    const fn destinations(&self) -> u16 {
        FIRST_DESTINATION + self.number % GENERATIONS * DESTINATIONS
    }

    /// For `iptables-restore`: a chain of the operator's that takes the place of the one before.
    fn script(&self, host: u8) -> String {
        let mut script = "*filter\n:OPERATOR - [0:0]\n".to_owned();
        for rule in &self.rules[usize::from(host)] {
            writeln!(script, "-A OPERATOR {rule}").unwrap();
        }
        script + "COMMIT\n"
    }
}

fn rule(random: &mut StdRng, sources: u16, destinations: u16) -> String {
    // `iptables` takes each option once.
    let mut tests = BTreeMap::new();
    for _ in 0..random.random_range(1..=3) {
        let option = *random.choose_from(&["-s", "-d", "--sport", "--dport"]);
        let value = match option {
            "--sport" => ports(random, sources, SOURCES),
            "--dport" => ports(random, destinations, DESTINATIONS),
            _ => {
                let length = random.choose_from(&[8, 16, 23, 24, 25, 30, 31, 32]);
                format!("{}/{length}", container(random.random_range(0..2), 0))
            }
        };
        let not = if random.random_ratio(1, 5) { "! " } else { "" };
        tests.insert(option, format!("{not}{option} {value}"));
    }
    let tests: Vec<_> = tests.into_values().collect();
    let state = match *random.choose_from(&["", "", "NEW", "ESTABLISHED", "INVALID"]) {
        "" => String::new(),
        state => format!("-m conntrack --ctstate {state} "),
    };
    let device = *random.choose_from(&["", "", "-i docker0 ", "-o docker0 ", "! -i docker0 "]);
    let verdict = *random.choose_from(&["DROP", "DROP", "ACCEPT", "RETURN"]);
    format!("{device}-p udp {} {state}-j {verdict}", tests.join(" "))
}

/// Some of so many ports.
fn ports(random: &mut StdRng, first: u16, count: u16) -> String {
    let from = random.random_range(0..count);
    format!("{}:{}", first + from, first + random.random_range(from..count))
}

/// Chooses from what is never empty.
trait Choose {
    fn choose_from<'a, T>(&mut self, of: &'a [T]) -> &'a T;
}

impl Choose for StdRng {
    fn choose_from<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        of.choose(self).unwrap()
    }
}

/// Sockets at ports that follow each other, none of which waits.
fn sockets(first: u16, count: u16) -> Result<Vec<UdpSocket>> {
    (first..first + count)
        .map(|port| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))
                .with_context(|| format!("binding port {port}"))?;
            socket.set_nonblocking(true)?;
            setsockopt(&socket, RcvBuf, &(1 << 20))?;
            Ok(socket)
        })
        .collect()
}

/// Every packet that is there: the flow's number and its own, and where it came from.
fn receive(sockets: &[UdpSocket], mut each: impl FnMut(&UdpSocket, [u8; 3], std::net::SocketAddr)) {
    for socket in sockets {
        let mut bytes = [0; 3];
        while let Ok((3, from)) = socket.recv_from(&mut bytes) {
            each(socket, bytes, from);
        }
    }
}

fn place([high, low, packet]: [u8; 3]) -> (usize, usize) {
    (usize::from(u16::from_be_bytes([high, low])), usize::from(packet))
}

/// Answers what arrives, until it is told to stop: by flow, which of the packets there were.
fn answer(first: u16, stop: &AtomicBool) -> Result<Vec<[bool; 2]>> {
    let sockets = sockets(first, DESTINATIONS)?;
    let mut arrived = vec![[false; 2]; usize::from(SOURCES * DESTINATIONS)];
    while !stop.load(Ordering::Relaxed) {
        let mut any = false;
        receive(&sockets, |socket, bytes, from| {
            let (flow, packet) = place(bytes);
            arrived[flow][packet] = true;
            any = true;
            // Where that is refused, there is no answer.
            socket.send_to(&bytes, from).ok();
        });
        if !any {
            thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(arrived)
}

/// Sends two packets of each flow, again where there is no answer, the second when all of the first are over: by flow, which
/// were answered.
fn ask(sources: u16, to: Ipv4Addr, destinations: u16) -> Result<Vec<[bool; 2]>> {
    let sockets = sockets(sources, SOURCES)?;
    let mut answered = vec![[false; 2]; usize::from(SOURCES * DESTINATIONS)];
    for packet in 0..2_u8 {
        for _ in 0..ATTEMPTS {
            let flows = (0_u16..)
                .zip((0..SOURCES).flat_map(|one| (0..DESTINATIONS).map(move |two| (one, two))));
            let mut sent = 0;
            for (flow, (one, two)) in flows {
                if answered[usize::from(flow)][usize::from(packet)] {
                    continue;
                }
                let [high, low] = flow.to_be_bytes();
                // What is refused here has not arrived there.
                let socket = &sockets[usize::from(one)];
                socket.send_to(&[high, low, packet], (to, destinations + two)).ok();
                sent += 1;
                if sent % BURST == 0 {
                    listen(&sockets, &mut answered, QUIET);
                }
            }
            listen(&sockets, &mut answered, OVER);
        }
    }
    Ok(answered)
}

/// Takes answers until there have been none for a while.
fn listen(sockets: &[UdpSocket], answered: &mut [[bool; 2]], quiet: Duration) {
    let mut last = Instant::now();
    while last.elapsed() < quiet {
        receive(sockets, |_, bytes, _| {
            let (flow, packet) = place(bytes);
            answered[flow][packet] = true;
            last = Instant::now();
        });
        thread::sleep(Duration::from_millis(1));
    }
}

/// What becomes of every flow with this firewall.
fn try_out(site: &Site<'_>, firewall: &Firewall) -> Result<Vec<Fate>> {
    for host in 0..2 {
        site.restore(host, firewall.script(host))?;
    }
    let [from, to] = [firewall.from, 1 - firewall.from];
    let (sources, destinations) = (firewall.sources(), firewall.destinations());
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let [there, here] = [to, from].map(|host| site.namespace(host));
    thread::scope(|scope| {
        let arrived = scope.spawn(move || there.within(move || answer(destinations, &stopped)));
        let answered = here.within(move || ask(sources, container(to, 0), destinations));
        stop.store(true, Ordering::Relaxed);
        let arrived = arrived.join().unwrap()?;
        let fates = arrived.into_iter().zip(answered?);
        Ok(fates.map(|(there, back)| [there[0], back[0], there[1], back[1]]).collect())
    })
}

/// What becomes of the flows with each firewall, and how many packets took the fast path.
fn play(world: &World, mode: Mode, firewalls: &[Firewall]) -> Result<(Vec<Vec<Fate>>, u64)> {
    let site = Site::new(world, mode)?;
    for host in 0..2 {
        let rules = "*filter\n:OPERATOR - [0:0]\n-I FORWARD -j OPERATOR\nCOMMIT\n";
        site.restore(host, rules.to_owned())?;
    }
    for host in 0..2 {
        // A neighbour that nobody has asked for yet would cost most of a burst.
        let ping = site.namespace(host).command("ping");
        ping.args(["-n", "-c1", "-W5", &container(1 - host, 0).to_string()]).run()?;
    }
    let fates = firewalls.iter().map(|firewall| try_out(&site, firewall)).collect::<Result<_>>()?;
    Ok((fates, site.packets("from_uplink", "to_endpoint")?))
}

fn play_all(world: &World, firewalls: &[Firewall]) -> Vec<(Vec<Vec<Fate>>, u64)> {
    thread::scope(|scope| {
        let plays = Mode::ALL.map(|mode| scope.spawn(move || play(world, mode, firewalls)));
        plays.map(|play| play.join().unwrap().unwrap()).into()
    })
}

/// How many flows have another fate by ours than by flannel's, by what it is: fast, stack, flannel.
fn differences(fates: [&[Fate]; 3]) -> BTreeMap<[Fate; 3], usize> {
    let mut different = BTreeMap::new();
    for flow in 0..fates[0].len() {
        let found = fates.map(|fates| fates[flow]);
        if found[0] != found[2] || found[1] != found[2] {
            *different.entry(found).or_default() += 1;
        }
    }
    different
}

#[test]
fn random_flows_meet_the_same_rules_by_every_path() {
    let sets = u16::try_from(number("OVERLAY_FLOWS_SETS").unwrap_or(4)).unwrap();
    let mut random = StdRng::seed_from_u64(number("OVERLAY_FLOWS_SEED").unwrap_or(1));
    let world = World {
        about: "flows".to_owned(),
        hosts: 2,
        elements: vec![Element::HonourRules],
        steps: Vec::new(),
    };
    let firewalls: Vec<_> = (0..sets).map(|number| Firewall::random(number, &mut random)).collect();
    let played = play_all(&world, &firewalls);
    let of = |played: &[(Vec<Vec<Fate>>, u64)], set: usize| {
        differences([&played[0].0[set], &played[1].0[set], &played[2].0[set]])
    };
    let differ: Vec<_> = (0..firewalls.len()).filter(|set| !of(&played, *set).is_empty()).collect();
    let mut failed = Vec::new();
    for set in differ {
        eprintln!("set {set} once more: {:?}", of(&played, set));
        // What a busy machine has lost is not lost twice.
        let again = play_all(&world, &firewalls[set..=set]);
        let found = of(&again, 0);
        if !found.is_empty() {
            let Firewall { rules, from, .. } = &firewalls[set];
            failed.push(format!("set {set}, from host {from}, {rules:#?}:\n{found:?}"));
        }
    }
    let flows = u64::from(sets) * u64::from(SOURCES * DESTINATIONS);
    let all = played[2].0.iter().flatten();
    let answered = all.filter(|fate| fate[3]).count() as u64;
    eprintln!(
        "{flows} flows, {answered} of them answered twice; {} packets by the fast path",
        played[0].1
    );
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(answered > flows / 10 && answered < flows * 9 / 10, "{answered} of {flows}");
    assert!(played[0].1 > answered / 2, "{} by the fast path", played[0].1);
}
