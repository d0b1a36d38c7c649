//! `overlay-agent report`: one file for whoever is asked for help.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::{cleanup::PlacesArgs, etcd::EtcdArgs};
use crate::{
    bug_report::{self, ReportOptions},
    output::print,
};

/// Arguments of `report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Where to write it; by default a new file in this folder
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Where things of the agent's are.
    #[command(flatten)]
    pub places: PlacesArgs,

    /// How to reach etcd.
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// Writes it, and says where it is.
pub async fn run(args: ReportArgs) -> Result<()> {
    let etcd = args.etcd.reach(&args.places.state_file)?;
    let options = ReportOptions { file: args.file, places: args.places.into(), etcd };
    let path = bug_report::write(&options).await?;
    print(format_args!(
        "{} has what this host is like: addresses, rules, maps and logs, and no keys, passwords or tokens. Look into it before \
         you give it away: `tar --list --file {}`.\n",
        path.display(),
        path.display()
    ))
}
