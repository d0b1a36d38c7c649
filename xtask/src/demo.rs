//! `demo`: the story of our first users, as one command: two Docker hosts, and their containers talk.

mod paths;
mod progress;
mod stream;

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use overlay_lab::{
    Agent, AgentOptions, Docker, ETCD_PREFIX, Etcd, Lab, NETWORK_CONFIG, command::Cmd, dump,
    eventually, interrupt, workspace,
};

use self::{
    paths::{Traffic, Way},
    progress::Steps,
    stream::Ends,
};
use crate::{lab, setup};

/// What the users of the first hour said.
const GREETING: &str = "Hello, it works !!";

/// Where the listener listens.
const PORT: &str = "5555";

/// How long packets may take to find their way once everything runs.
const REACHABLE_WITHIN: Duration = Duration::from_secs(15);

/// How long an agent may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// How many pings prove which way they took.
const PINGS: u32 = 5;

/// How much of a map or a list is enough to see what it is.
const LINES: usize = 8;

/// How wide such lines are.
const WIDTH: usize = 96;

/// The command line of `demo`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Leave it up to explore; `cargo xtask lab down` takes it down
    #[arg(long)]
    pub(crate) keep: bool,
    /// Length of the throughput measurement, in seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) seconds: u32,
    /// Run this agent instead of building one
    #[arg(long, value_name = "FILE")]
    pub(crate) agent: Option<PathBuf>,
}

/// Tells the story.
pub(crate) fn run(options: &Options) -> Result<()> {
    let is_built = workspace::target_dir()?.join("debug/overlay-agent").exists();
    let is_ready = options.agent.is_some() || is_built && setup::is_complete()?;
    println!("{}", how_long(is_ready, options.seconds));
    let agent_binary = lab::agent_binary(options.agent.as_deref())?;
    let steps = Steps::new();
    let lab = steps.run("Two hosts on a wire, 192.168.33.10 and 192.168.33.11", || {
        Lab::builder().name(lab::NAME).start()
    })?;
    let told = tell(&steps, &lab, &agent_binary, options);
    if let Err(error) = &told {
        eprintln!("\n{error:#}");
        for (log, text) in dump::complaints(&lab.ledger().record(), 10) {
            eprintln!("── {}\n{text}", log.display());
        }
    }
    if told.is_ok() && options.keep {
        println!(
            "\nIt is left up:\n  cargo xtask lab status\n  cargo xtask lab exec host-one -- \
             overlay-agent status\n  cargo xtask lab exec host-one -- docker ps\n  cargo xtask lab down"
        );
        return Ok(());
    }
    steps.run("Everything taken down again", || lab.down())?;
    if told.is_err() {
        interrupt::check()?;
        bail!("the demo failed; what it said is above");
    }
    println!("\n{:.0} s in all.", steps.elapsed().as_secs_f64());
    Ok(())
}

/// What to expect, as measured on two cores.
fn how_long(is_ready: bool, seconds: u32) -> String {
    let story = 10 + seconds;
    if is_ready {
        return format!("This takes about {story} s, and leaves nothing behind.");
    }
    format!(
        "What is missing is installed and built first, which takes about ten minutes once; the demo itself takes about \
         {story} s, and leaves nothing behind."
    )
}

