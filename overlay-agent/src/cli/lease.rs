//! `overlay-agent lease`: leases for operators. Every write is a transaction on what was read.

mod report;

use std::net::Ipv4Addr;

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, Subcommand};
use ipnetwork::Ipv4Network;
use overlay_common::MacAddr;

use self::report::LeaseReport;
use super::{
    config::store,
    etcd::EtcdArgs,
    output::{Output, print},
};
use crate::{
    exit::{Exit, WithExit as _},
    lease::Lease,
    network_config::NetworkConfig,
    store::{Entry, Etcd, etcd::Created},
};

/// The verbs of `lease`.
#[derive(Debug, Subcommand)]
pub enum LeaseCommand {
    /// List all leases, and what is there but is none
    List(ListArgs),
    /// Say everything about one lease
    Show(ShowArgs),
    /// Make a lease stay for good, or keep a subnet for a host that is yet to come
    ///
    /// A lease that is there loses its time limit, and its host keeps it. A subnet that nobody has
    /// becomes that of the host at --public-ip, which takes it when its agent starts.
    Reserve(ReserveArgs),
    /// Delete a lease or reservation
    ///
    /// A host whose agent runs takes its subnet again at once, as an ordinary lease.
    Release(OneArgs),
}

/// Arguments of `lease list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// How to answer
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,

    /// How to reach etcd.
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// Arguments of `lease show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// How to answer
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,

    /// Which lease.
    #[command(flatten)]
    pub one: OneArgs,
}

/// Arguments of `lease reserve`.
#[derive(Debug, Args)]
pub struct ReserveArgs {
    /// The host that a free subnet is reserved for
    #[arg(long, value_name = "IP")]
    pub public_ip: Option<Ipv4Addr>,

    /// Which lease.
    #[command(flatten)]
    pub one: OneArgs,
}

/// A subnet in a store.
#[derive(Debug, Args)]
pub struct OneArgs {
    /// The subnet, such as 10.5.52.0/24
    #[arg(value_parser = parse_subnet)]
    pub subnet: Ipv4Network,

    /// How to reach etcd.
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// A subnet as a lease has it: as a network, or as a key's last segment.
fn parse_subnet(text: &str) -> Result<Ipv4Network, String> {
    let form = || format!("it must be a subnet such as 10.5.52.0/24, but is {text:?}");
    let parts = text.split_once('/').or_else(|| text.split_once('-'));
    let Some((Ok(address), Ok(length))) =
        parts.map(|(address, length)| (address.parse::<Ipv4Addr>(), length.parse::<u8>()))
    else {
        return Err(form());
    };
    if !(1..=31).contains(&length) {
        return Err(format!("a lease's prefix length is from 1 to 31, not {length}"));
    }
    let network = Ipv4Network::new(address, length).map_err(|error| error.to_string())?;
    if network.network() == address {
        Ok(network)
    } else {
        let first = network.network();
        Err(format!("{address} is not the first address of its /{length}: that is {first}"))
    }
}

/// Does what was asked.
pub async fn run(command: LeaseCommand) -> anyhow::Result<Exit> {
    match command {
        LeaseCommand::List(args) => list(&args).await?,
        LeaseCommand::Show(args) => show(&args).await?,
        LeaseCommand::Reserve(args) => {
            let store = store(&args.one.etcd)?;
            print(reserve(&store, args.one.subnet, args.public_ip).await?)?;
        }
        LeaseCommand::Release(args) => {
            let store = store(&args.etcd)?;
            print(release(&store, args.subnet).await?)?;
        }
    }
    Ok(Exit::Ok)
}

async fn list(args: &ListArgs) -> anyhow::Result<()> {
    let store = store(&args.etcd)?;
    let listing = store.list().await.exit(Exit::Unavailable)?;
    let reports: Vec<_> =
        listing.entries.iter().map(|entry| LeaseReport::new(store.prefix(), entry)).collect();
    args.output.print(&reports, || report::table(&reports))
}

async fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let store = store(&args.one.etcd)?;
    let entry = find(&store, args.one.subnet).await?;
    let mut report = LeaseReport::new(store.prefix(), &entry);
    if let Some(id) = entry.etcd_lease
        && let Some(lease) = store.etcd_lease(id).await.exit(Exit::Unavailable)?
    {
        report.expires_in = Some(lease.left);
        report.ttl = Some(lease.granted);
    }
    args.output.print(&report, || report.to_text())
}

