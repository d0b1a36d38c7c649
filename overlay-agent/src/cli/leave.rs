//! `overlay-agent leave`: this host is a stranger to the overlay again.

use anyhow::Result;
use clap::Args;

use super::{cleanup::PlacesArgs, etcd::EtcdArgs};
use crate::provision::{self, Consent, Leaving};

/// Arguments of `leave`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct LeaveArgs {
    /// Do not ask
    #[arg(long)]
    pub yes: bool,

    /// Only say what would be done
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,

    /// Delete this host's etcd also where other hosts use it, or where that cannot be told
    #[arg(long, conflicts_with = "keep")]
    pub delete_etcd: bool,

    /// Keep the lease and the credentials, for `init` or `join` to bring this host back
    #[arg(long)]
    pub keep: bool,

    /// Where things of the agent's are.
    #[command(flatten)]
    pub places: PlacesArgs,

    /// How to reach etcd.
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// Leaves, after asking.
pub async fn run(args: LeaveArgs) -> Result<()> {
    let leaving = Leaving {
        etcd: args.etcd.reach(&args.places.state_file)?,
        places: args.places.into(),
        keep: args.keep,
        delete_etcd: args.delete_etcd,
        consent: Consent::of(args.yes, args.dry_run),
    };
    provision::leave(&leaving).await
}
