//! Making a host a member of an overlay network, and undoing that: `init`, `join` and `leave`.
//!
//! First everything is checked, then things are done one after the other. Each step looks before it acts
//! and does nothing where all is as it should be, so that a second run changes nothing and one that was
//! interrupted goes on.

mod checks;
mod consent;
mod containers;
mod docker;
mod enrol;
mod etcd;
mod expel;
mod join;
mod member;
mod report;
mod rotate;
pub mod token;
mod undo;

use std::{
    fmt::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnetwork::Ipv4Network;
use overlay_lease::store::etcd::{EtcdConfig, Identity};

use crate::{
    address_pools::PoolSize,
    authority::pki_file,
    kernel::firewall::ServicePort,
    systemd::{self, ETCD_UNIT},
};

pub use self::{
    consent::Consent,
    docker::BRIDGE as DOCKER_BRIDGE,
    etcd::{
        Backup, ClusterStatus, MemberState, Remove, Restore, TakePart, add, backup, init, remove,
        restore, status,
    },
    expel::{Expel, KnownHost, expel, hosts, table},
    join::join,
    rotate::{AuthorityStatus, Rotate, adopt, authority_status, rotate},
    undo::{Leaving, leave},
};

/// Where everything is that makes this host a member.
pub const CONFIG_DIR: &str = "/etc/overlay";
/// What `init` and `join` tell the agent, and every other verb.
pub const AGENT_ENV: &str = "/etc/overlay/agent.env";
/// What the operator tells the agent; it counts more.
pub const OPERATOR_ENV: &str = "/etc/default/overlay-agent";
/// The line for other hosts, on the first one.
pub const TOKEN_FILE: &str = "/etc/overlay/join.token";
/// The line for hosts that are to take part in etcd, where `init` was last run.
pub const MEMBER_TOKEN_FILE: &str = "/etc/overlay/member.token";

const ETCD_ENV: &str = "/etc/overlay/etcd.env";
const ETCD_DROP_IN: &str = "/etc/systemd/system/etcd.service.d/overlay.conf";
const ETCD_DATA: &str = "/var/lib/etcd/overlay";
const DOCKER_DROP_IN: &str = "/etc/systemd/system/docker.service.d/overlay.conf";

const AGENT_UNIT: &str = "overlay-agent.service";

/// The network of our first users.
pub const DEFAULT_NETWORK: &str = "10.1.0.0/16";

/// Where etcd answers its clients.
pub const ETCD_PORT: ServicePort = ServicePort::Tcp(2379);

/// Whether this host has a share in etcd, by `init` or `join --etcd`.
pub fn serves_etcd() -> bool {
    Path::new(ETCD_DROP_IN).exists()
}

/// What this host's etcd shows to who asks it, where it has a share in etcd and etcd asks for certificates.
pub fn server_certificate() -> Option<PathBuf> {
    Some(pki_file("server.pem")).filter(|file| serves_etcd() && file.exists())
}

/// How long the agent may take until every lease is programmed and Docker's bridge is there.
const READY_WITHIN: Duration = Duration::from_mins(1);

/// What `init` is asked for.
#[derive(Clone, Debug)]
pub struct Init {
    /// The overlay's network; the one that is in etcd, else [`DEFAULT_NETWORK`], if nothing is said.
    pub network: Option<Ipv4Network>,
    /// The interface that reaches the other hosts, by name or address.
    pub iface: Option<String>,
    /// An etcd that exists; otherwise this host's is set up.
    pub etcd: Option<EtcdConfig>,
    /// Where in etcd the network is.
    pub prefix: String,
    /// Whether etcd asks who its clients are.
    pub tls: bool,
    /// How long the line for other hosts is good.
    pub token_lifetime: Duration,
    /// Whether it is good for one host only.
    pub token_once: bool,
    /// For how long hosts' certificates are made from now on, if that is said.
    pub certificate_lifetime: Option<Duration>,
    /// Whether Docker's networks get parts of the host's subnet, and of which prefix length if that is said.
    pub address_pools: Option<PoolSize>,
    /// Whether containers may be ended.
    pub consent: Consent,
}

/// What `join` is asked for.
#[derive(Clone, Debug)]
pub struct Join {
    /// What is in the file that `init` made.
    pub token: token::Token,
    /// As for [`Init`].
    pub iface: Option<String>,
    /// Whether this host takes part in etcd.
    pub etcd: bool,
    /// As for [`Init`].
    pub address_pools: Option<PoolSize>,
    /// As for [`Init`].
    pub consent: Consent,
}

/// The text of [`AGENT_ENV`].
fn agent_env(etcd: &EtcdConfig, iface: Option<&str>) -> String {
    let mut text = "# Written by `overlay-agent init` or `join`, removed by `overlay-agent leave`. Settings of\n\
                    # your own go to /etc/default/overlay-agent, which counts more.\n"
        .to_owned();
    // Writing to a string cannot fail.
    let mut set = |name: &str, value: String| writeln!(text, "OVERLAY_{name}={value}").ok();
    set("ETCD_ENDPOINTS", etcd.endpoints.join(","));
    set("ETCD_PREFIX", etcd.prefix.to_string());
    if let Some(ca) = &etcd.ca_file {
        set("ETCD_CAFILE", ca.display().to_string());
    }
    if let Some(Identity { cert_file, key_file }) = &etcd.identity {
        set("ETCD_CERTFILE", cert_file.display().to_string());
        set("ETCD_KEYFILE", key_file.display().to_string());
    }
    if let Some(iface) = iface {
        set("IFACE", iface.to_owned());
    }
    text
}

/// The URL of an etcd at this address.
fn endpoint(address: Ipv4Addr, tls: bool) -> String {
    format!("{}://{address}:2379", if tls { "https" } else { "http" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::{ca_file, host_identity};
    use overlay_lease::wire::key::KeyPrefix;

    #[test]
    fn the_agent_is_told_what_it_needs_and_nothing_else() {
        let mut etcd = EtcdConfig {
            endpoints: vec!["https://192.0.2.1:2379".to_owned()],
            prefix: KeyPrefix::new("/coreos.com/network"),
            ca_file: Some(ca_file()),
            identity: Some(host_identity()),
            user: None,
        };
        let text = agent_env(&etcd, Some("eth1"));
        let settings: Vec<_> = text.lines().skip(2).collect();
        assert_eq!(
            settings,
            [
                "OVERLAY_ETCD_ENDPOINTS=https://192.0.2.1:2379",
                "OVERLAY_ETCD_PREFIX=/coreos.com/network",
                "OVERLAY_ETCD_CAFILE=/etc/overlay/pki/ca.pem",
                "OVERLAY_ETCD_CERTFILE=/etc/overlay/pki/client.pem",
                "OVERLAY_ETCD_KEYFILE=/etc/overlay/pki/client-key.pem",
                "OVERLAY_IFACE=eth1",
            ]
        );
        (etcd.ca_file, etcd.identity) = (None, None);
        assert_eq!(agent_env(&etcd, None).lines().count(), 4);
    }
}
