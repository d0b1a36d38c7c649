//! `overlay-agent leave`: this host is a stranger to the overlay again.

use anyhow::Result;
use clap::Args;

use super::{cleanup::PlacesArgs, consent::ConsentArgs, etcd::EtcdArgs};
use crate::provision::{self, Leaving};

/// Arguments of `leave`.
#[derive(Debug, Args)]
pub struct LeaveArgs {
    /// Whether to ask.
    #[command(flatten)]
    pub consent: ConsentArgs,

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
        consent: args.consent.into(),
    };
    provision::leave(&leaving).await
}
