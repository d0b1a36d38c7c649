use std::{
    fmt::{self, Write as _},
    net::Ipv4Addr,
};

use comfy_table::{Table, presets::NOTHING};
use ipnetwork::Ipv4Network;
use overlay_common::{Class, Feature, Reason};
use overlay_lease::config::policy::Rule;
use serde::{Deserialize, Serialize};

use crate::kernel::{datapath::CounterRow, policy::Denials};

/// Everything that `overlay-agent status` shows. The JSON form is stable: fields are added, not renamed.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// Whether every lease known to the store is programmed.
    pub ready: bool,
    /// What is wrong, each in a sentence; empty when nothing is.
    pub problems: Vec<String>,
    /// What an agent that has not started yet waits for; `null` once it runs.
    pub waiting_for: Option<String>,
    /// Everything else, once there is a lease; in JSON, these are fields beside the others.
    #[serde(flatten)]
    pub overlay: Option<OverlayStatus>,
}

/// The overlay on this host.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct OverlayStatus {
    /// The whole overlay.
    pub network: Ipv4Network,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// The overlay's MTU.
    pub mtu: u32,
    /// Whether programs deliver past the host's stack.
    pub fast_path: bool,
    /// What rules of the host's firewall mean for the overlay.
    #[serde(default)]
    pub rules: RulesStatus,
    /// The network's policy, rule by rule.
    #[serde(default)]
    pub policy: Vec<PolicyRuleStatus>,
    /// How containers' source addresses are checked, where that is not as usual.
    #[serde(default)]
    pub source_check: Option<String>,
    /// This host's lease.
    pub lease: LeaseStatus,
    /// The interface that carries encapsulated packets.
    pub uplink: UplinkStatus,
    /// The kernel's release.
    pub kernel: String,
    /// What holds the programs on interfaces: `tcx` or `clsact`.
    pub attached_by: String,
    /// What the kernel was found to have, and what not.
    pub features: Vec<FeatureStatus>,
    /// Name of the tunnel device.
    pub tunnel: String,
    /// The first of `bridges`; an earlier version knew one.
    #[serde(default)]
    pub bridge: Option<String>,
    /// Names of the containers' bridges that are there.
    #[serde(default)]
    pub bridges: Vec<String>,
    /// Local containers that are delivered to directly.
    pub endpoints: usize,
    /// How often everything of ours was looked at.
    pub verifications: u32,
    /// How many changes it took to bring the kernel in step, the start included.
    pub repairs: u64,
    /// Other hosts.
    pub peers: Vec<PeerStatus>,
    /// Where the programs are attached.
    pub programs: Vec<ProgramStatus>,
    /// Packets by hook and reason; those that never occurred are left out.
    pub counters: Vec<CounterStatus>,
}

/// This host's lease.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct LeaseStatus {
    /// Its subnet.
    pub subnet: Ipv4Network,
    /// The address that peers send to.
    pub public_ip: Ipv4Addr,
    /// The MAC that peers address inner frames to.
    pub vtep_mac: String,
}

/// What rules of the host's firewall for forwarded packets mean for the overlay's.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct RulesStatus {
    /// `auto`, `honour` or `bypass`.
    pub mode: String,
    /// Who says so: `--rules`, `network config` or `default`.
    #[serde(default)]
    pub set_by: String,
    /// Whether flows take the stack until netfilter has let them through.
    pub honoured: bool,
    /// Whether all of their packets do.
    #[serde(default)]
    pub every_packet: bool,
    /// Rules that may concern what containers send each other.
    pub concerns: Vec<String>,
    /// Those by which nothing can begin between containers here and elsewhere, one way at least.
    #[serde(default)]
    pub refusals: Vec<String>,
    /// Those that drop all packets that the tunnel's are carried in, one way at least.
    #[serde(default)]
    pub closing: Vec<String>,
}

impl RulesStatus {
    fn describe(&self) -> String {
        let mode = match self.set_by.as_str() {
            "network config" => format!("{}, by the network config", self.mode),
            _ => self.mode.clone(),
        };
        let Some(first) = self.concerns.first() else {
            let what = if self.honoured { "honoured" } else { "bypassed" };
            return format!("{what} ({mode}): none concerns the overlay");
        };
        let others = match self.concerns.len() - 1 {
            0 => String::new(),
            count => format!(" and {count} more"),
        };
        if self.every_packet {
            format!("honoured ({mode}) for every packet because of {first}{others}")
        } else if self.honoured {
            format!("honoured ({mode}) because of {first}{others}")
        } else {
            format!("bypassed ({mode}): these do not hold for the fast path: {first}{others}")
        }
    }
}

