//! A host: a network namespace with a cable, and what a real one keeps in `/run`.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{
    Agent, AgentOptions, BRIDGE, Capture, Container, Docker,
    command::Cmd,
    ledger::{HostRecord, Ledger},
    namespace::Namespace,
    subnet::LeasedSubnet,
    wire::{UPLINK, Wire},
};

/// How long an agent may take until it is ready; etcd and the network are local.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// A host of a lab.
#[derive(Debug)]
pub struct Host {
    name: String,
    namespace: Arc<Namespace>,
    address: Ipv4Addr,
    directory: PathBuf,
    pins: PathBuf,
    /// The bridge of its plain containers.
    bridge: String,
    /// How many plain containers it has had: their addresses count up from the bridge's.
    containers: AtomicU32,
    ledger: Ledger,
}

impl Host {
    /// Makes one, and plugs it in.
    pub(crate) fn create(
        ledger: &Ledger,
        wire: &Wire,
        name: &str,
        address: Ipv4Addr,
    ) -> Result<Self> {
        let record = ledger.record();
        let directory = record.directory.join(name);
        let pins = record.pins.join(name);
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let namespace = Namespace::create(ledger, name)?;
        namespace.sysctl("net.ipv4.ip_forward", "1")?;
        wire.plug(&namespace, address)?;
        ledger.change(|record| {
            record.hosts.push(HostRecord {
                name: name.to_owned(),
                namespace: namespace.name().to_owned(),
                address,
                directory: directory.clone(),
                pins: pins.clone(),
            });
        })?;
        Ok(Self {
            name: name.to_owned(),
            namespace: Arc::new(namespace),
            address,
            directory,
            pins,
            bridge: BRIDGE.to_owned(),
            containers: AtomicU32::new(0),
            ledger: ledger.clone(),
        })
    }

    /// The same host for another agent, which keeps its files and pins elsewhere, and whose containers are behind a
    /// bridge of their own.
    pub fn beside(&self, name: &str) -> Result<Self> {
        let directory = self.directory.join(name);
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        Ok(Self {
            name: format!("{}-{name}", self.name),
            namespace: Arc::clone(&self.namespace),
            address: self.address,
            directory,
            pins: self.pins.with_file_name(format!("{}-{name}", self.name)),
            bridge: format!("br-{name}"),
            containers: AtomicU32::new(0),
            ledger: self.ledger.clone(),
        })
    }

    /// Its name, `host-one`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its address on the wire.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The record of the lab it belongs to.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Its folder: what would be in `/run` and `/var/lib`, and the logs.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where its agent pins maps and programs. The agent makes this folder itself.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// The bridge that its plain containers are behind.
    pub fn bridge(&self) -> &str {
        &self.bridge
    }

    /// The `subnet.env` that its agent writes.
    pub fn subnet_file(&self) -> PathBuf {
        self.directory.join("subnet.env")
    }

    /// What its agent is known by at its next start.
    pub fn state_file(&self) -> PathBuf {
        self.directory.join("state.env")
    }

    /// The socket that its agent answers on.
    pub fn agent_socket(&self) -> PathBuf {
        self.directory.join("agent.sock")
    }

    /// What `subnet.env` says now.
    pub fn subnet(&self) -> Result<LeasedSubnet> {
        LeasedSubnet::read(&self.subnet_file())
    }

    /// A command that runs on it.
    pub fn command(&self, program: impl AsRef<Path>) -> Cmd {
        self.namespace.command(program)
    }

    /// `ip` on it; returns what it printed.
    pub fn ip<I: IntoIterator<Item = S>, S: AsRef<str>>(&self, args: I) -> Result<String> {
        self.namespace.ip(args)
    }

    /// Starts an agent and waits until it is ready.
    pub fn start_agent(&self, options: &AgentOptions) -> Result<Agent> {
        let mut agent = self.spawn_agent(options)?;
        agent.wait_ready(READY_WITHIN)?;
        Ok(agent)
    }

    /// Starts an agent, without waiting.
    pub fn spawn_agent(&self, options: &AgentOptions) -> Result<Agent> {
        Agent::spawn(&self.ledger, self, options)
    }

