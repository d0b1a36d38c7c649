//! Who is known to etcd as a host, and how one that was stolen is shut out.

use std::{fmt::Write as _, net::Ipv4Addr};

use anyhow::{Context as _, Result, anyhow};
use ipnetwork::Ipv4Network;
use overlay_lease::{
    store::{
        Store as _,
        etcd::{EtcdConfig, EtcdStore},
    },
    wire::{identity::HostId, value::LeaseValue},
};
use serde::Serialize;

use super::{
    checks,
    consent::{self, Consent},
    report::Report,
    token::ago,
};
use crate::{
    authority::{self, host_identity, root_identity},
    exit::{Exit, WithExit as _},
};

/// A host that etcd knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KnownHost {
    /// What it is called there.
    pub name: HostId,
    /// Where it was when it came.
    pub address: Option<Ipv4Addr>,
    /// The leases that it has, each with the address that the host is at by it.
    pub leases: Vec<(Ipv4Network, Option<Ipv4Addr>)>,
    /// How many seconds its certificate is still good for.
    pub certificate_seconds: u64,
}

impl KnownHost {
    /// Whether this is how somebody would name it.
    pub(super) fn is(&self, wanted: &str) -> bool {
        self.name.to_string() == wanted
            || self.name.host_name() == wanted
            || self.leases.iter().any(|(subnet, _)| subnet.to_string() == wanted)
            || self.addresses().any(|address| address.to_string() == wanted)
    }

    /// Where it is: by its leases, or else where it was when it came.
    fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        let by_lease = self.leases.iter().filter_map(|(_, address)| *address);
        let at_first = self.address.filter(|_| self.leases.is_empty());
        by_lease.chain(at_first)
    }

    fn to_text(&self) -> String {
        let list =
            |items: Vec<String>| if items.is_empty() { "-".to_owned() } else { items.join(",") };
        let leases = list(self.leases.iter().map(|(subnet, _)| subnet.to_string()).collect());
        let addresses = list(self.addresses().map(|address| address.to_string()).collect());
        let left = match self.certificate_seconds {
            0 => "has expired".to_owned(),
            left => format!("for {} more", ago(std::time::Duration::from_secs(left))),
        };
        format!("{:<28} {addresses:<16} {leases:<20} certificate {left}", self.name)
    }
}

/// All hosts, as a table.
pub fn table(hosts: &[KnownHost]) -> String {
    if hosts.is_empty() {
        return "etcd knows no host by a certificate of its own.\n".to_owned();
    }
    let mut text = String::new();
    for host in hosts {
        // Writing to a string cannot fail.
        writeln!(text, "{}", host.to_text()).ok();
    }
    text
}

/// The hosts that etcd knows, by their names.
pub async fn hosts(etcd: &EtcdConfig) -> Result<Vec<KnownHost>> {
    may_decide(etcd)?;
    let store = EtcdStore::new(etcd)?;
    let listing = store.list().await.exit(Exit::Unavailable)?;
    let address_of = |subnet| {
        let key = store.prefix().subnet_key(subnet);
        let lease = listing.entries.iter().find(|entry| entry.key == key.as_bytes())?;
        Some(LeaseValue::decode(&lease.value).ok().map(|value| value.public_ip))
    };
    let now = authority::seconds_at(std::time::Duration::ZERO);
    let known = authority::hosts(&store).await.exit(Exit::Unavailable)?;
    Ok(known
        .into_iter()
        .map(|(name, record)| KnownHost {
            name,
            address: record.address,
            leases: record
                .subnets
                .into_iter()
                .filter_map(|subnet| Some((subnet, address_of(subnet)?)))
                .collect(),
            certificate_seconds: record.ends.saturating_sub(now),
        })
        .collect())
}

/// Fails where this host has no say about others.
pub(super) fn may_decide(etcd: &EtcdConfig) -> Result<()> {
    if etcd.identity.as_ref() == Some(&root_identity()) {
        return Ok(());
    }
    Err(anyhow!(
        "only a host with a share in etcd, set up by `overlay-agent init` or `join --etcd`, knows the others, and only its root"
    ))
    .exit(Exit::NotPermitted)
}

/// What `expel` is asked for.
#[derive(Clone, Debug)]
pub struct Expel {
    /// Which host: its name, its address or its subnet. Nothing: all that show the certificate that hosts of earlier versions
    /// shared.
    pub host: Option<String>,
    /// How to reach etcd.
    pub etcd: EtcdConfig,
    /// Whether to ask.
    pub consent: Consent,
}