/// A rule of the network's policy.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct PolicyRuleStatus {
    /// Its name.
    pub name: String,
    /// The whole rule, in words.
    pub rule: String,
    /// Packets that it has denied on this host.
    pub denied_packets: u64,
    /// Their bytes.
    pub denied_bytes: u64,
}

impl From<(&Rule, Denials)> for PolicyRuleStatus {
    fn from((rule, denied): (&Rule, Denials)) -> Self {
        Self {
            name: rule.name.clone(),
            rule: rule.to_string(),
            denied_packets: denied.packets,
            denied_bytes: denied.bytes,
        }
    }
}

/// An interface.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct UplinkStatus {
    /// Its name.
    pub name: String,
    /// Its number.
    pub ifindex: u32,
}

/// Another host.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct PeerStatus {
    /// The subnet that it leases.
    pub subnet: Ipv4Network,
    /// Where its packets go.
    pub public_ip: Ipv4Addr,
    /// The MAC that inner frames are addressed to.
    pub vtep_mac: String,
    /// When it has last answered through the overlay, if it has since the agent knows it.
    #[serde(default)]
    pub answered: Option<Answered>,
}

/// An answer of another host, to the agent's own question.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Answered {
    /// How long ago.
    pub seconds_ago: u64,
    /// By which way.
    pub by: ProbeKind,
}

/// By which way a host was asked.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeKind {
    /// In VXLAN, from program to program, as containers' packets go.
    Vxlan,
    /// By ICMP to its address in the overlay: it has no program that answers, as flannel's hosts.
    Icmp,
}

/// A program on an interface.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct ProgramStatus {
    /// The program.
    pub hook: String,
    /// The interface.
    pub interface: String,
}

/// Something that not every kernel has.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct FeatureStatus {
    /// Its name.
    pub name: String,
    /// Whether this kernel has it.
    pub present: bool,
    /// The first Linux that has it.
    pub since: String,
}

impl FeatureStatus {
    /// What was found out about a feature.
    pub fn new(feature: Feature, present: bool) -> Self {
        Self { name: feature.name().to_owned(), present, since: feature.since().to_owned() }
    }

    fn row(&self) -> [String; 3] {
        let meaning = Feature::from_name(&self.name)
            .map_or("", |feature| if self.present { feature.gives() } else { feature.without() });
        let present = if self.present { "yes" } else { "no" };
        [self.name.clone(), present.to_owned(), meaning.to_owned()]
    }
}

/// One counter.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct CounterStatus {
    /// The program.
    pub hook: String,
    /// Why packets left it.
    pub reason: String,
    /// What became of them.
    pub class: Verdicts,
    /// How many; an aggregate counts once.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What becomes of packets.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdicts {
    /// Redirected by us.
    Forwarded,
    /// Checked or prepared by us.
    Passed,
    /// Left to the kernel.
    Declined,
    /// Refused.
    Dropped,
}

impl Verdicts {
    /// The same word as in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Passed => "passed",
            Self::Declined => "declined",
            Self::Dropped => "dropped",
        }
    }
}

impl From<Class> for Verdicts {
    fn from(class: Class) -> Self {
        match class {
            Class::Forwarded => Self::Forwarded,
            Class::Passed => Self::Passed,
            Class::Declined => Self::Declined,
            Class::Dropped => Self::Dropped,
        }
    }
}

impl From<CounterRow> for CounterStatus {
    fn from(row: CounterRow) -> Self {
        Self {
            hook: row.hook.name().to_owned(),
            reason: row.reason.name().to_owned(),
            class: row.class().into(),
            packets: row.packets,
            bytes: row.bytes,
        }
    }
}

impl fmt::Display for Answered {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seconds_ago, by } = self;
        let by = match by {
            ProbeKind::Vxlan => "by VXLAN",
            ProbeKind::Icmp => "by ICMP",
        };
        write!(out, "answered {by} {seconds_ago} s ago")
    }
}

