//! Frames of which anything may be wrong, many of them: nothing arrives that may not, every frame is counted, and
//! the kernel has nothing to say.
//!
//! `OVERLAY_ATTACK_FRAMES` and `OVERLAY_ATTACK_SEED` make a hunt of it. What got through is written to a file, to be
//! kept in the corpus.

pub(crate) mod generate;
mod machine;
pub(crate) mod rule;

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use overlay_lab::{Namespace, UPLINK, eventually};

use self::{
    generate::{Generator, Origin, hex, sent_number_in},
    rule::Place,
};
use crate::tools::{
    kernel_log::KernelLog,
    site::{ATTACKER, BROADCAST, OWNER, REMOTE, SOON, Site},
    sniffer::Sniffer,
};

/// Unless a number of frames is given.
const DEFAULT_TIME: Duration = Duration::from_secs(5);
/// How many frames the kernel gets at a time.
const BATCH: u32 = 64;

pub(crate) fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().unwrap())
}

/// Eyes that keep only what may not be there, and count the rest.
struct Watch {
    place: Place,
    sniffer: Sniffer,
    arrived: Arc<AtomicU64>,
}

impl Watch {
    fn container(namespace: &Namespace, address: std::net::Ipv4Addr, generator: Generator) -> Self {
        let place = Place::Container(address);
        let (arrived, judge) = judge(place, generator);
        let name = format!("container {address}");
        Self { place, sniffer: Sniffer::frames(namespace, &name, judge), arrived }
    }

    fn host(site: &Site, generator: Generator) -> Self {
        let (arrived, judge) = judge(Place::Host, generator);
        let sniffer = Sniffer::datagrams(site.host().namespace(), "the first host", judge);
        Self { place: Place::Host, sniffer, arrived }
    }
}

/// Counts what carries a number, and wants what is wrong.
fn judge(
    place: Place,
    generator: Generator,
) -> (Arc<AtomicU64>, impl Fn(&[u8]) -> bool + Send + 'static) {
    let arrived = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&arrived);
    let judge = move |seen: &[u8]| {
        if sent_number_in(seen).is_some() {
            count.fetch_add(1, Ordering::Relaxed);
        }
        complaint(place, generator, seen).is_some()
    };
    (arrived, judge)
}

fn complaint(place: Place, generator: Generator, seen: &[u8]) -> Option<String> {
    let sent = sent_number_in(seen).map(|number| generator.frame(number));
    let packet = match place {
        Place::Container(address) => rule::taken_by(address, seen),
        Place::Host => rule::ipv4(seen),
    };
    rule::wrong(generator.origin, place, packet, sent.as_deref())
}

/// What devices have received, and what the program there has counted. What the host itself sends to the broadcast
/// address, such as an answer to a frame that claims to come from there, comes back to the program and was not received.
struct Books<'site> {
    site: &'site Site,
    hook: &'static str,
    devices: Vec<String>,
    start: [u64; 2],
}

impl<'site> Books<'site> {
    fn open(site: &'site Site, hook: &'static str, devices: &[&str]) -> Self {
        let tables = "add table ip books
            add chain ip books output { type filter hook output priority 0; }"
            .to_owned();
        let of_device = |device: &&str| {
            format!(
                "add rule ip books output oifname {device} ip daddr {{ {BROADCAST}, 255.255.255.255 }} counter"
            )
        };
        let rules: Vec<_> = std::iter::once(tables).chain(devices.iter().map(of_device)).collect();
        let rules = rules.join("\n");
        site.host().command("nft").args(["-f", "-"]).input(rules.as_bytes()).run().unwrap();
        let devices = devices.iter().map(|&device| device.to_owned()).collect();
        let mut books = Self { site, hook, devices, start: [0; 2] };
        // A packet that comes between two of the figures is in one of them only.
        books.start = eventually(SOON, "a moment in which nothing comes", || {
            let [first, second] = [books.read(), books.read()];
            anyhow::ensure!(first == second, "{first:?}, then {second:?}");
            Ok(second)
        })
        .unwrap();
        books
    }

    fn read(&self) -> [u64; 2] {
        let received: u64 = self.devices.iter().map(|device| self.site.received(device)).sum();
        let counter = self.site.host().command("nft");
        let shown = counter.args(["-j", "list", "chain", "ip", "books", "output"]).read();
        let shown: serde_json::Value = serde_json::from_str(&shown.unwrap()).unwrap();
        let rules = shown["nftables"].as_array().unwrap().iter();
        let expressions = rules.filter_map(|it| it["rule"]["expr"].as_array()).flatten();
        let looped: u64 = expressions.filter_map(|it| it["counter"]["packets"].as_u64()).sum();
        [received + looped, self.site.tally().at_host(0, self.hook)]
    }

    /// Every packet that came is counted, but for `lost`, which the kernel drops before any program.
    fn close(&self, lost: u64) -> u64 {
        eventually(SOON, "every packet to be counted", || {
            let [received, counted] = self.read();
            let [received, counted] = [received - self.start[0], counted - self.start[1]];
            anyhow::ensure!(
                received == counted + lost,
                "{received} came, of which {lost} have no whole tag, and {} counts {counted}",
                self.hook
            );
            Ok(counted)
        })
        .unwrap()
    }
}

/// A tag of which a part is missing: the kernel drops such a frame where it takes tags out, before any program.
fn has_half_a_tag(frame: &[u8]) -> bool {
    matches!(frame[12..14], [0x81, 0] | [0x88, 0xa8]) && frame.len() < 20
}