/// Shuts hosts out.
pub async fn expel(wanted: &Expel) -> Result<()> {
    checks::root("expel")?;
    may_decide(&wanted.etcd)?;
    let store = EtcdStore::new(&wanted.etcd)?;
    let Some(name) = &wanted.host else { return expel_sharers(wanted, &store).await };
    let known = hosts(&wanted.etcd).await?;
    let host = choose(&known, name)?;
    refuse_those_who_decide(&store, host).await?;
    let leases: Vec<_> = host.leases.iter().map(|(subnet, _)| subnet.to_string()).collect();
    let gone = if leases.is_empty() { "it has no lease".to_owned() } else { leases.join(", ") };
    let steps = [
        format!("let {} in nowhere any more: its certificate opens nothing of etcd", host.name),
        format!("delete its lease, so that no host takes a packet of its containers: {gone}"),
        "make all join tokens void, which it may have".to_owned(),
        "end all connections to etcd, of which hosts make new ones at once".to_owned(),
    ];
    let sentence = format!("The containers on {} reach those on other hosts no more.\n", host.name);
    if !consent::ask_about(wanted.consent, &steps, &sentence)? {
        return Ok(());
    }
    authority::expel(&store, &host.name).await.exit(Exit::Unavailable)?;
    // The agents of all hosts with a share in etcd do that, too; this one's may not run.
    authority::end_sessions().await?;
    let mut report = Report::default();
    report.done("expelled", &format!("{}: {gone}", host.name))?;
    report.done("token", "is void; `overlay-agent init` makes a new one")
}

async fn expel_sharers(wanted: &Expel, store: &EtcdStore) -> Result<()> {
    let steps = ["let nobody in any more by the certificate that hosts of earlier versions shared"
        .to_owned()];
    let sentence = "Hosts whose agent is of an earlier version lose etcd: they keep what they know, and hear of nothing new.\n";
    if !consent::ask_about(wanted.consent, &steps, sentence)? {
        return Ok(());
    }
    let were = authority::expel_sharers(store).await.exit(Exit::Unavailable)?;
    let mut report = Report::default();
    report.step(were, "etcd", "lets in no host but by a certificate of its own")
}

/// The one host that is meant.
fn choose<'a>(known: &'a [KnownHost], wanted: &str) -> Result<&'a KnownHost> {
    let found: Vec<_> = known.iter().filter(|host| host.is(wanted)).collect();
    match found.as_slice() {
        [host] => Ok(host),
        [] => Err(anyhow!(
            "etcd knows no host {wanted}; `overlay-agent hosts` lists those it knows. A lease of one that it does not know, \
             flannel's for example, ends by `overlay-agent lease release`"
        ))
        .exit(Exit::NotFound),
        several => {
            let names: Vec<_> = several.iter().map(|host| host.name.to_string()).collect();
            Err(anyhow!("{wanted} may be any of {}: name one", names.join(", "))).exit(Exit::Conflict)
        }
    }
}

/// Who has the authority's key lets himself in again.
async fn refuse_those_who_decide(store: &EtcdStore, host: &KnownHost) -> Result<()> {
    if host_identity().host().as_ref() == Some(&host.name) {
        return Err(anyhow!("{} is this host: `overlay-agent leave` takes it out", host.name))
            .exit(Exit::Conflict);
    }
    let members = store.members().await.context("who has a share in etcd is not known");
    for member in members.exit(Exit::Unavailable)? {
        let urls = member.peer_urls.join(",");
        let is_here = |address: Ipv4Addr| {
            member.peer_urls.iter().any(|url| url.contains(&format!("//{address}:")))
        };
        if host.addresses().any(is_here) {
            return Err(anyhow!(
                "{} has a share in etcd ({urls}), and with it the authority's key, by which it lets itself in: \
                 `overlay-agent etcd remove {}` first, and once it is expelled `overlay-agent authority rotate` if the key is in wrong \
                 hands",
                host.name,
                member.name
            ))
            .exit(Exit::Conflict);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, address: &str, lease: Option<(&str, &str)>) -> KnownHost {
        KnownHost {
            name: HostId::parse(name).unwrap(),
            address: Some(address.parse().unwrap()),
            leases: lease
                .map(|(subnet, at)| (subnet.parse().unwrap(), Some(at.parse().unwrap())))
                .into_iter()
                .collect(),
            certificate_seconds: 7200,
        }
    }

    #[test]
    fn a_host_is_meant_by_its_name_address_or_subnet_and_never_by_half_of_one() {
        let known = [
            host("web1-00000001", "192.0.2.1", Some(("10.1.1.0/24", "192.0.2.11"))),
            host("web1-00000002", "192.0.2.2", None),
            host("web11-00000003", "192.0.2.3", Some(("10.1.3.0/24", "192.0.2.3"))),
        ];
        for wanted in ["web1-00000001", "192.0.2.11", "10.1.1.0/24"] {
            assert_eq!(choose(&known, wanted).unwrap(), &known[0], "{wanted}");
        }
        assert_eq!(choose(&known, "192.0.2.2").unwrap(), &known[1]);
        assert_eq!(choose(&known, "web11").unwrap(), &known[2]);
        // It is somewhere else by now.
        assert_eq!(Exit::of(&choose(&known, "192.0.2.1").unwrap_err()), Exit::NotFound);
        let error = choose(&known, "web1").unwrap_err();
        assert!(error.to_string().contains("web1-00000001, web1-00000002"), "{error}");
    }
}
