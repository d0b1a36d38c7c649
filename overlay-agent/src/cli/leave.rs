//! `overlay-agent leave`: this host is a stranger to the overlay again.

use std::io::BufRead as _;

use anyhow::{Context as _, Result};
use clap::Args;
use overlay_lease::store::etcd::EtcdConfig;

use super::{cleanup::PlacesArgs, etcd::EtcdArgs};
use crate::{
    exit::{Exit, WithExit as _},
    output::print,
    provision::{self, Leaving},
};

/// Arguments of `leave`.
#[derive(Debug, Args)]
pub struct LeaveArgs {
    /// Do not ask
    #[arg(long)]
    pub yes: bool,

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
        places: args.places.into(),
        etcd: EtcdConfig::try_from(&args.etcd).exit(Exit::Usage)?,
        keep: args.keep,
    };
    if !args.yes && !asked(&leaving)? {
        return print("Nothing was changed.\n");
    }
    provision::leave(&leaving).await
}

/// Asks, and says whether the answer was yes.
fn asked(leaving: &Leaving) -> Result<bool> {
    let subnet = leaving.subnet()?.map_or_else(
        || "This host has no subnet of the overlay.".to_owned(),
        |subnet| format!("This host gives {subnet} back."),
    );
    print(format_args!(
        "{subnet} The overlay's agent is stopped, and Docker is restarted on a bridge of its own: its \
         containers end, and those with a restart policy come back with other addresses. Go on? [y/N] "
    ))?;
    std::io::Write::flush(&mut std::io::stdout()).context("cannot ask")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