fn tell(steps: &Steps, lab: &Lab, agent_binary: &Path, options: &Options) -> Result<()> {
    lab::link_tools(lab, agent_binary)?;
    let etcd = steps.run("etcd on host-one, with the network's configuration", || {
        lab.start_etcd(NETWORK_CONFIG)
    })?;
    Steps::show([format!("{ETCD_PREFIX}/config = {NETWORK_CONFIG}").as_str()]);

    let agent_options = AgentOptions::new(agent_binary, &etcd);
    let mut agents = steps.run("Our agent on both hosts", || start_agents(lab, &agent_options))?;
    for host in lab.hosts() {
        let line = format!("{} leased {}", host.name(), host.subnet()?.subnet());
        Steps::show([line.as_str()]);
    }

    let daemons =
        steps.run("Docker on both hosts", || lab::start_daemons(lab.hosts(), agent_binary))?;
    for host in lab.hosts() {
        let options = host.docker_options(agent_binary)?.join(" ");
        Steps::show([format!("{}: dockerd {options}", host.name()).as_str()]);
    }
    let [one, two] = daemons.as_slice() else {
        bail!("the demo is for two hosts");
    };

    greet(steps, one, two)?;
    let leases = steps.run("The leases in etcd", || leases(&etcd))?;
    Steps::show(leases.iter().map(String::as_str));
    let peers = steps.run("The peers in the kernel, as bpftool reads them", || peers(lab))?;
    Steps::show(peers.iter().map(String::as_str));
    show_counters(steps, &agents)?;

    // Two containers that stay, for everything that takes longer than a greeting.
    let (from, to) = steps.run("A container on each host that stays", || {
        for daemon in [one, two] {
            daemon.run("guest", &["tail", "-f", "/dev/null"])?;
        }
        let to = one.address("guest")?;
        eventually(REACHABLE_WITHIN, "the guests reach each other", || ping(two, to, 1))?;
        Ok((two, to))
    })?;

    let taken = steps.run("The tunnel devices down: the fast path alone carries them", || {
        fast_path_alone(lab, &agents, || ping(from, to, PINGS))
    })?;
    show_ways(lab, &taken);

    agents = steps.run("--fast-path off: the kernel's way carries them", || {
        restart_agents(agents, lab, &agent_options.clone().fast_path(false))
    })?;
    let taken = steps.run("  … as the counters show", || {
        eventually(REACHABLE_WITHIN, "the guests reach each other", || ping(from, to, 1))?;
        paths::prove(Way::Slow, &agents, PINGS.into(), || ping(from, to, PINGS))
    })?;
    show_ways(lab, &taken);

    agents = steps.run("--fast-path on again", || {
        let agents = restart_agents(agents, lab, &agent_options)?;
        eventually(REACHABLE_WITHIN, "the guests reach each other", || ping(from, to, 1))?;
        Ok(agents)
    })?;
    let title = format!("Throughput between the two containers, {} s", options.seconds);
    let throughput = steps.run(&title, || {
        let ends = Ends { lab, daemons: [two, one], name: "guest", to };
        stream::measure(&ends, options.seconds)
    })?;
    Steps::show(throughput.iter().map(String::as_str));

    if options.keep {
        lab.leave_standing()?;
    }
    drop((agents, daemons, etcd));
    Ok(())
}

fn start_agents(lab: &Lab, options: &AgentOptions) -> Result<Vec<Agent>> {
    let mut agents =
        lab.hosts().iter().map(|host| host.spawn_agent(options)).collect::<Result<Vec<_>>>()?;
    for agent in &mut agents {
        agent.wait_ready(READY_WITHIN)?;
    }
    Ok(agents)
}

fn restart_agents(agents: Vec<Agent>, lab: &Lab, options: &AgentOptions) -> Result<Vec<Agent>> {
    drop(agents);
    start_agents(lab, options)
}

/// The greeting itself: a listener on the first host, a sender on the second.
fn greet(steps: &Steps, one: &Docker, two: &Docker) -> Result<()> {
    let address = steps.run("A container on host-one listens", || {
        one.run("listener", &["nc", "-l", "-p", PORT])?;
        one.address("listener")
    })?;
    Steps::show([format!("nc -l -p {PORT}, at {address}").as_str()]);
    let heard = steps.run("A container on host-two sends", || {
        two.run("sender", &["tail", "-f", "/dev/null"])?;
        let say = format!("echo '{GREETING}' | nc -w 2 {address} {PORT}");
        eventually(REACHABLE_WITHIN, "the greeting is heard", || {
            // An attempt whose answer got lost may have been heard: look before repeating it.
            if one.logs("listener")?.is_empty() {
                two.exec("sender", &["sh", "-c", &say])?;
            }
            let heard = one.logs("listener")?;
            ensure!(heard.contains(GREETING), "the listener has heard «{heard}»");
            Ok(heard)
        })
    })?;
    Steps::show(["docker logs listener:", &format!("  {heard}")]);
    Ok(())
}

