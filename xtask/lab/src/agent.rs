//! The agent under test, as a process on a host.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    ETCD_PREFIX, Etcd, Host, command::Cmd, ledger::Ledger, process::Process, wait::eventually,
    wire::UPLINK,
};

/// How to start an agent.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    binary: PathBuf,
    etcd_endpoints: String,
    etcd_prefix: String,
    fast_path: bool,
    /// Whether the host's address is named.
    public_ip: bool,
    bridge: Option<String>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

impl AgentOptions {
    /// This binary, this etcd, everything else as users have it.
    pub fn new(binary: impl Into<PathBuf>, etcd: &Etcd) -> Self {
        Self::with_endpoints(binary, &etcd.endpoint())
    }

    /// The same for etcd endpoints as a comma-separated list of URLs.
    pub fn with_endpoints(binary: impl Into<PathBuf>, etcd_endpoints: &str) -> Self {
        Self {
            binary: binary.into(),
            etcd_endpoints: etcd_endpoints.to_owned(),
            etcd_prefix: ETCD_PREFIX.to_owned(),
            fast_path: true,
            public_ip: true,
            bridge: None,
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// The binary.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Another prefix in etcd.
    #[must_use]
    pub fn etcd_prefix(mut self, prefix: &str) -> Self {
        prefix.clone_into(&mut self.etcd_prefix);
        self
    }

    /// `--fast-path on|off`; on otherwise.
    #[must_use]
    pub fn fast_path(mut self, on: bool) -> Self {
        self.fast_path = on;
        self
    }

    /// Without `--public-ip`: the agent uses whatever address its host's cable has.
    #[must_use]
    pub fn any_address(mut self) -> Self {
        self.public_ip = false;
        self
    }

    /// `--bridge NAME`; otherwise the agent finds it.
    #[must_use]
    pub fn bridge(mut self, name: &str) -> Self {
        self.bridge = Some(name.to_owned());
        self
    }

    /// One more argument of `run`.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// One more variable of its environment.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The command line on a host.
    pub fn command(&self, host: &Host) -> Cmd {
        let mut command = Cmd::new(&self.binary).args([
            "run",
            "--etcd-endpoints",
            &self.etcd_endpoints,
            "--etcd-prefix",
            &self.etcd_prefix,
            "--fast-path",
            if self.fast_path { "on" } else { "off" },
        ]);
        let has = |flag| self.arguments.iter().any(|argument| argument.starts_with(flag));
        if !has("--iface") {
            command = command.args(["--iface", UPLINK]);
        }
        if self.public_ip {
            command = command.args(["--public-ip", &host.address().to_string()]);
        }
        command = command.arg("--subnet-file").arg(host.subnet_file());
        command = command.arg("--state-file").arg(host.state_file());
        command = command.arg("--pin-path").arg(host.pins());
        command = command.arg("--socket").arg(host.agent_socket());
        // Tests count packets and capture frames: whoever wants questions among them says so.
        if !has("--peer-timeout") {
            command = command.arg("--peer-timeout=0");
        }
        if let Some(bridge) = &self.bridge {
            command = command.args(["--bridge", bridge]);
        }
        command = command.args(&self.arguments);
        for (name, value) in &self.environment {
            command = command.env(name, value);
        }
        host.namespace().wrap(command)
    }
}

/// A running agent: stopped when dropped.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    binary: PathBuf,
    socket: PathBuf,
    subnet_file: PathBuf,
    host: String,
}

impl Agent {
    pub(crate) fn spawn(ledger: &Ledger, host: &Host, options: &AgentOptions) -> Result<Self> {
        ensure!(
            options.binary.is_file(),
            "there is no agent at {}: `cargo xtask build` makes it",
            options.binary.display()
        );
        let process = Process::spawn(
            ledger,
            &format!("agent on {}", host.name()),
            &options.command(host),
            &host.directory().join("agent.log"),
        )?;
        Ok(Self {
            process,
            binary: options.binary.clone(),
            socket: host.agent_socket(),
            subnet_file: host.subnet_file(),
            host: host.name().to_owned(),
        })
    }

    /// Its process: signals, log, how it ended.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its log so far.
    pub fn log(&self) -> Result<String> {
        self.process.log()
    }

    /// Waits until it has written `subnet.env` and answers on its socket.
    pub fn wait_ready(&mut self, within: Duration) -> Result<()> {
        let what = format!("the agent on {} is ready", self.host);
        eventually(within, &what, || {
            self.process.check_running()?;
            if !self.subnet_file.exists() {
                bail!("there is no {} yet", self.subnet_file.display());
            }
            // It answers from its first moment on, and has a lease when it runs.
            let status = status(&self.binary, &self.socket)?;
            ensure!(!status["lease"].is_null(), "it still waits: {}", status["problems"]);
            Ok(())
        })
        .with_context(|| format!("the end of its log:\n{}", self.process.log_tail(20)))
    }

    /// Waits until its status is as wanted: `wanted` returns what is still missing.
    pub fn wait_status(
        &mut self,
        within: Duration,
        what: &str,
        wanted: impl Fn(&Value) -> Result<()>,
    ) -> Result<Value> {
        eventually(within, what, || {
            self.process.check_running()?;
            let status = status(&self.binary, &self.socket)?;
            wanted(&status)?;
            Ok(status)
        })
    }

    /// What `overlay-agent status --output json` says.
    pub fn status(&self) -> Result<Value> {
        status(&self.binary, &self.socket)
    }

    /// Its counters.
    pub fn counters(&self) -> Result<Vec<CounterReading>> {
        counters(&self.status()?)
    }

    /// How many packets it has counted at these hooks for these reasons, an empty text meaning any.
    pub fn packets(&self, hook: &str, reason: &str) -> Result<u64> {
        Ok(self
            .counters()?
            .iter()
            .filter(|counter| hook.is_empty() || counter.hook == hook)
            .filter(|counter| reason.is_empty() || counter.reason == reason)
            .map(|counter| counter.packets)
            .sum())
    }

    /// Asks it to end, and waits.
    pub fn stop(&mut self) -> Result<()> {
        self.process.stop().map(drop)
    }

    /// Kills it, as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().map(drop)
    }
}

/// One line of an agent's counters.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub struct CounterReading {
    /// Where it was counted.
    pub hook: String,
    /// What was decided.
    pub reason: String,
    /// How many packets.
    pub packets: u64,
    /// How many bytes.
    #[serde(default)]
    pub bytes: u64,
}

/// The counters in a status.
pub fn counters(status: &Value) -> Result<Vec<CounterReading>> {
    let counters = status.get("counters").context("the agent's status has no counters")?;
    serde_json::from_value(counters.clone())
        .with_context(|| format!("these are no counters of hook, reason, packets: {counters}"))
}

/// What the agent behind this socket says; its exit code tells how things are, not whether it spoke.
pub fn status(binary: &Path, socket: &Path) -> Result<Value> {
    let command = Cmd::new(binary)
        .arg("status")
        .arg("--socket")
        .arg(socket)
        .args(["--output", "json"])
        .deadline(Duration::from_secs(10));
    let output = command.output()?;
    serde_json::from_str(&output.stdout).with_context(|| {
        format!(
            "`{command}` printed no JSON ({}): {}{}",
            output.status, output.stdout, output.stderr
        )
    })
}