fn hunt(site: &Site, origin: Origin) {
    let generator = Generator::new(origin);
    site.masquerade();
    let mut watches = vec![
        Watch::container(site.owner.namespace(), OWNER, generator),
        Watch::container(site.remote.namespace(), REMOTE, generator),
        Watch::host(site, generator),
    ];
    let (port, mut ring, books) = if origin == Origin::Container {
        let veths = [site.owner.veth(), site.attacker.veth()];
        let books = Books::open(site, "from_container", &veths);
        (site.attacker_port(), site.attacker_ring(), books)
    } else {
        watches.push(Watch::container(site.attacker.namespace(), ATTACKER, generator));
        (site.wire_port(), site.wire_ring(), Books::open(site, "from_uplink", &[UPLINK]))
    };
    let (mut turn, mut by_ring) = (0, 0);
    run(generator, &watches, &books, |frames| {
        turn += 1;
        // Every fourth time in buffers that cannot be read in place.
        if turn % 4 == 0 && ring.send_unless_busy(frames).unwrap() {
            by_ring += frames.len();
            return frames.len();
        }
        port.send_many(frames)
    });
    assert!(by_ring > 1000, "{by_ring} frames by a packet ring");
}

/// Sends frames for as long as it shall, and judges what comes of them. `send` says how many the kernel took.
fn run(
    generator: Generator,
    watches: &[Watch],
    books: &Books<'_>,
    mut send: impl FnMut(&[Vec<u8>]) -> usize,
) {
    let Generator { origin, seed } = generator;
    let most = number("OVERLAY_ATTACK_FRAMES");
    let log = KernelLog::start();
    let before = books.site.tally();
    let start = Instant::now();
    let (mut taken, mut lost, mut next) = (0, 0, 0);
    // On the wire it is the switch that drops them, in a container with a bridge that one.
    let is_lost = |frame: &&Vec<u8>| origin == Origin::Container && has_half_a_tag(frame);
    while most.map_or(start.elapsed() < DEFAULT_TIME, |most| u64::from(next) < most) {
        let frames: Vec<_> = (next..next + BATCH).map(|number| generator.message(number)).collect();
        next += BATCH;
        taken += send(&frames) as u64;
        lost += frames.iter().filter(is_lost).count() as u64;
    }
    let took = start.elapsed();
    Sniffer::settle(watches.iter().map(|watch| &watch.sniffer));
    let counted = books.close(lost);
    let rise = books.site.tally().since(&before);
    let arrived: u64 = watches.iter().map(|watch| watch.arrived.load(Ordering::Relaxed)).sum();
    println!(
        "{origin:?}, seed {seed}: {taken} of {next} frames sent in {took:.1?}, {counted} counted, {arrived} arrived ({rise})"
    );
    let complaints = log.complaints();
    assert!(complaints.is_empty(), "the kernel complains: {complaints:#?}");
    assert!(arrived > 0 && taken > u64::from(next) / 10, "nothing happens");
    report(watches, generator);
}

/// Panics with what arrived and may not have, and writes it to files.
fn report(watches: &[Watch], generator: Generator) {
    let mut found = Vec::new();
    let mut total = 0;
    for watch in watches {
        let missed = watch.sniffer.missed();
        assert_eq!(
            missed, 0,
            "{} has not seen everything: send fewer at a time",
            watch.sniffer.place
        );
        let seen = watch.sniffer.seen();
        total += seen.len();
        let place = &watch.sniffer.place;
        for seen in seen {
            let why = complaint(watch.place, generator, &seen).unwrap();
            found.push((place, why, sent_number_in(&seen), seen));
        }
    }
    if found.is_empty() {
        return;
    }
    // One of each kind.
    found.sort_by(|one, other| {
        (one.0, &one.1, one.3.len()).cmp(&(other.0, &other.1, other.3.len()))
    });
    found.dedup_by(|one, other| (one.0, &one.1) == (other.0, &other.1));
    let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("attack");
    std::fs::create_dir_all(&directory).unwrap();
    let hook = if generator.origin == Origin::Wire { "from_uplink" } else { "from_container" };
    let mut list = String::new();
    for (place, why, number, seen) in found {
        let arrived = hex(&seen);
        let frame = number.map_or(seen, |number| generator.frame(number));
        let number = number.map_or("unknown".to_owned(), |number| number.to_string());
        let file = directory.join(format!("{hook}-{:x}-{number}.hex", generator.seed));
        let text = format!("# {hook}: {why}, and reached {place}\n{}\n", hex(&frame));
        std::fs::write(&file, &text).unwrap();
        list +=
            &["\n", &file.display().to_string(), " has\n", &text, "and this arrived:\n", &arrived]
                .concat();
    }
    panic!("{total} frames arrived that may not. One of each kind:{list}");
}

#[test]
fn mutated_frames_from_a_container_reach_nobody() {
    hunt(&Site::new(), Origin::Container);
}

#[test]
fn mutated_frames_from_a_container_reach_nobody_without_the_fast_path() {
    hunt(&Site::with(|options| options.fast_path(false)), Origin::Container);
}

#[test]
fn mutated_frames_from_the_wire_reach_nobody() {
    hunt(&Site::new(), Origin::Wire);
}

#[test]
fn mutated_frames_from_the_wire_reach_nobody_without_the_fast_path() {
    hunt(&Site::with(|options| options.fast_path(false)), Origin::Wire);
}