fn leases(etcd: &Etcd) -> Result<Vec<String>> {
    let leases = etcd.list(&format!("{ETCD_PREFIX}/subnets/"))?;
    ensure!(leases.len() == 2, "there should be two leases: {leases:?}");
    Ok(leases.into_iter().flat_map(|(key, value)| [key, format!("  {value}")]).collect())
}

fn peers(lab: &Lab) -> Result<Vec<String>> {
    let map = lab.host(0).pins().join("peers");
    let command = Cmd::new("bpftool").args(["map", "dump", "pinned"]).arg(&map);
    let mut lines = vec![command.to_string()];
    lines.extend(wrapped(&command.read()?));
    if lines.len() > LINES {
        lines.truncate(LINES);
        lines.push("…".to_owned());
    }
    Ok(lines)
}

/// The same words in fewer lines: bpftool gives every bracket one of its own.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let closes = word.starts_with([']', '}']);
        if !closes && line.chars().count() + word.chars().count() > WIDTH {
            lines.push(std::mem::take(&mut line));
        }
        if !(line.is_empty() || closes) {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

fn show_counters(steps: &Steps, agents: &[Agent]) -> Result<()> {
    let counted = steps.run("Packets that went through our programs", || {
        agents.iter().map(Agent::counters).collect::<Result<Vec<_>>>()
    })?;
    for (name, counters) in ["host-one", "host-two"].into_iter().zip(&counted) {
        for counter in counters.iter().filter(|counter| counter.packets > 0) {
            let line = format!(
                "{name}  {:<15} {:<20} {:>6} packets {:>8} bytes",
                counter.hook, counter.reason, counter.packets, counter.bytes
            );
            Steps::show([line.as_str()]);
        }
        let [fast, slow] = [Way::Fast, Way::Slow].map(|way| Traffic::of(way, counters));
        ensure!(
            fast.sent + slow.sent > 0 && fast.received + slow.received > 0,
            "the counters of {name} do not show packets in both directions"
        );
    }
    Ok(())
}

/// Takes the tunnel devices down while `traffic` runs: what arrives has come by the fast path.
fn fast_path_alone(
    lab: &Lab,
    agents: &[Agent],
    traffic: impl FnOnce() -> Result<()>,
) -> Result<Vec<Traffic>> {
    let devices = lab
        .hosts()
        .iter()
        .map(|host| {
            let shown = host.ip(["-o", "link", "show", "type", "vxlan"])?;
            shown
                .split(": ")
                .nth(1)
                .map(|name| (host, name.to_owned()))
                .with_context(|| format!("{} has no tunnel device", host.name()))
        })
        .collect::<Result<Vec<_>>>()?;
    paths::prove(Way::Fast, agents, PINGS.into(), || {
        for (host, device) in &devices {
            host.ip(["link", "set", device, "down"])?;
        }
        let result = traffic();
        for (host, device) in &devices {
            host.ip(["link", "set", device, "up"])?;
        }
        result
    })
}

fn show_ways(lab: &Lab, taken: &[Traffic]) {
    for (host, traffic) in lab.hosts().iter().zip(taken) {
        let line = format!(
            "{}: {} packets out, {} in, none by the other way",
            host.name(),
            traffic.sent,
            traffic.received
        );
        Steps::show([line.as_str()]);
    }
}

fn ping(from: &Docker, to: Ipv4Addr, count: u32) -> Result<()> {
    let ping = Cmd::new("ping").args(["-n", "-q", "-i", "0.05", "-W", "1", "-c"]);
    let ping = ping.args([count.to_string(), to.to_string()]);
    from.in_network_of("guest", ping)?.run().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_do_not_take_lines_of_their_own() {
        let dumped = "[{\n        \"key\": {\n            \"subnet\": [10,1,78,0\n            ],\n";
        assert_eq!(wrapped(dumped), ["[{ \"key\": { \"subnet\": [10,1,78,0],"]);
        let long = wrapped(&"word ".repeat(40));
        assert!(long.len() > 1 && long.iter().all(|line| line.len() <= WIDTH + 1), "{long:?}");
    }
}
