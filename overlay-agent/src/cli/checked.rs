//! From arguments as they are typed to what they mean.

use std::{
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr, ToSocketAddrs as _},
    path::PathBuf,
    time::Duration,
};

use overlay_lease::{
    config::RulesMode,
    store::etcd::{EtcdConfig, Identity, Secret},
    wire::key::KeyPrefix,
};
use regex::Regex;

use super::{
    etcd::EtcdArgs,
    flanneld::FlanneldArgs,
    run::{OnExit, RunArgs, Switch},
};
use crate::{
    control::run_config::RunConfig, dataplane::source_check::SourceCheck,
    kernel::uplink::UplinkConfig,
};

/// A flag that parses and still cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// No endpoint is left after splitting.
    #[error("--etcd-endpoints names no endpoint")]
    NoEndpoints,
    /// One of a pair is missing.
    #[error("{given} needs {missing}: a certificate and its key go together")]
    HalfIdentity {
        /// The flag that was given.
        given: &'static str,
        /// The flag that was not.
        missing: &'static str,
    },
    /// A password without a name.
    #[error("{0} needs --etcd-username")]
    NoUser(&'static str),
    /// A password twice.
    #[error("--etcd-password and --etcd-password-file exclude each other")]
    TwoPasswords,
    /// A password's file cannot be used.
    #[error("--etcd-password-file {file}: {reason}")]
    PasswordFile {
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },
    /// An address flag holds something else.
    #[error("{flag} must be an IPv4 address, but is {value:?}")]
    Address {
        /// The flag.
        flag: &'static str,
        /// Its value.
        value: String,
    },
    /// It is an IPv4 address, and no host's.
    #[error("{flag} must be the address of a host, but is {address}")]
    NotAHost {
        /// The flag.
        flag: &'static str,
        /// Its value.
        address: Ipv4Addr,
    },
    /// Leases are not in Kubernetes.
    #[error(
        "--kube-subnet-mgr is not supported: leases and the network config are in etcd, see --etcd-endpoints"
    )]
    KubeSubnetManager,
    /// What flanneld ends with, too.
    #[error("--subnet-lease-renew-margin is {0} minutes, which is not in 1..=1439")]
    RenewMargin(i64),
    /// No port.
    #[error("--healthz-port is {0}, which is not in 0..=65535")]
    HealthzPort(i64),
    /// No address, and no name of one.
    #[error("--healthz-ip must be an address of this host, but is {value:?}: {reason}")]
    HealthzIp {
        /// The text.
        value: String,
        /// Why.
        reason: String,
    },
    /// An endpoint of a kind that we cannot reach.
    #[error(
        "--etcd-endpoints: {endpoint:?} is neither http:// nor https:// nor an address and a port"
    )]
    Endpoint {
        /// The endpoint.
        endpoint: String,
    },
    /// A regular expression does not compile.
    #[error("--iface-regex {value:?} is no regular expression: {error}")]
    Regex {
        /// The text.
        value: String,
        /// What is wrong with it.
        error: regex::Error,
    },
}

impl TryFrom<RunArgs> for RunConfig {
    type Error = UsageError;

    fn try_from(args: RunArgs) -> Result<Self, UsageError> {
        Ok(Self {
            without_effect: without_effect(&args.flanneld)?,
            etcd: EtcdConfig::try_from(&args.etcd)?,
            peers: args.peers.clone(),
            uplink: UplinkConfig::try_from(&args)?,
            subnet_file: args.subnet_file,
            ip_masq: args.ip_masq,
            forward_rules: args.iptables_forward_rules,
            masquerade_random: !args.ip_masq_fully_random_disable,
            blackhole: args.ip_blackhole_route,
            iptables_resync: Duration::from_secs(
                u32::try_from(args.iptables_resync.max(1)).unwrap_or(u32::MAX).into(),
            ),
            healthz: healthz(&args.healthz_ip, args.healthz_port)?,
            lease_ttl: Duration::from_secs(args.lease_ttl.into()),
            bridges: args.bridge.into_iter().filter(|name| !name.is_empty()).collect(),
            fast_path: args.fast_path == Switch::On,
            rules: args.rules.map(RulesMode::from),
            peer_timeout: (args.peer_timeout > 0)
                .then(|| Duration::from_secs(args.peer_timeout.into())),
            source_check: SourceCheck {
                strictness: args.source_check,
                exempt: args.source_check_exempt,
            },
            cleanup_on_exit: args.on_exit == OnExit::Cleanup,
            replace_flannel: args.replace_flannel,
            state_file: args.state_file,
            start_without_etcd: (args.start_without_etcd > 0)
                .then(|| Duration::from_secs(args.start_without_etcd.into())),
            pin_path: args.pin_path,
            socket: args.socket,
        })
    }
}

impl TryFrom<&EtcdArgs> for EtcdConfig {
    type Error = UsageError;

    fn try_from(args: &EtcdArgs) -> Result<Self, UsageError> {
        let endpoints: Vec<_> = args
            .etcd_endpoints
            .split(',')
            .map(str::trim)
            .filter(|endpoint| !endpoint.is_empty())
            .map(endpoint)
            .collect::<Result<_, _>>()?;
        if endpoints.is_empty() {
            return Err(UsageError::NoEndpoints);
        }
        let (cert, key) = (path(&args.etcd_certfile), path(&args.etcd_keyfile));
        let half = |given, missing| Err(UsageError::HalfIdentity { given, missing });
        let identity = match (cert, key) {
            (Some(cert_file), Some(key_file)) => Some(Identity { cert_file, key_file }),
            (None, None) => None,
            (Some(_), None) => return half("--etcd-certfile", "--etcd-keyfile"),
            (None, Some(_)) => return half("--etcd-keyfile", "--etcd-certfile"),
        };
        let password = password(args)?;
        let user = match (args.etcd_username.as_str(), password) {
            ("", None) => None,
            ("", Some((flag, _))) => return Err(UsageError::NoUser(flag)),
            (name, None) => Some((name.to_owned(), Secret::from(String::new()))),
            (name, Some((_, password))) => Some((name.to_owned(), password)),
        };
        Ok(Self {
            endpoints,
            prefix: KeyPrefix::new(&args.etcd_prefix),
            ca_file: path(&args.etcd_cafile),
            identity,
            user,
        })
    }
}

