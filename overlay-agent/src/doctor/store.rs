//! etcd, and the certificates by which it knows us.

use std::time::{Duration, Instant};

use overlay_lease::{
    config::NetworkConfig,
    store::{
        Store as _,
        etcd::{EtcdConfig, EtcdStore, OF_ANOTHER},
    },
};

use super::{Check, Findings, Host};
use crate::{authority, certificate, files, provision};

/// Leases live for a day; but whoever starts, waits for this.
const SLOW: Duration = Duration::from_secs(1);

/// One slow answer among several is slow.
const QUESTIONS: usize = 3;

/// Whether etcd answers; the network config that it has.
pub(super) async fn answers(etcd: &EtcdStore, found: &mut Findings) -> Option<NetworkConfig> {
    let key = etcd.prefix().config_key();
    if etcd.config().endpoints.len() > 1 {
        // To look for a member that answers takes its time, which is not etcd's.
        etcd.get(&key).await.ok();
    }
    let mut slowest = Duration::ZERO;
    let mut config = None;
    for _ in 0..QUESTIONS {
        let start = Instant::now();
        match etcd.get(&key).await {
            Ok(entry) => config = entry,
            Err(error) => {
                let says = |text| error.to_string().contains(text);
                let mend = if says("permission denied") {
                    "etcd does not know this host any more: overlay-agent leave, and join with a new token"
                } else if says(OF_ANOTHER) {
                    "it was made another while this host was off: overlay-agent leave, and join with a new token"
                } else {
                    "on etcd's host: systemctl restart etcd; here: ss -tn, and the firewall between"
                };
                found.add(Check::Etcd, format!("{error:#}; what runs goes on"), mend);
                return None;
            }
        }
        slowest = slowest.max(start.elapsed());
    }
    if slowest > SLOW {
        found.add(
            Check::Etcd,
            format!("etcd takes {:.1} s to answer: hosts start late", slowest.as_secs_f64()),
            "on etcd's host: give its data a faster disk (etcdctl check perf)",
        );
    }
    let Some(config) = config else {
        let mend = "overlay-agent init, or overlay-agent config set";
        found.add(Check::Etcd, format!("there is no network config at {key}"), mend);
        return None;
    };
    match NetworkConfig::parse(&config.value) {
        Ok(parsed) => Some(parsed.config),
        Err(error) => {
            let problem = format!("the network config at {key} is malformed: {error}");
            found.add(Check::Etcd, problem, "overlay-agent config set");
            None
        }
    }
}

/// What is to be known where etcd does not keep hosts to what is theirs, though it is told to. It is said where etcd is.
pub(super) async fn confinement(host: &Host, found: &mut Findings) -> Option<String> {
    let own = authority::host_identity();
    own.host().filter(|_| host.etcd.identity.is_some() && provision::serves_etcd())?;
    let etcd = EtcdConfig { identity: Some(own), ..host.etcd.clone() };
    let asked = async {
        let store = EtcdStore::new(&etcd)?;
        let secret = store.prefix().authority_dir();
        anyhow::Ok(store.is_confined(&secret).await?)
    };
    match asked.await {
        Ok(true) => None,
        Ok(false) => Some(
            "etcd's release lets whoever has a host's certificate around its roles (GHSA-rfx7-8w68-q57q): a newer one, \
             from 3.4.44, 3.5.30 or 3.6.11 on, keeps each host to its own lease"
                .to_owned(),
        ),
        Err(error) => {
            found.unknown(format!("whether etcd keeps this host to what is its own: {error:#}"));
            None
        }
    }
}

/// Whether all members are there of an etcd that `init` set up: what answers still does not say how few are left.
/// Of others' etcd nobody knows whether its members are to be reached from here.
pub(super) async fn members(host: &Host, found: &mut Findings) {
    if host.etcd.ca_file.as_deref() != Some(authority::ca_file().as_path()) {
        return;
    }
    let cluster = match provision::status(&host.etcd).await {
        Ok(cluster) => cluster,
        Err(error) => {
            found.unknown(format!("etcd's members: {error:#}"));
            return;
        }
    };
    for (member, problem) in cluster.problems() {
        found.add(
            Check::Etcd,
            format!("etcd's member {member}: {problem}; {}", cluster.summary()),
            format!(
                "start it there; one that is gone for good: overlay-agent etcd remove {member}, and on another host overlay-agent etcd add"
            ),
        );
    }
}

/// Whether certificates are good for long enough: this host's, its authority's and, where it has a share in etcd, etcd's.
pub(super) fn certificates(host: &Host, found: &mut Findings) {
    const HOSTS: &str = "the agent has it made anew, and could not: on a host with a share in etcd, systemctl status overlay-agent; once it has \
                         ended: overlay-agent init there, and join with its new token here";
    let etcd = &host.etcd;
    let trusted = files::read(&authority::ca_file()).ok().flatten().unwrap_or_default();
    if certificate::each(&trusted).len() > 1 {
        found.add(
            Check::Certificate,
            "the authority is being made another, and this host trusts both: the old one opens etcd until that is finished",
            "on a host with a share in etcd: overlay-agent authority rotate",
        );
    }
    let shown = etcd.identity.as_ref().map(|identity| identity.cert_file.clone());
    // With a share in etcd we ask as root; the agent shows this host's own.
    let own = Some(authority::host_identity().cert_file)
        .filter(|_| etcd.identity == Some(authority::root_identity()));
    let files = shown.into_iter().chain(own).chain(etcd.ca_file.clone());
    let here =
        provision::server_certificate().map(|file| (file, "overlay-agent init on this host"));
    for (file, mend) in files.map(|file| (file, HOSTS)).chain(here) {
        match certificate::ends_soon(&file) {
            Ok(None) => {}
            Ok(Some(when)) => found.add(
                Check::Certificate,
                format!(
                    "{} {when}: etcd and its hosts do not know each other without it",
                    file.display()
                ),
                mend,
            ),
            Err(error) => found.unknown(format!("certificate {}: {error:#}", file.display())),
        }
    }
}
