//! Everything set up at once, and measured in rounds: within a round every contender does the same
//! work within seconds, in an order that rotates.

use std::{ops::RangeInclusive, time::Instant};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use overlay_lab::{Etcd, Lab, Process, command::Cmd, eventually, interrupt, statistics::as_float};
use serde::Serialize;

use super::{
    contenders::{Agents, Contender, Standing},
    processor::{self, Core},
    setting::allow_congestion_control,
    work::{IPERF_PORT, Values, Work},
    worker,
};

/// How long servers may take to listen.
const LISTENING_WITHIN: std::time::Duration = std::time::Duration::from_secs(10);

/// The share of a core that others may use during a run; beyond, it is repeated.
const FOREIGN_LIMIT: f64 = 0.08;

/// How often a run is made at most.
const ATTEMPTS: u32 = 2;

/// How packets go from host to host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Wire {
    /// Veth as it is: super-packets pass whole, as through a card with every tunnel offload
    On,
    /// Like a real wire: nothing larger than the MTU on it, aggregated again where it arrives
    Imitated,
}

impl Wire {
    /// What a report calls it.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::On => "offloads on",
            Self::Imitated => "wire imitated",
        }
    }
}

/// Which cores the two ends get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Cores {
    /// One for everything: what is measured is the cost of the whole way
    One,
    /// One for the client, another for the server
    Each,
}

/// What is measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Plan {
    #[serde(serialize_with = "names")]
    pub(super) contenders: Vec<Contender>,
    pub(super) wires: Vec<Wire>,
    pub(super) works: Vec<Work>,
    pub(super) rounds: u32,
    /// Everything is set up anew for each round.
    pub(super) anew: bool,
    pub(super) milliseconds: u64,
    pub(super) cores: Cores,
    pub(super) congestion_control: String,
}

fn names<S: serde::Serializer>(contenders: &[Contender], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(contenders.iter().map(|contender| contender.name))
}

/// One run.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Sample {
    pub(super) wire: Wire,
    pub(super) work: Work,
    pub(super) contender: &'static str,
    pub(super) round: u32,
    pub(super) values: Values,
    /// The share of the cores that others used meanwhile.
    pub(super) foreign: f64,
    /// The share that the machine underneath took away.
    pub(super) stolen: f64,
}

impl Sample {
    /// Whether others used more of the cores than they should.
    pub(super) fn is_disturbed(&self) -> bool {
        self.foreign + self.stolen > FOREIGN_LIMIT
    }
}

/// The cores of client and server.
pub(super) fn pinned(cores: Cores) -> Result<[usize; 2]> {
    let count = std::thread::available_parallelism().context("cannot count the cores")?.get();
    // The first one serves the machine's interrupts.
    let last = count - 1;
    match cores {
        Cores::One => Ok([last; 2]),
        Cores::Each => {
            ensure!(count >= 2, "one core for each side takes two, and there is one");
            Ok([last - 1, last])
        }
    }
}

/// Measures everything.
pub(super) fn run(plan: &Plan, agents: &Agents) -> Result<Vec<Sample>> {
    let _allowed = allow_congestion_control(&plan.congestion_control)?;
    let runs = plan.wires.len() * plan.works.len() * plan.contenders.len();
    let progress = ProgressBar::new(runs as u64 * u64::from(plan.rounds));
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  ({eta} left)");
    progress.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut samples = Vec::new();
    if plan.anew {
        for round in 1..=plan.rounds {
            samples.extend(stand(plan, agents, round..=round, &progress)?);
        }
    } else {
        samples = stand(plan, agents, 1..=plan.rounds, &progress)?;
    }
    progress.finish_and_clear();
    Ok(samples)
}

/// Sets everything up and measures these rounds of it. Who is set up first changes with the round.
fn stand(
    plan: &Plan,
    agents: &Agents,
    rounds: RangeInclusive<u32>,
    progress: &ProgressBar,
) -> Result<Vec<Sample>> {
    let lab = Lab::builder().hosts(plan.contenders.len() * 2).start()?;
    // The switch is the wire, not a host with a firewall.
    lab.wire().switch().sysctl("net.bridge.bridge-nf-call-iptables", "0").ok();
    let etcd = Etcd::on_host(lab.host(0))?;
    let cores = pinned(plan.cores)?;
    let mut tracks = Vec::new();
    let count = plan.contenders.len();
    let first = usize::try_from(*rounds.start()).unwrap_or(0);
    for index in 0..count {
        let contender = &plan.contenders[(first + index) % count];
        let standing = contender.set_up(&lab, index * 2, &etcd, agents)?;
        standing.set_congestion_control(&plan.congestion_control)?;
        tracks.push(Track::new(&lab, *contender, standing, cores)?);
    }
    let samples = Rounds { plan, lab: &lab, tracks: &mut tracks, progress }.run(&rounds)?;
    drop((tracks, etcd));
    lab.down()?;
    Ok(samples)
}

/// A contender with its servers running.
pub(super) struct Track {
    contender: Contender,
    standing: Standing,
    servers: Vec<Process>,
    worker: Cmd,
    cores: [usize; 2],
    softirq_threads: Vec<i32>,
}