/// An endpoint as all of Go's spellings come down to: the scheme in small letters, if there is one, and host
/// and port without the path that may follow.
fn endpoint(text: &str) -> Result<String, UsageError> {
    let Some((scheme, rest)) = text.split_once("://") else {
        // `unix:` goes without slashes.
        return match text.split_once(':') {
            Some(("unix" | "unixs", _)) => Err(UsageError::Endpoint { endpoint: text.to_owned() }),
            _ => Ok(text.trim_end_matches('/').to_owned()),
        };
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let scheme = scheme.to_ascii_lowercase();
    if host.is_empty() || !matches!(scheme.as_str(), "http" | "https") {
        return Err(UsageError::Endpoint { endpoint: text.to_owned() });
    }
    Ok(format!("{scheme}://{host}"))
}

/// What flanneld takes and we do without; what flanneld would refuse, or do instead, is an error.
fn without_effect(args: &FlanneldArgs) -> Result<Vec<String>, UsageError> {
    if args.kube_subnet_mgr == Some(true) {
        return Err(UsageError::KubeSubnetManager);
    }
    match args.subnet_lease_renew_margin {
        Some(margin) if !(1..=1439).contains(&margin) => Err(UsageError::RenewMargin(margin)),
        _ => Ok(args.without_effect()),
    }
}

/// Where to serve health checks. As for flanneld, the address counts only where there is a port, a port below
/// zero is none, and the empty address stands for all.
fn healthz(ip: &str, port: i64) -> Result<Option<SocketAddr>, UsageError> {
    if port <= 0 {
        return Ok(None);
    }
    let port = u16::try_from(port).ok().ok_or(UsageError::HealthzPort(port))?;
    let host = if ip.is_empty() { "0.0.0.0" } else { ip };
    let failed = |reason: String| UsageError::HealthzIp { value: ip.to_owned(), reason };
    let mut found = (host, port).to_socket_addrs().map_err(|error| failed(error.to_string()))?;
    found.next().map(Some).ok_or_else(|| failed("it has no address".to_owned()))
}

/// The password, and the flag that it comes from.
fn password(args: &EtcdArgs) -> Result<Option<(&'static str, Secret)>, UsageError> {
    let file = args.etcd_password_file.as_str();
    let typed = args.etcd_password.reveal();
    match (typed, file) {
        ("", "") => Ok(None),
        (_, "") => Ok(Some(("--etcd-password", args.etcd_password.clone()))),
        ("", file) => {
            let failed = |reason| UsageError::PasswordFile { file: file.to_owned(), reason };
            let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
            // Editors end the last line; no password of etcd's ends one.
            let line = text.lines().next().unwrap_or_default();
            if line.is_empty() {
                return Err(failed("its first line is empty".to_owned()));
            }
            Ok(Some(("--etcd-password-file", Secret::from(line.to_owned()))))
        }
        _ => Err(UsageError::TwoPasswords),
    }
}

/// What is wrong with a password on the command line, if there is one.
pub fn visible_password(typed: impl IntoIterator<Item = OsString>) -> Option<&'static str> {
    let is_password = |argument: OsString| {
        let text = argument.to_string_lossy().into_owned();
        let flag = text.trim_start_matches('-');
        flag.len() < text.len() && flag.split('=').next() == Some("etcd-password")
    };
    typed.into_iter().any(is_password).then_some(
        "--etcd-password can be seen by whoever lists this host's processes: use --etcd-password-file, or set \
         OVERLAY_ETCD_PASSWORD",
    )
}

impl TryFrom<&RunArgs> for UplinkConfig {
    type Error = UsageError;

    fn try_from(args: &RunArgs) -> Result<Self, UsageError> {
        let regexes = given(&args.iface_regex)
            .map(|value| Regex::new(&value).map_err(|error| UsageError::Regex { value, error }))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            ifaces: given(&args.iface).collect(),
            regexes,
            can_reach: address("--iface-can-reach", &args.iface_can_reach)?,
            public_ip: address("--public-ip", &args.public_ip)?
                .map(|address| a_hosts("--public-ip", address))
                .transpose()?,
        })
    }
}

/// An empty path counts as not given, as in Go.
fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}

fn given(values: &[String]) -> impl Iterator<Item = String> {
    values.iter().filter(|value| !value.is_empty()).cloned()
}

/// An address that a host can have, and so a lease can name.
fn a_hosts(flag: &'static str, address: Ipv4Addr) -> Result<Ipv4Addr, UsageError> {
    if address.is_unspecified() || address.is_broadcast() || address.is_multicast() {
        return Err(UsageError::NotAHost { flag, address });
    }
    Ok(address)
}

fn address(flag: &'static str, value: &str) -> Result<Option<Ipv4Addr>, UsageError> {
    if value.is_empty() {
        return Ok(None);
    }
    match value.parse() {
        Ok(address) => Ok(Some(address)),
        Err(_) => Err(UsageError::Address { flag, value: value.to_owned() }),
    }
}
