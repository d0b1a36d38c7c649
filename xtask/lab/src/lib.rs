//! Hosts, wires, etcd and Docker in network namespaces: shared by the tests, the benches, `cargo xtask lab` and the demo.
//!
//! ```no_run
//! use overlay_lab::{AgentOptions, Lab, workspace};
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::builder().hosts(2).start()?;
//! let etcd = lab.start_etcd(overlay_lab::NETWORK_CONFIG)?;
//! let options = AgentOptions::new(workspace::target_dir()?.join("debug/overlay-agent"), &etcd);
//! let one = lab.host(0).start_agent(&options)?;
//! let two = lab.host(1).start_agent(&options)?;
//! let a = lab.host(0).add_container("a")?;
//! let b = lab.host(1).add_container("b")?;
//! a.ping(b.address())?;
//! # drop((one, two));
//! # Ok(())
//! # }
//! ```
//!
//! Everything a lab makes is written down first ([`ledger`]) and taken down by that record
//! ([`mod@teardown`]): when it is dropped, also by a panic or Ctrl-C, and by the next lab if its
//! process was killed. A panic prints what is needed to understand it ([`mod@dump`]).
//!
//! What labs are made with is here too, for the task runner as well: [`command`], [`interrupt`],
//! [`workspace`] and [`release`]. [`statistics`] judges what is measured in them, [`corpus`] reads what failed once, [`pages`] what the
//! manual says.

mod agent;
mod bpffs;
mod bridge;
mod capture;
mod cgroups;
pub mod command;
mod container;
pub mod corpus;
pub mod debian;
mod docker;
pub mod dump;
mod etcd;
mod host;
pub mod interrupt;
pub mod ledger;
mod machine;
mod namespace;
pub mod pages;
mod process;
mod process_id;
pub mod release;
pub mod statistics;
pub mod stream;
pub mod subnet;
pub mod teardown;
pub mod tun;
mod wait;
mod wire;
pub mod workspace;

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::unistd::{Pid, Uid};

use self::ledger::{HostRecord, Record};
pub use self::{
    agent::{Agent, AgentOptions, CounterReading, counters, status as agent_status},
    bpffs::MOUNT_POINT as BPF_MOUNT_POINT,
    bridge::Bridge,
    capture::Capture,
    command::tail,
    container::{BRIDGE, Container},
    docker::{CLIENT as DOCKER_CLIENT, Docker, IMAGE, client as docker_client},
    etcd::Etcd,
    host::Host,
    ledger::Ledger,
    machine::Machine,
    namespace::{Namespace, enter, path as namespace_path},
    process::{Process, STOP_WITHIN},
    process_id::ProcessId,
    wait::{GiveUp, PATIENCE_VARIABLE, eventually},
    wire::{EVERY_KIND_VARIABLE, PREFIX_LENGTH, UPLINK, Wire},
};

/// The network configuration of our first users, as flannel's documentation has it.
pub const NETWORK_CONFIG: &str = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// Where the agents look for it in etcd, below which they take their leases.
pub const ETCD_PREFIX: &str = "/coreos.com/network";

/// What a wire of our day carries.
const DEFAULT_MTU: u32 = 1500;

/// Where hosts begin to count: 192.168.33.10, .11, ….
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 33, 10);

/// As many as fit between the first address and the end of the wire's prefix.
const MOST_HOSTS: usize = 200;

/// What a lab is going to be.
#[derive(Debug, Clone)]
pub struct Builder {
    name: Option<String>,
    hosts: usize,
    mtu: u32,
    imitate_wire: bool,
}

impl Builder {
    /// Gives it a name, instead of a unique one: for the one that people explore.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// How many hosts; two otherwise.
    #[must_use]
    pub fn hosts(mut self, hosts: usize) -> Self {
        self.hosts = hosts;
        self
    }

    /// The wire's MTU; 1500 otherwise.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }

    /// Whether the uplinks behave like network cards on a real wire; see [`Wire::imitate`].
    #[must_use]
    pub fn imitate_wire(mut self, imitate_wire: bool) -> Self {
        self.imitate_wire = imitate_wire;
        self
    }

