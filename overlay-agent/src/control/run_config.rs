//! What `overlay-agent run` was asked for, checked and in the types that the agent works with.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use overlay_lease::{config::RulesMode, member::registry::RegistryConfig, store::etcd::EtcdConfig};

use crate::{dataplane::source_check::SourceCheck, kernel::uplink::UplinkConfig};

/// What the agent is to do.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct RunConfig {
    /// How to reach etcd.
    pub etcd: EtcdConfig,
    /// The file that takes etcd's place, if there is one.
    pub peers: Option<PathBuf>,
    /// How to choose the uplink.
    pub uplink: UplinkConfig,
    /// Where `subnet.env` goes.
    pub subnet_file: PathBuf,
    /// What `FLANNEL_IPMASQ` is to say.
    pub ip_masq: bool,
    /// Whether the host's firewall is to forward what goes through the tunnel device.
    pub forward_rules: bool,
    /// Whether masquerading chooses source ports at random.
    pub masquerade_random: bool,
    /// Whether our own subnet has a blackhole route behind the bridges'.
    pub blackhole: bool,
    /// How often the rules are checked.
    pub iptables_resync: Duration,
    /// Where to serve health checks, if anywhere.
    pub healthz: Option<SocketAddr>,
    /// The TTL of our etcd lease.
    pub lease_ttl: Duration,
    /// The containers' bridges, if they are not to be found by their addresses.
    pub bridges: Vec<String>,
    /// Whether programs may deliver past the kernel's network stack.
    pub fast_path: bool,
    /// Whether rules of the host's firewall hold for what containers send each other, where this host has a mode of its own.
    pub rules: Option<RulesMode>,
    /// After how long without an answer a peer is a problem; none where nobody is asked.
    pub peer_timeout: Option<Duration>,
    /// Which source addresses containers may use.
    pub source_check: SourceCheck,
    /// Whether the datapath is removed when the agent is stopped.
    pub cleanup_on_exit: bool,
    /// Whether to take the place of flannel's device.
    pub replace_flannel: bool,
    /// Where this host keeps what it is known by.
    pub state_file: PathBuf,
    /// After how long without etcd to start on what this host knew last; none where that is not wanted.
    pub start_without_etcd: Option<Duration>,
    /// Where programs and maps are pinned.
    pub pin_path: PathBuf,
    /// Where to listen for our own command line.
    pub socket: PathBuf,
    /// Flags that were given and do nothing, each with the reason.
    pub without_effect: Vec<String>,
}

impl RunConfig {
    /// Where it is agreed who has which subnet.
    pub fn registry(&self) -> RegistryConfig {
        match &self.peers {
            Some(path) => RegistryConfig::Fixed(path.clone()),
            None => RegistryConfig::Etcd(self.etcd.clone()),
        }
    }
}
