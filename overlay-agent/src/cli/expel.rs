//! `overlay-agent hosts` and `overlay-agent expel`: who is known to etcd as a host, and who no more.

use std::path::Path;

use anyhow::Result;
use clap::Args;

use super::{consent::ConsentArgs, etcd::EtcdArgs};
use crate::{
    output::OutputFormat,
    provision::{self, Expel},
    state_file,
};

/// Arguments of `hosts`.
#[derive(Debug, Args)]
pub struct HostsArgs {
    /// How to answer
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,

    /// How to reach etcd.
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// Arguments of `expel`.
#[derive(Debug, Args)]
pub struct ExpelArgs {
    /// The host: its name, as `overlay-agent hosts` has it, its address or its subnet
    #[arg(value_name = "HOST", required_unless_present = "shared_certificate")]
    pub host: Option<String>,

    /// Instead, let in no host any more by the certificate that all hosts of earlier versions shared
    #[arg(long, conflicts_with = "host")]
    pub shared_certificate: bool,

    /// Whether to ask.
    #[command(flatten)]
    pub consent: ConsentArgs,

    /// How to reach etcd.
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// Lists the hosts.
pub async fn hosts(args: HostsArgs) -> Result<()> {
    let known = provision::hosts(&args.etcd.reach(Path::new(state_file::DEFAULT_PATH))?).await?;
    args.output.print(&known, || provision::table(&known))
}

/// Shuts one out.
pub async fn run(args: ExpelArgs) -> Result<()> {
    let expel = Expel {
        host: args.host,
        etcd: args.etcd.reach(Path::new(state_file::DEFAULT_PATH))?,
        consent: args.consent.into(),
    };
    provision::expel(&expel).await
}