impl Status {
    /// Of an agent that waits for something before it can run, and what is in its way.
    pub fn waiting(waiting_for: &str, troubles: Vec<String>) -> Self {
        let mut problems = vec![format!("The agent waits for {waiting_for}.")];
        problems.extend(troubles);
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: false,
            problems,
            waiting_for: Some(waiting_for.to_owned()),
            overlay: None,
        }
    }

    /// Whether every lease is programmed and nothing is wrong.
    pub const fn is_fine(&self) -> bool {
        self.ready && self.problems.is_empty()
    }

    /// The status in words.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        if self.is_fine() {
            text.push_str("Everything is as it should be.\n");
        }
        // Writing to a string cannot fail.
        for problem in &self.problems {
            writeln!(text, "Problem: {problem}").ok();
        }
        if let Some(overlay) = &self.overlay {
            overlay.write_text(&mut text);
        }
        text
    }
}

impl OverlayStatus {
    fn write_text(&self, text: &mut String) {
        // As above.
        for line in self.summary() {
            writeln!(text, "{line}").ok();
        }
        write!(text, "\nPeers ({})\n{}\n", self.peers.len(), self.peer_table()).ok();
        write!(text, "\nPrograms\n{}\n", self.program_table()).ok();
        write!(text, "\nKernel features\n{}\n", self.feature_table()).ok();
        if !self.policy.is_empty() {
            let count = self.policy.len();
            write!(text, "\nPolicy ({count} rules), and packets denied here\n").ok();
            writeln!(text, "{}", self.policy_table()).ok();
        }
        write!(text, "\nPackets\n{}\n", self.counter_table()).ok();
    }

    fn summary(&self) -> Vec<String> {
        let bridges = match &self.bridges[..] {
            [] => "Bridge    none yet".to_owned(),
            [one] => format!("Bridge    {one}"),
            several => format!("Bridges   {}", several.join(", ")),
        };
        let path = if self.fast_path { "on" } else { "off" };
        let mut lines = vec![
            format!(
                "Lease     {} of {}, VNI {}, UDP port {}, MTU {}",
                self.lease.subnet, self.network, self.vni, self.port, self.mtu
            ),
            format!(
                "VTEP      {} at {} on {}",
                self.lease.vtep_mac, self.lease.public_ip, self.uplink.name
            ),
            format!("{bridges}, {} containers known", self.endpoints),
            format!("Fast path {path}"),
            format!("Rules     {}", self.rules.describe()),
            format!("Kernel    {}, programs attached by {}", self.kernel, self.attached_by),
        ];
        lines.extend(self.source_check.iter().map(|how| format!("Sources   checks are {how}")));
        lines
    }

    fn peer_table(&self) -> Table {
        let mut table = plain_table();
        for peer in &self.peers {
            table.add_row([
                peer.subnet.to_string(),
                format!("via {}", peer.public_ip),
                peer.vtep_mac.clone(),
                peer.answered.map_or_else(String::new, |answered| answered.to_string()),
            ]);
        }
        table
    }

    fn program_table(&self) -> Table {
        let mut table = plain_table();
        for program in &self.programs {
            table.add_row([program.hook.clone(), format!("on {}", program.interface)]);
        }
        table
    }

    fn feature_table(&self) -> Table {
        let mut table = plain_table();
        for feature in &self.features {
            table.add_row(feature.row());
        }
        table
    }

    /// Of a policy of hundreds of rules, those that have denied something.
    fn policy_table(&self) -> Table {
        const SHORT: usize = 20;
        let mut table = plain_table();
        let is_short = self.policy.len() <= SHORT;
        for rule in self.policy.iter().filter(|rule| is_short || rule.denied_packets != 0) {
            table.add_row([rule.rule.clone(), rule.denied_packets.to_string()]);
        }
        table
    }

    fn counter_table(&self) -> Table {
        let mut table = plain_table();
        for counter in &self.counters {
            table.add_row([
                counter.hook.clone(),
                counter.reason.clone(),
                counter.packets.to_string(),
                describe(&counter.reason).to_owned(),
            ]);
        }
        table
    }
}

fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table
}

fn describe(name: &str) -> &'static str {
    Reason::ALL.iter().find(|reason| reason.name() == name).map_or("", |reason| reason.describe())
}
