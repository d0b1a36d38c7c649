//! What is asked, and of whom. A source that is not there says so in its own file.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use overlay_common::tables::ABI_VERSION;
use overlay_lease::store::{Store as _, etcd::EtcdStore};
use tokio::{process::Command, time::timeout};

use super::ReportOptions;
use crate::{
    admin::{fetch_status, fetch_text},
    doctor::examine,
    provision::{self, AGENT_ENV, OPERATOR_ENV},
};

/// How long one may take.
const WITHIN: Duration = Duration::from_secs(15);

/// Programs of the host, by the name of the file that their answer goes to.
const COMMANDS: &[(&str, &str)] = &[
    ("host/uname", "uname -a"),
    ("host/uptime", "uptime"),
    ("host/links", "ip -details -statistics link"),
    ("host/addresses", "ip address"),
    ("host/routes", "ip route show table all"),
    ("host/rules", "ip rule"),
    ("host/neighbours", "ip neighbour"),
    ("host/forwarding-tables", "bridge fdb"),
    ("host/bridge-ports", "bridge -details link"),
    ("host/sockets", "ss -ulpnm"),
    ("host/sysctl", "sysctl --all --pattern ^net[.](ipv4|core)[.]"),
    ("host/network-counters", "nstat -az"),
    ("firewall/nft", "nft list ruleset"),
    ("firewall/iptables", "iptables-save"),
    ("firewall/iptables-legacy", "iptables-legacy-save"),
    ("bpf/programs", "bpftool prog show"),
    ("bpf/maps", "bpftool map show"),
    ("bpf/links", "bpftool link show"),
    ("bpf/attached", "bpftool net"),
    ("docker/version", "docker version"),
    ("docker/info", "docker info"),
    ("docker/networks", "docker network ls"),
    // Not their command lines: those may have secrets in them.
    ("docker/containers", "docker ps --format {{.ID}}|{{.Names}}|{{.Networks}}|{{.Status}}"),
    (
        "log/overlay-agent",
        "journalctl --unit overlay-agent --lines 5000 --no-pager --output short-iso",
    ),
    ("log/etcd", "journalctl --unit etcd --lines 1000 --no-pager --output short-iso"),
    ("log/docker", "journalctl --unit docker --lines 1000 --no-pager --output short-iso"),
    ("log/kernel", "journalctl --dmesg --lines 1000 --no-pager --output short-iso"),
];

/// Files of the host.
const FILES: &[(&str, &str)] = &[
    ("files/agent.env", AGENT_ENV),
    ("files/default", OPERATOR_ENV),
    ("files/etcd.env", "/etc/overlay/etcd.env"),
    ("files/docker_opts.env", "/run/overlay/docker_opts.env"),
    ("files/os-release", "/etc/os-release"),
    ("files/snmp", "/proc/net/snmp"),
    ("files/softnet_stat", "/proc/net/softnet_stat"),
];

/// Everything, by the names of files.
pub(super) async fn all(options: &ReportOptions) -> Vec<(String, Result<String>)> {
    let ReportOptions { places, etcd, .. } = options;
    let mut found = vec![("version".to_owned(), Ok(version()))];
    let status = fetch_status(&places.socket).await;
    let uplink = status.as_ref().ok().and_then(|status| status.overlay.as_ref());
    let uplink = uplink.map(|overlay| overlay.uplink.name.clone());
    let json = status.and_then(|status| Ok(serde_json::to_string_pretty(&status)?));
    found.push(("agent/status.json".to_owned(), json));
    found.push(("agent/metrics".to_owned(), fetch_text(&places.socket, "/metrics").await));
    let diagnosis = Box::pin(examine(places.clone(), etcd.clone())).await;
    found.push(("agent/doctor".to_owned(), diagnosis.map(|diagnosis| diagnosis.to_text())));
    found.push(("etcd/members".to_owned(), members(options).await));
    found.push(("etcd/leases".to_owned(), leases(options).await));
    let state = |name: &str| places.state_file.with_file_name(name);
    let files = [
        ("files/subnet.env", places.subnet_file.clone()),
        ("files/state.env", places.state_file.clone()),
        ("files/last-known.json", state("last-known.json")),
        ("files/etcd-members.json", state("etcd-members.json")),
    ];
    let others = FILES.iter().map(|(name, path)| (*name, Path::new(path).to_owned()));
    for (name, path) in files.into_iter().chain(others) {
        let text = tokio::fs::read(&path).await.with_context(|| path.display().to_string());
        let text = text.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        found.push((name.to_owned(), text));
    }
    for (name, line) in COMMANDS {
        let words: Vec<_> = line.split(' ').collect();
        found.push(((*name).to_owned(), output(&words).await));
    }
    if let Some(uplink) = uplink {
        let words = ["ethtool", "--show-features", &uplink];
        found.push(("host/uplink-features".to_owned(), output(&words).await));
    }
    found.extend(maps(&places.pin_path).await);
    found
}

fn version() -> String {
    format!("overlay-agent {}, ABI {ABI_VERSION}\n", env!("CARGO_PKG_VERSION"))
}

async fn members(options: &ReportOptions) -> Result<String> {
    let asked = timeout(WITHIN, provision::status(&options.etcd)).await;
    Ok(asked.context("no answer in time")??.to_text())
}

/// The network config and all leases, as they are written. What else is below the prefix may be a secret.
async fn leases(options: &ReportOptions) -> Result<String> {
    let store = EtcdStore::new(&options.etcd)?;
    let listing = timeout(WITHIN, store.list()).await.context("no answer in time")??;
    let config = store.get(&store.prefix().config_key()).await?;
    let lines = config.into_iter().chain(listing.entries).map(|entry| {
        let [key, value] = [&entry.key, &entry.value].map(|bytes| String::from_utf8_lossy(bytes));
        format!("{key} {value}\n")
    });
    Ok(lines.collect())
}

/// The pinned maps with all that is in them, as far as there is `bpftool`.
async fn maps(pins: &Path) -> Vec<(String, Result<String>)> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(pins) else { return found };
    let mut paths: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| !path.is_dir())
        .collect();
    paths.sort_unstable();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let words = ["bpftool", "map", "dump", "pinned", &path.to_string_lossy()];
        found.push((format!("bpf/map-{name}"), output(&words).await));
    }
    found
}

/// What a program says, whether it ends well or not.
async fn output(words: &[&str]) -> Result<String> {
    let [program, arguments @ ..] = words else { bail!("there is no program") };
    let mut command = Command::new(program);
    command.args(arguments).stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = timeout(WITHIN, command.output())
        .await
        .with_context(|| format!("{program} has not ended after {} s", WITHIN.as_secs()))?
        .with_context(|| format!("cannot run {program}"))?;
    let [said, complained] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    let ended =
        if output.status.success() { String::new() } else { format!("{}\n", output.status) };
    Ok(format!("$ {}\n{said}{complained}{ended}", words.join(" ")))
}
