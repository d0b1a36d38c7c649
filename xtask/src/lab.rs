//! `lab up|down|status|exec`: a lab that is left standing for people to explore.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::{fs::symlink, process::CommandExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use comfy_table::{Table, presets};
use overlay_lab::{
    AgentOptions, BRIDGE, DOCKER_CLIENT, Docker, Host, Lab, NETWORK_CONFIG, STOP_WITHIN,
    agent_status,
    command::Cmd,
    docker_client, dump, enter, find_host,
    ledger::{HostRecord, Record},
    namespace_path,
    subnet::LeasedSubnet,
    teardown,
};

use crate::{build, setup};

/// The name of the one lab that stands, and the beginning of its namespaces' names.
pub(crate) const NAME: &str = "overlay";

/// The command line of `lab`.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Verb {
    /// Start hosts, etcd, agents and containers, and leave them standing
    Up(UpOptions),
    /// Take everything down, whatever state it is in
    Down,
    /// Show what stands
    Status,
    /// Run a command on a host, or in a container's network
    Exec(ExecOptions),
}

/// What plays the containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// Real Docker daemons
    Docker,
    /// Plain network namespaces behind a bridge
    Netns,
}

/// The command line of `lab up`.
#[derive(Debug, Clone, Args)]
pub(crate) struct UpOptions {
    /// How many hosts
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=50))]
    pub(crate) hosts: u16,
    /// What plays the containers
    #[arg(long, value_enum, default_value_t = Engine::Docker)]
    pub(crate) engine: Engine,
    /// How many containers on each host
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=200))]
    pub(crate) containers: u16,
    /// The wire's MTU
    #[arg(long, default_value_t = 1500)]
    pub(crate) mtu: u32,
    /// Make the uplinks behave like network cards on a real wire
    #[arg(long)]
    pub(crate) imitate_wire: bool,
    /// Start the agents with `--fast-path off`
    #[arg(long)]
    pub(crate) slow_path: bool,
    /// Run this agent instead of building one
    #[arg(long, value_name = "FILE")]
    pub(crate) agent: Option<PathBuf>,
}

/// The command line of `lab exec`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ExecOptions {
    /// Which host (host-one), or which container on it (host-one/c1)
    pub(crate) host: String,
    /// What to run; docker and overlay-agent talk to that host's
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

/// Does what the command line says.
pub(crate) fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Up(options) => up(&options),
        Verb::Down => down(),
        Verb::Status => status(),
        Verb::Exec(options) => exec(&options),
    }
}

fn up(options: &UpOptions) -> Result<()> {
    let agent_binary = agent_binary(options.agent.as_deref())?;
    let lab = Lab::builder()
        .name(NAME)
        .hosts(options.hosts.into())
        .mtu(options.mtu)
        .imitate_wire(options.imitate_wire)
        .start()?;
    let started = start_all(&lab, options, &agent_binary);
    if started.is_err() {
        for (log, text) in dump::complaints(&lab.ledger().record(), 10) {
            eprintln!("── {}\n{text}", log.display());
        }
    }
    started?;
    status()?;
    println!("\ncargo xtask lab exec host-one -- overlay-agent status");
    if let Some(ping) = suggested_ping(&lab.ledger().record()) {
        println!("{ping}");
    }
    println!("cargo xtask lab down");
    Ok(())
}

/// The first thing to try: from the first container to the last.
fn suggested_ping(record: &Record) -> Option<String> {
    let [first, .., last] = record.hosts.as_slice() else {
        return None;
    };
    let from = containers(record, first);
    let to = containers(record, last);
    let (from, _) = from.first()?.split_once('=')?;
    let (_, to) = to.last()?.split_once('=')?;
    Some(format!("cargo xtask lab exec {}/{from} -- ping {to}", first.name))
}

/// The agent to run: the one that was asked for, otherwise the one that is built now.
pub(crate) fn agent_binary(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(given) = given {
        return fs::canonicalize(given)
            .with_context(|| format!("there is no agent at {}", given.display()));
    }
    setup::ensure()?;
    build::object()?;
    build::agent(false)
}

