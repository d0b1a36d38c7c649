//! etcd, and the certificates by which it knows us.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use overlay_lease::{
    config::NetworkConfig,
    store::{Store as _, etcd::EtcdStore},
};

use super::{Check, Findings, Host};
use crate::provision::{
    self,
    pki::{self, RENEWAL},
};

/// Leases live for a day; but whoever starts, waits for this.
const SLOW: Duration = Duration::from_secs(1);

/// One slow answer among several is slow.
const QUESTIONS: usize = 3;

/// Whether etcd answers; the network config that it has.
pub(super) async fn answers(etcd: &EtcdStore, found: &mut Findings) -> Option<NetworkConfig> {
    let key = etcd.prefix().config_key();
    // To look for a member that answers takes its time, which is not etcd's.
    etcd.get(&key).await.ok();
    let mut slowest = Duration::ZERO;
    let mut config = None;
    for _ in 0..QUESTIONS {
        let start = Instant::now();
        match etcd.get(&key).await {
            Ok(entry) => config = entry,
            Err(error) => {
                let mend = "on etcd's host: systemctl restart etcd; here: ss -tn, and the firewall between";
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

/// Whether all members are there of an etcd that `init` set up: what answers still does not say how few are left.
/// Of others' etcd nobody knows whether its members are to be reached from here.
pub(super) async fn members(host: &Host, found: &mut Findings) {
    if host.etcd.ca_file.as_deref() != Some(provision::ca_file().as_path()) {
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

/// Whether certificates are good for long enough.
pub(super) fn certificates(host: &Host, found: &mut Findings) {
    let etcd = &host.etcd;
    let own = etcd.identity.as_ref().map(|identity| &identity.cert_file);
    for file in own.into_iter().chain(&etcd.ca_file) {
        certificate(file, found);
    }
}

fn certificate(file: &Path, found: &mut Findings) {
    let read = std::fs::read_to_string(file).map_err(anyhow::Error::from);
    let left = match read.and_then(|text| pki::left(&text)) {
        Ok(left) => left,
        Err(error) => {
            found.unknown(format!("certificate {}: {error:#}", file.display()));
            return;
        }
    };
    if left.is_some_and(|left| left > RENEWAL) {
        return;
    }
    let when = left.map_or_else(
        || "has expired".to_owned(),
        |left| format!("expires in {} days", left.as_secs() / 86_400),
    );
    found.add(
        Check::Certificate,
        format!("{} {when}: etcd does not let this host in without it", file.display()),
        "overlay-agent init on the first host, then overlay-agent join with its new token on the others",
    );
}
