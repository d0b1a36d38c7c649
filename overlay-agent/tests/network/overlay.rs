//! Two hosts with an agent and a container each.

use std::time::Duration;

use xtask::lab::{Agent, AgentOptions, Builder, Container, Etcd, Lab, NETWORK_CONFIG, eventually};

/// For whatever takes milliseconds when all is well.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Fields are dropped in order: what runs on the lab before the lab.
pub(crate) struct Overlay {
    pub(crate) agents: Vec<Agent>,
    pub(crate) containers: Vec<Container>,
    pub(crate) options: AgentOptions,
    pub(crate) etcd: Etcd,
    pub(crate) lab: Lab,
}

impl Overlay {
    pub(crate) fn new() -> Self {
        Self::with(Lab::builder(), |options| options)
    }

    /// An agent on each host, ready, and a container behind it that every other host's agent knows and
    /// its own host has seen.
    pub(crate) fn with(builder: Builder, options: impl FnOnce(AgentOptions) -> AgentOptions) -> Self {
        let lab = builder.start().unwrap();
        let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
        let options = options(AgentOptions::new(env!("CARGO_BIN_EXE_overlay-agent"), &etcd));
        let agents: Vec<_> =
            lab.hosts().iter().map(|host| host.start_agent(&options).unwrap()).collect();
        let containers: Vec<_> =
            lab.hosts().iter().map(|host| host.add_container("c").unwrap()).collect();
        let overlay = Self { agents, containers, options, etcd, lab };
        overlay.settle();
        overlay
    }

    /// Waits until every agent has every peer and has seen its container.
    pub(crate) fn settle(&self) {
        let peers = self.lab.hosts().len() - 1;
        for (host, container) in self.lab.hosts().iter().zip(&self.containers) {
            // The host learns of a container by its first packet.
            let gateway = host.subnet().unwrap().gateway;
            container.ping(gateway).unwrap();
        }
        for agent in &self.agents {
            eventually(SOON, "peers and containers to be known", || {
                let status = agent.status()?;
                let known = status["peers"].as_array().map_or(0, Vec::len);
                anyhow::ensure!(known == peers, "{known} peers: {status}");
                anyhow::ensure!(status["endpoints"] != 0, "no endpoint: {status}");
                Ok(())
            })
            .unwrap();
        }
    }

    pub(crate) fn packets(&self, host: usize, hook: &str, reason: &str) -> u64 {
        self.agents[host].packets(hook, reason).unwrap()
    }

    /// Pings from the first host's container to the second's.
    pub(crate) fn ping(&self) {
        self.containers[0].ping(self.containers[1].address()).unwrap();
    }
}
