//! Nanoseconds per packet of each BPF program, at 2, 1,000 and 65,536 leases: `cargo xtask bench packets`.
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
use overlay_common::{
    Hook, Prefix,
    tables::{Peer, PeerKey, Vtep, VtepKey},
};

use crate::{
    packets::{Wire, udp, vxlan},
    world::{CONTAINER, PEER_MAC, World},
};

/// How many leases there are besides our own.
const SIZES: [u32; 3] = [2, 1000, 65_536];

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
    #[arg(long, default_value_t = 10)]
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
    /// Always the same lease, or each time another.
    one_peer: bool,
}

const fn case(
    title: &'static str,
    hook: Hook,
    verdict: i32,
    packet: fn(u32) -> Vec<u8>,
    one_peer: bool,
) -> Case {
    Case { title, hook, verdict, packet, one_peer }
}

const CASES: [Case; 8] = [
    case("from_container, one peer", Hook::FromContainer, REDIRECT, to_peer, true),
    case("from_bridge, one peer", Hook::FromBridge, NEXT, to_peer, true),
    case("from_uplink, one peer", Hook::FromUplink, REDIRECT, from_peer, true),
    case("to_tunnel, one peer", Hook::ToTunnel, NEXT, to_peer, true),
    case("from_container, all peers", Hook::FromContainer, REDIRECT, to_peer, false),
    case("from_uplink, all peers", Hook::FromUplink, REDIRECT, from_peer, false),
    case("to_tunnel, all peers", Hook::ToTunnel, NEXT, to_peer, false),
    case("from_tunnel, refused at once", Hook::FromTunnel, SHOT, to_peer, true),
];

fn main() {
    let options = Options::parse();
    let mut worlds = SIZES.map(|size| (size, world(size)));
    let mut times = vec![[const { Vec::new() }; SIZES.len()]; CASES.len()];
    for round in 0..=options.rounds {
        for (case, times) in CASES.iter().zip(&mut times) {
            for step in 0..SIZES.len() {
                let turn = (step + usize::try_from(round).unwrap()) % SIZES.len();
                let (size, world) = &mut worlds[turn];
                let time = measure(world, case, *size);
                // The first round fills caches.
                if round > 0 {
                    times[turn].push(time);
                }
            }
        }
    }
    println!("{}", table(&times));
    println!(
        "Medians of {} rounds of {RUNS} single runs each, in ns; ratios within a round.",
        options.rounds
    );
    println!("\n{}", verifier(&mut worlds[0].1));
}

/// A host with this many peers, each with a /24 of its own.
fn world(size: u32) -> World {
    let mut world = World::new();
    world.configure(|host| {
        host.network = [10, 0, 0, 0];
        host.network_length = 8;
    });
    for number in 0..size {
        let subnet = Prefix { address: subnet(number), length: 24 };
        let public_address = public(number);
        let peer = Peer { public_address, vtep_mac: PEER_MAC.0, ..Peer::default() };
        world.tables.peers.insert(&PeerKey::new(subnet), &peer).unwrap();
        world.tables.vteps.insert(&VtepKey { public_address }, &Vtep::new(subnet)).unwrap();
    }
    world
}

/// 10.0.0.0, 10.0.1.0, … but not 10.1.15.0, which is ours, and what comes after it in its stead.
fn subnet(number: u32) -> [u8; 4] {
    const OWN: u32 = 0x010f;
    let number = if number == OWN { 0xffff } else { number };
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
fn measure(world: &mut World, case: &Case, size: u32) -> f64 {
    const IFINDEX: usize = 40;
    let mut context = [0; 192];
    context[IFINDEX..][..4].copy_from_slice(&1_u32.to_ne_bytes());
    let program = world.programs.get(case.hook).unwrap();
    let mut out = vec![0; 512];
    let mut nanoseconds: Vec<f64> = (0..RUNS)
        .map(|run| {
            // An odd factor far from small ones visits the leases all over the hash table.
            let number = if case.one_peer { 1 } else { run.wrapping_mul(40_503) % size };
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

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

fn table(times: &[[Vec<f64>; SIZES.len()]]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "ns per packet",
        "2 leases",
        "1,000",
        "65,536",
        "65,536 / 2",
        "lowest",
        "highest",
    ]);
    for (case, times) in CASES.iter().zip(times) {
        let mut row = vec![case.title.to_owned()];
        row.extend(times.iter().map(|times| format!("{:.0}", median(&mut times.clone()))));
        let mut ratios: Vec<f64> =
            times[2].iter().zip(&times[0]).map(|(many, few)| many / few).collect();
        let middle = median(&mut ratios);
        for ratio in [middle, ratios[0], ratios[ratios.len() - 1]] {
            row.push(format!("{ratio:.3}"));
        }
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
