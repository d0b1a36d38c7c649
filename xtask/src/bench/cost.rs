//! `bench cost`: what each BPF program costs per packet at work, by the kernel's own statistics
//! (`kernel.bpf_stats_enabled`). Reading the clock twice a packet is part of every figure.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use overlay_lab::{Etcd, Lab, command::Cmd};
use serde_json::Value;

use super::{
    CONGESTION_CONTROL,
    contenders::{Agents, Contender, OURS},
    rounds::{self, Cores, Track},
    setting::{Setting, allow_congestion_control},
    work::Work,
};
use crate::{build, setup};

/// Small packets both ways, large ones one way, and aggregates with their acknowledgements.
const WORKS: [Work; 4] = [Work::UdpRr, Work::TcpRr, Work::Udp64, Work::Tcp1];

const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// The command line of `bench cost`.
#[derive(Debug, Clone, Args)]
pub(super) struct Options {
    /// How long each work is done
    #[arg(long, value_name = "SECONDS", default_value_t = 1)]
    seconds: u64,
    /// Measure this agent instead of building one
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

/// How often a program ran, and how many nanoseconds in all.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    runs: u64,
    nanoseconds: u64,
}

/// What the programs on all hosts of a lab have cost so far, by their names.
fn costs(lab: &Lab) -> Result<BTreeMap<String, Cost>> {
    let mut costs = BTreeMap::<String, Cost>::new();
    for host in lab.hosts() {
        let links = host.pins().join("links");
        for entry in fs::read_dir(&links).with_context(|| format!("listing {}", links.display()))? {
            let path = entry?.path();
            let bpftool = Cmd::new("bpftool").arg("--json");
            let link = bpftool.clone().args(["link", "show", "pinned"]).arg(&path).read()?;
            let link: Value = serde_json::from_str(&link).context("a link is not JSON")?;
            let id = link["prog_id"].as_u64().with_context(|| format!("no program: {link}"))?;
            let program = bpftool.args(["prog", "show", "id", &id.to_string()]).read()?;
            let program: Value = serde_json::from_str(&program).context("a program is not JSON")?;
            let name = program["name"].as_str().unwrap_or_default().to_owned();
            let cost = costs.entry(name).or_default();
            cost.runs += program["run_cnt"].as_u64().unwrap_or(0);
            cost.nanoseconds += program["run_time_ns"].as_u64().unwrap_or(0);
        }
    }
    Ok(costs)
}

/// Measures, and prints the table.
pub(super) fn run(options: &Options) -> Result<()> {
    let now = if let Some(agent) = &options.agent {
        fs::canonicalize(agent).with_context(|| format!("no agent at {}", agent.display()))?
    } else {
        setup::ensure()?;
        build::object()?;
        build::agent(true)?
    };
    let agents = Agents { now, before: None };
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["", "program", "packets", "ns per packet"]);
    let statistics = Setting::change(STATISTICS, |_| "1".to_owned())?;
    let _allowed = allow_congestion_control(CONGESTION_CONTROL)?;
    for imitated in [false, true] {
        let lab = Lab::builder().hosts(2).imitate_wire(imitated).start()?;
        let etcd = Etcd::on_host(lab.host(0))?;
        let contender = Contender::find(OURS)?;
        let standing = contender.set_up(&lab, 0, &etcd, &agents)?;
        standing.set_congestion_control(CONGESTION_CONTROL)?;
        let mut track = Track::new(&lab, contender, standing, rounds::pinned(Cores::One)?)?;
        for work in WORKS {
            let before = costs(&lab)?;
            track.measure(work, options.seconds * 1000)?;
            let wire = if imitated { "wire imitated" } else { "offloads on" };
            let mut title = format!("{}, {wire}", work.title());
            for (name, after) in costs(&lab)? {
                let before = before.get(&name).copied().unwrap_or_default();
                let runs = after.runs.saturating_sub(before.runs);
                // What runs now and then only is not this work's.
                if runs > 1000 {
                    let mean = (after.nanoseconds - before.nanoseconds) / runs;
                    let row =
                        [std::mem::take(&mut title), name, runs.to_string(), mean.to_string()];
                    table.add_row(row);
                }
            }
        }
    }
    drop(statistics);
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    Ok(())
}
