//! Two hosts with an agent and a container each.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use overlay_lab::{
    Agent, AgentOptions, Builder, Container, Etcd, Lab, NETWORK_CONFIG, Process, eventually,
};

/// For whatever takes milliseconds when all is well.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Fields are dropped in order: what runs on the lab before the lab.
pub(crate) struct Overlay {
    pub(crate) agents: Vec<Agent>,
    pub(crate) containers: Vec<Container>,
    pub(crate) options: AgentOptions,
    /// None where the agents go by a file.
    pub(crate) etcd: Option<Etcd>,
    pub(crate) lab: Lab,
}

impl Overlay {
    pub(crate) fn new() -> Self {
        Self::with(Lab::builder(), |options| options)
    }

    /// An agent on each host, ready, and a container behind it that every other host's agent knows and
    /// its own host has seen.
    pub(crate) fn with(
        builder: Builder,
        options: impl FnOnce(AgentOptions) -> AgentOptions,
    ) -> Self {
        Self::of(NETWORK_CONFIG, builder, options)
    }

    /// The same with a network config of its own.
    pub(crate) fn of(
        config: &str,
        builder: Builder,
        options: impl FnOnce(AgentOptions) -> AgentOptions,
    ) -> Self {
        let lab = builder.start().unwrap();
        let etcd = lab.start_etcd(config).unwrap();
        let options = options(AgentOptions::new(env!("CARGO_BIN_EXE_overlay-agent"), &etcd));
        Self::on(lab, Some(etcd), options)
    }

    /// The same with a peers file for etcd, which is too much for a machine without hardware support.
    pub(crate) fn by_file(options: impl FnOnce(AgentOptions) -> AgentOptions) -> Self {
        let lab = Lab::builder().start().unwrap();
        let options = options(peers_file(&lab));
        Self::on(lab, None, options)
    }

    pub(crate) fn on(lab: Lab, etcd: Option<Etcd>, options: AgentOptions) -> Self {
        let agents: Vec<_> =
            lab.hosts().iter().take(2).map(|host| host.start_agent(&options).unwrap()).collect();
        let containers: Vec<_> =
            lab.hosts().iter().take(2).map(|host| host.add_container("c").unwrap()).collect();
        let overlay = Self { agents, containers, options, etcd, lab };
        overlay.settle();
        overlay
    }

    pub(crate) const fn etcd(&self) -> &Etcd {
        self.etcd.as_ref().unwrap()
    }

    /// Waits until every agent has every peer and has seen its container.
    pub(crate) fn settle(&self) {
        for (host, container) in self.lab.hosts().iter().zip(&self.containers) {
            let gateway = host.subnet().unwrap().gateway;
            eventually(SOON, "the gateway to answer", || container.ping(gateway)).unwrap();
        }
        for agent in &self.agents {
            eventually(SOON, "peers and containers to be known", || {
                let status = agent.status()?;
                let known = status["peers"].as_array().map_or(0, Vec::len);
                anyhow::ensure!(known >= self.agents.len() - 1, "{known} peers: {status}");
                anyhow::ensure!(status["endpoints"] != 0, "no endpoint: {status}");
                anyhow::ensure!(status["problems"] == serde_json::json!([]), "{status}");
                Ok(())
            })
            .unwrap();
        }
    }

    /// The container on the first host, and the one on the second.
    pub(crate) fn pair(&self) -> [&Container; 2] {
        [&self.containers[0], &self.containers[1]]
    }

    /// Pings from the first host's container to the second's.
    pub(crate) fn ping(&self) {
        self.containers[0].ping(self.containers[1].address()).unwrap();
    }

    pub(crate) fn packets(&self, hook: &str, reason: &str) -> [u64; 2] {
        [0, 1].map(|host| self.agents[host].packets(hook, reason).unwrap())
    }

    /// Watches a counter on both hosts from now on.
    pub(crate) fn rise<'a>(&self, hook: &'a str, reason: &'a str) -> Rise<'a> {
        Rise { hook, reason, start: self.packets(hook, reason) }
    }

    /// Bits per second of a TCP stream from the first container to the second.
    pub(crate) fn tcp_throughput(&self, seconds: u64) -> f64 {
        let report = self.iperf(&["-t", &seconds.to_string()]);
        report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap()
    }

    /// What `iperf3` reports, run with these arguments from the first container to the second.
    pub(crate) fn iperf(&self, arguments: &[&str]) -> serde_json::Value {
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        let [client, server] = self.pair();
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let log = self.lab.directory().join(format!("iperf3-server-{run}.log"));
        let command = server.command("iperf3").args(["-s", "-1", "--forceflush"]);
        let mut listening =
            Process::spawn(self.lab.ledger(), "iperf3 server", &command, &log).unwrap();
        eventually(SOON, "the iperf3 server to listen", || {
            listening.check_running()?;
            anyhow::ensure!(listening.log()?.contains("listening"), "it does not yet");
            Ok(())
        })
        .unwrap();
        let json = client
            .command("iperf3")
            .args(["-J", "-c", &server.address().to_string()])
            .args(arguments)
            .deadline(Duration::from_mins(1))
            .read()
            .unwrap();
        listening.stop().ok();
        serde_json::from_str(&json).unwrap()
    }
}

/// A counter on both hosts since some moment.
pub(crate) struct Rise<'a> {
    hook: &'a str,
    reason: &'a str,
    pub(crate) start: [u64; 2],
}

impl Rise<'_> {
    pub(crate) fn of(&self, overlay: &Overlay) -> [u64; 2] {
        let now = overlay.packets(self.hook, self.reason);
        [now[0] - self.start[0], now[1] - self.start[1]]
    }
}

/// The network address of a /24.
pub(crate) fn network_of(address: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, _] = address.octets();
    Ipv4Addr::new(a, b, c, 0)
}

/// Agents that go by a file in which every host has a subnet.
pub(crate) fn peers_file(lab: &Lab) -> AgentOptions {
    let hosts = (1..).zip(lab.hosts());
    let text = hosts.fold("network = \"10.1.0.0/16\"\n".to_owned(), |text, (number, host)| {
        let address = host.address();
        text + &format!("[[host]]\npublic-ip = \"{address}\"\nsubnet = \"10.1.{number}.0/24\"\n")
    });
    let file = lab.directory().join("peers.toml");
    std::fs::write(&file, text).unwrap();
    // Nobody listens there, and nobody must ask.
    AgentOptions::with_endpoints(env!("CARGO_BIN_EXE_overlay-agent"), "http://127.0.0.1:1")
        .argument(&format!("--peers={}", file.display()))
}
