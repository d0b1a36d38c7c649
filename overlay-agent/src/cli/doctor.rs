//! `overlay-agent doctor`: what is wrong on this host or between it and the others, and what mends it.

use anyhow::Result;
use clap::Args;

use super::{cleanup::PlacesArgs, etcd::EtcdArgs};
use crate::{doctor::examine, exit::Exit, output::OutputFormat};

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// How to answer
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,

    /// Where things of the agent's are.
    #[command(flatten)]
    pub places: PlacesArgs,

    /// How to reach etcd.
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// Looks at everything and prints what it found. That decides the exit code.
pub async fn run(args: DoctorArgs) -> Result<Exit> {
    let etcd = args.etcd.reach(&args.places.state_file)?;
    let diagnosis = examine(args.places.into(), etcd).await?;
    args.output.print(&diagnosis, || diagnosis.to_text())?;
    Ok(if diagnosis.healthy { Exit::Ok } else { Exit::Failure })
}
