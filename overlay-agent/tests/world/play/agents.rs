//! Our agents, by a peers file.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use overlay_lab::{AgentOptions, Host, Lab, eventually};
use serde_json::Value;

use super::Mode;
use crate::shape::{Element, NETWORK, World, subnet};

/// For whatever takes a second when all is well; three datapaths and a colleague may be at it.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// How each host's agent is started.
pub(crate) fn options(world: &World, mode: Mode, lab: &Lab) -> Result<Vec<AgentOptions>> {
    let hosts = 0..world.hosts;
    let mut text = format!("network = \"{NETWORK}\"\n");
    for host in hosts.clone() {
        let (address, subnet) = (world.public(host), subnet(host));
        write!(text, "[[host]]\npublic-ip = \"{address}\"\nsubnet = \"{subnet}/24\"\n")?;
    }
    let file = lab.directory().join("peers.toml");
    fs::write(&file, text)?;
    let options = |host| {
        // Nobody listens there, and nobody must ask.
        let options =
            AgentOptions::with_endpoints(env!("CARGO_BIN_EXE_overlay-agent"), "http://127.0.0.1:1")
                .any_address()
                .fast_path(mode == Mode::Fast)
                .argument(&format!("--public-ip={}", world.public(host)))
                .argument(&format!("--peers={}", file.display()));
        // When `auto` has seen a rule is another question.
        let is_honoured = world.has_firewall() || world.has(Element::HonourRules);
        let options = if is_honoured { options.argument("--rules=honour") } else { options };
        if world.has(Element::IpMasq { host }) {
            options.argument("--ip-masq").argument("--ip-masq-fully-random-disable")
        } else {
            options
        }
    };
    Ok(hosts.map(options).collect())
}

/// What an agent says of itself, without a process for asking.
pub(crate) fn status(host: &Host) -> Result<Value> {
    let mut socket = UnixStream::connect(host.agent_socket()).context("no agent answers")?;
    socket.set_read_timeout(Some(SOON))?;
    socket.write_all(b"GET /status HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    serde_json::from_str(body).context("no JSON")
}

/// Waits until an agent knows its peers and containers, and has looked at everything twice more since now.
pub(crate) fn settle(host: &Host, peers: usize, endpoints: u64) -> Result<()> {
    let verifications = |status: &Value| status["verifications"].as_u64().unwrap_or_default();
    let mut before = None;
    eventually(SOON, &format!("the agent on {} to have settled", host.name()), || {
        let status = status(host)?;
        ensure!(status["ready"] == true, "not ready: {}", status["problems"]);
        let now = verifications(&status);
        let before = *before.get_or_insert(now);
        ensure!(now >= before + 2, "it has not looked twice");
        let known = status["peers"].as_array().map_or(0, Vec::len);
        ensure!(known == peers, "{known} peers of {peers}");
        ensure!(
            status["endpoints"].as_u64() == Some(endpoints),
            "{} endpoints of {endpoints}: {status}",
            status["endpoints"]
        );
        Ok(())
    })
}

/// Waits for the rules that a task of the agent's makes, of which this is the last.
pub(crate) fn wait_for_firewall(host: &Host) -> Result<()> {
    eventually(SOON, "the firewall's rules", || {
        let rules = host.command("iptables").args(["-w", "-S", "FORWARD"]).read()?;
        ensure!(rules.contains(&format!("-d {NETWORK} -m comment")), "{rules}");
        Ok(())
    })
}
