//! A real agent with a datapath, on a host of a lab.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use etcd_client::Client;
use overlay_agent::dataplane::peers::peer_key;
use overlay_common::tables::{Peer, PeerKey};
use overlay_lab::{Agent, AgentOptions, Etcd, Host, eventually};

use crate::{Row, etcd, row, spread};

/// How long anything may take before it counts as failed.
const WITHIN: Duration = Duration::from_mins(1);

pub(crate) struct Loaded {
    agent: Agent,
    to_ready: Duration,
}

/// Starts it and waits until every lease is programmed.
pub(crate) fn start(host: &Host, binary: &Path, store: &Etcd) -> Result<Loaded> {
    let options = AgentOptions::new(binary, store).argument("--iptables-forward-rules=false");
    let start = Instant::now();
    let agent = host.spawn_agent(&options)?;
    eventually(WITHIN, "every lease to be programmed", || {
        let log = agent.log()?;
        ensure!(log.contains("ready: every known lease is programmed"), "{log}");
        Ok(())
    })?;
    Ok(Loaded { agent, to_ready: start.elapsed() })
}

impl Loaded {
    /// What its log and the kernel say about it.
    pub(crate) fn rows(&mut self) -> Result<Vec<Row>> {
        let log = self.agent.log()?;
        let connected = time_of(&log, "network config:")?;
        let listed = time_of(&log, "leases in all:")?;
        let ready = time_of(&log, "ready: every known")?;
        let since = |from: f64, to: f64| format!("{:.0} ms", (to - from) * 1000.0);
        Ok(vec![
            row("agent: process start to ready", format!("{:.0?}", self.to_ready), ""),
            row("agent: connected to all leases listed", since(connected, listed), ""),
            row("agent: listed to all programmed", since(listed, ready), ""),
            row("agent: connected to all programmed", since(connected, ready), "2 s"),
            self.memory("resident, when ready")?,
        ])
    }

    /// Its memory now, and the most it ever had.
    pub(crate) fn memory(&mut self, when: &str) -> Result<Row> {
        let path = format!("/proc/{}/status", self.agent.process().pid());
        let status = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kilobytes =
                line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
            kilobytes
                .map_or_else(|| "?".to_owned(), |kilobytes| format!("{:.0} MB", kilobytes / 1024.0))
        };
        let found = format!("{}, at most {}", field("VmRSS:"), field("VmHWM:"));
        Ok(row(format!("agent: {when}"), found, "100 MB"))
    }

    pub(crate) fn stop(mut self) -> Result<()> {
        self.agent.stop()
    }
}

/// The time of day of the first line that has `text`, in seconds.
fn time_of(log: &str, text: &str) -> Result<f64> {
    let line = log.lines().find(|line| line.contains(text));
    let time = line.and_then(|line| line.split_once('T')?.1.split_once('Z').map(|(time, _)| time));
    let time = time.with_context(|| format!("no line with {text:?} and a time in:\n{log}"))?;
    let mut parts = time.split(':').map(str::parse::<f64>);
    let mut part = || parts.next().context("a time has three parts")?.context("a time is numbers");
    Ok(part()? * 3600.0 + part()? * 60.0 + part()?)
}

/// From etcd's answer to a change to the entry in the pinned map, one change after the other.
pub(crate) async fn latency(endpoint: &str, pins: &Path, leases: u32, changes: u32) -> Result<Row> {
    let data = MapData::from_pin(pins.join("peers")).context("opening the pinned map peers")?;
    let peers = HashMap::<_, PeerKey, Peer>::try_from(Map::HashMap(data))?;
    let mut client = Client::connect([endpoint], None).await?;
    let mut times = Vec::new();
    for change in 1..=changes.min(leases.saturating_sub(1)) {
        let lease = etcd::lease(change, 1, std::net::Ipv4Addr::LOCALHOST)?;
        let key = peer_key(lease.subnet);
        etcd::put(&mut client, &lease).await?;
        let answered = Instant::now();
        while peers.get(&key, 0)?.vtep_mac != lease.vtep_mac.0 {
            ensure!(answered.elapsed() < WITHIN, "{lease} never came to the map");
            tokio::time::sleep(Duration::from_micros(50)).await;
        }
        times.push(answered.elapsed());
    }
    Ok(row("agent: etcd's answer to the entry in the map", spread(times), "20 ms"))
}