/// Everything on top of the hosts; only when all of it stands is the lab left standing, so that a
/// failure takes down what was made.
fn start_all(lab: &Lab, options: &UpOptions, agent_binary: &Path) -> Result<()> {
    link_tools(lab, agent_binary)?;
    let etcd = lab.start_etcd(NETWORK_CONFIG)?;
    let agent_options = AgentOptions::new(agent_binary, &etcd).fast_path(!options.slow_path);
    let mut agents = Vec::new();
    for host in lab.hosts() {
        agents.push(host.spawn_agent(&agent_options)?);
    }
    for agent in &mut agents {
        agent.wait_ready(STOP_WITHIN)?;
    }
    let mut daemons = Vec::new();
    let mut namespaces = Vec::new();
    match options.engine {
        Engine::Docker => {
            daemons = start_daemons(lab.hosts(), agent_binary)?;
            for docker in &daemons {
                for number in 1..=options.containers {
                    docker.run(&format!("c{number}"), &["tail", "-f", "/dev/null"])?;
                }
            }
        }
        Engine::Netns => {
            for host in lab.hosts() {
                for number in 1..=options.containers {
                    namespaces.push(host.add_container(&format!("c{number}"))?);
                }
            }
        }
    }
    lab.leave_standing()?;
    drop((etcd, agents, daemons, namespaces));
    Ok(())
}

/// Starts a Docker daemon on every host, all at the same time.
pub(crate) fn start_daemons(hosts: &[Host], agent_binary: &Path) -> Result<Vec<Docker>> {
    let mut daemons = hosts
        .iter()
        .map(|host| host.spawn_docker(&host.docker_options(agent_binary)?))
        .collect::<Result<Vec<_>>>()?;
    for docker in &mut daemons {
        docker.wait_ready()?;
    }
    Ok(daemons)
}

/// The programs that `lab exec` puts first in `PATH`.
pub(crate) fn link_tools(lab: &Lab, agent_binary: &Path) -> Result<()> {
    let directory = tools(&lab.directory());
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    for (name, program) in [("overlay-agent", agent_binary), ("docker", Path::new(DOCKER_CLIENT))] {
        let link = directory.join(name);
        symlink(program, &link).with_context(|| format!("cannot link {}", link.display()))?;
    }
    Ok(())
}

fn tools(directory: &Path) -> PathBuf {
    directory.join("bin")
}

fn standing() -> Result<Option<Record>> {
    Record::read(&Record::path(NAME)?)
}

fn standing_or_say() -> Result<Record> {
    standing()?.context("no lab is up; `cargo xtask lab up` starts one")
}

fn down() -> Result<()> {
    let Some(record) = standing()? else {
        teardown::sweep()?;
        println!("no lab is up");
        return Ok(());
    };
    if let Some(owner) = record.owner {
        ensure!(
            !owner.is_running(),
            "process {} is using the lab and takes it down when it ends",
            owner.pid
        );
    }
    teardown::teardown(&record)?;
    teardown::sweep()?;
    println!("the lab is down");
    Ok(())
}

fn status() -> Result<()> {
    let record = standing_or_say()?;
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["HOST", "ADDRESS", "SUBNET", "AGENT", "DOCKER", "CONTAINERS"]);
    for host in &record.hosts {
        let subnet = LeasedSubnet::read(&host.directory.join("subnet.env"))
            .map_or_else(|_none| "-".to_owned(), |env| env.subnet());
        table.add_row([
            host.name.clone(),
            host.address.to_string(),
            subnet,
            agent_state(&record, host),
            process_state(&record, &format!("dockerd on {}", host.name)),
            containers(&record, host).join(" "),
        ]);
    }
    println!("{table}");
    println!("etcd        {}", process_state(&record, "etcd"));
    println!("files       {}", record.directory.display());
    println!("pins        {}", record.pins.display());
    println!("namespaces  {}", record.namespaces.join(" "));
    Ok(())
}

