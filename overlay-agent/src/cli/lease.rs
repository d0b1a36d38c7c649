//! `overlay-agent lease`: leases for operators. Every write is a transaction on what was read.

mod report;

use std::net::Ipv4Addr;

use anyhow::anyhow;
use clap::{Args, Subcommand};
use ipnetwork::Ipv4Network;
use overlay_lease::store::{
    Store as _,
    operate::{self, OperateError, Released, Reserved},
};

use self::report::LeaseReport;
use super::{config::store, etcd::EtcdArgs};
use crate::{
    exit::{Exit, OwnExit as _, WithExit as _},
    output::{OutputFormat, print},
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
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,

    /// How to reach etcd.
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// Arguments of `lease show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// How to answer
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,

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
        LeaseCommand::Reserve(args) => print(reserve(&args).await?)?,
        LeaseCommand::Release(args) => print(release(&args).await?)?,
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
    let entry = operate::find(&store, args.one.subnet).await.own_exit()?;
    let mut report = LeaseReport::new(store.prefix(), &entry);
    if let Some(id) = entry.etcd_lease
        && let Some(lease) = store.etcd_lease(id).await.exit(Exit::Unavailable)?
    {
        report.expires_in = Some(lease.left);
        report.ttl = Some(lease.granted);
    }
    args.output.print(&report, || report.to_text())
}

async fn reserve(args: &ReserveArgs) -> anyhow::Result<String> {
    let OneArgs { subnet, etcd } = &args.one;
    let reserved = match operate::reserve(&store(etcd)?, *subnet, args.public_ip).await {
        Err(OperateError::Nobody) => {
            Err(anyhow!("nobody has this subnet: say by --public-ip whom it is reserved for"))
                .exit(Exit::Usage)
        }
        outcome => outcome.own_exit(),
    };
    Ok(match reserved? {
        Reserved::Already(owner) => format!("{subnet} was reserved for {owner} already.\n"),
        Reserved::Kept(owner) => {
            format!("{subnet} is reserved for {owner}: the lease does not expire any more.\n")
        }
        Reserved::Free(owner) => format!("{subnet} is reserved for {owner}.\n"),
    })
}

async fn release(args: &OneArgs) -> anyhow::Result<String> {
    let released = operate::release(&store(&args.etcd)?, args.subnet).await.own_exit()?;
    Ok(match released {
        Released { owner: Some(owner), .. } => format!(
            "{} of {owner} is released; if the agent there runs, it takes the subnet again.\n",
            args.subnet
        ),
        Released { owner: None, key } => format!("{key} is deleted.\n"),
    })
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
                let prefix = overlay_lease::wire::key::KeyPrefix::new("/n");
                let key = prefix.subnet_key(subnet);
                prop_assert_eq!(prefix.parse_subnet_key(key.as_bytes()).unwrap().subnet, subnet);
            }
        }
    }
}
