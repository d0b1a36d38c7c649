//! What people get: a table in the terminal, JSON for machines, a page to look at.

mod html;
mod plot;
mod table;

use std::{
    fs,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use overlay_lab::{command::Cmd, workspace};
use serde::Serialize;

pub(super) use self::table::table;
use super::{
    analysis::{self, Line, Noise},
    rounds::{Cores, Plan, Sample},
};

/// Everything about a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) plan: Plan,
    pub(super) noise: Noise,
    pub(super) lines: Vec<Line>,
    samples: Vec<Sample>,
}

/// What it was measured on.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Machine {
    /// When, in UTC.
    pub(super) date: String,
    pub(super) kernel: String,
    pub(super) processor: String,
    pub(super) cores: usize,
    /// The cores of client and server.
    pub(super) pinned: [usize; 2],
    /// The load average of the last minute, before we added to it.
    pub(super) load: f64,
    /// The commit that was checked out.
    pub(super) commit: String,
}

impl Machine {
    /// Asks for all of it.
    pub(super) fn read(pinned: [usize; 2]) -> Result<Self> {
        let read =
            |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
        let processor = read("/proc/cpuinfo")?
            .lines()
            .find_map(|line| {
                line.strip_prefix("model name")?.split_once(": ").map(|it| it.1.to_owned())
            })
            .unwrap_or_else(|| std::env::consts::ARCH.to_owned());
        let load = read("/proc/loadavg")?;
        let commit = Cmd::new("git")
            .args(["describe", "--always", "--dirty", "--exclude=*"])
            .directory(workspace::root())
            .read();
        Ok(Self {
            date: Cmd::new("date").args(["--utc", "+%F %H:%M UTC"]).read()?,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            processor,
            cores: std::thread::available_parallelism().context("cannot count the cores")?.get(),
            pinned,
            load: load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
            commit: commit.unwrap_or_else(|_| "no git".to_owned()),
        })
    }

    /// In a line.
    pub(super) fn describe(&self) -> String {
        format!(
            "{}, {} cores, Linux {}, load {:.1} before, commit {}",
            self.processor, self.cores, self.kernel, self.load, self.commit
        )
    }
}

impl Report {
    /// Analyses what was measured.
    pub(super) fn new(plan: Plan, machine: Machine, samples: Vec<Sample>) -> Self {
        let names: Vec<_> = plan.contenders.iter().map(|contender| contender.name).collect();
        let lines = analysis::lines(&samples, &names);
        let noise = analysis::noise(&samples, &lines);
        Self { machine, plan, noise, lines, samples }
    }

    /// How quiet the machine was, in a sentence.
    fn noise_sentence(&self) -> String {
        let Noise { runs, disturbed, foreign, host_spread } = self.noise;
        let spread = host_spread.map_or_else(String::new, |spread| {
            format!("; the host itself scatters by ±{:.1} %", spread * 1e2)
        });
        format!(
            "{disturbed} of {runs} runs were disturbed; others used {:.1} % of the measured cores{spread}",
            foreign * 1e2
        )
    }
}

/// What is about to happen.
pub(super) fn opening(plan: &Plan, machine: &Machine) -> String {
    format!("{}\n{}", machine.describe(), plan_sentence(plan, machine))
}

fn plan_sentence(plan: &Plan, machine: &Machine) -> String {
    let [client, server] = machine.pinned;
    let cores = match plan.cores {
        Cores::One => format!("everything of a run on core {client}"),
        Cores::Each => format!("clients on core {client}, servers on core {server}"),
    };
    format!(
        "{} contenders, {} rounds each{}, runs of {} ms (iperf3: {} s), {cores}, TCP by {}",
        plan.contenders.len(),
        plan.rounds,
        if plan.anew { ", set up anew for each" } else { "" },
        plan.milliseconds,
        plan.milliseconds.div_ceil(1000),
        plan.congestion_control
    )
}

/// Keeps the report, and says where.
pub(super) fn write(report: &Report) -> Result<PathBuf> {
    let seconds =
        SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let stamp = Cmd::new("date")
        .args(["--utc", "+%Y%m%d-%H%M%S", "--date"])
        .arg(format!("@{}", seconds.as_secs()))
        .read()?;
    let directory = workspace::target_dir()?.join("bench").join(stamp);
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let mut json = serde_json::to_string_pretty(report).context("the report is no JSON")?;
    json.push('\n');
    for (name, text) in [("report.json", json), ("index.html", html::page(report)?)] {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(directory)
}

/// A figure with as many digits as it deserves.
fn figure(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        size if size < 10.0 => 2,
        size if size < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::figure;

    #[test]
    fn figures_have_three_digits() {
        for (value, expected) in
            [(0.0, "0"), (0.123, "0.12"), (9.87, "9.87"), (12.34, "12.3"), (1234.5, "1234")]
        {
            assert_eq!(figure(value), expected);
        }
    }
}
