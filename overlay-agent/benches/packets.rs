//! Nanoseconds per packet of each BPF program, at 2, 1,000 and 65,535 leases besides our own: `cargo xtask bench packets`.
//!
//! Each figure is a mean of the middle half of single runs (`BPF_PROG_TEST_RUN`): repeating within one run would give
//! the program its own output. The kernel's clock is read around each run; «refused at once» shows what
//! that and the shortest way through a program cost.
#![expect(clippy::unwrap_used, reason = "a benchmark that panics has failed")]

#[path = "../tests/datapath/packets.rs"]
#[expect(dead_code, reason = "shared with the tests, which use more of it")]
mod packets;
#[path = "../tests/datapath/world.rs"]
#[expect(dead_code, reason = "shared with the tests, which use more of it")]
mod world;

use std::net::Ipv4Addr;

use aya::programs::{TestRun as _, TestRunOptions};
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use overlay_agent::kernel::datapath::Maps;
use overlay_common::{
    Hook, Prefix,
    tables::{Peer, PeerKey, Vtep, VtepKey},
};
use overlay_lab::statistics::Estimate;

use crate::{
    packets::{Wire, udp, vxlan},
    world::{CONTAINER, PEER_MAC, World},
};

/// Every /24 of a /8 but our own.
const ALL: u32 = 65_535;

/// How many leases there are, besides our own.
const SIZES: [u32; 3] = [2, 1000, ALL];

/// How often a program runs for one figure.
const RUNS: u32 = 2000;

/// `TC_ACT_*` as the programs return them.
const NEXT: i32 = -1;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;

/// The command line.
#[derive(Parser)]
struct Options {
    /// Every program meets every number of leases once in each
    #[arg(long, default_value_t = 60)]
    rounds: u32,
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a program gets.
struct Case {
    title: &'static str,
    hook: Hook,
    verdict: i32,
    packet: fn(u32) -> Vec<u8>,
    /// Two peers in turn, or all of them.
    two_peers: bool,
}

const fn case(
    title: &'static str,
    hook: Hook,
    verdict: i32,
    packet: fn(u32) -> Vec<u8>,
    two_peers: bool,
) -> Case {
    Case { title, hook, verdict, packet, two_peers }
}

const CASES: [Case; 8] = [
    case("from_container, two peers", Hook::FromContainer, REDIRECT, to_peer, true),
    case("from_bridge, two peers", Hook::FromBridge, NEXT, to_peer, true),
    case("from_uplink, two peers", Hook::FromUplink, REDIRECT, from_peer, true),
    case("to_tunnel, two peers", Hook::ToTunnel, NEXT, to_peer, true),
    case("from_container, all peers", Hook::FromContainer, REDIRECT, to_peer, false),
    case("from_uplink, all peers", Hook::FromUplink, REDIRECT, from_peer, false),
    case("to_tunnel, all peers", Hook::ToTunnel, NEXT, to_peer, false),
    case("from_tunnel, refused at once", Hook::FromTunnel, SHOT, to_peer, true),
];

/// A host whose peers come and go: the same maps and the same code at the same place in memory for each number of
/// leases, so that neither can make the difference.
struct Hosts {
    world: World,
    /// Which of [`ALL`] are peers.
    present: Vec<bool>,
}

impl Hosts {
    fn new() -> Self {
        let mut world = World::new();
        world.configure(|host| {
            host.network = [10, 0, 0, 0];
            host.network_length = 8;
        });
        Self { world, present: vec![false; usize::try_from(ALL).unwrap()] }
    }

