//! What is measured side by side: each contender is a file that says how it is set up. It is torn down
//! by dropping what it returns, and by the lab, which knows everything that was made on it.

mod collect_metadata;
mod flannel;
mod host;
mod ours;
mod ours_before;
mod ours_honour;
mod ours_many;
mod ours_policy;
mod ours_slow;
mod program;
mod redirect;
mod route;
mod swarm;

use std::{fmt, fs, net::Ipv4Addr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use overlay_lab::{
    Agent, Container, Etcd, Host, Lab, Namespace, command::Cmd, enter, eventually, namespace_path,
};

/// How long packets may take to find their way once everything runs.
const REACHABLE_WITHIN: Duration = Duration::from_secs(15);

/// The room that VXLAN over IPv4 takes.
const OVERHEAD: u32 = 50;

/// All of them, in the order of a report's columns. A new one is a file and a line here.
pub(super) const ALL: [Contender; 12] = [
    host::CONTENDER,
    redirect::CONTENDER,
    route::CONTENDER,
    flannel::CONTENDER,
    swarm::CONTENDER,
    collect_metadata::CONTENDER,
    ours_slow::CONTENDER,
    ours_before::CONTENDER,
    ours::CONTENDER,
    ours_honour::CONTENDER,
    ours_policy::CONTENDER,
    ours_many::CONTENDER,
];

/// Against these every other one is compared.
pub(super) const HOST: &str = "host";
/// See [`HOST`].
pub(super) const FLANNEL: &str = "flannel";
/// Docker's own overlay, which ours is compared with where both are measured.
pub(super) const SWARM: &str = "swarm";
/// The one that has goals to reach.
pub(super) const OURS: &str = "ours";
/// What a program outside of the container can reach at best.
pub(super) const CEILING: &str = "redirect";
/// Ours with as many leases as there can be.
pub(super) const OURS_MANY: &str = "ours-65536";
/// Ours where the firewall's rules hold.
pub(super) const OURS_HONOUR: &str = "ours-honour";
/// Measured wherever there is an agent of before.
pub(super) const OURS_BEFORE: &str = "ours-before";

/// A way for packets to go from host to host.
#[derive(Clone, Copy)]
pub(super) struct Contender {
    /// Its name, also on the command line.
    pub(super) name: &'static str,
    /// What it is, in a line.
    pub(super) about: &'static str,
    /// Whether it is measured without being named.
    usual: bool,
    set_up: fn(&Site<'_>) -> Result<Standing>,
}

/// Where a contender is set up: two hosts of its own, on the wire that all share.
pub(super) struct Site<'lab> {
    /// The client's host and the server's.
    pub(super) hosts: [&'lab Host; 2],
    /// The wire's MTU.
    pub(super) mtu: u32,
    /// For contenders that take leases.
    pub(super) etcd: &'lab Etcd,
    /// Our agent's executables.
    pub(super) agents: &'lab Agents,
}

/// Executables of our agent.
#[derive(Debug, Clone)]
pub(super) struct Agents {
    /// The one that is measured.
    pub(super) now: PathBuf,
    /// Of another version, to compare it with.
    pub(super) before: Option<PathBuf>,
}

/// A contender that is set up: traffic can flow as long as this value lives.
pub(super) struct Standing {
    places: [Place; 2],
    /// Dropped in this order: agents stop before their containers go.
    _agents: Vec<Agent>,
    _containers: Vec<Container>,
    _namespaces: Vec<Namespace>,
}

/// Where one end of the traffic runs.
#[derive(Clone)]
pub(super) struct Place {
    /// Its network namespace.
    pub(super) namespace: String,
    /// Its address.
    pub(super) address: Ipv4Addr,
}

impl Place {
    /// A command, run there.
    pub(super) fn enter(&self, command: Cmd) -> Cmd {
        enter(&namespace_path(&self.namespace), command)
    }
}

impl Contender {
    /// The contender of this name.
    pub(super) fn find(name: &str) -> Result<Self> {
        ALL.into_iter()
            .find(|contender| contender.name == name)
            .ok_or_else(|| anyhow!("there is no contender {name}; they are {}", names().join(", ")))
    }

    /// Sets it up on the hosts with these numbers, and proves that the client reaches the server.
    pub(super) fn set_up(
        &self,
        lab: &Lab,
        first: usize,
        etcd: &Etcd,
        agents: &Agents,
    ) -> Result<Standing> {
        let hosts = [lab.host(first), lab.host(first + 1)];
        let site = Site { hosts, mtu: lab.wire().mtu(), etcd, agents };
        (self.set_up)(&site)
            .and_then(|standing| standing.prove().map(|()| standing))
            .with_context(|| format!("cannot set up contender {}", self.name))
    }
}

impl fmt::Debug for Contender {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

impl Standing {
    fn between(places: [Place; 2], agents: Vec<Agent>, containers: Vec<Container>) -> Self {
        Self { places, _agents: agents, _containers: containers, _namespaces: Vec::new() }
    }

    /// The traffic runs between two of these namespaces, which a contender has made itself.
    fn of_namespaces(places: [Place; 2], namespaces: Vec<Namespace>) -> Self {
        Self { places, _agents: Vec::new(), _containers: Vec::new(), _namespaces: namespaces }
    }

    /// The traffic runs between containers.
    fn of_containers(agents: Vec<Agent>, containers: Vec<Container>) -> Result<Self> {
        let [client, server] = containers.as_slice() else {
            bail!("there are {} containers instead of two", containers.len());
        };
        let place = |container: &Container| Place {
            namespace: container.namespace().name().to_owned(),
            address: container.address(),
        };
        Ok(Self::between([place(client), place(server)], agents, containers))
    }

    /// Where requests come from.
    pub(super) fn client(&self) -> &Place {
        &self.places[0]
    }

    /// Where they go.
    pub(super) fn server(&self) -> &Place {
        &self.places[1]
    }

    /// Has both ends send TCP by this congestion control (`tcp_congestion_control`), whatever the machine's own.
    pub(super) fn set_congestion_control(&self, name: &str) -> Result<()> {
        for place in &self.places {
            let setting = format!("net.ipv4.tcp_congestion_control={name}");
            place
                .enter(Cmd::new("sysctl").args(["-q", "-w", &setting]))
                .run()
                .with_context(|| format!("this kernel may have no congestion control {name}"))?;
        }
        Ok(())
    }

    fn prove(&self) -> Result<()> {
        let to = self.server().address.to_string();
        eventually(REACHABLE_WITHIN, "the client reaches the server", || {
            let ping = Cmd::new("ping").args(["-n", "-c", "1", "-W", "1", &to]);
            self.client().enter(ping).run().map(drop)
        })
    }
}

/// Those that are measured unless others are named.
pub(super) fn usual() -> Vec<String> {
    let usual = ALL.iter().filter(|contender| contender.usual);
    usual.map(|contender| contender.name.to_owned()).collect()
}

/// Every contender's name.
pub(super) fn names() -> Vec<&'static str> {
    ALL.iter().map(|contender| contender.name).collect()
}

/// A container on each host, in 10.`network`.1.0/24 and 10.`network`.2.0/24.
fn add_containers(site: &Site<'_>, network: u8, mtu: u32) -> Result<Vec<Container>> {
    site.hosts
        .iter()
        .zip([1, 2])
        .map(|(host, number)| {
            let env = format!(
                "FLANNEL_NETWORK=10.{network}.0.0/16\nFLANNEL_SUBNET=10.{network}.{number}.1/24\n\
                 FLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=false\n"
            );
            let file = host.subnet_file();
            fs::write(&file, env).with_context(|| format!("cannot write {}", file.display()))?;
            host.add_container("c")
        })
        .collect()
}

/// `ip` in words: `ip(host, "link set x up")`.
fn ip(host: &Host, command: &str) -> Result<String> {
    host.ip(command.split_whitespace())
}

/// The number of a device.
fn index_of(namespace: &Namespace, device: &str) -> Result<u32> {
    let shown = namespace.ip(["-o", "link", "show", "dev", device])?;
    shown
        .split_once(':')
        .and_then(|(number, _)| number.parse().ok())
        .with_context(|| format!("`ip` shows no number of {device}: {shown}"))
}

/// A MAC address as `ip` prints it.
fn mac_bytes(text: &str) -> Result<[u8; 6]> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()
        .with_context(|| format!("{text} is no MAC address"))?;
    bytes.try_into().ok().with_context(|| format!("{text} is no MAC address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_others_are_compared_with_exist() {
        for name in [HOST, FLANNEL, OURS] {
            assert_eq!(Contender::find(name).unwrap().name, name);
        }
        let error = Contender::find("weave").unwrap_err().to_string();
        assert!(
            error.starts_with("there is no contender weave; they are host, redirect"),
            "{error}"
        );
    }
}
