//! `doctor`: looks for what is known to go wrong, says what it found and the command that mends it.
//!
//! A fault has consequences, which look like faults. So checks go from causes to consequences, and what an
//! earlier finding explains is not reported again.

mod clock;
mod connections;
mod firewall;
mod host;
mod overlay;
mod ping;
mod store;

use std::{collections::BTreeSet, fmt::Write as _, net::Ipv4Addr, path::Path};

use anyhow::Result;
use ipnetwork::Ipv4Network;
use overlay_lease::{
    config::{DEFAULT_PORT, NetworkConfig},
    store::etcd::{EtcdConfig, EtcdStore},
};
use serde::Serialize;

use crate::{
    admin::{OverlayStatus, Status, fetch_status},
    cleanup::{Places, is_ours},
    kernel::netlink::{self, KernelState},
    provision::AGENT_ENV,
    subnet_env::read_subnet,
};

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// The kernel takes the programs.
    Kernel,
    /// etcd answers, and soon.
    Etcd,
    /// This host's clock is that of etcd's host.
    Clock,
    /// Certificates are good for long enough.
    Certificate,
    /// The maps are not newer than the agent.
    Maps,
    /// Nobody else has the UDP port.
    Device,
    /// Links are up.
    Link,
    /// The host forwards packets.
    IpForward,
    /// The host's firewall lets the overlay through.
    ForwardPolicy,
    /// Rules that somebody has written hold for the overlay.
    Rules,
    /// Packets of peers are not taken for forged ones.
    RpFilter,
    /// The network card aggregates what can be aggregated, and nothing else.
    Offloads,
    /// Docker uses the leased subnet.
    Docker,
    /// Peers answer at all.
    Peer,
    /// The underlay carries whole packets.
    Mtu,
    /// The underlay carries the overlay's UDP packets.
    UdpPort,
    /// Other hosts reach this host's etcd.
    TcpPort,
    /// The agent runs and has nothing to complain of.
    Agent,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: Check,
    /// What is wrong with it, and what that does.
    pub problem: String,
    /// The command that mends it.
    pub mend: String,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// Whether nothing is wrong.
    pub healthy: bool,
    /// What is.
    pub findings: Vec<Finding>,
    /// What could not be looked at, and why.
    pub unknown: Vec<String>,
    /// What is as it should be, and may not be as somebody thinks.
    pub notes: Vec<String>,
}

/// What all checks need to know.
struct Host {
    places: Places,
    /// How to reach etcd.
    etcd: EtcdConfig,
    agent: Result<Status>,
    /// What etcd says, if it does.
    network: Option<NetworkConfig>,
    observed: KernelState,
    subnet: Option<Ipv4Network>,
}

impl Host {
    async fn observe(places: Places, etcd: EtcdConfig) -> Result<Self> {
        let agent = fetch_status(&places.socket).await;
        let observed = netlink::observe(&netlink::connect()?).await?;
        let subnet = read_subnet(&places.subnet_file)?;
        Ok(Self { places, etcd, agent, network: None, observed, subnet })
    }

    fn overlay(&self) -> Option<&OverlayStatus> {
        self.agent.as_ref().ok()?.overlay.as_ref()
    }

    /// The name of the tunnel device.
    fn tunnel(&self) -> String {
        let vni = self.network.as_ref().map(|network| network.vni);
        match (self.overlay(), vni) {
            (Some(overlay), _) => overlay.tunnel.clone(),
            (None, Some(vni)) => netlink::tunnel_name(vni),
            (None, None) => "overlay.1".to_owned(),
        }
    }

    /// Whether nobody has made this host a member of anything, by whatever way.
    fn is_a_stranger(&self) -> bool {
        let has_device = self.observed.links.values().any(is_ours);
        let is_told = Path::new(AGENT_ENV).exists() || self.places.socket.exists();
        self.agent.is_err() && !has_device && self.subnet.is_none() && !is_told
    }

    fn port(&self) -> u16 {
        let stored = self.network.as_ref().map(|network| network.port);
        self.overlay().map(|overlay| overlay.port).or(stored).unwrap_or(DEFAULT_PORT)
    }

    /// The other hosts that packets go to.
    fn peers(&self) -> Vec<(Ipv4Network, Ipv4Addr)> {
        let peers = self.overlay().map(|overlay| overlay.peers.as_slice()).unwrap_or_default();
        peers.iter().map(|peer| (peer.subnet, peer.public_ip)).collect()
    }
}

/// What was found so far.
#[derive(Default)]
struct Findings {
    findings: Vec<Finding>,
    unknown: Vec<String>,
}

impl Findings {
    fn add(&mut self, check: Check, problem: impl Into<String>, mend: impl Into<String>) {
        self.findings.push(Finding { check, problem: problem.into(), mend: mend.into() });
    }

    /// Notes that something could not be looked at.
    fn unknown(&mut self, what: impl Into<String>) {
        self.unknown.push(what.into());
    }

