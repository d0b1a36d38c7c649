//! Our agent, as users have it.

use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};
use overlay_lab::{Agent, AgentOptions, eventually};
use serde_json::{Value, json};

use super::{Contender, Site, Standing};

pub(super) const CONTENDER: Contender =
    Contender { name: super::OURS, about: "our agent, as users have it", usual: true, set_up };

const NETWORK: u8 = 60;

/// How long the agents may take to know each other and their containers.
const SETTLED_WITHIN: Duration = Duration::from_secs(15);

fn set_up(site: &Site<'_>) -> Result<Standing> {
    with_options(site, NETWORK, &site.agents.now, |options| options)
}

/// An agent on each host, in a network of its own, and a container that it knows.
pub(super) fn with_options(
    site: &Site<'_>,
    network: u8,
    agent: &Path,
    edit: impl FnOnce(AgentOptions) -> AgentOptions,
) -> Result<Standing> {
    with_policy(site, network, agent, &Value::Null, edit)
}

/// The same in a network that has a policy.
pub(super) fn with_policy(
    site: &Site<'_>,
    network: u8,
    agent: &Path,
    policy: &Value,
    edit: impl FnOnce(AgentOptions) -> AgentOptions,
) -> Result<Standing> {
    let prefix = format!("/bench/{network}");
    let range = format!("10.{network}.0.0/16");
    let config = json!({"Network": range, "Backend": {"Type": "vxlan"}, "Policy": policy});
    site.etcd.put(&format!("{prefix}/config"), &config.to_string())?;
    let options = AgentOptions::new(agent, site.etcd).etcd_prefix(&prefix);
    with_agents(site, &edit(options), 1)
}

/// An agent on each host that comes to know so many peers, and a container that it knows.
pub(super) fn with_agents(
    site: &Site<'_>,
    options: &AgentOptions,
    peers: usize,
) -> Result<Standing> {
    let agents =
        site.hosts.iter().map(|host| host.start_agent(options)).collect::<Result<Vec<_>>>()?;
    let containers =
        site.hosts.iter().map(|host| host.add_container("c")).collect::<Result<Vec<_>>>()?;
    for (host, container) in site.hosts.iter().zip(&containers) {
        // The host learns of a container by its first packet.
        container.ping(host.subnet()?.gateway)?;
    }
    for agent in &agents {
        eventually(SETTLED_WITHIN, "the agents know each other and their containers", || {
            settled(agent, peers)
        })?;
    }
    Standing::of_containers(agents, containers)
}

fn settled(agent: &Agent, peers: usize) -> Result<()> {
    let status = agent.status()?;
    let known = status["peers"].as_array().map_or(0, Vec::len);
    ensure!(known == peers, "the agent knows {known} peers instead of {peers}");
    ensure!(status["endpoints"] != 0, "the agent knows no container yet: {status}");
    Ok(())
}