impl Track {
    pub(super) fn new(
        lab: &Lab,
        contender: Contender,
        standing: Standing,
        cores: [usize; 2],
    ) -> Result<Self> {
        let own = std::env::current_exe().context("cannot find our own program")?;
        let worker = Cmd::new(own).args(["bench", "worker"]);
        let address = standing.server().address.to_string();
        let iperf = Cmd::new("iperf3").args(["--server", "--forceflush", "--port", IPERF_PORT]);
        let echo = worker.clone().args(["serve", &address]);
        let mut servers = Vec::new();
        for (name, command, said) in
            [("iperf3", iperf, "listening"), ("worker", echo, worker::LISTENING)]
        {
            let log = lab.directory().join(format!("{name}-{}.log", contender.name));
            let command = standing.server().enter(on_core(command, cores[1]));
            let what = format!("{name} of {}", contender.name);
            let mut process = Process::spawn(lab.ledger(), &what, &command, &log)?;
            eventually(LISTENING_WITHIN, &format!("{what} listens"), || {
                process.check_running()?;
                ensure!(process.log()?.contains(said), "it has not said so yet");
                Ok(())
            })?;
            servers.push(process);
        }
        let mut softirq_threads: Vec<i32> =
            cores.into_iter().filter_map(processor::softirq_thread).collect();
        softirq_threads.dedup();
        Ok(Self { contender, standing, servers, worker, cores, softirq_threads })
    }

    /// One run, with what others did meanwhile.
    pub(super) fn measure(&mut self, work: Work, milliseconds: u64) -> Result<(Values, f64, f64)> {
        for server in &mut self.servers {
            server.check_running()?;
        }
        let to = self.standing.server().address.to_string();
        let command = work.client(&self.worker, &to, milliseconds);
        let command = self.standing.client().enter(on_core(command, self.cores[0]));
        let mut cores = self.cores.to_vec();
        cores.dedup();
        let (start, before, own_before) = (Instant::now(), Core::read(&cores)?, self.own()?);
        let output = command.read().with_context(|| {
            format!("{} between the ends of {} failed", work.title(), self.contender.name)
        })?;
        let own = self.own()? - own_before;
        let after = Core::read(&cores)?;
        let elapsed = start.elapsed().as_secs_f64() * as_float(cores.len());
        let foreign = ((after.busy - before.busy - own) / elapsed).max(0.0);
        let stolen = (after.stolen - before.stolen) / elapsed;
        Ok((work.read(&output, own)?, foreign, stolen))
    }

    /// Processor seconds of both ends so far, and of the threads that work for them.
    fn own(&self) -> Result<f64> {
        let mut sum = processor::ended_children()?;
        for pid in self.servers.iter().map(Process::pid).chain(self.softirq_threads.iter().copied())
        {
            sum += processor::of_process(pid)?;
        }
        Ok(sum)
    }
}

/// A command on a core.
fn on_core(command: Cmd, core: usize) -> Cmd {
    command.behind("taskset", ["-c", &core.to_string()])
}

struct Rounds<'run> {
    plan: &'run Plan,
    lab: &'run Lab,
    tracks: &'run mut [Track],
    progress: &'run ProgressBar,
}

impl Rounds<'_> {
    fn run(mut self, rounds: &RangeInclusive<u32>) -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        for &wire in &self.plan.wires {
            self.lab.wire().imitate(wire == Wire::Imitated)?;
            self.warm_up()?;
            for round in rounds.clone() {
                if self.progress.is_hidden() {
                    println!("{}, round {round} of {}", wire.title(), self.plan.rounds);
                }
                for (turn, &work) in self.plan.works.iter().enumerate() {
                    self.round(wire, round, turn, work, &mut samples)?;
                }
            }
        }
        Ok(samples)
    }

    /// Fills neighbour tables, finds routes, wakes whatever sleeps; what comes out does not count.
    fn warm_up(&mut self) -> Result<()> {
        for track in self.tracks.iter_mut() {
            for &work in &self.plan.works {
                interrupt::check()?;
                self.progress.set_message(format!("warm-up: {}", track.contender.name));
                if !matches!(work, Work::Tcp8 | Work::Udp1400) {
                    track.measure(work, 100)?;
                }
            }
        }
        Ok(())
    }

    fn round(
        &mut self,
        wire: Wire,
        round: u32,
        turn: usize,
        work: Work,
        samples: &mut Vec<Sample>,
    ) -> Result<()> {
        let count = self.tracks.len();
        let first = usize::try_from(round).unwrap_or(0) + turn;
        for step in 0..count {
            // One time forwards, the next backwards: else everybody would always come after the same one.
            let step = if round.is_multiple_of(2) { count - 1 - step } else { step };
            let track = &mut self.tracks[(first + step) % count];
            let contender = track.contender.name;
            self.progress.set_message(format!(
                "{}, round {round}: {}, {contender}",
                wire.title(),
                work.title()
            ));
            let mut best: Option<Sample> = None;
            for _ in 0..ATTEMPTS {
                interrupt::check()?;
                let (values, foreign, stolen) = track.measure(work, self.plan.milliseconds)?;
                let sample = Sample { wire, work, contender, round, values, foreign, stolen };
                // By how quiet it was around it, never by what came out.
                if best.as_ref().is_none_or(|best| sample.foreign < best.foreign) {
                    best = Some(sample);
                }
                if best.as_ref().is_some_and(|best| !best.is_disturbed()) {
                    break;
                }
            }
            samples.extend(best);
            self.progress.inc(1);
        }
        Ok(())
    }
}
