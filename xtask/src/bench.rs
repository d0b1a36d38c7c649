//! `bench`: what our overlay costs, beside flannel, Docker's own overlay, Cilium's way, plain routing and no overlay
//! at all.
//!
//! All contenders stand at once, on the same wire, and are measured round by round, so that a machine
//! that is not quiet disturbs all of them alike. What is compared are ratios within a round.

mod analysis;
mod contenders;
mod control;
mod cost;
mod goals;
mod packets;
mod processor;
mod report;
mod rounds;
mod setting;
mod survival;
mod tcp;
mod work;
mod worker;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};

pub(crate) use self::tcp::Tcp;
use self::{
    contenders::{Agents, Contender, OURS_BEFORE},
    report::{Machine, Report},
    rounds::{Cores, Plan, Wire},
    work::Work,
};
use crate::{build, setup, toolchain::in_path};

/// Rounds of a full run, and of a quick one: from six on, an interval of 95 % exists.
const ROUNDS: [u32; 2] = [10, 6];

/// Length of a run in ms, except where iperf3 counts in seconds.
const MILLISECONDS: [u64; 2] = [1000, 250];

/// What Linux and Debian use unless told otherwise. A machine that uses `bbr`, which sends by a timer, shows the
/// cost of that timer first: a fifth of the throughput, and little of what tells contenders apart.
const CONGESTION_CONTROL: &str = "cubic";

/// The command line of `bench`.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = contenders_help())]
pub(crate) struct Options {
    #[command(subcommand)]
    only: Option<Only>,
    /// Less work, fewer and shorter runs: under five minutes in all
    #[arg(long)]
    quick: bool,
    /// Rounds; every contender does all the work once in each
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Set everything up anew for each round: where memory and queues lie differs from one time to the next, by more than
    /// small changes cost
    #[arg(long)]
    anew: bool,
    /// Length of a run
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=20))]
    seconds: Option<u64>,
    /// Measure only these
    #[arg(long = "contender", value_name = "NAME", num_args = 1.., value_parser = contenders::names())]
    contenders: Vec<String>,
    /// Which wire
    #[arg(long, value_enum, default_value_t = Wires::Both)]
    wire: Wires,
    /// Do only this work
    #[arg(long = "work", value_name = "NAME", num_args = 1.., value_enum)]
    works: Vec<Work>,
    /// One core for everything, or one for each side
    #[arg(long, value_enum, default_value_t = Cores::One)]
    cores: Cores,
    /// How TCP finds its speed
    #[arg(long, value_name = "NAME", default_value = CONGESTION_CONTROL)]
    congestion_control: String,
    /// Measure this agent instead of building one
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Compare with this agent, of another version
    #[arg(long, value_name = "FILE")]
    before: Option<PathBuf>,
}

#[derive(Debug, Clone, Subcommand)]
enum Only {
    /// Nanoseconds per packet of each BPF program, at 2, 1,000 and 65,536 leases
    Packets(packets::Options),
    /// Nanoseconds per packet of each BPF program at work, as the kernel's own statistics have it
    Cost(cost::Options),
    /// What 65,536 leases cost the control plane: start, memory, requests, latency
    Control(control::Options),
    /// What streams between containers lose while agents and etcd stop, die, change and start
    Survival(survival::Options),
    /// One end of a measurement
    #[command(hide = true)]
    Worker(worker::Options),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Wires {
    On,
    Imitated,
    Both,
}

fn contenders_help() -> String {
    let lines: Vec<String> = contenders::ALL
        .iter()
        .map(|contender| format!("  {:<17} {}", contender.name, contender.about))
        .collect();
    format!("Contenders:\n{}", lines.join("\n"))
}

/// Measures, prints the table, and keeps the report.
pub(crate) fn run(options: &Options) -> Result<()> {
    match &options.only {
        Some(Only::Packets(options)) => return packets::run(options),
        Some(Only::Cost(options)) => return cost::run(options),
        Some(Only::Control(options)) => return control::run(options),
        Some(Only::Survival(options)) => return survival::run(options),
        Some(Only::Worker(options)) => return worker::run(options),
        None => {}
    }
    let plan = options.plan()?;
    let agents = options.agents()?;
    let machine = Machine::read(rounds::pinned(plan.cores)?)?;
    println!("{}", report::opening(&plan, &machine));
    let samples = rounds::run(&plan, &agents)?;
    let report = Report::new(plan, machine, samples);
    println!("{}", report::table(&report));
    let directory = report::write(&report)?;
    println!("{}", directory.join("index.html").display());
    Ok(())
}

impl Options {
    fn plan(&self) -> Result<Plan> {
        let quick = usize::from(self.quick);
        let mut names = if self.contenders.is_empty() {
            contenders::usual()
        } else {
            for name in &self.contenders {
                Contender::find(name)?;
            }
            self.contenders.clone()
        };
        if self.before.is_some() {
            names.push(OURS_BEFORE.to_owned());
        }
        // In the order of the report, each once.
        let chosen = |contender: &Contender| names.iter().any(|name| name == contender.name);
        let contenders = contenders::ALL.into_iter().filter(chosen).collect();
        let mut works = self.works.clone();
        if works.is_empty() {
            works = Work::value_variants().to_vec();
            if self.quick {
                works.retain(|work| !matches!(work, Work::Tcp8 | Work::Udp1400));
            }
        }
        works.sort_unstable();
        works.dedup();
        let wires = match self.wire {
            Wires::On => vec![Wire::On],
            Wires::Imitated => vec![Wire::Imitated],
            Wires::Both => vec![Wire::On, Wire::Imitated],
        };
        Ok(Plan {
            contenders,
            wires,
            works,
            rounds: self.rounds.unwrap_or(ROUNDS[quick]),
            anew: self.anew,
            milliseconds: self.seconds.map_or(MILLISECONDS[quick], |seconds| seconds * 1000),
            cores: self.cores,
            congestion_control: self.congestion_control.clone(),
        })
    }

    fn agents(&self) -> Result<Agents> {
        let before = self.before.as_deref().map(executable).transpose()?;
        Ok(Agents { now: self.agent()?, before })
    }

    fn agent(&self) -> Result<PathBuf> {
        for (program, package) in
            [("iperf3", "iperf3"), ("taskset", "util-linux"), ("tc", "iproute2")]
        {
            ensure!(
                in_path(program).is_some(),
                "there is no {program}, which the benchmark needs: `apt-get install {package}`"
            );
        }
        if let Some(agent) = &self.agent {
            return executable(agent);
        }
        setup::ensure()?;
        build::object()?;
        // A debug build would measure as well, for its programs are optimised; but it is not what runs.
        build::agent(true)
    }
}

fn executable(agent: &Path) -> Result<PathBuf> {
    let path = fs::canonicalize(agent)
        .with_context(|| format!("there is no agent at {}", agent.display()))?;
    if path.is_dir() {
        bail!("{} is a folder, not an agent", path.display());
    }
    Ok(path)
}