    /// Removes what an agent left behind, and returns what it says it has removed.
    pub fn clean_up(&self, agent_binary: impl AsRef<Path>) -> Result<String> {
        self.command(agent_binary)
            .args(["cleanup", "--pin-path"])
            .arg(self.pins())
            .arg("--subnet-file")
            .arg(self.subnet_file())
            .arg("--socket")
            .arg(self.agent_socket())
            .read()
    }

    /// `doctor` of this host, as JSON; to be run on it.
    pub fn doctor(&self, agent_binary: impl AsRef<Path>, etcd_endpoints: &str) -> Cmd {
        Cmd::new(agent_binary.as_ref())
            .args(["doctor", "--output", "json", "--etcd-endpoints", etcd_endpoints])
            .arg("--socket")
            .arg(self.agent_socket())
            .arg("--pin-path")
            .arg(self.pins())
            .arg("--subnet-file")
            .arg(self.subnet_file())
    }

    /// Captures what goes over its cable, from now on; see [`Capture::start`].
    pub fn capture(&self, filter: &str) -> Result<Capture> {
        Capture::start(&self.ledger, &self.namespace, UPLINK, filter)
    }

    /// Makes the pinned maps look as an agent of another ABI version would have left them. No agent may run:
    /// it would mend them.
    pub fn pretend_other_abi(&self) -> Result<()> {
        let config = self.pins.join("config");
        let bpftool = |action: &[&str]| self.command("bpftool").args(action).arg(&config);
        let dump = bpftool(&["-j", "map", "dump", "pinned"]).read()?;
        let dump: Value = serde_json::from_str(&dump).context("a dump is not JSON")?;
        let bytes = dump[0]["value"].as_array().context("the settings cannot be read")?;
        let mut bytes: Vec<_> = bytes.iter().filter_map(Value::as_str).collect();
        // The version is the first of the settings.
        *bytes.first_mut().context("there are no settings")? = "0x63";
        bpftool(&["map", "update", "pinned"])
            .args(["key", "0", "0", "0", "0", "value"])
            .args(&bytes)
            .run()
            .map(drop)
    }

    /// Adds a plain container: a namespace behind the bridge that Docker would make, with the next
    /// address of the leased subnet. The agent must have written `subnet.env` before.
    pub fn add_container(&self, name: &str) -> Result<Container> {
        let number = self.containers.fetch_add(1, Ordering::Relaxed) + 1;
        Container::create(&self.ledger, self, name, number)
    }

    /// Starts a Docker daemon with the options that `overlay-agent docker-opts` makes of
    /// `subnet.env`.
    pub fn start_docker(&self, agent_binary: &Path) -> Result<Docker> {
        let mut docker = Docker::spawn(&self.ledger, self, &self.docker_options(agent_binary)?)?;
        docker.wait_ready()?;
        Ok(docker)
    }

    /// Starts a Docker daemon with options of your own, without waiting for it.
    pub fn spawn_docker(&self, options: &[String]) -> Result<Docker> {
        Docker::spawn(&self.ledger, self, options)
    }

    /// The options for the Docker daemon, as a drop-in gets them from `overlay-agent docker-opts`.
    pub fn docker_options(&self, agent_binary: &Path) -> Result<Vec<String>> {
        self.docker_options_with(agent_binary, &[])
    }

    /// The same with arguments of your own.
    pub fn docker_options_with(
        &self,
        agent_binary: &Path,
        arguments: &[&str],
    ) -> Result<Vec<String>> {
        let file = self.directory.join("docker_opts.env");
        Cmd::new(agent_binary)
            .arg("docker-opts")
            .arg("-f")
            .arg(self.subnet_file())
            .arg("-d")
            .arg(&file)
            .arg("-c")
            .args(arguments)
            .run()?;
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let options = parse_docker_options(&text)
            .with_context(|| format!("there is no DOCKER_OPTS in {}: {text}", file.display()))?;
        Ok(options)
    }
}

fn parse_docker_options(text: &str) -> Option<Vec<String>> {
    let value = text.lines().find_map(|line| line.strip_prefix("DOCKER_OPTS="))?;
    Some(value.trim_matches('"').split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_options_are_read_from_the_combined_line() {
        let options =
            parse_docker_options("DOCKER_OPTS=\" --bip=10.1.5.1/24 --ip-masq=true --mtu=1450\"\n");
        assert_eq!(options.unwrap(), ["--bip=10.1.5.1/24", "--ip-masq=true", "--mtu=1450"]);
    }
}