    /// Makes it: hosts on a wire, nothing running yet.
    pub fn start(self) -> Result<Lab> {
        ensure!(Uid::effective().is_root(), "a lab needs root, for network namespaces and BPF");
        ensure!(
            self.hosts <= MOST_HOSTS,
            "{} hosts do not fit on the wire: {MOST_HOSTS} at most",
            self.hosts
        );
        interrupt::install();
        interrupt::check()?;
        teardown::sweep()?;

        let name = self.name.unwrap_or_else(unique_name);
        ensure!(
            Record::read(&Record::path(&name)?)?.is_none(),
            "lab {name} is up already; `cargo xtask lab down` takes it down"
        );
        let directory = tempfile::Builder::new()
            .prefix(&format!("overlay-lab-{name}-"))
            .tempdir()
            .context("cannot create a folder for the lab")?
            .keep();
        // A name may be used by two checkouts; what is ours on this machine must still be only ours.
        let unique = format!("overlay-lab-{name}-{}", Pid::this());
        let pins = Path::new(bpffs::MOUNT_POINT).join(&unique);
        let ledger = Ledger::open(
            Record {
                owner: Some(ProcessId::own()?),
                cgroup: format!("/{unique}"),
                name,
                directory,
                pins: pins.clone(),
                namespaces: Vec::new(),
                processes: Vec::new(),
                hosts: Vec::new(),
            },
            dump::dump,
        )?;
        // From here on, whatever fails takes down what was made.
        let guard = Guard(ledger.clone());
        bpffs::enter(&pins)?;
        let wire = Wire::new(&ledger, self.mtu)?;
        let hosts = (0..self.hosts)
            .map(|index| Host::create(&ledger, &wire, &host_name(index), host_address(index)))
            .collect::<Result<Vec<_>>>()?;
        if self.imitate_wire {
            wire.imitate(true)?;
        }
        Ok(Lab { guard, wire, hosts })
    }
}

/// A wire with hosts on it, taken down when dropped.
#[derive(Debug)]
pub struct Lab {
    guard: Guard,
    wire: Wire,
    hosts: Vec<Host>,
}

impl Lab {
    /// Two hosts on a wire of 1500 bytes, unless said otherwise.
    pub fn builder() -> Builder {
        Builder { name: None, hosts: 2, mtu: DEFAULT_MTU, imitate_wire: false }
    }

    /// One of its hosts, counted from 0.
    ///
    /// # Panics
    ///
    /// When there are not that many: a test that asks for it is wrong.
    pub fn host(&self, index: usize) -> &Host {
        &self.hosts[index]
    }

    /// All its hosts.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// What joins them.
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// What it has made.
    pub fn ledger(&self) -> &Ledger {
        &self.guard.0
    }

    /// Its folder.
    pub fn directory(&self) -> PathBuf {
        self.ledger().directory()
    }

    /// A real etcd on the first host, reachable by all, with this network configuration in it.
    pub fn start_etcd(&self, network_config: &str) -> Result<Etcd> {
        let etcd = Etcd::on_host(self.host(0))?;
        etcd.put(&format!("{ETCD_PREFIX}/config"), network_config)?;
        Ok(etcd)
    }

    /// Leaves everything running when we end; `lab down` takes it down.
    pub fn leave_standing(&self) -> Result<()> {
        self.ledger().change(|record| record.owner = None)
    }

    /// Takes everything down, and says what could not be.
    pub fn down(self) -> Result<()> {
        let record = self.ledger().record();
        teardown::teardown(&record)
    }

    /// Prints what is needed to understand a failure.
    pub fn dump(&self) {
        dump::dump(&self.ledger().record());
    }
}

/// Takes the lab down when dropped. It is the first field of [`Lab`] and so goes first; the handles
/// that are dropped after it find nothing left to do.
#[derive(Debug)]
struct Guard(Ledger);

impl Drop for Guard {
    fn drop(&mut self) {
        let record = self.0.record();
        let standing = record.owner.is_none();
        let down = !Record::path(&record.name).is_ok_and(|path| path.exists());
        if standing || down {
            return;
        }
        self.0.explain_if_panicking();
        if let Err(error) = teardown::teardown(&record) {
            eprintln!("{error:#}");
        }
    }
}

/// A name that no other lab on this machine has: our process and a count.
fn unique_name() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("ovl{}-{count}", Pid::this())
}

/// `host-one`, `host-two`, …, and `host-11` after ten.
pub fn host_name(index: usize) -> String {
    const WORDS: [&str; 10] =
        ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];
    WORDS.get(index).map_or_else(|| format!("host-{}", index + 1), |word| format!("host-{word}"))
}

/// 192.168.33.10, .11, ….
fn host_address(index: usize) -> Ipv4Addr {
    let offset = u32::try_from(index).unwrap_or(0);
    Ipv4Addr::from_bits(FIRST_ADDRESS.to_bits() + offset)
}

/// The record of the host of this name.
pub fn find_host<'record>(record: &'record Record, name: &str) -> Result<&'record HostRecord> {
    record.hosts.iter().find(|host| host.name == name).ok_or_else(|| {
        let names: Vec<&str> = record.hosts.iter().map(|host| host.name.as_str()).collect();
        anyhow!("there is no {name}; the hosts are {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_named_and_numbered_in_order() {
        assert_eq!(host_name(0), "host-one");
        assert_eq!(host_name(9), "host-ten");
        assert_eq!(host_name(10), "host-11");
        assert_eq!(host_address(0).to_string(), "192.168.33.10");
        assert_eq!(host_address(3).to_string(), "192.168.33.13");
    }

    #[test]
    fn two_labs_have_two_names() {
        assert_ne!(unique_name(), unique_name());
    }
}
