//! Two hosts of some shape that are made ill, and what is said of them.

use std::{
    fmt, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use overlay_lab::{Agent, AgentOptions, Container, Etcd, Host, Lab, NETWORK_CONFIG, eventually};
use rand::{Rng as _, rngs::StdRng, seq::IndexedRandom as _};
use serde_json::Value;

use super::{
    fault::{Fault, Where},
    harmless::{self, Harmless},
    talk::talk,
};

const AGENT: &str = env!("CARGO_BIN_EXE_overlay-agent");

/// After which silence is told; three questions are asked meanwhile.
const PATIENCE: &str = "--peer-timeout=6";

/// The wire's end of the patient's cable, as the lab calls it.
const PORT: &str = "p-two";

/// Which host is made ill; etcd is on the first one, which has no containers and is everybody's router.
pub(super) const PATIENT: usize = 1;
pub(super) const OTHER: usize = 2;

/// How hosts are.
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
#[derive(Clone, Debug)]
pub(super) struct Shape {
    mtu: u32,
    real_wire: bool,
    fast_path: bool,
    rules: &'static str,
    ip_masq: bool,
    forward_drop: bool,
    default_route: bool,
    /// By host, that is ill first.
    harmless: [Vec<&'static Harmless>; 2],
}

impl Shape {
    pub(super) fn random(random: &mut StdRng) -> Self {
        Self {
            mtu: *[1500, 1500, 1500, 9000, 1400].choose(random).unwrap(),
            real_wire: random.random(),
            fast_path: random.random_ratio(2, 3),
            rules: ["auto", "auto", "honour"].choose(random).unwrap(),
            ip_masq: random.random(),
            forward_drop: random.random_ratio(1, 3),
            default_route: random.random(),
            harmless: [(); 2].map(|()| {
                let count = random.random_range(0..=3);
                harmless::ALL.choose_multiple(random, count).collect()
            }),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            mtu,
            real_wire,
            fast_path,
            rules,
            ip_masq,
            forward_drop,
            default_route,
            harmless,
        } = self;
        write!(formatter, "MTU {mtu}, --rules {rules}")?;
        for (is, what) in [
            (*fast_path, "fast path"),
            (*real_wire, "wire imitated"),
            (*ip_masq, "--ip-masq"),
            (*forward_drop, "FORWARD DROP"),
            (*default_route, "default route"),
        ] {
            if is {
                write!(formatter, ", {what}")?;
            }
        }
        for (host, harmless) in ["here", "there"].iter().zip(harmless) {
            for what in harmless {
                write!(formatter, ", {} {host}", what.name)?;
            }
        }
        Ok(())
    }
}

/// What somebody who asks is told.
#[derive(Clone, Debug)]
pub(super) struct Said {
    /// `status` or `doctor`, and of which host.
    pub(super) by: String,
    pub(super) text: String,
    /// The command that mends it, of `doctor`.
    pub(super) mend: Option<String>,
}

pub(super) struct Ward {
    agents: Vec<Agent>,
    containers: Vec<Container>,
    etcd: Etcd,
    shape: Shape,
    lab: Lab,
}

impl Ward {
    pub(super) fn new(shape: Shape) -> Result<Self> {
        let lab = Lab::builder().hosts(3).mtu(shape.mtu).imitate_wire(shape.real_wire).start()?;
        let etcd = lab.start_etcd(NETWORK_CONFIG)?;
        let router = lab.host(0).address();
        let mut options = AgentOptions::new(AGENT, &etcd)
            .fast_path(shape.fast_path)
            .argument(PATIENCE)
            .argument(&format!("--rules={}", shape.rules));
        if shape.ip_masq {
            options = options.argument("--ip-masq");
        }
        let (mut agents, mut containers) = (Vec::new(), Vec::new());
        for host in &lab.hosts()[PATIENT..] {
            if shape.default_route {
                host.ip(["route", "add", "default", "via", &router.to_string()])?;
            }
            if shape.forward_drop {
                host.command("iptables").args(["-P", "FORWARD", "DROP"]).run()?;
            }
            agents.push(host.start_agent(&options)?);
            containers.push(host.add_container("c")?);
        }
        let ward = Self { agents, containers, etcd, shape, lab };
        for number in [PATIENT, OTHER] {
            for what in &ward.shape.harmless[number - PATIENT] {
                let script = ward.fill_for(number, what.make)?;
                ward.host(number).command("sh").args(["-ec", &script]).run()?;
            }
        }
        Ok(ward)
    }

    fn host(&self, number: usize) -> &Host {
        self.lab.host(number)
    }

    /// Puts in what a script or a word speaks of that is about the patient.
    pub(super) fn fill(&self, text: &str) -> Result<String> {
        self.fill_for(PATIENT, text)
    }

    fn fill_for(&self, number: usize, text: &str) -> Result<String> {
        let (host, other) = (self.host(number), self.host(PATIENT + OTHER - number));
        let (subnet, peer) = (host.subnet()?, other.subnet()?);
        let gateway = subnet.gateway.to_string();
        let network = |address: &str| format!("{}.0", address.rsplit_once('.').unwrap().0);
        let (own, peers) = (network(&gateway), network(&peer.gateway.to_string()));
        Ok([
            ("$PEER_ADDRESS", other.address().to_string()),
            ("$PEER_SUBNET", format!("{peers}/24")),
            ("$PEER_HALF", format!("{peers}/25")),
            ("$NUMBER", number.to_string()),
            ("$ADDRESS", host.address().to_string()),
            ("$SUBNET", format!("{own}/24")),
            ("$GATEWAY", gateway),
            ("$VETH", self.containers[number - PATIENT].veth().to_owned()),
            ("$TUNNEL", "overlay.1".to_owned()),
            ("$OVERLAY_MTU", (self.shape.mtu - 50).to_string()),
            ("$MTU", self.shape.mtu.to_string()),
            ("$PORT", PORT.to_owned()),
        ]
        .into_iter()
        .fold(text.to_owned(), |text, (name, value)| text.replace(name, &value)))
    }

    fn script(&self, place: Where, script: &str) -> Result<()> {
        let namespace = match place {
            Where::Host => self.host(PATIENT).namespace(),
            Where::Switch => self.lab.wire().switch(),
        };
        namespace.command("sh").args(["-c", &self.fill(script)?]).run().map(drop)
    }

    pub(super) fn make(&self, fault: &Fault) -> Result<()> {
        self.script(fault.place, fault.make)
    }

    /// What a mend has undone already cannot be undone again.
    pub(super) fn undo(&self, fault: &Fault) {
        self.script(fault.place, fault.undo).ok();
    }

    /// As the operator would, on the patient.
    pub(super) fn run(&self, mend: &str) -> Result<()> {
        self.host(PATIENT).command("sh").args(["-c", mend]).run().map(drop)
    }

    /// Which of those who should talk cannot, and why.
    pub(super) fn silent(&self) -> Vec<String> {
        let containers = &self.containers;
        let pairs = [
            ("container to container", containers[0].namespace(), &containers[1]),
            ("container from container", containers[1].namespace(), &containers[0]),
            ("host to container", self.host(PATIENT).namespace(), &containers[1]),
            ("host from container's host", self.host(OTHER).namespace(), &containers[0]),
        ];
        thread::scope(|scope| {
            let talks: Vec<_> = pairs
                .into_iter()
                .map(|(name, from, to)| {
                    scope.spawn(move || {
                        let outcome = talk(from, to.namespace(), to.address());
                        outcome.err().map(|error| format!("{name}: {error:#}"))
                    })
                })
                .collect();
            talks.into_iter().filter_map(|talk| talk.join().unwrap()).collect()
        })
    }

    fn doctor(&self, number: usize) -> Result<Vec<Said>> {
        let host = self.host(number);
        let command = host.doctor(AGENT, &self.etcd.endpoint());
        let output = host.namespace().wrap(command).output()?;
        let diagnosis: Value =
            serde_json::from_str(&output.stdout).with_context(|| format!("no JSON: {output:?}"))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let findings = diagnosis["findings"].as_array().context("no findings")?;
        let said = |finding: &Value| Said {
            by: format!("doctor of {number} ({})", text(&finding["check"])),
            text: text(&finding["problem"]),
            mend: Some(text(&finding["mend"])),
        };
        Ok(findings.iter().map(said).collect())
    }

    fn status(&self, number: usize) -> Result<Vec<Said>> {
        let status = self.agents[number - PATIENT].status()?;
        let problems = status["problems"].as_array().context("no problems")?;
        let said = |problem: &Value| Said {
            by: format!("status of {number}"),
            text: problem.as_str().unwrap_or_default().to_owned(),
            mend: None,
        };
        Ok(problems.iter().map(said).collect())
    }

    /// Everything that is said on both hosts.
    pub(super) fn said(&self) -> Result<Vec<Said>> {
        let mut all = Vec::new();
        for number in [PATIENT, OTHER] {
            all.extend(self.status(number)?);
        }
        for number in [PATIENT, OTHER] {
            all.extend(self.doctor(number)?);
        }
        Ok(all)
    }

    /// Everybody talks, and nothing is said.
    pub(super) fn is_well(&self, within: Duration) -> Result<()> {
        eventually(within, "that all is well, and called well", || {
            let silent = self.silent();
            ensure!(silent.is_empty(), "{silent:?}");
            let said = self.said()?;
            ensure!(said.is_empty(), "called ill: {said:#?}");
            Ok(())
        })
    }

    /// Everybody talks.
    pub(super) fn talks(&self, within: Duration) -> Result<()> {
        eventually(within, "that all talk", || {
            let silent = self.silent();
            ensure!(silent.is_empty(), "{silent:?}");
            Ok(())
        })
    }

    /// What is said until one of the words is among it, or time is over; and how long that took.
    pub(super) fn listen(
        &self,
        words: &[String],
        within: Duration,
    ) -> Result<(Vec<Said>, Duration, bool)> {
        let start = Instant::now();
        loop {
            let said = self.said()?;
            let named =
                said.iter().any(|said| words.iter().any(|word| said.text.contains(word.as_str())));
            if named || start.elapsed() > within {
                return Ok((said, start.elapsed(), named));
            }
            thread::sleep(Duration::from_millis(500));
        }
    }
}