/// Makes a reservation, and returns what was done in a sentence.
pub async fn reserve(
    store: &Etcd,
    subnet: Ipv4Network,
    public_ip: Option<Ipv4Addr>,
) -> anyhow::Result<String> {
    if let Some(entry) = look(store, subnet).await? {
        return make_permanent(store, subnet, &entry, public_ip).await;
    }
    let public_ip = public_ip
        .context("nobody has this subnet: say by --public-ip whom it is reserved for")
        .exit(Exit::Usage)?;
    create(store, subnet, public_ip).await
}

async fn make_permanent(
    store: &Etcd,
    subnet: Ipv4Network,
    entry: &Entry,
    public_ip: Option<Ipv4Addr>,
) -> anyhow::Result<String> {
    let report = LeaseReport::new(store.prefix(), entry);
    let Some(owner) = report.public_ip else {
        bail!("{} is no lease: {}", report.key, report.problem.unwrap_or_default());
    };
    if public_ip.is_some_and(|wanted| wanted != owner) {
        return Err(anyhow!("{subnet} is leased to {owner}")).exit(Exit::Conflict);
    }
    if entry.etcd_lease.is_none() {
        return Ok(format!("{subnet} was reserved for {owner} already.\n"));
    }
    // The same bytes: whatever another implementation wrote there stays.
    store
        .replace(&entry.key, entry.mod_revision, &entry.value, None)
        .await
        .exit(Exit::Unavailable)?
        .with_context(|| format!("{} was changed by somebody else just now", report.key))
        .exit(Exit::Conflict)?;
    Ok(format!("{subnet} is reserved for {owner}: the lease does not expire any more.\n"))
}

async fn create(store: &Etcd, subnet: Ipv4Network, public_ip: Ipv4Addr) -> anyhow::Result<String> {
    let key = store.prefix().config_key();
    let stored = store.get(&key).await.exit(Exit::Unavailable)?;
    let stored = stored
        .with_context(|| format!("there is no network config at {key}"))
        .exit(Exit::NotFound)?;
    let config = NetworkConfig::parse(&stored.value)
        .with_context(|| format!("the network config at {key} is malformed"))
        .exit(Exit::Config)?
        .config;
    if !config.admits(subnet) {
        let NetworkConfig { subnet_len, subnet_min, subnet_max, .. } = config;
        return Err(anyhow!(
            "the network config does not allow {subnet}: its subnets are /{subnet_len} from \
             {subnet_min} to {subnet_max}"
        ))
        .exit(Exit::Conflict);
    }
    let listing = store.list().await.exit(Exit::Unavailable)?;
    let reports = listing.entries.iter().map(|entry| LeaseReport::new(store.prefix(), entry));
    if let Some(other) = reports.into_iter().find(|report| report.public_ip == Some(public_ip)) {
        return Err(anyhow!(
            "{public_ip} has a lease already, {}: a host has one",
            other.subnet_text()
        ))
        .exit(Exit::Conflict);
    }
    let vtep_mac = MacAddr::local(rand::random());
    let lease = Lease { subnet, public_ip, vtep_mac, vni: Some(config.vni) };
    let value = lease.value().encode();
    let created = store
        .create(subnet, &value, None, Some(stored.mod_revision))
        .await
        .exit(Exit::Unavailable)?;
    match created {
        Created::At(_) => Ok(format!("{subnet} is reserved for {public_ip}.\n")),
        Created::Refused(obstacles) => Err(match obstacles.first() {
            Some(entry) => {
                anyhow!("{subnet} overlaps {}", LeaseReport::new(store.prefix(), entry).key)
            }
            None => anyhow!("the network config was changed by somebody else just now"),
        })
        .exit(Exit::Conflict),
    }
}