    fn into_diagnosis(self, notes: Vec<String>) -> Diagnosis {
        let Self { findings, unknown } = self;
        Diagnosis { healthy: findings.is_empty(), findings, unknown, notes }
    }

    fn has(&self, check: Check) -> bool {
        self.findings.iter().any(|finding| finding.check == check)
    }
}

/// Looks at everything.
pub async fn examine(places: Places, etcd: EtcdConfig) -> Result<Diagnosis> {
    let mut host = Host::observe(places, etcd).await?;
    let mut found = Findings::default();
    if host.is_a_stranger() {
        found.add(
            Check::Agent,
            "this host is no member of an overlay: there is no agent, no device and no subnet of one",
            "overlay-agent join join.token, with the file that overlay-agent init made on the overlay's first host",
        );
        return Ok(found.into_diagnosis(Vec::new()));
    }
    host::kernel(&mut found);
    if !found.has(Check::Kernel) {
        overlay::maps(&host, &mut found);
    }
    store::certificates(&host, &mut found);
    match EtcdStore::new(&host.etcd) {
        Ok(etcd) => host.network = store::answers(&etcd, &mut found).await,
        Err(error) => found.unknown(format!("etcd: {error:#}")),
    }
    if host.network.is_some() {
        store::members(&host, &mut found).await;
    }
    if !found.has(Check::Etcd) {
        clock::skew(&host.etcd, &mut found).await;
    }
    overlay::device(&host, &mut found);
    host::links(&host, &mut found);
    host::forwarding(&host, &mut found);
    host::forward_policy(&host, &mut found).await;
    firewall::rules(&host, &mut found).await;
    firewall::udp_port(&host, &mut found);
    firewall::store_ports(&host, &mut found).await;
    let unreachable = host::rp_filter(&host, &mut found).await.unwrap_or_else(|error| {
        found.unknown(format!("return paths: {error:#}"));
        BTreeSet::new()
    });
    host::offloads(&host, &mut found).await;
    overlay::docker(&host, &mut found);
    overlay::container_mtu(&host, &mut found);
    overlay::paths(&host, &unreachable, &mut found).await;
    agent(&host, &mut found);
    let mut notes = overlay::docker_networks(&host);
    notes.extend(store::confinement(&host, &mut found).await);
    Ok(found.into_diagnosis(notes))
}

/// What the agent complains of is a consequence of whatever else was found.
fn agent(host: &Host, found: &mut Findings) {
    const LOG: &str = "journalctl --unit overlay-agent";
    if !found.findings.is_empty() {
        return;
    }
    match &host.agent {
        Err(error) => found.add(
            Check::Agent,
            format!("{error:#}; containers go on, but nothing follows what other hosts do"),
            "systemctl start overlay-agent",
        ),
        Ok(status) => {
            for problem in &status.problems {
                found.add(Check::Agent, problem.trim_end_matches('.'), LOG);
            }
        }
    }
}

impl Check {
    /// Its name, as in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Etcd => "etcd",
            Self::Clock => "clock",
            Self::Certificate => "certificate",
            Self::Maps => "maps",
            Self::Device => "device",
            Self::Link => "link",
            Self::IpForward => "ip_forward",
            Self::ForwardPolicy => "forward_policy",
            Self::Rules => "rules",
            Self::RpFilter => "rp_filter",
            Self::Offloads => "offloads",
            Self::Docker => "docker",
            Self::Peer => "peer",
            Self::Mtu => "mtu",
            Self::UdpPort => "udp_port",
            Self::TcpPort => "tcp_port",
            Self::Agent => "agent",
        }
    }
}

impl Diagnosis {
    /// In words.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        if self.healthy {
            writeln!(text, "Nothing is wrong.").ok();
        }
        for Finding { check, problem, mend } in &self.findings {
            writeln!(text, "{:<15} {problem}.\n{:<15} mend: {mend}", check.name(), "").ok();
        }
        for what in &self.unknown {
            writeln!(text, "not checked     {what}").ok();
        }
        for note in &self.notes {
            writeln!(text, "note            {note}").ok();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_same_in_words_and_in_json() {
        for check in [Check::Kernel, Check::IpForward, Check::UdpPort, Check::Agent] {
            assert_eq!(serde_json::to_value(check).unwrap(), check.name());
        }
    }

    #[test]
    fn every_finding_has_its_mending_line() {
        let mut found = Findings::default();
        found.add(Check::IpForward, "off", "sysctl -w net.ipv4.ip_forward=1");
        found.unknown("offloads: no ethtool");
        let Findings { findings, unknown } = found;
        let notes = vec!["br-1 is not in the overlay".to_owned()];
        let text = Diagnosis { healthy: false, findings, unknown, notes }.to_text();
        assert_eq!(
            text,
            "ip_forward      off.\n                mend: sysctl -w net.ipv4.ip_forward=1\n\
             not checked     offloads: no ethtool\n\
             note            br-1 is not in the overlay\n"
        );
    }
}