    /// Makes `size` hosts peers, the `busy` ones among them.
    fn resize(&mut self, size: u32, busy: [u32; 2]) {
        let others = if size == ALL { ALL } else { size - 2 };
        for number in 0..ALL {
            let wanted = number < others || busy.contains(&number);
            let present = &mut self.present[usize::try_from(number).unwrap()];
            if wanted != *present {
                *present = wanted;
                let subnet = Prefix { address: subnet(number), length: 24 };
                let vtep = VtepKey { public_address: public(number) };
                let Maps { peers, vteps, .. } = &mut self.world.tables;
                if wanted {
                    let public_address = public(number);
                    let peer = Peer { public_address, vtep_mac: PEER_MAC.0, ..Peer::default() };
                    peers.insert(&PeerKey::new(subnet), &peer).unwrap();
                    vteps.insert(&vtep, &Vtep::new(subnet)).unwrap();
                } else {
                    peers.remove(&PeerKey::new(subnet)).unwrap();
                    vteps.remove(&vtep).unwrap();
                }
            }
        }
    }
}

fn main() {
    let options = Options::parse();
    let mut hosts = Hosts::new();
    let mut times = vec![[const { Vec::new() }; SIZES.len()]; CASES.len()];
    for round in 0..=options.rounds {
        // Whom packets are for differs from round to round: where its entry lies in the table is chance.
        let busy = [0, 1].map(|which| ALL - 1 - (2 * round + which) * 31 % (ALL - SIZES[1]));
        let mut order = [0, 1, 2];
        if round % 2 == 1 {
            order.reverse();
        }
        for turn in order {
            hosts.resize(SIZES[turn], busy);
            for (case, times) in CASES.iter().zip(&mut times) {
                let time = measure(&mut hosts, case, busy);
                // The first round fills caches.
                if round > 0 {
                    times[turn].push(time);
                }
            }
        }
    }
    println!("{}", table(&times));
    println!(
        "Medians of {} rounds of {RUNS} single runs each, in ns; ratios within a round, with 95 % intervals.",
        options.rounds
    );
    println!("\n{}", verifier(&mut hosts.world));
}

/// 10.0.0.0, 10.0.1.0, … but not 10.1.15.0, which is ours.
fn subnet(number: u32) -> [u8; 4] {
    const OWN: u32 = 0x010f;
    let number = number + u32::from(number >= OWN);
    (0x0a00_0000 | number << 8).to_be_bytes()
}

/// 100.64.0.0, 100.64.0.1, …
fn public(number: u32) -> [u8; 4] {
    (u32::from(Ipv4Addr::new(100, 64, 0, 0)) | number).to_be_bytes()
}

fn container_of(number: u32) -> [u8; 4] {
    let [a, b, c, _] = subnet(number);
    [a, b, c, 2]
}

fn to_peer(number: u32) -> Vec<u8> {
    udp(CONTAINER, container_of(number), 53, &[0; 64])
}

fn from_peer(number: u32) -> Vec<u8> {
    let inner = udp(container_of(number), CONTAINER, 53, &[0; 64]);
    vxlan(Wire { source: public(number), ..Wire::default() }, &inner)
}

/// What a single run takes, in nanoseconds.
fn measure(hosts: &mut Hosts, case: &Case, busy: [u32; 2]) -> f64 {
    const IFINDEX: usize = 40;
    let mut context = [0; 192];
    context[IFINDEX..][..4].copy_from_slice(&1_u32.to_ne_bytes());
    let all: Vec<u32> =
        (0..ALL).filter(|number| hosts.present[usize::try_from(*number).unwrap()]).collect();
    let peers = if case.two_peers { &busy[..] } else { &all };
    let program = hosts.world.programs.get(case.hook).unwrap();
    let mut out = vec![0; 512];
    let mut nanoseconds: Vec<f64> = (0..RUNS)
        .map(|run| {
            // A large prime visits the leases all over the hash table.
            let number = peers[usize::try_from(run).unwrap() * 40_507 % peers.len()];
            let result = program
                .test_run(TestRunOptions {
                    data_in: Some(&(case.packet)(number)),
                    data_out: Some(&mut out),
                    ctx_in: Some(&context),
                    ..TestRunOptions::new()
                })
                .unwrap();
            let verdict = result.return_value.cast_signed();
            assert_eq!(verdict, case.verdict, "{} with lease {number}", case.title);
            f64::from(result.duration.subsec_nanos())
        })
        .collect();
    nanoseconds.sort_by(f64::total_cmp);
    // Finer than a median where the clock ticks in tens of nanoseconds, and as deaf to interrupts.
    let quarter = nanoseconds.len() / 4;
    let middle = &nanoseconds[quarter..nanoseconds.len() - quarter];
    middle.iter().sum::<f64>() / f64::from(u32::try_from(middle.len()).unwrap())
}

fn table(times: &[[Vec<f64>; SIZES.len()]]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["ns per packet", "2 leases", "1,000", "65,535", "65,535 / 2", "interval"]);
    for (case, times) in CASES.iter().zip(times) {
        let mut row = vec![case.title.to_owned()];
        let estimate = |values: &[f64]| Estimate::of(values).unwrap();
        row.extend(times.iter().map(|times| format!("{:.0}", estimate(times).median)));
        let ratios: Vec<f64> =
            times[2].iter().zip(&times[0]).map(|(many, few)| many / few).collect();
        let Estimate { median, low, high, .. } = estimate(&ratios);
        row.push(format!("{median:.3}"));
        row.push(format!("{low:.3}–{high:.3}"));
        table.add_row(row);
    }
    right_align(&mut table);
    table
}

/// What it cost the verifier, which has a budget of a million.
fn verifier(world: &mut World) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["program", "instructions verified", "bytes of BPF code"]);
    for hook in Hook::ALL {
        let info = world.programs.get(hook).unwrap().info().unwrap();
        let verified = info.verified_instruction_count().unwrap_or(0);
        let bytes = info.size_translated().unwrap_or(0);
        table.add_row([hook.name().to_owned(), verified.to_string(), bytes.to_string()]);
    }
    right_align(&mut table);
    table
}

fn right_align(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}