/// Deletes a lease, and returns what was done in a sentence.
pub async fn release(store: &Etcd, subnet: Ipv4Network) -> anyhow::Result<String> {
    let entry = find(store, subnet).await?;
    let report = LeaseReport::new(store.prefix(), &entry);
    delete(store, &entry, &report).await?;
    Ok(match report.public_ip {
        Some(owner) => format!(
            "{subnet} of {owner} is released; if the agent there runs, it takes the subnet again.\n"
        ),
        None => format!("{} is deleted.\n", report.key),
    })
}

/// Deletes the lease of `subnet` if it is that of the host with this VTEP, else fails.
pub async fn give_back(store: &Etcd, subnet: Ipv4Network, vtep_mac: MacAddr) -> anyhow::Result<()> {
    let entry = find(store, subnet).await?;
    let report = LeaseReport::new(store.prefix(), &entry);
    if report.vtep_mac.as_deref() != Some(vtep_mac.to_string().as_str()) {
        return Err(anyhow!("{} is another host's", report.key)).exit(Exit::Conflict);
    }
    delete(store, &entry, &report).await
}

async fn delete(store: &Etcd, entry: &Entry, report: &LeaseReport) -> anyhow::Result<()> {
    store
        .delete(&entry.key, entry.mod_revision)
        .await
        .exit(Exit::Unavailable)?
        .with_context(|| format!("{} was changed by somebody else just now", report.key))
        .exit(Exit::Conflict)?;
    if let Some(id) = entry.etcd_lease {
        // What is left of it expires by itself.
        store.retire(id).await.ok();
    }
    Ok(())
}

/// The lease of exactly this subnet, whether its host has one address family or two.
async fn look(store: &Etcd, subnet: Ipv4Network) -> anyhow::Result<Option<Entry>> {
    let listing = store.list().await.exit(Exit::Unavailable)?;
    let ours = |entry: &Entry| {
        store.prefix().parse_subnet_key(&entry.key).is_ok_and(|key| key.subnet == subnet)
    };
    Ok(listing.entries.into_iter().find(ours))
}

async fn find(store: &Etcd, subnet: Ipv4Network) -> anyhow::Result<Entry> {
    let dir = store.prefix().subnets_dir();
    look(store, subnet)
        .await?
        .with_context(|| format!("there is no lease of {subnet} below {dir}"))
        .exit(Exit::NotFound)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_subnet_is_written_as_a_network_or_as_in_a_key() {
        for text in ["10.5.52.0/24", "10.5.52.0-24"] {
            assert_eq!(parse_subnet(text).unwrap().to_string(), "10.5.52.0/24");
        }
        for (text, reason) in [
            ("10.5.52.7/24", "10.5.52.7 is not the first address of its /24: that is 10.5.52.0"),
            ("10.5.52.0", "it must be a subnet such as 10.5.52.0/24, but is \"10.5.52.0\""),
            ("10.5.52.0/32", "a lease's prefix length is from 1 to 31, not 32"),
        ] {
            assert_eq!(parse_subnet(text).unwrap_err(), reason);
        }
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_makes_a_key_that_reads_back(text in "\\PC*|[0-9]{1,3}(\\.[0-9]{1,3}){3}[/-][0-9]{1,2}") {
            if let Ok(subnet) = parse_subnet(&text) {
                let prefix = crate::lease::key::Prefix::new("/n");
                let key = prefix.subnet_key(subnet);
                prop_assert_eq!(prefix.parse_subnet_key(key.as_bytes()).unwrap().subnet, subnet);
            }
        }
    }
}