fn agent_state(record: &Record, host: &HostRecord) -> String {
    let state = process_state(record, &format!("agent on {}", host.name));
    let binary = tools(&record.directory).join("overlay-agent");
    let answers = agent_status(&binary, &host.directory.join("agent.sock")).is_ok();
    if state == "running" && !answers { "running, does not answer".to_owned() } else { state }
}

fn process_state(record: &Record, what: &str) -> String {
    let state = record
        .processes
        .iter()
        .rfind(|process| process.what == what)
        .map(|process| if process.id.is_running() { "running" } else { "ended" });
    state.unwrap_or("-").to_owned()
}

/// Names and addresses of a host's containers, of either engine.
fn containers(record: &Record, host: &HostRecord) -> Vec<String> {
    let prefix = format!("{}-", host.namespace);
    let plain = record
        .namespaces
        .iter()
        .filter_map(|namespace| namespace.strip_prefix(&prefix).map(|name| (name, namespace)))
        .map(|(name, namespace)| {
            let shown = enter(
                &namespace_path(namespace),
                Cmd::new("ip").args(["-brief", "-4", "address", "show", "dev", "eth0"]),
            )
            .read()
            .unwrap_or_default();
            let address = shown.split_whitespace().nth(2).unwrap_or("-");
            format!("{name}={}", address.split('/').next().unwrap_or(address))
        });
    let socket = docker_socket(host);
    let mut all: Vec<String> = plain.collect();
    if socket.exists() {
        let names = docker_client(&socket)
            .args(["ps", "--format", "{{.Names}}"])
            .read()
            .unwrap_or_default();
        let mut docked: Vec<String> = names
            .lines()
            .map(|name| {
                let format = "{{.NetworkSettings.IPAddress}}";
                let address =
                    docker_client(&socket).args(["inspect", "--format", format, name]).read();
                format!("{name}={}", address.unwrap_or_else(|_gone| "-".to_owned()))
            })
            .collect();
        docked.sort();
        all.extend(docked);
    }
    all
}

fn docker_socket(host: &HostRecord) -> PathBuf {
    host.directory.join("docker/docker.sock")
}

/// Becomes the command: its terminal, its signals and its exit code are the user's.
fn exec(options: &ExecOptions) -> Result<()> {
    let record = standing_or_say()?;
    let (host, container) = match options.host.split_once('/') {
        Some((host, container)) => (host, Some(container)),
        None => (options.host.as_str(), None),
    };
    let host = find_host(&record, host)?;
    let network = match container {
        None => namespace_path(&host.namespace),
        Some(container) => container_network(host, container)?,
    };
    let [program, arguments @ ..] = options.command.as_slice() else {
        bail!("there is no command to run");
    };
    let mut path = tools(&record.directory).into_os_string();
    for rest in [":/usr/sbin:/usr/bin:/sbin:/bin:".into(), env::var_os("PATH").unwrap_or_default()]
    {
        path.push::<OsString>(rest);
    }
    let command = enter(&network, Cmd::new(program).args(arguments))
        .env("PATH", path)
        .env("DOCKER_HOST", format!("unix://{}", docker_socket(host).display()))
        .env("OVERLAY_SOCKET", host.directory.join("agent.sock"))
        .env("OVERLAY_PIN_PATH", &host.pins)
        .env("OVERLAY_BRIDGE", BRIDGE);
    let error = command.to_std().stdin(std::process::Stdio::inherit()).exec();
    Err(error).with_context(|| format!("cannot run `{command}`"))
}

fn container_network(host: &HostRecord, container: &str) -> Result<PathBuf> {
    let plain = namespace_path(&format!("{}-{container}", host.namespace));
    if plain.exists() {
        return Ok(plain);
    }
    let pid = docker_client(&docker_socket(host))
        .args(["inspect", "--format", "{{.State.Pid}}", container])
        .read()
        .with_context(|| format!("there is no container {container} on {}", host.name))?;
    ensure!(pid != "0", "container {container} on {} does not run", host.name);
    Ok(Path::new("/proc").join(pid).join("ns/net"))
}
